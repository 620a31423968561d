"""``report.html``: one file that opens from disk, asks for nothing, and can be rebuilt from ``report.json`` alone."""

import base64
import csv
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..config.repeat import command_to_repeat, command_with_file
from ..config.schemas import COMMANDS
from ..runs.files import write_bytes
from ..words import duration, name_of, signed
from .plots import critical_difference_svg, curve_svg, history_svgs, judgement_svgs, variants_svg
from .verdict import learning_rule, validation_sentence, verdict

_FILES = {
    "report.json": "everything on this page, for programs",
    "config.yaml": "every setting",
    "encoder.safetensors": "the encoder",
    "model.safetensors": "the adapted model",
    "predictions.csv": "the prediction for each test image",
    "predictions.npz": "the predictions for the test and validation images, for programs",
    "table.csv": "the table, for programs",
    "task.json": "what all parts have in common, for programs",
    "split.csv": "which split each image is in",
    "seen.parquet": "hashes of the images that the encoder has seen, and tags of their patients",
    "seen.key": "the key of those tags, which stays with you",
    "metrics.csv": "what was measured, by epoch",
    "quarantine.csv": "which images could not be read, and why",
    "views.png": "the views that the encoder saw",
    "curves.png": "curves as a picture",
    "confusion.png": "the confusion matrix as a picture",
    "explanations.jpg": "where the network looks",
    "to_label.csv": "the chosen images, to be filled in",
    "to_label.png": "the same as a contact sheet",
    "explanations.csv": "which images those are",
}
"""Files of a run that its page leads to, where they are there."""

_FIRST_METRICS = ("auroc", "balanced_accuracy")
"""Metrics that every table begins with; the rest folds away."""


def write_page(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the folder of a run, from its report and the pictures that lie there.

    Args:
        folder: of the run.
        report: what ``report.json`` holds.

    Returns:
        The file.
    """
    environment = Environment(
        loader=PackageLoader("jigsawssl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["zip_with"] = lambda first, second: list(zip(first, second, strict=True))
    environment.filters |= {"anchored": _anchored, "metric": name_of, "words": _words}
    environment.filters |= {"number": _number, "signed": signed, "percent": _percent}
    # As it is read back from disk, so that a rebuilt page is the same.
    plain = json.loads(json.dumps(report))
    page = environment.get_template("page.html.j2").render(
        title=COMMANDS[plain["command"]].title,
        report=plain,
        verdict=verdict(plain),
        when=_when(plain),
        again=command_with_file(plain["command"], plain["config"]),
        was_set=command_to_repeat(plain["command"], plain["config"]),
        files={name: text for name, text in _FILES.items() if (folder / name).is_file()},
        pages=_pages(folder, plain),
        learning_rule=learning_rule(),
        validation_sentence=validation_sentence,
        first_metrics=_FIRST_METRICS,
        curve_svg=_both_widths(curve_svg),
        variants_svg=_both_widths(variants_svg),
        critical_difference_svg=_both_widths(critical_difference_svg),
        judgement_svgs=lambda judged: _marked(judgement_svgs(judged)),
        history_svgs=lambda part="": _marked(history_svgs(_history(folder / Path(part).name))),
        views=_embedded(folder, "views.png"),
        picture=lambda name: _embedded(folder, name),
        facts=_facts,
    )
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


def _marked(figures: Mapping[str, str]) -> dict[str, Markup]:
    return {name: Markup(svg) for name, svg in figures.items()}


def _both_widths(draw: Callable[..., str]) -> Callable[..., Markup]:
    """A figure twice: for a screen and for a phone, of which the style sheet shows one."""

    def drawn(*arguments: Any) -> Markup:
        parts = (f'<div class="only-{width}">{draw(*arguments, width=width)}</div>' for width in ("wide", "narrow"))
        return Markup("".join(parts))

    return drawn


def _anchored(body: Markup) -> dict[str, Any]:
    """The body with a number on each ``h2``, and these headings, for a list of contents."""
    names: list[Markup] = []

    def numbered(found: re.Match[str]) -> str:
        names.append(Markup(found[1]))
        return f'<h2 id="part-{len(names)}">{found[1]}</h2>'

    text = re.sub(r"<h2>(.*?)</h2>", numbered, str(body), flags=re.DOTALL)
    return {"names": names, "body": Markup(text)}


def _when(report: Mapping[str, Any]) -> str | None:
    """Date and duration of a run, as far as they are known: ``2024-05-01 08:30 UTC, took 3.2 min``."""
    when, run = report.get("when") or {}, report.get("run") or {}
    # Between the two times of a run that was resumed lies a pause, or of a pretraining the last part alone.
    resumed = run.get("resumed", report["config"].get("resume"))
    seconds = report.get("seconds") or run.get("seconds")
    known = [datetime.fromisoformat(when[name].replace("Z", "+00:00")) for name in ("began", "ended") if when.get(name)]
    if len(known) == 2 and not resumed:
        seconds = (known[1] - known[0]).total_seconds()
    begun = "resumed " if run.get("resumed") else ""
    words = [f"{begun}{known[0].astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"] if known else []
    words += [f"took {duration(seconds)}"] if seconds else []
    return ", ".join(words) or None


def _pages(folder: Path, report: Mapping[str, Any]) -> dict[str, str]:
    """Pages of the stages of a chain, by name; names come from a file that others may have written."""
    names = [Path(stage["name"]).name for stage in report.get("stages", [])]
    return {name: f"{quote(name)}/report.html" for name in names if (folder / name / "report.html").is_file()}


def _history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What ``metrics.csv`` says by epoch: a row for each value after fine-tuning, one for each epoch after pretraining.

    Of pretraining, what tells whether it went well.
    """
    file, found = folder / "metrics.csv", dict[str, list[tuple[int, float]]]()
    if not file.is_file():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        for row in csv.DictReader(opened):
            if "value" in row:
                if "loss" in row["name"] or "auroc" in row["name"]:
                    found.setdefault(row["name"], []).append((int(row["epoch"]), float(row["value"] or "nan")))
                continue
            for name, value in row.items():
                if name.startswith(("loss_", "diagonal_")) or name in ("effective_rank", "feature_std"):
                    found.setdefault(name, []).append((int(row["epoch"]) + 1, float(value or "nan")))
    return found


def _embedded(folder: Path, name: str) -> str:
    """A picture of the folder as an address that needs no file; names come from a file that others may have written."""
    file = (folder / name).resolve()
    kind = {".png": "png", ".jpg": "jpeg"}.get(file.suffix)
    if kind is None or folder.resolve() not in file.parents or not file.is_file():
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _number(value: Any, digits: int = 3) -> str:
    if value is None:
        return "not defined"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if isinstance(value, float) and abs(value) < 1000 else f"{value}"


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.3g} %"


def _words(value: Any) -> str:
    """A value of the configuration or of a list of facts, in one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_words(part)}" for key, part in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(_words(part) for part in value) or "–"
    return str(value)


def _facts(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of name and text."""
    rows = []
    for key, part in value.items():
        if isinstance(part, Mapping) and part:
            rows += _facts(part, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _words(part)))
    return rows
