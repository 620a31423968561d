"""The label-efficiency curve: every encoder, share of the labels and draw of them, adapted alike and judged alike."""

from __future__ import annotations

import functools
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from ..checkpoint import resolve_encoder
from ..data.loading import PixelDataset
from ..evaluation.judgement import Predictions
from ..models import EncoderSpec
from ..quiet import quiet
from ..report import write_bytes, write_json
from ..training.adapt import Adaptation, adapt
from ..training.finetune import Recipe
from ..training.optim import autocast_dtype, training_device
from ..training.probe import FeatureBank
from .gallery import save_gallery
from .labelled import Labelled, open_labelled, read_images, take_budget
from .runner import Outcome, run_cells

__all__ = ["Cell", "Plan", "adaptation_mode", "load_cell", "run_curve"]

Rows = NDArray[np.int64]


class Cell(NamedTuple):
    """One point of a curve."""

    encoder: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.encoder}-{self.fraction:g}-{self.seed}"


class Plan(NamedTuple):
    """All that a process needs to work on cells; plain values, as it travels between processes.

    Attributes:
        data: archive, with ``manifest``, ``layout``, ``split`` and ``validation`` as in
            :func:`jigsawssl.experiments.labelled.open_labelled`.
        encoders: name → reference.
        size: side of the images, or ``None`` for each encoder's own.
        attention: to add to every encoder, with ``attention_stages``.
        channels: of the archive.
        mode: as in :func:`jigsawssl.training.adapt.adapt`.
        recipes: the same for all encoders; each cell sets its seed.
        subsets: rows of the pool for each share and draw.
        out: folder of the cells.
    """

    data: str
    manifest: str | None
    layout: str | None
    split: str
    validation: str
    encoders: dict[str, str]
    size: int | None
    attention: str | None
    attention_stages: tuple[int, ...]
    channels: int
    mode: str
    recipes: tuple[Recipe, ...]
    subsets: dict[tuple[float, int], Rows]
    out: Path

    def cells(self) -> list[Cell]:
        """Every cell, small budgets first."""
        pairs = sorted(self.subsets)
        return [Cell(encoder, fraction, seed) for fraction, seed in pairs for encoder in self.encoders]


def adaptation_mode(mode: str, trained: bool) -> str:
    """What ``auto`` means: a network from fresh weights learned less when it began with a probe on them.

    Example:
        >>> adaptation_mode("auto", trained=False), adaptation_mode("linear", trained=False)
        ('full', 'linear')
    """
    return "full" if mode == "auto" and not trained else mode


