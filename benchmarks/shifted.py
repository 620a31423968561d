"""The test split of an archive as another camera would have taken it: an archive to test on and never to train on.

Warmer light, a steeper tone curve, a little out of focus, and stronger JPEG compression, the same for every image::

    python benchmarks/shifted.py data=HAM out=runs/shifted
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from jigsawssl.data import open_archive

GAINS = (1.12, 1.0, 0.86)
"""Of red, green and blue."""

GAMMA = 1.25
BLUR = 0.8
"""Standard deviation in pixels of an image of 150; larger images get more."""

QUALITY = 60


def shifted(image: Image.Image) -> Image.Image:
    """One image."""
    pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    changed = np.clip(pixels * GAINS, 0, 1) ** GAMMA
    result = Image.fromarray((changed * 255).round().astype(np.uint8))
    return result.filter(ImageFilter.GaussianBlur(BLUR * min(image.size) / 150))


def main(arguments: list[str]) -> None:
    """Write ``images/`` and ``manifest.csv``."""
    given = dict(argument.split("=", 1) for argument in arguments)
    data, out = Path(given["data"]), Path(given["out"])
    archive = open_archive(str(data), manifest=str(data / "manifest.csv"), split="test")
    (out / "images").mkdir(parents=True)
    with (out / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "split", "group"])
        for number, sample in enumerate(archive.samples):
            name = f"images/{number}.jpg"
            with Image.open(data / sample.path) as image:
                shifted(image).save(out / name, quality=QUALITY)
            writer.writerow([name, sample.label, "test", sample.group])


if __name__ == "__main__":
    main(sys.argv[1:])
