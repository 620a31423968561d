"""Metrics against scikit-learn, an independent implementation, and their behaviour at the edges."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from jigsawssl.evaluation import classification_metrics, log_loss, macro_auroc, paired_auroc_difference
from jigsawssl.types import UserError

SEVEN = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def example(size: int, count: int = 120, signal: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(size, (count,), generator=generator)
    logits = torch.randn(count, size, generator=generator) + signal * torch.nn.functional.one_hot(labels, size)
    return logits.softmax(dim=1), labels


@pytest.mark.parametrize("names", [("benign", "malignant"), SEVEN])
def test_agrees_with_scikit_learn(names: tuple[str, ...]) -> None:
    probabilities, labels = example(len(names))
    result = classification_metrics(probabilities, labels, names)
    scores, target = probabilities.double().numpy(), labels.numpy()
    predicted = scores.argmax(axis=1)
    one_hot = np.eye(len(names))[target]
    precision, recall, f1, support = reference.precision_recall_fscore_support(target, predicted, zero_division=0)
    if len(names) == 2:
        auroc = reference.roc_auc_score(target, scores[:, 1])
        average_precision = reference.average_precision_score(target, scores[:, 1])
    else:
        auroc = reference.roc_auc_score(one_hot, scores, average="macro")
        average_precision = reference.average_precision_score(one_hot, scores, average="macro")
    expected = {
        "auroc": auroc,
        "average_precision": average_precision,
        "accuracy": reference.accuracy_score(target, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(target, predicted),
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "kappa": reference.cohen_kappa_score(target, predicted),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert result["confusion_matrix"] == reference.confusion_matrix(target, predicted).tolist()
    assert (result["count"], result["absent_classes"]) == (len(target), [])
    assert macro_auroc(probabilities, labels) == result["auroc"]
    for index, name in enumerate(names):
        assert result["per_class"][name] == pytest.approx(
            {
                "auroc": reference.roc_auc_score(one_hot[:, index], scores[:, index]),
                "average_precision": reference.average_precision_score(one_hot[:, index], scores[:, index]),
                "precision": precision[index],
                "recall": recall[index],
                "specificity": reference.recall_score(target == index, predicted == index, pos_label=False),
                "f1": f1[index],
                "support": support[index],
            },
            abs=1e-6,
        )


def test_tied_scores_agree_with_scikit_learn() -> None:
    probabilities, labels = example(2)
    coarse = (probabilities * 4).round() / 4
    assert macro_auroc(coarse, labels) == pytest.approx(reference.roc_auc_score(labels, coarse[:, 1]), abs=1e-6)


def test_absent_classes_have_no_entries_and_count_in_no_mean() -> None:
    probabilities, labels = example(7)
    keep = (labels != 3) & (labels != 6)
    probabilities, labels = probabilities[keep], labels[keep]
    result = classification_metrics(probabilities, labels, SEVEN)
    scores, target = probabilities.double().numpy(), labels.numpy()
    predicted = scores.argmax(axis=1)
    present = [0, 1, 2, 4, 5]
    assert result["absent_classes"] == ["df", "vasc"]
    empty = dict.fromkeys(("auroc", "average_precision", "precision", "recall", "f1"))
    specificity = (predicted != 3).mean()
    assert result["per_class"]["df"] == {**empty, "specificity": pytest.approx(specificity, abs=1e-6), "support": 0}
    assert result["auroc"] == pytest.approx(
        np.mean([reference.roc_auc_score(target == index, scores[:, index]) for index in present]), abs=1e-6
    )
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        target, predicted, labels=present, zero_division=0
    )
    expected = [precision.mean(), recall.mean(), recall.mean(), f1.mean()]
    names = ("precision", "recall", "balanced_accuracy", "f1")
    assert [result[name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert sum(map(sum, result["confusion_matrix"])) == len(target)


def test_a_single_class_has_no_ranking_and_chance_for_selection() -> None:
    probabilities, labels = example(2)
    result = classification_metrics(probabilities, torch.ones_like(labels), ["a", "b"])
    assert result["auroc"] is None and result["average_precision"] is None
    assert result["per_class"]["b"]["auroc"] is None and result["per_class"]["b"]["recall"] is not None
    assert macro_auroc(probabilities, torch.ones_like(labels)) == 0.5


@pytest.mark.parametrize("size", [2, 7])
def test_perfect_and_chance_predictions(size: int) -> None:
    labels = torch.arange(70) % size
    perfect = classification_metrics(torch.eye(size)[labels], labels, SEVEN[:size])
    names = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "precision", "recall", "f1")
    assert [perfect[name] for name in names] == [1.0] * 7
    constant = classification_metrics(torch.full((70, size), 1 / size), labels, SEVEN[:size])
    assert constant["auroc"] == pytest.approx(0.5)
    assert constant["balanced_accuracy"] == pytest.approx(1 / size)
    assert constant["average_precision"] == pytest.approx(1 / size)


def test_order_of_the_images_and_type_of_the_arrays_do_not_matter() -> None:
    probabilities, labels = example(7)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    expected = classification_metrics(probabilities, labels, SEVEN)
    shuffled = classification_metrics(probabilities[order].numpy(), labels[order].int().numpy(), SEVEN)
    assert shuffled["confusion_matrix"] == expected["confusion_matrix"]
    assert shuffled["auroc"] == pytest.approx(expected["auroc"], abs=1e-7)


def test_order_of_the_classes_permutes_the_entries() -> None:
    probabilities, labels = example(7)
    order = [3, 0, 6, 1, 5, 2, 4]
    expected = classification_metrics(probabilities, labels, SEVEN)
    inverse = torch.tensor(order).argsort()
    renamed = classification_metrics(probabilities[:, order], inverse[labels], [SEVEN[index] for index in order])
    assert renamed["per_class"] == expected["per_class"]
    assert renamed["auroc"] == pytest.approx(expected["auroc"])


def test_rounding_above_one_does_not_change_the_ranking() -> None:
    """torchmetrics would pass all scores through a sigmoid in float32, which ties 1 - 1e-9 with 1."""
    second = torch.tensor([1 - 1e-9, 1 + 1e-9, 0.3, 0.2], dtype=torch.float64)
    assert macro_auroc(torch.stack([1 - second, second], dim=1), [0, 1, 0, 0]) == 1.0


def test_result_is_json() -> None:
    probabilities, labels = example(7, count=5)
    result = classification_metrics(probabilities, labels, SEVEN)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("function", [macro_auroc, log_loss, lambda p, y: classification_metrics(p, y, "ab")])
def test_errors_are_one_line(function: Callable[[Tensor, Tensor], object]) -> None:
    good, labels = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1])
    broken = good.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of 2 rows are NaN.*lower the learning rate") as error:
        function(broken, labels)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"apply softmax"):
        function(good * 10, labels)
    with pytest.raises(ValueError, match=r"leave out unlabeled images"):
        function(good, torch.tensor([-1, 1]))
    with pytest.raises(ValueError, match=r"`labels` must be 2 integers"):
        function(good, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"N >= 1"):
        function(good[:0], labels[:0])


def test_class_names_must_fit() -> None:
    for names in (["a"], ["a", "a"]):
        with pytest.raises(ValueError, match=r"one distinct name for each of the 2 columns"):
            classification_metrics(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), names)


def test_log_loss_agrees_with_scikit_learn_and_cross_entropy() -> None:
    probabilities, labels = example(7)
    expected = reference.log_loss(labels.numpy(), probabilities.numpy(), labels=range(7))
    assert log_loss(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    weights = torch.arange(1.0, 8.0)
    weighted = torch.nn.functional.cross_entropy(probabilities.log(), labels, weight=weights)
    assert log_loss(probabilities, labels, weights) == pytest.approx(float(weighted), abs=1e-5)
    assert log_loss([[1.0, 0.0]], [1]) == pytest.approx(15.942, abs=1e-3)
    for broken in (torch.ones(3), -weights, torch.zeros(7)):
        with pytest.raises(ValueError, match=r"`weights` must be 7 numbers >= 0"):
            log_loss(probabilities, labels, broken)


def test_the_error_of_a_difference_is_its_spread_over_new_samples() -> None:
    def models(seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
        first, labels = example(2, 100, 1.5, seed)
        noise = torch.randn(100, 2, generator=torch.Generator().manual_seed(seed + 1000))
        return first, (first.log() + noise).softmax(dim=1), labels.numpy()

    found = [paired_auroc_difference(*models(seed), draws=60) for seed in range(40)]
    spread = float(np.std([difference for difference, _ in found]))
    assert 0.6 < np.mean([error for _, error in found]) / spread < 1.6
    first, second, labels = models(0)
    forth, back = paired_auroc_difference(first, second, labels), paired_auroc_difference(second, first, labels)
    assert forth[0] == pytest.approx(-back[0]) and forth[1] == pytest.approx(back[1])
    assert paired_auroc_difference(first, first, labels) == (0, 0)
