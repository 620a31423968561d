"""DICOM pixels as a radiologist would see them: modality, VOI and photometric transformations in that order."""

import io
import zlib
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.utils import pixel_array

from .codestream import decode_stream, kind_of_stream
from .elements import integer, items, numbers, text, value_of
from .lookup import Descriptor, LookupTable, colour_depth, expand_segments, grey_depth, read_entries
from .patients import known_patient
from .pixels import (
    NOTE_FLAT_TABLE,
    NOTE_HIGH_BITS,
    ImageInfo,
    NotAnImage,
    Notes,
    Unreadable,
    note_narrow,
    robust_range,
    to_display,
)

WINDOWS = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (40.0, 400.0),
    "abdomen": (60.0, 400.0),
    "brain": (40.0, 80.0),
    "bone": (480.0, 2500.0),
}
"""Named windows for computed tomography: centre and width in Hounsfield units, as common viewers set them."""

_DEFLATED_LIMIT = 1 << 30
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_ITEM = b"\xfe\xff\x00\xe0"
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_CHANNELS = ("Red", "Green", "Blue")
_LOSSLESS_JPEG = (uid.JPEGLossless, uid.JPEGLosslessSV1)
_SYNTAXES = {
    "JPEG": [syntax for syntax in uid.JPEGTransferSyntaxes if syntax not in _LOSSLESS_JPEG],
    "lossless JPEG": _LOSSLESS_JPEG,
    "JPEG-LS": uid.JPEGLSTransferSyntaxes,
    "JPEG 2000": [*uid.JPEG2000TransferSyntaxes, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL],
}


