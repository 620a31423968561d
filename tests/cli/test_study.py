"""The comparison study from the command line, at smoke size on the embedded demo archive."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from PIL import Image
from sklearn.metrics import recall_score

from jigsawssl.cli import main
from jigsawssl.data import open_archive
from jigsawssl.data.budget import draw_subset
from jigsawssl.data.labelled import Source, open_labelled
from jigsawssl.experiments import study as study_module
from jigsawssl.experiments.reporting import study_report
from jigsawssl.experiments.study import StudyPlan, domain_file, load_search
from jigsawssl.experiments.trials import Cell, EncoderChoice, load_cell, load_predictions
from jigsawssl.training.finetune import OnCheck, Recipe
from jigsawssl.types import DivergedError

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
        def call(*arguments, **settings):  # type: ignore[no-untyped-def]
            calls.append(function)
            if calls.count(function) == after:
                raise KeyboardInterrupt
            return function(*arguments, **settings)

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
    # What is drawn at random is the same for all.
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
    assert after == before


def test_the_table_follows_from_the_predictions_on_every_archive(finished: Path, domain: Path) -> None:
    with (finished / "table.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["metric"] == "balanced_accuracy"]
    assert {(row["domain"], row["variant"]) for row in rows} == {(d, v) for d in ("in domain", "dim") for v in VARIANTS}
    known = open_archive("demo", split="test")
    other = open_archive(str(domain), manifest=f"{domain}.csv")
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
    assert kinds["plain"] == kinds["channel"] == {"Grad-CAM", "random"}  # a channel has no place
    assert kinds["global"] == {"Grad-CAM", "attention", "random"}
    assert all(0 <= row["deletion"] <= 1 and 0 <= row["insertion"] <= 1 for row in rows.values())


def test_the_page_shows_ranks_maps_and_searches(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    for title in ("In short", "All variants", "Comparisons", "The searches", "Where the variants look"):
        assert f">{title}</h2>" in text
    assert 'aria-label="Mean ranks in domain"' in text and 'aria-label="Mean ranks dim"' in text
    assert text.count("<details><summary>") >= 3 and 'src=""' not in text
    assert str(finished.parent) not in text
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == text


def scripted(plan: StudyPlan, scores: list[float], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The search of a variant whose settings score as told, one after the other."""
    left = iter(scores)

    def judge(*_: Any, on_check: OnCheck, **settings: Any) -> float:
        score = next(left)
        if not np.isfinite(score):
            raise DivergedError("no longer finite")
        for epoch in range(1, 5):
            on_check(epoch, score)
        return score

    patch.setattr(study_module, "judge_recipe", judge)
    study_module._Searcher(plan)("plain")
    return load_search(plan.out / "search" / "plain.json")  # type: ignore[return-value]


@pytest.fixture()
def plan(tmp_path: Path) -> StudyPlan:
    """A search of five settings, in a folder that an address could trip over."""
    folder = tmp_path / "a?b {c} 100%20"
    (folder / "search").mkdir(parents=True)
    source = Source("demo")
    choice = EncoderChoice("random:resnet18", 32, backbone_options={"channels": [16, 16, 32, 32]})
    rows = draw_subset(open_labelled(source), fraction=0.13, seed=0, count_groups=False)
    recipe = Recipe(5e-4, max_epochs=4)
    return StudyPlan(
        source=source,
        variants={"plain": choice},
        domains={},
        channels=1,
        recipe=recipe,
        space={"lr": (1e-4, 1e-2)},
        trials=5,
        fraction=0.13,
        subsets={0: rows},
        out=folder,
    )


