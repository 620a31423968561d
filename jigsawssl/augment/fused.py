"""The chain of one view in one pass: kornia draws the parameters, and each image stays in the processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kornia.augmentation as K
import torch
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

from ..functional import to_unit_range

__all__ = ["FusedChain"]

_CHUNK = 1 << 20  # values that are worked on at a time on a CPU: larger intermediate results leave its caches
_LARGE = 128  # pixels
_LUMA = (0.299, 0.587, 0.114)

Step = Callable[[Tensor, slice], Tensor]


class FusedChain(nn.Module):
    """Kornia operations with the same parameters and, up to rounding, the same result, several times faster.

    Crop and flip are one sampling, colour operations work in place, blur touches the images that are blurred, and
    normalisation is part of the last pass. On a CPU a few images at a time go through all of it.

    Args:
        operations: of :func:`jigsawssl.augment.augmentation_chain`, in the order that it gives them.
        size: side of the square output in pixels.

    Example:
        >>> from jigsawssl.augment import augmentation_chain
        >>> chain = FusedChain(augmentation_chain("strong", size=32, channels=3), size=32)
        >>> images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
        >>> parameters = chain.draw(images.shape)
        >>> fast, slow = chain(images, parameters), chain.plainly(images, parameters)
        >>> torch.allclose(fast, slow, atol=1e-3)
        True
    """

    def __init__(self, operations: Sequence[Any], size: int) -> None:
        super().__init__()
        self.size = size
        self.sequence = K.AugmentationSequential(*operations, data_keys=["input"])

    def draw(self, shape: Sequence[int]) -> list[Any]:
        """Parameters for images of a shape ``(B, C, H, W)``, from torch's global generator."""
        return list(self.sequence.forward_parameters(torch.Size(shape)))

    @torch.no_grad()
    def forward(
        self, images: Tensor, parameters: list[Any], mean: Tensor | None = None, std: Tensor | None = None
    ) -> Tensor:
        """Apply the operations.

        Args:
            images: uint8 or uint16 ``(B, C, H, W)``.
            parameters: from :meth:`draw` with the same shape.
            mean: ``(C, 1, 1)`` or ``(1, 1, 1)``, subtracted at the end.
            std: the same, divided by.

        Returns:
            float32 ``(B, C, size, size)``, channels_last.
        """
        batch, channels = images.shape[:2]
        steps = [step for parameter in parameters if (step := self._step(parameter, images)) is not None]
        shape = (batch, channels, self.size, self.size)
        views = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
        largest = channels * max(self.size**2, images.shape[2] * images.shape[3])
        some = max(1, _CHUNK // largest) if images.device.type == "cpu" else batch
        # Under autocast crop positions would be bfloat16, and crops would reach past the image's edge.
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, batch, some):
                rows = slice(start, min(start + some, batch))
                pixels = to_unit_range(images[rows])
                for step in steps:
                    pixels = step(pixels, rows)
                if mean is not None:
                    pixels = pixels.sub_(mean)
                if std is not None:
                    pixels = pixels.div_(std)
                views[rows] = pixels
        return views

    @torch.no_grad()
    def plainly(self, images: Tensor, parameters: list[Any]) -> Tensor:
        """The same by kornia alone, without normalisation: what :meth:`forward` is tested against."""
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = self.sequence(to_unit_range(images), params=parameters)
        return result

    def _step(self, parameter: Any, images: Tensor) -> Step | None:
        operation = self.sequence.get_submodule(parameter.name)
        data: dict[str, Tensor] = parameter.data
        chosen = data["batch_prob"].cpu() > 0.5
        if not chosen.any():
            return None
        if isinstance(operation, K.RandomResizedCrop):
            return _crop(data["src"], images, self.size)
        if isinstance(operation, K.Resize):
            unchanged = images.shape[2:] == (self.size, self.size)
            return None if unchanged else lambda pixels, rows: operation(pixels)
        if isinstance(operation, K.RandomHorizontalFlip):
            return _on_chosen(chosen, lambda pixels, at: pixels.flip(-1))
        if isinstance(operation, K.ColorJitter):
            return _jitter(data, chosen, images.device)
        if isinstance(operation, K.RandomGrayscale):
            return _on_chosen(chosen, lambda pixels, at: _luma(pixels).expand_as(pixels))
        if isinstance(operation, K.RandomGaussianBlur):
            kernel, sigma = operation.flags["kernel_size"], data["sigma"].to(images.device)
            return _on_chosen(chosen, lambda pixels, at: _blur(pixels, kernel[0], sigma[at]))
        if isinstance(operation, K.RandomSolarize):
            limits = data["thresholds"].to(images.device).view(-1, 1, 1, 1)
            return _on_chosen(chosen, lambda pixels, at: torch.where(pixels < limits[at], pixels, 1 - pixels))
        raise NotImplementedError(f"{type(operation).__name__} has no fast path")


