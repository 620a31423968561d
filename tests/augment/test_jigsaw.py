"""Jigsaw as a kornia augmentation: drawn once, applied, replayed, and alike for images and their masks."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor

from jigsawssl.augment import Jigsaw
from jigsawssl.functional import from_tiles, to_tiles


def distinct(batch: int, channels: int = 3, side: int = 8) -> Tensor:
    return torch.arange(batch * channels * side * side, dtype=torch.float32).view(batch, channels, side, side)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Which images differ, bool ``(B,)``."""
    return (before != after).flatten(1).any(dim=1)


def test_draws_an_order_for_each_image_and_applies_it() -> None:
    images, jigsaw = distinct(6), Jigsaw(grid=4)
    shuffled = jigsaw(images)
    order = jigsaw._params["order"]
    expected = torch.stack([tiles[row] for tiles, row in zip(to_tiles(images, 4), order, strict=True)])
    assert torch.equal(shuffled, from_tiles(expected, 4))
    assert len(order.unique(dim=0)) == 6
    assert changed(images, shuffled).all()


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_replays_a_call_by_its_parameters(p: float) -> None:
    images, jigsaw = distinct(16), Jigsaw(grid=2, p=p)
    shuffled = jigsaw(images)
    parameters = jigsaw._params
    assert not torch.equal(jigsaw(images), shuffled)
    assert torch.equal(jigsaw(images, params=parameters), shuffled)


def test_conserves_the_pixels_of_each_image_and_channel() -> None:
    images = distinct(4)
    assert torch.equal(Jigsaw(grid=4)(images).flatten(2).sort().values, images.flatten(2))


def test_probability_zero_changes_nothing() -> None:
    assert torch.equal(Jigsaw(grid=2, p=0.0)(distinct(16)), distinct(16))


def test_grid_one_changes_nothing() -> None:
    assert torch.equal(Jigsaw(grid=1)(distinct(4)), distinct(4))


def test_probability_one_half_shuffles_some_images_and_leaves_the_others() -> None:
    images, jigsaw = distinct(200, channels=1), Jigsaw(grid=2, p=0.5)
    moved = changed(images, jigsaw(images))
    assert torch.equal(moved, jigsaw._params["batch_prob"] > 0.5)
    assert 60 < moved.sum() < 140


def test_same_on_batch_shares_the_gate_and_the_order() -> None:
    images, jigsaw = distinct(1).expand(5, -1, -1, -1).contiguous(), Jigsaw(grid=4, p=0.5, same_on_batch=True)
    gates = set()
    for _ in range(20):
        shuffled = jigsaw(images)
        assert torch.equal(shuffled, shuffled[:1].expand_as(shuffled))
        gates.add(bool(changed(images, shuffled)[0]))
    assert gates == {False, True}


@pytest.mark.parametrize(("keepdim", "shape"), [(True, (3, 8, 8)), (False, (1, 3, 8, 8))])
def test_keepdim_decides_the_shape_of_a_single_image(keepdim: bool, shape: tuple[int, ...]) -> None:
    assert Jigsaw(grid=2, keepdim=keepdim)(distinct(1)[0]).shape == shape


def test_gradient_returns_to_the_source_pixel() -> None:
    images, jigsaw = distinct(2).requires_grad_(), Jigsaw(grid=2)
    (jigsaw(images) * jigsaw(distinct(2), params=jigsaw._params)).sum().backward()
    assert torch.equal(images.grad, distinct(2))


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_masks_are_shuffled_with_their_images_and_replayed(p: float) -> None:
    masks = distinct(8, channels=1)
    images = masks.expand(-1, 3, -1, -1).contiguous()
    chain = K.AugmentationSequential(K.RandomHorizontalFlip(p=0.5), Jigsaw(grid=4, p=p), data_keys=["input", "mask"])
    shuffled, shuffled_masks = chain(images, masks)
    parameters = chain._params
    assert torch.equal(shuffled, shuffled_masks.expand_as(shuffled))
    assert changed(images, shuffled).any()
    again, masks_again = chain(images, masks, params=parameters)
    assert torch.equal(again, shuffled)
    assert torch.equal(masks_again, shuffled_masks)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_chain_puts_images_and_masks_back(p: float) -> None:
    masks = distinct(8, channels=1)
    images = masks.expand(-1, 3, -1, -1).contiguous()
    chain = K.AugmentationSequential(
        K.RandomHorizontalFlip(p=0.5), Jigsaw(grid=4, p=p), Jigsaw(grid=2), data_keys=["input", "mask"]
    )
    shuffled, shuffled_masks = chain(images, masks)
    assert changed(images, shuffled).all()
    restored, restored_masks = chain.inverse(shuffled, shuffled_masks)
    assert torch.equal(restored, images)
    assert torch.equal(restored_masks, masks)


def test_the_inverse_of_an_earlier_call_takes_its_parameters() -> None:
    images, jigsaw = distinct(6), Jigsaw(grid=4, p=0.5)
    shuffled = jigsaw(images)
    parameters = dict(jigsaw._params)
    jigsaw(images)
    assert torch.equal(jigsaw.inverse(shuffled, params=parameters), images)


@pytest.mark.parametrize(
    ("key", "values", "named"),
    [
        ("bbox_xyxy", torch.tensor([[[0.0, 0.0, 3.0, 3.0]]]), "boxes"),
        ("bbox", torch.tensor([[[[0.0, 0.0], [3.0, 0.0], [3.0, 3.0], [0.0, 3.0]]]]), "boxes"),
        ("keypoints", torch.tensor([[[1.0, 2.0]]]), "keypoints"),
    ],
)
def test_boxes_and_keypoints_are_refused(key: str, values: Tensor, named: str) -> None:
    chain = K.AugmentationSequential(Jigsaw(grid=2), data_keys=["input", key])
    with pytest.raises(NotImplementedError, match=f"Jigsaw cannot move {named}; leave them out of `data_keys`"):
        chain(distinct(1), values)
    images_alone = chain(distinct(1), data_keys=["input"])
    with pytest.raises(NotImplementedError, match=f"Jigsaw cannot move {named}"):
        chain.inverse(images_alone, values)


@pytest.mark.parametrize("wrap", [lambda jigsaw: jigsaw, K.AugmentationSequential])
def test_a_grid_that_does_not_divide_the_images_is_refused(wrap: type[K.AugmentationSequential]) -> None:
    with pytest.raises(ValueError, match=r"height \(8\) must be divisible by `grid` \(3\); nearest sizes: 6, 9"):
        wrap(Jigsaw(grid=3))(distinct(2))


@pytest.mark.parametrize("grid", [0, -1])
def test_a_grid_below_one_is_refused(grid: int) -> None:
    with pytest.raises(ValueError, match=rf"`grid` \({grid}\) must be at least 1"):
        Jigsaw(grid=grid)


def test_repr_names_the_grid_and_the_probability() -> None:
    text = repr(Jigsaw(grid=4, p=0.25))
    assert text.startswith("Jigsaw(")
    assert "grid=4" in text
    assert "p=0.25" in text
