"""Adapt an encoder to few labels: judge the candidates inside the label budget, then fit the chosen one."""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.loading import LabelledSet, PixelDataset
from ..data.splits import Fold
from ..evaluation import paired_auroc_difference
from ..models import Classifier, Encoder, HierarchicalClassifier
from ..progress import Progress
from ..types import DivergedError
from .finetune import Model, OnCheck, Recipe, Trained, planned_epochs, selection_score, train_classifier
from .probe import INVERSE_REGULARISATIONS, NEIGHBOURS, FeatureBank, fit_probe, knn_probabilities, predict
from .selftraining import self_train

Made = TypeVar("Made")
Build = Callable[[Encoder, int, Recipe], Model]
"""A network to train: a copy of the encoder, and a head for so many classes."""


class Adaptation(NamedTuple):
    """What adapting ends with.

    Attributes:
        probabilities: dataset → float ``(N, K)``.
        model: the classifier, or ``None`` for nearest neighbours.
        chosen: JSON values: which candidate, with which settings.
        validation: JSON values: the score of every candidate, how they were judged, and which rates diverged.
        history: curves for pictures, name → (epoch, value).
        judged: float ``(M, K)``: the chosen candidate's probabilities for the validation rows, fold after fold, by
            networks that were not trained on them.
        judged_labels: int64 ``(M,)``.
    """

    probabilities: Callable[[PixelDataset], Tensor]
    model: Model | None
    chosen: dict[str, Any]
    validation: dict[str, Any]
    history: dict[str, list[tuple[int, float]]]
    judged: Tensor
    judged_labels: NDArray[np.int64]


class _Task(NamedTuple):
    """Labelled images, and what it takes to train on them and to judge candidates."""

    known: LabelledSet
    features: FeatureBank
    device: torch.device
    autocast: torch.dtype | None
    bar: Progress

    def train(self, model: Model, fold: Fold, recipe: Recipe, **options: Any) -> Trained:
        """As :func:`train_classifier`; one that stops early moves the bar as far as one that does not."""
        assert recipe.max_epochs is not None
        end = self.bar.n + recipe.max_epochs
        trained = train_classifier(
            model,
            self.known.dataset,
            labels=self.known.labels,
            classes=self.known.classes,
            fold=fold,
            recipe=recipe,
            on_epoch=self.bar.update,
            **options,
        )
        self.bar.update(end - self.bar.n)
        return trained

    def probe(self, recipe: Recipe) -> "Probe":
        """The probe that validation chooses."""
        known = self.known
        unlabelled = None if known.unlabelled is None else self.features(known.unlabelled)
        return choose_probe(self.features(known.dataset), known, balanced=recipe.balanced, unlabelled=unlabelled)


def _best(scores: dict[Any, float]) -> Any:
    return max(scores, key=lambda name: scores[name])


def _adapt_knn(encoder: Encoder, task: _Task, recipes: Sequence[Recipe]) -> Adaptation:
    """Nearest neighbours among the labelled images."""
    features = task.features(task.known.dataset)

    def vote(bank: NDArray[np.int64], rows: NDArray[np.int64], neighbours: int) -> Tensor:
        return knn_probabilities(
            features[rows], features[bank], task.known.labels[bank], classes=task.known.classes, neighbours=neighbours
        )

    counts = [count for count in NEIGHBOURS if count <= min(len(train) for train, _ in task.known.folds)]
    votes = {count: torch.cat([vote(train, val, count) for train, val in task.known.folds]) for count in counts}
    scores = {count: selection_score(found, task.known.judged) for count, found in votes.items()}
    neighbours = _best(scores)
    bank = task.known.refit_rows

    def probabilities(dataset: PixelDataset) -> Tensor:
        found = task.features(dataset)
        return knn_probabilities(
            found, features[bank], task.known.labels[bank], classes=task.known.classes, neighbours=neighbours
        )

    validation = {"scores": {f"neighbours={count}": score for count, score in scores.items()}}
    chosen = {"method": "knn", "neighbours": neighbours}
    return Adaptation(
        probabilities=probabilities,
        model=None,
        chosen=chosen,
        validation=validation,
        history={},
        judged=votes[neighbours],
        judged_labels=task.known.judged,
    )


