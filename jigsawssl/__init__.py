"""Pretrain an image encoder on a clinic's own unlabeled images and adapt it to a handful of labelled ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import augment as augment
    from . import functional as functional
    from .checkpoint import load_classifier as load_classifier
    from .checkpoint import load_encoder as load_encoder
    from .checkpoint import save_encoder as save_encoder
    from .models import create_encoder as create_encoder
    from .types import ImageFormat as ImageFormat
    from .types import UserError as UserError

_HOMES = {
    "ImageFormat": "types",
    "UserError": "types",
    "create_encoder": "models",
    "load_classifier": "checkpoint",
    "load_encoder": "checkpoint",
    "save_encoder": "checkpoint",
}
__all__ = [*_HOMES, "__version__", "augment", "functional"]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line answers ``--help`` without waiting for PyTorch."""
    if name in ("augment", "functional"):
        return importlib.import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
