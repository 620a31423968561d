"""What is said of a study, on cells whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from jigsawssl.evaluation.assessment import Criteria, Predictions
from jigsawssl.experiments.aggregates import Done
from jigsawssl.experiments.ranking import IN_DOMAIN, analyse_study, cliques
from jigsawssl.report.plots import critical_difference_svg, variants_svg

TRUTH = np.repeat([0, 1], 200)
RNG = np.random.default_rng(0)
HARD = RNG.permutation(200)
"""Which cases go wrong first, the same for all variants, as some cases are hard for everybody."""


def cell(variant: str, seed: int, wrong: int) -> Done:
    """Of each class, the ``wrong`` hardest cases are wrong: the balanced accuracy is ``1 - wrong / 200``."""
    scores = np.where(TRUTH == 1, 0.8, 0.2)
    for start in (0, 200):
        at = start + HARD[:wrong]
        scores[at] = 1 - scores[at]
    every = np.arange(400)
    predictions = Predictions(np.stack([1 - scores, scores], 1), TRUTH, every, np.zeros((0, 2)), TRUTH[:0], every)
    budget = {"labels": 400, "groups": 400, "validation": "hold-out"}
    maps = {"Grad-CAM": {"border_share": 0.1 * (seed + 1), "agreement": None}}
    facts: dict[str, Any] = {
        "mode": "full",
        "budget": budget,
        "chosen": {},
        "candidates": 1,
        "seconds": 1.0,
        "maps": maps,
    }
    return Done(variant, 1.0, seed, predictions, facts)


def study(wrong: dict[str, list[int]], against: dict[str, str] | None = None) -> dict[str, Any]:
    cells = [cell(name, seed, number) for name, line in wrong.items() for seed, number in enumerate(line)]
    first = next(iter(wrong))
    searches = {name: {"score": 0.9} for name in wrong}
    return analyse_study(
        {IN_DOMAIN: cells},
        against=against or dict.fromkeys(wrong, first),
        searches=searches,
        criteria=Criteria(["well", "ill"]),
        fraction=1.0,
    )


def test_ranks_and_friedman_are_those_of_scipy() -> None:
    wrong = {"a": [10, 12, 14, 9], "b": [20, 22, 13, 25], "c": [30, 31, 36, 30]}
    found = study(wrong)["ranking"][IN_DOMAIN]
    assert found["ranks"] == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert found["friedman_p"] == pytest.approx(friedmanchisquare(*wrong.values()).pvalue)
    assert found["seeds"] == 4


def test_what_is_far_apart_is_told_apart_and_what_is_near_is_joined() -> None:
    found = study({"best": [10, 12, 11, 13, 12], "next": [11, 11, 12, 12, 13], "last": [90, 95, 92, 91, 94]})
    assert found["ranking"][IN_DOMAIN]["cliques"] == [["best", "next"]]
    rows = {row["first"]: row for row in found["comparisons"] if row["metric"] == "balanced_accuracy"}
    assert rows["last"]["difference"] == pytest.approx(-0.404) and rows["last"]["p_holm"] < 0.001
    assert rows["next"]["p_holm"] > 0.05
    sentence = next(text for text in found["sentences"] if "last has" in text)
    assert "last is 0.404 balanced accuracy behind best" in sentence and "unlikely to be chance" in sentence
    assert "2 of 3 pairs of variants differ significantly" in found["sentences"][0]


def test_the_family_of_tests_is_every_variant_with_what_it_names() -> None:
    found = study({"a": [10, 20], "b": [10, 21], "c": [12, 20]}, {"a": "a", "b": "a", "c": "b"})
    pairs = [(row["first"], row["second"]) for row in found["comparisons"] if row["metric"] == "auroc"]
    assert pairs == [("b", "a"), ("c", "b")]
    for metric in ("auroc", "balanced_accuracy"):
        rows = [row for row in found["comparisons"] if row["metric"] == metric]
        assert min(row["p_holm"] for row in rows) == pytest.approx(min(1.0, 2 * min(row["p"] for row in rows)))


def test_a_pair_that_names_each_other_is_tested_once() -> None:
    found = study({"a": [10, 20, 15], "b": [14, 21, 19]}, {"a": "b", "b": "a"})
    assert [(row["first"], row["p"] == row["p_holm"]) for row in found["comparisons"]] == [("a", True)] * 2


def test_one_repetition_is_said_to_be_little() -> None:
    found = study({"a": [10], "b": [90]})
    assert "though one repetition does not show how much training itself varies" in found["sentences"][-1]
    assert "one repetition" not in study({"a": [10, 11], "b": [90, 91]})["sentences"][-1]


def test_no_repetition_in_common_is_said() -> None:
    cells = [cell("a", 0, 10), cell("b", 1, 12)]
    found = analyse_study(
        {IN_DOMAIN: cells}, against={"a": "a", "b": "a"}, searches={}, criteria=Criteria(["well", "ill"]), fraction=1.0
    )
    assert found["ranking"] == {} and any("No ranks" in note for note in found["notes"])


def test_a_missing_repetition_narrows_what_is_compared() -> None:
    found = study({"a": [10, 12, 14], "b": [20, 22]})
    assert found["ranking"][IN_DOMAIN]["seeds"] == 2
    assert {row["encoder"]: row["seeds"] for row in found["table"]} == {"a": 3, "b": 2}
    assert {row["seeds"] for row in found["comparisons"]} == {2}


def test_explanations_are_means_over_repetitions() -> None:
    rows = study({"a": [10, 12], "b": [20, 22]})["explanations"]
    assert rows[0]["border_share"] == pytest.approx(0.15) and rows[0]["agreement"] is None


def test_nothing_finished_is_no_error() -> None:
    found = analyse_study(
        {IN_DOMAIN: []}, against={"a": "a", "b": "a"}, searches={}, criteria=Criteria(["well", "ill"]), fraction=1.0
    )
    assert found["table"] == found["comparisons"] == found["sentences"] == [] and found["best"] is None


def test_cliques_are_the_longest_runs() -> None:
    apart = {frozenset(pair) for pair in ("ac", "ad", "ae", "be")}
    assert cliques("abcde", apart) == [["a", "b"], ["b", "c", "d"], ["c", "d", "e"]]
    assert cliques("ab", {frozenset("ab")}) == []


def test_figures_name_every_variant() -> None:
    found = study({"a$b": [10, 12, 11], "next": [11, 11, 12], "last": [90, 95, 92]})
    for svg in (
        critical_difference_svg(found["ranking"][IN_DOMAIN], "ranks"),
        variants_svg(found["table"], "auroc", "AUROC"),
    ):
        for name in ("next", "last", "a$b"):
            assert name in svg
        assert svg.startswith("<svg") and "#010203" not in svg
