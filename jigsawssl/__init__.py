"""Pretrain an image encoder on a clinic's own unlabeled images and adapt it to a handful of labelled ones."""

__version__ = "0.1.0"

from . import augment, functional
from .checkpoint import load_classifier, load_encoder, save_encoder
from .models import create_encoder
from .types import UserError

__all__ = [
    "UserError",
    "__version__",
    "augment",
    "create_encoder",
    "functional",
    "load_classifier",
    "load_encoder",
    "save_encoder",
]
