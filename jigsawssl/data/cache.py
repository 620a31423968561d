"""The cache: every image of an archive decoded once, as one memory-mapped array and a table of what was found."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from ..types import UserError
from .archive import Archive
from .containers import is_sequential
from .examine import examine, perceptual_hash
from .pixels import Unreadable, fit_image
from .table import TABLE_SCHEMA, original, printable, salted

try:
    import fcntl
except ImportError:  # not on Windows, where two runs must not share a cache folder
    fcntl = None  # type: ignore[assignment]

__all__ = ["Cache", "CacheOptions", "build_cache", "chosen_frames"]

_FORMAT = 1
_VERIFIED_BYTES = 256 * 2**20
_VERIFIED_ROWS = 256
_FLUSHED = 64
_IN_FLIGHT = 256 * 2**20
_MAY_PASS = ("needs ", "permission denied", "cannot be read", "vanished")  # reasons that lie outside of the file
_TABLE_BATCH = 512
_SALT = "salt"


@dataclass(frozen=True)
class CacheOptions:
    """What decides about cached pixels; another value gives another cache.

    Attributes:
        size: side of the squares in pixels.
        channels: 1 or 3.
        deep: uint16 instead of uint8.
        fit: see :func:`jigsawssl.data.pixels.fit_image`.
        window: see :func:`jigsawssl.data.readers.read`.
        frames: ``all``, ``middle`` or ``every_N`` of files with several frames.
        examined: whether the doctor's columns are filled, which takes longer.
    """

    size: int
    channels: int
    deep: bool = False
    fit: str = "pad"
    window: str = "file"
    frames: str = "all"
    examined: bool = False

    @property
    def item(self) -> tuple[np.dtype[Any], tuple[int, int, int]]:
        """Type and shape of one image."""
        return np.dtype(np.uint16 if self.deep else np.uint8), (self.channels, self.size, self.size)

    @property
    def item_bytes(self) -> int:
        """Bytes of one image."""
        kind, shape = self.item
        return kind.itemsize * int(np.prod(shape))


class Cache:
    """A finished cache, opened read-only.

    Attributes:
        path: its folder.
        table: of :data:`jigsawssl.data.table.TABLE_SCHEMA`, with unreadable images.
        pixels: uint8 or uint16 ``(N, C, size, size)``, memory-mapped; in the order of
            the rows of ``table`` with status ok.
        salt: of the hashed identifiers.

    Raises:
        UserError: if the files are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = json.loads((path / "meta.json").read_text())
            options = CacheOptions(**meta["options"])
            self.table = pq.read_table(path / "table.parquet", schema=TABLE_SCHEMA, memory_map=True)
            self.salt = (path.parent / _SALT).read_bytes()
            kind, shape = options.item
            file = path / "pixels.bin"
            count = int(meta["images"])
            if file.stat().st_size != count * options.item_bytes or self.readable().size != count:
                raise ValueError("size")
            # Copy-on-write, as torch warns about arrays that it must not write to.
            self.pixels: NDArray[Any] = (
                np.memmap(file, kind, "c", shape=(count, *shape)) if count else np.zeros((0, *shape), kind)
            )
            self._verify()
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise UserError(
                f"`cache` ({path.name}) must be what an earlier run wrote; it is damaged ({type(error).__name__}); "
                "delete that folder and run again"
            ) from None

    def paths(self) -> list[str]:
        """Paths of the rows of ``table`` as the archive has them."""
        return [original(path) for path in self.table["path"].to_pylist()]

    def readable(self) -> NDArray[np.int64]:
        """Rows of ``table`` with pixels."""
        return np.flatnonzero(np.asarray(self.table["status"].to_numpy(zero_copy_only=False) == "ok"))

    def unreadable(self) -> list[tuple[str, int, str]]:
        """Path, frame and reason of what has no pixels."""
        bad = self.table.filter(pa.compute.not_equal(self.table["status"], "ok"))
        return list(zip(*(bad[name].to_pylist() for name in ("path", "frame", "status")), strict=True))

    def count_deep(self) -> int:
        """Readable images whose files have more than 8 bits."""
        return sum(bits > 8 for bits in self.table["bits"].take(pa.array(self.readable())).to_pylist())

    def _verify(self) -> None:
        """Compare checksums: of everything in a small cache, of evenly spread rows in a large one."""
        count = len(self.pixels)
        every = count if self.pixels.nbytes <= _VERIFIED_BYTES else min(count, _VERIFIED_ROWS)
        expected = self.table["checksum"].to_numpy()[self.readable()]
        size = self.pixels[:1].nbytes
        # Through the file and not the mapping, whose pages would count as memory of this process.
        with (self.path / "pixels.bin").open("rb") as stream:
            for row in np.linspace(0, count - 1, every).round().astype(int).tolist():
                stream.seek(row * size)
                if zlib.crc32(stream.read(size)) != int(expected[row]):
                    raise ValueError("checksum")


