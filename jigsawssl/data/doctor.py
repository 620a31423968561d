"""The doctor: a census of an archive and what is wrong with it, from the table of its cache."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..readers import NOTE_CONSTANT_CHANNEL, NOTE_FLAT_TABLE, NOTE_HIGH_BITS, NOTE_NARROW, tells_apart
from ..words import counted
from .archive import Archive
from .cache import Cache
from .census import split_counts
from .conventions import alike, unknown_splits
from .quality import near_duplicates
from .table import LEFT_OUT, printable
from .walk import NO_IMAGES

BLANK = 2 / 255
"""Standard deviation of display values in [0, 1] below which an image counts as blank."""

TINY = 32
"""Shorter side in pixels below which an image counts as tiny."""

BORDER = 0.2
"""Share of the area in constant rows and columns at the edges that is suspicious."""

TOO_FEW = 50
"""Independent cases (groups where they are known) below which a split is called too small: of 50, the 95 % interval of
a proportion is up to 27 points wide (Wilson 1927)."""

TEXT = 0.15
"""Density of sharp bright edges that is suspicious; X-rays with a side marker reach .13, burned-in lines .2."""


@dataclass(frozen=True)
class Defect:
    """One kind of finding.

    Attributes:
        name: such as ``near_duplicates``.
        meaning: a line for people.
        grave: whether it makes the archive defective, and not just worth a look.
        count: images, or groups of them.
        rows: rows of the table with pixels, examples first where there is an order; for the contact sheet.
        examples: JSON values.
        sets: where rows belong together, as duplicates do, how many each set has, one set after the other.
    """

    name: str
    meaning: str
    grave: bool
    count: int
    rows: list[int] = field(default_factory=list)
    examples: list[Any] = field(default_factory=list)
    sets: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Diagnosis:
    """Census and splits (JSON values) and defects, those without findings left out.

    ``splits`` has for each split of the manifest ``split`` (``None``: images without one), ``images`` that can be read,
    ``groups`` (``None`` where the manifest has none), ``classes`` (name → images) and ``remarks`` for people.
    """

    census: dict[str, Any]
    splits: list[dict[str, Any]]
    defects: list[Defect]

    @property
    def healthy(self) -> bool:
        """Whether no grave defect was found."""
        return not any(defect.grave for defect in self.defects)

    def as_json(self) -> dict[str, Any]:
        """What ``doctor.json`` holds."""
        return {
            "census": self.census,
            "splits": self.splits,
            "healthy": self.healthy,
            "defects": {
                defect.name: {
                    "meaning": defect.meaning,
                    "grave": defect.grave,
                    "count": defect.count,
                    "examples": defect.examples,
                }
                for defect in self.defects
            },
        }


def diagnose(archive: Archive, cache: Cache) -> Diagnosis:
    """Look through the table of an examined cache.

    Args:
        archive: the archive, with what its manifest says.
        cache: of it, built with ``examined=True``.
    """
    table = cache.table()
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    ok = cache.readable()
    paths = cache.paths()
    columns["path"] = np.array([printable(path) for path in paths], dtype=object)
    one_for_all = not tells_apart(columns["patient"][ok].tolist())
    if one_for_all:
        columns["patient"] = np.full(len(paths), None, dtype=object)
    found = [
        _unreadable(cache),
        _left_out(columns),
        _not_images(archive),
        *_noted(columns),
        *_single_images(columns, ok),
        *_duplicates(columns, ok, paths, archive),
        *_mixtures(columns, ok),
        _divided_patients(archive, columns, paths, ok),
        _one_patient(len(ok) if one_for_all else 0),
        *_words(archive),
        *_manifest(archive),
    ]
    splits = _splits(archive, {paths[row] for row in ok.tolist()})
    return Diagnosis(_census(archive, cache, columns, ok), splits, [defect for defect in found if defect.count])


def _census(archive: Archive, cache: Cache, columns: dict[str, NDArray[Any]], ok: NDArray[np.int64]) -> dict[str, Any]:
    def counts(name: str) -> dict[str, int]:
        values = Counter(_text(value) for value in columns[name][ok].tolist() if value is not None)
        return dict(values.most_common(20))

    sizes = Counter(f"{int(w)} x {int(h)}" for w, h in zip(columns["width"][ok], columns["height"][ok], strict=True))
    patients = {value for value in columns["patient"][ok].tolist() if value is not None}
    return {
        "files_and_members": len(archive) + len(archive.refused) + sum(one.files for one in archive.counted.values()),
        "images": len(ok),
        "unreadable": len(cache.unreadable()),
        "left_out": sum(status.startswith(LEFT_OUT) for status in columns["status"].tolist()),
        "not_images": {ending: one.files for ending, one in sorted(archive.counted.items())},
        "formats": counts("format"),
        "bits": counts("bits"),
        "channels_stored": counts("channels"),
        "modalities": counts("modality"),
        "modes": counts("mode"),
        "sizes": dict(sizes.most_common(10)),
        "different_sizes": len(sizes),
        "patients": len(patients) or None,
        "classes": _class_counts(archive),
        "groups": None if archive.groups is None else len(set(archive.groups.tolist())),
    }


def _text(value: Any) -> str:
    """Whole numbers without a point: a column with gaps comes as floats."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _class_counts(archive: Archive) -> dict[str, int]:
    labels = archive.labels
    return {name: int((labels == number).sum()) for number, name in enumerate(archive.classes)}


