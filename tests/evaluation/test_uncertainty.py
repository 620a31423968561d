"""Calibration, conformal sets and abstention against simulations and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jigsawssl.evaluation.decisions import at_threshold, net_benefit, threshold_for_sensitivity
from jigsawssl.evaluation.uncertainty import (
    apply_temperature,
    conformal_sets,
    ensemble,
    fit_temperature,
    reliability,
    risk_coverage,
)


def draw(rng: np.random.Generator, count: int, size: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities: the label is drawn from them."""
    scores = rng.dirichlet(np.ones(size), size=count)
    labels = (scores.cumsum(1) < rng.random((count, 1))).sum(1).clip(max=size - 1)
    return scores, labels


def test_temperature_undoes_what_made_a_calibrated_model_too_sure() -> None:
    scores, labels = draw(np.random.default_rng(0), 20_000)
    for wrong in (0.5, 1.0, 2.5):
        assert fit_temperature(apply_temperature(scores, 1 / wrong), labels) == pytest.approx(wrong, rel=0.05)


def test_temperature_agrees_with_gradient_descent_on_logits() -> None:
    scores, labels = draw(np.random.default_rng(1), 400)
    scores = apply_temperature(scores, 0.6)
    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logits, target = torch.from_numpy(np.log(scores)), torch.from_numpy(labels)
    optimizer = torch.optim.LBFGS([log], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits / log.exp(), target)
        value.backward()
        return value

    optimizer.step(loss)
    assert fit_temperature(scores, labels) == pytest.approx(float(log.detach().exp()), rel=1e-3)


def test_temperature_changes_no_decision() -> None:
    scores, _ = draw(np.random.default_rng(2), 200, size=5)
    for temperature in (0.3, 3.0):
        assert np.array_equal(apply_temperature(scores, temperature).argmax(1), scores.argmax(1))


def test_reliability_counts_every_case_once_and_keeps_the_accuracy() -> None:
    scores, labels = draw(np.random.default_rng(3), 1000)
    found = reliability(scores, labels)
    assert found.cases.sum() == 1000
    assert (found.accuracy * found.cases).sum() / 1000 == pytest.approx((scores.argmax(1) == labels).mean())


def test_conformal_sets_cover_as_promised() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(500):
        scores, labels = draw(rng, 150)
        found = conformal_sets(scores[:50], labels[:50], scores[50:], coverage=0.9)
        covered.append(found.members[np.arange(100), labels[50:]].mean())
    # Exchangeable cases: between 0.9 and 0.9 + 1 / 51 on average; three standard errors of 500 draws.
    error = 3 * np.std(covered) / np.sqrt(500)
    assert 0.9 - error < np.mean(covered) < 0.9 + 1 / 51 + error


def test_too_few_calibration_cases_rule_nothing_out() -> None:
    scores, labels = draw(np.random.default_rng(5), 8)
    assert conformal_sets(scores, labels, scores, coverage=0.9).members.all()


def test_risk_coverage_ends_at_the_error_and_agrees_with_a_loop() -> None:
    scores, labels = draw(np.random.default_rng(6), 60)
    scores = scores.round(1)
    found = risk_coverage(scores, labels)
    confidence, wrong = scores.max(1), scores.argmax(1) != labels
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(wrong.mean())
    for coverage, risk, limit in zip(found.coverage, found.risk, sorted(set(confidence), reverse=True), strict=True):
        answered = confidence >= limit
        assert (coverage, risk) == pytest.approx((answered.mean(), wrong[answered].mean()))


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000))
def test_disagreement_is_between_none_and_all(models: int, size: int, seed: int) -> None:
    scores = np.random.default_rng(seed).dirichlet(np.ones(size), size=(models, 7))
    mean, disagreement = ensemble(scores)
    assert np.allclose(mean.sum(1), 1)
    assert ((disagreement >= 0) & (disagreement <= np.log(min(size, models)) + 1e-9)).all()
    assert np.allclose(ensemble(np.repeat(scores[:1], models, axis=0))[1], 0, atol=1e-9)


@given(st.integers(0, 1000), st.floats(0.05, 1.0))
def test_the_threshold_reaches_the_sensitivity_and_a_higher_one_does_not(seed: int, sensitivity: float) -> None:
    rng = np.random.default_rng(seed)
    scores, positive = rng.random(40).round(1), rng.random(40) < 0.4
    threshold = threshold_for_sensitivity(scores, positive, sensitivity)
    if positive.all() or not positive.any():
        assert threshold is None
        return
    assert threshold is not None
    reached = at_threshold(scores, positive, threshold).sensitivity
    assert reached is not None and reached >= sensitivity - 1e-9
    higher = scores[scores > threshold]
    if higher.size:
        less = at_threshold(scores, positive, float(higher.min())).sensitivity
        assert less is not None and less < sensitivity


def test_an_operating_point_counts_as_a_table_does() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.7, 0.8, 0.3])
    positive = np.array([0, 0, 0, 1, 1, 1], bool)
    assert at_threshold(scores, positive, 0.5)[1:] == pytest.approx((2 / 3, 2 / 3, 2 / 3, 2 / 3))
    nobody = at_threshold(scores, positive, 0.9)
    assert (nobody.sensitivity, nobody.positive_predictive_value) == (0.0, None)


def test_net_benefit_by_hand() -> None:
    scores = np.array([0.05, 0.3, 0.3, 0.9])
    positive = np.array([False, False, True, True])
    model, everybody = net_benefit(scores, positive, [0.0, 0.2, 0.5])
    # At 0.2: two found, one called in vain, which counts a quarter.
    assert model.tolist() == pytest.approx([0.5, 2 / 4 - 1 / 4 * 0.25, 1 / 4])
    assert everybody.tolist() == pytest.approx([0.5, 0.5 - 0.5 * 0.25, 0.0])
