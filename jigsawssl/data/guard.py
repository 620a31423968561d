"""The leak guard: what pretraining saw, kept with the encoder, so that fine-tuning can tell what it is tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..types import UserError
from .identity import Identities

__all__ = ["Overlap", "SeenImages", "seen_images"]

_SCHEMA = pa.schema([("content", pa.int64()), ("group", pa.string()), ("salt", pa.string())])


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

    def overlap(self, identities: Identities, rows: NDArray[np.int64]) -> Overlap:
        """Which of these rows pretraining has seen, themselves or by another image of their group.

        A group counts as seen where its name is known, and where the archive holds another image of it whose content
        is, as a pretraining that knew no groups leaves no names. Images that cannot be read are compared by group.
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
        for row in rows.tolist():
            if identities.content(row) in self.contents:
                same_image.append(row)
            named = any(identities.names(row, salt) & known for salt, known in self.groups.items())
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
    return SeenImages(frozenset(contents), {identities.salt: frozenset(groups)})
