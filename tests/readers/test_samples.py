"""What a sample means is what the file says: signs, further channels, opacity, depth; and what does not matter."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jigsawssl.readers import NOTE_NARROW, Unreadable, open_picture, sniff
from tests.readers.test_files import encoded, reason, tiff

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (10, 14), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (10, 14, 3), dtype=np.uint8)
GREY[0, :2] = 0, 255
COLOUR[0, 0], COLOUR[0, 1] = 0, 255


def seen(data: bytes) -> tuple[np.ndarray, list[str]]:
    """Shares of the range, and remarks."""
    picture = open_picture(data)
    pixels = picture.frame(0)
    return pixels.squeeze() / np.iinfo(pixels.dtype).max, list(picture.notes)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_values_of_every_sign_and_depth(dtype: str, photometric: str) -> None:
    values = (GREY.astype(np.int64) - 128 * (np.dtype(dtype).kind != "u")).astype(dtype)
    pixels, _ = seen(tiff(values, photometric=photometric))
    wanted = GREY / 255 if dtype == "int8" else stretched(values)
    assert np.abs(pixels - (wanted if photometric == "minisblack" else 1 - wanted)).max() < 1e-4


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fewer_than_eight_bits(bits: int) -> None:
    values = GREY >> (8 - bits)
    rows = [np.packbits(((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).ravel()).tobytes() for row in values]
    tags = [
        (256, 14),
        (257, 10),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 10),
        (279, len(rows[0]) * 10),
    ]
    data = b"II*\0" + struct.pack("<I", 8 + len(rows[0]) * 10) + b"".join(rows) + struct.pack("<H", len(tags))
    data += b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags) + bytes(4)
    pixels, _ = seen(data)
    assert np.abs(pixels - values / (2**bits - 1)).max() < 0.003


EXTRAS = [
    ("unspecified",),
    ("unassalpha",),
    ("assocalpha",),
    ("unspecified", "unassalpha"),
    ("unspecified", "unspecified"),
]


@pytest.mark.parametrize("extras", EXTRAS, ids="-".join)
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_further_samples_are_opacity_only_where_the_file_says_so(
    extras: tuple[str, ...], colours: int, dtype: str, planar: str
) -> None:
    top = np.iinfo(dtype).max if dtype.startswith("u") else 1.0
    base = GREY[..., None] if colours == 1 else COLOUR
    further = RNG.integers(0, 256, (10, 14, len(extras)))
    every = np.concatenate([base, further], axis=2) / 255
    values = np.rint(every * top).astype(dtype) if dtype.startswith("u") else every.astype(dtype)
    data = tiff(
        values if planar == "contig" else np.moveaxis(values, -1, 0),
        photometric="minisblack" if colours == 1 else "rgb",
        planarconfig=planar,
        extrasamples=list(extras),
    )
    if colours == 1 and extras.count("unspecified") > 1:
        assert reason(data) == "3 channels, of which no one says what they are"
        return
    pixels, notes = seen(data)
    alpha = next((every[..., colours + n] for n, kind in enumerate(extras) if kind != "unspecified"), None)
    shown = values[..., :colours].astype(np.float64)
    wanted = shown / 255 if dtype == "uint8" else stretched(shown if alpha is None else shown[alpha > 0])
    if dtype != "uint8" and alpha is not None:
        low, high = np.percentile(shown[alpha > 0], [0.5, 99.5])
        wanted = np.clip((shown - low) / (high - low), 0, 1)
    if "unassalpha" in extras:
        wanted = wanted * alpha[..., None]
    assert np.abs(pixels - wanted.squeeze()).max() < 0.003
    assert any("left out" in note for note in notes) == ("unspecified" in extras)


@pytest.mark.parametrize(
    "compression", ["jpeg2000", "lerc", "webp", "jpegxl", "zstd", "lzma", "packbits", "lzw", "png"]
)
@pytest.mark.parametrize("tiled", [False, True])
def test_compressions_of_eight_bits(compression: str, tiled: bool) -> None:
    values = COLOUR if compression in ("webp", "jpegxl", "png") else GREY
    values = np.tile(values, (4, 4, 1) if values.ndim == 3 else (4, 4))
    options: dict[str, Any] = {"compression": compression, "photometric": "rgb" if values.ndim == 3 else "minisblack"}
    options |= {"tile": (16, 16)} if tiled else {}
    options |= {"compressionargs": {"lossless": True}} if compression in ("webp", "jpegxl") else {}
    options |= {"compressionargs": {"level": 0}} if compression == "jpeg2000" else {}
    pixels, _ = seen(tiff(values, **options))
    assert np.array_equal(pixels, values / 255)


def with_compression(data: bytes, compression: int) -> bytes:
    at = data.index(struct.pack("<HHI", 259, 3, 1))
    return data[: at + 8] + struct.pack("<H", compression) + data[at + 10 :]


def test_what_is_not_read_is_named() -> None:
    assert reason(with_compression(tiff(GREY), 34676)) == "TIFF compression SGILOG is not read"
    assert reason(tiff(np.ones((4, 4), np.complex64))).startswith("values of type complex64")
    assert reason(encoded(Image.new("LAB", (6, 6)), "TIFF")) == "TIFF photometric interpretation CIELAB is not read"
    pixels, _ = seen(encoded(Image.new("YCbCr", (6, 6), (90, 128, 128)), "TIFF"))
    assert np.abs(pixels - 90 / 255).max() < 0.01
    pixels, _ = seen(encoded(Image.new("CMYK", (6, 6), (255, 0, 0, 0)), "TIFF"))
    assert np.array_equal(pixels[0, 0], [0, 1, 1])
    for name, data in {
        "JPEG 2000": imagecodecs.jpeg2k_encode(GREY),
        "JPEG XL": imagecodecs.jpegxl_encode(GREY),
        "AVIF": b"\0\0\0\x1cftypavif" + bytes(100),
        "HEIF": b"\0\0\0\x18ftypheic" + bytes(100),
        "NIfTI": bytes(344) + b"n+1\0" + bytes(100),
        "NRRD": b"NRRD0004\n# a comment",
        "PNM": b"P5\n4 4\n255\n" + bytes(16),
        "NumPy array": b"\x93NUMPY\1\0" + bytes(100),
    }.items():
        kind = sniff(data[:512])
        assert kind is not None and (kind.name, kind.read, kind.packed) == (name, False, False)
        assert reason(data).startswith(f"{name} is not read")
    for text in (b"", b"BM is how this text begins, and it is no bitmap", b"Patient;Age\n", b"{\n", b"GIF", bytes(512)):
        assert sniff(text) is None


def test_palettes_of_either_depth() -> None:
    palette = RNG.integers(0, 256, (256, 3))
    palette[0], palette[1] = 0, 255
    image = Image.fromarray(GREY, "P")
    image.putpalette(palette.astype(np.uint8).ravel().tolist())
    data = encoded(image, "TIFF")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].tags["ColorMap"].valueoffset
    for entries in (palette * 257, palette << 8, palette):  # as is usual, and the low byte only
        written = data[:offset] + entries.T.astype("<u2").tobytes() + data[offset + 1536 :]
        assert np.array_equal(seen(written)[0] * 255, palette[GREY])


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    whole = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", whole)


BESIDE = {
    "a profile of 2 MB": (chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000) + RNG.bytes(2_000_000))), 0),
    "EXIF that is none": (chunk(b"eXIf", b"nonsense"), 1),
    "text": (chunk(b"tEXt", b"Comment\0plain"), 0),
    "a wrong checksum": (chunk(b"tEXt", b"Comment\0plain", 5), 1),
    "text that unpacks to 70 MB": (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70_000_000))), 1),
    "text that does not unpack": (chunk(b"iTXt", b"a\0\1\0\0\0broken"), 0),
    "a time that is none": (chunk(b"tIME", b"x"), 0),
    "a chunk that nobody knows": (chunk(b"prVt", b"private"), 0),
}


@pytest.mark.parametrize("way", BESIDE)
@pytest.mark.parametrize("values", [GREY, COLOUR, GREY.astype(np.uint16) * 257], ids=["grey", "colour", "deep"])
def test_what_lies_beside_the_pixels_of_a_png_does_not_cost_them(way: str, values: np.ndarray) -> None:
    data = imagecodecs.png_encode(values)
    extra, remarks = BESIDE[way]
    for at in (33, len(data) - 12):  # behind the header, and before the end
        pixels, notes = seen(data[:at] + extra + data[at:])
        assert np.abs(pixels - seen(data)[0]).max() == 0 and len(notes) == remarks, notes


def test_damage_to_the_pixels_of_a_png_is_damage() -> None:
    data = encoded(GREY, "PNG")
    assert reason(data[:33] + chunk(b"tRNS", b"\0\7", 5) + data[33:]) == "corrupt (checksum)"
    assert reason(data[:33] + chunk(b"ABCD", b"x") + data[33:]).startswith("a PNG with pixels of a kind")
    assert reason(data[:-12]) == "truncated"
    assert reason(b"\x89PNG\r\n\x1a\n" + data[33:]).startswith("corrupt")


def test_orientation_of_a_png_is_found_before_and_behind_the_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data, block = encoded(GREY, "PNG"), exif.tobytes()[6:]
    for at in (33, len(data) - 12):
        pixels, notes = seen(data[:at] + chunk(b"eXIf", block) + data[at:])
        assert np.array_equal(pixels * 255, np.rot90(GREY, -1)) and not notes


def test_what_lies_beside_the_pixels_of_a_jpeg_does_not_cost_them() -> None:
    data = encoded(GREY, "JPEG")
    for marker, body in (
        (0xE1, b"Exif\0\0" + b"nonsense"),
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        (0xE2, b"ICC_PROFILE\0\1\2" + bytes(40)),
        (0xE2, b"MPF\0" + b"nonsense"),
        (0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\xff" * 9),
        (0xFE, b"\xff\xfe a comment"),
    ):
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        pixels, _ = seen(data[:2] + segment + data[2:])
        assert np.array_equal(pixels, seen(data)[0]), (marker, body)


def test_few_used_values_are_noted() -> None:
    values = (GREY.astype(np.uint16) * 15) + 1000
    assert seen(tiff(values))[1] == [NOTE_NARROW] and seen(imagecodecs.png_encode(values))[1] == [NOTE_NARROW]
    assert not seen(tiff(values * 10))[1] and not seen(tiff(np.full((4, 4), 9, np.uint16)))[1]
    assert not seen(tiff(values.astype(np.float32)))[1]


def test_a_lost_tag_is_damage_only_where_the_pixels_need_it() -> None:
    whole = tiff(COLOUR, photometric="rgb", description="a description of more than four bytes")
    for code, costs in ((258, True), (270, False)):
        at = next(n for n in range(len(whole)) if whole[n : n + 2] == struct.pack("<H", code))
        broken = whole[: at + 8] + struct.pack("<I", 1 << 30) + whole[at + 12 :]
        if costs:
            with pytest.raises(Unreadable, match="corrupt or truncated"):
                seen(broken)
        else:
            assert np.array_equal(seen(broken)[0], COLOUR / 255)
