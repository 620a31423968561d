"""The leak guard: what pretraining saw, kept with the encoder, so that fine-tuning can tell what it is tested on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..types import UserError
from .identity import Identities

KEY_FILE = "seen.key"
"""Name of the file of keys beside ``seen.parquet``."""

_SCHEMA = pa.schema([("content", pa.int64()), ("group", pa.string()), ("key", pa.string())])


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
    """Contents, groups and patients of the images that pretraining used, as far as they may be told.

    Groups are those of the manifest and the patients of DICOM files. The file has only tags of them, made with a secret
    key for each source: most identifiers are short enough to try them all, but without the key there is nothing to
    compare them with. The keys lie in a file of their own, which only its owner can read and which stays in
    the run's folder when the encoder is given away.

    Attributes:
        contents: 64 bits of the hash of each image's content, without a key.
        groups: tags by the name of the key that made them.
        keys: by their names, those that are at hand.
        complete: false where an earlier training, which was gone on from, left no such file.
    """

    contents: frozenset[int]
    groups: Mapping[str, frozenset[str]]
    keys: Mapping[str, bytes]
    complete: bool = True

    @staticmethod
    def nothing(*, complete: bool = True) -> SeenImages:
        """Of a run that saw no images, or none that anybody knows."""
        return SeenImages(frozenset(), {}, {}, complete)

    @property
    def comparable(self) -> bool:
        """Whether groups can be compared: the key of all tags is at hand."""
        return set(self.groups) <= set(self.keys)

    def union(self, other: SeenImages) -> SeenImages:
        """What either has seen."""
        names = {*self.groups, *other.groups}
        none: frozenset[str] = frozenset()
        groups = {name: self.groups.get(name, none) | other.groups.get(name, none) for name in names}
        keys = {**self.keys, **other.keys}
        return SeenImages(self.contents | other.contents, groups, keys, self.complete and other.complete)

    def save(self, path: Path) -> None:
        """Write a Parquet file, and the keys beside it as :data:`KEY_FILE`, each in one step."""
        pairs = sorted((name, group) for name, groups in self.groups.items() for group in groups)
        contents: list[int | None] = [*sorted(self.contents)]
        count = max(len(contents), len(pairs))
        contents += [None] * (count - len(contents))
        padding: list[tuple[None, None]] = [(None, None)] * (count - len(pairs))
        names, groups = ([pair[at] for pair in [*pairs, *padding]] for at in (0, 1))
        schema = _SCHEMA.with_metadata({"complete": str(self.complete).lower()})
        self._save_keys(path.with_name(KEY_FILE))
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(pa.table({"content": contents, "group": groups, "key": names}, schema=schema), partial)
        partial.replace(path)

    def _save_keys(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            json.dump({name: key.hex() for name, key in sorted(self.keys.items())}, stream, indent=2)
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> SeenImages:
        """Read what :meth:`save` wrote; the keys may be missing.

        Raises:
            UserError: if a file is damaged.
        """
        file = path
        try:
            table = pq.read_table(path)
            complete = table.schema.metadata[b"complete"] == b"true"
            contents = frozenset(table["content"].to_pylist()) - {None}
            groups: dict[str, set[str]] = {}
            for group, name in zip(table["group"].to_pylist(), table["key"].to_pylist(), strict=True):
                if group is not None:
                    groups.setdefault(name, set()).add(group)
            file = path.with_name(KEY_FILE)
            written = json.loads(file.read_text()) if file.is_file() else {}
            keys = {name: bytes.fromhex(key) for name, key in written.items()}
        except PermissionError:  # of the keys of somebody else
            keys = {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise UserError(
                f"`encoder` must have a whole seen.parquet beside it; {file.name} is damaged ({type(error).__name__}); "
                "copy it again, or give allow_overlap=true"
            ) from None
        return SeenImages(contents, {name: frozenset(tags) for name, tags in groups.items()}, keys, complete)

    def overlap(self, identities: Identities, rows: NDArray[np.int64]) -> Overlap:
        """Which of these rows pretraining has seen, themselves or by another image of their group.

        A group counts as seen where its name is known, and where the archive holds another image of it whose content
        is, as a pretraining that knew no groups leaves no names. Images that cannot be read are compared by group.
        Where a key is missing, names are not compared, see :attr:`comparable`.
        """
        samples = identities.archive.samples
        groups = {samples[row].group for row in rows.tolist()} - {None}
        mates = [row for row, sample in enumerate(samples) if sample.group in groups] if groups else []
        identities.look_up(np.union1d(rows, np.array(mates, dtype=np.int64)))
        seen_mates: dict[str | None, set[int]] = {}
        for row in mates:
            if identities.content(row) in self.contents:
                seen_mates.setdefault(samples[row].group, set()).add(row)
        same_image, same_group = [], []
        known = [(name, tags) for name, tags in self.groups.items() if name in self.keys]
        for row in rows.tolist():
            if identities.content(row) in self.contents:
                same_image.append(row)
            named = any(identities.names(row, self.keys[name]) & tags for name, tags in known)
            if named or seen_mates.get(samples[row].group, set()) - {row}:
                same_group.append(row)
        return Overlap(np.array(same_image, dtype=np.int64), np.array(same_group, dtype=np.int64))


def seen_images(identities: Identities, rows: NDArray[np.int64], *, progress: bool = False) -> SeenImages:
    """What a run on some rows of an archive uses: contents, groups and patients of those that can be read.

    Args:
        identities: of the archive.
        rows: that are used.
        progress: show a bar while files are opened.
    """
    identities.look_up(rows, progress=progress)
    contents: set[int] = set()
    groups: set[str] = set()
    for row in rows.tolist():
        content = identities.content(row)
        if content is not None:
            contents.add(content)
            groups |= identities.names(row, identities.salt)
    name = hashlib.sha256(identities.salt).hexdigest()[:32]
    return SeenImages(frozenset(contents), {name: frozenset(groups)} if groups else {}, {name: identities.salt})
