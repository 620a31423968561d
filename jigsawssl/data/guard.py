"""The leak guard: what pretraining saw, kept with the encoder, so that fine-tuning can tell what it is tested on."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ..readers import Unreadable
from ..types import UserError
from .archive import Archive
from .cache import Cache
from .table import salted

__all__ = ["Overlap", "SeenImages", "content_key", "seen_images"]

_SCHEMA = pa.schema([("content", pa.int64()), ("group", pa.string()), ("salt", pa.string())])


def content_key(content_hash: str) -> int:
    """The first 64 bits of a content hash, signed, as they are stored."""
    return int.from_bytes(bytes.fromhex(content_hash[:16]), "big", signed=True)


@dataclass(frozen=True)
class Overlap:
    """Rows of an archive that pretraining has seen: the image itself, or another of its group."""

    same_image: NDArray[np.int64]
    same_group: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Either, in order."""
        return np.union1d(self.same_image, self.same_group)


@dataclass(frozen=True)
class SeenImages:
    """Content and group hashes of the images that pretraining used.

    Groups are those of the manifest and the patients of DICOM files, hashed with a salt for each source. The salts stay
    in the run's folder, beside the encoder and not in it, because few identifiers are so long that nobody could try
    them all. ``complete`` is false where an earlier training, which was gone on from, left no such file.
    """

    contents: frozenset[int]
    groups: Mapping[bytes, frozenset[str]]
    complete: bool = True

    def union(self, other: SeenImages) -> SeenImages:
        """What either has seen."""
        salts = {*self.groups, *other.groups}
        nothing: frozenset[str] = frozenset()
        groups = {salt: self.groups.get(salt, nothing) | other.groups.get(salt, nothing) for salt in salts}
        return SeenImages(self.contents | other.contents, groups, self.complete and other.complete)

    def save(self, path: Path) -> None:
        """Write a Parquet file, in one step."""
        pairs = sorted((salt.hex(), group) for salt, groups in self.groups.items() for group in groups)
        contents: list[int | None] = [*sorted(self.contents)]
        count = max(len(contents), len(pairs))
        contents += [None] * (count - len(contents))
        padding: list[tuple[None, None]] = [(None, None)] * (count - len(pairs))
        salts, groups = ([pair[at] for pair in [*pairs, *padding]] for at in (0, 1))
        schema = _SCHEMA.with_metadata({"complete": str(self.complete).lower()})
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(pa.table({"content": contents, "group": groups, "salt": salts}, schema=schema), partial)
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> SeenImages:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            table = pq.read_table(path)
            complete = table.schema.metadata[b"complete"] == b"true"
            contents = frozenset(table["content"].to_pylist()) - {None}
            groups: dict[bytes, set[str]] = {}
            for group, salt in zip(table["group"].to_pylist(), table["salt"].to_pylist(), strict=True):
                if group is not None:
                    groups.setdefault(bytes.fromhex(salt), set()).add(group)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"`encoder` must have a whole seen.parquet beside it; {path.name} is damaged ({type(error).__name__}); "
                "copy it again, or give allow_overlap=true"
            ) from None
        return SeenImages(contents, {salt: frozenset(names) for salt, names in groups.items()}, complete)

    def overlap(self, archive: Archive, rows: NDArray[np.int64]) -> Overlap:
        """Which of these rows pretraining has seen; images that cannot be read are compared by group alone."""
        same_image, same_group = [], []
        for row in rows.tolist():
            names, content = _identify(archive, row)
            if content is not None and content in self.contents:
                same_image.append(row)
            if any(salted(name, salt) in known for name in names for salt, known in self.groups.items()):
                same_group.append(row)
        return Overlap(np.array(same_image, dtype=np.int64), np.array(same_group, dtype=np.int64))


def _identify(archive: Archive, row: int) -> tuple[list[str], int | None]:
    """The group and the patient of a sample, as far as they are known, and the key of its content."""
    group = archive.samples[row].group
    names = [] if group is None else [group]
    try:
        picture = archive.open(row)
    except Unreadable:
        return names, None
    patient = picture.info.patient
    return (names if patient is None else [*names, patient]), content_key(picture.content_hash)


def seen_images(archive: Archive, cache: Cache | None, progress: bool) -> SeenImages:
    """What a run on an archive uses; taken from its cache, or without one by reading every image.

    Args:
        archive: all of whose readable images are used.
        cache: of this archive.
        progress: show a bar while images are read.
    """
    contents: set[int] = set()
    groups: set[str] = set()
    if cache is None:
        salt = secrets.token_bytes(32)
        for row in tqdm(range(len(archive)), "Hashing", disable=not progress):
            names, content = _identify(archive, row)
            if content is not None:
                contents.add(content)
                groups |= {salted(name, salt) or "" for name in names}
        return SeenImages(frozenset(contents), {salt: frozenset(groups)})
    group_of = {sample.path: sample.group for sample in archive.samples}
    paths, table = cache.paths(), cache.table("content_hash", "patient")
    hashes, patients = (table[name].to_pylist() for name in ("content_hash", "patient"))
    for row in cache.readable().tolist():
        path, content_hash, patient = paths[row], hashes[row], patients[row]
        if path in group_of:
            contents.add(content_key(content_hash))
            known = {patient, salted(group_of[path], cache.salt)}
            groups |= {name for name in known if name is not None}
    return SeenImages(frozenset(contents), {cache.salt: frozenset(groups)})
