"""Classification metrics of stored predictions: arrays in, plain numbers out."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.metrics import brier_score_loss
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import classification

from jigsawssl.types import DivergedError

from .resampling import Numbers, Resamples, calibration_error, nan_mean, parts_of

Array = Tensor | np.ndarray | Sequence[Any]  # whatever torch.as_tensor takes


def paired_auroc_difference(
    first: Tensor, second: Tensor, labels: np.ndarray[Any, Any], *, draws: int = 200, seed: int = 0
) -> tuple[float, float]:
    """By how much the macro AUROC of one model exceeds that of another, and the standard error of that difference.

    The error is the standard deviation over bootstrap samples of the images, drawn class by class so that none is lost.

    Args:
        first: probabilities ``(N, K)``.
        second: probabilities ``(N, K)`` of the same images.
        labels: integers ``(N,)`` in [0, K).
        draws: bootstrap samples.
        seed: of the samples.

    >>> labels = np.array([0, 1] * 20)
    >>> right = torch.nn.functional.one_hot(torch.from_numpy(labels), 2).float()
    >>> paired_auroc_difference(right, 1 - right, labels)
    (1.0, 0.0)
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    differences = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in members])
        differences.append(macro_auroc(first[rows], labels[rows]) - macro_auroc(second[rows], labels[rows]))
    return macro_auroc(first, labels) - macro_auroc(second, labels), float(np.std(differences))


def classification_metrics(
    probabilities: Array, labels: Array, classes: Sequence[str], *, ordered: bool = False, at: float = 0.9
) -> dict[str, Any]:
    """Every number that the reports print about one set of predictions, ready for JSON.

    A class is *absent* when no label names it. It has no recall and no ranking, so its ``per_class`` entries but the
    specificity are ``None`` and no mean counts it; a prediction of it still counts as an error of the true class.

    Args:
        probabilities: float ``(N, K)`` in [0, 1], one column per class, ``N >= 1``, ``K >= 2``.
        labels: integers ``(N,)`` in [0, K).
        classes: the ``K`` names, in the order of the columns.
        ordered: the classes are grades, each worse than the one before.
        at: the specificity, or sensitivity, at which the other is given.

    Returns:
        A dictionary with

        - ``auroc``: K > 2: one-vs-rest AUROC averaged over the classes with both positives and negatives; K = 2: the
          binary AUROC of the second class, ``classes[1]``. ``None`` where nothing is defined.
        - ``average_precision``: area under the precision-recall steps, averaged (K = 2: taken of the second class) in
          the same way. ``None`` where nothing is defined.
        - ``accuracy``; ``balanced_accuracy``: mean recall of the classes present.
        - ``precision``, ``recall``, ``f1``: means over the classes present, for K = 2 too (``recall`` is therefore
          ``balanced_accuracy``). A class that is never predicted has precision 0.
        - ``kappa``: Cohen's, and ``quadratic_kappa`` with squared distances where the classes are ordered; ``None``
          where all images have one class and all predictions too.
        - ``sensitivity_at_specificity``, ``specificity_at_sensitivity``: the best that a threshold gives with the
          other at ``at`` or above, averaged over classes like ``auroc``.
        - ``brier``: mean squared error of the probabilities, summed over the classes (K = 2: of the second class).
        - ``calibration_error``: expected, of the highest probability, in 15 equal bins.
        - ``per_class``: name → ``auroc``, ``average_precision``, ``precision``, ``recall``, ``specificity``, ``f1``,
          ``support``.
        - ``confusion_matrix``: ``K`` lists of ``K`` counts, rows true, columns predicted.
        - ``count``: N; ``absent_classes``: names of the absent classes.

    Raises:
        ValueError: shapes that do not fit, labels or probabilities out of range, NaN probabilities.

    >>> metrics = classification_metrics([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], [0, 0, 1, 1], ["a", "b"])
    >>> metrics["auroc"], metrics["accuracy"], metrics["confusion_matrix"]
    (0.75, 0.75, [[2, 0], [1, 1]])
    >>> metrics["per_class"]["b"]["recall"], metrics["absent_classes"]
    (0.5, [])
    """
    scores, target = _checked(probabilities, labels)
    count, size = scores.shape
    if len(classes) != size or len(set(classes)) != size:
        raise ValueError(
            f"`classes` must hold one distinct name for each of the {size} columns of `probabilities`, got {classes}"
        )

    judged = _Judged(scores, target, at=at, ordered=ordered)
    return {
        **{metric.name: metric.point(judged) for metric in METRICS},
        "per_class": {
            name: {
                **{metric: values[index] for metric, values in judged.of_class.items()},
                "support": judged.support[index],
            }
            for index, name in enumerate(classes)
        },
        "confusion_matrix": judged.matrix.tolist(),
        "count": count,
        "absent_classes": [name for name, seen in zip(classes, judged.support, strict=True) if not seen],
    }


