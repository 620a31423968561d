"""Wire a fine-tuning run: labelled rows → budget → folds → adapted classifier → one look at the test split."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from ..checkpoint import read_header, resolve_encoder, save_classifier
from ..config import FinetuneConfig, to_yaml, without_folder, without_folders
from ..data import Archive, cross_validation_folds, holdout_split, label_fraction, open_archive
from ..data.guard import SeenImages
from ..data.loading import PixelDataset
from ..data.table import printable
from ..evaluation import classification_metrics
from ..functional import nearest_sizes
from ..models import EncoderSpec
from ..report import format_table, write_csv, write_json
from ..report.run import check_run_folder, clear_run_folder, environment
from ..training.adapt import Adaptation, adapt
from ..training.finetune import Fold, Recipe
from ..training.optim import autocast_precision, training_device
from ..types import Prediction, UserError

__all__ = ["run"]

SMALL_BUDGET = 200
"""Labels below which validation is cross-validation: a fifth of fewer images would judge too coarsely."""

FOLDS = 5
TEST_SHARE = 0.2
"""Share of the groups that become the test split where the manifest names none."""


class _Budget(NamedTuple):
    """The labels that may be used: positions in ``dataset``, and how candidates are judged on them."""

    dataset: PixelDataset
    labels: NDArray[np.int64]
    folds: list[Fold]
    refit_rows: NDArray[np.int64]
    facts: dict[str, Any]


def _rows(archive: Archive, split: str) -> NDArray[np.int64]:
    """Labelled rows of a split."""
    rows = archive.rows_of(split)
    return rows[archive.labels[rows] >= 0]


def _split_rows(archive: Archive, config: FinetuneConfig) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Rows of the training pool and of the test split, and who made the split."""
    if not archive.classes or len(archive.classes) < 2:
        raise UserError(
            f"`data` ({config.data}) must have labels of at least two classes; it has {len(archive.classes)}; "
            "give manifest=labels.csv with path,label or manifest=folders"
        )
    if config.split == "test" or (config.split == "val" and config.validation == "split"):
        raise UserError(f"`split` ({config.split}) must not be what the result is judged by; use train")
    pool, test = _rows(archive, config.split), _rows(archive, "test")
    if all(sample.split is None for sample in archive.samples):
        labelled = np.flatnonzero(archive.labels >= 0)
        groups = archive.groups[labelled] if archive.groups is not None else None
        # A fixed seed: the test split must not change with the seed of a run.
        rest, held = holdout_split(archive.labels[labelled], groups, TEST_SHARE, seed=0)
        unit = "image" if groups is None else "group"
        return labelled[rest], labelled[held], f"made here: {TEST_SHARE:.0%} of the labels by {unit}"
    for name, rows in ((config.split, pool), ("test", test)):
        if not len(rows):
            known = ", ".join(sorted({sample.split for sample in archive.samples if sample.split}))
            raise UserError(
                f"`split` ({name}) must have labelled rows; the manifest's splits are {known}; add rows of that split, "
                "or leave the column out to have a test split made"
            )
    if archive.groups is not None:
        shared = np.intersect1d(archive.groups[pool], archive.groups[test])
        if len(shared):
            raise UserError(
                f"`group` must not be divided between {config.split} and test; {len(shared)} are; mend the manifest's "
                "split column, or leave it out to have a split made"
            )
    return pool, test, "manifest"


def _readable(archive: Archive, rows: NDArray[np.int64], spec: EncoderSpec, what: str) -> PixelDataset:
    """Images as the encoder saw them in pretraining: its size, channels, fit and window."""
    chosen = archive.select(rows.tolist())
    dataset = PixelDataset(chosen, spec.size, spec.in_channels, spec.fit, spec.window, os.cpu_count() or 1)
    dataset.load(progress=True)
    if dataset.unreadable:
        print(f"{len(dataset.unreadable)} unreadable {what} images were left out; report.json lists them")
    return dataset


def _budget(archive: Archive, pool: NDArray[np.int64], config: FinetuneConfig, spec: EncoderSpec) -> _Budget:
    groups = archive.groups
    chosen = pool[
        label_fraction(archive.labels[pool], None if groups is None else groups[pool], config.fraction, config.seed)
    ]
    extra = _rows(archive, "val") if config.validation == "split" else np.empty(0, dtype=np.int64)
    if config.validation == "split" and not len(extra):
        raise UserError("`validation` (split) needs labelled rows of the split val; use validation=budget")
    both = np.concatenate([chosen, extra])
    dataset = _readable(archive, both, spec, "labelled")
    rows = both[dataset.rows]
    labels = archive.labels[rows]
    inside = np.flatnonzero(dataset.rows < len(chosen))
    outside = np.flatnonzero(dataset.rows >= len(chosen))
    inside_groups = None if groups is None else groups[rows[inside]]
    if len(np.unique(labels[inside])) < 2:
        raise UserError(
            f"`fraction` ({config.fraction}) must leave two classes; {len(inside)} labels hold one; raise it"
        )
    if config.validation == "split":
        folds: list[Fold] = [(inside, outside)]
        how = f"the manifest's val split, {len(outside)} labels outside the fraction"
    else:
        folds, how = _folds(labels[inside], inside_groups, config.seed)
    classes = archive.classes
    facts = {
        "fraction": config.fraction,
        "labels": len(inside) + len(outside),
        "labels_in_fraction": len(inside),
        "available": len(pool),
        "per_class": {name: int((labels[inside] == k).sum()) for k, name in enumerate(classes)},
        "groups": None if inside_groups is None else len(np.unique(inside_groups)),
        "validation": how,
        "unreadable": dataset.unreadable,
    }
    return _Budget(dataset, labels, folds, inside, facts)


