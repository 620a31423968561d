"""Wire a pretraining run: archive → views → encoder and block → trainer → portable encoder and report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from ..checkpoint import save_encoder
from ..config.loading import to_yaml, without_folder, without_folders
from ..config.schemas import PretrainConfig
from ..data import Archive
from ..data.cache import Cache
from ..data.cache_writer import build_cache
from ..data.census import split_counts
from ..data.doctor import BLANK
from ..data.holdout import TEST, TRAIN
from ..data.identity import Identities
from ..data.journal import journal_entries
from ..data.known import KnownImages
from ..data.leakage import SeenImages, seen_images
from ..data.loading import PixelDataset, training_loader
from ..data.table import printable
from ..functional import to_channels_last, to_unit_range
from ..models import Encoder
from ..process import when_interrupted
from ..report.figures import save_curves
from ..runs import write_csv
from ..runs.folder import clear_run_folder, environment, now
from ..training import monitors
from ..training.optim import autocast_dtype, autocast_precision, training_device
from ..types import UserError
from ..words import counted
from .building import build_module, encoder_to_train, images_of_a_device, planned_dataset
from .census import census_table, told
from .look import format_changes, run_folder, settled
from .unlabeled import SEEN, Unlabeled, keep_out, sides_in_words, unlabeled_archive, write_sides

SMALL_ENOUGH = 128
"""Side of the views in pixels above which a run on a CPU is said to take long."""


def _decode(config: PretrainConfig, dataset: PixelDataset, path: Path) -> Cache | None:
    """Decode everything once: into the cache, into memory where the archive lies there, or not at all."""
    if dataset.archive.in_memory:
        dataset.load(progress=True)
        return None
    if dataset.most_unreadable < 0:
        raise dataset.too_many_unreadable()
    if config.cache == "off":
        return None
    folder = Path(config.cache) if config.cache is not None else path / "cache"
    options = dataset.cache_options(config.reading.frames)
    scope = json.dumps([config.split, config.manifest, config.layout])
    cache = build_cache(dataset.archive, folder, options=options, workers=dataset.workers, progress=True, scope=scope)
    dataset.use(cache)
    return cache


def _seen_before(config: PretrainConfig, path: Path, resumed: bool) -> SeenImages:
    """What this run used before it was resumed, and what its starting encoder has seen."""
    seen = SeenImages.nothing()
    file = path / "seen.parquet"
    if resumed and file.is_file():
        seen = SeenImages.load(file)
    if config.encoder is not None:
        earlier = Path(config.encoder).parent / file.name
        known = Path(config.encoder).is_file() and earlier.is_file()
        seen = seen.union(SeenImages.load(earlier) if known else SeenImages.nothing(complete=False))
    return seen


def _require_same_images(seen: SeenImages, before: SeenImages, path: Path) -> None:
    """A run goes on with the images that it began with, wherever they lie now.

    Raises:
        UserError: if there are others among them.
    """
    new = len(seen.contents - before.contents)
    if new and (path / "seen.parquet").is_file():
        raise UserError(
            f"`data` must hold the images that the run began with; {counted(new, 'image')} of {len(seen.contents)} are "
            "others; give that archive, or start a new run with encoder=… to go on from these weights"
        )


def _require_differences(seen: SeenImages, dataset: PixelDataset) -> None:
    """Images must differ; where few do, a warning says so.

    Raises:
        UserError: if all images are one, or constant.
    """
    some = np.linspace(0, len(dataset) - 1, min(len(dataset), 64)).round().astype(int)
    images = to_unit_range(dataset.__getitems__(some.tolist()).images)
    blank = int((images.flatten(1).std(dim=1) < BLANK).sum())
    if len(seen.contents) == 1 or blank == len(images):
        what = "constant" if blank == len(images) else "the same image"
        raise UserError(f"`data` must hold images that differ; all {len(dataset)} are {what}; check the archive")
    if 2 * blank >= len(images):
        print(f"warning: {blank} of {len(images)} images looked at are nearly constant; see jigsawssl doctor")


def _bad(dataset: PixelDataset) -> dict[str, str]:
    """What cannot be read, and why."""
    return {**dict(dataset.archive.refused), **dataset.unreadable}


def _write_quarantine(path: Path, dataset: PixelDataset) -> None:
    rows = [[printable(name), reason] for name, reason in sorted(_bad(dataset).items())]
    write_csv(path / "quarantine.csv", ["path", "reason"], rows)


def _trainer(config: PretrainConfig, path: Path, device: torch.device, callbacks: list[Any]) -> pl.Trainer:
    strategy = "auto"
    if config.trainer.devices > 1:
        # Progressive steps, branches without weight, and one tap of a network that branches off before it, leave
        # parameters out of a backward pass.
        partial = config.schedule == "progressive" or 0 in config.loss.weights or not config.views.grids
        strategy = "ddp_find_unused_parameters_true" if partial else "ddp"
    return pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy=strategy,
        sync_batchnorm=config.trainer.devices > 1 and device.type == "cuda",
        precision=autocast_precision(config.precision, device),
        logger=TensorBoardLogger(path, name="tensorboard", version=""),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def _is_first() -> bool:
    """Whether this process owns the folder and the terminal: with several devices, each process runs all of this."""
    return getattr(rank_zero_only, "rank", 0) == 0


def run(config: PretrainConfig) -> Path:
    """Pretrain; returns the path of the encoder."""
    config = settled(config)
    began, path, first = now(), Path(config.out), _is_first()
    if first:
        path = run_folder(config)
        if config.resume and _nothing_to_do(config, path):
            return path / "encoder.safetensors"
    device = training_device(config.trainer.accelerator)
    checkpoint = path / "checkpoints" / "last.ckpt"
    resumed = config.resume and checkpoint.is_file()
    unlabeled = unlabeled_archive(config)
    dataset, started = planned_dataset(config, unlabeled.archive)
    if first:
        if not resumed:
            clear_run_folder(path)
        (path / "config.yaml").write_text(to_yaml(config))
        print(_census(unlabeled.whole) + unlabeled.told)
        when_interrupted(lambda: _kept_before_training(config, path))
    dataset, cache = _images_to_learn_from(config, path, unlabeled, dataset, resumed=resumed)
    pl.seed_everything(config.seed, verbose=False)
    encoder = encoder_to_train(config, dataset, started)
    module = to_channels_last(build_module(config, encoder))
    shard = images_of_a_device(config, dataset)
    loader = training_loader(dataset, batch_size=min(config.batch.size, shard), drop_last=True, seed=config.seed)
    metrics_file = monitors.MetricsFile(path / "metrics.csv")
    callbacks = [
        monitors.FiniteLoss(),
        monitors.Throughput(),
        monitors.Diagnostics(),
        metrics_file,
        monitors.ViewsSheet(path / "views.png"),
        monitors.Checkpoint(path / "checkpoints", filename="last", enable_version_counter=False),
        monitors.RunProgress(checkpoint, images_kept=cache is not None),
    ]
    trainer = _trainer(config, path, device, callbacks)
    if first:
        _tell_what_runs(config, encoder, dataset, shard, device)
        if config.resume:
            print(_beginning(config, checkpoint))
    module.train()
    try:
        trainer.fit(module, loader, ckpt_path=checkpoint if resumed else None, weights_only=True)
    finally:
        if first:
            _write_quarantine(path, dataset)
    if not trainer.is_global_zero:
        return path / "encoder.safetensors"
    if not trainer.global_step:
        raise UserError(
            f"`batch.size` ({config.batch.size}) must leave a whole batch of {len(dataset)} images for each device; "
            "nothing was trained and no encoder is written; make it smaller"
        )
    provenance = _provenance(config, unlabeled.archive, dataset)
    save_encoder(path / "encoder.safetensors", encoder, provenance=provenance)
    report = {
        "command": "pretrain",
        "config": without_folders(config),
        "data": {**_data_facts(dataset), "cached": cache is not None, "fingerprint": provenance["archive"]},
        "encoder": _encoder_facts(encoder),
        "run": {
            "epochs": trainer.current_epoch,
            "updates": trainer.global_step,
            "seconds": metrics_file.seconds,
            "resumed": resumed,
        },
        "metrics": {name: float(value) for name, value in metrics_file.rows[-1].items() if value != ""},
        "environment": environment(device, autocast_dtype(trainer.precision)),
        "when": {"began": began, "ended": now()},
    }
    _curves(path, metrics_file.rows)
    from ..experiments.reporting import write_report  # a long import for the last second of a run

    _summary(path, write_report(path, report))
    return path / "encoder.safetensors"


def _images_to_learn_from(
    config: PretrainConfig, path: Path, unlabeled: Unlabeled, dataset: PixelDataset, *, resumed: bool
) -> tuple[PixelDataset, Cache | None]:
    """The decoded images without those that test, and where they lie; what is seen is written down."""
    archive = unlabeled.archive
    try:
        cache = _decode(config, dataset, path)
    finally:
        if _is_first():
            _write_quarantine(path, dataset)
    if len(dataset) < 2:
        raise UserError(f"`data` ({config.data}) must hold 2 readable images or more, not {len(dataset)}; add images")
    known = KnownImages(archive, [] if cache is None else [cache], trusted=True)
    identities = Identities(archive, known=known)
    dataset, sides = keep_out(dataset, identities, derived=unlabeled.derived)
    if len(dataset) < 2:
        raise UserError(f"`data` ({config.data}) must leave 2 images or more beside the test split; add images")
    if _is_first():
        before = _seen_before(config, path, resumed)
        tested = np.flatnonzero(sides == TEST)
        sides[before.overlap(identities, tested).rows] = SEEN
        if unlabeled.derived:
            print(sides_in_words(sides))
        write_sides(path / "split.csv", unlabeled, sides)
        seen = seen_images(identities, np.flatnonzero(sides == TRAIN))
        if resumed:
            _require_same_images(seen, before, path)
        _require_differences(seen, dataset)
        seen.union(before).save(path / "seen.parquet")
    return dataset, cache


def _tell_what_runs(
    config: PretrainConfig, encoder: Encoder, dataset: PixelDataset, shard: int, device: torch.device
) -> None:
    size = encoder.spec.format.size
    if encoder.isotropic and config.views.grids:
        print(
            f"warning: {encoder.spec.backbone} tells positions apart by embeddings, which shuffled tiles contradict, "
            "and its stages have one resolution; choose a convolutional backbone, or views.grids=[]"
        )
    if config.encoder is not None:
        for key, value, before in format_changes(config):
            print(f"note: `{key}` is {value} from here on; the encoder of `encoder` was trained with {before}")
    if encoder.remark and config.encoder is None:
        print(f"note: {encoder.remark}")
    if config.batch.size > shard:
        print(f"`batch.size` ({config.batch.size}) is more than the images of a device; batches are of {shard}")
    print(
        f"{len(dataset)} images of {'one channel' if dataset.format.channels == 1 else 'three channels'}, "
        f"{size} px, {encoder.spec.backbone}, schedule {config.schedule}, "
        f"{'plain Barlow Twins' if not config.views.grids else f'grids {list(config.views.grids)}'}"
    )
    if device.type == "cpu" and size > SMALL_ENOUGH:
        print(
            f"no GPU is used, and {size} px take long on a CPU; config=kermany_cpu is a small network at "
            f"64 px, and jigsawssl bench data={config.data} says how long a run takes"
        )


def _provenance(config: PretrainConfig, archive: Archive, dataset: PixelDataset) -> dict[str, Any]:
    return {
        "archive": archive.fingerprint(),
        "images": len(dataset),
        "split": config.split,
        "schedule": config.schedule,
        "grids": list(config.views.grids),
        "preset": config.views.preset,
        "epochs": config.trainer.max_epochs,
        "seed": config.seed,
        "started_from": None if config.encoder is None else without_folder(config.encoder),
    }


def _census(archive: Archive) -> str:
    """What a manifest says of the images, where there is one; labels are counted and not used."""
    known = archive.classes or any(sample.split or sample.group for sample in archive.samples)
    table = ["", census_table(split_counts(archive)), ""] if known else []
    return "".join(f"{line}\n" for line in [*table, *told(archive.remarks)])


def _data_facts(dataset: PixelDataset) -> dict[str, Any]:
    return {
        "images": len(dataset),
        "channels": dataset.format.channels,
        "decoded_size": dataset.format.size,
        "bits": 16 if dataset.sixteen_bit else 8,
        "fit": dataset.format.fit,
        "window": dataset.format.window,
        "unreadable": {printable(name): reason for name, reason in _bad(dataset).items()},
    }


def _encoder_facts(encoder: Encoder) -> dict[str, Any]:
    return {
        "backbone": encoder.spec.backbone,
        "features": encoder.features,
        "channels": encoder.channels,
        "reductions": encoder.reductions,
        "mean": encoder.spec.format.mean,
        "std": encoder.spec.format.std,
    }


def _curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Losses by branch, and the signs of collapse, by epoch."""
    names = [name for name in rows[-1] if name.startswith("loss_")]
    names += [*[name for name in rows[-1] if name.startswith("diagonal_")][-1:], "effective_rank", "feature_std"]
    history = {name: [(int(row["epoch"]) + 1, float(row[name])) for row in rows] for name in names}
    save_curves(history, path / "curves.png", "Pretraining by epoch")


