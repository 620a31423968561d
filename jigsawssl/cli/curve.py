"""Wire a label-efficiency curve: encoders × shares of the labels × draws → one report."""

from pathlib import Path
from typing import Any

import torch

from ..config.schemas import CurveConfig
from ..data.budget import read_subset, subset_name
from ..data.labelled import Labelled
from ..experiments.curve import Plan, run_curve
from ..experiments.overlap import check_overlap
from ..experiments.reporting import curve_report, summary
from ..experiments.trials import Cell, EncoderChoice, load_cell
from ..progress import Progress
from ..training.adapt import MODES, adaptation_mode
from ..training.finetune import planned_epochs
from . import supervised


def run(config: CurveConfig) -> int:
    """Work on every cell that is not finished, then report; gives 0, or 1 where cells failed."""
    opened = supervised.open_cells(config)
    path, device, labelled, source, channels = opened
    common = supervised.choice_of(config, "", labelled)
    choices = {name: common._replace(reference=reference) for name, reference in config.encoders.items()}
    encoders = {name: _encoder_facts(config, choice, opened) for name, choice in choices.items()}
    fractions = sorted(set(config.fractions))
    subsets = _subsets(config, labelled, fractions)
    supervised.check_draws(subsets, labelled, "fractions", count_groups=config.budget == "groups")
    task = supervised.task_of(
        config,
        opened,
        encoders=encoders,
        fractions=fractions,
        seeds=config.seeds,
        prints={
            "subsets": [(*key, rows.tolist()) for key, rows in sorted(subsets.items())],
            "encoders": [(name, facts["sha256"]) for name, facts in sorted(encoders.items())],
        },
    )
    supervised.begin_cells(config, opened, task=task, subsets=subsets, folders=["cells"])
    plan = Plan(
        source=source,
        encoders=choices,
        channels=channels,
        mode=config.mode,
        recipes=tuple(supervised.recipes_of(config, device, seed=0)),
        subsets=subsets,
        out=path / "cells",
    )
    _work(plan, config, device)
    supervised.end_cells(path)
    report = curve_report(path)
    print(f"\n{summary(report)}\n\nreport: {path / 'report.html'}  table: {path / 'table.csv'}")
    for cell, reason in report["failed"].items():
        print(f"failed: {cell}: {reason}")
    return 1 if report["missing"] else 0


def _encoder_facts(config: CurveConfig, choice: EncoderChoice, opened: supervised.Opened) -> dict[str, Any]:
    reference = choice.reference
    encoder, trained = choice.resolve(opened.channels)
    mode = supervised.check_encoder(config, reference, trained=trained, encoder=encoder)
    guard = check_overlap(
        reference, trained=trained, labelled=opened.labelled, allowed=config.allow_overlap, source=opened.source
    )
    return {
        **supervised.provenance_of(reference, trained),
        "mode": mode,
        "sha256": supervised.digest(reference),
        "backbone": encoder.spec.backbone,
        "size": encoder.spec.format.size,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "leak_guard": supervised.counted(guard),
    }


def _subsets(config: CurveConfig, labelled: Labelled, fractions: list[float]) -> supervised.Subsets:
    if config.subsets is None:
        return supervised.draw_subsets(config, labelled, fractions)
    folder = Path(config.subsets)
    keys = [(fraction, seed) for fraction in fractions for seed in range(config.seeds)]
    return {key: read_subset(folder / subset_name(*key), labelled) for key in keys}


def _work(plan: Plan, config: CurveConfig, device: torch.device) -> None:
    cells = plan.cells()
    costs = {cell: _cost(plan, cell) for cell in cells}
    waiting = [cell for cell in cells if load_cell(plan.out / cell.name) is None]
    finished = len(cells) - len(waiting)
    jobs = min(config.jobs or supervised.default_jobs(device), max(1, len(waiting)))
    print(f"{len(cells)} cells, {finished} of them finished before; {jobs} at a time")
    total = sum(costs.values())
    done = sum(costs[cell] for cell in cells) - sum(costs[cell] for cell in waiting)
    # Time left goes by work, as a large budget takes a hundred times as long as a small one.
    shape = "{l_bar}{bar}| {remaining} left{postfix}"
    with Progress(total=total, initial=done, desc="Curve", bar_format=shape, disable=not waiting) as bar:
        bar.set_postfix_str(f"{finished} of {len(cells)} cells")
        for outcome in run_curve(plan, waiting, jobs):
            finished += outcome.error is None
            supervised.keep_outcome(plan.out, outcome)
            bar.set_postfix_str(f"{finished} of {len(cells)} cells", refresh=False)
            bar.update(costs[outcome.cell])


def _cost(plan: Plan, cell: Cell) -> float:
    """About how long a cell takes, in images that are trained on."""
    mode = adaptation_mode(plan.mode, not plan.encoders[cell.encoder].reference.startswith("random:"))
    count = len(plan.subsets[cell.fraction, cell.seed])
    passes = sum(planned_epochs(count, recipe) for recipe in plan.recipes) if MODES[mode].trains else 1
    return 2000.0 + count * passes
