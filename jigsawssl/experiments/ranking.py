"""From the cells of a study to what may be said about its variants: tables, paired tests, ranks and plain sentences."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import friedmanchisquare, rankdata

from ..evaluation.assessment import NO_GROUPS, Criteria
from ..runs.parts import StudyContrast, StudyRow
from ..words import counted
from . import aggregates

IN_DOMAIN = "in domain"
"""What the test split of the archive that was trained on is called."""

RANKED = "balanced_accuracy"
"""Metric that variants are ranked by (Piater et al. 2024, section 4)."""

NAMED = 10
"""Pairs that a sentence names."""

Points = Mapping[tuple[str, float], aggregates.Point]


def analyse_study(
    cells: Mapping[str, Sequence[aggregates.Done]],
    *,
    against: Mapping[str, str],
    searches: Mapping[str, Mapping[str, Any]],
    criteria: Criteria,
    fraction: float,
) -> dict[str, Any]:
    """Say what a study shows.

    Args:
        cells: finished ones for each archive that was tested on, :data:`IN_DOMAIN` first; some may be missing.
        against: variant → the one it is compared with; the keys are all variants in the order given by the user.
        searches: what each variant's search found.
        criteria: what predictions are judged by.
        fraction: share of the labels.

    Returns:
        JSON values: ``table``, ``comparisons``, ``ranking``, ``explanations``, ``best``, ``sentences``, ``details`` and
        ``notes``.
    """
    table: list[StudyRow] = []
    comparisons: list[StudyContrast] = []
    ranking, notes, details = {}, [], []
    # By validation: the test split must not choose what is shown in full.
    best = max(searches, key=lambda name: searches[name]["score"]) if searches else None
    pairs = _pairs(against)
    for domain, found in cells.items():
        found, left_out = aggregates.on_common_cases(found)
        notes += [f"{_place(domain)} {note}" for note in [*left_out, *_gaps(found, criteria.classes)]]
        points = aggregates.points_of(found, criteria, count_groups=False)
        table += [
            StudyRow(domain=domain, **aggregates.row_of(name, fraction, points[name, fraction]))
            for name in against
            if (name, fraction) in points
        ]
        for metric in aggregates.COMPARED:
            # One family for each archive and metric: every variant with what it is compared with.
            rows = [
                aggregates.compared(points, first=first, second=second, metric=metric, fraction=fraction)
                for first, second in pairs
            ]
            comparisons += [StudyContrast(domain=domain, **row) for row in aggregates.with_holm(rows)]
        ranks = rank_variants(points, list(against), fraction)
        if ranks is not None:
            ranking[domain] = ranks
        elif found:
            notes.append(f"{_place(domain)} No ranks: they need two or more variants with a repetition in common.")
        if domain == IN_DOMAIN and best is not None and (best, fraction) in points:
            point = points[best, fraction]
            details.append(aggregates.detail_of(best, fraction=fraction, point=point, criteria=criteria))
    return {
        "table": table,
        "comparisons": comparisons,
        "ranking": ranking,
        "explanations": _explanations(cells[IN_DOMAIN], list(against)),
        "best": best,
        "sentences": _sentences(comparisons, ranking),
        "details": details,
        "notes": notes,
    }


def _pairs(against: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each variant with what it names, no pair twice."""
    pairs: list[tuple[str, str]] = []
    for pair in against.items():
        if pair[0] != pair[1] and pair[::-1] not in pairs:
            pairs.append(pair)
    return pairs


def _place(domain: str) -> str:
    return "In domain:" if domain == IN_DOMAIN else f"On {domain}:"


def _gaps(cells: Sequence[aggregates.Done], classes: Sequence[str]) -> list[str]:
    """What is not to be had on these test cases."""
    if not cells:
        return []
    predictions = cells[0].predictions
    shown = np.unique(predictions.labels)
    notes = []
    if len(shown) < len(classes):
        missing = ", ".join(name for number, name in enumerate(classes) if number not in shown)
        notes.append(f"no image shows {missing}, so means over classes leave it out.")
    if len(shown) < 2:
        notes.append("the AUROC is not defined, as all images are of one class.")
    if predictions.groups.max(initial=0) + 1 == len(predictions.groups):
        notes.append(NO_GROUPS)
    return notes


