"""Public sets as they are downloaded: labels, splits and groups from folders, file names and their own tables.

``layout=NAME`` or ``layout=NAME:key=value,key=value``:

- ``breakhis`` (``magnification=40|100|200|400``, ``label=class|subtype``, ``fold=1..5``): class, subtype, patient and
  magnification from the file names; a fold is the test split of five, stratified and by patient.
- ``isic2017``, ``isic2018`` (task 3): the ground-truth tables; groups by lesion where the table of lesions is there.
- ``aptos2019``: ``train.csv``; the images of the competition's test set are unlabeled.
- ``kermany``: chest X-rays and OCT in ``train``, ``val`` and ``test``; patients from the file names, which are only
  unique inside a split.
- ``lc25000``: class folders. Its images are augmented copies of far fewer tiles that it does not name, so no split of
  it is clean without a list of groups.
- ``camelyon17`` (patches as in WILDS): ``metadata.csv``; centre 1 validates and centre 2 tests, as published there.
- ``medmnist`` (``name=pathmnist``, ``size=28|64|128|224``): the ``.npz`` files of a folder.
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..types import Sample, UserError
from .splits import cross_validation_folds

_FOLDS = 5
_BREAKHIS = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<subtype>[A-Z]+)-(?P<year>\d+)-(?P<slide>\w+)-(?P<magnification>\d+)-\d+\.png$", re.I
)
_BREAKHIS_KIND = {"B": "benign", "M": "malignant"}
_BREAKHIS_SUBTYPE = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}
_KERMANY_SPLITS = {"train": "train", "val": "val", "test": "test"}
_KERMANY_PATIENT = re.compile(r"(?P<xray>person\d+|(?:NORMAL2-)?IM-\d+)|(?:[A-Z]+-(?P<oct>\d+)-\d+)")
_CAMELYON = re.compile(r"patch_patient_(?P<patient>\d+)_node_(?P<node>\d+)_x_(?P<x>-?\d+)_y_(?P<y>-?\d+)\.png$")


def _wrong(layout: str, root: Path, expected: str) -> UserError:
    return UserError(f"`layout` ({layout}) must fit `data` ({root.name}); {expected}; check the folder or the layout.")


def _options(layout: str, allowed: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Keys and values behind the name, checked; an empty tuple allows every value."""
    options: dict[str, str] = {}
    for part in filter(None, layout.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in allowed or (allowed[key] and value not in allowed[key]):
            known = "; ".join(f"{name}={'|'.join(values) or '…'}" for name, values in allowed.items()) or "none"
            raise UserError(f"`layout` ({layout}) must have options that it knows ({known}); {part} is not; fix it.")
        options[key] = value
    return options


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return [{key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"`data` must hold a readable {file.name}; reading it fails ({type(error).__name__}); download it again."
        ) from None


def _tables(root: Path, pattern: str) -> list[Path]:
    """Tables of a set, wherever below the folder they were unpacked, and never through a link that leads outside."""
    inside = root.resolve()
    return sorted(file for file in root.rglob(pattern) if file.resolve().is_relative_to(inside))


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0]


def _breakhis(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    options = _options(
        layout,
        {
            "magnification": ("40", "100", "200", "400"),
            "label": ("class", "subtype"),
            "fold": tuple(str(fold) for fold in range(1, _FOLDS + 1)),
        },
    )
    samples = []
    for path in paths:
        found = _BREAKHIS.search(path)
        if found is None or options.get("magnification") not in (None, found["magnification"]):
            continue
        kind, subtype = found["kind"].upper(), found["subtype"].upper()
        named = _BREAKHIS_SUBTYPE.get(subtype, subtype) if options.get("label") == "subtype" else _BREAKHIS_KIND[kind]
        samples.append(Sample(path, named, None, f"{found['year']}-{found['slide']}"))
    if not samples:
        raise _wrong(layout, root, "no file is named like SOB_B_A-14-22549AB-40-001.png of that magnification")
    if "fold" not in options:
        return samples
    labels = np.unique([sample.label for sample in samples], return_inverse=True)[1]
    folds = cross_validation_folds(labels, np.array([sample.group for sample in samples]), folds=_FOLDS, seed=0)
    if len(folds) < int(options["fold"]):
        raise _wrong(layout, root, f"its patients give {len(folds)} folds only")
    test = set(folds[int(options["fold"]) - 1][1].tolist())
    return [s._replace(split="test" if row in test else "train") for row, s in enumerate(samples)]


def _one_hot(rows: list[dict[str, str]], names: list[str]) -> dict[str, str]:
    """Image → the class whose column is 1; the rest where none is."""
    labels = {}
    for row in rows:
        hot = [name for name in names if (row.get(name) or "").rstrip("0").rstrip(".") == "1"]
        labels[row.get("image_id") or row.get("image") or ""] = hot[0] if hot else ""
    return labels


def _isic2017(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    known: dict[str, tuple[str, str]] = {}
    for file in _tables(root, "ISIC-2017_*Part3_GroundTruth.csv"):
        split = next(s for part, s in (("Training", "train"), ("Validation", "val"), ("", "test")) if part in file.name)
        for name, label in _one_hot(_rows(file), ["melanoma", "seborrheic_keratosis"]).items():
            known[name] = (label or "nevus", split)
    return _labelled(
        layout, root, paths=paths, known=known, groups={}, table="ISIC-2017_Training_Part3_GroundTruth.csv"
    )


def _isic2018(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    names = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    known: dict[str, tuple[str, str]] = {}
    for file in _tables(root, "ISIC2018_Task3_*GroundTruth.csv"):
        split = next(s for part, s in (("Training", "train"), ("Validation", "val"), ("", "test")) if part in file.name)
        for name, label in _one_hot(_rows(file), names).items():
            known[name] = (label.lower(), split)
    groups = {
        row.get("image", ""): row.get("lesion_id", "")
        for file in _tables(root, "ISIC2018_Task3_*LesionGroupings.csv")
        for row in _rows(file)
    }
    return _labelled(
        layout, root, paths=paths, known=known, groups=groups, table="ISIC2018_Task3_Training_GroundTruth.csv"
    )


def _labelled(
    layout: str, root: Path, *, paths: list[str], known: dict[str, tuple[str, str]], groups: dict[str, str], table: str
) -> list[Sample]:
    if not known:
        raise _wrong(layout, root, f"no {table} is there")
    samples = []
    for path in paths:
        name = _stem(path)
        if name.endswith("_superpixels") or "_Segmentation" in path:
            continue
        label, split = known.get(name, ("", ""))
        samples.append(Sample(path, label or None, split or None, groups.get(name) or None))
    if not any(sample.label for sample in samples):
        raise _wrong(layout, root, f"no image has the name of a row of {table}")
    return samples


def _aptos2019(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    tables = _tables(root, "train.csv")
    known = {row.get("id_code", ""): row.get("diagnosis", "") for file in tables for row in _rows(file)}
    if not known:
        raise _wrong(layout, root, "no train.csv is there")
    samples = [Sample(path, known.get(_stem(path)) or None) for path in paths]
    if not any(sample.label for sample in samples):
        raise _wrong(layout, root, "no image has the name of a row of train.csv")
    return samples


def _kermany(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    samples = []
    for path in paths:
        parts = path.split("/")
        at = next((number for number, part in enumerate(parts[:-2]) if part.lower() in _KERMANY_SPLITS), None)
        if at is None:
            continue
        split, found = _KERMANY_SPLITS[parts[at].lower()], _KERMANY_PATIENT.match(parts[-1])
        patient = (found["xray"] or found["oct"]) if found else None
        samples.append(Sample(path, parts[at + 1].lower(), split, f"{split} {patient}" if patient else None))
    if not samples:
        raise _wrong(layout, root, "no image lies in a folder such as train/NORMAL")
    return samples


def _lc25000(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    names = ("lung_aca", "lung_n", "lung_scc", "colon_aca", "colon_n")
    folders = [f"/{path}".split("/")[-2] for path in paths]
    samples = [Sample(path, folder) for path, folder in zip(paths, folders, strict=True) if folder in names]
    if not samples:
        raise _wrong(layout, root, f"no image lies in a folder {', '.join(names)}")
    return samples


def _camelyon17(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    _options(layout, {})
    tables = _tables(root, "metadata.csv")
    known = {}
    for row in (row for file in tables for row in _rows(file)):
        try:
            key = tuple(int(float(row[name])) for name in ("patient", "node", "x_coord", "y_coord"))
            known[key] = (int(float(row["tumor"])), int(float(row["center"])))
        except (KeyError, ValueError):
            raise _wrong(layout, root, "metadata.csv lacks patient, node, x_coord, y_coord, tumor or center") from None
    samples = []
    for path in paths:
        found = _CAMELYON.search(path)
        facts = known.get(tuple(int(found[name]) for name in ("patient", "node", "x", "y"))) if found else None
        if found and facts:
            tumor, centre = facts
            split = {1: "val", 2: "test"}.get(centre, "train")
            samples.append(Sample(path, "tumor" if tumor else "normal", split, f"patient {int(found['patient'])}"))
    if not samples:
        raise _wrong(layout, root, "no patch has a row in metadata.csv")
    return samples


LAYOUTS: dict[str, Callable[[str, Path, list[str]], list[Sample]]] = {
    "breakhis": _breakhis,
    "isic2017": _isic2017,
    "isic2018": _isic2018,
    "aptos2019": _aptos2019,
    "kermany": _kermany,
    "lc25000": _lc25000,
    "camelyon17": _camelyon17,
}
"""Layouts of folders by name; ``medmnist`` is one of files."""


def samples_of_layout(layout: str, root: Path, paths: list[str]) -> list[Sample]:
    """What a public set says of the images found in its folder.

    Args:
        layout: name and options, see this module.
        root: the folder.
        paths: of the images, relative to it.

    Raises:
        UserError: for an unknown name or option, or a folder that is not that set.

    >>> path = "benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png"
    >>> samples_of_layout("breakhis:label=subtype", Path("."), [path])[0][1:]
    ('adenosis', None, '14-22549AB')
    """
    name = layout.partition(":")[0]
    if name not in LAYOUTS:
        raise UserError(f"`layout` ({layout}) must be one of {', '.join([*LAYOUTS, 'medmnist'])}; choose one.")
    return LAYOUTS[name](layout, root, paths)


def medmnist_file(layout: str, root: Path) -> Path:
    """The ``.npz`` file that a layout names in a folder of them; the only one needs no name.

    Raises:
        UserError: if there is no such file, or more than one without a name.
    """
    options = _options(layout, {"name": (), "size": ("28", "64", "128", "224")})
    files = sorted(root.glob("*.npz"))
    if "name" in options:
        size = options.get("size", "28")
        wanted = f"{options['name']}{'' if size == '28' else f'_{size}'}.npz"
        files = [file for file in files if file.name == wanted]
    if len(files) != 1:
        there = ", ".join(file.name for file in sorted(root.glob("*.npz"))[:8]) or "none"
        raise _wrong(layout, root, f"one .npz file has to be meant, of: {there}; such as medmnist:name=pathmnist")
    return files[0]
