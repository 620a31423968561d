"""From the cells of a curve to what may be said about them: tables, tests and plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluation.judgement import DRAWS, Predictions, judge
from ..evaluation.metrics import classification_metrics
from ..evaluation.resampling import draw_weights, resampled_metrics
from ..evaluation.statistics import compare, holm, label_saving, percentile_interval

__all__ = ["METRICS", "Done", "analyse"]

METRICS = (
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "kappa",
    "quadratic_kappa",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "brier",
    "calibration_error",
)
"""Metrics of the table, in its order."""

COMPARED = ("auroc", "balanced_accuracy")
"""Metrics that encoders are compared by."""

Numbers = NDArray[np.float64]


class Done(NamedTuple):
    """A finished cell."""

    encoder: str
    fraction: float
    seed: int
    predictions: Predictions
    facts: dict[str, Any]


class _Point(NamedTuple):
    """The finished cells of one encoder and share of the labels, by seed."""

    cells: dict[int, Done]
    values: dict[int, dict[str, float | None]]
    draws: dict[int, dict[str, Numbers]]

    def stacked(self, metric: str, seeds: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Values ``(J,)`` and bootstrap samples ``(J, R)`` of some seeds, NaN where undefined."""
        values = [self.values[seed].get(metric) for seed in seeds]
        return (
            np.array([np.nan if value is None else value for value in values], np.float64),
            np.stack([self.draws[seed][metric] for seed in seeds]),
        )


def analyse(
    cells: Sequence[Done],
    encoders: Sequence[str],
    classes: Sequence[str],
    ordered: bool = False,
    sensitivity: float = 0.95,
    coverage: float = 0.9,
    subgroups: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Any]:
    """Say what a curve shows.

    All intervals and tests draw the same patients, so that encoders and seeds are compared on equal cases.

    Args:
        cells: finished ones; some may be missing.
        encoders: names in the order given by the user; the first is compared with each of the others.
        classes: K names.
        ordered: the classes are grades.
        sensitivity: of the operating point, see :func:`jigsawssl.evaluation.judgement.judge`.
        coverage: of conformal sets.
        subgroups: column → value of each test case.

    Returns:
        JSON values: ``table``, ``comparisons``, ``savings``, ``sentences`` and ``details``.
    """
    points = _points(cells, classes, ordered)
    table = [_row(encoder, fraction, point) for (encoder, fraction), point in points.items()]
    comparisons, savings = [], []
    for other in encoders[1:]:
        comparisons += _comparisons(points, encoders[0], other)
        savings += _savings(points, encoders[0], other)
    details = []
    for encoder in encoders:
        fractions = sorted({fraction for name, fraction in points if name == encoder})
        for fraction in sorted({*fractions[:1], *fractions[-1:]}):
            details.append(
                _detail(
                    encoder, fraction, points[encoder, fraction], classes, ordered, sensitivity, coverage, subgroups
                )
            )
    return {
        "table": table,
        "comparisons": comparisons,
        "savings": savings,
        "sentences": _sentences(table, comparisons, savings, encoders),
        "details": details,
    }


def _points(cells: Sequence[Done], classes: Sequence[str], ordered: bool) -> dict[tuple[str, float], _Point]:
    weights: Numbers | None = None
    points: dict[tuple[str, float], _Point] = {}
    for cell in sorted(cells, key=lambda cell: (cell.fraction, cell.seed)):
        predictions = cell.predictions
        if weights is None:
            weights = draw_weights(predictions.groups, DRAWS, seed=0)
        point = points.setdefault((cell.encoder, cell.fraction), _Point({}, {}, {}))
        point.cells[cell.seed] = cell
        metrics = classification_metrics(predictions.probabilities, predictions.labels, classes, ordered)
        point.values[cell.seed] = {name: metrics[name] for name in METRICS}
        point.draws[cell.seed] = resampled_metrics(predictions.probabilities, predictions.labels, classes, weights)
    return points


def _row(encoder: str, fraction: float, point: _Point) -> dict[str, Any]:
    seeds = sorted(point.cells)
    budgets = [point.cells[seed].facts["budget"] for seed in seeds]
    groups = [budget["groups"] for budget in budgets if budget["groups"] is not None]
    row: dict[str, Any] = {
        "encoder": encoder,
        "fraction": fraction,
        "labels": float(np.mean([budget["labels"] for budget in budgets])),
        "groups": float(np.mean(groups)) if groups else None,
        "seeds": len(seeds),
        "candidates": max(point.cells[seed].facts["candidates"] for seed in seeds),
        "seconds": float(np.median([point.cells[seed].facts["seconds"] for seed in seeds])),
        "metrics": {},
    }
    for name in METRICS:
        values, draws = point.stacked(name, seeds)
        if np.isnan(values).all():
            continue
        mean = float(np.nanmean(values))
        with np.errstate(invalid="ignore"):
            spread = float(np.nanstd(values, ddof=1)) if (~np.isnan(values)).sum() > 1 else None
        interval = percentile_interval(mean, draws)
        row["metrics"][name] = {"mean": mean, "sd": spread, "low": interval.low, "high": interval.high}
    return row


def _shared(points: Mapping[tuple[str, float], _Point], first: str, second: str) -> dict[float, list[int]]:
    """Seeds that both have, for each share of the labels."""
    fractions = sorted({fraction for _, fraction in points})
    shared = {}
    for fraction in fractions:
        a, b = points.get((first, fraction)), points.get((second, fraction))
        seeds = sorted(a.cells.keys() & b.cells.keys()) if a and b else []
        if seeds:
            shared[fraction] = seeds
    return shared