class Probe(NamedTuple):
    """A linear probe whose strength was chosen by validation.

    Attributes:
        features: float ``(N, D)`` of the labelled images.
        known: those images.
        balanced: whether classes count alike.
        strength: the chosen one of :data:`jigsawssl.training.probe.INVERSE_REGULARISATIONS`.
        scores: of each candidate, by what tells it from others.
        judged: float ``(M, K)``: probabilities for the validation rows, fold after fold.
        unlabelled: float ``(U, D)`` of images that it learns from without a label, if any.
        taught: share of the probe that learned from them in the weights; 0: none.
    """

    features: Tensor
    known: LabelledSet
    balanced: bool
    strength: float
    scores: dict[str, float]
    judged: Tensor
    unlabelled: Tensor | None = None
    taught: float = 0.0

    @property
    def score(self) -> float:
        """What validation says of it."""
        return selection_score(self.judged, self.known.judged)

    @property
    def chosen(self) -> dict[str, Any]:
        """JSON values that say which it is."""
        by = {} if self.unlabelled is None else {"self-trained share": self.taught}
        return {"strength": self.strength, **by}

    def fit(self, rows: NDArray[np.int64]) -> torch.nn.Linear:
        """Probe on some rows."""
        labels, classes = self.known.labels[rows], self.known.classes
        features = self.features[rows]
        head = fit_probe(features, labels, classes=classes, strength=self.strength, balanced=self.balanced)
        if self.unlabelled is None or not self.taught:
            return head
        student = self_train(
            head, features, labels, self.unlabelled, classes=classes, strength=self.strength, balanced=self.balanced
        )
        with torch.no_grad():
            for value, last in zip(head.parameters(), student.parameters(), strict=True):
                value.lerp_(last, self.taught)
        return head

    @torch.no_grad()
    def validated(self) -> Tensor:
        """Probabilities ``(M, K)`` for the validation rows, each by a probe on the other rows of its fold."""
        found = [self.fit(train)(self.features[val]).softmax(dim=1) for train, val in self.known.folds]
        return torch.cat(found)


def choose_probe(features: Tensor, known: LabelledSet, *, balanced: bool, unlabelled: Tensor | None = None) -> Probe:
    """Choose a probe on the folds of labelled images.

    Its strength is the best one by validation. With unlabeled images the weights are the average of the probe and of
    one that trained itself on them, unless validation sees either ahead of it by more than one standard error.

    Args:
        features: float ``(N, D)`` of the labelled images.
        known: those images.
        balanced: whether classes count alike.
        unlabelled: float ``(U, D)`` of images without a label.
    """
    made = {}
    for strength in INVERSE_REGULARISATIONS:
        plain = Probe(features, known, balanced, strength, {}, torch.empty(0))
        made[strength] = plain._replace(judged=plain.validated())
    best = made[_best({strength: probe.score for strength, probe in made.items()})]
    best = best._replace(scores={f"strength={strength:g}": probe.score for strength, probe in made.items()})
    if unlabelled is None or not len(unlabelled):
        return best
    mixed = {}
    for taught in (0.0, 0.5, 1.0):
        probe = best._replace(unlabelled=unlabelled, taught=taught)
        mixed[taught] = probe._replace(judged=probe.validated() if taught else best.judged)
    rival = max((mixed[0.0], mixed[1.0]), key=lambda probe: probe.score)
    ahead, error = paired_auroc_difference(rival.judged, mixed[0.5].judged, known.judged)
    scores = {**best.scores, **{f"self-trained share={share:g}": probe.score for share, probe in mixed.items()}}
    return (rival if ahead > error else mixed[0.5])._replace(scores=scores)


def _with_head(
    encoder: Encoder, *, classes: int, head: torch.nn.Linear | None, dropout: float = 0.0, kind: str = "linear"
) -> Classifier:
    model = Classifier(copy.deepcopy(encoder), classes, dropout=dropout, head=kind)
    if head is not None:
        model.head.load_state_dict(head.state_dict())
    return model


