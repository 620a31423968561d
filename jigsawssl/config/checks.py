"""What values of a configuration must hold, as far as it shows without looking at data or devices."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from .. import defaults
from ..types import ATTENTIONS, FITS, STAINS, WINDOW_CHOICES, UserError
from .schemas import (
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    SupervisedConfig,
    TransferConfig,
)

__all__ = ["check", "check_grids", "keys_of", "single_values"]

_CHOICES = {
    "precision": ("auto", "bf16", "16", "32"),
    "schedule": ("joint", "progressive"),
    "block.variant": ("light", "paper"),
    "optimizer.name": ("adamw", "sgd", "lars"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "mode": tuple(defaults.MODES),
    "validation": ("budget", "split"),
    "budget": ("images", "groups"),
    "attention": (None, *ATTENTIONS),
    "head": ("linear", "dense"),
    "class_weights": ("balanced", "none"),
    "reading.fit": (None, *FITS),
    "reading.stain": (None, *STAINS),
    "stain": (None, *STAINS),
    "reading.window": (None, *WINDOW_CHOICES),
}
_POSITIVE = ("optimizer.lr", "optimizer.head_scale", "optimizer.encoder_scale", "optimizer.layer_decay")
_LEAST = {
    "seed": 0,
    "batch.size": 2,
    "batch.workers": 1,
    "rounds": 1,
    "seeds": 1,
    "trials": 1,
    "unfreeze_every": 0,
    "jobs": 1,
    "views.size": 8,
    "block.width": 1,
    "block.projection": 2,
    "trainer.max_epochs": 1,
    "trainer.devices": 1,
    "loss.off_diagonal": 0,
    "optimizer.weight_decay": 0,
}


def keys_of(schema: type, prefix: str = "") -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Every key of a schema, groups flattened with dots → (field, type)."""
    leaves: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    hints = get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            leaves |= keys_of(kind, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            leaves[prefix + entry.name] = (entry, kind)
    return leaves


def _required(schema: type) -> set[str]:
    return {key for key, (entry, _) in keys_of(schema).items() if entry.metadata["meaning"].endswith("(required)")}


def single_values(value: Any) -> list[Any]:
    """What is inside lists and mappings, however deep."""
    inside = list(value.values()) if isinstance(value, dict) else value
    return [leaf for part in inside for leaf in single_values(part)] if isinstance(inside, list) else [value]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def check(config: DictConfig, schema: type) -> None:
    """Constraints that hold without looking at data or devices."""
    required = _required(schema)
    for key in keys_of(schema):
        value = OmegaConf.select(config, key)
        if key in required and not value:
            raise UserError(f"`{key}` is required and was not given; add {key}=…, `--help` says what it takes")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise UserError(f"`{key}` ({value}) must be one of {', '.join(filter(None, _CHOICES[key]))}")
        if key == "seed" and value >= 2**32:
            raise UserError(f"`seed` ({value}) must be less than 2^32 (4294967296); choose a smaller one")
        if key in _LEAST and value is not None and not value >= _LEAST[key]:
            raise UserError(f"`{key}` ({value}) must be at least {_LEAST[key]}; raise it")
        if key in _POSITIVE and value is not None and not min(single_values(_plain(value)), default=0) > 0:
            raise UserError(f"`{key}` ({value}) must be more than 0; leave it out for the default")
    frames = OmegaConf.select(config, "reading.frames")
    if frames is not None and not re.fullmatch(r"all|middle|every_[1-9]\d*", frames):
        raise UserError(f"`reading.frames` ({frames}) must be all, middle or every_N, such as every_5")
    if schema in (DemoConfig, DoctorConfig, ReportConfig):
        return
    if schema is TransferConfig:
        return _check_transfer(config)
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` must not both be true; drop one")
    if not re.fullmatch(r"all|head|(from|to):stage\d+", config.train):
        raise UserError(f"`train` ({config.train}) must be all, head, from:STAGE or to:STAGE, such as from:stage3")
    grids, size = list(config.views.grids), config.views.size
    if len(grids) not in (0, 3) or (issubclass(schema, SupervisedConfig) and not grids):
        raise UserError(f"`views.grids` ({grids}) must have three entries, one per tap; such as [8,4,2]")
    check_grids(size, grids)
    if issubclass(schema, PretrainConfig):
        if config.views.preset not in defaults.PRESETS:
            raise UserError(f"`views.preset` ({config.views.preset}) must be one of {', '.join(defaults.PRESETS)}")
        if len(config.loss.weights) != 4 or min(config.loss.weights) < 0 or max(config.loss.weights) <= 0:
            raise UserError(
                f"`loss.weights` ({config.loss.weights}) must be four numbers of at least 0, one of them above 0"
            )
        if not 0 < config.views.share <= 1:
            raise UserError(f"`views.share` ({config.views.share}) must lie in (0, 1]; 1 shuffles the whole batch")
        if not 0 <= config.max_bad_fraction <= 1:
            raise UserError(f"`max_bad_fraction` ({config.max_bad_fraction}) must lie in [0, 1]; 0.1 is a tenth")
        fresh = PretrainConfig()
        for key in ("backbone", "backbone_options", "stem_stride") if config.encoder is not None else ():
            if _plain(config[key]) != getattr(fresh, key):
                raise UserError(
                    f"`{key}` ({config[key]}) must be left out beside `encoder` ({config.encoder}), which decides it"
                )
        if config.cache == "off" and config.trainer.devices > 1:
            raise UserError("`cache` (off) must be left out with several devices, which share what was decoded once")
        if not 0 <= config.optimizer.warmup < 1:
            raise UserError(f"`optimizer.warmup` ({config.optimizer.warmup}) must lie in [0, 1)")
    else:
        if config.views.preset not in ("mild", "strong"):
            raise UserError(f"`views.preset` ({config.views.preset}) must be one of mild, strong")
        _check_supervised(config, schema)


def check_grids(size: int | None, grids: Iterable[int]) -> None:
    """Grids must divide images into whole tiles."""
    for grid in grids:
        if grid < 1:
            raise UserError(f"`views.grids` ({grid}) must be at least 1; 1 leaves the tiles in order")
        if size is not None and size % grid:
            below, above = size // grid * grid, (size // grid + 1) * grid
            nearest = f"{below}, {above}" if below else f"{above}"
            raise UserError(
                f"`views.size` ({size}) must be divisible by `views.grids` ({grid}); nearest sizes: {nearest}"
            )


def _check_supervised(config: DictConfig, schema: type) -> None:
    for key, most in (("sensitivity", 1.0), ("coverage", 1.0)):
        if not 0 < config[key] <= most:
            raise UserError(f"`{key}` ({config[key]}) must lie in (0, {most:g}]; leave it out for the default")
    if not 0 <= config.dropout < 1:
        raise UserError(f"`dropout` ({config.dropout}) must lie in [0, 1); 0.2 leaves out a fifth of the features")
    if config.head == "dense" and config.mode not in ("full", "auto"):
        raise UserError(f"`head` (dense) goes with mode=full, not `mode` ({config.mode}); leave one out")
    fractions = list(config.fractions) if schema is CurveConfig else [config.fraction]
    name = "fractions" if schema is CurveConfig else "fraction"
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        given = fractions if schema is CurveConfig else fractions[0]
        large = next((fraction for fraction in fractions if 1 < fraction <= 100), None)
        hint = f"1 is all labels, and {large:g} per cent is {large / 100:g} or {large:g}%" if large else ""
        raise UserError(
            f"`{name}` ({given}) must lie in (0, 1]; {hint or '1 is all labels, 0.01 or 1% is one per cent'}"
        )
    if schema is CurveConfig:
        _check_names("encoders", config.encoders)
    if schema is StudyConfig:
        _check_study(config)


def _check_names(key: str, names: Iterable[str]) -> None:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(
                f"`{key}` ({name}) must consist of letters, digits, _ and - alone, as files are named after it"
            )


SEARCHED = ("optimizer.lr", "optimizer.weight_decay", "optimizer.head_scale", "optimizer.layer_decay", "dropout")


def _check_study(config: DictConfig) -> None:
    if config.mode != "full":
        raise UserError(f"`mode` ({config.mode}) must be full in a study; a curve compares by the others")
    if len(config.variants) < 2:
        raise UserError(
            f"`variants` ({len(config.variants)}) must be two or more; one variant has nothing to be compared with"
        )
    for key, known in (
        ("variants", {"encoder", "backbone_options", "attention", "attention_stages", "against"}),
        ("domains", {"data", "manifest", "layout"}),
    ):
        _check_names(key, config[key])
        for name, values in config[key].items():
            unknown, needed = sorted(set(values or {}) - known), "encoder" if key == "variants" else "data"
            if unknown:
                raise UserError(f"`{key}.{name}` ({unknown[0]}) must be one of {', '.join(sorted(known))}")
            if not isinstance((values or {}).get(needed), str):
                raise UserError(f"`{key}.{name}` must have {needed}: …, as in configs/study/")
    for name, values in config.variants.items():
        for key, kind, shape in (
            ("attention_stages", list, "[3, 4]"),
            ("backbone_options", dict, "{channels: [16, 32]}"),
        ):
            if key in values and not isinstance(_plain(values[key]), kind):
                raise UserError(f"`variants.{name}.{key}` ({values[key]}) must have the form {shape}")
        if not all(isinstance(stage, int) for stage in values.get("attention_stages", [])):
            raise UserError(f"`variants.{name}.attention_stages` ({values['attention_stages']}) must be whole numbers")
        attention, other = values.get("attention"), values.get("against")
        if attention not in _CHOICES["attention"]:
            kinds = ", ".join(filter(None, _CHOICES["attention"]))
            raise UserError(f"`variants.{name}.attention` ({attention}) must be one of {kinds}")
        if other is not None and (other not in config.variants or other == name):
            raise UserError(f"`variants.{name}.against` ({other}) must be another variant")
    if len(config.optimizer.lr) != 1:
        raise UserError(f"`optimizer.lr` ({config.optimizer.lr}) must be one rate, where the search begins")
    if not config.space and config.trials > 1:
        raise UserError(f"`trials` ({config.trials}) must be 1 where `space` names nothing to search")
    for key, limits in config.space.items():
        if key not in SEARCHED:
            raise UserError(f"`space` ({key}) must be one of {', '.join(SEARCHED)}")
        least = 0.0 if key in ("dropout", "optimizer.weight_decay") else 1e-12
        most = 1.0 if key == "dropout" else math.inf
        if len(limits) != 2 or not least <= limits[0] <= limits[1] < most:
            raise UserError(f"`space.{key}` ({limits}) must be [low, high] within what {key} may be")


def _check_transfer(config: DictConfig) -> None:
    if not config.stages:
        raise UserError(f"`config` ({config.config}) must list `stages`; see configs/transfer/ for examples")
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` must not both be true; drop one")
    names = []
    for number, stage in enumerate(config.stages, start=1):
        name, objective = stage.get("name"), stage.get("objective", "supervised")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in names:
            raise UserError(f"`stages` ({number}) must each have a unique name of letters, digits, _ and -")
        names.append(name)
        if objective not in ("supervised", "jigsaw"):
            raise UserError(f"`stages` ({name}) must have the objective supervised or jigsaw, not {objective}")
        if "out" in stage:
            raise UserError(f"`stages` ({name}) must not name `out`; each gets a folder in that of the chain")
        if number == 1 and stage.get("encoder") == "previous":
            raise UserError(f"`stages` ({name}) must name its encoder, as no stage is before it")
