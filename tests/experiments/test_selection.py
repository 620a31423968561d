"""Which images are chosen, against brute force on small sets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from jigsawssl import defaults
from jigsawssl.experiments.selection import (
    METHODS,
    NEIGHBOURS,
    PURITY,
    Candidates,
    Selection,
    cluster,
    cover_radius,
    covered,
    natural_clusters,
    normalized,
    reachable,
    select,
)
from jigsawssl.types import UserError

NONE = np.array([], dtype=np.int64)
WITHOUT_LABELS = [name for name, method in METHODS.items() if not method.needs_labels]


def clouds(count: int = 120, classes: int = 4, seed: int = 0) -> NDArray[np.float64]:
    """Features around so many centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 4, size=(classes, 6))
    return centres[np.arange(count) % classes] + rng.normal(0, 1, size=(count, 6))


def certain(count: int, seed: int = 1) -> NDArray[np.float64]:
    drawn: NDArray[np.float64] = np.random.default_rng(seed).dirichlet(np.ones(3), size=count)
    return drawn


def chosen(method: str, candidates: Candidates, count: int, seed: int = 0) -> Selection:
    if METHODS[method].needs_labels and candidates.probabilities is None:
        candidates = candidates._replace(probabilities=certain(len(candidates.features)))
    return select(candidates, method=method, count=count, seed=seed)


def distances(features: NDArray[np.float64]) -> NDArray[np.float64]:
    unit = normalized(features).astype(np.float64)
    found: NDArray[np.float64] = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    return found


def test_the_command_line_knows_every_method() -> None:
    assert set(METHODS) == set(defaults.SELECTIONS)


@pytest.mark.parametrize("method", METHODS)
def test_choices_are_different_unlabelled_and_the_same_again(method: str) -> None:
    candidates = Candidates(clouds(), np.array([3, 17]))
    found = chosen(method, candidates, 12)
    assert len(set(found.rows.tolist())) == 12 == len(found.reasons) == len(found.clusters)
    assert not {3, 17} & set(found.rows.tolist())
    again = chosen(method, candidates, 12)
    assert again.rows.tolist() == found.rows.tolist() and again.reasons == found.reasons


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [1, 2])
def test_no_group_gives_more_than_it_may(method: str, most: int) -> None:
    groups = np.arange(120) // 6  # twenty patients of six images
    known = np.array([0, 1, 60])
    candidates = Candidates(clouds(), known, groups, most)
    found = chosen(method, candidates, 200)
    counts = np.bincount(groups[np.concatenate([found.rows, known])], minlength=20)
    # Two of the first patient were labelled before, which is more than may be where one is allowed.
    assert counts.tolist() == [2, *[most] * 19]
    assert len(found.rows) == reachable(candidates)


def test_zero_means_any_number_of_a_group() -> None:
    candidates = Candidates(clouds(), NONE, np.zeros(120, dtype=np.int64), 0)
    assert len(chosen("random", candidates, 7).rows) == 7 and reachable(candidates) == 120


def test_typical_takes_the_densest_image_of_the_largest_cluster_first() -> None:
    features = clouds(seed=3)
    found = chosen("typical", Candidates(features, NONE), 4, seed=5)
    own = cluster(normalized(features), 4, int(np.random.default_rng(5).integers(2**31)))
    between = distances(features)
    sizes = np.bincount(own)
    expected = []
    for number in sorted(range(4), key=lambda one: (-sizes[one], one)):
        rows = np.flatnonzero(own == number)
        near = np.sort(between[np.ix_(rows, rows)], axis=1)[:, 1 : min(NEIGHBOURS, len(rows) - 1) + 1]
        expected.append(int(rows[np.argmin(near.mean(axis=1))]))
    assert found.rows.tolist() == expected
    assert sorted(found.clusters.tolist()) == [0, 1, 2, 3]


def test_typical_begins_where_nothing_is_labelled() -> None:
    features = clouds()
    known = np.flatnonzero(np.arange(120) % 4 == 0)[:1]
    found = chosen("typical", Candidates(features, known), 3)
    # Of four clouds one is labelled; the three others come first.
    assert {row % 4 for row in found.rows.tolist()} == {1, 2, 3}


def test_k_centre_is_farthest_first() -> None:
    features, known = clouds(), np.array([5])
    between = distances(features)
    expected, reached = [], between[5]
    for _ in range(8):
        expected.append(int(np.argmax(np.where(np.isin(np.arange(120), [5, *expected]), -1, reached))))
        reached = np.minimum(reached, between[expected[-1]])
    assert chosen("k-centre", Candidates(features, known), 8).rows.tolist() == expected


