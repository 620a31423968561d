"""What is special to some encoders, from the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

import jigsawssl
from jigsawssl.cli import main
from tests.cli.test_commands import SMOKE, images_folder
from tests.test_stain import tissue


def test_a_plain_transformer_gets_a_warning_that_says_what_to_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["pretrain", "data=demo", "split=val", f"config={SMOKE / 'pretrain.yaml'}", "trainer.max_epochs=1"]
    transformer = ["backbone=vit_tiny_patch16_224", "backbone_options={patch_size: 8, depth: 3}"]
    assert main([*common, f"out={tmp_path / 'jigsaw'}", *transformer]) == 0
    assert "which shuffled tiles contradict" in capsys.readouterr().out
    assert main([*common, f"out={tmp_path / 'plain'}", *transformer, "views.grids=[]"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_stained_tissue_is_normalised_wherever_the_encoder_goes(tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, image in enumerate(tissue(16, 40)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    common = ["pretrain", f"data={folder}", f"config={SMOKE / 'pretrain.yaml'}", "batch.size=8"]
    for stain in ("macenko", "reinhard"):
        assert main([*common, f"out={tmp_path / stain}", f"reading.stain={stain}"]) == 0
        encoder = jigsawssl.load_encoder(tmp_path / stain / "encoder.safetensors")
        format = encoder.spec.format
        assert format.stain == stain and len(format.stain_target) == (8 if stain == "macenko" else 6)
        images = tissue(2, format.size, seed=5)
        unstained = dataclasses.replace(format, stain="none")
        plain = jigsawssl.models.Encoder(dataclasses.replace(encoder.spec, format=unstained)).eval()
        expected = plain.preprocess(encoder.normalize_stain(images))
        assert torch.equal(encoder.preprocess(images), expected)
        assert not torch.equal(encoder.preprocess(images), plain.preprocess(images))
    grey = images_folder(tmp_path / "grey")
    assert main(["pretrain", f"data={grey}", f"out={tmp_path / 'no'}", "reading.stain=macenko", *common[2:]]) == 2
