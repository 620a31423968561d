"""What is said of splits, classes and groups before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigsawssl.cli import main
from jigsawssl.cli.unlabeled import unlabeled_archive
from jigsawssl.config.loading import load_config
from jigsawssl.config.schemas import PretrainConfig

LINES = """path,label,split,group
0.png,ill,Training,p0
1.png,well,training,p1
2.png,Well,train,p1
3.png,ill,TRAIN,NA
4.png,ill,holdout,p2
5.png,well,Testing,p3
6.png,None,test,p4
7.png,ill,,p5
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for number in range(8):
        pixels = rng.integers(0, 256, (40, 40), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{number}.png")
    (tmp_path / "labels.csv").write_text(LINES)
    return tmp_path / "labels.csv"


def test_pretraining_says_what_it_takes_and_what_it_leaves_alone(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"data={manifest.parent / 'scans'}", f"manifest={manifest}", f"out={manifest.parent / 'run'}"]
    small = ["backbone=resnet10t", "views.size=32", "views.grids=[]", "batch.size=2", "trainer.max_epochs=1"]
    assert main(["pretrain", *words, *small]) == 0
    printed = capsys.readouterr().out
    for line in (
        "| train   |      4 |      3 | Well: 1, ill: 2, well: 1 |",
        "| holdout |      1 |      1 | Well: 0, ill: 1, well: 0 |",
        "| none    |      1 |      1 | Well: 0, ill: 1, well: 0 |",
        "note: 1 cell of `label` says None, which is taken for unknown; where it is a label, rename it",
        "note: 1 cell of `group` says NA, which is taken for unknown; where it is a group, rename it",
        "pretraining on split train: 4 images; 4 others are left alone (test: 2, holdout: 1, without a split: 1)",
    ):
        assert line in printed
    assert printed.index("| train ") < printed.index("pretraining on split")


def test_a_split_is_found_by_any_of_its_words(manifest: Path) -> None:
    words = [f"data={manifest.parent / 'scans'}", f"manifest={manifest}", "out=run"]
    for wanted, count in {"training": 4, "Testing": 2, "holdout": 1}.items():
        chosen = unlabeled_archive(load_config(PretrainConfig, [*words, f"split={wanted}"]))
        assert len(chosen.archive) == count, wanted


def test_folders_of_splits_are_named_where_no_manifest_says_so(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / split / "a" / "1.png")
    found = unlabeled_archive(load_config(PretrainConfig, [f"data={tmp_path}", "out=run"]))
    assert found.whole.remarks == ("folders are called test, train, val, which are splits with manifest=folders alone",)


def test_the_doctor_says_what_was_not_understood(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = manifest.parent / "doctor"
    assert main(["doctor", f"data={manifest.parent / 'scans'}", f"manifest={manifest}", f"out={out}"]) == 1
    defects = json.loads((out / "doctor.json").read_text())["defects"]
    assert defects["unknown_splits"]["examples"] == [{"reason": "holdout", "count": 1}]
    assert defects["classes_alike"]["examples"] == [["Well", "well"]]
    assert defects["without_split"]["count"] == 1 and defects["taken_as_unknown"]["count"] == 2
    printed = capsys.readouterr().out
    assert "are used nowhere: 1 holdout" in printed and "Well = well" in printed
