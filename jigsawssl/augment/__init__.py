"""Views of unlabeled images on the device: the jigsaw augmentation and the consistency pairs built with it."""

from .fused import FusedChain
from .jigsaw import Jigsaw
from .views import PRESETS, JigsawViews, ViewParameters, augmentation_chain

__all__ = ["PRESETS", "FusedChain", "Jigsaw", "JigsawViews", "ViewParameters", "augmentation_chain"]
