"""Choosing images to label from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigsawssl.cli import main
from jigsawssl.cli import select as select_module
from jigsawssl.data.archive import Archive


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images of thirty patients, a blank one and a copy among them, with a manifest that has splits."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(60):
        coarse = rng.integers(0, 255, size=(4 + number % 5, 4 + number % 3), dtype=np.uint8)
        pixels = (
            np.full((40, 40), 90, dtype=np.uint8) if number == 7 else np.array(Image.fromarray(coarse).resize((40, 40)))
        )
        if number == 9:
            pixels = np.array(Image.open(folder / "8.png"))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append([f"{number}.png", "", "test" if number >= 48 else "train", f"p{number // 2}"])
    with (folder / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "group"], *lines])
    return folder


def choose(scans: Path, encoder: Path, out: Path, *arguments: str) -> int:
    data = [f"data={scans}", f"manifest={scans / 'manifest.csv'}"]
    return main(["select", *data, f"encoder={encoder}", f"out={out}", "precision=32", *arguments])


def listed(out: Path) -> list[dict[str, str]]:
    with (out / "to_label.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_list_pictures_and_a_page(
    scans: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    touched = set()
    read_bytes = Archive.read_bytes

    def watched(archive: Archive, row: int) -> bytes:
        touched.add(archive.samples[row].path)
        return read_bytes(archive, row)

    monkeypatch.setattr(Archive, "read_bytes", watched)
    out = tmp_path / "out"
    assert choose(scans, encoder, out, "count=10") == 0
    found = listed(out)
    numbers = [int(row["path"].removesuffix(".png")) for row in found]
    assert len(set(numbers)) == 10 and max(numbers) < 48  # of the training split alone
    assert touched and not touched & {f"{number}.png" for number in range(48, 60)}  # test images are not even opened
    assert 7 not in numbers and len({number // 2 for number in numbers}) == 10  # nothing blank, one of each patient
    assert all(row["label"] == "" and row["reason"].startswith("typical of its cluster") for row in found)
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["left_out"] == "1 blank and 1 exact duplicates"
    assert 0 < report["covered"]["share"] <= 1
    assert "Chose 10 images of 46 to label" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/jpeg') == 10 and ".png" not in page.split("<pre>")[0].split("<section")[1]
    assert main(["select", f"config={out / 'config.yaml'}", f"out={tmp_path / 'again'}"]) == 0
    assert (tmp_path / "again" / "to_label.csv").read_text() == (out / "to_label.csv").read_text()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page


def test_the_next_ones_follow_from_what_is_labelled(scans: Path, encoder: Path, tmp_path: Path) -> None:
    assert choose(scans, encoder, tmp_path / "first", "count=8") == 0
    lines = [[row["path"], "ab"[at % 2]] for at, row in enumerate(listed(tmp_path / "first"))]
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label"], *lines])
    patients = {int(path.removesuffix(".png")) // 2 for path, _ in lines}
    for method in ("typical", "margin", "entropy"):
        out = tmp_path / method
        assert choose(scans, encoder, out, "count=6", f"method={method}", f"labelled={labels}") == 0
        chosen = {int(row["path"].removesuffix(".png")) // 2 for row in listed(out)}
        assert len(chosen) == 6 and not chosen & patients


def test_patients_that_do_not_suffice_are_said(
    scans: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(scans, encoder, tmp_path / "out", "count=100", "method=random") == 0
    assert len(listed(tmp_path / "out")) == 24
    assert "(of 100 asked for; groups or images did not suffice)" in capsys.readouterr().out


def test_a_derived_test_split_is_left_out(encoder: Path, scans: Path, tmp_path: Path) -> None:
    data = tmp_path / "plain"
    data.mkdir()
    for number in range(40):
        (data / f"{number}.png").write_bytes((scans / f"{number}.png").read_bytes())
    pretrain = ["data=" + str(data), f"out={tmp_path / 'run'}", "views.size=32", "views.grids=[]", "batch.size=16"]
    small = ["backbone_options={channels: [8, 8, 8, 8]}", "stem_stride=2", "trainer.max_epochs=1", "precision=32"]
    assert main(["pretrain", *pretrain, *small]) == 0
    assert main(["select", f"data={data}", f"encoder={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "count=99"]) == 0
    with (tmp_path / "run" / "split.csv").open(newline="") as stream:
        side = {row["path"]: row["split"] for row in csv.DictReader(stream)}
    assert {side[row["path"]] for row in listed(tmp_path / "out")} == {"train"}


def test_mistakes_get_one_line(scans: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n50.png,a\n")
    for arguments, words in (
        (["method=margin"], "`method` (margin) must have labelled images of two classes to begin with"),
        ([f"labelled={labels}"], "of the test split none may); 1 of 1 are not, the first is 50.png"),
        (["count=0"], "`count` (0)"),
        (["method=best"], "`method` (best) must be one of typical"),
    ):
        assert choose(scans, encoder, tmp_path / "out", *arguments) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_finished_choice_is_left_alone(
    scans: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert choose(scans, encoder, out, "count=5", "method=random") == 0
    before = (out / "to_label.csv").read_text()
    assert choose(scans, encoder, out, "count=5", "method=random") == 2
    monkeypatch.setattr(select_module, "extract_features", None)
    assert choose(scans, encoder, out, "count=5", "method=random", "resume=true") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert choose(scans, encoder, out, "count=6", "method=random", "resume=true") == 2
    assert "`count` (6) must be the same as in the run to resume (5)" in capsys.readouterr().err
    assert (out / "to_label.csv").read_text() == before
