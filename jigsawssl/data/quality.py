"""What can be told about an image without knowing what it shows: a hash of its looks, empty borders, burned-in text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import uniform_filter

from ..readers import NOTE_CONSTANT_CHANNEL, Notes, fit_image, note_narrow
from ..types import ImageFormat

HASH_BITS = 256
_SAMPLED, _KEPT = ImageFormat(32, channels=1, fit="squash"), 16
_BANDS = 16  # looked up as a whole: hashes that differ in 20 bits still agree in five of them on average
_BAND_LIMIT = 2000
_BRIGHT, _EDGE = 0.7, 0.35


def perceptual_hash(pixels: NDArray[Any]) -> str:
    """Hash that is nearly the same for images that look the same, after resizing or compression: the signs of low
    frequencies against their median (pHash of Zauner, Implementation and Benchmarking of Perceptual Image Hash
    Functions, 2010, with 256 bits, as medical images of one view resemble each other).

    Args:
        pixels: uint8 or uint16 ``(H, W, C)``.

    Returns:
        64 hexadecimal digits.

    >>> shade = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)[:, :, None]
    >>> perceptual_hash(shade) == perceptual_hash(shade.repeat(2, 0).repeat(2, 1))
    True
    """
    small = fit_image(pixels, _SAMPLED, sixteen_bit=True)[0].astype(np.float64)
    low = dctn(small, norm="ortho")[:_KEPT, :_KEPT].ravel()
    low[0] = 0  # brightness
    return np.packbits(low > np.median(low)).tobytes().hex()


def note_looks(pixels: NDArray[Any], notes: Notes) -> None:
    """Note eight bits of which few are used, and colours of which a channel is constant.

    Args:
        pixels: uint8 or uint16 ``(H, W, C)``; of deeper ones, the reader has seen how much they used before they were
            stretched.
        notes: gets the remarks.

    >>> notes = Notes()
    >>> note_looks(np.dstack([np.arange(90, 96).reshape(2, 3), np.full((2, 3), 90)]).astype(np.uint8), notes)
    >>> list(notes)
    ['values that use less than a sixteenth of their range', 'colours of which a channel is constant']
    """
    if pixels.dtype == np.uint8:
        note_narrow(pixels, 8, notes)
    flat = pixels.min(axis=(0, 1)) == pixels.max(axis=(0, 1))
    if pixels.shape[2] > 1 and flat.any() and not flat.all():
        notes.add(NOTE_CONSTANT_CHANNEL)


def near_duplicates(hashes: list[str | None], most: int = 20) -> list[list[int]]:
    """Groups of positions whose hashes differ in at most ``most`` bits, directly or by way of others.

    Args:
        hashes: from :func:`perceptual_hash`; ``None`` belongs to no group.
        most: of 256 bits. Recompressed, resized, brighter and noisier copies of X-rays, dermoscopies and histology
            differed in 2 to 21, different images of 5,000 X-rays and dermoscopies in 50 and more.

    >>> near_duplicates(["00" * 32, "ff" * 32, "01" + "00" * 31, None])
    [[0, 2]]
    """
    known = np.array([row for row, value in enumerate(hashes) if value is not None], dtype=np.int64)
    if not known.size:
        return []
    packed = np.frombuffer(bytes.fromhex("".join(hashes[row] or "" for row in known)), dtype=np.uint8)
    packed = packed.reshape(len(known), HASH_BITS // 8)
    parent = np.arange(len(known))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    bands = np.ascontiguousarray(packed).view(f">u{HASH_BITS // 8 // _BANDS}")
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            # A part that very many share is that of blank images, whose other parts find them as well.
            for at in range(min(len(members), _BAND_LIMIT) - 1):
                rest = members[at + 1 : _BAND_LIMIT]
                distance = np.bitwise_count(packed[rest] ^ packed[members[at]]).sum(axis=1)
                for other in rest[distance <= most]:
                    parent[root(int(other))] = root(int(members[at]))
    groups: dict[int, list[int]] = {}
    for node in range(len(known)):
        groups.setdefault(root(node), []).append(int(known[node]))
    return sorted(group for group in groups.values() if len(group) > 1)


def examine(unit: NDArray[np.float32]) -> dict[str, float]:
    """Suspicions that a person has to look at.

    Args:
        unit: float32 ``(H, W, C)`` in [0, 1].

    Returns:
        ``border``: share of the area in constant rows and columns along the edges. ``text``: the largest share of
        bright, sharp vertical edges in any window of a sixteenth of the height and an eighth of the width; burned-in
        text has .05 and more.
    """
    grey = unit.mean(axis=2)
    rows, columns = _inner(grey), _inner(grey.T)
    border = 1 - rows * columns
    step = np.abs(np.diff(grey, axis=1))
    bright = np.maximum(grey[:, 1:], grey[:, :-1]) > _BRIGHT
    window = (max(3, grey.shape[0] // 16), max(3, grey.shape[1] // 8))
    text = 0.0
    if min(step.shape) > 0:
        text = float(uniform_filter(((step > _EDGE) & bright).astype(np.float32), window, mode="constant").max())
    return {"border": float(border), "text": text}


def _inner(grey: NDArray[np.float32]) -> float:
    """Share of the rows between the first and the last that are not constant."""
    varied = np.flatnonzero(grey.max(axis=1) - grey.min(axis=1) > 3 / 255)
    return 0.0 if not varied.size else float(varied[-1] - varied[0] + 1) / len(grey)
