"""Ways to pretrain that are not in the package: what benchmarks/objectives.py screens beside its settings.

A candidate adds a term to the plain pair (X', X''), or takes its place. The settings of :class:`Recipe` are the
``recipe`` of a row in the YAML file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from jigsawssl.augment import JigsawViews
from jigsawssl.augment.chain import ViewChain
from jigsawssl.augment.views import augmentation_chain
from jigsawssl.functional import average_positions, from_tiles, permute_tiles, sample_permutations, to_tiles
from jigsawssl.models import Encoder
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.types import Batch, LossTerms, Views


@dataclass(frozen=True)
class Recipe:
    """What a candidate does.

    Attributes:
        pair: weight of the plain pair of whole images.
        weight: weight of the term of the tiles.
        grid: tiles along each side of a mosaic.
        tile: side of a tile in pixels; features of its place are compared.
        scale: share of the image that a tile shows, smallest and largest.
        share: share of the batch that gives tiles.
        mix: where tiles go: ``across`` the batch, ``within`` a mosaic of one image, or ``alone`` as small images.
        level: a ``tile`` is compared with the whole image, or the average of all tiles of an image (``bag``).
        tap: which tap is compared for tiles; deeper stages are not computed.
        target: what tiles are compared with: X'' (``second``), or the mean of both projections (``both``).
        own: a projector of their own for tiles.
        statistics: whether mosaics count in the running statistics of batch normalisation.
        crop: smallest share of the image that a whole view shows; 0 as the preset says.
        blend: X' is joined of its own tiles and those of another image, which are compared with the mean of both by
            the number of tiles: ``instead`` of X' itself, or as a view ``beside`` it.
        shuffle: whether the tiles of a blend leave their places.
        local: weight of the comparison place by place on ``local_tap``, where crops overlap.
        places: of each image that are compared.
        limited: tiles of X'' of ``share`` of the batch change places, with others at most so many places away, as in
            Destruction and Construction Learning (Chen et al. 2019); 0: none do.
        packed: share of the run, from its start, in which both views are small and whole and ``grid * grid`` of them
            fill a mosaic (``mix=across``), or stay ``alone``.
        mates: another image of the same group gives X'': ``whole``, or some of its ``tiles``; with ``own-tiles`` an
            image that has no such mate gives tiles of another distorted view of itself.
    """

    pair: float = 1.0
    weight: float = 1.0
    grid: int = 2
    tile: int = 32
    scale: tuple[float, float] = (0.05, 0.35)
    share: float = 1.0
    mix: str = "across"
    level: str = "tile"
    tap: str = "layer4"
    target: str = "second"
    own: bool = False
    statistics: bool = True
    crop: float = 0.0
    blend: str = ""
    shuffle: bool = False
    local: float = 0.0
    local_tap: str = "layer3"
    places: int = 4
    mates: str = ""
    limited: float = 0.0
    packed: float = 0.0


@contextmanager
def _statistics(module: nn.Module, count: bool) -> Iterator[None]:
    """Leave running statistics as they are, unless forwards count."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    for layer in layers if not count else ():
        layer.momentum = 0.0
    yield
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum


def limited_permutations(batch: int, grid: int, most: float) -> Tensor:
    """Orders ``(batch, grid * grid)`` in which no tile moves further than about ``most`` places along a side."""

    def jittered() -> Tensor:
        places = torch.arange(grid) + most * (2 * torch.rand(batch, grid, grid) - 1)
        return places.argsort(dim=2)

    across, down = jittered(), jittered()  # (image, row, column) and (image, column, row)
    row = down.transpose(1, 2)
    column = across.gather(1, row)
    return (row * grid + column).flatten(1)


def _chain(size: int, channels: int, scale: tuple[float, float]) -> ViewChain:
    crop: Any = K.RandomResizedCrop((size, size), scale=scale, cropping_mode="resample")
    return ViewChain([crop, *augmentation_chain("strong", size, channels)[1:]], size)


