"""A labelled archive as experiments use it: who may be trained on, who is tested, which labels a budget buys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import without_folder
from ..data import Archive, cross_validation_folds, holdout_split, open_archive
from ..data.guard import SeenImages
from ..data.loading import PixelDataset
from ..data.table import printable
from ..models import EncoderSpec
from ..training.finetune import Fold
from ..types import UserError

__all__ = ["Budget", "Labelled", "check_overlap", "open_domain", "open_labelled", "read_images", "take_budget"]

SMALL_BUDGET = 200
"""Labels below which validation is cross-validation: a fifth of fewer images would judge too coarsely."""

FOLDS = 5
TEST_SHARE = 0.2
"""Share of the groups that become the test split where the manifest names none."""

Rows = NDArray[np.int64]


class Labelled(NamedTuple):
    """Rows of an archive by what they are for.

    Attributes:
        archive: with labels of two classes at least.
        pool: rows that labels are taken from.
        validation: rows of the manifest's validation split, where that judges; else none.
        test: rows that are looked at once.
        made_by: who made the test split, for reports.
    """

    archive: Archive
    pool: Rows
    validation: Rows
    test: Rows
    made_by: str

    def groups(self, rows: Rows) -> NDArray[np.str_] | None:
        """Groups of some rows, or ``None`` where the archive has none."""
        return None if self.archive.groups is None else self.archive.groups[rows]


def open_labelled(data: str, manifest: str | None, layout: str | None, split: str, validation: str) -> Labelled:
    """Open an archive for supervised training.

    Args:
        data: as for :func:`jigsawssl.data.open_archive`.
        manifest: the same.
        layout: the same.
        split: rows that labels are taken from, where the manifest has splits; else a test split is made.
        validation: ``budget`` (inside the labels) or ``split`` (the manifest's val split).

    Raises:
        UserError: for an archive without labels, splits without rows, and groups that are divided between splits.
    """
    archive = open_archive(data, manifest, layout=layout)
    if len(archive.classes) < 2:
        raise UserError(
            f"`data` ({data}) must have labels of at least two classes; it has {len(archive.classes)}; "
            "give manifest=labels.csv with path,label or manifest=folders"
        )
    if split == "test" or (split == "val" and validation == "split"):
        raise UserError(f"`split` ({split}) must not be what the result is judged by; use train")
    judging = _rows(archive, "val") if validation == "split" else np.empty(0, dtype=np.int64)
    if validation == "split" and not len(judging):
        raise UserError("`validation` (split) needs labelled rows of the split val; use validation=budget")
    if all(sample.split is None for sample in archive.samples):
        labelled = np.flatnonzero(archive.labels >= 0)
        groups = archive.groups[labelled] if archive.groups is not None else None
        # A fixed seed: the test split must not change with the seed of a run.
        rest, held = holdout_split(archive.labels[labelled], groups, TEST_SHARE, seed=0)
        unit = "image" if groups is None else "group"
        made_by = f"made here: {TEST_SHARE:.0%} of the labels by {unit}"
        return Labelled(archive, labelled[rest], judging, labelled[held], made_by)
    pool, test = _rows(archive, split), _rows(archive, "test")
    for name, rows in ((split, pool), ("test", test)):
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
                f"`group` must not be divided between {split} and test; {len(shared)} are; mend the manifest's "
                "split column, or leave it out to have a split made"
            )
    return Labelled(archive, pool, judging, test, "manifest")


def open_domain(
    data: str, manifest: str | None, layout: str | None, classes: Sequence[str]
) -> tuple[Labelled, NDArray[np.int64]]:
    """Open an archive that a model of other images is only tested on.

    Args:
        data: as for :func:`jigsawssl.data.open_archive`.
        manifest: the same.
        layout: the same.
        classes: of the model.

    Returns:
        The archive, whose test rows are those of its split ``test``, or all where it has none, and the label of each of
        them among ``classes``.

    Raises:
        UserError: where it has no labelled images, or of other classes.
    """
    archive = open_archive(data, manifest, layout=layout)
    rows = _rows(archive, "test") if any(sample.split for sample in archive.samples) else np.arange(len(archive))
    rows = rows[archive.labels[rows] >= 0]
    if not len(rows):
        raise UserError(f"`domains` ({data}) must have labelled images to test on; check its manifest")
    names = [archive.classes[label] for label in archive.labels[rows]]
    other = sorted(set(names) - set(classes))
    if other:
        raise UserError(
            f"`domains` ({data}) must have the classes {', '.join(classes)} alone; it has {other[0]}; rename or drop "
            "those rows"
        )
    nothing = np.empty(0, dtype=np.int64)
    labels = np.array([list(classes).index(name) for name in names], dtype=np.int64)
    return Labelled(archive, nothing, nothing, rows, "another archive"), labels


def _rows(archive: Archive, split: str) -> Rows:
    rows = archive.rows_of(split)
    return rows[archive.labels[rows] >= 0]


def read_images(
    archive: Archive, rows: Rows, spec: EncoderSpec, what: str, progress: bool = True
) -> tuple[PixelDataset, Rows]:
    """Decode images as the encoder saw them in pretraining: its size, channels, fit and window.

    Args:
        archive: that holds them.
        rows: which.
        spec: of the encoder.
        what: a word for what they are, for the note about unreadable ones.
        progress: show a bar, and that note.

    Returns:
        The readable images and the row of each.
    """
    dataset = PixelDataset(
        archive.select(rows.tolist()), spec.size, spec.in_channels, spec.fit, spec.window, os.cpu_count() or 1
    )
    dataset.load(progress)
    if dataset.unreadable and progress:
        print(f"{len(dataset.unreadable)} unreadable {what} images were left out; the report lists them")
    return dataset, rows[dataset.rows]


class Budget(NamedTuple):
    """The labels that may be used: ``folds`` and ``refit_rows`` are positions in ``dataset`` and ``labels``."""

    dataset: PixelDataset
    labels: NDArray[np.int64]
    folds: list[Fold]
    refit_rows: Rows
    facts: dict[str, Any]


def take_budget(
    labelled: Labelled, dataset: PixelDataset, rows: Rows, chosen: Rows, fraction: float, seed: int
) -> Budget:
    """Divide the chosen labels into what is trained on and what candidates are judged by.

    Args:
        labelled: the archive.
        dataset: decoded images that hold the chosen ones and those of the validation split.
        rows: of ``labelled``, one for each image of ``dataset``.
        chosen: rows whose labels may be used.
        fraction: of the pool, for the report.
        seed: of the folds.

    Raises:
        UserError: where fewer than two classes are left.
    """
    archive = labelled.archive
    inside = np.flatnonzero(np.isin(rows, chosen))
    outside = np.flatnonzero(np.isin(rows, labelled.validation))
    part = dataset.subset(np.concatenate([inside, outside]))
    rows = np.concatenate([rows[inside], rows[outside]])
    labels = archive.labels[rows]
    refit = np.arange(len(inside))
    groups = labelled.groups(rows[refit])
    if len(np.unique(labels[refit])) < 2:
        raise UserError(f"`fraction` ({fraction}) must leave two classes; {len(inside)} labels hold one; raise it")
    if len(labelled.validation):
        folds: list[Fold] = [(refit, np.arange(len(inside), len(rows)))]
        how = f"the manifest's val split, {len(outside)} labels outside the fraction"
    else:
        folds, how = _folds(labels[refit], groups, seed)
    paths = {archive.samples[row].path for row in (*chosen.tolist(), *labelled.validation.tolist())}
    facts = {
        "fraction": fraction,
        "labels": len(rows),
        "labels_in_fraction": len(inside),
        "available": len(labelled.pool),
        "per_class": {name: int((labels[refit] == k).sum()) for k, name in enumerate(archive.classes)},
        "groups": None if groups is None else len(np.unique(groups)),
        "validation": how,
        "unreadable": {printable(path): reason for path, reason in dataset.unreadable.items() if path in paths},
    }
    return Budget(part, labels, folds, refit, facts)


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


def check_overlap(encoder: str, trained: bool, archive: Archive, rows: Rows, allowed: bool) -> dict[str, Any]:
    """Whether pretraining has seen what is judged by, from ``seen.parquet`` beside the encoder.

    Args:
        encoder: as the user named it.
        trained: whether it has weights that were trained.
        archive: that holds what is judged by.
        rows: which.
        allowed: whether somebody said that an overlap is wanted.

    Returns:
        JSON values for the report.

    Raises:
        UserError: with examples, if it has and nobody said that this is wanted.
    """
    file = Path(encoder).parent / "seen.parquet"
    if not trained or not Path(encoder).is_file():
        return {"checked": "unknown: published weights" if trained else "not needed: fresh weights"}
    if not file.is_file():
        name = without_folder(encoder)
        print(f"No seen.parquet lies beside {name}, so nobody can tell whether pretraining saw the test images")
        return {"checked": "unknown: no seen.parquet beside the encoder"}
    seen = SeenImages.load(file)
    found = seen.overlap(archive, rows)
    facts = {
        "checked": "by content and group" if seen.complete else "in part: earlier training left no seen.parquet",
        "same_image": [printable(archive.samples[row].path) for row in found.same_image],
        "same_group": [printable(archive.samples[row].path) for row in found.same_group],
        "allowed": allowed,
    }
    if len(found.rows) and not allowed:
        shown = ", ".join(printable(archive.samples[row].path) for row in found.rows[:5])
        raise UserError(
            f"`encoder` ({encoder}) must not have seen what it is judged by; of {len(rows)} validation and test "
            f"images pretraining saw {len(found.same_image)} themselves and another of the group of "
            f"{len(found.same_group)}: {shown}{', …' if len(found.rows) > 5 else ''}; pretrain with split=train, or "
            "give allow_overlap=true, which the report will say"
        )
    return facts
