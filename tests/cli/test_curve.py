"""The label-efficiency curve from the command line, on the embedded demo archive."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jigsawssl.cli import main
from jigsawssl.data import open_archive
from jigsawssl.experiments import trials as trials_module
from jigsawssl.experiments.runner import run_cells
from jigsawssl.experiments.trials import Cell, load_cell


def curve(encoder: Path, out: Path, *arguments: str) -> int:
    encoders = f"encoders={{ours: {encoder}, scratch: 'random:{encoder}'}}"
    common = ["data=demo", encoders, "fractions=[0.02,0.1]", "seeds=2", "mode=linear", "precision=32", "jobs=1"]
    return main(["curve", *common, f"out={out}", *arguments])


@pytest.fixture(scope="module")
def finished(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished curve."""
    out = tmp_path_factory.mktemp("curves") / "curve"
    assert curve(encoder, out) == 0
    return out


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def test_the_table_holds_every_point_and_follows_from_the_predictions(finished: Path) -> None:
    table = [row for row in rows(finished / "table.csv") if row["metric"] == "auroc"]
    assert {(row["encoder"], float(row["fraction"])) for row in table} == {
        (name, fraction) for name in ("ours", "scratch") for fraction in (0.02, 0.1)
    }
    archive = open_archive("demo", split="test")
    for row in table:
        scores = []
        for seed in range(2):
            loaded = load_cell(finished / "cells" / Cell(row["encoder"], float(row["fraction"]), seed).name)
            assert loaded is not None
            assert np.array_equal(loaded[0].labels, archive.labels)
            scores.append(roc_auc_score(np.eye(4)[archive.labels], loaded[0].probabilities, average="macro"))
        assert float(row["mean"]) == pytest.approx(np.mean(scores), abs=1e-6)
        assert float(row["sd"]) == pytest.approx(np.std(scores, ddof=1), abs=1e-6)
        assert float(row["low"]) < float(row["mean"]) < float(row["high"])
        assert (row["seeds"], row["candidates"]) == ("2", "5")


def test_subsets_are_nested_and_named(finished: Path) -> None:
    for seed in range(2):
        few, more = (
            {row["path"] for row in rows(finished / "subsets" / f"fraction-{f}-seed-{seed}.csv")}
            for f in ("0.02", "0.1")
        )
        assert few < more
    assert sorted(entry.name for entry in (finished / "subsets").iterdir())[0] == "fraction-0.02-seed-0.csv"


def test_all_encoders_get_the_same_labels_and_as_many_candidates(finished: Path) -> None:
    for fraction in (0.02, 0.1):
        for seed in range(2):
            cells = [load_cell(finished / "cells" / Cell(name, fraction, seed).name) for name in ("ours", "scratch")]
            budgets = [cell[1]["budget"] for cell in cells if cell is not None]
            assert len(budgets) == 2 and budgets[0] == budgets[1]


