"""Readers: the bytes of one file become display pixels, one function per format behind :func:`read`."""

import hashlib
import io
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import defaults
from .dicom import DicomFile
from .pixels import ORIENTATION, ImageInfo, Notes, Unreadable, check_size, deep_to_display, over_black, upright
from .png import PngChunks, png_size
from .sniff import SNIFFED, Kind, sniff
from .tiff import TiffImages

MAX_PIXELS = 89_478_485
"""The largest frame that is decoded, in pixels: Pillow's own limit against decompression bombs."""

MAX_FRAMES = 100_000
"""The largest number of frames that one file is believed to have."""

_DICOM_NAMES = (".dcm", ".dicom", ".ima")
_PNG_COLOURS = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # in Pillow's names
_GREY_MODES = ("1", "L", "LA", "La")


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
    window: str = defaults.WINDOW,
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
        window: one of :data:`jigsawssl.types.WINDOW_CHOICES`.
        name: the file's name, whose ending helps to tell a DICOM file without preamble.
        at_least: a JPEG may be decoded at a half, a quarter or an eighth of its size, which is several times faster,
            as long as both sides keep this many pixels.
        max_pixels: a larger frame is refused before it is decoded.

    Returns:
        Display values uint8 or uint16 ``(H, W, C)``, C is 1 (grey) or 3 (RGB), and :class:`ImageInfo`.

    Raises:
        Unreadable: with the reason; and nothing else, whatever the bytes are.

    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 3), 7).save(file, "PNG")
    >>> pixels, info = read(file.getvalue())
    >>> pixels.shape, pixels.dtype, info.format, info.bits
    ((3, 4, 1), dtype('uint8'), 'PNG', 8)
    """
    picture = open_picture(data, window=window, name=name, at_least=at_least, max_pixels=max_pixels)
    return picture.frame(frame), picture.info


def open_picture(
    data: bytes,
    *,
    window: str = defaults.WINDOW,
    name: str = "",
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Open an image file for reading its frames; arguments and errors are those of :func:`read`.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3)).save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 3), "red")])
    >>> open_picture(file.getvalue()).info.frames
    2
    """
    info, frame, content, notes = _guarded(
        lambda: _open(data, window=window, name=name, at_least=at_least, max_pixels=max_pixels)
    )
    if not 1 <= info.bits <= 64 or not 1 <= info.frames <= MAX_FRAMES:
        raise Unreadable(f"{info.bits} bits and {info.frames} frames cannot be")

    def checked(number: int) -> NDArray[Any]:
        if not 0 <= number < info.frames:
            raise Unreadable(f"has {info.frames} frames, not {number + 1}")
        return _grey_or_colour(_guarded(lambda: frame(number)))

    return Picture(info, checked, hashlib.sha256(content).hexdigest(), notes)


