"""DICOM pixels as a radiologist would see them: modality, VOI and photometric transformations in that order."""

from __future__ import annotations

import io
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from .pixels import ImageInfo, Notes, Unreadable, robust_range, to_display

__all__ = ["WINDOWS", "DicomFile"]

WINDOWS = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "abdomen": (60.0, 400.0),
    "brain": (40.0, 80.0),
    "bone": (480.0, 2500.0),
}
"""Named windows for computed tomography: centre and width in Hounsfield units, as common viewers set them."""

# One decoder for each, so that pixels do not depend on what else is installed; GDCM is none of them, as broken files
# make it abort the whole process.
_DECODERS = {
    JPEGBaseline8Bit: "pillow",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    RLELossless: "pydicom",
}
_BY_IMAGECODECS = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)  # for which pydicom has no other plug-in
_DEFLATED_LIMIT = 1 << 30
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_MODALITY = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType")
_VOI = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")


class DicomFile:
    """A DICOM file in memory.

    Frames come out in display values: modality LUT or rescale, then VOI LUT or window, then inversion for MONOCHROME1;
    palettes and YBR become RGB, padding becomes the darkest value, overlays are left out.

    Args:
        data: the file.
        window: ``file`` (its VOI LUT or first window; percentiles where it has none), ``percentiles``, or one of
            :data:`WINDOWS`, which applies to computed tomography and means ``file`` elsewhere.
        max_pixels: the largest frame that is decoded.

    Raises:
        Unreadable: with the reason.
    """

    def __init__(self, data: bytes, window: str, max_pixels: int) -> None:
        self.window = window
        self.notes = Notes()
        _refuse_bomb(data)
        self.ds = pydicom.dcmread(io.BytesIO(data), force=True)
        if not any(name in self.ds for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise Unreadable("no pixel data")
        ds = self.ds
        for name in ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "SamplesPerPixel"):
            if ds.get(name) is None:
                raise Unreadable(f"lacks {name}")
        if "TransferSyntaxUID" not in getattr(ds, "file_meta", {}):
            # Headerless files are implicit little endian by the standard's default; pydicom found how to parse them.
            ds.file_meta = getattr(ds, "file_meta", None) or pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = _guessed_syntax(ds)
        height, width, frames = int(ds.Rows), int(ds.Columns), int(ds.get("NumberOfFrames") or 1)
        if height < 1 or width < 1 or frames < 1:
            raise Unreadable("no pixels")
        if height * width > max_pixels:
            raise Unreadable(f"too large: {width} x {height} pixels")
        _require_decoder(ds.file_meta.TransferSyntaxUID)
        _require_frames(ds, height, width, frames)
        self.photometric = str(ds.PhotometricInterpretation)
        if self.photometric not in (*_MONOCHROME, *_COLOURS, "PALETTE COLOR"):
            raise Unreadable(f"photometric interpretation {self.photometric[:16]}")
        palette = self.photometric == "PALETTE COLOR"
        self.info = ImageInfo(
            format="DICOM",
            height=height,
            width=width,
            channels=1 if self.photometric in _MONOCHROME else 3,
            bits=8 if palette else int(ds.get("BitsStored") or ds.BitsAllocated),
            frames=frames,
            modality=str(ds.get("Modality") or "") or None,
            mode=self.photometric,
            patient=_identifier(ds, "PatientID"),
            study=_identifier(ds, "StudyInstanceUID"),
            series=_identifier(ds, "SeriesInstanceUID"),
        )

    def content(self) -> bytes:
        """The encoded pixels, which stay the same when a header is rewritten."""
        name = next(name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in self.ds)
        shape = f"{self.info.height} {self.info.width} {self.photometric} ".encode()
        return shape + bytes(self.ds[name].value or b"")

    def frame(self, number: int) -> NDArray[Any]:
        """Display values uint8 or uint16 ``(H, W)`` or ``(H, W, 3)``."""
        ds = self.ds
        stored = self._stored(number)
        if self.photometric == "PALETTE COLOR":
            colours = apply_color_lut(stored, ds)[..., :3]
            # Palette entries are full range by definition, so their high byte is the colour.
            return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
        if self.photometric in _COLOURS:
            if stored.ndim != 3 or stored.shape[2] != 3:
                raise Unreadable("colours without three samples")
            if stored.dtype.kind == "i":
                raise Unreadable("colours below zero")
            if self.info.bits > 8:
                return to_display(stored, robust_range(stored))
            return stored if stored.dtype == np.uint8 else to_display(stored, (0, 2**self.info.bits - 1), np.uint8)
        if stored.ndim != 2:
            raise Unreadable("more than one grey sample")
        return self._grey(stored, _display_settings(ds, number))

    def _stored(self, number: int) -> NDArray[Any]:
        ds = self.ds
        syntax = ds.file_meta.TransferSyntaxUID
        if syntax not in _BY_IMAGECODECS:
            return pixel_array(ds, index=number, decoding_plugin=_DECODERS.get(syntax, ""))
        encoded = get_frame(ds.PixelData, number, number_of_frames=self.info.frames)
        values: NDArray[Any] = imagecodecs.jpeg8_decode(encoded)
        if values.shape[:2] != (self.info.height, self.info.width):
            raise Unreadable("frame of another size than the header says")
        if values.ndim == 3 and self.photometric.startswith("YBR") and syntax != JPEGExtended12Bit:
            values = convert_color_space(values, self.photometric, "RGB")
        if ds.get("PixelRepresentation"):
            unused = 8 * values.itemsize - self.info.bits
            values = (values << unused).view(f"i{values.itemsize}") >> unused
        return values

    def _grey(self, stored: NDArray[Any], settings: Dataset) -> NDArray[Any]:
        padding = _padding(self.ds, stored)
        values = np.asarray(apply_modality_lut(stored, settings))
        eight = self.info.bits <= 8 and values.dtype != np.uint16
        window = self.window if self.window not in WINDOWS or self.info.modality == "CT" else "file"
        if window in WINDOWS:
            centre, width = WINDOWS[window]
            limits = (centre - width / 2, centre + width / 2)
        elif window == "file" and _has_voi(settings):
            values, limits = _through_voi(values, settings)
        elif eight and stored.dtype.kind in "iu" and window == "file":
            low, high = _stored_limits(self.ds)
            ends = apply_modality_lut(np.array([[low, high]], dtype=stored.dtype), settings).astype(np.float64).ravel()
            limits = (float(ends.min()), float(ends.max()))
        else:
            limits = robust_range(values if padding is None else values[~padding])
        shown = to_display(values, limits, np.uint8 if eight else np.uint16)
        if self.photometric == "MONOCHROME1":
            shown = np.iinfo(shown.dtype).max - shown
        if padding is not None:
            shown[padding] = 0
        return shown