class Page(HTMLParser):
    """Addresses that a page refers to, and whether all of its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "poster") and value:
                self.addresses.append(value)


def test_the_report_is_one_file_that_asks_for_nothing(finished: Path, encoder: Path) -> None:
    text = (finished / "report.html").read_text()
    page = Page(text)
    assert page.scripts == 0
    links = [address for address in page.addresses if not address.startswith(("data:", "#"))]
    assert {"report.json", "table.csv"} <= set(links) and all((finished / link).is_file() for link in links)
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", text) and "@import" not in text
    assert str(finished.parent) not in text and str(encoder.parent) not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    report = json.loads((finished / "report.json").read_text())
    assert report["when"]["began"] <= report["when"]["ended"] and report["verdict"]["result"] in text
    for sentence in report["sentences"]:
        assert sentence.split("(")[0].strip() in text
    names = {"ROC", "Precision and recall", "Reliability", "Leaving the least sure to a person"}
    assert names <= set(re.findall(r"<figcaption>(.*?)</figcaption>", text))
    folder = encoder.parent.name  # the name of the run tells encoders apart, and nothing above it is said
    assert report["config"].pop("encoders")["scratch"] == f"random:{folder}/encoder.safetensors"
    assert not any("/" in str(value) for value in report["config"].values())


def test_a_report_is_made_anew_from_its_files_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(finished, copy)
    before = {name: (copy / name).read_bytes() for name in ("report.html", "report.json", "table.csv")}
    for name in before:
        (copy / name).unlink()
    assert main(["report", str(copy)]) == 0
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert main(["report", str(tmp_path)]) == 2
    assert "no report.json is there" in capsys.readouterr().err


def test_a_curve_goes_on_and_ends_like_an_unbroken_one(finished: Path, encoder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(finished, broken)
    for name in ("ours-0.1-1.json", "scratch-0.02-0.npz"):
        (broken / "cells" / name).unlink()
    damaged = broken / "cells" / "scratch-0.1-0.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (broken / "cells" / "ours-0.02-1.json").write_text("{")  # half written by another tool
    kept = (broken / "cells" / "ours-0.02-0.npz").stat().st_mtime_ns
    assert curve(encoder, broken, "resume=true") == 0
    assert (broken / "table.csv").read_text() == (finished / "table.csv").read_text()
    assert (broken / "cells" / "ours-0.02-0.npz").stat().st_mtime_ns == kept


def test_a_failed_cell_is_reported_and_does_not_stop_the_others(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = trials_module.take_budget

    def sometimes(labelled, **settings):  # type: ignore[no-untyped-def]
        if settings["seed"] == 1 and len(settings["chosen"]) < 100:  # of 33 or 164
            raise RuntimeError("the disk is\non fire")
        return original(labelled, **settings)

    monkeypatch.setattr(trials_module, "take_budget", sometimes)
    assert curve(encoder, tmp_path / "curve") == 1
    assert "failed: ours-0.02-1: RuntimeError in test_curve.py" in capsys.readouterr().out
    report = json.loads((tmp_path / "curve" / "report.json").read_text())
    assert (report["missing"], sorted(report["failed"])) == (2, ["ours-0.02-1", "scratch-0.02-1"])
    # The message may name files and is kept from the report.
    assert "on fire" not in (tmp_path / "curve" / "report.html").read_text()
    assert "on fire" in (tmp_path / "curve" / "cells" / "ours-0.02-1.error.txt").read_text()
    monkeypatch.undo()
    assert curve(encoder, tmp_path / "curve", "resume=true") == 0
    assert json.loads((tmp_path / "curve" / "report.json").read_text())["failed"] == {}


def test_other_people_use_the_same_labels(finished: Path, encoder: Path, tmp_path: Path) -> None:
    subsets = tmp_path / "theirs"
    shutil.copytree(finished / "subsets", subsets)
    file = subsets / "fraction-0.02-seed-0.csv"
    shutil.copy(subsets / "fraction-0.1-seed-1.csv", file)
    arguments = ["fractions=[0.02]", "seeds=1", f"subsets={subsets}"]
    assert curve(encoder, tmp_path / "curve", *arguments) == 0
    assert (tmp_path / "curve" / "subsets" / file.name).read_text() == file.read_text()
    run = ["finetune", "data=demo", f"encoder={encoder}", "mode=linear", "precision=32", f"out={tmp_path / 'run'}"]
    assert main([*run, f"subset={file}"]) == 0
    budget = json.loads((tmp_path / "run" / "report.json").read_text())["budget"]
    assert budget["labels"] == len(rows(file)) and budget["fraction"] == pytest.approx(0.1, abs=0.005)
    cell = load_cell(tmp_path / "curve" / "cells" / "ours-0.02-0")
    with np.load(tmp_path / "run" / "predictions.npz") as stored:
        assert cell is not None
        assert np.allclose(stored["probabilities"], cell[0].probabilities, atol=1e-4)


def test_networks_are_tuned_alike_and_explained(encoder: Path, tmp_path: Path) -> None:
    arguments = ["fractions=[0.02]", "seeds=2", "mode=full", "trainer.max_epochs=2", "optimizer.lr=[1e-4,1e-3]"]
    assert curve(encoder, tmp_path / "curve", *arguments, "dropout=0.1", "budget=groups", "attention=ga") == 0
    report = json.loads((tmp_path / "curve" / "report.json").read_text())
    assert {row["candidates"] for row in report["table"]} == {4}  # two rates, two lengths
    for detail in report["details"]:
        seen = detail["explanations"]
        assert (tmp_path / "curve" / seen["file"]).is_file()
        assert 0 <= seen["border_share"] <= 1 and -1 <= seen["sanity_correlation"] <= 1
        assert -1 <= seen["attention_agreement"] <= 1
        assert detail["disagreement"]["models"] == 2
    assert "Where the network looks" in (tmp_path / "curve" / "report.html").read_text()


@pytest.mark.parametrize(("mode", "found"), [("knn", ["knn", "knn"]), ("auto", ["auto", "full"])])
def test_every_mode_has_a_curve(mode: str, found: list[str], encoder: Path, tmp_path: Path) -> None:
    arguments = ["fractions=[0.05]", "seeds=1", f"mode={mode}", "trainer.max_epochs=1", "optimizer.lr=1e-3"]
    assert curve(encoder, tmp_path / "curve", *arguments) == 0
    report = json.loads((tmp_path / "curve" / "report.json").read_text())
    assert [row["mode"] for row in report["table"]] == found and report["missing"] == 0
    assert len(report["comparisons"]) == 2 and report["savings"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoders={}"], "`encoders` is required"),
        (["encoders={a/b: x}"], "`encoders` (a/b) must consist of letters, digits, _ and - alone"),
        (["fractions=[0,1]"], "`fractions` ([0.0, 1.0]) must lie in (0, 1]"),
        (["seeds=0"], "`seeds` (0) must be at least 1"),
        (["optimizer.lr=[]"], "`optimizer.lr` ([]) must be more than 0"),
        (["subgroups=[site]"], "`subgroups` (site) must be columns of a CSV manifest"),
        (["subsets=nowhere"], "`subsets` (nowhere) must be the folder subsets/ of another curve"),
        (["attention_stages=[9]", "attention=se"], "`attention_stages` ([9]) must be stages of resnet18"),
        (["budget=patients"], "`budget` (patients) must be one of images, groups"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(
    arguments: list[str], message: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curve(encoder, tmp_path / "curve", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "curve").exists()


def test_subgroups_come_from_the_manifest(encoder: Path, tmp_path: Path) -> None:
    from PIL import Image

    archive = open_archive("demo", split="val")
    lines = ["path,label,group,site"]
    (tmp_path / "images").mkdir()
    for row in range(len(archive)):
        Image.fromarray(archive.read(row)[..., 0]).save(tmp_path / "images" / f"{row}.png")
        sample = archive.samples[row]
        lines.append(f"{row}.png,{sample.label},{sample.group},{'east' if row % 3 else ''}")
    manifest = tmp_path / "labels.csv"
    manifest.write_text("\n".join(lines))
    arguments = [f"data={tmp_path / 'images'}", f"manifest={manifest}", "subgroups=[site]", "fractions=[1.0]"]
    assert curve(encoder, tmp_path / "curve", *arguments) == 0
    report = json.loads((tmp_path / "curve" / "report.json").read_text())
    found = {row["value"]: row["images"] for row in report["details"][0]["subgroups"]["site"]}
    assert found.keys() == {"east", "unknown"} and sum(found.values()) == report["data"]["test"]["images"]


def _deadly() -> object:
    return _work_or_die


def _work_or_die(cell: tuple[str, str]) -> None:
    name, folder = cell
    if name == "deadly":
        time.sleep(0.3)
        os._exit(1)
    if name == "slow":
        time.sleep(1.0)
    if name == "broken":
        raise ValueError("no")
    (Path(folder) / name).touch()


def test_a_process_that_dies_costs_its_cell_alone(tmp_path: Path) -> None:
    names = ["slow", "deadly", "b", "broken", "c"]
    found = {o.cell[0]: o.error for o in run_cells(_deadly, [(name, str(tmp_path)) for name in names], jobs=2)}  # type: ignore[arg-type]
    assert found["deadly"] is not None and "process died" in found["deadly"]
    assert found["broken"] is not None and found["broken"].startswith("ValueError in ")
    assert [found[name] for name in ("slow", "b", "c")] == [None] * 3
    assert {entry.name for entry in tmp_path.iterdir()} == {"slow", "b", "c"}


def _wait_for_ever() -> object:
    return _sleep


def _sleep(seconds: int) -> None:
    time.sleep(seconds)


def test_an_interrupted_run_leaves_no_process_behind() -> None:
    outcomes = run_cells(_wait_for_ever, [0, 600, 601], jobs=2)  # type: ignore[arg-type]
    assert next(outcomes).cell == 0
    children = multiprocessing.active_children()
    assert len(children) == 2
    outcomes.close()  # type: ignore[attr-defined]
    assert not any(child.is_alive() for child in children)


def test_a_curve_goes_on_with_the_same_labels_alone(
    finished: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "curve"
    shutil.copytree(finished, other)
    task = json.loads((other / "task.json").read_text())
    task["fingerprints"]["manifest"] = "another"
    (other / "task.json").write_text(json.dumps(task))
    assert curve(encoder, other, "resume=true") == 2
    assert "`manifest` must be what it began with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_curve_goes_on_and_its_processes_end(finished: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "curve"
    encoders = f"encoders={{ours: {encoder}, scratch: 'random:{encoder}'}}"
    arguments = ["data=demo", encoders, "fractions=[0.02,0.1]", "seeds=2", "mode=linear", "precision=32"]
    command = [sys.executable, "-m", "jigsawssl", "curve", *arguments, f"out={out}", "jobs=2", "resume=true"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((out / "cells").glob("*.json")) and process.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    spawned = children.read_text().split() if children.is_file() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() for child in spawned):
            break
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in spawned)
    assert subprocess.run(command, capture_output=True).returncode == 0
    ours, theirs = (
        [(r["encoder"], r["fraction"], r["metric"], float(r["mean"])) for r in rows(folder / "table.csv")]
        for folder in (out, finished)
    )
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[3] for row in ours] == pytest.approx([row[3] for row in theirs], abs=1e-3)
