"""The cache: every image of an archive decoded once, as one memory-mapped array and a table of what was found."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..types import ImageFormat, UserError
from .table import LEFT_OUT, TABLE_SCHEMA, original, salted

SALT_FILE = "salt"
"""In the folder of caches: the salt of their hashed identifiers."""

_VERIFIED_BYTES = 256 * 2**20
_VERIFIED_ROWS = 256
_ROWS = 1024  # of the table in memory


@dataclass(frozen=True)
class CacheOptions:
    """What decides about cached pixels; another value gives another cache.

    Attributes:
        format: of the squares; what stain and normalisation make of them is not part of it.
        sixteen_bit: uint16 instead of uint8.
        frames: ``all``, ``middle`` or ``every_N`` of files with several frames.
        examined: whether the doctor's columns are filled, which takes longer.
    """

    format: ImageFormat
    sixteen_bit: bool = False
    frames: str = "all"
    examined: bool = False

    @property
    def item(self) -> tuple[np.dtype[Any], tuple[int, int, int]]:
        """Type and shape of one image."""
        side = self.format.size
        return np.dtype(np.uint16 if self.sixteen_bit else np.uint8), (self.format.channels, side, side)

    @property
    def item_bytes(self) -> int:
        """Bytes of one image."""
        kind, shape = self.item
        return kind.itemsize * int(np.prod(shape))

    def as_json(self) -> dict[str, Any]:
        """Values by the names that ``meta.json`` and the folder's digest have for them."""
        images = self.format
        return {
            "size": images.size,
            "channels": images.channels,
            "deep": self.sixteen_bit,
            "fit": images.fit,
            "window": images.window,
            "frames": self.frames,
            "examined": self.examined,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CacheOptions:
        """What :meth:`as_json` made."""
        images = ImageFormat(values["size"], values["channels"], values["fit"], values["window"])
        return cls(images, sixteen_bit=values["deep"], frames=values["frames"], examined=values["examined"])


class Cache:
    """A finished cache, opened read-only; written by :func:`jigsawssl.data.cache_writer.build_cache`.

    Attributes:
        path: its folder.
        options: with which it was written.
        pixels: uint8 or uint16 ``(N, C, size, size)``, memory-mapped; in the order of
            the rows of the table with status ok.
        salt: of the hashed identifiers.

    Raises:
        UserError: if the files are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = json.loads((path / "meta.json").read_text())
            self.options = CacheOptions.from_json(meta["options"])
            self.salt = (path.parent / SALT_FILE).read_bytes()
            kind, shape = self.options.item
            file = path / "pixels.bin"
            count = int(meta["images"])
            # Stays open, as another run may put a newer cache in the place of this one.
            self._table = pq.ParquetFile(path / "table.parquet", pre_buffer=False)
            if self._table.schema_arrow != TABLE_SCHEMA:
                raise ValueError("columns")
            ok, checksums = [], []
            for part in self._parts("status", "checksum"):
                ok.append(pc.equal(part["status"], "ok").to_numpy(zero_copy_only=False))
                checksums.append(part["checksum"].filter(pc.equal(part["status"], "ok")).to_numpy())
            self._readable: NDArray[np.int64] = np.flatnonzero(np.concatenate(ok))
            if file.stat().st_size != count * self.options.item_bytes or self._readable.size != count:
                raise ValueError("size")
            # Copy-on-write, as torch warns about arrays that it must not write to.
            self.pixels: NDArray[Any] = (
                np.memmap(file, kind, "c", shape=(count, *shape)) if count else np.zeros((0, *shape), kind)
            )
            self._verify(np.concatenate(checksums))
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"`cache` ({path.name}) must be what an earlier run wrote; it is damaged ({type(error).__name__}); "
                "delete that folder and run again"
            ) from None

    def table(self, *columns: str) -> pa.Table:
        """These columns of :data:`jigsawssl.data.table.TABLE_SCHEMA`, or all; read again at each call, as they are
        large in large archives and needed for a moment only."""
        return self._table.read(columns=list(columns) or None, use_threads=False)

    def _parts(self, *columns: str) -> Iterator[pa.RecordBatch]:
        yield from self._table.iter_batches(_ROWS, columns=list(columns), use_threads=False)

    def paths(self) -> list[str]:
        """Paths of the rows of the table as the archive has them."""
        return _joined(self.table("path", "member"))

    def readable(self) -> NDArray[np.int64]:
        """Rows of the table with pixels."""
        return self._readable

    def unreadable(self) -> list[tuple[str, int, str]]:
        """Path, frame and reason of what has no pixels, but for what was left out on purpose."""
        found: list[tuple[str, int, str]] = []
        for part in self._parts("path", "member", "frame", "status"):
            status = part["status"]
            bad = part.filter(pc.and_(pc.not_equal(status, "ok"), pc.invert(pc.starts_with(status, LEFT_OUT))))
            found += zip(_joined(bad), bad["frame"].to_pylist(), bad["status"].to_pylist(), strict=True)
        return found

    def _verify(self, expected: NDArray[np.uint32]) -> None:
        """Compare checksums: of everything in a small cache, of evenly spread rows in a large one."""
        count = len(self.pixels)
        every = count if self.pixels.nbytes <= _VERIFIED_BYTES else min(count, _VERIFIED_ROWS)
        size = self.pixels[:1].nbytes
        # Through the file and not the mapping, whose pages would count as memory of this process.
        with (self.path / "pixels.bin").open("rb") as stream:
            for row in np.linspace(0, count - 1, every).round().astype(int).tolist():
                stream.seek(row * size)
                if zlib.crc32(stream.read(size)) != int(expected[row]):
                    raise ValueError("checksum")


def _joined(table: pa.Table | pa.RecordBatch) -> list[str]:
    """Paths with the members of containers below them."""
    pairs = zip(table["path"].to_pylist(), table["member"].to_pylist(), strict=True)
    return [original(path if member is None else f"{path}/{member}") for path, member in pairs]


def short_digest(text: str | None) -> str:
    """What stands for a text in the name of a cache."""
    return hashlib.sha256((text or "").encode("utf-8", "surrogateescape")).hexdigest()[:12]


def archive_digest(location: str, salt: bytes) -> str:
    """How the names of all caches of an archive begin."""
    return short_digest(salted(location, salt))


def caches_of(location: str, folder: Path) -> list[Cache]:
    """The finished caches of an archive in a folder of caches, but for damaged, older and the doctor's ones.

    Args:
        location: of the archive.
        folder: of caches; need not exist.
    """
    file = folder / SALT_FILE
    if not file.is_file():
        return []
    found = []
    for path in sorted(folder.glob(f"{archive_digest(location, file.read_bytes())}-*")):
        if path.name.endswith(".partial") or not path.is_dir():
            continue
        try:
            cache = Cache(path)
        except UserError:
            continue
        if not cache.options.examined:
            found.append(cache)
    return found


def chosen_frames(count: int, frames: str) -> list[int]:
    """Numbers of the frames that are kept.

    >>> chosen_frames(7, "all"), chosen_frames(7, "middle"), chosen_frames(7, "every_3")
    ([0, 1, 2, 3, 4, 5, 6], [3], [0, 3, 6])
    """
    if frames == "middle":
        return [count // 2]
    return list(range(0, count, 1 if frames == "all" else int(frames.removeprefix("every_"))))
