"""DICOM: what pydicom's own processing functions give, in the order of the standard, and privacy."""

from __future__ import annotations

import io
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from jigsawssl.readers import NOTE_HIGH_BITS, NotAnImage, Unreadable, open_picture, read, robust_range, to_display
from jigsawssl.readers.dicom import WINDOWS
from jigsawssl.readers.elements import looks_like_dicom

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
        if isinstance(error, NotAnImage):
            assert "PixelData" not in ds or ds.Modality == "SEG"
            return
        broken = {"MR_truncated": "truncated: ", "JPEG2000-embedded-sequence-delimiter": "corrupt or truncated "}
        if file.stem in broken:
            assert str(error).startswith(broken[file.stem])
        else:
            assert str(error) == "no pixel data" or str(error).startswith("lacks")
            assert "PixelData" not in ds or str(error).startswith("lacks")
        return
    ds = pydicom.dcmread(file, force=True)
    if file.stem == "badVR":  # whose number of frames is none, which pydicom does not forgive
        assert "NumberOfFrames is no number" in list(picture.notes)
        return
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
        (dicom(BitsAllocated=12), "12 bits allocated"),
        (dicom(SamplesPerPixel=4), "4 samples a pixel"),
    ):
        with pytest.raises(Unreadable, match="^" + expected_reason.replace("(", r"\(").replace(")", r"\)")):
            read(data)
    with pytest.raises(Unreadable, match="too large: 16 x 20 pixels"):
        read(dicom(), max_pixels=319)


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


def test_a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = next(file for file in SHIPPED if file.stem == "image_dfl")
    monkeypatch.setattr("jigsawssl.readers.dicom._DEFLATED_LIMIT", 1000)
    with pytest.raises(Unreadable, match="unpacks to more than"):
        read(file.read_bytes())


def test_the_content_hash_survives_a_new_header_and_no_reason_names_a_patient() -> None:
    one, other = dicom(), dicom(PatientID="other", PatientName="Roe^Richard")
    assert open_picture(one).content_hash == open_picture(other).content_hash
    assert open_picture(one).content_hash != open_picture(dicom(STORED[::-1].copy())).content_hash
    noted = remarks(dicom(WindowCenter=1234.5, WindowWidth=8).replace(b"1234.5", b"Doe^Ja"))
    assert noted == ["WindowCenter is no number"]
    with pytest.raises(Unreadable) as caught:
        read(dicom(Rows=None))
    assert "secret" not in str(caught.value) and "Doe" not in str(caught.value)


def compressed(frame: bytes, syntax: UID, like: bytes) -> bytes:
    """A file with this stream as its only frame."""
    ds = pydicom.dcmread(io.BytesIO(like))
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = syntax
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def remarks(data: bytes) -> list[str]:
    picture = open_picture(data)
    picture.frame(0)
    return list(picture.notes)


STREAMS = {
    "native": None,
    "JPEG 2000": (JPEG2000Lossless, lambda values, bits: imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k")),
    "JPEG-LS": (JPEGLSLossless, lambda values, bits: imagecodecs.jpegls_encode(values)),
    "JPEG": (JPEGLosslessSV1, lambda values, bits: imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=bits)),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (12, 15), (10, 9), (16, 15), (10, 13)])
@pytest.mark.parametrize("signed", [False, True])
def test_samples_are_the_stored_bits_and_no_others(stream: str, bits: int, high: int, signed: bool) -> None:
    rng = np.random.default_rng(bits)
    low = -(2 ** (bits - 1)) if signed else 0
    meant = rng.integers(low, low + 2**bits, (24, 20))
    window = {"WindowCenter": float(low + 2 ** (bits - 1)), "WindowWidth": float(2**bits)}
    wanted = shown(dicom(meant.astype("i2" if signed else "u2"), 16, **window))
    below = high + 1 - bits
    places = [place for place in range(16) if not below <= place <= high]
    raw = ((meant % 2**bits) << below).astype(np.uint16)
    beside = raw.copy()
    for place in places:
        beside |= (rng.integers(0, 2, raw.shape) << place).astype(np.uint16)

    for values, noted in ((raw, False), (beside, bool(places))):
        tags = {"BitsStored": bits, "HighBit": high, "PixelRepresentation": int(signed)}
        data = dicom(values, 16, **window, **tags)
        if STREAMS[stream] is not None:
            syntax, encode = STREAMS[stream]
            data = compressed(encode(values, 16), syntax, data)
        assert np.array_equal(shown(data), wanted)
        if high == bits - 1:
            assert (NOTE_HIGH_BITS in remarks(data)) == noted


