"""A chain of stages from the command line, on the embedded demo archive."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

import jigsawssl
from jigsawssl.cli import main
from jigsawssl.cli import transfer as transfer_module

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "smoke" / "transfer.yaml"
NAMES = ("1-archive", "2-source", "3-target")


def transfer(out: Path, *arguments: str) -> int:
    return main(["transfer", f"config={SMOKE}", f"out={out}", *arguments])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain that was interrupted after its first stage and went on."""
    out = tmp_path_factory.mktemp("chains") / "chain"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_module.finetune, "run", lambda config: (_ for _ in ()).throw(KeyboardInterrupt))
        assert transfer(out) == 130
    assert (out / NAMES[0] / "report.json").is_file() and not (out / NAMES[1]).exists()
    before = (out / NAMES[0] / "encoder.safetensors").stat().st_mtime_ns
    assert transfer(out, "resume=true") == 0
    assert (out / NAMES[0] / "encoder.safetensors").stat().st_mtime_ns == before
    return out


def test_each_stage_starts_from_what_the_one_before_learned(chain: Path) -> None:
    first = jigsawssl.load_encoder(chain / NAMES[0] / "encoder.safetensors")
    second = jigsawssl.load_encoder(chain / NAMES[1] / "model.safetensors")
    third = jigsawssl.load_encoder(chain / NAMES[2] / "model.safetensors")
    moved = []
    for stage, (before, after) in enumerate(zip(first.by_stage().values(), second.by_stage().values(), strict=True)):
        same = [
            torch.equal(value, other.state_dict()[name])
            for module, other in zip(before, after, strict=True)
            for name, value in module.state_dict().items()
        ]
        # Frozen: weights and running statistics alike.
        assert all(same) if stage < 3 else not all(same), stage
    for before, after in zip(second.by_stage().values(), third.by_stage().values(), strict=True):
        pairs = [(a.weight, b.weight) for a, b in zip(before, after, strict=True)]
        moved.append(any(not torch.equal(a, b) for a, b in pairs))  # type: ignore[arg-type]
    # A stage more in each epoch from the second on, as many as validation chose.
    epochs = json.loads((chain / NAMES[2] / "report.json").read_text())["chosen"]["epochs"]
    assert moved == [stage > 4 - (epochs - 1) for stage in range(5)]


