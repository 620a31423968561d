"""The folder of a run: what may be in it, when it may be written to, and what it holds at the end."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import kornia
import lightly
import timm
import torch

from ..types import UserError

__all__ = ["check_run_folder", "clear_run_folder", "environment"]

_WRITTEN_HERE = frozenset(
    {
        "checkpoints",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "encoder.safetensors",
        "metrics.csv",
        "model.safetensors",
        "predictions.csv",
        "report.json",
        "tensorboard",
        "views.png",
    }
)


def check_run_folder(out: str, resume: bool, overwrite: bool) -> Path:
    """Say whether a run may write to ``out``; touches nothing.

    Args:
        out: folder of the run.
        resume: the run goes on with what is there.
        overwrite: the run replaces an earlier run.

    Returns:
        The folder.

    Raises:
        UserError: if ``out`` is no folder, or is not empty without leave, or holds files that no run writes.
    """
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise UserError(f"`out` ({out}) must be a folder; a file is there; choose another name")
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    if not entries or resume:
        return path
    if not overwrite:
        raise UserError(
            f"`out` ({out}) must be new or empty; it holds {len(entries)} entries; "
            "add resume=true to go on, overwrite=true to replace an earlier run, or choose another folder"
        )
    foreign = [name for name in entries if name not in _WRITTEN_HERE]
    if foreign:
        raise UserError(
            f"`out` ({out}) must hold nothing but an earlier run to be overwritten; it holds {foreign[0]}; "
            "move that away or choose another folder"
        )
    return path


def clear_run_folder(path: Path) -> None:
    """Make the folder, and remove an earlier run that :func:`check_run_folder` allowed to replace."""
    path.mkdir(parents=True, exist_ok=True)
    for name in _WRITTEN_HERE:
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
