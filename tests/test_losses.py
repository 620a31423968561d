"""The hierarchical loss against an independent float64 reference, and what it does not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jigsawssl.losses import BarlowTwins, HierarchicalLoss

WEIGHTS = {"layer2": 1.0, "layer3": 0.5, "layer4": 3.0, "all": 2.0}
EPSILON = 1e-5
"""Added to each variance, as batch normalisation does."""


def barlow_twins(first: np.ndarray, second: np.ndarray, off_diagonal: float = 5e-3) -> float:
    """Zbontar et al. 2021, equations 1 and 2, entry by entry in float64."""

    def standardise(z: np.ndarray) -> np.ndarray:
        return (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + EPSILON)

    a, b = standardise(np.asarray(first, dtype=np.float64)), standardise(np.asarray(second, dtype=np.float64))
    loss = 0.0
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            correlation = sum(a[k, i] * b[k, j] for k in range(len(a))) / len(a)
            loss += (1 - correlation) ** 2 if i == j else off_diagonal * correlation**2
    return loss


def barlow_twins_in_torch(first: Tensor, second: Tensor, off_diagonal: float = 5e-3) -> Tensor:
    """The same for autograd."""
    a, b = ((z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + EPSILON).sqrt() for z in (first, second))
    matrix = torch.einsum("ki,kj->ij", a, b) / len(a)
    target = torch.eye(len(matrix), dtype=matrix.dtype)
    factor = target + off_diagonal * (1 - target)
    return (factor * (target - matrix) ** 2).sum()


def pair(batch: int = 12, width: int = 5, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(batch, width, generator=generator)
    return first, first + noise * torch.randn(batch, width, generator=generator)


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    return {name: pair(seed=index) for index, name in enumerate(WEIGHTS)}


@pytest.mark.parametrize("off_diagonal", [0.0, 5e-3, 1.0])
def test_values_agree_with_the_reference(off_diagonal: float) -> None:
    given = pairs()
    terms = HierarchicalLoss(WEIGHTS, objective=BarlowTwins(off_diagonal=off_diagonal))(given)
    expected = {name: barlow_twins(a.numpy(), b.numpy(), off_diagonal) for name, (a, b) in given.items()}
    assert {name: term.item() for name, term in terms.branches.items()} == pytest.approx(expected, rel=1e-5)
    assert terms.total.item() == pytest.approx(sum(WEIGHTS[name] * value for name, value in expected.items()), rel=1e-5)


def test_the_published_trade_off_is_the_default() -> None:
    a, b = pair()
    terms = HierarchicalLoss({"all": 1.0})({"all": (a, b)})
    assert terms.total.item() == pytest.approx(barlow_twins(a.numpy(), b.numpy(), off_diagonal=5e-3), rel=1e-5)


def test_gradients_agree_with_the_reference() -> None:
    given = {name: (a.requires_grad_(), b.requires_grad_()) for name, (a, b) in pairs().items()}
    HierarchicalLoss(WEIGHTS)(given).total.backward()
    for name, (a, b) in given.items():
        reference = [z.detach().double().requires_grad_() for z in (a, b)]
        value = barlow_twins_in_torch(*reference)
        assert value.item() == pytest.approx(barlow_twins(a.detach().numpy(), b.detach().numpy()), rel=1e-9)
        (WEIGHTS[name] * value).backward()
        for z, expected in zip((a, b), reference, strict=True):
            torch.testing.assert_close(z.grad.double(), expected.grad, atol=1e-6, rtol=1e-4)


def test_total_is_the_weighted_sum_and_branches_are_unweighted() -> None:
    given = pairs()
    terms = HierarchicalLoss(WEIGHTS)(given)
    plain = HierarchicalLoss(dict.fromkeys(WEIGHTS, 1.0))(given)
    assert terms.branches == plain.branches
    torch.testing.assert_close(terms.total, sum(WEIGHTS[name] * value for name, value in terms.branches.items()))


def test_a_subset_of_the_branches_counts_alone() -> None:
    given = pairs()
    loss = HierarchicalLoss(WEIGHTS)
    complete = loss(given)
    terms = loss({"layer4": given["layer4"]})
    assert list(terms.branches) == ["layer4"]
    torch.testing.assert_close(terms.total, 3 * complete.branches["layer4"])


def test_a_weight_of_zero_silences_a_branch() -> None:
    a, b = (z.requires_grad_() for z in pair())
    terms = HierarchicalLoss({"layer4": 0.0})({"layer4": (a, b)})
    terms.total.backward()
    assert terms.branches["layer4"] > 0
    assert terms.total == 0
    assert not a.grad.any()


def test_the_loss_does_not_see_shift_scale_order_and_which_view_is_first() -> None:
    loss = HierarchicalLoss({"all": 1.0})
    a, b = pair()
    before = loss({"all": (a, b)}).total
    order = torch.randperm(len(a))
    for other in [(a * 3 - 2, b * torch.arange(1.0, 6.0) + 9), (-a, -b), (a[order], b[order]), (b, a)]:
        torch.testing.assert_close(loss({"all": other}).total, before, atol=1e-3, rtol=1e-3)
    assert (loss({"all": (a, -b)}).total - before).abs() > 1


def test_identical_decorrelated_projections_cost_nothing() -> None:
    hadamard = torch.tensor([[1.0]])
    for _ in range(3):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    z = hadamard[:, 1:]
    loss = HierarchicalLoss({"all": 1.0}, objective=BarlowTwins(off_diagonal=1.0))
    assert loss({"all": (z, z)}).total.item() == pytest.approx(0, abs=1e-8)
    assert loss({"all": (z, -z)}).total.item() == pytest.approx(4 * 7, rel=1e-4)
    assert loss({"all": (z, z.roll(1, dims=1))}).total.item() == pytest.approx(2 * 7, rel=1e-4)


def test_collapsed_projections_cost_one_for_each_dimension() -> None:
    constant = torch.full((8, 5), 0.3)
    assert HierarchicalLoss({"all": 1.0})({"all": (constant, constant)}).total.item() == pytest.approx(5, rel=1e-4)


def test_bfloat16_projections_are_correlated_in_float32_under_autocast() -> None:
    a, b = (z.bfloat16() for z in pair(batch=64, width=32))
    loss = HierarchicalLoss({"all": 1.0})
    expected = loss({"all": (a.float(), b.float())})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = loss({"all": (a, b)})
    assert (terms.total.dtype, terms.branches["all"].dtype) == (torch.float32, torch.float32)
    assert torch.equal(terms.total, expected.total)
    assert terms.total.item() == pytest.approx(barlow_twins(a.float().numpy(), b.float().numpy()), rel=1e-5)


def test_gradient_reaches_bfloat16_projections() -> None:
    a, b = (z.bfloat16().requires_grad_() for z in pair())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        HierarchicalLoss({"all": 1.0})({"all": (a, b)}).total.backward()
    assert a.grad.dtype == torch.bfloat16
    assert a.grad.any()
    assert math.isfinite(b.grad.float().sum())


@pytest.mark.parametrize("names", [(), ("layer9",), ("layer4", "layer9")])
def test_no_pair_or_a_branch_without_a_weight_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must name some of the branches layer2, layer3, layer4, all") as caught:
        HierarchicalLoss(WEIGHTS)({name: pair() for name in names})
    assert f"`pairs` ({', '.join(names)})" in str(caught.value)


def test_diagnostics_describe_the_matrix_that_the_loss_is_made_of() -> None:
    a, b = pair(batch=40, width=6)
    found = HierarchicalLoss({"all": 1.0}).diagnostics({"all": (a, b)})
    scale = [(z - z.mean(dim=0)) / (z.var(dim=0, unbiased=False) + EPSILON).sqrt() for z in (a, b)]
    matrix = (torch.einsum("ki,kj->ij", *scale) / len(a)).numpy()
    outside = matrix[~np.eye(6, dtype=bool)]
    assert found["diagonal_all"] == pytest.approx(np.diag(matrix).mean(), rel=1e-5)
    assert found["off_diagonal_all"] == pytest.approx(np.sqrt(np.mean(outside**2)), rel=1e-5)
    redundancy = BarlowTwins(off_diagonal=1.0)(a, b) - BarlowTwins(off_diagonal=0.0)(a, b)
    assert redundancy.item() == pytest.approx(30 * found["off_diagonal_all"] ** 2, rel=1e-4)


def test_another_objective_takes_the_place_of_barlow_twins() -> None:
    class Distance:
        def __call__(self, z_a: Tensor, z_b: Tensor) -> Tensor:
            return (z_a - z_b).square().mean()

        def diagnostics(self, z_a: Tensor, z_b: Tensor) -> dict[str, float]:
            return {"distance": float((z_a - z_b).abs().mean())}

    a, b = pair()
    loss = HierarchicalLoss({"layer4": 2.0}, objective=Distance())
    assert loss({"layer4": (a, b)}).total.item() == pytest.approx(2 * (a - b).square().mean().item())
    assert loss.diagnostics({"layer4": (a, b)}) == {"distance_layer4": pytest.approx((a - b).abs().mean().item())}