def read_file(
    path: str | os.PathLike[str], window: str = defaults.WINDOW, *, at_least: int | None = None
) -> NDArray[Any]:
    """Decode an image file, the middle one of several frames; see :func:`read`.

    Args:
        path: of one image; containers are not looked into.
        window: one of :data:`jigsawssl.types.WINDOW_CHOICES`.
        at_least: see :func:`read`; default: the image's own size.

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
    picture = open_picture(data, window=window, name=name, at_least=at_least)
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
        orientation = _orientation(image, Notes())
        deep = image.mode == "F" or image.mode.startswith("I")
        pixels = deep_to_display(np.asarray(image)[..., None]) if deep else np.asarray(_flatten(image))
        return upright(pixels, orientation)

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
        raise Unreadable("needs more memory than is available") from None
    except Exception as error:
        # The message may quote the file, so the kind of error has to do.
        raise Unreadable(f"corrupt or truncated ({type(error).__name__})") from None


def _open(data: bytes, *, window: str, name: str, at_least: int | None, max_pixels: int) -> _Opened:
    if not data:
        raise Unreadable("empty file")
    kind = sniff(data[:SNIFFED])
    if kind is None and name.lower().endswith(_DICOM_NAMES):
        kind = Kind("DICOM", read=True)
    if kind is None:
        raise Unreadable("not an image of a known format")
    if kind.packed:
        raise Unreadable("packed files inside of packed files are not read")
    if not kind.read:
        raise Unreadable(f"{kind.name} is not read; convert it, for example to PNG or TIFF")
    if kind.name == "DICOM":
        file = DicomFile(data, window, max_pixels)
        return _Opened(file.info, file.frame, file.content(), file.notes)
    notes = Notes()
    if kind.name == "TIFF":
        images = TiffImages(data, max_pixels, notes)
        return _Opened(images.info, images.frame, data, notes)
    if kind.name == "PNG":
        return _open_png(data, max_pixels, notes)
    return _open_pillow(data, kind=kind.name, at_least=at_least, max_pixels=max_pixels, notes=notes)


def _open_png(data: bytes, max_pixels: int, notes: Notes) -> _Opened:
    width, height = png_size(data)
    check_size(width, height, max_pixels)
    chunks = PngChunks(data, notes)
    if data[24] == 16:
        # Pillow cuts 16-bit colours to 8 bits in silence.
        colours = _PNG_COLOURS.get(data[25], str(data[25]))
        info = ImageInfo(
            "PNG", height=height, width=width, channels=3 if data[25] & 2 else 1, bits=16, mode=f"{colours};16"
        )

        def deep(number: int) -> NDArray[Any]:
            values = imagecodecs.png_decode(chunks.pixels)
            values = values[..., None] if values.ndim == 2 else values
            whole = values.shape[2] in (1, 3)
            colours, opacity = (values, None) if whole else (values[..., :-1], values[..., -1])
            return upright(deep_to_display(colours, opacity, bits=16, notes=notes), chunks.orientation)

        return _Opened(info, deep, data, notes)
    with Image.open(io.BytesIO(chunks.pixels), formats=["PNG"]) as image:
        mode = image.mode
    info = ImageInfo("PNG", height=height, width=width, channels=1 if mode in _GREY_MODES else 3, bits=8, mode=mode)

    def frame(number: int) -> NDArray[Any]:
        with Image.open(io.BytesIO(chunks.pixels), formats=["PNG"]) as image:
            image.load()
            return upright(np.asarray(_flatten(image)), chunks.orientation)

    return _Opened(info, frame, data, notes)


def _open_pillow(data: bytes, *, kind: str, at_least: int | None, max_pixels: int, notes: Notes) -> _Opened:
    whole = data
    try:
        image = Image.open(io.BytesIO(data), formats=[kind])
    except Exception:
        if kind != "JPEG":
            raise
        data = _without_applications(data)
        image = Image.open(io.BytesIO(data), formats=[kind])
        notes.add("what is stored beside the pixels cannot be read")
    with image:
        check_size(*image.size, max_pixels)
        width, height = image.size
        frames = int(getattr(image, "n_frames", 1)) if kind in ("GIF", "WEBP") else 1
        mode = image.mode
    info = ImageInfo(
        kind, height=height, width=width, channels=1 if mode in _GREY_MODES else 3, bits=8, frames=frames, mode=mode
    )

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
            return upright(np.asarray(_flatten(image)), _orientation(image, notes))

    return _Opened(info, frame, whole, notes)


def _orientation(image: Image.Image, notes: Notes) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever a library raises on broken data
        notes.add("EXIF that cannot be read; the image is taken as upright")
        return 1


def _without_applications(data: bytes) -> bytes:
    """A JPEG without comments and application segments, but for the two that say what its colours are."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (0xE1 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE) or data[at + 1] == 0xEE:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _flatten(image: Image.Image) -> Image.Image:
    """To mode L or RGB, over black where transparent."""
    if image.has_transparency_data:
        grey = image.mode in _GREY_MODES
        values = np.asarray(image.convert("LA" if grey else "RGBA"))
        shown = over_black(values[..., :-1], values[..., -1])
        return Image.fromarray(shown[..., 0] if grey else shown)
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in _GREY_MODES else "RGB")
