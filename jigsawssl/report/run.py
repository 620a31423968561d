"""The folder of a run: what may be in it, when it may be written to, and what it holds at the end."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kornia
import lightly
import timm
import torch
from omegaconf import OmegaConf

from ..types import UserError

__all__ = ["check_run_folder", "clear_run_folder", "environment", "is_leftover"]

_WRITTEN_HERE = frozenset(
    {
        "cells",
        "checkpoints",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "encoder.safetensors",
        "explanations.csv",
        "explanations.jpg",
        "metrics.csv",
        "model.safetensors",
        "predictions.csv",
        "predictions.npz",
        "quarantine.csv",
        "report.html",
        "report.json",
        "search",
        "seen.parquet",
        "subsets",
        "table.csv",
        "task.json",
        "tensorboard",
        "views.png",
    }
)


def is_leftover(name: str) -> bool:
    """Whether a file is what a killed process was writing; all are written under such a name first."""
    return name.startswith(".") and name.endswith((".partial", ".tmp"))


def check_run_folder(
    out: str, resume: bool, overwrite: bool, config: str, free: Sequence[str] = (), also: Sequence[str] = ()
) -> Path:
    """Say whether a run may write to ``out``; touches nothing.

    Args:
        out: folder of the run.
        resume: the run goes on with what is there.
        overwrite: the run replaces an earlier run.
        config: the run's configuration as YAML.
        free: keys that may differ from those of the run to resume.
        also: further names that an earlier run may have left.

    Returns:
        The folder.

    Raises:
        UserError: if ``out`` is no folder, is not empty without leave, holds files that no run writes, or holds a run
            of another configuration than the one to resume.
    """
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"`out` ({out}) must be a folder; a file is there; choose another name")
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if not entries:
        return path
    if not resume and not overwrite:
        raise UserError(
            f"`out` ({out}) must be new or empty; it holds {len(entries)} entries; "
            "add resume=true to go on, overwrite=true to replace an earlier run, or choose another folder"
        )
    # Decoded images are kept when a run is replaced: their names follow from options and archive.
    foreign = [name for name in entries if name not in {*_WRITTEN_HERE, *also, "cache"} and not is_leftover(name)]
    if foreign:
        raise UserError(
            f"`out` ({out}) must hold nothing but an earlier run; it holds {foreign[0]}; "
            "move that away or choose another folder"
        )
    if resume:
        _check_same(path, config, {"resume", "overwrite", *free})
    return path


def _check_same(path: Path, config: str, free: set[str]) -> None:
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"`out` ({path}) must hold the run to resume; it has no config.yaml; choose another folder")
    before: Any = OmegaConf.load(file)
    now: Any = OmegaConf.create(config)
    for key in sorted({*map(str, now), *map(str, before)} - free):
        if before.get(key) != now.get(key):
            raise UserError(
                f"`{key}` ({now.get(key)}) must be that of the run to resume ({before.get(key)}); "
                "change it back, or choose another `out`"
            )


def clear_run_folder(path: Path) -> None:
    """Make the folder, and remove an earlier run that :func:`check_run_folder` allowed to replace."""
    path.mkdir(parents=True, exist_ok=True)
    for name in [*_WRITTEN_HERE, *(entry.name for entry in path.iterdir() if is_leftover(entry.name))]:
        entry = path / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def environment(device: torch.device) -> dict[str, str]:
    """Versions and device of a run, for its report; nothing that names the machine or the user."""
    from .. import __version__

    return {
        "jigsawssl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kornia": kornia.__version__,
        "lightly": lightly.__version__,
        "pytorch_lightning": version("pytorch-lightning"),
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
