"""The compact network that is copied everywhere for chest X-rays, as a timm model: an encoder like others."""

from typing import Any

from timm.models import register_model
from torch import Tensor, nn


class CompactCNN(nn.Module):
    """Five blocks of convolution, ReLU, batch norm and max pooling, each halving the image.

    Source: the exercise on the Kermany set (five blocks, then dense layers with dropout), without a paper of its own.

    Args:
        in_chans: 1 or 3.
        channels: of the five blocks.

    Shape:
        float ``(B, in_chans, H, W)`` → ``(B, channels[-1], H / 32, W / 32)``.

    >>> import torch
    >>> CompactCNN(in_chans=1)(torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 256, 2, 2])
    """

    def __init__(self, in_chans: int = 3, channels: tuple[int, ...] = (32, 64, 64, 128, 256)) -> None:
        super().__init__()
        widths = [in_chans, *channels]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            )
            for before, after in zip(widths, channels, strict=False)
        )
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (number + 1), "module": f"blocks.{number}"}
            for number, width in enumerate(channels)
        ]

    def forward_intermediates(
        self, x: Tensor, indices: list[int], stop_early: bool = False, intermediates_only: bool = False, **unused: Any
    ) -> Any:
        """Features after the blocks of these numbers, as other timm models give them."""
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in indices:
                found.append(x)
            if stop_early and number >= max(indices):
                break
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(self, indices: list[int], **unused: Any) -> list[int]:
        """Drop the blocks behind the last of these numbers."""
        del self.blocks[max(indices) + 1 :]
        return indices

    def forward(self, x: Tensor) -> Tensor:
        """Features after the last block."""
        for block in self.blocks:
            x = block(x)
        return x


@register_model
def compact_cnn(pretrained: bool = False, num_classes: int = 0, global_pool: str = "", **options: Any) -> CompactCNN:
    """What ``timm.create_model("compact_cnn")`` builds; there are no published weights."""
    if pretrained:
        raise RuntimeError("compact_cnn has no published weights")
    known = {"in_chans", "channels"}
    unknown = set(options) - known - {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
    if unknown:
        raise TypeError(f"compact_cnn() got an unexpected keyword argument '{min(unknown)}'")
    return CompactCNN(**{key: value for key, value in options.items() if key in known})
