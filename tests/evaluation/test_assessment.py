"""What is said about one set of test predictions."""

import numpy as np
import pytest

from jigsawssl.evaluation import classification_metrics
from jigsawssl.evaluation.assessment import Criteria, Predictions, judge
from jigsawssl.evaluation.metrics import METRICS, resampled_metrics
from jigsawssl.evaluation.resampling import BINS


def by_hand(scores: np.ndarray, labels: np.ndarray) -> float:
    """The calibration error, one case after the other; edges belong to the upper bin."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(scores, labels, strict=True):
        confidence = float(row.max())
        number = max(n for n in range(BINS) if confidence >= np.linspace(0, 1, BINS + 1)[n])
        bins.setdefault(number, []).append((confidence, int(row.argmax()) == label))
    gaps = (abs(sum(right - confidence for confidence, right in inside)) for inside in bins.values())
    return sum(gaps) / len(labels)


@pytest.mark.parametrize("steps", [0, 5, 15, 40])
def test_there_is_one_calibration_error(steps: int) -> None:
    """Also where confidences lie on the edges of bins."""
    rng = np.random.default_rng(steps)
    positive = rng.random(40) if not steps else rng.integers(0, steps + 1, 40) / steps
    scores, labels = np.stack([1 - positive, positive], axis=1), rng.integers(0, 2, 40)
    every = np.arange(40)
    judged = judge(Predictions(scores, labels, every, scores[:0], labels[:0], every), Criteria(["a", "b"]))
    points = judged["calibration"]["before"]["reliability"]
    from_points = (points["cases"] * np.abs(points["accuracy"] - points["confidence"])).sum() / 40
    resampled = resampled_metrics(scores, labels, ["a", "b"], weights=np.ones((1, 40)))["calibration_error"][0]
    wanted = by_hand(scores, labels)
    for found in (judged["metrics"]["calibration_error"], from_points, resampled):
        assert found == pytest.approx(wanted, abs=1e-9)


def test_intervals_of_few_patients_and_perfect_results() -> None:
    labels = np.array([0, 1] * 40)
    scores = np.eye(2)[labels] * 0.8 + 0.1
    for groups, low_accuracy, low_auroc in (
        (np.arange(80), 0.025 ** (1 / 80), 0.025 ** (1 / 40)),
        (np.arange(80) // 20, 0.025 ** (1 / 4), 0.025 ** (1 / 4)),
        (np.zeros(80, int), None, None),
    ):
        judged = judge(Predictions(scores, labels, groups, scores, labels, np.arange(80)), Criteria(["a", "b"]))
        for name, low in (("accuracy", low_accuracy), ("auroc", low_auroc)):
            found = judged["intervals"][name]
            assert found == ((None, None) if low is None else (pytest.approx(low), 1.0))
        assert judged["intervals"]["kappa"] == (None, None)
        point = judged["operating_point"]["intervals"]["sensitivity"]
        assert point == ((None, None) if low_auroc is None else (pytest.approx(low_auroc), 1.0))


@pytest.mark.parametrize("size", [2, 4])
def test_every_metric_has_one_value_for_the_cases_as_they_are(size: int) -> None:
    rng = np.random.default_rng(size)
    scores, labels = rng.dirichlet(np.ones(size), 60), rng.integers(0, size, 60)
    names = [f"class {k}" for k in range(size)]
    once = resampled_metrics(scores, labels, names, weights=np.ones((1, 60)))
    found = classification_metrics(scores, labels, names, ordered=True)
    for metric in METRICS:
        if metric.resampled is not None:
            assert once[metric.name][0] == pytest.approx(found[metric.name], abs=1e-6), metric.name


def test_subgroups_are_those_of_the_cases_by_their_numbers() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 40)
    positive = np.where(np.arange(80) < 40, 0.1 + 0.8 * labels, rng.random(80))
    scores, cases = np.stack([1 - positive, positive], axis=1), np.arange(10, 90)
    sites = np.array(["no case"] * 10 + ["sure"] * 40 + ["blind"] * 40)
    judged = judge(
        Predictions(scores, labels, cases, scores[:0], labels[:0], cases),
        Criteria(["a", "b"], subgroups={"site": sites}),
    )
    rows = {row["value"]: row for row in judged["subgroups"]["site"]}
    assert {name: row["images"] for name, row in rows.items()} == {"sure": 40, "blind": 40}
    assert rows["sure"]["auroc"]["value"] == 1 > rows["blind"]["auroc"]["value"]
