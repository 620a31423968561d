"""Figures are PNG files that decode, show their input and leave matplotlib's global state alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import find_objects, label

from jigsawssl.evaluation import classification_metrics
from jigsawssl.report.figures import (
    CELL,
    COLOURS,
    honest_limits,
    save_confusion_matrix,
    save_contact_sheet,
    save_curves,
    save_explanations,
    save_finetune_curves,
    save_views_sheet,
)

HISTORY = {
    "train_loss": [(1, 0.9), (2, 0.6), (3, 0.5)],
    "val_loss": [(1, 1.0), (2, float("nan")), (3, 0.8)],
    "val_auroc": [(1, 0.6), (2, 0.7), (3, 0.8)],
}


def picture(path: Path, most: int = 2000) -> np.ndarray:
    """Pixels of a figure, after the checks that hold for all of them."""
    assert path.stat().st_size > 0 and os.listdir(path.parent).count(path.name) == 1
    assert not list(path.parent.glob(".*.tmp"))
    assert pyplot.get_fignums() == []
    with Image.open(path) as image:
        assert image.format == "PNG" and 300 <= image.width <= most and 200 <= image.height <= most
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.std() > 0
    return pixels


def predictions(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(40, size, generator=generator).softmax(dim=1), torch.arange(40) % size


def different(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape != second.shape or bool((first != second).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_views_sheet_shows_the_images(tmp_path: Path, channels: int) -> None:
    views = {
        "original": torch.rand(10, channels, 8, 8),
        "jigsaw": torch.rand(3, channels, 6, 6),
        "_cost in $": torch.ones(1, channels, 4, 4),
    }
    save_views_sheet(views, tmp_path / "a.png", "Views worth $5 and $6")
    save_views_sheet({**views, "original": 1 - views["original"]}, tmp_path / "b.png", "Views worth $5 and $6")
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert first.shape == second.shape and different(first, second)


def test_views_sheet_colours_are_not_rescaled(tmp_path: Path) -> None:
    save_views_sheet({"orange": torch.tensor([1.0, 0.6, 0.2]).view(1, 3, 1, 1)}, tmp_path / "a.png", "One colour")
    assert (picture(tmp_path / "a.png") == [255, 153, 51]).all(axis=2).mean() > 0.05


def test_views_sheet_has_no_background_that_glares_on_a_dark_page(tmp_path: Path) -> None:
    save_views_sheet({"view 1 (crop, flip, jitter, blur)": torch.rand(2, 1, 8, 8)}, tmp_path / "a.png", "Views")
    with Image.open(tmp_path / "a.png") as image:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
    assert (alpha == 0).mean() > 0.2 and (alpha == 255).mean() > 0.2


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        ("effective_rank", [65.42, 65.35], (0.0, 1.05 * 65.42)),
        ("loss", [0.31, 0.3], (0.0, 1.05 * 0.31)),
        ("loss", [-2.0, -1.0], (-2.1, 0.0)),
        ("auroc", [0.91, 0.912], (0.5, 1.0)),
        ("auroc", [0.41, 0.6], (0.41, 1.0)),
        ("diagonal", [0.8, 0.81], (0.0, 1.0)),
        ("diagonal", [-0.2, 0.81], (-0.2, 1.0)),
        ("feature_std", [0.4, 1.2], (0.0, 1.2)),
        ("loss", [float("nan")], (0.0, 1.0)),
    ],
)
def test_an_axis_is_no_magnifying_glass(family: str, values: list[float], expected: tuple[float, float]) -> None:
    assert honest_limits(family, {family: list(enumerate(values))}) == pytest.approx(expected)


@pytest.mark.parametrize("size", [2, 10])
def test_confusion_matrix(tmp_path: Path, size: int) -> None:
    matrix = np.eye(size, dtype=int) * 12
    names = [f"a rather long class name {index}" for index in range(size)]
    save_confusion_matrix(matrix.tolist(), names, tmp_path / "a.png")
    matrix[0] = 0  # an absent class must not divide by zero
    save_confusion_matrix(matrix.tolist(), names, tmp_path / "b.png")
    assert different(picture(tmp_path / "a.png"), picture(tmp_path / "b.png"))


def test_a_confusion_matrix_of_many_classes_stays_readable(tmp_path: Path) -> None:
    names = [f"a rather long class name {index}" for index in range(55)]
    matrix = np.eye(55, dtype=int) * 12
    save_confusion_matrix(matrix.tolist(), names, tmp_path / "a.png")
    matrix[3, 40] = 1
    save_confusion_matrix(matrix.tolist(), names, tmp_path / "b.png")
    first, second = picture(tmp_path / "a.png", most=2600), picture(tmp_path / "b.png", most=2600)
    rows, columns = np.nonzero((first != second).any(axis=2))
    # One cell alone, for zeros are not written, and its row, whose shares change.
    assert np.ptp(rows) < 45 and np.ptp(columns) > 900


@pytest.mark.parametrize(("size", "named"), [(9, 9), (10, 9), (55, 9)])
def test_few_classes_have_a_name_in_a_panel_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, named: int
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr("jigsawssl.report.figures._save", lambda figure, path: figures.append(figure))
    probabilities, labels = torch.rand(220, size, generator=torch.Generator().manual_seed(0)), torch.arange(220) % size
    names = [f"class {index}" for index in range(size)]
    save_finetune_curves({}, probabilities.softmax(dim=1), labels, names, tmp_path / "curves.png")
    truth = classification_metrics(probabilities.softmax(dim=1), labels, names)["per_class"]
    for axis, area in zip(figures[0].axes, ("auroc", "average_precision"), strict=True):
        entries = [text.get_text() for text in axis.get_legend().get_texts()]
        worst = sorted(names, key=lambda name, area=area: truth[name][area])[:named]
        assert {entry.split(" (")[0] for entry in entries if "(" in entry} == set(worst)
        assert [entry for entry in entries if "(" not in entry] == (
            [f"{size - named} others, no worse"] if size > named else []
        )
        assert sum(len(line.get_xdata()) > 0 for line in axis.lines) >= size


def test_curves(tmp_path: Path) -> None:
    save_curves(HISTORY, tmp_path / "a.png", "Pretraining")
    save_curves({**HISTORY, "train_loss": [(1, 0.9), (2, 0.9)]}, tmp_path / "b.png", "Pretraining")
    save_curves({"train_loss": [(1, 0.9)]}, tmp_path / "c.png", "One epoch")
    many = {f"train_loss/branch_{index}": [(1, index), (2, index)] for index in range(12)}
    save_curves({**many, "effective_rank": [(1, 3.0)], "lr": [(1, 0.1)], "std": [(1, 1)]}, tmp_path / "d.png", "All")
    first, second = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    assert first.shape == second.shape and different(first, second)
    assert picture(tmp_path / "c.png").shape[1] < first.shape[1] < picture(tmp_path / "d.png").shape[1]


@pytest.mark.parametrize("size", [2, 7])
def test_finetune_curves_with_and_without_history(tmp_path: Path, size: int) -> None:
    names = [f"class {index}" for index in range(size)]
    save_finetune_curves(HISTORY, *predictions(size), names, tmp_path / "four.png")
    save_finetune_curves({}, *predictions(size), names, tmp_path / "two.png")
    save_finetune_curves({}, *predictions(size, seed=1), names, tmp_path / "other.png")
    four, two, other = (picture(tmp_path / f"{name}.png") for name in ("four", "two", "other"))
    assert four.shape[0] > two.shape[0] and two.shape == other.shape and different(two, other)


def test_finetune_curves_with_absent_classes(tmp_path: Path) -> None:
    probabilities, labels = predictions(3)
    save_finetune_curves({}, probabilities, labels.clamp(max=1), ["a", "b", "c"], tmp_path / "absent.png")
    save_finetune_curves({"train_loss": [(1, 1.0)]}, probabilities, labels * 0, ["a", "b", "c"], tmp_path / "one.png")
    assert different(picture(tmp_path / "absent.png"), picture(tmp_path / "one.png"))


def cells(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Connected areas of a colour, as wide and high as a picture on a contact sheet."""
    areas = label((pixels == colour).all(axis=2))[0]
    side = (CELL - 0.12) * 130
    extents = [(part[0].stop - part[0].start, part[1].stop - part[1].start) for part in find_objects(areas)]
    return sum(abs(height - side) < 2 and abs(width - side) < 2 for height, width in extents)


