"""Zip and tar files as folders: members are read in memory, never unpacked to disk."""

from __future__ import annotations

import os
import posixpath
import tarfile
import threading
import zipfile
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath

from .pixels import Unreadable

__all__ = ["CONTAINER_SUFFIXES", "MAX_BYTES", "is_container", "is_sequential", "list_members", "read_member"]

CONTAINER_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Endings of the files that are looked into, in lower case; capitals count as well."""

MAX_BYTES = 1 << 30
"""The largest file or member that is read into memory, in bytes; more is taken for a bomb or a mistake."""

_BROKEN = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError)


def is_container(path: str) -> bool:
    """Whether a file is looked into, by its name."""
    return path.lower().endswith(CONTAINER_SUFFIXES)


def is_sequential(path: str) -> bool:
    """Whether members are only quick to read in their own order."""
    return is_container(path) and not path.lower().endswith(".zip")


def list_members(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the regular files in a container, in its order, and those refused with the reason.

    Raises:
        Unreadable: if the container is broken.
    """
    try:
        handle = _open(path, *_stamp(path))
        with handle.lock:
            found = handle.names()
    except FileNotFoundError:
        raise Unreadable("vanished") from None
    except PermissionError:
        raise Unreadable("permission denied") from None
    except _BROKEN as error:
        raise Unreadable(f"broken container ({type(error).__name__})") from None
    names, refused, seen = [], [], set()
    for name in found:
        if not _safe(name):
            refused.append((name, "unsafe path inside a container"))
        elif posixpath.normpath(name) in seen:
            refused.append((name, "repeated name inside a container"))
        else:
            seen.add(posixpath.normpath(name))
            names.append(name)
    return names, refused


def read_member(path: str, name: str) -> bytes:
    """The bytes of one member.

    Raises:
        Unreadable: with the reason.
    """
    try:
        handle = _open(path, *_stamp(path))
        with handle.lock:
            return handle.read(name)
    except FileNotFoundError:
        raise Unreadable("vanished") from None
    except PermissionError:
        raise Unreadable("permission denied") from None
    except (*_BROKEN, KeyError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"broken container ({type(error).__name__})") from None


def _safe(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return (
        bool(parts) and ".." not in parts and parts[0] != "/" and not PureWindowsPath(name).drive and "\0" not in name
    )


class _Zip:
    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        return [entry.filename for entry in self.file.infolist() if not entry.is_dir()]

    def read(self, name: str) -> bytes:
        # The header may lie about the size, so what is read is limited too.
        if self.file.getinfo(name).file_size > MAX_BYTES:
            raise Unreadable("larger than 1 GiB")
        with self.file.open(name) as stream:
            data = stream.read(MAX_BYTES + 1)
        return _limited(data)


class _Tar:
    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = tarfile.open(path)  # noqa: SIM115  kept open for the next member
        self.entries = {entry.name: entry for entry in self.file if entry.isreg()}

    def names(self) -> list[str]:
        return list(self.entries)

    def read(self, name: str) -> bytes:
        entry = self.entries[name]
        if entry.size > MAX_BYTES:
            raise Unreadable("larger than 1 GiB")
        stream = self.file.extractfile(entry)
        assert stream is not None
        data = stream.read(MAX_BYTES + 1)
        if len(data) != entry.size:
            raise Unreadable("truncated")
        return _limited(data)


def _limited(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise Unreadable("larger than 1 GiB")
    return data


def _stamp(path: str) -> tuple[int, int, int]:
    """What makes an open handle stale: another process, which must not share a file position, or another file."""
    found = os.stat(path)
    return os.getpid(), found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _open(path: str, process: int, size: int, changed: int) -> _Zip | _Tar:
    return _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
