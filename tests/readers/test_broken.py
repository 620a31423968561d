"""Broken and hostile files: a reason or the right pixels, and never anything else."""

from __future__ import annotations

import io
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jigsawssl.data.archive import open_archive
from jigsawssl.data.cache import CacheOptions
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.readers import Unreadable, open_picture
from jigsawssl.types import ImageFormat
from tests.readers.test_dicom import SHIPPED, STORED, dicom

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 31), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (24, 31, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 60000, (24, 31), dtype=np.uint16)


def pillow(image: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def tiff(values: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def originals() -> dict[str, bytes]:
    """One whole file of each kind."""
    files = {
        "grey.png": pillow(GREY, "PNG"),
        "colour.png": pillow(COLOUR, "PNG"),
        "deep.png": imagecodecs.png_encode(DEEP),
        "deep-colour.png": imagecodecs.png_encode(np.dstack([DEEP] * 3)),
        "grey.jpg": pillow(GREY, "JPEG"),
        "colour.jpg": pillow(COLOUR, "JPEG", progressive=True),
        "colour.bmp": pillow(COLOUR, "BMP"),
        "colour.webp": pillow(COLOUR, "WEBP"),
        "lossless.webp": pillow(COLOUR, "WEBP", lossless=True),
        "grey.gif": pillow(GREY, "GIF"),
        "grey.tif": tiff(GREY),
        "colour.tif": tiff(COLOUR, photometric="rgb", compression="zlib"),
        "lzw.tif": pillow(COLOUR, "TIFF", compression="tiff_lzw"),
        "deep.tif": tiff(DEEP, rowsperstrip=8),
        "packed-deep.tif": tiff(DEEP, compression="zlib", predictor=True, rowsperstrip=8),
        "tiled.tif": tiff(DEEP, tile=(16, 16), compression="deflate"),
        "float.tif": tiff(DEEP.astype(np.float32)),
        "pages.tif": tiff(np.stack([DEEP, DEEP + 1]), photometric="minisblack"),
        "big.tif": tiff(DEEP, bigtiff=True),
        "plain.dcm": dicom(),
        "windowed.dcm": dicom(WindowCenter=2000, WindowWidth=3000),
        "frames.dcm": dicom(np.stack([STORED, STORED])),
    }
    names = ("MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "JPGExtended")
    shipped = {file.stem: file for file in SHIPPED}
    return files | {f"{name}.dcm": shipped[name].read_bytes() for name in names}


ORIGINALS = originals()


def look(data: bytes, name: str) -> list[np.ndarray] | str:
    """All frames, or the reason; anything else that is raised fails the test."""
    try:
        picture = open_picture(data, name=name, max_pixels=1_000_000)
        frames = [picture.frame(number) for number in range(min(picture.info.frames, 4))]
    except Unreadable as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 160
        return str(error)
    assert all(frame.dtype in (np.uint8, np.uint16) and frame.ndim == 3 for frame in frames)
    return frames


def truncations(data: bytes, places: int) -> Iterator[bytes]:
    for length in np.unique(np.linspace(0, len(data) - 1, places).astype(int)).tolist():
        yield data[:length]


def flips(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        broken = bytearray(data)
        # Headers decide more than pixels do, so half of the flips go there.
        limit = min(len(data), 400) if rng.random() < 0.5 else len(data)
        for at in rng.integers(0, limit, rng.integers(1, 4)).tolist():
            broken[at] ^= 1 << int(rng.integers(8))
        yield bytes(broken)


def check_truncations(name: str, places: int) -> int:
    data = ORIGINALS[name]
    whole = look(data, name)
    assert isinstance(whole, list)
    cases = 0
    for part in truncations(data, places):
        found = look(part, name)
        if not isinstance(found, str):
            # What is missing at the end of a file must not have been pixels.
            assert all(np.array_equal(one, two) for one, two in zip(found, whole, strict=False)), (name, len(part))
        cases += 1
    return cases


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_truncated_file_has_the_right_pixels_or_a_reason(name: str) -> None:
    assert check_truncations(name, 24) >= 20


@pytest.mark.parametrize("name", ORIGINALS)
def test_flipped_bits_give_pixels_or_a_reason(name: str) -> None:
    for broken in flips(ORIGINALS[name], 20, seed=1):
        look(broken, name)


@pytest.mark.parametrize("name", [name for name in ORIGINALS if name.endswith(".png")])
def test_flipped_bits_in_a_png_are_always_seen(name: str) -> None:
    whole = look(ORIGINALS[name], name)
    for broken in flips(ORIGINALS[name], 60, seed=2):
        found = look(broken, name)
        assert isinstance(found, str) or (broken == ORIGINALS[name] and np.array_equal(found, whole))


@pytest.mark.slow
def test_five_thousand_broken_files() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases = 0
    for number, name in enumerate(ORIGINALS):
        cases += check_truncations(name, 100)
        for broken in flips(ORIGINALS[name], 120, seed=100 + number):
            look(broken, name)
            cases += 1
        for other in ("x.jpg", "x.dcm", "x.tif", "x"):
            assert isinstance(look(ORIGINALS[name], other), list)
            cases += 1
    unit = 2**20 if sys.platform == "darwin" else 2**10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit  # MiB
    assert cases >= 5000 and grown < 500, (cases, grown)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(ORIGINALS)), st.data())
def test_spliced_bytes(name: str, data: st.DataObject) -> None:
    whole = ORIGINALS[name]
    at = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=40))
    skipped = data.draw(st.integers(0, 60))
    look(whole[:at] + noise + whole[at + skipped :], name)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, database=None)
