"""From a YAML file and ``key=value`` arguments to a checked configuration, and back to text."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..types import FITS, UserError
from .schemas import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    SupervisedConfig,
    TransferConfig,
)

__all__ = ["config_of", "describe_keys", "load_config", "to_yaml", "without_folder", "without_folders"]

Config = TypeVar(
    "Config",
    PretrainConfig,
    FinetuneConfig,
    CurveConfig,
    TransferConfig,
    DoctorConfig,
    DemoConfig,
    BenchConfig,
    ReportConfig,
)

_CHOICES = {
    "precision": ("auto", "bf16", "16", "32"),
    "schedule": ("joint", "progressive"),
    "block.variant": ("light", "paper"),
    "optimizer.name": ("adamw", "sgd", "lars"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "mode": ("auto", "full", "linear", "knn", "progressive"),
    "validation": ("budget", "split"),
    "budget": ("images", "groups"),
    "attention": (None, "none", "se", "eca", "cbam", "ga", "la", "ela"),
    "head": ("linear", "dense"),
    "class_weights": ("balanced", "none"),
    "reading.fit": FITS,
    "reading.stain": ("none", "macenko", "reinhard"),
    "reading.window": ("file", "percentiles", "lung", "mediastinum", "abdomen", "brain", "bone"),
}
_POSITIVE = ("optimizer.lr", "optimizer.head_scale", "optimizer.encoder_scale", "optimizer.layer_decay")
_LEAST = {
    "seed": 0,
    "batch.size": 2,
    "batch.workers": 1,
    "rounds": 1,
    "seeds": 1,
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


def _leaves(schema: type, prefix: str = "") -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Every key of a schema, groups flattened with dots → (field, type)."""
    leaves: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    hints = get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            leaves |= _leaves(kind, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            leaves[prefix + entry.name] = (entry, kind)
    return leaves


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def _required(schema: type) -> set[str]:
    return {key for key, (entry, _) in _leaves(schema).items() if entry.metadata["meaning"].endswith("(required)")}


def describe_keys(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a schema as ``(key, default, meaning)``, groups flattened with dots.

    Example:
        >>> describe_keys(DemoConfig)[1]
        ('seed', '0', 'seed of everything')
    """
    rows = []
    for key, (entry, _) in _leaves(schema).items():
        value = _default(entry)
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((key, text or "(none)", entry.metadata["meaning"]))
    return rows


def _from_arguments(arguments: Sequence[str], schema: type) -> dict[str, Any]:
    """``key=value`` arguments by key. Text is taken as it stands: YAML would read a folder 007 as 7."""
    leaves = _leaves(schema)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or not key:
            raise UserError(f"argument ({argument}) must have the form key=value; `--help` lists the keys")
        kind = leaves[key][1] if key in leaves else None
        if kind is str:
            values[key] = text
        elif kind == str | None:
            values[key] = None if text.lower() in ("", "null", "none") else text
        else:
            try:
                parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            except Exception as error:
                raise UserError(f"`{key}` ({text}) must be a YAML value; {_reason(error)}") from None
            values[key] = parsed["value"]  # type: ignore[index, call-overload]
    return values


def _from_file(path: str, schema: type) -> dict[str, Any]:
    """The keys of a YAML file, groups flattened with dots."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"`config` ({path}) must be a YAML file; nothing is there; check the path")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:
        raise UserError(f"`config` ({path}) must be valid YAML; {_reason(error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"`config` ({path}) must hold keys and values; see configs/ for examples")
    return _flat(loaded, schema)


def _flat(nested: Mapping[Any, Any], schema: type) -> dict[str, Any]:
    """Values by key, groups of the schema joined with dots."""
    groups = {key.rpartition(".")[0] for key in _leaves(schema)} - {""}
    values: dict[str, Any] = {}

    def flatten(node: Mapping[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in groups and isinstance(value, dict):
                flatten(value, f"{key}.")
            else:
                values[key] = value

    flatten(nested, "")
    return values


def _reason(error: Exception) -> str:
    # OmegaConf appends where in its own tree it was; the message names the key already.
    return " ".join(str(error).partition("full_key:")[0].split())[:200] or type(error).__name__


def _single_values(value: Any) -> list[Any]:
    """What is inside lists and mappings, however deep."""
    inside = list(value.values()) if isinstance(value, dict) else value
    return [leaf for part in inside for leaf in _single_values(part)] if isinstance(inside, list) else [value]


def _set(config: DictConfig, key: str, value: Any, schema: type) -> None:
    """Set one key, so that an error can name it and its value."""
    known = _leaves(schema)
    if key not in known:
        parent = next((option for option in known if key.startswith(f"{option}.")), None)
        if parent is not None:
            raise UserError(f"`{key}` ({value}) must not go below `{parent}`; give {parent}=… as a whole")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`--help` lists the keys"
        raise UserError(f"`{key}` is not a key of this command; {hint}")
    if known[key][1] == list[float] and isinstance(value, (int, float)):
        value = [value]  # one of what may be several
    if "${" in str(value) or "???" in str(value):
        raise UserError(f"`{key}` ({value}) must be a plain value; references to other keys are not supported")
    if any(isinstance(number, float) and not math.isfinite(number) for number in _single_values(value)):
        raise UserError(f"`{key}` ({value}) must be finite")
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise UserError(f"`{key}` ({value}) has the wrong type; {_reason(error)}; see `--help`") from None


def _check(config: DictConfig, schema: type) -> None:
    """Constraints that hold without looking at data or devices."""
    required = _required(schema)
    for key in _leaves(schema):
        value = OmegaConf.select(config, key)
        if key in required and not value:
            raise UserError(f"`{key}` is required and was not given; add {key}=…, `--help` says what it takes")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise UserError(f"`{key}` ({value}) must be one of {', '.join(filter(None, _CHOICES[key]))}")
        if key == "seed" and value >= 2**32:
            raise UserError(f"`seed` ({value}) must be less than 2^32 (4294967296); choose a smaller one")
        if key in _LEAST and value is not None and not value >= _LEAST[key]:
            raise UserError(f"`{key}` ({value}) must be at least {_LEAST[key]}; raise it")
        if key in _POSITIVE and value is not None and not min(_single_values(_plain(value)), default=0) > 0:
            raise UserError(f"`{key}` ({value}) must be more than 0; leave it out for the default")
    frames = OmegaConf.select(config, "reading.frames")
    if frames is not None and not re.fullmatch(r"all|middle|every_[1-9]\d*", frames):
        raise UserError(f"`reading.frames` ({frames}) must be all, middle or every_N, such as every_5")
    if schema in (DemoConfig, DoctorConfig, ReportConfig):
        return
    if schema is TransferConfig:
        return _check_transfer(config)
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` (both true) exclude each other; drop one")
    if not re.fullmatch(r"all|head|(from|to):stage\d+", config.train):
        raise UserError(f"`train` ({config.train}) must be all, head, from:STAGE or to:STAGE, such as from:stage3")
    grids, size = list(config.views.grids), config.views.size
    if len(grids) not in (0, 3) or (issubclass(schema, SupervisedConfig) and not grids):
        raise UserError(f"`views.grids` ({grids}) must have three entries, one per tap; such as [8,4,2]")
    for grid in grids:
        if grid < 1:
            raise UserError(f"`views.grids` ({grid}) must be at least 1; 1 leaves the tiles in order")
        if size is not None and size % grid:
            below, above = size // grid * grid, (size // grid + 1) * grid
            nearest = f"{below}, {above}" if below else f"{above}"
            raise UserError(
                f"`views.size` ({size}) must be divisible by `views.grids` ({grid}); nearest sizes: {nearest}"
            )
    if issubclass(schema, PretrainConfig):
        if config.views.preset not in ("strong", "paper"):
            raise UserError(f"`views.preset` ({config.views.preset}) must be one of strong, paper")
        if len(config.loss.weights) != 4 or min(config.loss.weights) < 0 or max(config.loss.weights) <= 0:
            raise UserError(f"`loss.weights` ({config.loss.weights}) must be four numbers, none below 0 and one above")
        if not 0 < config.views.share <= 1:
            raise UserError(f"`views.share` ({config.views.share}) must lie in (0, 1]; 1 shuffles the whole batch")
        if not 0 <= config.max_bad_fraction <= 1:
            raise UserError(f"`max_bad_fraction` ({config.max_bad_fraction}) must lie in [0, 1]; 0.1 is a tenth")
        if config.cache == "off" and config.trainer.devices > 1:
            raise UserError("`cache` (off) must be left out with several devices, which share what was decoded once")
        if not 0 <= config.optimizer.warmup < 1:
            raise UserError(f"`optimizer.warmup` ({config.optimizer.warmup}) must lie in [0, 1)")
    else:
        if config.views.preset not in ("mild", "strong"):
            raise UserError(f"`views.preset` ({config.views.preset}) must be one of mild, strong")
        _check_supervised(config, schema)


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
        raise UserError(f"`{name}` ({given}) must lie in (0, 1]; 0.01 is one per cent of the labels")
    for name in config.encoders if schema is CurveConfig else ():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UserError(
                f"`encoders` ({name}) must be called by letters, digits, _ and - alone, as files are named after them"
            )


def _check_transfer(config: DictConfig) -> None:
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` (both true) exclude each other; drop one")
    names = []
    for number, stage in enumerate(config.stages, start=1):
        name, objective = stage.get("name"), stage.get("objective", "supervised")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in names:
            raise UserError(f"`stages` ({number}) must each have a name of their own, of letters, digits, _ and -")
        names.append(name)
        if objective not in ("supervised", "jigsaw"):
            raise UserError(f"`stages` ({name}) must have the objective supervised or jigsaw, not {objective}")
        if "out" in stage:
            raise UserError(f"`stages` ({name}) must not name `out`; each gets a folder in that of the chain")
        if number == 1 and stage.get("encoder") == "previous":
            raise UserError(f"`stages` ({name}) must name its encoder, as no stage is before it")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def load_config(schema: type[Config], arguments: Sequence[str]) -> Config:
    """Defaults, then the YAML file named by ``config=``, then ``key=value`` arguments.

    Args:
        schema: one of :class:`PretrainConfig`, :class:`FinetuneConfig`, :class:`CurveConfig`, :class:`DoctorConfig`,
            :class:`TransferConfig`, :class:`BenchConfig`, :class:`ReportConfig` and :class:`DemoConfig`.
        arguments: such as ``["data=scans", "out=runs/1", "batch.size=64"]``.

    Returns:
        An instance of ``schema`` whose values have been checked.

    Raises:
        UserError: for an unknown key, a wrong type, a missing file or a value out of range.

    Example:
        >>> load_config(PretrainConfig, ["data=demo", "out=run", "views.size=64", "views.grids=[8,4,2]"]).views.size
        64
    """
    given = _from_arguments(arguments, schema)
    path = given.get("config")
    return _build(schema, _from_file(path, schema) if path is not None else {}, given)


def config_of(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Defaults, then values by key, in groups or with dots.

    Args:
        schema: as in :func:`load_config`.
        values: such as ``{"data": "scans", "views": {"size": 64}}``.

    Raises:
        UserError: as :func:`load_config`.

    Example:
        >>> config_of(DemoConfig, {"seed": 3}).seed
        3
    """
    return _build(schema, _flat(values, schema))


def _build(schema: type[Config], *sources: Mapping[str, Any]) -> Config:
    config = OmegaConf.structured(schema)
    for source in sources:
        for key, value in source.items():
            _set(config, key, value, schema)
    try:
        _check(config, schema)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be used; {_reason(error)}; see `--help`") from None
    assert isinstance(result, schema)
    return result


def to_yaml(config: PretrainConfig | SupervisedConfig | TransferConfig) -> str:
    """The resolved configuration as YAML, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def without_folder(reference: str) -> str:
    """The name of a file or folder, with what may stand before it.

    Example:
        >>> without_folder("random:/home/somebody/runs/encoder.safetensors"), without_folder("scans/")
        ('random:encoder.safetensors', 'scans')
    """
    return re.sub(r"[^:]*[/\\]", "", reference.rstrip("/\\"))


def without_folders(config: Any) -> dict[str, Any]:
    """Every key and value for a report, with names of files and folders in place of their paths.

    Example:
        >>> without_folders(DemoConfig(out="/home/somebody/runs/demo"))
        {'out': 'demo', 'seed': 0}
    """
    values: dict[str, Any] = dataclasses.asdict(config)
    for key in ("data", "out", "config", "manifest", "cache", "encoder", "subset", "subsets"):
        if isinstance(values.get(key), str):
            values[key] = without_folder(values[key])
    if "encoders" in values:
        values["encoders"] = {name: without_folder(encoder) for name, encoder in values["encoders"].items()}
    return values
