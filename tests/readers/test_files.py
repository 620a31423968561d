"""Readers: every format and bit depth, told by content, and nothing but a reason for what is broken."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from jigsawssl.readers import Unreadable, fit_image, open_picture, read, robust_range, to_display
from jigsawssl.readers.dicom import WINDOWS
from jigsawssl.types import WINDOW_CHOICES, ImageFormat

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
DEEP = (1000 + 10 * np.arange(48, dtype=np.uint16)).reshape(6, 8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def reason(data: bytes, frame: int = 0, **options: Any) -> str:
    with pytest.raises(Unreadable) as caught:
        read(data, frame, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pixels, info = read(encoded(COLOUR, kind, **lossless) if kind != "GIF" else encoded(GREY, kind))
    expected = COLOUR if kind != "GIF" else GREY[..., None]
    if kind == "GIF" and pixels.shape[2] == 3:
        expected = np.repeat(expected, 3, axis=2)
    assert np.array_equal(pixels, expected)
    assert (info.format, info.height, info.width, info.bits, info.frames) == (kind, 6, 8, 8, 1)
    if kind not in ("GIF", "WEBP"):
        assert np.array_equal(read(encoded(GREY, kind))[0][..., 0], GREY)


def test_the_name_does_not_decide_about_the_format() -> None:
    assert read(encoded(GREY, "PNG"), name="scan.jpg")[1].format == "PNG"
    assert reason(b"%PDF-1.4 and so on", name="scan.png") == "not an image of a known format"


def test_transparency_lets_black_through() -> None:
    opacity = np.zeros((6, 8), np.uint8)
    opacity[:, :4] = 255
    opacity[:, 4] = 128
    rgba = read(encoded(np.dstack([COLOUR, opacity]), "PNG"))[0]
    assert np.array_equal(rgba[:, :4], COLOUR[:, :4]) and not rgba[:, 5:].any()
    assert np.abs(rgba[:, 4].astype(int) - COLOUR[:, 4] * (128 / 255)).max() <= 1
    grey = read(encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(opacity)]), "PNG"))[0]
    assert grey.shape == (6, 8, 1) and np.array_equal(grey[:, :4, 0], GREY[:, :4]) and not grey[:, 5:].any()
    palette = Image.fromarray(np.repeat(COLOUR[:1], 6, axis=0)).quantize(8)
    seen = read(encoded(palette, "PNG", transparency=bytes([0, 255])))[0]
    assert not seen[np.asarray(palette) == 0].any() and seen[np.asarray(palette) > 1].any()


def test_other_colour_models_become_rgb() -> None:
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert np.abs(read(encoded(cmyk, "TIFF"))[0].astype(int) - COLOUR).max() <= 1
    assert read(encoded(cmyk, "JPEG"))[0].shape == (6, 8, 3)
    bits = read(encoded(Image.fromarray(GREY > 128), "PNG"))[0]
    assert np.array_equal(bits[..., 0], np.where(GREY > 128, 255, 0)) and bits.shape[2] == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_neither_cut_nor_divided_by_their_type(kind: str, channels: int) -> None:
    values = DEEP if channels == 1 else np.dstack([DEEP, DEEP + 3, DEEP + 6])
    data = (
        imagecodecs.png_encode(values)
        if kind == "PNG"
        else tiff(values, photometric="minisblack" if channels == 1 else "rgb")
    )
    pixels, info = read(data)
    assert pixels.dtype == np.uint16 and info.bits == 16 and pixels.shape[2] == channels
    assert len(np.unique(pixels)) > 40, "the levels stay apart; divided by 65535 they would be two"
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(pixels.squeeze() - expected).max() <= 1


def test_sixteen_bits_with_alpha() -> None:
    data = imagecodecs.png_encode(np.dstack([DEEP, DEEP, DEEP, np.where(DEEP > 1200, 65535, 0).astype(np.uint16)]))
    pixels = read(data)[0]
    assert not pixels[DEEP <= 1200].any() and (pixels[DEEP > 1220] > 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "uint32"])
def test_floats_and_wide_integers(dtype: str) -> None:
    values = np.linspace(-50 if dtype[0] != "u" else 0, 50, 400).reshape(20, 20).astype(dtype)
    pixels, info = read(tiff(values))
    assert pixels.dtype == np.uint16 and info.bits > 8
    order = values.ravel().argsort(kind="stable")
    assert (np.diff(pixels.ravel()[order].astype(int)) >= 0).all() and pixels.max() == 65535


def test_what_is_not_finite_is_dark() -> None:
    values = np.array([[-1.0, np.nan, np.inf], [0.0, 1.0, -np.inf]], dtype=np.float32)
    assert read(tiff(values))[0][..., 0].tolist() == [[0, 0, 65535], [32768, 65535, 0]]
    assert not read(tiff(np.full((4, 4), 5, dtype=np.uint16)))[0].any()


def test_white_is_zero_where_the_file_says_so() -> None:
    dark = read(tiff(DEEP, photometric="miniswhite"))[0]
    assert np.array_equal(dark, 65535 - read(tiff(DEEP))[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_are_applied(orientation: int) -> None:
    """Pillow's own transposition of 8 bits is the reference for our own of 16."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = read(encoded(GREY, "TIFF", exif=exif))[0]
    jpeg = read(encoded(GREY, "JPEG", exif=exif, quality=100))[0]
    shown = np.asarray(Image.fromarray(GREY).transpose(TURNS[orientation]) if orientation > 1 else GREY)
    assert np.array_equal(eight[..., 0], shown) and jpeg.shape == eight.shape
    deep = read(tiff(GREY.astype(np.uint16) * 7, extratags=[(274, "H", 1, orientation, True)]))[0]
    assert np.array_equal(deep[..., 0], to_display(shown.astype(np.uint16) * 7, robust_range(GREY * 7.0)))


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_percentiles_by_counting_are_those_of_numpy(dtype: type) -> None:
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    for count in (1, 2, 3, 7, 1000, 200_001):
        for step in (1, 97):
            values = (rng.integers(limits.min, limits.max + 1, count) // step).astype(dtype)
            # As float64, since numpy's own interpolation overflows in int16.
            low, high = np.percentile(values.astype(np.float64), (0.5, 99.5))
            wanted = (low, high) if high > low else (values.min(), values.max())
            assert np.allclose(robust_range(values), wanted, rtol=0, atol=1e-9)


def test_large_images_are_mapped_in_parts() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (1200, 1200, 3), dtype=np.uint16)
    shown = to_display(values, (100.0, 4000.0))
    assert np.array_equal(shown, np.floor(((values - 100.0) * (65535 / 3900)).clip(0, 65535) + 0.5))
    grey = fit_image(values, ImageFormat(1200, channels=1), sixteen_bit=True)[0]
    assert np.array_equal(grey, np.floor(values @ np.array([0.299, 0.587, 0.114]) + 0.5))


