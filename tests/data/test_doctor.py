"""The doctor finds each defect where it was planted, and nothing in a healthy archive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset

from jigsawssl.cli import main
from jigsawssl.data.quality import examine, near_duplicates, perceptual_hash
from tests.readers.test_dicom import dicom


def smooth(seed: int, size: int = 96) -> np.ndarray:
    """A blurred random picture with some noise, like no other."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 200, (14, 14), dtype=np.uint8))
    large = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    return (large + rng.integers(-2, 3, large.shape)).clip(0, 255).astype(np.uint8)


def save(root: Path, name: str, pixels: np.ndarray, **options: object) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / name, **options)


def look(root: Path, out: Path, *more: str) -> tuple[int, dict[str, dict[str, object]]]:
    code = main(["doctor", f"data={root}", f"out={out}", *more])
    return code, json.loads((out / "doctor.json").read_text())["defects"]


def test_a_healthy_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        save(tmp_path / "a", f"{number}.png", smooth(number))
    code, defects = look(tmp_path / "a", tmp_path / "out")
    assert code == 0 and defects == {}
    printed = capsys.readouterr().out
    assert "no problems found" in printed and "96 x 96: 12" in printed
    assert (tmp_path / "out" / "sheets" / "archive.png").is_file() and (tmp_path / "out" / "table.parquet").is_file()
    assert main(["doctor", f"data={tmp_path / 'a'}"]) == 0


def test_planted_defects_are_found(tmp_path: Path) -> None:
    root, out = tmp_path / "a", tmp_path / "out"
    for number in range(30):
        save(root, f"good/{number}.png", smooth(number))
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    save(root, "blank.png", np.full((96, 96), 90, np.uint8))
    save(root, "tiny.png", smooth(100)[:20, :20])
    save(root, "copy.png", smooth(3))
    save(root, "smaller.jpg", np.asarray(Image.fromarray(smooth(4)).resize((64, 64))), quality=80)
    framed = np.zeros((96, 96), np.uint8)
    framed[20:70, 10:80] = smooth(101)[:50, :70]
    save(root, "framed.png", framed)
    (root / "one.dcm").write_bytes(dicom(smooth(103).astype(np.uint16) * 16, WindowCenter=2000, WindowWidth=4000))
    written = Image.fromarray(smooth(102, 256))
    ImageDraw.Draw(written).multiline_text((10, 8), "JANE DOE 1970-01-01\nHOSPITAL 12345", fill=255)
    written.save(root / "written.png")
    code, defects = look(root, out)
    assert code == 1
    assert defects["unreadable"]["count"] == 1 and defects["unreadable"]["examples"][0]["reason"] == "truncated"
    assert defects["blank"]["examples"] == ["blank.png"] and defects["tiny"]["examples"] == ["tiny.png"]
    assert defects["exact_duplicates"]["examples"] == [["copy.png", "good/3.png"]]
    assert [sorted(group) for group in defects["near_duplicates"]["examples"]] == [["good/4.png", "smaller.jpg"]]
    assert "framed.png" in defects["borders"]["examples"] and defects["text"]["examples"] == ["written.png"]
    assert defects["mixed_bit_depth"]["examples"] == ["one.dcm"]
    for name in ("blank", "exact_duplicates", "near_duplicates", "text"):
        assert (out / "sheets" / f"{name}.png").stat().st_size > 1000
    assert look(root, out)[1] == defects, "a second look, from the table"


