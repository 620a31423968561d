"""From the cells of a curve to what may be said about them: tables, tests and plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.assessment import NO_GROUPS, Criteria
from ..evaluation.statistics import joint_samples, label_saving
from ..runs.parts import Corrected, Ratio, Row, Saving
from ..words import counted
from . import aggregates


def analyse(
    cells: Sequence[aggregates.Done], *, encoders: Sequence[str], criteria: Criteria, count_groups: bool = False
) -> dict[str, Any]:
    """Say what a curve shows.

    All intervals and tests draw the same patients, so that encoders and seeds are compared on equal cases; test cases
    that some cell could not read are left out of all.

    Args:
        cells: finished ones; some may be missing.
        encoders: names in the order given by the user; the first is compared with each of the others.
        criteria: what predictions are judged by.
        count_groups: what labels cost is counted in groups.

    Returns:
        JSON values: ``table``, ``comparisons``, ``savings``, ``sentences``, ``details`` and ``notes``.
    """
    cells, notes = aggregates.on_common_cases(cells)
    points = aggregates.points_of(cells, criteria, count_groups=count_groups)
    table = [aggregates.row_of(encoder, fraction, point) for (encoder, fraction), point in points.items()]
    comparisons, savings = [], []
    for other in encoders[1:]:
        comparisons += _comparisons(points, encoders[0], other)
        savings += _savings(points, encoders[0], other)
    if cells and not any("auroc" in row["metrics"] for row in table):
        notes.append(
            "The AUROC is not defined on this test split, which has only one class: nothing is compared by it."
        )
    if cells and cells[0].predictions.groups.max(initial=0) + 1 == len(cells[0].predictions.groups):
        notes.append(NO_GROUPS)
    details = []
    for encoder in encoders:
        fractions = sorted({fraction for name, fraction in points if name == encoder})
        for fraction in sorted({*fractions[:1], *fractions[-1:]}):
            point = points[encoder, fraction]
            details.append(aggregates.detail_of(encoder, fraction=fraction, point=point, criteria=criteria))
    return {
        "table": table,
        "comparisons": comparisons,
        "savings": savings,
        "sentences": _sentences(table, comparisons, savings, encoders),
        "details": details,
        "notes": notes,
    }


def _comparisons(points: Mapping[tuple[str, float], aggregates.Point], first: str, second: str) -> list[Corrected]:
    found = []
    fractions = sorted({fraction for _, fraction in points})
    for metric in aggregates.COMPARED:
        found += aggregates.with_holm(
            aggregates.compared(points, first=first, second=second, metric=metric, fraction=share)
            for share in fractions
        )
    return found


def _savings(points: Mapping[tuple[str, float], aggregates.Point], first: str, second: str) -> list[Saving]:
    """How many times the labels of ``first`` the other needs, by AUROC, where both have the same seeds."""
    found = {
        fraction: aggregates.common_seeds(points, first=first, second=second, fraction=fraction)
        for _, fraction in sorted(points)
    }
    shared = [fraction for fraction, seeds in sorted(found.items()) if seeds]
    seeds = sorted(set.intersection(*(set(found[fraction]) for fraction in shared))) if shared else []
    if not seeds or len(shared) < 2:
        return []
    keys = [(encoder, fraction) for encoder in (first, second) for fraction in shared]
    stacked = [points[key].stacked("auroc", seeds) for key in keys]
    if any(np.isnan(values).any() for values, _ in stacked):
        return []
    samples = joint_samples(np.stack([v for v, _ in stacked], axis=1), np.stack([d for _, d in stacked], axis=2))
    ours, theirs = samples[:, : len(shared)], samples[:, len(shared) :]
    costs = [points[second, fraction].cost(seeds) for fraction in shared]
    rows = []
    for column, (fraction, at) in enumerate(zip(shared, costs, strict=True)):
        saving = label_saving(costs, theirs, target=ours[:, column], at=at)
        if saving is not None:
            times, low, high = saving
            rows.append(
                Saving(
                    first=first,
                    second=second,
                    fraction=fraction,
                    cost=at,
                    auroc=float(ours[0, column]),
                    times=times,
                    low=low,
                    high=high,
                    times_in_words=_bound(times),
                    interval_in_words=_interval(low, high),
                )
            )
    return rows


def _sentences(
    table: Sequence[Row], comparisons: Sequence[Corrected], savings: Sequence[Saving], encoders: Sequence[str]
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
    for contrast in comparisons:
        if contrast["metric"] != "auroc":
            continue
        cost = _cost(by_place[contrast["first"], contrast["fraction"]])
        found.append(
            f"With {cost}, {aggregates.difference_in_words(contrast, 'AUROC')} "
            f"(p = {contrast['p_holm']:.2g} after Holm's correction, {aggregates.verdict(contrast)})."
        )
    last = max((saving["fraction"] for saving in savings), default=0)
    for saving in savings:
        if saving["fraction"] == last and saving["times"]["side"] == "more than":
            continue  # there are no more labels that could have told
        found.append(saving_in_words(saving, _cost(by_place[saving["first"], saving["fraction"]])))
    return found


def saving_in_words(row: Saving, cost: str) -> str:
    """How many labels the second encoder needs to be as good as the first, wherever its curve ends.

    Args:
        row: of the savings: names, AUROC, and ``times``, ``low`` and ``high``, each with its value and side.
        cost: what the first one used, in words.

    >>> end, beyond = {"value": 1.0, "side": "at most"}, {"value": 10.0, "side": "more than"}
    >>> row = {"first": "jigsaw", "second": "scratch", "auroc": 0.8, "times": end, "low": end, "high": beyond}
    >>> saving_in_words(row, "48 labels")
    'With 48 labels, scratch is already as good as jigsaw (AUROC 0.800); the interval is too wide to say more.'
    """
    first, second, times = row["first"], row["second"], row["times"]
    value, interval = _digits(times["value"]), _interval(row["low"], row["high"])
    goal = f"To be as good as {first} with {cost} (AUROC {row['auroc']:.3f}), {second} needs"
    if interval == OPEN:
        tail = "; the interval is too wide to say more"
    elif interval == _bound(times):
        tail = "; the whole 95 % interval agrees"
    else:
        tail = f" (95 % interval {interval} times the labels)"
    if times["side"] == "at most" and value >= 1:
        return f"With {cost}, {second} is already as good as {first} (AUROC {row['auroc']:.3f}){tail}."
    if times["side"] == "more than" and value <= 1:
        return f"With {cost}, {second} is not yet as good as {first} (AUROC {row['auroc']:.3f}){tail}."
    if times["side"]:
        tried = "fewest" if times["side"] == "at most" else "most"
        return f"{goal} {times['side']} {value:g} times the labels, the {tried} tried{tail}."
    return f"{goal} {'as many labels' if value == 1 else f'{value:g} times the labels'}{tail}."


OPEN = "open"
"""What an interval is called that reaches beyond both ends of a curve."""


def _interval(low: Ratio, high: Ratio) -> str:
    """An interval of times the labels, either end of which may lie beyond the curve."""
    ends = (low["side"], high["side"])
    if ends == ("at most", "more than"):
        return OPEN
    if low["side"] == high["side"] and low["side"]:
        return _bound(low)
    if ends == ("at most", ""):
        return f"up to {_digits(high['value']):g}"
    if ends == ("", "more than"):
        return f"{_digits(low['value']):g} or more"
    return f"{_digits(low['value']):g} to {_digits(high['value']):g}"


def _cost(row: Row) -> str:
    if row["unit"] == "groups":
        return f"{row['cost']:.0f} groups, {row['labels']:.0f} images"
    return f"{row['labels']:.0f} labels"


def _repeats(row: Row) -> str:
    if row["fraction"] == 1:
        return counted(row["seeds"], "repetition")
    return f"{counted(row['seeds'], 'draw')} of the labels"


def _bound(bound: Ratio) -> str:
    return f"{bound['side']} {_digits(bound['value']):g}".strip()


def _digits(value: float) -> float:
    """Two digits, and no exponent where it is shown."""
    return float(f"{value:.2g}")


def _range(low: float | None, high: float | None) -> str:
    return "not defined" if low is None or high is None else f"{low:.3f} to {high:.3f}"
