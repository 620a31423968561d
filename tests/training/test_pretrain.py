from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from jigsawssl.augment import JigsawViews
from jigsawssl.losses import HierarchicalLoss
from jigsawssl.models import HierarchicalBlock, PlainProjector, create_encoder
from jigsawssl.training.optim import DEFAULT_WEIGHT_DECAY, autocast_precision, create_optimizer, create_scheduler
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.types import ImageFormat, UserError, Views


def build(grids: tuple[int, ...] = (4, 2, 1), share: float = 1.0, schedule: str = "joint") -> JigsawPretraining:
    torch.manual_seed(0)
    encoder = create_encoder(
        "resnet18", ImageFormat(32, channels=1), stem_stride=2, backbone_options={"channels": [16, 16, 32, 32]}
    )
    block: HierarchicalBlock | PlainProjector = PlainProjector(encoder.channels, projection=16)
    weights = [1.0]
    if grids:
        block, weights = HierarchicalBlock(encoder.channels, width=16, projection=16), [1.0, 1.0, 1.0, 2.0]
    loss = HierarchicalLoss(dict(zip(block.branches, weights, strict=True)))
    return JigsawPretraining(
        encoder, block=block, views=JigsawViews(size=32, grids=grids, share=share), loss=loss, schedule=schedule
    )


