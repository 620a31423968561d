"""Pretraining has to teach the encoder something: the demo archive's classes differ in texture, which pixels hide."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jigsawssl.cli import main


@pytest.mark.slow
def test_pretraining_beats_fresh_weights_in_linear_probing(tmp_path: Path) -> None:
    arguments = [
        "backbone_options={channels: [16, 32, 64, 128]}",
        "stem_stride=4",
        "views.size=64",
        "views.grids=[8, 4, 2]",
        "views.share=0.5",
        "block.width=64",
        "block.projection=128",
        "batch.size=64",
        "trainer.max_epochs=12",
    ]
    assert main(["pretrain", "data=demo", f"out={tmp_path / 'p'}", *arguments]) == 0
    file = tmp_path / "p" / "encoder.safetensors"
    scores: dict[str, list[float]] = {"trained": [], "fresh": []}
    for name, encoder in (("trained", str(file)), ("fresh", f"random:{file}")):
        for seed in range(3):
            out = tmp_path / f"{name}{seed}"
            run = ["finetune", "data=demo", f"encoder={encoder}", "mode=linear", "fraction=0.1", f"seed={seed}"]
            assert main([*run, f"out={out}"]) == 0
            scores[name].append(json.loads((out / "report.json").read_text())["test"]["auroc"])
    assert min(scores["trained"]) > max(scores["fresh"]), scores
    spread = max(np.ptp(values) for values in scores.values())
    assert np.mean(scores["trained"]) - np.mean(scores["fresh"]) > max(0.08, spread), scores
