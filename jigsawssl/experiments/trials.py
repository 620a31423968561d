"""One adapted and tested model: what its encoder is, where its images come from, and the files that it leaves."""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from .. import defaults
from ..checkpoint import resolve_encoder
from ..data.budget import Budget, read_images, take_budget
from ..data.labelled import Labelled, Source, open_labelled
from ..data.loading import PixelDataset
from ..data.splits import Rows
from ..evaluation.assessment import Predictions
from ..models import Encoder
from ..runs import write_bytes, write_json
from ..training.adapt import Adaptation, adapt
from ..training.finetune import Recipe
from ..training.optim import autocast_dtype, training_device
from ..training.probe import FeatureBank
from ..types import ImageFormat


class Cell(NamedTuple):
    """One encoder, share of the labels and draw of them."""

    encoder: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.encoder}-{self.fraction:g}-{self.seed}"


class EncoderChoice(NamedTuple):
    """An encoder as a user names it, as :func:`jigsawssl.checkpoint.resolve_encoder` takes it."""

    reference: str
    size: int | None = None
    attention: str | None = None
    attention_stages: tuple[int, ...] = defaults.ATTENTION_STAGES
    backbone_options: Mapping[str, Any] | None = None
    stain: str | None = None
    stain_target: tuple[float, ...] = ()

    def resolve(self, channels: int) -> tuple[Encoder, bool]:
        """The encoder, and whether its weights were trained."""
        encoder, trained = resolve_encoder(
            self.reference,
            in_channels=channels,
            size=self.size,
            attention=self.attention,
            attention_stages=self.attention_stages,
            backbone_options=self.backbone_options,
        )
        if self.stain is not None:
            encoder.read_as(replace(encoder.spec.format, stain=self.stain, stain_target=self.stain_target))
        return encoder, trained

    @property
    def fresh(self) -> bool:
        """Whether something of it comes from the random generator."""
        return self.reference.startswith("random:") or self.attention is not None


class Tested(NamedTuple):
    """An adapted model, what it says of the test images, those images and the row of each, and facts for a report."""

    adaptation: Adaptation
    predictions: Predictions
    images: PixelDataset
    rows: Rows
    facts: dict[str, Any]


def adapt_and_test(
    encoder: Encoder,
    labelled: Labelled,
    *,
    budget: Budget,
    test: Callable[[], tuple[PixelDataset, Rows]],
    mode: str,
    recipes: list[Recipe],
    device: torch.device,
    autocast: torch.dtype | None,
    progress: bool = False,
    features: FeatureBank | None = None,
) -> Tested:
    """Adapt to the labels of a budget, and test once: what fine-tuning, a curve and a study have in common.

    Args:
        encoder: the starting point; not changed.
        labelled: the archive.
        budget: the labels that may be used.
        test: gives the test images and the row of each, when the adapted model is there.
        mode: this and the rest as for :func:`jigsawssl.training.adapt.adapt`.
    """
    adaptation = adapt(
        encoder,
        budget.labelled_set,
        mode=mode,
        recipes=recipes,
        device=device,
        autocast=autocast,
        progress=progress,
        features=features,
    )
    images, rows = test()
    predictions = predictions_of(
        adaptation, probabilities=adaptation.probabilities(images), labelled=labelled, rows=rows
    )
    facts = {
        "mode": mode,
        "budget": budget.facts,
        "chosen": adaptation.chosen,
        "validation": adaptation.validation,
        "candidates": len(adaptation.validation["scores"]),
    }
    return Tested(adaptation=adaptation, predictions=predictions, images=images, rows=rows, facts=facts)


class Workplace:
    """What a process keeps between its cells: the labelled archive, and decoded images."""

    def __init__(self, source: Source, accelerator: str, precision: Any) -> None:
        self.labelled = open_labelled(source)
        self.device = training_device(accelerator)
        self.autocast = autocast_dtype(precision)
        self._images: dict[ImageFormat, tuple[PixelDataset, Rows]] = {}

    def decoded(self, format: ImageFormat) -> tuple[PixelDataset, Rows]:
        """Every labelled image as an encoder reads it, and the row of each."""
        key = format.decoded
        if key not in self._images:
            labelled = self.labelled
            rows = np.concatenate([labelled.pool, labelled.validation, labelled.test])
            self._images[key] = read_images(labelled, rows, format=key, what="labelled", progress=False)
        return self._images[key]

    def budget(self, format: ImageFormat, *, chosen: Rows, seed: int) -> Budget:
        """The labels that may be used; see :func:`jigsawssl.data.budget.take_budget`."""
        dataset, rows = self.decoded(format)
        found = take_budget(self.labelled, dataset=dataset, rows=rows, chosen=chosen, seed=seed)
        names = found.facts["unreadable"]
        if isinstance(names, dict):  # which are not for reports of many cells
            found.facts["unreadable"] = len(names)
        return found

    def test(
        self,
        encoder: Encoder,
        *,
        mode: str,
        recipes: list[Recipe],
        chosen: Rows,
        seed: int,
        features: FeatureBank | None = None,
    ) -> Tested:
        """Adapt to the chosen labels, with ``seed`` in every recipe, and test once."""
        pl.seed_everything(seed, verbose=False)
        dataset, rows = self.decoded(encoder.spec.format)
        tested = np.flatnonzero(np.isin(rows, self.labelled.test))
        return adapt_and_test(
            encoder,
            self.labelled,
            budget=self.budget(encoder.spec.format, chosen=chosen, seed=seed),
            test=lambda: (dataset.subset(tested), rows[tested]),
            mode=mode,
            recipes=[recipe._replace(seed=seed) for recipe in recipes],
            device=self.device,
            autocast=self.autocast,
            features=features,
        )


def predictions_of(
    adaptation: Adaptation,
    *,
    probabilities: torch.Tensor,
    labelled: Labelled,
    rows: Rows,
    labels: NDArray[np.int64] | None = None,
) -> Predictions:
    """Predictions of an adapted model, with numbers in place of patients.

    Args:
        adaptation: that made them.
        probabilities: float ``(N, K)``.
        labelled: the archive that holds the test images.
        rows: ``(N,)``, of that archive.
        labels: int64 ``(N,)``; default: those of the archive, where its classes are those of the model.
    """
    groups = labelled.groups(rows)
    numbers = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return Predictions(
        probabilities=probabilities.numpy(),
        labels=labelled.archive.labels[rows] if labels is None else labels,
        groups=numbers.astype(np.int64),
        validation=adaptation.judged.numpy(),
        validation_labels=adaptation.judged_labels,
        cases=np.flatnonzero(np.isin(labelled.test, rows)),
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


def load_predictions(file: Path) -> Predictions | None:
    """Read what :func:`save_predictions` wrote, or ``None`` where it is missing or damaged."""
    try:
        # From memory, as numpy leaves a damaged file open.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            return Predictions(**{name: stored[name] for name in Predictions._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def load_cell(path: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """Read what :func:`save_cell` wrote, or ``None`` where it is not finished or damaged."""
    try:
        facts = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    predictions = load_predictions(path.with_name(f"{path.name}.npz"))
    complete = isinstance(facts, dict) and facts.keys() >= {"mode", "budget", "chosen", "candidates", "seconds"}
    return (predictions, facts) if complete and predictions is not None else None
