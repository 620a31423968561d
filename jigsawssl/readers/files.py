"""Readers: the bytes of one file become display pixels, one function per format behind :func:`read`."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .dicom import WINDOWS, DicomFile
from .elements import looks_like_dicom
from .pixels import ImageInfo, Notes, Unreadable, robust_range, to_display

__all__ = [
    "MAX_PIXELS",
    "WINDOW_CHOICES",
    "ImageInfo",
    "Picture",
    "Unreadable",
    "from_pillow",
    "open_picture",
    "read",
    "read_file",
]

MAX_PIXELS = 89_478_485
"""The largest frame that is decoded, in pixels: Pillow's own limit against decompression bombs."""

MAX_FRAMES = 100_000
"""The most frames that one file is believed to have."""

WINDOW_CHOICES = ("file", "percentiles", *WINDOWS)
"""How values of more than 8 bits are mapped to display values."""

# It reports each oddity of a broken file to standard error, and the reason is in the status already.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_PILLOW = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PACKED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
_DICOM_NAMES = (".dcm", ".dicom", ".ima")
_ORIENTATION = 0x0112
_PNG_COLOURS = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # in Pillow's names


class Picture(NamedTuple):
    """An opened image of one or more frames.

    Attributes:
        info: what the file says.
        frame: number → display values uint8 or uint16 ``(H, W, C)``, C is 1 or 3; raises :class:`Unreadable`.
        content_hash: sha256 in hex of the encoded image, the same wherever it lies; of DICOM without its header.
        notes: what was odd about the file and how it was read all the same, for people; decoding a frame may add some.
    """

    info: ImageInfo
    frame: Callable[[int], NDArray[Any]]
    content_hash: str
    notes: Notes


class _Opened(NamedTuple):
    info: ImageInfo
    frame: Callable[[int], NDArray[Any]]
    content: bytes
    notes: Notes


def read(
    data: bytes,
    frame: int = 0,
    window: str = "file",
    name: str = "",
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[NDArray[Any], ImageInfo]:
    """Decode one frame of an image file.

    Formats are told by their first bytes, not by the file's name: PNG, JPEG, BMP, WebP, GIF, TIFF (8, 16 and 32 bits,
    float, several pages) and DICOM. Orientation tags are applied. Palettes, CMYK and other colour models become RGB;
    transparency lets black through. Eight bits stay as they are; more bits, and floats, are mapped to all 16 bits by
    the window (DICOM) or between robust percentiles, never by the range of their type.

    Args:
        data: the whole file.
        frame: which of several.
        window: one of :data:`WINDOW_CHOICES`.
        name: the file's name, whose ending helps to tell a DICOM file without preamble.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, which is several times faster,
            as long as both sides keep this many pixels.
        max_pixels: a larger frame is refused before it is decoded.

    Returns:
        Display values uint8 or uint16 ``(H, W, C)``, C is 1 (grey) or 3 (RGB), and :class:`ImageInfo`.

    Raises:
        Unreadable: with the reason; nothing else, whatever the bytes are.

    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 3), 7).save(file, "PNG")
    >>> pixels, info = read(file.getvalue())
    >>> pixels.shape, pixels.dtype, info.format, info.bits
    ((3, 4, 1), dtype('uint8'), 'PNG', 8)
    """
    picture = open_picture(data, window, name, at_least, max_pixels)
    return picture.frame(frame), picture.info


def open_picture(
    data: bytes, window: str = "file", name: str = "", at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Open an image file for reading its frames; arguments and errors are those of :func:`read`.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3)).save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 3), "red")])
    >>> open_picture(file.getvalue()).info.frames
    2
    """
    info, frame, content, notes = _guarded(lambda: _open(data, window, name, at_least, max_pixels))
    if not 1 <= info.bits <= 64 or not 1 <= info.frames <= MAX_FRAMES:
        raise Unreadable(f"{info.bits} bits and {info.frames} frames cannot be")

    def checked(number: int) -> NDArray[Any]:
        if not 0 <= number < info.frames:
            raise Unreadable(f"has {info.frames} frames, not {number + 1}")
        return _grey_or_colour(_guarded(lambda: frame(number)))

    return Picture(info, checked, hashlib.sha256(content).hexdigest(), notes)


def read_file(path: str | os.PathLike[str], window: str = "file") -> NDArray[Any]:
    """Decode an image file at its own size, the middle one of several frames; see :func:`read`.

    Args:
        path: of one image; containers are not looked into.
        window: one of :data:`WINDOW_CHOICES`.

    Returns:
        Display values uint8 or uint16 ``(H, W, C)``, C is 1 (grey) or 3 (RGB).

    Raises:
        Unreadable: with the reason.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.png")
    >>> Image.new("L", (4, 3), 7).save(path)
    >>> read_file(path).shape
    (3, 4, 1)
    """
    name = os.fsdecode(path)
    try:
        if not os.path.isfile(name):
            raise Unreadable("that is no file" if os.path.exists(name) else "nothing is there")
        with open(name, "rb") as stream:
            data = stream.read()
    except PermissionError:
        raise Unreadable("permission denied") from None
    except OSError as error:
        raise Unreadable(f"cannot be read ({type(error).__name__})") from None
    picture = open_picture(data, window, name)
    return picture.frame(picture.info.frames // 2)


def from_pillow(image: Image.Image) -> NDArray[Any]:
    """Display values of an image that Pillow opened or made, as :func:`read` gives them; of several frames the current.

    Pillow itself cuts 16-bit colours to 8 bits when it opens a file; :func:`read_file` does not.

    Returns:
        uint8 or uint16 ``(H, W, C)``, C is 1 (grey) or 3 (RGB).

    Raises:
        Unreadable: with the reason, such as a file that turns out truncated.

    >>> from_pillow(Image.new("P", (4, 3))).shape
    (3, 4, 3)
    """

    def convert() -> NDArray[Any]:
        upright = ImageOps.exif_transpose(image)
        deep = upright.mode == "F" or upright.mode.startswith("I")
        return _deep(np.asarray(upright), alpha=False) if deep else np.asarray(_flatten(upright))

    return _grey_or_colour(_guarded(convert))


def _grey_or_colour(pixels: NDArray[Any]) -> NDArray[Any]:
    """Decoded pixels ``(H, W)`` or ``(H, W, C)`` as ``(H, W, C)``, if they are what is promised."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    known = pixels.dtype in (np.uint8, np.uint16)
    if not known or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise Unreadable("neither grey nor colour")
    return pixels


