"""Synthetic lesion images with known texture classes: the demo archive, made in memory within seconds."""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PHANTOM_CLASSES = ("coarse", "coarse-striped", "fine", "fine-striped")

# Wave numbers in cycles per image side, so that an image looks alike at every size: waves of 14 and 6 pixels at 64.
_COARSE, _FINE = 4.5, 11.0
_TEXTURE, _SPECKLE, _SENSOR = 0.060, 0.020, 0.025  # standard deviations, where the grey scale is [0, 1]
_CHUNK = 256  # images rendered at once, which bounds the memory of the Fourier transforms


class Phantoms(NamedTuple):
    """``images`` uint8 ``(N, size, size)``; ``labels``, ``splits`` and ``groups`` are ``(N,)`` arrays of str."""

    images: NDArray[np.uint8]
    labels: NDArray[np.str_]
    splits: NDArray[np.str_]
    groups: NDArray[np.str_]


def make_phantoms(
    count: int = 2400, size: int = 64, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.str_]]:
    """Draw synthetic lesions whose class shows only in the fine texture inside the lesion.

    No image comes from a patient. A soft-edged dark ellipse lies on a speckled, unevenly lit background; inside it
    a random texture is ``coarse`` or ``fine``, and the same in all directions or striped along a random one. The
    texture has the same mean and variance in every image before brightness, contrast and sensor noise, which are
    random and know nothing of the class, are applied; so the class is not in the histogram. The images of a
    synthetic patient share class, lesion darkness and, roughly, shape; there are 1 to 3 of them.

    Args:
        count: number of images N, at least 1.
        size: side of the square images in pixels, 32 or more for the fine texture to survive.
        seed: of all random draws; the same seed gives the same bytes.

    Returns:
        ``images`` uint8 ``(N, size, size)``, ``labels`` int64 ``(N,)`` indices in :data:`PHANTOM_CLASSES`, and
        ``groups`` str ``(N,)``, the patient of each image; the images of a patient are neighbours.

    >>> images, labels, groups = make_phantoms(count=8, size=32)
    >>> images.shape, images.dtype, groups[0].item()
    ((8, 32, 32), dtype('uint8'), 'p0000')
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=count)  # of patients, more than needed
    patient = np.repeat(np.arange(count), sizes)[:count]
    patients = int(patient[-1]) + 1
    labels = (np.arange(patients) % len(PHANTOM_CLASSES))[patient].astype(np.int64)
    darkness = rng.uniform(0.08, 0.28, patients)[patient]
    axes = rng.uniform(0.22, 0.36, (patients, 2))[patient] * rng.uniform(0.92, 1.08, (count, 2))
    images = np.empty((count, size, size), dtype=np.uint8)
    for start in range(0, count, _CHUNK):
        rows = slice(start, start + _CHUNK)
        images[rows] = _render(rng, labels[rows], darkness=darkness[rows], axes=axes[rows], size=size)
    return images, labels, np.array([f"p{number:04d}" for number in patient])


@cache
def demo_phantoms() -> Phantoms:
    """Return the demo archive: 2400 phantoms of 64 by 64 pixels, split by patient into train, val and test.

    These are 1635, 196 and 569 images: of 12 patients of a class 8 go to train, 1 to val and 3 to test. They are drawn
    once a process, so ``images`` is read-only.

    >>> demo = demo_phantoms()
    >>> sorted(set(demo.splits.tolist()))
    ['test', 'train', 'val']
    """
    images, labels, groups = make_phantoms()
    images.setflags(write=False)
    patient = np.unique(groups, return_inverse=True)[1]
    turn = patient // len(PHANTOM_CLASSES) % 12  # patients take the classes in turn
    splits = np.array(["train"] * 8 + ["val"] + ["test"] * 3)[turn]
    return Phantoms(images, np.array(PHANTOM_CLASSES)[labels], splits, groups)


def _render(
    rng: np.random.Generator,
    labels: NDArray[np.int64],
    *,
    darkness: NDArray[np.float64],
    axes: NDArray[np.float64],
    size: int,
) -> NDArray[np.uint8]:
    count = len(labels)

    def uniform(low: float, high: float) -> NDArray[np.float64]:
        return rng.uniform(low, high, (count, 1, 1))

    # Soft ellipse: 1 inside, 0 outside; axes and position as shares of the side.
    grid = (np.arange(size) + 0.5) / size - 0.5
    x, y = grid[None, None, :] - uniform(-0.1, 0.1), grid[None, :, None] - uniform(-0.1, 0.1)
    tilt = uniform(0, np.pi)
    along = (x * np.cos(tilt) + y * np.sin(tilt)) / axes[:, 0, None, None]
    across = (y * np.cos(tilt) - x * np.sin(tilt)) / axes[:, 1, None, None]
    lesion = 1 / (1 + np.exp((np.hypot(along, across) - 1) / uniform(0.05, 0.12)))

    striped = np.char.endswith(np.array(PHANTOM_CLASSES), "striped")[labels][:, None, None]
    coarse = np.char.startswith(np.array(PHANTOM_CLASSES), "coarse")[labels][:, None, None]
    wave = np.where(coarse, _COARSE, _FINE) * np.exp(rng.normal(0, 0.08, (count, 1, 1)))
    texture = _noise(
        rng, size=size, wave=wave, width=0.22, focus=np.where(striped, 4.0, 0.0), direction=uniform(0, np.pi)
    )
    # Same mean and variance inside every lesion, or contrast would give the class away.
    weight = lesion / lesion.sum(axis=(1, 2), keepdims=True)
    texture -= (texture * weight).sum(axis=(1, 2), keepdims=True)
    texture /= np.sqrt((texture**2 * weight).sum(axis=(1, 2), keepdims=True))

    even = np.zeros((count, 1, 1))
    shading = _noise(rng, size=size, wave=np.full((count, 1, 1), 1.2), width=0.5, focus=even, direction=even)
    speckle = _noise(rng, size=size, wave=np.full((count, 1, 1), 8.0), width=0.8, focus=even, direction=even)
    scene = uniform(0.03, 0.08) * shading + _SPECKLE * (1 - lesion) * speckle
    scene += lesion * (_TEXTURE * texture - darkness[:, None, None])
    scene = uniform(0.5, 0.7) + uniform(0.75, 1.25) * scene
    scene += _SENSOR * rng.standard_normal(scene.shape)
    return (255 * scene.clip(0, 1)).round().astype(np.uint8)


def _noise(
    rng: np.random.Generator,
    *,
    size: int,
    wave: NDArray[np.float64],
    width: float,
    focus: NDArray[np.float64],
    direction: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Band-passed Gaussian noise ``(N, size, size)`` of unit variance, one band around ``wave`` for each image.

    ``wave``, ``focus`` and ``direction`` are ``(N, 1, 1)``: cycles per side, how strongly the waves keep to one
    direction (0: not at all) and that direction in radians; ``width`` is the band's width in units of log wave.
    """
    v, u = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None, :]
    radius = np.hypot(u, v)
    radius[0, 0] = 1e-6  # no constant part, and no log of 0
    band = np.exp(-0.5 * (np.log(radius / wave) / width) ** 2)
    band = band * np.exp(focus * (np.cos(2 * (np.arctan2(v, u) - direction)) - 1))
    white = np.fft.rfft2(rng.standard_normal((len(wave), size, size)))
    noise = np.fft.irfft2(white * band, s=(size, size))
    normalised: NDArray[np.float64] = noise / noise.std(axis=(1, 2), keepdims=True)
    return normalised
