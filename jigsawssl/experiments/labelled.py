"""A labelled archive as experiments use it: who may be trained on, who is tested, which labels a budget buys."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import command_line, command_with, settings_of, without_folder
from ..data import Archive, cross_validation_folds, holdout_split, open_archive
from ..data.cache import caches_of
from ..data.conventions import alike, unknown_splits
from ..data.holdout import TEST, TEST_SHARE, TRAIN
from ..data.identity import Identities
from ..data.known import KnownImages
from ..data.leakage import KEY_FILE, Overlap, SeenImages
from ..data.loading import LabelledSet, PixelDataset
from ..data.splits import Fold, Rows
from ..data.table import printable
from ..runs import write_csv
from ..types import ImageFormat, UserError
from ..words import counted

__all__ = [
    "Budget",
    "Labelled",
    "Source",
    "caches_beside",
    "can_validate",
    "check_overlap",
    "open_domain",
    "open_labelled",
    "read_images",
    "remarks_on",
    "seen_by",
    "take_budget",
    "write_split",
]

SMALL_BUDGET = 200
"""Labels below which validation is cross-validation: a fifth of fewer images would judge too coarsely."""

FOLDS = 5
LEAST_TEST = 10
"""Images of a test split that pretraining saw a part of: fewer than this are not worth testing on."""


class Source(NamedTuple):
    """Where labelled images come from, and who of them is for what.

    Attributes:
        data: as for :func:`jigsawssl.data.open_archive`.
        manifest: the same.
        layout: the same.
        split: rows that labels are taken from, where the manifest has splits.
        validation: ``budget`` (inside the labels) or ``split`` (the manifest's val split).
        caches: folders of earlier runs, whose decoded images are used.
        assigned: a file of :func:`write_split` that says who is for what.
        classes: in the order that is meant; none where names or numbers tell.
        positive: of two classes the one that is looked for.
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
    """

    archive: Archive
    pool: Rows
    validation: Rows
    test: Rows
    made_by: str
    identities: Identities
    saw: int = 0
    copies: int = 0

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
    return max(filter(_is_enough, rest), key=lambda labelled: len(labelled.test), default=found)


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
    """What is left out of a labelled archive, and what was taken in which way: sentences without capital and stop."""
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
            remarks.append(f"{counted(unlabelled, 'image')} of split {name} without a label, left out")
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


def _is_enough(labelled: Labelled) -> bool:
    """Whether what pretraining left of a test split is worth testing on."""
    return len(labelled.test) >= LEAST_TEST and _has_two_classes(labelled.archive, labelled.test)


def _overlap(labelled: Labelled, seen: Iterable[SeenImages]) -> Rows:
    """Rows that are judged by and that pretraining saw."""
    found = [images.overlap(labelled.identities, labelled.judged).rows for images in seen]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def write_split(file: Path, labelled: Labelled) -> None:
    """Write who is for what: a CSV of paths and train, val or test; nothing for those that are not used."""
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


def _run_of(reference: str) -> Path | None:
    """Folder of the run that an encoder, or the architecture of a fresh one, comes from."""
    file = Path(reference.removeprefix("random:"))
    return file.parent if file.is_file() else None


def seen_by(references: Iterable[str]) -> list[SeenImages]:
    """What the runs saw that some encoders come from, as far as they left it.

    Fresh weights of a file's architecture count too, so that they are tested on what the file is tested on.

    Args:
        references: encoders as users name them.

    Raises:
        UserError: for a damaged file.
    """
    folders = dict.fromkeys(folder for folder in map(_run_of, references) if folder is not None)
    return [SeenImages.load(folder / "seen.parquet") for folder in folders if (folder / "seen.parquet").is_file()]


def caches_beside(references: Iterable[str]) -> tuple[str, ...]:
    """Folders of the decoded images that some encoders were pretrained on.

    Args:
        references: encoders as users name them.
    """
    found = []
    for folder in map(_run_of, references):
        if folder is not None:
            named = settings_of(folder).get("cache")
            found.append(str(named) if named not in (None, "off") else str(folder / "cache"))
    return tuple(dict.fromkeys(found))


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


class Budget(NamedTuple):
    """The labels that may be used, and JSON values that say what they are."""

    labelled_set: LabelledSet
    facts: dict[str, Any]


def take_budget(
    labelled: Labelled, *, dataset: PixelDataset, rows: Rows, chosen: Rows, fraction: float, seed: int
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
    return Budget(LabelledSet(part, labels, len(archive.classes), folds, refit), facts)


def can_validate(labelled: Labelled, chosen: Rows, seed: int) -> bool:
    """Whether some labels are enough to train on and to judge candidates by.

    Args:
        labelled: the archive.
        chosen: rows whose labels may be used.
        seed: of the folds.
    """
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


def check_overlap(
    encoder: str, *, trained: bool, labelled: Labelled, allowed: bool, source: Source | None = None
) -> dict[str, Any]:
    """Whether pretraining has seen what is judged by, from ``seen.parquet`` beside the encoder.

    Args:
        encoder: as the user named it.
        trained: whether it has weights that were trained.
        labelled: the archive that it is judged by.
        allowed: whether somebody said that an overlap is wanted.
        source: of the archive, for the command that fixes it.

    Returns:
        JSON values for the report.

    Raises:
        UserError: with examples and a remedy, if it has and nobody said that this is wanted.
    """
    if not trained or not Path(encoder).is_file():
        return {"checked": "unknown: published weights" if trained else "not needed: fresh weights"}
    found = seen_by([encoder])
    if not found:
        name = without_folder(encoder)
        print(f"No seen.parquet lies beside {name}, so nobody can tell whether pretraining saw the test images")
        return {"checked": "unknown: no seen.parquet beside the encoder"}
    seen, archive = found[0], labelled.archive
    overlap = seen.overlap(labelled.identities, labelled.judged)
    if len(overlap.rows) and not allowed:
        raise UserError(_refusal(encoder, labelled, overlap, source))
    checked = "by content and group" if seen.complete else "in part: earlier training left no seen.parquet"
    if not seen.comparable:
        checked = f"by content alone: {KEY_FILE} is not here, without which patients and groups cannot be compared"
        print(
            f"Images were compared with what pretraining saw; patients and groups could not be, as {KEY_FILE} is not "
            "beside the encoder"
        )
    return {
        "checked": checked,
        "same_image": [printable(archive.samples[row].path) for row in overlap.same_image],
        "same_group": [printable(archive.samples[row].path) for row in overlap.same_group],
        "left_out": labelled.saw,
        "allowed": allowed,
    }


def _refusal(encoder: str, labelled: Labelled, overlap: Overlap, source: Source | None) -> str:
    """Which of them pretraining saw, how many, and the remedy."""
    samples, rows = labelled.archive.samples, overlap.rows.tolist()
    groups = sorted({samples[row].group or samples[row].path for row in rows})
    names = groups if labelled.archive.groups is not None else [samples[row].path for row in rows]
    shown = ", ".join(printable(name) for name in names[:5])
    kind = f"groups ({len(groups)})" if labelled.archive.groups is not None else "files"
    if source is None:
        remedy = "leave these out of it"
    else:
        remedy = (
            f"the rest is no test split of {LEAST_TEST} images and two classes; {_remedy(encoder, labelled, source)}"
        )
    return (
        f"`encoder` ({encoder}) must not have seen what it is judged by; of {len(labelled.judged)} validation and test "
        f"images pretraining saw {len(overlap.same_image)} themselves and another of the group of "
        f"{len(overlap.same_group)}; {kind}: {shown}{', …' if len(names) > 5 else ''}; {remedy}, or give "
        "allow_overlap=true, which the report will say"
    )


def _remedy(encoder: str, labelled: Labelled, source: Source) -> str:
    """The command that pretrains without the images that are judged by, where another pretraining would."""
    folder = Path(encoder).parent
    before = settings_of(folder)
    wanted: dict[str, Any] = {"data": source.data, "manifest": source.manifest, "layout": source.layout}
    wanted["split"] = None
    if str(before.get("encoder")).endswith(".safetensors"):
        wanted["encoder"] = None  # what that one has seen would count again
    changes = {key: value for key, value in wanted.items() if value != before.get(key)}
    given = any(sample.split is not None for sample in labelled.archive.samples)
    every = np.arange(len(labelled.archive))
    kept_out = given or bool((labelled.identities.split(every)[labelled.judged] == TEST).all())
    if not kept_out or (before and not changes):
        known = folder / "split.csv"
        label = f"label more of the images that {known} marks as test, or " if known.is_file() and not given else ""
        return (
            f"another pretraining would see them too: {label}give both commands a manifest with a column `split` that "
            "puts whole patients of every class into test"
        )
    if before.get("cache") is None and (folder / "cache").is_dir():
        changes["cache"] = str(folder / "cache")
    name = folder.resolve().name
    changes["out"] = next(
        str(out) for number in range(2, 1000) if not (out := folder.parent / f"{name}-{number}").exists()
    )
    if before:
        return f"pretrain again without them by: {command_with('pretrain', folder, changes)}"
    command = command_line("pretrain", {key: value for key, value in changes.items() if value is not None})
    return f"pretrain again without them by: {command} (with the settings of that pretraining)"
