"""The first hour of a new user: README's lines, as printed, on a folder of images as clinics have it."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jigsawssl import cli
from jigsawssl.cli import demo, main
from jigsawssl.config.loading import load_config
from jigsawssl.config.schemas import CurveConfig, PretrainConfig
from jigsawssl.data.holdout import is_held_out
from jigsawssl.data.labelled import Source, open_labelled
from jigsawssl.readers import fit_image
from jigsawssl.types import ImageFormat

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("bright", "dark")


def readme(command: str) -> list[str]:
    """The arguments of a command as README prints it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(
        found for found in text.splitlines() if re.match(rf"(python scripts/{command}\.py|jigsawssl {command}) ", found)
    )
    words = shlex.split(line, comments=True)
    return [command, *words[2:]]


def write_scans(root: Path, numbers: Iterable[int]) -> None:
    """Images of two classes that are hard to tell apart."""
    for number in numbers:
        rng, label = np.random.default_rng(number), CLASSES[number % 2]
        (root / "scans" / label).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 200, (40, 48)) + (rng.integers(0, 25) if label == "bright" else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "scans" / label / f"{number:03}.png")


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with scans/ and nothing else, where a command's defaults are small and its arguments are as they are."""
    write_scans(tmp_path, range(200))
    smoke = {
        PretrainConfig: [
            "batch.size=32",
            "views.size=32",
            "views.grids=[8,4,1]",
            "block.width=16",
            "block.projection=16",
            "stem_stride=2",
            "trainer.max_epochs=1",
            "backbone_options={channels: [16,16,16,16]}",
        ],
        CurveConfig: ["mode=linear", "jobs=2"],
    }
    small: Callable[..., object] = cli.load_config

    def load(schema: type, arguments: list[str]) -> object:
        given = {argument.partition("=")[0] for argument in arguments}
        if schema is PretrainConfig and "encoder" in given:
            given |= {"stem_stride", "backbone_options"}
        defaults = [word for word in smoke.get(schema, ["mode=linear"]) if word.partition("=")[0] not in given]
        return small(schema, [*defaults, *arguments, "precision=32"])

    monkeypatch.setattr(cli, "load_config", load)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_manifest(clinic: Path, *columns: str, count: int = 200, group_of: Callable[[int], str] = str) -> None:
    lines = [",".join(("path", "label", *columns))]
    for number in range(count):
        label = CLASSES[number % 2]
        cells = {"split": "test" if number % 5 < 2 else "train", "group": group_of(number)}
        lines.append(",".join([f"{label}/{number:03}.png", label, *(cells[column] for column in columns)]))
    (clinic / "labels.csv").write_text("\n".join(lines))


def some_pairs(number: int) -> str:
    """Patients of one image each, and some of two."""
    return f"p{number}" if number < 150 else f"q{number // 2}"


def split_of(run: str) -> dict[str, str]:
    with (Path(run) / "split.csv").open(encoding="utf-8") as file:
        return {line["path"]: line["split"] for line in csv.DictReader(file)}


def held_out(run: str) -> set[str]:
    return {path for path, side in split_of(run).items() if side == "test"}


