"""Labels that may be used: nested draws as files, so that two people can compare, and what a draw is divided into."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runs import write_csv
from ..runs.parts import BudgetFacts
from ..types import ImageFormat, UserError
from .labelled import Labelled
from .loading import LabelledSet, PixelDataset
from .splits import Fold, Rows, cross_validation_folds, holdout_split, label_fraction
from .table import printable

SMALL_BUDGET = 200
"""Labels below which validation is cross-validation: a fifth of fewer images would judge too coarsely."""

FOLDS = 5


def subset_name(fraction: float, seed: int) -> str:
    """File of a subset.

    >>> subset_name(0.01, 3)
    'fraction-0.01-seed-3.csv'
    """
    return f"fraction-{fraction:g}-seed-{seed}.csv"


def draw_subset(labelled: Labelled, *, fraction: float, seed: int, count_groups: bool) -> Rows:
    """Rows of the pool whose labels may be used; see :func:`jigsawssl.data.label_fraction`."""
    pool = labelled.pool
    chosen = label_fraction(
        labelled.archive.labels[pool], labelled.groups(pool), fraction=fraction, seed=seed, count_groups=count_groups
    )
    return pool[chosen]


def write_subsets(folder: Path, labelled: Labelled, subsets: dict[tuple[float, int], Rows]) -> None:
    """Write paths and labels of each subset, one CSV each."""
    samples = labelled.archive.samples
    for (fraction, seed), rows in subsets.items():
        lines = [(printable(samples[row].path), samples[row].label) for row in rows.tolist()]
        write_csv(folder / subset_name(fraction, seed), ["path", "label"], lines)


def read_subset(file: Path, labelled: Labelled) -> Rows:
    """Rows of the pool that a file names by path.

    Raises:
        UserError: if it is missing, is no such file, or names what is not in the pool.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            paths: Sequence[str] = [line["path"] for line in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(
            f"subset ({file}) must be a CSV file with the column path; {type(error).__name__}; check the name"
        ) from None
    row_of = {printable(labelled.archive.samples[row].path): row for row in labelled.pool.tolist()}
    unknown = [path for path in paths if path not in row_of]
    if unknown or not paths:
        what = f"{len(unknown)} of {len(paths)} are not, the first is {unknown[0]}" if unknown else "it names none"
        raise UserError(f"subset ({file}) must name labelled images of the training split; {what}; draw it again")
    return np.array(sorted({row_of[path] for path in paths}), dtype=np.int64)


class Budget(NamedTuple):
    """The labels that may be used, and JSON values that say what they are."""

    labelled_set: LabelledSet
    facts: BudgetFacts


def read_images(
    labelled: Labelled, rows: Rows, *, format: ImageFormat, what: str, progress: bool = True
) -> tuple[PixelDataset, Rows]:
    """Decode images as the encoder saw them in pretraining.

    What a cache of that pretraining holds is not decoded again.

    Args:
        labelled: the archive that holds them.
        rows: which.
        format: of the encoder.
        what: a word for what they are, for the note about unreadable ones.
        progress: show a bar, and that note.

    Returns:
        The readable images and the row of each.
    """
    part = labelled.archive.select(rows.tolist())
    dataset = PixelDataset(part, format, workers=os.cpu_count() or 1)
    dataset.load(progress, labelled.identities.known)
    if dataset.unreadable and progress:
        print(f"{len(dataset.unreadable)} unreadable {what} images were left out; the report lists them")
    return dataset, rows[dataset.rows]


def take_budget(labelled: Labelled, *, dataset: PixelDataset, rows: Rows, chosen: Rows, seed: int) -> Budget:
    """Divide the chosen labels into what is trained on and what candidates are judged by.

    Args:
        labelled: the archive.
        dataset: decoded images that hold the chosen ones and those of the validation split.
        rows: of ``labelled``, one for each image of ``dataset``.
        chosen: rows whose labels may be used.
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
        raise UserError(f"`fraction` must leave two classes; {len(inside)} labels hold one; raise it")
    if len(labelled.validation):
        folds: list[Fold] = [(refit, np.arange(len(inside), len(rows)))]
        how = f"the manifest's val split, {len(outside)} labels outside the fraction"
    else:
        folds, how = _folds(labels[refit], groups, seed)
    paths = {archive.samples[row].path for row in (*chosen.tolist(), *labelled.validation.tolist())}
    facts: BudgetFacts = {
        "labels": len(rows),
        "labels_in_fraction": len(inside),
        "available": len(labelled.pool),
        "per_class": {name: int((labels[refit] == k).sum()) for k, name in enumerate(archive.classes)},
        "groups": None if groups is None else len(np.unique(groups)),
        "validation": how,
        "unreadable": {printable(path): reason for path, reason in dataset.unreadable.items() if path in paths},
    }
    return Budget(LabelledSet(part, labels, len(archive.classes), folds, refit), facts)


def can_validate(labelled: Labelled, chosen: Rows, seed: int) -> bool:
    """Whether some labels are enough to train on and to judge candidates by."""
    labels = labelled.archive.labels[chosen]
    if len(np.unique(labels)) < 2:
        return False
    if len(labelled.validation):
        return True
    try:
        _folds(labels, labelled.groups(chosen), seed)
    except UserError:
        return False
    return True


def _folds(labels: NDArray[np.int64], groups: NDArray[np.str_] | None, seed: int) -> tuple[list[Fold], str]:
    """How candidates are judged inside the budget, and how the report names it."""
    unit = "by image" if groups is None else "by group"
    try:
        if len(labels) < SMALL_BUDGET:
            folds = cross_validation_folds(labels, groups, folds=FOLDS, seed=seed)
            return folds, f"cross-validation {unit} with {len(folds)} folds inside the fraction"
        fold = holdout_split(labels, groups, share=1 / FOLDS, seed=seed)
        return [fold], f"{len(fold[1])} of the labels, {unit}, inside the fraction"
    except UserError:
        # Too few groups to divide, such as one patient: better a validation that flatters, and says so, than none.
        if groups is None:
            raise
        folds, how = _folds(labels, None, seed)
        return folds, f"{how}; the groups are too few to divide, so validation sees images of groups it trains on"