def _splits(archive: Archive, readable: set[str]) -> list[dict[str, Any]]:
    found = split_counts(archive, readable)
    if not {row["split"] for row in found} - {None}:
        return []
    for row in found:
        count, groups = row["images"], row["groups"]
        row["remarks"] = [] if row["split"] is None else _remarks(row["split"], count, groups, row["classes"])
    return found


def _remarks(split: str, images: int, groups: int | None, classes: dict[str, int]) -> list[str]:
    """What has to be known of a split before anything is judged by it."""
    remarks = []
    cases = images if groups is None else groups
    if cases < TOO_FEW and split in ("val", "test"):
        count = counted(images, "image") + ("" if groups in (None, images) else f" of {counted(cases, 'group')}")
        verb = "is" if images == 1 else "are"
        remarks.append(
            f"{count} {verb} too few to choose settings by; fine-tuning validates inside the label budget instead"
            if split == "val"
            else f"{count} {verb} too few to judge by: the 95 % interval of a proportion may be "
            f"{100 * _widest_interval(cases):.0f} points wide"
        )
    missing = [name for name, count in classes.items() if not count]
    if missing and len(missing) == len(classes):
        remarks.append("no image has a label")
    elif missing:
        remarks.append(f"no image of {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}")
    return remarks


def _widest_interval(cases: int) -> float:
    """Width of Wilson's 95 % interval of a proportion of a half.

    >>> round(_widest_interval(50), 2)
    0.27
    """
    return 1.96 / math.sqrt(cases + 1.96**2)


def _unreadable(cache: Cache) -> Defect:
    bad = cache.unreadable()
    reasons = Counter(reason for _, _, reason in bad)
    by_reason = [{"reason": reason, "count": count} for reason, count in reasons.most_common()]
    files: list[Any] = [{"path": printable(path), "frame": frame, "reason": reason} for path, frame, reason in bad]
    return Defect("unreadable", "cannot be read", grave=True, count=len(bad), rows=[], examples=[*by_reason, *files])


def _left_out(columns: dict[str, NDArray[Any]]) -> Defect:
    found = [row for row, status in enumerate(columns["status"].tolist()) if status.startswith(LEFT_OUT)]
    reasons = [columns["status"][row].removeprefix(LEFT_OUT) for row in found]
    by_reason = [{"reason": reason, "count": count} for reason, count in Counter(reasons).most_common()]
    examples = [{"path": columns["path"][row], "reason": reason} for row, reason in zip(found, reasons, strict=True)]
    meaning = "files or pages that are whole and are no images to train on, or of a format that is not read"
    return Defect("left_out", meaning, grave=False, count=len(found), rows=[], examples=[*by_reason, *examples])


def _not_images(archive: Archive) -> Defect:
    """What is not an image, though no ending says so; documents and the like are in the census only."""
    unsure = {e: one for e, one in archive.counted.items() if one.examples and e not in NO_IMAGES}
    examples = [
        {"path": printable(path), "reason": "not an image, by its content"}
        for one in unsure.values()
        for path in one.examples
    ]
    count = sum(one.files for one in unsure.values())
    meaning = "files of which neither the ending nor the content is that of an image"
    return Defect("not_images", meaning, grave=False, count=count, rows=[], examples=examples)


_OF_THEIR_OWN = {
    NOTE_NARROW: ("narrow_range", "images that use less than a sixteenth of the range of their values"),
    NOTE_HIGH_BITS: ("high_bits", "files with bits beyond the stored ones, such as overlays; they were masked"),
    NOTE_FLAT_TABLE: ("flat_by_table", "images that their lookup table makes black or flat"),
    NOTE_CONSTANT_CHANNEL: ("constant_channels", "colour images of which a channel is constant"),
}
"""Remarks that make a finding each: its name and meaning."""


