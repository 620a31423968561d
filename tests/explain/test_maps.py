"""Grad-CAM against its formula, written out, and the warnings on maps with known answers."""

from __future__ import annotations

import copy

import pytest
import torch

from jigsawssl.explain.maps import (
    attention_maps,
    border_share,
    choose_tap,
    compare_maps,
    deletion_and_insertion,
    explain,
    gradcam,
    over_images,
    rank_agreement,
)
from jigsawssl.models import Classifier, HierarchicalClassifier, create_encoder
from jigsawssl.types import ImageFormat


def small(backbone: str = "resnet18") -> Classifier:
    torch.manual_seed(0)
    options = {"resnet18": {"channels": [16, 16, 32, 32]}, "vit_tiny_patch16_224": {"patch_size": 8}}.get(backbone, {})
    return Classifier(create_encoder(backbone, ImageFormat(64, channels=1), backbone_options=options), 3).eval()


@pytest.mark.parametrize("tap", ["layer2", "layer4"])
def test_it_is_the_published_formula(tap: str) -> None:
    model = small()
    images, classes = torch.rand(4, 1, 64, 64), torch.tensor([0, 1, 2, 1])
    taps = model.encoder.taps(images)
    # The forward pass from the tap on, with the tap itself as the leaf.
    leaf = taps[tap].features.detach().requires_grad_()
    deeper, value = {tap: leaf}, leaf
    for name in model.encoder.tap_names[model.encoder.tap_names.index(tap) + 1 :]:
        value = model.encoder.tap_module(name)(value)
        deeper[name] = value
    features = [deeper.get(name, taps[name].features).mean(dim=(2, 3)) for name in model.encoder.tap_names]
    logits = model.head(torch.cat(features, dim=1))
    gradient = torch.autograd.grad(logits[range(4), classes].sum(), leaf)[0]
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * leaf).sum(dim=1).relu().detach()
    torch.testing.assert_close(gradcam(model, images, classes=classes, tap=tap), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "densenet121",
        "efficientnet_b0",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_every_kind_of_network_has_a_layer_for_each_tap(backbone: str) -> None:
    model = small(backbone)
    images = torch.rand(2, 1, 64, 64)
    for tap in model.encoder.tap_names:
        module, side = model.encoder.tap_module(tap), 64 // model.encoder.reductions[tap]
        shapes: list[torch.Size] = []
        handle = module.register_forward_hook(lambda _, given, output, found=shapes: found.append(output.shape))
        maps = gradcam(model, images, classes=torch.tensor([0, 1]), tap=tap)
        handle.remove()
        assert shapes[0][1:] == (model.encoder.channels[tap], side, side)
        assert maps.shape == (2, side, side) and bool((maps >= 0).all())


def test_a_hierarchical_classifier_is_explained_too() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("resnet18", ImageFormat(64, channels=1), backbone_options={"channels": [16, 16, 32, 32]})
    found = explain(
        HierarchicalClassifier(encoder, 2).eval(), torch.rand(3, 1, 64, 64), classes=torch.tensor([0, 1, 0])
    )
    assert found.maps.shape == (3, 64, 64) and found.tap == "layer3"


@pytest.mark.parametrize(
    ("backbone", "size", "stride", "tap", "cells"),
    [
        ("resnet18", 224, 4, "layer4", 7),  # the deepest, as published
        ("resnet18", 64, 2, "layer3", 8),
        ("resnet18", 64, 4, "layer2", 8),  # whose last stage has 2 x 2
        ("vit_tiny_patch16_224", 32, 4, "blocks_11", 4),  # all alike and too coarse: the deepest
    ],
)
def test_the_tap_is_the_deepest_that_is_fine_enough(
    backbone: str, size: int, stride: int, tap: str, cells: int
) -> None:
    torch.manual_seed(0)
    options = {"resnet18": {"channels": [8, 8, 8, 8]}, "vit_tiny_patch16_224": {"patch_size": 8}}.get(backbone, {})
    model = Classifier(
        create_encoder(backbone, ImageFormat(size, channels=1), stem_stride=stride, backbone_options=options), 2
    ).eval()
    images = torch.rand(2, 1, size, size)
    assert choose_tap(model.encoder, images) == tap
    found = explain(model, images, classes=torch.tensor([0, 1]))
    assert (found.tap, found.grid, found.coarse) == (tap, (cells, cells), cells < 7)
    maps = found.maps
    assert maps.shape == (2, size, size) and float(maps.min()) >= 0 and float(maps.max()) == pytest.approx(1)
    if found.coarse:  # one value a cell, and no more of them than cells
        assert all(len(one.unique()) <= cells**2 for one in maps)


def test_where_no_tap_is_fine_enough_it_is_the_finest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jigsawssl.explain.maps.FINE", 17)
    found = explain(small(), torch.rand(2, 1, 64, 64), classes=torch.tensor([0, 1]))
    assert (found.tap, found.grid, found.coarse) == ("layer2", (16, 16), True)


def test_an_earlier_tap_sees_what_it_says_itself_and_what_the_deeper_ones_make_of_it() -> None:
    model = small()
    images, classes = torch.rand(2, 1, 64, 64), torch.tensor([0, 1])
    whole = gradcam(model, images, classes=classes, tap="layer3")
    taps = model.encoder.channels
    first, second = taps["layer2"], taps["layer2"] + taps["layer3"]
    with torch.no_grad():
        direct = copy.deepcopy(model)
        direct.head.weight[:, second:] = 0  # type: ignore[index]
        through = copy.deepcopy(model)
        through.head.weight[:, first:second] = 0  # type: ignore[index]
    assert (
        float(gradcam(direct, images, classes=classes, tap="layer4").max()) == 0
    )  # nothing goes by way of the deepest
    assert not torch.allclose(whole, gradcam(direct, images, classes=classes, tap="layer3"))
    assert not torch.allclose(whole, gradcam(through, images, classes=classes, tap="layer3"))
    # The direct way is CAM: the weights of the classifier themselves, spread over the cells.
    features = model.encoder.taps(images)["layer3"].features
    weights = model.head.weight[classes, first:second] / features[0, 0].numel()  # type: ignore[index]
    cam = (weights[:, :, None, None] * features).sum(dim=1).relu().detach()
    torch.testing.assert_close(gradcam(direct, images, classes=classes, tap="layer3"), cam, rtol=1e-3, atol=1e-6)


def test_a_fine_map_is_smoothed_and_a_coarse_one_is_not() -> None:
    maps = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(maps[:, None], (28, 28), mode="bilinear")[:, 0]
    torch.testing.assert_close(over_images(maps, (28, 28)), smooth / smooth.amax(dim=(1, 2), keepdim=True))
    cells = over_images(maps[:, :2, :2], (28, 28))
    expected = maps[:, :2, :2] / maps[:, :2, :2].amax(dim=(1, 2), keepdim=True)
    assert torch.equal(cells, expected.repeat_interleave(14, 1).repeat_interleave(14, 2))
    assert not over_images(torch.zeros(1, 2, 2), (8, 8)).any()


def test_explaining_changes_nothing() -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    found = explain(model, images, classes=torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert -1 <= found.sanity <= 1 and 0 <= found.border <= 1


def test_the_sanity_check_sees_a_map_that_no_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    images, classes = torch.rand(3, 1, 64, 64), torch.tensor([0, 1, 2])
    assert explain(small(), images, classes=classes).sanity < 0.9
    # A method that shows the image and not the network, such as an edge detector.
    monkeypatch.setattr("jigsawssl.explain.maps.gradcam", lambda model, pixels, classes, tap: pixels[:, 0])
    assert explain(small(), images, classes=classes).sanity == pytest.approx(1.0)


def test_the_border_is_counted_by_its_share() -> None:
    maps = torch.zeros(3, 20, 20)
    maps[0, 10, 10] = 1.0
    maps[1, 0, 5] = 1.0
    assert border_share(maps) == pytest.approx(0.5)  # one inside, one on the border, an empty one not counted
    assert border_share(torch.zeros(2, 20, 20)) == 0.0


class Bright(torch.nn.Module):
    """Says the second class as surely as the upper left quarter is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, 0, :16, :16].mean(dim=(1, 2)) * 8
        return torch.stack([-bright, bright], dim=1)


def test_deleting_what_matters_costs_more_than_deleting_the_rest() -> None:
    images = torch.zeros(2, 1, 32, 32)
    images[:, :, :16, :16] = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    right = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(1))  # no two pixels alike
    right[:, :16, :16] += 1.0
    classes = torch.tensor([1, 1])
    good = deletion_and_insertion(Bright(), images, right, classes=classes)  # type: ignore[arg-type]
    bad = deletion_and_insertion(Bright(), images, 1 - right, classes=classes)  # type: ignore[arg-type]
    assert good[0] < bad[0] and good[1] > bad[1]
    # Both go from one image to the other, so together they are the same for a map and its reverse.
    assert good[0] == pytest.approx(bad[1], abs=1e-5) and good[1] == pytest.approx(bad[0], abs=1e-5)


def test_attention_maps_are_those_of_the_deepest_attention_that_has_a_place() -> None:
    images = torch.rand(2, 1, 64, 64)
    for attention, has in (("none", False), ("se", False), ("cbam", True), ("ga", True), ("la", True), ("ela", True)):
        torch.manual_seed(0)
        options = {"channels": [16, 16, 32, 32]}
        encoder = create_encoder(
            "resnet18",
            ImageFormat(64, channels=1),
            backbone_options=options,
            attention=attention,
            attention_stages=(3, 4),
        )
        model = Classifier(encoder, 2).eval()
        maps = attention_maps(model, images)
        assert (maps is not None) == has
        if maps is not None:
            assert maps.shape == (2, 4, 4) and bool((maps >= 0).all())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_agreement_is_of_ranks_and_leaves_flat_maps_out() -> None:
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert rank_agreement(maps, maps**3) == pytest.approx(1.0)
    maps[0] = 0.5
    assert rank_agreement(maps, -maps) == pytest.approx(-1.0)
    assert rank_agreement(torch.ones(2, 4, 4), torch.ones(2, 4, 4)) == 0.0


def test_the_attention_of_a_transformer_is_that_of_its_last_block() -> None:
    model = small("vit_tiny_patch16_224")
    images = torch.rand(2, 1, 64, 64)
    last = model.encoder.backbone.blocks[-1].attn  # type: ignore[union-attr, index]
    tokens: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, given: tokens.append(given[0]))
    with torch.no_grad():
        before = model(images)
    handle.remove()
    found = attention_maps(model, images)
    count, channels = tokens[0].shape[1:]
    width = channels // last.num_heads
    received = torch.zeros(2, count)
    projected = last.qkv(tokens[0]).detach()
    for image in range(2):
        for head in range(last.num_heads):
            q = projected[image, :, head * width : (head + 1) * width]
            k = projected[image, :, channels + head * width : channels + (head + 1) * width]
            for query in range(count):
                scores = torch.stack([q[query] @ k[key] / width**0.5 for key in range(count)])
                received[image] += scores.softmax(0)
    expected = received[:, 1:].view(2, 8, 8) / (last.num_heads * count)  # without the class token
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(images), before) and last.fused_attn


def test_maps_are_compared_with_maps_that_know_nothing() -> None:
    images = torch.rand(6, 1, 64, 64)
    found = compare_maps(small(), images)
    assert list(found) == ["Grad-CAM", "random"]
    assert found["Grad-CAM"]["agreement"] is None and abs(found["random"]["agreement"] or 0) < 0.1
    assert found["random"]["border_share"] == pytest.approx(0.36, abs=0.03)  # as much as its area
    assert found == compare_maps(small(), images)
    with torch.no_grad():
        predicted = small()(images).argmax(dim=1)
    shown = explain(small(), images, classes=predicted)  # what is judged is what would be shown
    assert found["Grad-CAM"]["border_share"] == pytest.approx(shown.border)
    assert found["Grad-CAM"]["deletion"] == pytest.approx(
        deletion_and_insertion(small(), images, shown.maps, classes=predicted)[0]
    )


@pytest.mark.parametrize("count", [2, 4])
def test_a_transformer_in_part_has_no_map_of_its_own(count: int) -> None:
    model = Classifier(create_encoder("mobilevit_xxs", ImageFormat(64, channels=1)), 2).eval()
    assert attention_maps(model, torch.rand(count, 1, 64, 64)) is None
