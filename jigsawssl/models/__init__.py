"""Networks: the encoder with its taps, the hierarchical block on top of them, the classifiers."""

from .classifier import Classifier, HierarchicalClassifier
from .encoder import Encoder, EncoderSpec, create_encoder
from .hierarchical import HierarchicalBlock, PlainProjector

__all__ = [
    "Classifier",
    "Encoder",
    "EncoderSpec",
    "HierarchicalBlock",
    "HierarchicalClassifier",
    "PlainProjector",
    "create_encoder",
]
