"""``report.json`` and ``report.html`` of a run, curve or study, from the files in its folder."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from ..config.schemas import COMMANDS
from ..evaluation.assessment import Criteria
from ..report.page import write_page
from ..report.verdict import verdict, verdict_lines
from ..runs import format_table, write_csv, write_json
from ..runs.parts import judgement_of
from ..types import UserError
from .aggregates import Done
from .analysis import analyse
from .ranking import IN_DOMAIN, analyse_study
from .study import domain_file, load_search
from .trials import Cell, load_cell, load_predictions

LIMITS = {
    "pretrain": ["Nothing here says how well the encoder serves a task; adapt it to labelled images, or draw a curve."],
    "finetune": [
        "One draw of labels and one test split: another draw gives other numbers; a curve shows how different.",
        "The intervals hold for other patients like these, not for another clinic, device or year.",
        "The more often a test split is looked at, the less it says.",
        "This is research software and no medical device; it is not validated for clinical use.",
    ],
    "select": [
        "What is typical or far for this encoder need not be so for a physician; look at the pictures first.",
        "A class that few images show may be missed; the share covered says nothing about classes.",
        "Images that were chosen show other shares of the classes than the archive; do not read prevalence off them.",
    ],
    "transfer": [
        "The chain alone does not show what one stage contributed: compare it with a chain that leaves the stage out.",
        "The intervals hold for other patients like these, not for another clinic, device or year.",
        "This is research software and no medical device; it is not validated for clinical use.",
    ],
    "curve": [
        "Every point was tested on the same split: the numbers of an encoder chosen by this report are optimistic.",
        "The intervals hold for other patients like these, not for another clinic, device or year.",
        "Each encoder is one pretraining: the intervals do not cover how another one of the same kind would differ.",
        "Labels saved are read off a curve of few points; where the interval is wide, believe the interval.",
        "This is research software and no medical device; it is not validated for clinical use.",
    ],
    "study": [
        "All variants were trained on one archive: it does not show which kind of encoder is better elsewhere.",
        "Every repetition was tested on the same split: the numbers of a variant chosen by this report are optimistic.",
        "A search of few settings may have missed what a variant needs; its size was the same for all.",
        "That two variants do not differ significantly does not show that they are equal.",
        "This is research software and no medical device; it is not validated for clinical use.",
    ],
}
"""What a reader has to keep in mind, by command."""


def write_report(folder: Path, report: Mapping[str, Any]) -> list[str]:
    """Write ``report.json`` with its verdict, and ``report.html``, when a run has ended.

    Args:
        folder: of the run, whose other files are there.
        report: all facts of it but the verdict.

    Returns:
        The verdict for the terminal, line by line.
    """
    found = _completed(folder, _with_verdict(folder, report))
    write_page(folder, found)
    return verdict_lines(verdict(found))


def _with_verdict(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``report.json`` and give what it holds; the verdict is of that, and not of arrays that become lists."""
    file = folder / "report.json"
    write_json(file, report)
    found = verdict(_completed(folder, _read(file)))
    write_json(file, {**report, "verdict": {**found._asdict(), "flags": [flag._asdict() for flag in found.flags]}})
    return _read(file)