def adapt(
    encoder: Encoder,
    known: LabelledSet,
    *,
    mode: str,
    recipes: Sequence[Recipe],
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: bool = False,
    features: FeatureBank | None = None,
) -> Adaptation:
    """Adapt an encoder to labelled images.

    Several folds mean cross-validation: candidates are judged on the validation rows of all folds and the chosen one
    is fitted again on the rows to refit on. One fold means a held-out part: probes are fitted again on these rows,
    networks keep the weights that did best.

    Args:
        encoder: the starting point; not changed.
        known: the labelled images.
        mode: one of :data:`MODES`.
        recipes: settings of supervised training among which validation chooses; probes take the first one's.
        device: where features are computed.
        autocast: reduced precision for inference, or ``None``.
        progress: show what is being done.
        features: of ``encoder``, where they are to be kept for the next call.

    Returns:
        :class:`Adaptation`.
    """
    bank = FeatureBank(encoder, device=device, autocast=autocast) if features is None else features
    planned = [_planned(known.folds, recipe) for recipe in recipes]
    total = len(known.folds) * sum(planned) + (0 if known.held_out else max(planned))
    hidden = not progress or not MODES[mode].trains
    # Smoothing 0: that one training stopped early says little of the next.
    with Progress(desc="Fine-tuning", total=total, smoothing=0, disable=hidden) as bar:
        task = _Task(known=known, features=bank, device=device, autocast=autocast, bar=bar)
        adaptation = MODES[mode].adapt(encoder, task, recipes)
        bar.update(total - bar.n)  # where the probe won, nothing is trained in the end
    return adaptation


def _planned(folds: Sequence[Fold], recipe: Recipe) -> int:
    """Epochs of every training: those of the smallest fold."""
    return planned_epochs(min(len(train) for train, _ in folds), recipe)


def _adapt_network(
    encoder: Encoder, task: _Task, recipes: Sequence[Recipe], *, method: str, build: Build
) -> Adaptation:
    """Train the whole network with each recipe."""
    networks, lost = _surviving(
        recipes, lambda recipe: _train_network(encoder, method=method, build=build, task=task, recipe=recipe)
    )
    if not networks:
        raise lost[max(lost)]
    best = max(networks, key=lambda candidate: candidate.score)
    return _finish(task, best._replace(scores=_merged(networks)), lost)


def _adapt_probe(encoder: Encoder, task: _Task, recipes: Sequence[Recipe]) -> Adaptation:
    """A linear probe; the encoder stays as it is."""
    return _finish(task, _linear(encoder, task, task.probe(recipes[0]), recipes[0]))


def _adapt_auto(encoder: Encoder, task: _Task, recipes: Sequence[Recipe]) -> Adaptation:
    """A linear probe, full fine-tuning that starts from it, or the average of both networks' weights.

    The average is taken unless validation sees another ahead by more than one standard error.
    """
    probe = task.probe(recipes[0])
    linear = _linear(encoder, task, probe, recipes[0])
    pairs, lost = _surviving(recipes, lambda recipe: _from_probe(encoder, task, recipe, probe))
    if not pairs:
        return _finish(task, linear, lost)
    average = max((pair[0] for pair in pairs), key=lambda candidate: candidate.score)
    rival = max((linear, *(pair[1] for pair in pairs)), key=lambda candidate: candidate.score)
    ahead, error = paired_auroc_difference(rival.judged, average.judged, task.known.judged)
    winner = rival if ahead > error else average
    scores = _merged([linear, *(candidate for pair in pairs for candidate in pair)])
    comparison = {"other": rival.chosen["method"], "ahead_of_average_by": ahead, "standard_error": error}
    return _finish(task, winner._replace(scores=scores), lost, comparison)


def _surviving(
    recipes: Sequence[Recipe], attempt: Callable[[Recipe], Made]
) -> tuple[list[Made], dict[float, DivergedError]]:
    """What became of each recipe, and the errors of those that diverged, by their learning rate: they have lost."""
    made, lost = [], {}
    for recipe in recipes:
        try:
            made.append(attempt(recipe))
        except DivergedError as error:
            lost[recipe.lr] = error
    return made, lost


class _Candidate(NamedTuple):
    """One way to adapt, judged: its validation probabilities, its score, how to get the model, and what to report."""

    judged: Tensor
    score: float
    fit: Callable[[], Model]
    chosen: dict[str, Any]
    scores: dict[str, float]
    history: dict[str, list[tuple[int, float]]]