def resampled_metrics(
    probabilities: ArrayLike, labels: ArrayLike, classes: Sequence[str], *, weights: Numbers, at: float = 0.9
) -> dict[str, Numbers]:
    """Every metric of :func:`classification_metrics` in each resample.

    Args:
        probabilities: float ``(N, K)`` in [0, 1].
        labels: integers ``(N,)`` in [0, K).
        classes: K names.
        weights: ``(R, N)``, not negative.
        at: the specificity, or sensitivity, at which the other is given.

    Returns:
        name → float64 ``(R,)``, NaN where a resample leaves a metric undefined. Values of one class are called
        ``recall of NAME`` and so on.

    >>> found = resampled_metrics([[0.9, 0.1], [0.2, 0.8]], [0, 1], ["a", "b"], weights=np.ones((1, 2)))
    >>> float(found["auroc"][0]), float(found["recall of b"][0])
    (1.0, 1.0)
    """
    scores, target = np.asarray(probabilities, np.float64), np.asarray(labels)
    found: dict[str, list[Numbers]] = {}
    for part in parts_of(weights):
        resamples = Resamples(scores, target, weights=part, at=at)
        values = {metric.name: metric.resampled(resamples) for metric in METRICS if metric.resampled is not None}
        for k, name in enumerate(classes):
            values[f"recall of {name}"] = resamples.recall[:, k]
            values[f"specificity of {name}"] = resamples.specificity[:, k]
            values[f"auroc of {name}"] = resamples.areas[k]
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


class _Judged:
    """What the metrics of one set of predictions are computed from.

    Attributes:
        of_class: metric → its value for each class, ``None`` where it is undefined.
    """

    def __init__(self, scores: Tensor, target: Tensor, *, at: float, ordered: bool) -> None:
        size = scores.shape[1]
        self.scores, self.target, self.ordered, self._at = scores, target, ordered, at
        self.matrix = classification.multiclass_confusion_matrix(scores, target, num_classes=size)
        self.support: list[int] = self.matrix.sum(dim=1).tolist()
        self.of_class: dict[str, list[float | None]] = {
            "auroc": [_auroc(scores, target, index) for index in range(size)],
            "average_precision": [_average_precision(scores, target, index) for index in range(size)],
        }
        for name, function in (
            ("precision", classification.multiclass_precision),
            ("recall", classification.multiclass_recall),
            ("f1", classification.multiclass_f1_score),
        ):
            values = function(scores, target, num_classes=size, average="none").tolist()
            self.of_class[name] = [value if seen else None for value, seen in zip(values, self.support, strict=True)]
        values = classification.multiclass_specificity(scores, target, num_classes=size, average="none").tolist()
        self.of_class["specificity"] = [
            value if seen < len(target) else None for value, seen in zip(values, self.support, strict=True)
        ]
        self._ranked = slice(1, 2) if size == 2 else slice(None)

    def mean(self, name: str) -> float | None:
        """Over the classes that are present."""
        return _mean(self.of_class[name])

    def ranked(self, name: str) -> float | None:
        """Over the classes that ranking metrics count."""
        return _mean(self.of_class[name][self._ranked])

    def best(self, metric: Any) -> float | None:
        """Sensitivity or specificity where the other is as wanted, over the same classes."""
        every = range(self.scores.shape[1])[self._ranked]
        return _mean(_at(metric, scores=self.scores, target=self.target, index=k, least=self._at) for k in every)


