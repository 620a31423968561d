"""The fast chain against kornia's own operations, with the same parameters."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from kornia.enhance import adjust_hue
from torch import Tensor

from jigsawssl.augment import ViewChain, augmentation_chain
from jigsawssl.augment import chain as module

CHAINS = ("strong", "paper-original", "paper-distorted", "mild")


def images(channels: int, height: int, width: int, dtype: torch.dtype = torch.uint8, count: int = 13) -> Tensor:
    """Pictures with structure, as noise hides a displacement."""
    generator = torch.Generator().manual_seed(channels * height + width)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    top = 255 if dtype == torch.uint8 else 65535
    return (smooth * top).to(torch.int32).to(dtype)


def chain(name: str, size: int, channels: int) -> ViewChain:
    return ViewChain(augmentation_chain(name, size, channels), size)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "height", "width"), [(32, 40, 40), (32, 32, 32), (32, 50, 35), (128, 150, 140)])
def test_the_result_is_that_of_kornia(name: str, channels: int, size: int, height: int, width: int) -> None:
    build, pixels = chain(name, size, channels), images(channels, height, width)
    for seed in range(3):
        torch.manual_seed(seed)
        parameters = build.draw(pixels.shape)
        fast, slow = build(pixels, parameters), build.plainly(pixels, parameters)
        assert fast.shape == slow.shape == (13, channels, size, size) and fast.dtype == torch.float32
        # Kornia solves for its crops in float32; a threshold (solarize) turns the last bit into a jump.
        difference = (fast - slow).abs()
        assert difference.quantile(0.999) < 2e-4
        if name != "paper-distorted":
            assert difference.max() < 1e-3


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_images_do_not_depend_on_how_many_are_worked_on_at_a_time(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, pixels = chain(name, 32, 3), images(3, 40, 40, dtype)
    parameters = build.draw(pixels.shape)
    whole = build(pixels, parameters)
    for chunk, beside in ((1, 1), (1, 8), (5 * 3 * 40 * 40, 1), (13 * 3 * 40 * 40, 1)):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        monkeypatch.setattr(module, "_BESIDE", beside)
        torch.testing.assert_close(build(pixels, parameters), whole, atol=1e-6, rtol=0)


def test_sampling_and_resizing_crop_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    build, pixels = chain("mild", 64, 3), images(3, 90, 70)
    parameters = build.draw(pixels.shape)
    sampled = build(pixels, parameters)
    monkeypatch.setattr(module, "_LARGE", 1)
    torch.testing.assert_close(build(pixels, parameters), sampled, atol=1e-5, rtol=0)


def test_hue_turns_as_in_hsv_also_where_channels_are_equal() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.3, 0.7, 1.0])] * 3).T.reshape(1, 3, 8, 8)
    for turns in (-0.4, -0.1, 0.0, 0.05, 1 / 6, 0.5):
        expected = adjust_hue(corners, turns * 2 * torch.pi)
        found = corners.clone()
        module._turn_hue(found, torch.full((1, 1, 1, 1), turns), torch.empty(8, 1, 1, 8, 8))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_normalisation_is_part_of_it_and_the_result_is_channels_last() -> None:
    build, pixels = chain("strong", 32, 3), images(3, 40, 40)
    parameters = build.draw(pixels.shape)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    normalised = build(pixels, parameters, mean, std)
    torch.testing.assert_close(normalised, (build(pixels, parameters) - mean) / std)
    assert normalised.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (3, 2)])
def test_the_smallest_images(height: int, width: int) -> None:
    pixels = torch.full((4, 1, height, width), 255, dtype=torch.uint8)
    for size in (8, 128):
        build = ViewChain(augmentation_chain("mild", size, 1)[:2], size)
        result = build(pixels, build.draw(pixels.shape))
        torch.testing.assert_close(result, torch.ones(4, 1, size, size))


def test_an_operation_without_a_fast_path_is_refused() -> None:
    build = ViewChain([K.RandomInvert(p=1.0)], 8)
    pixels = images(1, 8, 8)
    with pytest.raises(NotImplementedError, match="RandomInvert has no fast path"):
        build(pixels, build.draw(pixels.shape))
