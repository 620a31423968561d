"""The gallery: pictures without names, and a table beside them that has the names."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jigsawssl.data import open_archive
from jigsawssl.data.loading import PixelDataset
from jigsawssl.explain import gallery
from jigsawssl.explain.gallery import save_gallery
from jigsawssl.explain.maps import gradcam, over_images
from jigsawssl.models import Classifier, create_encoder
from jigsawssl.types import ImageFormat

CLASSES = ("ill", "well")


@pytest.fixture
def images(tmp_path: Path) -> PixelDataset:
    rng = np.random.default_rng(0)
    for number in range(6):
        file = tmp_path / "images" / CLASSES[number % 2] / f"Jane Doe {number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(file)
    dataset = PixelDataset(open_archive(str(tmp_path / "images"), manifest="folders"), ImageFormat(64, channels=1))
    dataset.load(progress=False)
    return dataset


def classifier(backbone: str = "resnet18", **more: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(create_encoder(backbone, ImageFormat(64, channels=1), **more), 2)


PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.55, 0.45], [0.05, 0.95]])


def draw(tmp_path: Path, images: PixelDataset, model: Classifier) -> tuple[dict[str, Any], list[dict[str, str]]]:
    found = save_gallery(
        tmp_path / "seen.jpg",
        model=model,
        dataset=images,
        probabilities=PROBABILITIES,
        labels=images.labels,
        classes=CLASSES,
    )
    with (tmp_path / "seen.csv").open(newline="") as stream:
        return found, list(csv.DictReader(stream))


def test_the_table_names_what_the_picture_shows(
    tmp_path: Path, images: PixelDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(gallery, "save_explanations", lambda parts, path, note: drawn.append((parts, note)))
    found, rows = draw(tmp_path, images, classifier(backbone_options={"channels": [8, 8, 16, 16]}))
    assert found["file"] == "seen.jpg" and (found["tap"], found["grid"], found["coarse"]) == ("layer3", [8, 8], False)
    parts, note = drawn[0]
    captions = [caption for _, _, captions in parts.values() for caption in captions]
    assert "seen.csv" in note and len(rows) == len(captions) == 6
    order = [sample.path for sample in images.archive.samples]
    for row, caption in zip(rows, captions, strict=True):
        file = tmp_path / "images" / row["path"]
        assert row["content_hash"] == hashlib.sha256(file.read_bytes()).hexdigest()
        sure = PROBABILITIES[order.index(row["path"])]
        assert row["prediction"] == CLASSES[sure.argmax()] and float(row["probability"]) == sure.max()
        assert caption.split() == [
            row["label"],
            "→",
            row["prediction"],
            f"{float(row['probability']):.2f}",
            row["content_hash"][:8],
        ]
        assert (row["label"] == row["prediction"]) == (caption in parts["right"][2])
    assert "Doe" not in str(captions) + note + str(found)


def test_maps_are_those_of_the_predicted_class_whatever_the_network_alone_says(
    tmp_path: Path, images: PixelDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(gallery, "save_explanations", lambda parts, path, note: drawn.append(parts))
    model = classifier(backbone_options={"channels": [8, 8, 16, 16]})
    _, rows = draw(tmp_path, images, model)
    order = [sample.path for sample in images.archive.samples]
    pixels = images.__getitems__([order.index(row["path"]) for row in rows]).images
    classes = torch.tensor([CLASSES.index(row["prediction"]) for row in rows])
    expected = over_images(gradcam(model, model.encoder.preprocess(pixels), classes=classes, tap="layer3"), (64, 64))
    (kind,) = drawn[0]["right"][1]
    torch.testing.assert_close(torch.cat([part[1][kind] for part in drawn[0].values()]), expected)


def test_an_empty_map_is_explained(tmp_path: Path, images: PixelDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(gallery, "save_explanations", lambda parts, path, note: notes.append(note))
    model = classifier(backbone_options={"channels": [8, 8, 16, 16]})
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.zeros_(norm.weight)
        torch.nn.init.ones_(norm.bias)
    for weight in (1.0, -1.0):  # all features are positive, and speak for the class or against it
        torch.nn.init.constant_(model.head.weight, weight)  # type: ignore[arg-type]
        draw(tmp_path, images, model)
    assert ["an empty map" in note for note in notes] == [False, True]


def test_coarse_maps_are_called_cells(tmp_path: Path, images: PixelDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(gallery, "save_explanations", lambda parts, path, note: drawn.append(parts))
    found, _ = draw(tmp_path, images, classifier("vit_tiny_patch16_224"))
    assert (found["grid"], found["coarse"]) == ([4, 4], True)
    assert list(drawn[0]["right"][1]) == ["Grad-CAM\nblocks_11\n4×4 cells", "attention\n4×4 cells"]


def test_a_file_that_has_gone_is_shown_without_its_hash(tmp_path: Path, images: PixelDataset) -> None:
    (tmp_path / "images" / images.archive.samples[0].path).unlink()
    _, rows = draw(tmp_path, images, classifier(backbone_options={"channels": [8, 8, 16, 16]}))
    assert [row["path"] for row in rows if not row["content_hash"]] == [images.archive.samples[0].path]
    with Image.open(tmp_path / "seen.jpg") as picture:
        assert picture.format == "JPEG" and picture.width > 500
