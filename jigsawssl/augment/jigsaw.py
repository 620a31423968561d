"""The tile shuffle as a kornia augmentation."""

from typing import Any

import torch  # noqa: F401  (the docstring's example)
from kornia.augmentation import GeometricAugmentationBase2D
from kornia.geometry.boxes import Boxes
from kornia.geometry.keypoints import Keypoints
from torch import Tensor

from ..functional import invert_permutation, permute_tiles, sample_permutations


class Jigsaw(GeometricAugmentationBase2D):
    """Cut each image into ``grid x grid`` tiles and shuffle them, each image by its own permutation (FG-SSL, sec. 3).

    Parameters are drawn first and applied by :func:`jigsawssl.functional.permute_tiles`, so a call can be replayed
    with ``params=``. Works alone and inside ``kornia.augmentation.AugmentationSequential``, where masks are shuffled
    with their images and ``inverse`` puts both back; boxes and keypoints are refused, for a shuffle of tiles tears
    them apart. No matrix describes a shuffle, so ``transform_matrix`` is the identity. No image is left in its original
    order, except by the gate ``p`` or for ``grid=1``.

    Args:
        grid: tiles along each side.
        p: probability that an image is shuffled.
        same_on_batch: one gate and one permutation for the whole batch.
        keepdim: keep a ``(C, H, W)`` input three-dimensional.

    Shape:
        float ``(B, C, H, W)`` of any value range, H and W divisible by ``grid``; the output has the same shape.

    Raises:
        ValueError: if ``grid`` is below 1 or does not divide a side.

    >>> images = torch.rand(2, 1, 8, 8)
    >>> jigsaw = Jigsaw(grid=2)
    >>> shuffled = jigsaw(images)
    >>> torch.equal(jigsaw(images, params=jigsaw._params), shuffled)
    True
    >>> torch.equal(jigsaw.inverse(shuffled), images)
    True
    """

    def __init__(self, grid: int, *, p: float = 1.0, same_on_batch: bool = False, keepdim: bool = False) -> None:
        super().__init__(p=p, same_on_batch=same_on_batch, keepdim=keepdim)
        if grid < 1:
            raise ValueError(f"`grid` ({grid}) must be at least 1")
        self.flags = {"grid": grid}

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Draw ``order`` ``(B, grid * grid)`` int64."""
        tiles = self.flags["grid"] ** 2
        drawn = sample_permutations(1 if self.same_on_batch else batch_shape[0], tiles, device=self.device)
        return {"order": drawn.expand(batch_shape[0], tiles)}

    def compute_transformation(self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]) -> Tensor:
        """The identity ``(B, 3, 3)``: tiles move apart, which no matrix says."""
        return self.identity_matrix(input)

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Shuffle ``input`` ``(B, C, H, W)`` by ``params["order"]``."""
        return permute_tiles(input, params["order"], flags["grid"])

    def apply_transform_mask(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Shuffle masks with their images."""
        return self.apply_transform(input, params, flags)

    def inverse_inputs(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Put the tiles of images or masks ``(B, C, H, W)`` back."""
        back = {**params, "order": invert_permutation(params["order"])}
        return self.transform_inputs(input, back, flags, transform, **kwargs)

    def transform_boxes(self, *args: Any, **kwargs: Any) -> Boxes:
        """Refuse: a box does not survive a shuffle of tiles."""
        raise NotImplementedError("Jigsaw cannot move boxes; leave them out of `data_keys`")

    def transform_keypoints(self, *args: Any, **kwargs: Any) -> Keypoints:
        """Refuse, like :meth:`transform_boxes`."""
        raise NotImplementedError("Jigsaw cannot move keypoints; leave them out of `data_keys`")

    inverse_boxes = transform_boxes
    inverse_keypoints = transform_keypoints
