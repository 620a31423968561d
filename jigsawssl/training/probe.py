"""Frozen features: extraction, the linear probe and nearest neighbours."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from ..data.loading import PixelDataset
from ..functional import to_channels_last
from ..models import Classifier, Encoder, HierarchicalClassifier
from ..types import UserError

INVERSE_REGULARISATIONS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation (scikit-learn's C) of the linear probe, among which validation chooses."""

_BATCH = 256  # images at a time
NEIGHBOURS = (1, 5, 20, 50, 200)
"""Numbers of neighbours among which validation chooses."""


@torch.no_grad()
def _forward(
    network: nn.Module, encoder: Encoder, *, dataset: PixelDataset, device: torch.device, autocast: torch.dtype | None
) -> Tensor:
    """Output float32 ``(N, …)`` on the CPU for every image of a dataset, in order."""
    network = to_channels_last(network.to(device)).eval()
    parts = []
    for first in range(0, len(dataset), _BATCH):
        positions = range(first, min(first + _BATCH, len(dataset)))
        batch = dataset.__getitems__(positions)
        if not np.array_equal(batch.rows.numpy(), dataset.rows[list(positions)]):
            raise UserError(
                f"`data` has an unreadable image ({next(reversed(dataset.unreadable))}) that would be judged by "
                "another's label; take it out of the manifest"
            )
        images = encoder.preprocess(batch.images.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            parts.append(network(images).float().cpu())
    return torch.cat(parts)


def extract_features(
    encoder: Encoder, dataset: PixelDataset, *, device: torch.device, autocast: torch.dtype | None = None
) -> Tensor:
    """Pooled features float32 ``(N, D)`` on the CPU, in the order of the dataset."""
    return _forward(encoder, encoder, dataset=dataset, device=device, autocast=autocast)


class FeatureBank:
    """Pooled features of one frozen encoder, computed once for each image.

    Args:
        encoder: frozen.
        device: where features are computed.
        autocast: reduced precision, or ``None``.
    """

    def __init__(self, encoder: Encoder, *, device: torch.device, autocast: torch.dtype | None = None) -> None:
        self.encoder = encoder
        self._device, self._autocast = device, autocast
        self._known: dict[str, Tensor] = {}

    def __call__(self, dataset: PixelDataset) -> Tensor:
        """Features float32 ``(len(dataset), D)`` on the CPU, in the order of the dataset."""
        paths = [dataset.archive.samples[row].path for row in dataset.rows.tolist()]
        missing = np.array([at for at, path in enumerate(paths) if path not in self._known], dtype=np.int64)
        if missing.size:
            found = extract_features(
                self.encoder, dataset.subset(missing), device=self._device, autocast=self._autocast
            )
            self._known |= {paths[at]: row for at, row in zip(missing.tolist(), found, strict=True)}
        return torch.stack([self._known[path] for path in paths])


def predict(
    model: Classifier | HierarchicalClassifier,
    dataset: PixelDataset,
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Probabilities float32 ``(N, K)`` on the CPU, in the order of the dataset."""
    return _forward(model, model.encoder, dataset=dataset, device=device, autocast=autocast).softmax(dim=1)


@torch.no_grad()
def dropout_probabilities(
    model: Classifier, dataset: PixelDataset, *, passes: int, device: torch.device, autocast: torch.dtype | None = None
) -> Tensor:
    """Monte-Carlo dropout (Gal and Ghahramani 2016) in front of the head: float32 ``(passes, N, K)`` on the CPU."""
    features = _forward(model.encoder, model.encoder, dataset=dataset, device=device, autocast=autocast)
    # Dropout alone is in training mode: heads have nothing else that would behave differently.
    noisy = nn.Sequential(model.dropout, model.head).cpu().train()
    found = torch.stack([noisy(features).softmax(dim=1) for _ in range(passes)])
    noisy.eval()
    return found


def fit_probe(
    features: Tensor,
    labels: NDArray[np.int64],
    *,
    classes: int,
    strength: float,
    balanced: bool,
    weights: NDArray[np.float64] | None = None,
) -> nn.Linear:
    """Multinomial logistic regression on standardised features, as one linear layer on the raw ones.

    Args:
        features: float ``(N, D)``.
        labels: int64 ``(N,)`` in ``range(classes)``; classes that do not occur get a weight of zero and a low bias.
        classes: K.
        strength: inverse regularisation.
        balanced: weight classes by their inverse frequency.
        weights: ``(N,)``, of the images; all 1 by default.

    Returns:
        ``nn.Linear(D, K)``.

    >>> features = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    >>> probe = fit_probe(features, np.array([0, 0, 1, 1]), classes=2, strength=1.0, balanced=True)
    >>> probe(features).argmax(dim=1).tolist()
    [0, 0, 1, 1]
    """
    x = features.double().numpy()
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-6] = 1.0
    head = nn.Linear(x.shape[1], classes)
    present = np.unique(labels)
    weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, -10.0)
    if len(present) > 1:
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced" if balanced else None)
        with warnings.catch_warnings():
            # A probe stopped after 1000 steps is as good a candidate as any: validation judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((x - centre) / scale, labels, sample_weight=weights)
        binary = len(present) == 2
        weight[present] = np.concatenate([-model.coef_, model.coef_]) / 2 if binary else model.coef_
        bias[present] = np.concatenate([-model.intercept_, model.intercept_]) / 2 if binary else model.intercept_
    else:
        bias[present] = 0.0
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight / scale))
        head.bias.copy_(torch.from_numpy(bias - (weight / scale) @ centre))
    return head


def knn_probabilities(
    features: Tensor, bank: Tensor, labels: NDArray[np.int64], *, classes: int, neighbours: int
) -> Tensor:
    """Votes of the nearest neighbours by cosine similarity, temperature .1 (Wu et al. 2018), as ``(N, classes)``.

    >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_probabilities(bank, bank, np.array([0, 1]), classes=2, neighbours=1).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    model = KNeighborsClassifier(
        min(neighbours, len(bank)), metric="cosine", weights=lambda distance: np.exp(-distance / 0.1)
    )
    model.fit(bank.numpy(), labels)
    probabilities = torch.zeros(len(features), classes)
    probabilities[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(features.numpy())).float()
    return probabilities
