"""Pictures of where a network looks, on test images that it got right and wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.loading import PixelDataset
from ..data.table import printable
from ..models import Classifier, HierarchicalClassifier
from ..readers import Unreadable
from ..report.figures import save_explanations
from ..runs import write_csv
from .maps import BORDER, FINE, attention_maps, border_share, explain, over_images, rank_agreement

SHOWN = 8
"""Images of either kind."""

EMPTY = "; an empty map: at this tap nothing speaks for the predicted class"


def save_gallery(
    path: Path,
    *,
    model: Classifier | HierarchicalClassifier,
    dataset: PixelDataset,
    probabilities: NDArray[Any],
    labels: NDArray[np.int64],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Draw Grad-CAM, and attention where the encoder has it, for some right and wrong predictions, drawn at random.

    The picture goes into a report, and a file's name may be a patient's: an image carries the first digits of its
    content hash, and a CSV beside the picture says which file that is.

    Args:
        path: JPEG to write; the CSV has the same name with the ending ``.csv``.
        model: that made them.
        dataset: the test images.
        probabilities: float ``(N, K)`` in their order.
        labels: int64 ``(N,)``.
        classes: K names.

    Returns:
        JSON values for the report: the file, the tap, rows and columns of its ``grid`` and whether that is ``coarse``
        and shown as cells, the share of the maps on the border and the sanity check.
    """
    predicted = probabilities.argmax(axis=1)
    order = np.random.default_rng(0).permutation(len(labels))
    right = order[predicted[order] == labels[order]][:SHOWN]
    wrong = order[predicted[order] != labels[order]][:SHOWN]
    chosen = np.concatenate([right, wrong])
    encoder = model.encoder.cpu()
    model = model.cpu().eval()
    images = encoder.preprocess(dataset.__getitems__(chosen.tolist()).images)
    found = explain(model, images, classes=torch.from_numpy(predicted[chosen]))
    maps = {_heading(f"Grad-CAM\n{found.tap}", found.grid): found.maps}
    attended = attention_maps(model, images)
    if attended is not None:
        heading = _heading("attention", attended.shape[1:])
        attended = over_images(attended, images.shape[-2:])
        maps[heading] = attended
    shown = (images * encoder.std + encoder.mean).clamp(0, 1)
    rows = [
        [
            _content_hash(dataset, position),
            printable(dataset.archive.samples[dataset.rows[position]].path),
            classes[labels[position]],
            classes[predicted[position]],
            float(probabilities[position].max()),
        ]
        for position in chosen.tolist()
    ]
    names = path.with_suffix(".csv")
    write_csv(names, ["content_hash", "path", "label", "prediction", "probability"], rows)
    captions = [f"{label} → {guess}\n{sure:.2f}   {content[:8]}" for content, _, label, guess, sure in rows]
    parts = {"right": slice(0, len(right)), "wrong": slice(len(right), len(chosen))}
    save_explanations(
        {
            name: (shown[part], {kind: each[part] for kind, each in maps.items()}, captions[part])
            for name, part in parts.items()
            if captions[part]
        },
        path,
        note="true → predicted class, the probability of the latter, and the beginning of the hash under which "
        f"{names.name} names the file{EMPTY if bool((found.maps.amax(dim=(1, 2)) == 0).any()) else ''}",
    )
    return {
        "file": path.name,
        "tap": found.tap,
        "grid": list(found.grid),
        "coarse": found.coarse,
        "border_share": found.border,
        "border_area": 1 - (1 - 2 * BORDER) ** 2,
        "sanity_correlation": found.sanity,
        "attention_agreement": None if attended is None else rank_agreement(found.maps, attended),
        "attention_border_share": None if attended is None else border_share(attended),
    }


def _heading(kind: str, grid: Sequence[int]) -> str:
    rows, columns = grid
    return f"{kind}\n{rows}×{columns} cells" if min(grid) < FINE else kind


def _content_hash(dataset: PixelDataset, position: int) -> str:
    """As in the tables of archives; empty where the file has gone since it was decoded."""
    try:
        return dataset.archive.open(int(dataset.rows[position]), dataset.format.window).content_hash
    except Unreadable:
        return ""
