"""How a process of ours is set up: what other packages say stays out of the user's way, and freed memory stays here."""

from __future__ import annotations

import ctypes
import logging
import sys
import warnings

__all__ = ["prepare_process"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h


def prepare_process() -> None:
    """Set up a process that runs a command of ours, or a part of one; for no program that only imports the package."""
    _quiet()
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, which otherwise gets, and clears, every page anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _quiet() -> None:
    """Keep Lightning's notes about devices and workers out of the way of the user's own output."""
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*treespec.*",
        ".*exists and is not empty.*",
        ".*dirpath has changed.*",
        ".*in eval mode at the start of training.*",
        ".*exceeds limit of.*decompression bomb.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # It warns of each odd element of a file; the table says what could not be read.
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
