"""Pure tensor operations of the method: tiles, permutations of tiles, pooling, cross-correlation.

Index convention, everywhere: *output tile ``d`` shows source tile ``order[:, d]``*, both numbered row-major. An
image of ``(H, W)`` has ``grid * grid`` tiles of ``(H / grid, W / grid)`` pixels.
"""

import math
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "average_positions",
    "cross_correlation",
    "from_tiles",
    "invert_permutation",
    "permute_tiles",
    "sample_permutations",
    "to_channels_last",
    "to_tiles",
    "to_unit_range",
]


Module = TypeVar("Module", bound=nn.Module)


def to_channels_last(module: Module) -> Module:
    """Weights in channels_last, whose layout 2D convolutions follow: the faster one everywhere.

    As ``module.to(memory_format=torch.channels_last)``, which fails on the weights of 3D convolutions: they stay.

    >>> layers = to_channels_last(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(1, 8, 3)))
    >>> layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    True
    """
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return module


def to_unit_range(images: Tensor) -> Tensor:
    """Pixels as float32 in [0, 1].

    Args:
        images: uint8 in [0, 255] or uint16 in [0, 65535], any shape.

    Raises:
        ValueError: for another type.

    >>> to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [0.0, 1.0]
    """
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    if images.dtype == torch.uint16:
        # By way of signed bits, as few operations know the type.
        return (images.view(torch.int16).int() & 0xFFFF).float().div_(65535)
    raise ValueError(f"`images` must be uint8 or uint16, got {images.dtype}; convert them first")


def nearest_sizes(size: int, grid: int) -> str:
    """The positive multiples of ``grid`` around ``size``, for messages.

    >>> nearest_sizes(225, 8), nearest_sizes(3, 4)
    ('224, 232', '4')
    """
    below, above = size // grid * grid, (size // grid + 1) * grid
    return f"{below}, {above}" if below else f"{above}"


def _tile_size(images: Tensor, grid: int) -> tuple[int, int]:
    """Height and width of one tile, or a ValueError that says which size is not divisible."""
    if images.ndim != 4:
        raise ValueError(f"`images` must have shape (B, C, H, W), got {tuple(images.shape)}; add the missing axis")
    if grid < 1:
        raise ValueError(f"`grid` ({grid}) must be at least 1")
    height, width = images.shape[-2:]
    for name, size in (("height", height), ("width", width)):
        if size % grid:
            raise ValueError(
                f"image {name} ({size}) must be divisible by `grid` ({grid}); "
                f"nearest sizes: {nearest_sizes(size, grid)}"
            )
    return height // grid, width // grid


def to_tiles(images: Tensor, grid: int) -> Tensor:
    """Cut images into tiles, row-major.

    Args:
        images: ``(B, C, H, W)`` of any dtype; H and W divisible by ``grid``.
        grid: tiles along each side.

    Returns:
        ``(B, grid * grid, C, H / grid, W / grid)``.

    Raises:
        ValueError: if a side is not divisible by ``grid``.

    >>> to_tiles(torch.arange(16).view(1, 1, 4, 4), grid=2)[0, :, 0].flatten(1).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    """
    tile_height, tile_width = _tile_size(images, grid)
    batch, channels = images.shape[:2]
    blocks = images.reshape(batch, channels, grid, tile_height, grid, tile_width)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels, tile_height, tile_width)


def from_tiles(tiles: Tensor, grid: int) -> Tensor:
    """Join row-major tiles to images; the inverse of :func:`to_tiles`.

    Args:
        tiles: ``(B, grid * grid, C, h, w)`` of any dtype.
        grid: tiles along each side.

    Returns:
        ``(B, C, grid * h, grid * w)``.

    Raises:
        ValueError: if the number of tiles is not ``grid * grid``.

    >>> images = torch.rand(2, 3, 8, 12)
    >>> torch.equal(from_tiles(to_tiles(images, 4), 4), images)
    True
    """
    if tiles.ndim != 5 or tiles.shape[1] != grid * grid:
        raise ValueError(
            f"`tiles` must have shape (B, {grid * grid}, C, h, w) for `grid` {grid}, got {tuple(tiles.shape)}"
        )
    batch, _, channels, tile_height, tile_width = tiles.shape
    blocks = tiles.reshape(batch, grid, grid, channels, tile_height, tile_width)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid * tile_height, grid * tile_width)


