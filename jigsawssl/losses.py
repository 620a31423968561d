"""The hierarchical cross-correlation loss: Barlow Twins on each branch, weighted."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn

from . import defaults
from .types import LossTerms

__all__ = ["HierarchicalLoss"]


class HierarchicalLoss(nn.Module):
    """``sum_b weight_b * BarlowTwins(z_b(J(X')), z_b(X''))`` over the branches b (FG-SSL, eq. 2 and 3).

    Args:
        weights: weight of each branch by name; the paper weights the taps 1 and their concatenation 2.
        off_diagonal: lambda of Barlow Twins' redundancy term; 5e-3 as published there (section 3).

    Example:
        >>> loss = HierarchicalLoss({"layer4": 1.0, "all": 2.0})
        >>> z = torch.randn(16, 4)
        >>> terms = loss({"layer4": (z, z), "all": (z, z)})
        >>> torch.allclose(terms.total, terms.branches["layer4"] + 2 * terms.branches["all"])
        True
    """

    def __init__(self, weights: Mapping[str, float], *, off_diagonal: float = defaults.OFF_DIAGONAL) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.barlow_twins = BarlowTwinsLoss(lambda_param=off_diagonal, gather_distributed=True)

    def forward(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> LossTerms:
        """Loss of pairs of projections.

        Args:
            pairs: branch → two float ``(B, D)`` projections; any subset of the branches.

        Returns:
            :class:`jigsawssl.types.LossTerms`; branch losses are unweighted float32 scalars.

        Raises:
            ValueError: if no pair is given or a branch has no weight.
        """
        if not pairs or set(pairs) - set(self.weights):
            raise ValueError(f"`pairs` ({', '.join(pairs)}) must name some of the branches {', '.join(self.weights)}")
        # Correlations of a few hundred terms need more than bfloat16's eight bits.
        with torch.autocast(next(iter(pairs.values()))[0].device.type, enabled=False):
            branches = {name: self.barlow_twins(a.float(), b.float()) for name, (a, b) in pairs.items()}
        total = torch.stack([self.weights[name] * term for name, term in branches.items()]).sum()
        return LossTerms(total, branches, {name: (a.detach(), b.detach()) for name, (a, b) in pairs.items()})
