"""Pictures of where a network looks, on test images that it got right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.loading import PixelDataset
from ..models import Classifier, HierarchicalClassifier
from ..report.figures import save_explanations
from ..training.explain import BORDER, attention_maps, border_share, explain, rank_agreement

__all__ = ["save_gallery"]

SHOWN = 8
"""Images of either kind."""


def save_gallery(
    path: Path,
    model: Classifier | HierarchicalClassifier,
    dataset: PixelDataset,
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Draw Grad-CAM, and attention where the encoder has it, for some right and wrong predictions, drawn by lot.

    Args:
        path: JPEG to write.
        model: that made them.
        dataset: the test images.
        probabilities: float ``(N, K)`` in their order.
        labels: int64 ``(N,)``.
        classes: K names.

    Returns:
        JSON values for the report: the file, the tap, the share of the maps on the border and the sanity check.
    """
    predicted = probabilities.argmax(axis=1)
    order = np.random.default_rng(0).permutation(len(labels))
    right = order[predicted[order] == labels[order]][:SHOWN]
    wrong = order[predicted[order] != labels[order]][:SHOWN]
    chosen = np.concatenate([right, wrong])
    encoder = model.encoder.cpu()
    model = model.cpu().eval()
    images = encoder.preprocess(dataset.__getitems__(chosen.tolist()).images)
    found = explain(model, images)
    shown = (images * encoder.std + encoder.mean).clamp(0, 1)
    captions = [f"{classes[labels[row]]} → {classes[predicted[row]]}" for row in chosen]
    parts = torch.tensor([len(right), len(wrong)]).cumsum(0).tolist()
    rows = {"right": slice(0, parts[0]), "wrong": slice(parts[0], parts[1])}
    maps = {f"Grad-CAM, {found.tap}": found.maps}
    attended = attention_maps(model, images)
    if attended is not None:
        maps["attention"] = attended
    save_explanations(
        {
            name: (shown[part], {kind: each[part] for kind, each in maps.items()}, captions[part])
            for name, part in rows.items()
            if captions[part]
        },
        path,
    )
    return {
        "file": path.name,
        "tap": found.tap,
        "border_share": found.border,
        "border_area": 1 - (1 - 2 * BORDER) ** 2,
        "sanity_correlation": found.sanity,
        "attention_agreement": None if attended is None else rank_agreement(found.maps, attended),
        "attention_border_share": None if attended is None else border_share(attended),
    }
