"""The chain of one view in one pass: kornia draws the parameters, and each image stays in the processor's cache."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import kornia.augmentation as K
import torch
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor, nn
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from ..functional import to_unit_range
from ..types import LUMA

_CHUNK = 1 << 20  # values that are worked on at a time on a CPU: larger intermediate results leave its caches
_BESIDE = 8  # images, of which a multiple is worked on at a time: alone, large ones are blurred half as fast
_LARGE = 128  # pixels
_PLANES = 8  # for intermediate results of the colours
_TURN = 0.9  # sextants of a turn of the hue that one pass manages
_SLOPE = _TURN / (1 - _TURN)

Start = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, Tensor], Tensor]


class ViewChain(nn.Module):
    """Kornia operations with the same parameters and, up to rounding, the same result, several times faster.

    Crop and flip are one sampling, colour operations work in place, blur touches the images that are blurred, and
    normalisation is part of the last pass. On a CPU a few images at a time go through all of it.

    Args:
        operations: of :func:`jigsawssl.augment.augmentation_chain`, in the order that it gives them.
        size: side of the square output in pixels.

    >>> from jigsawssl.augment import augmentation_chain
    >>> chain = ViewChain(augmentation_chain("strong", size=32, channels=3), size=32)
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
        start, rest = self._start(images, parameters)
        steps = [step for parameter in rest if (step := self._step(parameter, images)) is not None]
        shape = (batch, channels, self.size, self.size)
        views = torch.empty(shape, device=images.device, memory_format=torch.channels_last)
        largest = channels * max(self.size**2, images.shape[2] * images.shape[3])
        some = max(1, _CHUNK // largest // _BESIDE) * _BESIDE if images.device.type == "cpu" else batch
        # Under autocast crop positions would be bfloat16, and crops would reach past the image's edge.
        with torch.autocast(images.device.type, enabled=False):
            order = self._order(batch, rest) if some < batch else torch.arange(batch)
            for rows in order.split(some):
                pixels = start(rows)
                for step in steps:
                    pixels = step(pixels, rows)
                if mean is not None:
                    pixels = pixels.sub_(mean)
                if std is not None:
                    pixels = pixels.div_(std)
                if some >= batch:
                    views.copy_(pixels)
                else:
                    for row, view in zip(rows.tolist(), pixels, strict=True):
                        views[row] = view
        return views

    @torch.no_grad()
    def plainly(self, images: Tensor, parameters: list[Any]) -> Tensor:
        """The same by kornia alone, without normalisation: what :meth:`forward` is tested against."""
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = self.sequence(to_unit_range(images), params=parameters)
        return result

    def _order(self, batch: int, parameters: list[Any]) -> Tensor:
        """Rows of the batch, those that are blurred alike together: they share a kernel no wider than they need."""
        for parameter in parameters:
            if isinstance(self.sequence.get_submodule(parameter.name), K.RandomGaussianBlur):
                width: Tensor = parameter.data["batch_prob"].cpu() * parameter.data["sigma"].cpu()
                return width.argsort(stable=True)
        return torch.arange(batch)

    def _start(self, images: Tensor, parameters: list[Any]) -> tuple[Start, list[Any]]:
        """How pixels get from the batch into the chain, a crop and a flip at its start included, and what follows."""
        kinds = [type(self.sequence.get_submodule(parameter.name)) for parameter in parameters]
        if not kinds or kinds[0] is not K.RandomResizedCrop:
            return lambda rows: to_unit_range(images[rows]), parameters
        source = parameters[0].data["src"]
        flipped = torch.zeros(len(images), dtype=torch.bool)
        follows = kinds[1:2] == [K.RandomHorizontalFlip]
        if follows:
            flipped = parameters[1].data["batch_prob"].cpu() > 0.5
        one_by_one = images.device.type == "cpu" and self.size >= _LARGE
        crop = _crop_one_by_one if one_by_one else _crop
        return crop(images, source, flipped, self.size), parameters[2 if follows else 1 :]

    def _step(self, parameter: Any, images: Tensor) -> Step | None:
        operation = self.sequence.get_submodule(parameter.name)
        data: dict[str, Tensor] = parameter.data
        chosen = data["batch_prob"].cpu() > 0.5
        if not chosen.any():
            return None
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
            kernel, sigma = operation.flags["kernel_size"], data["sigma"].cpu()
            return _on_chosen(chosen, lambda pixels, at: _blur(pixels, kernel[0], sigma[at]))
        if isinstance(operation, K.RandomSolarize):
            limits = data["thresholds"].to(images.device).view(-1, 1, 1, 1)
            return _on_chosen(chosen, lambda pixels, at: torch.where(pixels < limits[at], pixels, 1 - pixels))
        raise NotImplementedError(f"{type(operation).__name__} has no fast path")


def _on_chosen(chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """Apply ``change`` to the images that an operation's probability chose."""

    def step(pixels: Tensor, rows: Tensor) -> Tensor:
        at = chosen[rows].nonzero().flatten()
        if len(at) == len(pixels):
            return change(pixels, rows).contiguous()
        if len(at):
            pixels[at] = change(pixels[at], rows[at])
        return pixels

    return step


def _crop(images: Tensor, source: Tensor, flipped: Tensor, size: int) -> Start:
    """Bilinear resampling of a box, whose corners' centres become those of the view, or of its mirror image."""
    height, width = images.shape[2:]
    (left, top), (right, bottom) = source[:, 0].unbind(1), source[:, 2].unbind(1)
    theta = torch.zeros(len(source), 2, 3, dtype=torch.float64)
    across, down = max(1, width - 1), max(1, height - 1)
    theta[:, 0, 0] = (right - left) / across * torch.where(flipped, -1, 1).to(source.device)
    theta[:, 0, 2] = (left + right) / across - 1
    theta[:, 1, 1], theta[:, 1, 2] = (bottom - top) / down, (top + bottom) / down - 1
    theta = theta.float().to(images.device)

    def start(rows: Tensor) -> Tensor:
        pixels = to_unit_range(images[rows])
        grid = affine_grid(theta[rows], [len(pixels), pixels.shape[1], size, size], align_corners=True)
        return grid_sample(pixels, grid, padding_mode="zeros", align_corners=True)

    return start


def _crop_one_by_one(images: Tensor, source: Tensor, flipped: Tensor, size: int) -> Start:
    """The same for a CPU: resizing is three times as fast as sampling there, once a call for each image is small."""
    boxes = source[:, [0, 2]].round().long().flatten(1).tolist()  # corners are whole pixels
    mirrored = flipped.tolist()
    room = torch.empty(0)  # kept for the whole batch, as intermediate results of the colours are

    def start(rows: Tensor) -> Tensor:
        nonlocal room
        if not room.numel():
            room = torch.empty(len(rows), images.shape[1], size, size)
        cropped = room[: len(rows)]
        for view, row in zip(cropped.split(1), rows.tolist(), strict=True):
            left, top, right, bottom = boxes[row]
            box = images[row : row + 1, :, top : bottom + 1, left : right + 1]
            box = to_unit_range(box.flip(3) if mirrored[row] else box)
            # `interpolate` into memory that is there: it has no `out` itself.
            torch.ops.aten.upsample_bilinear2d.out(box, (size, size), True, None, None, out=view)
        return cropped

    return start


def _blur(pixels: Tensor, kernel: int, sigma: Tensor) -> Tensor:
    """Gaussian blur with reflected borders by depthwise convolutions, on a CPU with channels last, which is faster."""
    batch, channels, height, width = pixels.shape
    # Beyond five sigma the weights add up to 6e-7.
    kernel = min(kernel, 2 * math.ceil(5 * float(sigma.max())) + 1)
    weights = get_gaussian_kernel1d(kernel, sigma[:, None]).to(pixels).repeat_interleave(channels, 0)
    # Images beside one another as channels, as each has its own kernel.
    one = pixels.reshape(1, -1, height, width)
    if pixels.device.type == "cpu":
        one = one.contiguous(memory_format=torch.channels_last)
    one = pad(one, (kernel // 2,) * 4, mode="reflect")
    one = conv2d(one, weights[:, None, :, None], groups=len(weights))
    one = conv2d(one, weights[:, None, None, :], groups=len(weights))
    return one.reshape(batch, channels, height, width)


def _luma(pixels: Tensor, plane: Tensor | None = None) -> Tensor:
    red, green, blue = pixels.split(1, dim=1)
    return torch.mul(red, LUMA[0], out=plane).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


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
    # Intermediate results have their place for the whole batch: fresh memory would cost more than the arithmetic.
    planes = torch.empty(0)

    def step(pixels: Tensor, rows: Tensor) -> Tensor:
        nonlocal planes
        if not planes.numel():
            planes = pixels.new_empty(_PLANES, len(pixels), 1, *pixels.shape[2:])
        for number in order:
            change[number](pixels, factors[number][rows], planes[:, : len(pixels)])
        return pixels

    return step


def _brighten(pixels: Tensor, factor: Tensor, planes: Tensor) -> None:
    pixels.mul_(factor).clamp_(0, 1)


def _contrast(pixels: Tensor, factor: Tensor, planes: Tensor) -> None:
    grey = _luma(pixels, planes[0]) if pixels.shape[1] == 3 else pixels
    mean = grey.mean((1, 2, 3), keepdim=True)
    pixels.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturate(pixels: Tensor, factor: Tensor, planes: Tensor) -> None:
    if pixels.shape[1] == 3:
        grey = _luma(pixels, planes[0]).mul_(1 - factor)
        pixels.mul_(factor).add_(grey).clamp_(0, 1)


def _turn_hue(pixels: Tensor, turns: Tensor, planes: Tensor) -> None:
    """Add to the hue of HSV without going there, and without a division or a choice of the sextant.

    Over the hue h in sextants, red is a trapezoid between the lowest value m and the highest M of a pixel: it falls on
    one side and rises on the other, by the chroma C = M - m a sextant. With d = blue - green, above 0 where it rises,
    and a slope k it becomes ``clamp(2 red - middle + clamp(2 k d - C t, -C t, C t), m, M)`` after a turn of
    ``0 <= t <= k / (1 + k)`` sextants, with -d and -t for one the other way round, and so the others in turn. Larger
    turns are made in several.
    """
    if pixels.shape[1] == 1:
        return
    sextants = 6 * turns
    passes = max(1, math.ceil(float(sextants.abs().max()) / _TURN))
    channels = [pixels[:, number : number + 1] for number in range(3)]
    red, green, blue = channels
    highest, lowest, middle, up, down, *moved = planes
    torch.maximum(torch.maximum(red, green, out=highest), blue, out=highest)
    torch.minimum(torch.minimum(red, green, out=lowest), blue, out=lowest)
    torch.sub(highest, lowest, out=up).mul_(sextants.abs() / passes)
    torch.neg(up, out=down)
    steep = 2 * _SLOPE * sextants.sign()
    for _ in range(passes):
        torch.add(red, green, out=middle).add_(blue).sub_(highest).sub_(lowest)
        for change, (before, after) in zip(moved, ((blue, green), (red, blue), (green, red)), strict=True):
            torch.sub(before, after, out=change).mul_(steep).sub_(up)
            torch.clamp(change, down, up, out=change).sub_(middle)
        for channel, change in zip(channels, moved, strict=True):
            torch.clamp(change.add_(channel, alpha=2), lowest, highest, out=channel)
