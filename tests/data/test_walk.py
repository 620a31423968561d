"""Every file that a walk meets is read, refused with a reason, or counted; and content decides where names do not."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jigsawssl.cli import main
from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.containers import list_members
from jigsawssl.data.walk import NO_IMAGES, find_images
from tests.readers.test_broken import ORIGINALS
from tests.readers.test_dicom import dicom

PNG, JPEG = ORIGINALS["grey.png"], ORIGINALS["grey.jpg"]
CONTENTS = {
    "png": PNG,
    "jpg": JPEG,
    "tif": ORIGINALS["deep.tif"],
    "dcm": dicom(),
    "bare": dicom()[132:],
    "text": b"no picture at all",
    "empty": b"",
    "zip": b"PK\x03\x04" + bytes(40),
    "jp2": b"\x00\x00\x00\x0cjP  " + bytes(40),
    "nii": bytes(344) + b"n+1\0" + bytes(40),
    "zeros": bytes(600),
}
_NAMES = (
    "a.png a.JPG a.jfif a.jpe a.jpg_large IM0001 IM2.img 1.2.840.3 ct.CT x_0001 00000001.DCM;1 scan.dcm30 vol.nii.gz "
    "vol.nii s.svs p.pgm a.heic a.mha report.pdf notes.txt t.csv .DS_Store ._a.png Thumbs.db DICOMDIR a.npz a.7z a.gz "
    "none b.bin slide.mrxs a.zip.part b.tar.old x.docx film.mp4 a.png.bak"
)
NAMES = _NAMES.split()
DICOM_NAMES = ["IM0001", "ct.CT", "IM2.img", "MR.1.2.3_0001", "00000001.DCM;1", "scan.dcm30", "1.2.3.4", "i01.MRDC.5"]


def accounted(archive: Archive) -> int:
    return len(archive) + len(archive.refused) + sum(one.files for one in archive.counted.values())


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_files_met_are_images_refused_and_counted(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contents = list(CONTENTS.values())

    def files(count: int) -> dict[str, bytes]:
        folders = ["", "a/", "a/b/", "c c/", "train/"]
        return {
            str(rng.choice(folders)) + str(rng.choice(NAMES)): contents[rng.integers(len(contents))]
            for _ in range(count)
        }

    met = 0
    for name, data in files(60).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        met += 1
    for name, pack in (("one.zip", zipped), ("a/two.tar", tarred)):
        members = files(30) | {"__MACOSX/._x.png": b"", ".hidden/x.png": PNG}
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(pack(members))
        met += len(members)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "many.png").write_bytes(PNG)  # hidden folders count once
    met += 4
    archive = open_archive(str(tmp_path))
    assert accounted(archive) == met
    every = [sample.path for sample in archive.samples] + [path for path, _ in archive.refused]
    assert len(set(every)) == len(every) and all(reason for _, reason in archive.refused)
    for sample in archive.samples:  # what is believed by its name, or by its content, and by nothing else
        name = sample.path.lower()
        assert name.endswith((".png", ".jpg")) or not name.endswith(tuple(NO_IMAGES))


@pytest.mark.parametrize("name", ["a.jfif", "b.jpg_large", "IMAGE 12", "h.img", "i.bin", "j.png.part", "k.jp2"])
@pytest.mark.parametrize("content", ["png", "jpg", "tif", "dcm", "bare"])
def test_content_decides_where_the_name_says_nothing(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(CONTENTS[content])
    (tmp_path / "packed.zip").write_bytes(zipped({name: CONTENTS[content]}))
    (tmp_path / "packed.tar").write_bytes(tarred({name: CONTENTS[content]}))
    archive = open_archive(str(tmp_path))
    assert sorted(sample.path for sample in archive.samples) == sorted(
        [name, f"packed.tar/{name}", f"packed.zip/{name}"]
    )
    assert len({archive.read(row).tobytes() for row in range(3)}) == 1 and not archive.refused


def test_names_of_dicom_files(tmp_path: Path) -> None:
    for content in ("dcm", "bare"):
        for name in DICOM_NAMES:
            (tmp_path / content).mkdir(exist_ok=True)
            (tmp_path / content / name).write_bytes(CONTENTS[content])
    (tmp_path / "dcm" / "DICOMDIR").write_bytes(CONTENTS["dcm"])
    archive = open_archive(str(tmp_path))
    assert len(archive) == 16 and not archive.refused and archive.counted["system"].files == 1
    assert len({archive.read(row).tobytes() for row in range(16)}) == 1


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    for name in ("v.nii", "v.nii.gz", "v.mha", "s.mrxs", "p.pgm", "a.heic", "a.npy", "photo"):
        (tmp_path / name).write_bytes(CONTENTS["jp2"] if name == "photo" else b"whatever it is")
    refused = dict(open_archive(str(tmp_path)).refused)
    assert refused["v.nii"] == refused["v.nii.gz"] == "left out: NIfTI is not read"
    assert refused["photo"] == "left out: JPEG 2000 is not read"
    assert len(refused) == 8 and open_archive(str(tmp_path)).faults == 0


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "real").mkdir(parents=True)
    outside.mkdir()
    for folder in (root / "real", outside):
        (folder / "x.png").write_bytes(PNG)
    (root / ".store").mkdir()
    (root / ".store" / "y.png").write_bytes(PNG)
    for name, target in (
        ("again", root / "real"),
        ("around", root),
        ("away", outside),
        ("gone", tmp_path / "none"),
        ("kept", root / ".store"),
    ):
        (root / name).symlink_to(target, target_is_directory=True)
    archive = open_archive(str(root))
    assert [sample.path for sample in archive.samples] == ["kept/y.png", "real/x.png"]
    assert dict(archive.refused) == {
        "again": "left out: a link to a folder that is read already",
        "around": "left out: a link to a folder that is read already",
        "away": "a link that leads outside",
        "gone": "a link that leads nowhere",
    }


def test_links_in_a_tar_are_what_they_lead_to(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in (("./scans/0.png", PNG), ("scans/1.png", JPEG)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
        for name, kind, target in (
            ("scans/hard.png", tarfile.LNKTYPE, "scans/1.png"),
            ("scans/soft.png", tarfile.SYMTYPE, "1.png"),
            ("up/soft.png", tarfile.SYMTYPE, "../scans/hard.png"),
            ("out.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("loop.png", tarfile.SYMTYPE, "loop.png"),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            file.addfile(entry)
    archive = open_archive(str(tmp_path))
    read = {sample.path: archive.read_bytes(row) for row, sample in enumerate(archive.samples)}
    assert read == {
        "a.tar/scans/0.png": PNG,
        "a.tar/scans/1.png": JPEG,
        "a.tar/scans/hard.png": JPEG,
        "a.tar/scans/soft.png": JPEG,
        "a.tar/up/soft.png": JPEG,
    }
    assert dict(archive.refused) == {
        "a.tar/out.png": "a link that leads outside or nowhere",
        "a.tar/loop.png": "a link that leads outside or nowhere",
        "a.tar/pipe.png": "not a file",
    }


def test_the_last_of_repeated_names_in_a_tar_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for data in (JPEG, PNG):
            entry = tarfile.TarInfo("a.png")
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    archive = open_archive(str(tmp_path))
    assert archive.read_bytes(0) == PNG and len(archive) == 1
    assert archive.refused == (("a.tar/a.png", "repeated name inside a container; the last one counts"),)


def test_backslashes_in_a_zip_separate_folders(tmp_path: Path) -> None:
    data = zipped({"ward/x/1.png": PNG, "ward/y/2.png": JPEG, "__MACOSX/ward/._1.png": b"", "ward/z/": b""})
    (tmp_path / "slashes.zip").write_bytes(data)
    written = data
    for name in (b"ward/x/1.png", b"ward/y/2.png", b"__MACOSX/ward/._1.png", b"ward/z/"):
        written = written.replace(name, name.replace(b"/", b"\\"))
    (tmp_path / "backslashes.zip").write_bytes(written)
    archive = open_archive(str(tmp_path), manifest="folders")
    assert [(s.path, s.label) for s in archive.samples] == [
        (f"{name}.zip/ward/{label}/{number}.png", label)
        for name in ("backslashes", "slashes")
        for label, number in (("x", 1), ("y", 2))
    ]
    assert archive.read_bytes(0) == archive.read_bytes(2) == PNG
    assert archive.counted["hidden"].files == 2 and not archive.refused


def test_members_that_no_one_can_unpack_are_named(tmp_path: Path) -> None:
    data = bytearray(zipped({"locked.png": PNG, "method.png": PNG, "good.png": PNG}))
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<H", data, at + 8, struct.unpack_from("<H", data, at + 8)[0] | 1)
    struct.pack_into("<H", data, data.index(b"PK\x01\x02", at + 4) + 10, 9)
    (tmp_path / "a.zip").write_bytes(bytes(data))
    listed = list_members(str(tmp_path / "a.zip"))
    assert list(listed.names) == ["good.png"] and dict(listed.refused) == {
        "locked.png": "encrypted; unpack it with its password",
        "method.png": "the zip method Deflate64 is not read; unpack it, or pack it again as usual",
    }


def test_the_census_says_what_was_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        image = rng.integers(0, 256, (40, 40), dtype=np.uint16) * 10
        (tmp_path / f"IM{number}").write_bytes(dicom(image, WindowCenter=1000, WindowWidth=2000))
    for name in ("readme.txt", "table.csv", ".DS_Store", "odd", "v.nii.gz"):
        (tmp_path / name).write_text("text")
    assert main(["doctor", f"data={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    lines = {" ".join(line.replace("|", " ").split()) for line in printed.splitlines()}
    assert {"files and members 8", "not images .csv: 1, .txt: 1, hidden: 1, none: 1", "left out 1"} <= lines
    assert "odd: not an image, by its content" in printed and "v.nii.gz: NIfTI is not read" in printed
    found = find_images(tmp_path)
    assert found.paths == ["IM0", "IM1", "IM2"] and found.counted["none"].examples == ("odd",)
