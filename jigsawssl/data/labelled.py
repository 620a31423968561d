"""A labelled archive: which rows may be trained on, and which are tested."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runs import write_csv
from ..types import UserError
from ..words import counted
from .archive import Archive, open_archive
from .cache import caches_of
from .conventions import alike, unknown_splits
from .holdout import TEST, TEST_SHARE, TRAIN
from .identity import Identities
from .known import KnownImages
from .leakage import SeenImages
from .splits import Rows, holdout_split
from .table import printable

LEAST_TEST = 10
"""Images of a test split that pretraining saw a part of: fewer than this are not worth testing on."""


class Source(NamedTuple):
    """Where labelled images come from, and which of them are for what.

    Attributes:
        data: this, manifest and layout as for :func:`jigsawssl.data.open_archive`.
        split: rows that labels are taken from, where the manifest has splits.
        validation: ``budget`` (inside the labels) or ``split`` (the manifest's val split).
        caches: folders of earlier runs, whose decoded images are used.
        assigned: a file of :func:`write_split` that says which rows are for what.
        classes: in the intended order; none where names or numbers tell.
        positive: of two classes, the one to detect.
    """

    data: str
    manifest: str | None = None
    layout: str | None = None
    split: str = "train"
    validation: str = "budget"
    caches: tuple[str, ...] = ()
    assigned: str | None = None
    classes: tuple[str, ...] = ()
    positive: str | None = None


class Labelled(NamedTuple):
    """Rows of an archive by what they are for.

    Attributes:
        archive: with labels of two classes at least.
        pool: rows that labels are taken from.
        validation: rows of the manifest's validation split, where that judges; else none.
        test: rows that are looked at once.
        made_by: who made the test split, for reports.
        identities: of the archive.
        saw: test and validation rows that are left out because pretraining saw them.
        copies: training and validation rows that are left out because they have the content of images to judge by.
        learns_unlabelled: whether images of the training split without a label are learned from.
    """

    archive: Archive
    pool: Rows
    validation: Rows
    test: Rows
    made_by: str
    identities: Identities
    saw: int = 0
    copies: int = 0
    learns_unlabelled: bool = False

    @property
    def judged(self) -> Rows:
        """Rows of validation and test."""
        return np.concatenate([self.validation, self.test])

    def groups(self, rows: Rows) -> NDArray[np.str_] | None:
        """Groups of some rows, or ``None`` where the archive has none."""
        return None if self.archive.groups is None else self.archive.groups[rows]

    def without(self, rows: Rows) -> Labelled:
        """The same, judged without some rows."""
        validation, test = (np.setdiff1d(part, rows) for part in (self.validation, self.test))
        saw = len(self.judged) - len(validation) - len(test)
        made_by = f"{self.made_by}; {saw} more are left out, as pretraining saw them" if saw else self.made_by
        return self._replace(validation=validation, test=test, made_by=made_by, saw=saw)


def open_labelled(source: Source, *, seen: Sequence[SeenImages] = ()) -> Labelled:
    """Open an archive for supervised training.

    A manifest's splits hold. Without them the test split follows from the images, see
    :func:`jigsawssl.data.holdout.derive_split`, as pretraining derives it too; where that leaves no two classes to
    test on, it is drawn by class. Where pretraining did see a part of the test split, as it was given other groups or
    splits, or none, the rest is tested on if it is enough.

    Args:
        source: of the images.
        seen: what pretraining saw, of each encoder that is to be judged.

    Raises:
        UserError: for an archive without labels, splits without rows, and groups that are divided between splits.
    """
    archive = open_archive(
        source.data, manifest=source.manifest, layout=source.layout, classes=source.classes, positive=source.positive
    )
    if len(archive.classes) < 2:
        told = "".join(f"; {remark}" for remark in archive.remarks)
        raise UserError(
            f"`data` ({source.data}) must have labels of at least two classes; it has {len(archive.classes)}{told}; "
            "give manifest=labels.csv with path,label or manifest=folders"
        )
    _check_classes(archive)
    if source.split == "test" or (source.split == "val" and source.validation == "split"):
        raise UserError(f"`split` ({source.split}) must not be what the result is judged by; use train")
    caches = [cache for folder in source.caches for cache in caches_of(archive.location, Path(folder))]
    identities = Identities(archive, known=KnownImages(archive, caches))
    if source.assigned is not None:
        return _assigned(Path(source.assigned), archive, identities)
    _check_splits(archive, source.split)
    given = any(sample.split is not None for sample in archive.samples)
    if source.validation == "split" and not len(_rows(archive, "val")):
        raise UserError("`validation` (split) needs labelled rows of the split val; use validation=budget")
    found = _given(archive, source, identities) if given else _derived(archive, identities)
    overlap = _overlap(found, seen)
    if not len(overlap):
        return found
    rest = [found.without(overlap)]
    if not given:
        kept = _derived(archive, identities, whole=True)
        rest.append(kept.without(_overlap(kept, seen)))
    if len(found.validation):
        rest = [labelled for labelled in rest if _has_two_classes(archive, labelled.validation)]
    # What pretraining left of a test split must be worth testing on.
    enough = [left for left in rest if len(left.test) >= LEAST_TEST and _has_two_classes(archive, left.test)]
    return max(enough, key=lambda labelled: len(labelled.test), default=found)


def _check_classes(archive: Archive) -> None:
    twice = alike(archive.classes)
    if twice:
        counts = np.bincount(archive.labels[archive.labels >= 0], minlength=len(archive.classes))
        of_class = dict(zip(archive.classes, counts.tolist(), strict=True))
        found = "; ".join(" and ".join(f"'{name}' ({of_class[name]} images)" for name in names) for names in twice)
        raise UserError(
            f"`data` must spell each class in one way; {found} seem to be one; give them one name, or names that "
            "differ by more than capitals, spaces and zeros"
        )


def _check_splits(archive: Archive, wanted: str = TRAIN) -> None:
    """No image may be in a split that nobody would use."""
    unknown = unknown_splits(archive.samples)
    unknown.pop(wanted, None)
    if unknown:
        found = ", ".join(f"{name}: {counted(number, 'image')}" for name, number in unknown.items())
        raise UserError(
            f"`data` must have the splits train, val and test alone; it has others ({found}), which would be used "
            "nowhere; call them train, val or test, or take them out of the archive"
        )


def remarks_on(labelled: Labelled) -> list[str]:
    """What is left out of a labelled archive, and how the rest was understood: sentences without capital and stop."""
    archive, samples = labelled.archive, labelled.archive.samples
    remarks = list(archive.remarks)
    if len(archive.classes) == 2:
        other, positive = archive.classes
        remarks.append(
            f"the positive class, which AUROC, average precision, Brier score and operating point look for, is "
            f"{positive}; positive={other} turns that round"
        )
    given = any(sample.split is not None for sample in samples)
    without = sum(sample.split is None for sample in samples) if given else 0
    if without:
        remarks.append(f"{counted(without, 'image')} without a split, beside others with one, left out")
    every = {"train": labelled.pool, "test": labelled.test}
    for name in every:
        unlabelled = sum(sample.split == name and sample.label is None for sample in samples)
        if unlabelled:
            used = "learned from as such" if name == "train" and labelled.learns_unlabelled else "left out"
            remarks.append(f"{counted(unlabelled, 'image')} of split {name} without a label, {used}")
    unused = len(archive.rows_of("val")) if given and not len(labelled.validation) else 0
    if unused:
        remarks.append(f"{counted(unused, 'image')} of split val, left out; validation=split judges by them")
    if labelled.copies:
        remarks.append(
            f"{counted(labelled.copies, 'image')} to learn from or to choose settings by with the content of one that "
            "is judged by, left out"
        )
    parts = {"train": labelled.pool, "val": labelled.validation, "test": labelled.test}
    for one, other in itertools.combinations(parts if given else {}, 2):
        first, second = ({labelled.identities.patient(row) for row in parts[name].tolist()} for name in (one, other))
        shared = len((first & second) - {None})
        if shared:
            remarks.append(
                f"{counted(shared, 'patient')} of DICOM files in both {one} and {other}: the result may be optimistic; "
                "name them as groups, or have a split made"
            )
    in_train, in_test = (np.bincount(archive.labels[rows], minlength=len(archive.classes)) for rows in every.values())
    for name, trained, tested in zip(archive.classes, in_train.tolist(), in_test.tolist(), strict=True):
        if tested and not trained:
            remarks.append(
                f"the class {name} is in the test split alone ({counted(tested, 'image')}): nothing can learn it, and "
                "the means over classes count it"
            )
        elif not tested and not trained:
            remarks.append(f"the class {name} is neither in training nor in the test split")
    return remarks


def _given(archive: Archive, source: Source, identities: Identities) -> Labelled:
    """The splits of the manifest."""
    judging = _rows(archive, "val") if source.validation == "split" else np.empty(0, dtype=np.int64)
    pool, test = _rows(archive, source.split), _rows(archive, "test")
    for name, rows in ((source.split, pool), ("test", test)):
        if not len(rows):
            known = ", ".join(sorted({sample.split for sample in archive.samples if sample.split}))
            raise UserError(
                f"`split` ({name}) must have labelled rows; the manifest's splits are {known}; add rows of that split, "
                "or leave the column out to have a test split made"
            )
    parts = {source.split: pool, "val": judging, "test": test}
    for one, other in itertools.combinations(parts, 2):
        shared = _shared_groups(archive, parts[one], parts[other])
        if shared:
            raise UserError(
                f"`group` must not be divided between {one} and {other}; {shared} are; fix the manifest's split "
                "column, or leave it out to have a split made"
            )
    identities.look_up(np.concatenate([pool, judging, test]), progress=True)
    # Test images stay as they are; what equals one must not be learned from, nor settings be chosen by it.
    kept = _without_copies(identities, judging, test)
    learned = _without_copies(identities, pool, np.concatenate([judging, test]))
    for name, rows, before in ((source.split, learned, pool), ("val", kept, judging)):
        if len(before) and not len(rows):
            raise UserError(
                f"`split` ({name}) must have images of its own; all {len(before)} have the content of images to judge "
                "by; fix the manifest's split column"
            )
    copies = len(pool) - len(learned) + len(judging) - len(kept)
    return Labelled(
        archive,
        pool=learned,
        validation=kept,
        test=test,
        made_by="given by the manifest",
        identities=identities,
        copies=copies,
    )


def _shared_groups(archive: Archive, rows: Rows, others: Rows) -> int:
    return 0 if archive.groups is None else len(np.intersect1d(archive.groups[rows], archive.groups[others]))


def _without_copies(identities: Identities, rows: Rows, others: Rows) -> Rows:
    """Those of some rows whose content none of the others has."""
    contents = {identities.content(row) for row in others.tolist()} - {None}
    return np.array([row for row in rows.tolist() if identities.content(row) not in contents], dtype=np.int64)


def _derived(archive: Archive, identities: Identities, *, whole: bool = False) -> Labelled:
    """The split that follows from the images; ``whole`` as in :func:`jigsawssl.data.holdout.derive_split`."""
    every, nothing = np.arange(len(archive)), np.empty(0, dtype=np.int64)
    identities.look_up(every, progress=True)
    sides = identities.split(every, whole=whole)
    labelled = archive.labels >= 0
    pool, test = (np.flatnonzero(labelled & (sides == side)) for side in (TRAIN, TEST))
    made_by = f"made here: {TEST_SHARE:.0%} by patient, group or content, which pretraining leaves out by default"
    if whole:
        made_by = "made here: groups that pretraining left out whole by chance, as it did not know them"
    elif not _has_two_classes(archive, pool) or not _has_two_classes(archive, test):
        rows = np.flatnonzero(labelled)
        # A fixed seed: the test split must not change with the seed of a run.
        rest, held = holdout_split(archive.labels[rows], identities.units(rows).astype(str), share=TEST_SHARE, seed=0)
        made_by = f"made here: {TEST_SHARE:.0%} of the labels by class, no patient, group or content divided"
        pool, test = rows[rest], rows[held]
    return Labelled(archive, pool=pool, validation=nothing, test=test, made_by=made_by, identities=identities)


def _has_two_classes(archive: Archive, rows: Rows) -> bool:
    return len(np.unique(archive.labels[rows])) > 1


def _overlap(labelled: Labelled, seen: Iterable[SeenImages]) -> Rows:
    """Rows that are judged by and that pretraining saw."""
    found = [images.overlap(labelled.identities, labelled.judged).rows for images in seen]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def write_split(file: Path, labelled: Labelled) -> None:
    """Write which rows are for what: a CSV of paths and train, val or test; nothing for those that are not used."""
    names = np.full(len(labelled.archive), "", dtype=object)
    for name, rows in (("train", labelled.pool), ("val", labelled.validation), ("test", labelled.test)):
        names[rows] = name
    paths = (printable(sample.path) for sample in labelled.archive.samples)
    write_csv(file, ["path", "split"], zip(paths, names.tolist(), strict=True))


def _assigned(file: Path, archive: Archive, identities: Identities) -> Labelled:
    """What :func:`write_split` wrote."""
    with file.open(encoding="utf-8", newline="") as stream:
        split_of = {line["path"]: line["split"] for line in csv.DictReader(stream)}
    splits = np.array([split_of.get(printable(sample.path), "") for sample in archive.samples])
    pool, validation, test = (np.flatnonzero(splits == name) for name in ("train", "val", "test"))
    return Labelled(archive, pool=pool, validation=validation, test=test, made_by=file.name, identities=identities)


def unlabelled_rows(labelled: Labelled, chosen: Rows, *, split: str) -> Rows:
    """Rows that may be learned from without a label.

    Images of the training split whose labels are not among the chosen ones, and those that have none. What shares a
    patient, a group or its content with images that are judged by is left out.

    Args:
        labelled: the archive.
        chosen: rows whose labels may be used.
        split: of a manifest's splits, the one to learn from.
    """
    archive, identities = labelled.archive, labelled.identities
    given = any(sample.split is not None for sample in archive.samples)
    nameless = np.flatnonzero(archive.labels < 0)
    nameless = np.intersect1d(nameless, archive.rows_of(split)) if given else nameless
    if len(nameless):
        identities.look_up(nameless, progress=True)
        nameless = np.array([row for row in nameless.tolist() if identities.content(row) is not None], dtype=np.int64)
        if not given:
            nameless = nameless[identities.split(nameless) == TRAIN]
        every = np.concatenate([labelled.judged, nameless])
        units, count = identities.units(every), len(labelled.judged)
        nameless = nameless[~np.isin(units[count:], units[:count])]
    return np.union1d(np.setdiff1d(labelled.pool, chosen), nameless)


class Domain(NamedTuple):
    """An archive that is only tested on, as :func:`jigsawssl.data.open_archive` takes it."""

    data: str
    manifest: str | None
    layout: str | None


def open_domain(domain: Domain, *, classes: Sequence[str]) -> tuple[Labelled, NDArray[np.int64]]:
    """Open an archive that a model of other images is only tested on.

    Args:
        domain: where it is.
        classes: of the model.

    Returns:
        The archive, whose test rows are those of its split ``test``, or all where it has none, and the label of each of
        them among ``classes``.

    Raises:
        UserError: where it has no labelled images, or of other classes.
    """
    data, manifest, layout = domain
    archive = open_archive(data, manifest=manifest, layout=layout)
    _check_splits(archive)
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
    return Labelled(
        archive, pool=nothing, validation=nothing, test=rows, made_by="another archive", identities=Identities(archive)
    ), labels


def _rows(archive: Archive, split: str) -> Rows:
    rows = archive.rows_of(split)
    return rows[archive.labels[rows] >= 0]
