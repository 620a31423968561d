"""Consistency pairs: one chain per view, then jigsaw per grid."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from .. import defaults
from ..functional import nearest_sizes, permute_tiles, sample_permutations
from ..types import Views
from .chain import ViewChain


class Preset(NamedTuple):
    """How the two views of an image are made.

    Attributes:
        original: the chain of X', see :func:`augmentation_chain`.
        distorted: the chain of X''.
        crops: whether views are crops, for which images are kept larger.
        captions: what is done to X' and to X'', for pictures.
    """

    original: str
    distorted: str
    crops: bool
    captions: tuple[str, str]


PRESETS = {
    "strong": Preset("strong", "strong", True, ("crop, flip, jitter, blur", "crop, flip, jitter, blur")),
    "paper": Preset("paper-original", "paper-distorted", False, ("whole, flip, blur", "whole, blur, solarise")),
}
"""Presets by the names of :data:`jigsawssl.defaults.PRESETS`."""


class ViewParameters(NamedTuple):
    """Everything random about one batch of views: kornia's parameters of the two chains and an order per grid."""

    original: list[Any]
    distorted: list[Any]
    orders: tuple[Tensor, ...]


def _crop(size: int, smallest: float) -> nn.Module:
    crop: nn.Module = K.RandomResizedCrop((size, size), scale=(smallest, 1.0), cropping_mode="resample")
    return crop


def _blur(size: int, p: float) -> nn.Module:
    # SimCLR, appendix A: a kernel of a tenth of the image side.
    kernel = max(3, size // 10 // 2 * 2 + 1)
    blur: nn.Module = K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=p)
    return blur


def augmentation_chain(name: str, size: int, channels: int) -> list[Any]:
    """The kornia operations of one view, for float ``(B, channels, H, W)`` in [0, 1].

    Args:
        name: ``strong`` (crop .35-1, flip, jitter .4/.4/.2/.1, greyscale .2, blur .3), ``paper-original`` and
            ``paper-distorted`` (FG-SSL, section 4), or ``mild`` (crop .6-1, flip, jitter .2: labelled images).
        size: side of the square output in pixels.
        channels: 1 or 3; colour operations are left out for one channel.

    Raises:
        ValueError: for an unknown name.

    >>> [type(step).__name__ for step in augmentation_chain("mild", size=32, channels=1)]
    ['RandomResizedCrop', 'RandomHorizontalFlip', 'ColorJitter']
    """
    colour = channels == 3
    grey: list[Any] = [K.RandomGrayscale(p=0.2)] if colour else []
    resize = K.Resize((size, size), antialias=True)
    if name == "strong":
        jitter = K.ColorJitter(0.4, 0.4, 0.2 if colour else 0.0, 0.1 if colour else 0.0, p=0.8)
        return [_crop(size, 0.35), K.RandomHorizontalFlip(p=0.5), jitter, *grey, _blur(size, 0.3)]
    if name == "paper-original":
        return [resize, K.RandomHorizontalFlip(p=0.5), *grey, _blur(size, 1.0)]
    if name == "paper-distorted":
        return [resize, *grey, _blur(size, 0.1), K.RandomSolarize(0.1, 0.0, p=0.2)]
    if name == "mild":
        jitter = K.ColorJitter(0.2, 0.2, 0.1 if colour else 0.0, 0.0, p=0.8)
        return [_crop(size, 0.6), K.RandomHorizontalFlip(p=0.5), jitter]
    raise ValueError(f"`name` ({name}) must be one of strong, paper-original, paper-distorted, mild")