class _Worker:
    """Keeps decoded images and features between the cells of one process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.labelled = open_labelled(plan.data, plan.manifest, plan.layout, plan.split, plan.validation)
        self.device = training_device(plan.recipes[0].accelerator)
        self.autocast = autocast_dtype(plan.recipes[0].precision)
        fractions = {fraction for fraction, _ in plan.subsets}
        self.explained = {min(fractions), max(fractions)}
        self._images: dict[tuple[Any, ...], tuple[PixelDataset, Rows]] = {}
        self._banks: dict[tuple[str, int], tuple[FeatureBank, bool]] = {}

    def __call__(self, cell: Cell) -> None:
        """Adapt, test and write."""
        plan, labelled = self.plan, self.labelled
        start = time.perf_counter()
        pl.seed_everything(cell.seed, verbose=False)
        features, trained = self._bank(cell)
        encoder = features.encoder
        dataset, rows = self._decoded(encoder.spec)
        chosen = plan.subsets[cell.fraction, cell.seed]
        budget = take_budget(labelled, dataset, rows, chosen, cell.fraction, cell.seed)
        adaptation = adapt(
            encoder,
            adaptation_mode(plan.mode, trained),
            budget.dataset,
            budget.labels,
            len(labelled.archive.classes),
            budget.folds,
            budget.refit_rows,
            [recipe._replace(seed=cell.seed) for recipe in plan.recipes],
            self.device,
            self.autocast,
            features=features,
        )
        tested = np.flatnonzero(np.isin(rows, labelled.test))
        probabilities = adaptation.probabilities(dataset.subset(tested))
        predictions = predictions_of(adaptation, probabilities, labelled, rows[tested])
        budget.facts["unreadable"] = len(budget.facts["unreadable"])  # their names are not for reports
        facts = {
            "encoder": cell.encoder,
            "fraction": cell.fraction,
            "seed": cell.seed,
            "mode": adaptation_mode(plan.mode, trained),
            "budget": budget.facts,
            "chosen": adaptation.chosen,
            "validation": adaptation.validation,
            "candidates": len(adaptation.validation["scores"]),
        }
        if cell.seed == 0 and adaptation.model is not None and cell.fraction in self.explained:
            facts["explanations"] = save_gallery(
                plan.out / f"{cell.name}.jpg",
                adaptation.model,
                dataset.subset(tested),
                predictions.probabilities,
                predictions.labels,
                labelled.archive.classes,
            )
        facts["seconds"] = time.perf_counter() - start
        save_cell(plan.out / cell.name, predictions, facts)

    def _bank(self, cell: Cell) -> tuple[FeatureBank, bool]:
        reference = self.plan.encoders[cell.encoder]
        # What is fresh is drawn anew for each seed, trained weights are the same for all.
        fresh = reference.startswith("random:") or self.plan.attention is not None
        seed = cell.seed if fresh else -1
        key = (cell.encoder, seed)
        if key not in self._banks:
            torch.manual_seed(cell.seed)
            plan = self.plan
            encoder, trained = resolve_encoder(
                reference, plan.channels, plan.size, plan.attention, plan.attention_stages
            )
            self._banks[key] = FeatureBank(encoder, self.device, self.autocast), trained
        return self._banks[key]

    def _decoded(self, spec: EncoderSpec) -> tuple[PixelDataset, Rows]:
        key = (spec.size, spec.in_channels, spec.fit, spec.window)
        if key not in self._images:
            labelled = self.labelled
            rows = np.concatenate([labelled.pool, labelled.validation, labelled.test])
            self._images[key] = read_images(labelled.archive, rows, spec, "labelled", progress=False)
        return self._images[key]


def predictions_of(adaptation: Adaptation, probabilities: torch.Tensor, labelled: Labelled, rows: Rows) -> Predictions:
    """Predictions of an adapted model, with numbers in place of patients."""
    groups = labelled.groups(rows)
    numbers = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return Predictions(
        probabilities.numpy(),
        labelled.archive.labels[rows],
        numbers.astype(np.int64),
        adaptation.judged.numpy(),
        adaptation.judged_labels,
        np.flatnonzero(np.isin(labelled.test, rows)),
    )


def save_cell(path: Path, predictions: Predictions, facts: Mapping[str, Any]) -> None:
    """Write ``PATH.npz`` and then ``PATH.json``, whose presence says that a cell is finished."""
    save_predictions(path.with_name(f"{path.name}.npz"), predictions)
    write_json(path.with_name(f"{path.name}.json"), facts)


def save_predictions(file: Path, predictions: Predictions) -> None:
    """Write arrays by the names that :class:`Predictions` gives them; no pickle."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **predictions._asdict())
    write_bytes(file, buffer.getvalue())


def load_cell(path: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """Read what :func:`save_cell` wrote, or ``None`` where it is not finished or damaged."""
    try:
        facts = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        # From memory, as numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.with_name(f"{path.name}.npz").read_bytes()), allow_pickle=False) as stored:
            predictions = Predictions(**{name: stored[name] for name in Predictions._fields})
        complete = isinstance(facts, dict) and facts.keys() >= {"mode", "budget", "chosen", "candidates", "seconds"}
        return (predictions, facts) if complete else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _make_worker(plan: Plan) -> Callable[[Cell], None]:
    quiet()  # a new process knows nothing of what the first one silenced
    return _Worker(plan)


def run_curve(plan: Plan, cells: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Work on cells in ``jobs`` processes; see :func:`jigsawssl.experiments.runner.run_cells`."""
    return run_cells(functools.partial(_make_worker, plan), cells, jobs)