def _comparisons(points: Mapping[tuple[str, float], _Point], first: str, second: str) -> list[dict[str, Any]]:
    found = []
    for metric in COMPARED:
        rows: list[dict[str, Any]] = []
        for fraction, seeds in _shared(points, first, second).items():
            a, a_draws = points[first, fraction].stacked(metric, seeds)
            b, b_draws = points[second, fraction].stacked(metric, seeds)
            if np.isnan(a).any() or np.isnan(b).any():
                continue
            cell = points[first, fraction].cells[seeds[0]]
            test_share = len(cell.predictions.labels) / cell.facts["budget"]["labels"]
            result = compare(a, b, a_draws, b_draws, test_share)
            rows.append({"first": first, "second": second, "metric": metric, "fraction": fraction, **result._asdict()})
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = corrected
        found += rows
    return found


def _savings(points: Mapping[tuple[str, float], _Point], first: str, second: str) -> list[dict[str, Any]]:
    """How many times the labels of ``first`` the other needs, by AUROC, where both have the same seeds."""
    shared = _shared(points, first, second)
    seeds = sorted(set.intersection(*(set(found) for found in shared.values()))) if shared else []
    if not seeds or len(shared) < 2:
        return []
    rng = np.random.default_rng(0)
    # Seeds and patients are drawn together, as in the paired comparison.
    picked = rng.integers(len(seeds), size=(len(seeds), DRAWS))

    def curve(encoder: str) -> Numbers:
        columns = []
        for fraction in shared:
            values, draws = points[encoder, fraction].stacked("auroc", seeds)
            both = draws[picked, np.arange(DRAWS)].mean(axis=0)
            columns.append(np.concatenate([[values.mean()], both]))
        return np.stack(columns, axis=1)

    labels = [
        float(np.mean([points[second, fraction].cells[seed].facts["budget"]["labels"] for seed in seeds]))
        for fraction in shared
    ]
    theirs, ours = curve(second), curve(first)
    found = []
    for column, (fraction, at) in enumerate(zip(shared, labels, strict=True)):
        saving = label_saving(labels, theirs, ours[:, column], at)
        found.append(
            {
                "first": first,
                "second": second,
                "fraction": fraction,
                "labels": at,
                "auroc": float(ours[0, column]),
                **saving._asdict(),
            }
        )
    return found


def _detail(
    encoder: str,
    fraction: float,
    point: _Point,
    classes: Sequence[str],
    ordered: bool,
    sensitivity: float,
    coverage: float,
    subgroups: Mapping[str, ArrayLike] | None,
) -> dict[str, Any]:
    """Everything about the first seed, and what all seeds say together (a deep ensemble: Lakshminarayanan 2017)."""
    seeds = sorted(point.cells)
    first = point.cells[seeds[0]]
    passes = np.stack([point.cells[seed].predictions.probabilities for seed in seeds])
    judged = judge(
        first.predictions,
        classes,
        subgroups,
        ordered,
        sensitivity,
        coverage,
        passes if len(seeds) > 1 else None,
    )
    together = None
    if len(seeds) > 1:
        metrics = classification_metrics(passes.mean(axis=0), first.predictions.labels, classes, ordered)
        together = {name: metrics[name] for name in METRICS}
    return {
        "encoder": encoder,
        "fraction": fraction,
        "seed": first.seed,
        "budget": first.facts["budget"],
        "chosen": first.facts["chosen"],
        **judged,
        "ensemble": together,
        "explanations": first.facts.get("explanations"),
    }


def _sentences(
    table: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    savings: Sequence[Mapping[str, Any]],
    encoders: Sequence[str],
) -> list[str]:
    """The statistics in plain words, one sentence each."""
    by_place = {(row["encoder"], row["fraction"]): row for row in table}
    found = []
    for row in table:
        if row["encoder"] == encoders[0] and "auroc" in row["metrics"]:
            auroc = row["metrics"]["auroc"]
            found.append(
                f"With {100 * row['fraction']:.3g} % of the labels ({row['labels']:.0f}), {row['encoder']} reaches an "
                f"AUROC of {auroc['mean']:.3f} (95 % interval over patients {_range(auroc['low'], auroc['high'])}; "
                f"{_count(row['seeds'], 'draw')} of the labels)."
            )
    for row in comparisons:
        if row["metric"] != "auroc":
            continue
        ahead = "ahead of" if row["difference"] >= 0 else "behind"
        clear = row["p_holm"] < 0.05
        verdict = "chance alone hardly explains that" if clear else "chance alone may explain that"
        labels = by_place[row["first"], row["fraction"]]["labels"]
        found.append(
            f"With {labels:.0f} labels {row['first']} is {abs(row['difference']):.3f} AUROC {ahead} {row['second']} "
            f"(95 % interval {row['low']:+.3f} to {row['high']:+.3f}, ahead in {row['ahead']} of {row['seeds']} "
            f"draws): {verdict} (p = {row['p_holm']:.2g} after Holm's correction)."
        )
    for row in savings:
        name, other = row["first"], row["second"]
        begin = f"To be as good as {name} with {row['labels']:.0f} labels (AUROC {row['auroc']:.3f}), {other} needs"
        if row["times"] is None and row["at_least"] < 1.01:
            continue  # there are no more labels that could have told
        if row["times"] is None:
            found.append(f"{begin} more than {row['at_least']:.3g} times the labels, all that there are.")
        else:
            low = "?" if row["low"] is None else f"{row['low']:.2g}"
            high = "more than there are" if row["high"] is None else f"{row['high']:.2g}"
            found.append(f"{begin} {row['times']:.2g} times the labels (95 % interval {low} to {high}).")
    return found


def _range(low: float | None, high: float | None) -> str:
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
