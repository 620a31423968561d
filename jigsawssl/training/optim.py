"""Optimizers with named parameter groups, and warm-up with cosine decay."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from .. import defaults
from ..types import UserError

DEFAULT_WEIGHT_DECAY = {"adamw": 0.05, "sgd": 5e-4, "lars": 1.5e-6}
"""Weight decay where none is given; SGD from FG-SSL (section 4), LARS from Barlow Twins (section 2.2)."""


def _parameter_groups(
    parts: Mapping[str, tuple[nn.Module | Sequence[nn.Module], float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups per part, named ``part/decay`` and ``part/no_decay``: norms and biases are not decayed."""
    groups = []
    for name, (part, rate) in parts.items():
        if isinstance(part, nn.Module):
            trainable = [p for p in part.parameters() if p.requires_grad]
        else:
            trainable = [p for module in part for p in module.parameters(recurse=False) if p.requires_grad]
        for suffix, decay, chosen in (
            ("decay", weight_decay, [p for p in trainable if p.ndim > 1]),
            ("no_decay", 0.0, [p for p in trainable if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"name": f"{name}/{suffix}", "params": chosen, "lr": rate, "weight_decay": decay})
    return groups


def create_optimizer(
    name: str, parts: Mapping[str, tuple[nn.Module | Sequence[nn.Module], float]], weight_decay: float | None = None
) -> Optimizer:
    """An optimizer over named parts, each with its own learning rate.

    Args:
        name: ``adamw``, ``sgd`` (momentum .9) or ``lars`` (momentum .9).
        parts: name → (module, learning rate); of several modules what they themselves hold, without their children.
        weight_decay: for weights of two and more dimensions; default by name.

    Raises:
        ValueError: for another name.

    >>> optimizer = create_optimizer("adamw", {"encoder": (nn.Linear(2, 2), 1e-3)})
    >>> [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    [('encoder/decay', 0.05), ('encoder/no_decay', 0.0)]
    """
    if name not in defaults.RATES:
        raise ValueError(f"`name` ({name}) must be one of {', '.join(defaults.RATES)}")
    groups = _parameter_groups(parts, DEFAULT_WEIGHT_DECAY[name] if weight_decay is None else weight_decay)
    # One kernel for all parameters: on a CPU five times as fast as a loop over them.
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=defaults.RATES[name], momentum=0.9, fused=fused)
    optimizer: Optimizer = LARS(groups, lr=defaults.RATES[name], momentum=0.9)
    return optimizer


class _Schedule(CosineWarmupScheduler):
    """lightly's, whose length does not come from a checkpoint: a longer run resumes at its own rate of that step."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of ``state_dict``."""
        own = {"warmup_epochs": self.warmup_epochs, "max_epochs": self.max_epochs}
        super().load_state_dict({**state_dict, **own})
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * self.scale_lr(self.last_epoch)


def create_scheduler(optimizer: Optimizer, steps: int, warmup: float) -> CosineWarmupScheduler:
    """Linear warm-up over the share ``warmup`` of ``steps``, then cosine down to a thousandth.

    A run that is resumed with more steps goes on along the longer schedule: the rate rises again to where that one is.
    """
    return _Schedule(optimizer, warmup_epochs=round(warmup * steps), max_epochs=max(steps, 2))


def training_device(accelerator: str) -> torch.device:
    """The device that Lightning chooses for ``auto``, ``cpu``, ``gpu`` or ``mps``.

    Raises:
        UserError: if this machine has none of that kind.
    """
    try:
        return pl.Trainer(accelerator=accelerator, devices=1, logger=False).strategy.root_device
    except (MisconfigurationException, RuntimeError) as error:
        raise UserError(
            f"`accelerator` ({accelerator}) must be a device of this machine; {error}; use auto or cpu"
        ) from None


def computes_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; emulating it would be slower than float32."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask() if ask is not None else torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast_precision(precision: str, device: torch.device) -> Any:
    """Lightning's precision for ``auto``, ``bf16``, ``16`` or ``32`` on a device.

    ``auto`` is bfloat16 where the device computes it natively (CUDA from Ampere on, CPUs with AMX or AVX512-BF16),
    half precision on older CUDA devices, else float32.

    Raises:
        UserError: for float16 on a CPU, where Lightning would compute in bfloat16 without a word in the report.
    """
    if precision == "16" and device.type == "cpu":
        raise UserError("`precision` (16) must be auto, bf16 or 32 on a CPU, which does not train in float16; use auto")
    if precision != "auto":
        return {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}[precision]
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device.type == "cpu" and computes_bfloat16():
        return "bf16-mixed"
    return "32-true"


def autocast_on(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast computes in under ``auto``, ``bf16``, ``16`` or ``32`` on a device.

    Raises:
        UserError: as :func:`autocast_precision`.
    """
    return autocast_dtype(autocast_precision(precision, device))


def autocast_dtype(precision: Any) -> torch.dtype | None:
    """The type that autocast computes in under one of Lightning's precisions, ``None`` where it does not.

    >>> autocast_dtype("bf16-mixed"), autocast_dtype("32-true")
    (torch.bfloat16, None)
    """
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
