"""Archives of images, and which of their rows to train and validate on.

Pixels and loaders are in :mod:`jigsawssl.data.loading`.
"""

from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.phantom import PHANTOM_CLASSES, make_phantoms
from jigsawssl.data.splits import cross_validation_folds, holdout_split, label_fraction
from jigsawssl.data.walk import IMAGE_SUFFIXES

__all__ = [
    "IMAGE_SUFFIXES",
    "PHANTOM_CLASSES",
    "Archive",
    "cross_validation_folds",
    "holdout_split",
    "label_fraction",
    "make_phantoms",
    "open_archive",
]
