"""Wire a fine-tuning run: labelled rows → budget → folds → adapted classifier → one look at the test split."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from ..checkpoint import save_classifier
from ..config.loading import to_yaml, without_folder, without_folders
from ..config.schemas import FinetuneConfig
from ..data import Archive
from ..data.budget import draw_subset, read_images, read_subset, take_budget
from ..data.conventions import split_name
from ..data.labelled import Labelled, remarks_on, unlabelled_rows, write_split
from ..data.loading import PixelDataset, channels_of
from ..data.splits import Rows
from ..data.table import printable
from ..evaluation.assessment import Criteria, Predictions, judge
from ..evaluation.metrics import METRICS
from ..experiments.overlap import check_overlap
from ..experiments.reporting import LIMITS, write_report
from ..experiments.trials import adapt_and_test, save_predictions
from ..explain.gallery import save_gallery
from ..models import Classifier
from ..runs import format_table, write_csv
from ..runs.folder import clear_run_folder, environment, now
from ..training.adapt import MODES, Adaptation
from ..training.optim import autocast_dtype, training_device
from ..training.probe import dropout_probabilities
from ..types import ImageFormat, UserError
from ..words import counted
from . import supervised
from .look import run_folder

DROPOUT_PASSES = 50


def run(config: FinetuneConfig) -> None:
    """Fine-tune and test once."""
    began = now()
    path = run_folder(config)
    if config.resume and (path / "report.json").is_file():
        print(f"{path} holds the finished run of this configuration; nothing to do")
        return
    device = training_device(config.trainer.accelerator)
    source = supervised.source_of(config, [config.encoder])
    labelled = supervised.open_and_tell(config, source, [config.encoder])
    archive, pool, known = labelled.archive, labelled.pool, labelled.identities.known
    pl.seed_everything(config.seed, verbose=False)
    channels = channels_of(archive.select(pool.tolist()))
    encoder, trained = supervised.choice_of(config, config.encoder, labelled).resolve(channels)
    mode = supervised.check_encoder(config, config.encoder, trained=trained, encoder=encoder)
    if config.unlabeled and not MODES[mode].unlabelled:
        raise UserError(
            f"`unlabeled` (true) needs an encoder with trained weights, or mode=linear; `encoder` ({config.encoder}) "
            "has fresh ones; leave it out"
        )
    guard = check_overlap(
        config.encoder, trained=trained, labelled=labelled, allowed=config.allow_overlap, source=source
    )
    if config.subset is None:
        by_group = config.budget == "groups"
        chosen = draw_subset(labelled, fraction=config.fraction, seed=config.seed, count_groups=by_group)
        supervised.check_draws({(config.fraction, config.seed): chosen}, labelled, "fraction", count_groups=by_group)
    else:
        chosen = read_subset(Path(config.subset), labelled)
    dataset, rows = read_images(
        labelled, np.concatenate([chosen, labelled.validation]), format=encoder.spec.format, what="labelled"
    )
    # Mistakes should show before anything is trained.
    by_subgroup = supervised.subgroups_of(config, labelled, labelled.test)
    criteria = Criteria(archive.classes, config.ordered, config.sensitivity, config.coverage, by_subgroup)
    budget = take_budget(labelled, dataset=dataset, rows=rows, chosen=chosen, seed=config.seed)
    unlabelled = _without_labels(config, labelled, chosen, encoder.spec.format) if config.unlabeled else None
    if unlabelled is not None:
        budget.facts["unlabelled"] = len(unlabelled)
        budget = budget._replace(labelled_set=budget.labelled_set._replace(unlabelled=unlabelled))
    recipes = supervised.recipes_of(config, device, config.seed)
    autocast = autocast_dtype(recipes[0].precision)
    clear_run_folder(path)
    (path / "config.yaml").write_text(to_yaml(config))
    write_split(path / "split.csv", labelled)
    whole = config.subset is None and config.fraction == 1
    labels = f"all {len(pool)} labels (fraction=1)" if whole else f"{budget.facts['labels']} labels of {len(pool)}"
    beside = "" if unlabelled is None else f" and {counted(len(unlabelled), 'image')} without"
    print(f"{labels}{beside}; validation: {budget.facts['validation']}; mode {config.mode}")
    print(supervised.test_line(labelled))
    start = time.perf_counter()
    tested = adapt_and_test(
        encoder,
        labelled,
        budget=budget,
        test=lambda: read_images(labelled, labelled.test, format=encoder.spec.format, what="test"),
        mode=mode,
        recipes=recipes,
        device=device,
        autocast=autocast,
        progress=True,
    )
    adaptation, predictions, test = tested.adaptation, tested.predictions, tested.images
    seconds = time.perf_counter() - start
    if known.used:
        print(f"{len(known.used)} images were taken from the cache of the pretraining")
    passes = None
    if config.dropout and isinstance(adaptation.model, Classifier):
        passes = dropout_probabilities(adaptation.model, test, passes=DROPOUT_PASSES, device=device, autocast=autocast)
    judgement = judge(predictions, criteria, passes=passes)
    metrics = judgement["metrics"]
    judgement["notes"] += (f"{remark[:1].upper()}{remark[1:]}." for remark in remarks_on(labelled))
    if adaptation.validation.get("diverged"):
        judgement["notes"].append(f"Training diverged with {', '.join(adaptation.validation['diverged'])}, which lost.")
    if test.unreadable:
        judgement["notes"].append(f"{len(test.unreadable)} test images could not be read, and are left out.")
    origin = {"encoder": without_folder(config.encoder), "labels": budget.facts["labels"], "seed": config.seed}
    provenance = {**origin, **adaptation.chosen}
    if adaptation.model is not None:
        save_classifier(path / "model.safetensors", adaptation.model, archive.classes, provenance=provenance)
        judgement["explanations"] = save_gallery(
            path / "explanations.jpg",
            model=adaptation.model,
            dataset=test,
            probabilities=predictions.probabilities,
            labels=predictions.labels,
            classes=archive.classes,
        )
    report = {
        "command": "finetune",
        "config": without_folders(config),
        "data": {**supervised.data_facts(labelled), "from_cache": len(known.used)},
        "encoder": {**supervised.provenance_of(config.encoder, trained), "backbone": encoder.spec.backbone},
        "leak_guard": guard,
        "budget": {**budget.facts, "fraction": config.fraction if config.subset is None else len(chosen) / len(pool)},
        "split_made_by": labelled.made_by,
        "chosen": adaptation.chosen,
        "validation": adaptation.validation,
        "test": metrics,
        "test_unreadable": {printable(name): reason for name, reason in test.unreadable.items()},
        "model_file": None if adaptation.model is None else "model.safetensors",
        "seconds": seconds,
        "environment": environment(device, autocast),
        "when": {"began": began, "ended": now()},
        "limits": LIMITS["finetune"],
        "judgement": {key: value for key, value in judgement.items() if key != "metrics"},
    }
    save_predictions(path / "predictions.npz", predictions)
    _write(path, archive=archive, rows=tested.rows, predictions=predictions, adaptation=adaptation, metrics=metrics)
    lines = write_report(path, report)
    _summary(path, metrics, adaptation, lines)


def _without_labels(
    config: FinetuneConfig, labelled: Labelled, chosen: Rows, format: ImageFormat
) -> PixelDataset | None:
    rows = unlabelled_rows(labelled, chosen, split=split_name(config.split))
    if not len(rows):
        print("note: no image of the training split is without a label, so unlabeled=true changes nothing")
        return None
    hidden = labelled._replace(archive=labelled.archive.without_labels())
    return read_images(hidden, rows, format=format, what="unlabeled")[0]


def _write(
    path: Path,
    *,
    archive: Archive,
    rows: Rows,
    predictions: Predictions,
    adaptation: Adaptation,
    metrics: dict[str, Any],
) -> None:
    from ..report.figures import save_confusion_matrix, save_finetune_curves

    write_csv(
        path / "predictions.csv",
        ["path", "label", "prediction", *(f"probability_{name}" for name in archive.classes)],
        (
            [
                printable(archive.samples[row].path),
                archive.samples[row].label,
                archive.classes[int(np.argmax(line))],
                *(f"{value:.6f}" for value in line),
            ]
            for row, line in zip(rows.tolist(), predictions.probabilities.tolist(), strict=True)
        ),
    )
    curves = [(epoch, name, value) for name, points in adaptation.history.items() for epoch, value in points]
    write_csv(path / "metrics.csv", ["epoch", "name", "value"], sorted(curves, key=lambda row: (row[0], row[1])))
    save_finetune_curves(
        adaptation.history, predictions.probabilities, predictions.labels, archive.classes, path / "curves.png"
    )
    save_confusion_matrix(metrics["confusion_matrix"], archive.classes, path / "confusion.png")


def _summary(path: Path, metrics: dict[str, Any], adaptation: Adaptation, lines: list[str]) -> None:
    names = [metric.name for metric in METRICS if metric.printed]
    chosen = ", ".join(f"{key} {value}" for key, value in adaptation.chosen.items())
    print(f"\nchosen by validation: {chosen}; test split of {metrics['count']} images:\n")
    print(format_table(["metric", "test"], [[name.replace("_", " "), metrics[name]] for name in names]))
    recall = [[name, values["support"], values["recall"]] for name, values in metrics["per_class"].items()]
    print("\n" + format_table(["class", "images", "recall"], recall))
    print("\n" + "\n".join(lines))
    none = "none, as nearest neighbours are looked up among the labelled images"
    print(f"\nmodel:    {none if adaptation.model is None else path / 'model.safetensors'}")
    print(f"pictures: {path / 'curves.png'}, {path / 'confusion.png'}")
    print(f"report:   {path / 'report.html'}")
