"""The verdict of a report: each flag on both sides of its threshold, and what is said in one or two sentences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from scipy.stats import binom

from jigsawssl.data.doctor import TOO_FEW
from jigsawssl.report.verdict import (
    AGREEMENT,
    BORDER,
    COLLAPSED_RANK,
    COLLAPSED_SPREAD,
    DOUBT,
    FALLING_RANK,
    FEW_CASES,
    LEARNED,
    SANITY,
    WIDE,
    WORSE_CALIBRATION,
    flags,
    validation_sentence,
    verdict,
    verdict_lines,
)

CLASSES = ("well", "ill")


def judged(**changes: Any) -> dict[str, Any]:
    """A result that nothing is wrong with."""
    found: dict[str, Any] = {
        "metrics": {
            "auroc": 0.9,
            "count": 200,
            "per_class": {name: {"support": 100} for name in CLASSES},
            "confusion_matrix": [[80, 20], [20, 80]],
        },
        "intervals": {"auroc": [0.85, 0.95]},
        "unit": "images",
        "units": 200,
        "calibration": {"before": {"calibration_error": 0.1}, "after": {"calibration_error": 0.05}},
        "conformal": {"asked": 0.9, "reached": 0.9},
        "validation": {"auroc": 0.92, "images": 40},
        "explanations": {"sanity_correlation": 0.0, "border_share": 0.3, "border_area": 0.36},
    }
    return {**found, **changes}


def finetuned(**changes: Any) -> dict[str, Any]:
    report: dict[str, Any] = {
        "command": "finetune",
        "config": {"validation": "budget"},
        "data": {"test": {"images": 200, "groups": 90}},
        "encoder": {"reference": "pretrain/encoder.safetensors", "backbone": "resnet18"},
        "budget": {"labels": 40, "fraction": 0.1, "groups": 20, "per_class": dict.fromkeys(CLASSES, 20)},
        "leak_guard": {"checked": "by content and group", "same_image": [], "same_group": [], "allowed": False},
        "test_unreadable": {},
        "judgement": judged(),
    }
    report["budget"]["validation"] = "cross-validation by group with 5 folds inside the fraction"
    report["test"] = report["judgement"]["metrics"]
    return {**report, **changes}


def pretrained(agreement: float = 0.8, rank: float = 40.0, spread: float = 0.5, first: float = 30.0) -> dict[str, Any]:
    return {
        "command": "pretrain",
        "data": {"images": 1600, "unreadable": {}},
        "encoder": {"backbone": "resnet18", "features": 240},
        "run": {"epochs": 15, "seconds": 192.0},
        "metrics": {"diagonal_all": agreement, "effective_rank": rank, "feature_std": spread},
        "first_epoch": {"diagonal_all": 0.3, "effective_rank": first},
    }


def kinds(report: dict[str, Any]) -> set[str]:
    return {flag.kind for flag in flags(report)}


def set_at(report: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value changed."""
    found = copy.deepcopy(report)
    *folders, name = path.split("/")
    inside = found
    for folder in folders:
        inside = inside[folder]
    inside[name] = value
    return found


def test_nothing_is_flagged_where_nothing_is_wrong() -> None:
    assert flags(finetuned()) == [] and flags(pretrained()) == []


CASES_OF_200 = int(binom.ppf(DOUBT, 200, 0.9))  # the fewest that a promise kept may cover

J = "judgement/"


