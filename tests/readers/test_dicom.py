"""DICOM: what pydicom's own processing functions give, in the order of the standard, and privacy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    generate_uid,
)

from jigsawssl.readers import Unreadable, open_picture, read, robust_range, to_display
from jigsawssl.readers.dicom import WINDOWS

SHIPPED = sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm"))
STORED = np.random.default_rng(0).integers(0, 4096, (20, 16), dtype=np.uint16)


def dicom(stored: np.ndarray = STORED, bits: int = 12, **tags: Any) -> bytes:
    """A small file; tags override or, where None, remove what it would say."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.PatientID, ds.PatientName, ds.Modality = "secret-17", "Doe^Jane", "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    frames = stored.ndim - 2 - (tags.get("SamplesPerPixel", 1) == 3)
    if frames:
        ds.NumberOfFrames = stored.shape[0]
    ds.Rows, ds.Columns = stored.shape[frames : frames + 2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = stored.dtype.itemsize * 8, bits, bits - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shown(data: bytes, frame: int = 0, window: str = "file") -> np.ndarray:
    pixels, info = read(data, frame, window)
    assert info.format == "DICOM"
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def scaled(values: np.ndarray, low: float, high: float, top: int = 65535) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * top


def expected(ds: Dataset, number: int) -> np.ndarray:
    """Display values by pydicom's functions alone, for files with a window or LUT, colours and 8 bits."""
    stored = pixel_array(ds, index=number)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, ds)[..., :3]
        return colours // 256 if colours.dtype == np.uint16 else colours
    if ds.SamplesPerPixel == 3:
        return stored if ds.BitsStored <= 8 else to_display(stored, robust_range(stored))
    values = np.asarray(apply_modality_lut(stored, ds))
    if "WindowCenter" in ds:
        windowed = apply_voi_lut(values, ds)
        bounds = apply_voi_lut(np.array([-1e30, 1e30]), ds)
        out = to_display(windowed, (bounds[0], bounds[1]), np.uint8 if ds.BitsStored <= 8 else np.uint16)
    elif ds.BitsStored <= 8:
        out = to_display(values, (0, 2**ds.BitsStored - 1), np.uint8)
    else:
        out = to_display(values, robust_range(values))
    return np.iinfo(out.dtype).max - out if ds.PhotometricInterpretation == "MONOCHROME1" else out


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_files_of_pydicom_are_read_right_or_refused_with_a_reason(file: Path) -> None:
    data = file.read_bytes()
    try:
        picture = open_picture(data, name=file.name)
        pixels = [picture.frame(number) for number in range(picture.info.frames)]
    except Unreadable as error:
        ds = pydicom.dcmread(file, force=True)
        broken = {"badVR", "MR_truncated", "JPEG2000-embedded-sequence-delimiter"}
        assert str(error) == "no pixel data" or str(error).startswith("lacks") or file.stem in broken
        assert "PixelData" not in ds or str(error).startswith("lacks") or file.stem in broken
        return
    ds = pydicom.dcmread(file, force=True)
    if ds.file_meta.TransferSyntaxUID == JPEGExtended12Bit:
        assert pixels[0].shape[:2] == (ds.Rows, ds.Columns)  # which pydicom itself cannot decode here
        return
    if ds.file_meta.TransferSyntaxUID == JPEGLosslessSV1:  # nor this one, which is the same picture as another
        ds = pydicom.dcmread(next(other for other in SHIPPED if other.stem == "SC_rgb_rle"))
    for number in range(picture.info.frames):
        reference = expected(ds, number)
        assert np.array_equal(pixels[number].squeeze(), reference.squeeze()), number


def test_there_are_files_of_pydicom() -> None:
    assert len(SHIPPED) > 60


def test_rescale_window_and_inversion_follow_in_this_order() -> None:
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 1000, "WindowWidth": 2000}
    values = STORED * 2.0 - 1000
    by_formula = scaled(values, 1000 - 0.5 - 1999 / 2, 1000 - 0.5 + 1999 / 2)  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown(dicom(**tags)) - by_formula).max() <= 1
    inverted = shown(dicom(PhotometricInterpretation="MONOCHROME1", **tags))
    assert np.abs(inverted - (65535 - by_formula)).max() <= 1
    exact = shown(dicom(VOILUTFunction="LINEAR_EXACT", **tags))
    assert np.abs(exact - scaled(values, 0, 2000)).max() <= 1
    sigmoid = shown(dicom(VOILUTFunction="SIGMOID", **tags))
    assert np.abs(sigmoid - 65535 / (1 + np.exp(-4 * (values - 1000) / 2000))).max() <= 1


