"""Everything that is said about one set of test predictions: arrays in, JSON values out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from ..runs.parts import Conformal, Judgement
from ..words import listed
from .decisions import at_threshold, net_benefit, threshold_for_sensitivity
from .metrics import METRICS, classification_metrics, log_loss, metric_of, resampled_metrics
from .resampling import Numbers, draw_weights
from .statistics import percentile_interval
from .uncertainty import apply_temperature, conformal_sets, ensemble, fit_temperature, reliability, risk_coverage

DRAWS = 1000
"""Bootstrap samples behind an interval."""

NO_GROUPS = (
    "Each test image counts as a patient, as the manifest names none or one image of each; where that is wrong, the "
    "intervals are too narrow."
)

POINTS = 200
"""Points of a curve that a report keeps at most."""


class Predictions(NamedTuple):
    """What a model said about cases it was not trained on.

    Attributes:
        probabilities: float ``(N, K)`` of the test cases.
        labels: int64 ``(N,)`` in [0, K).
        groups: int64 ``(N,)``, the same number for cases of one patient.
        validation: float ``(M, K)``, by networks that were not trained on them; M may be 0.
        validation_labels: int64 ``(M,)``.
        cases: int64 ``(N,)``, the number of each test case, the same for every model.
    """

    probabilities: NDArray[Any]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    validation: NDArray[Any]
    validation_labels: NDArray[np.int64]
    cases: NDArray[np.int64]

    def only(self, cases: NDArray[np.int64]) -> Predictions:
        """Those of some test cases, in the order of their numbers."""
        at = np.flatnonzero(np.isin(self.cases, cases))
        return self._replace(
            probabilities=self.probabilities[at], labels=self.labels[at], groups=self.groups[at], cases=self.cases[at]
        )


class Criteria(NamedTuple):
    """What predictions are judged by.

    Attributes:
        classes: K names; of two, the second is the one to detect.
        ordered: the classes are grades.
        sensitivity: that the operating point has to reach on the validation cases.
        coverage: of conformal sets.
        subgroups: column → the value of each test case, by its number; ``""`` where unknown.
    """

    classes: Sequence[str]
    ordered: bool = False
    sensitivity: float = 0.95
    coverage: float = 0.9
    subgroups: Mapping[str, ArrayLike] | None = None


def judge(predictions: Predictions, criteria: Criteria, *, passes: ArrayLike | None = None) -> Judgement:
    """Judge test predictions; whatever is chosen is chosen on the validation cases.

    Args:
        predictions: of one model, or the mean of several.
        criteria: what they are judged by.
        passes: float ``(M, N, K)`` of several models or passes with dropout, for their disagreement.

    Returns:
        ``metrics`` and ``intervals`` (95 %, of patients drawn with replacement), ``curves``, ``calibration``,
        ``risk_coverage``, and where they can be had ``validation`` (its AUROC), ``operating_point``, ``net_benefit``,
        ``conformal``, ``disagreement`` and ``subgroups``; ``notes`` says what could not and why.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(2, size=80)
    >>> positive = np.clip(0.3 + 0.4 * labels + rng.normal(0, 0.2, 80), 0.01, 0.99)
    >>> scores = np.stack([1 - positive, positive], 1)
    >>> every = np.arange(80)
    >>> found = judge(Predictions(scores, labels, every, scores, labels, every), Criteria(["well", "ill"]))
    >>> found["intervals"]["auroc"][0] < found["metrics"]["auroc"] < found["intervals"]["auroc"][1]
    True
    """
    classes, ordered, sensitivity, coverage, subgroups = criteria
    scores, target = np.asarray(predictions.probabilities, np.float64), np.asarray(predictions.labels)
    weights = draw_weights(predictions.groups, DRAWS, seed=0)
    metrics = classification_metrics(scores, target, classes, ordered=ordered)
    notes = []
    unit = "patients" if len(np.unique(predictions.groups)) < len(target) else "images"
    if unit == "images":
        notes.append(NO_GROUPS)
    if absent := metrics["absent_classes"]:
        notes.append(f"No test image shows {listed(absent)}: no recall and no AUROC there, and no mean counts them.")
    result: Judgement = {
        "metrics": metrics,
        "intervals": _intervals(metrics, predictions, classes, weights),
        "unit": unit,
        "units": len(np.unique(predictions.groups)),
        "curves": _curves(scores, target, classes),
        "risk_coverage": _risk_coverage(scores, target),
        "validation": None,
        "conformal": None,
        "operating_point": None,
        "net_benefit": None,
        "disagreement": None,
    }
    temperature = 1.0
    if len(predictions.validation_labels):
        known = classification_metrics(predictions.validation, predictions.validation_labels, classes)
        result["validation"] = {"auroc": known["auroc"], "images": len(predictions.validation_labels)}
        temperature = fit_temperature(predictions.validation, predictions.validation_labels)
        result["conformal"] = _conformal(predictions, scores=scores, target=target, coverage=coverage, weights=weights)
    else:
        notes.append("There are no validation predictions: no temperature, no operating point, no conformal sets.")
    calibrated = apply_temperature(scores, temperature)
    result["calibration"] = {
        "temperature": temperature,
        "before": _calibration(scores, target, classes),
        "after": _calibration(calibrated, target, classes),
    }
    if len(classes) == 2:
        point = _operating_point(
            predictions, scores=scores[:, 1], positive=target == 1, sensitivity=sensitivity, weights=weights
        )
        if point is None and len(predictions.validation_labels):
            notes.append("The validation cases show one class only: no operating point.")
        result["operating_point"] = point
        limits = np.linspace(0.01, 0.99, 99)
        model, everybody = net_benefit(calibrated[:, 1], target == 1, limits)
        result["net_benefit"] = {"threshold": limits, "model": model, "everybody": everybody}
    if passes is not None:
        result["disagreement"] = _disagreement(np.asarray(passes, np.float64), target)
    if subgroups:
        result["subgroups"] = {
            column: _subgroups(np.asarray(values)[predictions.cases], predictions, criteria)
            for column, values in subgroups.items()
        }
    result["notes"] = notes
    return result


def _intervals(
    metrics: Mapping[str, Any], predictions: Predictions, classes: Sequence[str], weights: Numbers
) -> dict[str, Any]:
    """Low and high of each metric that has a value; those of a class under ``per_class``."""
    target, groups = predictions.labels, predictions.groups
    draws = resampled_metrics(predictions.probabilities, target, classes, weights=weights)
    of_class, of_others = ([_units(groups, (target == k) == own) for k in range(len(classes))] for own in (True, False))
    found: dict[str, Any] = {
        metric.name: percentile_interval(
            metrics[metric.name], draws[metric.name], units=units_of(metric.name, target, groups), share=metric.share
        )[1:]
        for metric in METRICS
        if metric.resampled is not None and metrics[metric.name] is not None and not metric.biased
    }
    found["per_class"] = {
        name: {
            metric: percentile_interval(metrics["per_class"][name][metric], draws[f"{metric} of {name}"], units=units)[
                1:
            ]
            for metric, units in (("recall", own), ("specificity", others), ("auroc", min(own, others)))
        }
        for name, own, others in zip(classes, of_class, of_others, strict=True)
    }
    return found


def _units(groups: NDArray[np.int64], where: NDArray[np.bool_]) -> int:
    return len(np.unique(groups[where]))


def units_of(metric: str, labels: NDArray[np.int64], groups: NDArray[np.int64]) -> int:
    """Independent units that a metric over all classes rests on.

    Of accuracy and the like these are all patients; of means over classes, and of what compares classes, the patients
    of the smallest class that has any.

    Args:
        metric: such as ``auroc``.
        labels: ``(N,)`` of the test cases.
        groups: ``(N,)``, the same number for cases of one patient.

    >>> labels = np.array([0, 0, 1])
    >>> units_of("accuracy", labels, np.arange(3)), units_of("auroc", labels, np.arange(3))
    (3, 1)
    """
    if metric_of(metric).on_all:
        return len(np.unique(groups))
    return min(_units(groups, labels == label) for label in np.unique(labels))


def _thinned(*columns: Numbers) -> list[Numbers]:
    """At most POINTS of the points, the ends among them."""
    kept = np.unique(np.linspace(0, len(columns[0]) - 1, min(POINTS, len(columns[0]))).round().astype(int))
    return [column[kept] for column in columns]


def _curves(scores: Numbers, target: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    found = {}
    for k, name in enumerate(classes):
        positive = target == k
        if (len(classes) == 2 and k == 0) or positive.all() or not positive.any():
            continue
        false_positive, true_positive, _ = roc_curve(positive, scores[:, k])
        precision, recall, _ = precision_recall_curve(positive, scores[:, k], drop_intermediate=True)
        roc, steps = _thinned(false_positive, true_positive), _thinned(recall[::-1], precision[::-1])
        found[name] = {"roc": {"x": roc[0], "y": roc[1]}, "precision_recall": {"x": steps[0], "y": steps[1]}}
    return found


def _risk_coverage(scores: Numbers, target: NDArray[np.int64]) -> dict[str, Any]:
    found = risk_coverage(scores, target)
    coverage, risk = _thinned(found.coverage, found.risk)
    most_sure = found.risk[int(np.argmin(np.abs(found.coverage - 0.8)))]
    return {"coverage": coverage, "risk": risk, "area": found.area, "accuracy_of_surest_80_percent": 1 - most_sure}


def _calibration(scores: Numbers, target: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    metrics = classification_metrics(scores, target, classes)
    found = reliability(scores, target)
    numbers = {name: metrics[name] for name in ("brier", "calibration_error")}
    return {**numbers, "log_loss": log_loss(scores, target), "reliability": found._asdict()}


def _conformal(
    predictions: Predictions, *, scores: Numbers, target: NDArray[np.int64], coverage: float, weights: Numbers
) -> Conformal:
    members = conformal_sets(predictions.validation, predictions.validation_labels, scores, coverage=coverage).members
    covered, size = members[np.arange(len(target)), target], members.sum(axis=1)
    reached = float(covered.mean())
    return {
        "asked": coverage,
        "reached": reached,
        "interval": percentile_interval(
            reached, weights @ covered / weights.sum(1), units=len(np.unique(predictions.groups))
        )[1:],
        "mean_size": float(size.mean()),
        "single": float((size == 1).mean()),
        "empty": float((size == 0).mean()),
        "calibration_cases": len(predictions.validation_labels),
    }


def _operating_point(
    predictions: Predictions, *, scores: Numbers, positive: NDArray[np.bool_], sensitivity: float, weights: Numbers
) -> dict[str, Any] | None:
    if not len(predictions.validation_labels):
        return None
    known = np.asarray(predictions.validation, np.float64)[:, 1]
    threshold = threshold_for_sensitivity(known, predictions.validation_labels == 1, sensitivity)
    if threshold is None or not math.isfinite(threshold):
        return None
    test = at_threshold(scores, positive, threshold)._asdict()
    called = scores >= threshold
    parts = {
        "sensitivity": (called, positive),
        "specificity": (~called, ~positive),
        "positive_predictive_value": (positive, called),
        "negative_predictive_value": (~positive, ~called),
    }
    intervals = {}
    for name, (part, whole) in parts.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = weights @ (part & whole) / (weights @ whole)
        intervals[name] = percentile_interval(test[name], draws, units=_units(predictions.groups, whole))[1:]
    validation = at_threshold(known, predictions.validation_labels == 1, threshold)._asdict()
    return {"required": sensitivity, "validation": validation, "test": test, "intervals": intervals}


def _disagreement(passes: Numbers, target: NDArray[np.int64]) -> dict[str, Any]:
    mean, disagreement = ensemble(passes)
    wrong = mean.argmax(axis=1) != target
    return {
        "models": len(passes),
        "mean": float(disagreement.mean()),
        "where_right": float(disagreement[~wrong].mean()) if (~wrong).any() else None,
        "where_wrong": float(disagreement[wrong].mean()) if wrong.any() else None,
    }


def _subgroups(values: NDArray[Any], predictions: Predictions, criteria: Criteria) -> list[dict[str, Any]]:
    rows = []
    for value in np.unique(values).tolist():
        part = predictions.only(predictions.cases[values == value])
        metrics = classification_metrics(part.probabilities, part.labels, criteria.classes, ordered=criteria.ordered)
        weights = draw_weights(part.groups, DRAWS, seed=0)
        intervals = _intervals(metrics, part, criteria.classes, weights)
        rows.append(
            {
                "value": str(value) or "unknown",
                "images": len(part.labels),
                "units": len(np.unique(part.groups)),
                **{
                    name: {"value": metrics[name], "interval": intervals.get(name)}
                    for name in ("auroc", "balanced_accuracy", "accuracy", "calibration_error")
                },
            }
        )
    return rows
