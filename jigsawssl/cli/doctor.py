"""Look over an archive: what is in it, and what is wrong with it."""

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from .. import defaults
from ..config.schemas import DoctorConfig
from ..data import Archive, open_archive
from ..data.cache import Cache, CacheOptions
from ..data.cache_writer import build_cache
from ..data.doctor import Defect, Diagnosis, diagnose
from ..data.loading import channels_of
from ..data.table import LEFT_OUT, printable
from ..functional import to_unit_range
from ..runs import format_table, write_json
from ..types import ImageFormat, UserError
from .census import census_table, class_counts

THUMBNAIL = 96
"""Side of the images on contact sheets in pixels."""

_ON_SHEET = 48
_SHOWN, _GRAVE_SHOWN = 2, 5  # examples on the terminal


def run(config: DoctorConfig) -> int:
    """Print and write the diagnosis; returns 0 where nothing grave was found, else 1.

    Raises:
        UserError: for a mistake that the user can fix, and where no image can be read.
    """
    out = None if config.out is None else Path(config.out)
    archive = open_archive(config.data, manifest=config.manifest, layout=config.layout)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
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
            _write(out, archive, cache, diagnosis)
    _print(diagnosis, out)
    return 0 if diagnosis.healthy else 1


def _examined(archive: Archive, config: DoctorConfig, folder: Path) -> Cache:
    reading = config.reading
    window = reading.window or defaults.WINDOW
    images = ImageFormat(THUMBNAIL, channels_of(archive, window), fit=reading.fit or defaults.FIT, window=window)
    options = CacheOptions(images, frames=reading.frames, examined=True)
    return build_cache(archive, folder, options=options, workers=os.cpu_count() or 1, progress=True)


def _write(out: Path, archive: Archive, cache: Cache, diagnosis: Diagnosis) -> None:
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
    captions = _captions(archive, cache)
    every = [row for row in position if position[row] % max(1, len(position) // _ON_SHEET) == 0]
    for defect in [Defect("archive", "", grave=False, count=len(position), rows=every), *diagnosis.defects]:
        sets = _whole_sets(defect)
        shown = defect.rows[: sum(sets) if sets else _ON_SHEET]
        if shown:
            pixels = torch.from_numpy(cache.pixels[[position[row] for row in shown]])
            names = [captions[row] for row in shown]
            title = _title(defect, len(sets) or len(shown))
            save_contact_sheet(to_unit_range(pixels), names, sheets / f"{defect.name}.png", title, sets=sets)


def _captions(archive: Archive, cache: Cache) -> list[str]:
    """Name, and the number of the frame where a file has several; below it, class and split."""
    sample_of = {sample.path: sample for sample in archive.samples}
    table = cache.table("frame", "frames")
    captions = []
    for path, frame, frames in zip(
        cache.paths(), *(table[name].to_pylist() for name in ("frame", "frames")), strict=True
    ):
        sample = sample_of.get(path)
        known = [] if sample is None else [fact for fact in (sample.label, sample.split) if fact is not None]
        name = printable(path) + (f", frame {frame + 1}" if frames is not None and frames > 1 else "")
        captions.append("\n".join([name, ", ".join(known)] if known else [name]))
    return captions


def _whole_sets(defect: Defect) -> list[int]:
    """As many sets as a sheet has room for, and of the first no more than that."""
    sizes = [min(size, _ON_SHEET) for size in defect.sets[:1]] + defect.sets[1:]
    return [size for size, until in zip(sizes, itertools.accumulate(sizes), strict=True) if until <= _ON_SHEET]


def _title(defect: Defect, shown: int) -> str:
    words = defect.name.replace("_", " ").capitalize()
    unit = " sets" if defect.sets else ""
    return words if shown == defect.count else f"{words}: {shown} of {defect.count}{unit}"


def _print(diagnosis: Diagnosis, out: Path | None) -> None:
    rows: list[list[Any]] = []
    for name, value in diagnosis.census.items():
        if value not in (None, {}):
            text = ", ".join(f"{key}: {n}" for key, n in value.items()) if isinstance(value, dict) else value
            text = class_counts(value) if name == "classes" else text
            rows.append([name.replace("_", " "), text])
    print("\n" + format_table(["census", ""], rows) + "\n")
    if diagnosis.splits:
        print(census_table(diagnosis.splits) + "\n")
    remarks = [f"{split['split']}: {remark}" for split in diagnosis.splits for remark in split["remarks"]]
    if not diagnosis.defects and not remarks:
        print("no problems found")
    for defect in diagnosis.defects:
        print(f"{'DEFECT' if defect.grave else 'look at'}  {defect.count:>6}  {defect.meaning}{_reasons(defect)}")
        for line in _examples(defect, out):
            print(f"{'':17}{line}")
    for remark in remarks:
        print(f"look at          {remark}")
    if out is not None:
        print(f"\nreport: {out / 'doctor.json'}  table: {out / 'table.parquet'}  pictures: {out / 'sheets'}")


def _reasons(defect: Defect) -> str:
    counted = [one for one in defect.examples if isinstance(one, dict) and "count" in one]
    return ": " + "; ".join(f"{one['count']} {one['reason']}" for one in counted[:6]) if counted else ""


def _examples(defect: Defect, out: Path | None) -> list[str]:
    """Lines with the first of what was found, and why where that differs."""
    every = [one for one in defect.examples if not (isinstance(one, dict) and "count" in one)]
    lines = []
    for one in every[: _GRAVE_SHOWN if defect.grave else _SHOWN]:
        if isinstance(one, dict):
            frame = f", frame {one['frame'] + 1}" if one.get("frame") else ""
            lines.append(f"{one['path']}{frame}: {one['reason'].removeprefix(LEFT_OUT)}")
        elif isinstance(one, list):
            lines.append(" = ".join(one[:3]) + (f" and {len(one) - 3} more" if len(one) > 3 else ""))
        else:
            lines.append(str(one))
    if len(every) > len(lines):
        where = "out=FOLDER lists" if out is None else "doctor.json lists"
        lines.append(f"and {len(every) - len(lines)} more; {where} them all")
    return lines
