"""From the cells of a curve to what may be said about them: tables, tests and plain sentences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..evaluation.judgement import DRAWS, NO_GROUPS, Predictions, judge
from ..evaluation.metrics import classification_metrics
from ..evaluation.resampling import draw_weights, resampled_metrics
from ..evaluation.statistics import Interval, compare, holm, joint_samples, label_saving, percentile_interval

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


def analyse(
    cells: Sequence[Done],
    encoders: Sequence[str],
    classes: Sequence[str],
    ordered: bool = False,
    sensitivity: float = 0.95,
    coverage: float = 0.9,
    subgroups: Mapping[str, ArrayLike] | None = None,
    count_groups: bool = False,
) -> dict[str, Any]:
    """Say what a curve shows.

    All intervals and tests draw the same patients, so that encoders and seeds are compared on equal cases; test cases
    that some cell could not read are left out of all.

    Args:
        cells: finished ones; some may be missing.
        encoders: names in the order given by the user; the first is compared with each of the others.
        classes: K names.
        ordered: the classes are grades.
        sensitivity: of the operating point, see :func:`jigsawssl.evaluation.judgement.judge`.
        coverage: of conformal sets.
        subgroups: column → value of each test case, by its number.
        count_groups: what labels cost is counted in groups.

    Returns:
        JSON values: ``table``, ``comparisons``, ``savings``, ``sentences``, ``details`` and ``notes``.
    """
    cells, notes = _on_common_cases(cells)
    points = _points(cells, classes, ordered, count_groups)
    table = [_row(encoder, fraction, point) for (encoder, fraction), point in points.items()]
    comparisons, savings = [], []
    for other in encoders[1:]:
        comparisons += _comparisons(points, encoders[0], other)
        savings += _savings(points, encoders[0], other)
    if cells and not any("auroc" in row["metrics"] for row in table):
        notes.append("The AUROC is not defined on this test split, as it shows one class: nothing is compared by it.")
    if cells and cells[0].predictions.groups.max(initial=0) + 1 == len(cells[0].predictions.groups):
        notes.append(NO_GROUPS)
    common: Any = cells[0].predictions.cases if cells else []
    parts = {column: np.asarray(values)[common] for column, values in (subgroups or {}).items()}
    details = []
    for encoder in encoders:
        fractions = sorted({fraction for name, fraction in points if name == encoder})
        for fraction in sorted({*fractions[:1], *fractions[-1:]}):
            point = points[encoder, fraction]
            details.append(_detail(encoder, fraction, point, classes, ordered, sensitivity, coverage, parts))
    return {
        "table": table,
        "comparisons": comparisons,
        "savings": savings,
        "sentences": _sentences(table, comparisons, savings, encoders),
        "details": details,
        "notes": notes,
    }


def _on_common_cases(cells: Sequence[Done]) -> tuple[list[Done], list[str]]:
    """The same cells, judged on the test cases that all of them have."""
    if not cells:
        return [], []
    common = functools.reduce(np.intersect1d, [cell.predictions.cases for cell in cells])
    every = functools.reduce(np.union1d, [cell.predictions.cases for cell in cells])
    left_out = len(every) - len(common)
    notes = [f"{left_out} test images could not be read for every cell, and are left out of all."] if left_out else []
    return [cell._replace(predictions=cell.predictions.only(common)) for cell in cells], notes


def _points(
    cells: Sequence[Done], classes: Sequence[str], ordered: bool, count_groups: bool
) -> dict[tuple[str, float], _Point]:
    weights: Numbers | None = None
    points: dict[tuple[str, float], _Point] = {}
    for cell in sorted(cells, key=lambda cell: (cell.fraction, cell.seed)):
        predictions = cell.predictions
        if weights is None:
            weights = draw_weights(predictions.groups, DRAWS, seed=0)
        point = points.setdefault((cell.encoder, cell.fraction), _Point({}, {}, {}, count_groups))
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
        "mode": point.cells[seeds[0]].facts["mode"],
        "cost": point.cost(seeds),
        "unit": "groups" if point.count_groups else "labels",
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
        # See judgement: an interval for that would mislead.
        interval = percentile_interval(mean, draws) if name != "calibration_error" else Interval(mean, None, None)
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
    keys = [(encoder, fraction) for encoder in (first, second) for fraction in shared]
    stacked = [points[key].stacked("auroc", seeds) for key in keys]
    if any(np.isnan(values).any() for values, _ in stacked):
        return []
    samples = joint_samples(np.stack([v for v, _ in stacked], axis=1), np.stack([d for _, d in stacked], axis=2))
    ours, theirs = samples[:, : len(shared)], samples[:, len(shared) :]
    costs = [points[second, fraction].cost(seeds) for fraction in shared]
    found = []
    for column, (fraction, at) in enumerate(zip(shared, costs, strict=True)):
        saving = label_saving(costs, theirs, ours[:, column], at)
        if saving is not None:
            row = {"first": first, "second": second, "fraction": fraction, "cost": at, "auroc": float(ours[0, column])}
            found.append({**row, **{name: bound._asdict() for name, bound in saving._asdict().items()}})
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
        "members": len(seeds),
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
                f"With {100 * row['fraction']:.3g} % of the labels ({_cost(row)}), {row['encoder']} reaches an AUROC "
                f"of {auroc['mean']:.3f} (95 % interval {_range(auroc['low'], auroc['high'])}; {_repeats(row)})."
            )
    for row in comparisons:
        if row["metric"] != "auroc":
            continue
        ahead = "ahead of" if row["difference"] >= 0 else "behind"
        verdict = "chance alone hardly explains that" if row["p_holm"] < 0.05 else "chance alone may explain that"
        cost = _cost(by_place[row["first"], row["fraction"]])
        found.append(
            f"With {cost} {row['first']} is {abs(row['difference']):.3f} AUROC {ahead} {row['second']} "
            f"(95 % interval {row['low']:+.3f} to {row['high']:+.3f}, ahead in {row['ahead']} of {row['seeds']}): "
            f"{verdict} (p = {row['p_holm']:.2g} after Holm's correction)."
        )
    for row in savings:
        times, last = row["times"], max(row["fraction"] for row in savings)
        if row["fraction"] == last and times["side"] == "more than":
            continue  # there are no more labels that could have told
        cost = _cost(by_place[row["first"], row["fraction"]])
        found.append(
            f"To be as good as {row['first']} with {cost} (AUROC {row['auroc']:.3f}), {row['second']} needs "
            f"{_bound(times)} times the labels (95 % interval {_bound(row['low'])} to {_bound(row['high'])})."
        )
    return found


def _cost(row: Mapping[str, Any]) -> str:
    if row["unit"] == "groups":
        return f"{row['cost']:.0f} groups, {row['labels']:.0f} images"
    return f"{row['labels']:.0f} labels"


def _repeats(row: Mapping[str, Any]) -> str:
    number = row["seeds"]
    if row["fraction"] == 1:
        return f"{number} repetition{'' if number == 1 else 's'}"
    return f"{number} draw{'' if number == 1 else 's'} of the labels"


def _bound(bound: Mapping[str, Any]) -> str:
    value = float(f"{bound['value']:.2g}")  # two digits, and no exponent
    return f"{bound['side']} {value:g}".strip()


def _range(low: float | None, high: float | None) -> str:
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"
