"""The hierarchical loss: one objective on each branch, weighted; Barlow Twins as published."""

from collections.abc import Mapping
from typing import Protocol

import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn

from . import defaults
from .functional import cross_correlation
from .types import LossTerms, Pairs

__all__ = ["BarlowTwins", "HierarchicalLoss", "Objective", "create_objective"]


class Objective(Protocol):
    """How two views of the same images are compared.

    What it says depends on the two projections alone: branches are compared one after another, and the graph of a pair
    is gone before the next one is built.
    """

    def __call__(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """Loss, a scalar, of projections float32 ``(B, D)`` of both views."""

    def diagnostics(self, z_a: Tensor, z_b: Tensor) -> dict[str, float]:
        """Signs of learning or collapse in the same projections, by name."""


class BarlowTwins(BarlowTwinsLoss):
    """Barlow Twins (Zbontar et al., 2021, eq. 1 and 2) over the batch of all devices.

    Args:
        off_diagonal: lambda of the redundancy term; 5e-3 as published there (section 3).

    >>> z = torch.tensor([[1.0], [2.0], [3.0]])
    >>> {name: round(value, 3) for name, value in BarlowTwins().diagnostics(z, -z).items()}
    {'diagonal': -1.0, 'off_diagonal': 0.0}
    """

    def __init__(self, *, off_diagonal: float = defaults.OFF_DIAGONAL) -> None:
        super().__init__(lambda_param=off_diagonal, gather_distributed=True)

    def diagnostics(self, z_a: Tensor, z_b: Tensor) -> dict[str, float]:
        """``diagonal``: mean of the diagonal of C, 1 where views agree; ``off_diagonal``: root mean square of the rest,
        0 where dimensions are independent."""
        matrix = cross_correlation(z_a, z_b)
        diagonal = matrix.diagonal()
        rest = (matrix.square().sum() - diagonal.square().sum()) / max(1, matrix.numel() - len(matrix))
        return {"diagonal": float(diagonal.mean()), "off_diagonal": float(rest.sqrt())}


def create_objective(*, off_diagonal: float = defaults.OFF_DIAGONAL) -> Objective:
    """The objective of these settings; the keys of the configuration's group `loss`, but for the weights."""
    return BarlowTwins(off_diagonal=off_diagonal)


class HierarchicalLoss(nn.Module):
    """``sum_b weight_b * objective(z_b(J(X')), z_b(X''))`` over the branches b (FG-SSL, eq. 2 and 3).

    Args:
        weights: weight of each branch by name; the paper weights the taps 1 and their concatenation 2.
        objective: compares two projections; default: :class:`BarlowTwins`, as published.

    >>> loss = HierarchicalLoss({"layer4": 1.0, "all": 2.0})
    >>> z = torch.randn(16, 4)
    >>> terms = loss({"layer4": (z, z), "all": (z, z)})
    >>> torch.allclose(terms.total, terms.branches["layer4"] + 2 * terms.branches["all"])
    True
    """

    def __init__(self, weights: Mapping[str, float], *, objective: Objective | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.objective = objective or create_objective()

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
            branches = {name: self.objective(a.float(), b.float()) for name, (a, b) in pairs.items()}
        total = torch.stack([self.weights[name] * term for name, term in branches.items()]).sum()
        return LossTerms(total, branches, {name: (a.detach(), b.detach()) for name, (a, b) in pairs.items()})

    @torch.no_grad()
    def diagnostics(self, pairs: Pairs) -> dict[str, float]:
        """What the objective tells of each branch, as ``NAME_BRANCH``."""
        return {
            f"{name}_{branch}": value
            for branch, (a, b) in pairs.items()
            for name, value in self.objective.diagnostics(a.float(), b.float()).items()
        }
