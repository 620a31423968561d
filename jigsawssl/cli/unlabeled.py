"""Which images a pretraining sees, and which it keeps out for others to test on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config.schemas import PretrainConfig, SelectConfig
from ..data import Archive, open_archive
from ..data.census import split_counts
from ..data.conventions import split_name
from ..data.holdout import COPY, TEST, TEST_SHARE, TRAIN
from ..data.identity import Identities
from ..data.loading import PixelDataset
from ..data.table import printable
from ..runs import write_csv
from ..types import UserError

SEEN = "seen"
"""Side of what would be tested on, had the weights that a run starts from not seen it."""


class Unlabeled(NamedTuple):
    """Images to pretrain on.

    Attributes:
        archive: the rows that are decoded.
        whole: all rows.
        derived: some of them are kept out for testing, see :func:`jigsawssl.data.holdout.derive_split`.
        told: what is said of it before anything is decoded.
    """

    archive: Archive
    whole: Archive
    derived: bool
    told: str


def unlabeled_archive(config: PretrainConfig | SelectConfig) -> Unlabeled:
    """The rows that ``split`` names; by default train, or what a derived split leaves where the archive has none.

    Raises:
        UserError: where there is no such split.
    """
    archive = open_archive(config.data, manifest=config.manifest, layout=config.layout)
    splits = {sample.split for sample in archive.samples if sample.split is not None}
    if config.split == "all":
        told = f"split=all: pretraining sees all {len(archive)} images; only images from elsewhere can test the result"
        return Unlabeled(archive=archive, whole=archive, derived=False, told=told)
    if config.split is None and not splits:
        # As it is decided by content, everything is decoded; fine-tuning takes the rest from the cache.
        told = (
            f"test split: {TEST_SHARE:.0%} of the {len(archive)} images, by patient or group where known, are kept "
            "out of pretraining, for fine-tuning to test on; split=all takes them too"
        )
        return Unlabeled(archive=archive, whole=archive, derived=True, told=told)
    wanted = split_name(config.split or TRAIN)
    if wanted not in splits:
        known = ", ".join(sorted(splits)) or "none"
        if config.split is None:
            raise UserError(
                f"`data` ({config.data}) must have images of split train; its splits are {known}; name those to train "
                "on train, or give split=NAME"
            )
        raise UserError(f"`split` ({wanted}) must be one of the archive's splits ({known}) or all")
    chosen = archive.select(archive.rows_of(wanted))
    counts = {row["split"] or "without a split": row["images"] for row in split_counts(archive)}
    others = ", ".join(f"{name}: {number}" for name, number in counts.items() if name != wanted)
    told = (
        f"pretraining on split {wanted}: {len(chosen)} images; {len(archive) - len(chosen)} others are left alone"
        f"{f' ({others})' if others else ''}"
    )
    return Unlabeled(archive=chosen, whole=archive, derived=False, told=told)


def keep_out(dataset: PixelDataset, identities: Identities, *, derived: bool) -> tuple[PixelDataset, NDArray[np.str_]]:
    """Divide the readable images of an archive.

    Args:
        dataset: of the archive, as it was decoded.
        identities: of the archive.
        derived: whether a test split is kept out.

    Returns:
        The images to train on, and the side of each row of the archive: ``""`` where it cannot be read.
    """
    every = np.arange(len(dataset.archive))
    identities.look_up(every, progress=True)
    # What nobody could find again by its content must not be trained on.
    readable = [row for row in np.unique(dataset.rows).tolist() if identities.content(row) is not None]
    sides = np.full(len(every), "", dtype="<U8")
    sides[readable] = identities.split(every)[readable] if derived else TRAIN
    return dataset.subset(np.flatnonzero(sides[dataset.rows] == TRAIN)), sides


def sides_in_words(sides: NDArray[np.str_]) -> str:
    """The numbers of a derived split, for the terminal."""
    counts = {side: int((sides == side).sum()) for side in (TRAIN, TEST, COPY, SEEN)}
    if not counts[TEST] + counts[SEEN]:
        return "test split: none, as all images belong together; fine-tuning needs images from elsewhere to test on"
    copies = f" and {counts[COPY]} copies of them" if counts[COPY] else ""
    seen = ""
    if counts[SEEN]:
        seen = f"; {counts[SEEN]} more cannot be tested on, as the weights that this run starts from have seen them"
    return f"test split: {counts[TEST]} images{copies} are kept out, {counts[TRAIN]} are left (split.csv){seen}"


def write_sides(file: Path, unlabeled: Unlabeled, sides: NDArray[np.str_]) -> None:
    """Write a CSV of all paths, with the side of each; of rows that are not decoded, the split of the manifest."""
    side_of = {sample.path: side for sample, side in zip(unlabeled.archive.samples, sides.tolist(), strict=True)}
    rows = ((printable(s.path), side_of.get(s.path, s.split)) for s in unlabeled.whole.samples)
    write_csv(file, ["path", "split"], rows)