def _guarded(action: Callable[[], Any]) -> Any:
    """Turn whatever a decoder raises on a hostile file into a reason."""
    try:
        return action()
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable("too large") from None
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception as error:
        # The message may quote the file, so the kind of error has to do.
        raise Unreadable(f"corrupt or truncated ({type(error).__name__})") from None


def _open(data: bytes, window: str, name: str, at_least: int | None, max_pixels: int) -> _Opened:
    if not data:
        raise Unreadable("empty file")
    head = data[:300]
    if looks_like_dicom(head):
        return _open_dicom(data, window, max_pixels)
    if head.startswith(_TIFF):
        return _open_tiff(data, max_pixels)
    if head.startswith(_PACKED):
        raise Unreadable("packed files inside of packed files are not read")
    kind = next((known for magic, known in _PILLOW.items() if head.startswith(magic)), None)
    if kind is None and head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WEBP"
    if kind is None and name.lower().endswith(_DICOM_NAMES):
        return _open_dicom(data, window, max_pixels)
    if kind is None:
        raise Unreadable("not an image of a known format")
    if kind == "PNG" and head[24:25] == b"\x10":
        return _open_deep_png(data, max_pixels)
    return _open_pillow(data, kind, at_least, max_pixels)


def _open_dicom(data: bytes, window: str, max_pixels: int) -> _Opened:
    file = DicomFile(data, window, max_pixels)
    return _Opened(file.info, file.frame, file.content(), file.notes)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unreadable(f"too large: {width} x {height} pixels")
    if width < 1 or height < 1:
        raise Unreadable("no pixels")


def _open_deep_png(data: bytes, max_pixels: int) -> _Opened:
    # Pillow cuts 16-bit colours to 8 bits in silence.
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    _check_size(width, height, max_pixels)
    _check_png(data)
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    colours = _PNG_COLOURS.get(data[25], str(data[25]))
    info = ImageInfo("PNG", height, width, 3 if data[25] & 2 else 1, 16, mode=f"{colours};16")

    def frame(number: int) -> NDArray[Any]:
        values = imagecodecs.png_decode(data)
        alpha = values.ndim == 3 and values.shape[2] in (2, 4)
        return _upright(_deep(values, alpha), orientation)

    return _Opened(info, frame, data, Notes())


def _deep(values: NDArray[Any], alpha: bool) -> NDArray[Any]:
    """Map more than 8 bits to 16 by robust percentiles; transparency lets black through."""
    if not alpha:
        return to_display(values, robust_range(values))
    colours, opacity = values[..., :-1], values[..., -1:].astype(np.float64)
    opacity /= np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    visible = opacity[..., 0] > 0
    shown = to_display(colours, robust_range(colours[visible])) * opacity.clip(0, 1)
    return np.floor(shown + 0.5).astype(np.uint16)


