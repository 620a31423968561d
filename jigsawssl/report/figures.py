"""Figures of a run as PNG files: views, confusion matrix, learning curves and test curves.

Drawn on ``matplotlib.figure.Figure`` without pyplot, so nothing global changes and no display is needed.
"""

import io
import itertools
import math
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc

from jigsawssl.evaluation.metrics import Array, classification_metrics
from jigsawssl.runs.files import write_bytes
from jigsawssl.words import name_of

History = Mapping[str, Sequence[tuple[int, float]]]
# Okabe and Ito's palette (2008), distinguishable under the common colour vision deficiencies; yellow is left out
# because it vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", ":")
MOST_LINES = 9
"""Curves that get a colour and a name of their own in one panel, as more cannot be told apart."""
REST: dict[str, Any] = {"color": "0.75", "linewidth": 0.7}
"""How the others are drawn."""
DENSE = 20
"""Classes from which on a confusion matrix has small cells, and no text where there is no image."""
PAPER_INK = "#7f7f7f"
"""Ink of pictures without a background: it reads on white and on a dark page."""


def save_views_sheet(rows: Mapping[str, Tensor], path: str | os.PathLike[str], title: str) -> None:
    """Draw a labelled sheet of images, one row per kind of view, the first 8 images of each as columns.

    It has no background, so that a dark page shows it dark.

    Args:
        rows: label → float ``(B, C, H, W)`` in [0, 1] (clamped), C = 1 (grey) or 3 (RGB); sizes may differ by row.
        path: PNG to write, atomically.
        title: plain words above the sheet.

    Raises:
        ValueError: no rows, no images, or another shape.

    >>> import tempfile
    >>> views = {"original": torch.rand(2, 3, 8, 8), "jigsaw 2x2": torch.rand(2, 3, 8, 8)}
    >>> save_views_sheet(views, os.path.join(tempfile.mkdtemp(), "views.png"), "Views of one batch")
    """
    if not rows:
        raise ValueError("`rows` must name at least one kind of view, got none")
    for name, images in rows.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
            raise ValueError(f"`rows[{name!r}]` must be (B, 1 or 3, H, W), not empty, got shape {tuple(images.shape)}")
    columns = min(8, max(len(images) for images in rows.values()))
    labels = [_short(name, 36) for name in rows]
    margin = 0.25 + 0.085 * max(len(label) for label in labels)
    figure = _figure(max(margin + 1.15 * columns, 4.5), 1.15 * len(rows) + 0.5, title, space=0.04, ink=PAPER_INK)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, label, images in zip(grid, labels, rows.values(), strict=True):
        pictures = images[:columns].detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        for index, axis in enumerate(axes):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.set_facecolor("none")
            if index < len(pictures):
                picture = pictures[index]
                grey = picture.shape[-1] == 1
                axis.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, color=PAPER_INK)
    figure.set_facecolor("none")
    _save(figure, path)


CELL = 1.5
"""Side of a cell of a contact sheet in inches."""

LETTERS = 25
"""Of 6 points, in a line of the caption below it."""


