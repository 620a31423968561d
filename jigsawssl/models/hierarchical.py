"""The hierarchical block: a branch on each tap and one on all of them, each ending in a projector."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn

from .. import defaults
from ..functional import average_positions
from ..types import Taps

ALL_TAPS = "all"
"""Name of the branch on the concatenation of the taps."""

Variant = Literal["light", "paper"]


class _Paper(nn.Sequential):
    """Convolutions 1x1 and 3x3 with BN and ReLU, global max pooling: ``(B, C, H, W)`` → ``(B, 2 * width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )


class _Light(nn.Sequential):
    """Convolution 1x1 with BN and ReLU, and global average pooling: ``(B, C, H, W)`` → ``(B, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """Average over positions."""
        return average_positions(super().forward(features))


def _paper_head(width: int, output: int) -> nn.Module:
    """BN, Linear, BN, ELU, as in FG-SSL (section 3.2) after PMG's classifier."""
    return nn.Sequential(
        nn.BatchNorm1d(width), nn.Linear(width, output, bias=False), nn.BatchNorm1d(output), nn.ELU(inplace=True)
    )


class HierarchicalBlock(nn.Module):
    """One branch per tap and one on their concatenation (FG-SSL, section 3.2), for any image size.

    Args:
        channels: channels of each tap by name, shallow to deep.
        width: channels inside a branch; ``paper`` doubles them before pooling (512 → 1024 in the paper).
        projection: width of each projection.
        variant: ``paper`` (two convolutions, max pooling) or ``light`` (1x1 convolution, average pooling, projector
            of Barlow Twins).

    >>> from jigsawssl.types import Tap
    >>> block = HierarchicalBlock({"layer3": 8, "layer4": 16}, width=4, projection=6)
    >>> taps = {"layer3": Tap(torch.rand(2, 8, 4, 4), 8, 16), "layer4": Tap(torch.rand(2, 16, 2, 2), 16, 32)}
    >>> {name: tuple(z.shape) for name, z in block(taps, block.branches).items()}
    {'layer3': (2, 6), 'layer4': (2, 6), 'all': (2, 6)}
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        *,
        width: int = defaults.WIDTH,
        projection: int = defaults.PROJECTION,
        variant: Variant = defaults.BRANCH,
    ) -> None:
        super().__init__()
        if variant not in ("light", "paper"):
            raise ValueError(f"`variant` must be light or paper, got {variant!r}")
        branch = _Paper if variant == "paper" else _Light
        pooled = 2 * width if variant == "paper" else width

        def head(inputs: int) -> nn.Module:
            if variant == "paper":
                return _paper_head(inputs, projection)
            projector: nn.Module = BarlowTwinsProjectionHead(inputs, projection, projection)
            return projector

        self.pool = nn.ModuleDict({name: branch(count, width) for name, count in channels.items()})
        self.project = nn.ModuleDict({name: head(pooled) for name in channels})
        self.project[ALL_TAPS] = head(pooled * len(channels))

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches: the taps, shallow to deep, then ``all``."""
        return tuple(self.project)

    def required_taps(self, branches: Sequence[str]) -> tuple[str, ...]:
        """Taps that these branches read."""
        return tuple(name for name in self.pool if name in branches or ALL_TAPS in branches)

    def forward(self, taps: Taps, branches: Sequence[str]) -> dict[str, Tensor]:
        """Projections float ``(B, projection)`` of the named branches."""
        pooled = {name: self.pool[name](taps[name].features) for name in self.required_taps(branches)}
        joined = {**pooled, ALL_TAPS: torch.cat(list(pooled.values()), dim=1)}
        return {name: self.project[name](joined[name]) for name in branches}


class PlainProjector(nn.Module):
    """Plain Barlow Twins: average-pool the deepest tap and project it; the block of the baseline without jigsaw.

    Args:
        channels: channels of each tap by name, shallow to deep; only the deepest is read.
        projection: width of the projector's layers and of the projection.

    >>> PlainProjector({"layer3": 8, "layer4": 16}, projection=6).branches
    ('layer4',)
    """

    def __init__(self, channels: Mapping[str, int], *, projection: int = defaults.PROJECTION) -> None:
        super().__init__()
        self.deepest = list(channels)[-1]
        self.project = BarlowTwinsProjectionHead(channels[self.deepest], projection, projection)

    @property
    def branches(self) -> tuple[str, ...]:
        """The one branch: the deepest tap."""
        return (self.deepest,)

    def required_taps(self, branches: Sequence[str]) -> tuple[str, ...]:
        """The deepest tap."""
        return (self.deepest,)

    def forward(self, taps: Taps, branches: Sequence[str]) -> dict[str, Tensor]:
        """Projection float ``(B, projection)`` of the deepest tap."""
        return {self.deepest: self.project(average_positions(taps[self.deepest].features))}
