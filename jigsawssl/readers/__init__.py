"""From the bytes of an image file to display pixels; networks and archives read alike."""

from __future__ import annotations

from .files import MAX_PIXELS, WINDOW_CHOICES, Picture, open_picture, read
from .pixels import ImageInfo, Unreadable, fit_image, robust_range, to_display

__all__ = [
    "MAX_PIXELS",
    "WINDOW_CHOICES",
    "ImageInfo",
    "Picture",
    "Unreadable",
    "fit_image",
    "open_picture",
    "read",
    "robust_range",
    "to_display",
]