def _noted(columns: dict[str, NDArray[Any]]) -> list[Defect]:
    """What the readers noted: some remarks as findings of their own, the rest as one."""
    noted = [(row, note) for row, notes in enumerate(columns["notes"].tolist()) if notes is not None for note in notes]
    paths = columns["path"].tolist()
    found = []
    for note, (name, meaning) in _OF_THEIR_OWN.items():
        rows = np.array([row for row, one in noted if one == note], dtype=np.int64)
        found.append(_images(name, meaning, note == NOTE_FLAT_TABLE, rows, paths))
    rest = [(row, note) for row, note in noted if note not in _OF_THEIR_OWN]
    reasons = Counter(note for _, note in rest)
    by_reason = [{"reason": reason, "count": count} for reason, count in reasons.most_common()]
    examples = [{"path": paths[row], "reason": note} for row, note in rest]
    of_rest = sorted({row for row, _ in rest})
    meaning = "odd files that were read all the same"
    return [
        *found,
        Defect("noted", meaning, grave=False, count=len(of_rest), rows=of_rest, examples=[*by_reason, *examples]),
    ]


def _images(name: str, meaning: str, grave: bool, rows: NDArray[np.int64], paths: Sequence[str]) -> Defect:
    chosen = rows.tolist()
    return Defect(name, meaning, grave=grave, count=len(chosen), rows=chosen, examples=[paths[row] for row in chosen])


def _single_images(columns: dict[str, NDArray[Any]], ok: NDArray[np.int64]) -> list[Defect]:
    paths = columns["path"].tolist()

    def where(name: str, condition: NDArray[np.bool_], order: NDArray[Any]) -> NDArray[np.int64]:
        rows = ok[condition[ok]]
        return rows[np.argsort(order[rows], kind="stable")]

    std, border, text = (columns[name].astype(np.float64) for name in ("std", "border", "text"))
    shorter = np.minimum(columns["height"].astype(float), columns["width"].astype(float))
    blank = where("blank", std < BLANK, std)
    tiny = where("tiny", shorter < TINY, shorter)
    borders = where("border", (border > BORDER) & (std >= BLANK), -border)
    texts = where("text", text > TEXT, -text)
    return [
        _images("blank", "blank or nearly constant", True, blank, paths),
        _images("tiny", f"shorter side below {TINY} pixels", False, tiny, paths),
        _images("borders", f"more than {BORDER:.0%} of the area is empty border", False, borders, paths),
        _images("text", "suspicion of burned-in text, which may name a patient", False, texts, paths),
    ]


def _duplicates(
    columns: dict[str, NDArray[Any]], ok: NDArray[np.int64], paths: list[str], archive: Archive
) -> list[Defect]:
    blank = columns["std"].astype(np.float64) < BLANK
    by_content: dict[tuple[str, int], list[int]] = {}
    for row in ok.tolist():
        by_content.setdefault((columns["content_hash"][row], int(columns["frame"][row])), []).append(row)
    exact = [members for members in by_content.values() if len(members) > 1]
    firsts = [members[0] for members in by_content.values()]  # one of each, or near ones would repeat the exact ones
    hashes = [None if blank[row] else columns["perceptual_hash"][row] for row in firsts]
    near = [[firsts[at] for at in members] for members in near_duplicates(hashes)]
    # Neighbouring frames of one file look alike, as they should.
    near = [members for members in near if len({paths[row] for row in members}) > 1]
    sample_of = {sample.path: sample for sample in archive.samples}

    def subject(row: int) -> tuple[str, str]:
        """Whose image this is, as far as known: group, else patient, else the file."""
        group, patient = sample_of[paths[row]].group, columns["patient"][row]
        if group is not None:
            return "group", group
        return ("file", paths[row]) if patient is None else ("patient", patient)

    def heading(kind: str, members: list[int]) -> str:
        samples = [sample_of[paths[row]] for row in members]
        if len({sample.split for sample in samples} - {None}) > 1:
            return "duplicates_across_splits"
        if len({sample.label for sample in samples} - {None}) > 1:
            return "duplicates_across_labels"
        within = kind == "near_duplicates" and len({subject(row) for row in members}) == 1
        return "near_duplicates_within_groups" if within else kind

    found: dict[str, list[list[int]]] = {}
    for kind, sets in (("exact_duplicates", exact), ("near_duplicates", near)):
        for members in sets:  # each is told once, under the gravest heading
            found.setdefault(heading(kind, members), []).append(members)
    written = columns["path"].tolist()
    told_apart = any(subject(row)[0] != "file" for row in ok.tolist())
    meanings = {
        "duplicates_across_splits": "sets of duplicates that lie in several splits",
        "duplicates_across_labels": "sets of duplicates that have several labels",
        "exact_duplicates": "sets of images with the same content",
        "near_duplicates": "sets of images of different groups that look the same: perhaps of one patient"
        if told_apart
        else "sets of images that look the same: perhaps of one patient",
        "near_duplicates_within_groups": "sets of images of one group that look the same: copies or repeated exposures",
    }
    return [
        Defect(
            name,
            meaning,
            grave=name in ("duplicates_across_splits", "duplicates_across_labels"),
            count=len(found.get(name, [])),
            rows=[row for members in found.get(name, []) for row in members],
            examples=[[written[row] for row in members] for members in found.get(name, [])],
            sets=[len(members) for members in found.get(name, [])],
        )
        for name, meaning in meanings.items()
    ]


