"""TIFF files by what their tags say of samples; read by tifffile and imagecodecs, never by libtiff."""

import io
import logging
import struct
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from .lookup import colour_depth
from .pixels import ImageInfo, Notes, Unreadable, check_size, deep_to_display, over_black, upright

# It reports each oddity of a broken file to standard error, and the reason is in the status already.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

_NEEDED = frozenset(
    [256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 530, 32997]
)
"""Tags without which the pixels would come out wrong: sizes, places, samples, compression, palette."""

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
"""Samples of each photometric interpretation that is read: white is zero, black is zero, RGB, palette, CMYK, YCbCr."""

_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples (TIFF 6.0, p. 31): with the opacity multiplied in, or not


class TiffImages:
    """The pages of a TIFF file that have the size of the largest.

    A further sample is opacity only where ExtraSamples says so; others are left out with a remark, and several of them
    beside one grey make an image of many channels, which is refused. Signed bytes begin with black.

    Args:
        data: the file.
        max_pixels: the largest page that is decoded.
        notes: gets remarks.

    Raises:
        Unreadable: with the reason.
    """

    def __init__(self, data: bytes, max_pixels: int, notes: Notes) -> None:
        self.data, self.max_pixels, self.notes = data, max_pixels, notes
        self.file = tifffile.TiffFile(io.BytesIO(data))
        self.every: list[Any] = list(self.file.pages)
        # Thumbnails and lower resolutions may stand before or after the images.
        whole = [n for n, page in enumerate(self.every) if not int(getattr(page, "subfiletype", 0)) & 1] or [0]
        first = max((self.every[n] for n in whole), key=lambda page: int(page.imagewidth) * int(page.imagelength))
        self.pages = [n for n in whole if self.every[n].shape == first.shape]
        width, height = int(first.imagewidth), int(first.imagelength)
        check_size(width, height, max_pixels)
        if int(getattr(first, "imagedepth", 1)) != 1:
            raise Unreadable("a TIFF volume")
        keys = first.keyframe
        # A page of a frame shares its keys, so that its bits are those of the first of its kind.
        bits = max(_bits(self.every[n].keyframe) for n in self.pages)
        grey = int(keys.photometric) in (0, 1)
        mode = getattr(keys.photometric, "name", str(keys.photometric))
        left_out = len(whole) - len(self.pages)
        self.info = ImageInfo(
            "TIFF",
            height=height,
            width=width,
            channels=1 if grey else 3,
            bits=bits,
            frames=len(self.pages),
            mode=mode,
            left_out=left_out,
        )

    def frame(self, number: int) -> NDArray[Any]:
        """Display values uint8 or uint16 ``(H, W)`` or ``(H, W, C)``."""
        page = self.every[self.pages[number]]
        keys = page.keyframe
        check_size(int(page.imagewidth), int(page.imagelength), self.max_pixels)
        photometric = int(keys.photometric)
        if photometric not in _COLOURS:
            raise Unreadable(f"TIFF photometric interpretation {_name(keys.photometric)} is not read")
        _require_decoder(keys)
        self._require_tags(keys)
        _check_strips(page, len(self.data))
        values = page.asarray()
        if page.axes == "SYX":
            values = np.moveaxis(values, 0, -1)
        elif page.axes not in ("YX", "YXS"):
            raise Unreadable("a TIFF volume")
        values = values[..., None] if values.ndim == 2 else values
        if values.dtype.kind not in "iufb":
            raise Unreadable(f"values of type {values.dtype}")
        colours, opacity, multiplied = self._parted(values, keys)
        shown = self._shown(colours, opacity, multiplied, keys)
        orientation = keys.tags.get("Orientation")
        return upright(shown, int(orientation.value) if orientation is not None else 1)

    def _require_tags(self, keys: Any) -> None:
        """Refuse a page one of whose tags the library passed over, unless the pixels do not need it."""
        form = self.file.tiff
        start = int(keys.offset)
        (count,) = struct.unpack_from(form.tagnoformat, self.data, start)
        at = range(start + form.tagnosize, len(self.data) - 1, form.tagsize)[: int(count)]
        codes = {struct.unpack_from(f"{form.byteorder}H", self.data, one)[0] for one in at}
        lost = codes - {tag.code for tag in keys.tags}
        if lost & _NEEDED:
            raise Unreadable("corrupt or truncated (a tag)")
        if lost:
            self.notes.add("a TIFF tag beside the pixels that cannot be read")

    def _parted(self, values: NDArray[Any], keys: Any) -> tuple[NDArray[Any], NDArray[Any] | None, bool]:
        """Colours, opacity, and whether it is multiplied into the colours already."""
        wanted = _COLOURS[int(keys.photometric)]
        extra = values.shape[2] - wanted
        if extra < 0:
            raise Unreadable(f"{values.shape[2]} samples a pixel instead of {wanted}")
        stated = [int(kind) for kind in keys.extrasamples or ()][-extra:] if extra else []
        stated += [0] * (extra - len(stated))
        at = next((n for n, kind in enumerate(stated) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
        unspecified = extra - (at is not None)
        if wanted == 1 and unspecified > 1:
            raise Unreadable(f"{values.shape[2]} channels, of which no one says what they are")
        if unspecified:
            self.notes.add(f"{unspecified} further {'channel' if unspecified == 1 else 'channels'}, left out")
        opacity = None if at is None else values[..., wanted + at]
        return values[..., :wanted], opacity, at is not None and stated[at] == _ASSOCIATED

    def _shown(self, colours: NDArray[Any], opacity: NDArray[Any] | None, multiplied: bool, keys: Any) -> NDArray[Any]:
        photometric, bits = int(keys.photometric), _bits(keys)
        if photometric == 3:
            colours, bits = _through_palette(colours[..., 0], keys.colormap, self.notes), 8
        elif bits > 8 or colours.dtype.kind == "f":
            if photometric in (5, 6):
                raise Unreadable(f"more than 8 bits with TIFF photometric interpretation {_name(keys.photometric)}")
            shown = deep_to_display(colours, opacity, bits=bits, multiplied=multiplied, notes=self.notes)
            return np.iinfo(shown.dtype).max - shown if photometric == 0 else shown
        if colours.dtype.kind == "i":
            colours = (colours.astype(np.int16) + 128).astype(np.uint8)
        if bits < 8:
            colours = (colours.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
        if photometric == 0:
            colours = 255 - colours
        if photometric == 5:
            return np.asarray(Image.fromarray(np.ascontiguousarray(colours), "CMYK").convert("RGB"))
        if photometric == 6 and int(keys.compression) not in _CONVERTING:
            if set(keys.subsampling or (1, 1)) != {1}:
                raise Unreadable("a TIFF with subsampled colours that is not compressed as JPEG")
            colours = np.asarray(Image.fromarray(np.ascontiguousarray(colours), "YCbCr").convert("RGB"))
        if opacity is None or multiplied:
            return colours
        return over_black(colours, opacity if bits == 8 else opacity * (255 // (2**bits - 1)))


_CONVERTING = (6, 7, 33003, 33007, 34712)
"""Compressions whose decoders make RGB of YCbCr: JPEG and JPEG 2000."""


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def _bits(keys: Any) -> int:
    bits = keys.bitspersample
    return int(max(bits)) if isinstance(bits, tuple) else int(bits)


def _require_decoder(keys: Any) -> None:
    try:
        tifffile.TIFF.DECOMPRESSORS[keys.compression]
    except KeyError:
        raise Unreadable(f"TIFF compression {_name(keys.compression)} is not read") from None
    if keys.dtype is None:
        raise Unreadable(f"TIFF samples of format {_name(keys.sampleformat)} and {_bits(keys)} bits are not read")


def _through_palette(indices: NDArray[Any], palette: Any, notes: Notes) -> NDArray[np.uint8]:
    if palette is None:
        raise Unreadable("a TIFF palette without colours")
    entries = np.asarray(palette, dtype=np.uint16)
    bits = colour_depth(list(entries), stated=16, notes=notes)
    colours: NDArray[np.uint8] = (entries.T[indices.astype(np.int64)] >> (bits - 8)).astype(np.uint8)
    return colours


def _check_strips(page: Any, length: int) -> None:
    """Every strip has to lie inside the file; tifffile fills what is missing with zeros."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > length:
            raise Unreadable("truncated")
