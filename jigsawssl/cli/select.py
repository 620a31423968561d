"""Choose the images to label next: clean training images → features → a choice → a list, pictures and a page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import to_pil_image

from ..checkpoint import resolve_encoder
from ..config.loading import to_yaml, without_folders
from ..config.schemas import SelectConfig
from ..data import Archive, cross_validation_folds
from ..data.budget import FOLDS
from ..data.cache import Cache, CacheOptions, caches_of
from ..data.cache_writer import build_cache
from ..data.doctor import Diagnosis, diagnose
from ..data.holdout import TRAIN
from ..data.identity import Identities
from ..data.known import KnownImages
from ..data.loading import LabelledSet, PixelDataset, channels_of
from ..data.manifest import csv_rows
from ..data.splits import Rows
from ..data.table import printable
from ..experiments.overlap import caches_beside
from ..experiments.reporting import LIMITS, write_report
from ..experiments.selection import (
    METHODS,
    Candidates,
    cover_radius,
    covered,
    natural_clusters,
    normalized,
    reachable,
    select,
)
from ..functional import to_unit_range
from ..runs import write_csv
from ..runs.folder import clear_run_folder, environment, now
from ..training.adapt import choose_probe
from ..training.optim import autocast_dtype, training_device
from ..training.probe import extract_features
from ..types import ImageFormat, UserError
from ..words import counted, listed
from .look import run_folder
from .supervised import provenance_of
from .unlabeled import unlabeled_archive

THUMBNAIL = 96
"""Side of the images that are looked over, and of those on the contact sheet, in pixels."""

LARGE = 384
"""Side of the images of the page in pixels."""

RANDOM = 20
"""Random choices of the same size that the share covered is compared with."""

_ON_SHEET = 96
_LEFT_OUT = (
    "blank",
    "exact_duplicates",
    "near_duplicates",
    "near_duplicates_within_groups",
    "duplicates_across_labels",
)


class _Known(NamedTuple):
    """Rows of the archive that are labelled already, and the class of each."""

    rows: Rows
    labels: NDArray[np.int64]
    classes: list[str]


def run(config: SelectConfig) -> int:
    """Choose, write and print.

    Raises:
        UserError: for a mistake that the user can fix, and where there is nothing left to choose.
    """
    path = run_folder(config)
    if config.resume and (path / "report.json").is_file():
        print(f"{path} holds the finished choice of this configuration; nothing to do")
        return 0
    began, device, autocast = now(), training_device("auto"), autocast_dtype(config.precision)
    whole = unlabeled_archive(config)
    caches = [
        cache for folder in caches_beside([config.encoder]) for cache in caches_of(whole.archive.location, Path(folder))
    ]
    archive = _training_part(whole.archive, caches) if whole.derived else whole.archive
    known = _labelled(config, archive)
    needs = METHODS[config.method].needs_labels
    if needs and len(known.classes) < 2:
        raise UserError(
            f"`method` ({config.method}) must have labelled images of two classes to begin with; `labelled` has "
            f"{len(known.classes)}; give labelled=labels.csv, or method=typical"
        )
    encoder, trained = resolve_encoder(config.encoder, in_channels=channels_of(archive))
    clear_run_folder(path)
    (path / "config.yaml").write_text(to_yaml(config))
    images = encoder.spec.format
    options = CacheOptions(
        ImageFormat(THUMBNAIL, images.channels, fit=images.fit, window=images.window), frames="middle", examined=True
    )
    looked = build_cache(archive, path / "cache", options=options, workers=os.cpu_count() or 1, progress=True)
    row_of = {sample.path: row for row, sample in enumerate(archive.samples)}
    looked_at = np.array([row_of[name] for name in looked.paths()], dtype=np.int64)
    readable = looked_at[looked.readable()]
    out, why = _left_out(diagnose(archive, looked), looked_at.tolist(), known.rows)
    rows = np.union1d(np.setdiff1d(readable, out), np.intersect1d(readable, known.rows))
    dataset = PixelDataset(archive.select(rows.tolist()), images, workers=os.cpu_count() or 1)
    dataset.load(True, KnownImages(dataset.archive, caches))
    rows = rows[dataset.rows]
    print(f"{counted(len(rows), 'image')} to choose from{f'; left out: {why}' if why else ''}")
    found = extract_features(encoder, dataset, device=device, autocast=autocast)
    at = np.flatnonzero(np.isin(rows, known.rows))
    label_of = dict(zip(known.rows.tolist(), known.labels.tolist(), strict=True))
    probabilities = None
    if needs:
        probabilities = _probe(
            found, dataset, at, np.array([label_of[row] for row in rows[at].tolist()]), known, config.seed
        )
    units = Identities(archive, known=KnownImages(archive, [*caches, looked])).units(rows)
    candidates = Candidates(
        found.numpy(), at, np.unique(units, return_inverse=True)[1], config.per_group, probabilities
    )
    if not reachable(candidates):
        raise UserError(
            f"`data` ({config.data}) must have images that are not labelled yet, of other groups than those; none of "
            f"{len(rows)} is left; give per_group=0, or more images"
        )
    chosen = select(candidates, method=config.method, count=config.count, seed=config.seed)
    unit = normalized(candidates.features)
    natural = natural_clusters(unit, seed=config.seed)
    radius = cover_radius(unit, clusters=natural, seed=config.seed)
    share = covered(unit, np.union1d(at, chosen.rows), radius=radius)
    by_chance = []
    for seed in range(RANDOM):
        other = select(candidates, method="random", count=config.count, seed=seed).rows
        by_chance.append(covered(unit, np.union1d(at, other), radius=radius))
    names = [printable(archive.samples[row].path) for row in rows[chosen.rows].tolist()]
    write_csv(
        path / "to_label.csv",
        ["path", "label", "cluster", "reason"],
        (
            [name, "", "" if number < 0 else number, reason]
            for name, number, reason in zip(names, chosen.clusters.tolist(), chosen.reasons, strict=True)
        ),
    )
    _draw(path, archive.select(rows[chosen.rows].tolist()), images, chosen.reasons)
    made = len(chosen.rows)
    less = f" (of {config.count} asked for; groups or images did not suffice)" if made < config.count else ""
    already = f", beside {counted(len(at), 'labelled one')}," if len(at) else ""
    report = {
        "command": "select",
        "config": without_folders(config),
        "done": f"Chose {counted(made, 'image')} of {len(rows):,} to label{less}: {METHODS[config.method].meaning}.",
        "result": (
            f"They{already} speak for {share:.0%} of the archive; as many drawn at random would for "
            f"{np.mean(by_chance):.0%} ({min(by_chance):.0%} to {max(by_chance):.0%} in {RANDOM} draws)."
        ),
        "data": {"images": len(archive), "candidates": len(rows), "labelled": len(at), "left_out": why or "none"},
        "encoder": {**provenance_of(config.encoder, trained), "backbone": encoder.spec.backbone},
        "clusters": natural,
        "covered": {"share": share, "at_random": float(np.mean(by_chance)), "radius": radius},
        "chosen_images": [
            {"cluster": number if number >= 0 else None, "reason": reason}
            for number, reason in zip(chosen.clusters.tolist(), chosen.reasons, strict=True)
        ],
        "environment": environment(device, autocast),
        "when": {"began": began, "ended": now()},
        "limits": LIMITS["select"],
    }
    print("\n" + "\n".join(write_report(path, report)))
    print(f"\nto fill in: {path / 'to_label.csv'}  page: {path / 'report.html'}  pictures: {path / 'to_label.png'}")
    return 0


def _training_part(archive: Archive, caches: Sequence[Cache]) -> Archive:
    """Without the test split that follows from the images, which is told by their content and never looked at."""
    identities = Identities(archive, known=KnownImages(archive, caches))
    every = np.arange(len(archive))
    identities.look_up(every, progress=True)
    readable = np.array([row for row in every.tolist() if identities.content(row) is not None], dtype=np.int64)
    kept = readable[identities.split(readable) == TRAIN]
    print(f"test split: {len(readable) - len(kept)} images are kept out, as in pretraining")
    return archive.select(kept.tolist())


def _labelled(config: SelectConfig, archive: Archive) -> _Known:
    if config.labelled is None:
        return _Known(np.array([], dtype=np.int64), np.array([], dtype=np.int64), [])
    lines = [cells for _, cells in csv_rows(Path(config.labelled), key="labelled", labels=True) if cells.get("label")]
    row_of = {printable(sample.path): row for row, sample in enumerate(archive.samples)}
    unknown = [cells["path"] for cells in lines if cells["path"] not in row_of]
    if unknown or not lines:
        what = f"{len(unknown)} of {len(lines)} are not, the first is {unknown[0]}" if unknown else "it has no label"
        raise UserError(
            f"`labelled` ({config.labelled}) must have path,label of images that may be chosen from (of the test split "
            f"none may); {what}; take those lines out"
        )
    classes = sorted({cells["label"] for cells in lines})
    label_of = {row_of[cells["path"]]: classes.index(cells["label"]) for cells in lines}
    rows = np.array(sorted(label_of), dtype=np.int64)
    return _Known(rows, np.array([label_of[row] for row in rows.tolist()], dtype=np.int64), classes)


def _left_out(diagnosis: Diagnosis, rows: list[int], known: Rows) -> tuple[Rows, str]:
    """Rows of the archive that are not worth a label, and how many of which kind; of copies one stays."""
    labelled, out, told = set(known.tolist()), set[int](), []
    for defect in diagnosis.defects:
        if defect.name not in _LEFT_OUT:
            continue
        members = [rows[at] for at in defect.rows]
        found = set(members)
        first = 0
        for size in defect.sets:
            together = members[first : first + size]
            first += size
            found.discard(next((row for row in together if row in labelled), together[0]))
        found -= labelled | out
        out |= found
        if found:
            told.append(f"{len(found)} {defect.name.replace('_', ' ')}")
    return np.array(sorted(out), dtype=np.int64), listed(told) if told else ""


def _probe(
    features: torch.Tensor, dataset: PixelDataset, at: Rows, labels: NDArray[np.int64], known: _Known, seed: int
) -> NDArray[np.float64]:
    """Probabilities ``(N, K)`` of a linear probe on the labelled images, its strength chosen among them."""
    every = np.full(len(dataset), -1, dtype=np.int64)
    every[at] = labels
    folds = cross_validation_folds(labels, None, folds=FOLDS, seed=seed)
    folds = [(at[train], at[val]) for train, val in folds]
    head = choose_probe(features, LabelledSet(dataset, every, len(known.classes), folds, at), balanced=True).fit(at)
    with torch.no_grad():
        return head(features).softmax(dim=1).double().numpy()  # type: ignore[no-any-return]


def _draw(path: Path, chosen: Archive, images: ImageFormat, reasons: list[str]) -> None:
    """The contact sheet, and a larger picture of each image for the page, named by its number."""
    from ..report.figures import save_contact_sheet

    dataset = PixelDataset(
        chosen, ImageFormat(LARGE, images.channels, window=images.window), workers=os.cpu_count() or 1
    )
    dataset.load(False)
    pixels = to_unit_range(dataset.__getitems__(range(len(dataset))).images)
    captions = [f"{number}\n{reason}" for number, reason in enumerate(reasons, start=1)]
    small = torch.nn.functional.interpolate(pixels[:_ON_SHEET], THUMBNAIL, mode="area")
    save_contact_sheet(small, captions[:_ON_SHEET], path / "to_label.png", "Images to label")
    (path / "images").mkdir()
    for number, one in enumerate((pixels * 255).round().byte(), start=1):
        to_pil_image(one).save(path / "images" / f"{number}.jpg", quality=85)
