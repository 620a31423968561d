"""Figures for report.html: SVG that takes the page's text colour, so that they read well in light, dark and print."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..runs.parts import Judgement, Row, StudyRow
from ..words import name_of
from .figures import COLOURS, LINES, REST, History, class_styles, draw_history, families_of, legend_below, tell_the_rest

MARKERS = ("o", "s", "^", "D", "v")
_INK = "#010203"  # stands for the page's text colour
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jigsawssl",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor", "savefig.facecolor"), "none"),
    "legend.edgecolor": "none",
    "grid.color": "#888888",
    "grid.alpha": 0.3,
}


def _svg(figure: Figure, description: str) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    # Its size follows the page; the view box keeps its shape.
    return re.sub(r'width="[^"]*pt" height="[^"]*pt"|height="[^"]*pt" width="[^"]*pt"', "", text, count=1).replace(
        "<svg ", f'<svg role="img" aria-label="{label}" ', 1
    )


def _figure(width: float = 4.6, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.grid(linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _style(index: int) -> dict[str, Any]:
    # Black would vanish on a dark page.
    colours = [_INK if colour == "#000000" else colour for colour in COLOURS]
    return {"color": colours[index % len(colours)], "linestyle": LINES[index // len(colours) % len(LINES)]}


def _with_least_span(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis of metrics in [0, 1] that is no magnifying glass: a tenth of it is shown at least."""
    missing = max(0.0, LEAST_SPAN - (high - low)) / 2
    return low - missing, high + missing


def _label(text: str) -> str:
    return text.replace("$", r"\$")


LEAST_SPAN = 0.1
"""Part of the scale of a metric that an axis shows at least."""

WIDTHS = {"wide": 7.0, "narrow": 3.6}
"""Inches of a figure for a screen and for a phone, at the same size of letters."""


def history_svgs(history: History) -> dict[str, str]:
    """Curves by epoch, a figure for each family, by title."""
    with mpl.rc_context(_STYLE):
        found = {}
        for family, curves in families_of(history).items():
            figure, axis = _figure()
            draw_history(axis, curves)
            axis.set(xlabel="epoch")
            name = name_of(family).rstrip(":")
            if len(curves) > 1 or family == "loss":
                legend_below(axis, columns=2)
            found[f"{name[:1].upper()}{name[1:]} by epoch"] = _svg(figure, f"{name} by epoch")
        return found


def curve_svg(table: Sequence[Row], metric: str, name: str, width: str = "wide") -> str:
    """Mean over seeds of a metric by number of labels, one line per encoder with its interval.

    Args:
        table: rows of the report.
        metric: one of theirs.
        name: of the metric, for the axis.
        width: ``wide`` or ``narrow``, for a phone.
    """
    with mpl.rc_context(_STYLE):
        figure, axis = _figure(WIDTHS[width], 4.2 if width == "wide" else 3.9)
        encoders = list(dict.fromkeys(row["encoder"] for row in table))
        for index, encoder in enumerate(encoders):
            rows = [row for row in table if row["encoder"] == encoder and metric in row["metrics"]]
            labels = [row["cost"] for row in rows]
            values = [row["metrics"][metric] for row in rows]
            means, style = [value["mean"] for value in values], _style(index)
            axis.plot(labels, means, marker="o", markersize=4, label=_label(encoder), **style)
            bands = [
                (x, value["low"], value["high"])
                for x, value in zip(labels, values, strict=True)
                if value["low"] is not None and value["high"] is not None
            ]
            axis.fill_between(
                [x for x, _, _ in bands],
                [low for _, low, _ in bands],
                [high for _, _, high in bands],
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )
        places = sorted({(row["cost"], row["fraction"]) for row in table})
        axis.set_ylim(*_with_least_span(*axis.get_ylim()))
        axis.set_xscale("log")
        ticks: dict[float, str] = {}
        for labels_, fraction in places:  # encoders may differ by a label or two
            ticks.setdefault(fraction, f"{labels_:.0f}\n{100 * fraction:.3g} %")
        at = [next(x for x, f in places if f == fraction) for fraction in ticks]
        axis.set_xticks(at, list(ticks.values()), fontsize=10 if width == "wide" else 8)
        axis.minorticks_off()
        axis.set(xlabel=f"{table[0]['unit']} (share of those available)", ylabel=name)
        figure.legend(loc="outside lower center", ncols=2 if width == "narrow" else 4, frameon=False)
        return _svg(figure, f"{name} by number of labels for {', '.join(encoders)}")


def variants_svg(table: Sequence[StudyRow], metric: str, name: str, width: str = "wide") -> str:
    """Mean over seeds of a metric with its interval, one line per variant and a mark for each archive tested on."""
    with mpl.rc_context(_STYLE):
        variants = list(dict.fromkeys(row["encoder"] for row in table))
        domains = list(dict.fromkeys(row["domain"] for row in table))
        figure, axis = _figure(WIDTHS[width], 0.8 + 0.34 * len(variants) * max(1, 0.6 * len(domains)))
        for index, domain in enumerate(domains):
            rows = [row for row in table if row["domain"] == domain and metric in row["metrics"]]
            shift = (index - (len(domains) - 1) / 2) * 0.5 / len(domains)
            places = [variants.index(row["encoder"]) + shift for row in rows]
            values = [row["metrics"][metric] for row in rows]
            style = {"color": _style(index)["color"], "marker": MARKERS[index % len(MARKERS)]}
            axis.plot([value["mean"] for value in values], places, linestyle="", markersize=5, label=domain, **style)
            for place, value in zip(places, values, strict=True):
                low, high = value["low"], value["high"]
                if low is not None and high is not None:
                    axis.plot([low, high], [place] * 2, color=style["color"], linewidth=1.4)
        axis.set_xlim(*_with_least_span(*axis.get_xlim()))
        axis.set_yticks(range(len(variants)), [_label(variant) for variant in variants])
        axis.invert_yaxis()
        axis.set(xlabel=name)
        if len(domains) > 1:
            figure.legend(loc="outside lower center", ncols=len(domains) if width == "wide" else 1)
        return _svg(figure, f"{name} of {', '.join(variants)}")


