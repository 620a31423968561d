"""Files are whole or absent, and hold what JSON, CSV and Markdown readers expect."""

from __future__ import annotations

import ast
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import jigsawssl.runs
from jigsawssl.runs import format_table, write_bytes, write_csv, write_json


def test_json_keeps_order_and_turns_non_finite_numbers_into_null(tmp_path: Path) -> None:
    value = {
        "z": float("nan"),
        "a": [float("inf"), np.float32(0.5), torch.tensor(2), np.array([1.0, np.nan]), torch.tensor(float("-inf"))],
        "é": {"flag": True, "none": None, "text": "NaN", "tuple": (np.int64(3), 1)},
    }
    path = tmp_path / "made" / "report.json"
    write_json(path, value)
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n  "z": null') and text.endswith("}\n") and "é" in text
    assert json.loads(text) == {
        "z": None,
        "a": [None, 0.5, 2, [1.0, None], None],
        "é": {"flag": True, "none": None, "text": "NaN", "tuple": [3, 1]},
    }


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    with pytest.raises(ValueError, match=r"row 2 must have 2 cells"):
        write_csv(path, ["a", "b"], [(1, 2), (1,)])

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space left"):
        write_bytes(path, b"new")
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_csv_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, ["name", "value"], [('a, "b"', torch.tensor(0.5)), ("c", None), ("d", float("nan"))])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["name", "value"], ['a, "b"', "0.5"], ["c", ""], ["d", ""]]
    assert b"\r" not in path.read_bytes() and os.listdir(tmp_path) == ["rows.csv"]


def test_table_is_aligned_markdown() -> None:
    table = format_table(["run", "AUROC", "note"], [("a|b", 0.912345, "x\ny"), ("long name", "0.8 ± 0.1", None)])
    assert table.splitlines() == [
        "| run       |     AUROC | note |",
        "| --------- | --------: | ---- |",
        "| a\\|b      |    0.9123 | x y  |",
        "| long name | 0.8 ± 0.1 | -    |",
    ]
    assert format_table(["a", "b"], []).splitlines() == ["| a   | b   |", "| --- | --- |"]
    with pytest.raises(ValueError, match=r"row 1 must have 1 cells"):
        format_table(["a"], [(1, 2)])


def test_files_of_a_run_can_be_written_without_matplotlib() -> None:
    """Static, because a dependency (torchmetrics) imports matplotlib by itself where it is installed."""
    imported: set[str] = set()
    for module in (jigsawssl.runs, jigsawssl.runs.files):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(name.name for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"jigsawssl.runs.files"}
