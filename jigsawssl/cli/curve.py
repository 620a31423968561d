"""Wire a label-efficiency curve: encoders × shares of the labels × draws → one report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import CurveConfig, without_folders
from ..data.budget import draw_subset, read_subset, subset_name
from ..data.labelled import Labelled
from ..experiments.curve import Plan, run_curve
from ..experiments.overlap import check_overlap
from ..experiments.reporting import curve_report, summary
from ..experiments.trials import Cell, EncoderChoice, load_cell
from ..progress import Progress
from ..runs import write_bytes
from ..runs.folder import environment
from ..training.adapt import MODES, adaptation_mode
from ..training.finetune import planned_epochs
from ..training.optim import autocast_on
from .supervised import (
    Opened,
    begin_cells,
    check_draws,
    check_encoder,
    choice_of,
    counted,
    data_facts,
    default_jobs,
    digest,
    end_cells,
    fingerprint,
    open_cells,
    provenance_of,
    recipes_of,
    split_fingerprint,
    subgroups_of,
)


def run(config: CurveConfig) -> int:
    """Work on every cell that is not finished, then report.

    Returns:
        0, or 1 where cells failed.
    """
    opened = open_cells(config)
    path, device, labelled, source, channels = opened
    common = choice_of(config, "", labelled)
    choices = {name: common._replace(reference=reference) for name, reference in config.encoders.items()}
    encoders = {name: _encoder_facts(config, choice, opened) for name, choice in choices.items()}
    fractions = sorted(set(config.fractions))
    subsets = _subsets(config, labelled, fractions)
    check_draws(subsets, labelled, "fractions", count_groups=config.budget == "groups")
    columns = subgroups_of(config, labelled, labelled.test)
    task = _task(
        config, labelled, encoders=encoders, fractions=fractions, subsets=subsets, subgroups=columns, device=device
    )
    begin_cells(config, opened, task=task, subsets=subsets, folders=["cells"])
    plan = Plan(
        source=source,
        encoders=choices,
        channels=channels,
        mode=config.mode,
        recipes=tuple(recipes_of(config, device, seed=0)),
        subsets=subsets,
        out=path / "cells",
    )
    _work(plan, config, device)
    end_cells(path)
    report = curve_report(path)
    print(f"\n{summary(report)}\n\nreport: {path / 'report.html'}  table: {path / 'table.csv'}")
    for cell, reason in report["failed"].items():
        print(f"failed: {cell}: {reason}")
    return 1 if report["missing"] else 0


def _encoder_facts(config: CurveConfig, choice: EncoderChoice, opened: Opened) -> dict[str, Any]:
    reference = choice.reference
    encoder, trained = choice.resolve(opened.channels)
    mode = check_encoder(config, reference, trained=trained, encoder=encoder)
    guard = check_overlap(
        reference, trained=trained, labelled=opened.labelled, allowed=config.allow_overlap, source=opened.source
    )
    return {
        **provenance_of(reference, trained),
        "mode": mode,
        "sha256": digest(reference),
        "backbone": encoder.spec.backbone,
        "size": encoder.spec.format.size,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "leak_guard": counted(guard),
    }


def _subsets(
    config: CurveConfig, labelled: Labelled, fractions: list[float]
) -> dict[tuple[float, int], NDArray[np.int64]]:
    keys = [(fraction, seed) for fraction in fractions for seed in range(config.seeds)]
    if config.subsets is not None:
        folder = Path(config.subsets)
        return {key: read_subset(folder / subset_name(*key), labelled) for key in keys}
    by_group = config.budget == "groups"
    return {
        (fraction, seed): draw_subset(labelled, fraction=fraction, seed=seed, count_groups=by_group)
        for fraction, seed in keys
    }


def _task(
    config: CurveConfig,
    labelled: Labelled,
    *,
    encoders: Mapping[str, Any],
    fractions: list[float],
    subsets: Mapping[tuple[float, int], NDArray[np.int64]],
    subgroups: Mapping[str, NDArray[np.str_]],
    device: torch.device,
) -> dict[str, Any]:
    """What the report needs to know of archive and encoders, so that it can be rebuilt without them."""
    archive = labelled.archive
    return {
        "config": without_folders(config),
        "data": data_facts(labelled),
        "encoders": encoders,
        "fractions": fractions,
        "seeds": config.seeds,
        "subgroups": subgroups,
        "environment": environment(device, autocast_on(config.precision, device)),
        "fingerprints": {
            "data": archive.fingerprint(),
            "manifest": fingerprint(list(map(repr, archive.samples))),
            "split": split_fingerprint(labelled),
            "subsets": fingerprint([(*key, rows.tolist()) for key, rows in sorted(subsets.items())]),
            "encoders": fingerprint([(name, facts["sha256"]) for name, facts in sorted(encoders.items())]),
        },
    }


def _work(plan: Plan, config: CurveConfig, device: torch.device) -> None:
    cells = plan.cells()
    costs = {cell: _cost(plan, cell) for cell in cells}
    waiting = [cell for cell in cells if load_cell(plan.out / cell.name) is None]
    finished = len(cells) - len(waiting)
    jobs = min(config.jobs or default_jobs(device), max(1, len(waiting)))
    print(f"{len(cells)} cells, {finished} of them finished before; {jobs} at a time")
    total = sum(costs.values())
    done = sum(costs[cell] for cell in cells) - sum(costs[cell] for cell in waiting)
    # Time left goes by work, as a large budget takes a hundred times as long as a small one.
    shape = "{l_bar}{bar}| {remaining} left{postfix}"
    with Progress(total=total, initial=done, desc="Curve", bar_format=shape, disable=not waiting) as bar:
        bar.set_postfix_str(f"{finished} of {len(cells)} cells")
        for outcome in run_curve(plan, waiting, jobs):
            finished += outcome.error is None
            error_file = plan.out / f"{outcome.cell.name}.error.txt"
            if outcome.error is None:
                error_file.unlink(missing_ok=True)
            else:
                write_bytes(error_file, f"{outcome.error}\n".encode())
            bar.set_postfix_str(f"{finished} of {len(cells)} cells", refresh=False)
            bar.update(costs[outcome.cell])


def _cost(plan: Plan, cell: Cell) -> float:
    """About how long a cell takes, in images that are trained on."""
    mode = adaptation_mode(plan.mode, not plan.encoders[cell.encoder].reference.startswith("random:"))
    count = len(plan.subsets[cell.fraction, cell.seed])
    passes = sum(planned_epochs(count, recipe) for recipe in plan.recipes) if MODES[mode].trains else 1
    return 2000.0 + count * passes