def _folds(labels: NDArray[np.int64], groups: NDArray[np.str_] | None, seed: int) -> tuple[list[Fold], str]:
    """How candidates are judged inside the budget, and how the report names it."""
    unit = "by image" if groups is None else "by group"
    try:
        if len(labels) < SMALL_BUDGET:
            folds = cross_validation_folds(labels, groups, FOLDS, seed)
            return folds, f"cross-validation {unit} with {len(folds)} folds inside the fraction"
        fold = holdout_split(labels, groups, 1 / FOLDS, seed)
        return [fold], f"{len(fold[1])} of the labels, {unit}, inside the fraction"
    except UserError:
        # Too few groups to divide, such as one patient: better a validation that flatters, and says so, than none.
        if groups is None:
            raise
        folds, how = _folds(labels, None, seed)
        return folds, f"{how}; the groups are too few to divide, so validation sees images of groups it trains on"


def _recipe(config: FinetuneConfig, device: torch.device) -> Recipe:
    return Recipe(
        lr=config.optimizer.lr,
        max_epochs=config.trainer.max_epochs,
        batch_size=config.batch.size,
        optimizer=config.optimizer.name,
        head_scale=config.optimizer.head_scale,
        weight_decay=config.optimizer.weight_decay,
        balanced=config.class_weights == "balanced",
        grids=tuple(config.views.grids),
        preset=config.views.preset,
        seed=config.seed,
        accelerator=config.trainer.accelerator,
        precision=autocast_precision(config.precision, device),
    )


def run(config: FinetuneConfig) -> None:
    """Fine-tune and test once.

    Raises:
        UserError: for what the user can mend.
    """
    path = check_run_folder(config.out, config.resume, config.overwrite, to_yaml(config), free=("config",))
    if config.resume and (path / "report.json").is_file():
        print(f"{path} holds the finished run of this configuration; nothing to do")
        return
    device = training_device(config.trainer.accelerator)
    archive = open_archive(config.data, config.manifest, layout=config.layout)
    pool, test_rows, made_by = _split_rows(archive, config)
    pl.seed_everything(config.seed, verbose=False)
    channels = PixelDataset(archive.select(pool.tolist()), 8).channels
    encoder, trained = resolve_encoder(config.encoder, channels, config.views.size)
    if path.resolve() in Path(config.encoder.removeprefix("random:")).resolve().parents:
        raise UserError(
            f"`out` ({config.out}) must not be the folder of `encoder`, which would be lost; choose another"
        )
    # A probe on fresh weights says little, and a network that starts from it learned less in our trials.
    mode = "full" if config.mode == "auto" and not trained else config.mode
    size = encoder.spec.size
    for grid in config.views.grids if mode == "progressive" else ():
        if size % grid:
            raise UserError(
                f"`views.size` ({size}, the encoder's) must be divisible by `views.grids` ({grid}); "
                f"nearest sizes: {nearest_sizes(size, grid)}"
            )
    judged = np.concatenate([_rows(archive, "val") if config.validation == "split" else test_rows[:0], test_rows])
    guard = _guard(config, trained, archive, judged)
    budget = _budget(archive, pool, config, encoder.spec)
    recipe = _recipe(config, device)
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(recipe.precision)
    clear_run_folder(path)
    (path / "config.yaml").write_text(to_yaml(config))
    print(
        f"{budget.facts['labels']} labels of {len(pool)}; validation: {budget.facts['validation']}; mode {config.mode}"
    )
    start = time.perf_counter()
    adaptation = adapt(
        encoder,
        mode,
        budget.dataset,
        budget.labels,
        len(archive.classes),
        budget.folds,
        budget.refit_rows,
        recipe,
        device,
        autocast,
        progress=True,
    )
    test = _readable(archive, test_rows, encoder.spec, "test")
    rows = test_rows[test.rows]
    probabilities = adaptation.probabilities(test)
    prediction = Prediction(probabilities, torch.from_numpy(archive.labels[rows]), torch.from_numpy(rows))
    seconds = time.perf_counter() - start
    metrics = classification_metrics(prediction.probabilities, prediction.labels, archive.classes)
    source = {"encoder": without_folder(config.encoder), "labels": budget.facts["labels"], "seed": config.seed}
    provenance = {**source, **adaptation.chosen}
    if adaptation.model is not None:
        save_classifier(path / "model.safetensors", adaptation.model, archive.classes, provenance)
    report = {
        "command": "finetune",
        "config": without_folders(config),
        "encoder": _provenance(config.encoder, trained),
        "leak_guard": guard,
        "budget": budget.facts,
        "split_made_by": made_by,
        "chosen": adaptation.chosen,
        "validation": adaptation.validation,
        "test": metrics,
        "test_unreadable": test.unreadable,
        "model_file": None if adaptation.model is None else "model.safetensors",
        "seconds": seconds,
        "precision": str(recipe.precision),
        "environment": environment(device),
    }
    _write(path, archive, prediction, adaptation, metrics, report)
    _summary(path, metrics, adaptation)


