"""The page of a report: hostile names are shown and not obeyed, and figures follow the page's colours."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jigsawssl.evaluation.judgement import Predictions, judge
from jigsawssl.report import write_json
from jigsawssl.report.page import write_page
from jigsawssl.report.plots import curve_svg, judgement_svgs


def predictions(size: int, count: int = 60) -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(size, size=count)
    scores = rng.dirichlet(np.ones(size), size=count) + 0.6 * np.eye(size)[labels]
    scores /= scores.sum(1, keepdims=True)
    return Predictions(scores, labels, np.arange(count) // 2, scores, labels, np.arange(count))


def report(classes: list[str], folder: Path) -> dict:  # type: ignore[type-arg]
    judged = judge(predictions(len(classes)), classes)
    found = {
        "command": "finetune",
        "config": {
            "data": "scans",
            "mode": "auto",
            "budget": "images",
            "validation": "budget",
            "class_weights": "balanced",
            "subgroups": [],
        },
        "data": {"classes": classes, "test": {"images": 60, "groups": 30}, "test_split": "manifest"},
        "encoder": {"reference": "encoder.safetensors"},
        "environment": {"jigsawssl": "0", "torch": "0", "device": "cpu"},
        "budget": {"labels": 40, "validation": "cross-validation"},
        "chosen": {"method": "linear"},
        "limits": ["one test split"],
        "judgement": judged,
    }
    write_json(folder / "report.json", found)
    return dict(json.loads((folder / "report.json").read_text()))


HOSTILE = ["<script>alert(1)</script>", '" onload="x', "$\\frac{1$", "{{ 7 * 7 }}"]


def test_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    text = write_page(tmp_path, report(HOSTILE, tmp_path)).read_text()
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.extend([tag, *(name for name, _ in attrs)])

    Tags().feed(text)
    assert "table" in seen and "script" not in seen and not any(name.startswith("on") for name in seen)
    assert "&lt;script&gt;alert(1)" in text and "{{ 7 * 7 }}" in text and ">49<" not in text


@pytest.mark.parametrize("size", [2, 4])
def test_figures_take_the_colour_of_the_page(size: int, tmp_path: Path) -> None:
    judged = report([f"class {k}" for k in range(size)], tmp_path)["judgement"]
    figures = judgement_svgs(judged)
    assert ("Net benefit" in figures) == (size == 2)
    for name, svg in figures.items():
        assert svg.startswith('<svg role="img" aria-label="') and "currentColor" in svg, name
        assert "#010203" not in svg and "<metadata" not in svg and "DOCTYPE" not in svg
        assert svg == judgement_svgs(judged)[name]


def test_a_curve_draws_what_is_defined() -> None:
    value = {"mean": 0.8, "sd": None, "low": None, "high": None}
    rows = [
        {
            "encoder": name,
            "fraction": fraction,
            "cost": labels,
            "unit": "labels",
            "metrics": {"auroc": value} if labels > 9 else {},
        }
        for name in ("a", "b")
        for fraction, labels in ((0.1, 5), (0.5, 25), (1.0, 50))
    ]
    assert "AUROC by number of labels for a, b" in curve_svg(rows, "auroc", "AUROC")


def test_a_picture_outside_of_the_folder_is_not_embedded(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "run").mkdir()
    found = report(["a", "b"], tmp_path / "run")
    seen = {"tap": "t", "border_share": 0.1, "border_area": 0.36, "sanity_correlation": 0.0}
    for file in ("../secret.txt", "../../etc/passwd", "missing.png", str(tmp_path / "secret.txt")):
        found["judgement"]["explanations"] = {"file": file, **seen}
        assert 'src=""' in write_page(tmp_path / "run", found).read_text()