def test_what_readers_note_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "a", tmp_path / "out"
    for number in range(12):
        save(root, f"{number}.png", smooth(number))
    save(root, "narrow.png", smooth(20) // 20 + 90)
    save(root, "green.png", np.dstack([np.zeros((96, 96), np.uint8), smooth(21), np.zeros((96, 96), np.uint8)]))
    overlay = smooth(22).astype(np.uint16) * 16 | (smooth(23) > 100).astype(np.uint16) << 12
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    (root / "overlay.dcm").write_bytes(dicom(overlay, 12, **window))
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 12], [0] * 4096
    table["LUTData"].VR = "US"
    (root / "black.dcm").write_bytes(dicom(smooth(24).astype(np.uint16) * 16, 12, VOILUTSequence=[table]))
    (root / "odd.dcm").write_bytes(dicom(smooth(25).astype(np.uint16) * 16, 12, PixelRepresentation=None, **window))
    (root / "report.dcm").write_bytes(dicom(PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"))
    _, defects = look(root, out)
    for name, path in (
        ("narrow_range", "narrow.png"),
        ("constant_channels", "green.png"),
        ("high_bits", "overlay.dcm"),
        ("flat_by_table", "black.dcm"),
    ):
        assert defects[name]["examples"] == [path], name
        assert (out / "sheets" / f"{name}.png").is_file()
    remark = "lacks PixelRepresentation; 0 taken"
    assert {"path": "odd.dcm", "reason": remark} in defects["noted"]["examples"]
    reason = "a DICOM object without pixels: Comprehensive SR"
    assert defects["left_out"]["examples"] == [{"reason": reason, "count": 1}, {"path": "report.dcm", "reason": reason}]
    assert "unreadable" not in defects
    assert f"1 {remark}" in capsys.readouterr().out


def test_the_manifest_is_looked_over(tmp_path: Path) -> None:
    root = tmp_path / "a"
    lines = ["path,label,split,group"]
    for number in range(26):
        save(root, f"{number}.png", smooth(number))
        split = "test" if number >= 20 else "train"
        lines.append(f"{number}.png,{'rare' if number == 0 else 'usual'},{split},secret-{number % 21}")
    save(root, "again.png", smooth(5))
    lines.append("again.png,usual,test,other")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\n".join(lines) + "\n")
    code, defects = look(root, tmp_path / "out", f"manifest={manifest}")
    assert code == 1
    assert defects["groups_across_splits"]["count"] == 5
    assert defects["duplicates_across_splits"]["examples"] == [["5.png", "again.png"]]
    assert defects["rare_classes"]["examples"] == ["rare"]
    assert "secret" not in (tmp_path / "out" / "doctor.json").read_text()


def darker(pixels: np.ndarray) -> np.ndarray:
    """What looks the same and is another file."""
    return (pixels * 0.9).astype(np.uint8)


def with_manifest(root: Path, rows: dict[str, tuple[np.ndarray, str]]) -> str:
    """Pictures by name, and the rest of each line of a manifest with the columns label, split and group."""
    for name, (pixels, _) in rows.items():
        save(root, name, pixels)
    lines = ["path,label,split,group", *(f"{name},{rest}" for name, (_, rest) in rows.items())]
    (root.parent / "m.csv").write_text("\n".join(lines) + "\n")
    return f"manifest={root.parent / 'm.csv'}"


def test_each_set_of_duplicates_is_told_once_by_how_grave_it_is(tmp_path: Path) -> None:
    rows = {f"{seed}.png": (smooth(seed), f"x,train,patient-{seed}") for seed in range(6)}
    rows |= {
        "copy0.png": (smooth(0), "x,train,patient-0"),
        "same_group.png": (darker(smooth(1)), "x,train,patient-1"),
        "other_group.png": (darker(smooth(2)), "x,train,patient-9"),
        "other_split.png": (darker(smooth(3)), "x,test,patient-8"),
        "other_label.png": (darker(smooth(4)), "y,train,patient-4"),
        "exact_other_split.png": (smooth(5), "x,test,patient-7"),
    }
    code, defects = look(tmp_path / "a", tmp_path / "out", with_manifest(tmp_path / "a", rows))
    found = {name: [sorted(members) for members in d["examples"]] for name, d in defects.items() if "dupl" in name}  # type: ignore[attr-defined]
    assert found == {
        "exact_duplicates": [["0.png", "copy0.png"]],
        "near_duplicates_within_groups": [["1.png", "same_group.png"]],
        "near_duplicates": [["2.png", "other_group.png"]],
        "duplicates_across_splits": [["5.png", "exact_other_split.png"], ["3.png", "other_split.png"]],
        "duplicates_across_labels": [["4.png", "other_label.png"]],
    }
    grave = {name for name, defect in defects.items() if defect["grave"]}
    assert code == 1 and grave == {"duplicates_across_splits", "duplicates_across_labels"}
    assert "of different groups" in str(defects["near_duplicates"]["meaning"])
    assert "patient" not in str(found) and {f"{name}.png" for name in found} < {
        sheet.name for sheet in (tmp_path / "out" / "sheets").iterdir()
    }


def test_patients_of_dicom_files_tell_duplicates_apart_too(tmp_path: Path) -> None:
    root = tmp_path / "a"
    root.mkdir()
    for number, patient in enumerate(("one", "one", "two", "three")):
        pixels = smooth(number // 2).astype(np.uint16) * 16 // (1 + number % 2 / 8)
        file = dicom(pixels.astype(np.uint16), PatientID=patient, WindowCenter=2000, WindowWidth=4000)
        (root / f"{number}.dcm").write_bytes(file)
    defects = look(root, tmp_path / "out")[1]
    assert defects["near_duplicates_within_groups"]["examples"] == [["0.dcm", "1.dcm"]]
    assert defects["near_duplicates"]["examples"] == [["2.dcm", "3.dcm"]]


def test_splits_are_counted_and_small_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = ["train"] * 60 + ["val"] * 4 + ["test"] * 5
    rows = {}
    for number, split in enumerate(splits):
        label = "well" if split == "test" or number % 2 else "ill"
        rows[f"{number}.png"] = (smooth(number, 48), f"{label},{split},{split}-{number // 2}")
    manifest = with_manifest(tmp_path / "a", rows)
    (tmp_path / "a" / "3.png").write_bytes(b"broken")
    assert look(tmp_path / "a", tmp_path / "out", manifest)[0] == 1
    found = json.loads((tmp_path / "out" / "doctor.json").read_text())["splits"]
    assert [(row["split"], row["images"], row["groups"], row["classes"]) for row in found] == [
        ("train", 59, 30, {"ill": 30, "well": 29}),
        ("val", 4, 2, {"ill": 2, "well": 2}),
        ("test", 5, 3, {"ill": 0, "well": 5}),
    ]
    assert found[0]["remarks"] == []
    assert found[1]["remarks"] == [
        "4 images of 2 groups are too few to choose settings by; fine-tuning validates inside the label budget instead"
    ]
    assert found[2]["remarks"][0].startswith("5 images of 3 groups are too few to judge by")
    assert found[2]["remarks"][1:] == ["no image of ill"]
    printed = capsys.readouterr().out
    for row in (
        "| train |     59 |     30 | ill: 30, well: 29 |",
        "val: 4 images of 2 groups",
        "test: no image of ill",
    ):
        assert row in printed
    assert look(tmp_path / "a", tmp_path / "none")[0] == 1
    assert json.loads((tmp_path / "none" / "doctor.json").read_text())["splits"] == []


def test_the_first_bad_files_are_named_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", "good.png", smooth(0))
    for number in range(7):
        (tmp_path / "a" / f"bad{number}.png").write_bytes(b"no picture")
    assert main(["doctor", f"data={tmp_path / 'a'}"]) == 1
    printed = capsys.readouterr().out
    named = [line.strip() for line in printed.splitlines() if "bad" in line]
    assert named == [f"bad{number}.png: not an image of a known format" for number in range(5)]
    assert "and 2 more; out=FOLDER lists them all" in printed


def test_nothing_is_written_where_the_archive_cannot_be_opened(tmp_path: Path) -> None:
    assert main(["doctor", f"data={tmp_path / 'missing'}", f"out={tmp_path / 'out'}"]) == 2
    assert not (tmp_path / "out").exists()


def test_patients_in_several_splits_are_found_without_groups(tmp_path: Path) -> None:
    root = tmp_path / "a"
    root.mkdir()
    for number in range(6):
        file = dicom(
            smooth(number).astype(np.uint16) * 16, PatientID=f"secret-{number % 3}", WindowCenter=2000, WindowWidth=4000
        )
        (root / f"{number}.dcm").write_bytes(file)
    np.savez(root / "arrays.npz", images=np.zeros((2, 4, 4), np.uint8))
    manifest = tmp_path / "m.csv"
    splits = ["train", "train", "train", "train", "test", "train"]
    lines = [f"{number}.dcm,x,{split}" for number, split in enumerate(splits)]
    manifest.write_text("\n".join(["path,label,split", *lines]) + "\n")
    code, defects = look(root, tmp_path / "out", f"manifest={manifest}")
    assert code == 1 and defects["patients_across_splits"]["count"] == 1
    assert "secret" not in (tmp_path / "out" / "doctor.json").read_text()
    unreadable = look(root, tmp_path / "all")[1]["unreadable"]["examples"]
    assert {"path": "arrays.npz", "frame": 0, "reason": "arrays; name the .npz file itself as data"} in unreadable


def test_what_cannot_be_used_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a"
    root.mkdir()
    (root / "a.png").write_bytes(b"nothing")
    assert main(["doctor", f"data={root}"]) == 2
    assert "the first a.png (not an image of a known format)" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").touch()
    assert main(["doctor", f"data={root}", f"out={tmp_path / 'out'}"]) == 2
    assert "precious.txt" in capsys.readouterr().err


def test_hashes_survive_what_does_not_matter_and_tell_pictures_apart() -> None:
    pictures = [smooth(seed) for seed in range(40)]
    hashes = [perceptual_hash(picture[..., None]) for picture in pictures]

    def distance(one: str, two: str) -> int:
        return (int(one, 16) ^ int(two, 16)).bit_count()

    apart = [distance(one, two) for at, one in enumerate(hashes) for two in hashes[:at]]
    assert min(apart) > 40
    for picture, hashed in zip(pictures, hashes, strict=True):
        brighter = (picture * 0.9 + 20).astype(np.uint8)
        smaller = np.asarray(Image.fromarray(picture).resize((70, 70), Image.Resampling.BILINEAR))
        assert max(distance(hashed, perceptual_hash(other[..., None])) for other in (brighter, smaller)) <= 20


def test_near_duplicates_agree_with_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (60, 32), dtype=np.uint8)
    every = np.concatenate([base, base[:30], base[:10]])
    for row, bits in zip(every[60:], rng.integers(0, 28, 40), strict=True):
        for at in rng.choice(256, bits, replace=False):
            row[at // 8] ^= 1 << (at % 8)
    hashes = [row.tobytes().hex() for row in every]
    close = [[np.bitwise_count(one ^ two).sum() <= 20 for two in every] for one in every]
    groups, left = [], set(range(len(every)))
    while left:
        group, edge = set(), {left.pop()}
        while edge:
            group |= edge
            edge = {two for one in edge for two in left if close[one][two]}
            left -= edge
        groups.append(sorted(group))
    assert near_duplicates([*hashes, None]) == sorted(group for group in groups if len(group) > 1)


def test_borders_are_measured() -> None:
    inside = np.zeros((100, 50, 1), np.float32)
    inside[10:90, 5:30, 0] = np.random.default_rng(0).random((80, 25))
    assert examine(inside)["border"] == pytest.approx(1 - 0.8 * 0.5)
    assert examine(np.zeros((9, 9, 1), np.float32)) == {"border": 1.0, "text": 0.0}