def _summary(path: Path, lines: list[str]) -> None:
    print("\n" + "\n".join(lines))
    print(f"encoder:  {path / 'encoder.safetensors'}")
    print(f"pictures: {path / 'views.png'}, {path / 'curves.png'}")
    print(f"report:   {path / 'report.html'}")


def _nothing_to_do(config: PretrainConfig, path: Path) -> bool:
    """Whether the run to resume is finished, which is then said.

    Raises:
        UserError: if it has more epochs than are asked for, or cannot go on to those.
    """
    wanted, saved = config.trainer.max_epochs, monitors.saved_epochs(path / "checkpoints" / "last.ckpt")
    report, finished = path / "report.json", 0
    if report.is_file():
        try:
            finished = int(json.loads(report.read_text(encoding="utf-8"))["run"]["epochs"])
        except (LookupError, TypeError, ValueError) as error:
            remedy = "delete it to go on from the checkpoint" if saved else "begin again with overwrite=true"
            raise UserError(
                f"`out` ({path}) must hold a whole report.json, or none, to resume; it is damaged "
                f"({type(error).__name__}); {remedy}"
            ) from None
    if wanted <= finished:
        print(
            f"{path} holds the finished run of this configuration ({finished} epochs); nothing to do; "
            "raise trainer.max_epochs to go on"
        )
        return True
    if finished and not saved:
        raise UserError(
            f"`trainer.max_epochs` ({wanted}) must be the {finished} of the finished run, as its checkpoints/last.ckpt "
            f"to go on from is gone; start from encoder={path / 'encoder.safetensors'} in another `out`"
        )
    if wanted < saved:
        raise UserError(
            f"`trainer.max_epochs` ({wanted}) must be at least the epochs that `out` ({path}) has saved ({saved}); "
            f"give {saved} to end there, or more to go on"
        )
    return False


