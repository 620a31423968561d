"""Look an archive over: what is in it, and what is wrong with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..config import DoctorConfig
from ..data import Archive, open_archive
from ..data.cache import Cache, CacheOptions
from ..data.cache_writer import build_cache
from ..data.doctor import Defect, Diagnosis, diagnose
from ..data.loading import PixelDataset
from ..data.table import printable
from ..functional import to_unit_range
from ..report import format_table, write_json
from ..report.run import is_leftover
from ..types import UserError

__all__ = ["run"]

THUMBNAIL = 96
"""Side of the images on contact sheets in pixels."""

_ON_SHEET = 48
_WRITTEN_HERE = {"cache", "doctor.json", "sheets", "table.parquet"}


def run(config: DoctorConfig) -> int:
    """Print and write the diagnosis; returns 0 where nothing grave was found, else 1.

    Raises:
        UserError: for what the user can mend, and where no image can be read.
    """
    out = None if config.out is None else _checked(Path(config.out))
    archive = open_archive(config.data, config.manifest, layout=config.layout)
    with tempfile.TemporaryDirectory() as scratch:
        # In the folder of the results it stays, so that the next time only what changed is read.
        cache = _examined(archive, config, Path(scratch) if out is None else out / "cache")
        if not len(cache.readable()):
            path, _, reason = cache.unreadable()[0]
            raise UserError(
                f"`data` ({config.data}) must hold images that can be read; all {len(archive)} are unreadable, the "
                f"first {printable(path)} ({reason}); check the files"
            )
        diagnosis = diagnose(archive, cache)
        if out is not None:
            _write(out, cache, diagnosis)
    _print(diagnosis, out)
    return 0 if diagnosis.healthy else 1


def _checked(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise UserError(f"`out` ({out}) must be a folder; a file is there; choose another name")
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    foreign = [name for name in names if name not in _WRITTEN_HERE and not is_leftover(name)]
    if foreign:
        raise UserError(
            f"`out` ({out}) must hold nothing but an earlier look; it holds {foreign[0]}; choose another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def _examined(archive: Archive, config: DoctorConfig, folder: Path) -> Cache:
    channels = PixelDataset(archive, THUMBNAIL, window=config.reading.window).channels
    options = CacheOptions(
        THUMBNAIL, channels, False, config.reading.fit, config.reading.window, config.reading.frames, examined=True
    )
    return build_cache(archive, folder, options, os.cpu_count() or 1, progress=True)


def _write(out: Path, cache: Cache, diagnosis: Diagnosis) -> None:
    from ..report.figures import save_contact_sheet

    write_json(out / "doctor.json", diagnosis.as_json())
    partial = out / ".table.parquet.partial"
    partial.write_bytes((cache.path / "table.parquet").read_bytes())
    os.replace(partial, out / "table.parquet")
    sheets = out / "sheets"
    sheets.mkdir(exist_ok=True)
    for old in sheets.glob("*.png"):
        old.unlink()
    position = {row: at for at, row in enumerate(cache.readable().tolist())}
    names = [printable(path) for path in cache.paths()]
    every = [row for row in position if position[row] % max(1, len(position) // _ON_SHEET) == 0]
    for title, rows in [("archive", every), *((d.name, d.rows) for d in diagnosis.defects)]:
        shown = [row for row in rows[:_ON_SHEET] if row in position]
        if shown:
            pixels = torch.from_numpy(cache.pixels[[position[row] for row in shown]])
            captions = [names[row].rpartition("/")[2] for row in shown]
            save_contact_sheet(
                to_unit_range(pixels), captions, sheets / f"{title}.png", _title(title, len(rows), len(shown))
            )


def _title(name: str, count: int, shown: int) -> str:
    words = name.replace("_", " ").capitalize()
    return words if shown == count else f"{words}: {shown} of {count}"


def _print(diagnosis: Diagnosis, out: Path | None) -> None:
    rows: list[list[Any]] = []
    for name, value in diagnosis.census.items():
        if value not in (None, {}):
            text = ", ".join(f"{key}: {n}" for key, n in value.items()) if isinstance(value, dict) else value
            rows.append([name.replace("_", " "), text])
    print("\n" + format_table(["census", ""], rows) + "\n")
    if not diagnosis.defects:
        print("nothing to complain of")
    for defect in diagnosis.defects:
        print(f"{'DEFECT' if defect.grave else 'look at'}  {defect.count:>6}  {defect.meaning}{_example(defect)}")
    if out is not None:
        print(f"\nreport: {out / 'doctor.json'}  table: {out / 'table.parquet'}  pictures: {out / 'sheets'}")


def _example(defect: Defect) -> str:
    if defect.name == "unreadable":
        reasons = [f"{entry['count']} {entry['reason']}" for entry in defect.examples if "count" in entry]
        return ": " + "; ".join(reasons[:6])
    if not defect.examples:
        return ""
    first = defect.examples[0]
    return f", such as {' = '.join(first[:3]) if isinstance(first, list) else first}"
