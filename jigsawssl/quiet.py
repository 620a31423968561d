"""What other packages say of things that are meant is kept out of the way of the user's own output."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quiet"]


def quiet() -> None:
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