def test_what_is_not_promising_or_diverges_ends_early_and_counts(
    plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scripted(plan, [0.8, float("nan"), 0.9, 0.1, 0.7], monkeypatch)
    assert [trial["state"] for trial in found["trials"]] == ["complete", "diverged", "complete", "pruned", "pruned"]
    assert [trial["epochs"] for trial in found["trials"]] == [4, 0, 4, 2, 2]
    assert (found["score"], found["ended_early"], found["epochs"]) == (0.9, 3, 12)
    assert found["best"] == found["trials"][2]["settings"]
    assert {entry.name for entry in (plan.out / "search").iterdir()} == {"plain.db", "plain.json"}


def test_a_search_in_which_all_diverge_is_no_search(plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="none of the 5 settings could be trained to the end"):
        scripted(plan, [float("nan")] * 5, monkeypatch)


def test_trouble_with_another_archive_costs_it_alone(
    finished: Path, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "study"
    shutil.copytree(finished, again)
    for file in again.glob("cells/plain-0.13-0*"):
        file.unlink()
    monkeypatch.setattr(
        study_module, "open_domain", lambda *_, **__: (_ for _ in ()).throw(OSError("the share is gone"))
    )
    assert study(again, domain, "resume=true") == 1
    report = report_of(again)
    assert report["missing"] == 1 and list(report["failed"]) == ["plain-0.13-0 on dim"]
    seeds = {(row["domain"], row["encoder"]): row["seeds"] for row in report["table"]}
    assert (seeds["in domain", "plain"], seeds["dim", "plain"], seeds["dim", "global"]) == (2, 1, 2)
    monkeypatch.undo()
    assert study(again, domain, "resume=true") == 0  # and is made up for
    assert (again / "table.csv").read_text() == (finished / "table.csv").read_text()


def test_trouble_with_maps_costs_them_alone(
    finished: Path, domain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "study"
    shutil.copytree(finished, again)
    (again / "cells" / "plain-0.13-0.json").unlink()
    monkeypatch.setattr(study_module, "compare_maps", lambda *_: (_ for _ in ()).throw(RuntimeError("no map")))
    assert study(again, domain, "resume=true") == 1
    report = report_of(again)
    assert report["missing"] == 0 and list(report["failed"]) == ["plain-0.13-0 explanations"]
    assert (again / "table.csv").read_text() == (finished / "table.csv").read_text()
    assert {row["variant"]: row["seeds"] for row in report["explanations"]} == {"plain": 1, "global": 2, "channel": 2}
    monkeypatch.undo()
    assert study(again, domain, "resume=true") == 0
    assert report_of(again)["explanations"] == report_of(finished)["explanations"]


def test_repetitions_that_lack_different_archives_are_both_missing(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "study"
    shutil.copytree(finished, again)
    task = json.loads((again / "task.json").read_text())
    task["domains"]["dusk"] = task["domains"]["dim"]
    (again / "task.json").write_text(json.dumps(task))
    for file in (again / "cells").glob("*@dim.npz"):
        shutil.copy(file, str(file).replace("@dim", "@dusk"))
    (again / "cells" / "plain-0.13-0@dim.npz").unlink()
    (again / "cells" / "global-0.13-0@dusk.npz").unlink()
    assert study_report(again)["missing"] == 2


def test_a_study_goes_on_with_the_same_labels_alone(
    finished: Path, domain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "study"
    shutil.copytree(finished, again)
    file = domain.with_suffix(".csv")
    before = file.read_text()
    lines = before.split("\n")
    try:
        file.write_text("\n".join([lines[0], *lines[:0:-1]]))  # the same rows, in another order
        assert study(again, domain, "resume=true") == 2
    finally:
        file.write_text(before)
    assert "`domains` must be what it began with" in capsys.readouterr().err


def test_what_is_missing_elsewhere_is_said(finished: Path) -> None:
    notes = report_of(finished)["notes"]
    assert any(note.startswith("On dim: no image shows ") for note in notes)
    assert {row["images"] for row in report_of(finished)["table"] if row["domain"] == "dim"} == {80}


@pytest.mark.slow
def test_processes_come_to_the_same_result(finished: Path, domain: Path, tmp_path: Path) -> None:
    assert study(tmp_path / "study", domain, "jobs=2") == 0
    assert report_of(tmp_path / "study")["searches"] == report_of(finished)["searches"]
    assert (tmp_path / "study" / "table.csv").read_text() == (finished / "table.csv").read_text()


def test_a_search_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = study_module.judge_recipe

    def sometimes(encoder, *arguments, **settings):  # type: ignore[no-untyped-def]
        if encoder.spec.attention == "ga":
            raise RuntimeError("the disk is on fire")
        return judge(encoder, *arguments, **settings)

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
        (
            ["variants={a: {encoder: x, attention_stages: 4}, b: {encoder: x}}"],
            "`variants.a.attention_stages` (4) must",
        ),
        (
            ["variants={a: {encoder: x, backbone_options: 3}, b: {encoder: x}}"],
            "`variants.a.backbone_options` (3) must",
        ),
        (["space={}"], "`trials` (3) must be 1 where `space` names nothing"),
        (["optimizer.lr=[1e-3,1e-4]"], "must be one rate, where the search begins"),
        (["subgroups=[site]"], "`subgroups` (site)"),
        (["train=from:stage9"], "`train` (from:stage9) must be all, head"),
        (["stain=macenko"], "`stain` (macenko) must be none for grey"),
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
