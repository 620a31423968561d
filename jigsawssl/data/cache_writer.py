"""Writing a cache: decode what is new, keep what is known, survive being killed at any moment."""

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..progress import Progress
from ..readers import NotAnImage, Unreadable, fit_image
from ..types import UserError
from .archive import Archive
from .cache import SALT_FILE, Cache, CacheOptions, archive_digest, chosen_frames, short_digest
from .containers import is_sequential
from .holdout import is_held_out
from .journal import MAY_PASS, KnownFiles, count_images, journal_entries, recover
from .quality import examine, note_looks, perceptual_hash
from .table import LEFT_OUT, TABLE_SCHEMA, printable, salted

try:
    import fcntl
except ImportError:  # not on Windows, where two runs must not share a cache folder
    fcntl = None  # type: ignore[assignment]

_FORMAT = 4
_FLUSHED = 64
_IN_FLIGHT = 256 * 2**20
_TABLE_BATCH = 1024


class _Deeper(Exception):
    """An image of more than 8 bits where the others so far had 8."""


def build_cache(
    archive: Archive, folder: Path, *, options: CacheOptions, workers: int, progress: bool, scope: str = ""
) -> Cache:
    """Open the cache of an archive in a folder of caches, and write what of it is missing.

    Writing reads each file once, keeps what an earlier cache with the same options holds of files that did not change,
    can be interrupted at any moment and then goes on where it was. A finished cache appears at once, under a name that
    follows from options and archive.

    Args:
        archive: what to read.
        folder: of caches; made if missing.
        options: how to read it. Where an image turns out to have more than 8 bits, and ``sixteen_bit`` was false,
            writing starts over with it, and later runs begin with it; thumbnails of the doctor stay at 8 bits.
        workers: threads.
        progress: say how much disk it takes, and show a bar.
        scope: which part of the archive this is, such as a split. A cache replaces an older one of the same part.

    Raises:
        UserError: if the disk is too small or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    salt = _salt(folder)
    stamps = np.empty((len(archive), 2), dtype=np.int64)
    for row in range(len(archive)):
        stamps[row] = archive.stamp(row)
    listing = short_digest(_listing(archive, stamps))
    names = _Names(folder, archive.location, scope, salt)
    if not options.sixteen_bit and not options.examined and names.known(deeper := replace(options, sixteen_bit=True)):
        options = deeper
    found = _finished(names.final(options, listing), archive, options)
    if found is not None:
        return found
    with _locked(folder, progress):
        for killed in folder.glob("removed-*"):
            shutil.rmtree(killed, ignore_errors=True)
        try:
            return _complete(
                archive, stamps, names=names, options=options, listing=listing, workers=workers, progress=progress
            )
        except _Deeper:
            if progress:
                print("An image of more than 8 bits was found; all are kept with 16, and read again")
            return _complete(
                archive,
                stamps,
                names=names,
                options=replace(options, sixteen_bit=True),
                listing=listing,
                workers=workers,
                progress=progress,
            )


class _Names:
    """Names of caches in their folder: archive, options, part of the archive, listing; all hashed."""

    def __init__(self, folder: Path, location: str, scope: str, salt: bytes) -> None:
        self.folder, self.salt = folder, salt
        self._archive, self._scope = archive_digest(location, salt), short_digest(salted(scope, salt))

    def alike(self, options: CacheOptions) -> str:
        """How the names of all parts begin whose entries may be taken over."""
        return f"{self._archive}-{short_digest(json.dumps([_FORMAT, options.as_json()]))}-"

    def final(self, options: CacheOptions, listing: str) -> Path:
        """The finished cache."""
        return self.folder / f"{self.alike(options)}{self._scope}-{listing}"

    def known(self, options: CacheOptions) -> list[Path]:
        """Caches of this part, finished or not, of whatever listing."""
        return sorted(self.folder.glob(f"{self.final(options, '').name}*"))


def _complete(
    archive: Archive,
    stamps: NDArray[np.int64],
    *,
    names: _Names,
    options: CacheOptions,
    listing: str,
    workers: int,
    progress: bool,
) -> Cache:
    """Write a cache, under the lock, unless another run has meanwhile."""
    final = names.final(options, listing)
    found = _finished(final, archive, options)
    if found is not None:
        return found
    partial = final.with_name(final.name + ".partial")
    _check_disk(archive, names.folder, options=options, partial=partial, progress=progress)
    try:
        _write(archive, stamps, partial=partial, options=options, names=names, workers=workers, progress=progress)
    except _Deeper:
        _remove(partial)
        raise
    _remove(final)
    os.replace(partial, final)
    for old in names.known(options):
        if old != final:
            _remove(old)
    return Cache(final)


def _finished(final: Path, archive: Archive, options: CacheOptions) -> Cache | None:
    """A cache that was finished before, unless an image that could not be read then can be read now."""
    if not final.is_dir():
        return None
    cache = Cache(final)
    unreadable = {path: frame for path, frame, reason in cache.unreadable() if reason.startswith(MAY_PASS)}
    for row, sample in enumerate(archive.samples if unreadable else ()):
        frame = unreadable.get(sample.path)
        if frame is not None:
            try:
                archive.open(row, options.format.window).frame(frame)
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


def _listing(archive: Archive, stamps: NDArray[np.int64]) -> str:
    if archive.in_memory:
        return archive.fingerprint()
    digest = hashlib.sha256()
    for sample, stamp in zip(archive.samples, stamps, strict=True):
        digest.update(f"{sample.path}\0{stamp[0]}\0{stamp[1]}\n".encode("utf-8", "surrogateescape"))
    for path, reason in archive.refused:
        digest.update(f"{path}\0{reason}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _salt(folder: Path) -> bytes:
    file = folder / SALT_FILE
    if not file.is_file():
        fresh = folder / f"{SALT_FILE}-{secrets.token_hex(8)}"
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


def _check_disk(archive: Archive, folder: Path, *, options: CacheOptions, partial: Path, progress: bool) -> None:
    needed = len(archive) * options.item_bytes
    written = (partial / "pixels.bin").stat().st_size if (partial / "pixels.bin").is_file() else 0
    free = shutil.disk_usage(folder).free
    if progress:
        bits = 16 if options.sixteen_bit else 8
        print(
            f"Cache: {len(archive)} images of {' x '.join(map(str, options.item[1]))} at {bits} bits take "
            f"{needed / 1e9:.2f} GB of disk, more where files have several frames; {free / 1e9:.1f} GB are free"
        )
    if needed - written > free:
        raise UserError(
            f"`cache` ({folder}) must have {needed / 1e9:.2f} GB of disk for {len(archive)} images; "
            f"{free / 1e9:.2f} GB are free; give another folder, a smaller views.size, or cache=off"
        )


def _check_rest(folder: Path, files: int, images_per_file: float, item_bytes: int) -> None:
    """Stop before the disk is full: how many frames files have is only known once they were read."""
    needed, free = files * images_per_file * item_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"`cache` ({folder}) must have some {needed / 1e9:.2f} GB more of disk for {files} files with "
            f"{images_per_file:.1f} images each, as those so far; {free / 1e9:.2f} GB are free; give another folder, "
            "reading.frames=middle or cache=off, and run again to go on"
        )


def _write(
    archive: Archive,
    stamps: NDArray[np.int64],
    *,
    partial: Path,
    options: CacheOptions,
    names: _Names,
    workers: int,
    progress: bool,
) -> None:
    start = recover(partial, options.item_bytes)
    # Arrays in memory have no times of change to know them by.
    earlier = [] if archive.in_memory else sorted(names.folder.glob(f"{names.alike(options)}*"))
    known = KnownFiles((old for old in earlier if old != partial), options.item_bytes)

    def work(row: int, data: bytes | None) -> tuple[list[dict[str, Any]], bytes]:
        return known_rows.pop(row, None) or _decoded(archive, row, data=data, options=options, salt=names.salt)

    known_rows: dict[int, tuple[list[dict[str, Any]], bytes]] = {}

    def prepare(row: int) -> bytes | None:
        """What has to happen in order: looking up, and reading members of tar files."""
        found = known.get(archive.samples[row].path, stamps[row].tolist())
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
    bar = Progress(total=len(archive), initial=start, desc="Reading", disable=not progress)
    bad = images = 0
    try:
        with bar, (partial / "pixels.bin").open("ab") as pixels, (partial / "journal.jsonl").open("ab") as journal:
            for number, (row, (entries, data)) in enumerate(_ordered(rows, prepare, work, workers), 1):
                pixels.write(data)
                images += count_images(entries)
                path, file = archive.samples[row].path, archive.file_of(row)
                line = {"path": path, "stamp": stamps[row].tolist(), "rows": entries}
                if file != path:
                    line["container"] = file
                journal.write(json.dumps(line).encode() + b"\n")
                if number % _FLUSHED == 0:
                    # Pixels first: a journal may lack what is written, never the other way round.
                    pixels.flush()
                    journal.flush()
                    _check_rest(names.folder, len(rows) - number, images / number, options.item_bytes)
                bad += any(entry["status"] != "ok" and not entry["status"].startswith(LEFT_OUT) for entry in entries)
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
    meta = {"options": options.as_json(), "images": images, "format": _FORMAT}
    (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _write_table(partial: Path, refused: Iterable[tuple[str, str]]) -> int:
    """The journal as a table, a part at a time; returns the number of images."""
    blank = dict.fromkeys(TABLE_SCHEMA.names)
    images = 0
    with pq.ParquetWriter(partial / "table.parquet", TABLE_SCHEMA, write_statistics=False) as writer:
        part: list[dict[str, Any]] = []
        for _, _, entry in journal_entries(partial):
            size, changed = entry["stamp"]
            path, container = entry["path"], entry.get("container")
            member = None if container is None else printable(path[len(container) + 1 :])
            known = {"path": printable(container or path), "member": member, "bytes": size, "changed": changed}
            part += [{**blank, **known, **row} for row in entry["rows"]]
            images += count_images(entry["rows"])
            if len(part) >= _TABLE_BATCH:
                writer.write_table(pa.Table.from_pylist(part, TABLE_SCHEMA))
                part = []
        part += [{**blank, "path": printable(path), "frame": 0, "status": reason} for path, reason in refused]
        writer.write_table(pa.Table.from_pylist(part, TABLE_SCHEMA))
    return images


def _ordered(
    rows: Iterable[int], prepare: Callable[[int], bytes | None], work: Callable[[int, bytes | None], Any], workers: int
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
    archive: Archive, row: int, *, data: bytes | None, options: CacheOptions, salt: bytes
) -> tuple[list[dict[str, Any]], bytes]:
    """Table rows and cached pixels of all wanted frames of one file."""
    try:
        picture = archive.open(row, options.format.window, None if options.examined else 2 * options.format.size, data)
    except NotAnImage as error:
        return [{"frame": 0, "status": f"{LEFT_OUT}{error}"}], b""
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
        "mode": info.mode,
        "content_hash": picture.content_hash,
        "patient": salted(info.patient, salt),
        "patient_held_out": None if info.patient is None else is_held_out(f"patient {info.patient}"),
        "study": salted(info.study, salt),
        "series": salted(info.series, salt),
    }
    entries, parts = [], []
    if info.left_out:
        reason = f"{LEFT_OUT}{info.left_out} pages of another size than the largest"
        entries.append({**common, "frame": None, "status": reason})
    for frame in chosen_frames(info.frames, options.frames):
        try:
            pixels = picture.frame(frame)
        except Unreadable as error:
            entries.append({**common, "frame": frame, "status": str(error)})
            continue
        if pixels.dtype == np.uint16 and not options.sixteen_bit and not options.examined:
            raise _Deeper  # and everything is written again, as a smaller type would cut it
        square = fit_image(pixels, options.format, sixteen_bit=options.sixteen_bit)
        stored = square.tobytes()
        top = np.float32(np.iinfo(pixels.dtype).max)
        entry = {**common, "frame": frame, "status": "ok", "checksum": zlib.crc32(stored)}
        entry |= {"mean": float(pixels.mean() / top), "std": float(pixels.std() / top)}
        if options.examined:
            entry |= {"perceptual_hash": perceptual_hash(pixels), **examine(pixels.astype(np.float32) / top)}
            note_looks(pixels, picture.notes)
        entry["notes"] = list(picture.notes) or None
        entries.append(entry)
        parts.append(stored)
    return entries, b"".join(parts)
