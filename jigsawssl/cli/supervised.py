"""What the commands on labelled images share: from keys of the configuration to what the parts take."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..checkpoint import read_header
from ..config.loading import to_yaml, without_folder, without_folders
from ..config.schemas import CurveConfig, FinetuneConfig, StudyConfig, SupervisedConfig
from ..data.budget import can_validate, draw_subset, write_subsets
from ..data.census import split_counts
from ..data.conventions import are_numbered, split_name
from ..data.labelled import Labelled, Source, open_labelled, remarks_on, write_split
from ..data.loading import PixelDataset, channels_of, stain_target
from ..data.manifest import manifest_columns
from ..data.splits import Rows
from ..experiments.overlap import caches_beside, seen_by
from ..experiments.runner import Outcome
from ..experiments.trials import EncoderChoice
from ..functional import nearest_sizes
from ..models import Encoder
from ..runs import write_bytes, write_json
from ..runs.folder import clear_run_folder, environment, now
from ..training.adapt import MODES, adaptation_mode
from ..training.finetune import Recipe, trained_stages
from ..training.optim import autocast_on, autocast_precision, training_device
from ..types import ImageFormat, UserError
from .census import census_table, told
from .look import run_folder

MOST_SUBGROUPS = 20
MOST_JOBS = 8
STAINED, STAINED_SIZE = 256, 128
"""Images that average colours are taken from, and their side in pixels."""


Subsets = dict[tuple[float, int], Rows]
"""Rows of each draw, by share and seed."""


class Opened(NamedTuple):
    """What a command of many cells works in and on; nothing of it was touched."""

    path: Path
    device: torch.device
    labelled: Labelled
    source: Source
    channels: int


def open_cells(config: CurveConfig | StudyConfig) -> Opened:
    """Check the folder and the archive of a curve or study."""
    path = run_folder(config)
    device = training_device(config.trainer.accelerator)
    if isinstance(config, CurveConfig):
        references = list(config.encoders.values())
    else:
        references = [values["encoder"] for values in config.variants.values()]
    source = source_of(config, references)
    labelled = open_and_tell(config, source, references)
    print(test_line(labelled))
    channels = channels_of(labelled.archive.select(labelled.pool.tolist()))
    # The processes of the cells take it from there, and need not look into every image again.
    return Opened(path, device, labelled, source._replace(assigned=str(path / "split.csv")), channels)


def open_and_tell(config: SupervisedConfig, source: Source, references: Sequence[str]) -> Labelled:
    """Open the labelled archive, and print what is in it before anything runs.

    Raises:
        UserError: as :func:`jigsawssl.data.labelled.open_labelled`, and for grades in no order.
    """
    labelled = open_labelled(source, seen=[] if config.allow_overlap else seen_by(references))
    if isinstance(config, FinetuneConfig):
        labelled = labelled._replace(learns_unlabelled=config.unlabeled)
    archive = labelled.archive
    if config.ordered and len(archive.classes) > 2 and not archive.order_given and not are_numbered(archive.classes):
        raise UserError(
            f"`ordered` (true) needs the order of the classes, which their names do not tell: "
            f"{', '.join(archive.classes)}; give them from the least to the worst, as classes=[…] or one a line in "
            "a file MANIFEST.classes"
        )
    print("\n".join(["", census_table(split_counts(archive)), "", *told(remarks_on(labelled))]))
    return labelled


_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
"""Shares of the labels that are offered in place of one that is too small."""


def check_draws(subsets: Subsets, labelled: Labelled, key: str, *, count_groups: bool) -> None:
    """Draws of labels must leave something to tell apart, and to judge candidates by, before anything is trained.

    Args:
        subsets: rows of each draw, by fraction and seed.
        labelled: the archive.
        key: the setting that names the fractions.
        count_groups: whether a fraction is one of groups.

    Raises:
        UserError: with the smallest share that works, where one leaves a single class or cannot be divided.
    """
    for (fraction, seed), rows in subsets.items():
        if can_validate(labelled, rows, seed):
            continue
        seeds = sorted({number for _, number in subsets})
        works = (
            share
            for share in _SHARES
            if share > fraction
            and all(
                can_validate(labelled, draw_subset(labelled, fraction=share, seed=one, count_groups=count_groups), one)
                for one in seeds
            )
        )
        counts = np.bincount(labelled.archive.labels[rows], minlength=len(labelled.archive.classes))
        held = ", ".join(f"{name}: {count}" for name, count in zip(labelled.archive.classes, counts, strict=True))
        smallest = next(works, None)
        offered = "add labels, or name a split val" if smallest is None else f"the smallest that works is {smallest:g}"
        raise UserError(
            f"`{key}` ({fraction:g}) must leave two classes, and one of them with two labels or groups, to choose "
            f"settings by; draw {seed} has {held}; {offered}"
        )


def begin_cells(
    config: CurveConfig | StudyConfig,
    opened: Opened,
    *,
    task: Mapping[str, Any],
    subsets: Subsets,
    folders: Sequence[str],
) -> None:
    """Write what the cells and the report need, after a look that a run to resume is the same.

    Raises:
        UserError: where images, labels or weights changed since the run to resume began.
    """
    path = opened.path
    began = now()
    if config.resume:
        began = check_unchanged(path / "task.json", task) or began
    else:
        clear_run_folder(path)
    for name in folders:
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(to_yaml(config))
    write_split(path / "split.csv", opened.labelled)
    write_subsets(path / "subsets", opened.labelled, subsets)
    write_json(path / "task.json", {**task, "when": {"began": began, "ended": None}})


def draw_subsets(config: CurveConfig | StudyConfig, labelled: Labelled, fractions: Sequence[float]) -> Subsets:
    """Rows whose labels may be used, for each share and draw."""
    by_group = config.budget == "groups"
    return {
        (fraction, seed): draw_subset(labelled, fraction=fraction, seed=seed, count_groups=by_group)
        for fraction in fractions
        for seed in range(config.seeds)
    }


def task_of(
    config: CurveConfig | StudyConfig, opened: Opened, *, prints: Mapping[str, Any], **own: Any
) -> dict[str, Any]:
    """What a report needs to know of archive and encoders, so that it can be rebuilt without them.

    Args:
        config: of the curve or study.
        opened: what it works on.
        prints: what else must be the same on resume.
        own: the command's own parts.
    """
    archive = opened.labelled.archive
    return {
        "config": without_folders(config),
        "data": data_facts(opened.labelled),
        **own,
        "subgroups": subgroups_of(config, opened.labelled, opened.labelled.test),
        "environment": environment(opened.device, autocast_on(config.precision, opened.device)),
        "fingerprints": {
            "data": archive.fingerprint(),
            # In their order, as cases are numbered by it.
            "manifest": fingerprint(list(map(repr, archive.samples))),
            "split": split_fingerprint(opened.labelled),
            **{name: fingerprint(value) for name, value in prints.items()},
        },
    }


def keep_outcome(folder: Path, outcome: Outcome) -> None:
    """Keep why a part failed; remove what an earlier failure left."""
    part = outcome.cell if isinstance(outcome.cell, str) else outcome.cell.name
    file = folder / f"{part}.error.txt"
    if outcome.error is None:
        file.unlink(missing_ok=True)
    else:
        write_bytes(file, f"{outcome.error}\n".encode())


def end_cells(path: Path) -> None:
    """Note when the work on a curve or study ended."""
    task = json.loads((path / "task.json").read_text(encoding="utf-8"))
    task["when"]["ended"] = now()
    write_json(path / "task.json", task)


def source_of(config: SupervisedConfig, references: Sequence[str]) -> Source:
    """Where the labelled images come from, decoded already for the encoders that were pretrained on them."""
    caches = caches_beside(references)
    return Source(
        config.data,
        manifest=config.manifest,
        layout=config.layout,
        split=split_name(config.split),
        validation=config.validation,
        caches=caches,
        classes=tuple(config.classes),
        positive=config.positive,
    )


def test_line(labelled: Labelled) -> str:
    """What is tested on, and who decided that."""
    groups = labelled.groups(labelled.test)
    of_groups = "" if groups is None else f" of {len(np.unique(groups))} groups"
    return f"test split: {len(labelled.test)} images{of_groups}, {labelled.made_by}"


def recipes_of(config: SupervisedConfig, device: torch.device, seed: int) -> list[Recipe]:
    """One recipe for each learning rate."""
    return [
        Recipe(
            lr=lr,
            max_epochs=config.trainer.max_epochs,
            batch_size=config.batch.size,
            optimizer=config.optimizer.name,
            head_scale=config.optimizer.head_scale,
            weight_decay=config.optimizer.weight_decay,
            balanced=config.class_weights == "balanced",
            dropout=config.dropout,
            head=config.head,
            train=config.train,
            layer_decay=config.optimizer.layer_decay,
            unfreeze_every=config.unfreeze_every,
            grids=tuple(config.views.grids),
            preset=config.views.preset,
            seed=seed,
            accelerator=config.trainer.accelerator,
            precision=autocast_precision(config.precision, device),
        )
        for lr in config.optimizer.lr
    ]


def choice_of(config: SupervisedConfig, reference: str, labelled: Labelled) -> EncoderChoice:
    """An encoder as the configuration builds it.

    Raises:
        UserError: where the images are none of stained tissue, and the configuration says so.
    """
    target: tuple[float, ...] = ()
    if config.stain not in (None, "none"):
        pool = labelled.pool[:: max(1, len(labelled.pool) // STAINED)]
        stained = labelled.archive.select(pool.tolist())
        images = PixelDataset(stained, ImageFormat(STAINED_SIZE, channels_of(stained)), workers=os.cpu_count() or 1)
        images.load(progress=False)
        target = stain_target(str(config.stain), images)
    return EncoderChoice(
        reference,
        size=config.views.size,
        attention=config.attention,
        attention_stages=tuple(config.attention_stages),
        backbone_options=dict(config.backbone_options),
        stain=config.stain,
        stain_target=target,
    )


def check_encoder(config: SupervisedConfig, reference: str, *, trained: bool, encoder: Encoder) -> str:
    """The mode in which an encoder is adapted; says where a network with fresh weights keeps its stem.

    Raises:
        UserError: where its files would be overwritten, its size does not go with the grids, or it lacks a stage that
            is to learn.
    """
    trained_stages(config.train, list(encoder.by_stage()))
    if Path(config.out).resolve() in Path(reference.removeprefix("random:")).resolve().parents:
        raise UserError(
            f"`out` ({config.out}) must not be the folder of `encoder` ({reference}), which would be lost; choose "
            "another"
        )
    mode = adaptation_mode(config.mode, trained)
    if config.head == "dense" and mode != "full":
        raise UserError(f"`head` (dense) goes with mode=full, not `mode` ({config.mode}); give mode=full")
    size = encoder.spec.format.size
    for grid in config.views.grids if MODES[mode].shuffles else ():
        if size % grid:
            raise UserError(
                f"`views.size` ({size}, the encoder's) must be divisible by `views.grids` ({grid}); "
                f"nearest sizes: {nearest_sizes(size, grid)}"
            )
    if encoder.remark and not trained:
        print(f"note: {encoder.remark}")
    return mode


def provenance_of(reference: str, trained: bool) -> dict[str, Any]:
    """What is known of an encoder, for a report."""
    file = Path(reference.removeprefix("random:"))
    known = read_header(file)["provenance"] if file.is_file() else None
    return {
        "reference": without_folder(reference),
        "trained_weights": trained,
        "provenance": known if trained else None,
    }


def subgroups_of(config: SupervisedConfig, labelled: Labelled, rows: NDArray[np.int64]) -> dict[str, NDArray[np.str_]]:
    """Value of each subgroup column for some rows, ``""`` where the manifest has none.

    Raises:
        UserError: where there is no such column.
    """
    if not config.subgroups:
        return {}
    found = manifest_columns(config.manifest, list(config.subgroups))
    paths = [labelled.archive.samples[row].path for row in rows.tolist()]
    result = {}
    for column in config.subgroups:
        values = np.array([found.get(path, {}).get(column, "") for path in paths])
        if column in ("path", "group") or len(set(values.tolist())) > MOST_SUBGROUPS:
            raise UserError(
                f"`subgroups` ({column}) must have at most {MOST_SUBGROUPS} values, as age in bands, and name nobody; "
                f"it has {len(set(values.tolist()))} in the test split; choose another column"
            )
        result[column] = values
    return result


def data_facts(labelled: Labelled) -> dict[str, Any]:
    """The census of a labelled archive."""
    archive = labelled.archive
    parts = {"training": labelled.pool, "validation": labelled.validation, "test": labelled.test}
    return {
        "name": archive.name,
        "classes": list(archive.classes),
        "positive": archive.classes[1] if len(archive.classes) == 2 else None,
        "test_split": labelled.made_by,
        "remarks": remarks_on(labelled),
        **{
            name: {
                "images": len(rows),
                "groups": None if archive.groups is None else len(np.unique(archive.groups[rows])),
                **{label: int((archive.labels[rows] == number).sum()) for number, label in enumerate(archive.classes)},
            }
            for name, rows in parts.items()
            if len(rows)
        },
    }


def counted(guard: Mapping[str, Any]) -> dict[str, Any]:
    """How many, not which: file names may name patients."""
    return {key: len(value) if isinstance(value, list) else value for key, value in guard.items()}


def digest(reference: str) -> str | None:
    """SHA-256 of an encoder's file, ``None`` where it has none."""
    file = Path(reference.removeprefix("random:"))
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def split_fingerprint(labelled: Labelled) -> str:
    """A digest of which rows are for what."""
    return fingerprint([rows.tolist() for rows in (labelled.pool, labelled.validation, labelled.test)])


