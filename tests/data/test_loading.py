"""Pixels are the same with and without the cache, and every batch knows its rows."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from jigsawssl.data.archive import open_archive
from jigsawssl.data.loading import PixelDataset, channel_statistics, channels_of, evaluation_loader, training_loader
from jigsawssl.types import Batch, ImageFormat, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten colour images in two classes, of several sizes; image i has red i."""
    rng = np.random.default_rng(0)
    for i in range(10):
        array = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        array[..., 0] = i
        path = tmp_path / "archive" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return tmp_path / "archive"


def dataset(folder: Path, **options: Any) -> PixelDataset:
    archive = open_archive(str(folder), manifest="folders")
    return PixelDataset(archive, ImageFormat(16, channels_of(archive), fit="squash"), **{"workers": 2, **options})


def breaks(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_changes_nothing_but_speed(folder: Path, channels: int) -> None:
    archive = open_archive(str(folder), manifest="folders")
    lazy, eager = (PixelDataset(archive, ImageFormat(16, channels)) for _ in range(2))
    eager.load(progress=False)
    assert eager.cached and not lazy.cached
    order = [7, 0, 3]
    one, two = lazy.__getitems__(order), eager.__getitems__(order)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one.images.dtype == torch.uint8 and one.images.shape == (3, channels, 16, 16)
    assert one.rows.tolist() == order and one.labels.tolist() == lazy.archive.labels[order].tolist()
    single = eager[7]
    assert torch.equal(single.images, one.images[0]) and single.rows.item() == 7


def test_images_keep_their_own_rows(folder: Path) -> None:
    pixels = dataset(folder)
    pixels.load(progress=False)
    for row, sample in enumerate(pixels.archive.samples):
        assert (pixels[row].images[0] == int(Path(sample.path).stem)).all()


def test_too_large_an_archive_is_not_loaded(folder: Path) -> None:
    needed = 10 * 3 * 16 * 16
    for budget, cached in ((needed, True), (needed - 1, False)):
        pixels = dataset(folder, memory_bytes=budget)
        pixels.load(progress=False)
        assert pixels.cached is cached


def test_unreadable_images_are_dropped_by_load(folder: Path) -> None:
    breaks(folder, "a/2.png", "b/9.png")
    pixels = dataset(folder)
    pixels.load(progress=False)
    assert pixels.unreadable == {"a/2.png": "truncated", "b/9.png": "truncated"}
    assert pixels.rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 8] and len(pixels) == 8
    batch = pixels.__getitems__(list(range(8)))
    assert batch.rows.tolist() == pixels.rows.tolist()
    names = [int(Path(pixels.archive.samples[row].path).stem) for row in batch.rows]
    assert batch.images[:, 0, 0, 0].tolist() == names


def test_unreadable_images_are_replaced_on_the_fly(folder: Path) -> None:
    breaks(folder, "a/2.png", "b/9.png")
    pixels = dataset(folder)
    batch = pixels.__getitems__([1, 9, 1])
    assert batch.rows.tolist() == [2, 0, 2], "the next readable row, the first after the last"
    assert batch.images[:, 0, 0, 0].tolist() == [4, 0, 4]
    assert pixels.unreadable == {"a/2.png": "truncated", "b/9.png": "truncated"}


def test_nothing_readable_is_an_error(folder: Path) -> None:
    breaks(folder, *(f"{'ab'[i % 2]}/{i}.png" for i in range(10)))
    with pytest.raises(UserError, match=r"all 10 are unreadable, the first is a/0\.png \(truncated\)"):
        dataset(folder).load(progress=False)
    with pytest.raises(UserError, match="all 10 are unreadable"):
        dataset(folder)[0]


def test_channels_are_detected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 248, (4, 40, 40, 1), dtype=np.uint8)
    noisy = grey + rng.integers(0, 9, (4, 40, 40, 3), dtype=np.uint8)
    coloured = noisy.copy()
    coloured[2, :10, :10, 0] ^= 255
    for name, images, expected in (("l", grey[..., 0], 1), ("rgb", noisy, 1), ("colour", coloured, 3)):
        np.savez(tmp_path / f"{name}.npz", images=images)
        assert channels_of(open_archive(str(tmp_path / f"{name}.npz"))) == expected
    assert PixelDataset(open_archive(str(tmp_path / "l.npz")), ImageFormat(8, channels=3))[0].images.shape == (3, 8, 8)


def test_resize_is_antialiased_and_near_the_full_decode(tmp_path: Path) -> None:
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    wave = (127 + 120 * np.sin(np.arange(512) / 40)[:, None] * np.ones(512)).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    Image.fromarray(wave).save(tmp_path / "wave.jpg", quality=95)
    pixels = PixelDataset(open_archive(str(tmp_path)), ImageFormat(32, channels=1))
    assert (pixels[0].images.int() - 127).abs().max() <= 2
    exact = np.asarray(Image.fromarray(wave).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(pixels[1].images[0].numpy().astype(int) - exact).max() <= 3


def test_statistics_agree_with_float64(folder: Path) -> None:
    pixels = dataset(folder)
    images = pixels.__getitems__(list(range(10))).images
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std[1:] == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist()[1:])
    assert channel_statistics(pixels) == (mean, std)
    assert channel_statistics(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))
    with pytest.raises(UserError, match=r"^`images`"):
        channel_statistics(torch.zeros(0, 1, 4, 4, dtype=torch.uint8))


def order(loader: DataLoader[Batch]) -> list[list[int]]:
    return [batch.rows.tolist() for batch in loader]


def test_training_order_follows_from_seed_and_epoch(folder: Path) -> None:
    pixels = dataset(folder)
    pixels.load(progress=False)
    loader = training_loader(pixels, batch_size=4, drop_last=False, seed=5)
    first = order(loader)
    assert first == order(training_loader(pixels, batch_size=4, drop_last=False, seed=5))
    assert first != order(training_loader(pixels, batch_size=4, drop_last=False, seed=6))
    assert [len(batch) for batch in first] == [4, 4, 2] and sorted(chain(*first)) == list(range(10))
    assert list(chain(*first)) != list(range(10))
    assert [len(batch) for batch in order(training_loader(pixels, batch_size=4, drop_last=True, seed=5))] == [4, 4]
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert order(loader) != first, "each epoch has its own order"


def test_evaluation_is_in_order(folder: Path) -> None:
    batches = list(evaluation_loader(dataset(folder), 4))
    assert isinstance(batches[0], Batch)
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(10))


def test_a_small_train_set_is_one_batch(folder: Path) -> None:
    pixels = dataset(folder)
    assert [len(batch) for batch in order(training_loader(pixels, batch_size=64, drop_last=True, seed=0))] == [10]
    one = PixelDataset(pixels.archive.select([0]), ImageFormat(16, channels=1))
    with pytest.raises(UserError, match="at least 2 training images; there are 1"):
        training_loader(one, batch_size=64, drop_last=True, seed=0)


def test_a_subset_shows_the_same_images(folder: Path) -> None:
    pixels = dataset(folder)
    lazy = pixels.subset(np.array([7, 2])).__getitems__([0, 1])
    pixels.load(progress=False)
    eager = pixels.subset(np.array([7, 2])).__getitems__([0, 1])
    whole = pixels.__getitems__([7, 2])
    for part in (lazy, eager):
        assert torch.equal(part.images, whole.images) and part.rows.tolist() == [7, 2]


def test_wrong_numbers_are_user_errors(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^`channels` \(2\)"):
        ImageFormat(16, channels=2)
    with pytest.raises(UserError, match=r"^`size` \(0\)"):
        ImageFormat(0)
