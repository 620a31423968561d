"""The label-efficiency curve: every encoder, share of the labels and draw of them, adapted alike and judged alike."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.labelled import Source
from ..data.splits import Rows
from ..explain.gallery import save_gallery
from ..process import prepare_process
from ..training.adapt import adaptation_mode
from ..training.finetune import Recipe
from ..training.probe import FeatureBank
from .runner import Outcome, run_cells
from .trials import Cell, EncoderChoice, Workplace, save_cell


class Plan(NamedTuple):
    """All that a process needs to work on cells; plain values, as it travels between processes.

    Attributes:
        source: of the labelled images.
        encoders: by name.
        channels: of the archive.
        mode: as in :func:`jigsawssl.training.adapt.adapt`.
        recipes: the same for all encoders; each cell sets its seed.
        subsets: rows of the pool for each share and draw.
        out: folder of the cells.
    """

    source: Source
    encoders: dict[str, EncoderChoice]
    channels: int
    mode: str
    recipes: tuple[Recipe, ...]
    subsets: dict[tuple[float, int], Rows]
    out: Path

    def cells(self) -> list[Cell]:
        """Every cell, small budgets first."""
        pairs = sorted(self.subsets)
        return [Cell(encoder, fraction, seed) for fraction, seed in pairs for encoder in self.encoders]


class _Worker:
    """Keeps features between the cells of one process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.place = Workplace(plan.source, plan.recipes[0].accelerator, plan.recipes[0].precision)
        fractions = {fraction for fraction, _ in plan.subsets}
        self.explained = {min(fractions), max(fractions)}
        self._banks: dict[tuple[str, int], tuple[FeatureBank, bool]] = {}

    def __call__(self, cell: Cell) -> None:
        """Adapt, test and write."""
        plan = self.plan
        start = time.perf_counter()
        features, trained = self._bank(cell)
        chosen = plan.subsets[cell.fraction, cell.seed]
        mode = adaptation_mode(plan.mode, trained)
        recipes = list(plan.recipes)
        tested = self.place.test(
            features.encoder, mode=mode, recipes=recipes, chosen=chosen, seed=cell.seed, features=features
        )
        facts = {**cell._asdict(), **tested.facts}
        if cell.seed == 0 and tested.adaptation.model is not None and cell.fraction in self.explained:
            facts["explanations"] = save_gallery(
                plan.out / f"{cell.name}.jpg",
                model=tested.adaptation.model,
                dataset=tested.images,
                probabilities=tested.predictions.probabilities,
                labels=tested.predictions.labels,
                classes=self.place.labelled.archive.classes,
            )
        facts["seconds"] = time.perf_counter() - start
        save_cell(plan.out / cell.name, tested.predictions, facts)

    def _bank(self, cell: Cell) -> tuple[FeatureBank, bool]:
        choice = self.plan.encoders[cell.encoder]
        # What is fresh is drawn again for each seed, trained weights are the same for all.
        key = (cell.encoder, cell.seed if choice.fresh else -1)
        if key not in self._banks:
            torch.manual_seed(cell.seed)
            encoder, trained = choice.resolve(self.plan.channels)
            self._banks[key] = FeatureBank(encoder, device=self.place.device, autocast=self.place.autocast), trained
        return self._banks[key]


def _make_worker(plan: Plan) -> Callable[[Cell], None]:
    prepare_process()
    return _Worker(plan)


def run_curve(plan: Plan, cells: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Work on cells in ``jobs`` processes; see :func:`jigsawssl.experiments.runner.run_cells`."""
    return run_cells(functools.partial(_make_worker, plan), cells, jobs)
