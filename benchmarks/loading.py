"""Batches from the cache against the usual way: JPEGs decoded, resized and cropped by torchvision in worker processes.

    python benchmarks/loading.py [data=FOLDER] [size=224] [batch=256] [workers=2] [images=4096] [rounds=5]

Both read the same images in the same run, in turn, several rounds; medians and the ratio are printed. Without ``data``
it writes synthetic grey JPEGs of that size to a temporary folder. The cache has as many threads as the other has
workers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from jigsawssl.data import open_archive
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.data.loading import PixelDataset, channels_of, training_loader
from jigsawssl.runs import format_table
from jigsawssl.types import ImageFormat


def _write_images(folder: Path, count: int, size: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "all").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "all" / f"{number:06d}.jpg", quality=90)


def _images_per_second(loader: DataLoader, seconds: float = 3.0) -> float:
    """Over whole epochs, the first batch left out: that is when workers start."""
    count, batches, start = 0, 0, 0.0
    while True:
        for batch in loader:
            images = batch[0]
            if batches == 0:
                start = time.perf_counter()
            else:
                count += len(images)
                assert images.dtype == torch.uint8 and int(images[0, 0, 0, 0]) >= 0
            batches += 1
            if batches > 2 and time.perf_counter() - start > seconds:
                return count / (time.perf_counter() - start)


def measure(
    size: int, batch: int, workers: int, images: int, rounds: int, data: str | None = None
) -> dict[str, list[float]]:
    """Images/s of each round, from ``cache`` and from ``JPEG``."""
    torch.set_num_threads(max(1, workers))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(data or f"{scratch}/images")
        if data is None:
            _write_images(folder, images, size)
        archive = open_archive(str(folder))
        dataset = PixelDataset(archive, ImageFormat(size, channels_of(archive)), workers=workers)
        begin = time.perf_counter()
        dataset.use(
            build_cache(
                archive, Path(scratch) / "cache", options=dataset.cache_options(), workers=workers, progress=False
            )
        )
        built = time.perf_counter() - begin
        print(f"{len(dataset)} images of {dataset.cache_options().item[1]}, batches of {batch}, {workers} workers")
        print(f"writing the cache took {built:.1f} s, {len(dataset) / built:,.0f} images/s\n")
        ours = training_loader(dataset, batch_size=batch, drop_last=True, seed=0)
        usual = DataLoader(
            ImageFolder(str(folder), v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.PILToTensor()])),
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        speeds: dict[str, list[float]] = {"cache": [], "JPEG": []}
        for _ in range(rounds):
            speeds["JPEG"].append(_images_per_second(usual))
            speeds["cache"].append(_images_per_second(ours))
    return speeds


def main() -> None:
    """Measure and print a table."""
    options = {"size": "224", "batch": "256", "workers": "2", "images": "4096", "rounds": "5"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    numbers = {name: int(value) for name, value in options.items() if name != "data"}
    speeds = measure(**numbers, data=options.get("data"))
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f} to {max(values):,.0f}"]
        for name, values in speeds.items()
    ]
    print(format_table(["from", "images/s, median", "range"], rows))
    ratio = statistics.median(speeds["cache"]) / statistics.median(speeds["JPEG"])
    print(f"\nthe cache is {ratio:.0f} times as fast")


if __name__ == "__main__":
    main()