def _beginning(config: PretrainConfig, checkpoint: Path) -> str:
    """Where a run with ``resume`` begins."""
    saved, wanted = monitors.saved_epochs(checkpoint), config.trainer.max_epochs
    if saved == 0:
        return f"nothing was saved to resume from; beginning at epoch 1 of {wanted}"
    if saved == wanted:
        return f"all {wanted} epochs were saved; only the results remain to be written"
    return f"resumed at epoch {saved + 1} of {wanted}"


def _kept_before_training(config: PretrainConfig, path: Path) -> str:
    """What an interrupt leaves while images are decoded, and until training begins."""
    saved = monitors.saved_epochs(path / "checkpoints" / "last.ckpt")
    if saved:
        return f" before training went on; {monitors.epochs(saved)} saved; go on with resume=true"
    kept = "nothing was saved yet; begin again with resume=true"
    if config.cache != "off":
        folder = Path(config.cache) if config.cache is not None else path / "cache"
        journals = sorted(folder.glob("*.partial/journal.jsonl"), key=lambda file: file.stat().st_mtime)
        if journals:
            count = sum(1 for _ in journal_entries(journals[-1].parent))
            kept = f"the cache keeps the {count} images decoded so far; go on with resume=true"
        elif any(folder.glob("*/table.parquet")):
            kept = "the decoded images are kept; go on with resume=true"
    return f" before training began; {kept}"
