"""Jigsaw consistency pretraining: views, shared forwards, one loss per branch, one or four updates a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from .. import defaults
from ..augment import JigsawViews
from ..losses import HierarchicalLoss
from ..models import Encoder, HierarchicalBlock, PlainProjector
from ..types import Batch, LossTerms, Pairs, Step, Views
from .optim import create_optimizer, create_scheduler
from .view_by_view import PartialGradients, catch_up, running_statistics_last

SAMPLED = 8
"""Images of an epoch's first batch whose views callbacks may show."""


class JigsawPretraining(pl.LightningModule):
    """FG-SSL (section 3) on a shared encoder and a shared hierarchical block, without negatives.

    Branch *i* on tap *i* compares ``J_i(X')`` with ``X''``; the branch on all taps compares ``X'`` with ``X''``.

    Args:
        encoder: network with taps.
        block: hierarchical block, or :class:`PlainProjector` for plain Barlow Twins.
        views: makes the consistency pairs; one grid per tap, or none for plain Barlow Twins.
        loss: weighted loss with a weight for each branch of ``block``.
        schedule: ``joint`` sums the branches into one update with shared forwards; ``progressive`` makes one update
            per branch, shallow to deep, as published.
        optimizer: ``adamw``, ``sgd`` or ``lars``.
        lr: rate of the block at the top of the schedule; ``None`` for the optimizer's default.
        encoder_scale: rate of the encoder as a multiple of ``lr``.
        weight_decay: ``None`` for the optimizer's default.
        warmup: share of the run in which the rate rises.
        seed: views and order of epoch *e* depend on it and *e* alone, so a resumed run repeats an unbroken one.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        block: HierarchicalBlock | PlainProjector,
        views: JigsawViews,
        loss: HierarchicalLoss,
        schedule: str = defaults.SCHEDULE,
        optimizer: str = defaults.OPTIMIZER,
        lr: float | None = None,
        encoder_scale: float = defaults.ENCODER_SCALE,
        weight_decay: float | None = None,
        warmup: float = defaults.WARMUP,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.block = block
        self.views = views
        self.loss = loss
        self.joint = schedule == "joint"
        self.automatic_optimization = self.joint
        self.optimizer_name = optimizer
        lr = defaults.RATES[optimizer] if lr is None else lr
        self.rates = (lr * encoder_scale, lr)
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.seed = seed

    def pairs(self, views: Views, branches: Sequence[str]) -> Pairs:
        """Projections of the named branches, one forward per different view, no deeper than its branches need.

        Returns:
            branch → (projection of J(X') or X', projection of X''), each float ``(B, D)``.
        """
        projected = [(self._project(view, names), names) for view, names in self.first_views(views, branches)]
        second = self._project(views.distorted, branches)
        return {name: (z[name], second[name][: len(z[name])]) for z, names in projected for name in names}

    def first_views(self, views: Views, branches: Sequence[str]) -> list[tuple[Tensor, list[str]]]:
        """Each view that is compared with X'', and the branches that see it."""
        first = dict(zip(self.block.branches, views.jigsaw, strict=False)) if views.jigsaw else {}
        work: list[tuple[Tensor, list[str]]] = []
        for branch in branches:
            view = first.get(branch, views.original)
            shared = next((names for seen, names in work if seen is view), None)
            if shared is None:
                work.append((view, [branch]))
            else:
                shared.append(branch)
        return work

    def _project(self, images: Tensor, branches: Sequence[str]) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        projections: dict[str, Tensor] = self.block(
            self.encoder.taps(images, self.block.required_taps(branches)), branches
        )
        return projections

    def losses(self, views: Views, branches: Sequence[str] | None = None) -> LossTerms:
        """Loss of the named branches (default: those with a weight) on one batch of views."""
        if branches is None:
            branches = [name for name in self.block.branches if self.loss.weights[name] > 0]
        terms: LossTerms = self.loss(self.pairs(views, branches))
        return terms

    def losses_view_by_view(self, views: Views) -> LossTerms:
        """The same as :meth:`losses` on all branches with a weight, up to rounding, with less memory.

        The graph of X'' is kept, and those of the views that are compared with it are there one at a time.
        """
        branches = [name for name in self.block.branches if self.loss.weights[name] > 0]
        with running_statistics_last(self) as postponed:
            second = self._project(views.distorted, branches)
        seen = {name: z.detach().requires_grad_() for name, z in second.items()}
        partial = PartialGradients([*self.encoder.parameters(), *self.block.parameters(), *seen.values()])
        terms: dict[str, Tensor] = {}
        compared: Pairs = {}
        for view, names in self.first_views(views, branches):
            first = self._project(view, names)
            pairs = {name: (first[name], seen[name][: len(first[name])]) for name in names}
            found = self.loss(pairs)
            partial.add(found.total)
            terms.update({name: term.detach() for name, term in found.branches.items()})
            compared.update(found.pairs)
            del first, pairs, found  # or this graph would live until the next one is built
        catch_up(postponed)
        known = {id(z): second[name] for name, z in seen.items()}
        partial.inputs = [known.get(id(tensor), tensor) for tensor in partial.inputs]
        in_order = {name: terms[name] for name in branches}
        return LossTerms(partial.total(), in_order, {name: compared[name] for name in branches})

    def joint_losses(self, views: Views) -> LossTerms:
        """The loss of a joint update: :meth:`losses_view_by_view` where it saves memory and is exact."""
        # Half precision needs its loss scaled before anything is differentiated.
        half = torch.is_autocast_enabled(self.device.type) and (
            torch.get_autocast_dtype(self.device.type) == torch.float16
        )
        return self.losses(views) if half or len(self.block.branches) == 1 else self.losses_view_by_view(views)

    def build_views(self, batch: Batch) -> Views:
        """The views of a batch, of stained tissue in the colours of the reference."""
        views: Views = self.views(self.encoder.normalize_stain(batch.images))
        return views

    def step(self, batch: Batch, update: Callable[[Tensor], None], *, sampled: int = 0) -> Step:
        """Train on one batch: build the views on the device, then one update (joint) or one per branch (progressive).

        Nothing of it needs a trainer.

        Args:
            batch: images on the device of the module.
            update: takes a loss, whose gradient it computes, and makes one step of the optimizer.
            sampled: images whose views are part of the result.

        Returns:
            :class:`jigsawssl.types.Step`; its total is the loss of the joint update, or the sum of all updates.
        """
        views = self.build_views(batch)
        sample = None
        if sampled:
            original, distorted, *jigsaw = (
                view[:sampled].clone() for view in (views.original, views.distorted, *views.jigsaw)
            )
            sample = Views(original, distorted, tuple(jigsaw))
        if self.joint:
            terms = self.joint_losses(views)
            update(terms.total)
            return Step(terms, sample)
        total, branches, pairs = torch.zeros((), device=batch.images.device), {}, {}
        for branch in self.block.branches:
            if self.loss.weights[branch] > 0:
                terms = self.losses(views, [branch])
                update(terms.total)
                branches.update(terms.branches)
                pairs.update(terms.pairs)
                total = total + terms.total.detach()
        return Step(LossTerms(total, branches, pairs), sample)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """One step, whose result callbacks find as ``outputs["step"]``."""
        if batch_idx == 0:
            torch.manual_seed((self.seed * 1_000_003 + self.current_epoch) * 1_009 + self.global_rank)
        # Lightning makes a joint update itself.
        step = self.step(batch, self._leave if self.joint else self._update, sampled=SAMPLED if batch_idx == 0 else 0)
        if not self.joint:
            scheduler: Any = self.lr_schedulers()
            scheduler.step()
        self._log(step.terms, len(batch.images))
        return {"loss": step.terms.total, "step": step}

    def _leave(self, loss: Tensor) -> None:
        """No update."""

    def _update(self, loss: Tensor) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _log(self, terms: LossTerms, batch_size: int) -> None:
        every = {"on_step": False, "on_epoch": True, "batch_size": batch_size, "sync_dist": True}
        self.log("loss", terms.total.detach(), **{**every, "on_step": True})  # type: ignore[arg-type]
        self.log_dict({f"loss_{name}": term.detach() for name, term in terms.branches.items()}, **every)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        """Optimizer with named groups, stepped by batches through warm-up and cosine."""
        encoder_lr, lr = self.rates
        parts = {"encoder": (self.encoder, encoder_lr), "block": (self.block, lr)}
        optimizer = create_optimizer(self.optimizer_name, parts, self.weight_decay)
        scheduler = create_scheduler(optimizer, int(self.trainer.estimated_stepping_batches), self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
