"""PNG files: what touches the pixels has to be whole, and nothing else has to."""

import io
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from .pixels import ORIENTATION, Notes, Unreadable

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WITH_ORIENTATION = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_LARGEST_TEXT = 1 << 20


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height, before anything else is looked at.

    Raises:
        Unreadable: if the file does not begin as a PNG does.
    """
    if len(data) < 33:
        raise Unreadable("truncated")
    if data[12:16] != b"IHDR":
        raise Unreadable("corrupt (a PNG without its header)")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


class _Chunk(NamedTuple):
    kind: bytes
    whole: bytes  # with length and checksum


class PngChunks:
    """The chunks of a PNG file, of which only those of the pixels have to be whole.

    Args:
        data: the file.
        notes: gets a remark of what is broken and not needed.

    Attributes:
        pixels: the file without all other chunks.
        orientation: the EXIF tag, 1 where there is none.

    Raises:
        Unreadable: if the file is truncated, or the checksum of a chunk of the pixels is wrong.
    """

    def __init__(self, data: bytes, notes: Notes) -> None:
        kept, beside, every = [], [], 0
        for kind, whole in _chunks(data):
            every += 1
            right = zlib.crc32(memoryview(whole)[4:-4]) == int.from_bytes(whole[-4:], "big")
            if kind in _PIXELS:
                if not right:
                    raise Unreadable("corrupt (checksum)")
                kept.append(whole)
            elif not kind[:1].islower():
                raise Unreadable("a PNG with pixels of a kind that is not known")
            elif not right:
                notes.add("a PNG chunk beside the pixels with a wrong checksum")
            elif kind in _WITH_ORIENTATION and len(whole) <= _LARGEST_TEXT:
                beside.append(whole)
        self.pixels = data if len(kept) == every else b"".join([_SIGNATURE, *kept])
        self.orientation = _orientation([kept[0], *beside, *kept[1:]], notes) if beside else 1


def _chunks(data: bytes) -> Iterator[_Chunk]:
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            raise Unreadable("truncated")
        kind = data[at + 4 : at + 8]
        yield _Chunk(kind, data[at:end])
        at = end


def _orientation(chunks: list[bytes], notes: Notes) -> int:
    try:
        with Image.open(io.BytesIO(b"".join([_SIGNATURE, *chunks])), formats=["PNG"]) as image:
            image.load()  # text may follow the pixels
            return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever a library raises on broken data
        notes.add("EXIF or text that cannot be read; the image is taken as upright")
        return 1
