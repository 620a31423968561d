"""Zip and tar files as folders: members are read in memory, never unpacked to disk."""

from __future__ import annotations

import os
import posixpath
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from ..readers import Unreadable

CONTAINER_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Endings of the files that are looked into, in lower case; capitals count as well."""

MAX_BYTES = 1 << 30
"""The largest file or member that is read into memory, in bytes; more is taken for a bomb or a mistake."""

_MAX_HEADER = 1 << 20
_MOST_LINKS = 16
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


class Listed(NamedTuple):
    """What a container holds.

    Attributes:
        names: of its regular files as they are written in it, by path with slashes; in its order.
        refused: path and reason of what cannot be read.
        broken: why the container ends before its end, "" where it does not.
    """

    names: dict[str, str]
    refused: list[tuple[str, str]]
    broken: str


def list_members(path: str) -> Listed:
    """What a zip or tar file holds, without unpacking it.

    Backslashes in a zip separate folders. Links in a tar count as what they lead to, if that is in it. Of a tar file
    that breaks off, the members before that are listed.

    Raises:
        Unreadable: if nothing of the container can be listed.
    """
    found, refused, broken = _using(path, lambda handle: (handle.names(), list(handle.refused), handle.broken))
    names: dict[str, str] = {}
    for name, place in found:
        plain = posixpath.normpath(place)
        if not _safe(place):
            refused.append((place, "unsafe path inside a container"))
        elif plain in names:
            refused.append((plain, "repeated name inside a container"))
        else:
            names[plain] = name
    return Listed(names, refused, broken)


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
        raise Unreadable("needs more memory than is available") from None
    except Exception as error:
        raise Unreadable(f"broken container ({type(error).__name__})") from None


def _safe(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return (
        bool(parts) and ".." not in parts and parts[0] != "/" and not PureWindowsPath(name).drive and "\0" not in name
    )


_METHODS = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    93: "Zstandard",
    94: "MP3",
    95: "xz",
    96: "JPEG",
    97: "WavPack",
    98: "PPMd",
    99: "AES",
}
_READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


class _Zip:
    broken = ""

    def __init__(self, path: str) -> None:
        self.lock = threading.Lock()
        self.file = zipfile.ZipFile(path)
        self.refused: list[tuple[str, str]] = []
        self._names: list[tuple[str, str]] = []
        for entry in self.file.infolist():
            place = entry.filename.replace("\\", "/")
            reason = self._reason(entry)
            if place.endswith("/"):
                continue
            if reason:
                self.refused.append((place, reason))
            else:
                self._names.append((entry.filename, place))

    @staticmethod
    def _reason(entry: zipfile.ZipInfo) -> str:
        """Why a member cannot be read, "" where it can."""
        if entry.flag_bits & 0x1:
            return "encrypted; unpack it with its password"
        if entry.compress_type not in _READ_METHODS:
            method = _METHODS.get(entry.compress_type, str(entry.compress_type))
            return f"the zip method {method} is not read; unpack it, or pack it again as usual"
        return ""

    def names(self) -> list[tuple[str, str]]:
        """Names as they are written, and with slashes."""
        return self._names

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
        weakref.finalize(self, self.file.close)  # when it leaves the store of open handles
        self.entries: dict[str, tarfile.TarInfo] = {}
        self.refused: list[tuple[str, str]] = []
        self.broken = ""
        links: dict[str, str] = {}
        try:
            for entry in self.file:
                plain = posixpath.normpath(entry.name)
                if entry.isdir():
                    continue
                if plain in self.entries or plain in links:  # as unpacking does, which overwrites
                    self.refused.append((plain, "repeated name inside a container; the last one counts"))
                    self.entries.pop(plain, None)
                    links.pop(plain, None)
                if entry.isreg():
                    self.entries[plain] = entry
                elif entry.islnk():
                    links[plain] = posixpath.normpath(entry.linkname)
                elif entry.issym():
                    links[plain] = posixpath.normpath(posixpath.join(posixpath.dirname(plain), entry.linkname))
                else:
                    self.refused.append((plain, "not a file"))
        except Exception as error:
            if not self.entries:
                raise
            self.broken = f"broken container ({type(error).__name__}) after {len(self.entries)} members"
        for plain in links:
            target = plain
            for _ in range(_MOST_LINKS):
                target = links.get(target, target)
            if target in self.entries:
                self.entries[plain] = self.entries[target]
            else:
                self.refused.append((plain, "a link that leads outside or nowhere"))

    def names(self) -> list[tuple[str, str]]:
        """Names, twice, as a tar file has slashes already."""
        return [(name, name) for name in self.entries]

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