def rank_variants(points: Points, variants: Sequence[str], fraction: float) -> dict[str, Any] | None:
    """Mean ranks over seeds, and which variants the paired tests do not tell apart (Demšar 2006, section 3.2).

    Demšar's test takes ranks on independent archives; here the blocks are seeds on one, so that Friedman's p-value is
    of the training's chance alone, and variants are joined where the tests of this package, which know the patients
    too, do not separate them after Holm's correction over all pairs.

    Args:
        points: finished cells.
        variants: names.
        fraction: share of the labels.

    Returns:
        JSON values: ``ranks`` by variant, ``seeds``, ``friedman_p``, ``pairs`` and ``cliques``; ``None`` for fewer than
        two variants with a seed in common.
    """
    names = [name for name in variants if (name, fraction) in points]
    if len(names) < 2:
        return None
    seeds = sorted(set.intersection(*(set(points[name, fraction].cells) for name in names)))
    if not seeds:
        return None
    values = np.stack([points[name, fraction].stacked(RANKED, seeds)[0] for name in names], axis=1)
    if np.isnan(values).any():
        return None
    ranks = {name: float(rank) for name, rank in zip(names, rankdata(-values, axis=1).mean(axis=0), strict=True)}
    found = [
        aggregates.compared(points, first=first, second=second, metric=RANKED, fraction=fraction, seeds=seeds)
        for first, second in itertools.combinations(names, 2)
    ]
    pairs = aggregates.with_holm(found)
    apart = {frozenset((row["first"], row["second"])) for row in pairs if row["p_holm"] < 0.05}
    differ = len(names) > 2 and len(seeds) > 1 and bool(np.ptp(values, axis=1).any())
    return {
        "ranks": ranks,
        "seeds": len(seeds),
        "friedman_p": float(friedmanchisquare(*values.T).pvalue) if differ else None,
        "pairs": pairs,
        "cliques": cliques(sorted(ranks, key=lambda name: ranks[name]), apart),
    }


def cliques(ordered: Sequence[str], apart: set[frozenset[str]]) -> list[list[str]]:
    """Longest runs of an order in which no two are told apart.

    Args:
        ordered: names, best first.
        apart: pairs that are told apart.

    >>> cliques(["a", "b", "c", "d"], {frozenset("ad"), frozenset("bd")})
    [['a', 'b', 'c'], ['c', 'd']]
    """
    found: list[list[str]] = []
    for start in range(len(ordered)):
        end = start
        while end + 1 < len(ordered) and not any(
            frozenset((name, ordered[end + 1])) in apart for name in ordered[start : end + 1]
        ):
            end += 1
        run = list(ordered[start : end + 1])
        if len(run) > 1 and not any(set(run) <= set(other) for other in found):
            found.append(run)
    return found


def _explanations(cells: Sequence[aggregates.Done], variants: Sequence[str]) -> list[dict[str, Any]]:
    """Means over seeds of what is known of each variant's maps."""
    rows = []
    for name in variants:
        maps = [cell.facts["maps"] for cell in cells if cell.encoder == name and cell.facts["maps"]]
        for kind in maps[0] if maps else ():
            values = {key: [each[kind][key] for each in maps] for key in maps[0][kind]}
            means = {key: None if None in found else float(np.mean(found)) for key, found in values.items()}
            rows.append({"variant": name, "map": kind, "seeds": len(maps), **means})
    return rows


def _sentences(comparisons: Sequence[StudyContrast], ranking: Mapping[str, Any]) -> list[str]:
    """The statistics in plain words, one sentence each, all pairs together first."""
    found = []
    for domain, ranks in ranking.items():
        apart = [f"{row['first']} and {row['second']}" for row in ranks["pairs"] if row["p_holm"] < 0.05]
        which = f": {', '.join(apart)}" if 0 < len(apart) <= NAMED else ""
        pairs = len(ranks["pairs"])
        told = f"{len(apart) or 'none'} of {counted(pairs, 'pair')} of variants differ{'s' if len(apart) < 2 else ''}"
        after = f", after Holm's correction over {f'all {pairs} pairs' if pairs > 1 else 'the one pair'}"
        found.append(f"{_place(domain)} {told} significantly{after}{which}.")
    for row in comparisons:
        if row["metric"] != RANKED:
            continue
        found.append(
            f"{_place(row['domain'])} {aggregates.difference_in_words(row, 'balanced accuracy')} "
            f"({row['first']} has {row['first_mean']:.3f}; p = {row['p_holm']:.2g} after Holm's correction, "
            f"{aggregates.verdict(row)})."
        )
    return found
