"""From archive rows to uint8 batches: decoding, the pixel cache and the data loaders."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from jigsawssl.data.archive import DECODE_ERRORS, Archive
from jigsawssl.types import Batch, UserError

_SAMPLED_FOR_CHANNELS = 64
_SAMPLED_FOR_STATISTICS = 2048


class PixelDataset(Dataset[Batch]):
    """Images of an archive as uint8 squares, fetched a batch at a time.

    Every image is resized (bilinear, antialiased) to ``size`` by ``size`` whatever its proportions. :meth:`load`
    decodes all of them once; without it, or where they do not fit in ``cache_bytes``, each is decoded when asked for.

    Args:
        archive: where the images and labels come from.
        size: side in pixels.
        channels: 1 or 3; None takes 1 if up to 64 images spread over the archive are grey, also where they are
            stored as RGB (channels that differ by at most 8 in more than 99.9 % of the pixels), and 3 otherwise.
        cache_bytes: the most memory that decoded images may take.

    Attributes:
        rows: int64, the rows of the archive that are usable; ``len(dataset)`` is their number.
        unreadable: relative paths of the images that could not be decoded.

    Raises:
        UserError: if ``channels`` is neither None, 1 nor 3, or ``size`` is not positive.

    >>> from jigsawssl.data.archive import open_archive
    >>> dataset = PixelDataset(open_archive("demo", split="val"), size=32)
    >>> batch = dataset.__getitems__([0, 1])
    >>> batch.images.shape, batch.images.dtype, batch.rows.tolist()
    (torch.Size([2, 1, 32, 32]), torch.uint8, [0, 1])
    """

    def __init__(self, archive: Archive, size: int, channels: int | None = None, cache_bytes: int = 4 * 2**30) -> None:
        if size < 1:
            raise UserError(f"`size` ({size}) must be a positive number of pixels; use 224.")
        if channels not in (None, 1, 3):
            raise UserError(f"`channels` ({channels}) must be 1 (grey) or 3 (RGB); leave it out to detect it.")
        self.archive = archive
        self.size = size
        self.channels = _detect_channels(archive) if channels is None else channels
        self.cache_bytes = cache_bytes
        self.rows: NDArray[np.int64] = np.arange(len(archive), dtype=np.int64)
        self.unreadable: list[str] = []
        self._labels = torch.from_numpy(archive.labels)
        self._cache: Tensor | None = None

    @property
    def cached(self) -> bool:
        """Whether all images are decoded and in memory."""
        return self._cache is not None

    def load(self, progress: bool, workers: int) -> None:
        """Decode every image into memory with ``workers`` threads, if they fit in ``cache_bytes``.

        Unreadable images are listed in ``unreadable`` and leave ``rows``. Where the archive does not fit, nothing
        happens, not even a check of the files.

        Args:
            progress: show a bar.
            workers: number of threads; 0 means 1.

        Raises:
            UserError: if no image can be decoded.
        """
        if self.cached or len(self.archive) * self.channels * self.size**2 > self.cache_bytes:
            return
        pixels = torch.empty((len(self.archive), self.channels, self.size, self.size), dtype=torch.uint8)

        def decode(row: int) -> bool:
            decoded = self._decode(row)
            if decoded is not None:
                pixels[row] = decoded
            return decoded is not None

        with ThreadPoolExecutor(max(1, workers)) as pool:
            done = pool.map(decode, range(len(self.archive)))
            readable = np.array(list(tqdm(done, "Decoding", len(self.archive), disable=not progress)), dtype=bool)
        self.unreadable = [self.archive.samples[row].path for row in np.flatnonzero(~readable)]
        self.rows = np.flatnonzero(readable).astype(np.int64)
        if not self.rows.size:
            raise self._nothing_readable()
        self._cache = pixels if readable.all() else pixels[torch.from_numpy(self.rows)]

    def subset(self, positions: NDArray[np.int64]) -> PixelDataset:
        """The images at some positions, as a dataset of their own that needs no decoding again."""
        part = copy.copy(self)
        part.rows = self.rows[positions]
        part._cache = None if self._cache is None else self._cache[torch.from_numpy(positions)]
        return part

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 ``(len(self),)`` of the usable images, -1 where there is none."""
        return self._labels.numpy()[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """One image as a batch without its first axis: uint8 ``(C, size, size)`` and two scalars."""
        return Batch(*(column[0] for column in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images uint8 ``(B, C, size, size)``, labels int64 ``(B,)`` and archive rows int64 ``(B,)``.

        An image that turns out unreadable only now is listed in ``unreadable`` (of the worker process that met it)
        and replaced by the next readable one, with that one's label and row.

        Raises:
            UserError: if no image can be decoded.
        """
        if self._cache is not None:
            where = torch.as_tensor(indices, dtype=torch.int64)
            rows = torch.from_numpy(self.rows)[where]
            return Batch(self._cache[where], self._labels[rows], rows)
        found = [self._next_readable(int(position)) for position in indices]
        rows = torch.tensor([row for row, _ in found], dtype=torch.int64)
        return Batch(torch.stack([image for _, image in found]), self._labels[rows], rows)

    def _next_readable(self, position: int) -> tuple[int, Tensor]:
        for step in range(len(self)):
            row = int(self.rows[(position + step) % len(self)])
            image = self._decode(row)
            if image is not None:
                return row, image
            path = self.archive.samples[row].path
            if path not in self.unreadable:
                self.unreadable.append(path)
        raise self._nothing_readable()

    def _decode(self, row: int) -> Tensor | None:
        try:
            # Twice the size, as the antialiased resize below wants at least that to be as good as from full size.
            image = self.archive.open_image(row, at_least=2 * self.size)
        except DECODE_ERRORS:
            return None
        image = image.convert("L" if self.channels == 1 else "RGB")
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return torch.from_numpy(np.array(image).reshape(self.size, self.size, self.channels)).permute(2, 0, 1)

    def _nothing_readable(self) -> UserError:
        return UserError(
            f"`data` ({self.archive.name}) must hold images that can be decoded; all {len(self.archive)} are "
            f"unreadable, the first is {self.archive.samples[0].path}; check the files."
        )


def channel_statistics(images: Tensor | PixelDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with pixels scaled to [0, 1].

    Args:
        images: uint8 ``(N, C, H, W)``, or a dataset; at most 2048 images, evenly spread, are looked at.

    Returns:
        ``(mean, std)``, each with C floats; ``std`` is at least 1/255, so that one may divide by it.

    >>> mean, std = channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2))
    >>> mean, std
    ((0.5,), (0.5,))
    """
    sampled = np.linspace(0, len(images) - 1, min(len(images), _SAMPLED_FOR_STATISTICS)).round().astype(int).tolist()
    counts: NDArray[np.int64] | None = None
    for start in range(0, len(sampled), 128):
        part = sampled[start : start + 128]
        pixels = images.__getitems__(part).images if isinstance(images, PixelDataset) else images[part]
        # Histograms are exact and small, whatever the size of the images.
        histograms = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in pixels.unbind(1)]).numpy()
        counts = histograms if counts is None else counts + histograms
    if counts is None:
        raise UserError("`images` (0) must be at least 1 image to take statistics of; check the archive.")
    share = counts / counts.sum(axis=1, keepdims=True, dtype=np.float64)
    levels = np.arange(256) / 255
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    return tuple(mean.tolist()), tuple(np.maximum(np.sqrt(variance), 1 / 255).tolist())


class _EpochShuffle(Sampler[int]):
    """A new order for every epoch that follows from the seed and the epoch alone; Lightning calls ``set_epoch``."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist())

    def __len__(self) -> int:
        return self.count


def training_loader(
    dataset: PixelDataset, batch_size: int, workers: int, drop_last: bool, seed: int
) -> DataLoader[Batch]:
    """Shuffled uint8 batches, in an order that follows from ``seed`` and the epoch, so that a run can be resumed.

    Args:
        dataset: at least 2 images.
        batch_size: images a batch; a smaller dataset becomes one batch.
        workers: processes that decode; none for a dataset in memory, which gains nothing from them.
        drop_last: leave out the last, smaller batch.
        seed: of the order.

    Raises:
        UserError: if the dataset has fewer than 2 images.
    """
    if len(dataset) < 2:
        raise UserError(f"`data` must give at least 2 training images; there are {len(dataset)}; add images.")
    workers = 0 if dataset.cached else workers
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),  # or drop_last would leave nothing of a small set
        sampler=_EpochShuffle(len(dataset), seed),
        drop_last=drop_last,
        collate_fn=_already_a_batch,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_loader(dataset: PixelDataset, batch_size: int) -> DataLoader[Batch]:
    """All images in order."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=_already_a_batch)


def _already_a_batch(fetched: Any) -> Any:  # a Batch, though DataLoader's types expect a list of samples
    return fetched


def _detect_channels(archive: Archive) -> int:
    sampled = np.linspace(0, len(archive) - 1, min(len(archive), _SAMPLED_FOR_CHANNELS)).round().astype(int)
    for row in sampled.tolist():
        try:
            pixels = archive.read(row)
        except DECODE_ERRORS:
            continue
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        if (spread <= 8).mean() <= 0.999:
            return 3
    return 1
