"""The stem of a backbone: measured, and made to shrink small images less."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

PUBLISHED_STRIDE = 4
"""By how much an image shrinks before the first stage of networks as published."""

SIDES = 256, 512
"""Sides in pixels of what is measured. All strides divide them."""

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError)
"""What networks raise for a size or a stride that they cannot take."""


@dataclass(frozen=True)
class Stem:
    """How a network's stem is changed, and what comes of it.

    Attributes:
        reductions: by how much each stage shrinks an image then.
        stride: by how much the image shrinks before the first stage then.
        without_pool: whether the max-pooling is dropped.
        strides: the convolutions that take smaller steps, by name.
    """

    reductions: tuple[int, ...]
    stride: int = PUBLISHED_STRIDE
    without_pool: bool = False
    strides: dict[str, int] = field(default_factory=dict)

    def apply(self, network: nn.Module) -> nn.Module:
        """Change the network as published, and return it; its weights still fit, as no kernel changes."""
        if self.without_pool:
            network.maxpool = nn.Identity()
        for name, stride in self.strides.items():
            convolution = network.get_submodule(name)
            assert isinstance(convolution, nn.Conv2d)
            convolution.stride = (stride, stride)
            convolution.padding = ((int(convolution.kernel_size[0]) - stride + 1) // 2,) * 2
        return network


def plan_stem(network: nn.Module, *, indices: Sequence[int], in_channels: int, stem_stride: int) -> Stem | None:
    """Lower the stride before the first stage to ``stem_stride``, as far as the network allows.

    A max-pooling stem is dropped first, then the convolutions that shrink the image itself take smaller steps, all of
    them where branches run side by side. Each change is kept only where every stage is measured to shrink half as much
    with it.

    Args:
        network: a timm network with ``forward_intermediates``, as published, on the device "meta": shapes alone are
            computed. It is not changed.
        indices: its stages to measure.
        in_channels: 1 or 3.
        stem_stride: 1, 2 or 4.

    Returns:
        What to apply to the network; ``None`` where it cannot be measured, as it runs at one size only.

    >>> import timm
    >>> with torch.device("meta"):
    ...     network = timm.create_model("resnet18")
    >>> plan_stem(network, indices=[2, 3, 4], in_channels=3, stem_stride=1)
    Stem(reductions=(2, 4, 8), stride=1, without_pool=True, strides={'conv1': 1})
    """
    network = copy.deepcopy(network).eval()
    first: dict[str, int] = {}
    reductions = _measured(network, indices=indices, in_channels=in_channels, first=first)
    if reductions is None:
        return None
    stem = Stem(reductions)
    proposals: list[Callable[[Stem], Stem]] = [lambda stem: replace(stem, without_pool=True)]
    if not isinstance(getattr(network, "maxpool", None), nn.Module):
        proposals = []
    proposals += [
        lambda stem: replace(stem, strides={name: side // 2 for name, side in (stem.strides or first).items()})
    ] * 2
    for propose in proposals:
        proposal = propose(stem)
        if stem.stride == stem_stride or proposal == stem or 0 in proposal.strides.values():
            continue
        after = _measured(proposal.apply(copy.deepcopy(network)), indices=indices, in_channels=in_channels)
        if after is not None and tuple(2 * reduction for reduction in after) == stem.reductions:
            stem = replace(proposal, reductions=after, stride=stem.stride // 2)
    return stem


def _measured(
    network: nn.Module, *, indices: Sequence[int], in_channels: int, first: dict[str, int] | None = None
) -> tuple[int, ...] | None:
    """By how much each stage shrinks an image; ``first`` takes the strides of what shrinks the image itself."""

    def watch(name: str) -> Callable[[nn.Conv2d, tuple[Tensor, ...]], None]:
        def note(convolution: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
            if first is not None and inputs[0].shape[-1] == SIDES[0]:
                first[name] = convolution.stride[0]

        return note

    strided = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1 and first is not None
    }
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in strided.items()]
    try:
        small = _sides(network, indices=indices, in_channels=in_channels, side=SIDES[0])
        for handle in handles:
            handle.remove()
        if all(SIDES[0] % side == 0 for side in small):
            return tuple(SIDES[0] // side for side in small)
        # Convolutions without padding lose a border: what an output grows by says the stride all the same.
        large = _sides(network, indices=indices, in_channels=in_channels, side=SIDES[1])
        return tuple(round((SIDES[1] - SIDES[0]) / (b - a)) for a, b in zip(small, large, strict=True))
    except (*FAILURES, ZeroDivisionError):
        return None


@torch.no_grad()
def _sides(network: nn.Module, *, indices: Sequence[int], in_channels: int, side: int) -> list[int]:
    images = torch.empty(1, in_channels, side, side, device="meta")
    stages: list[Tensor] = network.forward_intermediates(  # type: ignore[operator]
        images, indices=list(indices), stop_early=True, intermediates_only=True
    )
    return [stage.shape[-1] for stage in stages]
