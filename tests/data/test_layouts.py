"""Public sets: small imitations of the trees as they are downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jigsawssl.data.archive import Archive, open_archive
from jigsawssl.data.layouts import LAYOUTS
from jigsawssl.types import Sample, UserError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / path)
    return root


def layout(root: Path, name: str) -> Archive:
    return open_archive(str(root), layout=name)


def facts(archive: Archive) -> dict[str, tuple[str | None, str | None, str | None]]:
    return {sample.path.rpartition("/")[2]: sample[1:] for sample in archive.samples}


def breakhis(root: Path) -> Path:
    base = "BreaKHis_v1/histology_slides/breast"
    kinds = (("B", "A", "benign/SOB/adenosis"), ("M", "DC", "malignant/SOB/ductal_carcinoma"))
    return touch(
        root,
        *(
            f"{base}/{folder}/SOB_{kind}_{subtype}_14-{slide}/{scale}X/SOB_{kind}_{subtype}-14-{slide}-{scale}-001.png"
            for kind, subtype, folder in kinds
            for slide in (f"{kind}{number}AB" for number in range(10))
            for scale in (40, 200)
        ),
    )


def test_breakhis(tmp_path: Path) -> None:
    root = breakhis(tmp_path)
    archive = layout(root, "breakhis")
    assert len(archive) == 40 and archive.classes == ("benign", "malignant")
    assert facts(archive)["SOB_M_DC-14-M3AB-200-001.png"] == ("malignant", None, "14-M3AB")
    some = layout(root, "breakhis:magnification=200,label=subtype")
    assert len(some) == 20 and some.classes == ("adenosis", "ductal_carcinoma")


def test_breakhis_folds_hold_every_patient_out_once(tmp_path: Path) -> None:
    root = breakhis(tmp_path)
    held: list[str] = []
    for fold in range(1, 6):
        archive = layout(root, f"breakhis:fold={fold}")
        test = {sample.group for sample in archive.samples if sample.split == "test"}
        train = {sample.group for sample in archive.samples if sample.split == "train"}
        labels = {sample.label for sample in archive.samples if sample.split == "test"}
        assert not test & train and len(labels) == 2
        held += sorted(group for group in test if group)
    assert len(held) == len(set(held)) == 20


def test_isic2017(tmp_path: Path) -> None:
    touch(tmp_path, *(f"ISIC-2017_Training_Data/ISIC_000000{number}.jpg" for number in range(3)))
    touch(tmp_path, "ISIC-2017_Training_Data/ISIC_0000000_superpixels.png", "ISIC-2017_Test_v2_Data/ISIC_0000009.jpg")
    header = "image_id,melanoma,seborrheic_keratosis\n"
    rows = "ISIC_0000000,1.0,0.0\nISIC_0000001,0.0,1.0\nISIC_0000002,0.0,0.0\n"
    (tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv").write_text(header + rows)
    (tmp_path / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").write_text(header + "ISIC_0000009,1.0,0.0\n")
    assert facts(layout(tmp_path, "isic2017")) == {
        "ISIC_0000000.jpg": ("melanoma", "train", None),
        "ISIC_0000001.jpg": ("seborrheic_keratosis", "train", None),
        "ISIC_0000002.jpg": ("nevus", "train", None),
        "ISIC_0000009.jpg": ("melanoma", "test", None),
    }


def test_isic2018(tmp_path: Path) -> None:
    touch(tmp_path, "ISIC2018_Task3_Training_Input/ISIC_1.jpg", "ISIC2018_Task3_Validation_Input/ISIC_2.jpg")
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"
    for part, row in (("Training", "ISIC_1,0.0,1.0,0,0,0,0,0"), ("Validation", "ISIC_2,0,0,0,0,0,0,1.0")):
        folder = tmp_path / f"ISIC2018_Task3_{part}_GroundTruth"
        folder.mkdir()
        (folder / f"ISIC2018_Task3_{part}_GroundTruth.csv").write_text(header + row + "\n")
    groupings = "image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_7,histopathology\n"
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(groupings)
    found = facts(layout(tmp_path, "isic2018"))
    assert found == {"ISIC_1.jpg": ("nv", "train", "HAM_7"), "ISIC_2.jpg": ("vasc", "val", None)}


def test_aptos2019(tmp_path: Path) -> None:
    touch(tmp_path, "train_images/0a.png", "train_images/0b.png", "test_images/0c.png")
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n0a,2\n0b,0\n")
    archive = layout(tmp_path, "aptos2019")
    assert archive.classes == ("0", "2")
    assert facts(archive) == {"0a.png": ("2", None, None), "0b.png": ("0", None, None), "0c.png": (None, None, None)}


def test_kermany(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "chest_xray/train/NORMAL/IM-0115-0001.jpeg",
        "chest_xray/train/NORMAL/NORMAL2-IM-0416-0001-0001.jpeg",
        "chest_xray/test/PNEUMONIA/person12_bacteria_5.jpeg",
        "chest_xray/train/PNEUMONIA/person12_virus_9.jpeg",
        "OCT2017/train/CNV/CNV-1016042-3.jpeg",
    )
    assert facts(layout(tmp_path, "kermany")) == {
        "IM-0115-0001.jpeg": ("normal", "train", "train IM-0115"),
        "NORMAL2-IM-0416-0001-0001.jpeg": ("normal", "train", "train NORMAL2-IM-0416"),
        "person12_bacteria_5.jpeg": ("pneumonia", "test", "test person12"),
        "person12_virus_9.jpeg": ("pneumonia", "train", "train person12"),
        "CNV-1016042-3.jpeg": ("cnv", "train", "train 1016042"),
    }


def test_lc25000(tmp_path: Path) -> None:
    touch(
        tmp_path, "lung_colon_image_set/lung_image_sets/lung_n/lungn1.jpeg", "x/colon_aca/colonca1.jpeg", "other/a.png"
    )
    assert facts(layout(tmp_path, "lc25000")) == {
        "lungn1.jpeg": ("lung_n", None, None),
        "colonca1.jpeg": ("colon_aca", None, None),
    }


def test_camelyon17(tmp_path: Path) -> None:
    patches = [(4, 1, 8, 16, 1, 0), (20, 0, 0, 0, 0, 1), (40, 2, 96, 0, 1, 2)]
    name = "patch_patient_{:03d}_node_{}_x_{}_y_{}.png"
    touch(tmp_path, *(f"patches/patient_{p[0]:03d}_node_{p[1]}/{name.format(*p)}" for p in patches))
    lines = [f"{i},{p},{n},{x},{y},{tumor},0,{centre},0" for i, (p, n, x, y, tumor, centre) in enumerate(patches)]
    header = ",patient,node,x_coord,y_coord,tumor,slide,center,split"
    (tmp_path / "metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    assert list(facts(layout(tmp_path, "camelyon17")).values()) == [
        ("tumor", "train", "patient 4"),
        ("normal", "val", "patient 20"),
        ("tumor", "test", "patient 40"),
    ]


def test_medmnist(tmp_path: Path) -> None:
    for name, size in (("pathmnist", 28), ("pathmnist_64", 64)):
        np.savez(tmp_path / f"{name}.npz", train_images=np.zeros((3, size, size), np.uint8))
    assert layout(tmp_path, "medmnist:name=pathmnist").read(0).shape == (28, 28, 1)
    assert layout(tmp_path, "medmnist:name=pathmnist,size=64").read(0).shape == (64, 64, 1)
    with pytest.raises(UserError, match=r"one \.npz file has to be meant, of: pathmnist.npz, pathmnist_64.npz"):
        layout(tmp_path, "medmnist")


def test_wrong_folders_names_and_options_are_user_errors(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    for name in LAYOUTS:
        with pytest.raises(UserError, match=rf"^`layout` \({name}\) must fit `data`.*; check the folder"):
            layout(tmp_path, name)
    for name, expected in (
        ("breakhis2", "must be one of breakhis, isic2017"),
        ("breakhis:zoom=3", "magnification=40|100|200|400"),
        ("kermany:fold=1", "(none); fold=1 is not"),
    ):
        with pytest.raises(UserError) as caught:
            layout(tmp_path, name)
        assert expected in str(caught.value)
    with pytest.raises(UserError, match="without `manifest`"):
        open_archive(str(tmp_path), manifest="folders", layout="kermany")


REAL = os.environ.get("JIGSAWSSL_REAL_DATA", "")


@pytest.mark.skipif(not REAL, reason="JIGSAWSSL_REAL_DATA names no folder with kermany_cxr and lc25000_lung")
def test_on_real_images() -> None:
    folder = Path(REAL) / "kermany_cxr"
    archive = layout(folder, "kermany")
    assert len(archive) == 5856 and archive.classes == ("normal", "pneumonia")
    written = {
        sample.path: sample for sample in open_archive(str(folder), manifest=str(folder / "manifest.csv")).samples
    }
    groups: dict[str | None, set[str | None]] = {}
    for sample in archive.samples:
        other = written[sample.path]
        assert sample.split == other.split and (sample.label == "normal") == (other.label == "normal")
        groups.setdefault(sample.group, set()).add(other.group)
    assert all(len(names) == 1 for names in groups.values())
    assert layout(Path(REAL) / "lc25000_lung", "lc25000").classes == ("lung_aca", "lung_n", "lung_scc")


def test_a_layout_is_what_samples_are_made_of(tmp_path: Path) -> None:
    touch(tmp_path, "train/NORMAL/IM-0001-0001.jpeg")
    sample = layout(tmp_path, "kermany").samples[0]
    assert sample == Sample("train/NORMAL/IM-0001-0001.jpeg", "normal", "train", "train IM-0001")
