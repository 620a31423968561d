"""Classifiers on an encoder: one linear head, or one head on each branch of the hierarchical block."""

from collections.abc import Sequence

from torch import Tensor, nn

from .encoder import Encoder
from .hierarchical import HierarchicalBlock

DENSE_WIDTHS = (256, 128, 64)
"""Of the three layers before the last of a dense head."""


class Classifier(nn.Module):
    """A linear head on the encoder's pooled features.

    Args:
        encoder: the encoder, trained along with the head.
        classes: number of classes.
        dropout: share of the features that training leaves out.
        head: ``linear``, or ``dense``: four layers with ReLU and dropout between them.

    >>> import torch
    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = Classifier(create_encoder("resnet18", ImageFormat(64, channels=1)), classes=3)
    >>> model(torch.rand(2, 1, 64, 64)).shape
    torch.Size([2, 3])
    """

    def __init__(self, encoder: Encoder, classes: int, *, dropout: float = 0.0, head: str = "linear") -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.kind = head
        self.head = nn.Linear(encoder.features, classes) if head == "linear" else self._dense(classes, dropout)

    def _dense(self, classes: int, dropout: float) -> nn.Sequential:
        layers: list[nn.Module] = []
        before = self.encoder.features
        for width in DENSE_WIDTHS:
            layers += [nn.Linear(before, width), nn.ReLU(), nn.Dropout(dropout)]
            before = width
        return nn.Sequential(*layers, nn.Linear(before, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Preprocessed float ``(B, C, H, W)`` → logits ``(B, classes)``."""
        logits: Tensor = self.head(self.dropout(self.encoder(images)))
        return logits


class HierarchicalClassifier(nn.Module):
    """A classifier on each of the four branches; the prediction sums their logits (FG-SSL, section 3.3; PMG).

    Args:
        encoder: the encoder, trained along with the branches.
        classes: number of classes.
        width: channels inside a branch; default: a quarter of the deepest tap's, as in the paper, at least 32.

    >>> import torch
    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> model = HierarchicalClassifier(create_encoder("resnet18", ImageFormat(64, channels=1)), classes=3, width=16)
    >>> images = torch.rand(2, 1, 64, 64)
    >>> sorted(model.branch_logits(images, model.branches)), model(images).shape
    (['all', 'layer2', 'layer3', 'layer4'], torch.Size([2, 3]))
    """

    def __init__(self, encoder: Encoder, classes: int, *, width: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        if width is None:
            width = max(32, max(encoder.channels.values()) // 4)
        self.block = HierarchicalBlock(encoder.channels, width=width, projection=width, variant="paper")
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name in self.block.branches})

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the branches, shallow to deep, then ``all``."""
        return self.block.branches

    def branch_logits(self, images: Tensor, branches: Sequence[str]) -> dict[str, Tensor]:
        """Logits ``(B, classes)`` of the named branches; the encoder stops at the deepest tap they need."""
        taps = self.encoder.taps(images, self.block.required_taps(branches))
        return {name: self.heads[name](z) for name, z in self.block(taps, branches).items()}

    def forward(self, images: Tensor) -> Tensor:
        """Sum of the four branches' logits: preprocessed float ``(B, C, H, W)`` → ``(B, classes)``."""
        return sum(self.branch_logits(images, self.branches).values())  # type: ignore[return-value]
