"""The split that follows from the images: the same for everybody, stable as archives grow, never dividing a patient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.cache import Cache, CacheOptions, caches_of
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.data.holdout import COPY, TEST, TEST_SHARE, TRAIN, derive_split, is_held_out, units_of
from jigsawssl.data.identity import Identities
from jigsawssl.data.known import KnownImages
from jigsawssl.data.loading import PixelDataset
from jigsawssl.readers import fit_image, shrink_square
from jigsawssl.types import ImageFormat
from tests.readers.test_dicom import STORED, dicom


def split(
    contents: list[int], groups: list[str | None] | None = None, patients: list[str | None] | None = None, **how: bool
) -> list[str]:
    patients = patients or [None] * len(contents)
    sides = [None if patient is None else is_held_out(f"patient {patient}") for patient in patients]
    return derive_split(contents, patients, sides, groups or [None] * len(contents), **how).tolist()


def test_the_share_is_a_fifth() -> None:
    rng = np.random.default_rng(0)
    contents = rng.integers(-(2**63), 2**63, 20_000).tolist()
    share = np.mean([side == TEST for side in split(contents)])
    assert share == pytest.approx(TEST_SHARE, abs=4 * (0.2 * 0.8 / 20_000) ** 0.5)


def test_a_file_keeps_its_side_as_the_archive_grows() -> None:
    rng = np.random.default_rng(1)
    contents = rng.integers(-(2**63), 2**63, 900).tolist()
    groups = [f"p{number}" if number % 3 else None for number in rng.integers(0, 200, 900).tolist()]
    whole = split(contents, groups)
    for count in (50, 300, 600):
        assert split(contents[:count], groups[:count]) == whole[:count]
    order = rng.permutation(900).tolist()
    assert split([contents[at] for at in order], [groups[at] for at in order]) == [whole[at] for at in order]


def test_no_group_and_no_patient_is_divided() -> None:
    rng = np.random.default_rng(2)
    contents = rng.integers(-(2**63), 2**63, 600).tolist()
    groups: list[str | None] = [f"lesion {n}" if n < 250 else None for n in rng.integers(0, 300, 600).tolist()]
    patients: list[str | None] = [f"p{n}" if n < 150 else None for n in rng.integers(0, 200, 600).tolist()]
    sides = split(contents, groups, patients)
    for names in (groups, patients):
        for name in set(names) - {None}:
            assert len({side for side, other in zip(sides, names, strict=True) if other == name}) == 1
    assert {TRAIN, TEST} == set(sides)


def test_the_patient_goes_before_its_groups() -> None:
    """A manifest of lesions, or of the same patients under other names, does not change a patient's side."""
    for number in range(20):
        patients: list[str | None] = [f"p{number}", f"p{number}", "other"]
        alone = split([1, 2, 3], None, patients)
        assert split([1, 2, 3], ["lesion a", "lesion b", None], patients) == alone
        assert split([1, 2, 3], [f"pseudonym {number}"] * 2 + ["someone"], patients) == alone


def test_several_patients_of_one_group_go_by_the_group() -> None:
    patients: list[str | None] = [f"p{number}" for number in range(200)]
    groups: list[str | None] = [f"house {number // 2}" for number in range(200)]
    sides = split(list(range(200)), groups, patients)
    assert [side == TEST for side in sides[::2]] == [is_held_out(f"group house {number}") for number in range(100)]


def test_whole_groups_are_those_that_a_run_without_groups_left_out() -> None:
    contents = list(range(4000))
    groups: list[str | None] = [f"p{number // 2}" for number in contents]
    alone, whole = split(contents), split(contents, groups, whole=True)
    for first in range(0, 4000, 2):
        both = alone[first] == alone[first + 1] == TEST
        assert whole[first] == whole[first + 1] == (TEST if both else TRAIN)
    assert whole.count(TEST) > 40


def test_copies_of_test_images_in_other_groups_are_used_by_nobody() -> None:
    test = next(f"g{number}" for number in range(99) if is_held_out(f"group g{number}"))
    train = next(f"g{number}" for number in range(99) if not is_held_out(f"group g{number}"))
    assert split([7, 8, 7, 9], [test, test, train, train]) == [TEST, TEST, COPY, TRAIN]


def test_both_sides_get_something_where_there_is_more_than_one_unit() -> None:
    for start in range(0, 60, 3):
        sides = split([start, start + 1, start + 2])
        assert {TRAIN, TEST} == set(sides)
    assert split([1, 2, 3], ["one", "one", "one"]) == [TRAIN] * 3


def test_units_join_by_way_of_others() -> None:
    units = units_of(["p1", "p2", None, None, "p3"], ["a", None, "a", "b", "b"]).tolist()
    assert units[0] == units[2] and units[3] == units[4] and len(set(units)) == 3


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """DICOM files of patients with two images each, and pictures without a patient."""
    root = tmp_path / "scans"
    root.mkdir()
    for number in range(20):
        shifted = np.roll(STORED, number, axis=1) + number
        (root / f"{number}.dcm").write_bytes(dicom(shifted.astype(STORED.dtype), PatientID=f"secret-{number // 2}"))
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 50), dtype=np.uint8)).save(root / f"{number}.png")
    return root