def _completed(folder: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with what lies beside it, as a run of any version left it."""
    found: dict[str, Any] = {"limits": LIMITS.get(report["command"], []), **report}
    if found["command"] == "finetune":
        found["judgement"] = judgement_of(found)
    if found["command"] == "pretrain":
        found["first_epoch"] = _first_epoch(folder / "metrics.csv")
    for stage in found.get("stages", []):
        if stage["command"] == "pretrain":
            stage["first_epoch"] = _first_epoch(folder / Path(stage["name"]).name / "metrics.csv")
    return found


def _first_epoch(file: Path) -> dict[str, float] | None:
    """What was measured after the first epoch of a pretraining."""
    if not file.is_file():
        return None
    with file.open(newline="", encoding="utf-8") as opened:
        row = next(csv.DictReader(opened), {})
    return {name: float(value) for name, value in row.items() if value}


def curve_report(folder: Path) -> dict[str, Any]:
    """Analyse what is finished of a curve, and write ``report.json``, ``table.csv`` and ``report.html``.

    Args:
        folder: of the curve, with ``task.json`` and ``cells/``.

    Returns:
        What ``report.json`` holds.
    """
    task = _read(folder / "task.json")
    keys = [Cell(e, f, s) for f in task["fractions"] for s in range(task["seeds"]) for e in task["encoders"]]
    done, failed = _cells(folder, keys)
    analysis = analyse(
        done,
        encoders=list(task["encoders"]),
        criteria=_criteria(task),
        count_groups=task["config"]["budget"] == "groups",
    )
    _place_pictures(analysis["details"])
    analysis["notes"] += _remarks(task)
    report = {
        "command": "curve",
        "config": task["config"],
        "data": task["data"],
        "encoders": task["encoders"],
        "cells": len(keys),
        "missing": len(keys) - len(done),
        "failed": failed,
        "environment": task["environment"],
        "when": task.get("when"),
        "limits": LIMITS["curve"],
        **analysis,
    }
    columns = ["encoder", "mode", "fraction", "labels", "groups", "seeds", "candidates"]
    _write(folder, report, {name: name for name in columns})
    return report


def study_report(folder: Path) -> dict[str, Any]:
    """Analyse what is finished of a study, and write ``report.json``, ``table.csv`` and ``report.html``.

    Args:
        folder: of the study, with ``task.json``, ``search/`` and ``cells/``.

    Returns:
        What ``report.json`` holds.
    """
    task = _read(folder / "task.json")
    variants, fraction = task["variants"], task["config"]["fraction"]
    keys = [Cell(name, fraction, seed) for seed in range(task["config"]["seeds"]) for name in variants]
    done, failed = _cells(folder, keys)
    cells = {IN_DOMAIN: done}
    for domain in task["domains"]:
        elsewhere = [(cell, load_predictions(domain_file(folder, Cell(*cell[:3]), domain))) for cell in done]
        cells[domain] = [cell._replace(predictions=found) for cell, found in elsewhere if found is not None]
    for cell in done:
        for part, reason in cell.facts["failed"].items():
            failed[f"{Cell(*cell[:3]).name} {part}"] = reason.partition(":")[0]
    whole = set.intersection(*({Cell(*cell[:3]) for cell in found} for found in cells.values()))
    searches = {}
    for name in variants:
        found = load_search(folder / "search" / f"{name}.json")
        if found is not None:
            searches[name] = found
        elif (reason := _reason(folder / "search" / name)) is not None:
            failed[f"search of {name}"] = reason
    analysis = analyse_study(
        cells,
        against={name: facts["against"] for name, facts in variants.items()},
        searches=searches,
        criteria=_criteria(task),
        fraction=fraction,
    )
    galleries = [
        {"encoder": cell.encoder, "explanations": cell.facts["explanations"]}
        for cell in done
        if cell.facts.get("explanations")
    ]
    _place_pictures(analysis["details"])
    _place_pictures(galleries)
    analysis["notes"] += _remarks(task)
    report = {
        "command": "study",
        "config": task["config"],
        "data": task["data"],
        "variants": variants,
        "domains": task["domains"],
        "searches": searches,
        "cells": len(keys),
        "missing": len(keys) - len(whole),
        "failed": failed,
        "environment": task["environment"],
        "when": task.get("when"),
        "limits": LIMITS["study"],
        **analysis,
        "galleries": galleries,
    }
    _write(folder, report, {"domain": "domain", "variant": "encoder", "labels": "labels", "seeds": "seeds"})
    return report


def _write(folder: Path, report: dict[str, Any], columns: Mapping[str, str]) -> None:
    """The three files; ``columns`` of the table, with what they are called in the report."""
    found = _with_verdict(folder, report)
    of_value = ["mean", "sd", "low", "high"]
    rows = [
        [*(row[name] for name in columns.values()), metric, *(value[name] for name in of_value)]
        for row in report["table"]
        for metric, value in row["metrics"].items()
    ]
    write_csv(folder / "table.csv", [*columns, "metric", *of_value], rows)
    write_page(folder, found)


def _criteria(task: Mapping[str, Any]) -> Criteria:
    chosen = task["config"]
    classes, subgroups = task["data"]["classes"], task["subgroups"]
    return Criteria(classes, chosen["ordered"], chosen["sensitivity"], chosen["coverage"], subgroups)


def _remarks(task: Mapping[str, Any]) -> list[str]:
    """What was said of the archive before anything ran."""
    return [f"{remark[:1].upper()}{remark[1:]}." for remark in task["data"].get("remarks", [])]


def _cells(folder: Path, keys: Sequence[Cell]) -> tuple[list[Done], dict[str, str]]:
    """The finished ones, and why others failed."""
    done, failed = [], {}
    for cell in keys:
        found = load_cell(folder / "cells" / cell.name)
        if found is not None:
            done.append(Done(*cell, *found))
        elif (reason := _reason(folder / "cells" / cell.name)) is not None:
            failed[cell.name] = reason
    return done, failed


def _reason(path: Path) -> str | None:
    """Why a part failed, without its message, which may name files and is not for a report."""
    file = path.with_name(f"{path.name}.error.txt")
    return file.read_text(encoding="utf-8").partition(":")[0].strip() if file.is_file() else None


def _place_pictures(details: Sequence[dict[str, Any]]) -> None:
    for detail in details:
        if detail["explanations"]:
            detail["explanations"]["file"] = f"cells/{detail['explanations']['file'].rpartition('/')[2]}"


def study_summary(report: dict[str, Any]) -> str:
    """The table and the sentences of a study for the terminal."""
    rows = []
    for row in report["table"]:
        auroc, balanced = (row["metrics"].get(name) for name in ("auroc", "balanced_accuracy"))
        cost = report["variants"][row["encoder"]]
        rows.append(
            [
                row["domain"],
                row["encoder"],
                f"{cost['parameters'] / 1e6:.2f}",
                f"{cost['multiply_adds'] / 1e6:.0f}",
                row["seeds"],
                _spread(balanced),
                _spread(auroc),
            ]
        )
    header = [
        "tested on",
        "variant",
        "million parameters",
        "million multiply-adds",
        "seeds",
        "balanced accuracy",
        "AUROC",
    ]
    table = format_table(header, rows)
    return "\n".join([*verdict_lines(verdict(report)), "", table, "", *report["sentences"], *report["notes"]])


def summary(report: dict[str, Any]) -> str:
    """The table and the sentences of a curve for the terminal."""
    rows = []
    for row in report["table"]:
        auroc, balanced = (row["metrics"].get(name) for name in ("auroc", "balanced_accuracy"))
        rows.append(
            [
                row["encoder"],
                row["mode"],
                f"{100 * row['fraction']:.3g} %",
                round(row["labels"]),
                _spread(auroc),
                _spread(balanced),
            ]
        )
    table = format_table(["encoder", "mode", "share", "labels", "AUROC", "balanced accuracy"], rows)
    return "\n".join([*verdict_lines(verdict(report)), "", table, "", *report["sentences"], *report["notes"]])


def _spread(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")


def rebuild(folder: Path) -> Path:
    """Rebuild ``report.html`` from the files of a run.

    Raises:
        UserError: where there is none, or what is there is damaged.
    """
    whole = "task.json" if (folder / "task.json").is_file() else "report.json"
    found = _read(folder / whole)
    try:
        if whole == "task.json":
            made = study_report if "variants" in found else curve_report
            made(folder)
            return folder / "report.html"
        command = found.get("command")
        reporting = [name for name, one in COMMANDS.items() if one.title]
        if command not in reporting or (command == "finetune" and "judgement" not in found):
            raise UserError(f"`run` ({folder}) must be of one of {', '.join(reporting)}; run it again")
        return write_page(folder, _completed(folder, found))
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise UserError(
            f"`run` ({folder}) must be the folder of a whole run; {whole} is damaged, or a file beside it "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]}); run it again"
        ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError) as error:
        raise UserError(
            f"`run` ({file.parent}) must be the folder of a finished run, a curve or a study; {file.name} cannot be "
            f"used ({type(error).__name__}); check the path"
        ) from None
    return found