@lru_cache(maxsize=32)
def _first_moved_thresholds(n: int) -> tuple[int, ...]:
    """``floor(2^62 * P(first moved element <= k))`` for a uniform non-identity permutation of ``n`` elements.

    The first ``k`` elements stay in ``(n - k)!`` permutations, the identity among them, so
    ``P(first moved element > k) = ((n - k - 1)! - 1) / (n! - 1)``. Integers keep it exact.
    """
    total = math.factorial(n) - 1
    return tuple((total - (math.factorial(n - k - 1) - 1)) * 2**62 // total for k in range(n - 1))


def sample_permutations(
    batch: int, n: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Draw one permutation per image, uniform over all that are not the identity, without a rejection loop.

    The first element that moves is drawn from its exact distribution, then its source among the later elements,
    then a uniform order of the rest. For ``n = 1`` the identity is all there is.

    Args:
        batch: number of permutations.
        n: number of elements (tiles), at least 1.
        generator: source of randomness; the draw happens on its device. Default: torch's global CPU generator.
        device: where the result lives; default: the generator's device.

    Returns:
        ``(batch, n)`` int64.

    Raises:
        ValueError: if ``n`` or ``batch`` is out of range.

    >>> order = sample_permutations(4, 9, generator=torch.Generator().manual_seed(0))
    >>> order.sort(dim=1).values.equal(torch.arange(9).expand(4, 9))
    True
    """
    if n < 1 or batch < 0:
        raise ValueError(f"`n` ({n}) must be at least 1 and `batch` ({batch}) at least 0")
    source = generator.device if generator is not None else torch.device("cpu")
    target = source if device is None else torch.device(device)
    if n == 1:
        return torch.zeros(batch, 1, dtype=torch.int64, device=target)
    thresholds = torch.tensor(_first_moved_thresholds(n), device=source)
    draw = torch.randint(2**62, (batch, 1), generator=generator, device=source)
    moved = torch.searchsorted(thresholds, draw, right=True).clamp_(max=n - 2)
    # A key per element; sorting the keys gives the order. Negative keys place the fixed head and the moved element.
    keys = torch.randint(2**62, (batch, n), generator=generator, device=source)
    position = torch.arange(n, device=source).expand(batch, n)
    later = n - 1 - moved
    # Modulo bias of 2^62 over fewer than 2^20 elements is below 1e-12.
    chosen = moved + 1 + torch.randint(2**62, (batch, 1), generator=generator, device=source) % later
    keys = torch.where(position == chosen, -1, keys)
    keys = torch.where(position < moved, position - n - 1, keys)
    return keys.argsort(dim=1).to(target)


def invert_permutation(order: Tensor) -> Tensor:
    """Inverse of permutations: ``permute_tiles(permute_tiles(x, order, g), invert_permutation(order), g)`` is ``x``.

    Args:
        order: ``(B, n)`` int64, each row a permutation of ``range(n)``.

    Returns:
        ``(B, n)`` int64.

    >>> invert_permutation(torch.tensor([[2, 0, 1]])).tolist()
    [[1, 2, 0]]
    """
    position = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, position)


def permute_tiles(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """Shuffle the tiles of each image by its own permutation, in one gather over tile rows.

    Output tile ``d`` shows source tile ``order[:, d]``, both row-major. A row of a tile is a contiguous run of
    pixels in either memory format, so the images never go through a tiled copy.

    Args:
        images: ``(B, C, H, W)``, any dtype, device and strides; H and W divisible by ``grid``.
        order: ``(B, grid * grid)`` int64, each row a permutation, which is not checked: that would wait for the GPU.
        grid: tiles along each side.

    Returns:
        ``(B, C, H, W)``, same dtype and device; channels_last if ``images`` is, else contiguous.

    Raises:
        ValueError: if a side is not divisible by ``grid`` or ``order`` has another shape.

    >>> images = torch.arange(4).view(1, 1, 2, 2)
    >>> permute_tiles(images, torch.tensor([[3, 0, 1, 2]]), grid=2).flatten().tolist()
    [3, 0, 1, 2]
    """
    tile_height, _ = _tile_size(images, grid)
    batch, channels, height, width = images.shape
    if order.shape != (batch, grid * grid):
        raise ValueError(f"`order` must have shape {(batch, grid * grid)} for `grid` {grid}, got {tuple(order.shape)}")
    if images.numel() == 0:
        return images.clone()
    # Positions in 32 bits where they suffice: for fine grids, computing them costs more than moving the pixels.
    kind = torch.int32 if batch * channels * height * grid < 2**31 else torch.int64
    source = order.to(images.device, kind).view(batch, grid, 1, grid)
    # Row of a tile within one plane, for each output run: (B, grid, tile_height, grid), outermost first.
    line = torch.arange(0, height // grid * grid, grid, device=images.device, dtype=kind).view(1, 1, tile_height, 1)
    # (source // grid) * tile_height * grid + source % grid, and a row of tiles further with each line
    run = (source + (source // grid) * (grid * (tile_height - 1))) + line
    plane = height * grid
    if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
        first = torch.arange(0, batch * plane, plane, device=images.device, dtype=kind).view(batch, 1)
        table = images.permute(0, 2, 3, 1).reshape(batch * plane, -1)
        rows = table.index_select(0, (run.view(batch, plane) + first).flatten())
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    every = batch * channels * plane
    first = torch.arange(0, every, plane, device=images.device, dtype=kind).view(batch, channels, 1)
    table = images.contiguous().view(batch * channels * plane, -1)
    rows = table.index_select(0, (run.view(batch, 1, plane) + first).flatten())
    return rows.view(batch, channels, height, width)


def average_positions(features: Tensor) -> Tensor:
    """Global average pooling, as a sum over the rows of a table of positions and channels.

    The same as ``features.mean((2, 3))``, whose gradient has another memory format than channels_last features: on a
    CPU, batch norm and ReLU before it are then several times slower, and bfloat16 is copied to float32 first.

    Args:
        features: ``(B, C, H, W)`` float.

    Returns:
        ``(B, C)``, same dtype.

    >>> average_positions(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).tolist()
    [[3.0]]
    """
    table = features.permute(0, 2, 3, 1).flatten(1, 2)
    if table.dtype == torch.float16:  # a sum of many positions is beyond its range
        return table.mean(dim=1)
    return table.sum(dim=1) / table.shape[1]


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Cross-correlation matrix of two sets of projections, standardised over the batch (Barlow Twins, eq. 2).

    Args:
        first: ``(B, D)`` float.
        second: ``(B, D)`` float.

    Returns:
        ``(D, D)`` float in [-1, 1]; entry ``(i, j)`` correlates dimension i of ``first`` with j of ``second``.

    Raises:
        ValueError: if the shapes differ or the batch has fewer than two rows.

    >>> z = torch.tensor([[1.0], [2.0], [3.0]])
    >>> round(cross_correlation(z, -2 * z).item(), 3)
    -1.0
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[0] < 2:
        raise ValueError(
            f"`first` and `second` must share a shape (B >= 2, D), got {tuple(first.shape)} and {tuple(second.shape)}"
        )

    def standardise(z: Tensor) -> Tensor:
        return torch.nn.functional.batch_norm(z, None, None, training=True)

    return standardise(first).T @ standardise(second) / first.shape[0]
