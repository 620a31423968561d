"""Settings of pretraining that Python and the command line share, each once.

The published ones are those of ``configs/pretrain/paper.yaml``.
"""

from typing import Final

SIZE = 224
GRIDS = (16, 8, 1)
SHARE = 0.5
VIEWS = "strong"
PRESETS = {"strong": "crop, flip, jitter, blur", "paper": "as published"}
"""Presets of the two views and what they do; :data:`jigsawssl.augment.PRESETS` has how."""

BRANCH: Final = "light"
WIDTH = 256
PROJECTION = 512

TAP_WEIGHTS = (1.0, 1.0, 1.0, 2.0)
OFF_DIAGONAL = 5e-3

SCHEDULE = "joint"
OPTIMIZER = "adamw"
RATES = {"adamw": 2e-3, "sgd": 2e-3, "lars": 0.2}
"""Learning rates where none is given: AdamW from our trials, SGD from FG-SSL (section 4), LARS from Barlow Twins."""
ENCODER_SCALE = 1.0
WARMUP = 0.1

MODES = {
    "auto": "a linear probe, full fine-tuning from it, or an average of both",
    "full": "the whole network",
    "linear": "a probe on its features",
    "knn": "nearest neighbours",
    "progressive": "jigsaw steps, fine tiles first",
}
"""Ways to adapt to labels and what they do; :data:`jigsawssl.training.adapt.MODES` has how."""

FIT = "pad"
WINDOW = "file"
ATTENTION_STAGES = (4,)

SELECTIONS = ("typical", "coverage", "k-centre", "stratified", "random", "margin", "entropy")
"""Ways to choose images to label; :data:`jigsawssl.experiments.selection.METHODS` has how."""
