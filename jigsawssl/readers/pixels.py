"""What a reader returns, and how values of any range become display values of 8 or 16 bits."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from ..types import LUMA, ImageFormat

_PERCENTILES = (0.5, 99.5)
_PART = 1 << 20  # values


class Unreadable(ValueError):
    """An image that cannot be read; the message is the reason, and names no patient and no absolute path."""


class NotAnImage(Unreadable):
    """A whole and readable file of a kind that shows nothing, such as a report, or marks what others show."""


NOTE_HIGH_BITS = "bits beyond the stored ones, which were masked"
"""Of samples that have bits set where their header says there are none, as old overlays do."""

NOTE_FLAT_TABLE = "black or flat after its lookup table"
"""Of images that a table turned into one value."""


NOTE_NARROW = "values that use less than a sixteenth of their range"
"""Of samples that differ by less than that from one another, and are not all the same."""

NOTE_CONSTANT_CHANNEL = "colours of which a channel is constant"
"""Of colour images in which one or two channels are the same everywhere."""

ORIENTATION = 0x0112
"""The tag of EXIF and TIFF."""


class ImageInfo(NamedTuple):
    """What a file says of its image.

    Attributes:
        format: such as ``PNG`` or ``DICOM``.
        height: pixels as stored, before an orientation tag.
        width: pixels as stored.
        channels: 1 (grey) or 3 (RGB) after reading.
        bits: that are used of each sample, 32 for floats.
        frames: images in the file.
        modality: of DICOM, such as ``CR``.
        mode: how samples are stored, such as ``MONOCHROME1`` (DICOM), ``MINISWHITE`` (TIFF) or ``CMYK``.
        left_out: pages that are not counted in ``frames``, as their size is not that of the largest.
        patient: identifier in plain text, which must never be written.
        study: the same.
        series: the same.
    """

    format: str
    height: int
    width: int
    channels: int
    bits: int
    frames: int = 1
    modality: str | None = None
    mode: str | None = None
    left_out: int = 0
    patient: str | None = None
    study: str | None = None
    series: str | None = None


class Notes:
    """What was odd about a file that was read all the same; each remark once, in the order found.

    >>> notes = Notes()
    >>> notes.add("lacks BitsStored; 8 taken"), notes.add("lacks BitsStored; 8 taken"), list(notes)
    (None, None, ['lacks BitsStored; 8 taken'])
    """

    def __init__(self) -> None:
        self._remarks: dict[str, None] = {}

    def add(self, remark: str) -> None:
        """Add a remark, which names no patient and quotes nothing of the file but numbers and terms of its format."""
        self._remarks[remark] = None

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._remarks))


def robust_range(values: NDArray[Any]) -> tuple[float, float]:
    """The 0.5th and 99.5th percentiles of the finite values, or their minimum and maximum where those coincide.

    >>> robust_range(np.arange(1001.0))
    (5.0, 995.0)
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 and values.size:
        # By counting, which needs no copy of a large image.
        least = int(values.min())
        counts = np.zeros(int(values.max()) - least + 1, dtype=np.int64)
        for part in _parts(values):
            counts += np.bincount(values[part].ravel().astype(np.int64) - least, minlength=len(counts))
        low, high = (least + _percentile(counts, share) for share in _PERCENTILES)
        return (low, high) if high > low else (float(least), float(least + len(counts) - 1))
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    if not finite.size:
        return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(finite, _PERCENTILES))
    return (low, high) if high > low else (float(finite.min()), float(finite.max()))


def _percentile(counts: NDArray[np.int64], share: float) -> float:
    """What :func:`numpy.percentile` gives of the values 0, 1, … that occur so many times."""
    until = np.cumsum(counts)
    at = (int(until[-1]) - 1) * share / 100
    below, above = (int(np.searchsorted(until, position, side="right")) for position in (int(at), math.ceil(at)))
    return below + (above - below) * (at - int(at))


def _parts(values: NDArray[Any]) -> Iterator[slice]:
    """A few rows at a time, as float64 arithmetic on a whole image takes several times its memory."""
    rows = max(1, _PART * len(values) // max(1, values.size))
    for start in range(0, len(values), rows):
        yield slice(start, start + rows)


def to_display(values: NDArray[Any], limits: tuple[float, float], dtype: DTypeLike = np.uint16) -> NDArray[Any]:
    """Map a range onto all values of an unsigned type, clipped; what is not finite becomes the darkest value.

    Where both limits are the same, everything becomes 0.

    >>> to_display(np.array([-5.0, 0.0, 1.0, 2.0, 9.0]), (0.0, 2.0), np.uint8).tolist()
    [0, 0, 128, 255, 255]
    """
    low, high = limits
    top = np.iinfo(dtype).max
    if not high > low:
        return np.zeros(values.shape, dtype=dtype)
    shown = np.empty(values.shape, dtype=dtype)
    for part in _parts(values):
        finite = np.nan_to_num(values[part].astype(np.float64), nan=low, posinf=high, neginf=low)
        shown[part] = np.floor(((finite - low) * (top / (high - low))).clip(0, top) + 0.5)
    return shown


def fit_image(pixels: NDArray[Any], format: ImageFormat, *, sixteen_bit: bool = False) -> NDArray[Any]:
    """Resize display pixels to a square, bilinear and antialiased.

    Args:
        pixels: uint8 or uint16 ``(H, W, C)``, C is 1 or 3.
        format: of the square; one channel is the luma of ITU-R BT.601.
        sixteen_bit: make uint16 of everything, where 8 bits v become 257 v; else uint8, where 16 bits are rounded.

    Returns:
        uint8, or uint16 if ``sixteen_bit``, of shape ``(channels, size, size)``.

    >>> fit_image(np.full((2, 4, 1), 9, np.uint8), ImageFormat(4, channels=1))[0].tolist()
    [[0, 0, 0, 0], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 0, 0]]
    """
    size, channels = format.size, format.channels
    if format.fit == "crop":
        side = min(pixels.shape[:2])
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]
    shape = _fitted_shape(pixels.shape[0], pixels.shape[1], size) if format.fit == "pad" else (size, size)
    pixels = _converted(pixels, channels)
    resized = _resized(pixels, shape)
    top = 65535 if sixteen_bit else 255
    if resized.dtype != (np.uint16 if sixteen_bit else np.uint8):
        scale = top / np.iinfo(resized.dtype).max
        resized = np.floor(resized.astype(np.float64) * scale + 0.5).astype(np.uint16 if sixteen_bit else np.uint8)
    square = np.zeros((channels, size, size), dtype=resized.dtype)
    y, x = (size - shape[0]) // 2, (size - shape[1]) // 2
    square[:, y : y + shape[0], x : x + shape[1]] = resized.transpose(2, 0, 1)
    return square


