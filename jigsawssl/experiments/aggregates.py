"""Finished cells by encoder and share of the labels: their metrics with intervals, and paired comparisons."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..evaluation.assessment import DRAWS, Criteria, Predictions, judge, units_of
from ..evaluation.metrics import METRICS, classification_metrics, metric_of, resampled_metrics
from ..evaluation.resampling import Numbers, draw_weights
from ..evaluation.statistics import Interval, compare, holm, percentile_interval
from ..runs.parts import Contrast, Corrected, Row
from ..words import counted, signed

TABLED = tuple(metric.name for metric in METRICS if metric.tabled)
"""Metrics of the table, in its order."""

COMPARED = ("auroc", "balanced_accuracy")
"""Metrics that encoders are compared by."""


class Done(NamedTuple):
    """A finished cell."""

    encoder: str
    fraction: float
    seed: int
    predictions: Predictions
    facts: dict[str, Any]


class Point(NamedTuple):
    """The finished cells of one encoder and share of the labels, by seed."""

    cells: dict[int, Done]
    values: dict[int, dict[str, float | None]]
    draws: dict[int, dict[str, Numbers]]
    count_groups: bool

    def cost(self, seeds: Sequence[int]) -> float:
        """What the labels cost, in the unit of the budget: labels, or groups."""
        unit = "groups" if self.count_groups else "labels"
        return float(np.mean([self.cells[seed].facts["budget"][unit] for seed in seeds]))

    def stacked(self, metric: str, seeds: Sequence[int]) -> tuple[Numbers, Numbers]:
        """Values ``(J,)`` and bootstrap samples ``(J, R)`` of some seeds, NaN where undefined."""
        values = [self.values[seed].get(metric) for seed in seeds]
        return (
            np.array([np.nan if value is None else value for value in values], np.float64),
            np.stack([self.draws[seed][metric] for seed in seeds]),
        )


def on_common_cases(cells: Sequence[Done]) -> tuple[list[Done], list[str]]:
    """The same cells, judged on the test cases that all of them have."""
    if not cells:
        return [], []
    common = functools.reduce(np.intersect1d, [cell.predictions.cases for cell in cells])
    every = functools.reduce(np.union1d, [cell.predictions.cases for cell in cells])
    left_out = len(every) - len(common)
    notes = []
    if left_out:
        are = "is" if left_out == 1 else "are"
        notes = [f"{counted(left_out, 'test image')} could not be read in every cell and {are} left out of all."]
    return [cell._replace(predictions=cell.predictions.only(common)) for cell in cells], notes


def points_of(cells: Sequence[Done], criteria: Criteria, *, count_groups: bool) -> dict[tuple[str, float], Point]:
    """Metrics of finished cells and of their bootstrap samples, by encoder and share of the labels.

    Args:
        cells: on the same test cases, see :func:`on_common_cases`.
        criteria: what they are judged by.
        count_groups: what labels cost is counted in groups.
    """
    weights: Numbers | None = None
    points: dict[tuple[str, float], Point] = {}
    for cell in sorted(cells, key=lambda cell: (cell.fraction, cell.seed)):
        predictions = cell.predictions
        if weights is None:
            weights = draw_weights(predictions.groups, DRAWS, seed=0)
        point = points.setdefault((cell.encoder, cell.fraction), Point({}, {}, {}, count_groups))
        point.cells[cell.seed] = cell
        metrics = classification_metrics(
            predictions.probabilities, predictions.labels, criteria.classes, ordered=criteria.ordered
        )
        point.values[cell.seed] = {name: metrics[name] for name in TABLED}
        point.draws[cell.seed] = resampled_metrics(
            predictions.probabilities, predictions.labels, criteria.classes, weights=weights
        )
    return points


def row_of(encoder: str, fraction: float, point: Point) -> Row:
    """JSON values of one point: what it cost, and each metric's mean, spread over seeds and interval over patients."""
    seeds = sorted(point.cells)
    budgets = [point.cells[seed].facts["budget"] for seed in seeds]
    groups = [budget["groups"] for budget in budgets if budget["groups"] is not None]
    row: Row = {
        "encoder": encoder,
        "fraction": fraction,
        "mode": point.cells[seeds[0]].facts["mode"],
        "cost": point.cost(seeds),
        "unit": "groups" if point.count_groups else "labels",
        "labels": float(np.mean([budget["labels"] for budget in budgets])),
        "groups": float(np.mean(groups)) if groups else None,
        "seeds": len(seeds),
        "images": len(point.cells[seeds[0]].predictions.labels),
        "candidates": max(point.cells[seed].facts["candidates"] for seed in seeds),
        "seconds": float(np.median([point.cells[seed].facts["seconds"] for seed in seeds])),
        "metrics": {},
    }
    for name in TABLED:
        values, draws = point.stacked(name, seeds)
        if np.isnan(values).all():
            continue
        mean = float(np.nanmean(values))
        with np.errstate(invalid="ignore"):
            spread = float(np.nanstd(values, ddof=1)) if (~np.isnan(values)).sum() > 1 else None
        metric, interval = metric_of(name), Interval(mean, None, None)
        if not metric.biased:
            tested = point.cells[seeds[0]].predictions
            units = units_of(name, tested.labels, tested.groups)
            interval = percentile_interval(mean, draws, units=units, share=metric.share)
        row["metrics"][name] = {"mean": mean, "sd": spread, "low": interval.low, "high": interval.high}
    return row


