"""The comparison study from the command line, at smoke size on the embedded demo archive."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from jigsawssl.cli import main
from jigsawssl.data import open_archive
from jigsawssl.experiments import study as study_module
from jigsawssl.experiments.cells import Cell, load_cell, load_predictions
from jigsawssl.experiments.study import domain_file

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs" / "smoke" / "study.yaml")
VARIANTS = ("plain", "global", "channel")


def study(out: Path, domain: Path | None, *arguments: str) -> int:
    place = [] if domain is None else [f"domains={{dim: {{data: {domain}, manifest: {domain}.csv}}}}"]
    return main(["study", SMOKE, f"out={out}", "jobs=1", *place, *arguments])


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The darkened test images of the demo, without one class and with the others in another order."""
    folder = tmp_path_factory.mktemp("domain") / "dim"
    folder.mkdir()
    archive = open_archive("demo", split="test")
    lines = ["path,label,group"]
    for row in np.flatnonzero(archive.labels > 0)[::-1].tolist()[:80]:
        Image.fromarray((archive.read(row)[..., 0] * 0.5).astype(np.uint8)).save(folder / f"{row}.png")
        lines.append(f"{row}.png,{archive.samples[row].label},{archive.samples[row].group}")
    folder.with_suffix(".csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(domain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was interrupted in its second search, and again after two repetitions, and went on."""
    out = tmp_path_factory.mktemp("studies") / "study"
    judge, save, calls = study_module.judge_recipe, study_module.save_cell, []

    def interrupted(function, after):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            calls.append(function)
            if calls.count(function) == after:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "judge_recipe", interrupted(judge, 5))
        assert study(out, domain) == 130
        assert [(out / "search" / f"{name}.json").is_file() for name in VARIANTS] == [True, False, False]
        patch.setattr(study_module, "judge_recipe", judge)
        patch.setattr(study_module, "save_cell", interrupted(save, 3))
        assert study(out, domain, "resume=true") == 130
    kept = (out / "cells" / "plain-0.13-0.npz").stat().st_mtime_ns
    assert study(out, domain, "resume=true") == 0
    assert (out / "cells" / "plain-0.13-0.npz").stat().st_mtime_ns == kept
    return out