def _provenance(reference: str, trained: bool) -> dict[str, Any]:
    file = Path(reference.removeprefix("random:"))
    known = read_header(file)["provenance"] if file.is_file() else None
    return {
        "reference": without_folder(reference),
        "trained_weights": trained,
        "provenance": known if trained else None,
    }


def _guard(config: FinetuneConfig, trained: bool, archive: Archive, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Whether pretraining has seen what is judged by, from ``seen.parquet`` beside the encoder.

    Raises:
        UserError: with examples, if it has and nobody said that this is wanted.
    """
    file = Path(config.encoder).parent / "seen.parquet"
    if not trained or not Path(config.encoder).is_file():
        return {"checked": "unknown: published weights" if trained else "not needed: fresh weights"}
    if not file.is_file():
        print("No seen.parquet lies beside the encoder, so nobody can tell whether pretraining saw the test images")
        return {"checked": "unknown: no seen.parquet beside the encoder"}
    seen = SeenImages.load(file)
    found = seen.overlap(archive, rows)
    facts = {
        "checked": "by content and group" if seen.complete else "in part: earlier training left no seen.parquet",
        "same_image": [printable(archive.samples[row].path) for row in found.same_image],
        "same_group": [printable(archive.samples[row].path) for row in found.same_group],
        "allowed": config.allow_overlap,
    }
    if len(found.rows) and not config.allow_overlap:
        shown = ", ".join(printable(archive.samples[row].path) for row in found.rows[:5])
        raise UserError(
            f"`encoder` ({config.encoder}) must not have seen what it is judged by; of {len(rows)} validation and test "
            f"images pretraining saw {len(found.same_image)} themselves and another of the group of "
            f"{len(found.same_group)}: {shown}{', …' if len(found.rows) > 5 else ''}; pretrain with split=train, or "
            "give allow_overlap=true, which the report will say"
        )
    return facts


def _write(
    path: Path,
    archive: Archive,
    prediction: Prediction,
    adaptation: Adaptation,
    metrics: dict[str, Any],
    report: dict[str, Any],
) -> None:
    from ..report.figures import save_confusion_matrix, save_finetune_curves

    rows = prediction.rows.tolist()
    table = prediction.probabilities.tolist()
    write_csv(
        path / "predictions.csv",
        ["path", "label", "prediction", *(f"probability_{name}" for name in archive.classes)],
        (
            [
                printable(archive.samples[row].path),
                archive.samples[row].label,
                archive.classes[int(np.argmax(line))],
                *(f"{value:.6f}" for value in line),
            ]
            for row, line in zip(rows, table, strict=True)
        ),
    )
    curves = [(epoch, name, value) for name, points in adaptation.history.items() for epoch, value in points]
    write_csv(path / "metrics.csv", ["epoch", "name", "value"], sorted(curves, key=lambda row: (row[0], row[1])))
    save_finetune_curves(
        adaptation.history, prediction.probabilities, prediction.labels, archive.classes, path / "curves.png"
    )
    save_confusion_matrix(metrics["confusion_matrix"], archive.classes, path / "confusion.png")
    write_json(path / "report.json", report)


def _summary(path: Path, metrics: dict[str, Any], adaptation: Adaptation) -> None:
    names = ("auroc", "average_precision", "accuracy", "balanced_accuracy", "precision", "recall", "f1")
    chosen = ", ".join(f"{key} {value}" for key, value in adaptation.chosen.items())
    print(f"\nchosen by validation: {chosen}; test split of {metrics['count']} images:\n")
    print(format_table(["metric", "test"], [[name.replace("_", " "), metrics[name]] for name in names]))
    recall = [[name, values["support"], values["recall"]] for name, values in metrics["per_class"].items()]
    print("\n" + format_table(["class", "images", "recall"], recall))
    print(f"\nreport: {path / 'report.json'}  pictures: {path / 'curves.png'}, {path / 'confusion.png'}")
