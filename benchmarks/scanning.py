"""Peak memory of reading an archive into a cache, by the number of files, and the time to find that nothing changed.

    python benchmarks/scanning.py [counts=1000,20000] [size=64] [unchanged=100000]

Each count runs in a process of its own on synthetic PNG files; the peak is that of the whole process, with Python and
the libraries. Then an archive of ``unchanged`` files is listed and compared with a table that knows them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from jigsawssl.data import open_archive
from jigsawssl.data.cache import CacheOptions
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.process import prepare_process
from jigsawssl.runs import format_table
from jigsawssl.types import ImageFormat


def _write_images(folder: Path, count: int, size: int) -> None:
    """A hundred different images, linked under many names."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        if number < 100:
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(path)
        else:
            os.link(folder / "000" / f"{number % 100:06d}.png", path)


def _peak() -> float:
    """MiB; of this program alone, where getrusage counts what its parent had when it was started (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _build(folder: str, cache: str, size: int) -> None:
    prepare_process()
    before = _peak()
    begin = time.perf_counter()
    built = build_cache(
        open_archive(folder),
        Path(cache),
        options=CacheOptions(ImageFormat(size, channels=1)),
        workers=2,
        progress=False,
    )
    seconds = time.perf_counter() - begin
    # Looking at the mapped pixels would count them as memory, although the system can take that back at any time.
    print(len(built.readable()), before, _peak(), seconds)


def main() -> None:
    """Measure and print two tables."""
    if sys.argv[1:2] == ["build"]:
        _build(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    options = {"counts": "1000,20000", "size": "64", "unchanged": "100000"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    rows = []
    for text in [*options["counts"].split(","), options["unchanged"]]:
        with tempfile.TemporaryDirectory() as scratch:
            _write_images(Path(scratch) / "images", int(text), int(options["size"]))
            command = [sys.executable, __file__, "build", f"{scratch}/images", f"{scratch}/cache", options["size"]]
            for run in ("first", "again, nothing changed"):
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                _, before, peak, seconds = map(float, done.stdout.split())
                rows.append([int(text), run, f"{before:.0f}", f"{peak:.0f}", f"{seconds:.1f}"])
    print(format_table(["files", "run", "MiB before", "MiB at most", "seconds"], rows))


if __name__ == "__main__":
    main()
