"""The manifest: a CSV file with a row for each image."""

import csv
import io
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path, PureWindowsPath

from ..types import UserError
from .conventions import SPLITS, is_missing, split_name

_USUAL = {
    "path": "filename file_name file filepath file_path image image_path image_name image_id imagename img img_path "
    "img_name name id dicom dicom_path",
    "label": "labels class classes class_name diagnosis dx target category y finding grade disease",
    "group": "groups patient patient_id patientid pid subject subject_id lesion lesion_id case case_id slide slide_id",
    "split": "fold set partition subset dataset_split phase",
}
"""What others call our columns, in lower case, the likelier first."""

_MOST_KINDS = 20
"""Values up to which a column may say what kind of image each row is, such as the side or the scanner."""

_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff", ".bmp", ".webp", ".gif")

Lines = list[tuple[int, dict[str, str]]]


def csv_rows(manifest: Path, *, key: str = "manifest", labels: bool = False, most: int | None = None) -> Lines:
    """Line numbers and cells by column, stripped; a short row has empty cells.

    Args:
        manifest: a CSV file in UTF-8 whose first line names the columns, ``path`` among them.
        key: the setting that names the file, for messages.
        labels: whether labels are read, which must then not go by another name, nor be names of the images.
        most: how many rows are looked at; default: all.

    Raises:
        UserError: with what to change, where the file is none of that, where columns that say who belongs together or
            which split a row is in go by another name, and where ``label`` and ``group`` look swapped.
    """
    what = f"`{key}` ({manifest})"
    text = _text(manifest, what, key)
    separator = _separator(text)
    if separator != ",":
        raise UserError(_separated_by(separator, text, what))
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in islice(reader, most) if row]
    except csv.Error as error:
        raise UserError(f"{what} must be a CSV file in UTF-8; {error}; save it as one.") from None
    found = [(line, dict(zip(header, row + [""] * len(header), strict=False))) for line, row in rows]
    _check_columns(header, found, what, labels)
    _check_values(found, header, what, labels)
    return found


def _text(manifest: Path, what: str, key: str) -> str:
    if manifest.suffix.lower() in _SPREADSHEETS:
        raise UserError(f"{what} must be a CSV file, not a spreadsheet; save it as CSV UTF-8, with commas.")
    if not manifest.is_file():
        kinds = "'folders' or a CSV file" if key == "manifest" else "a CSV file"
        raise UserError(f"{what} must be {kinds}; no file is there; check the path.")
    try:
        data = manifest.read_bytes()
    except OSError as error:
        raise UserError(f"{what} must be a CSV file in UTF-8; {error}; save it as one.") from None
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{what} must be a CSV file; its content is a spreadsheet; save it as CSV UTF-8, with commas.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:1000].count(b"\0") > len(data[:1000]) // 4:
        raise UserError(f"{what} must be a CSV file in UTF-8; it is in UTF-16; save it as CSV UTF-8.")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UserError(f"{what} must be a CSV file in UTF-8; line {line} has a NUL, which is no text; delete it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{what} must be a CSV file in UTF-8; line {line} is in another encoding, such as Latin-1; save it as CSV "
            "UTF-8."
        ) from None


def _separator(text: str) -> str:
    """What stands between the columns of the first line, as far as it is not a comma."""
    first = text.partition("\n")[0].strip()
    if first.lower().startswith("sep="):
        return first
    return next((mark for mark in ";\t|" if mark in first and "," not in first), ",")


def _separated_by(separator: str, text: str, what: str) -> str:
    if len(separator) > 1:
        return (
            f"{what} must begin with the names of its columns; it begins with Excel's line `{separator}`; delete that "
            "line, and separate the columns with commas."
        )
    name = {"\t": "tabs"}.get(separator, f"`{separator}`")
    sure = "," not in text
    how = (
        f"replace each {'tab' if separator == chr(9) else separator} with a comma" if sure else "export it with commas"
    )
    return f"{what} must separate its columns with commas; they are separated with {name}; {how}."