def test_its_page_shows_every_stage(chain: Path) -> None:
    text = (chain / "report.html").read_text()
    report = json.loads((chain / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == list(NAMES)
    for name in NAMES:
        assert f">{name}</h2>" in text and f'href="{name}/report.html"' in text
    assert "trained: from:stage3" in text and str(chain.parent) not in text
    assert 'src=""' not in text and text.count("Where the network looks") == 2
    before = text
    assert main(["report", str(chain)]) == 0
    assert (chain / "report.html").read_text() == before


def test_a_finished_chain_is_left_alone_and_overwrite_begins_anew(chain: Path) -> None:
    times = [(chain / name / "report.json").stat().st_mtime_ns for name in NAMES]
    assert transfer(chain, "resume=true") == 0
    assert [(chain / name / "report.json").stat().st_mtime_ns for name in NAMES] == times
    assert transfer(chain) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: source", "name: archive", "must each have a unique name"),
        ("objective: jigsaw", "objective: other", "must have the objective supervised or jigsaw, not other"),
        ("fraction: 0.05", "fractions: 0.05", "finetune has no key `fractions`; did you mean `fraction`?"),
        ("fraction: 0.05", "out: elsewhere", "must not name `out`"),
        ("from:stage3", "from:9", "`train` (from:9) must be all, head, from:STAGE"),
        ("data: demo\n    split", "encoder: previous\n    split", "must name its encoder"),
        (re.compile("stages:.*", re.DOTALL), "stages: []", "must list `stages`"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SMOKE.read_text()
    changed = old.sub(new, text) if isinstance(old, re.Pattern) else text.replace(old, new, 1)
    assert changed != text
    (tmp_path / "chain.yaml").write_text(changed)
    assert main(["transfer", f"config={tmp_path / 'chain.yaml'}", f"out={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "1-archive").exists()


def stained(file: Path, number: int) -> None:
    """A patch of two dyes on white, its amounts at random."""
    file.parent.mkdir(parents=True, exist_ok=True)
    amounts = np.random.default_rng(number).gamma(1.0, 0.5, (40, 40, 2))
    density = amounts @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    Image.fromarray((255 * np.exp(-density)).astype(np.uint8)).save(file)


def test_the_published_chain_runs_on_an_imitation_of_its_trees(tmp_path: Path) -> None:
    lines = ["path,label,group"]
    for number in range(24):
        kind = ("lung_aca", "lung_n", "lung_scc")[number % 3]
        stained(tmp_path / "lung" / "images" / f"{number}.png", number)
        lines.append(f"images/{number}.png,{kind},{number // 2}")
    (tmp_path / "lung" / "manifest.csv").write_text("\n".join(lines))
    for number in range(24):
        kind, subtype, folder = (("B", "A", "benign/SOB/adenosis"), ("M", "DC", "malignant/SOB/ductal_carcinoma"))[
            number % 2
        ]
        slide = f"14-{2500 + number // 2}AB"
        name = f"SOB_{kind}_{subtype}-{slide}-200-{number:03d}.png"
        base = tmp_path / "BreaKHis_v1" / "histology_slides" / "breast" / folder
        stained(base / f"SOB_{kind}_{subtype}_{slide}" / "200X" / name, 100 + number)
    torch.manual_seed(1)
    save_file(timm.create_model("densenet121").state_dict(), tmp_path / "densenet.safetensors")
    chain = OmegaConf.load(ROOT / "configs" / "transfer" / "breast_histology.yaml")
    lung, breast = chain.stages
    assert (lung.encoder, breast.layout) == ("timm:densenet121", "breakhis")
    lung.encoder += f":{tmp_path / 'densenet.safetensors'}"
    lung.data, lung.manifest = str(tmp_path / "lung"), str(tmp_path / "lung" / "manifest.csv")
    breast.data, breast.optimizer.lr, breast.unfreeze_every = str(tmp_path), 1e-3, 1
    lung["views"].size = 32
    for stage in chain.stages:
        stage.merge_with({"trainer": {"max_epochs": 2}, "precision": "32", "batch": {"size": 8}})
    OmegaConf.save(chain, tmp_path / "chain.yaml")
    assert main(["transfer", f"config={tmp_path / 'chain.yaml'}", f"out={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    lung_run, breast_run = report["stages"]
    assert lung_run["data"]["classes"] == ["lung_aca", "lung_n", "lung_scc"]
    assert breast_run["data"]["classes"] == ["benign", "malignant"]
    groups = [breast_run["data"][part]["groups"] for part in ("training", "test")]
    assert sum(groups) == 12  # patients, none on both sides
    model, _ = jigsawssl.load_classifier(tmp_path / "out" / "2-breast" / "model.safetensors")
    spec = model.encoder.spec
    assert (spec.backbone, spec.attention, spec.format.stain) == ("densenet121", "cbam", "macenko")
    # The shallow layers are those of the source, in both stages' models but for what the second set free.
    first, _ = jigsawssl.load_classifier(tmp_path / "out" / "1-lung" / "model.safetensors")
    torch.manual_seed(1)
    source = timm.create_model("densenet121").state_dict()
    kept = first.encoder.backbone.state_dict()
    assert torch.equal(kept["features.conv0.weight"], source["features.conv0.weight"])
    assert torch.equal(kept["features.norm0.running_mean"], source["features.norm0.running_mean"])
    assert not torch.equal(
        kept["features.denseblock4.denselayer1.conv1.weight"], source["features.denseblock4.denselayer1.conv1.weight"]
    )
