"""Where a network looks: Grad-CAM at a tap, how much of it is border, and whether it is more than edges."""

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import LayerGradCam
from kornia.filters import gaussian_blur2d
from scipy.stats import spearmanr
from timm.layers.attention import Attention
from torch import Tensor, nn

from ..models import Classifier, Encoder, HierarchicalClassifier

Model = Classifier | HierarchicalClassifier

BORDER = 0.1
"""Width of the border on each side, as a share of the image."""

FINE = 7
"""Rows and columns from which on a map is smoothed over the image: the grid of a ResNet's last stage at 224 pixels,
where Grad-CAM is usually taken. A coarser one, smoothed, would look like anatomy; it is shown as cells."""


class Explanation(NamedTuple):
    """Maps float ``(N, H, W)`` in [0, 1], and two warnings that hold for them as a whole.

    ``tap`` is where they were taken, and ``grid`` its rows and columns.

    ``sanity`` is the mean rank correlation with the maps of the same network with random weights (Adebayo et al. 2018,
    section 3.1): near 0 where the maps depend on what was learned. ``border`` is the share of the maps on the outer
    tenth of the images.
    """

    maps: Tensor
    sanity: float
    border: float
    tap: str
    grid: tuple[int, int]

    @property
    def coarse(self) -> bool:
        """Whether the maps are cells, as their grid is too small to be smoothed over an image."""
        return min(self.grid) < FINE


@torch.no_grad()
def choose_tap(encoder: Encoder, images: Tensor) -> str:
    """The tap to explain at: the deepest whose grid has 7 x 7 cells or more, or the finest where none has.

    Selvaraju et al. (2017, section 3) take the last convolutional layer as the best compromise between what features
    mean and where they are; earlier layers are finer, and their channels mean less. An earlier tap is meaningful here,
    because the classifiers pool all taps: it reaches the logit directly, as in CAM (Zhou et al. 2016), and through the
    stages behind it, and its map shows both ways. The deepest tap's leaves out what the earlier ones say themselves.
    In a transformer, whose taps are read beside its blocks, the map of an earlier one shows the direct way alone.

    Args:
        encoder: in eval mode.
        images: float ``(N, C, H, W)``, of the size that will be explained.

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> encoder = create_encoder("resnet18", ImageFormat(64, channels=1)).eval()  # taps of 16, 8 and 4 cells
    >>> choose_tap(encoder, torch.rand(1, 1, 64, 64))
    'layer3'
    """
    cells = {name: min(tap.features.shape[-2:]) for name, tap in encoder.taps(images[:1]).items()}
    deepest_first = list(reversed(cells))
    fine = [name for name in deepest_first if cells[name] >= FINE]
    return fine[0] if fine else max(deepest_first, key=lambda name: cells[name])


def gradcam(model: Model, images: Tensor, *, classes: Tensor, tap: str | None = None) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) at a tap of the encoder.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        classes: int64 ``(N,)``, the class whose logit is explained.
        tap: one of ``model.encoder.tap_names``; default: that of :func:`choose_tap`.

    Returns:
        float32 ``(N, h, w)``, at least 0, on the grid of the tap; 0 where nothing speaks for the class.
        :func:`over_images` makes maps as large as the images of them.

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = Classifier(create_encoder("resnet18", ImageFormat(64, channels=1)), classes=2).eval()
    >>> gradcam(model, torch.rand(3, 1, 64, 64), classes=torch.tensor([0, 1, 0])).shape
    torch.Size([3, 8, 8])
    """
    encoder = model.encoder
    layer = encoder.tap_module(choose_tap(encoder, images) if tap is None else tap)
    with torch.enable_grad():
        # The layer's output must be differentiable also where all weights are frozen.
        found = LayerGradCam(model, layer).attribute(
            images.detach().requires_grad_(), target=classes, relu_attributions=True
        )
    return found.detach()[:, 0].float()  # type: ignore[no-any-return]


def over_images(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps as they are shown over images, and as they are judged.

    Args:
        maps: float ``(N, h, w)``, at least 0.
        size: H and W of the images.

    Returns:
        float ``(N, H, W)`` in [0, 1], each divided by its maximum: smooth from a grid of 7 x 7 on (bilinear), cells
        where it is smaller.

    >>> over_images(torch.tensor([[[1.0, 2.0], [0.0, 4.0]]]), (4, 4))[0, :2].tolist()
    [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]]
    """
    mode = "bilinear" if min(maps.shape[-2:]) >= FINE else "nearest"
    large = nn.functional.interpolate(maps[:, None], tuple(size), mode=mode)[:, 0]
    return large / large.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)


def border_share(maps: Tensor) -> float:
    """Share of the maps ``(N, H, W)`` on the outer tenth of the images, 0.36 of their area; 0 where all are empty.

    >>> round(border_share(torch.ones(1, 20, 20)), 2)
    0.36
    """
    height, width = maps.shape[1:]
    down, across = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    inner = maps[:, down : height - down, across : width - across].sum(dim=(1, 2))
    whole = maps.sum(dim=(1, 2))
    shown = whole > 0
    return float(1 - (inner[shown] / whole[shown]).mean()) if shown.any() else 0.0