@given(st.sampled_from(sorted(ORIGINALS)), st.data())
def test_more_spliced_bytes(name: str, data: st.DataObject) -> None:
    whole = ORIGINALS[name]
    at = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=200))
    look(whole[:at] + noise + whole[at + data.draw(st.integers(0, 400)) :], name)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=400), st.sampled_from(["x.png", "x.dcm", "x.tif", "x"]))
def test_random_bytes(data: bytes, name: str) -> None:
    look(data, name)
    look(b"\0" * 128 + b"DICM" + data, name)


def test_an_archive_of_nothing_but_trouble(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(ORIGINALS["grey.png"])
    (root / "good.png").write_bytes(ORIGINALS["grey.png"])
    (root / "empty.png").touch()
    (root / "text.jpg").write_text("not a picture")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "around").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.png")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.png", bytes(50_000_000))
        file.writestr("../escape.png", ORIGINALS["grey.png"])
        file.writestr("/absolute.png", ORIGINALS["grey.png"])
        file.writestr("inner.zip", b"PK\x03\x04")
        file.writestr("fine.png", ORIGINALS["grey.png"])
    (root / "bomb.zip").write_bytes(bomb.getvalue())
    (root / "broken.zip").write_bytes(bomb.getvalue()[:300])
    (root / "broken.tar").write_bytes(b"x" * 2000)
    denied = root / "denied.png"
    denied.write_bytes(ORIGINALS["grey.png"])
    denied.chmod(0)
    archive = open_archive(str(root))
    cache = build_cache(
        archive, tmp_path / "cache", options=CacheOptions(ImageFormat(16, channels=1)), workers=2, progress=False
    )
    bad = {path: reason for path, _, reason in cache.unreadable()}
    if os.geteuid() == 0:  # for whom nothing is denied
        bad.setdefault("denied.png", "permission denied")
    assert bad == {
        "empty.png": "empty file",
        "text.jpg": "not an image of a known format",
        "outside.png": "a link that leads outside",
        "loop.png": "a link that leads nowhere",
        "pipe.png": "not a file",
        "denied.png": "permission denied",
        "bomb.zip/zeros.png": "not an image of a known format",
        "bomb.zip/../escape.png": "unsafe path inside a container",
        "bomb.zip//absolute.png": "unsafe path inside a container",
        "bomb.zip/inner.zip": "packed files inside of packed files are not read",
        "broken.zip": "broken container (BadZipFile)",
        "broken.tar": "broken container (ReadError)",
    }
    statuses = cache.table()["status"].to_pylist()
    good = {path for path, status in zip(cache.paths(), statuses, strict=True) if status == "ok"}
    assert good - {"denied.png"} == {"good.png", "bomb.zip/fine.png"}


def test_members_larger_than_memory_should_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jigsawssl.data.containers.MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("large.png", bytes(1001))
    archive = open_archive(str(tmp_path))
    with pytest.raises(Unreadable, match="larger than 1 GiB"):
        archive.read(0)


def test_a_file_that_vanishes_or_changes_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(ORIGINALS["grey.png"])
    (tmp_path / "secret").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.png").write_bytes(ORIGINALS["grey.png"])
    archive = open_archive(str(root))
    (root / "a.png").unlink()
    (root / "b.png").unlink()
    (root / "b.png").symlink_to(tmp_path / "a.png")
    for row, expected in ((0, "vanished"), (1, "a link that leads outside")):
        with pytest.raises(Unreadable, match=f"^{expected}$"):
            archive.read(row)
    assert archive.read(2).shape == (24, 31, 1)