@pytest.mark.parametrize(
    ("kind", "path", "fine", "failed"),
    [
        ("calibration", J + "calibration/after/calibration_error", 0.1 + WORSE_CALIBRATION - 1e-6, 0.1061),
        ("conformal", J + "conformal/reached", CASES_OF_200 / 200, (CASES_OF_200 - 1) / 200),
        ("conformal", J + "units", 60, 200),
        ("sanity", J + "explanations/sanity_correlation", SANITY, SANITY + 0.01),
        ("sanity", J + "explanations/sanity_correlation", -SANITY, -SANITY - 0.01),
        ("border", J + "explanations/border_share", BORDER * 0.36, BORDER * 0.36 + 0.01),
        ("coarse", J + "explanations/coarse", False, True),
        ("chance", J + "intervals/auroc", [0.501, 0.55], [0.5, 0.55]),
        ("chance", J + "intervals/auroc", [0.501, 0.55], [0.3, 0.49]),
        ("wide", J + "intervals/auroc", [0.7, 0.7 + WIDE - 1e-6], [0.7, 0.7 + WIDE + 1e-6]),
        ("small test", J + "units", TOO_FEW, TOO_FEW - 1),
        ("no cases", "test/per_class/ill/support", 100, 0),
        ("few cases", "test/per_class/ill/support", FEW_CASES, FEW_CASES - 1),
        ("one answer", "test/confusion_matrix", [[99, 1], [100, 0]], [[100, 0], [100, 0]]),
        ("no labels", "budget/per_class/ill", 1, 0),
        ("unreadable", "test_unreadable", {}, {"a.png": "truncated"}),
        ("leak", "leak_guard/same_image", [], ["a.png"]),
        ("leak", "leak_guard/same_group", 0, 3),
        ("leak", "leak_guard/checked", "not needed: fresh weights", "unknown: no seen.parquet beside the encoder"),
        ("leak", "leak_guard/checked", "unknown: published weights", "in part: earlier training left no seen.parquet"),
        ("validation groups", "budget/validation", "9 of the labels", "9 of the labels; of groups it trains on"),
    ],
)
def test_a_flag_on_both_sides_of_its_threshold(kind: str, path: str, fine: Any, failed: Any) -> None:
    report = finetuned()
    if kind == "conformal" and path == J + "units":
        report = set_at(report, J + "conformal/reached", 0.87)  # of 60 cases that may be chance, of 200 hardly
    report["test"] = report["judgement"].pop("metrics")  # as report.json keeps it
    assert kinds(set_at(report, path, fine)) == set()
    assert kinds(set_at(report, path, failed)) == {kind}


def test_a_small_split_matters_only_where_it_chooses() -> None:
    report = set_at(finetuned(), "data/validation", {"images": TOO_FEW - 1})
    assert kinds(report) == set()
    report["config"]["validation"] = "split"
    assert kinds(report) == {"small validation"}
    assert kinds(set_at(report, "data/validation/images", TOO_FEW)) == set()
    few = {"images": 10 * TOO_FEW, "groups": TOO_FEW - 1}  # images of one patient are one case
    assert kinds(set_at(report, "data/validation", few)) == {"small validation"}


@pytest.mark.parametrize(
    ("reached", "cases", "said"),
    [
        (0.9, 40, None),
        (0.95, 40, None),
        (0.81, 40, "(p = 0.042, unlikely to be chance)"),
        (0.81, 60, "(p = 0.034, unlikely to be chance)"),
        (0.825, 40, "(p = 0.1, which may be chance with 40 images)"),
        (0.85, 40, None),
        (0.89, 1000, "(p = 0.16, which may be chance with 1,000 images)"),
    ],
)
def test_conformal_sets_that_hold_too_few(reached: float, cases: int, said: str | None) -> None:
    report = set_at(finetuned(), J + "conformal/reached", reached)
    found = [flag.text for flag in flags(set_at(report, J + "units", cases)) if flag.kind == "conformal"]
    assert [said in text for text in found] == ([] if said is None else [True])


@pytest.mark.parametrize(
    ("kind", "fine", "failed"),
    [
        ("agreement", {"agreement": AGREEMENT}, {"agreement": AGREEMENT - 0.01}),
        ("collapse", {"spread": COLLAPSED_SPREAD}, {"spread": COLLAPSED_SPREAD - 0.001}),
        ("collapse", {"rank": COLLAPSED_RANK, "first": 2.0}, {"rank": COLLAPSED_RANK - 0.01, "first": 2.0}),
        ("rank", {"rank": FALLING_RANK * 30}, {"rank": FALLING_RANK * 30 - 0.1}),
    ],
)
def test_signs_of_a_pretraining_that_failed(kind: str, fine: dict[str, float], failed: dict[str, float]) -> None:
    assert kinds(pretrained(**fine)) == set()
    assert kinds(pretrained(**failed)) == {kind}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"agreement": LEARNED}, "It learned:"),
        ({"agreement": LEARNED - 0.01}, "It learned a little:"),
        ({"rank": 14.0}, "It learned a little:"),
        ({"agreement": AGREEMENT - 0.01}, "It did not learn:"),
        ({"spread": 0.0}, "It did not learn:"),
    ],
)
def test_a_pretraining_says_whether_it_learned(values: dict[str, float], said: str) -> None:
    found = verdict(pretrained(**values))
    assert found.result.startswith(said)
    assert found.done == "Pretrained resnet18 on 1,600 images without labels: 15 epochs in 3.2 min."


