"""Callbacks that tell whether training goes well and where its time goes."""

import csv
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from ..augment import PRESETS
from ..evaluation import effective_rank, feature_standard_deviation
from ..process import when_interrupted
from ..progress import Progress
from ..report.figures import save_views_sheet
from ..runs import write_csv
from ..types import Batch, UserError
from ..words import clock, duration
from .pretrain import JigsawPretraining

DIAGNOSTIC_IMAGES = 512
"""Images whose features are judged each epoch: enough to see collapse, cheap enough for a CPU."""


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
        """Count this batch."""
        now = time.perf_counter()
        assert self._mark is not None
        self.total += now - self._mark
        self._mark = now
        self.images += len(batch.images) * trainer.world_size
        values = {"images/s": self.images / self.total, "data_wait": self.waited / self.total, "seconds": self.total}
        options = {"on_step": True, "on_epoch": False, "batch_size": len(batch.images)}
        for name, value in values.items():
            pl_module.log(name, value, **options)


class Diagnostics(Callback):
    """Signs of collapse that need no labels: the objective's for each branch, and the features' spread and effective
    rank (RankMe)."""

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
        found = {**values, **pl_module.loss.diagnostics(outputs["step"].terms.pairs)}
        pl_module.log_dict(found, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


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


def saved_epochs(checkpoint: Path) -> int:
    """How many epochs a checkpoint holds; 0 where there is none."""
    if not checkpoint.is_file():
        return 0
    return 1 + int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["epoch"])


def epochs(count: int) -> str:
    """Name the first ``count`` epochs, with the verb that follows them.

    >>> epochs(1), epochs(2), epochs(3)
    ('epoch 1 is', 'epochs 1 and 2 are', 'epochs 1 to 3 are')
    """
    return "epoch 1 is" if count == 1 else f"epochs 1 {'and' if count == 2 else 'to'} {count} are"


class RunProgress(Callback):
    """One bar for all epochs of a run, or a line for each where there is no terminal; what an interrupt leaves.

    It comes after :class:`Throughput`, whose numbers it shows.

    Args:
        checkpoint: where the run is saved at the end of an epoch.
        images_kept: whether decoded images outlive the run.
    """

    WAIT = 0.1
    """Seconds from one picture of the bar to the next at least."""

    def __init__(self, checkpoint: Path, images_kept: bool) -> None:
        self.checkpoint = checkpoint
        self.images_kept = images_kept
        self.bar: Progress | None = None
        self._first: tuple[int, float] | None = None
        self._shown = 0.0
        self._line = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run begins, or goes on."""
        last = trainer.max_epochs

        def left() -> str:
            saved = saved_epochs(self.checkpoint)
            if saved == 0:
                images = ", with the decoded images kept" if self.images_kept else ""
                return (
                    f" in epoch 1 of {last}; nothing of it is saved yet, as checkpoints are written at the end of an "
                    f"epoch; resume=true starts over{images}"
                )
            if saved == last:
                return f" while the results were written; all {last} epochs are saved; go on with resume=true"
            return f" in epoch {saved + 1} of {last}; {epochs(saved)} saved; go on with resume=true"

        when_interrupted(left)
        self._first = None
        if trainer.is_global_zero and sys.stderr.isatty():
            steps = int(trainer.num_training_batches)
            assert last is not None
            begun = steps * trainer.current_epoch
            self.bar = Progress(total=steps * last, initial=begun, bar_format=self._shape(trainer))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move on; the first batch is the start of time, as it is slower than the others."""
        done, now = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1, time.perf_counter()
        if self._first is None:
            self._first = done, now
        if self.bar is not None and (now - self._shown >= self.WAIT or trainer.is_last_batch):
            self._shown = now
            self.bar.n = done
            self._draw(trainer, f"{clock(left)} left" if (left := self._left(trainer, done)) is not None else "")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the line of this epoch, which is written once its checkpoint is."""
        if self.bar is not None or not trainer.is_global_zero:
            return
        epoch, last = trainer.current_epoch + 1, trainer.max_epochs
        left = self._left(trainer, epoch * int(trainer.num_training_batches))
        rest = f", {duration(left)} left" if epoch != last and left is not None else ""
        loss, rate, wait = _numbers(trainer)
        self._line = f"epoch {epoch} of {last}: loss {loss}, {rate} images/s, data wait {wait} %{rest}"

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of the epoch before."""
        if self._line:
            print(self._line, file=sys.stderr)
        self._line = ""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last line, or leave the bar full with the time that all took."""
        self.on_train_epoch_start(trainer, pl_module)
        if self.bar is not None and trainer.callback_metrics:
            self._draw(trainer, f"in {clock(self.bar.format_dict['elapsed'])}")
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar where it is."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _left(self, trainer: pl.Trainer, done: int) -> float | None:
        """Seconds that the rest of the run takes at the rate since this process began to train."""
        assert self._first is not None and trainer.max_epochs is not None
        steps = done - self._first[0]
        rest = trainer.max_epochs * int(trainer.num_training_batches) - done
        return (time.perf_counter() - self._first[1]) / steps * rest if steps else None

    def _draw(self, trainer: pl.Trainer, time_shown: str) -> None:
        assert self.bar is not None
        loss, rate, wait = _numbers(trainer)
        shown = ", ".join(filter(None, [time_shown, f"loss {loss}", f"{rate} images/s", f"wait {wait}%"]))
        self.bar.bar_format = f"{self._shape(trainer)} {shown}"
        self.bar.refresh()

    @staticmethod
    def _shape(trainer: pl.Trainer) -> str:
        """Epoch and bar, which tqdm makes as wide as the terminal allows."""
        assert trainer.max_epochs is not None
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs)
        return f"epoch {epoch}/{trainer.max_epochs} {{percentage:3.0f}}%|{{bar}}|"


def _numbers(trainer: pl.Trainer) -> tuple[str, str, str]:
    """Loss, images per second and percent of the time spent waiting for data, as they are shown."""
    metrics = trainer.callback_metrics
    return f"{metrics['loss']:.3g}", f"{metrics['images/s']:.0f}", f"{100 * metrics['data_wait']:.0f}"


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
                "start again with a lower `lr` or precision=32 in another `out`"
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
        assert isinstance(pl_module, JigsawPretraining)
        views, maker = outputs["step"].sample, pl_module.views
        # Neither view is the original image.
        first, second = (
            f"view {number} ({does})" for number, does in enumerate(PRESETS[maker.preset].captions, start=1)
        )
        rows = {first: views.original, second: views.distorted}
        rows |= {
            f"tiles of view 1, {grid}×{grid}": view
            for grid, view in zip(maker.grids, views.jigsaw, strict=True)
            if grid > 1
        }
        pictures = {name: maker.denormalize(view).float().cpu() for name, view in rows.items()}
        save_views_sheet(pictures, self.path, title="Views of the first batch")
        self.done = True