def test_the_first_of_several_windows_counts() -> None:
    both = shown(dicom(WindowCenter=[500, 2000], WindowWidth=[400, 900]))
    assert np.array_equal(both, shown(dicom(WindowCenter=500, WindowWidth=400)))


def test_named_windows_are_for_computed_tomography() -> None:
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 80}
    for name, (centre, width) in WINDOWS.items():
        lung = shown(dicom(**tags), window=name)
        assert np.abs(lung - scaled(STORED - 1024.0, centre - width / 2, centre + width / 2)).max() <= 1
    radiograph = dicom(Modality="CR", **tags)
    assert np.array_equal(shown(radiograph, window="lung"), shown(radiograph))


def test_percentiles_where_there_is_no_window_and_on_request() -> None:
    low, high = np.percentile(STORED, [0.5, 99.5])
    assert np.abs(shown(dicom()) - scaled(STORED, low, high)).max() <= 1
    windowed = dicom(WindowCenter=50, WindowWidth=10)
    assert np.array_equal(shown(windowed, window="percentiles"), shown(dicom()))


def test_a_voi_lut() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], (np.arange(4096, dtype=np.uint16) ** 2 // 256).tolist()
    item["LUTData"].VR = "US"
    pixels = shown(dicom(VOILUTSequence=[item]))
    assert np.array_equal(pixels, (STORED.astype(np.int64) ** 2 % 65536 // 256).astype(np.uint16)) or np.array_equal(
        pixels, np.asarray(item.LUTData)[STORED]
    )


def test_padding_is_masked_and_does_not_move_the_percentiles() -> None:
    padded = STORED.copy()
    padded[:, :3] = 4095
    inside = STORED[:, 3:]
    low, high = np.percentile(inside, [0.5, 99.5])
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        pixels = shown(dicom(padded, PixelPaddingValue=4095, PhotometricInterpretation=photometric))
        assert not pixels[:, :3].any(), "dark in either case"
        wanted = scaled(inside, low, high)
        wanted = wanted if photometric == "MONOCHROME2" else 65535 - wanted
        kept = inside != 4095
        assert np.abs(pixels[:, 3:] - wanted)[kept].max() <= 1
    ranged = shown(dicom(padded, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095))
    assert not ranged[padded >= 4000].any()


@pytest.mark.parametrize(("dtype", "bits"), [("int16", 16), ("int16", 12), ("uint32", 32), ("int32", 32), ("uint8", 8)])
def test_signed_and_wide_values(dtype: str, bits: int) -> None:
    limits = np.iinfo(dtype) if bits != 12 else type("", (), {"min": -2048, "max": 2047})
    values = np.linspace(limits.min, limits.max, 320).reshape(20, 16).astype(dtype)
    pixels = shown(dicom(values, bits=bits))
    assert pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert (np.diff(pixels.ravel().astype(int)) >= 0).all() and pixels[0, 0] == 0 and pixels[-1, -1] > 250


def test_float_pixels() -> None:
    values = np.linspace(-3, 3, 320, dtype=np.float32).reshape(20, 16)
    data = dicom(STORED.astype(np.uint32), 32, PixelData=None, FloatPixelData=values.tobytes(), BitsStored=None)
    assert np.abs(shown(data) - scaled(values, *np.percentile(values, [0.5, 99.5]))).max() <= 1


@pytest.mark.parametrize("planar", [0, 1])
def test_colours_in_either_planar_configuration(planar: int) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    stored = colours if planar == 0 else colours.transpose(2, 0, 1)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": planar}
    data = dicom(colours, 8, PixelData=np.ascontiguousarray(stored).tobytes(), **tags)
    assert np.array_equal(shown(data), colours)


def test_frames_have_windows_of_their_own() -> None:
    stack = np.stack([STORED, STORED])
    groups = []
    for centre in (500, 3000):
        voi, group = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, 400
        group.FrameVOILUTSequence = [voi]
        groups.append(group)
    data = dicom(stack, PerFrameFunctionalGroupsSequence=groups)
    for number, centre in enumerate((500, 3000)):
        single = dicom(WindowCenter=centre, WindowWidth=400)
        assert np.array_equal(shown(data, number), shown(single))


def test_a_file_without_preamble_and_transfer_syntax() -> None:
    data = dicom(WindowCenter=2000, WindowWidth=4000)
    ds = pydicom.dcmread(io.BytesIO(data))
    stream = io.BytesIO()
    del ds.file_meta
    ds.preamble = None
    ds.save_as(stream, implicit_vr=True, little_endian=True)
    bare = stream.getvalue()
    assert bare[128:132] != b"DICM"
    assert np.array_equal(shown(bare), shown(data))


def test_missing_or_odd_elements_are_reasons() -> None:
    for data, expected_reason in (
        (dicom(PixelData=None), "no pixel data"),
        (dicom(Rows=None), "lacks Rows"),
        (dicom(PhotometricInterpretation="HSV"), "photometric interpretation HSV"),
        (dicom()[:-100], "truncated: the header promises more"),
        (dicom(NumberOfFrames=999_999_999), "truncated: the header promises more"),
        (dicom(SamplesPerPixel=1, BitsStored=200), "200 bits"),
    ):
        with pytest.raises(Unreadable, match="^" + expected_reason.replace("(", r"\(").replace(")", r"\)")):
            read(data)
    with pytest.raises(Unreadable, match="too large: 16 x 20 pixels"):
        read(dicom(), max_pixels=319)


def test_a_missing_decoder_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(file for file in SHIPPED if file.stem == "MR_small_jpeg_ls_lossless")
    monkeypatch.setattr("pydicom.pixels.decoders.base.DecodeRunner", None, raising=False)
    monkeypatch.setattr("jigsawssl.readers.dicom.get_decoder", lambda syntax: type("", (), {"available_plugins": ()}))
    with pytest.raises(Unreadable, match=r"needs a decoder for JPEG-LS.*; pip install jigsawssl\[dicom\]"):
        read(file.read_bytes())


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_lossless_jpeg_is_what_was_encoded(syntax: UID, dtype: type) -> None:
    bits = 8 if dtype == np.uint8 else 12
    low = -(2 ** (bits - 1)) if dtype == np.int16 else 0
    stored = np.random.default_rng(0).integers(low, low + 2**bits, (16, 20)).astype(dtype)
    raw = (stored.astype(np.int64) % 2**bits).astype(np.uint8 if bits == 8 else np.uint16)
    frame = imagecodecs.jpeg8_encode(raw, lossless=True, bitspersample=bits)
    tags = {"RescaleSlope": 1, "RescaleIntercept": 5, "WindowCenter": 10, "WindowWidth": 2**bits}
    plain = dicom(stored, bits=bits, **tags)
    ds = pydicom.dcmread(io.BytesIO(plain))
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    packed = io.BytesIO()
    ds.save_as(packed, enforce_file_format=True)
    assert np.array_equal(shown(packed.getvalue()), shown(plain))


def test_no_decoder_that_aborts_is_asked() -> None:
    from jigsawssl.readers.dicom import _DECODERS

    assert "gdcm" not in _DECODERS.values()
    for syntax, plugin in _DECODERS.items():
        assert plugin in get_decoder(syntax).available_plugins, "the extra installs a decoder for each"


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(file for file in SHIPPED if file.stem == "image_dfl")
    monkeypatch.setattr("jigsawssl.readers.dicom._DEFLATED_LIMIT", 1000)
    with pytest.raises(Unreadable, match="unpacks to more than"):
        read(file.read_bytes())


def test_the_content_hash_survives_a_new_header_and_no_reason_names_a_patient() -> None:
    one, other = dicom(), dicom(PatientID="other", PatientName="Roe^Richard")
    assert open_picture(one).content_hash == open_picture(other).content_hash
    assert open_picture(one).content_hash != open_picture(dicom(STORED[::-1].copy())).content_hash
    with pytest.raises(Unreadable) as caught:
        read(dicom(WindowCenter=1234.5, WindowWidth=8).replace(b"1234.5", b"Doe^Ja"))
    assert "secret" not in str(caught.value) and "Doe" not in str(caught.value)
