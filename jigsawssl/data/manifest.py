"""The manifest: a CSV file with a row for each image."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from pathlib import Path

from ..types import UserError

__all__ = ["csv_rows", "manifest_columns"]


def csv_rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
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


def manifest_columns(manifest: str | None, columns: Sequence[str]) -> dict[str, dict[str, str]]:
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
    return {posixpath.normpath(cells["path"]): {column: cells[column] for column in columns} for _, cells in rows}
