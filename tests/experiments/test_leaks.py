"""Nothing that is learned from may be judged by: by group, by content and by patient, for every pair of splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigsawssl.cli.supervised import check_draws
from jigsawssl.data.budget import draw_subset
from jigsawssl.data.labelled import Labelled, Source, open_labelled, remarks_on
from jigsawssl.types import UserError
from tests.readers.test_dicom import STORED, dicom

SPLITS = ("train", "val", "test")


def archive(root: Path, groups: dict[int, str] | None = None, copies: dict[int, int] | None = None) -> Source:
    """Thirty images, ten of each split, with classes in turn; some are copies of others, some have a group."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(30)]
    (root / "images").mkdir()
    lines = ["path,label,split,group"]
    for number in range(30):
        Image.fromarray(pixels[(copies or {}).get(number, number)]).save(root / "images" / f"{number}.png")
        group = (groups or {}).get(number, f"of its own {number}")
        lines.append(f"{number}.png,{'ab'[number % 2]},{SPLITS[number // 10]},{group}")
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    return Source(str(root / "images"), manifest=str(root / "m.csv"), layout=None, split="train", validation="split")


@pytest.mark.parametrize(("one", "other"), [(0, 10), (0, 20), (10, 20)])
def test_no_pair_of_splits_shares_a_group(tmp_path: Path, one: int, other: int) -> None:
    source = archive(tmp_path, groups={one: "p1", other: "p1"})
    names = f"between {SPLITS[one // 10]} and {SPLITS[other // 10]}; 1 are"
    with pytest.raises(UserError, match=names):
        open_labelled(source)
    if 10 in (one, other):  # the validation split is not used then
        assert len(open_labelled(source._replace(validation="budget")).test) == 10


@pytest.mark.parametrize(("copy", "original", "left"), [(0, 10, "pool"), (0, 20, "pool"), (10, 20, "validation")])
def test_copies_of_images_to_judge_by_are_not_learned_from(tmp_path: Path, copy: int, original: int, left: str) -> None:
    labelled = open_labelled(archive(tmp_path, copies={copy: original}))
    kept = {"pool": labelled.pool, "validation": labelled.validation, "test": labelled.test}
    assert {name: len(rows) for name, rows in kept.items()} == {
        name: 9 if name == left else 10 for name in ("pool", "validation", "test")
    }
    assert copy not in kept[left] and labelled.copies == 1
    assert any("1 image to learn from" in remark and "left out" in remark for remark in remarks_on(labelled))


def test_copies_inside_a_split_stay(tmp_path: Path) -> None:
    labelled = open_labelled(archive(tmp_path, copies={0: 2, 20: 22}))
    assert labelled.copies == 0 and len(labelled.pool) == len(labelled.test) == 10


def test_patients_of_dicom_files_in_two_splits_are_said(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(12):
        shifted = np.roll(STORED, number, axis=0)
        (tmp_path / f"{number}.dcm").write_bytes(dicom(shifted, PatientID=f"P{number % 11:03}"))
        lines.append(f"{number}.dcm,{'ab'[number % 2]},{'train' if number < 6 else 'test'}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    labelled = open_labelled(
        Source(str(tmp_path), manifest=str(tmp_path / "m.csv"), layout=None, split="train", validation="budget")
    )
    assert any(remark.startswith("1 patient of DICOM files in both train and test") for remark in remarks_on(labelled))


def drawn(labelled: Labelled, fractions: list[float], seeds: int = 3) -> dict[tuple[float, int], np.ndarray]:
    keys = [(fraction, seed) for fraction in fractions for seed in range(seeds)]
    return {
        (fraction, seed): draw_subset(labelled, fraction=fraction, seed=seed, count_groups=False)
        for fraction, seed in keys
    }


def test_draws_that_cannot_be_divided_are_refused_with_the_smallest_share_that_works(tmp_path: Path) -> None:
    source = archive(tmp_path)._replace(validation="budget")
    labelled = open_labelled(source)
    wanted = r"`fractions` \(0.1\).*draw 0 has a: 1, b: 1; the smallest that works is"
    with pytest.raises(UserError, match=wanted) as caught:
        check_draws(drawn(labelled, [0.1, 1.0]), labelled, "fractions", count_groups=False)
    share = float(str(caught.value).rpartition(" ")[2])
    check_draws(drawn(labelled, [share, 1.0]), labelled, "fractions", count_groups=False)
    # With a split to validate on, one label of each class is enough.
    with_split = open_labelled(source._replace(validation="split"))
    check_draws(drawn(with_split, [0.1]), with_split, "fractions", count_groups=False)
