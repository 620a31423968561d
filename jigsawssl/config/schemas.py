"""Every key of every command, with its default and one line of meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import defaults

__all__ = [
    "BenchConfig",
    "CurveConfig",
    "DemoConfig",
    "DoctorConfig",
    "FinetuneConfig",
    "PretrainConfig",
    "ReportConfig",
    "StudyConfig",
    "SupervisedConfig",
    "TransferConfig",
]


def _key(default: Any, meaning: str) -> Any:
    """A configuration key with its one line of meaning for ``--help``."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


_KEPT = "null: as the encoder to go on from, else"


def _listed(choices: Mapping[str, str]) -> str:
    """Choices and what each does."""
    *first, last = (f"{name} ({does})" for name, does in choices.items())
    return f"{', '.join(first)} or {last}"


def _group(kind: type) -> Any:
    return field(default_factory=kind)


@dataclass
class BatchConfig:
    size: int = _key(256, "images in a batch")
    workers: int | None = _key(None, "threads that decode images; null: one per CPU core")


@dataclass
class FinetuneBatchConfig:
    size: int = _key(32, "labelled images in a batch; fewer where the budget is small")


@dataclass
class ReadingConfig:
    fit: str | None = _key(
        None, f"how images become square: pad (whole, on black), crop (the centre) or squash; {_KEPT} {defaults.FIT}"
    )
    window: str | None = _key(
        None,
        "more than 8 bits: file (the DICOM's window, else percentiles), percentiles, or for CT lung, mediastinum, "
        f"abdomen, brain, bone; {_KEPT} {defaults.WINDOW}",
    )
    stain: str | None = _key(
        None, f"stained tissue: none, macenko, or reinhard (to the archive's own average colours); {_KEPT} none"
    )
    frames: str = _key("all", "frames of multi-frame files: all, middle or every_N, such as every_5")


@dataclass
class ViewsConfig:
    size: int | None = _key(None, f"side of the square views in pixels; {_KEPT} {defaults.SIZE}")
    grids: list[int] = _key(
        list(defaults.GRIDS),
        "tiles per side for each tap, finest first; 1 keeps the order; [] is plain Barlow Twins",
    )
    share: float = _key(
        defaults.SHARE, "share of each batch that is shuffled; 1, as published, doubles the cost of the jigsaw"
    )
    preset: str = _key(defaults.VIEWS, _listed(defaults.PRESETS))


@dataclass
class FinetuneViewsConfig:
    size: int | None = _key(None, "side of the images in pixels; null: the encoder's")
    grids: list[int] = _key([8, 4, 2], "tiles per side in the three jigsaw steps of mode progressive")
    preset: str = _key("mild", "mild (crop .6-1, flip, jitter) or strong")


@dataclass
class BlockConfig:
    variant: str = _key(
        defaults.BRANCH, "light (1x1 convolution, average pooling, projector) or paper (two convolutions, max)"
    )
    width: int = _key(defaults.WIDTH, "channels inside a branch")
    projection: int = _key(defaults.PROJECTION, "width of the projections")


@dataclass
class LossConfig:
    weights: list[float] = _key(list(defaults.TAP_WEIGHTS), "weights of the three taps and of their concatenation")
    off_diagonal: float = _key(defaults.OFF_DIAGONAL, "lambda of Barlow Twins' redundancy term")


