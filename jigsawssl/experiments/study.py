"""The comparison study: a search of equal size for every variant, then repetitions, tested in and out of the domain."""

import functools
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from torch.utils.flop_counter import FlopCounterMode

from ..data.budget import read_images
from ..data.labelled import Domain, Source, open_domain
from ..data.splits import Rows
from ..explain.gallery import save_gallery
from ..explain.maps import compare_maps
from ..models import Encoder
from ..process import prepare_process
from ..runs import write_json
from ..training.adapt import judge_recipe
from ..training.finetune import Recipe, planned_epochs
from ..types import DivergedError
from .runner import Outcome, error_line, run_cells
from .trials import (
    Cell,
    EncoderChoice,
    Tested,
    Workplace,
    load_cell,
    load_predictions,
    predictions_of,
    save_cell,
    save_predictions,
)

WARMUP = 2
"""Epochs that every trial may have."""

EXPLAINED = 32
"""Test images, drawn at random, that explanations are compared on."""


class StudyPlan(NamedTuple):
    """All that a process needs; plain values, as it travels between processes.

    Attributes:
        source: of the labelled images.
        variants: by name.
        domains: by name.
        channels: of the archive.
        recipe: what is not searched.
        space: lowest and highest value of fields of the recipe.
        trials: of each search.
        fraction: share of the labels.
        subsets: rows of the pool for each seed; the search uses those of seed 0.
        out: folder of the study, with ``search/`` and ``cells/`` in it.
    """

    source: Source
    variants: dict[str, EncoderChoice]
    domains: dict[str, Domain]
    channels: int
    recipe: Recipe
    space: dict[str, tuple[float, float]]
    trials: int
    fraction: float
    subsets: dict[int, Rows]
    out: Path

    def cells(self) -> list[Cell]:
        """Every repetition, each variant once before any has two."""
        return [Cell(name, self.fraction, seed) for seed in self.subsets for name in self.variants]