def _fitted_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Sides of an image whose longer one becomes ``size``."""
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def _converted(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    grey = np.empty((*pixels.shape[:2], 1), dtype=pixels.dtype)
    for part in _parts(pixels):
        grey[part, :, 0] = np.floor(pixels[part].astype(np.float64) @ np.array(LUMA) + 0.5)
    return grey


def shrink_square(square: NDArray[Any], size: int) -> NDArray[Any]:
    """Make a fitted square smaller once more.

    A bicubic filter for the second step brings it closer to what :func:`fit_image` makes of the full image in one than
    a second bilinear one, which blurs (``benchmarks/shrinking.py``).

    Args:
        square: uint8 or uint16 ``(C, S, S)``.
        size: side of the result, at most S.

    Returns:
        ``(C, size, size)`` of the same type.

    >>> shrink_square(np.full((1, 5, 5), 9, np.uint8), 4).tolist()[0][0]
    [9, 9, 9, 9]
    """
    pixels = np.ascontiguousarray(square.transpose(1, 2, 0))
    return _resized(pixels, (size, size), Image.Resampling.BICUBIC).transpose(2, 0, 1)


def _resized(
    pixels: NDArray[Any], shape: tuple[int, int], how: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[Any]:
    if pixels.shape[:2] == shape:
        return pixels
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        # Large reductions go by an intermediate size, which is several times faster and looks the same.
        small = np.asarray(image.resize(shape[::-1], how, reducing_gap=2.0))
        return small[:, :, None] if small.ndim == 2 else small
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    resized = [plane.resize(shape[::-1], how, reducing_gap=2.0) for plane in planes]
    small = np.stack([np.asarray(plane) for plane in resized], axis=2)
    return np.floor(small.clip(0, 65535) + 0.5).astype(np.uint16)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse what is too large to decode, or has nothing to decode.

    Raises:
        Unreadable: with the size.
    """
    if width * height > max_pixels:
        raise Unreadable(f"too large: {width} x {height} pixels")
    if width < 1 or height < 1:
        raise Unreadable("no pixels")


def note_narrow(values: NDArray[Any], bits: int, notes: Notes) -> None:
    """Add :data:`NOTE_NARROW` where integers of so many bits use less than a sixteenth of their range."""
    if values.dtype.kind in "iu" and values.size:
        used = int(values.max()) - int(values.min())
        if 0 < used < 2**bits // 16:
            notes.add(NOTE_NARROW)


def deep_to_display(
    colours: NDArray[Any],
    opacity: NDArray[Any] | None = None,
    *,
    bits: int | None = None,
    multiplied: bool = False,
    notes: Notes | None = None,
) -> NDArray[np.uint16]:
    """Map more than 8 bits to 16 by robust percentiles; transparency lets black through.

    Args:
        colours: integers or floats ``(H, W, C)``.
        opacity: of the same type ``(H, W)``, in the range of the type, or [0, 1] for floats.
        bits: that integers have.
        multiplied: whether the opacity is multiplied into the colours already.
        notes: gets :data:`NOTE_NARROW` where it is true.
    """
    if bits is not None and notes is not None:
        note_narrow(colours, bits, notes)
    if opacity is None:
        return to_display(colours, robust_range(colours))
    share = opacity.astype(np.float64)[..., None]
    share /= np.iinfo(opacity.dtype).max if opacity.dtype.kind in "iu" else 1.0
    visible = share[..., 0] > 0
    shown = to_display(colours, robust_range(colours[visible]))
    if multiplied:
        return shown
    dimmed: NDArray[np.uint16] = np.floor(shown * share.clip(0, 1) + 0.5).astype(np.uint16)
    return dimmed


def over_black(colours: NDArray[np.uint8], opacity: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours ``(H, W, C)`` over black with an opacity ``(H, W)`` that is not multiplied into them.

    >>> over_black(np.full((1, 2, 1), 200, np.uint8), np.array([[255, 51]], np.uint8)).ravel().tolist()
    [200, 40]
    """
    return ((colours.astype(np.uint16) * opacity[..., None] + 127) // 255).astype(np.uint8)


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an orientation of EXIF or TIFF to ``(H, W)`` or ``(H, W, C)``; numbers without a meaning do nothing."""
    if orientation not in range(2, 9):
        return pixels
    turned = pixels.swapaxes(0, 1)
    views = {2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    views |= {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}
    return np.ascontiguousarray(views[orientation])
