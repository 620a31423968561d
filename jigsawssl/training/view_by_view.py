"""The gradient of several branches with the memory of one: the same numbers, computed a branch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Known(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Any:
        return None, None, *(None if known is None else known * outer for known in ctx.gradients)


class PartialGradients:
    """Sum of terms, of which each is differentiated as soon as it is there, so that its graph can go.

    Args:
        inputs: everything that terms depend on and that a later ``backward`` should reach.

    >>> weight = torch.tensor(3.0, requires_grad=True)
    >>> partial = PartialGradients([weight])
    >>> for power in (1, 2):
    ...     partial.add(weight**power)
    >>> partial.total().backward()
    >>> float(weight.grad)
    7.0
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [tensor for tensor in inputs if tensor.requires_grad]
        self.gradients: list[Tensor | None] = [None] * len(self.inputs)
        self.value: Tensor | None = None

    def add(self, term: Tensor) -> None:
        """Differentiate a scalar; its graph is freed."""
        with torch.autocast(term.device.type, enabled=False):
            found = torch.autograd.grad(term, self.inputs, allow_unused=True)
        for at, gradient in enumerate(found):
            before = self.gradients[at]
            if gradient is not None:
                self.gradients[at] = gradient if before is None else before + gradient
        self.value = term.detach() if self.value is None else self.value + term.detach()

    def total(self) -> Tensor:
        """The sum; its ``backward`` hands on what was collected."""
        assert self.value is not None
        return _Known.apply(self.value, self.gradients, *self.inputs)  # type: ignore[no-any-return]


@contextmanager
def running_statistics_last(module: nn.Module) -> Iterator[list[Any]]:
    """Take back what forwards inside do to batch-norm's running statistics, to be done by :func:`catch_up` later."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [layer for layer in layers if layer.track_running_stats and layer.momentum is not None and layer.training]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in kept]  # type: ignore[union-attr]
    postponed: list[Any] = []
    yield postponed
    for layer, (mean, variance) in zip(kept, before, strict=True):
        share = 1 - float(layer.momentum)  # type: ignore[arg-type]
        for now, old in ((layer.running_mean, mean), (layer.running_var, variance)):
            assert now is not None
            postponed.append((now, share, now - old * share))
            # By .data, as autograd watches these buffers, which the backward of a training forward does not read.
            now.data.copy_(old)


def catch_up(postponed: list[Any]) -> None:
    """Do what :func:`running_statistics_last` took back."""
    for now, share, addition in postponed:
        now.data.mul_(share).add_(addition)