class DicomFile:
    """A DICOM file in memory.

    Frames come out in display values: modality LUT or rescale, then VOI LUT or window, then inversion for MONOCHROME1;
    palettes and YBR become RGB, padding becomes the darkest value, overlays are left out.

    Where a file contradicts itself, a rule decides, and a remark in ``notes`` says so: in a compressed frame the stream
    decides, not the header; bits beyond the stored ones are masked; a lookup table has the depth of its entries; a
    missing element with one usual value gets that value. What the pixels do not need is not looked at.

    Args:
        data: the file.
        window: ``file`` (its VOI LUT or first window; percentiles where it has none), ``percentiles``, or one of
            :data:`WINDOWS`, which applies to computed tomography and means ``file`` elsewhere.
        max_pixels: the largest frame that is decoded.

    Raises:
        NotAnImage: for reports, documents and other objects without pixels, and for segmentations.
        Unreadable: with the reason.
    """

    def __init__(self, data: bytes, window: str, max_pixels: int) -> None:
        self.window = window
        self.notes = Notes()
        self.ds = ds = _parsed(data, self.notes)
        _require_image(ds)
        for name in ("Rows", "Columns", "BitsAllocated"):
            if integer(ds, name, self.notes) is None:
                raise Unreadable(f"lacks {name}")
        if "TransferSyntaxUID" not in getattr(ds, "file_meta", {}):
            # Headerless files are implicit little endian by the standard's default; pydicom found how to parse them.
            ds.file_meta = getattr(ds, "file_meta", None) or FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = _guessed_syntax(ds)
        height, width = (integer(ds, name, self.notes) or 0 for name in ("Rows", "Columns"))
        frames = integer(ds, "NumberOfFrames", self.notes)
        frames = 1 if frames is None else frames
        if height < 1 or width < 1 or frames < 1:
            raise Unreadable("no pixels")
        if height * width > max_pixels:
            raise Unreadable(f"too large: {width} x {height} pixels")
        self.photometric = self._complete(ds, frames)
        self.encapsulated = _is_encapsulated(ds, self.notes)
        _require_frames(ds, height=height, width=width, frames=frames, encapsulated=self.encapsulated)
        if self.encapsulated:
            _require_decoder(ds, frames)
        palette = self.photometric == "PALETTE COLOR"
        self.info = ImageInfo(
            format="DICOM",
            height=height,
            width=width,
            channels=1 if self.photometric in _MONOCHROME else 3,
            bits=8 if palette else int(ds.BitsStored),
            frames=frames,
            modality=text(ds, "Modality"),
            mode=self.photometric,
            patient=known_patient(text(ds, "PatientID")),
            study=text(ds, "StudyInstanceUID"),
            series=text(ds, "SeriesInstanceUID"),
        )

    def _complete(self, ds: Dataset, frames: int) -> str:
        """Fill in what is missing or contradicts itself, by the only value that it can have; gives the photometric
        interpretation."""
        notes = self.notes
        photometric = (text(ds, "PhotometricInterpretation") or "").upper().replace("_COLOR", " COLOR")
        samples = integer(ds, "SamplesPerPixel", notes)
        if samples is None:
            samples = 3 if photometric in _COLOURS else 1
            notes.add(f"lacks SamplesPerPixel; {samples} taken")
        if not photometric:
            if samples not in (1, 3):
                raise Unreadable("lacks PhotometricInterpretation")
            photometric = "MONOCHROME2" if samples == 1 else "RGB"
            notes.add(f"lacks PhotometricInterpretation; {photometric} taken")
        if photometric not in (*_MONOCHROME, *_COLOURS, "PALETTE COLOR"):
            raise Unreadable(f"photometric interpretation {photometric[:16]}")
        if samples not in (1, 3):
            raise Unreadable(f"{samples} samples a pixel")
        if (samples == 3) != (photometric in _COLOURS):
            taken = "RGB" if samples == 3 else "MONOCHROME2"
            notes.add(f"{photometric} with SamplesPerPixel {samples}; {taken} taken")
            photometric = taken
        allocated, stored = int(ds.BitsAllocated), integer(ds, "BitsStored", notes)
        high = integer(ds, "HighBit", notes)
        if allocated not in (1, 8, 16, 32, 64):
            raise Unreadable(f"{allocated} bits allocated")
        if "PixelData" not in ds:  # floats
            stored, high = allocated, allocated - 1
        if stored is None:
            stored = allocated if high is None else high + 1
            notes.add(f"lacks BitsStored; {stored} taken")
        if not 1 <= stored <= allocated:
            notes.add(f"BitsStored {stored} of {allocated} allocated; {allocated} taken")
            stored = allocated
        if high is None or not stored - 1 <= high < allocated:
            high = stored - 1
        sign = integer(ds, "PixelRepresentation", notes)
        if sign is None and "PixelData" in ds:
            notes.add("lacks PixelRepresentation; 0 taken")
        planar = integer(ds, "PlanarConfiguration", notes)
        if samples == 3 and planar is None:
            notes.add("lacks PlanarConfiguration; 0 taken")
        ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.NumberOfFrames = photometric, samples, frames
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = stored, high, int(bool(sign))
        if samples == 3:
            ds.PlanarConfiguration = int(bool(planar))
        return photometric

    def content(self) -> bytes:
        """The encoded pixels, which stay the same when a header is rewritten."""
        shape = f"{self.info.height} {self.info.width} {self.photometric} ".encode()
        return shape + _pixel_bytes(self.ds)

    def frame(self, number: int) -> NDArray[Any]:
        """Display values uint8 or uint16 ``(H, W)`` or ``(H, W, 3)``."""
        stored, padding = self._stored(number)
        if stored.ndim != (3 if self.photometric in _COLOURS else 2):
            raise Unreadable("a frame of other samples than the header says")
        if self.photometric == "PALETTE COLOR":
            return self._coloured(stored)
        if self.photometric in _COLOURS:
            if stored.dtype.kind == "i":
                raise Unreadable("colours below zero")
            if self.info.bits > 8:
                return to_display(stored, robust_range(stored))
            if self.info.bits == 8:
                return stored.astype(np.uint8, copy=False)
            return to_display(stored, (0, 2**self.info.bits - 1), np.uint8)
        return self._grey(stored, padding, number)

    def _stored(self, number: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Samples as they are meant, and where they are padding."""
        ds = self.ds
        precision = int(ds.BitsAllocated)
        if not self.encapsulated:
            values = pixel_array(ds, index=number, correct_unused_bits=False)
            values = values.astype(values.dtype.newbyteorder("="), copy=False)  # the byte order of this machine
        else:
            encoded = get_frame(ds.PixelData, number, number_of_frames=self.info.frames)
            kind = kind_of_stream(encoded)
            if kind is None and precision == 1:
                values = _bits_of_rle(encoded, self.info.height, self.info.width)
            elif kind is None:
                values = pixel_array(ds, index=number, decoding_plugin="pydicom", correct_unused_bits=False)
            else:
                if ds.file_meta.TransferSyntaxUID not in _SYNTAXES[kind]:
                    self.notes.add(f"a stream of {kind} under another transfer syntax")
                values, precision = decode_stream(encoded, self.photometric, self.notes)
            if values.shape[:2] != (self.info.height, self.info.width):
                raise Unreadable("frame of another size than the header says")
        if values.dtype.kind == "f" or precision == 1:
            return values, None
        return _meant(values, ds, precision, self.notes)

    def _coloured(self, stored: NDArray[Any]) -> NDArray[Any]:
        tables = [_palette(self.ds, colour, _stored_limits(self.ds), self.notes) for colour in _CHANNELS]
        bits = colour_depth([table.entries for table, _ in tables], stated=tables[0][1], notes=self.notes)
        colours = np.stack([(table(stored) >> (bits - 8)).astype(np.uint8) for table, _ in tables], axis=-1)
        self._note_flat(stored, colours)
        return colours

    def _grey(self, stored: NDArray[Any], padding: NDArray[np.bool_] | None, number: int) -> NDArray[Any]:
        settings = _Settings(self.ds, number, self.notes)
        values, ends = settings.through_modality(stored, _stored_limits(self.ds))
        eight = self.info.bits <= 8 and values.dtype != np.uint16
        window = self.window if self.window not in WINDOWS or self.info.modality == "CT" else "file"
        voi = settings.through_voi(values, ends) if window == "file" else None
        if window in WINDOWS:
            centre, width = WINDOWS[window]
            limits = (centre - width / 2, centre + width / 2)
        elif voi is not None:
            values, limits = voi
        elif eight and stored.dtype.kind in "iu" and window == "file":
            limits = ends
        else:
            limits = robust_range(values if padding is None else values[~padding])
        shown = to_display(values, limits, np.uint8 if eight else np.uint16)
        if settings.tables:
            self._note_flat(stored, shown)
        if self.photometric == "MONOCHROME1":
            shown = np.iinfo(shown.dtype).max - shown
        if padding is not None:
            shown[padding] = 0
        return shown

    def _note_flat(self, stored: NDArray[Any], shown: NDArray[Any]) -> None:
        if shown.min() == shown.max() and stored.min() != stored.max():
            self.notes.add(NOTE_FLAT_TABLE)


def _parsed(data: bytes, notes: Notes) -> Dataset:
    """The data set, inflated no further than memory should hold; pydicom inflates without a limit."""
    if data[128:132] == b"DICM" and uid.DeflatedExplicitVRLittleEndian.encode() in data[132:2048]:
        start = _end_of_meta(data)
        meta = pydicom.dcmread(io.BytesIO(data[:start]), force=True, stop_before_pixels=True).file_meta
        if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
            ds = read_dataset(io.BytesIO(_inflated(data[start:])), is_implicit_VR=False, is_little_endian=True)
            meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            ds.file_meta = meta
            ds.set_original_encoding(False, True)
            return ds
    return pydicom.dcmread(io.BytesIO(data), force=True)


def _end_of_meta(data: bytes) -> int:
    """Where the elements of group 2 end, which say how the rest is encoded."""
    at = 132
    while data[at : at + 2] == b"\2\0" and at + 12 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"UN")
        length = int.from_bytes(data[at + 8 : at + 12] if long else data[at + 6 : at + 8], "little")
        at += (12 if long else 8) + length
    return at


def _inflated(data: bytes) -> bytes:
    for bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):  # the standard's raw stream, or one in the wrapping of zlib
        try:
            stream = zlib.decompressobj(bits)
            unpacked = stream.decompress(data, _DEFLATED_LIMIT)
        except zlib.error:
            continue
        if stream.unconsumed_tail:
            raise Unreadable("unpacks to more than 1 GiB")
        if not stream.eof:
            raise Unreadable("truncated")
        return unpacked
    raise Unreadable("corrupt or truncated (deflated data)")


def _require_image(ds: Dataset) -> None:
    """Tell images from reports, documents and segmentations."""
    kind = text(ds, "SOPClassUID") or text(getattr(ds, "file_meta", Dataset()), "MediaStorageSOPClassUID") or ""
    name = uid.UID(kind).name if uid.UID(kind).type == "SOP Class" else ""
    if "Segmentation" in name or text(ds, "Modality") == "SEG":
        raise NotAnImage("a DICOM segmentation, which marks what other images show")
    if any(pixels in ds for pixels in _PIXELS):
        return
    if name and "Image Storage" not in name:
        raise NotAnImage(f"a DICOM object without pixels: {name.removesuffix(' Storage')}")
    raise Unreadable("no pixel data")


def _guessed_syntax(ds: Dataset) -> uid.UID:
    implicit, little = ds.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _pixel_bytes(ds: Dataset) -> bytes:
    return bytes(ds[next(name for name in _PIXELS if name in ds)].value or b"")


def _native_bytes(ds: Dataset, frames: int) -> int:
    samples = 2 if ds.PhotometricInterpretation == "YBR_FULL_422" else int(ds.SamplesPerPixel)
    return frames * int(ds.Rows) * int(ds.Columns) * samples * int(ds.BitsAllocated) // 8


def _is_encapsulated(ds: Dataset, notes: Notes) -> bool:
    """Whether pixels lie in items, by what they begin with where the transfer syntax says something else."""
    if "PixelData" not in ds:
        return False
    syntax, data = ds.file_meta.TransferSyntaxUID, _pixel_bytes(ds)
    stated = bool(syntax.is_compressed) and not syntax.is_deflated if syntax.is_transfer_syntax else True
    needed = _native_bytes(ds, int(ds.NumberOfFrames))
    in_items = data[:4] == _ITEM and (stated or len(data) != needed + needed % 2)
    if in_items != stated and len(data) >= needed:
        notes.add(f"pixels that are {'' if in_items else 'not '}compressed, against the transfer syntax")
        if not in_items:
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        return in_items
    return stated


def _require_decoder(ds: Dataset, frames: int) -> None:
    syntax = ds.file_meta.TransferSyntaxUID
    first = get_frame(ds.PixelData, 0, number_of_frames=frames)
    if kind_of_stream(first) is None and syntax != uid.RLELossless:
        named = syntax.name if syntax.is_transfer_syntax else "one that is not known"
        raise Unreadable(f"a transfer syntax that is not read: {named}")


def _require_frames(ds: Dataset, *, height: int, width: int, frames: int, encapsulated: bool) -> None:
    """Refuse a header that promises more frames than the data can hold, before anybody counts to a billion."""
    least = 8 * frames if encapsulated else _native_bytes(ds, frames)  # an item takes eight bytes
    if least > len(_pixel_bytes(ds)):
        raise Unreadable("truncated: the header promises more pixels than there are")


def _bits_of_rle(encoded: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """A frame of one bit a pixel, whose bytes are run-length encoded as one segment (PS3.5 G.2)."""
    start = int.from_bytes(encoded[4:8], "little")
    out, at = bytearray(), start
    wanted = (height * width + 7) // 8
    while at < len(encoded) and len(out) < wanted:
        count = encoded[at]
        if count < 128:
            out += encoded[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            out += encoded[at + 1 : at + 2] * (257 - count if count > 128 else 0)
            at += 2 if count > 128 else 1
    if len(out) < wanted:
        raise Unreadable("truncated")
    bits = np.unpackbits(np.frombuffer(bytes(out), np.uint8), bitorder="little")
    return bits[: height * width].reshape(height, width)


def _stored_limits(ds: Dataset) -> tuple[int, int]:
    bits = int(ds.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if ds.PixelRepresentation else (0, 2**bits - 1)


def _meant(
    values: NDArray[Any], ds: Dataset, precision: int, notes: Notes
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Samples by BitsStored, HighBit and PixelRepresentation, without what else lies in their bits; and padding.

    A header whose HighBit leaves bits free below counts, unless just those bits are in use and the upper ones are not.
    A stream of fewer bits than are stored has the depth of the stream.
    """
    width = 8 * values.itemsize
    raw = values.view(f"u{values.itemsize}")
    bits = min(int(ds.BitsStored), precision)
    below = int(ds.HighBit) + 1 - bits if precision > int(ds.HighBit) else 0
    padding = _padding(ds, values, bits)
    if below > 0:
        if raw.max() < 1 << bits and (raw & ((1 << below) - 1)).any():
            notes.add("bits that lie lower than HighBit says")
        else:
            raw = raw >> below
    outside = raw >> bits if bits < width else np.zeros(1, raw.dtype)
    signed = bool(ds.PixelRepresentation)
    if padding is not None:
        outside = np.where(padding, 0, outside)
    if signed:
        unused = width - bits
        meant = (raw << unused).view(f"i{values.itemsize}") >> unused
        # Either all zero or all the sign is how the unused bits of a negative number may be.
        odd = (outside != 0) & ((meant.view(raw.dtype) >> bits if bits < width else 0) != outside)
    elif outside.any():
        meant, odd = raw & ((1 << bits) - 1), outside != 0
    else:
        meant, odd = raw, outside != 0
    if odd.any():
        notes.add(NOTE_HIGH_BITS)
    note_narrow(meant, bits, notes)
    return meant, padding


def _padding(ds: Dataset, values: NDArray[Any], bits: int) -> NDArray[np.bool_] | None:
    """Where the frame is padding (PS3.3 C.7.5.1.1.2), or None where there is none."""
    value, last = value_of(ds, "PixelPaddingValue"), value_of(ds, "PixelPaddingRangeLimit")
    if not isinstance(value, int) or values.ndim != 2:
        return None
    limit = last if isinstance(last, int) else value
    if ds.PixelRepresentation:
        signed = values.view(f"i{values.itemsize}")
        value, limit = (one - 2**16 if one >= 2**15 and values.itemsize == 2 else one for one in (value, limit))
        mask = (signed >= min(value, limit)) & (signed <= max(value, limit))
    else:
        value, limit = (one % 2 ** (8 * values.itemsize) for one in (value, limit))
        unsigned = values.view(f"u{values.itemsize}")
        mask = (unsigned >= min(value, limit)) & (unsigned <= max(value, limit))
    return mask if mask.any() and not mask.all() else None


def _little_endian(ds: Dataset) -> bool:
    return ds.original_encoding[1] is not False


def _table(
    item: Dataset, name: str, inputs: tuple[float, float], little: bool, notes: Notes
) -> tuple[LookupTable, int]:
    """A table of this name ("LUT" or "…PaletteColorLookupTable"), and its stated depth."""
    described = value_of(item, f"{name}Descriptor")
    data, segments = (value_of(item, f"{kind}{name}Data") for kind in ("", "Segmented"))
    if data is None and segments is None:
        raise Unreadable("a lookup table without entries")
    descriptor = Descriptor.of(described, little_endian=little, inputs=inputs, notes=notes)
    if data is not None:
        words = item[f"{name}Data"].VR != "OB"
        entries = read_entries(data, descriptor, little_endian=little, words=words, notes=notes)
    else:
        assert segments is not None
        entries = expand_segments(segments, descriptor, little_endian=little, notes=notes)
    return LookupTable(descriptor.first, entries), descriptor.bits


def _palette(ds: Dataset, colour: str, inputs: tuple[float, float], notes: Notes) -> tuple[LookupTable, int]:
    return _table(ds, f"{colour}PaletteColorLookupTable", inputs, _little_endian(ds), notes)


class _Settings:
    """Modality and VOI transformations of one frame: of the file, or of functional groups, which have precedence."""

    def __init__(self, ds: Dataset, number: int, notes: Notes) -> None:
        self.notes = notes
        self.little = _little_endian(ds)
        self.tables = False
        groups = items(ds, "SharedFunctionalGroupsSequence")[:1]
        groups += items(ds, "PerFrameFunctionalGroupsSequence")[number : number + 1]
        self.modality = [ds, *self._of(groups, "PixelValueTransformationSequence")]
        self.voi = [ds, *self._of(groups, "FrameVOILUTSequence")]

    @staticmethod
    def _of(groups: list[Dataset], name: str) -> list[Dataset]:
        return [item for group in groups for item in items(group, name)[:1]]

    def _numbers(self, sources: list[Dataset], name: str) -> list[float]:
        return next((found for source in reversed(sources) if (found := numbers(source, name, self.notes))), [])

    def _first_table(
        self, sources: list[Dataset], name: str, inputs: tuple[float, float]
    ) -> tuple[LookupTable, int] | None:
        """The first table of a sequence that has entries."""
        for source in reversed(sources):
            for item in items(source, name):
                try:
                    return _table(item, "LUT", inputs, self.little, self.notes)
                except Unreadable as error:
                    self.notes.add(f"{name}: {error}")
        return None

    def through_modality(
        self, stored: NDArray[Any], ends: tuple[float, float]
    ) -> tuple[NDArray[Any], tuple[float, float]]:
        """Values after the modality LUT or rescale, and between which they can lie."""
        table = self._first_table(self.modality, "ModalityLUTSequence", ends)
        if table is not None:
            self.tables = True
            return table[0](stored), (float(table[0].entries.min()), float(table[0].entries.max()))
        slopes = self._numbers(self.modality, "RescaleSlope")
        intercepts = self._numbers(self.modality, "RescaleIntercept")
        if not slopes and not intercepts:
            return stored, ends
        slope, intercept = (slopes or [1.0])[0], (intercepts or [0.0])[0]
        if slope == 0:
            self.notes.add("RescaleSlope 0; 1 taken")
            slope = 1.0
        low, high = sorted(end * slope + intercept for end in ends)
        if slope == 1 and intercept == 0:
            return stored, ends
        return stored.astype(np.float64) * slope + intercept, (low, high)

    def through_voi(
        self, values: NDArray[Any], ends: tuple[float, float]
    ) -> tuple[NDArray[Any], tuple[float, float]] | None:
        """Values after the VOI LUT or the first window, and the range to show; None where there is none."""
        table = self._first_table(self.voi, "VOILUTSequence", ends)
        if table is not None:
            self.tables = True
            bits = grey_depth(table[0].entries, stated=table[1], notes=self.notes)
            return table[0](values), (0.0, float(2**bits - 1))
        centres, widths = (self._numbers(self.voi, name) for name in ("WindowCenter", "WindowWidth"))
        function = next((found for source in reversed(self.voi) if (found := text(source, "VOILUTFunction"))), "LINEAR")
        linear = function.upper() not in ("LINEAR_EXACT", "SIGMOID")
        if not centres or not widths or widths[0] <= (1 if linear else 0):
            return None
        centre, width = centres[0], widths[0]
        if function.upper() == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width)), (0.0, 1.0)
        if linear:  # PS3.3 C.11.2.1.2.1
            centre, width = centre - 0.5, width - 1
        return values, (centre - width / 2, centre + width / 2)
