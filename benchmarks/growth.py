"""How cost grows: images/s and memory over batch, image size, archive size and processes, as a table and a figure.

    python benchmarks/growth.py out=FOLDER [batches=16,64,256,1024] [sizes=28,64,128,224,512]
                                [archives=1000,10000,100000,1000000] [threads=2] [steps=5]

Every point runs in a process of its own, so that its peak of memory is its own (Linux). A step is one joint update of
a ResNet-18 of half width on grey images, with the default stem for their size. Archives are simulated: names, one pixel
each, no files.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from jigsawssl.cli.building import build_module, fresh_encoder, image_format
from jigsawssl.config.loading import load_config
from jigsawssl.config.schemas import PretrainConfig
from jigsawssl.data.archive import Archive
from jigsawssl.data.cache import CacheOptions
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.functional import to_channels_last
from jigsawssl.process import prepare_process
from jigsawssl.readers import ImageInfo, Notes, Picture
from jigsawssl.runs import format_table
from jigsawssl.training.optim import autocast_precision, create_optimizer
from jigsawssl.types import Batch, ImageFormat, Sample

SMALL = ["backbone_options={channels: [32, 64, 128, 256]}", "views.grids=[4, 2, 1]"]


def peak() -> float:
    """MiB of memory of this process at most."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def step(batch: int, size: int, steps: int) -> dict[str, float]:
    """Images/s of a step, and the memory that it takes."""
    config = load_config(PretrainConfig, ["data=-", "out=-", *SMALL, f"views.size={size}"])
    module = build_module(config, fresh_encoder(config, image_format(config, channels=1))).train()
    to_channels_last(module)
    optimizer = create_optimizer("adamw", {"encoder": (module.encoder, 1e-3), "block": (module.block, 1e-3)})
    bfloat16 = autocast_precision("auto", torch.device("cpu")) == "bf16-mixed"
    images = torch.randint(256, (batch, 1, size * 5 // 4, size * 5 // 4), dtype=torch.uint8)
    unlabeled = Batch(images, torch.full((batch,), -1), torch.arange(batch))

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    before, seconds = peak(), []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            module.step(unlabeled, update)
        seconds.append(time.perf_counter() - begin)
    return {"images/s": batch / statistics.median(seconds[1:]), "MiB": peak() - before}


class _Simulated(Archive):
    """An archive of names alone."""

    def stamp(self, row: int) -> tuple[int, int]:
        return 1000 + row % 100, 1_700_000_000_000_000_000 + row

    def open(self, row: int, *rest: Any, **options: Any) -> Picture:
        pixel = np.full((1, 1, 1), row % 256, np.uint8)
        info = ImageInfo("PNG", height=1, width=1, channels=1, bits=8, mode="L")
        return Picture(info, lambda number: pixel, f"{row:064x}", Notes())


def archive(count: int) -> dict[str, float]:
    """Seconds of the first table and of finding it unchanged, and the memory of each."""
    samples = tuple(Sample(f"{row // 1000:04d}/image-{row:07d}.png") for row in range(count))
    simulated = _Simulated("simulated", samples, (), Path("/nowhere"))
    before = peak()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first", "again"):
            begin = time.perf_counter()
            build_cache(
                simulated, Path(folder), options=CacheOptions(ImageFormat(1, channels=1)), workers=2, progress=False
            )
            found[f"{name}, s"] = time.perf_counter() - begin
    return {**found, "MiB": peak() - before}


def processes(count: int) -> dict[str, float]:
    """Images/s of `pretrain` on the demo with so many processes of one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["pretrain", "data=demo", f"out={folder}/run", *SMALL, "views.size=64", "batch.size=64"]
        arguments += ["trainer.max_epochs=3", "trainer.accelerator=cpu", f"trainer.devices={count}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "jigsawssl", *arguments]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        lines = (Path(folder) / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("images/s")
    return {"images/s": float(lines[-1].split(",")[column])}


def point(kind: str, *arguments: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "point", kind, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(kind, *arguments, done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def draw(found: dict[str, dict[int, dict[str, float]]], file: Path) -> None:
    """One panel for what grows; memory on the right."""
    figure, panels = plt.subplots(1, 4, figsize=(16, 3.6))
    names = {"batch": "images in a batch (64 px)", "size": "side in pixels (batch of 32)"}
    names |= {"archive": "files in the archive", "processes": "processes of one thread"}
    for panel, (kind, points) in zip(panels, found.items(), strict=True):
        at = list(points)
        speed = "again, s" if kind == "archive" else "images/s"
        panel.plot(at, [points[x][speed] for x in at], "o-", color="C0")
        panel.set_xlabel(names[kind])
        panel.set_ylabel("seconds to find it unchanged" if kind == "archive" else speed, color="C0")
        panel.set_ylim(bottom=0)
        if kind != "processes":
            panel.set_xscale("log", base=10 if kind == "archive" else 2)
            memory = panel.twinx()
            memory.plot(at, [points[x]["MiB"] for x in at], "s--", color="C1")
            memory.set_ylabel("MiB", color="C1")
            memory.set_ylim(bottom=0)
        if kind != "archive":
            panel.set_xticks(at, [str(x) for x in at])
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure, print and draw."""
    if sys.argv[1:2] == ["point"]:
        prepare_process()
        kind, *numbers = sys.argv[2:]
        measure = {"step": step, "archive": archive, "processes": processes}[kind]
        print(json.dumps(measure(*map(int, numbers))))
        return
    options = {"batches": "16,64,256,1024", "sizes": "28,64,128,224,512", "threads": "2", "steps": "5"}
    options |= {"archives": "1000,10000,100000,1000000"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    os.environ["OMP_NUM_THREADS"] = options["threads"]
    steps = int(options["steps"])
    found: dict[str, dict[int, dict[str, float]]] = {
        "batch": {n: point("step", n, 64, steps) for n in map(int, options["batches"].split(","))},
        "size": {n: point("step", 32, n, steps) for n in map(int, options["sizes"].split(","))},
        "archive": {n: point("archive", n) for n in map(int, options["archives"].split(","))},
        "processes": {n: point("processes", n) for n in (1, 2)},
    }
    for kind, points in found.items():
        columns = list(next(iter(points.values())))
        rows = [[n, *(f"{values[column]:.1f}" for column in columns)] for n, values in points.items()]
        print("\n" + format_table([kind, *columns], rows), flush=True)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    draw(found, out / "growth.png")


if __name__ == "__main__":
    main()
