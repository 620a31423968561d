"""From the bytes of an image file to display pixels; networks and archives read alike."""

from __future__ import annotations

from .files import MAX_PIXELS, WINDOW_CHOICES, Picture, from_pillow, open_picture, read, read_file
from .patients import known_patient, tells_apart
from .pixels import (
    NOTE_FLAT_TABLE,
    NOTE_HIGH_BITS,
    ImageInfo,
    NotAnImage,
    Notes,
    Unreadable,
    fit_image,
    robust_range,
    shrink_square,
    to_display,
)

__all__ = [
    "MAX_PIXELS",
    "NOTE_FLAT_TABLE",
    "NOTE_HIGH_BITS",
    "WINDOW_CHOICES",
    "ImageInfo",
    "NotAnImage",
    "Notes",
    "Picture",
    "Unreadable",
    "fit_image",
    "from_pillow",
    "known_patient",
    "open_picture",
    "read",
    "read_file",
    "robust_range",
    "shrink_square",
    "tells_apart",
    "to_display",
]
