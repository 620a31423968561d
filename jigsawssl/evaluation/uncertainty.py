"""How far to trust a prediction: calibration, sets that cover the truth, and leaving the doubtful to a person."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from .resampling import BINS, Numbers, confidence_bin

_TINY = float(np.finfo(np.float32).eps)


def _logs(probabilities: ArrayLike) -> Numbers:
    return np.log(np.clip(np.asarray(probabilities, np.float64), _TINY, 1.0))


def apply_temperature(probabilities: ArrayLike, temperature: float) -> Numbers:
    """Probabilities ``(N, K)`` whose logits are divided by a temperature; above 1 they become less sure.

    >>> apply_temperature([[0.9, 0.1]], temperature=2.0).round(2).tolist()
    [[0.75, 0.25]]
    """
    logits = _logs(probabilities) / temperature
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The temperature in [0.05, 20] with the least log loss (Guo et al. 2017, section 4.2).

    Args:
        probabilities: float ``(N, K)`` of cases that the model was not trained on and is not tested on.
        labels: integers ``(N,)``.

    >>> sure = [[0.99, 0.01]] * 4 + [[0.01, 0.99]] * 4
    >>> fit_temperature(sure, [0, 0, 0, 1, 1, 1, 1, 0]) > 2  # right in three of four
    True
    """
    target = np.asarray(labels)
    rows = np.arange(len(target))

    def loss(log_temperature: float) -> float:
        logits = _logs(probabilities) / math.exp(log_temperature)
        top = logits.max(axis=1)
        return float((top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[rows, target]).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20.0)), method="bounded")
    return math.exp(float(found.x))


class Reliability(NamedTuple):
    """Mean confidence and share of right answers in each bin that has cases, and how many it has."""

    confidence: Numbers
    accuracy: Numbers
    cases: NDArray[np.int64]


def reliability(probabilities: ArrayLike, labels: ArrayLike) -> Reliability:
    """The points of a reliability diagram, in 15 equal bins of the highest probability.

    >>> reliability([[0.9, 0.1], [0.95, 0.05]], [0, 1]).accuracy.tolist()
    [1.0, 0.0]
    """
    scores = np.asarray(probabilities, np.float64)
    confidence, right = scores.max(axis=1), scores.argmax(axis=1) == np.asarray(labels)
    inside = confidence_bin(confidence)
    count = np.bincount(inside, minlength=BINS)
    used = count > 0
    means = [np.bincount(inside, weights=values, minlength=BINS)[used] / count[used] for values in (confidence, right)]
    return Reliability(means[0], means[1], count[used])


class ConformalSets(NamedTuple):
    """Which classes each case's set holds, bool ``(N, K)``, and the probability from which a class is in it."""

    members: NDArray[np.bool_]
    threshold: float


def conformal_sets(
    calibration: ArrayLike, calibration_labels: ArrayLike, probabilities: ArrayLike, *, coverage: float = 0.9
) -> ConformalSets:
    """Sets of classes that hold the true one with a given probability, if all cases are drawn alike.

    Split conformal prediction with one minus the probability of the true class as score (Sadinle et al. 2019; LAC).
    With fewer than ``coverage / (1 - coverage)`` calibration cases every set holds every class.

    Args:
        calibration: float ``(M, K)``, predictions for cases that the model was not trained on.
        calibration_labels: integers ``(M,)``.
        probabilities: float ``(N, K)``, predictions for new cases.
        coverage: in (0, 1).

    >>> known = np.tile([0.8, 0.2], (20, 1))
    >>> conformal_sets(known, np.zeros(20, int), [[0.9, 0.1], [0.5, 0.5]]).members.tolist()
    [[True, False], [False, False]]
    """
    known, target = np.asarray(calibration, np.float64), np.asarray(calibration_labels)
    scores = np.sort(1 - known[np.arange(len(target)), target])
    # A float's dust must not ask for one case more.
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    limit = float(scores[rank - 1]) if rank <= len(scores) else 1.0
    return ConformalSets(1 - np.asarray(probabilities, np.float64) <= limit + 1e-12, 1 - limit)


class RiskCoverage(NamedTuple):
    """Share of cases that are answered, most sure first, and the share of wrong answers among them."""

    coverage: Numbers
    risk: Numbers
    area: float


def risk_coverage(probabilities: ArrayLike, labels: ArrayLike) -> RiskCoverage:
    """What leaving the least sure cases to a person buys (Geifman and El-Yaniv 2017); equally sure cases go together.

    >>> found = risk_coverage([[0.9, 0.1], [0.6, 0.4]], [0, 1])
    >>> found.coverage.tolist(), found.risk.tolist()
    ([0.5, 1.0], [0.0, 0.5])
    """
    scores = np.asarray(probabilities, np.float64)
    confidence, wrong = scores.max(axis=1), scores.argmax(axis=1) != np.asarray(labels)
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    coverage, risk = (last + 1) / len(wrong), wrong[order].cumsum()[last] / (last + 1)
    return RiskCoverage(coverage, risk, float((risk * np.diff(coverage, prepend=0.0)).sum()))


def ensemble(probabilities: ArrayLike) -> tuple[Numbers, Numbers]:
    """The mean of several models' probabilities, and how much they disagree.

    Args:
        probabilities: float ``(M, N, K)``: a network for each seed, or passes with dropout.

    Returns:
        ``(N, K)`` and the mutual information between class and model, in nats ``(N,)`` (Depeweg et al. 2018): 0 where
        all models say the same, at most ``log(K)``.

    >>> mean, disagreement = ensemble([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    >>> mean.tolist(), disagreement.round(3).tolist()
    ([[0.5, 0.5], [0.5, 0.5]], [0.693, 0.0])
    """
    models = np.asarray(probabilities, np.float64)
    mean = models.mean(axis=0)

    def entropy(p: Numbers) -> Numbers:
        found: Numbers = -(p * np.log(np.clip(p, 1e-300, 1.0))).sum(axis=-1)
        return found

    return mean, np.maximum(entropy(mean) - entropy(models).mean(axis=0), 0.0)