def test_negative_values_may_extend_their_sign_into_the_unused_bits() -> None:
    meant = np.random.default_rng(0).integers(-2048, 2048, (24, 20)).astype(np.int16)
    window = {"WindowCenter": 0, "WindowWidth": 4096}
    cut = (meant.view(np.uint16) & 4095).view(np.int16)
    for stored in (meant, cut):
        data = dicom(stored, 12, **window)
        assert np.array_equal(shown(data), shown(dicom(meant, 16, **window))) and not remarks(data)


def test_padding_beyond_the_stored_bits_is_padding_and_no_remark() -> None:
    padded = STORED.copy()
    padded[:, :3] = 63536
    pixels = shown(dicom(padded, 12, PixelPaddingValue=63536, WindowCenter=2048, WindowWidth=4096))
    inside = shown(dicom(STORED, 12, WindowCenter=2048, WindowWidth=4096))
    assert not pixels[:, :3].any() and np.array_equal(pixels[:, 3:], inside[:, 3:])
    assert not remarks(dicom(padded, 12, PixelPaddingValue=63536, WindowCenter=2048, WindowWidth=4096))


def test_a_high_bit_that_the_pixels_contradict() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    wrong = dicom(STORED, 12, HighBit=15, **window)
    assert np.array_equal(shown(wrong), shown(dicom(STORED, 12, **window)))
    assert remarks(wrong) == ["bits that lie lower than HighBit says"]


def smooth() -> np.ndarray:
    """Colours that survive lossy compression, all three unlike."""
    across = np.linspace(0, 255, 64)
    return np.stack(
        [np.tile(across, (64, 1)), np.tile(across[:, None], (1, 64)), np.full((64, 64), 90.0)], axis=-1
    ).astype(np.uint8)


def jpeg(
    colours: np.ndarray, *, space: str, subsampling: str = "444", markers: bool = True, names: bytes = b""
) -> bytes:
    """A baseline stream of RGB or YCbCr components, with the markers of its encoder or without."""
    data = bytearray(
        imagecodecs.jpeg8_encode(colours, 98, colorspace="RGB", outcolorspace=space, subsampling=subsampling)
    )
    if not markers:
        for marker in (b"\xff\xe0", b"\xff\xee"):
            at = data.find(marker)
            if at >= 0:
                del data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    if names:
        frame, scan = data.find(b"\xff\xc0"), data.find(b"\xff\xda")
        for number, name in enumerate(names):
            data[frame + 10 + 3 * number], data[scan + 5 + 2 * number] = name, name
    return bytes(data)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1])
@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422", "YBR_FULL"])
def test_the_stream_says_which_colours_a_jpeg_has(label: str, syntax: UID) -> None:
    colours = smooth()
    like = dicom(colours, 8, SamplesPerPixel=3, PhotometricInterpretation=label, PlanarConfiguration=0)
    ways = {
        "JFIF": jpeg(colours, space="YCBCR"),
        "Adobe RGB": jpeg(colours, space="RGB"),
        "4:2:0 without a marker": jpeg(colours, space="YCBCR", subsampling="420", markers=False),
        "names R, G, B": jpeg(colours, space="RGB", markers=False, names=b"RGB"),
        "the label": jpeg(colours, space="YCBCR" if label.startswith("YBR") else "RGB", markers=False, names=b"\1\2\3"),
    }
    for way, stream in ways.items():
        data = compressed(stream, syntax, like)
        assert np.abs(shown(data).astype(int) - colours).max() <= 12, way
        contradicts = way != "the label" and ("RGB" in way or "R, G" in way) == label.startswith("YBR")
        assert any("that is labelled" in note for note in remarks(data)) == contradicts
        assert any("another transfer syntax" in note for note in remarks(data)) == (syntax != JPEGBaseline8Bit)


