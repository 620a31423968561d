"""From archive rows to uint8 or uint16 batches: decoding, the cache and the data loaders."""

from __future__ import annotations

import copy
import heapq
import math
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from jigsawssl import defaults
from jigsawssl.data.archive import Archive
from jigsawssl.data.cache import Cache, CacheOptions
from jigsawssl.data.known import KnownImages, Squares
from jigsawssl.data.splits import Fold, Rows
from jigsawssl.data.table import LEFT_OUT, is_fault
from jigsawssl.progress import Progress
from jigsawssl.readers import NotAnImage, Picture, Unreadable, fit_image, shrink_square
from jigsawssl.stain import MACENKO_TARGET, reinhard_statistics
from jigsawssl.types import Batch, ImageFormat, UserError

_SAMPLED_FOR_KIND = 64
_SAMPLED_FOR_STATISTICS = 2048
_SAMPLED_FOR_STAIN = 256


class PixelDataset(Dataset[Batch]):
    """Images of an archive as squares of one type, fetched a batch at a time.

    :meth:`load` decodes all of them into memory, :meth:`use` takes them from a cache; without either each is decoded
    when asked for. Of a file with several frames the middle one is taken, but from a cache all that it has.

    Args:
        archive: where the images and labels come from.
        format: of the squares; stain and normalisation come later. See :func:`channels_of`.
        workers: threads that decode.
        most_unreadable: number of unreadable images above which decoding stops.
        memory_bytes: the most memory that :meth:`load` may take.

    Attributes:
        sixteen_bit: images are uint16, because one of them has more than 8 bits: one of 64, or of all where all were
            decoded. Without cache and :meth:`load`, batches are also uint16 that hold a deeper image which was not
            sampled.
        rows: int64, the row of the archive of each usable image; ``len(dataset)`` is their number.
        unreadable: path → reason.

    >>> from jigsawssl.data.archive import open_archive
    >>> dataset = PixelDataset(open_archive("demo", split="val"), ImageFormat(32, channels=1))
    >>> batch = dataset.__getitems__([0, 1])
    >>> batch.images.shape, batch.images.dtype, batch.rows.tolist()
    (torch.Size([2, 1, 32, 32]), torch.uint8, [0, 1])
    """

    def __init__(
        self,
        archive: Archive,
        format: ImageFormat,
        *,
        workers: int = 1,
        most_unreadable: float = math.inf,
        memory_bytes: int = 4 * 2**30,
    ) -> None:
        self.archive = archive
        self.format = format.decoded
        self.sixteen_bit = any(picture.info.bits > 8 for picture in _sampled(archive, format.window))
        self.workers = max(1, workers)
        self.rows: NDArray[np.int64] = np.arange(len(archive), dtype=np.int64)
        self.unreadable: dict[str, str] = {}
        self.most_unreadable = most_unreadable
        self.memory_bytes = memory_bytes
        self._labels = torch.from_numpy(archive.labels)
        self._stored: Tensor | None = None  # decoded images, in memory or mapped into it
        self._squares: Squares | None = None  # decoded images of earlier runs
        self._at: Tensor | None = None  # where in those each of ``rows`` is; None: in order

    @property
    def cached(self) -> bool:
        """Whether all images are decoded."""
        return self._stored is not None

    def cache_options(self, frames: str = "all") -> CacheOptions:
        """The cache that fits this dataset."""
        return CacheOptions(self.format, sixteen_bit=self.sixteen_bit, frames=frames)

    def use(self, cache: Cache) -> None:
        """Take the images from a cache of this archive, or of one that holds it.

        Raises:
            UserError: if no image is readable.
        """
        self.sixteen_bit = cache.options.sixteen_bit
        row_of = {sample.path: row for row, sample in enumerate(self.archive.samples)}
        readable = cache.readable()
        paths = cache.paths()
        known = np.array([row_of.get(paths[row], -1) for row in readable.tolist()], dtype=np.int64)
        kept = np.flatnonzero(known >= 0)
        self.rows = known[kept]
        for path, _, reason in cache.unreadable():
            if path in row_of:
                self.unreadable[path] = reason
        if len(self.unreadable) > self.most_unreadable:
            raise self.too_many_unreadable()
        if not self.rows.size:
            raise self._nothing_readable()
        # As signed integers of the same bits, which torch gathers for every type.
        stored = cache.pixels.view(np.int16) if cache.pixels.dtype == np.uint16 else cache.pixels
        self._stored = torch.from_numpy(stored)
        self._at = None if len(kept) == len(stored) else torch.from_numpy(kept)

    def load(self, progress: bool, known: KnownImages | None = None) -> None:
        """Decode every image into memory; unreadable ones are listed in ``unreadable`` and leave ``rows``.

        Where the archive does not fit, it is decoded when it is asked for, and nothing is checked here.

        Args:
            progress: show a bar.
            known: what caches hold of the archive; all images are then made by way of the cached size.

        Raises:
            UserError: if no image can be decoded.
        """
        if known is not None:
            self._squares = known.squares(self.format)
        options = self.cache_options()
        if self.cached or len(self.archive) * options.item_bytes > self.memory_bytes:
            return
        kind = np.int16 if self.sixteen_bit else np.uint8
        pixels = np.empty((len(self.archive), *options.item[1]), dtype=kind)
        deeper = False

        def decode(row: int) -> bool:
            nonlocal deeper
            decoded = None if deeper else self._decode(row)
            if decoded is None or decoded.dtype.itemsize > kind().itemsize:
                deeper = deeper or decoded is not None
                return False
            pixels[row] = decoded.view(kind)
            return True

        with ThreadPoolExecutor(self.workers) as pool:
            done = pool.map(decode, range(len(self.archive)))
            readable = np.array(list(Progress(done, "Decoding", len(self.archive), disable=not progress)), dtype=bool)
        if deeper:  # than the sampled ones: once more, with 16 bits for all
            self.sixteen_bit = True
            return self.load(progress, known)
        self.rows = np.flatnonzero(readable).astype(np.int64)
        if not self.rows.size:
            raise self._nothing_readable()
        self._stored = torch.from_numpy(pixels if readable.all() else pixels[self.rows])

    def subset(self, positions: NDArray[np.int64]) -> PixelDataset:
        """The images at some positions, as a dataset of their own that needs no decoding again."""
        part = copy.copy(self)
        part.rows = self.rows[positions]
        if self._stored is not None:
            where = torch.from_numpy(positions)
            part._at = where if self._at is None else self._at[where]
        return part

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64 ``(len(self),)`` of the usable images, -1 where there is none."""
        return self._labels.numpy()[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """One image as a batch without its first axis: ``(C, size, size)`` and two scalars."""
        return Batch(*(column[0] for column in self.__getitems__([index])))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images uint8 or uint16 ``(B, C, size, size)``, labels int64 ``(B,)`` and archive rows int64 ``(B,)``.

        An image that turns out unreadable only now is listed in ``unreadable`` and replaced by the next readable one,
        with that one's label and row.

        Raises:
            UserError: if no image can be decoded.
        """
        if self._stored is not None:
            where = torch.as_tensor(indices, dtype=torch.int64)
            rows = torch.from_numpy(self.rows)[where]
            shape = (len(where), *self._stored.shape[1:])
            images = torch.empty(shape, dtype=self._stored.dtype, pin_memory=torch.cuda.is_available())
            _gather(self._stored, where if self._at is None else self._at[where], images)
            return Batch(images.view(torch.uint16) if self.sixteen_bit else images, self._labels[rows], rows)
        with ThreadPoolExecutor(self.workers) as pool:
            found = list(pool.map(self._next_readable, map(int, indices)))
        rows = torch.tensor([row for row, _ in found], dtype=torch.int64)
        decoded = [image for _, image in found]
        if any(image.dtype == np.uint16 for image in decoded):
            decoded = [image if image.dtype == np.uint16 else image * np.uint16(257) for image in decoded]
        return Batch(torch.from_numpy(np.stack(decoded)), self._labels[rows], rows)

    def _next_readable(self, position: int) -> tuple[int, NDArray[Any]]:
        for step in range(len(self)):
            row = int(self.rows[(position + step) % len(self)])
            image = self._decode(row)
            if image is not None:
                return row, image
        raise self._nothing_readable()

    def _decode(self, row: int) -> NDArray[Any] | None:
        path = self.archive.samples[row].path
        known = None if self._squares is None else self._squares.get(path)
        if known is not None:
            widened = self.sixteen_bit and known.dtype == np.uint8
            return shrink_square(known.astype(np.uint16) * np.uint16(257) if widened else known, self.format.size)
        # By way of the cached size, so that cached images and others are made alike.
        format = self.format if self._squares is None else self._squares.format
        try:
            # Twice the size, as the antialiased resize below wants at least that to be as good as from full size.
            picture = self.archive.open(row, format.window, at_least=2 * format.size)
            pixels = picture.frame(picture.info.frames // 2)
        except Unreadable as error:
            self.unreadable[path] = f"{LEFT_OUT}{error}" if isinstance(error, NotAnImage) else str(error)
            if self._faults() > self.most_unreadable:
                raise self.too_many_unreadable() from None
            return None
        square = fit_image(pixels, format, sixteen_bit=self.sixteen_bit or pixels.dtype == np.uint16)
        return shrink_square(square, self.format.size)

    def _faults(self) -> int:
        return sum(is_fault(reason) for reason in self.unreadable.values())

    def too_many_unreadable(self) -> UserError:
        """The error to raise where more is unreadable than was allowed."""
        found = self._faults() + self.archive.faults
        total = len(self.archive) + self.archive.faults
        return UserError(
            f"`max_bad_fraction` must cover the unreadable images, which are {found} of {total} so far; quarantine.csv "
            "in `out` lists them: fix or remove them, or raise it"
        )

    def _nothing_readable(self) -> UserError:
        path = self.archive.samples[0].path
        return UserError(
            f"`data` ({self.archive.name}) must hold images that can be decoded; all {len(self.archive)} are "
            f"unreadable, the first is {path} ({self.unreadable.get(path, 'unknown')}); check the files."
        )


def _gather(stored: Tensor, where: Tensor, out: Tensor) -> None:
    """Copy rows; in words of 8 bytes where they fit, which is more than twice as fast as byte by byte."""
    if stored[0].nbytes % 8 == 0:
        stored, out = (images.view(len(images), -1).view(torch.int64) for images in (stored, out))
    torch.index_select(stored, 0, where, out=out)


def channel_statistics(images: Tensor | PixelDataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with pixels scaled to [0, 1].

    Args:
        images: uint8 or uint16 ``(N, C, H, W)``, or a dataset; at most 2048 images, evenly spread, are looked at, and
            of 16 bits the upper 8.

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
        if pixels.dtype == torch.uint16:
            pixels = (pixels.view(torch.int16).int() & 0xFFFF) >> 8
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


class LabelledSet(NamedTuple):
    """Labelled images, and which of them train, choose settings and fit at last.

    Attributes:
        dataset: decoded images.
        labels: int64 ``(len(dataset),)`` in ``range(classes)``.
        classes: K.
        folds: positions in ``dataset`` to train on and to validate on. One fold is a held-out part, several are
            cross-validation.
        refit_rows: positions that the final fit may use.
        unlabelled: decoded images whose labels nobody may use, for modes that learn from them.
    """

    dataset: PixelDataset
    labels: NDArray[np.int64]
    classes: int
    folds: list[Fold]
    refit_rows: Rows
    unlabelled: PixelDataset | None = None

    @property
    def judged(self) -> NDArray[np.int64]:
        """Labels of the validation rows, fold after fold."""
        return np.concatenate([self.labels[val] for _, val in self.folds])

    @property
    def held_out(self) -> bool:
        """Whether candidates are judged on a part that is never trained on."""
        return len(self.folds) == 1


def training_loader(dataset: PixelDataset, *, batch_size: int, drop_last: bool, seed: int) -> DataLoader[Batch]:
    """Shuffled batches, in an order that follows from ``seed`` and the epoch, so that a run can be resumed.

    Args:
        dataset: at least 2 images.
        batch_size: images a batch; a smaller dataset becomes one batch.
        drop_last: leave out the last, smaller batch.
        seed: of the order.

    Raises:
        UserError: if the dataset has fewer than 2 images.
    """
    if len(dataset) < 2:
        raise UserError(f"`data` must give at least 2 training images; there are {len(dataset)}; add images.")
    return DataLoader(
        dataset,
        batch_size=min(batch_size, len(dataset)),  # or drop_last would leave nothing of a small set
        sampler=_EpochShuffle(len(dataset), seed),
        drop_last=drop_last,
        collate_fn=_already_a_batch,
    )


def evaluation_loader(dataset: PixelDataset, batch_size: int) -> DataLoader[Batch]:
    """All images in order."""
    return DataLoader(dataset, batch_size=batch_size, collate_fn=_already_a_batch)


def _already_a_batch(fetched: Any) -> Any:  # a Batch, though DataLoader's types expect a list of samples
    return fetched


def _sampled(archive: Archive, window: str) -> Iterator[Picture]:
    """Some readable images, chosen by hashes of their paths."""
    # Neighbours in the archive are alike, and one more file should not change the answer.
    keyed = (
        (zlib.crc32(sample.path.encode("utf-8", "surrogateescape")), row) for row, sample in enumerate(archive.samples)
    )
    for _, row in heapq.nsmallest(_SAMPLED_FOR_KIND, keyed):
        with suppress(Unreadable):
            yield archive.open(row, window)


def channels_of(archive: Archive, window: str = defaults.WINDOW) -> int:
    """1 if the images are grey, also where they are stored as RGB, else 3.

    64 images are looked at; they count as grey where their channels differ by at most 8 of 255 in more than 99.9 % of
    the pixels. Hashes of their paths choose them, so that a growing archive hardly changes them.

    Args:
        archive: that holds them.
        window: how more than 8 bits become display values, see :func:`jigsawssl.readers.read`.

    >>> from jigsawssl.data import open_archive
    >>> channels_of(open_archive("demo"))
    1
    """
    for picture in _sampled(archive, window):
        with suppress(Unreadable):
            pixels = picture.frame(picture.info.frames // 2)
            spread = pixels.max(axis=2) - pixels.min(axis=2)
            if (spread <= 8 * (np.iinfo(pixels.dtype).max // 255)).mean() <= 0.999:
                return 3
    return 1


def stain_target(stain: str, images: PixelDataset) -> tuple[float, ...]:
    """The reference that stained tissue is brought to.

    Args:
        stain: ``none``, ``macenko`` (the published reference) or ``reinhard`` (the images' own average colours).
        images: of the archive that is learned from; at most 256, evenly spread, are looked at.

    Raises:
        UserError: for grey or 16-bit images.

    >>> from jigsawssl.data import open_archive
    >>> len(stain_target("macenko", PixelDataset(open_archive("demo"), ImageFormat(28))))
    8
    """
    if stain == "none":
        return ()
    if images.format.channels != 3 or images.sixteen_bit:
        raise UserError(f"`stain` ({stain}) must be none for grey or 16-bit images; leave it out")
    if stain == "macenko":
        return MACENKO_TARGET
    some = np.linspace(0, len(images) - 1, min(len(images), _SAMPLED_FOR_STAIN)).round().astype(int)
    return reinhard_statistics(images.__getitems__(some.tolist()).images)
