"""Attention against slow loops, and the promise that nothing changes before anything is learned."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jigsawssl import load_encoder, save_encoder
from jigsawssl.checkpoint import resolve_encoder
from jigsawssl.models import Encoder, create_encoder
from jigsawssl.models.attention import GlobalAttention, LocalAttention, StageAttention
from jigsawssl.types import ATTENTIONS, ImageFormat, UserError

BACKBONES = ("resnet18", "densenet121", "efficientnet_b0", "convnext_atto")


def build(backbone: str, attention: str, stages: tuple[int, ...] = (3, 4), size: int = 64) -> Encoder:
    torch.manual_seed(0)
    return create_encoder(backbone, ImageFormat(size, channels=1), attention=attention, attention_stages=stages).eval()


def wake(encoder: Encoder) -> None:
    """Let attention matter, also inside blocks that begin as the identity."""
    for module in encoder.attention.values():
        torch.nn.init.ones_(module.scale)
    for module in encoder.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.ones_(module.weight)


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_adding_attention_to_weights_changes_nothing_at_first(backbone: str, attention: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "plain.safetensors", build(backbone, "none"))
    plain = load_encoder(tmp_path / "plain.safetensors")
    attended, trained = resolve_encoder(
        str(tmp_path / "plain.safetensors"), in_channels=1, size=None, attention=attention, attention_stages=(3, 4)
    )
    images = torch.rand(2, 1, 64, 64)
    assert trained and len(attended.attention) == 2
    with torch.no_grad():
        assert torch.equal(attended.eval()(images), plain(images))
    # The contract of the taps is that of the plain network.
    assert (attended.channels, attended.reductions, attended.features) == (
        plain.channels,
        plain.reductions,
        plain.features,
    )
    for name, tap in attended.taps(images).items():
        side = 64 // tap.reduction
        assert tap.features.shape == (2, attended.channels[name], side, side)


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
def test_it_learns_and_travels(attention: str, tmp_path: Path) -> None:
    encoder = build("resnet18", attention)
    wake(encoder)
    images = torch.rand(4, 1, 64, 64)
    encoder(images).square().mean().backward()
    for name, parameter in encoder.attention.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    silent = copy.deepcopy(encoder)
    for module in silent.attention.values():
        torch.nn.init.zeros_(module.scale)
    with torch.no_grad():
        assert not torch.allclose(encoder(images), silent(images), atol=1e-4)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert loaded.spec == encoder.spec
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), encoder(images), rtol=1e-4, atol=1e-5)


def test_global_attention_is_a_sum_over_all_positions() -> None:
    torch.manual_seed(0)
    attention = GlobalAttention(64, (3, 4)).eval().requires_grad_(False)
    features = torch.randn(2, 64, 3, 4)
    q, k, v = attention.qkv(attention.norm(features)).view(2, 3, 2, 32, 12).unbind(1)
    bias = attention.position.get_bias()[0]
    expected, received = torch.zeros(2, 64, 12), torch.zeros(2, 12)
    for image in range(2):
        for head in range(2):
            for to in range(12):
                scores = [
                    float(q[image, head, :, to] @ k[image, head, :, at]) / math.sqrt(32) + float(bias[head, to, at])
                    for at in range(12)
                ]
                weights = torch.tensor(scores).softmax(dim=0)
                expected[image, head * 32 : head * 32 + 32, to] = v[image, head] @ weights
                received[image] += weights / (2 * 12)
    expected = attention.projection(expected.view(2, 64, 3, 4))
    torch.testing.assert_close(attention(features), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.received(features).flatten(1), received, rtol=1e-4, atol=1e-6)
    assert attention.received(features).sum(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_the_bias_knows_only_how_far_and_where_positions_are_apart() -> None:
    bias = GlobalAttention(64, (4, 4)).eval().position.get_bias()[0].view(2, 4, 4, 4, 4)
    torch.testing.assert_close(bias[:, 0, 0, 1, 2], bias[:, 2, 1, 3, 3])
    assert not torch.allclose(bias[:, 0, 0, 1, 2], bias[:, 1, 2, 0, 0])


def test_local_attention_sees_its_block_and_the_halo_alone() -> None:
    torch.manual_seed(0)
    attention = LocalAttention(32, (8, 8)).eval()
    assert (attention.attention.block_size, attention.attention.halo_size) == (4, 2)
    # One position of a channel-wise constant norm would move all: leave the norm out.
    attention.norm = torch.nn.Identity()  # type: ignore[assignment]
    features = torch.randn(1, 32, 8, 8, requires_grad=True)
    attention(features)[0, :, 0, 0].sum().backward()
    assert features.grad is not None
    seen = features.grad[0].abs().sum(dim=0) > 0
    assert seen[:6, :6].all() and not seen[6:].any() and not seen[:, 6:].any()


def test_local_attention_and_its_map_against_loops() -> None:
    torch.manual_seed(0)
    attention = LocalAttention(16, (4, 4)).eval().requires_grad_(False)
    inner = attention.attention
    block, halo, window = inner.block_size, inner.halo_size, inner.win_size
    assert (block, halo, window) == (2, 1, 4)
    features = torch.randn(2, 16, 4, 4)
    x = attention.norm(features)
    q, kv = inner.q(x), torch.nn.functional.pad(inner.kv(x), [halo] * 4)
    expected, received = torch.zeros(2, 16, 4, 4), torch.zeros(2, 6, 6)
    for image in range(2):
        for top in range(0, 4, block):
            for left in range(0, 4, block):
                near = kv[image, :, top : top + window, left : left + window].flatten(1)
                keys, values = near[: inner.dim_head_qk], near[inner.dim_head_qk :]
                queries = q[image, :, top : top + block, left : left + block].flatten(1).T
                relative = inner.pos_embed(queries[None, None])[0, 0]
                for number, query in enumerate(queries):
                    weights = ((query @ keys) * inner.scale + relative[number]).softmax(dim=0)
                    row, column = top + number // block, left + number % block
                    expected[image, :, row, column] = values @ weights
                    part = received[image, top : top + window, left : left + window]
                    part += weights.view(window, window) / 16
    torch.testing.assert_close(attention(features), attention.projection(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attention.received(features), received[:, 1:5, 1:5], rtol=1e-4, atol=1e-6)


def spatial_gate(module: StageAttention, features: Tensor) -> Tensor:
    attended = module.attention.channel(features)  # type: ignore[union-attr, operator]
    return module.attention(features)[:, 0] / attended[:, 0]  # type: ignore[operator]


def test_maps_say_where_it_attends() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 32, 8, 8) + 0.1
    cbam = StageAttention("cbam", 32, (8, 8)).eval()
    found = cbam.map(features)
    assert found is not None
    torch.testing.assert_close(found, spatial_gate(cbam, features), rtol=1e-4, atol=1e-5)
    assert StageAttention("se", 32, (8, 8)).map(features) is None
    for kind in ("ga", "la", "ela"):
        found = StageAttention(kind, 32, (8, 8)).eval().map(features)
        assert found is not None and found.shape == (2, 8, 8) and bool((found >= 0).all())


def test_another_image_size_keeps_the_weights_of_global_attention(tmp_path: Path) -> None:
    encoder = build("resnet18", "ga")
    wake(encoder)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    larger, _ = resolve_encoder(str(tmp_path / "encoder.safetensors"), in_channels=1, size=96)
    assert larger.eval()(torch.rand(1, 1, 96, 96)).shape == (1, encoder.features)
    assert encoder(torch.rand(1, 1, 96, 96)).shape == (1, encoder.features)


@pytest.mark.parametrize(
    ("backbone", "attention", "stages", "message"),
    [
        ("resnet18", "sa", (4,), "`attention` (sa) must be one of none, se"),
        ("resnet18", "ga", (5,), "`attention_stages` ([5]) must be stages of resnet18; it has 0, 1, 2, 3, 4"),
        ("resnet18", "ga", (), "`attention_stages` ([]) must be stages"),
        ("vit_tiny_patch16_224", "ga", (4,), "it has none that attention can be added to"),
    ],
)
def test_mistakes_are_named(backbone: str, attention: str, stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        build(backbone, attention, stages)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "options"), [("vit_tiny_patch16_224", {"patch_size": 8}), ("swin_tiny_patch4_window7_224", {})]
)
def test_transformers_are_encoders_too(backbone: str, options: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = create_encoder(backbone, ImageFormat(64, channels=1), backbone_options=options).eval()
    images = torch.rand(2, 1, 64, 64)
    taps = encoder.taps(images)
    assert len(taps) == 3 and encoder.isotropic == (backbone[:3] == "vit")
    for name, tap in taps.items():
        assert tap.features.shape == (2, encoder.channels[name], 64 // tap.reduction, 64 // tap.reduction)
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(tmp_path / "encoder.safetensors")(images), encoder(images))


@pytest.mark.parametrize("kind", ["ga", "la", "ela", "cbam"])
def test_maps_do_not_depend_on_the_order_in_memory(kind: str) -> None:
    torch.manual_seed(0)
    model = create_encoder(
        "resnet18",
        ImageFormat(64, channels=1),
        backbone_options={"channels": [16, 16, 64, 64]},
        attention=kind,
        attention_stages=(3, 4),
    ).eval()
    features = {name: torch.rand(2, width, 8, 8) for name, width in (("stage3", 64), ("stage4", 64))}
    before = {name: model.attention[name].map(features[name]) for name in model.attention}  # type: ignore[operator]
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, expected in before.items():
        found = model.attention[name].map(features[name].to(memory_format=torch.channels_last))  # type: ignore[operator]
        torch.testing.assert_close(found, expected)
