"""Views of unlabeled images on the device: the jigsaw augmentation and the consistency pairs built with it."""

from .chain import ViewChain
from .jigsaw import Jigsaw
from .views import PRESETS, JigsawViews, ViewParameters, augmentation_chain

__all__ = ["PRESETS", "Jigsaw", "JigsawViews", "ViewChain", "ViewParameters", "augmentation_chain"]
