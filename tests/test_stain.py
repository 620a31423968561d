"""Stain normalisation against the published procedures, an image at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jigsawssl.stain import MACENKO_TARGET, normalize_stain, reinhard_statistics

STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])


def tissue(count: int = 3, size: int = 48, seed: int = 0) -> Tensor:
    """Images of two stains in amounts that vary, with some bare glass."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.5, (count, size * size, 2))
    amounts[:, : size * 8] = 0
    light = 240 * np.exp(-amounts @ (STAINS + rng.normal(0, 0.02, (count, 2, 3))))
    pixels = light.transpose(0, 2, 1).reshape(count, 3, size, size)
    return torch.from_numpy(pixels.clip(0, 255).round().astype(np.uint8))


def macenko_slowly(image: np.ndarray) -> np.ndarray:
    """The steps of Macenko et al. 2009, section 2, and of the program published with it."""
    flat = image.reshape(3, -1).T.astype(np.float64)
    density = -np.log((flat + 1) / 240)
    dense = density[~(density < 0.15).any(axis=1)]
    _, vectors = np.linalg.eigh(np.cov(dense.T))
    plane = vectors[:, 1:3]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    that = dense @ plane
    angle = np.arctan2(that[:, 1], that[:, 0])
    low, high = np.percentile(angle, [1, 99])
    first, second = (plane @ np.array([np.cos(a), np.sin(a)]) for a in (low, high))
    stains = np.stack([first, second] if first[0] > second[0] else [second, first], axis=1)
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    most = np.percentile(amounts, 99, axis=1)
    reference = np.array(MACENKO_TARGET)
    amounts *= (reference[6:] / most)[:, None]
    wanted = 240 * np.exp(-reference[:6].reshape(2, 3).T @ amounts)
    return wanted.clip(0, 255).round().reshape(image.shape)


def reinhard_slowly(image: np.ndarray, target: tuple[float, ...]) -> np.ndarray:
    """Reinhard et al. 2001, equations 4 to 11."""
    to_lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    to_lab = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
    lms = np.maximum(to_lms @ (image.reshape(3, -1) / 255.0), 1 / 255)
    lab = to_lab @ np.log10(lms)
    for channel in range(3):
        centred = lab[channel] - lab[channel].mean()
        lab[channel] = centred * target[3 + channel] / lab[channel].std(ddof=1) + target[channel]
    pixels = np.linalg.inv(to_lms) @ 10 ** (np.linalg.inv(to_lab) @ lab)
    return (pixels * 255).clip(0, 255).round().reshape(image.shape)


def test_macenko_is_the_published_procedure() -> None:
    images = tissue()
    found = normalize_stain(images, "macenko").numpy().astype(int)
    for image, result in zip(images.numpy(), found, strict=True):
        difference = np.abs(result - macenko_slowly(image))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02  # rounding


def test_reinhard_is_the_published_procedure() -> None:
    images, target = tissue(), reinhard_statistics(tissue(seed=1))
    found = normalize_stain(images, "reinhard", target).numpy().astype(int)
    for image, result in zip(images.numpy(), found, strict=True):
        difference = np.abs(result - reinhard_slowly(image, target))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.02


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_images_of_a_batch_are_independent(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, target = tissue(5), reinhard_statistics(tissue(seed=1)) if method == "reinhard" else ()
    together = normalize_stain(images, method, target)
    alone = torch.cat([normalize_stain(image[None], method, target) for image in images])
    assert torch.equal(together, alone)
    monkeypatch.setattr("jigsawssl.stain._VALUES", 2 * images[0].numel())
    assert torch.equal(normalize_stain(images, method, target), together)


def test_stains_come_closer_together() -> None:
    """The same tissue through two scanners: what differs afterwards is less."""
    first = tissue(2, seed=3)
    second = (255 * (first.float() / 255) ** torch.tensor([1.4, 0.9, 1.1]).view(1, 3, 1, 1)).round().to(torch.uint8)
    before = (first.float() - second.float()).abs().mean()
    for method, target in (("macenko", ()), ("reinhard", reinhard_statistics(first))):
        after = (normalize_stain(first, method, target).float() - normalize_stain(second, method, target).float()).abs()
        assert after.mean() < 0.7 * before, method


def test_a_black_margin_changes_nothing_inside() -> None:
    images = tissue(2)
    padded = torch.nn.functional.pad(images, (8, 8, 0, 0))
    found = normalize_stain(padded, "macenko")
    difference = found[..., 8:-8].int() - normalize_stain(images, "macenko").int()
    assert difference.abs().max() <= 1 and int(found[..., :8].max()) == int(found[..., -8:].max()) == 0


def test_glass_is_left_alone() -> None:
    glass = torch.full((2, 3, 32, 32), 235, dtype=torch.uint8)
    assert torch.equal(normalize_stain(glass, "macenko"), glass)
    assert torch.equal(normalize_stain(glass, "none"), glass)
    assert normalize_stain(glass, "reinhard", (0.0, 0.0, 0.0, 0.1, 0.1, 0.1)).shape == glass.shape


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"`stain` \(vahadane\) must be one of none, macenko, reinhard"):
        normalize_stain(tissue(1), "vahadane")
    with pytest.raises(ValueError, match=r"`images` must be uint8 \(B, 3, H, W\)"):
        normalize_stain(tissue(1).float(), "macenko")
    with pytest.raises(ValueError, match="three means and three standard deviations, got 0"):
        normalize_stain(tissue(1), "reinhard")