def _merged(candidates: Sequence[_Candidate]) -> dict[str, float]:
    return {name: score for candidate in candidates for name, score in candidate.scores.items()}


def _finish(
    task: _Task,
    winner: _Candidate,
    lost: Mapping[float, DivergedError] | None = None,
    comparison: dict[str, Any] | None = None,
) -> Adaptation:
    model = winner.fit()

    @torch.no_grad()
    def probabilities(dataset: PixelDataset) -> Tensor:
        if winner.chosen["method"] == "linear" and isinstance(model, Classifier):
            logits: Tensor = model.head.cpu()(task.features(dataset))
            return logits.softmax(dim=1)
        return predict(model, dataset, device=task.device, autocast=task.autocast)

    validation: dict[str, Any] = {"scores": winner.scores, **({"comparison": comparison} if comparison else {})}
    if lost:
        validation["diverged"] = [f"lr={rate:g}" for rate in lost]
    return Adaptation(
        probabilities=probabilities,
        model=model,
        chosen=winner.chosen,
        validation=validation,
        history=winner.history,
        judged=winner.judged,
        judged_labels=task.known.judged,
    )


def _linear(encoder: Encoder, task: _Task, probe: Probe, recipe: Recipe) -> _Candidate:
    return _Candidate(
        judged=probe.judged,
        score=probe.score,
        fit=lambda: _with_head(
            encoder, classes=task.known.classes, head=probe.fit(task.known.refit_rows), dropout=recipe.dropout
        ),
        chosen={"method": "linear", **probe.chosen},
        scores={f"linear {name}": score for name, score in probe.scores.items()},
        history={},
    )


def _from_probe(encoder: Encoder, task: _Task, recipe: Recipe, probe: Probe) -> tuple[_Candidate, _Candidate]:
    """Full fine-tuning that starts from the linear probe, and the average of its weights with the probe's.

    The average of both ends is often better than either, most of all where the test images differ from the training
    images (WiSE-FT: Wortsman et al., Robust fine-tuning of zero-shot models, 2022).
    """
    held_out = task.known.held_out
    recipe = recipe._replace(max_epochs=_planned(task.known.folds, recipe))

    def ends(train: NDArray[np.int64], val: NDArray[np.int64]) -> tuple[Classifier, Trained]:
        start = _with_head(encoder, classes=task.known.classes, head=probe.fit(train), dropout=recipe.dropout)
        torch.manual_seed(recipe.seed)
        keep_best = -1.0 if held_out else None
        trained = task.train(copy.deepcopy(start), (train, val), recipe, keep_best=keep_best)
        return start, trained

    folds = [ends(train, val) for train, val in task.known.folds]
    validation = [task.known.dataset.subset(val) for _, val in task.known.folds]

    def candidate(method: str, share: float) -> _Candidate:
        judged = torch.cat(
            [
                predict(_between(start, trained.model, share), val, device=task.device, autocast=task.autocast)
                for (start, trained), val in zip(folds, validation, strict=True)
            ]
        )
        score = selection_score(judged, task.known.judged)

        def fit() -> Model:
            last = folds[0] if held_out else ends(task.known.refit_rows, np.empty(0, dtype=np.int64))
            return _between(last[0], last[1].model, share)

        chosen = {"method": method, **probe.chosen, "lr": recipe.lr, "epochs": recipe.max_epochs}
        epochs = folds[0][1].checked
        curve = [
            (epoch, selection_score(found, task.known.labels[task.known.folds[0][1]]))
            for epoch, found in epochs.items()
        ]
        history = {"train_loss": folds[0][1].losses, "val_auroc": curve}
        return _Candidate(
            judged=judged,
            score=score,
            fit=fit,
            chosen=chosen,
            scores={f"{method} lr={recipe.lr:g}": score},
            history=history,
        )

    return candidate("average of probe and full", 0.5), candidate("full from the probe", 1.0)


def _between(start: Classifier, end: Model, share: float) -> Classifier:
    """A network whose weights and statistics lie between those of two."""
    result = copy.deepcopy(start)
    first, last = start.state_dict(), end.state_dict()
    result.load_state_dict(
        {name: value.lerp(last[name], share) if value.is_floating_point() else value for name, value in first.items()}
    )
    return result.eval()


