"""Tiles, permutations and cross-correlation against slow references, and the properties that define them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from jigsawssl.functional import (
    average_positions,
    cross_correlation,
    from_tiles,
    invert_permutation,
    permute_tiles,
    sample_permutations,
    to_tiles,
)

SHAPES = [(2, 3, 8, 8, 2), (3, 1, 12, 8, 4), (2, 3, 6, 15, 3), (2, 2, 5, 4, 1), (1, 3, 16, 16, 8)]
"""B, C, H, W and grid; among them images that are not square and a single tile."""

DTYPES = [torch.uint8, torch.int64, torch.bool, torch.bfloat16, torch.float16, torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orders(batch: int, grid: int, seed: int = 0) -> Tensor:
    """Random permutations that owe nothing to the sampler under test."""
    random = generator(seed)
    return torch.stack([torch.randperm(grid * grid, generator=random) for _ in range(batch)])


def pixels(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randint(256, shape, generator=generator(1))
    return drawn > 127 if dtype == torch.bool else drawn.to(dtype)


def distinct(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).view(shape)


def shuffle_slowly(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """One pixel at a time: output tile d shows source tile order[:, d], both numbered row by row."""
    height, width = images.shape[2] // grid, images.shape[3] // grid
    rows = []
    for image, permutation in zip(images, order.tolist(), strict=True):
        for y, x in itertools.product(range(images.shape[2]), range(images.shape[3])):
            source_row, source_column = divmod(permutation[y // height * grid + x // width], grid)
            rows.append(image[:, source_row * height + y % height, source_column * width + x % width])
    return torch.stack(rows).view(len(images), images.shape[2], images.shape[3], -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("batch", "channels", "height", "width", "grid"), SHAPES)
def test_output_tile_d_shows_source_tile_order_d(batch: int, channels: int, height: int, width: int, grid: int) -> None:
    images, order = distinct(batch, channels, height, width), orders(batch, grid)
    assert torch.equal(permute_tiles(images, order, grid), shuffle_slowly(images, order, grid))


@pytest.mark.parametrize(("batch", "channels", "height", "width", "grid"), SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_agrees_with_the_slow_reference(
    batch: int, channels: int, height: int, width: int, grid: int, memory_format: torch.memory_format
) -> None:
    order = orders(batch, grid)
    images = torch.randn(batch, channels, height, width, dtype=torch.float64).to(memory_format=memory_format)
    upstream = torch.randn(images.shape, dtype=torch.float64)
    gradients = []
    for function in (permute_tiles, shuffle_slowly):
        leaf = images.clone().requires_grad_()
        function(leaf, order, grid).backward(upstream)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_dtype_and_memory_format_is_kept(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    images, order = pixels(2, 3, 8, 12, dtype=dtype).to(memory_format=memory_format), orders(2, 4)
    shuffled = permute_tiles(images, order, 4)
    assert shuffled.dtype == dtype
    assert shuffled.is_contiguous(memory_format=memory_format)
    assert torch.equal(shuffled, shuffle_slowly(images, order, 4))


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(pixels(2, 3, 12, 8).transpose(2, 3), id="transposed"),
        pytest.param(pixels(2, 3, 16, 24)[:, :, ::2, ::2], id="strided"),
        pytest.param(pixels(1, 3, 8, 12).expand(2, 3, 8, 12), id="expanded"),
        pytest.param(pixels(2, 6, 8, 12).to(memory_format=torch.channels_last)[:, :3], id="slice of channels"),
        pytest.param(pixels(4, 3, 8, 12).to(memory_format=torch.channels_last)[::2], id="slice of the batch"),
        pytest.param(pixels(2, 3, 8, 12).flip(3).transpose(0, 1).contiguous().transpose(0, 1), id="channels first"),
    ],
)
def test_strides_of_the_input_do_not_change_the_result(images: Tensor) -> None:
    assert not images.is_contiguous()
    before, order = images.clone(), orders(2, 4)
    shuffled = permute_tiles(images, order, 4)
    assert torch.equal(shuffled, shuffle_slowly(images, order, 4))
    assert shuffled.is_contiguous()
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 0, 0)])
def test_empty_images_stay_empty(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    assert permute_tiles(images, sample_permutations(shape[0], 4), 2).shape == shape
    assert from_tiles(to_tiles(images, 2), 2).shape == shape


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_identity_order_changes_nothing(grid: int) -> None:
    images = distinct(2, 3, 8, 12)
    assert torch.equal(permute_tiles(images, torch.arange(grid * grid).expand(2, -1), grid), images)


@pytest.mark.parametrize(("batch", "channels", "height", "width", "grid"), SHAPES)
def test_inverse_order_restores_the_images(batch: int, channels: int, height: int, width: int, grid: int) -> None:
    images, order = distinct(batch, channels, height, width), orders(batch, grid)
    inverse = invert_permutation(order)
    assert torch.equal(permute_tiles(permute_tiles(images, order, grid), inverse, grid), images)
    assert torch.equal(permute_tiles(permute_tiles(images, inverse, grid), order, grid), images)


def test_two_shuffles_compose_as_their_orders_do() -> None:
    images, first, second = distinct(2, 3, 6, 6), orders(2, 3, seed=2), orders(2, 3, seed=3)
    twice = permute_tiles(permute_tiles(images, first, 3), second, 3)
    assert torch.equal(twice, permute_tiles(images, first.gather(1, second), 3))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixels_of_each_image_and_channel_are_conserved(memory_format: torch.memory_format) -> None:
    images = torch.rand(4, 3, 8, 12).to(memory_format=memory_format)
    shuffled = permute_tiles(images, orders(4, 4), 4)
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten(2).sort().values, images.flatten(2).sort().values)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_of_a_batch_are_independent(memory_format: torch.memory_format) -> None:
    images, order = torch.rand(3, 3, 8, 8).to(memory_format=memory_format), orders(3, 4)
    other = images.clone()
    other[0] += 1
    before, after = permute_tiles(images, order, 4), permute_tiles(other, order, 4)
    assert torch.equal(before[1:], after[1:])
    assert torch.equal(after[0], before[0] + 1)
    for index in range(3):
        alone = permute_tiles(images[index : index + 1], order[index : index + 1], 4)
        assert torch.equal(alone[0], before[index])


@pytest.mark.parametrize(("batch", "channels", "height", "width", "grid"), SHAPES)
def test_tiles_are_cut_row_by_row_and_join_again(batch: int, channels: int, height: int, width: int, grid: int) -> None:
    images = distinct(batch, channels, height, width)
    tiles = to_tiles(images, grid)
    tall, wide = height // grid, width // grid
    assert tiles.shape == (batch, grid * grid, channels, tall, wide)
    for tile in range(grid * grid):
        top, left = tile // grid * tall, tile % grid * wide
        assert torch.equal(tiles[:, tile], images[:, :, top : top + tall, left : left + wide])
    assert torch.equal(from_tiles(tiles, grid), images)


def test_permuting_images_is_indexing_their_tiles() -> None:
    images, order = distinct(3, 2, 9, 12), orders(3, 3)
    expected = torch.stack([tiles[permutation] for tiles, permutation in zip(to_tiles(images, 3), order, strict=True)])
    assert torch.equal(to_tiles(permute_tiles(images, order, 3), 3), expected)


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((1, 1, 10, 8), 4, r"height \(10\) must be divisible by `grid` \(4\); nearest sizes: 8, 12"),
        ((1, 1, 8, 10), 4, r"width \(10\) must be divisible by `grid` \(4\); nearest sizes: 8, 12"),
        ((1, 1, 3, 8), 4, r"height \(3\) must be divisible by `grid` \(4\); nearest sizes: 4"),
        ((1, 8, 8), 2, r"`images` must have shape \(B, C, H, W\), got \(1, 8, 8\)"),
        ((1, 1, 8, 8), 0, r"`grid` \(0\) must be at least 1"),
        ((1, 1, 8, 8), -2, r"`grid` \(-2\) must be at least 1"),
    ],
)
def test_images_that_cannot_be_cut_are_refused_by_constraint_and_value(
    shape: tuple[int, ...], grid: int, message: str
) -> None:
    images = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        to_tiles(images, grid)
    with pytest.raises(ValueError, match=message):
        permute_tiles(images, torch.zeros(1, grid * grid, dtype=torch.int64), grid)


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4,)])
def test_an_order_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`order` must have shape \(2, 4\) for `grid` 2, got"):
        permute_tiles(torch.rand(2, 1, 4, 4), torch.zeros(shape, dtype=torch.int64), 2)


@pytest.mark.parametrize("shape", [(1, 3, 1, 2, 2), (1, 4, 2, 2)])
def test_tiles_of_another_number_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`tiles` must have shape \(B, 4, C, h, w\) for `grid` 2, got"):
        from_tiles(torch.rand(shape), 2)


@pytest.mark.parametrize("n", [2, 3, 4, 9, 256])
def test_samples_are_permutations_and_never_the_identity(n: int) -> None:
    order = sample_permutations(20_000 if n < 100 else 500, n, generator=generator())
    assert order.dtype == torch.int64
    identity = torch.arange(n)
    assert torch.equal(order.sort(dim=1).values, identity.expand_as(order))
    assert not (order == identity).all(dim=1).any()


@pytest.mark.parametrize("n", [3, 4])
def test_samples_are_uniform_over_all_permutations_but_the_identity(n: int) -> None:
    draws = sample_permutations(2_000 * (math.factorial(n) - 1), n, generator=generator())
    outcomes = {permutation: 0 for permutation in itertools.permutations(range(n))}
    for row in draws.tolist():
        outcomes[tuple(row)] += 1
    assert outcomes.pop(tuple(range(n))) == 0
    assert chisquare(list(outcomes.values())).pvalue > 1e-4


@pytest.mark.parametrize("n", [3, 5, 9])
def test_each_position_takes_each_source_with_its_exact_probability(n: int) -> None:
    draws = sample_permutations(50_000, n, generator=generator())
    counts = torch.stack([(draws == source).sum(dim=0) for source in range(n)], dim=1).numpy()
    # (n - 1)! of the n! permutations send a source to a position; the identity among them is left out.
    expected = (math.factorial(n - 1) - np.eye(n)) / (math.factorial(n) - 1) * len(draws)
    for position in range(n):
        assert chisquare(counts[position], expected[position]).pvalue > 1e-4


def test_a_single_element_can_only_stay() -> None:
    assert torch.equal(sample_permutations(5, 1, generator=generator()), torch.zeros(5, 1, dtype=torch.int64))


@pytest.mark.parametrize("n", [1, 4])
def test_no_image_needs_no_permutation(n: int) -> None:
    assert sample_permutations(0, n).shape == (0, n)


def test_rows_of_a_draw_differ() -> None:
    assert len(sample_permutations(50, 16, generator=generator()).unique(dim=0)) == 50


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(1)
    first = sample_permutations(8, 9, generator=generator(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(sample_permutations(8, 9, generator=generator(5)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(sample_permutations(8, 9, generator=generator(6)), first)


def test_without_a_generator_the_global_seed_decides() -> None:
    draws = [(torch.manual_seed(seed), sample_permutations(8, 9))[1] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(("batch", "n"), [(3, 0), (3, -1), (-1, 4)])
def test_sizes_out_of_range_are_refused(batch: int, n: int) -> None:
    with pytest.raises(ValueError, match=rf"`n` \({n}\) must be at least 1 and `batch` \({batch}\) at least 0"):
        sample_permutations(batch, n)


def test_inverse_undoes_the_permutation_on_both_sides() -> None:
    order = orders(6, 4)
    inverse = invert_permutation(order)
    identity = torch.arange(16).expand(6, 16)
    assert torch.equal(order.gather(1, inverse), identity)
    assert torch.equal(inverse.gather(1, order), identity)
    assert torch.equal(invert_permutation(inverse), order)
    assert torch.equal(inverse, torch.from_numpy(np.argsort(order.numpy(), axis=1)))


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_cross_correlation_agrees_with_numpy(batch: int) -> None:
    first = torch.randn(batch, 4, dtype=torch.float64, generator=generator(1)) * 30
    second = first @ torch.randn(4, 4, dtype=torch.float64, generator=generator(2)) + 7
    expected = np.corrcoef(first.numpy(), second.numpy(), rowvar=False)[:4, 4:]
    np.testing.assert_allclose(cross_correlation(first, second).numpy(), expected, atol=1e-4)


def test_cross_correlation_does_not_see_shift_and_scale() -> None:
    first, second = torch.randn(2, 32, 5, dtype=torch.float64, generator=generator(1))
    before = cross_correlation(first, second)
    scale = torch.tensor([1.0, 2.0, 10.0, -1.0, -3.0], dtype=torch.float64)
    after = cross_correlation(first * scale + 4, second - 9)
    torch.testing.assert_close(after, before * scale.sign().view(-1, 1), atol=1e-4, rtol=0)


def test_cross_correlation_swaps_to_its_transpose() -> None:
    first, second = torch.randn(2, 16, 5, generator=generator(1))
    torch.testing.assert_close(cross_correlation(first, second), cross_correlation(second, first).T)


def test_cross_correlation_is_bounded_and_reaches_its_bounds() -> None:
    z = torch.randn(64, 4, generator=generator(1)) * 100
    mixed = cross_correlation(z, z @ torch.randn(4, 4, generator=generator(2)))
    assert mixed.abs().max() <= 1 + 1e-5
    torch.testing.assert_close(cross_correlation(z, z).diagonal(), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(cross_correlation(z, -z).diagonal(), -torch.ones(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("first", "second"), [((1, 3), (1, 3)), ((4, 3), (4, 2)), ((4, 3, 1), (4, 3, 1))])
def test_projections_that_cannot_be_correlated_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must share a shape \(B >= 2, D\), got"):
        cross_correlation(torch.rand(first), torch.rand(second))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_is_the_mean_and_so_is_its_gradient(layout: torch.memory_format) -> None:
    values = torch.rand(2, 8, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    features = values.requires_grad_()
    torch.testing.assert_close(average_positions(features), features.mean((2, 3)))
    gradient = torch.autograd.grad((average_positions(features * 1) * torch.arange(8)).sum(), features)[0]
    torch.testing.assert_close(
        gradient, (torch.arange(8.0, dtype=torch.float64) / 35).view(1, 8, 1, 1).expand(2, 8, 5, 7)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_of_many_positions_is_exact_to_rounding_in_half_precision(dtype: torch.dtype) -> None:
    features = (30 + torch.rand(1, 2, 64, 64)).to(dtype)
    exact = features.double().mean((2, 3))
    torch.testing.assert_close(average_positions(features).double(), exact, rtol=torch.finfo(dtype).eps, atol=0)
