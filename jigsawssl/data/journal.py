"""The journal of a cache: what was written of each file, for going on after a kill and for taking it over later."""

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAY_PASS = ("needs ", "permission denied", "cannot be read", "vanished")
"""Beginnings of reasons that have nothing to do with the file itself, and may be gone the next time."""


class KnownFiles:
    """What earlier caches with the same options hold of files that did not change.

    Of each file only 28 bytes are kept in memory: a hash of path and stamp, and where to look.
    """

    def __init__(self, folders: Iterable[Path], item_bytes: int) -> None:
        self.item_bytes = item_bytes
        self._folders = list(folders)
        self._files: dict[Path, BinaryIO] = {}
        keys, at, images, folder = array("q"), array("q"), array("q"), array("i")
        for number, old in enumerate(self._folders):
            for start, before, entry in journal_entries(old):
                keys.append(_key(entry["path"], entry["stamp"]))
                at.append(start)
                images.append(before)
                folder.append(number)
        order = np.argsort(np.array(keys, dtype=np.int64), kind="stable")
        self._keys, self._at, self._images = (np.array(part, dtype=np.int64)[order] for part in (keys, at, images))
        self._folder = np.array(folder, dtype=np.int32)[order]

    def get(self, path: str, stamp: list[int]) -> tuple[list[dict[str, Any]], bytes] | None:
        """Rows and pixels of an unchanged file."""
        found = int(np.searchsorted(self._keys, _key(path, stamp), side="right")) - 1
        if stamp[0] < 0 or found < 0 or self._keys[found] != _key(path, stamp):
            return None
        folder = self._folders[self._folder[found]]
        try:
            journal = self._open(folder / "journal.jsonl")
            journal.seek(self._at[found])
            entry = json.loads(journal.readline())
            rows = entry["rows"]
            wanted = self.item_bytes * count_images(rows)
            stored = self._open(folder / "pixels.bin")
            stored.seek(self._images[found] * self.item_bytes)
            pixels = stored.read(wanted)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if any(row["status"].startswith(MAY_PASS) for row in rows):
            return None
        intact = entry["path"] == path and entry["stamp"] == stamp and len(pixels) == wanted
        ok = [row for row in rows if row["status"] == "ok"]
        for number, row in enumerate(ok):
            part = pixels[number * self.item_bytes : (number + 1) * self.item_bytes]
            intact = intact and zlib.crc32(part) == row["checksum"]
        return (rows, pixels) if intact else None

    def _open(self, file: Path) -> BinaryIO:
        if file not in self._files:
            self._files[file] = file.open("rb")
        return self._files[file]

    def close(self) -> None:
        """Close the files."""
        for stream in self._files.values():
            stream.close()


def _key(path: str, stamp: list[int]) -> int:
    """64 bits of path and stamp, signed."""
    named = hashlib.blake2b(json.dumps([path, stamp]).encode(), digest_size=8)
    return int.from_bytes(named.digest(), "big", signed=True)


def count_images(rows: list[dict[str, Any]]) -> int:
    """Images among the table rows of a file."""
    return sum(row["status"] == "ok" for row in rows)


def journal_entries(folder: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Complete lines of a journal, each with its position in bytes and the number of images before it."""
    file = folder / "journal.jsonl"
    if not file.is_file():
        return
    start = images = 0
    with file.open("rb") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
                rows = entry["rows"]
            except (ValueError, KeyError, TypeError):
                return  # the line that was being written
            if not line.endswith(b"\n"):
                return
            yield start, images, entry
            start += len(line)
            images += count_images(rows)


def recover(partial: Path, item_bytes: int) -> int:
    """Cut an interrupted cache back to its last whole entry; returns how many entries there are."""
    partial.mkdir(exist_ok=True)
    pixels, journal = partial / "pixels.bin", partial / "journal.jsonl"
    pixels.touch()
    journal.touch()
    there = pixels.stat().st_size
    entries = images = length = 0
    with journal.open("rb") as stream:
        for start, before, entry in journal_entries(partial):
            after = before + count_images(entry["rows"])
            if after * item_bytes > there:
                break
            stream.seek(start)
            length = start + len(stream.readline())
            entries, images = entries + 1, after
    os.truncate(journal, length)
    os.truncate(pixels, images * item_bytes)
    return entries
