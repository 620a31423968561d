"""Where a network looks: Grad-CAM at a tap, how much of it is border, and whether it is more than edges."""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from kornia.filters import gaussian_blur2d
from scipy.stats import spearmanr
from timm.layers.attention import Attention
from torch import Tensor, nn

from ..models import Classifier, HierarchicalClassifier

__all__ = [
    "Explanation",
    "attention_maps",
    "border_share",
    "compare_maps",
    "deletion_and_insertion",
    "explain",
    "gradcam",
    "rank_agreement",
]

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
    return Explanation(maps, rank_agreement(maps, others), border_share(maps), name)


def rank_agreement(first: Tensor, second: Tensor) -> float:
    """Mean rank correlation of two sets of maps ``(N, H, W)``; images whose map is flat are left out, 0 where all are.

    Example:
        >>> maps = torch.rand(2, 8, 8)
        >>> round(rank_agreement(maps, maps), 6), round(rank_agreement(maps, 1 - maps), 6)
        (1.0, -1.0)
    """
    pairs = zip(first.flatten(1).numpy(), second.flatten(1).numpy(), strict=True)
    found = [spearmanr(one, other).statistic for one, other in pairs if np.ptp(one) > 0 and np.ptp(other) > 0]
    return float(np.mean(found)) if found else 0.0


def attention_maps(model: Model, images: Tensor) -> Tensor | None:
    """Where the deepest attention of an encoder attends: that of a stage, or of the last block of a ViT.

    Of self-attention it is how much each place receives, averaged over heads and over all that ask.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.

    Returns:
        float32 ``(N, H, W)`` in [0, 1], each map divided by its maximum, or ``None`` where there is no attention that
        has a place.

    Example:
        >>> from jigsawssl.models import create_encoder
        >>> model = Classifier(create_encoder("resnet18", 1, size=64, attention="ga"), classes=2).eval()
        >>> attention_maps(model, torch.rand(3, 1, 64, 64)).shape
        torch.Size([3, 64, 64])
    """
    found: list[Tensor | None] = []
    handles = [
        module.register_forward_pre_hook(lambda attention, given: found.append(attention.map(given[0])))
        for module in model.encoder.attention.values()
    ]
    # Networks that are transformers in part fold their tokens in ways of their own.
    modules = list(model.encoder.backbone.modules()) if model.encoder.one_resolution else []
    of_tokens: list[Any] = [module for module in modules if isinstance(module, Attention)][-1:]
    prefix = int(getattr(model.encoder.backbone, "num_prefix_tokens", 0))
    fused = [module.fused_attn for module in of_tokens]
    for module in of_tokens:
        module.fused_attn = False  # or the weights would never be there to be seen
        handles.append(
            module.attn_drop.register_forward_pre_hook(
                lambda _, given: found.append(_received(given[0], len(images), prefix))
            )
        )
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, before in zip(of_tokens, fused, strict=True):
            module.fused_attn = before
    placed = [maps for maps in found if maps is not None]
    if not placed:
        return None
    maps = nn.functional.interpolate(placed[-1][:, None].float(), images.shape[-2:], mode="bilinear")[:, 0]
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _received(weights: Tensor, count: int, prefix: int) -> Tensor | None:
    """What each place of a square grid receives ``(B, H, W)`` of attention ``(B, heads, N, N)`` between tokens."""
    received = weights.mean(dim=(1, 2))[:, prefix:]
    side = math.isqrt(received.shape[1])
    return received.view(-1, side, side) if received.shape == (count, side**2) else None


def compare_maps(model: Model, images: Tensor, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Grad-CAM and attention judged alike, beside maps by lot, which tell nothing.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        seed: of the maps by lot.

    Returns:
        For ``Grad-CAM``, ``attention`` where the encoder has it, and ``by lot``: ``border_share``, ``deletion``,
        ``insertion`` and, but for Grad-CAM, ``agreement`` with it (rank correlation).

    Example:
        >>> from jigsawssl.models import create_encoder
        >>> model = Classifier(create_encoder("resnet18", 1, size=64, attention="ga"), classes=2).eval()
        >>> list(compare_maps(model, torch.rand(2, 1, 64, 64)))
        ['Grad-CAM', 'attention', 'by lot']
    """
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    kinds = {"Grad-CAM": gradcam(model, images, predicted)}
    attended = attention_maps(model, images)
    if attended is not None:
        kinds["attention"] = attended
    kinds["by lot"] = torch.rand(kinds["Grad-CAM"].shape, generator=torch.Generator().manual_seed(seed))
    found: dict[str, dict[str, float | None]] = {}
    for name, maps in kinds.items():
        deletion, insertion = deletion_and_insertion(model, images, maps, predicted)
        agreement = None if name == "Grad-CAM" else rank_agreement(kinds["Grad-CAM"], maps)
        found[name] = {
            "border_share": border_share(maps),
            "deletion": deletion,
            "insertion": insertion,
            "agreement": agreement,
        }
    return found


@torch.no_grad()
def deletion_and_insertion(
    model: Model, images: Tensor, maps: Tensor, classes: Tensor, steps: int = 16
) -> tuple[float, float]:
    """Whether what a map points at matters to the network (Petsiuk et al. 2018, RISE, section 3.3).

    Pixels are replaced by the image's blurred self, most important first (deletion: a low value is good), or put back
    into it (insertion: a high value is good); each value is the mean probability of the class along the way.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        maps: float ``(N, H, W)``.
        classes: int64 ``(N,)``.
        steps: equal shares of the pixels.

    Example:
        >>> from jigsawssl.models import create_encoder
        >>> model = Classifier(create_encoder("resnet18", 1, size=64), classes=2).eval()
        >>> found = deletion_and_insertion(model, torch.rand(2, 1, 64, 64), torch.rand(2, 64, 64), torch.tensor([0, 1]))
        >>> all(0 <= value <= 1 for value in found)
        True
    """
    kernel = max(3, images.shape[-1] // 4 // 2 * 2 + 1)
    blurred = gaussian_blur2d(images, (kernel, kernel), (kernel / 4, kernel / 4))
    # Rank of each pixel, most important first.
    rank = maps.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view(len(maps), 1, *maps.shape[1:])
    count = maps[0].numel()
    values: list[list[Tensor]] = [[], []]
    for step in range(steps + 1):
        changed = rank < count * step / steps
        for way, mixed in enumerate((torch.where(changed, blurred, images), torch.where(changed, images, blurred))):
            values[way].append(model(mixed).softmax(dim=1).gather(1, classes[:, None]))
    deletion, insertion = (float(torch.trapezoid(torch.cat(way, dim=1), dx=1 / steps).mean()) for way in values)
    return deletion, insertion
