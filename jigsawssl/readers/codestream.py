"""Compressed frames of DICOM files: the stream itself decides, not what a header says about it."""

from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

from .pixels import Notes, Unreadable

_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_BARE_MARKERS = frozenset(range(0xD0, 0xD9)) | {0x01}
_J2K = b"\xff\x4f\xff\x51"


class Decoded(NamedTuple):
    """A frame as it came out of its stream.

    Attributes:
        values: integers ``(H, W)``, or colours ``(H, W, 3)``, which are RGB.
        precision: bits that the stream has for each.
    """

    values: NDArray[Any]
    precision: int


class _Jpeg(NamedTuple):
    """What a JPEG stream says before its first scan."""

    process: int  # number of the frame header
    precision: int
    components: tuple[tuple[int, int], ...]  # identifier, sampling factors
    jfif: bool
    adobe: int | None  # colour transform


def kind_of_stream(data: bytes) -> str | None:
    """``JPEG``, ``lossless JPEG``, ``JPEG-LS`` or ``JPEG 2000``, None for what is none of these.

    >>> kind_of_stream(b"\\xff\\x4f\\xff\\x51"), kind_of_stream(b"\\1\\0\\0\\0")
    ('JPEG 2000', None)
    """
    if data.startswith(_J2K) or data[4:8] == b"jP  ":
        return "JPEG 2000"
    if data.startswith(b"\xff\xd8\xff"):
        process = _jpeg(data).process
        return "JPEG-LS" if process == 0xF7 else "lossless JPEG" if process in _LOSSLESS else "JPEG"
    return None


def decode_stream(data: bytes, label: str, notes: Notes) -> Decoded:
    """Decode a frame of JPEG, JPEG-LS or JPEG 2000.

    Colours become RGB. Three components of a lossy JPEG are YCbCr where a JFIF or an Adobe marker or subsampling says
    so, and RGB where an Adobe marker or their identifiers say so, as libjpeg decides. JPEG 2000 undoes its own
    component transform. Where the stream is silent, the label decides.

    Args:
        data: the whole stream.
        label: photometric interpretation of the header.
        notes: gets a remark where stream and label disagree.

    Raises:
        Unreadable: for a truncated stream, or four components. The decoders raise errors of their own.
    """
    kind = kind_of_stream(data)
    if not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # one byte of padding, of whatever value
        raise Unreadable("truncated: a frame without its end")
    if kind in ("JPEG", "lossless JPEG"):
        stream = _jpeg(data)
        if len(stream.components) != 3:
            values = imagecodecs.jpeg8_decode(data)
            return Decoded(_three_or_one(values), stream.precision)
        if kind == "lossless JPEG":
            values = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
            return Decoded(_from_label(values, label), stream.precision)
        space = _colour_space(stream, label)
        if (space == "YCBCR") != label.startswith("YBR"):
            notes.add(f"a JPEG stream of {'YCbCr' if space == 'YCBCR' else 'RGB'} colours that is labelled {label}")
        return Decoded(imagecodecs.jpeg8_decode(data, colorspace=space, outcolorspace="RGB"), stream.precision)
    if kind == "JPEG-LS":
        return Decoded(_from_label(_three_or_one(imagecodecs.jpegls_decode(data)), label), _jpeg(data).precision)
    if kind == "JPEG 2000":
        start = data.find(_J2K)
        precision, transformed = _jpeg2000(data[start:])
        values = _three_or_one(imagecodecs.jpeg2k_decode(data))
        return Decoded(values if transformed else _from_label(values, label), precision)
    raise Unreadable("a compression that is not read")


def _three_or_one(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 and (values.ndim != 3 or values.shape[2] != 3):
        raise Unreadable("a frame that is neither grey nor colour")
    return values


def _from_label(values: NDArray[Any], label: str) -> NDArray[Any]:
    full = values.ndim == 3 and label.startswith("YBR_FULL") and values.dtype == np.uint8
    return convert_color_space(values, "YBR_FULL", "RGB") if full else values


def _colour_space(stream: _Jpeg, label: str) -> str:
    identifiers = bytes(identifier for identifier, _ in stream.components)
    if stream.jfif:
        return "YCBCR"
    if stream.adobe is not None:
        return "YCBCR" if stream.adobe else "RGB"
    if identifiers in (b"RGB", b"rgb"):
        return "RGB"
    if len({sampling for _, sampling in stream.components}) > 1:
        return "YCBCR"
    return "YCBCR" if label.startswith("YBR") else "RGB"


def _jpeg(data: bytes) -> _Jpeg:
    at, jfif, adobe = 2, False, None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1  # stray bytes between markers
            continue
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xE0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker in _FRAME_HEADERS and len(body) >= 6:
            parts = [(body[n], body[n + 1]) for n in range(6, min(len(body), 6 + 3 * body[5]) - 2, 3)]
            return _Jpeg(marker, body[0], tuple(parts), jfif, adobe)
        elif marker == 0xDA:
            break
        at += 2 + max(2, length)
    raise Unreadable("corrupt or truncated (a JPEG stream without a frame)")


def _jpeg2000(stream: bytes) -> tuple[int, bool]:
    """Precision of the first component, and whether components were transformed together."""
    if len(stream) < 43:
        raise Unreadable("truncated")
    precision = (stream[42] & 0x7F) + 1
    at = 2
    while at + 4 <= len(stream):
        marker, length = stream[at : at + 2], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == b"\xff\x52":
            return precision, bool(stream[at + 8])
        if marker == b"\xff\x90" or length < 2:
            break
        at += 2 + length
    raise Unreadable("corrupt or truncated (a JPEG 2000 stream without its coding style)")
