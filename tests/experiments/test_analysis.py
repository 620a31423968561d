"""What is said of a curve, on cells whose answers are known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from jigsawssl.evaluation.assessment import Criteria, Predictions
from jigsawssl.experiments.aggregates import Done, difference_in_words
from jigsawssl.experiments.analysis import analyse, saving_in_words
from jigsawssl.runs.parts import Corrected, Judgement, Row, Saving

TRUTH = np.repeat([0, 1], 40)
COSTS = {0.01: (10, 2), 0.1: (100, 20), 1.0: (1000, 200)}


def cell(encoder: str, fraction: float, seed: int, auroc: float, cases: np.ndarray | None = None) -> Done:
    """Predictions whose AUROC is as asked, to a sixteen-hundredth: some negatives lie above all positives."""
    scores = np.where(TRUTH == 1, 0.5, 0.3) + np.linspace(0, 0.01, 80)
    scores[: round(40 * (1 - auroc))] += 0.4
    every = np.arange(80) if cases is None else cases
    predictions = Predictions(
        np.stack([1 - scores, scores], 1)[every], TRUTH[every], every // 2, np.zeros((0, 2)), TRUTH[:0], every
    )
    labels, groups = COSTS[fraction]
    budget = {"labels": labels, "groups": groups, "validation": "cross-validation"}
    facts = {"mode": "linear", "budget": budget, "chosen": {"method": "linear"}, "candidates": 5, "seconds": 1.0}
    return Done(encoder, fraction, seed, predictions, facts)


def curve(values: dict[str, list[float]], seeds: int = 3, **options: Any) -> dict[str, Any]:
    cells = [
        cell(encoder, fraction, seed, value)
        for encoder, line in values.items()
        for fraction, value in zip(COSTS, line, strict=True)
        for seed in range(seeds)
    ]
    return analyse(cells, encoders=list(values), criteria=Criteria(["well", "ill"]), **options)


def test_labels_saved_are_told_from_the_cheaper_encoder() -> None:
    found = curve({"ours": [0.9, 0.925, 0.95], "theirs": [0.8, 0.9, 0.95]})
    saving = found["savings"][0]
    assert (saving["cost"], saving["auroc"]) == (10, pytest.approx(0.9))
    assert saving["times"] == {"value": pytest.approx(10), "side": ""}
    assert any(
        "To be as good as ours with 10 labels (AUROC 0.900), theirs needs 10 times the labels" in sentence
        for sentence in found["sentences"]
    )
    # Where everything there is was spent there is nothing left to say.
    assert sum("To be as good" in sentence for sentence in found["sentences"]) <= 3


def test_an_encoder_that_lost_is_told_so() -> None:
    found = curve({"ours": [0.8, 0.85, 0.875], "theirs": [0.9, 0.925, 0.95]})
    assert found["savings"][0]["times"] == {"value": pytest.approx(1), "side": "at most"}
    assert found["savings"][2]["times"] == {"value": pytest.approx(0.01), "side": "at most"}
    sentences = " ".join(found["sentences"])
    assert "ours is 0.100 AUROC behind theirs" in sentences
    assert "With 10 labels, theirs is already as good as ours (AUROC 0.800)" in sentences


def bound(value: float, side: str = "") -> dict[str, Any]:
    return {"value": value, "side": side}


LEAST, MOST = bound(1.0, "at most"), bound(10.0, "more than")


@pytest.mark.parametrize(
    ("times", "low", "high", "expected"),
    [
        # Inside the curve, with an interval inside, open below, open above and open at both ends.
        (bound(2.46), bound(1.2), bound(5.0), "theirs needs 2.5 times the labels (95 % interval 1.2 to 5 times"),
        (bound(2.5), LEAST, bound(5.0), "theirs needs 2.5 times the labels (95 % interval up to 5 times the labels)."),
        (bound(2.5), bound(1.2), MOST, "theirs needs 2.5 times the labels (95 % interval 1.2 or more times the"),
        (bound(2.5), LEAST, MOST, "theirs needs 2.5 times the labels; the interval is too wide to say more."),
        (bound(0.998), bound(0.5), bound(2.0), "theirs needs as many labels (95 % interval 0.5 to 2 times the labels)"),
        (bound(120.0), bound(51.4), bound(310.0), "theirs needs 120 times the labels (95 % interval 51 to 310 times"),
        # At its lower end: it is as good with the fewest labels already.
        (
            LEAST,
            LEAST,
            MOST,
            "With 48 labels, theirs is already as good as ours (AUROC 0.800); the interval is too wide",
        ),
        (LEAST, LEAST, bound(3.0), "already as good as ours (AUROC 0.800) (95 % interval up to 3 times the labels)."),
        (LEAST, LEAST, LEAST, "already as good as ours (AUROC 0.800); the whole 95 % interval agrees."),
        (
            bound(0.1, "at most"),
            bound(0.1, "at most"),
            bound(0.6),
            "theirs needs at most 0.1 times the labels, the fewest tried (95 % interval up to 0.6 times",
        ),
        # At its upper end: it never gets there.
        (MOST, bound(8.9), MOST, "theirs needs more than 10 times the labels, the most tried (95 % interval"),
        (MOST, MOST, MOST, "needs more than 10 times the labels, the most tried; the whole 95 % interval"),
        (bound(1.0, "more than"), LEAST, MOST, "With 48 labels, theirs is not yet as good as ours (AUROC 0.800); the"),
    ],
)
def test_labels_saved_in_words(times: Any, low: Any, high: Any, expected: str) -> None:
    row = {"first": "ours", "second": "theirs", "auroc": 0.8, "times": times, "low": low, "high": high}
    found = saving_in_words(row, "48 labels")
    assert expected in found and found.endswith(".") and found.count(".") <= 8
    assert "at most 1 times" not in found and "at most 1 to" not in found


@pytest.mark.parametrize(
    ("difference", "ahead", "seeds", "expected"),
    [
        (0.02, 3, 3, "a is 0.020 AUROC ahead of b (95 % interval −0.010 to 0.000), ahead in 3 of 3 repetitions"),
        (0.02, 1, 3, "ahead of b (95 % interval −0.010 to 0.000), though ahead in 1 of 3 repetitions"),
        (-0.02, 2, 3, "a is 0.020 AUROC behind b (95 % interval −0.010 to 0.000), though ahead in 2 of 3 repetitions"),
        (-0.02, 1, 3, "behind b (95 % interval −0.010 to 0.000), ahead in 1 of 3 repetitions"),
        (-0.02, 0, 3, "behind b (95 % interval −0.010 to 0.000), ahead in no repetition"),
        (-0.0004, 2, 3, "a and b do not differ in AUROC to three digits (95 % interval −0.010 to 0.000)"),
        (0.0004, 2, 3, "a and b do not differ in AUROC to three digits"),
        (0.0006, 1, 1, "a is 0.001 AUROC ahead of b (95 % interval −0.010 to 0.000)"),
    ],
)
def test_a_difference_in_words(difference: float, ahead: int, seeds: int, expected: str) -> None:
    row = {"first": "a", "second": "b", "low": -0.01, "high": -0.0001, "ahead": ahead, "seeds": seeds}
    found = difference_in_words({**row, "difference": difference}, "AUROC")
    assert expected in found and "0.000 AUROC" not in found and "-" not in found
    assert ("repetition" in found) == ("repetition" in expected)


def test_seeds_that_do_not_differ_leave_one_test_undefined() -> None:
    found = curve({"ours": [0.9, 0.9, 0.9], "theirs": [0.8, 0.8, 0.8]})
    assert {row["p_nadeau_bengio"] for row in found["comparisons"]} == {None}
    auroc = [row for row in found["comparisons"] if row["metric"] == "auroc"]
    assert [row["p_holm"] for row in auroc] == pytest.approx([min(1.0, 3 * row["p"]) for row in auroc])
    assert "3 repetitions" in found["sentences"][2] and "3 draws of the labels" in found["sentences"][0]


def test_a_budget_of_groups_is_counted_in_groups() -> None:
    found = curve({"ours": [0.9, 0.925, 0.95], "theirs": [0.8, 0.9, 0.95]}, count_groups=True)
    assert [row["cost"] for row in found["table"][::2]] == [2, 20, 200]
    assert found["savings"][0]["cost"] == 2 and "2 groups, 10 images" in found["sentences"][0]


def test_nothing_is_compared_where_the_test_split_shows_one_class() -> None:
    cells = [cell(name, fraction, 0, 0.9, np.arange(40)) for name in ("a", "b") for fraction in COSTS]
    found = analyse(cells, encoders=["a", "b"], criteria=Criteria(["well", "ill"]))
    assert found["savings"] == [] and not any(row["metric"] == "auroc" for row in found["comparisons"])
    assert not any("nan" in sentence for sentence in found["sentences"])
    assert any("not defined on this test split" in note for note in found["notes"])


def test_cells_are_compared_on_the_cases_that_all_have() -> None:
    cells = [cell("a", 0.01, 0, 0.9), cell("b", 0.01, 0, 0.9, np.delete(np.arange(80), [3, 70]))]
    found = analyse(
        cells, encoders=["a", "b"], criteria=Criteria(["well", "ill"], subgroups={"site": np.array(["x", "y"] * 40)})
    )
    assert found["comparisons"][0]["difference"] == 0
    assert any("2 test images could not be read" in note for note in found["notes"])
    for detail in found["details"]:
        assert detail["metrics"]["count"] == 78
        assert sum(row["images"] for row in detail["subgroups"]["site"]) == 78


def test_missing_cells_and_single_encoders_are_no_trouble() -> None:
    assert analyse([], encoders=["a", "b"], criteria=Criteria(["well", "ill"]))["table"] == []
    alone = analyse([cell("a", 0.01, 1, 0.9)], encoders=["a"], criteria=Criteria(["well", "ill"]))
    assert alone["comparisons"] == alone["savings"] == [] and alone["details"][0]["ensemble"] is None
    assert re.match(r"With 1 % of the labels \(10 labels\), a reaches an AUROC of 0.900", alone["sentences"][0])
    uneven = analyse(
        [cell("a", 0.01, 0, 0.9), cell("b", 0.01, 1, 0.8)], encoders=["a", "b"], criteria=Criteria(["well", "ill"])
    )
    assert uneven["comparisons"] == []


def test_images_without_patients_are_called_images() -> None:
    each = [cell("a", 0.01, 0, 0.9)]
    each[0] = each[0]._replace(predictions=each[0].predictions._replace(groups=np.arange(80)))
    found = analyse(each, encoders=["a"], criteria=Criteria(["well", "ill"]))
    assert any("counts as a patient" in note for note in found["notes"]) and found["details"][0]["unit"] == "images"


def test_parts_of_a_report_hold_what_their_types_say() -> None:
    found = curve({"a": [0.7, 0.8, 0.9], "b": [0.6, 0.7, 0.8]})
    assert all(set(row) == Row.__required_keys__ for row in found["table"]) and found["table"]
    assert all(set(row) == Corrected.__required_keys__ for row in found["comparisons"]) and found["comparisons"]
    assert all(set(row) == Saving.__required_keys__ for row in found["savings"]) and found["savings"]
    for detail in found["details"]:
        assert Judgement.__optional_keys__ - {"subgroups", "explanations"} <= set(detail)
