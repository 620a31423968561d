"""The phantoms are repeatable, and only their texture tells the class."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jigsawssl.data.phantom import PHANTOM_CLASSES, demo_phantoms, make_phantoms


def auroc(features: np.ndarray, penalty: float = 1.0) -> float:
    """Macro AUROC of a linear probe, trained and tested on the demo's own splits."""
    demo = demo_phantoms()
    train, test = demo.splits == "train", demo.splits == "test"
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=500))
    probe.fit(features[train], demo.labels[train])
    return float(roc_auc_score(demo.labels[test], probe.predict_proba(features[test]), multi_class="ovr"))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return demo_phantoms().images.astype(np.float32) / 255


def test_same_seed_same_bytes() -> None:
    one, two, other = (make_phantoms(20, 32, seed=seed)[0] for seed in (3, 3, 4))
    assert one.dtype == np.uint8 and one.shape == (20, 32, 32)
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert len(np.unique(one.reshape(20, -1), axis=0)) == 20


def test_patients_have_one_class_and_one_to_three_images() -> None:
    _, labels, groups = make_phantoms(300, 32)
    names, sizes = np.unique(groups, return_counts=True)
    assert sizes.min() >= 1 and sizes.max() == 3
    assert all(len(set(labels[groups == name])) == 1 for name in names)
    share = np.bincount(labels, minlength=len(PHANTOM_CLASSES)) / 300
    assert share.min() > 0.18 and share.max() < 0.32


def test_hardly_any_pixel_is_clipped(pixels: np.ndarray) -> None:
    assert ((pixels == 0) | (pixels == 1)).mean() < 0.01


def test_pixels_do_not_give_the_class_away(pixels: np.ndarray) -> None:
    small = pixels.reshape(-1, 16, 4, 16, 4).mean((2, 4)).reshape(len(pixels), -1)
    assert auroc(small, penalty=1000) < 0.6


def test_histograms_do_not_give_the_class_away(pixels: np.ndarray) -> None:
    counts = np.stack([np.histogram(image, 32, (0, 1))[0] for image in pixels])
    features = np.column_stack([counts, pixels.mean((1, 2)), pixels.std((1, 2))])
    assert auroc(features, penalty=10) < 0.6


def test_texture_gives_the_class_away(pixels: np.ndarray) -> None:
    crop = pixels[:, 16:48, 16:48]
    window = np.outer(np.hanning(32), np.hanning(32))
    power = np.abs(np.fft.fft2((crop - crop.mean((1, 2), keepdims=True)) * window)) ** 2
    wave = np.fft.fftfreq(32, 1 / 32)
    radius, angle = np.hypot(wave[:, None], wave), np.arctan2(wave[:, None], wave)
    features = []
    for low, high in ((1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8), (8, 10), (10, 16)):
        band = (radius >= low) & (radius < high)
        energy = power[:, band].sum(1)
        stripes = np.abs((power[:, band] * np.exp(2j * angle[band])).sum(1)) / energy
        features += [np.log(energy), stripes]
    assert auroc(np.stack(features, axis=1)) > 0.95