def test_other_streams_of_colours() -> None:
    colours = smooth()
    ycbcr = convert_color_space(colours, "RGB", "YBR_FULL")
    for label, transformed, values in (("YBR_RCT", True, colours), ("RGB", True, colours), ("RGB", False, colours)):
        like = dicom(colours, 8, SamplesPerPixel=3, PhotometricInterpretation=label, PlanarConfiguration=0)
        stream = imagecodecs.jpeg2k_encode(values, level=0, codecformat="j2k", mct=transformed)
        assert np.array_equal(shown(compressed(stream, JPEG2000Lossless, like)), colours)
    like = dicom(colours, 8, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0)
    for stream, syntax in (
        (imagecodecs.jpeg2k_encode(ycbcr, level=0, codecformat="j2k", mct=False), JPEG2000Lossless),
        (imagecodecs.jpegls_encode(ycbcr), JPEGLSLossless),
        (imagecodecs.jpeg8_encode(ycbcr, lossless=True, colorspace="RGB", outcolorspace="RGB"), JPEGLosslessSV1),
    ):
        assert np.abs(shown(compressed(stream, syntax, like)).astype(int) - colours).max() <= 3


def test_streams_under_another_syntax_are_read_by_what_they_are() -> None:
    plain = dicom(STORED, 12, WindowCenter=2048, WindowWidth=4096)
    every = [encode(STORED, 12) for _, encode in (way for way in STREAMS.values() if way is not None)]
    for stream, syntax in product(every, (JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, "1.2.3.4")):
        assert np.array_equal(shown(compressed(stream, UID(syntax), plain)), shown(plain))
    with pytest.raises(Unreadable, match=r"^a transfer syntax that is not read: MPEG2"):
        read(compressed(b"\0\0\1\xb3" * 8, MPEG2MPML, plain))
    with pytest.raises(Unreadable, match=r"^truncated: a frame without its end"):
        read(compressed(every[0][:-20], JPEG2000Lossless, plain))


def test_what_is_missing_and_has_one_usual_value_gets_it() -> None:
    grey = (STORED % 256).astype(np.uint8)
    colour = smooth()
    in_colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    for data, whole, remark in (
        (dicom(grey, 8, BitsStored=None, HighBit=None), dicom(grey, 8), "lacks BitsStored; 8 taken"),
        (dicom(STORED, 12, BitsStored=None), dicom(STORED, 12), "lacks BitsStored; 12 taken"),
        (dicom(grey, 8, PixelRepresentation=None), dicom(grey, 8), "lacks PixelRepresentation; 0 taken"),
        (dicom(grey, 8, SamplesPerPixel=None), dicom(grey, 8), "lacks SamplesPerPixel; 1 taken"),
        (dicom(grey, 8, PhotometricInterpretation=None), dicom(grey, 8), "lacks PhotometricInterpretation; "),
        (dicom(STORED, 12, BitsStored=200), dicom(STORED, 16), "BitsStored 200 of 16 allocated; 16 taken"),
        (
            dicom(colour, 8, **in_colour),
            dicom(colour, 8, PlanarConfiguration=0, **in_colour),
            "lacks PlanarConfiguration; 0 taken",
        ),
        (
            dicom(STORED, 12, RescaleSlope=0, WindowCenter=9, WindowWidth=90),
            dicom(STORED, 12, WindowCenter=9, WindowWidth=90),
            "RescaleSlope 0; 1 taken",
        ),
    ):
        assert np.array_equal(shown(data), shown(whole)), remark
        assert any(note.startswith(remark) for note in remarks(data))
        assert not any(note.startswith(remark) for note in remarks(whole))


