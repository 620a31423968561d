"""The commands, in-process and as scripts, on the embedded demo archive."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import jigsawssl
from jigsawssl import load_encoder
from jigsawssl.cli import main
from jigsawssl.cli.look import settled
from jigsawssl.config.loading import config_of, describe_keys, load_config
from jigsawssl.config.schemas import BenchConfig, FinetuneConfig, PretrainConfig, StudyConfig, TransferConfig
from jigsawssl.data import open_archive
from jigsawssl.data.budget import read_images
from jigsawssl.header import FORMAT, HEADER
from jigsawssl.training.optim import create_optimizer, create_scheduler
from tests.readers.test_dicom import dicom

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "smoke"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretraining run on the demo archive."""
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    assert main(["pretrain", "data=demo", "split=val", f"out={out}", f"config={SMOKE / 'pretrain.yaml'}"]) == 0
    return out


def finetune(encoder: object, out: Path, *arguments: str) -> int:
    return main(
        ["finetune", "data=demo", f"encoder={encoder}", f"out={out}", f"config={SMOKE / 'finetune.yaml'}", *arguments]
    )


def images_folder(root: Path, count: int = 12) -> Path:
    """Two classes of small images in a folder each."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 48), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_pretraining_leaves_everything_that_a_run_should(pretrained: Path) -> None:
    names = {entry.name for entry in pretrained.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.csv",
        "encoder.safetensors",
        "report.json",
        "views.png",
        "curves.png",
        "tensorboard",
    }
    assert (pretrained / "checkpoints" / "last.ckpt").is_file()
    with (pretrained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    branches = ("layer2", "layer3", "layer4", "all")
    for column in ("loss", "feature_std", "effective_rank", *(f"loss_{name}" for name in branches)):
        assert all(np.isfinite(float(row[column])) for row in rows), column
    for name in branches:
        assert -1.001 <= float(rows[-1][f"diagonal_{name}"]) <= 1.001
        assert 0 <= float(rows[-1][f"off_diagonal_{name}"]) <= 1.001
    report = json.loads((pretrained / "report.json").read_text())
    assert report["data"]["images"] == 196 and report["data"]["channels"] == 1
    assert report["run"]["updates"] == 2 * (report["data"]["images"] // 64)


def test_the_encoder_works_on_images_of_any_size(pretrained: Path) -> None:
    encoder = jigsawssl.load_encoder(pretrained / "encoder.safetensors")
    assert not encoder.training
    images = torch.randint(256, (3, 3, 50, 70), dtype=torch.uint8)
    with torch.no_grad():
        features = encoder(encoder.preprocess(images))
        taps = encoder.taps(encoder.preprocess(images))
    assert features.shape == (3, encoder.features)
    for tap in taps.values():
        assert tap.features.shape == (3, tap.channels, 32 // tap.reduction, 32 // tap.reduction)


def test_pretraining_without_jigsaw_and_with_four_updates(tmp_path: Path) -> None:
    common = ["pretrain", "data=demo", "split=val", f"config={SMOKE / 'pretrain.yaml'}", "trainer.max_epochs=1"]
    assert main([*common, f"out={tmp_path / 'plain'}", "views.grids=[]"]) == 0
    assert main([*common, f"out={tmp_path / 'four'}", "schedule=progressive", "optimizer.name=lars"]) == 0
    plain, four = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("plain", "four"))
    assert four["run"]["updates"] == 4 * plain["run"]["updates"]
    assert "loss_all" not in plain["metrics"] and "loss_all" in four["metrics"]


def test_a_resumed_run_ends_like_an_unbroken_one(pretrained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    common = ["pretrain", "data=demo", "split=val", f"out={broken}", f"config={SMOKE / 'pretrain.yaml'}"]

    class Stop(BaseException):
        pass

    from jigsawssl.training.monitors import Throughput

    original = Throughput.on_train_epoch_start

    def interrupt(self: Throughput, trainer: object, module: object) -> None:
        if trainer.current_epoch == 1:  # type: ignore[attr-defined]
            raise Stop
        original(self, trainer, module)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_epoch_start", interrupt)
        with pytest.raises(Stop):
            main(common)
    assert not (broken / "encoder.safetensors").exists()
    assert main([*common, "resume=true"]) == 0
    whole = jigsawssl.load_encoder(pretrained / "encoder.safetensors").state_dict()
    fixed = jigsawssl.load_encoder(broken / "encoder.safetensors").state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(fixed[name], value, msg=name)
    with (broken / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    report = json.loads((broken / "report.json").read_text())
    assert report["run"]["resumed"] and report["run"]["seconds"] == pytest.approx(
        sum(float(row["seconds"]) for row in rows)
    )


@pytest.mark.parametrize(
    ("epoch", "told", "begins"),
    [
        (0, "in epoch 1 of 2; nothing of it is saved yet, as checkpoints are written at the end of an epoch; "
            "resume=true starts over", "nothing was saved to resume from; beginning at epoch 1 of 2"),
        (1, "in epoch 2 of 2; epoch 1 is saved; go on with resume=true", "resumed at epoch 2 of 2"),
    ],
)  # fmt: skip
def test_an_interrupt_says_what_is_saved(
    epoch: int, told: str, begins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jigsawssl.training.monitors import Throughput

    start = Throughput.on_train_batch_start

    def interrupt(self: Throughput, trainer: object, *rest: object) -> None:
        if trainer.current_epoch == epoch:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        start(self, trainer, *rest)  # type: ignore[arg-type]

    common = ["pretrain", "data=demo", "split=val", f"out={tmp_path / 'run'}", f"config={SMOKE / 'pretrain.yaml'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_start", interrupt)
        assert main(common) == 130
        shown = capsys.readouterr()
        assert shown.err.splitlines()[-1] == f"jigsawssl: interrupted {told}"
        assert "epoch 1 of 2: loss" in shown.err if epoch else "epoch 1 of 2: loss" not in shown.err
        assert main([*common, "resume=true"]) == 130  # once more, at the same place
    assert begins in capsys.readouterr().out.splitlines()


def test_an_interrupt_before_training_says_what_the_cache_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jigsawssl.data import cache_writer

    folder, decode, calls = images_folder(tmp_path / "images"), cache_writer._decoded, []

    def stops(*arguments, **settings):  # type: ignore[no-untyped-def]
        calls.append(arguments)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return decode(*arguments, **settings)

    monkeypatch.setattr(cache_writer, "_decoded", stops)
    arguments = ["pretrain", f"data={folder}", "split=all", f"out={tmp_path / 'run'}", "batch.workers=1"]
    assert main([*arguments, f"config={SMOKE / 'pretrain.yaml'}"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "jigsawssl: interrupted before training began; the cache keeps the 10 images decoded so far; "
        "go on with resume=true"
    )


def test_a_finished_run_goes_on_to_more_epochs(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(out: Path, epochs: int, *more: str) -> int:
        common = ["pretrain", "data=demo", "split=val", f"out={out}", f"config={SMOKE / 'pretrain.yaml'}"]
        return main([*common, f"trainer.max_epochs={epochs}", *more])

    longer = tmp_path / "longer"
    shutil.copytree(pretrained, longer)
    (longer / "checkpoints").rename(tmp_path / "checkpoints")
    before = tree(longer)
    assert run(longer, 4, "resume=true") == 2
    assert "`trainer.max_epochs` (4) must be the 2 of the finished run" in capsys.readouterr().err
    assert tree(longer) == before
    (tmp_path / "checkpoints").rename(longer / "checkpoints")
    before = tree(longer)
    assert run(longer, 1, "resume=true") == 0 and tree(longer) == before
    assert "(2 epochs); nothing to do; raise trainer.max_epochs to go on" in capsys.readouterr().out
    assert run(longer, 4, "resume=true") == 0
    assert "resumed at epoch 3 of 4" in capsys.readouterr().out.splitlines()
    with (longer / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    schedule = create_scheduler(create_optimizer("adamw", {"all": (torch.nn.Linear(1, 1), 2e-3)}), 12, warmup=0.1)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[2:] == pytest.approx([2e-3 * schedule.scale_lr(step) for step in (9, 12)]) and rates[1] < rates[2]
    report = json.loads((longer / "report.json").read_text())
    assert report["run"]["epochs"] == 4 and report["run"]["updates"] == 4 * (report["data"]["images"] // 64)
    old, new = (jigsawssl.load_encoder(folder / "encoder.safetensors").state_dict() for folder in (pretrained, longer))
    assert any(not torch.equal(old[name], new[name]) for name in old)
    (longer / "report.json").write_text('{"command": "pretrain"}')
    assert run(longer, 4, "resume=true") == 2
    said = capsys.readouterr().err
    assert "it is damaged (KeyError); delete it to go on from the checkpoint" in said and said.count("\n") == 1
    (longer / "report.json").unlink()
    assert run(longer, 3, "resume=true") == 2
    assert "must be at least the epochs that `out`" in capsys.readouterr().err


def test_resume_needs_the_same_images_and_not_the_same_workers(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = images_folder(tmp_path / "images"), tmp_path / "run"
    common = ["pretrain", f"data={images}", f"out={out}", f"config={SMOKE / 'pretrain.yaml'}", "batch.size=4"]
    assert main([*common, "trainer.max_epochs=1"]) == 0
    longer = [*common, "trainer.max_epochs=2", "resume=true"]
    moved = images.rename(tmp_path / "moved")
    elsewhere = [part.replace(f"data={images}", f"data={moved}") for part in longer]
    rng = np.random.default_rng(1)
    for file in moved.rglob("*.png"):  # another archive under the same names
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(file)
    before = (out / "encoder.safetensors").read_bytes()
    capsys.readouterr()
    assert main(elsewhere) == 2
    assert "`data` must hold the images that the run began with" in capsys.readouterr().err
    assert (out / "encoder.safetensors").read_bytes() == before
    shutil.rmtree(moved)
    images_folder(tmp_path / "images").rename(moved)
    assert main([*elsewhere, "batch.workers=1"]) == 0
    assert main([*elsewhere, "batch.size=3"]) == 2 and "`batch.size` (3)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["constant", "the same image"])
def test_images_without_differences_are_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for number in range(8):
        same = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
        pixels = same if kind == "the same image" else np.full((40, 40), 20 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    run = ["pretrain", f"data={tmp_path / 'images'}", "split=all", f"out={tmp_path / 'run'}"]
    assert main([*run, f"config={SMOKE / 'pretrain.yaml'}"]) == 2
    assert f"all 8 are {kind}" in capsys.readouterr().err and not (tmp_path / "run" / "encoder.safetensors").exists()


def test_resume_refuses_another_configuration(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pretrained, copy)
    before = tree(copy)
    arguments = [
        "pretrain",
        "data=demo",
        "split=val",
        f"out={copy}",
        f"config={SMOKE / 'pretrain.yaml'}",
        "resume=true",
        "seed=7",
    ]
    assert main(arguments) == 2
    assert "`seed` (7)" in capsys.readouterr().err
    assert tree(copy) == before


@pytest.mark.parametrize("mode", ["auto", "linear", "knn", "full", "progressive"])
def test_finetuning_reports_budget_and_test(mode: str, pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / mode
    assert finetune(pretrained / "encoder.safetensors", out, f"mode={mode}") == 0
    report = json.loads((out / "report.json").read_text())
    budget = report["budget"]
    assert sum(budget["per_class"].values()) == budget["labels"] == pytest.approx(0.05 * budget["available"], abs=8)
    assert "inside the fraction" in budget["validation"]
    assert report["when"]["began"] <= report["when"]["ended"]
    assert report["verdict"]["result"].startswith("Test AUROC") and report["judgement"]["validation"]["images"] > 0
    assert set(report["test"]) >= {"auroc", "average_precision", "balanced_accuracy", "f1", "confusion_matrix"}
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report["test"]["count"] == np.sum(report["test"]["confusion_matrix"])
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert right == pytest.approx(report["test"]["accuracy"])
    assert (out / "curves.png").stat().st_size and (out / "confusion.png").stat().st_size
    if mode == "knn":
        assert report["model_file"] is None and not (out / "model.safetensors").exists()
        return
    model, classes = jigsawssl.load_classifier(out / "model.safetensors")
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert model(model.encoder.preprocess(images)).shape == (2, len(classes))


@pytest.mark.parametrize("mode", ["auto", "linear"])
def test_finetuning_learns_from_images_without_a_label(
    mode: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[tuple[str, ...], set[str | None]]] = []

    def spy(labelled: Any, rows: Any, **settings: Any) -> Any:
        if settings["what"] == "unlabeled":
            part = labelled.archive.select(rows.tolist())
            read.append((tuple(sample.path for sample in part.samples), {sample.label for sample in part.samples}))
        return read_images(labelled, rows, **settings)

    monkeypatch.setattr("jigsawssl.cli.finetune.read_images", spy)
    encoder, out = pretrained / "encoder.safetensors", tmp_path / mode
    assert finetune(encoder, out, f"mode={mode}", "unlabeled=true") == 0
    report = json.loads((out / "report.json").read_text())
    budget = report["budget"]
    assert budget["unlabelled"] + budget["labels"] == budget["available"]
    assert report["chosen"]["self-trained share"] in (0.0, 0.5, 1.0)
    assert f"beside {budget['unlabelled']:,} images without a label" in report["verdict"]["done"]
    ((paths, labels),) = read
    with (out / "predictions.csv").open() as file:
        assert not {row["path"] for row in csv.DictReader(file)} & set(paths)
    assert labels == {None}  # nobody can learn them
    capsys.readouterr()
    assert finetune(encoder, tmp_path / "no", "mode=full", "unlabeled=true") == 2
    assert "`unlabeled` (true) goes with mode=auto or linear" in capsys.readouterr().err
    if mode == "auto":
        assert finetune(f"random:{encoder}", tmp_path / "no", "unlabeled=true") == 2
        assert "needs an encoder with trained weights" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_fresh_weights_of_the_same_architecture(pretrained: Path, tmp_path: Path) -> None:
    assert finetune(f"random:{pretrained / 'encoder.safetensors'}", tmp_path / "r", "mode=linear") == 0
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["encoder"]["trained_weights"] is False


def test_a_full_validation_split_is_named_in_the_report(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "v"
    assert (
        finetune(pretrained / "encoder.safetensors", out, "mode=linear", "validation=split", "allow_overlap=true") == 0
    )
    budget = json.loads((out / "report.json").read_text())["budget"]
    assert "outside the fraction" in budget["validation"]
    assert budget["labels"] > budget["labels_in_fraction"] == sum(budget["per_class"].values())


def test_a_folder_of_classes_without_a_split(pretrained: Path, tmp_path: Path) -> None:
    folder = images_folder(tmp_path / "images")
    arguments = ["finetune", f"data={folder}", "manifest=folders", f"encoder={pretrained / 'encoder.safetensors'}"]
    assert main([*arguments, f"out={tmp_path / 'run'}", "mode=linear", "precision=32"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["split_made_by"].startswith("made here") and report["test"]["count"] == pytest.approx(5, abs=1)


def test_unreadable_files_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images_folder(tmp_path / "images", count=40)
    (folder / "a" / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "run"
    arguments = ["pretrain", f"data={folder}", f"out={out}", f"config={SMOKE / 'pretrain.yaml'}", "batch.size=16"]
    arguments.append("split=all")
    assert main([*arguments, "trainer.max_epochs=1"]) == 0
    assert "split=all: pretraining sees all 81 images" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    reason = "not an image of a known format"
    assert report["data"]["unreadable"] == {"a/broken.png": reason} and report["data"]["images"] == 80
    assert (out / "quarantine.csv").read_text().splitlines() == ["path,reason", f"a/broken.png,{reason}"]
    for number in range(20):
        (folder / "a" / f"{number}.png").write_bytes(b"not a picture")
    assert main([*arguments, "overwrite=true"]) == 2
    assert "21 of 81" in capsys.readouterr().err
    assert len((out / "quarantine.csv").read_text().splitlines()) == 22
    for cache in (f"cache={tmp_path / 'cache'}", "cache=off"):
        assert main([*arguments, "overwrite=true", "trainer.max_epochs=1", "max_bad_fraction=0.5", cache]) == 0
        assert json.loads((out / "report.json").read_text())["data"]["cached"] == (cache != "cache=off")


def test_no_file_of_a_run_names_where_things_lie(tmp_path: Path) -> None:
    """But config.yaml, which holds what was typed, for resuming."""
    folder = images_folder(tmp_path / "images", count=20)
    run, tuned = tmp_path / "p", tmp_path / "f"
    smoke = [f"config={SMOKE / 'pretrain.yaml'}", "batch.size=16", "trainer.max_epochs=1"]
    assert main(["pretrain", f"data={folder}", f"out={run}", *smoke]) == 0
    encoder = f"encoder={run / 'encoder.safetensors'}"
    arguments = ["finetune", f"data={folder}", "manifest=folders", encoder, "mode=linear", "allow_overlap=true"]
    assert main([*arguments, f"out={tuned}"]) == 0
    files = [file for root in (run, tuned) for file in root.rglob("*") if file.is_file() and file.name != "config.yaml"]
    assert len(files) > 15
    for file in files:
        assert str(tmp_path).encode() not in file.read_bytes(), file.name


def test_sixteen_bits_go_all_the_way(tmp_path: Path) -> None:
    """Pretraining and fine-tuning on DICOM files of 12 bits in a zip and on 16-bit PNG files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for label in "ab":
        (folder / label).mkdir(parents=True)
    with zipfile.ZipFile(folder / "scans.zip", "w") as file:
        for number in range(40):
            label = "ab"[number % 2]
            values = rng.integers(900 * (number % 2), 1000 + 900 * (number % 2), (40, 50), dtype=np.uint16)
            if number < 20:
                file.writestr(
                    f"{label}/{number}.dcm", dicom(values, WindowCenter=1000, WindowWidth=2000, PatientID=f"p{number}")
                )
            else:
                Image.fromarray(values).save(folder / label / f"{number}.png")
    run = tmp_path / "run"
    smoke = [
        f"config={SMOKE / 'pretrain.yaml'}",
        "batch.size=8",
        "trainer.max_epochs=1",
        "reading.fit=crop",
        "split=all",
    ]
    assert main(["pretrain", f"data={folder}", f"out={run}", *smoke, "reading.window=file"]) == 0
    report = json.loads((run / "report.json").read_text())
    assert report["data"]["bits"] == 16 and report["data"]["images"] == 40 and report["data"]["unreadable"] == {}
    assert (run / "views.png").stat().st_size > 1000
    encoder = run / "encoder.safetensors"
    assert jigsawssl.load_encoder(encoder).spec.format.fit == "crop"
    tuned = tmp_path / "tuned"
    arguments = ["finetune", f"data={folder}", "manifest=folders", f"encoder={encoder}", f"out={tuned}"]
    assert main([*arguments, "mode=linear", "allow_overlap=true", "precision=32"]) == 0
    assert json.loads((tuned / "report.json").read_text())["test"]["count"] >= 2


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["pretrain", "data=demo"], ["`out`", "required"]),
        (["pretrain", "data=demo", "out=O", "batch.siz=3"], ["`batch.siz`", "`batch.size`"]),
        (["pretrain", "data=demo", "out=O", "batch.size=many"], ["`batch.size`", "many"]),
        (["pretrain", "data=demo", "out=O", "views.size=225"], ["`views.size` (225)", "(16)", "224, 240"]),
        (["pretrain", "data=/nowhere", "out=O"], ["`data`", "/nowhere"]),
        (["pretrain", "data=EMPTY", "out=O"], ["`data`", ".png"]),
        (["pretrain", "data=demo", "out=FULL"], ["`out`", "precious.txt"]),
        (["pretrain", "data=demo", "out=FULL", "overwrite=true"], ["`out`", "precious.txt"]),
        (["pretrain", "data=demo", "out=O", "backbone=resnet999"], ["`backbone` (resnet999)"]),
        (["pretrain", "data=demo", "out=O", "split=holdout"], ["`split` (holdout)", "train"]),
        (["pretrain", "data=demo", "out=O", "encoder=nothing.safetensors"], ["`encoder`", "nothing.safetensors"]),
        (["finetune", "data=demo", "out=O", "encoder=random:resnet18", "fraction=2"], ["`fraction` (2"]),
        (["finetune", "data=FOLDER", "out=O", "encoder=random:resnet18"], ["`data`", "manifest="]),
        (["finetune", "data=demo", "out=O", "encoder=timm:resnet18"], ["`encoder`", "timm:resnet18:FILE"]),
        (["finetune", "data=demo", "out=O", "encoder=random:resnet18", "mode=best"], ["`mode` (best)", "auto"]),
        (["finetune", "data=demo", "out=O", "encoder=random:resnet18", "split=test"], ["`split` (test)", "train"]),
        (["pretrain", "data=demo", "out=O", "encoder=e.safetensors", "backbone=resnet50"], ["`backbone` (resnet50)"]),
        (["pretend"], ["pretend", "pretrain"]),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "precious.txt").write_text("keep me")
    (tmp_path / "EMPTY").mkdir()
    images_folder(tmp_path / "FOLDER", count=2)
    before = tree(tmp_path)
    for word in ("FULL", "EMPTY", "FOLDER", "=O"):
        target = f"={tmp_path / 'O'}" if word == "=O" else str(tmp_path / word)
        arguments = [a.replace(word, target) if a.endswith(word) else a for a in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len([line for line in error if line.startswith("jigsawssl:")]) == 1 and "Traceback" not in "\n".join(error)
    for part in parts:
        assert part in error[-1]
    assert tree(tmp_path) == before


def test_overwrite_replaces_a_run(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(pretrained, out)
    common = [
        "pretrain",
        "data=demo",
        "split=val",
        f"out={out}",
        f"config={SMOKE / 'pretrain.yaml'}",
        "trainer.max_epochs=1",
    ]
    assert main([*common, "overwrite=true"]) == 0
    with (out / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


def test_pretraining_goes_on_from_an_encoder(pretrained: Path, tmp_path: Path) -> None:
    file = pretrained / "encoder.safetensors"
    arguments = ["pretrain", "data=demo", "split=val", f"encoder={file}", "views.size=48", "views.grids=[4,2,1]"]
    small = ["block.width=16", "block.projection=16", "batch.size=64", "trainer.max_epochs=1", "precision=32"]
    assert main([*arguments, *small, f"out={tmp_path / 'on'}"]) == 0
    before, after = jigsawssl.load_encoder(file), jigsawssl.load_encoder(tmp_path / "on" / "encoder.safetensors")
    assert after.spec.format.size == 48 and after.spec.backbone == before.spec.backbone
    statistics = [name for name in before.state_dict() if name.endswith("running_mean")]
    assert all(not torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in statistics)


def test_going_on_from_an_encoder_keeps_its_format_unless_a_key_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "start.safetensors"
    format = jigsawssl.ImageFormat(48, channels=1, fit="crop", window="percentiles", mean=(0.3,), std=(0.2,))
    options = {"channels": [16, 16, 16, 16]}
    jigsawssl.save_encoder(file, jigsawssl.create_encoder("resnet18", format, backbone_options=options))
    common = ["pretrain", "data=demo", "split=val", f"encoder={file}", "views.grids=[4,2,1]", "block.width=16"]
    common += ["block.projection=16", "batch.size=64", "trainer.max_epochs=1", "precision=32"]
    for name, keys, expected in (("kept", [], format), ("changed", ["reading.fit=squash", "views.size=32"], None)):
        out = tmp_path / name
        assert main([*common, *keys, f"out={out}"]) == 0
        after = jigsawssl.load_encoder(out / "encoder.safetensors").spec.format
        assert after == (expected or dataclasses.replace(format, fit="squash", size=32))
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: `")]
        assert sorted(line.split("`")[1] for line in told) == sorted(key.split("=")[0] for key in keys)
        assert main([*common, *keys, f"out={out}", "resume=true"]) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert main([*common, f"out={tmp_path / 'no'}", "views.grids=[5,2,1]"]) == 2
    assert "`views.size` (48) must be divisible by `views.grids` (5)" in capsys.readouterr().err


def test_an_encoder_whose_header_says_nothing_of_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "encoder.safetensors"
    save_file({"w": torch.zeros(1)}, file, metadata={HEADER: json.dumps({"format": FORMAT, "kind": "encoder"})})
    assert main(["pretrain", "data=demo", f"encoder={file}", f"out={tmp_path / 'o'}", "precision=32"]) == 2
    assert "must have a complete header" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_fine_tuning_stops_where_pretraining_saw_the_test_images(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_folder(tmp_path / "images", count=20)
    common = [f"data={folder}", "precision=32"]
    smoke = f"config={SMOKE / 'pretrain.yaml'}"
    more = ["batch.size=16", "trainer.max_epochs=1", "split=all"]
    assert main(["pretrain", *common, smoke, *more, f"out={tmp_path / 'p'}"]) == 0
    own = tmp_path / "p" / "encoder.safetensors"
    finetune = ["finetune", *common, "manifest=folders", "mode=linear"]
    capsys.readouterr()
    assert main([*finetune, f"encoder={own}", f"out={tmp_path / 'no'}"]) == 2
    message = capsys.readouterr().err
    assert "of 9 validation and test images pretraining saw 9 themselves" in message and ".png" in message
    assert not (tmp_path / "no").exists()
    answers = []
    moved = tmp_path / "moved" / "encoder.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(own.read_bytes())
    for number, encoder in enumerate((own, pretrained / "encoder.safetensors", f"random:{own}", moved)):
        out = tmp_path / f"f{number}"
        assert main([*finetune, f"encoder={encoder}", "allow_overlap=true", f"out={out}"]) == 0
        answers.append(json.loads((out / "report.json").read_text())["leak_guard"])
    assert len(answers[0]["same_image"]) == 9 and answers[0]["allowed"] is True
    assert answers[1]["checked"] == "by content and group" and answers[1]["same_image"] == []
    assert [answer["checked"].split(":")[0] for answer in answers[2:]] == ["not needed", "unknown"]


def test_a_group_on_both_sides_of_the_split_is_refused(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = images_folder(tmp_path / "images", count=4)
    lines = [
        f"{label}/{number}.png,{label},{'test' if number == 3 else 'train'},{label}{number // 2}"
        for label in ("a", "b")
        for number in range(4)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split,group", *lines]))
    arguments = [
        f"data={folder}",
        f"manifest={tmp_path / 'labels.csv'}",
        f"encoder={pretrained / 'encoder.safetensors'}",
    ]
    assert main(["finetune", *arguments, f"out={tmp_path / 'run'}"]) == 2
    assert "`group` must not be divided" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_finished_pretraining_is_not_repeated(pretrained: Path) -> None:
    before = tree(pretrained)
    arguments = ["pretrain", "data=demo", "split=val", f"out={pretrained}", f"config={SMOKE / 'pretrain.yaml'}"]
    assert main([*arguments, "resume=true"]) == 0
    assert tree(pretrained) == before


def test_a_run_that_only_lacks_its_report_gets_it(pretrained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pretrained, copy)
    expected = json.loads((copy / "report.json").read_text())["metrics"]
    (copy / "report.json").unlink()
    arguments = ["pretrain", "data=demo", "split=val", f"out={copy}", f"config={SMOKE / 'pretrain.yaml'}"]
    assert main([*arguments, "resume=true"]) == 0
    assert json.loads((copy / "report.json").read_text())["metrics"] == pytest.approx(expected)


def test_finetuning_does_not_replace_its_own_encoder(pretrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(pretrained)
    assert finetune(pretrained / "encoder.safetensors", pretrained, "overwrite=true") == 2
    assert "`out`" in capsys.readouterr().err and tree(pretrained) == before


def test_a_finished_finetuning_is_not_repeated(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "once"
    assert finetune(pretrained / "encoder.safetensors", out, "mode=knn") == 0
    before = tree(out)
    assert finetune(pretrained / "encoder.safetensors", out, "mode=knn", "resume=true") == 0
    assert tree(out) == before


@pytest.mark.parametrize(("command", "schema"), [("pretrain", PretrainConfig), ("finetune", FinetuneConfig)])
def test_scripts_list_every_key(command: str, schema: type) -> None:
    script = [sys.executable, str(ROOT / "scripts" / f"{command}.py")]
    shown = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    words = " ".join(shown.split())
    for key, default, meaning in describe_keys(schema):
        assert f" {key}={default} {meaning}" in words, key


def test_scripts_run(tmp_path: Path) -> None:
    folder = images_folder(tmp_path / "images", count=20)
    base = [
        sys.executable,
        str(ROOT / "scripts" / "pretrain.py"),
        f"data={folder}",
        f"config={SMOKE / 'pretrain.yaml'}",
    ]
    subprocess.run([*base, f"out={tmp_path / 'p'}", "batch.size=16"], check=True, capture_output=True)
    base = [sys.executable, str(ROOT / "scripts" / "finetune.py"), f"data={folder}", "manifest=folders", "mode=linear"]
    base.append("allow_overlap=true")
    encoder = f"encoder={tmp_path / 'p' / 'encoder.safetensors'}"
    done = subprocess.run([*base, encoder, f"out={tmp_path / 'f'}"], check=True, capture_output=True, text=True)
    assert "auroc" in done.stdout
    wrong = subprocess.run([*base, encoder, f"out={tmp_path / 'f'}"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    finetuning = "finetune" in path.stem or path.parent.name == "finetune"
    required = ["data=demo", "out=run", f"config={path}"]
    if "transfer" in (path.stem, path.parent.name):
        for stage in load_config(TransferConfig, required[1:]).stages:
            values = {key: value for key, value in stage.items() if key not in ("name", "objective")}
            schema = PretrainConfig if stage.get("objective") == "jigsaw" else FinetuneConfig
            assert config_of(schema, {**values, "out": "run"}).data
    elif "study" in (path.stem, path.parent.name):
        assert len(load_config(StudyConfig, required).variants) > 2
    elif finetuning:
        assert load_config(FinetuneConfig, [*required, "encoder=random:compact_cnn"]).fraction > 0
    else:
        assert load_config(PretrainConfig, required).trainer.max_epochs > 0


def test_bench_takes_a_step_apart_and_compares_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "data=demo",
        "views.size=32",
        "views.grids=[4,2,1]",
        "views.share=1",
        "batch.size=8",
        "rounds=1",
        "stem_stride=2",
    ]
    assert main(["bench", *arguments, "backbone_options={channels: [16,16,16,16]}", "trainer.max_epochs=7"]) == 0
    printed = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"\| +([0-9.]+)% \|", printed)]
    assert len(shares) == 6 and sum(shares) == pytest.approx(100, abs=0.5)
    for part in (
        "data",
        "augmentation",
        "encoder",
        "block",
        "loss",
        "optimizer",
        "images/s",
        "7 epochs of 204 batches",
    ):
        assert f"| {part} " in printed
    assert "| views.share=0.5 " in printed and "| batch.size=16 " in printed and "both together" in printed
    assert "this processor " in printed
    assert not list(tmp_path.iterdir()), "nothing is written"
    assert main(["bench", "data=demo", "rounds=0"]) == 2


def test_bench_times_the_step_of_the_run(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jigsawssl.cli.bench import _Bench
    from jigsawssl.cli.building import build_dataset, starting_encoder

    source = pretrained / "encoder.safetensors"
    keys = [
        "data=demo",
        f"encoder={source}",
        "train=from:stage4",
        "attention=se",
        "batch.size=8",
        "schedule=progressive",
    ]
    size = load_encoder(source).spec.format.size
    config = load_config(BenchConfig, [*keys, f"views.size={size}", "views.grids=[4,2,1]"])
    dataset = build_dataset(config, open_archive("demo").select(range(12)), 1)
    dataset.load(progress=False)
    bench = _Bench(config, dataset, 12, torch.device("cpu"))
    encoder, expected = bench.module.encoder, starting_encoder(config, dataset.format.channels)
    assert expected is not None and torch.equal(encoder.backbone.conv1.weight, expected.backbone.conv1.weight), (
        "goes on from the encoder"
    )
    assert not encoder.backbone.conv1.weight.requires_grad and encoder.attention
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(encoder, "normalize_stain", lambda images: (seen.append(images), images)[1])
    updates: list[float] = []
    step = bench.optimizer.step
    monkeypatch.setattr(bench.optimizer, "step", lambda: (updates.append(1.0), step())[1])
    bench.step()
    assert len(seen) == 1 and len(updates) == len(bench.module.block.branches)
    assert set(bench.apart()) == {"data", "augmentation", "encoder", "block", "loss", "optimizer"} and len(seen) == 2


def test_bench_measures_batches_of_what_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jigsawssl.cli import bench

    measured = []

    class Measured(Exception):
        pass

    def record(config: BenchConfig, dataset: Any, trained: int, device: torch.device) -> None:
        measured.append(trained)
        raise Measured

    monkeypatch.setattr(bench, "_Bench", record)
    small = ["views.size=16", "views.grids=[2,2,1]", "batch.size=24"]
    folder = images_folder(tmp_path / "images")
    for split, trained in (([], 19), (["split=all"], 24)):  # without splits, a fifth of the 24 images is kept out
        with pytest.raises(Measured):
            bench.run(load_config(BenchConfig, [f"data={folder}", *small, *split]))
        assert measured[-1] == trained


@pytest.mark.parametrize("bfloat16", [True, False])
def test_bench_offers_nothing_twice(bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from jigsawssl.cli.bench import _candidates
    from jigsawssl.training import optim

    monkeypatch.setattr(optim, "computes_bfloat16", lambda: bfloat16)

    def offered(total: int = 1000, **keys: object) -> set[str]:
        config = settled(
            load_config(BenchConfig, ["data=demo", *(f"{k.replace('__', '.')}={v}" for k, v in keys.items())])
        )
        return {candidate.setting for candidate in _candidates(config, torch.device("cpu"), total)}

    assert offered() == {"views.size=112", "batch.size=512", *(["precision=32"] if bfloat16 else [])}
    assert "precision=auto" not in offered(precision="32" if not bfloat16 else "bf16")
    assert "precision=auto" in offered(precision="32" if bfloat16 else "bf16")
    assert "batch.size=512" not in offered(total=256) and "batch.size=512" in offered(total=300)
    assert {"schedule=joint", "views.share=0.5", "block.variant=light"} <= offered(
        schedule="progressive", views__share=1, block__variant="paper"
    )
    assert not {"schedule=joint", "views.share=0.5", "block.variant=light"} & offered(
        schedule="progressive", views__share=1, block__variant="paper", views__grids="[]"
    )
    assert "views.share=0.5" not in offered(views__grids="[1,1,1]", views__share=1)
    assert "schedule=joint" not in offered(schedule="progressive", loss__weights="[0,0,0,1]")