def test_pictures_of_a_contact_sheet_never_touch(tmp_path: Path) -> None:
    orange = torch.tensor([1.0, 0.6, 0.2]).view(1, 3, 1, 1)
    long = "a/" * 40 + "name-with-0123456789-0123456789-0123456789.png"
    for count, names, sets in ((13, "short", []), (13, long, [3, 3, 2, 4, 1]), (11, f"{long}\nx, train", [11])):
        save_contact_sheet(orange.expand(count, 3, 4, 4), [names] * count, tmp_path / "a.png", "All", sets=sets)
        assert cells(picture(tmp_path / "a.png"), (255, 153, 51)) == count


def test_each_set_of_a_contact_sheet_has_a_frame_of_one_colour(tmp_path: Path) -> None:
    images = torch.ones(7, 1, 4, 4)
    save_contact_sheet(images, [""] * 7, tmp_path / "a.png", "All", sets=[3, 2, 2])
    pixels = picture(tmp_path / "a.png").astype(int)
    widths = []
    for colour in COLOURS[:3]:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        where = np.flatnonzero((abs(pixels - wanted).max(axis=2) < 40).sum(axis=0) > CELL * 130 / 2)
        widths.append(round((where.max() - where.min()) / (CELL * 130)))
    assert widths == [3, 2, 2]


