"""An image archive: a folder, a MedMNIST file or the demo, read into rows of one shape."""

from __future__ import annotations

import hashlib
import os
import posixpath
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jigsawssl import defaults
from jigsawssl.data.containers import MAX_BYTES, is_container, read_member
from jigsawssl.data.conventions import SPLITS, folder_samples, is_missing, ordered_classes, split_name
from jigsawssl.data.layouts import medmnist_file, samples_of_layout
from jigsawssl.data.manifest import classes_beside, csv_rows, remedy_for_path
from jigsawssl.data.phantom import demo_phantoms
from jigsawssl.data.table import is_fault
from jigsawssl.data.walk import IMAGE_SUFFIXES, Found, NoImages, find_images, is_inside, look_into
from jigsawssl.readers import ImageInfo, Notes, Picture, Unreadable, open_picture, robust_range, to_display
from jigsawssl.types import Sample, UserError
from jigsawssl.words import counted


@dataclass(frozen=True, eq=False)
class Archive:
    """Images and what is known about each; opened with :func:`open_archive`.

    ``samples`` has one entry a row. ``classes`` are the label names of the whole archive in the order of
    :func:`jigsawssl.data.conventions.ordered_classes`, of two the positive one last, and () where nothing is labeled; a
    selection keeps them, so that indices agree. ``order_given`` says whether the user gave that order, and ``remarks``
    what was taken for unknown.
    """

    name: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    _root: Path | None = field(default=None, repr=False)  # of a folder
    _pixels: tuple[NDArray[Any], ...] | None = field(default=None, repr=False)  # of an archive in memory
    _members: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)  # path → container, name in it
    refused: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # path, reason: seen, and not made a sample
    counted: Mapping[str, NoImages] = field(default_factory=dict, repr=False)  # what is no image, by ending
    order_given: bool = False
    remarks: tuple[str, ...] = field(default=(), repr=False)

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

    @property
    def faults(self) -> int:
        """How many were refused as broken or forbidden, and not left out as what they are."""
        return sum(is_fault(reason) for _, reason in self.refused)

    @property
    def in_memory(self) -> bool:
        """Whether the images are arrays and not files."""
        return self._pixels is not None

    @property
    def location(self) -> str:
        """Where the archive lies, for telling archives apart; never to be written in plain text."""
        return self.name if self._root is None else os.path.realpath(self._root)

    def rows_of(self, split: str) -> NDArray[np.int64]:
        """Rows of a split, in order; none where there is no such split."""
        return np.flatnonzero([sample.split == split for sample in self.samples])

    def select(self, rows: Iterable[int]) -> Archive:
        """Return the archive of these rows, in this order, with the same ``classes``."""
        kept = [int(row) for row in rows]
        pixels = None if self._pixels is None else tuple(self._pixels[row] for row in kept)
        return replace(self, samples=tuple(self.samples[row] for row in kept), _pixels=pixels)

    def without_labels(self) -> Archive:
        """The same images, of which nobody can learn a label or a class."""
        samples = tuple(sample._replace(label=None) for sample in self.samples)
        return replace(self, samples=samples, classes=())

    def file_of(self, row: int) -> str:
        """The file that holds an image, relative to the folder: a container's for its members."""
        path = self.samples[row].path
        return self._members[path][0] if path in self._members else path

    def _at(self, row: int) -> str:
        # Not by pathlib, which keeps every part of every path in memory for ever.
        assert self._root is not None
        return os.path.join(self._root, self.file_of(row))

    def stamp(self, row: int) -> tuple[int, int]:
        """Size in bytes and time of change in nanoseconds of that file; -1 and -1 where it is gone, 0 in memory."""
        if self._root is None:
            return 0, 0
        try:
            found = os.stat(self._at(row))
        except OSError:
            return -1, -1
        return found.st_size, found.st_mtime_ns

    def read_bytes(self, row: int) -> bytes:
        """The file or member of an image.

        Raises:
            Unreadable: with the reason.
        """
        assert self._root is not None
        sample = self.samples[row]
        file = self._at(row)
        try:
            # Checked again at each reading, as links may have changed since the folder was listed.
            if not is_inside(file, os.path.realpath(self._root)):
                raise Unreadable("a link that leads outside")
            if sample.path in self._members:
                return read_member(file, self._members[sample.path][1])
            if not os.path.isfile(file):
                raise Unreadable("vanished" if not os.path.exists(file) else "not a file")
            if os.path.getsize(file) > MAX_BYTES:
                raise Unreadable("larger than 1 GiB")
            return Path(file).read_bytes()
        except FileNotFoundError:
            raise Unreadable("vanished") from None
        except PermissionError:
            raise Unreadable("permission denied") from None
        except (OSError, RuntimeError) as error:
            raise Unreadable(f"cannot be read ({type(error).__name__})") from None

    def open(
        self, row: int, window: str = defaults.WINDOW, at_least: int | None = None, data: bytes | None = None
    ) -> Picture:
        """Open one image; arguments are those of :func:`jigsawssl.readers.read`, ``data`` spares the reading.

        Raises:
            Unreadable: with the reason.
        """
        if self._pixels is not None:
            pixels = self._pixels[row]
            pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
            info = ImageInfo(
                "array",
                height=pixels.shape[0],
                width=pixels.shape[1],
                channels=pixels.shape[2],
                bits=8 * pixels.itemsize,
            )
            digest = hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
            shown = pixels if pixels.dtype == np.uint8 else to_display(pixels, robust_range(pixels))
            return Picture(info, lambda number: shown, digest.hexdigest(), Notes())
        data = self.read_bytes(row) if data is None else data
        return open_picture(data, window=window, name=self.samples[row].path, at_least=at_least)

    def read(self, row: int, window: str = defaults.WINDOW) -> NDArray[np.uint8 | np.uint16]:
        """Decode one image at its own size, the middle one of several frames; see :func:`jigsawssl.readers.read`.

        Raises:
            Unreadable: with the reason.
        """
        picture = self.open(row, window)
        return picture.frame(picture.info.frames // 2)

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
                size = self.stamp(row)[0]
                digest.update(f"{path}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def open_archive(
    data: str,
    manifest: str | None = None,
    *,
    split: str | None = None,
    layout: str | None = None,
    classes: Sequence[str] = (),
    positive: str | None = None,
) -> Archive:
    """Open a folder of images, a MedMNIST ``.npz`` file or the demo.

    Args:
        data: one of

            - a folder, searched recursively, see :func:`jigsawssl.data.walk.find_images`; zip and tar files count as
              folders, so that ``scans.zip/a/1.png`` is a path; rows are sorted by path;
            - an ``.npz`` file with ``{train,val,test}_images`` uint8 or uint16 ``(N, H, W)`` or ``(N, H, W, 3)`` and
              optionally ``..._labels`` int ``(N,)`` or ``(N, 1)`` (negative: unlabeled), or ``images`` and ``labels``;
              several labels an image, ``(N, L)``, are none; sample paths are ``train/17``, or ``17``;
            - ``demo``, the synthetic archive of :func:`jigsawssl.data.phantom.demo_phantoms`.
        manifest: what is known about the images of a folder: None (nothing), ``folders`` (see
            :func:`jigsawssl.data.conventions.folder_samples`), or a CSV file with the columns ``path``, relative to the
            folder, and ``label``, optionally ``split`` and ``group``. An archive by CSV has the rows of that file, in
            its order; an empty cell means unknown, and so do NA and the like. A file ``NAME.csv.classes`` beside it
            gives the order of the classes, one a line.
        layout: name of a public set, see :mod:`jigsawssl.data.layouts`; it takes the place of a manifest.
        split: keep only the rows of this split, such as ``train``; other words for it mean the same everywhere.
        classes: all of them in the intended order, such as that of grades.
        positive: of two classes, the one to detect.

    Raises:
        UserError: if something is missing, empty, doubled, outside the folder, or not as described above.

    >>> archive = open_archive("demo", split="val")
    >>> archive.classes
    ('coarse', 'coarse-striped', 'fine', 'fine-striped')
    >>> archive.read(0).shape, archive.samples[0].path
    ((64, 64, 1), 'val/66')
    """
    path = Path(data)
    if layout is not None and layout.partition(":")[0] == "medmnist" and path.is_dir():
        path, layout = medmnist_file(layout, path), None
    if layout is not None and (manifest is not None or not path.is_dir()):
        raise UserError(
            f"`layout` ({layout}) must go with the folder of a public set and without `manifest`; leave one out."
        )
    if manifest is not None and (data == "demo" or path.is_file()):
        raise UserError(f"`manifest` ({manifest}) must go with a folder of images; `data` is {data}; leave it out.")
    pixels: tuple[NDArray[Any], ...] | None = None
    remarks: list[str] = []
    found = Found()
    if data == "demo":
        name, (samples, pixels) = "demo", _demo()
    elif data and path.is_dir():
        name = path.resolve().name
        if layout is None:
            samples, found = _folder_samples(path, manifest, remarks)
        else:
            found = find_images(path)
            samples = samples_of_layout(layout, path, found.paths)
    elif path.is_file() and path.suffix.lower() == ".npz":
        name, (samples, pixels) = path.stem, _npz(path, remarks)
    else:
        reason = "that is another file" if path.exists() else "nothing is there"
        raise UserError(f"`data` ({data}) must be a folder, an .npz file or 'demo'; {reason}; check the path.")
    if not samples:
        raise UserError(
            f"`data` ({data}) must hold images ({' '.join(IMAGE_SUFFIXES)}, or arrays in an .npz); none was found; "
            "check the path."
        )
    given = tuple(classes) or classes_beside(manifest)
    known = ordered_classes({s.label for s in samples if s.label is not None}, given, positive)
    root = path if pixels is None else None
    archive = Archive(
        name,
        samples=tuple(samples),
        classes=known,
        _root=root,
        _pixels=pixels,
        _members=found.members,
        refused=tuple(found.refused),
        counted=dict(found.counted),
        order_given=bool(given),
        remarks=tuple(remarks),
    )
    if split is None:
        return archive
    rows = archive.rows_of(split_name(split))
    if not rows.size:
        present = ", ".join(sorted({s.split for s in samples if s.split is not None})) or "none"
        raise UserError(f"`split` ({split}) must be a split of the archive; there are: {present}; choose one of these.")
    return archive.select(rows)


def _demo() -> tuple[list[Sample], tuple[NDArray[Any], ...]]:
    images, labels, splits, groups = demo_phantoms()
    columns = zip(labels.tolist(), splits.tolist(), groups.tolist(), strict=True)
    samples = [Sample(f"{split}/{i}", label, split, group) for i, (label, split, group) in enumerate(columns)]
    return samples, tuple(images)


def _npz(path: Path, remarks: list[str]) -> tuple[list[Sample], tuple[NDArray[Any], ...]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            keys = {split: f"{split}_" for split in SPLITS if f"{split}_images" in stored}
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
    pixels: list[NDArray[Any]] = []
    for split, prefix in keys.items():
        images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
        grey_or_rgb = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype not in (np.uint8, np.uint16) or not grey_or_rgb:
            raise UserError(
                f"`data` ({path}): {prefix}images must be uint8 or uint16 of shape (N, H, W) or (N, H, W, 3); "
                f"it is {images.dtype} of shape {images.shape}; convert it."
            )
        names: list[str | None] = [None] * len(images)
        if labels is not None:
            if labels.ndim == 2 and len(labels) == len(images) and labels.shape[1] > 1:
                remarks.append(
                    f"the array {prefix}labels holds {labels.shape[1]} labels for each image, and a class is one: none "
                    "was taken"
                )
            elif labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
                raise UserError(
                    f"`data` ({path}): {prefix}labels must be one integer for each of {len(images)} images; "
                    f"it is {labels.dtype} of shape {labels.shape}; convert it."
                )
            else:
                names = [str(value) if value >= 0 else None for value in labels.reshape(-1).tolist()]
        folder = f"{split}/" if split else ""
        samples += [Sample(f"{folder}{i}", name, split or None) for i, name in enumerate(names)]
        pixels += list(images)
    return samples, tuple(pixels)


def _folder_samples(root: Path, manifest: str | None, remarks: list[str]) -> tuple[list[Sample], Found]:
    if manifest is not None and manifest != "folders":
        return _csv_samples(root, Path(manifest), remarks)
    found = find_images(root)
    samples = folder_samples(found.paths)
    if manifest is None:
        splits = sorted({sample.split for sample in samples if sample.split is not None})
        if len(splits) > 1:
            remarks.append(f"folders are called {', '.join(splits)}, which are splits with manifest=folders alone")
        return [Sample(path) for path in found.paths], found
    if samples and all(sample.label is None for sample in samples):
        raise UserError(
            f"`manifest` (folders) must find a folder for each class in `data` ({root}); the images lie in none; "
            "sort them into folders, or give a CSV file."
        )
    return samples, found


def _csv_samples(root: Path, manifest: Path, remarks: list[str]) -> tuple[list[Sample], Found]:
    inside = os.path.realpath(root)
    found = Found()
    looked: set[str] = set()
    samples: list[Sample] = []
    missing: list[str] = []
    unknown: Counter[tuple[str, str]] = Counter()
    for line, cells in csv_rows(manifest):
        written = cells["path"]
        path = posixpath.normpath(written)
        absolute = posixpath.isabs(path) or PureWindowsPath(written).drive
        if not written or absolute or path.split("/")[0] == ".." or not is_inside(os.path.join(root, path), inside):
            raise UserError(
                f"`manifest` ({manifest}) must name paths inside `data`; line {line} has '{written}'; "
                f"{remedy_for_path(root, written)}."
            )
        container = _container_of(path)
        if container is not None and container not in looked and os.path.isfile(os.path.join(root, container)):
            looked.add(container)
            look_into(root, container, found)
        if path not in found.members and not (container is None and os.path.isfile(os.path.join(root, path))):
            missing.append(path)
        known = {column: cells.get(column, "") for column in ("label", "split", "group")}
        for column, cell in known.items():
            if cell and is_missing(cell):
                unknown[column, cell] += 1
        label, split, group = (None if is_missing(cell) else cell for cell in known.values())
        samples.append(Sample(path, label, None if split is None else split_name(split), group))
    if missing:
        raise UserError(
            f"`manifest` ({manifest}) must name files that exist in `data` ({root}); {len(missing)} of {len(samples)} "
            f"are missing, the first is {missing[0]}; {remedy_for_path(root, missing[0])}."
        )
    repeated = [path for path, times in Counter(sample.path for sample in samples).items() if times > 1]
    if repeated:
        raise UserError(
            f"`manifest` ({manifest}) must name each path once; {len(repeated)} are repeated, the first is "
            f"{repeated[0]}; keep one row of each."
        )
    remarks += [
        f"{counted(number, 'cell')} of `{column}` {'says' if number == 1 else 'say'} {cell}, which is taken for "
        f"unknown; where it is a {column}, rename it"
        for (column, cell), number in sorted(unknown.items())
    ]
    return samples, found


def _container_of(path: str) -> str | None:
    """The part of a path that names a zip or tar file, if one does and something follows it."""
    parts = path.split("/")
    ends = (number for number in range(1, len(parts)) if is_container(parts[number - 1]))
    return next(("/".join(parts[:number]) for number in ends), None)
