"""Stages of a network: which weights belong to them, and what freezing them leaves untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from jigsawssl.models import Classifier, Encoder, create_encoder
from jigsawssl.training.finetune import trained_stages
from jigsawssl.types import ImageFormat, UserError

BACKBONES = ("resnet18", "densenet121", "efficientnet_b0", "convnext_atto", "compact_cnn", "vit_tiny_patch16_224")


def build(backbone: str, attention: str = "none") -> Encoder:
    torch.manual_seed(0)
    options = {"patch_size": 8} if backbone.startswith("vit") else {}
    return create_encoder(backbone, ImageFormat(64, channels=1), backbone_options=options, attention=attention)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_belongs_to_one_stage(backbone: str) -> None:
    encoder = build(backbone, "none" if backbone.startswith("vit") else "cbam")
    held = [p for modules in encoder.by_stage().values() for m in modules for p in m.parameters(recurse=False)]
    assert len(held) == len({id(p) for p in held}) == len(list(encoder.parameters()))


@pytest.mark.parametrize("backbone", BACKBONES[:-1])
def test_a_stage_reaches_the_taps_from_its_own_on(backbone: str) -> None:
    encoder = build(backbone).train()
    for depth, name in enumerate(encoder.tap_names):
        encoder.zero_grad()
        encoder.taps(torch.rand(4, 1, 64, 64))[name].features.square().mean().backward()
        stage_of_tap = 2 + depth
        for stage, modules in encoder.by_stage().items():
            gradients = [p.grad is not None for m in modules for p in m.parameters(recurse=False)]
            assert all(gradients) if stage <= stage_of_tap else not any(gradients), (name, stage)


@pytest.mark.parametrize("backbone", BACKBONES[:-1])
@pytest.mark.parametrize("train", ["head", "from:stage3", "to:stage2"])
def test_what_is_frozen_does_not_move(backbone: str, train: str) -> None:
    model = Classifier(build(backbone, "se"), 3)
    encoder = model.encoder
    stages = trained_stages(train, list(encoder.by_stage()))
    encoder.train_only(stages)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        model.train()  # as a training loop does after each validation
        model(torch.rand(4, 1, 64, 64)).square().mean().backward()
        optimizer.step()
    frozen = {id(m) for stage, members in encoder.by_stage().items() if stage not in stages for m in members}
    still = {name for name, module in model.named_modules() if id(module) in frozen}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert still and "head.weight" in moved
    assert not [name for name in moved if name.rpartition(".")[0] in still]
    if stages:
        norms = [m for s in stages for m in encoder.by_stage()[s] if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert all(m.training for m in norms)


def test_freezing_can_be_taken_back() -> None:
    encoder = build("resnet18").train()
    encoder.train_only([])
    assert not any(p.requires_grad for p in encoder.parameters())
    assert copy.deepcopy(encoder).train().backbone.layer4[0].bn1.training is False  # type: ignore[union-attr, index]
    encoder.train_only(list(encoder.by_stage()))
    assert all(p.requires_grad for p in encoder.parameters())
    assert all(module.training for module in encoder.modules())


@pytest.mark.parametrize("train", ["none", "from:4", "from:stage7", "to:stagex", "stage3"])
def test_mistakes_are_named(train: str) -> None:
    with pytest.raises(UserError, match=r"`train` \(.*\) must be all, head, from:STAGE or to:STAGE"):
        trained_stages(train, [0, 1, 2, 3, 4])
    with pytest.raises(UserError, match=r"`train` \(stage9\) must be a stage of resnet18; it has stage0, stage1"):
        build("resnet18").train_only([9])
