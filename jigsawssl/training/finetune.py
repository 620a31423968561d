"""Supervised training of a classifier on few labels: one update a batch, or the method's progressive steps."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from ..augment import ViewChain, augmentation_chain
from ..data.loading import PixelDataset, evaluation_loader, training_loader
from ..data.splits import Fold
from ..evaluation import log_loss, macro_auroc
from ..functional import permute_tiles, sample_permutations, to_channels_last
from ..models import Classifier, HierarchicalClassifier
from ..types import Batch, UserError
from .optim import create_optimizer, create_scheduler

CHECKS = 10
"""How often a run is judged: validation chooses among that many lengths of training."""

PATIENCE = 4
"""Checks without a gain after which training stops early."""

LEAST_EPOCHS = 30
LEAST_STEPS = 150
"""Passes and updates of a run at least, where the number of passes is not given: a small budget gets more passes."""

STEP_WEIGHTS = (1.0, 1.0, 1.0, 2.0)
"""Weights of the progressive steps (FG-SSL, section 3.3)."""

Model = Classifier | HierarchicalClassifier
OnCheck = Callable[[int, float], None]
"""Told of the epochs done and the validation score; may raise."""
OnEpoch = Callable[[], Any]
"""Called at the end of each epoch."""


class Recipe(NamedTuple):
    """Settings of supervised training.

    ``lr`` is the encoder's rate and ``head_scale`` times it that of everything new; ``max_epochs`` is ``None`` for as
    many as the budget needs; ``grids`` are those of the progressive steps; ``precision`` is Lightning's. ``train`` is
    ``all``, ``head``, ``from:stageK`` (deeper ones too) or ``to:stageK`` (shallower ones too); each stage learns at
    ``layer_decay`` times the rate of the next deeper one; with ``unfreeze_every`` above 0 the head learns first, and a
    further stage from that many epochs to the next, deepest first (Howard and Ruder 2018, section 3.3).
    """

    lr: float
    max_epochs: int | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    head_scale: float = 10.0
    weight_decay: float | None = None
    balanced: bool = True
    dropout: float = 0.0
    head: str = "linear"
    train: str = "all"
    layer_decay: float = 1.0
    unfreeze_every: int = 0
    grids: tuple[int, ...] = (8, 4, 2)
    preset: str = "mild"
    seed: int = 0
    accelerator: str = "auto"
    precision: Any = "32-true"


class Trained(NamedTuple):
    """A trained model, its validation probabilities ``(N, K)`` at each checked epoch, and training loss by epoch."""

    model: Model
    checked: dict[int, Tensor]
    losses: list[tuple[int, float]]


def trained_stages(train: str, stages: Sequence[int]) -> list[int]:
    """The stages that learn.

    Args:
        train: ``all``, ``head``, ``from:stageK`` or ``to:stageK``.
        stages: of the encoder.

    Raises:
        UserError: for anything else, or a stage that is not there.

    >>> trained_stages("from:stage3", [0, 1, 2, 3, 4]), trained_stages("to:stage1", [0, 1, 2, 3, 4])
    ([3, 4], [0, 1])
    """
    if train in ("all", "head"):
        return list(stages) if train == "all" else []
    way, _, stage = train.partition(":stage")
    if way not in ("from", "to") or not stage.isdigit() or int(stage) not in stages:
        known = ", ".join(f"stage{number}" for number in stages)
        raise UserError(f"`train` ({train}) must be all, head, from:STAGE or to:STAGE with a stage among {known}")
    return [number for number in stages if (number >= int(stage) if way == "from" else number <= int(stage))]


def selection_score(probabilities: Tensor, labels: NDArray[np.int64]) -> float:
    """What validation maximises: macro AUROC, and among near equals the smaller log loss."""
    return macro_auroc(probabilities, labels) - 1e-3 * min(log_loss(probabilities, labels), 10.0)


def class_weights(labels: NDArray[np.int64], classes: int, balanced: bool) -> Tensor:
    """Weights ``(K,)`` of the cross-entropy: inverse frequency with mean 1 over the images, or all 1.

    >>> class_weights(np.array([0, 0, 0, 1]), classes=2, balanced=True).tolist()
    [0.6666666865348816, 2.0]
    """
    counts = np.bincount(labels, minlength=classes)
    if not balanced:
        return torch.ones(classes)
    present = np.maximum(counts, 1) * (counts > 0).sum()
    return torch.from_numpy(np.where(counts > 0, len(labels) / present, 0.0)).float()


class Finetuning(pl.LightningModule):
    """Train a classifier; a :class:`HierarchicalClassifier` by the method's progressive steps (FG-SSL, section 3.3).

    Args:
        model: classifier with an encoder.
        chain: kornia operations on labelled images in [0, 1].
        weights: float ``(K,)``, weights of the cross-entropy.
        recipe: rates, grids and seed.
    """

    def __init__(self, model: Model, *, chain: Sequence[Any], weights: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.chain = ViewChain(chain, model.encoder.spec.format.size)
        self.loss = nn.CrossEntropyLoss(weight=weights)
        self.recipe = recipe
        self.automatic_optimization = isinstance(model, Classifier)
        self.checked: dict[int, Tensor] = {}
        self._seen: list[Tensor] = []

    def on_train_epoch_start(self) -> None:
        """Let one more stage learn, where they begin to one after another."""
        if self.recipe.unfreeze_every:
            encoder = self.model.encoder
            wanted = trained_stages(self.recipe.train, list(encoder.by_stage()))
            count = self.current_epoch // self.recipe.unfreeze_every
            encoder.train_only(sorted(wanted)[max(0, len(wanted) - count) :])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Augment on the device, then one update, or one per branch."""
        if batch_idx == 0:
            torch.manual_seed(self.recipe.seed * 1_000_003 + self.current_epoch)
        encoder = self.model.encoder
        pixels = encoder.normalize_stain(batch.images)
        images = self.chain(pixels, self.chain.draw(pixels.shape), encoder.mean, encoder.std)
        if isinstance(self.model, HierarchicalClassifier):
            loss = self._progressive_step(self.model, images, batch.labels)
        else:
            loss = self.loss(self.model(images).float(), batch.labels)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(images))
        return loss if self.automatic_optimization else None

    def _progressive_step(self, model: HierarchicalClassifier, images: Tensor, labels: Tensor) -> Tensor:
        optimizer: Any = self.optimizers()
        losses = []
        for branch, grid, weight in zip(model.branches, (*self.recipe.grids, 1), STEP_WEIGHTS, strict=True):
            order = sample_permutations(len(images), grid**2, device=images.device)
            logits = model.branch_logits(permute_tiles(images, order, grid), [branch])[branch]
            loss = weight * self.loss(logits.float(), labels)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return torch.stack(losses).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect probabilities."""
        images = self.model.encoder.preprocess(batch.images).contiguous(memory_format=torch.channels_last)
        self._seen.append(self.model(images).float().softmax(dim=1).cpu())

    def on_validation_epoch_end(self) -> None:
        """Keep the probabilities of this check."""
        self.checked[self.current_epoch + 1] = torch.cat(self._seen)
        self._seen = []

    def configure_optimizers(self) -> Any:
        """A low rate for the encoder, ``head_scale`` times it for what is new."""
        model, lr = self.model, self.recipe.lr
        new = model.head if isinstance(model, Classifier) else nn.ModuleList([model.block, model.heads])
        stages = model.encoder.by_stage()
        model.encoder.train_only(trained_stages(self.recipe.train, list(stages)))
        parts: dict[str, tuple[nn.Module | Sequence[nn.Module], float]] = {
            f"stage{stage}": (modules, lr * self.recipe.layer_decay ** (max(stages) - stage))
            for stage, modules in stages.items()
        }
        parts["head"] = (new, lr * self.recipe.head_scale)
        optimizer = create_optimizer(self.recipe.optimizer, parts, self.recipe.weight_decay)
        scheduler = create_scheduler(optimizer, int(self.trainer.estimated_stepping_batches), warmup=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Watch(Callback):
    """Training losses, the best weights by validation with early stopping, and a fixed end of training."""

    def __init__(
        self,
        labels: NDArray[np.int64],
        *,
        keep_best: float | None,
        stop_at: int | None,
        on_check: OnCheck | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.labels = labels
        self.best = keep_best
        self.stop_at = stop_at
        self.on_check = on_check
        self.on_epoch = on_epoch
        self.losses: list[tuple[int, float]] = []
        self.state: dict[str, Tensor] | None = None
        self.stale = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge this check."""
        if self.best is None and self.on_check is None:
            return
        assert isinstance(pl_module, Finetuning)
        epoch = trainer.current_epoch + 1
        score = selection_score(pl_module.checked[epoch], self.labels)
        if self.best is not None:
            self.stale += 1
            if score > self.best:
                self.best, self.stale = score, 0
                self.state = copy.deepcopy(pl_module.model.state_dict())
            trainer.should_stop = trainer.should_stop or self.stale >= PATIENCE
        if self.on_check is not None:
            self.on_check(epoch, score)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Append the loss of this epoch; stop where the number of epochs was chosen before."""
        self.losses.append((trainer.current_epoch + 1, float(trainer.callback_metrics["train_loss"])))
        if self.stop_at is not None and trainer.current_epoch + 1 >= self.stop_at:
            trainer.should_stop = True
        if self.on_epoch is not None:
            self.on_epoch()


def _batch_size(count: int, recipe: Recipe) -> int:
    """A small budget gets smaller batches, so that an epoch has three updates."""
    return max(2, min(recipe.batch_size, count // 3))


def planned_epochs(count: int, recipe: Recipe) -> int:
    """Length of a run on ``count`` images: ``recipe.max_epochs`` if given, else as many as the budget needs.

    >>> planned_epochs(40, Recipe(lr=1e-4)), planned_epochs(1000, Recipe(lr=1e-4))
    (50, 30)
    """
    if recipe.max_epochs is not None:
        return recipe.max_epochs
    return max(LEAST_EPOCHS, -(-LEAST_STEPS // max(1, count // _batch_size(count, recipe))))


def train_classifier(
    model: Model,
    dataset: PixelDataset,
    *,
    labels: NDArray[np.int64],
    classes: int,
    fold: Fold,
    recipe: Recipe,
    keep_best: float | None = None,
    stop_at: int | None = None,
    on_check: OnCheck | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train on one fold of a labelled dataset.

    Args:
        model: trained in place.
        dataset: labelled images; rows of ``fold`` are positions in it.
        labels: int64 ``(len(dataset),)``.
        classes: K.
        fold: training rows and validation rows; the latter may be empty.
        recipe: settings.
        keep_best: a score that validation has to beat; the best weights are restored and training stops early.
            ``None`` trains to the end.
        stop_at: end after this epoch, on the schedule of the whole run.
        on_check: told of every check; what it raises ends the training.
        on_epoch: called at the end of each epoch.

    Returns:
        :class:`Trained`; where nothing beat ``keep_best``, the weights are those of the end.
    """
    rows, val_rows = fold
    epochs = planned_epochs(len(rows), recipe)
    every = -(-epochs // CHECKS)
    batch_size = _batch_size(len(rows), recipe)
    chain = augmentation_chain(recipe.preset, model.encoder.spec.format.size, dataset.format.channels)
    module = Finetuning(
        model, chain=chain, weights=class_weights(labels[rows], classes, recipe.balanced), recipe=recipe
    )
    to_channels_last(module)
    watch = _Watch(labels[val_rows], keep_best=keep_best, stop_at=stop_at, on_check=on_check, on_epoch=on_epoch)
    trainer = pl.Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
        callbacks=[watch],
        accelerator=recipe.accelerator,
        devices=1,
        precision=recipe.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.train()
    with warnings.catch_warnings():
        # The final fit has nothing left to validate on, on purpose.
        warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
        # What is frozen keeps its statistics, on purpose.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")
        trainer.fit(
            module,
            training_loader(dataset.subset(rows), batch_size=batch_size, drop_last=True, seed=recipe.seed),
            evaluation_loader(dataset.subset(val_rows), 256) if len(val_rows) else None,
        )
    if watch.state is not None:
        model.load_state_dict(watch.state)
    return Trained(model.eval(), module.checked, watch.losses)
