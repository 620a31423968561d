"""Attention added to the stages of a convolutional network, so that nothing changes before anything is learned."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.layers.cbam import CbamModule
from timm.layers.eca import EcaModule
from timm.layers.halo_attn import HaloAttn
from timm.layers.pos_embed_rel import RelPosMlp
from timm.layers.squeeze_excite import SEModule
from torch import Tensor, nn
from torch.nn import functional as F

"""Squeeze and excitation, efficient channel attention, convolutional block attention; global and local self-attention
after a stage, and local self-attention inside its last block (Piater et al. 2024, section 3)."""

LARGEST_BLOCK = 8
"""Side of the largest query block of local attention, in positions (Vaswani et al. 2021, table 1)."""


def head_count(channels: int) -> int:
    """Heads of about 32 channels that divide them evenly.

    >>> [head_count(channels) for channels in (512, 96, 40, 7)]
    [16, 3, 1, 1]
    """
    return next(heads for heads in range(max(1, channels // 32), 0, -1) if channels % heads == 0)


class GlobalAttention(nn.Module):
    """Multi-head self-attention over all positions of a stage, with a bias by relative position.

    The bias is a small network of the relative position (Liu et al. 2022, Swin V2, section 3.3), so that its
    parameters do not depend on the size of the images.

    Args:
        channels: of the features.
        size: height and width of the features; others are taken as they come.

    Shape:
        float ``(B, channels, H, W)`` → the same.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.heads = head_count(channels)
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.position = RelPosMlp(size, self.heads, hidden_dim=64)
        self.projection = nn.Conv2d(channels, channels, 1)

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, channels, height, width = features.shape
        self.position.set_window_size((height, width))
        parts = self.qkv(self.norm(features)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        return q, k, v, self.position.get_bias().to(q.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """Attend."""
        q, k, v, bias = self._parts(features)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.projection(found.transpose(-1, -2).reshape(features.shape))  # type: ignore[no-any-return]

    def received(self, features: Tensor) -> Tensor:
        """How much attention each position receives, averaged over heads and queries: ``(B, H, W)``, sums to 1."""
        q, k, _, bias = self._parts(features)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(dim=-1)
        return weights.mean(dim=(1, 2)).reshape(len(features), *features.shape[2:])


class LocalAttention(nn.Module):
    """Self-attention of each block of positions to itself and a halo around it (Vaswani et al. 2021, section 3).

    Args:
        channels: of the features.
        size: height and width of the features; later ones must be divisible by the block that follows from them.

    Shape:
        float ``(B, channels, H, W)`` → the same.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        # Two blocks a side at least, where that can be had: one alone would be global attention.
        common = math.gcd(*size)
        block = max(b for b in range(1, min(LARGEST_BLOCK, max(1, common // 2)) + 1) if common % b == 0)
        self.norm = nn.GroupNorm(1, channels)
        self.attention = HaloAttn(
            channels, num_heads=head_count(channels), block_size=block, halo_size=max(1, block // 2)
        )
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Attend."""
        return self.projection(self.attention(self.norm(features)))  # type: ignore[no-any-return]

    def received(self, features: Tensor) -> Tensor:
        """How much attention each position receives, averaged over heads and queries: ``(B, H, W)``."""
        inner = self.attention
        x = self.norm(features)
        (batch, _, height, width), heads = x.shape, inner.num_heads
        block, halo, window = inner.block_size, inner.halo_size, inner.win_size
        down, across = height // block, width // block
        q = inner.q(x).reshape(batch * heads, inner.dim_head_qk, down, block, across, block)
        q = q.permute(0, 2, 4, 3, 5, 1).reshape(batch * heads, down * across, block * block, -1)
        keys = inner.kv(x).reshape(batch * heads, -1, height, width)[:, : inner.dim_head_qk]
        keys = F.unfold(F.pad(keys, [halo] * 4), window, stride=block)
        keys = keys.reshape(batch * heads, inner.dim_head_qk, window * window, down * across).permute(0, 3, 2, 1)
        weights = (q @ keys.transpose(-1, -2) * inner.scale + inner.pos_embed(q)).softmax(dim=-1)
        # Back to where the keys came from; what went to the padding is cut off.
        given = weights.sum(dim=2).transpose(1, 2)
        whole = F.fold(given, (height + 2 * halo, width + 2 * halo), window, stride=block)
        received = whole[:, 0, halo : halo + height, halo : halo + width]
        looked_at: Tensor = received.reshape(batch, heads, height, width).mean(dim=1) / (height * width)
        return looked_at


class StageAttention(nn.Module):
    """``x + scale * (attention(x) - x)`` for gates, ``x + scale * attention(x)`` for self-attention; scale begins at 0.

    So a network gives the same output with it as without until it is trained (Bachlechner et al. 2021, ReZero).

    Args:
        kind: one of :data:`jigsawssl.types.ATTENTIONS` but ``none``.
        channels: of the features.
        size: height and width of the features.

    >>> features = torch.rand(2, 32, 8, 8)
    >>> torch.equal(StageAttention("ga", 32, (8, 8))(features), features)
    True
    """

    def __init__(self, kind: str, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        makers: dict[str, Callable[[], nn.Module]] = {
            "se": lambda: SEModule(channels),
            "eca": lambda: EcaModule(channels),
            "cbam": lambda: CbamModule(channels),
            "ga": lambda: GlobalAttention(channels, size),
            "la": lambda: LocalAttention(channels, size),
            "ela": lambda: LocalAttention(channels, size),
        }
        self.attention = makers[kind]()
        self.gate = kind in ("se", "eca", "cbam")
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Attend."""
        change = self.attention(features)
        changed: Tensor = features + self.scale * (change - features if self.gate else change)
        return changed

    def hook(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """What a stage gives on, where it is called after that stage's forward."""
        return self(output)  # type: ignore[no-any-return]

    @torch.no_grad()
    def map(self, features: Tensor) -> Tensor | None:
        """Where it attends: ``(B, H, W)``, or ``None`` for channel attention, which has no place."""
        if isinstance(self.attention, GlobalAttention | LocalAttention):
            return self.attention.received(features)
        if isinstance(self.attention, CbamModule):
            return torch.sigmoid(self._spatial(self.attention, features))[:, 0]
        return None

    @staticmethod
    def _spatial(module: CbamModule, features: Tensor) -> Tensor:
        attended = module.channel(features)
        pooled = torch.cat([attended.mean(dim=1, keepdim=True), attended.amax(dim=1, keepdim=True)], dim=1)
        return module.spatial.conv(pooled)  # type: ignore[no-any-return]