@dataclass
class OptimizerConfig:
    name: str = _key(defaults.OPTIMIZER, "adamw, sgd or lars")
    lr: float | None = _key(None, "learning rate at the top of the schedule; null: adamw 2e-3, sgd 2e-3, lars 0.2")
    weight_decay: float | None = _key(None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases")
    encoder_scale: float = _key(
        defaults.ENCODER_SCALE, "the encoder's learning rate as a multiple of lr (0.1 as published)"
    )
    warmup: float = _key(defaults.WARMUP, "share of the run in which the learning rate warms up")


@dataclass
class FinetuneOptimizerConfig:
    name: str = _key("adamw", "adamw, sgd or lars")
    lr: list[float] = _key([5e-4], "the encoder's learning rate, or several for validation to choose from")
    weight_decay: float | None = _key(None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases")
    head_scale: float = _key(10.0, "the classifier's learning rate as a multiple of lr")
    layer_decay: float = _key(1.0, "a stage's learning rate as a multiple of that of the next deeper one")


@dataclass
class CurveOptimizerConfig(FinetuneOptimizerConfig):
    lr: list[float] = _key([2.5e-4, 1e-3], "learning rates for validation to choose from, the same for every encoder")


@dataclass
class TrainerConfig:
    max_epochs: int = _key(100, "epochs: passes over the archive")
    accelerator: str = _key("auto", "auto, cpu, gpu or mps")
    devices: int = _key(1, "number of devices; more than one trains data-parallel with synchronised batch norm")


@dataclass
class FinetuneTrainerConfig:
    max_epochs: int | None = _key(None, "most epochs; null: 30, or as many as 150 updates take")
    accelerator: str = _key("auto", "auto, cpu, gpu or mps")


@dataclass
class PretrainConfig:
    """Keys of ``pretrain``."""

    data: str = _key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str = _key("", "folder of this run (required)")
    config: str | None = _key(None, "YAML file of keys, or the name of a shipped one; the command line wins over it")
    manifest: str | None = _key(None, "CSV with path[,label,split,group], or folders; labels are not read here")
    split: str | None = _key(
        None, "rows to train on; null: train, or without splits all but a test split made by hash; all: all rows"
    )
    seed: int = _key(0, "seed of weights, views and order")
    resume: bool = _key(False, "continue from checkpoints/last.ckpt in out")
    overwrite: bool = _key(False, "replace an earlier run in out")
    precision: str = _key("auto", "auto (bf16 where the device has it), bf16, 16 (on a GPU) or 32")
    schedule: str = _key(defaults.SCHEDULE, "joint (one update a batch) or progressive (four, as published)")
    backbone: str = _key("resnet18", "name of a timm model with stages")
    backbone_options: dict[str, Any] = _key({}, "options of the timm model, such as {channels: [32, 64, 128, 256]}")
    stem_stride: int | None = _key(None, "1, 2 or 4, if the network can; null: 1 up to 32 px, 2 up to 64 px, else 4")
    attention: str | None = _key(
        None, "se, eca, cbam, ga (global), la (local) or ela (embedded local); null: none, or what encoder has"
    )
    attention_stages: list[int] = _key(
        list(defaults.ATTENTION_STAGES), "stages that get attention, 1 (shallow) to 4 (deep) in most networks"
    )
    train: str = _key("all", "stages that learn: all, from:stage3 (and deeper) or to:stage2 (and shallower)")
    encoder: str | None = _key(
        None, "weights to start from: encoder.safetensors, the folder of its run, or timm:BACKBONE; null: none"
    )
    cache: str | None = _key(
        None, "folder for decoded images, shared by runs; null: OUT/cache; off: decode every epoch"
    )
    layout: str | None = _key(None, "the public data set that data holds, as downloaded; see README")
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
    config: str | None = _key(None, "YAML file of keys, or the name of a shipped one; the command line wins over it")
    mode: str = _key("auto", _listed(defaults.MODES))
    budget: str = _key("images", "what a fraction counts: images, or groups where a group is copies of one specimen")
    validation: str = _key(
        "budget", "budget (inside the fraction) or split (the whole val split, outside the fraction)"
    )
    split: str = _key("train", "rows that the fraction is taken from")
    resume: bool = _key(False, "continue what is in out; a finished run is left alone")
    overwrite: bool = _key(False, "replace an earlier run in out")
    precision: str = _key("auto", "auto (bf16 where the device has it), bf16, 16 (on a GPU) or 32")
    layout: str | None = _key(None, "the public data set that data holds, as downloaded; see README")
    allow_overlap: bool = _key(False, "continue although pretraining saw images or groups of validation or test")
    class_weights: str = _key("balanced", "balanced (inverse frequency) or none")
    backbone_options: dict[str, Any] = _key({}, "options of the timm model of random:BACKBONE")
    attention: str | None = _key(
        None, "attention to add, as in pretrain; it starts as the identity; null: what the encoder has"
    )
    attention_stages: list[int] = _key(
        list(defaults.ATTENTION_STAGES), "stages that get attention, 1 (shallow) to 4 (deep) in most networks"
    )
    stain: str | None = _key(
        None,
        "stained tissue: none, macenko or reinhard (to the labelled images' own colours); null: as the encoder",
    )
    head: str = _key("linear", "linear, or dense (four layers with dropout) in mode full")
    train: str = _key("all", "what learns: all, head, from:stage3 (and deeper) or to:stage2 (and shallower)")
    unfreeze_every: int = _key(0, "unfreeze one more stage every so many epochs, deepest first; 0: all at once")
    dropout: float = _key(0.0, "dropout rate in training; above 0, finetune also estimates uncertainty with it")
    classes: list[str] = _key([], "all classes in order, such as [none, mild, severe]; default: by name or number")
    positive: str | None = _key(None, "the positive one of two classes; null: the one not called normal, or the last")
    ordered: bool = _key(False, "classes are grades, mildest first; adds quadratic kappa")
    sensitivity: float = _key(0.95, "sensitivity that the operating point of two classes must reach on validation")
    coverage: float = _key(0.9, "coverage that conformal sets promise")
    subgroups: list[str] = _key([], "manifest columns to break the test result down by, such as [site]")
    views: FinetuneViewsConfig = _group(FinetuneViewsConfig)
    batch: FinetuneBatchConfig = _group(FinetuneBatchConfig)
    optimizer: FinetuneOptimizerConfig = _group(FinetuneOptimizerConfig)
    trainer: FinetuneTrainerConfig = _group(FinetuneTrainerConfig)


@dataclass
class FinetuneConfig(SupervisedConfig):
    """Keys of ``finetune``."""

    encoder: str = _key(
        "", "encoder.safetensors or the folder of its run, random:FILE, random:BACKBONE or timm:BACKBONE (required)"
    )
    fraction: float = _key(
        1.0,
        "share of the training labels that may be used, validation included: 1 is all labels, 0.01 or 1% one per cent",
    )
    subset: str | None = _key(None, "CSV with the paths whose labels may be used, such as one of a curve's subsets/")
    seed: int = _key(0, "seed of the label draw, weights and order")


@dataclass
class CurveConfig(SupervisedConfig):
    """Keys of ``curve``."""

    encoders: dict[str, str] = _key(
        {}, "name: encoder for each, as finetune takes them; the first is compared (required)"
    )
    fractions: list[float] = _key(
        [0.01, 0.03, 0.1, 0.3, 1.0], "shares of the training labels: 1 is all, 0.01 or 1% is one per cent"
    )
    seeds: int = _key(5, "label draws for each share")
    subsets: str | None = _key(
        None, "subsets/ of another curve, to use the same labels; null: drawn and written to out"
    )
    jobs: int | None = _key(None, "parallel processes; null: one per core or GPU, at most 8")
    optimizer: CurveOptimizerConfig = _group(CurveOptimizerConfig)


@dataclass
class StudyConfig(SupervisedConfig):
    """Keys of ``study``."""

    mode: str = _key("full", "full: every variant is trained")
    variants: dict[str, dict[str, Any]] = _key(
        {},
        "name: {encoder, backbone_options, attention, attention_stages, against: another, else the first} (required)",
    )
    domains: dict[str, dict[str, Any]] = _key(
        {}, "name: {data, manifest, layout}: archives of the same classes that are only tested on"
    )
    space: dict[str, list[float]] = _key(
        {"optimizer.lr": [1e-4, 3e-3], "optimizer.weight_decay": [5e-3, 0.5]},
        "[low, high] of optimizer.lr, weight_decay, head_scale, layer_decay or dropout; log scale where low is above 0",
    )
    trials: int = _key(10, "settings to try for each variant, the defaults first; poor ones stop early")
    fraction: float = _key(
        1.0,
        "share of the training labels that may be used, validation included: 1 is all labels, 0.01 or 1% one per cent",
    )
    seeds: int = _key(5, "training runs of each variant with the settings that its search chose")
    jobs: int | None = _key(None, "parallel processes; null: one per core or GPU, at most 8")


@dataclass
class DoctorConfig:
    """Keys of ``doctor``."""

    data: str = _key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str | None = _key(None, "folder for doctor.json, table.parquet and contact sheets; null: text only")
    manifest: str | None = _key(None, "CSV with path[,label,split,group], or folders")
    layout: str | None = _key(None, "the public data set that data holds, as downloaded; see README")
    reading: ReadingConfig = _group(ReadingConfig)


@dataclass
class BenchConfig(PretrainConfig):
    """Keys of ``bench``: those of the run that is judged."""

    out: str = _key("-", "not used: nothing is written")
    rounds: int = _key(5, "steps that are timed")


@dataclass
class TransferConfig:
    """Keys of ``transfer``."""

    config: str = _key("", "YAML file with the stages, or the name of a shipped one (required)")
    out: str = _key("", "folder of the chain, with one for each stage in it (required)")
    stages: list[dict[str, Any]] = _key(
        [], "name, objective (supervised or jigsaw), encoder (previous: of the stage before) and keys of that command"
    )
    resume: bool = _key(False, "continue what is in out; finished stages are left alone")
    overwrite: bool = _key(False, "replace an earlier chain in out")


@dataclass
class ReportConfig:
    """Keys of ``report``."""

    run: str = _key("", "folder of the run, curve or study whose report.html is rebuilt (required)")


@dataclass
class DemoConfig:
    """Keys of ``demo``."""

    out: str = _key("runs/demo", "folder of the demo's runs")
    seed: int = _key(0, "seed of everything")
