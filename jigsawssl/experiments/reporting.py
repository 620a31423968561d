"""``report.json`` and ``report.html`` of a run or curve, from the files in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..report import format_table, write_csv, write_json
from ..report.page import write_page
from ..types import UserError
from .analysis import Done, analyse
from .curve import Cell, load_cell

__all__ = ["LIMITS", "curve_report", "rebuild"]

LIMITS = {
    "pretrain": [
        "Nothing here says how well the encoder serves a task; adapt it to labelled images, or draw a curve.",
    ],
    "finetune": [
        "One draw of labels and one test split: another draw gives other numbers; a curve shows how different.",
        "The intervals tell of other patients like these, not of another clinic, device or year.",
        "The more often a test split is looked at, the less it says.",
        "This is research software and no medical device; nobody has validated it for care.",
    ],
    "curve": [
        "Every point was tested on the same split: choosing among encoders by this report makes its numbers flatter.",
        "The intervals tell of other patients like these, not of another clinic, device or year.",
        "An encoder is one pretraining: what another one of the same kind would give is not in the intervals.",
        "Labels saved are read off a curve of few points; where the interval is wide, believe the interval.",
        "This is research software and no medical device; nobody has validated it for care.",
    ],
}
"""What a reader has to keep in mind, by command."""


def curve_report(folder: Path) -> dict[str, Any]:
    """Analyse what is finished of a curve, and write ``report.json``, ``table.csv`` and ``report.html``.

    Args:
        folder: of the curve, with ``task.json`` and ``cells/``.

    Returns:
        What ``report.json`` holds.
    """
    task = json.loads((folder / "task.json").read_text())
    done, failed = [], {}
    keys = [Cell(e, f, s) for f in task["fractions"] for s in range(task["seeds"]) for e in task["encoders"]]
    for cell in keys:
        found = load_cell(folder / "cells" / cell.name)
        error = folder / "cells" / f"{cell.name}.error.txt"
        if found is not None:
            done.append(Done(*cell, *found))
        elif error.is_file():
            failed[cell.name] = error.read_text().strip()
    # Unreadable test images are the same for every cell.
    left_out = done[0].facts["test_left_out"] if done else []
    subgroups = {column: np.delete(np.array(values), left_out) for column, values in task["subgroups"].items()}
    analysis = analyse(
        done,
        list(task["encoders"]),
        task["data"]["classes"],
        task["config"]["ordered"],
        task["config"]["sensitivity"],
        task["config"]["coverage"],
        subgroups,
    )
    for detail in analysis["details"]:
        if detail["explanations"]:
            detail["explanations"]["file"] = f"cells/{detail['explanations']['file']}"
    report = {
        "command": "curve",
        "config": task["config"],
        "data": task["data"],
        "encoders": task["encoders"],
        "cells": len(keys),
        "missing": len(keys) - len(done),
        "failed": failed,
        "environment": task["environment"],
        "limits": LIMITS["curve"],
        **analysis,
    }
    write_json(folder / "report.json", report)
    header = ["encoder", "fraction", "labels", "groups", "seeds", "candidates", "metric", "mean", "sd", "low", "high"]
    rows = [
        [*(row[name] for name in header[:6]), metric, *(value[name] for name in header[7:])]
        for row in analysis["table"]
        for metric, value in row["metrics"].items()
    ]
    write_csv(folder / "table.csv", header, rows)
    write_page(folder, json.loads((folder / "report.json").read_text()))
    return report


def summary(report: dict[str, Any]) -> str:
    """The table and the sentences of a curve for the terminal."""
    rows = []
    for row in report["table"]:
        auroc, balanced = (row["metrics"].get(name) for name in ("auroc", "balanced_accuracy"))
        rows.append(
            [row["encoder"], f"{100 * row['fraction']:.3g} %", round(row["labels"]), _spread(auroc), _spread(balanced)]
        )
    table = format_table(["encoder", "share", "labels", "AUROC", "balanced accuracy"], rows)
    return "\n".join([table, "", *report["sentences"]])


def _spread(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    return f"{value['mean']:.3f}" + ("" if value["sd"] is None else f" ± {value['sd']:.3f}")


def rebuild(folder: Path) -> Path:
    """Make ``report.html`` anew from the files of a run.

    Raises:
        UserError: where none of ours is there.
    """
    if (folder / "task.json").is_file():
        curve_report(folder)
        return folder / "report.html"
    try:
        report = json.loads((folder / "report.json").read_text())
        command = report["command"]
        if command == "finetune":
            report["judgement"]["metrics"] = report["test"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"`run` ({folder}) must be the folder of a finished run or a curve; its report.json cannot be used "
            f"({type(error).__name__}: {error}); check the path"
        ) from None
    if command not in LIMITS:
        raise UserError(f"`run` ({folder}) must be of pretrain, finetune or curve, not {command}; choose another")
    return write_page(folder, {"limits": LIMITS[command], **report})