def test_a_run_of_one_epoch_or_of_an_older_version_has_no_trend() -> None:
    report = pretrained()
    report["run"]["epochs"] = 1
    assert "first epoch" not in verdict(report).result
    del report["first_epoch"]
    assert "correlate at 0.80 (1 is best)" in verdict(report).result
    assert flags(report) == []


def test_a_finetuning_says_its_number_with_the_interval() -> None:
    found = verdict(finetuned())
    assert found.result == "Test AUROC 0.900 (95 % interval 0.850 to 0.950)."
    assert found.done.startswith("Adapted pretrain/encoder.safetensors (resnet18) with ")
    assert "40 labels of 20 groups (10 % of those available)" in found.done
    assert "200 images of 90 groups" in found.done
    one = finetuned(judgement=judged(intervals={}), test={**judged()["metrics"], "auroc": None})
    del one["judgement"]["metrics"]
    assert "not defined" in verdict(one).result


def test_equal_flags_of_several_parts_become_one() -> None:
    bad = judged(calibration={"before": {"calibration_error": 0.1}, "after": {"calibration_error": 0.2}})
    worse = judged(calibration={"before": {"calibration_error": 0.1}, "after": {"calibration_error": 0.3}})
    names = {"a": bad, "b": worse, "c": judged()}
    leak = {"checked": "unknown: no seen.parquet beside the encoder"}
    report = {
        **{key: finetuned()[key] for key in ("config", "data")},
        "command": "curve",
        "missing": 0,
        "encoders": {"a": {"leak_guard": leak}, "b": {"leak_guard": leak}},
        "table": [],
        "details": [
            {"encoder": name, "fraction": 0.1, "budget": finetuned()["budget"], **found}
            for name, found in names.items()
        ],
    }
    calibration, unknown = flags(report)
    assert calibration.where == "a with 10 % of the labels" and "from 0.100 to 0.200" in calibration.text
    assert calibration.text.endswith("The same holds for b with 10 % of the labels.")
    assert (unknown.kind, unknown.where) == ("leak", "a and b")
    lines = verdict_lines(verdict(report))
    assert len(lines) == 3 and lines[2].startswith("! a and b: Whether pretraining saw")


def test_a_chain_flags_its_stages_by_name() -> None:
    stages = [{"name": "1-archive", **pretrained(agreement=0.1)}, {"name": "2-target", **finetuned()}]
    found = verdict({"command": "transfer", "stages": stages})
    assert [(flag.kind, flag.where) for flag in found.flags] == [("agreement", "1-archive")]
    assert "test AUROC of 0.900 (95 % interval 0.850 to 0.950) on 200 images" in found.result


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cross-validation by image with 5 folds inside the fraction", "trained on only part of the labels"),
        ("40 of the labels, by group, inside the fraction", "trained without these labels"),
        ("the manifest's val split, 40 labels outside the fraction", "the manifest defines both splits"),
        ("8 of the labels, by image; validation sees images of groups it trains on", "patients in the training data"),
    ],
)
def test_validation_beside_the_test_says_why_they_differ(how: str, reason: str) -> None:
    text = validation_sentence(judged(), {"validation": how})
    assert text is not None and text.startswith("Validation AUROC 0.920 (") and "test AUROC 0.900" in text
    assert reason in text and "The difference may be chance" in text and "40 images give only a rough estimate" in text
    far = validation_sentence(judged(validation={"auroc": 0.99, "images": 400}), {"validation": how})
    assert far is not None and "chance" not in far and "rough" not in far
    assert validation_sentence(judged(validation=None), {"validation": how}) is None
