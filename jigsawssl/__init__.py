"""Pretrain an image encoder on a clinic's own unlabeled images and adapt it to a handful of labelled ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import augment, functional
    from .checkpoint import load_classifier, load_encoder, save_encoder
    from .models import create_encoder
    from .types import ImageFormat, UserError

__all__ = [
    "ImageFormat",
    "UserError",
    "__version__",
    "augment",
    "create_encoder",
    "functional",
    "load_classifier",
    "load_encoder",
    "save_encoder",
]

_HOMES = {
    "ImageFormat": "types",
    "UserError": "types",
    "create_encoder": "models",
    "load_classifier": "checkpoint",
    "load_encoder": "checkpoint",
    "save_encoder": "checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line answers ``--help`` without waiting for PyTorch."""
    if name in ("augment", "functional"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
