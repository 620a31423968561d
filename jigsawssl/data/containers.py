"""Zip and tar files as folders: members are read in memory, never unpacked to disk."""

from __future__ import annotations

import os
import posixpath
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from ..readers import Unreadable

__all__ = ["CONTAINER_SUFFIXES", "MAX_BYTES", "is_container", "is_sequential", "list_members", "read_member"]

CONTAINER_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Endings of the files that are looked into, in lower case; capitals count as well."""

MAX_BYTES = 1 << 30
"""The largest file or member that is read into memory, in bytes; more is taken for a bomb or a mistake."""

_MAX_HEADER = 1 << 20
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def is_container(path: str) -> bool:
    """Whether a file is looked into, by its name."""
    return path.lower().endswith(CONTAINER_SUFFIXES)


def is_sequential(path: str) -> bool:
    """Whether members are only quick to read in their own order."""
    return is_container(path) and not path.lower().endswith(".zip")


def list_members(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the regular files in a container, in its order, and those refused with the reason.

    Of a tar file that breaks off, the members before that are listed, and the container itself is refused.

    Raises:
        Unreadable: if nothing of the container can be listed.
    """
    found, broken = _using(path, lambda handle: (handle.names(), handle.broken))
    names, seen = [], set()
    refused = [("", broken)] if broken else []
    for name in found:
        if not _safe(name):
            refused.append((name, "unsafe path inside a container"))
        elif posixpath.normpath(name) in seen:
            refused.append((name, "repeated name inside a container"))
        else:
            seen.add(posixpath.normpath(name))
            names.append(name)
    return names, refused


def read_member(path: str, name: str, most: int | None = None) -> bytes:
    """The bytes of one member, or its first ``most`` bytes.

    Raises:
        Unreadable: with the reason.
    """
    data: bytes = _using(path, lambda handle: handle.read(name, most))
    return data


def _using(path: str, action: Callable[[_Zip | _Tar], Any]) -> Any:
    """Turn whatever a broken container raises into a reason."""
    try:
        handle = _open(path, *_stamp(path))
        with handle.lock:
            return action(handle)
    except Unreadable:
        raise
    except FileNotFoundError:
        raise Unreadable("vanished") from None
    except PermissionError:
        raise Unreadable("permission denied") from None
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception as error:
        raise Unreadable(f"broken container ({type(error).__name__})") from None


def _safe(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return (
        bool(parts) and ".." not in parts and parts[0] != "/" and not PureWindowsPath(name).drive and "\0" not in name
    )


class _Zip:
    broken = ""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = zipfile.ZipFile(path)

    def names(self) -> list[str]:
        return [entry.filename for entry in self.file.infolist() if not entry.is_dir()]

    def read(self, name: str, most: int | None) -> bytes:
        if most is None and self.file.getinfo(name).file_size > MAX_BYTES:
            raise Unreadable("larger than 1 GiB")
        with self.file.open(name) as stream:
            if most is not None:
                return stream.read(most)
            # The header may lie about the size, so what is read is limited too.
            return _limited(stream.read(MAX_BYTES + 1))


class _BoundedHeaders(tarfile.TarInfo):
    """Refuses extended headers of a size that no file name needs; they are read into memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _BoundedHeaders:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED and found.size > _MAX_HEADER:
            raise tarfile.ReadError("extended header too large")
        return found


class _Tar:
    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = tarfile.open(path, tarinfo=_BoundedHeaders)  # noqa: SIM115  kept open for the next member
        self.entries: dict[str, tarfile.TarInfo] = {}
        self.broken = ""
        try:
            for entry in self.file:
                if entry.isreg():
                    self.entries[entry.name] = entry
        except Exception as error:
            if not self.entries:
                raise
            self.broken = f"broken container ({type(error).__name__}) after {len(self.entries)} members"

    def names(self) -> list[str]:
        return list(self.entries)

    def read(self, name: str, most: int | None) -> bytes:
        entry = self.entries[name]
        if most is None and entry.size > MAX_BYTES:
            raise Unreadable("larger than 1 GiB")
        stream = self.file.extractfile(entry)
        assert stream is not None
        wanted = entry.size if most is None else min(entry.size, most)
        data = stream.read(wanted)
        if len(data) != wanted:
            raise Unreadable("truncated")
        return data


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
