"""How far images that are made smaller twice, by way of a cache, are from images that are made smaller once.

    python benchmarks/shrinking.py FOLDER [SIZE]

prints the root mean square difference in grey levels of 255, over every twentieth image of a folder: by
``shrink_square``, as fine-tuning uses a cache, and by a second bilinear step.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from jigsawssl.cli.building import CROP_MARGIN
from jigsawssl.data import open_archive
from jigsawssl.readers import fit_image, shrink_square
from jigsawssl.types import ImageFormat


def main(folder: str, size: int = 64) -> None:
    """Compare both with one step."""
    archive = open_archive(folder)
    squares: dict[str, list[float]] = {"shrink_square": [], "bilinear": []}
    for row in range(0, len(archive), 20):
        pixels = archive.read(row)
        once = fit_image(pixels, ImageFormat(size, channels=1)).astype(float)
        cached = fit_image(pixels, ImageFormat(math.ceil(size * CROP_MARGIN), channels=1))
        twice = {
            "shrink_square": shrink_square(cached, size),
            "bilinear": fit_image(cached.transpose(1, 2, 0), ImageFormat(size, channels=1)),
        }
        for name, found in twice.items():
            squares[name].append(float(np.mean((found - once) ** 2)))
    for name, found in squares.items():
        print(f"{name:<14}{np.sqrt(np.mean(found)):.2f} of 255, {len(found)} images")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