def _refuse_bomb(data: bytes) -> None:
    """Refuse a deflated file that unpacks to more than memory should hold; pydicom unpacks without a limit."""
    has_length = data[132:140] == b"\x02\0\0\0UL\x04\0"
    start = 144 + int.from_bytes(data[140:144], "little") if has_length else len(data)
    if DeflatedExplicitVRLittleEndian.encode() not in data[:start]:
        return
    if not has_length:
        raise Unreadable("deflated without a group length")
    unpacked = zlib.decompressobj(-zlib.MAX_WBITS)
    unpacked.decompress(data[start:], _DEFLATED_LIMIT)
    if unpacked.unconsumed_tail:
        raise Unreadable("unpacks to more than 1 GiB")


def _guessed_syntax(ds: Dataset) -> UID:
    implicit, little = ds.original_encoding
    if little is False:
        return pydicom.uid.ExplicitVRBigEndian
    return pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian


def _require_decoder(syntax: UID) -> None:
    if syntax in _BY_IMAGECODECS or (syntax.is_transfer_syntax and not syntax.is_compressed):
        return
    if syntax not in _DECODERS:
        raise Unreadable("unknown transfer syntax")
    if _DECODERS[syntax] not in get_decoder(syntax).available_plugins:
        raise Unreadable(f"needs a decoder for {syntax.name}; pip install jigsawssl[dicom]")


