"""Splits keep patients whole, classes present and smaller budgets inside larger ones."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jigsawssl.data.splits import cross_validation_folds, holdout_split, label_fraction
from jigsawssl.types import UserError

FRACTIONS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


def archive(seed: int, largest: int = 4, mixed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Unbalanced labels 0 to 2 with some -1, in groups of random sizes, in random order."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, largest + 1, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = np.repeat(rng.choice(3, 60, p=[0.6, 0.25, 0.15]), sizes)
    if mixed:
        stray = rng.random(labels.size) < 0.3
        labels[stray] = rng.integers(0, 3, stray.sum())
    labels[rng.random(labels.size) < 0.1] = -1
    order = rng.permutation(labels.size)
    return labels[order], np.char.add("patient ", groups[order].astype(str))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["alone", "small", "huge", "mixed"])
def test_label_fractions_are_nested_and_hold_every_class(seed: int, kind: str) -> None:
    labels, groups = archive(seed, largest=40 if kind == "huge" else 4, mixed=kind == "mixed")
    chosen = [label_fraction(labels, None if kind == "alone" else groups, fraction=f, seed=seed) for f in FRACTIONS]
    for smaller, larger in pairwise(chosen):
        assert np.isin(smaller, larger).all()
    for rows in chosen:
        assert rows.dtype == np.int64 and np.array_equal(rows, np.unique(rows))
        assert set(labels[rows]) == {0, 1, 2}, "every class, and never the unlabeled -1"
    assert np.array_equal(chosen[-1], np.flatnonzero(labels >= 0))


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_label_fraction_without_groups_meets_the_budget_exactly(fraction: float) -> None:
    labels = np.repeat([0, 1], [100, 400])
    rows = label_fraction(labels, None, fraction=fraction, seed=1)
    assert np.bincount(labels[rows]).tolist() == [max(1, round(fraction * 100)), max(1, round(fraction * 400))]


def test_label_fraction_takes_whole_groups_near_the_budget() -> None:
    labels, groups = np.repeat([0, 1], 300), np.repeat(np.arange(200), 3).astype(str)
    rows = label_fraction(labels, groups, fraction=0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [30, 30]
    assert set(np.unique(groups[rows], return_counts=True)[1]) == {3}


def test_label_fraction_divides_a_group_only_to_keep_the_budget() -> None:
    labels, groups = np.zeros(300, int), np.repeat(["a", "b", "c"], 100)
    assert label_fraction(labels, groups, fraction=0.02, seed=0).size == 6
    rows = label_fraction(labels, groups, fraction=0.3, seed=0)
    assert rows.size == 100 and len(set(groups[rows])) == 1


def test_label_fraction_of_a_class_that_is_nowhere_the_majority() -> None:
    rows = label_fraction([0, 0, 1, 0, 0, 1], list("aaabbb"), fraction=0.1, seed=0)
    assert sorted(np.array([0, 0, 1, 0, 0, 1])[rows]) == [0, 1]


def test_seeds_choose_differently_and_repeat() -> None:
    labels, groups = archive(0)
    one, again, other = (label_fraction(labels, groups, fraction=0.2, seed=seed).tolist() for seed in (0, 0, 1))
    assert one == again != other
    first, repeat, second = (holdout_split(labels, groups, share=0.2, seed=seed)[1].tolist() for seed in (0, 0, 1))
    assert first == repeat != second


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["alone", "small", "huge", "mixed"])
def test_folds_divide_rows_but_no_group(seed: int, kind: str) -> None:
    labels, groups = archive(seed, largest=20 if kind == "huge" else 4, mixed=kind == "mixed")
    known = np.flatnonzero(labels >= 0)
    folds = cross_validation_folds(labels, None if kind == "alone" else groups, folds=5, seed=seed)
    assert len(folds) == 5
    for train, val in folds:
        assert val.size and np.array_equal(np.union1d(train, val), known) and not np.intersect1d(train, val).size
        assert set(labels[train]) == {0, 1, 2}
        if kind != "alone":
            assert not set(groups[train]) & set(groups[val])
    validated = np.concatenate([val for _, val in folds])
    assert np.array_equal(np.sort(validated), known), "here no class has a single group, so each row has its turn"


def test_folds_are_stratified() -> None:
    labels = np.repeat([0, 1], [100, 25])
    for _, val in cross_validation_folds(labels, None, folds=5, seed=0):
        assert np.bincount(labels[val]).tolist() == [20, 5]
    train, val = holdout_split(labels, None, share=0.2, seed=0)
    assert np.bincount(labels[val]).tolist() == [20, 5] and train.size == 100


def test_a_class_with_a_single_group_is_never_validated_on() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1, 1, 2, 2]), np.array(list("aabcddef"))
    folds = cross_validation_folds(labels, groups, folds=10, seed=0)
    assert len(folds) == 3, "as many as class 1 has groups"
    for train, val in folds:
        assert val.size and {0, 1} <= set(train) and set(labels[train]) == {0, 1, 2}


def test_a_group_of_two_classes_does_not_take_one_away_from_train() -> None:
    # The largest group a goes to one fold; b and c, which share class 1, and d go to the other.
    labels, groups = np.array([0] * 7 + [0, 0, 1] * 2 + [0]), np.array(list("aaaaaaabbbcccd"))
    for seed in range(10):
        folds = cross_validation_folds(labels, groups, folds=2, seed=seed)
        assert sorted("".join(np.unique(groups[val])) for _, val in folds) == ["a", "d"]
        assert all(set(labels[train]) == {0, 1} for train, _ in folds)


def test_user_errors() -> None:
    labels, groups = [0, 0, 1, 1], ["a", "a", "b", "b"]
    for fraction in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"^`fraction`"):
            label_fraction(labels, None, fraction=fraction, seed=0)
    with pytest.raises(UserError, match=r"^`share` \(0.6\)"):
        holdout_split(labels, None, share=0.6, seed=0)
    with pytest.raises(UserError, match=r"^`folds` \(1\)"):
        cross_validation_folds(labels, None, folds=1, seed=0)
    with pytest.raises(UserError, match=r"^`groups` \(2\)"):
        cross_validation_folds(labels, groups, folds=5, seed=0)
    with pytest.raises(UserError, match=r"^`groups` \(2\)"):
        holdout_split(labels, groups, share=0.2, seed=0)
    with pytest.raises(UserError, match="all 2 are unlabeled"):
        label_fraction([-1, -1], None, fraction=0.5, seed=0)


def test_a_single_mixed_group_does_not_enlarge_the_budget() -> None:
    labels = np.array([0] * 60 + [1] * 40)
    rows = label_fraction(labels, np.array(["one patient"] * 100), fraction=0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [6, 4]


@given(st.data())
def test_a_budget_of_groups_takes_whole_groups_of_every_class(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=classes, max_size=40))
    owner = [number % classes for number in range(len(sizes))]
    labels = np.repeat(owner, sizes)
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    seed = data.draw(st.integers(0, 100))
    before: set[int] = set()
    for fraction in (0.01, 0.1, 0.3, 1.0):
        chosen = label_fraction(labels, groups, fraction=fraction, seed=seed, count_groups=True)
        names = set(groups[chosen])
        assert np.isin(groups, list(names)).sum() == len(chosen)
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())
        for label in range(classes):
            there = owner.count(label)
            taken = len(set(groups[chosen[labels[chosen] == label]]))
            assert taken == max(1, int(fraction * there + 0.5))
    assert len(before) == len(labels)
