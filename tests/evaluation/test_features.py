"""Signs of collapse on features whose rank and spread are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from lightly.utils.debug import std_of_l2_normalized

from jigsawssl.evaluation import effective_rank, feature_standard_deviation


def gaussian(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_orthonormal_features_have_full_rank() -> None:
    columns, _ = torch.linalg.qr(gaussian(50, 12))
    assert effective_rank(columns) == pytest.approx(12, abs=1e-3)


def test_rank_one_and_zero_features_have_rank_one() -> None:
    assert effective_rank(torch.outer(gaussian(50, 1)[:, 0], gaussian(8, 1)[:, 0])) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(10, 8)) == pytest.approx(1, abs=1e-3)


def test_effective_rank_agrees_with_the_formula() -> None:
    features = gaussian(40, 9) * torch.logspace(0, -3, 9)
    # The reference takes the singular values from the eigenvalues of the Gram matrix.
    values = np.sqrt(np.linalg.eigvalsh(features.double().numpy().T @ features.double().numpy()))
    shares = values / values.sum() + 1e-7
    assert effective_rank(features) == pytest.approx(np.prod(shares**-shares), rel=1e-6)


def test_effective_rank_ignores_scale_rotation_and_order() -> None:
    features = gaussian(40, 6)
    rotation, _ = torch.linalg.qr(gaussian(6, 6, seed=1))
    expected = effective_rank(features)
    for same in (features * 100, features @ rotation, features.flip(0), features.flip(1)):
        assert effective_rank(same) == pytest.approx(expected, rel=1e-5)


def test_standard_deviation_is_one_for_isotropic_and_zero_for_constant_features() -> None:
    assert feature_standard_deviation(gaussian(4000, 32)) == pytest.approx(1, abs=0.02)
    assert feature_standard_deviation(gaussian(1, 32).expand(10, 32)) == pytest.approx(0, abs=1e-12)
    # Two opposite points: each coordinate of size 1 / sqrt(D), unbiased deviation sqrt(2).
    assert feature_standard_deviation(torch.tensor([[1.0, 1.0], [-3.0, -3.0]])) == pytest.approx(math.sqrt(2))


def test_standard_deviation_is_that_of_lightly_scaled() -> None:
    features = gaussian(30, 16) + 0.5
    expected = float(std_of_l2_normalized(features)) * 4
    assert feature_standard_deviation(features) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("function", [effective_rank, feature_standard_deviation])
def test_errors(function: Callable[[torch.Tensor], float]) -> None:
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        function(torch.ones(4))
    with pytest.raises(ValueError, match=r"must be finite"):
        function(torch.full((4, 3), float("nan")))
    with pytest.raises(ValueError, match=r"got shape \(0, 3\)"):
        function(torch.ones(0, 3))