class Metric(NamedTuple):
    """A number about predictions that reports, curves and studies show.

    Attributes:
        name: its key in reports; see :func:`jigsawssl.words.name_of` for what people read.
        point: its value, ``None`` where it is undefined.
        resampled: its value in each resample ``(R,)``, NaN where it is undefined; ``None``: it gets no interval.
        share: it is a share of cases or of pairs of cases.
        on_all: it rests on all patients alike, and not on those of the smallest class.
        biased: samples with repeated cases give other values than the cases themselves: no interval for one model.
        tabled: curves and studies have it in their tables.
        printed: fine-tuning prints it at its end.
    """

    name: str
    point: Callable[[_Judged], float | None]
    resampled: Callable[[Resamples], Numbers] | None
    share: bool = True
    on_all: bool = False
    biased: bool = False
    tabled: bool = True
    printed: bool = False


METRICS = (
    Metric("auroc", lambda one: one.ranked("auroc"), lambda many: many.over_classes(many.areas), printed=True),
    Metric(
        "average_precision",
        lambda one: one.ranked("average_precision"),
        lambda many: many.over_classes([ranking.average_precision() for ranking in many.rankings]),
        printed=True,
    ),
    Metric(
        "accuracy",
        lambda one: int(one.matrix.diagonal().sum()) / len(one.target),
        lambda many: many.agreed,
        on_all=True,
        printed=True,
    ),
    Metric("balanced_accuracy", lambda one: one.mean("recall"), lambda many: nan_mean(many.recall), printed=True),
    Metric(
        "precision",
        lambda one: one.mean("precision"),
        lambda many: nan_mean(many.precision),
        tabled=False,
        printed=True,
    ),
    Metric("recall", lambda one: one.mean("recall"), None, tabled=False, printed=True),
    Metric("f1", lambda one: one.mean("f1"), lambda many: nan_mean(many.f1), printed=True),
    Metric(
        "kappa",
        lambda one: _kappa(one.scores, one.target, None),
        lambda many: many.kappa(quadratic=False),
        share=False,
        on_all=True,
    ),
    Metric(
        "quadratic_kappa",
        lambda one: _kappa(one.scores, one.target, "quadratic") if one.ordered else None,
        lambda many: many.kappa(quadratic=True),
        share=False,
        on_all=True,
    ),
    Metric(
        "sensitivity_at_specificity",
        lambda one: one.best(classification.binary_sensitivity_at_specificity),
        lambda many: many.over_classes([first for first, _ in many.best]),
    ),
    Metric(
        "specificity_at_sensitivity",
        lambda one: one.best(classification.binary_specificity_at_sensitivity),
        lambda many: many.over_classes([second for _, second in many.best]),
    ),
    Metric("brier", lambda one: _brier(one.scores, one.target), lambda many: many.brier, share=False, on_all=True),
    Metric(
        "calibration_error",
        lambda one: calibration_error(one.scores, one.target),
        lambda many: many.calibration_error,
        biased=True,
    ),
)
"""Every metric, in the order in which reports show them."""


def metric_of(name: str) -> Metric:
    """The metric of that name."""
    return next(metric for metric in METRICS if metric.name == name)


def macro_auroc(probabilities: Array, labels: Array) -> float:
    """The ``auroc`` of :func:`classification_metrics`, and 0.5 (chance) where it is undefined: for model selection.

    Args:
        probabilities: float ``(N, K)`` in [0, 1].
        labels: integers ``(N,)`` in [0, K).

    Raises:
        ValueError: as :func:`classification_metrics`, NaN included: a model that diverged is not a model at chance.

    >>> macro_auroc([[0.9, 0.1], [0.2, 0.8]], [0, 1]), macro_auroc([[0.9, 0.1], [0.2, 0.8]], [1, 1])
    (1.0, 0.5)
    """
    scores, target = _checked(probabilities, labels)
    size = scores.shape[1]
    value = _mean(_auroc(scores, target, index) for index in ([1] if size == 2 else range(size)))
    return 0.5 if value is None else value