def report_of(out: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((out / "report.json").read_text())  # type: ignore[no-any-return]


def test_every_variant_has_a_search_of_the_same_size_that_begins_with_the_default(finished: Path) -> None:
    searches = report_of(finished)["searches"]
    assert list(searches) == list(VARIANTS)
    for found in searches.values():
        assert len(found["trials"]) == 3
        assert found["trials"][0]["settings"] == {"lr": pytest.approx(5e-4), "dropout": 0.0}
        whole = [trial for trial in found["trials"] if trial["state"] == "complete"]
        best = max(whole, key=lambda trial: trial["score"])
        assert (found["best"], found["score"]) == (best["settings"], best["score"])
        assert found["epochs"] == sum(trial["epochs"] for trial in found["trials"])
        for trial in found["trials"]:
            assert 1e-4 <= trial["settings"]["lr"] <= 3e-2 and 0 <= trial["settings"]["dropout"] <= 0.3
            assert trial["state"] == "complete" or trial["epochs"] < 4
    # What is drawn by lot is the same for all.
    second = [found["trials"][1]["settings"] for found in searches.values()]
    assert second[0] == second[1] == second[2]


def test_an_interrupted_search_ends_like_an_unbroken_one(finished: Path, domain: Path, tmp_path: Path) -> None:
    before = report_of(finished)["searches"]["global"]
    again = tmp_path / "study"
    shutil.copytree(finished, again)
    for file in again.glob("search/global.*"):
        file.unlink()
    assert study(again, domain, "resume=true") == 0
    after = report_of(again)["searches"]["global"]
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_the_table_follows_from_the_predictions_on_every_archive(finished: Path, domain: Path) -> None:
    with (finished / "table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "balanced_accuracy"]
    assert {(row["domain"], row["variant"]) for row in rows} == {(d, v) for d in ("in domain", "dim") for v in VARIANTS}
    known = open_archive("demo", split="test")
    other = open_archive(str(domain), f"{domain}.csv")
    truth = {"in domain": known.labels, "dim": np.array([known.classes.index(s.label) for s in other.samples])}
    for row in rows:
        scores = []
        for seed in range(2):
            cell = Cell(row["variant"], 0.13, seed)
            loaded = load_cell(finished / "cells" / cell.name)
            assert loaded is not None
            found = loaded[0] if row["domain"] == "in domain" else load_predictions(domain_file(finished, cell, "dim"))
            assert found is not None and np.array_equal(found.labels, truth[row["domain"]])
            predicted, present = found.probabilities.argmax(axis=1), np.unique(found.labels)
            scores.append(recall_score(found.labels, predicted, labels=present, average="macro"))
        assert float(row["mean"]) == pytest.approx(np.mean(scores), abs=1e-6)


def test_variants_are_compared_with_what_they_name(finished: Path) -> None:
    report = report_of(finished)
    pairs = {(row["first"], row["second"]) for row in report["comparisons"]}
    assert pairs == {("global", "plain"), ("channel", "global")}
    assert len(report["comparisons"]) == 2 * 2 * 2  # archives, metrics, pairs
    assert all(row["p"] <= row["p_holm"] for row in report["comparisons"])
    assert {len(ranks["pairs"]) for ranks in report["ranking"].values()} == {3}
    costs = report["variants"]
    assert costs["plain"]["parameters"] < costs["channel"]["parameters"] < costs["global"]["parameters"]
    assert costs["plain"]["multiply_adds"] < costs["global"]["multiply_adds"]


def test_explanations_are_compared(finished: Path) -> None:
    rows = {(row["variant"], row["map"]): row for row in report_of(finished)["explanations"]}
    kinds = {name: {kind for variant, kind in rows if variant == name} for name in VARIANTS}
    assert kinds["plain"] == kinds["channel"] == {"Grad-CAM", "by lot"}  # a channel has no place
    assert kinds["global"] == {"Grad-CAM", "attention", "by lot"}
    assert all(0 <= row["deletion"] <= 1 and 0 <= row["insertion"] <= 1 for row in rows.values())


def test_the_page_shows_ranks_maps_and_searches(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    for title in ("In short", "Every variant", "Comparisons", "The searches", "Where the variants look"):
        assert f"<h2>{title}</h2>" in text
    assert 'aria-label="Mean ranks in domain"' in text and 'aria-label="Mean ranks dim"' in text
    assert text.count("<details><summary>") >= 3 and 'src=""' not in text
    assert str(finished.parent) not in text
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == text


def test_a_search_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = study_module.judge_recipe

    def sometimes(encoder, *arguments):  # type: ignore[no-untyped-def]
        if encoder.spec.attention == "ga":
            raise RuntimeError("the disk is on fire")
        return judge(encoder, *arguments)

    monkeypatch.setattr(study_module, "judge_recipe", sometimes)
    few = ["seeds=1", "trials=1", "trainer.max_epochs=1"]
    assert study(tmp_path / "study", None, *few) == 1
    report = report_of(tmp_path / "study")
    assert list(report["failed"]) == ["search of global"] and report["missing"] == 1
    assert {row["encoder"] for row in report["table"]} == {"plain", "channel"}
    assert "on fire" not in (tmp_path / "study" / "report.html").read_text()
    stored = optuna.load_study(study_name="global", storage=f"sqlite:///{tmp_path / 'study' / 'search' / 'global.db'}")
    assert [trial.state.name for trial in stored.trials] == ["FAIL"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["variants={only: {encoder: 'random:resnet18'}}"], "`variants` (1) must be two or more"),
        (["variants={a: {}, b: {}}"], "`variants.a` must have encoder"),
        (["variants={a: {encoder: x, layers: 2}, b: {encoder: x}}"], "`variants.a` (layers) must be one of against,"),
        (
            ["variants={a: {encoder: x, against: c}, b: {encoder: x}}"],
            "`variants.a.against` (c) must be another variant",
        ),
        (
            ["variants={a: {encoder: nowhere}, b: {encoder: x}}", "backbone_options={}"],
            "`variants.a`: `encoder` (nowhere) must be a file",
        ),
        (["variants={a: {encoder: x, attention: ab}, b: {encoder: x}}"], "`variants.a.attention` (ab) must be one of"),
        (["space={batch.size: [1, 2]}"], "`space` (batch.size) must be one of optimizer.lr"),
        (["space={dropout: [0.5, 0.1]}"], "`space.dropout` ([0.5, 0.1]) must be [low, high]"),
        (["mode=linear"], "`mode` (linear) must be full in a study"),
        (["trials=0"], "`trials` (0) must be at least 1"),
        (["domains={same: {data: demo}}", "allow_overlap=false", "split=test"], "`split` (test) must not be"),
        (["domains={other: {data: nowhere}}"], "`data` (nowhere)"),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path / "study", None, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "study").exists()


def test_another_archive_must_be_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = open_archive("demo", split="test")
    lines = ["path,label,split"]
    for folder in ("own", "other"):
        (tmp_path / folder).mkdir()
    for row in range(40):
        Image.fromarray(archive.read(row)[..., 0]).save(tmp_path / "own" / f"{row}.png")
        lines.append(f"{row}.png,{'odd' if row % 2 else 'even'},{'train' if row < 20 else 'test'}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    data = [f"data={tmp_path / 'own'}", f"manifest={tmp_path / 'own.csv'}", "fraction=1"]
    place = f"domains={{same: {{data: {tmp_path / 'other'}, manifest: {tmp_path / 'other.csv'}}}}}"
    shutil.copy(tmp_path / "own" / "3.png", tmp_path / "other" / "copy.png")
    for label, message in (
        ("odd", "`domains.same` must hold no image that is trained on; 1 are the same"),
        ("none of them", "must have the classes even, odd alone; it has none of them"),
        ("", "must have labelled images to test on"),
    ):
        (tmp_path / "other.csv").write_text(f"path,label\ncopy.png,{label}")
        assert study(tmp_path / "study", None, *data, place) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
