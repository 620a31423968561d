"""The cache: each file decoded once, the same after any interruption, never a wrong one, nothing in clear."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from jigsawssl.data.archive import open_archive
from jigsawssl.data.cache import Cache, CacheOptions, chosen_frames
from jigsawssl.data.cache_writer import build_cache
from jigsawssl.data.loading import PixelDataset
from jigsawssl.data.table import original, printable
from jigsawssl.readers import Unreadable, fit_image
from jigsawssl.types import ImageFormat, UserError
from tests.readers.test_dicom import STORED, dicom

OPTIONS = CacheOptions(ImageFormat(16, channels=1))


def fill(root: Path, count: int = 40, seed: int = 0) -> Path:
    """Grey images in two folders, a zip and a tar, with two that are broken."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (20 + number % 5, 24), dtype=np.uint8))
        folder = root / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number:04d}.png")
    (root / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (root / "a" / "empty.jpg").touch()
    packed = sorted((root / "b").glob("*.png"))[:4]
    with zipfile.ZipFile(root / "z.zip", "w") as file:
        for path in packed[:2]:
            file.write(path, f"in/{path.name}")
    with tarfile.open(root / "t.tar.gz", "w:gz") as file:
        for path in packed[2:]:
            file.add(path, f"in/{path.name}")
    for path in packed:
        path.unlink()
    return root


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of what is decoded from now on."""
    from jigsawssl.data import cache_writer as module

    read: list[str] = []
    decode = module._decoded

    def watched(archive, row, **rest):  # type: ignore[no-untyped-def]
        read.append(archive.samples[row].path)
        return decode(archive, row, **rest)

    monkeypatch.setattr(module, "_decoded", watched)
    return read


def build(root: Path, folder: Path, options: CacheOptions = OPTIONS, workers: int = 2) -> Cache:
    return build_cache(open_archive(str(root)), folder, options=options, workers=workers, progress=False)


def contents(cache: Cache) -> tuple[bytes, list[dict[str, object]]]:
    return cache.pixels.tobytes(), cache.table().to_pylist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "archive")


def test_pixels_and_table_are_what_the_readers_give(root: Path, tmp_path: Path) -> None:
    archive = open_archive(str(root))
    cache = build(root, tmp_path / "cache")
    assert len(archive) == 42 and len(cache.pixels) == 40
    paths = cache.paths()
    row_of = {sample.path: row for row, sample in enumerate(archive.samples)}
    for pixels, row in zip(cache.pixels, cache.readable(), strict=True):
        assert np.array_equal(pixels, fit_image(archive.read(row_of[paths[row]]), ImageFormat(16, channels=1)))
    assert {path: reason for path, _, reason in cache.unreadable()} == {
        "a/broken.png": "truncated",
        "a/empty.jpg": "empty file",
    }
    assert {"z.zip/in/0001.png", "t.tar.gz/in/0005.png"} <= set(paths)
    assert set(cache.table()["status"].to_pylist()) == {"ok", "truncated", "empty file"}


def test_a_second_run_reads_no_image(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = contents(build(root, tmp_path / "cache"))
    monkeypatch.setattr("jigsawssl.data.cache_writer._decoded", None)
    assert contents(build(root, tmp_path / "cache")) == first


def test_workers_and_folders_do_not_matter(root: Path, tmp_path: Path) -> None:
    one, two = build(root, tmp_path / "one", workers=1), build(root, tmp_path / "two", workers=4)
    assert contents(one) == contents(two)


def test_what_changed_is_read_again_and_the_rest_is_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(root, tmp_path / "cache")
    old_name = before.path.name
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(root / "a" / "0000.png")
    (root / "a" / "0002.png").unlink()
    Image.fromarray(np.full((9, 9), 99, np.uint8)).save(root / "b" / "new.png")
    read = count_decoded(monkeypatch)
    after = build(root, tmp_path / "cache")
    assert sorted(read) == ["a/0000.png", "b/new.png"]
    monkeypatch.undo()
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "salt").write_bytes((tmp_path / "cache" / "salt").read_bytes())
    assert contents(after) == contents(build(root, tmp_path / "fresh"))
    assert after.path.name != old_name and not (tmp_path / "cache" / old_name).exists()


def test_other_options_and_other_archives_have_other_caches(root: Path, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", seed=1)
    folder = tmp_path / "cache"
    caches = [
        build(root, folder),
        build(root, folder, CacheOptions(ImageFormat(8, channels=1))),
        build(root, folder, CacheOptions(ImageFormat(16, channels=3))),
        build(root, folder, CacheOptions(ImageFormat(16, channels=1, fit="crop"))),
        build(root, folder, CacheOptions(ImageFormat(16, channels=1), sixteen_bit=True)),
        build(other, folder),
    ]
    assert len({cache.path for cache in caches}) == 6 and all(cache.path.is_dir() for cache in caches)
    assert caches[4].pixels.dtype == np.uint16
    assert not np.array_equal(caches[0].pixels, caches[5].pixels)


def test_an_interrupted_cache_goes_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(root, tmp_path / "whole")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "salt").write_bytes((tmp_path / "whole" / "salt").read_bytes())
    from jigsawssl.data import cache_writer as module

    decode, calls = module._decoded, []

    def stops(archive, row, **rest):  # type: ignore[no-untyped-def]
        calls.append(row)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return decode(archive, row, **rest)

    monkeypatch.setattr(module, "_decoded", stops)
    with pytest.raises(KeyboardInterrupt):
        build(root, folder, workers=1)
    monkeypatch.undo()
    (partial,) = folder.glob("*.partial")
    with (partial / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"path": "half a li')
    with (partial / "pixels.bin").open("ab") as stream:
        stream.write(b"half an image")
    resumed = build(root, folder)
    assert contents(resumed) == contents(whole) and not list(folder.glob("*.partial"))


KILLED = """
import sys
from jigsawssl.data import open_archive
from jigsawssl.data.cache import CacheOptions
from jigsawssl.data.cache_writer import build_cache
print("ready", flush=True)
build_cache(open_archive(sys.argv[1]), __import__("pathlib").Path(sys.argv[2]), CacheOptions(16, 1), 2, False)
"""


@pytest.mark.slow
def test_killing_it_at_ten_moments_changes_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "archive", count=1500)
    whole = contents(build(root, tmp_path / "whole"))
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "salt").write_bytes((tmp_path / "whole" / "salt").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(root), str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0.02, 0.25)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert contents(build(root, folder)) == whole


def test_damage_is_an_error(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache")
    file = cache.path / "pixels.bin"
    data = bytearray(file.read_bytes())
    del cache
    for damaged in (data[:-1], bytes([data[0] ^ 1]) + data[1:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^`cache` .* it is damaged .*delete that folder"):
            build(root, tmp_path / "cache")
    file.write_bytes(data)
    build(root, tmp_path / "cache")


def leave_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    left = SimpleNamespace(free=free)
    monkeypatch.setattr("jigsawssl.data.cache_writer.shutil.disk_usage", lambda path: left)


def test_a_full_disk_is_a_user_error(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_free(monkeypatch, 42 * 256 - 1)
    with pytest.raises(UserError, match=r"must have 0\.00 GB of disk for 42 images; .* cache=off"):
        build(root, tmp_path / "cache")
    leave_free(monkeypatch, 42 * 256)
    build(root, tmp_path / "cache")


def test_frames_that_do_not_fit_on_the_disk_stop_the_run_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    for number in range(100):
        frames = [Image.fromarray(np.full((8, 8), 40 * n + number, np.uint8)) for n in range(4)]
        frames[0].save(root / f"{number:03d}.gif", save_all=True, append_images=frames[1:])
    options = CacheOptions(ImageFormat(8, channels=1))
    leave_free(monkeypatch, 100 * options.item_bytes)
    with pytest.raises(UserError, match=r"36 files with 4\.0 images each, as those so far; .* run again to go on"):
        build(root, tmp_path / "cache", options)
    monkeypatch.undo()
    decoded = count_decoded(monkeypatch)
    assert len(build(root, tmp_path / "cache", options).pixels) == 400
    assert len(decoded) == 36, "what was written is kept"


def test_a_second_writer_waits_for_the_first(root: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    folder = tmp_path / "cache"
    folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        with (folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            waiting = pool.submit(build, root, folder)
            time.sleep(0.2)
            assert not waiting.done() and not list(folder.glob("*-*"))
        assert len(waiting.result().pixels) == 40


def test_parts_of_an_archive_keep_their_own_caches(root: Path, tmp_path: Path) -> None:
    archive, folder = open_archive(str(root)), tmp_path / "cache"

    def part(rows: list[int], scope: str) -> Path:
        return build_cache(archive.select(rows), folder, options=OPTIONS, workers=1, progress=False, scope=scope).path

    one, two = part([0, 1, 2], "train"), part([3, 4], "test")
    assert one.is_dir() and two.is_dir()
    three = part([0, 1], "train")
    assert three.is_dir() and two.is_dir() and not one.exists()


def test_what_could_not_be_read_then_may_be_read_now(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jigsawssl.data import archive as module

    read = module.Archive.read_bytes

    def denied(self: module.Archive, row: int) -> bytes:
        if self.samples[row].path == "a/0000.png":
            raise Unreadable("permission denied")
        return read(self, row)

    monkeypatch.setattr(module.Archive, "read_bytes", denied)
    for _ in range(2):
        assert ("a/0000.png", 0, "permission denied") in build(root, tmp_path / "cache").unreadable()
    monkeypatch.undo()
    assert len(build(root, tmp_path / "cache").pixels) == 40


def test_arrays_in_memory_are_never_taken_for_others(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    for value in (3, 4):
        np.savez(file, images=np.full((5, 16, 16), value, np.uint8))
        cache = build_cache(open_archive(str(file)), tmp_path / "cache", options=OPTIONS, workers=1, progress=False)
        assert (cache.pixels == value).all()


def test_a_zip_with_flipped_bits_stops_nothing(tmp_path: Path) -> None:
    root = fill(tmp_path / "archive", count=12)
    whole = (root / "z.zip").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        broken = bytearray(whole)
        broken[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        (root / "z.zip").write_bytes(broken)
        cache = build(root, tmp_path / "cache" / str(number), workers=1)
        assert len(cache.pixels) >= 10


def test_frames_of_one_file(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    stack = np.stack([np.roll(STORED, shift, axis=0) for shift in range(7)])
    (root / "cine.dcm").write_bytes(dicom(stack))
    for frames in ("all", "middle", "every_3"):
        cache = build(
            root, tmp_path / "cache", CacheOptions(ImageFormat(16, channels=1), sixteen_bit=True, frames=frames)
        )
        assert cache.table()["frame"].to_pylist() == chosen_frames(7, frames)
        assert len(cache.pixels) == len(chosen_frames(7, frames))
        assert np.array_equal(
            cache.pixels[-1],
            fit_image(
                open_archive(str(root)).open(0).frame(cache.table()["frame"][-1].as_py()),
                ImageFormat(16, channels=1),
                sixteen_bit=True,
            ),
        )


def test_identifiers_are_not_written_in_clear(tmp_path: Path) -> None:
    root, folder = tmp_path / "archive", tmp_path / "cache"
    root.mkdir()
    for name, patient in (("1.dcm", "secret-17"), ("2.dcm", "secret-17"), ("3.dcm", "other")):
        (root / name).write_bytes(dicom(PatientID=patient))
    cache = build(root, folder, CacheOptions(ImageFormat(16, channels=1), sixteen_bit=True))
    hashes = cache.table()["patient"].to_pylist()
    assert hashes[0] == hashes[1] != hashes[2] and None not in hashes
    elsewhere = build(root, tmp_path / "elsewhere", CacheOptions(ImageFormat(16, channels=1), sixteen_bit=True))
    assert elsewhere.table()["patient"].to_pylist()[0] != hashes[0], "each folder has a salt of its own"
    for file in (path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        assert b"secret" not in data and b"Doe" not in data and str(tmp_path).encode() not in data


def test_file_names_in_any_script_or_none(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    names = [os.fsencode("рентген.png"), os.fsencode("胸部 X.png"), b"caf\xe9.png"]
    for number, name in enumerate(names):
        try:
            with open(os.path.join(os.fsencode(root), name), "wb") as stream:
                Image.fromarray(np.full((4, 4), number, np.uint8)).save(stream, "PNG")
        except OSError:
            pytest.skip("the file system takes no such names")
    cache = build(root, tmp_path / "cache")
    archive = open_archive(str(root))
    assert len(cache.pixels) == 3 and set(cache.paths()) == {sample.path for sample in archive.samples}
    dataset = PixelDataset(archive, ImageFormat(16, channels=1))
    dataset.use(cache)
    assert len(dataset) == 3
    for name in ("caf\udce9", r"caf\udce9", "a\\\\b\\", "plain"):
        assert original(printable(name)) == name and printable(name).isprintable()


@pytest.mark.parametrize("deep", [False, True])
def test_a_dataset_reads_the_same_from_cache_memory_and_files(tmp_path: Path, deep: bool) -> None:
    root = fill(tmp_path / "archive", count=12)
    if deep:
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 3000, (20, 24), dtype=np.uint16)
            Image.fromarray(values).save(root / f"deep{number}.png")
    archive = open_archive(str(root))
    lazy, loaded, cached = (PixelDataset(archive, ImageFormat(16, channels=1), workers=2) for _ in range(3))
    assert cached.sixteen_bit == deep
    loaded.load(progress=False)
    cached.use(build_cache(archive, tmp_path / "cache", options=cached.cache_options(), workers=2, progress=False))
    assert np.array_equal(loaded.rows, cached.rows)
    assert {printable(path): reason for path, reason in loaded.unreadable.items()} == cached.unreadable
    indices = [5, 0, len(cached) - 1]
    batches = [dataset.__getitems__(indices) for dataset in (loaded, cached)]
    batches.append(lazy.__getitems__(loaded.rows[indices].tolist()))
    for batch in batches:
        assert batch.images.dtype == (torch.uint16 if deep else torch.uint8)
        assert torch.equal(batch.images.view(torch.uint8), batches[0].images.view(torch.uint8))
        assert torch.equal(batch.rows, batches[0].rows)
    part = cached.subset(np.array([2, 1]))
    assert torch.equal(part[0].images.view(torch.uint8), cached[2].images.view(torch.uint8))


def test_a_cache_of_the_whole_serves_a_part(root: Path, tmp_path: Path) -> None:
    archive = open_archive(str(root))
    cache = build(root, tmp_path / "cache")
    part = PixelDataset(archive.select([3, 30, 7]), ImageFormat(16, channels=1))
    part.use(cache)
    assert sorted(part.rows.tolist()) == [0, 1, 2]
    for position, row in enumerate(part.rows):
        assert np.array_equal(
            part[position].images, fit_image(part.archive.read(int(row)), ImageFormat(16, channels=1))
        )


def late_deep_archive(root: Path) -> Path:
    """A hundred images of 8 bits and one of 16, which is not among those that are sampled."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(100):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(root / f"{number:03d}.png")
    for number in range(1000):
        values = rng.integers(0, 3000, (16, 16), dtype=np.uint16)
        path = root / f"x{number}.png"
        Image.fromarray(values).save(path)
        if not PixelDataset(open_archive(str(root)), ImageFormat(16, channels=1)).sixteen_bit:
            return root
        path.unlink()
    raise AssertionError("every name is sampled")


def test_one_deep_image_makes_the_whole_cache_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = late_deep_archive(tmp_path / "archive")
    dataset = PixelDataset(open_archive(str(root)), ImageFormat(16, channels=1), workers=2)
    shallow = dataset.cache_options()
    assert not shallow.sixteen_bit
    cache = build(root, tmp_path / "cache", shallow)
    undisturbed = build(root, tmp_path / "other", replace(shallow, sixteen_bit=True))
    before = contents(cache)
    assert cache.options.sixteen_bit and before == contents(undisturbed)
    assert not list((tmp_path / "cache").glob("*.partial"))
    decoded = count_decoded(monkeypatch)
    assert contents(build(root, tmp_path / "cache", shallow)) == before and not decoded
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(root / "new.png")
    grown = build(root, tmp_path / "cache", shallow)
    assert grown.options.sixteen_bit and decoded == ["new.png"]
    assert contents(cache) == before, "an open cache does not mind being replaced"
    dataset.use(cache)
    loaded = PixelDataset(open_archive(str(root)), ImageFormat(16, channels=1), workers=2)
    loaded.load(progress=False)
    assert dataset.sixteen_bit and loaded.sixteen_bit
    rows = [0, 99, 100]
    assert torch.equal(
        dataset.__getitems__(rows).images.view(torch.uint8),
        PixelDataset(dataset.archive, ImageFormat(16, channels=1)).__getitems__(rows).images.view(torch.uint8),
    ), "decoded on the fly, a batch with a deeper image is deep"


def test_a_growing_archive_keeps_what_is_sampled(tmp_path: Path) -> None:
    archive = open_archive("demo", split="train")

    def sampled(rows: range) -> set[str]:
        opened: set[str] = set()

        class Watched(type(archive)):  # type: ignore[misc]
            def open(self, row: int, *rest: Any, **options: Any) -> Any:
                opened.add(self.samples[row].path)
                return super().open(row, *rest, **options)

        part = archive.select(rows)
        PixelDataset(
            Watched(**{field.name: getattr(part, field.name) for field in fields(part)}), ImageFormat(16, channels=1)
        )
        return opened

    before = sampled(range(300))
    after = sampled(range(303))
    assert len(before) == len(after) == 64 and len(before - after) <= 3


def test_pages_of_another_size_have_a_row_and_are_no_defect(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    with tifffile.TiffWriter(tmp_path / "archive" / "pages.tif") as writer:
        for side in (32, 32, 9):
            writer.write(np.full((side, side), side, np.uint8))
    cache = build(tmp_path / "archive", tmp_path / "cache")
    assert cache.table("frame", "status", "mode").to_pylist() == [
        {"frame": None, "status": "left out: 1 pages of another size than the largest", "mode": "MINISBLACK"},
        {"frame": 0, "status": "ok", "mode": "MINISBLACK"},
        {"frame": 1, "status": "ok", "mode": "MINISBLACK"},
    ]
    assert not cache.unreadable() and cache.readable().tolist() == [1, 2]


def test_members_have_a_column_of_their_own(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache")
    rows = cache.table("path", "member").to_pylist()
    assert {"path": "z.zip", "member": "in/0001.png"} in rows and {"path": "a/0000.png", "member": None} in rows
    assert sorted(cache.paths()) == [sample.path for sample in open_archive(str(root)).samples]


def test_what_a_killed_run_was_deleting_goes(root: Path, tmp_path: Path) -> None:
    away = tmp_path / "cache" / "removed-0123"
    away.mkdir(parents=True)
    (away / "pixels.bin").touch()
    build(root, tmp_path / "cache")
    assert not away.exists()


def test_options_are_in_the_meta_file(root: Path, tmp_path: Path) -> None:
    meta = json.loads((build(root, tmp_path / "cache").path / "meta.json").read_text())
    assert CacheOptions.from_json(meta["options"]) == OPTIONS and meta["images"] == 40
