"""What a two-class model is worth at a threshold: the operating point, and net benefit."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve

from .resampling import Numbers


def threshold_for_sensitivity(scores: ArrayLike, positive: ArrayLike, sensitivity: float) -> float | None:
    """The highest threshold on the validation cases at which at least this share of the positives is called.

    Args:
        scores: float ``(N,)``, probability of the positive class.
        positive: bool ``(N,)``.
        sensitivity: in (0, 1].

    Returns:
        A score from which a case is called positive, or ``None`` where there are no positives or no negatives.

    >>> threshold_for_sensitivity([0.1, 0.4, 0.6, 0.9], [False, True, False, True], sensitivity=1.0)
    0.4
    """
    truth = np.asarray(positive, bool)
    if truth.all() or not truth.any():
        return None
    _, found, thresholds = roc_curve(truth, np.asarray(scores, np.float64), drop_intermediate=False)
    return float(thresholds[int(np.argmax(found >= sensitivity - 1e-12))])


class OperatingPoint(NamedTuple):
    """What happens at a threshold; ``None`` where nothing of a kind was there to count."""

    threshold: float
    sensitivity: float | None
    specificity: float | None
    positive_predictive_value: float | None
    negative_predictive_value: float | None


def at_threshold(scores: ArrayLike, positive: ArrayLike, threshold: float) -> OperatingPoint:
    """Sensitivity, specificity and predictive values where every case from ``threshold`` on is called positive.

    >>> at_threshold([0.1, 0.4, 0.6, 0.9], [False, True, False, True], threshold=0.5)[1:]
    (0.5, 0.5, 0.5, 0.5)
    """
    called, truth = np.asarray(scores, np.float64) >= threshold, np.asarray(positive, bool)

    def share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
        return float((part & whole).sum() / whole.sum()) if whole.any() else None

    return OperatingPoint(
        threshold=threshold,
        sensitivity=share(called, truth),
        specificity=share(~called, ~truth),
        positive_predictive_value=share(truth, called),
        negative_predictive_value=share(~truth, ~called),
    )


def net_benefit(scores: ArrayLike, positive: ArrayLike, thresholds: ArrayLike) -> tuple[Numbers, Numbers]:
    """The points of a decision curve: true positives less false positives at the exchange rate of the threshold.

    ``TP / N - FP / N * t / (1 - t)`` for each threshold probability ``t`` (Vickers and Elkin 2006, table 1).

    Args:
        scores: float ``(N,)``, calibrated probability of the positive class.
        positive: bool ``(N,)``.
        thresholds: in [0, 1), ``(T,)``.

    Returns:
        Net benefit of the model, and of calling everybody positive; calling nobody has 0.

    >>> model, everybody = net_benefit([0.2, 0.8], [False, True], [0.5])
    >>> model.tolist(), everybody.tolist()
    ([0.5], [0.0])
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(positive, bool)
    limits = np.asarray(thresholds, np.float64)
    odds = limits / (1 - limits)
    called = values[None] >= limits[:, None]
    benefit = (called & truth).mean(axis=1) - (called & ~truth).mean(axis=1) * odds
    return benefit, truth.mean() - (1 - truth.mean()) * odds
