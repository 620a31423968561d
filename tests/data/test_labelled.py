"""Labelled archives: what words would leave out is refused or said, and classes mean what was said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, cohen_kappa_score, recall_score, roc_auc_score

from jigsawssl.cli import main
from jigsawssl.cli.supervised import check_unchanged
from jigsawssl.data.labelled import Domain, Source, open_domain, open_labelled, remarks_on, unlabelled_rows
from jigsawssl.types import UserError

GRADES = ("none", "mild", "moderate", "severe")


def archive(folder: Path, rows: Sequence[tuple[str, ...]], columns: str = "label,split") -> Path:
    """Images of noise, brighter by the length of their label, and a manifest."""
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir(parents=True)
    for number, row in enumerate(rows):
        pixels = rng.integers(0, 150, (16, 16)) + 2 * len(row[0])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "scans" / f"{number:03}.png")
    lines = [",".join((f"{number:03}.png", *row)) for number, row in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join([f"path,{columns}", *lines]) + "\n")
    return folder / "labels.csv"


def source(manifest: Path, **settings: object) -> Source:
    return Source(str(manifest.parent / "scans"), str(manifest), **settings)  # type: ignore[arg-type]


def refused(manifest: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        open_labelled(source(manifest, **settings))
    return str(caught.value)


PLAIN = [("ill", "train"), ("well", "train"), ("ill", "test"), ("well", "test")] * 2


def test_splits_of_other_names_are_refused_and_counted(tmp_path: Path) -> None:
    manifest = archive(tmp_path, [*PLAIN, ("ill", "holdout"), ("well", "holdout"), ("ill", "fold 3")])
    message = refused(manifest)
    assert "has others (fold 3: 1 image, holdout: 2 images), which would be used nowhere; call them train" in message
    with pytest.raises(UserError, match=r"has others \(fold 3: 1 image, holdout: 2 images\)"):
        open_domain(Domain(str(tmp_path / "scans"), str(manifest), None), classes=["ill", "well"])
    assert "(fold 3: 1 image)" in refused(manifest, split="holdout"), "what is named is used"


def test_one_class_in_two_spellings_is_refused(tmp_path: Path) -> None:
    message = refused(archive(tmp_path, [*PLAIN, ("Ill", "test"), ("0", "train"), ("0.0", "train")]))
    assert "'0' (1 images) and '0.0' (1 images); 'Ill' (1 images) and 'ill' (4 images) seem to be one" in message


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    rows = [*PLAIN, ("", "train"), ("NA", "test"), ("ill", ""), ("well", ""), ("ill", "val"), ("rare", "test")]
    labelled = open_labelled(source(archive(tmp_path, [*rows, ("odd", "")])))
    assert remarks_on(labelled) == [
        "1 cell of `label` says NA, which is taken for unknown; where it is a label, rename it",
        "3 images without a split, beside others with one, left out",
        "1 image of split train without a label, left out",
        "1 image of split test without a label, left out",
        "1 image of split val, left out; validation=split judges by them",
        "the class odd is neither in training nor in the test split",
        "the class rare is in the test split alone (1 image): nothing can learn it, and the means over classes count "
        "it",
    ]


def test_several_labels_an_image_are_refused_with_the_reason(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.eye(4, 14, dtype=np.uint8))
    with pytest.raises(UserError, match="train_labels holds 14 labels for each image, and a class is one"):
        open_labelled(Source(str(tmp_path / "x.npz")))


def finetune(folder: Path, out: str, *settings: str) -> int:
    words = [f"data={folder / 'scans'}", f"manifest={folder / 'labels.csv'}", f"out={folder / out}"]
    words += ["encoder=random:resnet10t", "mode=linear", "views.size=32"]
    return main(["finetune", *words, *settings])


def test_of_two_classes_the_one_that_is_meant_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    labels = [("abnormal", "normal")[number] for number in rng.integers(0, 2, 90)]
    archive(tmp_path, [(label, "train" if at < 50 else "test") for at, label in enumerate(labels)])
    assert open_labelled(source(tmp_path / "labels.csv")).archive.classes[1] == "abnormal"
    assert finetune(tmp_path, "run", "positive=normal") == 0
    assert "operating point look for, is normal; positive=abnormal turns that round" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"]["positive"] == "normal"
    assert any("look for, is normal; " in note for note in report["judgement"]["notes"])
    table = np.genfromtxt(tmp_path / "run" / "predictions.csv", delimiter=",", names=True, dtype=None, encoding=None)
    true, scores = table["label"] == "normal", table["probability_normal"]
    assert report["test"]["auroc"] == pytest.approx(roc_auc_score(true, scores), abs=1e-6)
    precision = average_precision_score(true, scores)
    assert report["test"]["average_precision"] == pytest.approx(precision, abs=1e-6)
    assert precision != pytest.approx(average_precision_score(~true, table["probability_abnormal"]), abs=1e-6)
    assert report["test"]["brier"] == pytest.approx(np.mean((true - scores) ** 2), abs=1e-6)
    point = report["judgement"]["operating_point"]
    assert point["test"]["sensitivity"] == pytest.approx(recall_score(true, scores >= point["test"]["threshold"]))
    assert point["validation"]["sensitivity"] >= 0.95


def test_grades_have_the_order_that_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    labels = [GRADES[number] for number in rng.integers(0, 4, 120)]
    archive(tmp_path, [(label, "train" if at < 60 else "test") for at, label in enumerate(labels)])
    assert finetune(tmp_path, "run", "ordered=true") == 2
    assert "tell: mild, moderate, none, severe; give them from the least to the worst" in capsys.readouterr().err
    assert finetune(tmp_path, "run", "ordered=true", "classes=[none,mild,severe]") == 2
    assert "moderate is left out; fix the list" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    (tmp_path / "labels.csv.classes").write_text("\n".join(GRADES))
    assert finetune(tmp_path, "run", "ordered=true") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    table = np.genfromtxt(tmp_path / "run" / "predictions.csv", delimiter=",", names=True, dtype=None, encoding=None)
    true, said = ([GRADES.index(name) for name in table[column]] for column in ("label", "prediction"))
    assert report["test"]["quadratic_kappa"] == pytest.approx(cohen_kappa_score(true, said, weights="quadratic"))
    assert report["data"]["classes"] == list(GRADES)


def test_a_curve_goes_on_with_the_same_order_of_classes_alone(tmp_path: Path) -> None:
    begun = {"data": {"classes": ["a", "b"]}, "fingerprints": {"data": "1"}}
    (tmp_path / "task.json").write_text(json.dumps(begun))
    assert check_unchanged(tmp_path / "task.json", begun) is None
    with pytest.raises(UserError, match=r"`classes` must have the order that it began with \(a, b\)"):
        check_unchanged(tmp_path / "task.json", {**begun, "data": {"classes": ["b", "a"]}})


def test_images_without_a_label_are_never_those_that_judge_nor_their_kin(tmp_path: Path) -> None:
    rows = [("ill", "train", f"p{n}") for n in range(4)] + [("well", "train", f"q{n}") for n in range(4)]
    rows += [("ill", "test", "t0"), ("well", "test", "t1")]
    rows += [
        ("", "train", "new"),
        ("", "train", "t0"),
        ("", "train", "copy"),
        ("", "val", "v"),
        ("", "train", "broken"),
    ]
    manifest = archive(tmp_path, rows, columns="label,split,group")
    scans = tmp_path / "scans"
    (scans / "012.png").write_bytes((scans / "009.png").read_bytes())
    (scans / "014.png").write_bytes(b"no image")
    labelled = open_labelled(source(manifest))
    found = unlabelled_rows(labelled, labelled.pool[:3], split="train")
    names = [labelled.archive.samples[row].path for row in found.tolist()]
    assert names == ["003.png", "004.png", "005.png", "006.png", "007.png", "010.png"]
    assert "4 images of split train without a label, left out" in remarks_on(labelled)
    said = remarks_on(labelled._replace(learns_unlabelled=True))
    assert "4 images of split train without a label, learned from as such" in said


def test_images_without_a_label_keep_to_the_training_side_of_a_split_made_here(tmp_path: Path) -> None:
    manifest = archive(tmp_path, [("ill",), ("well",), ("",)] * 40, columns="label")
    labelled = open_labelled(source(manifest))
    found = unlabelled_rows(labelled, labelled.pool, split="train")
    nameless = np.flatnonzero(labelled.archive.labels < 0)
    sides = labelled.identities.split(nameless)
    assert np.array_equal(found, nameless[sides == "train"]) and 0 < len(found) < 40