class JigsawViews(nn.Module):
    """Build X', X'' and the jigsaw versions ``J_n(X')`` of a batch on its own device (FG-SSL, section 3).

    Runs under ``no_grad``. Randomness comes from torch's global generators, as everywhere in kornia;
    :attr:`parameters_used` holds what the last call drew, and passing it back replays the call.

    Args:
        size: side of the square views in pixels.
        grids: tiles along each side, one jigsaw version per entry, finest first; 1 is X' itself, ``()`` makes
            plain pairs.
        preset: ``strong`` or ``paper`` (see :func:`augmentation_chain`).
        share: share of the batch, from its start, that is shuffled; less than 1 makes the jigsaw steps cheaper.
        mean: per channel or one for all, of images in [0, 1]; the default is about that of natural images.
        std: like ``mean``.

    Shape:
        uint8 or uint16 ``(B, C, H, W)`` with C in {1, 3} → :class:`jigsawssl.types.Views` of float32
        ``(B, C, size, size)``, normalised, channels_last; jigsaw versions of ``share * B`` images.

    Raises:
        ValueError: if a grid does not divide ``size``, the preset is unknown, or the images are not uint8.

    >>> images = torch.randint(256, (4, 3, 80, 60), dtype=torch.uint8)
    >>> views = JigsawViews(size=64, grids=(8, 4, 2))(images)
    >>> views.original.shape, len(views.jigsaw)
    (torch.Size([4, 3, 64, 64]), 3)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        size: int = defaults.SIZE,
        grids: Sequence[int] = defaults.GRIDS,
        preset: str = defaults.VIEWS,
        share: float = defaults.SHARE,
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__()
        for grid in grids:
            if grid < 1:
                raise ValueError(f"`grids` ({grid}) must be at least 1; 1 leaves the tiles in order")
            if size % grid:
                raise ValueError(
                    f"`size` ({size}) must be divisible by `grids` ({grid}); nearest sizes: {nearest_sizes(size, grid)}"
                )
        if not 0 < share <= 1:
            raise ValueError(f"`share` ({share}) must lie in (0, 1]")
        if preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
        self.size = size
        self.grids = tuple(grids)
        self.preset = preset
        self.share = share
        made = PRESETS[preset]
        # One chain for grey and one for colour images: the batch says which it needs.
        self.original = nn.ModuleDict({str(c): self._chain(made.original, c) for c in (1, 3)})
        self.distorted = nn.ModuleDict({str(c): self._chain(made.distorted, c) for c in (1, 3)})
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.parameters_used: ViewParameters | None = None

    def _chain(self, name: str, channels: int) -> ViewChain:
        return ViewChain(augmentation_chain(name, self.size, channels), self.size)

    @torch.no_grad()
    def forward(self, images: Tensor, parameters: ViewParameters | None = None) -> Views:
        """Draw parameters (or replay ``parameters``) and apply them."""
        if images.dtype not in (torch.uint8, torch.uint16) or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                "`images` must be uint8 or uint16 (B, C, H, W) with C 1 or 3, "
                f"got {images.dtype} {tuple(images.shape)}; convert them first"
            )
        kind = str(images.shape[1])
        first: Any = self.original[kind]
        second: Any = self.distorted[kind]
        # Two images at least, as a correlation needs them.
        shuffled = min(len(images), max(2, round(len(images) * self.share)))
        if parameters is None:
            parameters = ViewParameters(
                first.draw(images.shape),
                second.draw(images.shape),
                tuple(sample_permutations(shuffled, grid**2, device=images.device) for grid in self.grids),
            )
        self.parameters_used = parameters
        original = first(images, parameters.original, self.mean, self.std)
        distorted = second(images, parameters.distorted, self.mean, self.std)
        # Normalisation acts on each pixel alone, so shuffling after it is the same and costs one pass less.
        jigsaw = tuple(
            original if grid == 1 else permute_tiles(original[:shuffled], order, grid)
            for grid, order in zip(self.grids, parameters.orders, strict=True)
        )
        return Views(original, distorted, jigsaw)

    def denormalize(self, views: Tensor) -> Tensor:
        """Undo the normalisation and clamp to [0, 1], for pictures."""
        return (views * self.std + self.mean).clamp(0, 1)
