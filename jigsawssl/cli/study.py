"""Wire a comparison study: variants × settings, then variants × repetitions, tested on one or more archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..config import StudyConfig, to_yaml, without_folders
from ..data import Archive
from ..data.guard import seen_images
from ..data.loading import PixelDataset
from ..experiments.cells import EncoderChoice, Source, load_cell
from ..experiments.labelled import Labelled, check_overlap, open_domain, open_labelled
from ..experiments.reporting import study_report, study_summary
from ..experiments.runner import Outcome
from ..experiments.study import Domain, StudyPlan, cost_of, load_search, run_searches, run_study
from ..experiments.subsets import draw_subset, write_subsets
from ..report import write_bytes, write_json
from ..report.run import check_run_folder, clear_run_folder, environment
from ..training.optim import DEFAULT_WEIGHT_DECAY, training_device
from ..types import UserError
from .supervised import (
    check_encoder,
    check_unchanged,
    choice_of,
    data_facts,
    default_jobs,
    digest,
    fingerprint,
    provenance_of,
    recipes_of,
)

__all__ = ["run"]

FIELDS = {
    "optimizer.lr": "lr",
    "optimizer.weight_decay": "weight_decay",
    "optimizer.head_scale": "head_scale",
    "optimizer.layer_decay": "layer_decay",
    "dropout": "dropout",
}
"""Field of the recipe for each key that may be searched."""


def run(config: StudyConfig) -> int:
    """Search and repeat what is not finished, then report.

    Returns:
        0, or 1 where a part failed.

    Raises:
        UserError: for what the user can mend.
    """
    path = check_run_folder(
        config.out, config.resume, config.overwrite, to_yaml(config), free=("config", "jobs", "out")
    )
    device = training_device(config.trainer.accelerator)
    labelled = open_labelled(config.data, config.manifest, config.layout, config.split, config.validation)
    archive = labelled.archive
    channels = PixelDataset(archive.select(labelled.pool.tolist()), 8).channels
    subsets = {
        seed: draw_subset(labelled, config.fraction, seed, config.budget == "groups") for seed in range(config.seeds)
    }
    for seed, rows in subsets.items():
        if len(np.unique(archive.labels[rows])) < 2:
            raise UserError(f"`fraction` ({config.fraction:g}) must leave two classes; draw {seed} has one; raise it")
    domains = {
        name: Domain(values["data"], values.get("manifest"), values.get("layout"))
        for name, values in config.domains.items()
    }
    elsewhere = _open_domains(config, domains, labelled)
    common = choice_of(config, "", labelled)
    choices = {name: _choice(common, values) for name, values in config.variants.items()}
    variants = {name: _facts(config, name, choices[name], channels, labelled, elsewhere) for name in choices}
    task = {
        "config": without_folders(config),
        "data": data_facts(labelled),
        "variants": variants,
        "domains": {name: {"images": len(rows)} for name, (_, rows) in elsewhere.items()},
        "environment": environment(device),
        "fingerprints": {
            "data": archive.fingerprint(),
            "manifest": fingerprint(sorted(map(repr, archive.samples))),
            "domains": fingerprint(sorted((name, found.fingerprint()) for name, (found, _) in elsewhere.items())),
            "variants": fingerprint([(name, facts["sha256"]) for name, facts in sorted(variants.items())]),
        },
    }
    if config.resume:
        check_unchanged(path / "task.json", task["fingerprints"])
    else:
        clear_run_folder(path)
    for name in ("search", "cells"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(to_yaml(config))
    write_subsets(path / "subsets", labelled, {(config.fraction, seed): rows for seed, rows in subsets.items()})
    write_json(path / "task.json", task)
    recipe = recipes_of(config, device, seed=0)[0]
    if recipe.weight_decay is None:
        recipe = recipe._replace(weight_decay=DEFAULT_WEIGHT_DECAY[recipe.optimizer])
    plan = StudyPlan(
        Source(config.data, config.manifest, config.layout, config.split, config.validation),
        choices,
        domains,
        channels,
        recipe,
        {FIELDS[key]: (float(low), float(high)) for key, (low, high) in config.space.items()},
        config.trials,
        config.fraction,
        subsets,
        path,
    )
    _work(plan, config, device)
    report = study_report(path)
    print(f"\n{study_summary(report)}\n\nreport: {path / 'report.html'}  table: {path / 'table.csv'}")
    for part, reason in report["failed"].items():
        print(f"failed: {part}: {reason}")
    return 1 if report["missing"] else 0


def _choice(common: EncoderChoice, values: Mapping[str, Any]) -> EncoderChoice:
    return common._replace(
        reference=values["encoder"],
        attention=values.get("attention", common.attention),
        attention_stages=tuple(values.get("attention_stages", common.attention_stages)),
        options=dict(values.get("backbone_options", common.options or {})),
    )


Elsewhere = Mapping[str, tuple[Archive, np.ndarray[Any, np.dtype[np.int64]]]]


def _open_domains(config: StudyConfig, domains: Mapping[str, Domain], labelled: Labelled) -> Elsewhere:
    """Archives that are only tested on, and their rows; none may hold an image that is trained on."""
    found = {name: open_domain(*domain, labelled.archive.classes)[0] for name, domain in domains.items()}
    if found and not config.allow_overlap:
        used = np.union1d(labelled.pool, labelled.validation)
        seen = seen_images(labelled.archive.select(used.tolist()), None, progress=True)
        for name, domain in found.items():
            same = seen.overlap(domain.archive, domain.test).same_image
            if len(same):
                raise UserError(
                    f"`domains.{name}` must hold no image that is trained on; {len(same)} are the same; leave them "
                    "out, or give allow_overlap=true, which the report will say"
                )
    return {name: (domain.archive, domain.test) for name, domain in found.items()}


def _facts(
    config: StudyConfig, name: str, choice: EncoderChoice, channels: int, labelled: Labelled, elsewhere: Elsewhere
) -> dict[str, Any]:
    try:
        encoder, trained = choice.resolve(channels)
    except UserError as error:
        raise UserError(f"`variants.{name}`: {error}") from None
    check_encoder(config, choice.reference, trained, encoder.spec)
    judged = [(labelled.archive, np.concatenate([labelled.validation, labelled.test])), *elsewhere.values()]
    guards = [check_overlap(choice.reference, trained, *pair, config.allow_overlap) for pair in judged]
    return {
        **provenance_of(choice.reference, trained),
        "against": config.variants[name].get("against", next(iter(config.variants))),
        "backbone": encoder.spec.backbone,
        "attention": encoder.spec.attention,
        "size": encoder.spec.size,
        **cost_of(encoder),
        "sha256": digest(choice.reference),
        "leak_guard": guards[0]["checked"],
    }


def _work(plan: StudyPlan, config: StudyConfig, device: torch.device) -> None:
    searches = [name for name in plan.variants if load_search(plan.out / "search" / f"{name}.json") is None]
    jobs = config.jobs or default_jobs(device)
    number = len(plan.variants)
    if searches:
        print(f"{number} searches of {plan.trials} settings, {len(searches)} of them to be done")
        _collect(run_searches(plan, searches, min(jobs, len(searches))), "Search", searches, plan.out / "search")
    found = [name for name in plan.variants if load_search(plan.out / "search" / f"{name}.json") is not None]
    cells = plan.cells()
    waiting = [cell for cell in cells if cell.encoder in found and load_cell(plan.out / "cells" / cell.name) is None]
    print(f"{len(cells)} repetitions, {len(waiting)} of them to be done")
    if waiting:
        _collect(run_study(plan, waiting, min(jobs, len(waiting))), "Study", waiting, plan.out / "cells")


def _collect(outcomes: Iterator[Outcome], name: str, parts: Sequence[Any], folder: Path) -> None:
    """Show how far it is, and keep why a part failed."""
    with tqdm(total=len(parts), desc=name) as bar:
        for outcome in outcomes:
            part = outcome.cell if isinstance(outcome.cell, str) else outcome.cell.name
            file = folder / f"{part}.error.txt"
            if outcome.error is None:
                file.unlink(missing_ok=True)
            else:
                write_bytes(file, f"{outcome.error}\n".encode())
            bar.update()