def decoded(archive: Archive, folder: Path, size: int) -> Cache:
    options = CacheOptions(ImageFormat(size, channels=1), sixteen_bit=True)
    return build_cache(archive, folder, options=options, workers=2, progress=False)


def test_caches_tell_the_same_as_the_files(scans: Path, tmp_path: Path) -> None:
    archive = open_archive(str(scans))
    every = np.arange(len(archive))
    fresh = Identities(archive, salt=b"s" * 32)
    cache = decoded(archive, tmp_path / "cache", 24)
    known = KnownImages(archive, caches_of(archive.location, tmp_path / "cache"))
    cached = Identities(archive, known=known)
    (scans / "0.png").touch()
    changed = KnownImages(open_archive(str(scans)), [cache])
    assert changed.found("0.png") is None and changed.found("1.png") == known.found("1.png") is not None
    assert KnownImages(archive, [cache], trusted=True).found("0.png") == known.found("0.png") is not None
    assert caches_of(archive.location, tmp_path / "nowhere") == caches_of("elsewhere", tmp_path / "cache") == []
    assert cached.salt == cache.salt
    assert fresh.split(every).tolist() == cached.split(every).tolist()
    assert fresh.units(every).tolist() == cached.units(every).tolist()
    for row in every.tolist():
        assert fresh.content(row) == cached.content(row)
        assert fresh.patient(row, cache.salt) == cached.patient(row)
        # With another salt than that of the cache, the file tells.
        assert fresh.patient(row) == cached.patient(row, b"s" * 32)
    table = (cache.path / "table.parquet").read_bytes()
    assert b"secret" not in table


@pytest.mark.parametrize("patients", [["ANONYMOUS"] * 20, ["17"] * 20, ["17"] * 15 + ["0"] * 5])
def test_what_all_files_have_in_place_of_a_patient_is_none(patients: list[str], tmp_path: Path) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    for number, patient in enumerate(patients):
        shifted = np.roll(STORED, number, axis=1) + number
        (root / f"{number}.dcm").write_bytes(dicom(shifted.astype(STORED.dtype), PatientID=patient))
    archive = open_archive(str(root))
    every = np.arange(len(archive))
    decoded(archive, tmp_path / "cache", 24)
    known = KnownImages(archive, caches_of(archive.location, tmp_path / "cache"))
    for identities in (Identities(archive), Identities(archive, known=known)):
        assert len(set(identities.units(every).tolist())) == 20
        assert set(identities.split(every).tolist()) == {TRAIN, TEST}
        assert not any(identities.names(row, b"s" * 32) for row in every.tolist())
        assert {identities.patient_is_held_out(row) for row in every.tolist()} == {None}


def test_cached_images_take_the_place_of_decoding(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = open_archive(str(scans))
    cache = decoded(archive, tmp_path / "cache", 24)
    larger = decoded(archive, tmp_path / "cache", 40)
    every = list(range(len(archive)))

    def images(size: int, known: KnownImages | None) -> np.ndarray:
        dataset = PixelDataset(archive, ImageFormat(size, channels=1))
        dataset.load(False, known)
        return dataset.__getitems__(every).images.view(torch.int16).numpy().view(np.uint16)

    whole = images(24, None)
    known = KnownImages(archive, [larger, cache])
    assert np.array_equal(images(24, known), whole), "the cache of this very size"
    assert known.used == {sample.path for sample in archive.samples}
    shrunk = images(20, known)
    for row in every:
        assert np.array_equal(shrunk[row], shrink_square(whole[row], 20))
    # What no cache holds is made the same way, in memory or not.
    part = KnownImages(archive.select(every[:5]), [cache])
    assert np.array_equal(images(20, part), shrunk) and len(part.used) == 5
    dataset = PixelDataset(archive, ImageFormat(20, channels=1), memory_bytes=0)
    dataset.load(False, part)
    assert not dataset.cached
    assert np.array_equal(dataset.__getitems__([7, 3]).images.view(torch.int16).numpy().view(np.uint16), shrunk[[7, 3]])
    wanted = ImageFormat(20, channels=1)
    for other in ({"size": 41}, {"channels": 3}, {"fit": "crop"}, {"window": "lung"}):
        assert known.squares(replace(wanted, **other)) is None  # type: ignore[arg-type]


def test_nothing_readable_is_no_split() -> None:
    assert derive_split([None, None], [None, None], [None, None], [None, None]).tolist() == [TRAIN, TRAIN]


@pytest.mark.parametrize("deep", [False, True])
def test_shrinking_twice_is_close_to_shrinking_once(deep: bool) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
    image = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC))[:, :, None]
    once = fit_image(image, ImageFormat(64, channels=1), sixteen_bit=deep).astype(float)
    twice = shrink_square(fit_image(image, ImageFormat(80, channels=1), sixteen_bit=deep), 64)
    again = fit_image(
        fit_image(image, ImageFormat(80, channels=1), sixteen_bit=deep).transpose(1, 2, 0),
        ImageFormat(64, channels=1),
        sixteen_bit=deep,
    )
    error, blurred = (np.sqrt(np.mean((other - once) ** 2)) / np.ptp(once) for other in (twice, again))
    assert twice.dtype == (np.uint16 if deep else np.uint8) and error < 0.01 and error < blurred
