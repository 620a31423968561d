"""The hierarchical block: shapes for any image, what each branch reads, and where its loss teaches."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from jigsawssl.losses import HierarchicalLoss
from jigsawssl.models import Encoder, HierarchicalBlock, PlainProjector, create_encoder
from jigsawssl.models.hierarchical import ALL_TAPS, Variant
from jigsawssl.types import ImageFormat, Tap, Taps

VARIANTS = get_args(Variant)
CHANNELS = {"layer2": 4, "layer3": 6, "layer4": 8}
BRANCHES = ("layer2", "layer3", "layer4", "all")


def block(variant: Variant = "light") -> HierarchicalBlock:
    return HierarchicalBlock(CHANNELS, width=5, projection=7, variant=variant)


def taps(height: int = 16, width: int = 16, batch: int = 4) -> Taps:
    return {
        name: Tap(torch.randn(batch, channels, -(-height // reduction), -(-width // reduction)), channels, reduction)
        for (name, channels), reduction in zip(CHANNELS.items(), (2, 4, 8), strict=True)
    }


class Forbidden(dict[str, Tap]):
    """Taps of which only some may be read."""

    def __init__(self, allowed: Taps) -> None:
        super().__init__(allowed)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tap:
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (33, 50), (64, 16), (224, 224)])
def test_projections_have_one_shape_for_any_image_size(variant: Variant, height: int, width: int) -> None:
    projections = block(variant)(taps(height, width), BRANCHES)
    assert {name: tuple(z.shape) for name, z in projections.items()} == dict.fromkeys(BRANCHES, (4, 7))


@pytest.mark.parametrize("variant", VARIANTS)
def test_branches_are_the_taps_and_their_concatenation(variant: Variant) -> None:
    assert block(variant).branches == BRANCHES
    assert BRANCHES[-1] == ALL_TAPS


@pytest.mark.parametrize(
    ("branches", "needed"),
    [
        (("layer2",), ("layer2",)),
        (("layer4",), ("layer4",)),
        (("layer4", "layer2"), ("layer2", "layer4")),
        (("all",), ("layer2", "layer3", "layer4")),
        (("layer3", "all"), ("layer2", "layer3", "layer4")),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_taps_that_a_branch_needs_are_read(
    variant: Variant, branches: tuple[str, ...], needed: tuple[str, ...]
) -> None:
    module, every = block(variant).eval(), taps()
    assert module.required_taps(branches) == needed
    watched = Forbidden({name: every[name] for name in needed})
    projections = module(watched, branches)
    assert watched.read == set(needed)
    assert set(projections) == set(branches)
    complete = module(every, BRANCHES)
    for name in branches:
        assert torch.equal(projections[name], complete[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_branch_depends_on_its_own_tap_alone_and_all_on_every_tap(variant: Variant) -> None:
    module, before = block(variant).eval(), taps()
    projections = module(before, BRANCHES)
    for name in CHANNELS:
        after = {**before, name: before[name]._replace(features=before[name].features + 1)}
        changed = {branch for branch, z in module(after, BRANCHES).items() if not torch.equal(z, projections[branch])}
        assert changed == {name, "all"}


@pytest.mark.parametrize(("variant", "width"), [("light", 5), ("paper", 10)])
def test_light_pools_by_average_and_paper_by_maximum(variant: Variant, width: int) -> None:
    branch = block(variant).eval().pool["layer2"]
    convolved = features = torch.randn(3, 4, 6, 5)
    for layer in branch:
        if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            break
        convolved = layer(convolved)
    assert convolved.shape == (3, width, 6, 5)
    expected = convolved.mean(dim=(2, 3)) if variant == "light" else convolved.amax(dim=(2, 3))
    torch.testing.assert_close(branch(features), expected)


def test_light_does_not_see_the_arrangement_within_a_tap_and_paper_does() -> None:
    features = torch.randn(3, 4, 6, 6)
    shuffled = features.flatten(2)[:, :, torch.randperm(36)].view_as(features)
    for variant, same in (("light", True), ("paper", False)):
        branch = block(variant).eval().pool["layer2"]
        assert torch.allclose(branch(shuffled), branch(features), atol=1e-5) is same


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_when_all_branches_are_asked(variant: Variant) -> None:
    module = block(variant)
    projections = module(taps(batch=8), BRANCHES)
    sum((z * torch.randn(z.shape)).sum() for z in projections.values()).backward()
    assert [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`variant` must be light or paper, got 'heavy'"):
        HierarchicalBlock(CHANNELS, variant="heavy")  # type: ignore[arg-type]


def learned(encoder: Encoder, head: HierarchicalBlock | PlainProjector, branch: str, views: Tensor) -> dict[str, bool]:
    """Which parts get a gradient from the loss of one branch, where the forward is the one that all branches share."""
    for module in (encoder, head):
        module.zero_grad(set_to_none=True)
    first, second = (head(encoder.taps(view), head.branches)[branch] for view in views)
    HierarchicalLoss({branch: 1.0})({branch: (first, second)}).total.backward()
    parts: dict[str, list[bool]] = {}
    for prefix, module in (("encoder", encoder.backbone), ("head", head)):
        for name, value in module.named_parameters():
            part = name.split(".")[0] if prefix == "encoder" else ".".join(name.split(".")[:2])
            parts.setdefault(f"{prefix}.{part}", []).append(value.grad is not None and bool(value.grad.any()))
    for part, reached in parts.items():
        assert all(reached) or not any(reached), f"{part} learns only in part"
    return {part: reached[0] for part, reached in parts.items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("branch", BRANCHES)
def test_the_loss_of_a_branch_teaches_its_stage_and_those_below_and_nothing_else(variant: Variant, branch: str) -> None:
    encoder = create_encoder(
        "resnet18", ImageFormat(64), backbone_options={"channels": [8, 16, 32, 64], "zero_init_last": False}
    )
    head = HierarchicalBlock(encoder.channels, width=8, projection=8, variant=variant)
    stages = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    reached = len(stages) if branch == ALL_TAPS else stages.index(branch) + 1
    expected = {f"encoder.{stage}": index < reached for index, stage in enumerate(stages)}
    for name in BRANCHES[:-1]:
        expected[f"head.pool.{name}"] = branch in (name, ALL_TAPS)
    for name in BRANCHES:
        expected[f"head.project.{name}"] = branch == name
    assert learned(encoder, head, branch, torch.randn(2, 6, 3, 64, 64)) == expected


def test_the_plain_projector_reads_and_teaches_through_the_deepest_tap() -> None:
    encoder = create_encoder(
        "resnet18", ImageFormat(64), backbone_options={"channels": [8, 16, 32, 64], "zero_init_last": False}
    )
    head = PlainProjector(encoder.channels, projection=8)
    assert head.branches == head.required_taps(head.branches) == ("layer4",)
    assert all(learned(encoder, head, "layer4", torch.randn(2, 6, 3, 64, 64)).values())
    every = taps()
    projections = PlainProjector(CHANNELS, projection=7)({"layer4": every["layer4"]}, ("layer4",))
    assert projections["layer4"].shape == (4, 7)