def _require_frames(ds: Dataset, height: int, width: int, frames: int) -> None:
    """Refuse a header that promises more frames than the data can hold, before anybody counts to a billion."""
    name = next(name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in ds)
    there = len(ds[name].value or b"")
    least = 8 * frames  # an item of encapsulated data
    if not ds.file_meta.TransferSyntaxUID.is_compressed or ds.file_meta.TransferSyntaxUID.is_deflated:
        samples = 2 if str(ds.PhotometricInterpretation) == "YBR_FULL_422" else int(ds.SamplesPerPixel)
        least = frames * height * width * samples * int(ds.BitsAllocated) // 8
    if least > there:
        raise Unreadable("truncated: the header promises more pixels than there are")


def _identifier(ds: Dataset, name: str) -> str | None:
    return str(ds.get(name) or "").strip() or None


def _stored_limits(ds: Dataset) -> tuple[int, int]:
    bits = int(ds.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.get("PixelRepresentation") else (0, 2**bits - 1)


def _padding(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the frame is padding (PS3.3 C.7.5.1.1.2), or None where there is none."""
    value = ds.get("PixelPaddingValue")
    if value is None or stored.dtype.kind == "f":
        return None
    last = ds.get("PixelPaddingRangeLimit")
    value, limit = int(value), int(value if last is None else last)
    mask: NDArray[np.bool_] = (stored >= min(value, limit)) & (stored <= max(value, limit))
    return mask if mask.any() and not mask.all() else None


def _display_settings(ds: Dataset, number: int) -> Dataset:
    """What modality and VOI transformations need, with the functional groups of enhanced multi-frame objects."""
    settings = Dataset()
    for name in ("PhotometricInterpretation", "BitsStored", "PixelRepresentation", *_MODALITY, *_VOI):
        if name in ds and ds[name].value not in (None, ""):
            settings[name] = ds[name]
    settings.BitsStored = ds.get("BitsStored") or ds.BitsAllocated
    settings.PixelRepresentation = ds.get("PixelRepresentation") or 0
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(ds.get("SharedFunctionalGroupsSequence") or [])[:1], *per_frame[number : number + 1]]
    for group in groups:
        for sequence, names in (("PixelValueTransformationSequence", _MODALITY), ("FrameVOILUTSequence", _VOI)):
            for item in (group.get(sequence) or [])[:1]:
                for name in names:
                    if name in item:
                        settings[name] = item[name]
    return settings


def _has_voi(settings: Dataset) -> bool:
    """Whether there is a whole LUT, or a window that is wide enough to be one."""
    if settings.get("VOILUTSequence"):
        return True
    width = settings.get("WindowWidth")
    first = width[0] if isinstance(width, pydicom.multival.MultiValue) else width
    least = 1 if str(settings.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR" else 0
    return settings.get("WindowCenter") is not None and first is not None and float(first) > least


def _through_voi(values: NDArray[Any], settings: Dataset) -> tuple[NDArray[Any], tuple[float, float]]:
    """Values after the VOI LUT or window, and the range that these can take."""
    if settings.get("VOILUTSequence"):
        bits = int(settings.VOILUTSequence[0].LUTDescriptor[2])
        return apply_voi_lut(values, settings), (0.0, float(2**bits - 1))
    # Two values far outside show the ends of the output, which depend on bits, sign and rescale.
    far = np.array([-1e30, 1e30])
    with np.errstate(over="ignore"):
        out = np.asarray(apply_voi_lut(np.concatenate([values.ravel().astype(np.float64), far]), settings))
    return out[:-2].reshape(values.shape), (float(out[-2]), float(out[-1]))
