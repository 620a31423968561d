"""What the settings of a pretraining build: its images, its encoder, and the module that trains it."""

import math
import os
from dataclasses import replace

import pytorch_lightning as pl

from .. import defaults
from ..augment import PRESETS, JigsawViews
from ..checkpoint import resolve_encoder
from ..config.schemas import PretrainConfig
from ..data import Archive
from ..data.loading import PixelDataset, channel_statistics, channels_of, stain_target
from ..losses import HierarchicalLoss, create_objective
from ..models import Encoder, HierarchicalBlock, PlainProjector, create_encoder
from ..training.finetune import trained_stages
from ..training.pretrain import JigsawPretraining
from ..types import ImageFormat, UserError

CROP_MARGIN = 1.25
"""Images are kept this much larger than the views where views are crops, so that crops are not all enlarged."""


def starting_encoder(config: PretrainConfig, channels: int) -> Encoder | None:
    """The encoder to go on from, if one is named."""
    if config.encoder is None:
        return None
    encoder, _ = resolve_encoder(
        config.encoder,
        in_channels=channels,
        size=config.views.size,
        attention=config.attention,
        attention_stages=config.attention_stages,
    )
    wanted = image_format(config, channels)
    encoder.read_as(replace(encoder.spec.format, fit=wanted.fit, window=wanted.window))
    return encoder


def image_format(config: PretrainConfig, channels: int) -> ImageFormat:
    """What the configuration makes of images, but for stain and normalisation, which depend on them."""
    size, fit, window = config.views.size, config.reading.fit, config.reading.window
    return ImageFormat(size or defaults.SIZE, channels, fit=fit or defaults.FIT, window=window or defaults.WINDOW)


def fresh_encoder(config: PretrainConfig, images: ImageFormat) -> Encoder:
    """The encoder that the configuration describes."""
    return create_encoder(
        config.backbone,
        images,
        stem_stride=config.stem_stride,
        backbone_options=config.backbone_options,
        attention=config.attention or "none",
        attention_stages=tuple(config.attention_stages),
    )


def encoder_to_train(config: PretrainConfig, dataset: PixelDataset, started: Encoder | None) -> Encoder:
    """The encoder of a run with the statistics of its images, the stages that learn, and the stain to bring them to.

    Args:
        config: of the run.
        dataset: its images.
        started: what it goes on from.
    """
    encoder = started
    if encoder is None:
        mean, std = channel_statistics(dataset)
        encoder = fresh_encoder(config, replace(image_format(config, dataset.format.channels), mean=mean, std=std))
    images, stain = encoder.spec.format, config.reading.stain or "none"
    if stain != images.stain:
        encoder.read_as(replace(images, stain=stain, stain_target=stain_target(stain, dataset)))
    encoder.train_only(trained_stages(config.train, list(encoder.by_stage())))
    return encoder


def build_dataset(config: PretrainConfig, archive: Archive, channels: int) -> PixelDataset:
    """The images at the size of the views, with a margin where views are crops."""
    images = image_format(config, channels)
    if PRESETS[config.views.preset].crops:
        images = replace(images, size=math.ceil(images.size * CROP_MARGIN))
    total = len(archive) + archive.faults
    return PixelDataset(
        archive,
        images,
        workers=config.batch.workers or os.cpu_count() or 1,
        most_unreadable=config.max_bad_fraction * total - archive.faults,
    )


def build_module(config: PretrainConfig, encoder: Encoder) -> JigsawPretraining:
    """Views, block, loss and rates around an encoder."""
    objective = {key: value for key, value in vars(config.loss).items() if key != "weights"}
    views = JigsawViews(
        size=encoder.spec.format.size,
        grids=config.views.grids,
        preset=config.views.preset,
        share=config.views.share,
        mean=encoder.spec.format.mean,
        std=encoder.spec.format.std,
    )
    block: HierarchicalBlock | PlainProjector
    if config.views.grids:
        block = HierarchicalBlock(
            encoder.channels,
            width=config.block.width,
            projection=config.block.projection,
            variant=config.block.variant,  # type: ignore[arg-type]
        )
        weights = dict(zip(block.branches, config.loss.weights, strict=True))
    else:
        block = PlainProjector(encoder.channels, projection=config.block.projection)
        weights = dict.fromkeys(block.branches, 1.0)
    return JigsawPretraining(
        encoder,
        block=block,
        views=views,
        loss=HierarchicalLoss(weights, objective=create_objective(**objective)),
        schedule=config.schedule,
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        encoder_scale=config.optimizer.encoder_scale,
        weight_decay=config.optimizer.weight_decay,
        warmup=config.optimizer.warmup,
        seed=config.seed,
    )


def images_of_a_device(config: PretrainConfig, dataset: PixelDataset) -> int:
    shard = len(dataset) // config.trainer.devices
    if shard < 2 <= len(dataset):
        raise UserError(
            f"`trainer.devices` ({config.trainer.devices}) must leave 2 images or more to each; there are "
            f"{len(dataset)}; use fewer devices"
        )
    return shard


def planned_dataset(config: PretrainConfig, archive: Archive) -> tuple[PixelDataset, Encoder | None]:
    """The images of a run, not decoded yet, and the encoder that it goes on from; mistakes show here."""
    channels = channels_of(archive, config.reading.window or defaults.WINDOW)
    pl.seed_everything(config.seed, verbose=False)
    started = starting_encoder(config, channels)
    if started is not None:
        channels = started.spec.format.channels
    else:
        fresh_encoder(config, image_format(config, channels))  # the real one needs statistics of the images
    dataset = build_dataset(config, archive, channels)
    images_of_a_device(config, dataset)
    return dataset, started
