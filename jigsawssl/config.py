"""Configuration: typed schemas hold every default; a YAML file and then ``key=value`` arguments override them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .types import FITS, UserError

__all__ = [
    "BenchConfig",
    "CurveConfig",
    "DemoConfig",
    "DoctorConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "ReportConfig",
    "SupervisedConfig",
    "describe_keys",
    "load_config",
    "to_yaml",
    "without_folder",
    "without_folders",
]


def _key(default: Any, meaning: str) -> Any:
    """A configuration key with its one line of meaning for ``--help``."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


def _group(kind: type) -> Any:
    return field(default_factory=kind)


@dataclass
class BatchConfig:
    size: int = _key(256, "images in a batch")
    workers: int | None = _key(None, "threads that decode images; null: one for each processor core")


@dataclass
class FinetuneBatchConfig:
    size: int = _key(32, "labelled images in a batch; fewer where the budget is small")


@dataclass
class ReadingConfig:
    fit: str = _key("pad", "how images become squares: pad (whole, on black), crop (central square) or squash")
    window: str = _key(
        "file",
        "more than 8 bits: file (the DICOM's window, else percentiles), percentiles, or for CT lung, mediastinum, "
        "abdomen, brain, bone",
    )
    frames: str = _key("all", "of files with several frames: all, middle or every_N, such as every_5")


@dataclass
class ViewsConfig:
    size: int = _key(224, "side of the square views in pixels")
    grids: list[int] = _key(
        [16, 8, 4],
        "tiles along each side for each tap, finest first; 1 leaves in order; [] is plain Barlow Twins",
    )
    share: float = _key(1.0, "share of each batch that is shuffled; 0.5 halves the cost of the jigsaw steps")
    preset: str = _key("strong", "strong (crop, flip, jitter, blur) or paper (as published)")


@dataclass
class FinetuneViewsConfig:
    size: int | None = _key(None, "side of the images in pixels; null: the encoder's")
    grids: list[int] = _key([8, 4, 2], "tiles along each side of the three jigsaw steps, in mode progressive")
    preset: str = _key("mild", "mild (crop .6-1, flip, jitter) or strong")


@dataclass
class BlockConfig:
    variant: str = _key("light", "light (1x1 convolution, average pooling, projector) or paper (two convolutions, max)")
    width: int = _key(256, "channels inside a branch")
    projection: int = _key(512, "width of the projections")


@dataclass
class LossConfig:
    weights: list[float] = _key([1.0, 1.0, 1.0, 2.0], "weights of the three taps and of their concatenation")
    off_diagonal: float = _key(5e-3, "lambda of Barlow Twins' redundancy term")


