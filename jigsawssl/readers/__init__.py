"""From the bytes of an image file to display pixels; networks and archives read alike."""

from .files import MAX_PIXELS, Picture, from_pillow, open_picture, read, read_file
from .patients import known_patient, tells_apart
from .pixels import (
    NOTE_CONSTANT_CHANNEL,
    NOTE_FLAT_TABLE,
    NOTE_HIGH_BITS,
    NOTE_NARROW,
    ImageInfo,
    NotAnImage,
    Notes,
    Unreadable,
    fit_image,
    note_narrow,
    robust_range,
    shrink_square,
    to_display,
)
from .sniff import SNIFFED, Kind, sniff

__all__ = [
    "MAX_PIXELS",
    "NOTE_CONSTANT_CHANNEL",
    "NOTE_FLAT_TABLE",
    "NOTE_HIGH_BITS",
    "NOTE_NARROW",
    "SNIFFED",
    "ImageInfo",
    "Kind",
    "NotAnImage",
    "Notes",
    "Picture",
    "Unreadable",
    "fit_image",
    "from_pillow",
    "known_patient",
    "note_narrow",
    "open_picture",
    "read",
    "read_file",
    "robust_range",
    "shrink_square",
    "sniff",
    "tells_apart",
    "to_display",
]
