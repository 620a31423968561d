"""The folder of a run: what may be in it, when it may be written to, and what it holds at the end."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ..types import UserError

if TYPE_CHECKING:
    import torch

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
        "images",
        "metrics.csv",
        "model.safetensors",
        "predictions.csv",
        "predictions.npz",
        "quarantine.csv",
        "report.html",
        "report.json",
        "search",
        "seen.key",
        "seen.parquet",
        "split.csv",
        "subsets",
        "table.csv",
        "task.json",
        "tensorboard",
        "to_label.csv",
        "to_label.png",
        "views.png",
    }
)


def is_leftover(name: str) -> bool:
    """Whether a file is what a killed process was writing; all are written under such a name first."""
    return name.startswith(".") and name.endswith((".partial", ".tmp"))


def check_place(folder: str, *, key: str = "out") -> Path:
    """Say whether a folder is there, or can be made, and may be written to; touches nothing.

    Args:
        folder: its path.
        key: the setting that names it, for the message.

    Raises:
        UserError: if a file is in the way, a name is impossible, or this user may not write there.
    """
    path = Path(folder)
    place, missing = path.absolute(), []
    try:
        while not os.path.lexists(place):
            missing.append(place.name)
            place = place.parent
        for name in missing:
            try:
                os.lstat(place / name)  # fails in another way where no such name can be
            except (FileNotFoundError, NotADirectoryError):
                continue
    except OSError as error:
        raise UserError(f"`{key}` ({folder}) cannot be created; {_said(error)}; choose another folder") from None
    shown = place if path.is_absolute() else os.path.relpath(place)
    if not place.is_dir():
        if missing:
            raise UserError(f"`{key}` ({folder}) must be a folder; {shown} is a file; choose another place")
        raise UserError(f"`{key}` ({folder}) must be a folder; a file is there; choose another name")
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(
            f"`{key}` ({folder}) must be writable; you may not write to {shown}; choose another folder, or change its "
            "permissions"
        )
    return path


def check_entries(out: Path, own: Collection[str], *, kind: str = "run") -> None:
    """Say whether a folder holds nothing but what an earlier run left; touches nothing.

    Args:
        out: the folder, which need not be there.
        own: names that such a run may have left.
        kind: a word for what it was, for the message.

    Raises:
        UserError: if it holds anything else.
    """
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    foreign = next((name for name in names if name not in own and not is_leftover(name)), None)
    if foreign is not None:
        raise UserError(
            f"`out` ({out}) must be new, empty or the folder of an earlier {kind}; it holds {foreign}; choose another "
            "folder, or move it away"
        )


def _said(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def check_run_folder(
    out: str, *, resume: bool, overwrite: bool, config: str, free: Sequence[str] = (), also: Sequence[str] = ()
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
        UserError: if ``out`` cannot be written to, is not empty without leave, holds files that no run writes, or holds
            a run of another configuration than the one to resume.
    """
    path = check_place(out)
    entries = path.is_dir() and any(path.iterdir())
    # Decoded images are kept when a run is replaced: their names follow from options and archive.
    check_entries(path, {*_WRITTEN_HERE, *also, "cache"})
    if entries and not resume and not overwrite:
        raise UserError(
            f"`out` ({out}) must be new or empty; it holds an earlier run; add resume=true to go on with it, "
            "overwrite=true to replace it, or choose another folder"
        )
    if entries and resume:
        _check_same(path, config, {"resume", "overwrite", *free})
    return path


def _check_same(path: Path, config: str, free: set[str]) -> None:
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"`out` ({path}) must hold the run to resume; it has no config.yaml; choose another folder")
    before: Any = OmegaConf.load(file)
    now: Any = OmegaConf.create(config)
    was, is_now = _flat(before), _flat(now)
    for key in sorted({*was, *is_now}):
        allowed = any(key == one or key.startswith(f"{one}.") for one in free)
        if not allowed and was.get(key) != is_now.get(key):
            raise UserError(
                f"`{key}` ({is_now.get(key)}) must be the same as in the run to resume ({was.get(key)}); "
                "change it back, or choose another `out`"
            )


def _flat(config: Any, above: str = "") -> dict[str, Any]:
    """Values by their whole keys, such as ``batch.size``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, DictConfig) and len(value)
        found |= _flat(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return found


def clear_run_folder(path: Path) -> None:
    """Make the folder, and remove an earlier run that :func:`check_run_folder` allowed to replace.

    Raises:
        UserError: where the system refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in [*_WRITTEN_HERE, *(entry.name for entry in path.iterdir() if is_leftover(entry.name))]:
            entry = path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"`out` ({path}) must be writable; {_said(error)}; choose another folder") from None


def now() -> str:
    """The time, in UTC and to the second, for the ``when`` of a report: ``2024-05-01T08:30:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(device: torch.device, autocast: torch.dtype | None) -> dict[str, str]:
    """Versions, device and precision of a run, for its report; nothing that names the machine or the user.

    Args:
        device: where it ran.
        autocast: the type that networks computed in, ``None`` for float32 throughout.
    """
    import torch  # here, as whether a folder may be written to must not wait for it

    from .. import __version__

    return {
        "jigsawssl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kornia": version("kornia"),
        "lightly": version("lightly"),
        "pytorch_lightning": version("pytorch-lightning"),
        "timm": version("timm"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": str(autocast or torch.float32).removeprefix("torch."),
    }
