"""Metrics of many resamples at once: what confidence intervals and paired tests are made of.

A resample is a weight for each case: how often it was drawn. The metrics here take thousands of them in one pass, where
libraries take one at a time; tests compare them with torchmetrics and scikit-learn, which give the point estimates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 15
"""Equal bins of confidence for the expected calibration error (Guo et al. 2017, section 2)."""

_VALUES = 1 << 19  # numbers in a part of the work: larger ones leave the caches

Numbers = NDArray[np.float64]


def confidence_bin(confidence: Numbers) -> NDArray[np.int64]:
    """The number of the bin of each confidence in [0, 1]; edges belong to the upper one, and 1 to the last.

    >>> confidence_bin(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 7, 14]
    """
    return np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1, 0, BINS - 1)


def draw_weights(groups: ArrayLike, draws: int, seed: int) -> Numbers:
    """How often each case occurs in bootstrap samples that draw whole groups with replacement.

    Args:
        groups: ``(N,)`` of any type; cases of one group come and go together (cluster bootstrap: Davison and Hinkley
            1997, section 3.8). Without patients, ``range(N)``.
        draws: number of samples R.
        seed: of the draws.

    Returns:
        float64 ``(R, N)`` of whole numbers.

    >>> weights = draw_weights(["a", "a", "b"], draws=4, seed=0)
    >>> weights.shape, bool((weights[:, 0] == weights[:, 1]).all())
    ((4, 3), True)
    """
    number = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(number.max()) + 1
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
    return counts[:, number].astype(np.float64)


def resampled_auroc(probabilities: ArrayLike, labels: ArrayLike, weights: Numbers) -> Numbers:
    """The macro AUROC of :func:`jigsawssl.evaluation.classification_metrics` in each resample.

    Args:
        probabilities: float ``(N, K)``; K = 2 is judged by the second class alone.
        labels: integers ``(N,)`` in [0, K).
        weights: ``(R, N)``, not negative.

    Returns:
        float64 ``(R,)``, NaN where no class has both positives and negatives.

    >>> resampled_auroc([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], [0, 0, 1], np.ones((1, 3)))
    array([1.])
    """
    scores, target = np.asarray(probabilities, np.float64), np.asarray(labels)
    found = []
    for part in parts_of(weights):
        each = [_Ranking(scores[:, k], target == k, part).auroc() for k in _ranked(scores)]
        found.append(nan_mean(np.stack(each, axis=1)))
    return np.concatenate(found)


class Resamples:
    """What the metrics of many resamples are computed from.

    Attributes:
        areas: AUROC of each class, each ``(R,)``.
        best: of each class the highest sensitivity at the wanted specificity, and the reverse.
        matrix: confusion matrices ``(R, K, K)``, rows true, columns predicted.
        agreed: accuracy ``(R,)``.
        recall, precision, f1, specificity: ``(R, K)``, NaN where a class is absent.
        brier: ``(R,)``.
        calibration_error: ``(R,)``.
    """

    def __init__(self, scores: Numbers, target: NDArray[np.int64], *, weights: Numbers, at: float) -> None:
        size = scores.shape[1]
        self.rankings = [_Ranking(scores[:, k], target == k, weights) for k in range(size)]
        self._ranked = _ranked(scores)
        self.areas = [ranking.auroc() for ranking in self.rankings]
        self.best = [ranking.best(at) for ranking in self.rankings]
        predicted = scores.argmax(axis=1)
        cell = target * size + predicted
        counts = [np.bincount(cell, row, size * size) for row in weights]
        self.matrix = np.stack(counts).astype(np.float64).reshape(-1, size, size)
        true, called, right = self.matrix.sum(2), self.matrix.sum(1), np.diagonal(self.matrix, axis1=1, axis2=2)
        total = weights.sum(1)
        present = true > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            self.recall = right / true
            self.precision = np.where(present, np.where(called > 0, right / np.maximum(called, 1e-300), 0.0), np.nan)
            self.f1 = np.where(present, 2 * right / (true + called), np.nan)
            self.specificity = (total[:, None] - true - called + right) / (total[:, None] - true)
            self.agreed = right.sum(1) / total
        self.brier = weights @ _brier(scores, target) / total
        self.calibration_error = _calibration_error(scores.max(1), predicted == target, weights)

    def over_classes(self, values: Sequence[Numbers]) -> Numbers:
        """Mean over the classes that ranking metrics count."""
        return nan_mean(np.stack([values[k] for k in self._ranked], axis=1))

    def kappa(self, *, quadratic: bool) -> Numbers:
        """Cohen's, with squared distances for grades."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return _kappa(self.matrix, quadratic)