def chosen_frames(count: int, frames: str) -> list[int]:
    """Numbers of the frames that are kept.

    >>> chosen_frames(7, "all"), chosen_frames(7, "middle"), chosen_frames(7, "every_3")
    ([0, 1, 2, 3, 4, 5, 6], [3], [0, 3, 6])
    """
    if frames == "middle":
        return [count // 2]
    return list(range(0, count, 1 if frames == "all" else int(frames.removeprefix("every_"))))


def build_cache(
    archive: Archive,
    folder: Path,
    options: CacheOptions,
    workers: int,
    progress: bool,
    scope: str = "",
    at_most: int | None = None,
) -> Cache:
    """Open the cache of an archive in a folder of caches, and write what of it is missing.

    Writing reads each file once, keeps what an earlier cache with the same options holds of files that did not change,
    can be interrupted at any moment and then goes on where it was. A finished cache appears at once, under a name that
    follows from options and archive.

    Args:
        archive: what to read.
        folder: of caches; made if missing.
        options: how to read it.
        workers: threads.
        progress: say how much disk it takes, and show a bar.
        scope: which part of the archive this is, such as a split. A cache replaces an older one of the same part.
        at_most: bytes that may be written; ``None`` for what the disk has left.

    Raises:
        UserError: if the disk is too small or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    salt = _salt(folder)
    stamps = [archive.stamp(row) for row in range(len(archive))]
    prefix = f"{_digest(salted(archive.location, salt))}-{_digest(json.dumps([_FORMAT, asdict(options)]))}-"
    part = f"{prefix}{_digest(salted(scope, salt))}-"
    final = folder / (part + _digest(_listing(archive, stamps)))
    found = _finished(final, archive, options)
    if found is not None:
        return found
    with _locked(folder, progress):
        found = _finished(final, archive, options)  # another run may have written it meanwhile
        if found is not None:
            return found
        partial = final.with_name(final.name + ".partial")
        _check_disk(archive, folder, options, partial, at_most, progress)
        _write(archive, stamps, partial, options, salt, prefix, workers, progress)
        _remove(final)
        os.replace(partial, final)
        for old in folder.glob(f"{part}*"):
            if old != final:
                _remove(old)
    return Cache(final)


def _finished(final: Path, archive: Archive, options: CacheOptions) -> Cache | None:
    """A cache that was finished before, unless an image that could not be read then can be read now."""
    if not final.is_dir():
        return None
    cache = Cache(final)
    row_of = {sample.path: row for row, sample in enumerate(archive.samples)}
    for path, frame, reason in cache.unreadable():
        row = row_of.get(original(path))
        if row is not None and reason.startswith(_MAY_PASS):
            try:
                archive.open(row, options.window).frame(frame)
            except Unreadable:
                continue
            return None
    return cache


def _remove(old: Path) -> None:
    """Away under another name first, so that nothing half removed is taken for a cache."""
    if old.exists():
        away = old.with_name(f"removed-{secrets.token_hex(8)}")
        os.replace(old, away)
        shutil.rmtree(away, ignore_errors=True)


def _digest(text: str | None) -> str:
    return hashlib.sha256((text or "").encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _listing(archive: Archive, stamps: list[tuple[int, int]]) -> str:
    if archive.in_memory:
        return archive.fingerprint()
    digest = hashlib.sha256()
    for sample, (size, changed) in zip(archive.samples, stamps, strict=True):
        digest.update(f"{sample.path}\0{size}\0{changed}\n".encode("utf-8", "surrogateescape"))
    for path, reason in archive.refused:
        digest.update(f"{path}\0{reason}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _salt(folder: Path) -> bytes:
    file = folder / _SALT
    if not file.is_file():
        fresh = folder / f"{_SALT}-{secrets.token_hex(8)}"
        fresh.write_bytes(secrets.token_bytes(32))
        try:
            os.link(fresh, file)  # fails where another run was faster, whose salt then holds
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(fresh, file)
        fresh.unlink(missing_ok=True)
    return file.read_bytes()


@contextmanager
def _locked(folder: Path, progress: bool) -> Iterator[None]:
    """One writer at a time; the system lets go of the lock when a process dies."""
    with (folder / "lock").open("w") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if progress:
                    print("Another run is writing to this cache folder; waiting for it")
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _check_disk(
    archive: Archive, folder: Path, options: CacheOptions, partial: Path, at_most: int | None, progress: bool
) -> None:
    needed = len(archive) * options.item_bytes
    written = (partial / "pixels.bin").stat().st_size if (partial / "pixels.bin").is_file() else 0
    free = shutil.disk_usage(folder).free if at_most is None else at_most
    if progress:
        bits = 16 if options.deep else 8
        print(
            f"Cache: {len(archive)} images of {options.channels} x {options.size} x {options.size} at {bits} bits take "
            f"{needed / 1e9:.2f} GB of disk, more where files have several frames; {free / 1e9:.1f} GB are free"
        )
    if needed - written > free:
        raise UserError(
            f"`cache` ({folder}) must have {needed / 1e9:.2f} GB of disk for {len(archive)} images; "
            f"{free / 1e9:.2f} GB are free; give another folder, a smaller views.size, or cache=off"
        )


class _Known:
    """What earlier caches with the same options hold of files that did not change."""

    def __init__(self, folder: Path, prefix: str, but: Path, item_bytes: int) -> None:
        self.entries: dict[tuple[str, int, int], tuple[Path, int, list[dict[str, Any]]]] = {}
        self.item_bytes = item_bytes
        self._files: dict[Path, BinaryIO] = {}
        for old in sorted(folder.glob(f"{prefix}*")):
            if old == but:  # which is gone on with
                continue
            for offset, entry in _journal(old):
                self.entries[(entry["path"], *entry["stamp"])] = (old / "pixels.bin", offset, entry["rows"])

    def get(self, path: str, stamp: tuple[int, int]) -> tuple[list[dict[str, Any]], bytes] | None:
        """Rows and pixels of an unchanged file."""
        found = self.entries.get((path, *stamp))
        if found is None or stamp[0] < 0:
            return None
        file, offset, rows = found
        if any(row["status"].startswith(_MAY_PASS) for row in rows):
            return None
        wanted = self.item_bytes * _count(rows)
        try:
            if file not in self._files:
                self._files[file] = file.open("rb")
            self._files[file].seek(offset * self.item_bytes)
            pixels = self._files[file].read(wanted)
        except OSError:
            return None
        intact = len(pixels) == wanted
        ok = [row for row in rows if row["status"] == "ok"]
        for number, row in enumerate(ok):
            part = pixels[number * self.item_bytes : (number + 1) * self.item_bytes]
            intact = intact and zlib.crc32(part) == row["checksum"]
        return (rows, pixels) if intact else None

    def close(self) -> None:
        """Close the files."""
        for stream in self._files.values():
            stream.close()


def _count(rows: list[dict[str, Any]]) -> int:
    """Images among the table rows of a file."""
    return sum(row["status"] == "ok" for row in rows)


def _journal(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Complete lines of a journal, each with the number of images before it."""
    file = folder / "journal.jsonl"
    if not file.is_file():
        return
    images = 0
    with file.open("rb") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
                rows = entry["rows"]
            except (ValueError, KeyError, TypeError):
                return  # the line that was being written
            if not line.endswith(b"\n"):
                return
            yield images, entry
            images += _count(rows)


def _recover(partial: Path, item_bytes: int) -> int:
    """Cut an interrupted cache back to its last whole entry; returns how many entries there are."""
    partial.mkdir(exist_ok=True)
    pixels, journal = partial / "pixels.bin", partial / "journal.jsonl"
    pixels.touch()
    journal.touch()
    there = pixels.stat().st_size
    entries = images = length = 0
    with journal.open("rb") as stream:
        for before, entry in _journal(partial):
            after = before + _count(entry["rows"])
            if after * item_bytes > there:
                break
            length += len(stream.readline())
            entries, images = entries + 1, after
    os.truncate(journal, length)
    os.truncate(pixels, images * item_bytes)
    return entries


def _write(
    archive: Archive,
    stamps: list[tuple[int, int]],
    partial: Path,
    options: CacheOptions,
    salt: bytes,
    prefix: str,
    workers: int,
    progress: bool,
) -> None:
    start = _recover(partial, options.item_bytes)
    # Arrays in memory have no times of change to know them by.
    known = _Known(partial.parent, "none" if archive.in_memory else prefix, partial, options.item_bytes)

    def work(row: int, data: bytes | None) -> tuple[list[dict[str, Any]], bytes]:
        return known_rows.pop(row, None) or _decoded(archive, row, data, options, salt)

    known_rows: dict[int, tuple[list[dict[str, Any]], bytes]] = {}

    def prepare(row: int) -> bytes | None:
        """What has to happen in order: looking up, and reading members of tar files."""
        found = known.get(archive.samples[row].path, stamps[row])
        if found is not None:
            known_rows[row] = found
            return None
        if not is_sequential(archive.file_of(row)) or archive.in_memory:
            return None
        try:
            return archive.read_bytes(row)
        except Unreadable:
            return None  # and the second reading gives the reason

    rows = range(start, len(archive))
    bar = tqdm(total=len(archive), initial=start, desc="Reading", disable=not progress)
    bad = 0
    try:
        with bar, (partial / "pixels.bin").open("ab") as pixels, (partial / "journal.jsonl").open("ab") as journal:
            for number, (row, (entries, data)) in enumerate(_ordered(rows, prepare, work, workers), 1):
                pixels.write(data)
                line = {"path": archive.samples[row].path, "stamp": stamps[row], "rows": entries}
                journal.write(json.dumps(line).encode() + b"\n")
                if number % _FLUSHED == 0:
                    # Pixels first: a journal may lack what is written, never the other way round.
                    pixels.flush()
                    journal.flush()
                bad += any(entry["status"] != "ok" for entry in entries)
                bar.update()
                if bad:
                    bar.set_postfix(unreadable=bad, refresh=False)
            pixels.flush()
            journal.flush()
            os.fsync(pixels.fileno())
    except OSError as error:
        raise UserError(
            f"`cache` ({partial.parent}) must be writable and large enough; writing fails ({error.strerror}); give "
            "another folder or cache=off, and run again to go on"
        ) from None
    finally:
        known.close()
    images = _write_table(partial, archive.refused)
    meta = {"options": asdict(options), "images": images, "format": _FORMAT}
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _write_table(partial: Path, refused: Iterable[tuple[str, str]]) -> int:
    """The journal as a table, a part at a time; returns the number of images."""
    blank = dict.fromkeys(TABLE_SCHEMA.names)
    images = 0
    with pq.ParquetWriter(partial / "table.parquet", TABLE_SCHEMA) as writer:
        part: list[dict[str, Any]] = []
        for _, entry in _journal(partial):
            size, changed = entry["stamp"]
            known = {"path": printable(entry["path"]), "bytes": size, "changed": changed}
            part += [{**blank, **known, **row} for row in entry["rows"]]
            images += _count(entry["rows"])
            if len(part) >= _TABLE_BATCH:
                writer.write_table(pa.Table.from_pylist(part, TABLE_SCHEMA))
                part = []
        part += [{**blank, "path": printable(path), "frame": 0, "status": reason} for path, reason in refused]
        writer.write_table(pa.Table.from_pylist(part, TABLE_SCHEMA))
    return images


def _ordered(
    rows: Iterable[int],
    prepare: Callable[[int], bytes | None],
    work: Callable[[int, bytes | None], Any],
    workers: int,
) -> Iterator[tuple[int, Any]]:
    """Results in the order of the rows, with few of them in memory."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque[tuple[int, int, Future[Any]]] = deque()
        held = 0
        try:
            for row in rows:
                data = prepare(row)
                held += len(data or b"")
                waiting.append((row, len(data or b""), pool.submit(work, row, data)))
                while waiting and (len(waiting) >= 4 * max(1, workers) or held > _IN_FLIGHT):
                    first, length, future = waiting.popleft()
                    held -= length
                    yield first, future.result()
            while waiting:
                first, length, future = waiting.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decoded(
    archive: Archive, row: int, data: bytes | None, options: CacheOptions, salt: bytes
) -> tuple[list[dict[str, Any]], bytes]:
    """Table rows and cached pixels of all wanted frames of one file."""
    try:
        picture = archive.open(row, options.window, None if options.examined else 2 * options.size, data)
    except Unreadable as error:
        return [{"frame": 0, "status": str(error)}], b""
    info = picture.info
    common = {
        "format": info.format,
        "height": info.height,
        "width": info.width,
        "channels": info.channels,
        "bits": info.bits,
        "frames": info.frames,
        "modality": info.modality,
        "photometric": info.photometric,
        "content_hash": picture.content_hash,
        "patient": salted(info.patient, salt),
        "study": salted(info.study, salt),
        "series": salted(info.series, salt),
    }
    entries, parts = [], []
    for frame in chosen_frames(info.frames, options.frames):
        try:
            pixels = picture.frame(frame)
        except Unreadable as error:
            entries.append({**common, "frame": frame, "status": str(error)})
            continue
        square = fit_image(pixels, options.size, options.channels, options.fit, options.deep)
        stored = square.tobytes()
        top = np.float32(np.iinfo(pixels.dtype).max)
        entry = {**common, "frame": frame, "status": "ok", "checksum": zlib.crc32(stored)}
        entry |= {"mean": float(pixels.mean() / top), "std": float(pixels.std() / top)}
        if options.examined:
            entry |= {"perceptual_hash": perceptual_hash(pixels), **examine(pixels.astype(np.float32) / top)}
        entries.append(entry)
        parts.append(stored)
    return entries, b"".join(parts)
