"""The page of a report: hostile names are shown and not obeyed, and figures follow the page's colours."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jigsawssl.cli import main
from jigsawssl.evaluation.assessment import Criteria, Predictions, judge
from jigsawssl.experiments.reporting import rebuild
from jigsawssl.report.page import _FILES, write_page
from jigsawssl.report.plots import critical_difference_svg, curve_svg, history_svgs, judgement_svgs, variants_svg
from jigsawssl.runs import write_json
from jigsawssl.runs.folder import _WRITTEN_HERE


def predictions(size: int, count: int = 60) -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(size, size=count)
    scores = rng.dirichlet(np.ones(size), size=count) + 0.6 * np.eye(size)[labels]
    scores /= scores.sum(1, keepdims=True)
    return Predictions(scores, labels, np.arange(count) // 2, scores, labels, np.arange(count))


def report(classes: list[str], folder: Path) -> dict:  # type: ignore[type-arg]
    judged = judge(predictions(len(classes)), Criteria(classes))
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
        "budget": {"labels": 40, "fraction": 1.0, "groups": None, "validation": "cross-validation"},
        "chosen": {"method": "linear"},
        "limits": ["one test split"],
        "judgement": judged,
    }
    write_json(folder / "report.json", found)
    return dict(json.loads((folder / "report.json").read_text()))


def written(tmp_path: Path, **changes: object) -> str:
    return write_page(tmp_path, {**report(["well", "ill"], tmp_path), **changes}).read_text()


def test_the_verdict_comes_first_and_flags_what_failed(tmp_path: Path) -> None:
    text = written(tmp_path)
    section = text[text.index('<section class="verdict"') : text.index("</section>")]
    assert "Test AUROC" in section and "95 % interval" in section and "on 60 images" in section
    assert text.index("</section>") < text.index("<h2")
    found = report(["well", "ill"], tmp_path)
    found["judgement"]["calibration"]["after"]["calibration_error"] = 0.5
    text = write_page(tmp_path, found).read_text()
    assert "made calibration worse" in text and "calibration error rises from" in text and "brings" not in text


def test_contents_lead_to_every_heading(tmp_path: Path) -> None:
    text = written(tmp_path)
    headings = re.findall(r'<h2 id="(part-\d+)">(.*?)</h2>', text)
    assert len(headings) == len(set(headings)) == text.count("<h2") >= 4
    contents = text[text.index("<nav") : text.index("</nav>")]
    assert re.findall(r'href="#(part-\d+)">(.*?)</a>', contents) == headings


def test_links_lead_to_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text("")
    text = written(tmp_path)
    assert set(re.findall(r'href="([^#"]*)"', text)) - {"data:,"} == {"report.json", "predictions.csv"}


def test_date_duration_and_command_are_said_where_they_are_known(tmp_path: Path) -> None:
    when = {"began": "2024-05-01T08:30:59Z", "ended": "2024-05-01T09:00:59Z"}
    text = written(tmp_path, when=when)
    assert "2024-05-01 08:30 UTC, took 30.0 min" in text
    assert "jigsawssl finetune data=scans" in text
    # Runs of older versions know only how long they took, or not even that.
    assert "took 42 s" in written(tmp_path, seconds=42.0) and "UTC" not in written(tmp_path)
    assert "2024-05-01 08:30 UTC ·" in written(tmp_path, when={**when, "ended": None})


def test_a_pretraining_that_was_resumed_took_as_long_as_its_epochs(tmp_path: Path) -> None:
    found = {**pretraining(tmp_path), "when": {"began": "2024-05-01T08:30:59Z", "ended": "2024-05-01T08:31:59Z"}}
    assert "2024-05-01 08:30 UTC, took 60 s" in write_page(tmp_path, found).read_text()
    found["run"]["resumed"] = True
    assert "resumed 2024-05-01 08:30 UTC, took 3.2 min" in write_page(tmp_path, found).read_text()
    with_pause = {"config": {**report(["a", "b"], tmp_path)["config"], "resume": True}, "when": found["when"]}
    assert "took" not in written(tmp_path, **with_pause)


def test_the_command_to_run_it_again_comes_before_what_was_set(tmp_path: Path) -> None:
    assert "config=RUN/config.yaml" not in written(tmp_path)  # which an old run lacks
    (tmp_path / "config.yaml").write_text("")
    commands = re.findall(r"<pre><code>(.*?)</code></pre>", written(tmp_path))
    assert commands[0] == "jigsawssl finetune config=RUN/config.yaml out=NEW"
    assert len(commands) == 2 and "data=scans" in commands[1]


def test_every_file_of_a_run_is_led_to() -> None:
    assert set(_FILES) == {name for name in _WRITTEN_HERE if "." in name} - {"report.html"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.json", '{"command": "pretrain"}'),
        ("report.json", '{"command": "pretrain", "data": 3, "run": [], "encoder": null, "metrics": {}}'),
        ("report.json", '{"command": "finetune", "judgement": {}}'),
        ("report.json", '{"command": "transfer", "stages": []}'),
        ("report.json", '{"command": "curve"}'),
        ("report.json", '{"command": '),
        ("report.json", "[]"),
        ("task.json", "{}"),
        ("task.json", '{"variants": {}}'),
    ],
)
def test_a_damaged_report_is_one_line(name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said and "Traceback" not in said
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_every_curve_of_the_test_is_drawn_once(tmp_path: Path) -> None:
    for name in ("curves.png", "confusion.png"):
        (tmp_path / name).write_bytes(b"picture")
    text = written(tmp_path)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == len(set(captions)) and {"ROC", "Precision and recall"} <= set(captions)
    assert text.count("Confusion matrix:") == 1 and "data:image/png" not in text


def test_a_legend_hides_no_curve(tmp_path: Path) -> None:
    judged = report(["well", "ill"], tmp_path)["judgement"]
    for name in ("ROC", "Precision and recall", "Reliability"):
        svg = judgement_svgs(judged)[name]
        top, height = map(float, re.findall(r'<rect x=".*?" y="(.*?)" width=".*?" height="(.*?)"', svg)[0])
        words = re.findall(r'<text [^>]* y="([\d.]+)"', svg[svg.index('id="legend_1"') :])
        assert words and all(float(y) > top + height for y in words), name


def pretraining(folder: Path) -> dict:  # type: ignore[type-arg]
    folder.mkdir(exist_ok=True)
    header = "epoch,loss,loss_all,diagonal_all,effective_rank,feature_std"
    (folder / "metrics.csv").write_text(f"{header}\n0,9,9,0.3,30,0.5\n1,7,7,0.8,40,0.5\n")
    return {
        "command": "pretrain",
        "config": {"data": "scans", "out": "run"},
        "data": {"images": 1600, "unreadable": {}},
        "encoder": {"backbone": "resnet18", "features": 240},
        "environment": {"jigsawssl": "0", "torch": "0", "device": "cpu"},
        "run": {"epochs": 2, "seconds": 192.0},
        "metrics": {"diagonal_all": 0.8, "effective_rank": 40.0, "feature_std": 0.5},
        "limits": [],
    }


def test_a_pretraining_says_on_how_many_images_for_how_long_and_whether_it_learned(tmp_path: Path) -> None:
    text = write_page(tmp_path, pretraining(tmp_path)).read_text()
    assert "1,600 images" in text and "3.2 min" in text and "It learned:" in text
    assert "counts as having learned if" in text
    assert {"Loss by epoch", "Effective rank by epoch"} <= set(re.findall(r"<figcaption>(.*?)</figcaption>", text))
    write_json(tmp_path / "report.json", pretraining(tmp_path))
    before = (tmp_path / "report.json").read_bytes()
    rebuild(tmp_path)
    assert "0.30 after the first epoch" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "report.json").read_bytes() == before


def test_figures_by_epoch_begin_at_zero() -> None:
    rank = history_svgs({"effective_rank": [(1, 65.42), (2, 65.35)]})["Effective rank by epoch"]
    assert ">0</text>" in rank and ">60</text>" in rank


def test_figures_of_many_runs_come_for_a_screen_and_for_a_phone() -> None:
    value = {"mean": 0.8, "sd": 0.01, "low": 0.798, "high": 0.802}
    table = [
        {"encoder": name, "fraction": f, "cost": 100 * f, "unit": "labels", "domain": "d", "metrics": {"auroc": value}}
        for name in ("ours", "theirs")
        for f in (0.1, 1.0)
    ]
    ranks = {"ranks": {"ours": 1.2, "theirs": 1.8}, "cliques": [["ours", "theirs"]]}
    for draw, arguments in (
        (curve_svg, (table, "auroc", "AUROC")),
        (variants_svg, (table, "auroc", "AUROC")),
        (critical_difference_svg, (ranks, "ranks")),
    ):
        wide, narrow = (draw(*arguments, width=width) for width in ("wide", "narrow"))  # type: ignore[operator]
        sizes = [float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) for svg in (wide, narrow)]  # type: ignore[index]
        assert sizes == pytest.approx([504, 259.2]) and all("ours" in svg and "theirs" in svg for svg in (wide, narrow))
    # The axis shows a tenth of the scale at least, where the values hardly differ.
    ticks = [float(tick) for tick in re.findall(r">(0\.\d+)</text>", curve_svg(table, "auroc", "AUROC"))]
    assert max(ticks) - min(ticks) > 0.05


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