@pytest.mark.parametrize("kind", ["labels", "folders", "splits", "groups"])
def test_readme_runs_as_printed(kind: str, clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(clinic, *{"splits": ["split"], "groups": ["group"]}.get(kind, []), group_of=some_pairs)
    assert main(readme("pretrain")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("test split: 20% of the 200 images, by patient or group where known, are kept out")
    left_out = held_out("runs/pretrain")
    assert f"{len(left_out)} images are kept out, {200 - len(left_out)} are left" in printed
    arguments = [word.replace("labels.csv", "folders") if kind == "folders" else word for word in readme("finetune")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    report = json.loads(Path("runs/labels/report.json").read_text())
    assert report["leak_guard"]["same_image"] == report["leak_guard"]["same_group"] == []
    assert report["test"]["count"] == len(held_out("runs/labels")) >= 10
    assert held_out("runs/labels") <= left_out
    if kind in ("labels", "folders"):
        assert held_out("runs/labels") == left_out and "all 1" in printed and "labels (fraction=1)" in printed
    if kind == "splits":
        assert f"{80 - report['test']['count']} more are left out, as pretraining saw them" in printed
        assert all(int(Path(path).stem) % 5 < 2 for path in held_out("runs/labels"))
    # A network from fresh weights of the same architecture is tested on the same images.
    fresh = [
        word.replace("encoder=", "encoder=random:").replace("out=runs/labels", "out=runs/fresh") for word in arguments
    ]
    assert main(fresh) == 0 and held_out("runs/fresh") == held_out("runs/labels")


def test_the_same_manifest_for_both_gives_a_fifth_of_the_groups(clinic: Path) -> None:
    write_manifest(clinic, "group", group_of=lambda number: f"p{number // 4}")
    assert main([*readme("pretrain"), "manifest=labels.csv"]) == 0
    assert main(readme("finetune")) == 0
    assert held_out("runs/labels") == held_out("runs/pretrain")
    groups = {int(Path(path).stem) // 4 for path in held_out("runs/labels")}
    assert len(held_out("runs/labels")) == 4 * len(groups) and 4 <= len(groups) <= 20


def test_groups_that_allow_no_test_are_named_with_the_command_that_mends_it(
    clinic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(clinic, "group", group_of=lambda number: f"patient-{number // 20}")
    assert main(readme("pretrain")) == 0
    capsys.readouterr()
    assert main(readme("finetune")) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"groups \(\d\): patient-\d", message) and not Path("runs/labels").exists()
    command = re.search(r"by: jigsawssl (pretrain .*?), or give allow_overlap=true", message)
    assert command is not None
    again = shlex.split(command[1])
    assert main(again) == 0
    encoder = again[-1].removeprefix("out=")
    assert encoder == "runs/pretrain-2"
    assert main([word.replace("runs/pretrain", encoder) for word in readme("finetune")]) == 0
    assert held_out("runs/labels") == held_out(encoder)


def test_a_grown_archive_keeps_its_sides(clinic: Path) -> None:
    write_manifest(clinic)
    hidden = clinic / "later"
    hidden.mkdir()
    for number in range(150, 200):
        shutil.move(clinic / "scans" / CLASSES[number % 2] / f"{number}.png", hidden)
    assert main(readme("pretrain")) == 0
    before = split_of("runs/pretrain")
    for number in range(150, 200):
        shutil.move(hidden / f"{number}.png", clinic / "scans" / CLASSES[number % 2])
    assert main(readme("finetune")) == 0
    after = split_of("runs/labels")
    assert before.items() <= after.items() and held_out("runs/labels") - before.keys()


def test_everything_or_nothing_can_be_taken(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(clinic)
    assert main([*readme("pretrain"), "split=all"]) == 0
    assert "split=all: pretraining sees all 200 images; only images from elsewhere" in capsys.readouterr().out
    assert set(split_of("runs/pretrain").values()) == {"train"}
    assert main(readme("finetune")) == 2
    message = capsys.readouterr().err
    assert "split=null" in message and "allow_overlap=true" in message
    assert main([*readme("finetune"), "allow_overlap=true"]) == 0
    assert json.loads(Path("runs/labels/report.json").read_text())["leak_guard"]["same_image"]


def test_images_of_one_patient_have_no_test_split(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(clinic, "group", group_of=lambda number: "only one")
    assert main([*readme("pretrain"), "manifest=labels.csv"]) == 0
    assert "test split: none, as all images belong together" in capsys.readouterr().out
    assert set(split_of("runs/pretrain").values()) == {"train"}


def test_fine_tuning_does_not_decode_what_pretraining_decoded(
    clinic: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(clinic)
    assert main([*readme("pretrain"), "cache=shared"]) == 0
    decoded: list[int] = []

    def fit(pixels: np.ndarray, format: ImageFormat, **settings: Any) -> np.ndarray:
        decoded.append(format.size)
        return fit_image(pixels, format, **settings)

    monkeypatch.setattr("jigsawssl.data.loading.fit_image", fit)
    (clinic / "scans" / "bright" / "000.png").touch()
    capsys.readouterr()
    assert main(readme("finetune")) == 0
    assert decoded == [40], "only the file that changed, by way of the cached size"
    assert json.loads(Path("runs/labels/report.json").read_text())["data"]["from_cache"] == 199
    assert "\n199 images were taken from the cache of the pretraining\n" in capsys.readouterr().out


def test_a_test_split_that_weights_have_seen_is_not_promised(clinic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(clinic)
    assert main([*readme("pretrain"), "split=all"]) == 0
    capsys.readouterr()
    again = [word for word in readme("pretrain") if not word.startswith("out=")]
    assert main([*again, "encoder=runs/pretrain", "out=runs/more"]) == 0
    printed = capsys.readouterr().out
    assert "test split: 0 images are kept out" in printed and "have seen them" in printed
    assert set(split_of("runs/more").values()) == {"train", "seen"}


def test_where_another_pretraining_would_not_help_a_split_is_asked_for(
    clinic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The derived test split lacks a class, so that one is drawn by class, which pretraining cannot know."""
    held, kept = (
        [f"g{number}" for number in range(60) if is_held_out(f"group g{number}") == side] for side in (True, False)
    )
    write_manifest(clinic, "group", group_of=lambda n: kept[n % 7] if n % 2 else [*held[:3], *kept[7:12]][n // 2 % 8])
    assert main([*readme("pretrain"), "manifest=labels.csv"]) == 0
    capsys.readouterr()
    assert main(readme("finetune")) == 2
    message = capsys.readouterr().err
    assert (
        "another pretraining would see them too: label more of the images that runs/pretrain/split.csv marks" in message
    )
    assert "or give both commands a manifest with a column `split`" in message


def test_a_drawn_split_divides_no_patient_and_no_copy(clinic: Path) -> None:
    """Where the derived one lacks a class."""
    held = next(name for name in map(str, range(99)) if is_held_out(f"group {name}"))
    for number in (1, 3, 5):
        shutil.copy(clinic / "scans" / "dark" / "007.png", clinic / "scans" / "dark" / f"{number:03}.png")
    write_manifest(
        clinic, "group", group_of=lambda n: held if n in (0, 2) else f"{'even' if n % 2 == 0 else 'odd'} {n // 6}"
    )
    kept = {f"{'even' if n % 2 == 0 else 'odd'} {n // 6}" for n in range(200)}
    assert len(kept) > 60
    source = Source("scans", "labels.csv")
    for labelled in (open_labelled(source),):
        units = labelled.identities.units(np.arange(200))
        assert not set(units[labelled.pool].tolist()) & set(units[labelled.test].tolist())


@pytest.mark.slow
def test_the_curve_of_readme_tests_on_what_fine_tuning_tests_on(clinic: Path) -> None:
    # One per cent has to be two labels of each class, to train on one and to validate on the other.
    write_scans(clinic, range(200, 500))
    write_manifest(clinic, "group", count=500, group_of=some_pairs)
    assert main(readme("pretrain")) == 0
    assert main(readme("finetune")) == 0
    assert main(readme("curve")) == 0
    assert held_out("runs/curve") == held_out("runs/labels")
    report = json.loads(Path("runs/curve/report.json").read_text())
    assert report["missing"] == 0 and report["data"]["test"]["images"] == len(held_out("runs/curve"))


@pytest.mark.slow
def test_the_lines_of_the_demo_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def short(schema: type, arguments: list[str]) -> object:
        epochs = ["trainer.max_epochs=1"] if schema is PretrainConfig else []
        return load_config(schema, [*arguments, *epochs])  # type: ignore[type-var]

    monkeypatch.setattr(demo, "load_config", short)
    assert main(["demo", "out=runs/demo"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ jigsawssl ")]
    assert len(lines) == 3
    before = json.loads(Path("runs/demo/finetune-pretrained/report.json").read_text())["test"]
    monkeypatch.setattr(cli, "load_config", short)
    for line in lines:
        assert main(shlex.split(line)[2:]) == 0
    after = json.loads(Path("runs/demo/finetune-pretrained/report.json").read_text())["test"]
    assert after["auroc"] == pytest.approx(before["auroc"], abs=1e-6)