def parts_of(weights: Numbers) -> list[Numbers]:
    """Resamples in parts that are quick to work on."""
    size = max(1, _VALUES // max(1, weights.shape[1]))
    return [weights[start : start + size] for start in range(0, len(weights), size)]


def _ranked(scores: Numbers) -> list[int]:
    """The classes that ranking metrics are averaged over."""
    return [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))


def nan_mean(values: Numbers) -> Numbers:
    """Mean over the second axis of what is defined."""
    known = ~np.isnan(values)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, values, 0).sum(1) / np.maximum(count, 1), np.nan)


class _Ranking:
    """Cases in the order of their scores, highest first, and how much weight lies at and above each."""

    def __init__(self, scores: Numbers, positive: NDArray[np.bool_], weights: Numbers) -> None:
        order = np.argsort(-scores, kind="stable")
        starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        sorted_weights = weights[:, order]
        at, both = sorted_weights * positive[order], sorted_weights
        if len(starts) < len(order):  # equal scores go together
            at, both = np.add.reduceat(at, starts, axis=1), np.add.reduceat(both, starts, axis=1)
        self.positives, self.negatives = at, both - at  # at each different score, (R, T)
        self.found, self.false = self.positives.cumsum(1), self.negatives.cumsum(1)
        self.total, self.others = self.found[:, -1:], self.false[:, -1:]
        self.defined = (self.total > 0)[:, 0] & (self.others > 0)[:, 0]

    def _where_defined(self, values: Numbers) -> Numbers:
        return np.where(self.defined, values, np.nan)

    def auroc(self) -> Numbers:
        # A pair of equal scores counts half (Mann and Whitney).
        pairs = ((self.found - self.positives / 2) * self.negatives).sum(1)
        return self._where_defined(pairs / np.maximum(self.total * self.others, 1e-300)[:, 0])

    def average_precision(self) -> Numbers:
        precision = self.found / np.maximum(self.found + self.false, 1e-300)
        return self._where_defined((self.positives * precision).sum(1) / np.maximum(self.total, 1e-300)[:, 0])

    def best(self, least: float) -> tuple[Numbers, Numbers]:
        """The highest sensitivity whose specificity is at least ``least``, and the reverse."""
        sensitivity = self.found / np.maximum(self.total, 1e-300)
        specificity = 1 - self.false / np.maximum(self.others, 1e-300)
        first = np.where(specificity >= least - 1e-12, sensitivity, 0.0).max(1)
        second = np.where(sensitivity >= least - 1e-12, specificity, 0.0).max(1)
        return self._where_defined(first), self._where_defined(second)


def _kappa(matrix: Numbers, quadratic: bool) -> Numbers:
    size = matrix.shape[1]
    distance = np.subtract.outer(np.arange(size), np.arange(size)).astype(np.float64)
    cost = distance**2 if quadratic else (distance != 0).astype(np.float64)
    expected = matrix.sum(2)[:, :, None] * matrix.sum(1)[:, None, :] / matrix.sum((1, 2))[:, None, None]
    by_chance = (cost * expected).sum((1, 2))
    return np.where(by_chance > 0, 1 - (cost * matrix).sum((1, 2)) / np.where(by_chance > 0, by_chance, 1), np.nan)


def _brier(scores: Numbers, target: NDArray[np.int64]) -> Numbers:
    """Squared error of each case; of two classes it is that of one, as they mirror each other (Brier 1950)."""
    squares = (scores - np.eye(scores.shape[1])[target]) ** 2
    return squares[:, 1] if scores.shape[1] == 2 else squares.sum(1)


def calibration_error(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Expected calibration error of the highest probability (Guo et al. 2017, section 2), in :data:`BINS` equal bins.

    The one that every report, curve and picture of reliability has: torchmetrics gives another number for confidences
    on the edge of a bin, and rounds them to single precision before.

    Args:
        probabilities: float ``(N, K)``.
        labels: integers ``(N,)``.

    >>> round(calibration_error([[0.9, 0.1], [0.8, 0.2]], [0, 1]), 3)
    0.45
    """
    scores = np.asarray(probabilities, np.float64)
    right = scores.argmax(axis=1) == np.asarray(labels)
    return float(_calibration_error(scores.max(axis=1), right, np.ones((1, len(scores))))[0])


def _calibration_error(confidence: Numbers, right: NDArray[np.bool_], weights: Numbers) -> Numbers:
    inside = confidence_bin(confidence)
    gaps = weights @ (np.eye(BINS)[inside] * (right - confidence)[:, None])
    error: Numbers = np.abs(gaps).sum(1) / weights.sum(1)
    return error