def log_loss(probabilities: Array, labels: Array, weights: Array | None = None) -> float:
    """Mean negative log-probability of the true class, in nats; with ``weights``, the weighted mean.

    The arithmetic of ``torch.nn.functional.cross_entropy(..., weight=weights)``. Probabilities are clipped at the
    float32 resolution, 1.2e-7, as scikit-learn does for float32, so that one confident error does not give infinity.

    Args:
        probabilities: float ``(N, K)`` in [0, 1].
        labels: integers ``(N,)`` in [0, K).
        weights: one weight >= 0 per *class*, ``(K,)``; those of the labels must not all be 0.

    Raises:
        ValueError: as :func:`classification_metrics`; weights of another shape, negative or all 0.

    >>> round(log_loss([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)
    0.4904
    >>> round(log_loss([[0.5, 0.5], [0.25, 0.75]], [0, 1], weights=[1.0, 0.0]), 4)
    0.6931
    """
    scores, target = _checked(probabilities, labels)
    weight = None
    if weights is not None:
        weight = torch.as_tensor(weights).detach().cpu().double()
        if weight.shape != scores.shape[1:] or not bool((weight >= 0).all()) or not float(weight[target].sum()) > 0:
            raise ValueError(
                f"`weights` must be {scores.shape[1]} numbers >= 0, one per class, not all 0; got {weight.tolist()}"
            )
    logs = scores.clamp_min(torch.finfo(torch.float32).eps).log()
    return float(F.nll_loss(logs, target, weight=weight))


def _checked(probabilities: Array, labels: Array) -> tuple[Tensor, Tensor]:
    """Float64 scores clamped to [0, 1] and int64 labels, both on the CPU."""
    scores = torch.as_tensor(probabilities).detach().cpu().double()
    target = torch.as_tensor(labels).detach().cpu()
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ValueError(f"`probabilities` must be (N >= 1, K >= 2), got shape {tuple(scores.shape)}")
    if target.shape != scores.shape[:1] or target.is_floating_point():
        raise ValueError(
            f"`labels` must be {len(scores)} integers, one per row of `probabilities`, "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )
    if not bool(scores.isfinite().all()):
        broken = int((~scores.isfinite()).any(dim=1).sum())
        raise DivergedError(
            f"probabilities must be finite, but {broken} of {len(scores)} rows are NaN or infinite: the model "
            "diverged; lower the learning rate or train in 32-bit precision"
        )
    # torchmetrics takes scores outside [0, 1] for logits and silently passes them through a sigmoid, which ties
    # confident predictions; rounding of a mean of softmaxes alone would trigger it.
    low, high = float(scores.min()), float(scores.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise ValueError(f"`probabilities` must lie in [0, 1], got [{low:g}, {high:g}]; apply softmax to logits first")
    if int(target.min()) < 0 or int(target.max()) >= scores.shape[1]:
        raise ValueError(
            f"`labels` must lie in [0, {scores.shape[1]}), got [{int(target.min())}, {int(target.max())}]; "
            "leave out unlabeled images (-1)"
        )
    return scores.clamp(0.0, 1.0), target.long()


def _auroc(scores: Tensor, target: Tensor, index: int) -> float | None:
    positive = target == index
    return float(classification.binary_auroc(scores[:, index], positive.long())) if _both(positive) else None


def _average_precision(scores: Tensor, target: Tensor, index: int) -> float | None:
    positive = target == index
    return (
        float(classification.binary_average_precision(scores[:, index], positive.long())) if _both(positive) else None
    )


def _at(metric: Any, *, scores: Tensor, target: Tensor, index: int, least: float) -> float | None:
    positive = target == index
    return float(metric(scores[:, index], positive.long(), least)[0]) if _both(positive) else None


def _kappa(scores: Tensor, target: Tensor, weights: Any) -> float | None:
    value = float(classification.multiclass_cohen_kappa(scores, target, scores.shape[1], weights))
    return value if math.isfinite(value) else None


def _brier(scores: Tensor, target: Tensor) -> float:
    size = scores.shape[1]
    # It wants rows that sum to 1 exactly, and averages of a few networks do so only up to rounding.
    shares = (scores / scores.sum(dim=1, keepdim=True)).numpy()
    if size == 2:
        return float(brier_score_loss(target.numpy(), shares[:, 1], pos_label=1, labels=[0, 1]))
    return float(brier_score_loss(target.numpy(), shares, labels=list(range(size))))


def _both(positive: Tensor) -> bool:
    return bool(positive.any()) and not bool(positive.all())


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None