def common_seeds(points: Mapping[tuple[str, float], Point], *, first: str, second: str, fraction: float) -> list[int]:
    """Seeds that both have."""
    a, b = points.get((first, fraction)), points.get((second, fraction))
    return sorted(a.cells.keys() & b.cells.keys()) if a and b else []


def compared(
    points: Mapping[tuple[str, float], Point],
    *,
    first: str,
    second: str,
    metric: str,
    fraction: float,
    seeds: Sequence[int] | None = None,
) -> Contrast | None:
    """What :func:`jigsawssl.evaluation.statistics.compare` says of two encoders with the same seeds and patients.

    Args:
        points: finished cells.
        first: name of an encoder.
        second: the other's.
        metric: one of :data:`TABLED`.
        fraction: share of the labels.
        seeds: to compare with; default: all that both have.

    Returns:
        JSON values, with ``first_mean`` over those seeds, or ``None`` where there is nothing to compare or the metric
        is not defined.
    """
    seeds = common_seeds(points, first=first, second=second, fraction=fraction) if seeds is None else seeds
    if not seeds:
        return None
    a, a_draws = points[first, fraction].stacked(metric, seeds)
    b, b_draws = points[second, fraction].stacked(metric, seeds)
    if np.isnan(a).any() or np.isnan(b).any():
        return None
    cell = points[first, fraction].cells[seeds[0]]
    if len(np.unique(cell.predictions.groups)) < 2:
        return None  # one patient says nothing of others
    test_share = len(cell.predictions.labels) / cell.facts["budget"]["labels"]
    result = compare(a, b, first_draws=a_draws, second_draws=b_draws, test_share=test_share)
    mean = float(a.mean())
    return Contrast(first=first, second=second, metric=metric, fraction=fraction, first_mean=mean, **result)


def with_holm(rows: Iterable[Contrast | None]) -> list[Corrected]:
    """What there is to compare, each row with ``p_holm``: their p-values corrected for their number."""
    found = [row for row in rows if row is not None]
    corrected = holm([row["p"] for row in found])
    return [Corrected(**row, p_holm=value) for row, value in zip(found, corrected, strict=True)]


def difference_in_words(row: Contrast, name: str) -> str:
    """Which of two encoders is ahead by how much, with the interval and in how many repetitions.

    Args:
        row: a comparison, as :func:`compared` gives it.
        name: of the metric, as it stands in a sentence.

    >>> row = {"first": "a", "second": "b", "difference": -0.02, "low": -0.05, "high": 0.01, "ahead": 2, "seeds": 3}
    >>> difference_in_words(row, "AUROC")
    'a is 0.020 AUROC behind b (95 % interval −0.050 to +0.010), though ahead in 2 of 3 repetitions'
    """
    first, second, size = row["first"], row["second"], f"{abs(row['difference']):.3f}"
    interval = f"(95 % interval {signed(row['low'])} to {signed(row['high'])})"
    if float(size) == 0:
        return f"{first} and {second} do not differ in {name} to three digits {interval}"
    behind = row["difference"] < 0
    text = f"{first} is {size} {name} {'behind' if behind else 'ahead of'} {second} {interval}"
    if row["seeds"] == 1:
        return text
    against = row["ahead"] > row["seeds"] / 2 if behind else row["ahead"] < row["seeds"] / 2
    often = f"in {row['ahead']} of {row['seeds']} repetitions" if row["ahead"] else "in no repetition"
    return f"{text}, though ahead {often}" if against else f"{text}, ahead {often}"


def verdict(row: Corrected) -> str:
    """What the p-value of a corrected comparison says, in words that follow it.

    >>> verdict({"p_holm": 0.2, "seeds": 5, "difference": 0.01})
    'which may be chance'
    """
    if float(f"{row['difference']:.3f}") == 0:
        return "no difference to explain"
    text = "unlikely to be chance" if row["p_holm"] < 0.05 else "which may be chance"
    return text if row["seeds"] > 1 else f"{text}, though one repetition does not show how much training itself varies"


def detail_of(encoder: str, *, fraction: float, point: Point, criteria: Criteria) -> dict[str, Any]:
    """Everything about the first seed, and what all seeds say together (a deep ensemble: Lakshminarayanan 2017)."""
    seeds = sorted(point.cells)
    first = point.cells[seeds[0]]
    passes = np.stack([point.cells[seed].predictions.probabilities for seed in seeds])
    judged = judge(first.predictions, criteria, passes=passes if len(seeds) > 1 else None)
    together = None
    if len(seeds) > 1:
        metrics = classification_metrics(
            passes.mean(axis=0), first.predictions.labels, criteria.classes, ordered=criteria.ordered
        )
        together = {name: metrics[name] for name in TABLED}
    return {
        "encoder": encoder,
        "fraction": fraction,
        "seed": first.seed,
        "members": len(seeds),
        "budget": first.facts["budget"],
        "chosen": first.facts["chosen"],
        **judged,
        "ensemble": together,
        "explanations": first.facts.get("explanations"),
    }
