"""Signs of collapse that need no labels: directions that features use, their spread, and how far two views agree."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def effective_rank(features: Tensor) -> float:
    """RankMe: the number of directions that the features use, between 1 and ``min(N, D)``.

    With singular values ``s``, ``p = s / sum(s) + 1e-7`` and the result is ``exp(-sum(p * log(p)))``. Features are
    not centred, as in the paper, so a constant offset counts as one direction. The value is bounded by the number
    of rows: compare only values of the same ``N`` (the paper uses 25,600 images).

    Args:
        features: float ``(N, D)``, any device; computed in float64 on the CPU.

    Raises:
        ValueError: another shape, no rows, or values that are not finite.

    Source: Garrido et al., "RankMe", ICML 2023, equation 1 and its epsilon of 1e-7 (arXiv:2210.02885).

    >>> round(effective_rank(torch.eye(4)), 3), round(effective_rank(torch.ones(8, 4)), 3)
    (4.0, 1.0)
    """
    values = torch.linalg.svdvals(_checked(features, least=1))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def feature_standard_deviation(features: Tensor) -> float:
    """Spread of the L2-normalised features over the images, scaled so that 1 is healthy and 0 is collapse.

    The standard deviation (unbiased) of each dimension, averaged over the dimensions, times ``sqrt(D)``. Isotropic
    zero-mean features have ``1 / sqrt(D)`` before the scaling; constant features have 0.

    Args:
        features: float ``(N, D)``, ``N >= 2``, any device.

    Raises:
        ValueError: another shape, fewer than two rows, or values that are not finite.

    Source: Chen and He, "SimSiam", CVPR 2021, section 4.1 (arXiv:2011.10566). It is ``sqrt(D)`` times
    ``lightly.utils.debug.std_of_l2_normalized``, whose docstring gives the same two limits.

    >>> features = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    >>> round(feature_standard_deviation(features), 1), feature_standard_deviation(torch.ones(8, 16))
    (1.0, 0.0)
    """
    normalised = F.normalize(_checked(features, least=2), dim=1)
    return float(normalised.std(dim=0).mean()) * math.sqrt(normalised.shape[1])


def _checked(features: Tensor, least: int) -> Tensor:
    if features.ndim != 2 or features.shape[0] < least or features.shape[1] < 1:
        raise ValueError(f"`features` must be (N >= {least}, D >= 1), got shape {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError("`features` must be finite, got NaN or infinity: the encoder diverged")
    return features.detach().cpu().double()