def critical_difference_svg(ranking: Mapping[str, Any], title: str, width: str = "wide") -> str:
    """Mean ranks on a line, best on the left; bars join variants that the tests do not tell apart (Demšar 2006)."""
    ranks = dict(sorted(ranking["ranks"].items(), key=lambda pair: pair[1]))
    count, half = len(ranks), (len(ranks) + 1) // 2
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTHS[width], 1.0 + 0.26 * (half + len(ranking["cliques"]))), layout="constrained")
        axis = figure.subplots()
        axis.set_axis_off()
        axis.plot([1, count], [0, 0], color=_INK, linewidth=1.2)
        for tick in range(1, count + 1):
            axis.plot([tick, tick], [0, 0.3], color=_INK, linewidth=1)
            axis.text(tick, 0.45, str(tick), ha="center", va="bottom")
        depth = 0.55 * len(ranking["cliques"]) + 0.5
        for number, clique in enumerate(ranking["cliques"]):
            places = [ranks[name] for name in clique]
            height = -0.35 - 0.55 * number
            axis.plot([min(places) - 0.03, max(places) + 0.03], [height] * 2, linewidth=4, **_style(0))
        for number, (name, rank) in enumerate(ranks.items()):
            left = number < half
            height = -depth - 0.8 * (number if left else count - 1 - number) - 0.3
            end = 0.9 if left else count + 0.1
            axis.plot([rank, rank, end], [0, height, height], color=_INK, linewidth=0.8)
            text = f"{_label(name)}  {rank:.2f}" if left else f"{rank:.2f}  {_label(name)}"
            axis.text(end, height, text, ha="right" if left else "left", va="center")
        # Room for the names, which stand outside the line.
        room = 0.11 * max(map(len, ranks)) * max(1.0, count / 6) * (1.0 if width == "wide" else 2.0) + 0.4
        axis.set(xlim=(0.8 - room, count + 0.2 + room), ylim=(-depth - 0.8 * half - 0.2, 1.3))
        return _svg(figure, title)


def judgement_svgs(judged: Judgement) -> dict[str, str]:
    """ROC, precision and recall, reliability, risk and coverage, and the decision curve, by title."""
    with mpl.rc_context(_STYLE):
        found = {}
        if judged["curves"]:
            found["ROC"] = _class_curves(
                judged, "roc", horizontal="1 - specificity", vertical="sensitivity", area="auroc"
            )
            found["Precision and recall"] = _class_curves(
                judged,
                "precision_recall",
                horizontal="recall (sensitivity)",
                vertical="precision",
                area="average_precision",
            )
        found["Reliability"] = _reliability(judged["calibration"])
        found["Leaving the least sure to a person"] = _risk(judged["risk_coverage"])
        benefit = judged.get("net_benefit")
        if benefit:
            found["Net benefit"] = _benefit(benefit)
        return found


def _class_curves(judged: Judgement, kind: str, *, horizontal: str, vertical: str, area: str) -> str:
    figure, axis = _figure()
    if kind == "roc":
        axis.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    areas = {name: judged["metrics"]["per_class"][name][area] for name in judged["curves"]}
    styles = class_styles(areas, _style)
    steps = "steps-post" if kind == "precision_recall" else "default"
    for name in sorted(areas, key=lambda name: styles[name] is not REST):
        curve, style = judged["curves"][name][kind], styles[name]
        label = None if style is REST else f"{_label(name)} ({areas[name]:.3f})"
        axis.plot(curve["x"], curve["y"], label=label, drawstyle=steps, **style)
    tell_the_rest(axis, areas, styles)
    axis.set(xlabel=horizontal, ylabel=vertical, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend_below(axis, columns=2)
    return _svg(figure, f"{vertical} by {horizontal}")


def _reliability(calibration: Mapping[str, Any]) -> str:
    figure, axis = _figure()
    axis.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    for index, (key, name) in enumerate((("before", "as it is"), ("after", "temperature"))):
        points = calibration[key]["reliability"]
        label = f"{name} (error {calibration[key]['calibration_error']:.3f})"
        axis.plot(points["confidence"], points["accuracy"], marker="o", markersize=4, label=label, **_style(index))
    axis.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(-0.02, 1.02))
    legend_below(axis, columns=1)
    return _svg(figure, "Share of right answers by confidence")


def _risk(points: Mapping[str, Any]) -> str:
    figure, axis = _figure()
    axis.plot(points["coverage"], points["risk"], **_style(0))
    axis.set(xlabel="share of cases answered, most sure first", ylabel="share of wrong answers", xlim=(0, 1.02))
    axis.set_ylim(bottom=0)
    return _svg(figure, "Share of wrong answers by share of cases answered")


def _benefit(points: Mapping[str, Any]) -> str:
    figure, axis = _figure()
    axis.plot(points["threshold"], points["model"], label="model", **_style(0))
    axis.plot(points["threshold"], points["everybody"], label="everybody positive", **_style(1))
    axis.axhline(0, color="#888888", linewidth=1, linestyle="--", label="nobody positive")
    top = max(0.05, *points["model"], *points["everybody"])
    axis.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.3 * top, 1.1 * top))
    legend_below(axis, columns=3)
    return _svg(figure, "Net benefit by threshold probability")
