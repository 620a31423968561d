"""What the caches of earlier runs hold of an archive, so that nothing is read or decoded twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..readers import shrink_square
from .archive import Archive
from .cache import Cache, caches_of
from .table import content_key

__all__ = ["Found", "KnownImages"]


class Found(NamedTuple):
    """What a table says of an image: key of its content, and its patient, hashed with the salt of the cache."""

    content: int
    patient: str | None
    patient_held_out: bool | None


class KnownImages:
    """Images of an archive that caches hold, as far as the files did not change since.

    Args:
        archive: of files; of an archive in memory nothing is known, as it costs nothing to read.
        folders: of caches; damaged or older ones are passed over.

    Attributes:
        salt: of the patients, None where no cache was found.
        used: paths of the images whose pixels were taken from a cache.
    """

    def __init__(self, archive: Archive, folders: Sequence[Path]) -> None:
        self.salt: bytes | None = None
        self.used: set[str] = set()
        self._caches: list[tuple[Cache, dict[str, int]]] = []
        self._found: dict[str, Found] = {}
        for folder in folders if not archive.in_memory else ():
            for cache in caches_of(archive.location, folder):
                self._add(archive, cache)

    def _add(self, archive: Archive, cache: Cache) -> None:
        row_of = {sample.path: row for row, sample in enumerate(archive.samples)}
        table = cache.table("bytes", "changed", "frame", "frames", "content_hash", "patient", "patient_held_out")
        columns = {name: table[name].to_pylist() for name in table.column_names}
        paths = cache.paths()
        places: dict[str, int] = {}
        for place, at in enumerate(cache.readable().tolist()):
            path = paths[at]
            row = row_of.get(path)
            if row is None or archive.stamp(row) != (columns["bytes"][at], columns["changed"][at]):
                continue
            if self.salt in (None, cache.salt) and path not in self._found:
                content, patient, held_out = (
                    columns[name][at] for name in ("content_hash", "patient", "patient_held_out")
                )
                self._found[path] = Found(content_key(content), patient, held_out)
            # Of several frames the middle one is what a dataset without cache takes.
            if columns["frame"][at] == columns["frames"][at] // 2:
                places[path] = place
        self.salt = self.salt or (cache.salt if self._found else None)
        self._caches.append((cache, places))

    def found(self, path: str) -> Found | None:
        """Content and patient of an image, or None where its file has to be opened."""
        return self._found.get(path)

    def pixels(
        self, path: str, *, size: int, channels: int, fit: str, window: str, deep: bool
    ) -> NDArray[np.uint8 | np.uint16] | None:
        """An image as :func:`jigsawssl.readers.fit_image` gives it, from the smallest cached one that is as large.

        Made from a larger square, it differs a little from what the file itself would give, as it is resized twice.

        Args:
            path: of the image in the archive.
            size: side in pixels.
            channels: 1 or 3.
            fit: how images become squares.
            window: how more than 8 bits become display values.
            deep: whether uint16 is wanted whatever the cache holds.

        Returns:
            uint8 or uint16 ``(channels, size, size)``, or None where no cache has it.
        """
        wanted = (channels, fit, window)
        best: tuple[Cache, int] | None = None
        for cache, places in self._caches:
            options = cache.options
            if path in places and (options.channels, options.fit, options.window) == wanted and options.size >= size:
                best = (cache, places[path]) if best is None or options.size < best[0].options.size else best
        if best is None:
            return None
        self.used.add(path)
        square: NDArray[Any] = shrink_square(best[0].pixels[best[1]], size)
        return square.astype(np.uint16) * np.uint16(257) if deep and square.dtype == np.uint8 else square
