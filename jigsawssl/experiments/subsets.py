"""Which labels a curve uses: nested subsets as files, so that two people can compare."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data import label_fraction
from ..data.splits import Rows
from ..data.table import printable
from ..runs import write_csv
from ..types import UserError
from .labelled import Labelled

__all__ = ["draw_subset", "read_subset", "subset_name", "write_subsets"]


def subset_name(fraction: float, seed: int) -> str:
    """File of a subset.

    Example:
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
