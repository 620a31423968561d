"""Adapt an encoder to few labels: judge the candidates inside the label budget, then fit the chosen one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..data.loading import PixelDataset
from ..models import Classifier, Encoder, HierarchicalClassifier
from .finetune import Fold, Model, Recipe, planned_epochs, selection_score, train_classifier
from .probe import NEIGHBOURS, STRENGTHS, extract_features, fit_probe, knn_probabilities, predict

__all__ = ["Adaptation", "adapt"]


class Adaptation(NamedTuple):
    """What adapting ends with.

    Attributes:
        probabilities: dataset → float ``(N, K)``.
        model: the classifier, or ``None`` for nearest neighbours.
        chosen: JSON values: which candidate, with which settings.
        validation: JSON values: the score of every candidate, and how they were judged.
        history: curves for pictures, name → (epoch, value).
    """

    probabilities: Callable[[PixelDataset], Tensor]
    model: Model | None
    chosen: dict[str, Any]
    validation: dict[str, Any]
    history: dict[str, list[tuple[int, float]]]


class _Task(NamedTuple):
    """Labelled images and how candidates are judged on them."""

    dataset: PixelDataset
    labels: NDArray[np.int64]
    classes: int
    folds: list[Fold]
    refit_rows: NDArray[np.int64]
    batch_size: int
    device: torch.device
    autocast: torch.dtype | None
    progress: bool

    @property
    def judged(self) -> NDArray[np.int64]:
        """Labels of the validation rows, fold after fold."""
        return np.concatenate([self.labels[val] for _, val in self.folds])

    def features(self, encoder: Encoder, dataset: PixelDataset) -> Tensor:
        """Pooled features of a dataset."""
        return extract_features(encoder, dataset, self.batch_size, self.device, self.autocast)


def _best(scores: dict[Any, float]) -> Any:
    return max(scores, key=lambda name: scores[name])


def _judge(
    task: _Task, candidates: Sequence[Any], fit: Callable[[NDArray[np.int64], NDArray[np.int64], Any], Tensor]
) -> dict[Any, float]:
    """Score each candidate by its predictions on the validation rows of all folds; ``fit(train, val, candidate)``."""
    return {
        candidate: selection_score(torch.cat([fit(train, val, candidate) for train, val in task.folds]), task.judged)
        for candidate in candidates
    }


def _knn(encoder: Encoder, task: _Task) -> Adaptation:
    features = task.features(encoder, task.dataset)

    def vote(bank: NDArray[np.int64], rows: NDArray[np.int64], neighbours: int) -> Tensor:
        return knn_probabilities(features[rows], features[bank], task.labels[bank], task.classes, neighbours)

    counts = [count for count in NEIGHBOURS if count <= min(len(train) for train, _ in task.folds)]
    scores = _judge(task, counts, vote)
    neighbours = _best(scores)
    bank = task.refit_rows

    def probabilities(dataset: PixelDataset) -> Tensor:
        found = task.features(encoder, dataset)
        return knn_probabilities(found, features[bank], task.labels[bank], task.classes, neighbours)

    validation = {"scores": {f"neighbours={count}": score for count, score in scores.items()}}
    return Adaptation(probabilities, None, {"method": "knn", "neighbours": neighbours}, validation, {})


class _Probe(NamedTuple):
    """Features of the labelled images and the chosen strength of the probe."""

    features: Tensor
    strength: float
    scores: dict[float, float]

    def fit(self, task: _Task, rows: NDArray[np.int64], balanced: bool) -> torch.nn.Linear:
        """Probe on some rows."""
        return fit_probe(self.features[rows], task.labels[rows], task.classes, self.strength, balanced)


def _choose_probe(encoder: Encoder, task: _Task, balanced: bool) -> _Probe:
    features = task.features(encoder, task.dataset)

    @torch.no_grad()
    def fitted(train: NDArray[np.int64], val: NDArray[np.int64], strength: float) -> Tensor:
        head = fit_probe(features[train], task.labels[train], task.classes, strength, balanced)
        return head(features[val]).softmax(dim=1)  # type: ignore[no-any-return]

    scores = _judge(task, STRENGTHS, fitted)
    return _Probe(features, _best(scores), scores)


def _with_head(encoder: Encoder, classes: int, head: torch.nn.Linear | None) -> Classifier:
    model = Classifier(copy.deepcopy(encoder), classes)
    if head is not None:
        model.head.load_state_dict(head.state_dict())
    return model


def _finish(
    task: _Task,
    model: Model,
    chosen: dict[str, Any],
    validation: dict[str, Any],
    history: dict[str, list[tuple[int, float]]],
) -> Adaptation:
    def probabilities(dataset: PixelDataset) -> Tensor:
        return predict(model, dataset, task.batch_size, task.device, task.autocast)

    return Adaptation(probabilities, model, chosen, validation, history)


def adapt(
    encoder: Encoder,
    mode: str,
    dataset: PixelDataset,
    labels: NDArray[np.int64],
    classes: int,
    folds: list[Fold],
    refit_rows: NDArray[np.int64],
    recipe: Recipe,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> Adaptation:
    """Adapt an encoder to labelled images.

    Several folds mean cross-validation: candidates are judged on the validation rows of all folds and the chosen one
    is fitted anew on ``refit_rows``. One fold means a held-out part: probes are fitted anew on ``refit_rows``,
    networks keep the weights that did best.

    Args:
        encoder: the starting point; not changed.
        mode: ``linear``, ``knn``, ``full``, ``progressive``, or ``auto``: a linear probe, then full fine-tuning from
            it, where the number of epochs, 0 for the probe itself, is chosen by validation.
        dataset: labelled images, decoded.
        labels: int64 ``(len(dataset),)`` in ``range(classes)``.
        classes: K.
        folds: training and validation rows of ``dataset``.
        refit_rows: rows that the final fit may use.
        recipe: settings of supervised training.
        device: where features are computed.
        autocast: reduced precision for inference, or ``None``.
        progress: show what is being done.

    Returns:
        :class:`Adaptation`.
    """
    task = _Task(dataset, labels, classes, folds, refit_rows, 256, device, autocast, progress)
    if mode == "knn":
        return _knn(encoder, task)
    probe = _choose_probe(encoder, task, recipe.balanced) if mode in ("auto", "linear") else None
    scores: dict[str, float] = {}
    if probe is not None:
        scores = {f"linear strength={strength:g}": score for strength, score in probe.scores.items()}
    if mode == "linear":
        assert probe is not None
        model = _with_head(encoder, classes, probe.fit(task, refit_rows, recipe.balanced))
        chosen = {"method": "linear", "strength": probe.strength}
        return _finish(task, model, chosen, {"scores": scores}, {})
    return _adapt_network(encoder, mode, task, probe, recipe, scores)


def _adapt_network(
    encoder: Encoder, mode: str, task: _Task, probe: _Probe | None, recipe: Recipe, scores: dict[str, float]
) -> Adaptation:
    def start(rows: NDArray[np.int64]) -> Model:
        torch.manual_seed(recipe.seed)
        if mode == "progressive":
            return HierarchicalClassifier(copy.deepcopy(encoder), task.classes)
        return _with_head(encoder, task.classes, probe.fit(task, rows, recipe.balanced) if probe else None)

    # One schedule for folds of any size and for the final fit, or the chosen epoch would mean different things.
    recipe = recipe._replace(max_epochs=planned_epochs(min(len(train) for train, _ in task.folds), recipe))
    method = {"auto": "full from the linear probe"}.get(mode, mode)
    untrained = probe.scores[probe.strength] if probe is not None else -1.0
    held_out = len(task.folds) == 1
    runs = [
        train_classifier(
            start(train), task.dataset, task.labels, task.classes, (train, val), recipe, untrained if held_out else None
        )
        for train, val in tqdm(task.folds, "Fine-tuning", disable=not task.progress)
    ]
    epochs = list(runs[0].checked)
    pooled = {epoch: torch.cat([run.checked[epoch] for run in runs]) for epoch in epochs}
    by_epoch = {epoch: selection_score(probabilities, task.judged) for epoch, probabilities in pooled.items()}
    scores |= {f"{method} epochs={epoch}": score for epoch, score in by_epoch.items()}
    history = {"train_loss": runs[0].losses, "val_auroc": list(by_epoch.items())}
    if probe is not None:
        history["val_auroc"].insert(0, (0, untrained))
    best_epoch = _best(by_epoch)
    if by_epoch[best_epoch] <= untrained:
        assert probe is not None
        model: Model = _with_head(encoder, task.classes, probe.fit(task, task.refit_rows, recipe.balanced))
        return _finish(task, model, {"method": "linear", "strength": probe.strength}, {"scores": scores}, history)
    if held_out:
        model = runs[0].model
    else:
        nothing = np.empty(0, dtype=np.int64)
        final = (task.refit_rows, nothing)
        model = train_classifier(
            start(task.refit_rows), task.dataset, task.labels, task.classes, final, recipe, stop_at=best_epoch
        ).model
    chosen: dict[str, Any] = {"method": method, "epochs": best_epoch, "lr": recipe.lr}
    if probe is not None:
        chosen["strength"] = probe.strength
    return _finish(task, model, chosen, {"scores": scores}, history)