def draw(module: JigsawPretraining, count: int = 12) -> Views:
    images = torch.randint(256, (count, 1, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return module.views(images)


def test_joint_and_progressive_agree_on_the_losses_of_a_batch() -> None:
    module = build((4, 2, 2))
    views = draw(module)
    together = module.losses(views)
    apart = {name: module.losses(views, [name]).branches[name] for name in module.block.branches}
    assert list(together.branches) == list(apart)
    for name, loss in apart.items():
        torch.testing.assert_close(together.branches[name], loss)
    expected = sum(module.loss.weights[name] * loss for name, loss in apart.items())
    torch.testing.assert_close(together.total, expected)


def test_shared_forwards_equal_one_forward_per_step() -> None:
    module = build((4, 2, 1))
    views = draw(module)
    firsts = (views.jigsaw[0], views.jigsaw[1], views.original, views.original)
    pairs = module.pairs(views, module.block.branches)
    for name, first in zip(module.block.branches, firsts, strict=True):
        for image, projection in zip((first, views.distorted), pairs[name], strict=True):
            alone = module.block(module.encoder.taps(image), [name])[name]
            torch.testing.assert_close(projection, alone)


@pytest.mark.parametrize("grids", [(4, 2, 2), (4, 2, 1), (1, 1, 1)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_gradient_view_by_view_is_the_plain_one(grids: tuple[int, int, int], share: float) -> None:
    plain, sparing = build(grids, share).double(), build(grids, share).double()
    views = draw(build(grids, share))
    views = Views(views.original.double(), views.distorted.double(), tuple(view.double() for view in views.jigsaw))
    for _ in range(2):
        expected, found = plain.losses(views), sparing.losses_view_by_view(views)
        expected.total.backward()
        found.total.backward()
        torch.testing.assert_close(found.total, expected.total)
        torch.testing.assert_close(found.branches, {name: t.detach() for name, t in expected.branches.items()})
    for (name, one), other in zip(plain.named_parameters(), sparing.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-5)
    # Running statistics too, which depend on the order of the forwards.
    for one, other in zip(plain.buffers(), sparing.buffers(), strict=True):
        torch.testing.assert_close(other, one)
        assert plain.loss.diagnostics(expected.pairs) == pytest.approx(plain.loss.diagnostics(found.pairs))


def test_a_step_view_by_view_holds_one_graph_besides_that_of_the_distorted_view() -> None:
    class Saved:
        """What a forward keeps for its backward."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor, self.forward = tensor, len(alive)

    module = build((4, 2, 2))
    alive: list[list[int]] = []
    kept: weakref.WeakSet[Saved] = weakref.WeakSet()

    def starts(layer: nn.Module, inputs: object) -> None:
        alive.append(sorted({saved.forward for saved in kept}))

    def pack(tensor: torch.Tensor) -> Saved:
        saved = Saved(tensor)
        kept.add(saved)
        return saved

    module.encoder.backbone.conv1.register_forward_pre_hook(starts)  # type: ignore[union-attr]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        module.losses_view_by_view(draw(module)).total.backward()
    # The first forward is that of X''; when another starts, none but the first is held.
    assert len(alive) == 5 and alive[0] == [] and all(held == [1] for held in alive[1:])


def test_gradients_reach_everything_that_a_loss_scale_multiplies() -> None:
    one, other = build().double(), build().double()
    views = draw(build())
    views = Views(views.original.double(), views.distorted.double(), tuple(view.double() for view in views.jigsaw))
    one.losses_view_by_view(views).total.backward()
    (3 * other.losses_view_by_view(views).total).backward()
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(3 * first.grad, second.grad, rtol=1e-4, atol=1e-5)  # type: ignore[operator]


def test_a_view_in_order_costs_no_forward_of_its_own() -> None:
    def forwards(grids: tuple[int, ...]) -> int:
        module = build(grids)
        calls: list[int] = []
        module.encoder.backbone.conv1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
        module.losses(draw(module))
        return len(calls)

    assert [forwards(grids) for grids in ((), (1, 1, 1), (4, 2, 1), (8, 4, 2))] == [2, 2, 4, 5]


def test_a_share_of_the_batch_is_compared_with_its_own_images() -> None:
    module = build((4, 2, 1), share=0.5).eval()
    views = draw(module)
    assert [len(view) for view in views.jigsaw] == [6, 6, 12]
    pairs = module.pairs(views, module.block.branches)
    whole = module.block(module.encoder.taps(views.distorted), module.block.branches)
    for name, count in zip(module.block.branches, (6, 6, 12, 12), strict=True):
        torch.testing.assert_close(pairs[name][1], whole[name][:count])
        assert len(pairs[name][0]) == count


@pytest.mark.parametrize("grids", [(), (4, 2, 1), (8, 4, 2)])
def test_every_parameter_learns(grids: tuple[int, ...]) -> None:
    module = build(grids)
    for parameter in module.parameters():
        if parameter.ndim == 1:  # timm starts the last norm of each block at 0, which silences the block at first
            nn.init.uniform_(parameter, 0.5, 1.5)
    module.losses(draw(module)).total.backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias in front of a batch norm is cancelled by it.
    assert all(name.endswith("bias") for name in silent), silent


def test_a_branch_without_weight_is_not_computed() -> None:
    module = build((4, 2, 1))
    module.loss.weights["layer2"] = 0.0
    assert "layer2" not in module.losses(draw(module)).branches


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_optimizers_spare_norms_and_biases_and_step(name: str) -> None:
    encoder, head = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 2)
    optimizer = create_optimizer(name, {"encoder": (encoder, 1e-3), "head": (head, 1e-2)})
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == {"encoder/decay", "encoder/no_decay", "head/decay", "head/no_decay"}
    assert groups["head/decay"]["weight_decay"] == DEFAULT_WEIGHT_DECAY[name]
    assert groups["head/no_decay"]["weight_decay"] == 0 and groups["head/decay"]["lr"] == 1e-2
    assert {id(p) for group in groups.values() for p in group["params"]} == {
        id(p) for module in (encoder, head) for p in module.parameters()
    }
    before = head.weight.detach().clone()
    head(encoder(torch.randn(2, 1, 3, 3)).flatten(1)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(head.weight, before)


def test_the_rate_rises_and_falls() -> None:
    optimizer = create_optimizer("sgd", {"all": (nn.Linear(2, 2), 1.0)})
    scheduler = create_scheduler(optimizer, steps=100, warmup=0.1)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(1) and 5 <= top <= 12
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.01


def test_precision_by_name() -> None:
    cpu = torch.device("cpu")
    assert [autocast_precision(name, cpu) for name in ("bf16", "32")] == ["bf16-mixed", "32-true"]
    assert autocast_precision("auto", cpu) in ("bf16-mixed", "32-true")
    assert autocast_precision("16", torch.device("cuda")) == "16-mixed"
    with pytest.raises(UserError, match=r"`precision` \(16\) must be auto, bf16 or 32 on a CPU"):
        autocast_precision("16", cpu)