class Candidate(JigsawPretraining):
    """Plain Barlow Twins and tiles that are crops of their own, compared with the whole image."""

    def __init__(self, encoder: Encoder, *, recipe: Recipe, projection: int, **settings: Any) -> None:
        super().__init__(encoder, block=nn.ModuleDict(), **settings)  # type: ignore[arg-type]
        self.recipe = recipe
        channels = encoder.channels
        self.deepest = list(channels)[-1]
        self.block["whole"] = BarlowTwinsProjectionHead(channels[self.deepest], projection, projection)
        if recipe.own or recipe.tap != self.deepest:
            self.block["tile"] = BarlowTwinsProjectionHead(channels[recipe.tap], projection, projection)
        self.head = "tile" if "tile" in self.block else "whole"
        if recipe.local:
            self.block["local"] = BarlowTwinsProjectionHead(channels[recipe.local_tap], projection, projection)
        self.dataset: Any = None
        self.progress = 0.0
        if recipe.packed:
            full = self.views
            self.small = JigsawViews(
                size=recipe.tile, grids=(), preset=full.preset, mean=full.mean.flatten(), std=full.std.flatten()
            )
        colours = encoder.spec.format.channels
        self.tiles = _chain(recipe.tile, colours, recipe.scale)
        if recipe.crop:
            for chains in (self.views.original, self.views.distorted):
                chains[str(colours)] = _chain(self.views.size, colours, (recipe.crop, 1.0))

    def build_views(self, batch: Batch) -> Views:
        images = self.encoder.normalize_stain(batch.images)
        recipe = self.recipe
        if self.progress < recipe.packed:
            small: Views = self.small(images)
            return small
        views: Views = self.views(images)
        if recipe.mates:
            views = self._with_mates(batch, views)
        if recipe.limited:
            some = max(2, round(len(images) * recipe.share))
            order = limited_permutations(some, recipe.grid, recipe.limited)
            shuffled = permute_tiles(views.distorted[:some], order, recipe.grid)
            return views._replace(distorted=torch.cat([shuffled, views.distorted[some:]]))
        if recipe.blend:
            return self._blend(views)
        if not recipe.weight:
            return views
        some, count = max(2, round(len(images) * recipe.share)), recipe.grid**2
        wanted = images[:some].repeat_interleave(count, dim=0)
        tiles = self.tiles(wanted, self.tiles.draw(wanted.shape), self.views.mean, self.views.std)
        self.order = torch.randperm(len(tiles)) if recipe.mix == "across" else torch.arange(len(tiles))
        if recipe.mix != "alone":
            tiles = tiles[self.order].reshape(some, count, *tiles.shape[1:])
            tiles = from_tiles(tiles, recipe.grid)
        return views._replace(jigsaw=(tiles,))

    def _mates_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Another image of the same group for each row of the archive, and which have one."""
        if not hasattr(self, "positions"):
            of_group: dict[str, list[int]] = {}
            self.positions = {row: at for at, row in enumerate(self.dataset.rows.tolist())}
            self.group_of = self.dataset.archive.groups.tolist()
            for row in self.positions:
                of_group.setdefault(self.group_of[row], []).append(row)
            self.of_group = of_group
        found, has = [], []
        for row in rows.tolist():
            others = [other for other in self.of_group[self.group_of[row]] if other != row]
            has.append(bool(others))
            found.append(others[int(torch.randint(len(others), ()))] if others else row)
        at = [self.positions[row] for row in found]
        return self.dataset.__getitems__(at).images, torch.tensor(has)

    def _with_mates(self, batch: Batch, views: Views) -> Views:
        """X'' of another image of the group, or some of its tiles, for half of those that have one."""
        images, has = self._mates_of(batch.rows)
        if self.recipe.mates == "own-tiles":
            has[:] = True
        has &= torch.rand(len(has)) < 0.5
        chain: Any = self.views.distorted[str(images.shape[1])]
        chosen = images[has]
        if not len(chosen):
            return views
        other = chain(chosen, chain.draw(chosen.shape), self.views.mean, self.views.std)
        second = views.distorted.clone()
        if self.recipe.mates != "whole":
            mine, theirs = to_tiles(second[has], self.recipe.grid), to_tiles(other, self.recipe.grid)
            taken = torch.rand(mine.shape[:2]) < 0.5
            other = from_tiles(torch.where(taken[:, :, None, None, None], theirs, mine), self.recipe.grid)
        second[has] = other
        return views._replace(distorted=second)

    def _blend(self, views: Views) -> Views:
        """Tiles of an image and of another in one."""
        recipe = self.recipe
        some, count = max(2, round(len(views.original) * recipe.share)), recipe.grid**2
        self.partner = torch.arange(some).roll(1)
        tiles = to_tiles(views.original[:some], recipe.grid)
        own = torch.rand(some, count).argsort(dim=1) < torch.randint(1, count, (some, 1))
        self.own = own.float().mean(dim=1, keepdim=True)
        tiles = torch.where(own[:, :, None, None, None], tiles, tiles[self.partner])
        if recipe.shuffle:
            order = sample_permutations(some, count)
            tiles = tiles[torch.arange(some)[:, None], order]
        blended = from_tiles(tiles, recipe.grid)
        if recipe.blend == "beside":
            return views._replace(jigsaw=(blended,))
        return views._replace(original=torch.cat([blended, views.original[some:]]))

    def _places(self, parameters: list[Any], at: Tensor) -> tuple[Tensor, Tensor]:
        """Left upper corner and size of crops, with mirrored ones turned around: ``x = corner + size * u``."""
        source = parameters[0].data["src"].double()
        corner, size = source[:, 0], source[:, 2] - source[:, 0]
        flipped = parameters[1].data["batch_prob"] > 0.5
        corner, size = corner.clone(), size.clone()
        corner[flipped, 0] += size[flipped, 0]
        size[flipped, 0] *= -1
        return corner[:, None], size[:, None]

    def _local(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the same places in both views."""
        used = self.views.parameters_used
        assert used is not None
        batch, _, side, _ = first.shape
        at = torch.rand(batch, side * side).argsort(dim=1)[:, : 2 * self.recipe.places]
        u = (torch.stack([at % side, at // side], dim=2).double() + 0.5) / side
        (corner_a, size_a), (corner_b, size_b) = self._places(used.original, at), self._places(used.distorted, at)
        v = (corner_a + size_a * u - corner_b) / size_b
        inside = ((v > 0) & (v < 1)).all(dim=2)
        inside &= inside.cumsum(dim=1) <= self.recipe.places
        a = first.flatten(2).transpose(1, 2)[torch.arange(batch)[:, None], at]
        b = grid_sample(second.float(), (2 * v - 1).float()[:, None], padding_mode="border", align_corners=False)
        return a[inside], b[:, :, 0].transpose(1, 2)[inside]

    def _packed(self, views: Tensor) -> Tensor:
        """Pooled features of small views, several of which share a mosaic."""
        if self.recipe.mix == "alone":
            return average_positions(self._pooled(views, self.deepest))
        count = self.recipe.grid**2
        order = torch.randperm(len(views))
        tiles = views[order].reshape(-1, count, *views.shape[1:])
        features = to_tiles(self._pooled(from_tiles(tiles, self.recipe.grid), self.deepest), self.recipe.grid)
        pooled = average_positions(features.flatten(0, 1))
        return torch.empty_like(pooled).index_copy(0, order, pooled)

    def _pooled(self, images: Tensor, tap: str) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return self.encoder.taps(images, (tap,))[tap].features

    def joint_losses(self, views: Views) -> LossTerms:
        recipe = self.recipe
        pairs, whole = {}, self.block["whole"]
        if self.progress < recipe.packed:
            pairs["whole"] = (whole(self._packed(views.original)), whole(self._packed(views.distorted)))
            small: LossTerms = self.loss(pairs)
            return small
        wanted = (recipe.local_tap, self.deepest) if recipe.local else (self.deepest,)
        taps_b = self.encoder.taps(views.distorted.contiguous(memory_format=torch.channels_last), wanted)
        z_b = whole(average_positions(taps_b[self.deepest].features))
        if recipe.blend:
            own, some = self.own, len(self.partner)
            mixed = own * z_b[:some] + (1 - own) * z_b[self.partner]
        if recipe.pair or recipe.target == "both":
            taps_a = self.encoder.taps(views.original.contiguous(memory_format=torch.channels_last), wanted)
            z_a = whole(average_positions(taps_a[self.deepest].features))
            pairs["whole"] = (z_a, torch.cat([mixed, z_b[some:]]) if recipe.blend == "instead" else z_b)
        if recipe.local:
            a, b = self._local(taps_a[recipe.local_tap].features, taps_b[recipe.local_tap].features)
            pairs["local"] = (self.block["local"](a), self.block["local"](b))
        if recipe.blend == "beside":
            with _statistics(self.encoder, recipe.statistics):
                z = whole(average_positions(self._pooled(views.jigsaw[0], self.deepest)))
            pairs["tile"] = (z, mixed)
        elif recipe.weight and not recipe.blend:
            (mosaic,) = views.jigsaw
            with _statistics(self.encoder, recipe.statistics):
                features = self._pooled(mosaic, recipe.tap)
            if recipe.mix != "alone":
                features = to_tiles(features, recipe.grid).flatten(0, 1)
            tiles = average_positions(features)
            tiles = torch.empty_like(tiles).index_copy(0, self.order, tiles)
            count = recipe.grid**2
            target = (z_a + z_b) / 2 if recipe.target == "both" else z_b
            target = target[: len(tiles) // count]
            if recipe.level == "bag":
                tiles = tiles.view(-1, count, tiles.shape[1]).mean(dim=1)
            else:
                target = target.repeat_interleave(count, dim=0)
            project = self.block[self.head]
            pairs["tile"] = (project(tiles), target)
        terms: LossTerms = self.loss(pairs)
        return terms


def build_candidate(encoder: Encoder, recipe: dict[str, Any], like: JigsawPretraining, projection: int) -> Candidate:
    """A candidate with the settings of a plain module."""
    wanted = Recipe(**{key: tuple(value) if isinstance(value, list) else value for key, value in recipe.items()})
    loss = like.loss
    loss.weights = {"whole": wanted.pair, "tile": wanted.weight, "local": wanted.local}
    views: JigsawViews = like.views
    return Candidate(
        encoder,
        recipe=wanted,
        projection=projection,
        views=views,
        loss=loss,
        optimizer=like.optimizer_name,
        lr=like.rates[1],
        encoder_scale=like.rates[0] / like.rates[1],
        weight_decay=like.weight_decay,
        warmup=like.warmup,
        seed=like.seed,
    )