def _check_columns(header: Sequence[str], rows: Lines, what: str, labels: bool) -> None:
    """Columns under other names: never taken silently, as a guess may be wrong."""
    renamed: dict[str, str] = {}
    lower = {name.lower(): name for name in reversed(header)}

    def is_meant(column: str, name: str) -> bool:
        values = [cells[name] for _, cells in rows if not is_missing(cells[name])]
        if column == "label":
            return labels or name.lower() == column  # any column is welcome where labels are not read
        if column == "group":
            return _look_like_groups(values)
        return column == "path" or _look_like_splits(set(values))

    for column in [column for column in _USUAL if column not in header]:
        names = [lower[name] for name in (column, *_USUAL[column].split()) if name in lower]
        free = (name for name in names if name not in _USUAL and name not in renamed.values())
        name = next((name for name in free if is_meant(column, name)), None)
        if name is not None:
            renamed[column] = name
    if "path" not in header and header and "path" not in renamed:
        if _looks_like_data(header):
            raise UserError(
                f"{what} must name its columns in the first line, which holds '{','.join(header[:4])}'; "
                "add the line path,label above it."
            )
        raise UserError(
            f"{what} must have the columns path,label in its first line; it has: {', '.join(header)}; rename them."
        )
    if not header:
        raise UserError(f"{what} must have the columns path,label in its first line; it is empty; add them.")
    if renamed:
        changes = " and ".join(f"`{name}` to `{column}`" for column, name in renamed.items())
        group = renamed.get("group")
        hint = (
            f" (or to `{group}_unused`, if images of one {_unit(group)} may be split between training and test)"
            if group
            else ""
        )
        raise UserError(
            f"{what} must have the columns path,label and, if known, split,group; it has: {', '.join(header)}; "
            f"rename {changes}{hint}."
        )


def _look_like_groups(values: Sequence[str]) -> bool:
    """Whether values say which rows belong together, as patients do: there are many, and they repeat."""
    different = len(set(values))
    if different == len(values) or different <= 2:
        return False  # a name for each row puts none of them together; two values are kinds, such as easy and hard
    return different > min(_MOST_KINDS, len(values) / 10)


def _look_like_splits(values: set[str]) -> bool:
    """Whether values are names of splits: not one by chance, as a phase `test` of an examination is."""
    known = {value for value in values if split_name(value) in SPLITS}
    return len(known) > 1 or (bool(values) and values == known)


def _unit(name: str) -> str:
    return re.split(r"[_\s]|id$", name.lower())[0] or "group"


def _looks_like_data(cells: Sequence[str]) -> bool:
    known = {*_USUAL, *(name for names in _USUAL.values() for name in names.split())}
    return not {cell.lower() for cell in cells} & known and any(cell.lower().endswith(_ENDINGS) for cell in cells)


def _check_values(rows: Lines, header: Sequence[str], what: str, labels: bool) -> None:
    """Labels that are identifiers. Few rows, and labels that several groups share, are always taken."""
    if "label" not in header:
        return
    pairs = [
        (cells["label"], "" if is_missing(cells.get("group", "")) else cells["group"])
        for _, cells in rows
        if not is_missing(cells["label"])
    ]
    names = Counter(label for label, _ in pairs)
    groups = {group for _, group in pairs if group}
    # Ten: fewer labels say nothing. Twice: patients outnumber classes. 20: more classes than that are rare.
    if len(names) >= max(10, 2 * len(groups)) and 2 <= len(groups) <= 20 and _look_swapped(pairs):
        raise UserError(
            f"{what} must have classes in `label` and patients (lesions, slides) in `group`; `label` has {len(names)} "
            f"values, such as {pairs[0][0]}, and `group` {len(groups)}, such as {pairs[0][1]}; swap the two names in "
            "the first line."
        )
    # Ten: fewer rows may well have a class each. 0.9: some images may be listed twice.
    if labels and len(pairs) >= 10 and len(names) > 0.9 * len(pairs):
        others = [name for name in header if name not in ("path", "label")]
        where = (
            f"rename the column that holds the class to `label` (one of {', '.join(others)})"
            if others
            else "put the class in `label`"
        )
        raise UserError(
            f"{what} must have the class in `label`; {len(pairs)} rows have {len(names)} different labels, such as "
            f"{pairs[0][0]}, which looks like an image name, not a class; {where}."
        )


