"""Results as files: JSON and CSV that are never half written, and tables for the terminal."""

import csv
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, never a part. Parent folders are made.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON, keys in the order given, atomically.

    Numpy and torch scalars and arrays become numbers and lists; NaN and infinity, which JSON lacks, become ``null``.

    Raises:
        TypeError: a value that JSON cannot hold (nothing is written).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "report.json"
    >>> write_json(path, {"auroc": float("nan"), "count": 3})
    >>> print(path.read_text(), end="")
    {
      "auroc": null,
      "count": 3
    }
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a UTF-8 CSV with ``\\n`` line ends, atomically; ``None`` and non-finite numbers become empty cells.

    Raises:
        ValueError: a row with more or fewer cells than the header (nothing is written).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "curve.csv"
    >>> write_csv(path, ["epoch", "loss"], [(1, 0.5), (2, None)])
    >>> path.read_text()
    'epoch,loss\\n1,0.5\\n2,\\n'
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(_checked(header, rows))
    write_bytes(path, buffer.getvalue().encode())


def format_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An aligned table for the terminal that is valid Markdown too; columns of numbers are right-aligned.

    Floats are shown with 4 significant digits, ``None`` and non-finite numbers as ``-``. Text that starts with a
    number (``0.91 ± 0.02``) counts as one. No newline at the end.

    Raises:
        ValueError: a row with more or fewer cells than the header.

    >>> print(format_table(["class", "AUROC"], [("nevus", 0.91234), ("melanoma", None)]))
    | class    |  AUROC |
    | -------- | -----: |
    | nevus    | 0.9123 |
    | melanoma |      - |
    """
    table = [[_cell(value) for value in row] for row in [list(header), *_checked(header, rows)]]
    columns = list(zip(*table, strict=True))
    right = [len(table) > 1 and all(cell == "-" or _is_number(cell) for cell in column[1:]) for column in columns]
    widths = [max(3, *(len(cell) for cell in column)) for column in columns]
    rule = ["-" * (width - 1) + ":" if flag else "-" * width for width, flag in zip(widths, right, strict=True)]
    lines = [
        [cell.rjust(width) if flag else cell.ljust(width) for cell, width, flag in zip(row, widths, right, strict=True)]
        for row in [table[0], rule, *table[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays, without importing either
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _checked(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    table = [[_plain(value) for value in row] for row in rows]
    for number, row in enumerate(table, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} must have {len(header)} cells, as the header has, got {len(row)}: {row}")
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _is_number(cell: str) -> bool:
    try:
        float(cell.split()[0].rstrip("%"))
    except (ValueError, IndexError):
        return False
    return True
