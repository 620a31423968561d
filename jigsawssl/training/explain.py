"""Where a network looks: Grad-CAM at a tap, how much of it is border, and whether it is more than edges."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from scipy.stats import spearmanr
from torch import Tensor, nn

from ..models import Classifier, HierarchicalClassifier

__all__ = ["Explanation", "border_share", "explain", "gradcam"]

Model = Classifier | HierarchicalClassifier

BORDER = 0.1
"""Width of the border on each side, as a share of the image."""


class Explanation(NamedTuple):
    """Maps float ``(N, H, W)`` in [0, 1], and two warnings that hold for them as a whole.

    ``sanity`` is the mean rank correlation with the maps of the same network with random weights (Adebayo et al. 2018,
    section 3.1): near 0 where the maps depend on what was learned. ``border`` is the share of the maps on the outer
    tenth of the images.
    """

    maps: Tensor
    sanity: float
    border: float
    tap: str


def gradcam(model: Model, images: Tensor, classes: Tensor, tap: str | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) at a tap of the encoder.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        classes: int64 ``(N,)``, the class whose logit is explained.
        tap: one of ``model.encoder.tap_names``; default: the deepest.

    Returns:
        float32 ``(N, H, W)`` in [0, 1], each map divided by its maximum; 0 where nothing speaks for the class.

    Example:
        >>> from jigsawssl.models import create_encoder
        >>> model = Classifier(create_encoder("resnet18", 1, size=64), classes=2).eval()
        >>> gradcam(model, torch.rand(3, 1, 64, 64), torch.tensor([0, 1, 0])).shape
        torch.Size([3, 64, 64])
    """
    encoder = model.encoder
    layer = encoder.tap_module(encoder.tap_names[-1] if tap is None else tap)
    with torch.enable_grad():
        # The layer's output must be differentiable also where all weights are frozen.
        found = LayerGradCam(model, layer).attribute(
            images.detach().requires_grad_(), target=classes, relu_attributions=True
        )
    maps = LayerAttribution.interpolate(found.detach(), images.shape[-2:], "bilinear")[:, 0].float()
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def border_share(maps: Tensor) -> float:
    """Share of the maps ``(N, H, W)`` on the outer tenth of the images, 0.36 of their area; 0 where all are empty.

    Example:
        >>> round(border_share(torch.ones(1, 20, 20)), 2)
        0.36
    """
    height, width = maps.shape[1:]
    down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    inner = maps[:, down : height - down, across : width - across].sum(dim=(1, 2))
    whole = maps.sum(dim=(1, 2))
    shown = whole > 0
    return float(1 - (inner[shown] / whole[shown]).mean()) if shown.any() else 0.0


def explain(model: Model, images: Tensor, tap: str | None = None, seed: int = 0) -> Explanation:
    """Grad-CAM of the predicted classes, with a sanity check by randomised weights.

    Args:
        model: in eval mode; not changed.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        tap: see :func:`gradcam`.
        seed: of the random weights.
    """
    name = model.encoder.tap_names[-1] if tap is None else tap
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    maps = gradcam(model, images, predicted, name)
    untrained = copy.deepcopy(model)
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    for part in untrained.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm)):
            part.reset_parameters()
    torch.set_rng_state(generator_state)
    # Running statistics of these images, or random activations would vanish or explode.
    with torch.no_grad():
        untrained.train()(images)
    others = gradcam(untrained.eval(), images, predicted, name)
    pairs = zip(maps.flatten(1).numpy(), others.flatten(1).numpy(), strict=True)
    agreement = [spearmanr(one, other).statistic for one, other in pairs if np.ptp(one) > 0 and np.ptp(other) > 0]
    return Explanation(maps, float(np.mean(agreement)) if agreement else 0.0, border_share(maps), name)
