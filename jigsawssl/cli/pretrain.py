"""Wire a pretraining run: archive → views → encoder and block → trainer → portable encoder and report."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

from ..augment import JigsawViews
from ..checkpoint import resolve_encoder, save_encoder
from ..config import PretrainConfig, to_yaml
from ..data import Archive, open_archive
from ..data.loading import PixelDataset, channel_statistics, training_loader
from ..losses import HierarchicalLoss
from ..models import Encoder, HierarchicalBlock, PlainProjector, create_encoder
from ..report import write_json
from ..report.figures import save_curves
from ..report.run import check_run_folder, clear_run_folder, environment
from ..training.monitors import Diagnostics, FiniteLoss, MetricsFile, Throughput, ViewsSheet
from ..training.optim import DEFAULT_RATES, autocast_precision
from ..training.pretrain import JigsawPretraining
from ..types import UserError

__all__ = ["run"]

CROP_MARGIN = 1.25
"""Images are kept this much larger than the views where views are crops, so that crops are not all enlarged."""


def unlabeled_archive(config: PretrainConfig) -> Archive:
    """The rows to pretrain on: the train split where the archive has splits, unless ``split`` says otherwise."""
    archive = open_archive(config.data, config.manifest)
    if config.split == "all":
        return archive
    splits = {sample.split for sample in archive.samples}
    if config.split is None:
        return archive if "train" not in splits else archive.select(_rows_of(archive, "train"))
    if config.split not in splits:
        known = ", ".join(sorted(name for name in splits if name)) or "none"
        raise UserError(f"`split` ({config.split}) must be one of the archive's splits ({known}) or all")
    return archive.select(_rows_of(archive, config.split))


def _rows_of(archive: Archive, split: str) -> list[int]:
    return [row for row, sample in enumerate(archive.samples) if sample.split == split]


def _check_resume(path: Path, config: PretrainConfig) -> Path | None:
    """The checkpoint to go on from, if the folder holds one of the same configuration."""
    checkpoint = path / "checkpoints" / "last.ckpt"
    if not config.resume or not checkpoint.is_file():
        return None
    before: Any = OmegaConf.load(path / "config.yaml") if (path / "config.yaml").is_file() else None
    now: Any = OmegaConf.create(to_yaml(config))
    for key in map(str, now):
        if before is None or key in ("resume", "overwrite", "config", "out", "data", "manifest"):
            continue
        if key in before and before[key] != now[key]:
            raise UserError(
                f"`{key}` ({now[key]}) must be that of the run to resume ({before[key]}); "
                "change it back, or choose another `out`"
            )
    return checkpoint


def _build_encoder(config: PretrainConfig, dataset: PixelDataset) -> Encoder:
    if config.encoder is not None:
        encoder, _ = resolve_encoder(config.encoder, dataset.channels, config.views.size)
        return encoder
    mean, std = channel_statistics(dataset)
    return create_encoder(
        config.backbone,
        dataset.channels,
        config.views.size,
        config.stem_stride,
        mean,
        std,
        config.backbone_options,
    )


def _build_module(config: PretrainConfig, encoder: Encoder) -> JigsawPretraining:
    views = JigsawViews(
        config.views.size,
        config.views.grids,
        config.views.preset,
        config.views.share,
        encoder.spec.mean,
        encoder.spec.std,
    )
    block: HierarchicalBlock | PlainProjector
    if config.views.grids:
        block = HierarchicalBlock(
            encoder.channels,
            config.block.width,
            config.block.projection,
            config.block.variant,  # type: ignore[arg-type]
        )
        weights = dict(zip(block.branches, config.loss.weights, strict=True))
    else:
        block = PlainProjector(encoder.channels, config.block.projection)
        weights = dict.fromkeys(block.branches, 1.0)
    lr = config.optimizer.lr if config.optimizer.lr is not None else DEFAULT_RATES[config.optimizer.name]
    return JigsawPretraining(
        encoder,
        block,
        views,
        HierarchicalLoss(weights, config.loss.off_diagonal),
        config.schedule,
        config.optimizer.name,
        lr,
        lr * config.optimizer.encoder_scale,
        config.optimizer.weight_decay,
        config.optimizer.warmup,
        config.seed,
    )


def _trainer(config: PretrainConfig, path: Path, callbacks: list[Any]) -> pl.Trainer:
    strategy = "auto"
    if config.trainer.devices > 1:
        # Progressive steps leave the deep stages out of some backward passes.
        strategy = "ddp" if config.schedule == "joint" else "ddp_find_unused_parameters_true"
    accelerator = pl.Trainer(accelerator=config.trainer.accelerator, devices=1, logger=False).strategy.root_device
    return pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy=strategy,
        sync_batchnorm=config.trainer.devices > 1,
        precision=autocast_precision(config.precision, accelerator),
        logger=TensorBoardLogger(path, name="tensorboard", version=""),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_model_summary=False,
    )


def run(config: PretrainConfig) -> Path:
    """Pretrain; returns the path of the encoder.

    Raises:
        UserError: for what the user can mend.
    """
    path = check_run_folder(config.out, config.resume, config.overwrite)
    checkpoint = _check_resume(path, config)
    archive = unlabeled_archive(config)
    crops = config.views.preset == "strong"
    size = math.ceil(config.views.size * CROP_MARGIN) if crops else config.views.size
    dataset = PixelDataset(archive, size)
    interactive = sys.stderr.isatty()
    dataset.load(progress=True, workers=os.cpu_count() or 1)
    if len(dataset) < 2:
        raise UserError(
            f"`data` ({config.data}) must hold at least 2 readable images; it holds {len(dataset)}; add images"
        )
    pl.seed_everything(config.seed, verbose=False)
    encoder = _build_encoder(config, dataset)
    module = _build_module(config, encoder)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = training_loader(dataset, config.batch.size, config.batch.workers, drop_last=True, seed=config.seed)
    if checkpoint is None:
        clear_run_folder(path)
    (path / "config.yaml").write_text(to_yaml(config))
    metrics_file = MetricsFile(path / "metrics.csv")
    callbacks = [
        Throughput(),
        Diagnostics(),
        FiniteLoss(),
        metrics_file,
        ViewsSheet(path / "views.png"),
        ModelCheckpoint(path / "checkpoints", filename="last", enable_version_counter=False),
        TQDMProgressBar(refresh_rate=1 if interactive else 20),
    ]
    trainer = _trainer(config, path, callbacks)
    print(
        f"{len(dataset)} images of {'one channel' if dataset.channels == 1 else 'three channels'}, "
        f"{config.views.size} px, {config.backbone}, schedule {config.schedule}, "
        f"{'plain Barlow Twins' if not config.views.grids else f'grids {list(config.views.grids)}'}"
    )
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if not trainer.is_global_zero:
        return path / "encoder.safetensors"
    provenance = {
        "archive": archive.fingerprint(),
        "images": len(dataset),
        "split": config.split,
        "schedule": config.schedule,
        "grids": list(config.views.grids),
        "preset": config.views.preset,
        "epochs": config.trainer.max_epochs,
        "seed": config.seed,
        "started_from": config.encoder,
    }
    save_encoder(path / "encoder.safetensors", encoder, provenance)
    metrics = {
        name: float(value) for name, value in trainer.callback_metrics.items() if not name.endswith(("_step", "_epoch"))
    }
    report = {
        "command": "pretrain",
        "config": OmegaConf.to_container(OmegaConf.create(to_yaml(config))),
        "data": {
            "images": len(dataset),
            "channels": dataset.channels,
            "decoded_size": size,
            "fingerprint": provenance["archive"],
            "unreadable": dataset.unreadable,
        },
        "encoder": {
            "backbone": encoder.spec.backbone,
            "features": encoder.features,
            "channels": encoder.channels,
            "reductions": encoder.reductions,
            "mean": encoder.spec.mean,
            "std": encoder.spec.std,
        },
        "run": {
            "epochs": trainer.current_epoch,
            "updates": trainer.global_step,
            "seconds": metrics_file.seconds,
            "precision": str(trainer.precision),
            "resumed": checkpoint is not None,
        },
        "metrics": metrics,
        "environment": environment(module.device),
    }
    write_json(path / "report.json", report)
    _curves(path, metrics_file.rows)
    _summary(path, encoder, dataset, metrics, metrics_file.seconds)
    return path / "encoder.safetensors"


def _curves(path: Path, rows: list[dict[str, Any]]) -> None:
    """Losses by branch, and the signs of collapse, by epoch."""
    names = [name for name in rows[-1] if name.startswith("loss_")]
    names += [*[name for name in rows[-1] if name.startswith("diagonal_")][-1:], "effective_rank", "feature_std"]
    history = {name: [(int(row["epoch"]) + 1, float(row[name])) for row in rows] for name in names}
    save_curves(history, path / "curves.png", "Pretraining by epoch")


def _summary(path: Path, encoder: Encoder, dataset: PixelDataset, metrics: dict[str, float], seconds: float) -> None:
    diagonal = [value for name, value in metrics.items() if name.startswith("diagonal_")]
    agreement, rank = sum(diagonal) / max(1, len(diagonal)), metrics["effective_rank"]
    print(
        f"\npretrained in {seconds / 60:.1f} min; agreement of the views (diagonal of C, 1 is best) {agreement:.2f}; "
        f"effective rank {rank:.0f} of {encoder.features}"
    )
    if dataset.unreadable:
        print(f"{len(dataset.unreadable)} unreadable images were left out; report.json lists them")
    print(f"encoder:  {path / 'encoder.safetensors'}")
    print(f"pictures: {path / 'views.png'}, {path / 'curves.png'}")
    print(f"report:   {path / 'report.json'}")