def explain(model: Model, images: Tensor, *, classes: Tensor, seed: int = 0) -> Explanation:
    """Grad-CAM, with a sanity check by randomised weights.

    Args:
        model: in eval mode; not changed.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        classes: int64 ``(N,)``, the predicted ones.
        seed: of the random weights.
    """
    tap, size = choose_tap(model.encoder, images), images.shape[-2:]
    found = gradcam(model, images, classes=classes, tap=tap)
    maps = over_images(found, size)
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
    others = over_images(gradcam(untrained.eval(), images, classes=classes, tap=tap), size)
    return Explanation(
        maps=maps,
        sanity=rank_agreement(maps, others),
        border=border_share(maps),
        tap=tap,
        grid=(found.shape[1], found.shape[2]),
    )


def rank_agreement(first: Tensor, second: Tensor) -> float:
    """Mean rank correlation of two sets of maps ``(N, H, W)``; images whose map is flat are left out, 0 where all are.

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
        float32 ``(N, h, w)``, at least 0, on the grid of the stage, or ``None`` where there is no attention that has a
        place. :func:`over_images` makes maps as large as the images of them.

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = Classifier(create_encoder("resnet18", ImageFormat(64, 1), attention="ga"), classes=2).eval()
    >>> attention_maps(model, torch.rand(3, 1, 64, 64)).shape
    torch.Size([3, 4, 4])
    """
    found: list[Tensor | None] = []
    handles = [
        module.register_forward_pre_hook(lambda attention, given: found.append(attention.map(given[0])))
        for module in model.encoder.attention.values()
    ]
    # Networks that are transformers in part fold their tokens in ways of their own.
    modules = list(model.encoder.backbone.modules()) if model.encoder.isotropic else []
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
    return placed[-1].float() if placed else None


def _received(weights: Tensor, count: int, prefix: int) -> Tensor | None:
    """What each place of a square grid receives ``(B, H, W)`` of attention ``(B, heads, N, N)`` between tokens."""
    received = weights.mean(dim=(1, 2))[:, prefix:]
    side = math.isqrt(received.shape[1])
    return received.view(-1, side, side) if received.shape == (count, side**2) else None


def compare_maps(model: Model, images: Tensor, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Grad-CAM and attention judged alike, as they would be shown, beside a random baseline.

    Args:
        model: in eval mode.
        images: float ``(N, C, H, W)``, as ``model.encoder.preprocess`` returns them.
        seed: of the random maps.

    Returns:
        For ``Grad-CAM``, ``attention`` where the encoder has it, and ``random``: ``border_share``, ``deletion``,
        ``insertion`` and, but for Grad-CAM, ``agreement`` with it (rank correlation).

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = Classifier(create_encoder("resnet18", ImageFormat(64, 1), attention="ga"), classes=2).eval()
    >>> list(compare_maps(model, torch.rand(2, 1, 64, 64)))
    ['Grad-CAM', 'attention', 'random']
    """
    with torch.no_grad():
        predicted = model(images).argmax(dim=1)
    size = images.shape[-2:]
    kinds = {"Grad-CAM": over_images(gradcam(model, images, classes=predicted), size)}
    attended = attention_maps(model, images)
    if attended is not None:
        kinds["attention"] = over_images(attended, size)
    kinds["random"] = torch.rand(kinds["Grad-CAM"].shape, generator=torch.Generator().manual_seed(seed))
    found: dict[str, dict[str, float | None]] = {}
    for name, maps in kinds.items():
        deletion, insertion = deletion_and_insertion(model, images, maps, classes=predicted)
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
    model: Model, images: Tensor, maps: Tensor, *, classes: Tensor, steps: int = 16
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

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = Classifier(create_encoder("resnet18", ImageFormat(64, channels=1)), classes=2).eval()
    >>> found = deletion_and_insertion(
    ...     model, torch.rand(2, 1, 64, 64), torch.rand(2, 64, 64), classes=torch.tensor([0, 1])
    ... )
    >>> all(0 <= value <= 1 for value in found)
    True
    """
    kernel = max(3, images.shape[-1] // 4 // 2 * 2 + 1)
    blurred = gaussian_blur2d(images, (kernel, kernel), (kernel / 4, kernel / 4))
    # Rank of each pixel, most important first; those of one cell in their own order, the same on any machine.
    rank = (
        maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(len(maps), 1, *maps.shape[1:])
    )
    count = maps[0].numel()
    values: list[list[Tensor]] = [[], []]
    for step in range(steps + 1):
        changed = rank < count * step / steps
        for way, mixed in enumerate((torch.where(changed, blurred, images), torch.where(changed, images, blurred))):
            values[way].append(model(mixed).softmax(dim=1).gather(1, classes[:, None]))
    deletion, insertion = (float(torch.trapezoid(torch.cat(way, dim=1), dx=1 / steps).mean()) for way in values)
    return deletion, insertion
