"""Named values that travel between the parts of jigsawssl, one type for each seam."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from . import defaults

if TYPE_CHECKING:
    from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow's mode "L" has them."""

FITS = ("pad", "crop", "squash")
"""How an image becomes a square: whole and centred on black, its central square, or stretched."""

WINDOW_CHOICES = ("file", "percentiles", "lung", "mediastinum", "abdomen", "brain", "bone")
"""How values of more than 8 bits are mapped to display values: as the file says, between percentiles, or by a window
for computed tomography."""

STAINS = ("none", "macenko", "reinhard")
"""How stained tissue is brought to a reference."""

ATTENTIONS = ("none", "se", "eca", "cbam", "ga", "la", "ela")
"""Attention that convolutional networks can get; the last three are global, local and embedded local."""


class UserError(ValueError):
    """A mistake that the user can fix: one line with what, constraint, value and remedy (exit code 2)."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DivergedError(UserError):
    """A network whose output is no longer finite."""


@dataclass(frozen=True)
class ImageFormat:
    """What a picture is turned into; dataset, cache and encoder share it.

    Attributes:
        size: side of the square in pixels.
        channels: 1 (grey) or 3 (colour).
        fit: how images become squares, one of :data:`FITS`.
        window: how more than 8 bits become display values, one of :data:`WINDOW_CHOICES`.
        mean: per channel or one for all, of images in [0, 1].
        std: like ``mean``.
        stain: how tissue is brought to a reference, one of :data:`STAINS`.
        stain_target: the reference, see :func:`jigsawssl.stain.normalize_stain`.

    Raises:
        UserError: for a value that is none of these.

    >>> ImageFormat(64, 1, mean=(0.5,)).decoded == ImageFormat(64, 1)
    True
    """

    size: int = defaults.SIZE
    channels: int = 3
    fit: str = defaults.FIT
    window: str = defaults.WINDOW
    mean: tuple[float, ...] = (0.45,)
    std: tuple[float, ...] = (0.225,)
    stain: str = "none"
    stain_target: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise UserError(f"`size` ({self.size}) must be a positive number of pixels; use {defaults.SIZE}")
        if type(self.channels) is not int or self.channels not in (1, 3):
            raise UserError(f"`channels` ({self.channels}) must be 1 (grey) or 3 (colour)")
        for name, choices in (("fit", FITS), ("window", WINDOW_CHOICES), ("stain", STAINS)):
            if getattr(self, name) not in choices:
                raise UserError(f"`{name}` ({getattr(self, name)}) must be one of {', '.join(choices)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise UserError(f"`{name}` ({values}) must be one finite number, or one for each channel")
        if min(self.std) <= 0:
            raise UserError(f"`std` ({self.std}) must be above 0")

    @property
    def decoded(self) -> ImageFormat:
        """The part that decoding decides; stain and normalisation come later, on the device."""
        return ImageFormat(self.size, self.channels, self.fit, self.window)


class Sample(NamedTuple):
    """One row of a manifest: an image of the archive and what is known about it.

    ``path`` is relative to the archive (a POSIX path, or ``train/17`` inside an ``.npz``); ``label``, ``split``
    and ``group`` (patient, lesion, slide: what must never be divided between splits) are ``None`` where unknown.
    """

    path: str
    label: str | None = None
    split: str | None = None
    group: str | None = None


class Batch(NamedTuple):
    """A batch on the device: ``images`` uint8 ``(B, C, H, W)`` in [0, 255], ``labels`` int64 ``(B,)`` with -1 for
    unlabeled images, ``rows`` int64 ``(B,)`` of the archive."""

    images: Tensor
    labels: Tensor
    rows: Tensor


class Views(NamedTuple):
    """Consistency pairs of one batch, float32 ``(B, C, H, W)``, normalised.

    ``original`` is X', ``distorted`` is X'' and ``jigsaw`` holds ``J_n(X')`` for each grid, in the order of the grids.
    """

    original: Tensor
    distorted: Tensor
    jigsaw: tuple[Tensor, ...]


class Tap(NamedTuple):
    """A named stage of the encoder: ``features`` float ``(B, channels, H / reduction, W / reduction)``.

    Where a side is not divisible, the network decides whether it rounds up or down.
    """

    features: Tensor
    channels: int
    reduction: int


Taps = dict[str, Tap]
Pairs = dict[str, tuple["Tensor", "Tensor"]]
"""Projections of two views by branch, each float ``(B, D)``."""


class LossTerms(NamedTuple):
    """Losses of one batch.

    Attributes:
        total: weighted sum of the scalar losses in ``branches``.
        branches: name of the branch → unweighted loss.
        pairs: the projections that were compared, detached.
    """

    total: Tensor
    branches: dict[str, Tensor]
    pairs: Pairs


class Step(NamedTuple):
    """What one training step came to: its losses, and the views of its first images, where they were asked for."""

    terms: LossTerms
    sample: Views | None