def save_contact_sheet(
    images: Tensor, captions: Sequence[str], path: str | os.PathLike[str], title: str, *, sets: Sequence[int] = ()
) -> None:
    """Draw images in rows of 8, each with its caption, and a frame around those that belong together.

    Args:
        images: float ``(B, C, H, W)`` in [0, 1] (clamped), C = 1 (grey) or 3 (RGB), B at least 1.
        captions: B texts; long lines are wrapped, and very long ones lose their middle.
        path: PNG to write, atomically.
        title: plain words above the sheet.
        sets: how many of the images, from the first on, belong together, set after set; a set begins a new row where
            the rest of one is too short for it.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "sheet.png")
    >>> save_contact_sheet(torch.rand(3, 1, 8, 8), ["a", "b", "c"], path, "All", sets=[2, 1])
    """
    columns = min(8, len(images))
    places = _places([*sets] or [1] * len(images), columns)
    texts = [_wrapped(caption) for caption in captions]
    # Places are counted out here and not left to a layout, so that nothing can come to lie upon anything else.
    below = 0.1 * max(len(text) for text in texts) + 0.08
    side, height, head = CELL - 0.12, CELL + below, 0.45
    width = max(columns * CELL, 3.5)
    whole = head + height * (places[-1] // columns + 1)
    figure = Figure(figsize=(width, whole))
    figure.text(0.5, 1 - 0.5 * head / whole, _text(title), ha="center", va="center", fontsize=12)
    pictures = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
    for place, picture, text in zip(places, pictures, texts, strict=True):
        left, bottom = place % columns * CELL + 0.06, whole - head - place // columns * height - CELL + 0.06
        axis = figure.add_axes((left / width, bottom / whole, side / width, side / whole))
        axis.set_axis_off()
        shown = picture[..., 0] if picture.shape[-1] == 1 else picture
        axis.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        written = figure.text(left / width, (bottom - 0.04) / whole, "\n".join(text), va="top", parse_math=False)
        written.set(fontsize=6, family="monospace", linespacing=1.1)
    for number, end in enumerate(itertools.accumulate(sets)):
        members = places[end - sets[number] : end]
        for row in sorted({place // columns for place in members}):
            inside = [place % columns for place in members if place // columns == row]
            corner = (inside[0] * CELL + 0.02, whole - head - (row + 1) * height + 0.02)
            frame = Rectangle(corner, len(inside) * CELL - 0.04, height - 0.04, transform=figure.dpi_scale_trans)
            frame.set(fill=False, edgecolor=COLOURS[number % len(COLOURS)], linewidth=1.5)
            figure.add_artist(frame)
    _save(figure, path)


def _places(sets: Sequence[int], columns: int) -> list[int]:
    """Cells, counted row by row, for sets of images, none of which is torn if a row can hold it.

    >>> _places([2, 3, 1], columns=4)
    [0, 1, 4, 5, 6, 7]
    """
    places: list[int] = []
    at = 0
    for size in sets:
        if size > columns - at % columns and at % columns:
            at += columns - at % columns
        places += range(at, at + size)
        at += size
    return places


def _wrapped(text: str) -> list[str]:
    """Lines of a caption of a contact sheet: at most three of each line given, the middle left out of longer ones.

    >>> _wrapped("images/train/NORMAL/IM-0115-0001.jpeg\\nnormal, train")
    ['images/train/NORMAL/', 'IM-0115-0001.jpeg', 'normal, train']
    """
    lines = []
    for line in text.split("\n"):
        broken = []
        rest = line
        while len(rest) > LETTERS:
            # Behind a folder, else another mark, in the second half of the line; else where the line ends.
            ends = [max(rest.rfind(mark, LETTERS // 2, LETTERS) for mark in marks) + 1 for marks in ("/", "_- .")]
            cut = ends[0] or ends[1] or LETTERS
            broken.append(rest[:cut])
            rest = rest[cut:]
        broken.append(rest)
        if len(broken) > 3:
            keep = 3 * LETTERS - 1
            short = line if len(line) <= keep else f"{line[: keep // 2]}…{line[len(line) - keep + keep // 2 :]}"
            broken = [short[at : at + LETTERS] for at in range(0, len(short), LETTERS)]
        lines += broken
    return lines


def save_explanations(
    parts: Mapping[str, tuple[Tensor, Mapping[str, Tensor], Sequence[str]]],
    path: str | os.PathLike[str],
    *,
    note: str = "",
) -> None:
    """Draw images and, below each, the same with maps of where the network looks, with one colour bar for all maps.

    Args:
        parts: heading → images float ``(B, C, H, W)`` in [0, 1], kind of map → float ``(B, H, W)`` in [0, 1], and B
            captions, whose long lines are wrapped. All have the same kinds.
        path: JPEG to write, atomically.
        note: what the captions say, for below the pictures.

    >>> import tempfile
    >>> part = (torch.rand(2, 1, 8, 8), {"Grad-CAM": torch.rand(2, 8, 8)}, ["a → a", "b → b"])
    >>> save_explanations({"right": part}, os.path.join(tempfile.mkdtemp(), "explanations.jpg"))
    """
    columns = max(len(captions) for _, _, captions in parts.values())
    lines = 1 + max(len(maps) for _, maps, _ in parts.values())
    width = max(1.45 * columns + 1.2, 5.0)
    figure = _figure(width, 1.6 * lines * len(parts) + 0.4, space=0.02)
    grid = figure.subplots(lines * len(parts), columns, squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for part, (heading, (images, maps, captions)) in enumerate(parts.items()):
        pictures = images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()
        rows = grid[lines * part : lines * (part + 1)]
        for label, row in zip((heading, *maps), rows, strict=True):
            row[0].set_ylabel(label, fontsize=9, parse_math=False)
        for index, caption in enumerate(captions):
            shown = pictures[index][..., 0] if pictures.shape[-1] == 1 else pictures[index]
            for row in rows:
                row[index].imshow(shown, cmap="gray", vmin=0, vmax=1)
            for row, found in zip(rows[1:], maps.values(), strict=True):
                values = found[index].cpu().numpy()
                # Without smoothing: a map of cells is meant to look like one.
                row[index].imshow(values, cmap="inferno", vmin=0, vmax=1, alpha=0.5, interpolation="nearest")
                if not values.any():
                    empty = row[index].text(0.5, 0.5, "empty map", transform=row[index].transAxes)
                    empty.set(ha="center", va="center", color="white", fontsize=8)
            wrapped = [textwrap.fill(line, 25, max_lines=3, placeholder="…") for line in caption.split("\n")]
            rows[0][index].set_title("\n".join(wrapped), fontsize=6.5, parse_math=False)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "inferno"), ax=grid, shrink=0.6, aspect=30, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0, low", "0.5", "1, high"], fontsize=8)
    bar.set_label("Share of the map's maximum", fontsize=8)
    if note:
        letters = int(15 * width)
        figure.supxlabel("\n".join(textwrap.wrap(note, letters)), fontsize=8, parse_math=False)
    _save(figure, path, "jpeg")  # it goes into a page, and a page may hold several


def save_confusion_matrix(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw a confusion matrix: counts as text, the share of each true class as colour (an empty row is white).

    With more than 20 classes cells are small, and counts of 0 are left out.

    Args:
        matrix: ``K`` rows (true) of ``K`` counts (predicted).
        classes: the ``K`` names.
        path: PNG to write, atomically.

    Raises:
        ValueError: the matrix is not ``K`` x ``K``.

    >>> import tempfile
    >>> save_confusion_matrix([[8, 2], [1, 9]], ["nevus", "melanoma"], os.path.join(tempfile.mkdtemp(), "m.png"))
    """
    counts = np.asarray(matrix)
    size = len(classes)
    if counts.shape != (size, size):
        raise ValueError(f"`matrix` must be {size} x {size}, as `classes`, got shape {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_short(name) for name in classes]
    dense = size > DENSE
    cells = max((0.26 if dense else 0.62) * size, 2.2)
    margin = 0.08 * max(len(name) for name in names)
    figure = _figure(cells + margin + 2.0, cells + 0.75 * margin + 1.3, "Confusion matrix: number of test images")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="Share of the true class", shrink=0.8, aspect=40 if dense else 20)
    letters = 6 if dense else 9
    for row, column in zip(*(np.nonzero(counts) if dense else np.indices(counts.shape).reshape(2, -1)), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=colour, fontsize=letters)
    turned: dict[str, Any] = {"rotation": 90} if dense else {"rotation": 45, "rotation_mode": "anchor"}
    axis.set_xticks(range(size), names, ha="center" if dense else "right", fontsize=letters, **turned)
    axis.set_yticks(range(size), names, fontsize=letters)
    if dense:  # the eye needs lines to find a row again
        axis.set_xticks(np.arange(size) + 0.5, minor=True)
        axis.set_yticks(np.arange(size) + 0.5, minor=True)
        axis.grid(which="minor", color="0.92", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
    axis.set(xlabel="Predicted class", ylabel="True class")
    _save(figure, path)


def save_curves(history: History, path: str | os.PathLike[str], title: str) -> None:
    """Draw learning curves by epoch: one panel with every loss, one for each other metric.

    ``train_`` and ``val_`` in front of a name choose the line, the rest of the name the panel; every name with
    ``loss`` in it shares the first panel. Values that are not finite leave a gap.

    Args:
        history: name → ``(epoch, value)`` pairs, for example ``train_loss``, ``val_loss``, ``val_auroc``.
        path: PNG to write, atomically.
        title: plain words above the panels.

    Raises:
        ValueError: the history has no values.

    >>> import tempfile
    >>> history = {"train_loss": [(1, 0.9), (2, 0.5)], "val_auroc": [(1, 0.6), (2, 0.8)]}
    >>> save_curves(history, os.path.join(tempfile.mkdtemp(), "curves.png"), "Pretraining")
    """
    families = families_of(history)
    if not families:
        raise ValueError("`history` must hold at least one (epoch, value) pair, got none")
    columns = min(3, len(families))
    lines = math.ceil(len(families) / columns)
    figure = _figure(max(4.4 * columns, 5), 3.5 * lines + 0.3, title)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axis, (family, curves) in zip(panels, families.items(), strict=False):
        _draw_history(axis, curves, name_of(family))
    for axis in list(figure.axes)[len(families) :]:
        axis.remove()
    _save(figure, path)


def families_of(history: History) -> dict[str, dict[str, Sequence[tuple[int, float]]]]:
    """The curves of each panel: every loss in the first, all agreements of views in one, others with their like.

    >>> found = families_of({"val_auroc": [(1, 0.6)], "train_loss": [(1, 0.9)], "val_loss": [(1, 1.0)], "lr": []})
    >>> {family: list(curves) for family, curves in found.items()}
    {'loss': ['train_loss', 'val_loss'], 'auroc': ['val_auroc']}
    """
    families: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
    drawn = {name: points for name, points in history.items() if len(points)}
    for name in sorted(drawn, key=lambda name: "loss" not in name):  # stable: losses first, else the order given
        family = next((word for word in ("loss", "diagonal") if word in name), name)
        families.setdefault(family.removeprefix("train_").removeprefix("val_"), {})[name] = drawn[name]
    return families


def honest_limits(family: str, curves: History) -> tuple[float, float]:
    """Limits of a vertical axis that does not make a fall of a thousandth look like one of all.

    Shares show all that they can be, AUROC from chance, and everything else begins at 0.

    >>> honest_limits("effective_rank", {"effective_rank": [(1, 65.42), (2, 65.35)]})[0]
    0.0
    >>> honest_limits("auroc", {"val_auroc": [(1, 0.91), (2, 0.912)]})
    (0.5, 1.0)
    """
    values = [value for points in curves.values() for _, value in points if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if family == "auroc":
        return min(0.5, low), 1.0
    if family in ("accuracy", "balanced_accuracy", "diagonal", "feature_std"):
        return min(0.0, low), max(1.0, high)
    top = 1.05 * high if high > 0 else 0.0
    return min(0.0, 1.05 * low), top if low or top else 1.0


def save_finetune_curves(
    history: History, probabilities: Array, labels: Array, classes: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Draw up to four panels: losses by epoch, AUROC by epoch, ROC of the test set, precision-recall of the test set.

    The test panels hold one line per class with its area (AUC, or average precision AP) in the legend; with two
    classes only the second, because the first is its mirror image. A class without both positives and negatives in
    ``labels`` has no line and says so in the legend. Of more than nine classes, those with the least area have
    colour and name, and the others are grey.

    Args:
        history: as :func:`save_curves`; names with ``loss`` and with ``auroc`` are drawn, a panel without values is
            left out, so an empty history gives the two test panels.
        probabilities: float ``(N, K)`` in [0, 1] of the test set.
        labels: integers ``(N,)`` in [0, K).
        classes: the ``K`` names.
        path: PNG to write, atomically.

    Raises:
        ValueError: as :func:`jigsawssl.evaluation.classification_metrics`.

    >>> import tempfile
    >>> probabilities, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1])
    >>> save_finetune_curves({}, probabilities, labels, ["a", "b"], os.path.join(tempfile.mkdtemp(), "curves.png"))
    """
    per_class = classification_metrics(probabilities, labels, classes)["per_class"]
    groups = {
        word: {name: points for name, points in history.items() if word in name and len(points)}
        for word in ("loss", "auroc")
    }
    groups = {word: curves for word, curves in groups.items() if curves}
    columns, lines = (2, 2) if len(groups) == 2 else (2 + len(groups), 1)
    figure = _figure(4.6 * columns, 4.0 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axis, (word, curves) in zip(panels, groups.items(), strict=False):
        _draw_history(axis, curves, name_of(word))
    roc, precision_recall = list(figure.axes)[len(groups) :]

    scores = torch.as_tensor(probabilities).detach().cpu().double().clamp(0, 1)
    target = torch.as_tensor(labels).detach().cpu()
    roc.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    # Average precision is the area under steps, so steps are what is drawn.
    for axis, area, short, steps in (
        (roc, "auroc", "AUC", "default"),
        (precision_recall, "average_precision", "AP", "steps-post"),
    ):
        shown = list(per_class)[1:] if len(classes) == 2 else list(per_class)
        areas = {name: per_class[name][area] for name in shown}
        styles = class_styles(areas, _style)
        for name in sorted(shown, key=lambda name: styles[name] is not REST):
            values, style = per_class[name], styles[name]
            if values[area] is None:
                label = f"{_short(name)} ({'the only class' if values['support'] else 'no images'})"
                axis.plot([], [], label=label if style is not REST else None, **style)
                continue
            positive = (target == classes.index(name)).long()
            if axis is roc:
                across, up, _ = binary_roc(scores[:, classes.index(name)], positive)
            else:
                up, across, _ = binary_precision_recall_curve(scores[:, classes.index(name)], positive)
            label = f"{_short(name)} ({short} {values[area]:.3f})"
            axis.plot(across, up, label=label if style is not REST else None, drawstyle=steps, **style)
        tell_the_rest(axis, areas, styles)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _decorate(roc, "Test set: ROC curve", "False positive rate", "True positive rate")
    _decorate(precision_recall, "Test set: precision and recall", "Recall", "Precision")
    _save(figure, path)


def class_styles(
    areas: Mapping[str, float | None], style: Callable[[int], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """How each class is drawn: in a colour of its own, or :data:`REST` where there are many and others did worse.

    Args:
        areas: under the curve of each class, by name; ``None`` where it has none.
        style: of the first, second, … curve.

    >>> styles = class_styles({f"class {k}": k / 20 for k in range(20)}, _style)
    >>> [name for name, drawn in styles.items() if drawn is not REST][-1]
    'class 8'
    """
    worst = sorted(areas, key=lambda name: math.inf if (area := areas[name]) is None else area)
    named = set(worst[:MOST_LINES] if len(areas) > MOST_LINES else worst)
    number = itertools.count()
    return {name: style(next(number)) if name in named else REST for name in areas}


def tell_the_rest(axis: Axes, areas: Mapping[str, float | None], styles: Mapping[str, dict[str, Any]]) -> None:
    """One entry of the legend for all curves without a colour."""
    rest = sum(style is REST and areas[name] is not None for name, style in styles.items())
    if rest:
        axis.plot([], [], label=f"{rest} others, no worse", **REST)


def _draw_history(axis: Axes, curves: History, name: str) -> None:
    draw_history(axis, curves)
    name = f"{name[:1].upper()}{name[1:]}".rstrip(":")
    _decorate(axis, f"{name} by epoch", "Epoch", name)


def draw_history(axis: Axes, curves: History) -> None:
    """Lines by epoch on an honest vertical axis, without words around them."""
    for index, (key, points) in enumerate(curves.items()):
        epochs = [epoch for epoch, _ in points]
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        marker = "o" if len(points) < 20 else ""
        axis.plot(epochs, values, label=_text(_within(key)), marker=marker, markersize=3, **_style(index))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    if len({epoch for points in curves.values() for epoch, _ in points}) == 1:  # else the axis shows 0.95 to 1.05
        axis.set_xlim(axis.dataLim.x0 - 0.5, axis.dataLim.x0 + 0.5)
    low, high = honest_limits(next(iter(families_of(curves))), curves)
    edge = 0.02 * (high - low)
    axis.set_ylim(low - edge, high + edge)


def _decorate(axis: Axes, title: str, horizontal: str, vertical: str) -> None:
    axis.set_title(_text(title), fontsize=11)
    axis.set_xlabel(horizontal)
    axis.set_ylabel(_text(vertical))
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    legend_below(axis, columns=1 if len(axis.lines) < 3 else 2)


def legend_below(axis: Axes, columns: int) -> None:
    """A legend under the axis, where it hides no curve."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=9, frameon=False)


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index // len(COLOURS) % len(LINES)]}


def _within(name: str) -> str:
    """What tells a curve from the others of its panel, in plain words."""
    rest = [word for word in name.replace("/", "_").split("_") if word not in ("loss", "auroc", "diagonal")]
    return name_of("_".join(rest) or name)


def _text(text: str) -> str:
    """Matplotlib reads ``$`` as mathematics and hides labels that start with ``_``; neither is meant here."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _short(name: str, most: int = 24) -> str:
    return _text(name if len(name) <= most else f"{name[: most - 1]}…")


def _figure(width: float, height: float, title: str = "", space: float = 0.1, ink: str = "black") -> Figure:
    """An empty figure, sizes in inches; ``space`` around each panel keeps the labels of neighbours apart."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=space, h_pad=space))
    if title:
        figure.suptitle(_text(title), fontsize=12, color=ink)
    return figure


def _save(figure: Figure, path: str | os.PathLike[str], kind: Literal["png", "jpeg"] = "png") -> None:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=130)
    write_bytes(path, buffer.getvalue())
