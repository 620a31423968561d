"""What the caches of earlier runs hold of an archive, so that nothing is read or decoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..types import ImageFormat
from .archive import Archive
from .cache import Cache
from .table import content_key


class Found(NamedTuple):
    """What a table says of an image: key of its content, and its patient, hashed with the salt of the cache."""

    content: int
    patient: str | None
    patient_held_out: bool | None


class _Held(NamedTuple):
    """A cache, and the row of its table for each path of the archive that it holds."""

    cache: Cache
    table: pa.Table
    rows: dict[str, int]


class KnownImages:
    """Images of an archive that caches hold.

    Args:
        archive: of files; of an archive in memory nothing is known, as it costs nothing to read.
        caches: of that archive.
        trusted: take what they hold as it is, as for the cache that a run trains on; else files that changed since are
            not taken from it.

    Attributes:
        salt: of the patients, None where no cache holds an image.
        used: paths of the images whose pixels were taken from a cache.
    """

    def __init__(self, archive: Archive, caches: Sequence[Cache] = (), *, trusted: bool = False) -> None:
        self.used: set[str] = set()
        row_of = {sample.path: row for row, sample in enumerate(archive.samples)} if caches else {}
        stamps: dict[int, tuple[int, int]] = {}
        self._held: list[_Held] = []
        for cache in caches if not archive.in_memory else ():
            table = cache.table(
                "bytes", "changed", "frame", "frames", "content_hash", "patient", "patient_held_out"
            ).combine_chunks()
            paths, rows = cache.paths(), {}
            size, changed, middle = table["bytes"].to_numpy(), table["changed"].to_numpy(), _is_middle(table)
            for at in cache.readable().tolist():
                row = row_of.get(paths[at])
                if row is None or (paths[at] in rows and not middle[at]):
                    continue
                if not trusted:
                    stamp = stamps[row] = stamps.get(row) or archive.stamp(row)
                    if stamp != (size[at], changed[at]):
                        continue
                rows[paths[at]] = at
            if rows:
                self._held.append(_Held(cache, table.drop_columns(["bytes", "changed"]), rows))
        self.salt = self._held[0].cache.salt if self._held else None

    def found(self, path: str) -> Found | None:
        """Content and patient of an image, or None where its file has to be opened."""
        for held in self._held:
            if path in held.rows and held.cache.salt == self.salt:
                names = ("content_hash", "patient", "patient_held_out")
                content, patient, held_out = (held.table[name][held.rows[path]].as_py() for name in names)
                return Found(content_key(content), patient, held_out)
        return None

    def squares(self, format: ImageFormat) -> Squares | None:
        """What is decoded for such a dataset, at the smallest side that is large enough; None for nothing."""
        kept: dict[int, list[_Held]] = {}
        for held in self._held:
            side = held.cache.options.format.size
            if side >= format.size and held.cache.options.format == replace(format, size=side):
                kept.setdefault(side, []).append(held)
        return Squares(replace(format, size=min(kept)), kept[min(kept)], self.used) if kept else None


class Squares:
    """Decoded images of one format."""

    def __init__(self, format: ImageFormat, held: Sequence[_Held], used: set[str]) -> None:
        self.format = format
        self._held, self._used = held, used

    def get(self, path: str) -> NDArray[np.uint8 | np.uint16] | None:
        """An image ``(channels, size, size)``, of several frames the middle one; None where no cache has it."""
        for cache, table, rows in self._held:
            at = rows.get(path)
            if at is None or not _is_middle(table.slice(at, 1))[0]:
                continue
            self._used.add(path)
            square: NDArray[Any] = cache.pixels[int(np.searchsorted(cache.readable(), at))]
            return square
        return None


def _is_middle(table: pa.Table) -> NDArray[np.bool_]:
    """Of several frames the middle one is what a dataset without cache takes."""
    frame, frames = (table[name].fill_null(0).to_numpy() for name in ("frame", "frames"))
    return np.asarray(frame == frames // 2)