def _open_pillow(data: bytes, kind: str, at_least: int | None, max_pixels: int) -> _Opened:
    if kind == "PNG":
        _check_png(data)
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _check_size(*image.size, max_pixels)
        width, height = image.size
        frames = int(getattr(image, "n_frames", 1)) if kind in ("GIF", "WEBP") else 1
        mode = image.mode
    info = ImageInfo(kind, height, width, 1 if mode in ("1", "L", "LA", "La") else 3, 8, frames, mode=mode)

    animation: list[Image.Image] = []

    def frame(number: int) -> NDArray[Any]:
        if frames > 1:
            # Kept open, or each frame would be sought from the first one again.
            if not animation:
                animation.append(Image.open(io.BytesIO(data), formats=[kind]))
            animation[0].seek(number)
            return np.asarray(_flatten(animation[0]))
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does nothing for other formats than JPEG
            image.load()
            return np.asarray(_flatten(ImageOps.exif_transpose(image)))

    return _Opened(info, frame, data, Notes())


def _check_png(data: bytes) -> None:
    """Compare the checksums of all chunks, which Pillow does not when it decodes."""
    at, ended = 8, False
    while not ended:
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            raise Unreadable("truncated")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise Unreadable("corrupt (checksum)")
        ended, at = data[at + 4 : at + 8] == b"IEND", end


def _flatten(image: Image.Image) -> Image.Image:
    """To mode L or RGB, over black where transparent."""
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        black = Image.new(image.mode, image.size, (0,) * (len(image.mode) - 1) + (255,))
        return Image.alpha_composite(black, image).convert("RGB") if image.mode == "RGBA" else _grey_over_black(image)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _grey_over_black(image: Image.Image) -> Image.Image:
    grey, opacity = (np.asarray(band, dtype=np.uint16) for band in image.split())
    return Image.fromarray(((grey * opacity + 127) // 255).astype(np.uint8))


def _open_tiff(data: bytes, max_pixels: int) -> _Opened:
    tiff = tifffile.TiffFile(io.BytesIO(data))
    every: list[Any] = list(tiff.pages)
    # Thumbnails and lower resolutions may stand before or after the images.
    whole = [n for n, page in enumerate(every) if not int(getattr(page, "subfiletype", 0)) & 1] or [0]
    first = max((every[n] for n in whole), key=lambda page: int(page.imagewidth) * int(page.imagelength))
    pages = [n for n in whole if every[n].shape == first.shape]
    width, height = int(first.imagewidth), int(first.imagelength)
    _check_size(width, height, max_pixels)
    if int(getattr(first, "imagedepth", 1)) != 1:
        raise Unreadable("a TIFF volume")
    # A page of a frame shares its keys, so that its bits are those of the first of its kind.
    bits = max(_bits(every[n].keyframe) for n in pages)
    grey = int(first.keyframe.samplesperpixel) < 3 and int(first.keyframe.photometric) in (0, 1)
    mode = getattr(first.keyframe.photometric, "name", str(first.keyframe.photometric))
    left_out = len(whole) - len(pages)
    info = ImageInfo("TIFF", height, width, 1 if grey else 3, bits, len(pages), mode=mode, left_out=left_out)

    def frame(number: int) -> NDArray[Any]:
        page = every[pages[number]]
        _check_size(int(page.imagewidth), int(page.imagelength), max_pixels)
        if _bits(page.keyframe) > 8 or page.dtype is None or page.dtype.kind == "f":
            return _deep_tiff(page, len(data))
        with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            image.seek(pages[number])
            _check_size(*image.size, max_pixels)
            image.load()
            return np.asarray(_flatten(ImageOps.exif_transpose(image)))

    return _Opened(info, frame, data, Notes())


def _bits(page: Any) -> int:
    bits = page.bitspersample
    return int(max(bits)) if isinstance(bits, tuple) else int(bits)


def _deep_tiff(page: Any, length: int) -> NDArray[Any]:
    keys = page.keyframe
    if int(keys.samplesperpixel) > 4:
        raise Unreadable(f"{keys.samplesperpixel} samples a pixel")
    _check_strips(page, length)
    values = page.asarray()
    axes, photometric = page.axes, int(keys.photometric)
    orientation = keys.tags.get("Orientation")
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise Unreadable("a TIFF volume")
    if photometric not in (0, 1, 2):
        raise Unreadable(f"more than 8 bits with TIFF photometric interpretation {photometric}")
    if values.dtype.kind not in "iuf":
        raise Unreadable(f"values of type {values.dtype}")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    shown = _deep(values, alpha=values.ndim == 3 and values.shape[2] in (2, 4))
    if photometric == 0:  # white is zero
        shown = np.iinfo(shown.dtype).max - shown
    return _upright(shown, int(orientation.value) if orientation is not None else 1)


def _check_strips(page: Any, length: int) -> None:
    """Every strip has to lie inside the file; tifffile fills what is missing with zeros."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > length:
            raise Unreadable("truncated")


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply a TIFF orientation (the tag of the same name)."""
    turned = pixels.swapaxes(0, 1)
    views = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    views |= {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}
    return np.ascontiguousarray(views.get(orientation, pixels))