def test_pages_and_frames() -> None:
    stack = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]])
    data = tiff(stack, photometric="minisblack")
    assert open_picture(data).info.frames == 3
    assert np.array_equal(read(data, 1)[0], read(tiff(DEEP[::-1]))[0])
    assert reason(data, 3) == "has 3 frames, not 4"
    with_thumbnail = io.BytesIO()
    with tifffile.TiffWriter(with_thumbnail) as writer:
        writer.write(GREY)
        writer.write(GREY[::2, ::2], subfiletype=1)
    assert open_picture(with_thumbnail.getvalue()).info.frames == 1
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1])]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_picture(animated).info.frames == 2
    assert np.array_equal(read(animated, 1)[0][..., 0], GREY[::-1])


def test_draft_keeps_both_sides_large_enough() -> None:
    data = encoded(np.zeros((400, 600, 3), np.uint8), "JPEG")
    assert read(data)[0].shape[:2] == (400, 600)
    pixels, info = read(data, at_least=100)
    assert pixels.shape[:2] == (100, 150) and (info.height, info.width) == (400, 600)


def test_large_images_are_refused_before_they_are_decoded() -> None:
    assert reason(encoded(np.zeros((40, 50), np.uint8), "PNG"), max_pixels=1999) == "too large: 50 x 40 pixels"
    header = encoded(np.zeros((1, 1), np.uint8), "BMP")
    huge = header[:18] + (2**30).to_bytes(4, "little") + (2**30).to_bytes(4, "little") + header[26:]
    assert reason(huge).startswith("too large")
    deep = bytearray(imagecodecs.png_encode(DEEP))
    deep[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    assert reason(bytes(deep)).startswith("too large")


def test_nothing_and_packed_files() -> None:
    assert reason(b"") == "empty file"
    assert "packed files" in reason(b"PK\x03\x04 and more") and "packed files" in reason(b"\x1f\x8b\x08 and more")


def test_content_hashes_ignore_names_and_differ_by_content() -> None:
    one, two = encoded(GREY, "PNG"), encoded(GREY[::-1], "PNG")
    assert open_picture(one, name="a").content_hash == open_picture(one, name="b").content_hash
    assert open_picture(one).content_hash != open_picture(two).content_hash


def test_every_named_window_has_its_values() -> None:
    assert ("file", "percentiles", *WINDOWS) == WINDOW_CHOICES


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("fit", "dark", "shape"), [("pad", 24, (4, 8)), ("crop", 0, (8, 8)), ("squash", 0, (8, 8))])
def test_fits(fit: str, dark: int, shape: tuple[int, int], deep: bool) -> None:
    pixels = np.full((20, 40, 3), 200, np.uint8)
    square = fit_image(pixels, ImageFormat(8, channels=1, fit=fit), sixteen_bit=deep)
    assert square.shape == (1, 8, 8) and square.dtype == (np.uint16 if deep else np.uint8)
    if fit == "pad":
        assert not square[0, :2].any() and not square[0, 6:].any()
        square = square[:, 2:6]
    assert (square == (200 * 257 if deep else 200)).all() and square.shape[1:] == shape


def test_crops_take_the_middle() -> None:
    pixels = np.arange(9, dtype=np.uint8)[None, :, None].repeat(3, axis=0)
    assert fit_image(pixels, ImageFormat(3, channels=1, fit="crop"))[0].tolist() == [[3, 4, 5]] * 3


def test_resizing_sixteen_bits_agrees_with_eight() -> None:
    smooth = (127 + 100 * np.sin(np.arange(64) / 9)[:, None] * np.cos(np.arange(64) / 7)).astype(np.uint8)[..., None]
    eight = fit_image(smooth, ImageFormat(16, channels=1)).astype(int) * 257
    sixteen = fit_image(smooth.astype(np.uint16) * 257, ImageFormat(16, channels=1), sixteen_bit=True).astype(int)
    assert np.abs(eight - sixteen).max() <= 2 * 257
