from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jigsawssl.data.loading import PixelDataset
from jigsawssl.models import Classifier
from jigsawssl.models.encoder import Encoder
from jigsawssl.training.finetune import Recipe, class_weights, selection_score, train_classifier
from jigsawssl.training.probe import extract_features, fit_probe, knn_probabilities, predict

CPU = torch.device("cpu")
NOTHING = np.empty(0, dtype=np.int64)


def test_the_probe_is_logistic_regression_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 4):
        labels = rng.integers(classes, size=60)
        features = (rng.normal(size=(60, 5)) + labels[:, None]) * [1, 10, 0.1, 5, 1] + 3
        reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))
        expected = reference.fit(features, labels).predict_proba(features)
        tensor = torch.from_numpy(features).float()
        probe = fit_probe(tensor, labels, classes=classes, strength=0.1, balanced=True)
        np.testing.assert_allclose(probe(tensor).softmax(dim=1).detach(), expected, atol=2e-3)


def test_the_probe_survives_absent_classes_and_constant_features() -> None:
    features = torch.cat([torch.randn(10, 3), torch.ones(10, 1)], dim=1)
    labels = np.array([0, 2] * 5)
    probability = fit_probe(features, labels, classes=4, strength=1.0, balanced=True)(features).softmax(dim=1)
    assert torch.isfinite(probability).all() and probability[:, [1, 3]].max() < 0.01


def test_neighbours_vote_by_similarity() -> None:
    bank, labels = torch.eye(3), np.array([0, 1, 1])
    votes = knn_probabilities(torch.tensor([[1.0, 0.1, 0.0]]), bank, labels, classes=3, neighbours=3)
    assert votes.argmax() == 0 and votes.sum() == pytest.approx(1) and votes[0, 2] == 0


def test_class_weights_balance_the_classes() -> None:
    labels = np.array([0] * 6 + [2] * 2)
    weights = class_weights(labels, 3, balanced=True)
    totals = [float(weights[k] * (labels == k).sum()) for k in range(3)]
    assert totals == pytest.approx([4, 0, 4])
    assert class_weights(labels, 3, balanced=False).tolist() == [1, 1, 1]


def test_selection_prefers_ranking_and_then_confidence() -> None:
    labels = np.array([0, 0, 1, 1])
    right = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9]])
    timid = torch.tensor([[0.6, 0.4], [0.55, 0.45], [0.45, 0.55], [0.4, 0.6]])
    assert selection_score(right, labels) > selection_score(timid, labels) > selection_score(right.flip(1), labels)


def test_validation_rows_do_not_train(two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]) -> None:
    """Other labels in the validation rows leave the trained weights as they are."""

    def trained(labels: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        recipe = Recipe(lr=1e-3, max_epochs=2)
        done = train_classifier(
            Classifier(tiny_encoder(), 2),
            two_classes,
            labels=labels,
            classes=2,
            fold=(np.arange(24), np.arange(40)[24:]),
            recipe=recipe,
        )
        return done.model.state_dict()

    other = two_classes.labels.copy()
    other[24:] = 1 - other[24:]
    first, second = trained(two_classes.labels), trained(other)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_training_separates_what_is_easy(two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]) -> None:
    recipe = Recipe(lr=1e-3, max_epochs=8, batch_size=16)
    fold = (np.arange(30), np.arange(40)[30:])
    trained = train_classifier(
        Classifier(tiny_encoder(), 2),
        two_classes,
        labels=two_classes.labels,
        classes=2,
        fold=fold,
        recipe=recipe,
        keep_best=-1.0,
    )
    assert trained.losses[-1][1] < trained.losses[0][1]
    probabilities = predict(trained.model, two_classes.subset(fold[1]), device=CPU)
    assert (probabilities.argmax(dim=1).numpy() == two_classes.labels[fold[1]]).mean() >= 0.9


def test_features_come_in_the_order_of_the_dataset(
    two_classes: PixelDataset, tiny_encoder: Callable[[], Encoder]
) -> None:
    encoder = tiny_encoder().eval()
    whole = extract_features(encoder, two_classes, device=CPU)
    part = extract_features(encoder, two_classes.subset(np.array([5, 3])), device=CPU)
    torch.testing.assert_close(part, whole[[5, 3]], rtol=1e-4, atol=1e-5)
