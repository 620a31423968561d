"""The leak guard: what pretraining saw is found again by content, group and patient, and nothing can be read of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.cache import CacheOptions, caches_of
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.data.identity import Identities
from jigsawssl.data.known import KnownImages
from jigsawssl.data.leakage import KEY_FILE, Overlap, SeenImages, seen_images
from jigsawssl.data.table import salted
from jigsawssl.types import ImageFormat, UserError
from tests.readers.test_dicom import STORED, dicom


def seen_of(archive: Archive, caches: Path | None = None) -> SeenImages:
    known = KnownImages(archive, [] if caches is None else caches_of(archive.location, caches))
    return seen_images(Identities(archive, known=known), np.arange(len(archive)))


def overlap(seen: SeenImages, archive: Archive, rows: list[int]) -> Overlap:
    return seen.overlap(Identities(archive), np.array(rows, dtype=np.int64))


def images(root: Path, names: str, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    root.mkdir()
    for name in names:
        Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(root / f"{name}.png")
    return root


@pytest.mark.parametrize("cached", [True, False])
def test_images_and_groups_are_found_again(tmp_path: Path, cached: bool) -> None:
    root = images(tmp_path / "one", "abcd", seed=0)
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,group\na.png,x,patient-1\nb.png,x,patient-2\n")
    archive = open_archive(str(root), manifest=str(manifest))
    if cached:
        build_cache(
            archive, tmp_path / "cache", options=CacheOptions(ImageFormat(8, channels=1)), workers=1, progress=False
        )
    file = tmp_path / "seen.parquet"
    seen_of(archive, tmp_path / "cache").save(file)
    seen = SeenImages.load(file)
    assert len(seen.contents) == 2 and [len(groups) for groups in seen.groups.values()] == [2]
    assert b"patient-1" not in file.read_bytes()

    other = images(tmp_path / "two", "efgh", seed=1)
    (other / "renamed.png").write_bytes((root / "a.png").read_bytes())
    manifest.write_text("path,label,group\ne.png,x,patient-2\nf.png,x,\nrenamed.png,y,patient-9\n")
    judged = open_archive(str(other), manifest=str(manifest))
    found = overlap(seen, judged, [0, 1, 2])
    assert found.same_image.tolist() == [2] and found.same_group.tolist() == [0] and found.rows.tolist() == [0, 2]
    assert not overlap(seen, judged, [1]).rows.size


def test_patients_of_dicom_files_count_as_groups(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, patients in ((one, ("p1", "p2")), (two, ("p2", "p3"))):
        root.mkdir()
        for number, patient in enumerate(patients):
            shift = number + 2 * (root == two)
            (root / f"{number}.dcm").write_bytes(dicom(np.roll(STORED, shift, axis=0), PatientID=patient))
    archive = open_archive(str(one))
    build_cache(
        archive,
        tmp_path / "cache",
        options=CacheOptions(ImageFormat(8, channels=1), sixteen_bit=True),
        workers=1,
        progress=False,
    )
    found = overlap(seen_of(archive, tmp_path / "cache"), open_archive(str(two)), [0, 1])
    assert found.same_group.tolist() == [0] and not found.same_image.size


def test_a_group_of_the_manifest_does_not_hide_the_patient(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root, shift in ((one, 0), (two, 5)):
        root.mkdir()
        (root / "a.dcm").write_bytes(dicom(np.roll(STORED, shift, axis=0), PatientID="p1"))
    seen = seen_of(open_archive(str(one)))
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,group\na.dcm,x,pseudonym-8\n")
    found = overlap(seen, open_archive(str(two), manifest=str(manifest)), [0])
    assert found.same_group.tolist() == [0]


def test_a_union_remembers_both_with_their_own_salts(tmp_path: Path) -> None:
    seen = []
    for number in range(2):
        manifest = tmp_path / f"{number}.csv"
        manifest.write_text(f"path,label,group\na.png,x,patient-{number}\n")
        archive = open_archive(str(images(tmp_path / str(number), "ab", seed=number)), manifest=str(manifest))
        seen.append((archive, seen_of(archive)))
    file = tmp_path / "seen.parquet"
    seen[0][1].union(seen[1][1]).save(file)
    both = SeenImages.load(file)
    assert both.complete and len(both.groups) == 2
    for archive, _ in seen:
        assert overlap(both, archive, [0]).same_group.tolist() == [0]
        assert overlap(both, archive, [0]).same_image.tolist() == [0]
    both.union(SeenImages.nothing(complete=False)).save(file)
    assert not SeenImages.load(file).complete


def test_only_what_was_used_counts(tmp_path: Path) -> None:
    archive = open_archive(str(images(tmp_path / "one", "abcd", seed=0)))
    seen = seen_images(Identities(archive), np.array([1, 2]))
    assert overlap(seen, archive, [0, 1, 2, 3]).same_image.tolist() == [1, 2]


def test_a_group_is_seen_by_the_content_of_its_other_images(tmp_path: Path) -> None:
    """A pretraining that knew no groups leaves no names of them."""
    root = images(tmp_path / "one", "abcde", seed=0)
    seen = seen_images(Identities(open_archive(str(root))), np.array([0, 2]))
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,group\na.png,x,p1\nb.png,x,p1\nc.png,x,p2\nd.png,x,p3\ne.png,x,\n")
    found = overlap(seen, open_archive(str(root), manifest=str(manifest)), [1, 2, 3, 4])
    assert found.same_image.tolist() == [2] and found.same_group.tolist() == [1]


def test_a_copied_file_does_not_tell_who_the_patients_are(tmp_path: Path) -> None:
    """Numbers of four digits, looked for among all, with everything in the file as key."""
    root = images(tmp_path / "one", "abcd", seed=0)
    numbers = [f"{number:04}" for number in np.random.default_rng(0).integers(0, 10_000, 4)]
    manifest = tmp_path / "m.csv"
    rows = [f"{name}.png,x,{number}" for name, number in zip("abcd", numbers, strict=True)]
    manifest.write_text("\n".join(["path,label,group", *rows]) + "\n")
    archive = open_archive(str(root), manifest=str(manifest))
    file = tmp_path / "seen.parquet"
    seen_of(archive).save(file)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600

    def recovered(keys: list[bytes]) -> set[str]:
        tags = {tag for tag in pq.read_table(file)["group"].to_pylist() if tag is not None}
        tried = (f"{number:04}" for number in range(10_000))
        return {one for one in tried if any(salted(one, key) in tags for key in keys)}

    table = pq.read_table(file)
    words = [value for name in ("group", "key") for value in table[name].to_pylist() if value]
    words += [str(value) for value in (table.schema.metadata or {}).values()]
    assert recovered([b"", *(bytes.fromhex(word) for word in words if set(word) <= set("0123456789abcdef"))]) == set()
    assert recovered(list(SeenImages.load(file).keys.values())) == set(numbers), "with the key they could be"

    (tmp_path / KEY_FILE).unlink()
    copied = SeenImages.load(file)
    assert not copied.comparable and not copied.keys and SeenImages.nothing().comparable
    other = images(tmp_path / "two", "ef", seed=1)
    (other / "renamed.png").write_bytes((root / "a.png").read_bytes())
    manifest.write_text(f"path,label,group\ne.png,x,{numbers[1]}\nrenamed.png,y,new\n")
    found = overlap(copied, open_archive(str(other), manifest=str(manifest)), [0, 1])
    assert found.same_image.tolist() == [1] and not found.same_group.size


def test_damage_is_a_user_error(tmp_path: Path) -> None:
    file = tmp_path / "seen.parquet"
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"seen\.parquet.* is damaged .*allow_overlap=true"):
        SeenImages.load(file)
