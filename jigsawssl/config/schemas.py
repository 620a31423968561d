"""Every command: what it does, and its keys with their defaults, one line of meaning and what must hold for them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import defaults
from ..types import ATTENTIONS, STAINS, UserError
from . import groups
from .keys import group, key, listed

_LARGEST_SEED = 2**32 - 1  # NumPy takes no larger one
_PRECISIONS = ("auto", "bf16", "16", "32")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SEARCHED = ("optimizer.lr", "optimizer.weight_decay", "optimizer.head_scale", "optimizer.layer_decay", "dropout")
_VARIANT: dict[str, tuple[type | None, str]] = {
    "attention_stages": (list, "[3, 4]"),
    "backbone_options": (dict, "{channels: [16, 32]}"),
    "attention": (None, ""),
    "against": (None, ""),
}
"""What a variant may say beside its encoder, and its form."""


def _check_earlier(config: PretrainConfig | SelectConfig | SupervisedConfig | TransferConfig) -> None:
    """What is to become of an earlier run must be one thing."""
    if config.resume and config.overwrite:
        raise UserError("`resume` and `overwrite` must not both be true; drop one")


def _check_run(config: PretrainConfig | SupervisedConfig) -> None:
    """What holds for every training."""
    _check_earlier(config)
    if not re.fullmatch(r"all|head|(from|to):stage\d+", config.train):
        raise UserError(f"`train` ({config.train}) must be all, head, from:STAGE or to:STAGE, such as from:stage3")


def _check_fractions(name: str, fractions: Sequence[float], given: Any) -> None:
    if fractions and all(0 < fraction <= 1 for fraction in fractions):
        return
    large = next((fraction for fraction in fractions if 1 < fraction <= 100), None)
    hint = f"1 is all labels, and {large:g} per cent is {large / 100:g} or {large:g}%" if large else ""
    raise UserError(f"`{name}` ({given}) must lie in (0, 1]; {hint or '1 is all labels, 0.01 or 1% is one per cent'}")


def _check_names(where: str, names: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"`{where}` ({name}) must consist of letters, digits, _ and - alone, as files are named after it"
            )


@dataclass
class PretrainConfig:
    """Keys of ``pretrain``."""

    data: str = key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str = key("", "folder of this run (required)")
    config: str | None = key(None, "YAML file of keys, or the name of a shipped one; the command line wins over it")
    manifest: str | None = key(None, "CSV with path[,label,split,group], or folders; labels are not read here")
    split: str | None = key(
        None, "rows to train on; null: train, or without splits all but a test split made by hash; all: all rows"
    )
    seed: int = key(0, "seed of weights, views and order", least=0, most=_LARGEST_SEED)
    resume: bool = key(False, "continue from checkpoints/last.ckpt in out")
    overwrite: bool = key(False, "replace an earlier run in out")
    precision: str = key("auto", "auto (bf16 where the device has it), bf16, 16 (on a GPU) or 32", choices=_PRECISIONS)
    schedule: str = key(
        defaults.SCHEDULE,
        "joint (one update a batch) or progressive (four, as published)",
        choices=("joint", "progressive"),
    )
    backbone: str = key("resnet18", "name of a timm model with stages")
    backbone_options: dict[str, Any] = key({}, "options of the timm model, such as {channels: [32, 64, 128, 256]}")
    stem_stride: int | None = key(None, "1, 2 or 4, if the network can; null: 1 up to 32 px, 2 up to 64 px, else 4")
    attention: str | None = key(
        None,
        "se, eca, cbam, ga (global), la (local) or ela (embedded local); null: none, or what encoder has",
        choices=(None, *ATTENTIONS),
    )
    attention_stages: list[int] = key(
        list(defaults.ATTENTION_STAGES), "stages that get attention, 1 (shallow) to 4 (deep) in most networks"
    )
    train: str = key("all", "stages that learn: all, from:stage3 (and deeper) or to:stage2 (and shallower)")
    encoder: str | None = key(
        None, "weights to start from: encoder.safetensors, the folder of its run, or timm:BACKBONE; null: none"
    )
    cache: str | None = key(None, "folder for decoded images, shared by runs; null: OUT/cache; off: decode every epoch")
    layout: str | None = key(None, "the public data set that data holds, as downloaded; see README")
    max_bad_fraction: float = key(0.1, "share of unreadable images above which the run stops")
    reading: groups.ReadingConfig = group(groups.ReadingConfig)
    batch: groups.BatchConfig = group(groups.BatchConfig)
    views: groups.ViewsConfig = group(groups.ViewsConfig)
    block: groups.BlockConfig = group(groups.BlockConfig)
    loss: groups.LossConfig = group(groups.LossConfig)
    optimizer: groups.OptimizerConfig = group(groups.OptimizerConfig)
    trainer: groups.TrainerConfig = group(groups.TrainerConfig)

    def check(self) -> None:
        """What must hold for several keys together."""
        _check_run(self)
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"`max_bad_fraction` ({self.max_bad_fraction}) must lie in [0, 1]; 0.1 is a tenth")
        for name in ("backbone", "backbone_options", "stem_stride") if self.encoder is not None else ():
            if getattr(self, name) != getattr(PretrainConfig(), name):
                raise UserError(
                    f"`{name}` ({getattr(self, name)}) must be left out beside `encoder` ({self.encoder}), which "
                    "decides it"
                )
        if self.cache == "off" and self.trainer.devices > 1:
            raise UserError("`cache` (off) must be left out with several devices, which share what was decoded once")


@dataclass
class SupervisedConfig:
    """What every command on labelled images shares."""

    data: str = key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    manifest: str | None = key(None, "CSV with path,label[,split,group], or folders; npz and demo bring their own")
    out: str = key("", "folder of this run (required)")
    config: str | None = key(None, "YAML file of keys, or the name of a shipped one; the command line wins over it")
    mode: str = key("auto", listed(defaults.MODES), choices=tuple(defaults.MODES))
    budget: str = key(
        "images",
        "what a fraction counts: images, or groups where a group is copies of one specimen",
        choices=("images", "groups"),
    )
    validation: str = key(
        "budget",
        "budget (inside the fraction) or split (the whole val split, outside the fraction)",
        choices=("budget", "split"),
    )
    split: str = key("train", "rows that the fraction is taken from")
    resume: bool = key(False, "continue what is in out; a finished run is left alone")
    overwrite: bool = key(False, "replace an earlier run in out")
    precision: str = key("auto", "auto (bf16 where the device has it), bf16, 16 (on a GPU) or 32", choices=_PRECISIONS)
    layout: str | None = key(None, "the public data set that data holds, as downloaded; see README")
    allow_overlap: bool = key(False, "continue although pretraining saw images or groups of validation or test")
    class_weights: str = key("balanced", "balanced (inverse frequency) or none", choices=("balanced", "none"))
    backbone_options: dict[str, Any] = key({}, "options of the timm model of random:BACKBONE")
    attention: str | None = key(
        None,
        "attention to add, as in pretrain; it starts as the identity; null: what the encoder has",
        choices=(None, *ATTENTIONS),
    )
    attention_stages: list[int] = key(
        list(defaults.ATTENTION_STAGES), "stages that get attention, 1 (shallow) to 4 (deep) in most networks"
    )
    stain: str | None = key(
        None,
        "stained tissue: none, macenko or reinhard (to the labelled images' own colours); null: as the encoder",
        choices=(None, *STAINS),
    )
    head: str = key("linear", "linear, or dense (four layers with dropout) in mode full", choices=("linear", "dense"))
    train: str = key("all", "what learns: all, head, from:stage3 (and deeper) or to:stage2 (and shallower)")
    unfreeze_every: int = key(0, "unfreeze one more stage every so many epochs, deepest first; 0: all at once", least=0)
    dropout: float = key(0.0, "dropout rate in training; above 0, finetune also estimates uncertainty with it")
    classes: list[str] = key([], "all classes in order, such as [none, mild, severe]; default: by name or number")
    positive: str | None = key(None, "the positive one of two classes; null: the one not called normal, or the last")
    ordered: bool = key(False, "classes are grades, mildest first; adds quadratic kappa")
    sensitivity: float = key(0.95, "sensitivity that the operating point of two classes must reach on validation")
    coverage: float = key(0.9, "coverage that conformal sets promise")
    subgroups: list[str] = key([], "manifest columns to break the test result down by, such as [site]")
    views: groups.FinetuneViewsConfig = group(groups.FinetuneViewsConfig)
    batch: groups.FinetuneBatchConfig = group(groups.FinetuneBatchConfig)
    optimizer: groups.FinetuneOptimizerConfig = group(groups.FinetuneOptimizerConfig)
    trainer: groups.FinetuneTrainerConfig = group(groups.FinetuneTrainerConfig)

    def check(self) -> None:
        """What must hold for several keys together."""
        _check_run(self)
        for name in ("sensitivity", "coverage"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"`{name}` ({getattr(self, name)}) must lie in (0, 1]; leave it out for the default")
        if not 0 <= self.dropout < 1:
            raise UserError(f"`dropout` ({self.dropout}) must lie in [0, 1); 0.2 leaves out a fifth of the features")
        if self.head == "dense" and self.mode not in ("full", "auto"):
            raise UserError(f"`head` (dense) goes with mode=full, not `mode` ({self.mode}); leave one out")


@dataclass
class FinetuneConfig(SupervisedConfig):
    """Keys of ``finetune``."""

    encoder: str = key(
        "", "encoder.safetensors or the folder of its run, random:FILE, random:BACKBONE or timm:BACKBONE (required)"
    )
    fraction: float = key(
        1.0,
        "share of the training labels that may be used, validation included: 1 is all labels, 0.01 or 1% one per cent",
    )
    subset: str | None = key(None, "CSV with the paths whose labels may be used, such as one of a curve's subsets/")
    seed: int = key(0, "seed of the label draw, weights and order", least=0, most=_LARGEST_SEED)
    unlabeled: bool = key(False, "the probe also learns from images of the training split without a label")

    def check(self) -> None:
        """And the share of the labels."""
        super().check()
        if self.unlabeled and self.mode not in ("auto", "linear"):
            raise UserError(f"`unlabeled` (true) goes with mode=auto or linear, not `mode` ({self.mode}); leave it out")
        _check_fractions("fraction", [self.fraction], self.fraction)


@dataclass
class CurveConfig(SupervisedConfig):
    """Keys of ``curve``."""

    encoders: dict[str, str] = key(
        {}, "name: encoder for each, as finetune takes them; the first is compared (required)"
    )
    fractions: list[float] = key(
        [0.01, 0.03, 0.1, 0.3, 1.0], "shares of the training labels: 1 is all, 0.01 or 1% is one per cent"
    )
    seeds: int = key(5, "label draws for each share", least=1)
    subsets: str | None = key(None, "subsets/ of another curve, to use the same labels; null: drawn and written to out")
    jobs: int | None = key(None, "parallel processes; null: one per core or GPU, at most 8", least=1)
    optimizer: groups.CurveOptimizerConfig = group(groups.CurveOptimizerConfig)

    def check(self) -> None:
        """And the shares of the labels, and names that become names of files."""
        super().check()
        _check_fractions("fractions", self.fractions, self.fractions)
        _check_names("encoders", self.encoders)


@dataclass
class StudyConfig(SupervisedConfig):
    """Keys of ``study``."""

    mode: str = key("full", "full: every variant is trained", choices=tuple(defaults.MODES))
    variants: dict[str, dict[str, Any]] = key(
        {},
        "name: {encoder, backbone_options, attention, attention_stages, against: another, else the first} (required)",
    )
    domains: dict[str, dict[str, Any]] = key(
        {}, "name: {data, manifest, layout}: archives of the same classes that are only tested on"
    )
    space: dict[str, list[float]] = key(
        {"optimizer.lr": [1e-4, 3e-3], "optimizer.weight_decay": [5e-3, 0.5]},
        "[low, high] of optimizer.lr, weight_decay, head_scale, layer_decay or dropout; log scale where low is above 0",
    )
    trials: int = key(10, "settings to try for each variant, the defaults first; poor ones stop early", least=1)
    fraction: float = key(
        1.0,
        "share of the training labels that may be used, validation included: 1 is all labels, 0.01 or 1% one per cent",
    )
    seeds: int = key(5, "training runs of each variant with the settings that its search chose", least=1)
    jobs: int | None = key(None, "parallel processes; null: one per core or GPU, at most 8", least=1)

    def check(self) -> None:
        """And variants, domains, and what is searched."""
        super().check()
        _check_fractions("fraction", [self.fraction], self.fraction)
        if self.mode != "full":
            raise UserError(f"`mode` ({self.mode}) must be full in a study; a curve compares by the others")
        if len(self.variants) < 2:
            raise UserError(
                f"`variants` ({len(self.variants)}) must be two or more; one variant has nothing to be compared with"
            )
        self._check_parts("variants", "encoder", {*_VARIANT, "encoder"})
        self._check_parts("domains", "data", {"data", "manifest", "layout"})
        for name, values in self.variants.items():
            self._check_variant(name, values)
        if len(self.optimizer.lr) != 1:
            raise UserError(f"`optimizer.lr` ({self.optimizer.lr}) must be one rate, where the search begins")
        if not self.space and self.trials > 1:
            raise UserError(f"`trials` ({self.trials}) must be 1 where `space` names nothing to search")
        for searched, limits in self.space.items():
            if searched not in _SEARCHED:
                raise UserError(f"`space` ({searched}) must be one of {', '.join(_SEARCHED)}")
            least = 0.0 if searched in ("dropout", "optimizer.weight_decay") else 1e-12
            most = 1.0 if searched == "dropout" else math.inf
            if len(limits) != 2 or not least <= limits[0] <= limits[1] < most:
                raise UserError(f"`space.{searched}` ({limits}) must be [low, high] within what {searched} may be")

    def _check_parts(self, where: str, needed: str, known: set[str]) -> None:
        parts: dict[str, dict[str, Any]] = getattr(self, where)
        _check_names(where, parts)
        for name, values in parts.items():
            unknown = sorted(set(values or {}) - known)
            if unknown:
                raise UserError(f"`{where}.{name}` ({unknown[0]}) must be one of {', '.join(sorted(known))}")
            if not isinstance((values or {}).get(needed), str):
                raise UserError(f"`{where}.{name}` must have {needed}: …, as in configs/study/")

    def _check_variant(self, name: str, values: Mapping[str, Any]) -> None:
        for part, (kind, shape) in _VARIANT.items():
            if kind is not None and part in values and not isinstance(values[part], kind):
                raise UserError(f"`variants.{name}.{part}` ({values[part]}) must have the form {shape}")
        if not all(isinstance(stage, int) for stage in values.get("attention_stages", [])):
            raise UserError(f"`variants.{name}.attention_stages` ({values['attention_stages']}) must be whole numbers")
        attention, other = values.get("attention"), values.get("against")
        if attention not in (None, *ATTENTIONS):
            raise UserError(f"`variants.{name}.attention` ({attention}) must be one of {', '.join(ATTENTIONS)}")
        if other is not None and (other not in self.variants or other == name):
            raise UserError(f"`variants.{name}.against` ({other}) must be another variant")


@dataclass
class SelectConfig:
    """Keys of ``select``."""

    data: str = key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    encoder: str = key("", "encoder.safetensors or the folder of its run, whose features choose (required)")
    out: str = key("", "folder for to_label.csv, the pictures and the report (required)")
    config: str | None = key(None, "YAML file of keys, or the name of a shipped one; the command line wins over it")
    count: int = key(50, "images to choose", least=1)
    method: str = key(
        "typical",
        "typical (of its cluster), coverage, k-centre, stratified or random; with labels also margin or entropy",
        choices=defaults.SELECTIONS,
    )
    labelled: str | None = key(None, "CSV with path,label of what is labelled already, such as a filled to_label.csv")
    per_group: int = key(1, "images of a group or patient that may be labelled; 0: any number", least=0)
    manifest: str | None = key(None, "CSV with path[,label,split,group], or folders; labels are not read here")
    layout: str | None = key(None, "the public data set that data holds, as downloaded; see README")
    split: str | None = key(
        None, "rows to choose from; null: train, or without splits all but a test split made by hash; all: all rows"
    )
    seed: int = key(0, "seed of draws and clusters", least=0, most=_LARGEST_SEED)
    precision: str = key("auto", "auto (bf16 where the device has it), bf16, 16 (on a GPU) or 32", choices=_PRECISIONS)
    resume: bool = key(False, "continue what is in out; a finished choice is left alone")
    overwrite: bool = key(False, "replace an earlier choice in out")

    def check(self) -> None:
        """Not both ways with what is there."""
        _check_earlier(self)


@dataclass
class DoctorConfig:
    """Keys of ``doctor``."""

    data: str = key("", "folder of images, MedMNIST-style .npz, or demo (required)")
    out: str | None = key(None, "folder for doctor.json, table.parquet and contact sheets; null: text only")
    manifest: str | None = key(None, "CSV with path[,label,split,group], or folders")
    layout: str | None = key(None, "the public data set that data holds, as downloaded; see README")
    reading: groups.ReadingConfig = group(groups.ReadingConfig)


@dataclass
class BenchConfig(PretrainConfig):
    """Keys of ``bench``: those of the run that is judged."""

    out: str = key("-", "not used: nothing is written")
    rounds: int = key(5, "steps that are timed", least=1)


@dataclass
class TransferConfig:
    """Keys of ``transfer``."""

    config: str = key("", "YAML file with the stages, or the name of a shipped one (required)")
    out: str = key("", "folder of the chain, with one for each stage in it (required)")
    stages: list[dict[str, Any]] = key(
        [], "name, objective (supervised or jigsaw), encoder (previous: of the stage before) and keys of that command"
    )
    resume: bool = key(False, "continue what is in out; finished stages are left alone")
    overwrite: bool = key(False, "replace an earlier chain in out")

    def check(self) -> None:
        """Stages with names of their own, and what each may say."""
        if not self.stages:
            raise UserError(f"`config` ({self.config}) must list `stages`; see configs/transfer/ for examples")
        _check_earlier(self)
        names: list[str] = []
        for number, stage in enumerate(self.stages, start=1):
            name, objective = stage.get("name"), stage.get("objective", "supervised")
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
                raise UserError(f"`stages` ({number}) must each have a unique name of letters, digits, _ and -")
            names.append(name)
            if objective not in ("supervised", "jigsaw"):
                raise UserError(f"`stages` ({name}) must have the objective supervised or jigsaw, not {objective}")
            if "out" in stage:
                raise UserError(f"`stages` ({name}) must not name `out`; each gets a folder in that of the chain")
            if number == 1 and stage.get("encoder") == "previous":
                raise UserError(f"`stages` ({name}) must name its encoder, as no stage is before it")


@dataclass
class ReportConfig:
    """Keys of ``report``."""

    run: str = key("", "folder of the run, curve or study whose report.html is rebuilt (required)")


@dataclass
class DemoConfig:
    """Keys of ``demo``."""

    out: str = key("runs/demo", "folder of the demo's runs")
    seed: int = key(0, "seed of everything", least=0, most=_LARGEST_SEED)


class Command(NamedTuple):
    """A command of the command line; ``jigsawssl/cli/NAME.py`` has its ``run(config)``.

    Attributes:
        schema: its keys.
        meaning: one line about it.
        usage: what to give it.
        bare: the key of its first argument, where that may stand alone.
        kept: what an interruption leaves, and what to do then.
        may_change: keys that may differ on resume, such as names of places; ``None``: it has no run to resume.
        title: of its report; empty: it writes none. ``report/templates/NAME.html.j2`` has the page.
    """

    schema: type
    meaning: str
    usage: str
    bare: str | None = None
    kept: str = "; run it again"
    may_change: tuple[str, ...] | None = None
    title: str = ""


COMMANDS = {
    "pretrain": Command(
        PretrainConfig,
        "pretrain an encoder on unlabeled images",
        "data=ARCHIVE out=RUN",
        # Beside places: how long to pretrain, and how much at a time.
        may_change=("config", "out", "data", "manifest", "cache", "trainer", "batch.workers"),
        title="Pretraining",
    ),
    "finetune": Command(
        FinetuneConfig,
        "adapt an encoder to few labels and test it once",
        "data=ARCHIVE manifest=labels.csv encoder=RUN out=RUN2 [fraction=1%]",
        kept="; fine-tuning saves nothing before its end; resume=true starts over",
        may_change=("config",),
        title="Fine-tuning",
    ),
    "curve": Command(
        CurveConfig,
        "say how many labels an encoder saves: adapt several to growing shares of the labels, and compare",
        "data=ARCHIVE manifest=labels.csv out=CURVE encoders='{jigsaw: RUN, scratch: \"random:./RUN\"}'",
        kept="; what is finished of the curve is kept; go on with resume=true",
        may_change=("config", "jobs", "out"),
        title="Label efficiency",
    ),
    "study": Command(
        StudyConfig,
        "compare kinds of encoders: a search of equal size for each, repetitions, tests in and out of the domain",
        "FILE.yaml data=ARCHIVE manifest=labels.csv out=STUDY",
        bare="config",
        kept="; what is finished of the study is kept; go on with resume=true",
        may_change=("config", "jobs", "out"),
        title="Comparison of encoders",
    ),
    "transfer": Command(
        TransferConfig,
        "learn in stages, each from what the one before learned",
        "FILE.yaml out=CHAIN",
        bare="config",
        kept="; finished stages, and finished epochs of a pretraining, are kept; go on with resume=true",
        may_change=("config", "out"),
        title="Staged transfer",
    ),
    "select": Command(
        SelectConfig,
        "choose the images to label next",
        "data=ARCHIVE encoder=RUN out=TO_LABEL [count=50] [labelled=labels.csv]",
        kept="; the decoded images are kept; go on with resume=true",
        may_change=("config", "out"),
        title="Images to label",
    ),
    "report": Command(ReportConfig, "rebuild report.html of a run, curve or study from its files", "RUN", bare="run"),
    "doctor": Command(
        DoctorConfig, "say what is in an archive, and what is wrong with it", "ARCHIVE [out=DIR]", bare="data"
    ),
    "bench": Command(
        BenchConfig,
        "say how fast a pretraining would be here, where its time goes, and what would help",
        "data=ARCHIVE [every key of pretrain]",
        bare="data",
    ),
    "demo": Command(DemoConfig, "pretrain on embedded synthetic images, probe with few labels", "[out=runs/demo]"),
}
"""Every command, by its name."""