@dataclass
class OptimizerConfig:
    name: str = _key("adamw", "adamw, sgd or lars")
    lr: float | None = _key(None, "learning rate at the top of the schedule; null: adamw 2e-3, sgd 2e-3, lars 0.2")
    weight_decay: float | None = _key(None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases")
    encoder_scale: float = _key(1.0, "the encoder's learning rate as a multiple of lr (0.1 as published)")
    warmup: float = _key(0.1, "share of the run in which the rate rises")


@dataclass
class FinetuneOptimizerConfig:
    name: str = _key("adamw", "adamw, sgd or lars")
    lr: list[float] = _key([5e-4], "encoder's rate, or several among which validation chooses")
    weight_decay: float | None = _key(None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases")
    head_scale: float = _key(10.0, "the classifier's learning rate as a multiple of lr")


@dataclass
class CurveOptimizerConfig(FinetuneOptimizerConfig):
    lr: list[float] = _key([2.5e-4, 1e-3], "encoder's rates among which validation chooses, the same for all encoders")


@dataclass
class TrainerConfig:
    max_epochs: int = _key(100, "passes over the archive")
    accelerator: str = _key("auto", "auto, cpu, gpu or mps")
    devices: int = _key(1, "number of devices; more than one trains data-parallel with synchronised batch norm")


@dataclass
class FinetuneTrainerConfig:
    max_epochs: int | None = _key(None, "most passes over the labelled images; null: 30, or more for 150 updates")
    accelerator: str = _key("auto", "auto, cpu, gpu or mps")


@dataclass
class PretrainConfig:
    """Keys of ``pretrain``."""

    data: str = _key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str = _key("", "folder of this run (required)")
    config: str | None = _key(None, "YAML file of keys; the command line wins over it")
    manifest: str | None = _key(None, "CSV with path[,label,split,group], or folders; labels are not read here")
    split: str | None = _key(
        None, "rows to train on; null: train where the archive has splits, else all; all: all rows"
    )
    seed: int = _key(0, "seed of weights, views and order")
    resume: bool = _key(False, "go on from checkpoints/last.ckpt in out")
    overwrite: bool = _key(False, "replace an earlier run in out")
    precision: str = _key("auto", "auto (bf16 where the device has it), bf16, 16 or 32")
    schedule: str = _key("joint", "joint (one update a batch) or progressive (four, as published)")
    backbone: str = _key("resnet18", "name of a timm model with stages")
    backbone_options: dict[str, Any] = _key({}, "numbers for the timm model, such as {channels: [32, 64, 128, 256]}")
    stem_stride: int | None = _key(None, "1, 2 or 4; null: 1 up to 32 px, 2 up to 64 px, else 4")
    encoder: str | None = _key(None, "start from weights: an encoder.safetensors, or timm:BACKBONE; null: fresh")
    cache: str | None = _key(None, "folder for decoded images, shared by runs; null: OUT/cache; off: decode each time")
    layout: str | None = _key(None, "public set that data is, as downloaded; see README")
    max_bad_fraction: float = _key(0.1, "share of unreadable images above which the run stops")
    reading: ReadingConfig = _group(ReadingConfig)
    batch: BatchConfig = _group(BatchConfig)
    views: ViewsConfig = _group(ViewsConfig)
    block: BlockConfig = _group(BlockConfig)
    loss: LossConfig = _group(LossConfig)
    optimizer: OptimizerConfig = _group(OptimizerConfig)
    trainer: TrainerConfig = _group(TrainerConfig)


@dataclass
class SupervisedConfig:
    """What every command on labelled images shares."""

    data: str = _key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    manifest: str | None = _key(None, "CSV with path,label[,split,group], or folders; npz and demo bring their own")
    out: str = _key("", "folder of this run (required)")
    config: str | None = _key(None, "YAML file of keys; the command line wins over it")
    mode: str = _key("auto", "auto (probe, full from it, or between), full, linear, knn or progressive")
    budget: str = _key("images", "what a fraction counts: images, or groups where a group is copies of one specimen")
    validation: str = _key(
        "budget", "budget (inside the fraction) or split (the whole val split, outside the fraction)"
    )
    split: str = _key("train", "rows that the fraction is taken from")
    resume: bool = _key(False, "go on with what is in out; a finished run is left as it is")
    overwrite: bool = _key(False, "replace an earlier run in out")
    precision: str = _key("auto", "auto (bf16 where the device has it), bf16, 16 or 32")
    layout: str | None = _key(None, "public set that data is, as downloaded; see README")
    allow_overlap: bool = _key(False, "go on where pretraining has seen images or groups of validation or test")
    class_weights: str = _key("balanced", "balanced (inverse frequency) or none")
    dropout: float = _key(0.0, "share of the features left out in training; above 0 adds Monte-Carlo dropout")
    ordered: bool = _key(False, "the classes are grades: quadratic kappa")
    sensitivity: float = _key(0.95, "that the operating point of two classes must reach on validation")
    coverage: float = _key(0.9, "that conformal sets promise")
    subgroups: list[str] = _key([], "columns of the manifest by which the test result is broken down, such as [site]")
    views: FinetuneViewsConfig = _group(FinetuneViewsConfig)
    batch: FinetuneBatchConfig = _group(FinetuneBatchConfig)
    optimizer: FinetuneOptimizerConfig = _group(FinetuneOptimizerConfig)
    trainer: FinetuneTrainerConfig = _group(FinetuneTrainerConfig)


@dataclass
class FinetuneConfig(SupervisedConfig):
    """Keys of ``finetune``."""

    encoder: str = _key("", "encoder.safetensors, random:FILE, random:BACKBONE or timm:BACKBONE (required)")
    fraction: float = _key(1.0, "share of the training labels that may be used, validation included")
    subset: str | None = _key(None, "CSV with the paths whose labels may be used, such as one of a curve's subsets/")
    seed: int = _key(0, "seed of the label draw, weights and order")


@dataclass
class CurveConfig(SupervisedConfig):
    """Keys of ``curve``."""

    encoders: dict[str, str] = _key(
        {}, "name: encoder for each, as finetune takes them; the first is compared (required)"
    )
    fractions: list[float] = _key([0.01, 0.03, 0.1, 0.3, 1.0], "shares of the training labels")
    seeds: int = _key(5, "draws of the labels for each share")
    subsets: str | None = _key(
        None, "subsets/ of another curve, to use the same labels; null: drawn and written to out"
    )
    jobs: int | None = _key(None, "processes; null: one for each core or GPU, at most 8")
    optimizer: CurveOptimizerConfig = _group(CurveOptimizerConfig)


@dataclass
class DoctorConfig:
    """Keys of ``doctor``."""

    data: str = _key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str | None = _key(None, "folder for doctor.json, table.parquet and contact sheets; null: text only")
    manifest: str | None = _key(None, "CSV with path[,label,split,group], or folders")
    layout: str | None = _key(None, "public set that data is, as downloaded; see README")
    reading: ReadingConfig = _group(ReadingConfig)


@dataclass
class BenchConfig(PretrainConfig):
    """Keys of ``bench``: those of the run that is judged."""

    out: str = _key("-", "not used: nothing is written")
    rounds: int = _key(5, "steps that are timed")


@dataclass
class ReportConfig:
    """Keys of ``report``."""

    run: str = _key("", "folder of a run or curve whose report.html is to be made anew (required)")


@dataclass
class DemoConfig:
    """Keys of ``demo``."""

    out: str = _key("runs/demo", "folder of the demo's runs")
    seed: int = _key(0, "seed of everything")


Config = TypeVar(
    "Config", PretrainConfig, FinetuneConfig, CurveConfig, DoctorConfig, DemoConfig, BenchConfig, ReportConfig
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
    "class_weights": ("balanced", "none"),
    "reading.fit": FITS,
    "reading.window": ("file", "percentiles", "lung", "mediastinum", "abdomen", "brain", "bone"),
}
_POSITIVE = ("optimizer.lr", "optimizer.head_scale", "optimizer.encoder_scale")
_LEAST = {
    "seed": 0,
    "batch.size": 2,
    "batch.workers": 1,
    "rounds": 1,
    "seeds": 1,
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
            value = parsed["value"]  # type: ignore[index, call-overload]
            values[key] = [value] if kind == list[float] and isinstance(value, (int, float)) else value
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
    groups = {key.rpartition(".")[0] for key in _leaves(schema)} - {""}
    values: dict[str, Any] = {}

    def flatten(node: dict[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in groups and isinstance(value, dict):
                flatten(value, f"{key}.")
            else:
                values[key] = value

    flatten(loaded, "")
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
            raise UserError(f"`{key}` ({value}) must be one of {', '.join(_CHOICES[key])}")
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
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` (both true) exclude each other; drop one")
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


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def load_config(schema: type[Config], arguments: Sequence[str]) -> Config:
    """Defaults, then the YAML file named by ``config=``, then ``key=value`` arguments.

    Args:
        schema: one of :class:`PretrainConfig`, :class:`FinetuneConfig`, :class:`CurveConfig`, :class:`DoctorConfig`,
            :class:`BenchConfig`, :class:`ReportConfig` and :class:`DemoConfig`.
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
    config = OmegaConf.structured(schema)
    path = given.get("config")
    for source in (_from_file(path, schema) if path is not None else {}, given):
        for key, value in source.items():
            _set(config, key, value, schema)
    try:
        _check(config, schema)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be used; {_reason(error)}; see `--help`") from None
    assert isinstance(result, schema)
    return result


def to_yaml(config: PretrainConfig | SupervisedConfig) -> str:
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
