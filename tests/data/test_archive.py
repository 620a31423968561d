"""Readers: what is found, what is refused, and what the pixels look like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.walk import IMAGE_SUFFIXES
from jigsawssl.types import Sample, UserError


def save(path: Path, array: np.ndarray | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), 7, np.uint8) if array is None else array).save(path, **options)
    return path


def paths(archive: Archive) -> list[str]:
    return [sample.path for sample in archive.samples]


def fails(data: Path | str, manifest: Path | str | None = None, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_archive(str(data), manifest=None if manifest is None else str(manifest), split=split)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("`") and message.endswith(".") and message.count(";") >= 2
    return message


def test_folder_is_searched_in_depth_sorted_and_without_hidden_or_foreign_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("b/2.PNG", "a.jpg", "b/1.tif", ".hidden/x.png", "b/.x.png"):
        save(root / name)
    (root / "notes.txt").write_text("not an image")
    archive = open_archive(str(root))
    assert paths(archive) == ["a.jpg", "b/1.tif", "b/2.PNG"]
    assert archive.name == "root" and archive.classes == () and archive.groups is None
    assert archive.labels.tolist() == [-1, -1, -1] and archive.labels.dtype == np.int64


def test_links_lead_nowhere_outside(tmp_path: Path) -> None:
    secret = save(tmp_path / "secret.png")
    root = tmp_path / "root"
    save(root / "own.png")
    (root / "inner.png").symlink_to(root / "own.png")
    (root / "outer.png").symlink_to(secret)
    (root / "broken.png").symlink_to(root / "nothing.png")
    (root / "folder").symlink_to(tmp_path, target_is_directory=True)
    assert paths(open_archive(str(root))) == ["inner.png", "own.png"]
    manifest = tmp_path / "m.csv"
    for path in ("outer.png", "../secret.png", str(secret), "folder/secret.png", "a/../../secret.png", ""):
        manifest.write_text(f"path,label\nown.png,a\n{path},b\n")
        assert "line 3" in fails(root, manifest)


def test_folders_give_class_and_split(tmp_path: Path) -> None:
    for name in ("train/10/a.png", "train/2/b.png", "valid/site/2/c.png", "test/d.png", "other/e.png"):
        save(tmp_path / name)
    archive = open_archive(str(tmp_path), manifest="folders")
    assert archive.classes == ("2", "10")
    known = {s.path: (s.label, s.split) for s in archive.samples}
    assert known["train/10/a.png"] == ("10", "train") and known["valid/site/2/c.png"] == ("2", "val")
    assert known["test/d.png"] == (None, "test") and known["other/e.png"] == (None, "other")
    train = open_archive(str(tmp_path), manifest="folders", split="train")
    assert train.classes == archive.classes, "train and test must agree about classes"
    assert train.labels.tolist() == [1, 0]
    assert paths(open_archive(str(tmp_path), manifest="folders", split="valid")) == ["valid/site/2/c.png"]
    assert "test, train, val" in fails(tmp_path, "folders", "tests")


def test_csv_gives_label_split_and_group_in_its_own_order(tmp_path: Path) -> None:
    for name in "cab":
        save(tmp_path / "images" / f"{name}.png")
    manifest = tmp_path / "m.csv"
    manifest.write_text("\ufeffpath,label,age,split,group\nc.png,x,3,train,p1\n./a.png,,4,valid,\nb.png,y\n")
    archive = open_archive(str(tmp_path / "images"), manifest=str(manifest))
    assert archive.samples == (
        Sample("c.png", "x", "train", "p1"),
        Sample("a.png", None, "val", None),
        Sample("b.png", "y", None, None),
    )
    assert archive.labels.tolist() == [0, -1, 1]
    assert archive.groups is not None and len(set(archive.groups)) == 3
    assert paths(archive.select(np.array([2, 0]))) == ["b.png", "c.png"]
    assert archive.select([2]).labels.tolist() == [1]


def test_user_errors_say_what_and_how_to_mend(tmp_path: Path) -> None:
    root, manifest = tmp_path / "root", tmp_path / "m.csv"
    root.mkdir()
    assert fails(tmp_path / "none").startswith("`data`") and fails("").startswith("`data`")
    assert all(suffix in fails(root) for suffix in IMAGE_SUFFIXES)
    save(root / "a.png")
    assert "that is another file" in fails(root / "a.png")
    assert "folder for each class" in fails(root, "folders")
    assert "no file is there" in fails(root, tmp_path / "none.csv")
    assert "leave it out" in fails("demo", "folders")
    for text, expected in {
        "": "it is empty",
        "file,label\na.png,x\n": "file, label",
        "path,label\na.png,x\nb.png,x\nc.png,y\n": "2 of 3 are missing, the first is b.png",
        "path,label\na.png,x\n./a.png,y\n": "1 are repeated, the first is a.png",
        "path,label\n": "none was found",
    }.items():
        manifest.write_text(text)
        assert expected in fails(root, manifest)
    manifest.write_bytes(b"path,label\n\xff.png,a\n")
    assert "UTF-8" in fails(root, manifest)


def test_npz_in_medmnist_style(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (n, 5, 4, 3), dtype=np.uint8) for n in (12, 3))
    file = tmp_path / "small.npz"
    np.savez(file, train_images=train, train_labels=np.arange(12)[:, None], test_images=test, test_labels=[10, 2, -1])
    archive = open_archive(str(file))
    assert archive.name == "small" and archive.classes == tuple(map(str, range(12)))
    assert archive.samples[2] == Sample("train/2", "2", "train") and archive.samples[13].path == "test/1"
    assert archive.labels[-3:].tolist() == [10, 2, -1]
    assert np.array_equal(archive.read(13), test[1])
    assert np.array_equal(open_archive(str(file), split="test").read(2), test[2])
    np.savez(file, images=train[..., 0])
    assert open_archive(str(file)).read(11).shape == (5, 4, 1)


def test_npz_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    file, images = tmp_path / "x.npz", np.zeros((3, 4, 4), np.uint8)
    file.write_bytes(b"no archive")
    assert "reading it fails" in fails(file)
    for arrays, expected in (
        ({"train_images": np.array([None, 1])}, "reading it fails"),
        ({"pixels": images}, "it has: pixels"),
        ({"train_images": images.astype(float)}, "float64"),
        ({"train_images": images[None, ..., None]}, "(1, 3, 4, 4, 1)"),
        ({"train_images": images, "train_labels": np.zeros((4, 14), int)}, "(4, 14)"),
        ({"train_images": images, "train_labels": np.zeros(2, int)}, "(2,)"),
    ):
        np.savez(file, **arrays)
        assert expected in fails(file)


@pytest.mark.parametrize("kind", [np.uint8, bool, np.float32])
def test_several_labels_an_image_are_no_class(kind: type, tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", train_images=images, train_labels=np.eye(3, 14, dtype=kind), test_images=images)
    archive = open_archive(str(tmp_path / "x.npz"))
    assert [sample.split for sample in archive.samples] == ["train"] * 3 + ["test"] * 3 and archive.classes == ()
    assert archive.remarks == (
        "the array train_labels holds 14 labels for each image, and a class is one: none was taken",
    )


def test_missing_values_are_unknown_and_said_and_names_of_splits_have_many_forms(tmp_path: Path) -> None:
    cells = [
        ("a", "Training", "p1"),
        ("NA", "dev", "NaN"),
        ("None", "Test set", "NULL"),
        ("none", "holdout", "p1"),
        ("", "nan", "NULL"),
    ]
    for number in range(len(cells)):
        save(tmp_path / "images" / f"{number}.png")
    manifest = tmp_path / "m.csv"
    lines = [",".join((f"{number}.png", *row)) for number, row in enumerate(cells)]
    manifest.write_text("\n".join(["path,label,split,group", *lines]) + "\n")
    archive = open_archive(str(tmp_path / "images"), manifest=str(manifest))
    assert [sample[1:] for sample in archive.samples] == [
        ("a", "train", "p1"),
        (None, "val", None),
        (None, "test", None),
        ("none", "holdout", "p1"),
        (None, None, None),
    ]
    assert len(archive.remarks) == 5
    assert "2 cells of `group` say NULL, which is taken for unknown; where it is a group, rename it" in archive.remarks
    assert sum("`label`" in remark for remark in archive.remarks) == 2
    assert paths(open_archive(str(tmp_path / "images"), manifest=str(manifest), split="validation")) == ["1.png"]


def test_the_order_of_classes_is_given_or_stands_beside_the_manifest(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png")
    manifest, images = tmp_path / "m.csv", str(tmp_path / "images")
    manifest.write_text("path,label\n0.png,mild\n1.png,none\n2.png,severe\n3.png,none\n")
    assert not open_archive(images, manifest=str(manifest)).order_given
    given = open_archive(images, manifest=str(manifest), classes=["none", "mild", "severe"])
    assert given.order_given and given.labels.tolist() == [1, 0, 2, 0]
    (tmp_path / "m.csv.classes").write_text("severe\n none\n\nmild\n")
    beside = open_archive(images, manifest=str(manifest))
    assert beside.order_given and beside.classes == ("severe", "none", "mild")
    assert open_archive(images, manifest=str(manifest), classes=["none", "mild", "severe"]).labels.tolist() == [
        1,
        0,
        2,
        0,
    ]
    (tmp_path / "m.csv.classes").write_text("none\nmild\n")
    assert "severe is left out" in fails(images, manifest)


def test_fingerprint_depends_on_contents_not_on_place_or_order(tmp_path: Path) -> None:
    for place in ("one", "two/deeper"):
        save(tmp_path / place / "a.png")
        save(tmp_path / place / "b.png")
    one, two = (open_archive(str(tmp_path / place)) for place in ("one", "two/deeper"))
    assert one.fingerprint() == two.fingerprint() == two.select([1, 0]).fingerprint()
    assert one.fingerprint() != one.select([0]).fingerprint()
    save(tmp_path / "one" / "b.png", np.eye(40, dtype=np.uint8))
    assert one.fingerprint() != two.fingerprint()
    pixels = np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels)
    before = open_archive(str(tmp_path / "x.npz")).fingerprint()
    pixels[1, 2, 3] = 1
    np.savez(tmp_path / "x.npz", images=pixels)
    assert open_archive(str(tmp_path / "x.npz")).fingerprint() != before


def test_demo_has_labels_and_groups_that_keep_to_one_split() -> None:
    archive = open_archive("demo")
    assert len(archive) == 2400 and archive.labels.min() == 0 and archive.groups is not None
    homes: dict[str, set[str | None]] = {}
    for sample, group in zip(archive.samples, archive.groups, strict=True):
        homes.setdefault(group, set()).add(sample.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert 1500 < sum(sample.split == "train" for sample in archive.samples) < 1700
