"""Whether the statistics keep their promises, by simulation: false positives of paired tests, coverage of intervals.

    python benchmarks/simulations.py [draws=1000] [seeds=5] [patients=120]

Two encoders whose quality is drawn from the same distribution are adapted with five draws of labels each and judged on
the same patients, two images of each. Quality varies by ``spread`` between draws. A test that keeps its promise says
p < .05 in 5 % of the studies; an interval of 95 % holds the truth in 95 % of them.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from jigsawssl.evaluation.resampling import draw_weights, resampled_auroc
from jigsawssl.evaluation.statistics import compare, percentile_interval
from jigsawssl.evaluation.uncertainty import conformal_sets
from jigsawssl.runs import format_table

SKILL, EASE, NOISE = 1.2, 0.8, 0.7


def probabilities(rng: np.random.Generator, truth: np.ndarray, ease: np.ndarray, skill: float) -> np.ndarray:
    """What a model of some skill says of patients who are easy or hard for every model."""
    positive = 1 / (1 + np.exp(-(skill * truth + ease + rng.normal(0, NOISE, len(truth)))))
    return np.stack([1 - positive, positive], axis=1)


def patients(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group, truth and ease of two images of each."""
    return (
        np.repeat(np.arange(count), 2),
        np.repeat(rng.random(count) < 0.4, 2).astype(int),
        np.repeat(rng.normal(0, EASE, count), 2),
    )


def false_positives(draws: int, seeds: int, count: int, spread: float) -> list[float]:
    """Share of studies with p < .05 where nothing differs: ours, the bootstrap, Nadeau and Bengio."""
    rng = np.random.default_rng(0)
    found = np.zeros(3)
    for _ in range(draws):
        groups, truth, ease = patients(rng, count)
        weights = draw_weights(groups, 200, int(rng.integers(2**31)))
        every = np.ones((1, len(truth)))
        studies = []
        for _ in range(2):
            scores = [probabilities(rng, truth, ease, SKILL + rng.normal(0, spread)) for _ in range(seeds)]
            studies.append([np.stack([resampled_auroc(s, truth, w) for s in scores]) for w in (every, weights)])
        (a, a_draws), (b, b_draws) = studies
        result = compare(a[:, 0], b[:, 0], first_draws=a_draws, second_draws=b_draws, test_share=1.0)
        values = (result["p"], result["p_bootstrap"], result["p_nadeau_bengio"])
        found += [value is not None and value < 0.05 for value in values]
    return list(found / draws)


def interval_coverage(draws: int, count: int) -> tuple[float, float]:
    """Share of 95 % intervals of an AUROC that hold the truth: patients drawn, and images drawn as if independent."""
    rng = np.random.default_rng(1)
    truth_auroc = 0.5 * (1 + math.erf(SKILL / math.sqrt(2 * (EASE**2 + NOISE**2)) / math.sqrt(2)))
    found = np.zeros(2)
    for _ in range(draws):
        groups, truth, ease = patients(rng, count)
        scores = probabilities(rng, truth, ease, SKILL)
        for way, units in enumerate((groups, np.arange(len(truth)))):
            values = resampled_auroc(scores, truth, draw_weights(units, 500, int(rng.integers(2**31))))
            interval = percentile_interval(0.0, values, units=len(np.unique(units)))
            assert interval.low is not None and interval.high is not None
            found[way] += interval.low <= truth_auroc <= interval.high
    return float(found[0] / draws), float(found[1] / draws)


def conformal_coverage(draws: int) -> float:
    """Share of test cases whose 90 % set holds the truth: 50 calibration cases, 100 test cases, three classes."""
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(draws):
        scores = rng.dirichlet(np.ones(3), size=150)
        labels = (scores.cumsum(1) < rng.random((150, 1))).sum(1).clip(max=2)
        sets = conformal_sets(scores[:50], labels[:50], scores[50:], coverage=0.9)
        covered.append(sets.members[np.arange(100), labels[50:]].mean())
    return float(np.mean(covered))


def main() -> None:
    """Simulate and print."""
    options = {"draws": "1000", "seeds": "5", "patients": "120"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    draws, seeds, count = (int(options[name]) for name in ("draws", "seeds", "patients"))
    rows = []
    for spread in (0.0, 0.15, 0.5):
        rows.append([spread, *(f"{100 * value:.1f} %" for value in false_positives(draws, seeds, count, spread))])
    header = ["spread between draws", "reported", "paired bootstrap", "Nadeau and Bengio"]
    print(format_table(header, rows), flush=True)
    by_patient, by_image = interval_coverage(draws, count)
    print(
        f"\n95 % interval of an AUROC holds the truth: {by_patient:.1%} (patients drawn), {by_image:.1%} (images drawn)"
    )
    print(f"90 % conformal set holds the truth: {conformal_coverage(draws):.1%}")


if __name__ == "__main__":
    main()
