"""An image archive: a folder, a MedMNIST file or the demo, read into rows of one shape."""

from __future__ import annotations

import csv
import hashlib
import os
import posixpath
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from jigsawssl.data.phantom import demo_phantoms
from jigsawssl.types import Sample, UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of the files that a folder is searched for, in lower case; capitals count as well."""

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is missing, broken, of an unknown format or absurdly large."""

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "test": "test"}
_NPZ_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Archive:
    """Images and what is known about each; opened with :func:`open_archive`.

    ``samples`` has one entry a row. ``classes`` are the sorted label names of the whole archive, numbers in natural
    order ("2" before "10"), and () where nothing is labeled; a selection keeps them, so that indices agree.
    """

    name: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    _root: Path | None = field(default=None, repr=False)  # of a folder
    _pixels: tuple[NDArray[np.uint8], ...] | None = field(default=None, repr=False)  # of an archive in memory

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 ``(N,)`` indices in ``classes``, -1 where unlabeled; a new array at each call."""
        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([-1 if s.label is None else index[s.label] for s in self.samples], dtype=np.int64)

    @property
    def groups(self) -> NDArray[np.str_] | None:
        """str ``(N,)``, or None where no sample has a group; a sample that lacks one is a group of its own."""
        if all(sample.group is None for sample in self.samples):
            return None
        return np.array([f"of {s.path}" if s.group is None else f"group {s.group}" for s in self.samples])

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Rows of a split, in order; none where there is no such split."""
        return np.flatnonzero([sample.split == split for sample in self.samples])

    def select(self, rows: Iterable[int]) -> Archive:
        """Return the archive of these rows, in this order, with the same ``classes``."""
        kept = [int(row) for row in rows]
        pixels = None if self._pixels is None else tuple(self._pixels[row] for row in kept)
        return replace(self, samples=tuple(self.samples[row] for row in kept), _pixels=pixels)

    def read(self, row: int) -> NDArray[np.uint8]:
        """Decode one image at its own size: uint8 ``(H, W, C)`` in [0, 255], C is 1 (grey) or 3 (RGB).

        The EXIF orientation is applied. Palettes and other colour models become RGB and an alpha channel is
        dropped; of a file of several frames the first is read. Images of 16 or 32 bits and of floats are scaled to
        8 bits between their own least and greatest value, so absolute intensities are lost (a constant image turns
        black, and so do values that are not finite).

        Raises:
            OSError, ValueError and the like (``DECODE_ERRORS``): if the file cannot be decoded.
        """
        array = np.array(self.open_image(row))
        return array[:, :, None] if array.ndim == 2 else array

    def open_image(self, row: int, at_least: int | None = None) -> Image.Image:
        """Decode one image as :meth:`read` does, into a Pillow image of mode ``L`` or ``RGB``.

        ``at_least`` lets a JPEG be decoded at a half, a quarter or an eighth of its size, which is several times
        faster, as long as both sides keep this many pixels.
        """
        if self._pixels is not None:
            return Image.fromarray(self._pixels[row])
        assert self._root is not None
        with Image.open(self._root / self.samples[row].path) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does nothing for other formats
            return _to_eight_bits(ImageOps.exif_transpose(image))

    def fingerprint(self) -> str:
        """Return a sha256 hex digest of the contents, wherever the archive lies and in whatever order.

        It covers the relative path and the file size of each image; of an archive in memory, path, shape and pixels.
        """
        digest = hashlib.sha256()
        for row in sorted(range(len(self)), key=lambda row: self.samples[row].path):
            path = self.samples[row].path
            if self._pixels is not None:
                digest.update(f"{path}\0{self._pixels[row].shape}\n".encode())
                digest.update(self._pixels[row].tobytes())
            else:
                assert self._root is not None
                size = (self._root / path).stat().st_size
                digest.update(f"{path}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def open_archive(data: str, manifest: str | None = None, split: str | None = None) -> Archive:
    """Open a folder of images, a MedMNIST ``.npz`` file or the demo.

    Args:
        data: one of

            - a folder, searched recursively for :data:`IMAGE_SUFFIXES`; hidden files and folders, links to folders
              and links that lead outside are skipped; rows are sorted by path;
            - an ``.npz`` file with ``{train,val,test}_images`` uint8 ``(N, H, W)`` or ``(N, H, W, 3)`` and optionally
              ``..._labels`` int ``(N,)`` or ``(N, 1)`` (negative: unlabeled), or with ``images`` and ``labels``;
              sample paths are ``train/17``, or ``17``;
            - ``demo``, the synthetic archive of :func:`jigsawssl.data.phantom.demo_phantoms`.
        manifest: what is known about the images of a folder: None (nothing), ``folders`` (the class is the name of
            the parent folder, the split that of a leading ``train``, ``val``, ``valid`` or ``test`` folder), or a CSV
            file with the columns ``path``, relative to the folder, and ``label``, optionally ``split`` and ``group``.
            An archive by CSV has the rows of that file, in its order; an empty cell means unknown.
        split: keep only the rows of this split, such as ``train``; ``valid`` means ``val`` everywhere.

    Raises:
        UserError: if something is missing, empty, doubled, outside the folder, or not as described above.

    >>> archive = open_archive("demo", split="val")
    >>> archive.classes
    ('coarse', 'coarse-striped', 'fine', 'fine-striped')
    >>> archive.read(0).shape, archive.samples[0].path
    ((64, 64, 1), 'val/66')
    """
    path = Path(data)
    if manifest is not None and (data == "demo" or path.is_file()):
        raise UserError(f"`manifest` ({manifest}) must go with a folder of images; `data` is {data}; leave it out.")
    pixels: tuple[NDArray[np.uint8], ...] | None = None
    if data == "demo":
        name, (samples, pixels) = "demo", _demo()
    elif data and path.is_dir():
        name, samples = path.resolve().name, _folder_samples(path, manifest)
    elif path.is_file() and path.suffix.lower() == ".npz":
        name, (samples, pixels) = path.stem, _npz(path)
    else:
        found = "that is another file" if path.exists() else "nothing is there"
        raise UserError(f"`data` ({data}) must be a folder, an .npz file or 'demo'; {found}; check the path.")
    if not samples:
        raise UserError(
            f"`data` ({data}) must hold images ({' '.join(IMAGE_SUFFIXES)}, or arrays in an .npz); none was found; "
            "check the path."
        )
    classes = tuple(sorted({s.label for s in samples if s.label is not None}, key=_natural))
    archive = Archive(name, tuple(samples), classes, path if pixels is None else None, pixels)
    if split is None:
        return archive
    wanted = _SPLIT_NAMES.get(split.lower(), split)
    rows = archive.rows_of(wanted)
    if not rows.size:
        present = ", ".join(sorted({s.split for s in samples if s.split is not None})) or "none"
        raise UserError(f"`split` ({split}) must be a split of the archive; there are: {present}; choose one of these.")
    return archive.select(rows)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts "2" before "10"; the name itself settles "1" and "01"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode[0] in "IF":  # I;16 and its byte orders, I, F
        values = np.asarray(image, dtype=np.float64)
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        scaled = (np.nan_to_num(values, nan=low, posinf=low, neginf=low) - low) * (255 / max(high - low, 1e-300))
        return Image.fromarray(scaled.round().astype(np.uint8))
    if image.mode in ("1", "LA"):
        return image.convert("L")
    # By way of RGBA, because Pillow warns about a palette with transparency that goes straight to RGB.
    return (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")


def _demo() -> tuple[list[Sample], tuple[NDArray[np.uint8], ...]]:
    images, labels, splits, groups = demo_phantoms()
    columns = zip(labels.tolist(), splits.tolist(), groups.tolist(), strict=True)
    samples = [Sample(f"{split}/{i}", label, split, group) for i, (label, split, group) in enumerate(columns)]
    return samples, tuple(images)


def _npz(path: Path) -> tuple[list[Sample], tuple[NDArray[np.uint8], ...]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys = {split: f"{split}_" for split in _NPZ_SPLITS if f"{split}_images" in stored}
            if not keys and "images" in stored:
                keys = {"": ""}
            wanted = [f"{prefix}{kind}" for prefix in keys.values() for kind in ("images", "labels")]
            arrays = {key: stored[key] for key in wanted if key in stored}
            present = ", ".join(sorted(stored)) or "none"
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = type(error).__name__  # the message may have several lines
        raise UserError(
            f"`data` ({path}) must be an .npz file of plain arrays; reading it fails ({reason}); check it."
        ) from None
    if not keys:
        raise UserError(f"`data` ({path}) must hold arrays such as train_images; it has: {present}; rename them.")
    samples: list[Sample] = []
    pixels: list[NDArray[np.uint8]] = []
    for split, prefix in keys.items():
        images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
        grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype != np.uint8 or not grey_or_rgb:
            raise UserError(
                f"`data` ({path}): {prefix}images must be uint8 of shape (N, H, W) or (N, H, W, 3); "
                f"it is {images.dtype} of shape {images.shape}; convert it."
            )
        names: list[str | None] = [None] * len(images)
        if labels is not None:
            if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
                raise UserError(
                    f"`data` ({path}): {prefix}labels must be one integer for each of {len(images)} images; "
                    f"it is {labels.dtype} of shape {labels.shape}; convert it."
                )
            names = [str(value) if value >= 0 else None for value in labels.reshape(-1).tolist()]
        folder = f"{split}/" if split else ""
        samples += [Sample(f"{folder}{i}", name, split or None) for i, name in enumerate(names)]
        pixels += list(images)
    return samples, tuple(pixels)


def _folder_samples(root: Path, manifest: str | None) -> list[Sample]:
    if manifest is not None and manifest != "folders":
        return _csv_samples(root, Path(manifest))
    paths = _find_images(root)
    if manifest is None:
        return [Sample(path) for path in paths]
    samples = []
    for path in paths:
        folders = path.split("/")[:-1]
        split = _SPLIT_NAMES.get(folders[0].lower()) if folders else None
        inner = folders[1:] if split else folders
        samples.append(Sample(path, inner[-1] if inner else None, split))
    if samples and all(sample.label is None for sample in samples):
        raise UserError(
            f"`manifest` (folders) must find a folder for each class in `data` ({root}); the images lie in none; "
            "sort them into folders, or give a CSV file."
        )
    return samples


def _find_images(root: Path) -> list[str]:
    inside = os.path.realpath(root)
    found = []
    for folder, subfolders, files in os.walk(root):  # does not follow links to folders
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if os.path.islink(path) and not (_is_inside(path, inside) and os.path.isfile(path)):
                continue
            found.append(Path(path).relative_to(root).as_posix())
    return sorted(found)


def _is_inside(path: str, real_root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(real_root)


def _csv_samples(root: Path, manifest: Path) -> list[Sample]:
    inside = os.path.realpath(root)
    samples: list[Sample] = []
    missing: list[str] = []
    for line, cells in _csv_rows(manifest):
        written = cells["path"]
        path = posixpath.normpath(written)
        absolute = posixpath.isabs(path) or PureWindowsPath(written).drive
        if not written or absolute or path.split("/")[0] == ".." or not _is_inside(os.path.join(root, path), inside):
            raise UserError(
                f"`manifest` ({manifest}) must name paths inside `data`; line {line} has '{written}'; "
                "make it relative to that folder."
            )
        if not (root / path).is_file():
            missing.append(path)
        split = cells.get("split", "")
        split = _SPLIT_NAMES.get(split.lower(), split)
        samples.append(Sample(path, cells.get("label") or None, split or None, cells.get("group") or None))
    if missing:
        raise UserError(
            f"`manifest` ({manifest}) must name files that exist in `data` ({root}); {len(missing)} of {len(samples)} "
            f"are missing, the first is {missing[0]}; check that paths are relative to that folder."
        )
    repeated = [path for path, times in Counter(sample.path for sample in samples).items() if times > 1]
    if repeated:
        raise UserError(
            f"`manifest` ({manifest}) must name each path once; {len(repeated)} are repeated, the first is "
            f"{repeated[0]}; keep one row of each."
        )
    return samples


def _csv_rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and cells by column, stripped; a short row has empty cells."""
    if not manifest.is_file():
        raise UserError(f"`manifest` ({manifest}) must be 'folders' or a CSV file; no file is there; check the path.")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"`manifest` ({manifest}) must be a CSV file in UTF-8; {error}; save it as one.") from None
    if "path" not in header:
        raise UserError(
            f"`manifest` ({manifest}) must have the columns path,label in its first line; "
            f"it has: {', '.join(header) or 'none'}; rename them."
        )
    return [(line, dict(zip(header, row + [""] * len(header), strict=False))) for line, row in rows]