def cost_of(encoder: Encoder) -> dict[str, int]:
    """Parameters, and multiply-adds for one image of the encoder's size.

    >>> from jigsawssl.models import create_encoder
    >>> from jigsawssl.types import ImageFormat
    >>> cost_of(create_encoder("resnet18", ImageFormat(224)))["multiply_adds"] / 1e9
    1.8...
    """
    spec = encoder.spec.format
    parameter = next(encoder.parameters())
    images = torch.zeros(1, spec.channels, spec.size, spec.size, device=parameter.device)
    training = encoder.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoder.eval()(images)
    finally:
        encoder.train(training)
    # It counts a multiplication and an addition as two.
    return {
        "parameters": sum(value.numel() for value in encoder.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def load_search(file: Path) -> dict[str, Any] | None:
    """What a finished search wrote, or ``None``."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"best", "trials", "score"} else None


class _Searcher:
    """Searches the settings of one variant after another; a trial that is not promising ends early."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan = plan
        self.place = Workplace(plan.source, plan.recipe.accelerator, plan.recipe.precision)

    def __call__(self, variant: str) -> None:
        """Try settings until there are as many as every variant gets, and write which was best."""
        plan = self.plan
        study = _open_study(plan, variant)
        for trial in study.get_trials(states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)  # its process was killed
        while (tried := len(_tried(study))) < plan.trials:
            # By the number of trials, so that a search that was interrupted ends like one that was not.
            study.sampler = optuna.samplers.TPESampler(seed=tried, n_startup_trials=max(2, plan.trials // 2))
            if not tried and not study.get_trials(states=[TrialState.WAITING]):
                default = {name: np.clip(getattr(plan.recipe, name), *limits) for name, limits in plan.space.items()}
                study.enqueue_trial({name: float(value) for name, value in default.items()})
            self._try(study, study.ask(), variant)
        if not study.get_trials(states=[TrialState.COMPLETE]):
            raise RuntimeError(f"none of the {plan.trials} settings could be trained to the end")
        trials = [
            {
                "settings": trial.params,
                "score": trial.value,
                "state": trial.user_attrs.get("state", trial.state.name.lower()),
                "epochs": trial.user_attrs.get("epochs", 0),
            }
            for trial in _tried(study)
        ]
        facts = {
            "best": study.best_trial.params,
            "score": study.best_trial.value,
            "trials": trials,
            "ended_early": sum(trial["state"] != "complete" for trial in trials),
            "epochs": sum(trial["epochs"] for trial in trials),
        }
        write_json(plan.out / "search" / f"{variant}.json", facts)

    def _try(self, study: optuna.Study, trial: optuna.Trial, variant: str) -> None:
        plan, place = self.plan, self.place
        found: dict[str, Any] = {
            field: trial.suggest_float(field, low, high, log=low > 0) for field, (low, high) in plan.space.items()
        }
        torch.manual_seed(0)
        encoder, _ = plan.variants[variant].resolve(plan.channels)
        budget = place.budget(encoder.spec.format, chosen=plan.subsets[0], seed=0)
        last = planned_epochs(min(len(train) for train, _ in budget.labelled_set.folds), plan.recipe)
        done = 0

        def check(epoch: int, score: float) -> None:
            nonlocal done
            done = epoch
            trial.report(score, epoch)
            if epoch < last and trial.should_prune():
                raise optuna.TrialPruned

        recipe = plan.recipe._replace(seed=0, **found)
        try:
            score = judge_recipe(encoder, budget.labelled_set, recipe=recipe, on_check=check)
        except (optuna.TrialPruned, DivergedError) as end:
            # One that diverges was tried like any other: asked again, the search would propose it again.
            trial.set_user_attr("state", "pruned" if isinstance(end, optuna.TrialPruned) else "diverged")
            trial.set_user_attr("epochs", done)
            study.tell(trial, state=TrialState.PRUNED)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            trial.set_user_attr("epochs", done * len(budget.labelled_set.folds))  # the later folds are not checked
            study.tell(trial, score)


def _open_study(plan: StudyPlan, variant: str) -> optuna.Study:
    file = plan.out / "search" / f"{variant}.db"
    # By a function, as an address in text would trip over what folders may be called.
    storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(file)})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=max(2, plan.trials // 4), n_warmup_steps=WARMUP)
    return optuna.create_study(
        study_name=variant, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
    )


def _tried(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])


class _Worker:
    """Trains and tests variants with the settings that their searches chose."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan = plan
        self.place = Workplace(plan.source, plan.recipe.accelerator, plan.recipe.precision)

    def __call__(self, cell: Cell) -> None:
        """Train, test on each archive, explain, and write."""
        plan, place = self.plan, self.place
        start = time.perf_counter()
        search = load_search(plan.out / "search" / f"{cell.encoder}.json")
        if search is None:
            raise RuntimeError(f"the search of {cell.encoder} did not end")
        torch.manual_seed(cell.seed)
        encoder, _ = plan.variants[cell.encoder].resolve(plan.channels)
        recipe = plan.recipe._replace(**search["best"])
        tested = place.test(encoder, mode="full", recipes=[recipe], chosen=plan.subsets[cell.seed], seed=cell.seed)
        facts = {**cell._asdict(), **tested.facts, "maps": {}}
        # What goes wrong beside the test itself costs that part alone.
        failed: dict[str, str] = {}
        parts = {f"on {name}": functools.partial(self._elsewhere, cell, name, tested) for name in plan.domains}
        parts["explanations"] = functools.partial(self._explain, cell, tested, facts)
        for name, part in parts.items():
            try:
                part()
            except Exception as error:
                failed[name] = error_line(error)
        facts["failed"] = failed
        facts["seconds"] = time.perf_counter() - start
        save_cell(plan.out / "cells" / cell.name, tested.predictions, facts)

    def _elsewhere(self, cell: Cell, name: str, tested: Tested) -> None:
        """Test on another archive, decoded for each cell as it may be large."""
        model = tested.adaptation.model
        assert model is not None
        domain, labels = open_domain(self.plan.domains[name], classes=self.place.labelled.archive.classes)
        images, rows = read_images(domain, domain.test, format=model.encoder.spec.format, what=name, progress=False)
        labels = labels[np.isin(domain.test, rows)]
        probabilities = tested.adaptation.probabilities(images)
        predictions = predictions_of(
            tested.adaptation, probabilities=probabilities, labelled=domain, rows=rows, labels=labels
        )
        save_predictions(domain_file(self.plan.out, cell, name), predictions)

    def _explain(self, cell: Cell, tested: Tested, facts: dict[str, Any]) -> None:
        """Compare maps, and draw those of the first repetition."""
        model, predictions = tested.adaptation.model, tested.predictions
        assert model is not None
        chosen = np.random.default_rng(0).permutation(len(predictions.labels))[:EXPLAINED]
        model = model.cpu().eval()
        facts["maps"] = compare_maps(
            model, model.encoder.preprocess(tested.images.__getitems__(chosen.tolist()).images)
        )
        if cell.seed == min(self.plan.subsets):
            facts["explanations"] = save_gallery(
                self.plan.out / "cells" / f"{cell.name}.jpg",
                model=model,
                dataset=tested.images,
                probabilities=predictions.probabilities,
                labels=predictions.labels,
                classes=self.place.labelled.archive.classes,
            )


def is_finished(plan: StudyPlan, cell: Cell) -> bool:
    """Whether a cell was tested on every archive, and explained."""
    found = load_cell(plan.out / "cells" / cell.name)
    files = [domain_file(plan.out, cell, name) for name in plan.domains]
    return found is not None and not found[1]["failed"] and all(load_predictions(file) is not None for file in files)


def domain_file(out: Path, cell: Cell, domain: str) -> Path:
    """Where the predictions of a cell on another archive are kept."""
    return out / "cells" / f"{cell.name}@{domain}.npz"


def _make_searcher(plan: StudyPlan) -> Callable[[str], None]:
    _prepare()
    return _Searcher(plan)


def _make_worker(plan: StudyPlan) -> Callable[[Cell], None]:
    _prepare()
    return _Worker(plan)


def _prepare() -> None:
    prepare_process()
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def run_searches(plan: StudyPlan, variants: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """Search the settings of some variants in ``jobs`` processes, each variant in one."""
    return run_cells(functools.partial(_make_searcher, plan), variants, jobs)


def run_study(plan: StudyPlan, cells: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Train and test in ``jobs`` processes; see :func:`jigsawssl.experiments.runner.run_cells`."""
    return run_cells(functools.partial(_make_worker, plan), cells, jobs)
