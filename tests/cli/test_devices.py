"""Pretraining on two devices, which are two processes on a CPU."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jigsawssl import load_encoder
from jigsawssl.cli import main

IMAGES = 20
TINY = ["split=all", "views.size=32", "block.width=16", "block.projection=32", "trainer.accelerator=cpu"]
RESNET = ["backbone=resnet18", "backbone_options={channels: [8, 16, 16, 16]}"]
BRANCHING = ["backbone=hrnet_w18_small", "views.grids=[]"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(generator.integers(0, 255, (40, 40), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("network", [RESNET, BRANCHING], ids=["joint", "plain"])
def test_two_devices_train_one_encoder(images: Path, tmp_path: Path, network: list[str]) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "jigsawssl", "pretrain", f"data={images}", f"out={out}", *TINY, *network]
    command += ["trainer.devices=2", "trainer.max_epochs=2", "batch.size=64"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "sync_dist" not in done.stderr
    # Each line once, and not once for each process.
    assert done.stdout.count("`batch.size` (64) is more than the images of a device; batches are of 10\n") == 1
    assert done.stdout.count(f"{IMAGES} images of one channel, 32 px, ") == 1
    report = json.loads((out / "report.json").read_text())
    assert report["run"]["updates"] == 2
    assert report["environment"]["precision"] in ("float32", "bfloat16")
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [0, 1]
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    encoder = load_encoder(out / "encoder.safetensors")
    assert torch.isfinite(encoder(torch.rand(2, 1, 32, 32))).all()


def test_devices_without_two_images_each_are_refused_before_anything_is_written(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["pretrain", f"data={images}", f"out={out}", *TINY, *RESNET, "trainer.devices=11"]) == 2
    message = "`trainer.devices` (11) must leave 2 images or more to each; there are 20; use fewer devices"
    assert capsys.readouterr().err == f"jigsawssl: {message}\n"
    assert not out.exists()