def explained(path: Path, values: torch.Tensor, note: str = "") -> np.ndarray:
    grey = torch.full((len(values), 1, 8, 8), 0.5)
    captions = ["a → b\n0.70   12ab34cd"] * len(values)
    save_explanations({"right": (grey, {"Grad-CAM": values}, captions)}, path, note=note)
    with Image.open(path) as image:
        assert image.format == "JPEG" and pyplot.get_fignums() == []
        return np.asarray(image.convert("RGB")).astype(int)


def colours(pixels: np.ndarray) -> int:
    """Colours that are not grey, as far as JPEG keeps them apart."""
    vivid = pixels[(pixels.max(axis=2) - pixels.min(axis=2)) > 40]
    return len(np.unique(vivid // 16, axis=0))


def test_explanations_have_one_colour_bar_from_low_to_high(tmp_path: Path) -> None:
    flat = explained(tmp_path / "a.jpg", torch.zeros(2, 8, 8))
    # Maps of 0 have no colour: all that there is belongs to the bar, which is in the right tenth.
    assert colours(flat) > 20
    assert colours(flat[:, : flat.shape[1] * 8 // 10]) == 0
    right = flat[:, flat.shape[1] * 8 // 10 :]
    bright, dark = (
        np.flatnonzero(condition.any(axis=1))
        for condition in ((abs(right - [252, 255, 164]).max(axis=2) < 30), (right.max(axis=2) < 20))
    )
    assert bright.min() < dark.max() and bright.mean() < flat.shape[0] / 2  # high is above


def test_cells_are_drawn_with_sharp_edges(tmp_path: Path) -> None:
    cells = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
    smooth = torch.linspace(0, 1, 64).view(1, 8, 8)
    few, many = (explained(tmp_path / "a.jpg", maps) for maps in (cells, smooth))
    pictures = slice(0, few.shape[1] * 7 // 10)  # without the bar
    assert 0 < colours(few[:, pictures]) < colours(many[:, pictures])


def test_a_note_has_its_place_below_the_pictures(tmp_path: Path) -> None:
    def bands(note: str) -> int:
        """How many parts lie one above the other, with nothing between them."""
        pixels = explained(tmp_path / "a.jpg", torch.rand(3, 8, 8), note)
        return int(label((pixels[:, : pixels.shape[1] * 7 // 10] < 180).any(axis=(1, 2)))[1])

    assert bands("what it says") == bands("") + 1


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    with pytest.raises(ValueError, match=r"at least one kind of view"):
        save_views_sheet({}, path, "")
    with pytest.raises(ValueError, match=r"`rows\['x'\]` must be \(B, 1 or 3, H, W\)"):
        save_views_sheet({"x": torch.rand(1, 2, 4, 4)}, path, "")
    with pytest.raises(ValueError, match=r"must be 2 x 2"):
        save_confusion_matrix([[1, 2]], ["a", "b"], path)
    with pytest.raises(ValueError, match=r"at least one \(epoch, value\) pair"):
        save_curves({"train_loss": []}, path, "")
    assert os.listdir(tmp_path) == []