def _look_swapped(pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether labels look like patients, and groups like classes, where the labels are many and the groups few."""
    homes: dict[str, set[str]] = {}
    for label, group in pairs:
        homes.setdefault(label, set()).add(group)
    # A patient has one class as a rule, with some exceptions, hence 0.9; a class is seen in many patients or hospitals.
    return sum(len(found) == 1 for found in homes.values()) >= 0.9 * len(homes)


def classes_beside(manifest: str | None) -> tuple[str, ...]:
    """The order of classes that a file beside a manifest gives, ``labels.csv.classes`` for ``labels.csv``: one a line.

    Args:
        manifest: a CSV file, or what else names none.

    Returns:
        The names, none where there is no such file.

    Raises:
        UserError: for a file that is not text in UTF-8.
    """
    file = Path(f"{manifest}.classes")
    if manifest is None or manifest == "folders" or not file.is_file():
        return ()
    lines = _text(file, f"`manifest` ({file})", "manifest").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def remedy_for_path(root: Path, written: str) -> str:
    """What to change about a path of a manifest that leads to no file in a folder.

    Args:
        root: the folder.
        written: the path as the manifest has it.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp()) / "scans"
    >>> root.mkdir()
    >>> (root / "a.png").touch()
    >>> remedy_for_path(root, "scans/a.png"), remedy_for_path(root, "a")
    ('take scans/ off every path: a.png', 'add the ending: a.png')
    """
    inside = os.path.realpath(root)

    def there(path: str) -> bool:
        return bool(path) and os.path.isfile(os.path.join(root, path))

    absolute = posixpath.isabs(written) or bool(PureWindowsPath(written).drive)
    real = os.path.realpath(written)
    if absolute:
        if os.path.isabs(written) and real.startswith(os.path.join(inside, "")):
            return f"leave the folder out: {os.path.relpath(real, inside)}"
        return "make it relative to that folder"
    turned = written.replace("\\", "/")
    if turned != written and there(turned):
        return f"write / in place of \\: {turned}"
    parts = posixpath.normpath(turned).split("/")
    for number in range(1, len(parts)):
        rest = "/".join(parts[number:])
        if there(rest):
            return f"take {'/'.join(parts[:number])}/ off every path: {rest}"
    for ending in _ENDINGS:
        for changed in (f"{written}{ending}", f"{written}{ending.upper()}"):
            if there(changed):
                return f"add the ending: {changed}"
    found = _further_down(root, written)
    if found is not None:
        return f"the file is at {found}: use that path"
    return "check that paths are relative to that folder"


def _further_down(root: Path, written: str, most: int = 1000) -> str | None:
    """The same path in one of the first subfolders, with or without the ending that it lacks."""
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for _, entry in zip(range(most), entries, strict=False) if entry.is_dir())
    except OSError:
        return None
    tried = (f"{name}/{written}{ending}" for name in folders for ending in ("", *_ENDINGS))
    return next((path for path in tried if os.path.isfile(os.path.join(root, path))), None)


def manifest_columns(manifest: str | None, columns: Sequence[str]) -> Mapping[str, dict[str, str]]:
    """Further columns of a manifest by path.

    Args:
        manifest: a CSV file.
        columns: names in its first line.

    Raises:
        UserError: if there is no such file or column.
    """
    if manifest is None or manifest == "folders":
        raise UserError(f"`subgroups` ({', '.join(columns)}) must be columns of a CSV manifest; give manifest=FILE")
    rows = csv_rows(Path(manifest))
    for column in columns:
        if not rows or column not in rows[0][1]:
            raise UserError(
                f"`subgroups` ({column}) must be a column of `manifest` ({manifest}); it has "
                f"{', '.join(rows[0][1]) if rows else 'none'}; choose among these"
            )
    return {
        posixpath.normpath(cells["path"]): {
            column: "" if is_missing(cells[column]) else cells[column] for column in columns
        }
        for _, cells in rows
    }
