"""What lies in a folder: images, what is refused and why, and what is counted as something else."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jigsawssl.data.containers import CONTAINER_SUFFIXES, is_container, list_members, read_member
from jigsawssl.data.table import LEFT_OUT
from jigsawssl.readers import SNIFFED, Unreadable, sniff

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".dcm", ".dicom", ".ima"),
    *CONTAINER_SUFFIXES,
)
"""Endings that are trusted, in lower case; capitals count as well. Files with other endings, or none, are looked into,
but for :data:`NO_IMAGES`."""

_NO_IMAGES = (
    "txt text csv tsv json jsonl xml yaml yml toml ini cfg conf md rst tex bib html htm css js pdf doc docx odt rtf "
    "xls xlsx xlsm ods ppt pptx odp log py pyc ipynb r rdata rds m mat c h cpp java jar class sh bat ps1 exe dll so "
    "dylib db sqlite sql mdb parquet arrow feather pkl pickle pt pth ckpt safetensors onnx joblib wav mp3 mp4 avi mov "
    "mkv wmv mpg mpeg lnk url md5 sha1 sha256 asc sig pem lock license"
)
NO_IMAGES = frozenset(f".{ending}" for ending in _NO_IMAGES.split())
"""Endings of documents, tables, programs, weights, sound and films, which are counted and not looked into."""

_NOT_READ = {
    (".nii", ".nii.gz", ".hdr.gz", ".img.gz"): "NIfTI",
    (".nrrd", ".nhdr"): "NRRD",
    (".mha", ".mhd"): "MetaImage",
    (".mgz", ".mgh"): "FreeSurfer volume",
    (".mnc",): "MINC",
    (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"): "JPEG 2000",
    (".jxl",): "JPEG XL",
    (".heic", ".heif", ".hif"): "HEIF",
    (".avif",): "AVIF",
    (".svg", ".eps", ".ps", ".ai"): "a vector graphic",
    (".psd", ".xcf"): "a file of an image editor",
    (".pgm", ".ppm", ".pbm", ".pnm", ".pam"): "PNM",
    (".npy",): "NumPy array",
    (".h5", ".hdf5"): "HDF5",
    (".exr",): "OpenEXR",
    (".fits", ".fit"): "FITS",
    (".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".lsm"): "a microscope's format",
    (".mrxs", ".vms", ".vmu", ".bif", ".isyntax", ".zvi"): "a slide scanner's format",
    (".dng", ".cr2", ".nef", ".arw", ".raw"): "a camera's raw format",
}
_FORMAT_OF = {suffix: name for suffixes, name in _NOT_READ.items() for suffix in suffixes}
_OTHER_PACKED = (".7z", ".rar", ".gz", ".bz2", ".xz", ".zst")
_EXAMPLES = 5
_QUIET = frozenset(["thumbs.db", "desktop.ini", "dicomdir", "icon\r"])


class NoImages(NamedTuple):
    """Files of one ending that are no images: how many, and the first few."""

    files: int
    examples: tuple[str, ...]


@dataclass
class Found:
    """What lies in a folder.

    Every file, link or member that is met is in just one of the last three, but for containers that could be opened,
    whose members are.

    Attributes:
        members: of the images in containers, the container and the name in it, by path.
        paths: of images.
        refused: path and reason.
        counted: what was no image, by ending; ``hidden`` and ``system`` are names that hide files, and what systems
            leave behind.
    """

    paths: list[str] = field(default_factory=list)
    members: dict[str, tuple[str, str]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    counted: dict[str, NoImages] = field(default_factory=dict)

    def count(self, ending: str, path: str | None = None) -> None:
        """Count a file that is no image; the first few of an ending are remembered, where a path is given."""
        so_far = self.counted.get(ending, NoImages(0, ()))
        few = path is not None and len(so_far.examples) < _EXAMPLES
        self.counted[ending] = NoImages(so_far.files + 1, (*so_far.examples, path) if few and path else so_far.examples)


def find_images(root: Path) -> Found:
    """Walk through a folder.

    Names with one of :data:`IMAGE_SUFFIXES` are trusted, those of :data:`NO_IMAGES` too; of all others the first bytes
    decide. Hidden files are counted, and each hidden folder once. A link to a folder inside is followed where that was
    not met before; links that lead outside, or nowhere, are refused.
    """
    inside = os.path.realpath(root)
    found = Found()
    met = {inside}

    def relative(path: str) -> str:
        return os.path.relpath(path, root).replace(os.sep, "/")

    waiting = [str(root)]
    while waiting:
        links: list[str] = []
        folders = [waiting.pop()]
        while folders:
            folder = folders.pop()
            met.add(os.path.realpath(folder))
            try:
                with os.scandir(folder) as listing:
                    entries = list(listing)
            except OSError:
                found.refused.append((relative(folder), "permission denied"))
                continue
            below = relative(folder)
            prefix = "" if below == "." else f"{below}/"
            for entry in entries:
                if not _holds(entry.is_dir):
                    _sort_file(root, prefix + entry.name, entry=entry, inside=inside, found=found)
                elif _is_hidden(entry.name):
                    found.count("hidden")
                else:
                    (links if entry.is_symlink() else folders).append(entry.path)
        for path in sorted(links):
            target = os.path.realpath(path)
            if not is_inside(path, inside):
                found.refused.append((relative(path), "a link that leads outside"))
            elif target in met:
                found.refused.append((relative(path), f"{LEFT_OUT}a link to a folder that is read already"))
            else:
                met.add(target)
                waiting.append(path)
    found.paths.sort()
    found.refused.sort()
    return found


def _sort_file(root: Path, relative: str, *, entry: os.DirEntry[str], inside: str, found: Found) -> None:
    # An entry knows what it is without asking the system once more for each of a million files.
    if _counted_by_name(relative, entry.name, found):
        return
    if entry.is_symlink() and not (is_inside(entry.path, inside) and _holds(entry.is_file)):
        leads = os.path.exists(entry.path)
        found.refused.append((relative, "a link that leads outside" if leads else "a link that leads nowhere"))
    elif is_container(relative):
        look_into(root, relative, found)
    elif not _holds(entry.is_file):  # neither a pipe, which would wait for ever, nor a device
        found.refused.append((relative, "not a file"))
    else:
        _sort(relative, lambda: _head(entry.path), found)


def _holds(ask: Callable[[], bool]) -> bool:
    """What an entry of a folder says; False where the system cannot tell, as for a link to itself."""
    try:
        return ask()
    except OSError:
        return False


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(SNIFFED)
    except PermissionError:
        raise Unreadable("permission denied") from None
    except OSError as error:
        raise Unreadable(f"cannot be read ({type(error).__name__})") from None


def _counted_by_name(path: str, inner: str, found: Found) -> bool:
    """Count what is no image by its name, or by that of a hidden folder in ``inner``, the part of the path to judge."""
    *folders, name = inner.split("/")
    if name.lower() in _QUIET:
        found.count("system")
    elif name.startswith(".") or any(map(_is_hidden, folders)):
        found.count("hidden")
    elif (ending := _ending(name)) in NO_IMAGES:
        found.count(ending, path)
    else:
        return False
    return True


def _ending(name: str) -> str:
    at = name.rfind(".")
    return name[at:].lower() if at > 0 else ""


def _sort(relative: str, head: Callable[[], bytes], found: Found) -> None:
    """Put a file or member that is no container where it belongs; ``head`` gives its first bytes."""
    lower = relative.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        found.paths.append(relative)
        return
    if lower.endswith(".npz"):
        found.refused.append((relative, "arrays; name the .npz file itself as data"))
        return
    by_name = next((name for suffix, name in _FORMAT_OF.items() if lower.endswith(suffix)), None)
    if by_name is None and lower.endswith(_OTHER_PACKED):
        found.refused.append((relative, "a packed format that is not read"))
        return
    try:
        kind = sniff(head())
    except Unreadable as error:
        found.refused.append((relative, str(error)))
        return
    if kind is not None and kind.read:
        found.paths.append(relative)
    elif by_name is not None or (kind is not None and not kind.packed):
        name = by_name or (kind.name if kind is not None else "")
        found.refused.append((relative, f"{LEFT_OUT}{name} is not read"))
    elif kind is not None:
        found.refused.append((relative, f"a packed file ({kind.name}) whose ending does not say so"))
    else:
        found.count(_ending(relative.rpartition("/")[2]) or "none", relative)


def look_into(root: Path, relative: str, found: Found) -> None:
    """Add what is in a zip or tar file, whose path is relative to the folder."""
    container = str(root / relative)
    try:
        listed = list_members(container)
    except Unreadable as error:
        found.refused.append((relative, str(error)))
        return
    if listed.broken:
        found.refused.append((relative, listed.broken))
    for name, reason in listed.refused:
        path = f"{relative}/{name}"
        if not _counted_by_name(path, name, found):
            found.refused.append((path, reason))
    for place, name in listed.names.items():
        path = f"{relative}/{place}"
        if _counted_by_name(path, place, found):
            continue
        if is_container(place):
            found.refused.append((path, "packed files inside of packed files are not read"))
        else:
            before = len(found.paths)
            _sort(path, lambda: read_member(container, name, most=SNIFFED), found)  # noqa: B023  called at once
            if len(found.paths) > before:
                found.members[path] = (relative, name)


def _is_hidden(folder: str) -> bool:
    return folder == "__MACOSX" or (folder.startswith(".") and folder not in (".", ".."))


def is_inside(path: str, real_root: str) -> bool:
    """Whether a path, its links followed, lies in a folder, or is it."""
    real = os.path.realpath(path)
    return real == real_root or real.startswith(os.path.join(real_root, ""))
