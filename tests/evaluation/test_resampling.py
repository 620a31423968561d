"""Metrics of weighted cases against the libraries' metrics of cases that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from jigsawssl.evaluation import classification_metrics
from jigsawssl.evaluation.metrics import resampled_metrics
from jigsawssl.evaluation.resampling import draw_weights, resampled_auroc
from jigsawssl.evaluation.statistics import percentile_interval


def example(size: int, count: int = 90, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(size, size=count)
    logits = rng.normal(size=(count, size)) + 1.2 * np.eye(size)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        scores[:, -1] = (scores[:, -1] * 7).round() / 7  # no edge of a bin
        scores[:, :-1] *= ((1 - scores[:, -1]) / scores[:, :-1].sum(1))[:, None]
    return scores, labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_weight_is_a_repetition(size: int, ties: bool) -> None:
    scores, labels = example(size, ties=ties)
    names = [f"class {k}" for k in range(size)]
    weights = np.random.default_rng(1).integers(0, 4, size=(6, len(labels))).astype(float)
    weights[0] = 1
    found = resampled_metrics(scores, labels, names, weights=weights)
    assert np.array_equal(found["auroc"], resampled_auroc(scores, labels, weights))
    for draw, times in enumerate(weights.astype(int)):
        repeated, target = np.repeat(scores, times, axis=0), np.repeat(labels, times)
        expected = classification_metrics(repeated, target, names, ordered=True)
        for name in expected.keys() & found.keys():
            # torchmetrics computes a few in float32
            assert found[name][draw] == pytest.approx(expected[name], abs=2e-6), name
        for name in names:
            for metric in ("recall", "specificity", "auroc"):
                value = found[f"{metric} of {name}"][draw]
                assert value == pytest.approx(expected["per_class"][name][metric], abs=2e-6), (metric, name)
    missing = {"recall", "per_class", "confusion_matrix", "count", "absent_classes"}  # recall is balanced_accuracy
    assert classification_metrics(scores, labels, names).keys() - found.keys() == missing


def test_metrics_that_torchmetrics_rounds_agree_with_scikit_learn_exactly() -> None:
    scores, labels = example(4)
    found = resampled_metrics(scores, labels, list("abcd"), weights=np.ones((1, len(labels))))
    one_hot, predicted = np.eye(4)[labels], scores.argmax(1)
    assert found["auroc"][0] == pytest.approx(reference.roc_auc_score(one_hot, scores, average="macro"), abs=1e-12)
    precision = reference.average_precision_score(one_hot, scores, average="macro")
    assert found["average_precision"][0] == pytest.approx(precision, abs=1e-12)
    quadratic = reference.cohen_kappa_score(labels, predicted, weights="quadratic")
    assert found["quadratic_kappa"][0] == pytest.approx(quadratic, abs=1e-12)


def test_a_class_that_was_not_drawn_is_not_counted() -> None:
    scores, labels = example(3)
    weights = np.stack([np.ones(len(labels)), labels != 2, labels == 0]).astype(float)
    found = resampled_metrics(scores, labels, ["a", "b", "c"], weights=weights)
    assert np.isnan(found["recall of c"][1]) and np.isfinite(found["balanced_accuracy"][1])
    assert np.isnan(found["auroc"][2]) and found["accuracy"][2] == (scores[labels == 0].argmax(1) == 0).mean()
    for name, values in found.items():
        assert np.isfinite(values[0]), name


def test_groups_come_and_go_together_and_their_number_stays() -> None:
    groups = np.repeat(np.arange(10), np.arange(1, 11))
    weights = draw_weights(groups, draws=50, seed=3)
    for group in range(10):
        assert (weights[:, groups == group] == weights[:, [int(np.argmax(groups == group))]]).all()
    first = [int(np.argmax(groups == group)) for group in range(10)]
    assert (weights[:, first].sum(1) == 10).all()
    assert np.array_equal(weights, draw_weights(groups, draws=50, seed=3))


def test_the_interval_agrees_with_scipy() -> None:
    scores, labels = example(2, count=200, seed=5)

    def auroc(rows: np.ndarray) -> float:
        return float(reference.roc_auc_score(labels[rows], scores[rows, 1]))

    theirs = stats.bootstrap(
        (np.arange(200),), auroc, vectorized=False, n_resamples=1500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    draws = resampled_auroc(scores, labels, draw_weights(np.arange(200), 4000, seed=0))
    ours = percentile_interval(auroc(np.arange(200)), draws, units=200)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_much_work_is_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = example(3)
    weights = draw_weights(np.arange(len(labels)), 20, seed=0)
    whole = resampled_metrics(scores, labels, ["a", "b", "c"], weights=weights)
    monkeypatch.setattr("jigsawssl.evaluation.resampling._VALUES", 7 * len(labels))
    parts = resampled_metrics(scores, labels, ["a", "b", "c"], weights=weights)
    for name in whole:
        assert np.allclose(whole[name], parts[name], atol=1e-12, equal_nan=True), name