def _mixtures(columns: dict[str, NDArray[Any]], ok: NDArray[np.int64]) -> list[Defect]:
    paths = columns["path"].tolist()
    defects = []
    for name, column, meaning in (
        ("mixed_modality", "modality", "modalities other than the most frequent"),
        ("mixed_modes", "mode", "photometric interpretations or modes other than the most frequent"),
        ("mixed_bit_depth", "bits", "bit depths other than the most frequent"),
    ):
        values = columns[column][ok]
        counts = Counter(value for value in values.tolist() if value is not None and value == value)
        if len(counts) > 1:
            usual = counts.most_common(1)[0][0]
            odd = ok[[value is not None and value == value and value != usual for value in values.tolist()]]
            defects.append(_images(name, f"{meaning} ({_text(usual)})", False, odd, paths))
    return defects


def _divided_patients(
    archive: Archive, columns: dict[str, NDArray[Any]], paths: list[str], ok: NDArray[np.int64]
) -> Defect:
    """Patients of DICOM files, whom a manifest with splits and without groups may have divided."""
    split_of = {sample.path: sample.split for sample in archive.samples}
    splits: dict[str, set[str]] = {}
    for row in ok.tolist():
        patient, split = columns["patient"][row], split_of[paths[row]]
        if patient is not None and split is not None:
            splits.setdefault(patient, set()).add(split)
    divided = sum(len(names) > 1 for names in splits.values())
    return Defect(
        "patients_across_splits", "patients of DICOM files that lie in several splits", grave=True, count=divided
    )


def _one_patient(count: int) -> Defect:
    meaning = "images with one PatientID for all, which is taken for a placeholder; if it is one patient, nothing here "
    return Defect("one_patient", f"{meaning}can test", grave=False, count=count)


def _words(archive: Archive) -> list[Defect]:
    """What was not understood, or perhaps not as intended."""
    splits = unknown_splits(archive.samples)
    without = sum(sample.split is None for sample in archive.samples)
    known = len(archive.samples) - without
    twice = alike(archive.classes)
    return [
        Defect(
            "unknown_splits",
            "images of splits that are none of train, val and test, and are used nowhere",
            grave=True,
            count=sum(splits.values()),
            rows=[],
            examples=[{"reason": name, "count": count} for name, count in splits.items()],
        ),
        Defect(
            "without_split", "images without a split beside others with one", grave=False, count=without if known else 0
        ),
        Defect(
            "classes_alike",
            "classes that seem to be one, spelled in several ways",
            grave=True,
            count=len(twice),
            rows=[],
            examples=[list(names) for names in twice],
        ),
        Defect(
            "taken_as_unknown",
            "kinds of words or labels that may mean something else",
            grave=False,
            count=len(archive.remarks),
            rows=[],
            examples=list(archive.remarks),
        ),
    ]


def _manifest(archive: Archive) -> list[Defect]:
    defects = []
    groups = archive.groups
    if groups is not None:
        splits: dict[str, set[str]] = {}
        for group, sample in zip(groups.tolist(), archive.samples, strict=True):
            if sample.split is not None and sample.group is not None:
                splits.setdefault(group, set()).add(sample.split)
        divided = sorted(group.removeprefix("group ") for group, names in splits.items() if len(names) > 1)
        # A group may be a patient's identifier, so none is quoted.
        meaning = "groups of the manifest that lie in several splits"
        defects.append(Defect("groups_across_splits", meaning, grave=True, count=len(divided)))
    counts = _class_counts(archive)
    if counts and min(counts.values()) * 10 < max(counts.values()):
        rare = [name for name, count in counts.items() if count * 10 < max(counts.values())]
        defects.append(
            Defect(
                "rare_classes",
                "classes with less than a tenth of the largest",
                grave=False,
                count=len(rare),
                rows=[],
                examples=rare,
            )
        )
    return defects