def test_coverage_is_greedy_over_what_is_not_covered() -> None:
    features, known = clouds(seed=7), np.array([11])
    seed = int(np.random.default_rng(0).integers(2**31))
    unit = normalized(features)
    near = distances(features) <= cover_radius(unit, clusters=natural_clusters(unit, seed=seed), seed=seed)
    uncovered, expected = ~near[11], list[int]()
    for _ in range(6):
        gain = np.where(np.isin(np.arange(120), [11, *expected]), -1, (near & uncovered).sum(axis=1))
        expected.append(int(np.argmax(gain)))
        uncovered &= ~near[expected[-1]]
    found = chosen("coverage", Candidates(features, known), 6)
    got, left = found.rows.tolist(), ~near[11]
    for row, best in zip(got, expected, strict=True):  # ties may be broken in another way
        assert (near[row] & left).sum() == (near[best] & left).sum()
        left &= ~near[row]
    assert found.reasons[0] == f"speaks for {(near[got[0]] & ~near[11]).sum()} images that no other one does"


@pytest.mark.parametrize("method", WITHOUT_LABELS)
def test_the_share_covered_grows_with_the_count(method: str) -> None:
    features = clouds()
    radius = cover_radius(normalized(features), clusters=4)
    shares = [
        covered(normalized(features), chosen(method, Candidates(features, NONE), n).rows, radius=radius)
        for n in (1, 4, 60)
    ]
    assert 0 < shares[0] <= shares[1] <= shares[2] <= 1


def test_coverage_covers_more_than_chance() -> None:
    features = clouds(count=400, classes=8)
    radius = cover_radius(normalized(features), clusters=8)
    candidates = Candidates(features, NONE)
    by_chance = [
        covered(normalized(features), chosen("random", candidates, 8, seed).rows, radius=radius) for seed in range(20)
    ]
    assert covered(normalized(features), chosen("coverage", candidates, 8).rows, radius=radius) > np.mean(by_chance)


def test_the_share_covered_is_that_of_brute_force() -> None:
    features = clouds()
    near = distances(features) <= 0.6
    assert covered(normalized(features), np.array([2, 9]), radius=0.6) == pytest.approx((near[2] | near[9]).mean())


def test_balls_of_the_radius_are_as_pure_as_promised() -> None:
    features = clouds(count=300, seed=9)
    own = cluster(normalized(features), 4, 0)
    near = distances(features) < cover_radius(normalized(features), clusters=4)
    pure = np.mean([len(set(own[row].tolist())) == 1 for row in near])
    assert pure == pytest.approx(PURITY, abs=0.01)


@pytest.mark.parametrize(("classes", "count"), [(3, 90), (6, 240)])
def test_clusters_are_counted_without_labels(classes: int, count: int) -> None:
    rng = np.random.default_rng(2)
    centres = 20 * np.eye(8)[:classes]
    assert (
        natural_clusters(normalized(centres[np.arange(count) % classes] + rng.normal(0, 0.5, size=(count, 8))))
        == classes
    )


def test_uncertain_images_are_those_of_small_margin() -> None:
    features, probabilities = clouds(), certain(120)
    found = chosen("margin", Candidates(features, NONE, probabilities=probabilities), 6)
    ordered = np.sort(probabilities, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    # Among the ten times as many least certain ones, one of each cluster; the least certain of all is always there.
    assert set(found.rows.tolist()) <= set(np.argsort(margin)[:60].tolist())
    assert int(np.argmin(margin)) in found.rows and len(set(found.clusters.tolist())) == 6
    by_entropy = chosen("entropy", Candidates(features, NONE, probabilities=probabilities), 6)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    assert int(np.argmax(entropy)) in by_entropy.rows


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(UserError, match="`method` \\(best\\) must be one of random, stratified, typical"):
        select(Candidates(clouds(), NONE), method="best", count=3)
    with pytest.raises(UserError, match="`method` \\(margin\\) needs labelled images"):
        select(Candidates(clouds(), NONE), method="margin", count=3)


def test_equal_images_do_not_stop_a_choice() -> None:
    features = np.repeat(clouds(4), 30, axis=0)
    for method in WITHOUT_LABELS:
        assert len(set(chosen(method, Candidates(features, NONE), 10).rows.tolist())) == 10