def judge_recipe(encoder: Encoder, known: LabelledSet, *, recipe: Recipe, on_check: OnCheck) -> float:
    """Validation score of full fine-tuning with one recipe, without the final fit; as :func:`adapt` scores it.

    Args:
        encoder: the starting point; not changed.
        known: the labelled images; what it would be fitted on at last is not asked for.
        recipe: settings.
        on_check: told of every check of the first fold; what it raises ends the training.
    """
    device = torch.device("cpu")  # features are not asked for
    bank, bar = FeatureBank(encoder, device=device), Progress(disable=True)
    task = _Task(known=known, features=bank, device=device, autocast=None, bar=bar)
    return _train_network(encoder, method="full", build=_plain, task=task, recipe=recipe, on_check=on_check).score


def _plain(encoder: Encoder, classes: int, recipe: Recipe) -> Model:
    return _with_head(encoder, classes=classes, head=None, dropout=recipe.dropout, kind=recipe.head)


def _hierarchical(encoder: Encoder, classes: int, recipe: Recipe) -> Model:
    return HierarchicalClassifier(copy.deepcopy(encoder), classes)


def _train_network(
    encoder: Encoder, *, method: str, build: Build, task: _Task, recipe: Recipe, on_check: OnCheck | None = None
) -> _Candidate:
    """Train on each fold; the number of epochs is the one that does best on all of them."""

    def start() -> Model:
        torch.manual_seed(recipe.seed)
        return build(encoder, task.known.classes, recipe)

    # One schedule for folds of any size and for the final fit, or the chosen epoch would mean different things.
    recipe = recipe._replace(max_epochs=_planned(task.known.folds, recipe))
    held_out = task.known.held_out
    keep_best = -1.0 if held_out else None
    runs: list[Trained] = []
    for fold in task.known.folds:
        check = None if runs else on_check
        runs.append(task.train(start(), fold, recipe, keep_best=keep_best, on_check=check))
    pooled = {epoch: torch.cat([run.checked[epoch] for run in runs]) for epoch in runs[0].checked}
    by_epoch = {epoch: selection_score(probabilities, task.known.judged) for epoch, probabilities in pooled.items()}
    best = _best(by_epoch)

    def fit() -> Model:
        if held_out:
            return runs[0].model
        final = (task.known.refit_rows, np.empty(0, dtype=np.int64))
        return task.train(start(), final, recipe, stop_at=best).model

    chosen: dict[str, Any] = {"method": method, "epochs": best, "lr": recipe.lr}
    scores = {f"{method} lr={recipe.lr:g} epochs={epoch}": score for epoch, score in by_epoch.items()}
    history = {"train_loss": runs[0].losses, "val_auroc": list(by_epoch.items())}
    return _Candidate(judged=pooled[best], score=by_epoch[best], fit=fit, chosen=chosen, scores=scores, history=history)


class Mode(NamedTuple):
    """A way to adapt.

    Attributes:
        adapt: judges its candidates, and fits the best one.
        trains: whether it trains networks, which takes long.
        shuffles: whether its steps shuffle tiles, which must divide the images.
        unlabelled: whether it learns from images without a label.
        for_fresh: the mode that takes its place where weights are fresh; ``None``: none does.
    """

    adapt: Callable[[Encoder, _Task, Sequence[Recipe]], Adaptation]
    trains: bool = True
    shuffles: bool = False
    unlabelled: bool = False
    for_fresh: str | None = None


MODES = {
    # A network from fresh weights learned less when it began with a probe on them.
    "auto": Mode(_adapt_auto, unlabelled=True, for_fresh="full"),
    "full": Mode(functools.partial(_adapt_network, method="full", build=_plain)),
    "linear": Mode(_adapt_probe, trains=False, unlabelled=True),
    "knn": Mode(_adapt_knn, trains=False),
    "progressive": Mode(functools.partial(_adapt_network, method="progressive", build=_hierarchical), shuffles=True),
}
"""Ways to adapt, by the names of :data:`jigsawssl.defaults.MODES`."""


def adaptation_mode(mode: str, trained: bool) -> str:
    """The mode that is meant for trained or for fresh weights.

    >>> adaptation_mode("auto", trained=False), adaptation_mode("linear", trained=False)
    ('full', 'linear')
    """
    return mode if trained else MODES[mode].for_fresh or mode
