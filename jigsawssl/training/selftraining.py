"""Self-training of a linear probe: a teacher labels the images that nobody did, and the next probe learns from both."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .probe import fit_probe

SHARES = (0.2, 0.4, 0.6)
"""Share of the unlabeled images that each round takes, the most certain ones of each class."""

MOST_TAUGHT = 20
"""Images with a label of the teacher for each labelled one, at most; more cost time and change little."""

ALIGNED = 2.0
"""How much alignment may raise or lower a class: the unlabeled images need not have the labelled ones' shares."""


def align(probabilities: Tensor, prior: Tensor, *, balanced: bool) -> Tensor:
    """Move predictions towards the shares of the classes among labels.

    Distribution alignment (ReMixMatch: Berthelot et al. 2020, section 3.1), by a factor of :data:`ALIGNED` at most, so
    that images of a single class are not made into others.

    Args:
        probabilities: float ``(N, K)``, rows sum to 1.
        prior: float ``(K,)``, the classes' shares.
        balanced: whether the predictions are of a model to which classes counted alike; they are weighed by the prior
            before shares are compared.

    Returns:
        Float ``(N, K)``, rows sum to 1.

    >>> found = align(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0.5, 0.5]), balanced=False)
    >>> found.argmax(dim=1).tolist()
    [0, 1]
    """
    weighed = probabilities * prior if balanced else probabilities
    weighed = weighed / weighed.sum(dim=1, keepdim=True).clamp_min(1e-12)
    factor = (prior / weighed.mean(dim=0).clamp_min(1e-12)).clamp(1 / ALIGNED, ALIGNED)
    moved = probabilities * factor
    return moved / moved.sum(dim=1, keepdim=True).clamp_min(1e-12)


def pseudo_labels(
    probabilities: Tensor, prior: Tensor, *, share: float, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The most certain images of each class, as many as its share of the labels allows.

    Args:
        probabilities: float ``(N, K)``.
        prior: float ``(K,)``, the classes' shares among the labels.
        share: of the images that are taken.
        most: images at most.

    Returns:
        Positions int64 ``(M,)`` and labels int64 ``(M,)``. Of a class that the teacher sees nowhere there are none.

    >>> p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.45, 0.55]])
    >>> rows, labels = pseudo_labels(p, torch.tensor([0.5, 0.5]), share=0.5, most=4)
    >>> rows.tolist(), labels.tolist()
    ([0, 2], [0, 1])
    """
    certainty, found = probabilities.max(dim=1)
    total = min(most, share * len(probabilities))
    rows = []
    for number in range(len(prior)):
        own = torch.nonzero(found == number)[:, 0]
        order = certainty[own].argsort(descending=True, stable=True)
        rows.append(own[order[: int(np.ceil(total * float(prior[number])))]])
    taken = torch.cat(rows)
    return taken.numpy(), found[taken].numpy()


def self_train(
    teacher: nn.Linear,
    features: Tensor,
    labels: NDArray[np.int64],
    unlabelled: Tensor,
    *,
    classes: int,
    strength: float,
    balanced: bool,
) -> nn.Linear:
    """Fit a probe to labelled images and to what the probe before it says of unlabeled ones, round by round.

    The images that the teacher labelled weigh as much together as the labelled ones. Noisy student (Xie et al. 2020)
    for a linear probe, with the classes' shares kept as there.

    Args:
        teacher: a probe on the labelled images.
        features: float ``(N, D)`` of the labelled images.
        labels: int64 ``(N,)``.
        unlabelled: float ``(M, D)``.
        classes: K.
        strength: this and ``balanced`` as for :func:`jigsawssl.training.probe.fit_probe`.

    >>> features = torch.tensor([[-1.0], [1.0]])
    >>> labels = np.array([0, 1])
    >>> teacher = fit_probe(features, labels, classes=2, strength=1.0, balanced=True)
    >>> student = self_train(teacher, features, labels, torch.tensor([[-2.0], [2.0]]), classes=2, strength=1.0,
    ...                      balanced=True)
    >>> student(features).argmax(dim=1).tolist()
    [0, 1]
    """
    prior = torch.from_numpy(np.bincount(labels, minlength=classes) / len(labels)).float()
    for share in SHARES:
        with torch.no_grad():
            said = align(teacher(unlabelled).softmax(dim=1), prior, balanced=balanced)
        rows, taught = pseudo_labels(said, prior, share=share, most=MOST_TAUGHT * len(labels))
        weights = np.concatenate([np.ones(len(labels)), np.full(len(rows), len(labels) / max(1, len(rows)))])
        teacher = fit_probe(
            torch.cat([features, unlabelled[rows]]),
            np.concatenate([labels, taught]),
            classes=classes,
            strength=strength,
            balanced=balanced,
            weights=weights,
        )
    return teacher
