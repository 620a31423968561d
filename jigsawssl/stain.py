"""Colours of stained tissue brought to a reference, a batch at a time, on the device that the images are on."""

import torch
from torch import Tensor

from .types import STAINS

MACENKO_TARGET = (0.5626, 0.7201, 0.4062, 0.2159, 0.8012, 0.5581, 1.9705, 1.0308)
"""Reference of Macenko et al.'s own program: optical density of haematoxylin and of eosin in red, green and blue, and
the 99th percentile of the concentration of each."""

_LIGHT = 240.0  # transmitted light, of 255
_TRANSPARENT = 0.15  # optical density below which a pixel is background
_LEAST_TISSUE = 100  # pixels, fewer of which say nothing about a stain
_VALUES = 1 << 22  # that are worked on at a time; sorting takes no more than 2^24

# Ruderman et al. 1998: RGB to cone responses, and their logarithms to decorrelated channels.
_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_LAB = ((3**-0.5, 3**-0.5, 3**-0.5), (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))


@torch.no_grad()
def normalize_stain(images: Tensor, method: str, target: tuple[float, ...] = ()) -> Tensor:
    """Bring stained tissue to the colours of a reference.

    Args:
        images: uint8 ``(B, 3, H, W)``, RGB.
        method: ``macenko`` (Macenko et al. 2009: stain vectors by the singular plane of the optical density, 1st and
            99th percentile of the angle in it), ``reinhard`` (Reinhard et al. 2001: mean and standard deviation of each
            channel of Ruderman's lαβ) or ``none``.
        target: for ``macenko`` as :data:`MACENKO_TARGET`, the default; for ``reinhard`` three means and three standard
            deviations, as :func:`reinhard_statistics` gives them.

    Returns:
        uint8 ``(B, 3, H, W)``. Images with too little tissue to tell its stain are returned as they are.

    Raises:
        ValueError: for another method, type or shape.

    >>> images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    >>> normalize_stain(images, "macenko").shape
    torch.Size([2, 3, 32, 32])
    """
    if method == "none":
        return images
    if method not in STAINS:
        raise ValueError(f"`stain` ({method}) must be one of {', '.join(STAINS)}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"`images` must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    some = max(1, _VALUES // max(1, images[0].numel()))
    change = _macenko if method == "macenko" else _reinhard
    return torch.cat([change(part, target) for part in images.split(some)])


def _macenko(images: Tensor, target: tuple[float, ...]) -> Tensor:
    reference = torch.tensor(target or MACENKO_TARGET, device=images.device)
    density = -((images.flatten(2).float() + 1) / _LIGHT).log()  # (B, 3, N)
    # Pure black is no tissue but the margin of an image that was fitted to a square.
    margin = (images.flatten(2) == 0).all(dim=1)
    tissue = (density >= _TRANSPARENT).all(dim=1) & ~margin
    count = tissue.sum(dim=1)
    weights = (tissue / (count - 1).clamp_min(1)[:, None])[:, None]
    mean = (density * tissue[:, None]).sum(dim=2, keepdim=True) / count.clamp_min(1)[:, None, None]
    centred = density - mean
    covariance = (centred * weights) @ centred.mT
    plane = torch.linalg.eigh(covariance.double()).eigenvectors[..., 1:].float()  # (B, 3, 2), the larger two
    # Signs of eigenvectors are arbitrary, and densities are positive.
    plane = plane * torch.where(plane.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    across, along = (plane.mT @ density).unbind(1)
    angle = torch.atan2(along, across).masked_fill(~tissue, float("nan"))
    usable = count >= _LEAST_TISSUE
    angle[~usable] = 0.0
    low, high = (angle.nanquantile(share, dim=1) for share in (0.01, 0.99))
    ends = torch.stack([torch.stack([a.cos(), a.sin()], 1) for a in (low, high)], 2)  # (B, 2, 2), one a column
    stains = plane @ ends
    # Haematoxylin absorbs more red than eosin does.
    swapped = stains[:, 0, 0] < stains[:, 0, 1]
    stains = torch.where(swapped[:, None, None], stains.flip(2), stains)
    amounts = torch.linalg.pinv(stains) @ density
    of_image = amounts.masked_fill(margin[:, None], float("nan"))
    of_image[~usable] = 0.0
    most = of_image.nanquantile(0.99, dim=2, keepdim=True).clamp_min(1e-6)
    wanted = reference[:6].view(2, 3).T @ (amounts * (reference[6:].view(1, 2, 1) / most))
    light = (_LIGHT * (-wanted).exp()).masked_fill(margin[:, None], 0)
    result = light.clamp_(0, 255).round_().to(torch.uint8).view_as(images)
    return torch.where(usable[:, None, None, None], result, images)


def _to_lab(images: Tensor) -> Tensor:
    pixels = images.flatten(2).float() / 255
    lms = torch.tensor(_LMS, device=images.device) @ pixels
    # The darkest grey above black, as black has no logarithm.
    return torch.tensor(_LAB, device=images.device) @ lms.clamp_min(1 / 255).log10()


def reinhard_statistics(images: Tensor) -> tuple[float, ...]:
    """Mean over images of the mean and of the standard deviation of l, α and β: a target for ``reinhard``.

    Args:
        images: uint8 ``(B, 3, H, W)``.

    >>> len(reinhard_statistics(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)))
    6
    """
    lab = _to_lab(images)
    return tuple(torch.cat([lab.mean(dim=2).mean(dim=0), lab.std(dim=2).mean(dim=0)]).tolist())


def _reinhard(images: Tensor, target: tuple[float, ...]) -> Tensor:
    if len(target) != 6:
        raise ValueError(f"`target` must hold three means and three standard deviations, got {len(target)} numbers")
    mean, spread = torch.tensor(target, device=images.device).view(2, 1, 3, 1)
    lab = _to_lab(images)
    lab = (lab - lab.mean(dim=2, keepdim=True)) / lab.std(dim=2, keepdim=True).clamp_min(1e-6) * spread + mean
    lms = 10 ** (torch.linalg.inv(torch.tensor(_LAB, device=images.device)) @ lab)
    pixels = torch.linalg.inv(torch.tensor(_LMS, device=images.device)) @ lms
    eight_bit: Tensor = (pixels * 255).clamp_(0, 255).round_().to(torch.uint8)
    return eight_bit.view_as(images)
