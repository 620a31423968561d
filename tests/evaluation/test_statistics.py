"""Intervals and tests: coverage and false positives by simulation, corrections against known examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jigsawssl.evaluation.resampling import draw_weights, resampled_auroc
from jigsawssl.evaluation.statistics import compare, holm, joint_samples, label_saving, percentile_interval


def model(rng: np.random.Generator, truth: np.ndarray, patient: np.ndarray, skill: float) -> np.ndarray:
    """Probabilities of a model that adds noise of its own to what makes a patient easy or hard."""
    score = skill * truth + patient + rng.normal(0, 0.7, len(truth))
    positive = 1 / (1 + np.exp(-score))
    return np.stack([1 - positive, positive], axis=1)


def study(rng: np.random.Generator, seeds: int, ahead: float, spread: float, patients: int = 120) -> list[np.ndarray]:
    """AUROC ``(J,)`` and bootstrap samples ``(J, R)`` of two encoders, of the same seeds and patients."""
    groups = np.repeat(np.arange(patients), 2)
    truth = np.repeat(rng.random(patients) < 0.4, 2).astype(int)
    ease = np.repeat(rng.normal(0, 0.8, patients), 2)
    weights = draw_weights(groups, 200, int(rng.integers(2**31)))
    found: list[np.ndarray] = []
    for gain in (ahead, 0.0):
        scores = [model(rng, truth, ease, 1.2 + gain + rng.normal(0, spread)) for _ in range(seeds)]
        every = np.ones((1, len(truth)))
        found.append(np.array([resampled_auroc(s, truth, every)[0] for s in scores]))
        found.append(np.stack([resampled_auroc(s, truth, weights) for s in scores]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.15, 0.5])
def test_the_paired_test_is_wrong_in_one_of_twenty_where_nothing_differs(spread: float) -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(1000):
        a, a_draws, b, b_draws = study(rng, 5, 0.0, spread)
        rejected += compare(a, b, first_draws=a_draws, second_draws=b_draws, test_share=1.0)["p"] < 0.05
    assert 30 <= rejected <= 70


@pytest.mark.slow
def test_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    # The truth by a large sample: P(score of a positive > score of a negative) of two normal distributions.
    truth_auroc = 0.5 * (1 + math.erf(1.2 / math.sqrt(2 * (0.8**2 + 0.7**2)) / math.sqrt(2)))
    covered = 0
    for _ in range(600):
        groups = np.repeat(np.arange(150), 2)
        truth = np.repeat(rng.random(150) < 0.4, 2).astype(int)
        ease = np.repeat(rng.normal(0, 0.8, 150), 2)
        scores = model(rng, truth, ease, 1.2)
        draws = resampled_auroc(scores, truth, draw_weights(groups, 500, int(rng.integers(2**31))))
        interval = percentile_interval(0.0, draws, units=150)
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= truth_auroc <= interval.high
    assert 0.92 <= covered / 600 <= 0.98


def test_a_clear_difference_is_found_and_its_sign_follows_the_order() -> None:
    a, a_draws, b, b_draws = study(np.random.default_rng(2), 5, 1.5, 0.05)
    found = compare(a, b, first_draws=a_draws, second_draws=b_draws, test_share=1.0)
    assert found["p"] < 0.01 and found["p_bootstrap"] < 0.01 and found["low"] > 0 and found["ahead"] == 5
    back = compare(b, a, first_draws=b_draws, second_draws=a_draws, test_share=1.0)
    assert back["difference"] == pytest.approx(-found["difference"]) and back["p"] == pytest.approx(found["p"])
    assert (back["low"], back["high"]) == pytest.approx((-found["high"], -found["low"]))


def test_nothing_differs_from_itself() -> None:
    a, a_draws, _, _ = study(np.random.default_rng(3), 3, 0.0, 0.1)
    found = compare(a, a, first_draws=a_draws, second_draws=a_draws, test_share=1.0)
    assert (found["difference"], found["p"], found["p_bootstrap"], found["effect"]) == (0.0, 1.0, 1.0, None)


def test_one_seed_is_judged_by_the_patients_alone() -> None:
    rng = np.random.default_rng(4)
    draws = rng.normal(0, 0.01, (2, 1, 4000))
    found = compare([0.82], [0.80], first_draws=draws[0] + 0.82, second_draws=draws[1] + 0.80, test_share=1.0)
    assert found["p_nadeau_bengio"] is None
    assert found["p"] == pytest.approx(math.erfc(0.02 / math.sqrt(2e-4) / math.sqrt(2)), rel=0.1)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_without_patients_noise_it_is_the_paired_t_test(seeds: int) -> None:
    from scipy import stats

    a, b = np.array([0.80, 0.84, 0.79, 0.88, 0.83])[:seeds], np.array([0.78, 0.80, 0.80, 0.82, 0.81])[:seeds]
    same = np.tile(a[:, None], (1, 50))
    found = compare(a, b, first_draws=same, second_draws=np.tile(b[:, None], (1, 50)), test_share=0.0)
    expected = stats.ttest_rel(a, b).pvalue
    assert found["p"] == pytest.approx(expected) and found["p_nadeau_bengio"] == pytest.approx(expected)
    assert found["effect"] == pytest.approx((a - b).mean() / (a - b).std(ddof=1))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize("of_patients", [0.002, 0.01, 0.05])
def test_the_error_is_that_of_seeds_and_patients_together(of_patients: float) -> None:
    rng = np.random.default_rng(5)
    a = np.array([0.80, 0.84, 0.79, 0.88, 0.83])
    shared = rng.normal(0, of_patients, 2000)
    shared *= of_patients / shared.std(ddof=1)
    found = compare(
        a, np.full(5, 0.78), first_draws=a[:, None] + shared, second_draws=np.full((5, 2000), 0.78), test_share=1.0
    )
    error = a.std(ddof=1) / math.sqrt(5) * rng.standard_t(4, 2_000_000) + of_patients * rng.standard_normal(2_000_000)
    assert found["p"] == pytest.approx((abs(error) >= found["difference"]).mean(), rel=0.02)
    assert found["high"] - found["difference"] == pytest.approx(np.quantile(abs(error), 0.95), rel=0.01)


@pytest.mark.slow
def test_small_p_values_are_as_rare_as_they_say() -> None:
    # Where many pairs are compared, the correction asks for p-values far below .05.
    rng, of_patients = np.random.default_rng(6), 0.25
    rejected = 0
    for _ in range(10_000):
        of_seeds, at = rng.normal(0, 1, 5), rng.normal(0, of_patients)
        draws = np.tile(rng.normal(0, of_patients, 100), (5, 1))
        rejected += (
            compare(of_seeds + at, np.zeros(5), first_draws=draws, second_draws=np.zeros((5, 100)), test_share=1.0)["p"]
            < 0.002
        )
    assert 5 <= rejected <= 30  # 20 are allowed; degrees of freedom by variance gave 54


def test_nadeau_and_bengio_by_hand() -> None:
    from scipy import stats

    a, b = np.array([0.9, 0.8, 0.85]), np.array([0.8, 0.8, 0.8])
    draws = np.zeros((3, 10))
    t = (a - b).mean() / math.sqrt((1 / 3 + 0.25) * (a - b).var(ddof=1))
    found = compare(a, b, first_draws=draws, second_draws=draws, test_share=0.25)
    assert found["p_nadeau_bengio"] == pytest.approx(2 * stats.t.sf(t, 2))


def test_draws_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must be \(2, R\)"):
        compare([1, 2], [1, 2], first_draws=np.zeros((3, 5)), second_draws=np.zeros((3, 5)), test_share=1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(values: list[float]) -> None:
    found = holm(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for place, index in enumerate(order):
        before = [min(1.0, values[j] * (len(values) - k)) for k, j in enumerate(order[: place + 1])]
        assert found[index] == pytest.approx(max(before))


def test_labels_saved_are_read_off_the_curve() -> None:
    def times(curve: list[float], target: float, at: float = 10) -> tuple[float, str]:
        found = label_saving([10, 100, 1000], [curve, curve], target=[target, target], at=at)
        assert found is not None and found.times == found.low == found.high
        return found.times["value"], found.times["side"]

    curve = [0.6, 0.8, 0.9]
    assert times(curve, 0.8) == (pytest.approx(10), "")
    assert times(curve, 0.7) == (pytest.approx(math.sqrt(10)), "")
    assert times(curve, 0.6) == (pytest.approx(1), "")
    assert times(curve, 0.95) == (pytest.approx(100), "more than")
    assert times(curve, 0.55) == (pytest.approx(1), "at most")
    assert times(curve, 0.55, at=1000) == (pytest.approx(0.01), "at most")
    # A dip is smoothed away and cannot make the answer ambiguous: .8 and .7 both become .75.
    assert times([0.6, 0.8, 0.7], 0.75) == (pytest.approx(10), "")
    assert label_saving([10, 100], [[math.nan, 0.8]] * 2, target=[0.8, 0.8], at=10) is None


def test_the_interval_of_labels_saved_comes_from_its_draws() -> None:
    rng = np.random.default_rng(0)
    curves = np.array([0.6, 0.8, 0.9]) + np.vstack([np.zeros(3), rng.normal(0, 0.01, (400, 3))])
    targets = np.concatenate([[0.85], rng.normal(0.85, 0.01, 400)])
    found = label_saving([10, 100, 1000], curves, target=targets, at=10)
    assert found is not None and found.low["value"] < found.times["value"] < found.high["value"]
    unreachable = label_saving([10, 100, 1000], curves, target=targets + 0.05, at=10)
    assert unreachable is not None and unreachable.high["side"] == "more than"  # some draws never reach it


@pytest.mark.slow
def test_the_interval_of_labels_saved_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    labels, truth = np.array([10, 30, 100, 300, 1000]), np.array([0.70, 0.75, 0.80, 0.85, 0.90])
    covered = 0
    for _ in range(200):
        patients = rng.normal(0, 0.01, (301, 1, 2))  # of each encoder; the first is what was observed
        between = rng.normal(0, 0.02, (5, 10))
        quality = np.concatenate([truth + 0.10, truth]) + between
        of_patients = np.repeat(patients, [5, 5], axis=2).reshape(301, 10)
        values = quality + of_patients[0]
        samples = joint_samples(values, values[:, None] + of_patients[None, 1:], seed=int(rng.integers(2**31)))
        found = label_saving(labels, samples[:, 5:], target=samples[:, 0], at=10)
        assert found is not None
        covered += found.low["value"] <= 10 <= found.high["value"]
    assert 0.92 <= covered / 200 <= 0.99


def test_joint_samples_have_the_variance_of_seeds_and_patients() -> None:
    rng = np.random.default_rng(6)
    values = np.array([[0.80, 0.70], [0.84, 0.72], [0.79, 0.69], [0.88, 0.75], [0.83, 0.71]])
    draws = values.mean(0) + rng.normal(0, 0.01, (1, 20_000, 1)) + np.zeros((5, 1, 2))
    samples = joint_samples(values, draws)
    assert samples[0].tolist() == pytest.approx(values.mean(0).tolist())
    # The t distribution with 4 degrees of freedom has twice the variance of the normal one.
    expected = 2 * np.cov(values.T) / 5 + 0.01**2
    np.testing.assert_allclose(np.cov(samples[1:].T), expected, rtol=0.15)


def test_an_undefined_draw_is_left_out_of_an_interval() -> None:
    assert percentile_interval(0.5, [math.nan] * 5, units=9) == (0.5, None, None)
    assert percentile_interval(None, [0.5, 0.6], units=9) == (None, None, None)
    with_gaps = percentile_interval(0.5, [0.4, math.nan, 0.6], units=9)
    assert (with_gaps.low, with_gaps.high) == pytest.approx((0.405, 0.595))


@pytest.mark.parametrize("units", [2, 5, 80])
def test_shares_at_their_ends_have_the_exact_interval(units: int) -> None:
    low = percentile_interval(1.0, np.ones(200), units=units).low
    high = percentile_interval(0.0, np.zeros(200), units=units).high
    # So many units in a row are right with a chance of 2.5 % where each is with this one.
    assert low == pytest.approx(0.025 ** (1 / units)) and high == pytest.approx(1 - 0.025 ** (1 / units))
    assert percentile_interval(1.0, np.ones((3, 200)), units=units).high == 1.0


def test_nothing_is_certain_because_all_resamples_agree() -> None:
    assert percentile_interval(0.808, np.full(200, 0.808), units=1) == (0.808, None, None)
    assert percentile_interval(0.5, [0.4, 0.6], units=1) == (0.5, None, None)
    assert percentile_interval(0.808, np.full(200, 0.808), units=9) == (0.808, None, None)
    assert percentile_interval(1.0, np.ones(200), units=9, share=False) == (1.0, None, None)