def fingerprint(value: Any) -> str:
    """A digest of what prints the same."""
    return hashlib.sha256(repr(value).encode("utf-8", "surrogateescape")).hexdigest()


def check_unchanged(file: Path, task_now: Mapping[str, Any]) -> str | None:
    """A curve or study may only go on with the images, labels and weights that it began with; says when that was."""
    if not file.is_file():
        return None
    try:
        task = json.loads(file.read_text(encoding="utf-8"))
        before, when = task["fingerprints"], task.get("when") or {}
        order = task["data"]["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"`out` ({file.parent}) must hold what is to be resumed; {file.name} is damaged; choose another"
        ) from None
    if order != task_now["data"]["classes"]:
        raise UserError(
            f"`classes` must have the order that it began with ({', '.join(order)}); give that, or choose another `out`"
        )
    for name, value in task_now["fingerprints"].items():
        if before.get(name) != value:
            raise UserError(
                f"`{name}` must be what it began with; files, rows or what an encoder has seen were added, removed "
                "or changed; restore them, or choose another `out`"
            )
    return when.get("began")


def default_jobs(device: torch.device) -> int:
    """Processes, where the user gave no number: one for each core or GPU."""
    if device.type == "cuda":
        return min(MOST_JOBS, torch.cuda.device_count())
    return min(MOST_JOBS, os.cpu_count() or 1) if device.type == "cpu" else 1
