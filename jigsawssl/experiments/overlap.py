"""Whether pretraining saw what an encoder is judged by, and what to do then."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..config.loading import without_folder
from ..config.repeat import command_line, command_with, settings_of
from ..data.holdout import TEST
from ..data.labelled import LEAST_TEST, Labelled, Source
from ..data.leakage import KEY_FILE, Overlap, SeenImages
from ..data.table import printable
from ..types import UserError


def _run_of(reference: str) -> Path | None:
    """Folder of the run that an encoder, or the architecture of a fresh one, comes from."""
    file = Path(reference.removeprefix("random:"))
    return file.parent if file.is_file() else None


def seen_by(references: Iterable[str]) -> list[SeenImages]:
    """What the runs saw that some encoders, as users name them, come from, as far as they left it.

    Fresh weights of a file's architecture count too, so that they are tested on what the file is tested on.

    Raises:
        UserError: for a damaged file.
    """
    folders = dict.fromkeys(folder for folder in map(_run_of, references) if folder is not None)
    return [SeenImages.load(folder / "seen.parquet") for folder in folders if (folder / "seen.parquet").is_file()]


def caches_beside(references: Iterable[str]) -> tuple[str, ...]:
    """Folders of the decoded images that some encoders, as users name them, were pretrained on."""
    found = []
    for folder in map(_run_of, references):
        if folder is not None:
            named = settings_of(folder).get("cache")
            found.append(str(named) if named not in (None, "off") else str(folder / "cache"))
    return tuple(dict.fromkeys(found))


def check_overlap(
    encoder: str, *, trained: bool, labelled: Labelled, allowed: bool, source: Source | None = None
) -> dict[str, Any]:
    """Whether pretraining has seen what is judged by, from ``seen.parquet`` beside the encoder.

    Args:
        encoder: as the user named it.
        trained: whether it has weights that were trained.
        labelled: the archive that it is judged by.
        allowed: whether the user allowed an overlap.
        source: of the archive, for the command that fixes it.

    Returns:
        JSON values for the report.

    Raises:
        UserError: with examples and a remedy, if it has and the user did not allow it.
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
