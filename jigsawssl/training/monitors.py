"""Callbacks that tell whether training goes well and where its time goes."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from ..evaluation import effective_rank, feature_standard_deviation
from ..report import write_csv
from ..report.figures import save_views_sheet
from ..types import Batch, UserError
from .pretrain import JigsawPretraining

__all__ = ["Checkpoint", "Diagnostics", "FiniteLoss", "MetricsFile", "Throughput", "ViewsSheet"]

DIAGNOSTIC_IMAGES = 512
"""Images whose features are judged each epoch: enough to see collapse, cheap enough for a CPU."""


VIEW_ROWS = {
    "strong": ("view 1 (crop, flip, jitter, blur)", "view 2 (crop, flip, jitter, blur)"),
    "paper": ("view 1 (whole, flip, blur)", "view 2 (whole, blur, solarise)"),
}
"""What the two views of each preset are called in the picture of them: neither is the original image."""


class Throughput(Callback):
    """Images per second, the share of time spent waiting for data, and the seconds of each epoch."""

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self.total = 0.0
        self._mark: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count each epoch on its own."""
        self.images, self.waited, self.total = 0, 0.0, 0.0
        self._mark = time.perf_counter()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """The wait for this batch ends here: views are built inside the step."""
        now = time.perf_counter()
        assert self._mark is not None
        self.waited += now - self._mark
        self.total += now - self._mark
        self._mark = now

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Update the bar."""
        now = time.perf_counter()
        assert self._mark is not None
        self.total += now - self._mark
        self._mark = now
        self.images += len(batch.images) * trainer.world_size
        values = {
            "images/s": self.images / self.total,
            "data_wait": self.waited / self.total,
            "seconds": self.total,
        }
        options = {"on_step": True, "on_epoch": False, "batch_size": len(batch.images)}
        for name, value in values.items():
            pl_module.log(name, value, prog_bar=name != "seconds", **options)


class Diagnostics(Callback):
    """Signs of collapse that need no labels: C of each branch, spread and effective rank (RankMe) of the features."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Judge the last batch of the epoch."""
        if not trainer.is_last_batch:
            return
        assert isinstance(pl_module, JigsawPretraining)
        encoder = pl_module.encoder.eval()
        with torch.no_grad():
            features = encoder(encoder.preprocess(batch.images[:DIAGNOSTIC_IMAGES])).float()
        encoder.train()
        values = {"feature_std": feature_standard_deviation(features), "effective_rank": effective_rank(features)}
        pl_module.log_dict({**values, **pl_module.correlations()}, on_step=False, on_epoch=True, batch_size=1)


class Checkpoint(ModelCheckpoint):
    """Lightning's, without the absolute paths that it writes into every file."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept of it; names and not places."""
        kept = super().state_dict()
        for key, value in kept.items():
            if isinstance(value, (str, Path)) and value:
                kept[key] = Path(value).name
        kept["best_k_models"] = {Path(name).name: score for name, score in kept.get("best_k_models", {}).items()}
        return kept


class FiniteLoss(Callback):
    """Stop at a loss that is not a number, before it ruins the checkpoint of the epoch before.

    It waits for the device, so it comes before :class:`Throughput`, or that wait would count as one for data.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the loss of this batch."""
        loss = trainer.callback_metrics.get("loss")
        if loss is not None and not torch.isfinite(loss):
            raise UserError(
                f"`loss` must stay finite and was {float(loss)} in epoch {trainer.current_epoch}; "
                "start again with a lower `optimizer.lr` or precision=32 in another `out`"
            )


class MetricsFile(Callback):
    """Write the metrics of every epoch to a CSV file; a resumed run goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    @property
    def seconds(self) -> float:
        """Training time of all epochs, those before a resume with them."""
        return sum(float(row["seconds"]) for row in self.rows)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epochs before the one that is resumed."""
        self.rows = [row for row in self.rows if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Append this epoch."""
        # Lightning repeats a metric that is logged by step and by epoch under two more names.
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if not name.endswith(("_step", "_epoch"))
        }
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        self.rows.append({"epoch": trainer.current_epoch, "learning_rate": rate, **values})
        if trainer.is_global_zero:
            header = list(dict.fromkeys(name for row in self.rows for name in row))
            write_csv(self.path, header, [[row.get(name, "") for name in header] for row in self.rows])


class ViewsSheet(Callback):
    """Save a picture of the views that the model sees in its first batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save once."""
        if self.done or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, JigsawPretraining) and pl_module.sample_views is not None
        views, maker = pl_module.sample_views, pl_module.views
        first, second = VIEW_ROWS[maker.preset]
        rows = {first: views.original, second: views.distorted}
        rows |= {
            f"tiles of view 1, {grid}×{grid}": view
            for grid, view in zip(maker.grids, views.jigsaw, strict=True)
            if grid > 1
        }
        pictures = {name: maker.denormalize(view).float().cpu() for name, view in rows.items()}
        save_views_sheet(pictures, self.path, title="Views of the first batch")
        self.done = True
