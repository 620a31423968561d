"""The leak guard: what pretraining saw, kept with the encoder, so that fine-tuning can tell what it is tested on."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ..types import UserError
from .archive import Archive
from .cache import Cache, original, salted
from .pixels import Unreadable

__all__ = ["Overlap", "SeenImages", "content_key", "identify", "seen_images"]

_SCHEMA = pa.schema([("content", pa.int64()), ("group", pa.string())])


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
    """Content and group hashes of the images that a pretraining run used.

    Groups are those of the manifest, else the patients of DICOM files, hashed with ``salt``. The salt stays in the
    run's folder, beside the encoder and not in it, because few identifiers are so long that nobody could try them all.
    """

    contents: frozenset[int]
    groups: frozenset[str]
    salt: bytes

    def save(self, path: Path) -> None:
        """Write a Parquet file, in one step."""
        count = max(len(self.contents), len(self.groups))
        contents, groups = sorted(self.contents), sorted(self.groups)
        table = pa.table(
            [
                pa.array([*contents, *[None] * (count - len(contents))], pa.int64()),
                pa.array([*groups, *[None] * (count - len(groups))], pa.string()),
            ],
            schema=_SCHEMA.with_metadata({"salt": self.salt.hex()}),
        )
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(table, partial)
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> SeenImages:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: if the file is damaged.
        """
        try:
            table = pq.read_table(path)
            salt = bytes.fromhex(table.schema.metadata[b"salt"].decode())
            contents, groups = (set(table[name].to_pylist()) - {None} for name in _SCHEMA.names)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"`encoder` must have a whole seen.parquet beside it; {path} is damaged ({type(error).__name__}); "
                "copy it again, or give allow_overlap=true"
            ) from None
        return SeenImages(frozenset(contents), frozenset(groups), salt)

    def overlap(self, archive: Archive, rows: NDArray[np.int64]) -> Overlap:
        """Which of these rows pretraining has seen; images that cannot be read are compared by group alone."""
        same_image, same_group = [], []
        for row in rows.tolist():
            group, content = identify(archive, row)
            if content is not None and content in self.contents:
                same_image.append(row)
            if salted(group, self.salt) in self.groups:
                same_group.append(row)
        return Overlap(np.array(same_image, dtype=np.int64), np.array(same_group, dtype=np.int64))


def identify(archive: Archive, row: int) -> tuple[str | None, int | None]:
    """The group of a sample, or else its patient, and the key of its content; ``None`` for what is not known."""
    group = archive.samples[row].group
    try:
        picture = archive.open(row)
    except Unreadable:
        return group, None
    return group or picture.info.patient, content_key(picture.content_hash)


def seen_images(archive: Archive, cache: Cache | None, progress: bool) -> SeenImages:
    """What a run on an archive uses; taken from its cache, or without one by reading every image.

    Args:
        archive: all of whose readable images are used.
        cache: of this archive.
        progress: show a bar while images are read.
    """
    contents: set[int] = set()
    groups: set[str | None] = set()
    if cache is None:
        salt = secrets.token_bytes(32)
        for row in tqdm(range(len(archive)), "Hashing", disable=not progress):
            group, content = identify(archive, row)
            if content is not None:
                contents.add(content)
                groups.add(salted(group, salt))
        return SeenImages(frozenset(contents), frozenset(groups - {None}), salt)  # type: ignore[arg-type]
    group_of = {sample.path: sample.group for sample in archive.samples}
    table = cache.table.take(pa.array(cache.readable()))
    columns = (table[name].to_pylist() for name in ("path", "content_hash", "patient"))
    for written, content_hash, patient in zip(*columns, strict=True):
        path = original(written)
        if path in group_of:
            contents.add(content_key(content_hash))
            groups.add(patient if group_of[path] is None else salted(group_of[path], cache.salt))
    return SeenImages(frozenset(contents), frozenset(groups - {None}), cache.salt)  # type: ignore[arg-type]
