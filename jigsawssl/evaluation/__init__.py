"""Arrays in, numbers out: metrics of predictions and signs of collapse in features."""

from jigsawssl.evaluation.features import effective_rank, feature_standard_deviation
from jigsawssl.evaluation.metrics import classification_metrics, log_loss, macro_auroc, paired_auroc_difference

__all__ = [
    "classification_metrics",
    "effective_rank",
    "feature_standard_deviation",
    "log_loss",
    "macro_auroc",
    "paired_auroc_difference",
]
