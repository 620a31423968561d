"""What Python does without further words is what the command line does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from jigsawssl import defaults
from jigsawssl.augment import PRESETS, JigsawViews, augmentation_chain
from jigsawssl.checkpoint import resolve_encoder
from jigsawssl.cli.look import settled
from jigsawssl.config.schemas import FinetuneConfig, PretrainConfig
from jigsawssl.data.cache import CacheOptions
from jigsawssl.losses import BarlowTwins, create_objective
from jigsawssl.models import HierarchicalBlock, PlainProjector, create_encoder
from jigsawssl.readers import open_picture
from jigsawssl.training.adapt import MODES
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.types import ImageFormat

# Parameter → key, where they are called differently.
KEYS: dict[Callable[..., Any], dict[str, str]] = {
    JigsawViews: {name: f"views.{name}" for name in ("size", "grids", "preset", "share")},
    HierarchicalBlock: {name: f"block.{name}" for name in ("variant", "width", "projection")},
    PlainProjector: {"projection": "block.projection"},
    BarlowTwins: {"off_diagonal": "loss.off_diagonal"},
    create_objective: {"off_diagonal": "loss.off_diagonal"},
    JigsawPretraining: {
        "schedule": "schedule",
        "optimizer": "optimizer.name",
        "lr": "optimizer.lr",
        "encoder_scale": "optimizer.encoder_scale",
        "weight_decay": "optimizer.weight_decay",
        "warmup": "optimizer.warmup",
        "seed": "seed",
    },
    create_encoder: {"stem_stride": "stem_stride", "attention_stages": "attention_stages"},
    ImageFormat: {"size": "views.size", "fit": "reading.fit", "window": "reading.window", "stain": "reading.stain"},
    CacheOptions: {"frames": "reading.frames"},
    open_picture: {"window": "reading.window"},
    resolve_encoder: {"attention": "attention", "attention_stages": "attention_stages"},
}


def test_every_preset_has_its_chains_and_its_words() -> None:
    assert list(PRESETS) == list(defaults.PRESETS)
    for name, preset in PRESETS.items():
        assert augmentation_chain(preset.original, 32, 3) and augmentation_chain(preset.distorted, 32, 3)
        crops = {"RandomResizedCrop" in type(step).__name__ for step in augmentation_chain(preset.original, 32, 1)}
        assert preset.crops == (True in crops), name


def test_every_mode_has_its_way_and_its_words() -> None:
    assert list(MODES) == list(defaults.MODES)


@pytest.mark.parametrize("made", KEYS, ids=lambda made: made.__name__)
def test_every_shared_default_is_one(made: Callable[..., Any]) -> None:
    parameters = inspect.signature(made).parameters
    for name, key in KEYS[made].items():
        config: Any = FinetuneConfig() if made is resolve_encoder else settled(PretrainConfig())
        for part in key.split("."):
            config = getattr(config, part)
        default = parameters[name].default
        assert (tuple(default) if isinstance(config, list) else default) == (
            tuple(config) if isinstance(config, list) else config
        ), name