@pytest.mark.parametrize("name", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelSpacing"])
@pytest.mark.parametrize(("written", "meant"), [("40,5", "40.5"), ("1e2 ", "100"), ("40.x", None), ("nan", None)])
def test_numbers_as_people_write_them(name: str, written: str, meant: str | None) -> None:
    tags = {"WindowCenter": "1000.0", "WindowWidth": "3000.0", "RescaleSlope": "1.5", "RescaleIntercept": "9.25"}
    tags["PixelSpacing"] = ["1.0", "0.5"]
    whole = dicom(
        **{key: value for key, value in tags.items() if key != name or meant is not None}
        | ({name: meant} if meant else {})
    )
    ds = pydicom.dcmread(io.BytesIO(dicom(**tags)))
    ds[name] = DataElement(name, "DS", "0")
    ds[name] = RawDataElement(ds[name].tag, "DS", len(written), written.encode(), 0, False, True)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    data = stream.getvalue()
    assert np.array_equal(shown(data), shown(whole))
    odd = name != "PixelSpacing" and written != "1e2 "
    assert any(note.startswith(name) for note in remarks(data)) == odd


def test_one_bit_a_pixel_in_runs() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (21, 19), dtype=np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little")
    plain = dicom(bits, 1, BitsAllocated=1, PixelData=packed.tobytes() + b"\0" * (len(packed) % 2))
    assert np.array_equal(shown(plain) // 255, bits)
    runs = bytes([1, 0, 0, 0, 64, 0, 0, 0]).ljust(64, b"\0")
    for start in range(0, len(packed), 128):
        part = packed[start : start + 128].tobytes()
        runs += bytes([len(part) - 1]) + part
    assert np.array_equal(shown(compressed(runs, RLELossless, plain)), shown(plain))


def test_deflated_files_with_and_without_a_group_length() -> None:
    plain = dicom(WindowCenter=2000, WindowWidth=4000)
    ds = pydicom.dcmread(io.BytesIO(plain))
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    data = stream.getvalue()
    without = data[:132] + data[144:]  # the element of the group length takes twelve bytes
    start = 144 + int.from_bytes(data[140:144], "little")
    wrapped = data[:start] + zlib.compress(zlib.decompress(data[start:], -15))
    for one in (data, without, wrapped):
        assert np.array_equal(shown(one), shown(plain))
    with pytest.raises(Unreadable, match="truncated"):
        read(data[: start + 100])


def test_objects_without_pixels_and_segmentations_are_no_images() -> None:
    for uid, reason in (
        ("1.2.840.10008.5.1.4.1.1.88.33", "a DICOM object without pixels: Comprehensive SR"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "a DICOM object without pixels: Encapsulated PDF"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "a DICOM object without pixels: Grayscale Softcopy Presentation State"),
    ):
        with pytest.raises(NotAnImage, match=reason):
            read(dicom(PixelData=None, SOPClassUID=uid))
    with pytest.raises(NotAnImage, match="a DICOM segmentation"):
        read(dicom(SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"))
    with pytest.raises(Unreadable, match=r"^no pixel data") as caught:
        read(dicom(PixelData=None, SOPClassUID=CTImageStorage))
    assert not isinstance(caught.value, NotAnImage)


def test_headers_are_known_without_a_preamble() -> None:
    ds = pydicom.dcmread(io.BytesIO(dicom(WindowCenter=2000, WindowWidth=4000)))
    list(ds.iterall())
    del ds.file_meta
    ds.preamble = None
    for implicit, little in ((True, True), (False, True), (False, False)):
        stream = io.BytesIO()
        if not little:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        pydicom.dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little)
        assert looks_like_dicom(stream.getvalue()[:300])
        assert np.array_equal(shown(stream.getvalue()), shown(dicom(WindowCenter=2000, WindowWidth=4000)))
    rng = np.random.default_rng(0)
    assert not any(looks_like_dicom(b"\x08\0" + rng.bytes(298)) for _ in range(2000))
    assert not any(looks_like_dicom(start + bytes(290)) for start in (b"", b"\x08\0", b"\2\0", b"BM", b"\x89PNG"))
