"""The consistency pairs: what X', X'' and J_n(X') share, how they are replayed, and what each preset does."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor

from jigsawssl.augment import PRESETS, JigsawViews, ViewParameters, augmentation_chain
from jigsawssl.functional import to_tiles
from jigsawssl.types import Views

CHANNELS = (1, 3)
MEAN, STD = {1: (0.4,), 3: (0.3, 0.4, 0.5)}, {1: (0.2,), 3: (0.1, 0.2, 0.3)}


def batch(channels: int = 3, count: int = 6, height: int = 40, width: int = 30) -> Tensor:
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8)


def builder(preset: str = "strong", channels: int = 3, grids: tuple[int, ...] = (8, 4, 2)) -> JigsawViews:
    return JigsawViews(size=32, grids=grids, preset=preset, share=1.0, mean=MEAN[channels], std=STD[channels])


def flat(views: Views) -> list[Tensor]:
    return [views.original, views.distorted, *views.jigsaw]


def assert_same(first: Views, second: Views) -> None:
    for one, other in zip(flat(first), flat(second), strict=True):
        assert torch.equal(one, other)


def drawn(views: JigsawViews) -> ViewParameters:
    assert views.parameters_used is not None
    return views.parameters_used


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_views_are_square_float32_with_the_channels_of_the_images(preset: str, channels: int) -> None:
    views = builder(preset, channels)(batch(channels))
    assert len(views.jigsaw) == 3
    for view in flat(views):
        assert view.shape == (6, channels, 32, 32)
        assert view.dtype == torch.float32


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_normalisation_comes_last_and_is_by_channel(preset: str, channels: int) -> None:
    build = builder(preset, channels)
    plain = JigsawViews(size=32, grids=(8, 4, 2), preset=preset, share=1.0, mean=0.0, std=1.0)
    images = batch(channels)
    views = build(images)
    mean, std = (torch.tensor(values[channels]).view(-1, 1, 1) for values in (MEAN, STD))
    for view, unnormalised in zip(flat(views), flat(plain(images, drawn(build))), strict=True):
        assert unnormalised.min() >= -1e-5
        assert unnormalised.max() <= 1 + 1e-5
        torch.testing.assert_close(view, (unnormalised - mean) / std)
        torch.testing.assert_close(build.denormalize(view), unnormalised, atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_jigsaw_views_are_tile_permutations_of_the_original_view(preset: str, channels: int) -> None:
    build = builder(preset, channels)
    views = build(batch(channels))
    for grid, jigsaw, orders in zip(build.grids, views.jigsaw, drawn(build).orders, strict=True):
        for image, shuffled, order in zip(to_tiles(views.original, grid), to_tiles(jigsaw, grid), orders, strict=True):
            assert not torch.equal(image, shuffled)
            assert torch.equal(order.sort().values, torch.arange(grid * grid))
            assert torch.equal(shuffled, image[order])


def test_each_image_and_each_grid_has_its_own_order() -> None:
    build = builder(grids=(4, 4))
    build(batch())
    assert len(torch.cat(drawn(build).orders).unique(dim=0)) == 12


def test_grid_one_is_the_original_view_itself() -> None:
    views = builder(grids=(1, 2, 1))(batch())
    assert views.jigsaw[0] is views.original
    assert views.jigsaw[2] is views.original


def test_no_grids_make_plain_pairs() -> None:
    views = builder(grids=())(batch())
    assert views.jigsaw == ()
    assert not torch.equal(views.original, views.distorted)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_parameters_replay_the_views_also_in_another_module(preset: str, channels: int) -> None:
    images, build = batch(channels), builder(preset, channels)
    views = build(images)
    parameters = drawn(build)
    other = build(images)
    assert not torch.equal(other.original, views.original)
    assert_same(build(images, parameters), views)
    assert_same(builder(preset, channels)(images, parameters), views)


def test_the_global_seed_repeats_the_views() -> None:
    images, build = batch(), builder()
    torch.manual_seed(3)
    first = build(images)
    torch.manual_seed(3)
    assert_same(build(images), first)


@pytest.mark.parametrize("preset", PRESETS)
def test_images_of_a_batch_are_independent(preset: str) -> None:
    images, build = batch(), builder(preset)
    views = build(images)
    other = images.clone()
    other[0] = 255 - other[0]
    for before, after in zip(flat(views), flat(build(other, drawn(build))), strict=True):
        assert torch.equal(before[1:], after[1:])
        assert not torch.equal(before[0], after[0])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_autocast_does_not_change_the_views(preset: str, channels: int) -> None:
    images, build = batch(channels), builder(preset, channels)
    torch.manual_seed(3)
    views = build(images)
    parameters = drawn(build)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(build(images, parameters), views)
        torch.manual_seed(3)
        assert_same(build(images), views)


def test_no_gradient_is_recorded() -> None:
    build = builder()
    build.mean.requires_grad_()
    assert build.mean.requires_grad
    assert not any(view.requires_grad for view in flat(build(batch())))


def test_the_images_are_left_as_they_are() -> None:
    images = batch()
    before = images.clone()
    builder()(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["strong", "mild"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 30), (24, 90), (9, 9)])
def test_crops_never_show_what_lies_outside_of_the_image(name: str, height: int, width: int) -> None:
    crop, flip = augmentation_chain(name, size=32, channels=1)[:2]
    assert isinstance(crop, K.RandomResizedCrop)
    assert isinstance(flip, K.RandomHorizontalFlip)
    white = torch.ones(64, 1, height, width)
    torch.testing.assert_close(flip(crop(white)), torch.ones(64, 1, 32, 32), atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_constant_image_gives_constant_views_even_under_autocast(preset: str) -> None:
    images = torch.full((64, 1, 40, 30), 200, dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = builder(preset, channels=1)(images)
    for view in flat(views):
        assert (view.amax(dim=(2, 3)) - view.amin(dim=(2, 3))).max() < 1e-3


def test_paper_keeps_the_whole_image_and_strong_crops_it() -> None:
    # Straight rows of rising brightness: neither a flip nor, away from the border, a symmetric blur changes them.
    images = (torch.arange(32, dtype=torch.uint8) * 4 + 60).view(1, 1, 32, 1).expand(64, 1, 32, 32)
    ramp = images.float() / 255
    error = {}
    for preset in PRESETS:
        build = JigsawViews(size=32, grids=(), preset=preset, mean=0.0, std=1.0)
        error[preset] = (build(images).original - ramp)[:, :, 4:-4].abs().amax(dim=(1, 2, 3))
    assert error["paper"].max() < 1e-4
    assert (error["strong"] > 1e-2).sum() > 32


def test_paper_always_blurs_the_original_view_and_seldom_the_distorted_one() -> None:
    # A flip and a solarisation (of values above .4) keep a dark chessboard's contrast; only a blur takes it away.
    chessboard = (torch.arange(32).view(-1, 1) + torch.arange(32)) % 2
    images = (chessboard * 90).to(torch.uint8).expand(200, 1, 32, 32)
    views = JigsawViews(size=32, grids=(), preset="paper", mean=0.0, std=1.0)(images)
    contrast = 45 / 255
    # A blur of the smallest sigma, .1, leaves hardly a trace: about one in fifteen falls below .2.
    blurred = {name: getattr(views, name).std(dim=(1, 2, 3)) < 0.999 * contrast for name in ("original", "distorted")}
    assert blurred["original"].float().mean() > 0.85
    assert 0.02 < blurred["distorted"].float().mean() < 0.2


def test_paper_leaves_most_distorted_views_untouched_at_the_right_size() -> None:
    images = batch(channels=1, count=200, height=32, width=32)
    pixels = images.float() / 255
    untouched = {}
    for preset in PRESETS:
        build = JigsawViews(size=32, grids=(), preset=preset, mean=0.0, std=1.0)
        untouched[preset] = (build(images).distorted == pixels).flatten(1).all(dim=1).float().mean().item()
    # No blur (.9) and no solarisation (.8).
    assert untouched["paper"] == pytest.approx(0.72, abs=0.1)
    assert untouched["strong"] == 0


@pytest.mark.parametrize("name", ["strong", "paper-original", "paper-distorted", "mild"])
def test_grey_images_get_no_colour_operations(name: str) -> None:
    chains = {c: {type(step) for step in augmentation_chain(name, size=32, channels=c)} for c in CHANNELS}
    assert K.RandomGrayscale not in chains[1]
    assert chains[1] <= chains[3]
    image = torch.rand(4, 1, 40, 30)
    for step in augmentation_chain(name, size=32, channels=1):
        image = step(image)
    assert image.shape == (4, 1, 32, 32)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.rand(2, 3, 8, 8), id="float"),
        pytest.param(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), id="two channels"),
        pytest.param(torch.zeros(3, 8, 8, dtype=torch.uint8), id="no batch"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"`images` must be uint8 or uint16 \(B, C, H, W\) with C 1 or 3, got torch\."
    ) as caught:
        builder()(images)
    assert str(tuple(images.shape)) in str(caught.value)


@pytest.mark.parametrize(
    ("size", "grids", "message"),
    [
        (32, (8, 3), r"`size` \(32\) must be divisible by `grids` \(3\); nearest sizes: 30, 33"),
        (32, (0,), r"`grids` \(0\) must be at least 1"),
    ],
)
def test_grids_that_do_not_suit_the_size_are_refused(size: int, grids: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JigsawViews(size=size, grids=grids)


def test_a_grid_finer_than_the_view_is_refused_without_naming_size_zero() -> None:
    with pytest.raises(ValueError, match=r"`size` \(32\) must be divisible by `grids` \(64\); nearest sizes: 64$"):
        JigsawViews(size=32, grids=(64,))


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"^`share` \({share}\) must lie in \(0, 1\]"):
        JigsawViews(size=32, grids=(2,), share=share)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`preset` must be one of strong, paper, got 'weak'"):
        JigsawViews(size=32, grids=(2,), preset="weak")


def test_an_unknown_chain_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`name` \(weak\) must be one of strong, paper-original, paper-distorted"):
        augmentation_chain("weak", size=32, channels=3)
