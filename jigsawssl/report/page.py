"""``report.html``: one file that opens from disk, asks for nothing, and is made anew from ``report.json`` alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .files import write_bytes
from .plots import critical_difference_svg, curve_svg, judgement_svgs, variants_svg

__all__ = ["write_page"]

_PICTURES = {
    "views.png": "Views of a batch, as the encoder saw them",
    "curves.png": "By epoch",
    "confusion.png": "Confusion matrix",
}

_TITLES = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "curve": "Label efficiency",
    "study": "Comparison of encoders",
    "transfer": "Staged transfer",
}

_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "kappa": "Cohen's κ",
    "quadratic_kappa": "quadratic κ",
    "sensitivity_at_specificity": "sensitivity at 90 % specificity",
    "specificity_at_sensitivity": "specificity at 90 % sensitivity",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}


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
    environment.filters |= {"number": _number, "percent": _percent, "metric": _metric, "words": _words}
    # As it is read back from disk, so that a page made anew is the same.
    plain = json.loads(json.dumps(report))
    page = environment.get_template("page.html.j2").render(
        title=_TITLES[plain["command"]],
        report=plain,
        curve_svg=lambda *arguments: Markup(curve_svg(*arguments)),
        variants_svg=lambda *arguments: Markup(variants_svg(*arguments)),
        critical_difference_svg=lambda *arguments: Markup(critical_difference_svg(*arguments)),
        judgement_svgs=lambda judged: {name: Markup(svg) for name, svg in judgement_svgs(judged).items()},
        pictures={title: _embedded(folder, name) for name, title in _PICTURES.items() if (folder / name).is_file()},
        picture=lambda name: _embedded(folder, name),
        facts=_facts,
    )
    write_bytes(folder / "report.html", page.encode())
    return folder / "report.html"


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


def _metric(name: str) -> str:
    return _NAMES.get(name, name.replace("_", " "))


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