def _on_chosen(chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Apply ``change`` to the images that an operation's probability chose."""

    def step(pixels: Tensor, rows: slice) -> Tensor:
        at = chosen[rows].nonzero().flatten()
        if len(at) == len(pixels):
            return change(pixels, torch.arange(rows.start, rows.stop, device=pixels.device)).contiguous()
        if len(at):
            local = at.to(pixels.device)
            pixels[local] = change(pixels[local], local + rows.start)
        return pixels

    return step


def _crop(source: Tensor, images: Tensor, size: int) -> Step:
    """Bilinear resampling of a box, whose corners' centres become those of the view."""
    if images.device.type == "cpu" and size >= _LARGE:
        return _crop_one_by_one(source, size)
    height, width = images.shape[2:]
    (left, top), (right, bottom) = source[:, 0].unbind(1), source[:, 2].unbind(1)
    theta = torch.zeros(len(source), 2, 3, dtype=torch.float64)
    across, down = max(1, width - 1), max(1, height - 1)
    theta[:, 0, 0], theta[:, 0, 2] = (right - left) / across, (left + right) / across - 1
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / down, (top + bottom) / down - 1
    theta = theta.float().to(images.device)

    def step(pixels: Tensor, rows: slice) -> Tensor:
        grid = affine_grid(theta[rows], [len(pixels), pixels.shape[1], size, size], align_corners=True)
        return grid_sample(pixels, grid, padding_mode="zeros", align_corners=True)

    return step


def _crop_one_by_one(source: Tensor, size: int) -> Step:
    """The same for a CPU: resizing is three times as fast as sampling there, once a call for each image is small."""
    boxes = source[:, [0, 2]].round().long().flatten(1).tolist()  # corners are whole pixels

    def step(pixels: Tensor, rows: slice) -> Tensor:
        cropped = pixels.new_empty(len(pixels), pixels.shape[1], size, size)
        for number, (left, top, right, bottom) in enumerate(boxes[rows]):
            box = pixels[number : number + 1, :, top : bottom + 1, left : right + 1]
            cropped[number] = interpolate(box, (size, size), mode="bilinear", align_corners=True)[0]
        return cropped

    return step


def _blur(pixels: Tensor, kernel: int, sigma: Tensor) -> Tensor:
    """Gaussian blur with reflected borders as two matrix products, which small grouped convolutions are slower than."""
    size = pixels.shape[-1]
    at = torch.arange(size, device=pixels.device)[:, None] + torch.arange(kernel, device=pixels.device) - kernel // 2
    at = (size - 1) - ((size - 1) - at.abs()).abs()
    weights = get_gaussian_kernel1d(kernel, sigma[:, None])
    matrix = torch.zeros(len(sigma), size, size, device=pixels.device)
    matrix.scatter_add_(2, at.expand(len(sigma), size, kernel), weights[:, None].expand(-1, size, -1).contiguous())
    return matrix[:, None] @ pixels @ matrix[:, None].mT


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def _jitter(data: dict[str, Tensor], chosen: Tensor, device: torch.device) -> Step:
    """Brightness, contrast, saturation and hue in the order drawn, each clamped, as kornia's ColorJitter."""
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    factors = [
        torch.where(chosen, data[f"{name}_factor"].cpu(), value).to(device, torch.float32).view(-1, 1, 1, 1)
        for name, value in neutral.items()
    ]
    used = [bool((factor != value).any()) for factor, value in zip(factors, neutral.values(), strict=True)]
    change = (_brighten, _contrast, _saturate, _turn_hue)
    order = [number for number in data["order"].tolist() if used[number]]

    def step(pixels: Tensor, rows: slice) -> Tensor:
        for number in order:
            pixels = change[number](pixels, factors[number][rows])
        return pixels

    return step


def _brighten(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels.mul_(factor).clamp_(0, 1)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(pixels) if pixels.shape[1] == 3 else pixels
    mean = grey.mean((1, 2, 3), keepdim=True)
    return pixels.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturate(pixels: Tensor, factor: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    grey = _luma(pixels).mul_(1 - factor)
    return pixels.mul_(factor).add_(grey).clamp_(0, 1)


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Add to the hue of HSV, without going through saturation and value (Smith 1978, in the closed form of CSS)."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-12).reciprocal_()
    # The sextant from the largest channel, as kornia chooses it where two are equal: the first.
    hue = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue) * scale, hue).add_(6 * turns.view(-1, 1, 1))
    hue.sub_(hue.div(6).floor_(), alpha=6)
    # Around a channel's own hue it has the value, around the opposite the chroma less, linear between.
    weights = ((hue - 3).abs_().neg_().add_(2), (hue - 2).abs_().sub_(1), hue.sub_(4).abs_().sub_(1))
    for channel, weight in zip((red, green, blue), weights, strict=True):
        torch.addcmul(value, chroma, weight.clamp_(0, 1), value=-1, out=channel)
    return pixels
