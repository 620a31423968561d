"""The first hour: what a mistake is answered with, on one line, before PyTorch is imported and without a trace."""

from __future__ import annotations

import errno
import gc
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jigsawssl
from jigsawssl import cli
from jigsawssl.cli import main
from jigsawssl.cli.look import look, place_at_fault, settled
from jigsawssl.config.loading import load_config, to_yaml
from jigsawssl.config.schemas import (
    CurveConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    TransferConfig,
)
from jigsawssl.config.shipped import shipped_configs
from jigsawssl.runs.folder import check_place, clear_run_folder
from jigsawssl.types import ImageFormat, UserError

COMMANDS = ("pretrain", "finetune", "curve", "study", "transfer", "select", "report", "doctor", "bench", "demo")
LONG = "x" * 300
FINETUNE = ["finetune", "data=scans", "manifest=labels.csv", "out=new"]

ANSWERS: list[tuple[list[str], str]] = [
    # commands
    (["pretain", "data=scans"], f"command (pretain) must be one of {', '.join(COMMANDS)}; did you mean pretrain?"),
    (["fine-tune"], f"command (fine-tune) must be one of {', '.join(COMMANDS)}; did you mean finetune?"),
    (["banana"], f"command (banana) must be one of {', '.join(COMMANDS)}; see jigsawssl --help"),
    (
        ["data=scans", "out=new"],
        "the command must come before `data=scans`, as in jigsawssl pretrain data=scans; commands are pretrain, ",
    ),
    # keys and values
    (["pretrain", "data=scans", "epochs=2"], "pretrain has no key `epochs`; did you mean `trainer.max_epochs`?"),
    (
        ["pretrain", "data=scans", "--epochs", "2"],
        "argument (--epochs 2) must have the form key=value, without dashes; write trainer.max_epochs=2",
    ),
    (
        ["pretrain", "data=scans", "out=new", "views.grids=8,4,1"],
        "`views.grids` (8,4,1) must be a list of whole numbers; write views.grids=[8,4,1], without spaces or in quotes",
    ),
    (
        ["pretrain", "data=scans", "out=new", "views.grids=[8,", "4,", "1]"],
        "`views.grids` ([8, 4, 1]) must be one argument; the shell split it at its spaces; write views.grids=[8,4,1], "
        "without spaces or in quotes",
    ),
    (
        [*FINETUNE, "encoder=random:resnet18", "fraction=10"],
        "`fraction` (10.0) must lie in (0, 1]; 1 is all labels, and 10 per cent is 0.1 or 10%",
    ),
    (["pretrain", "scans", "out=new"], "argument (scans) must have the form key=value; write data=scans"),
    (["pretrain", "data=", "scans"], "argument (scans) must have the form key=value; write data=scans"),
    # configurations
    (
        ["pretrain", "data=scans", "out=new", "config=pneumonia_compact"],
        "`config` (pneumonia_compact) is a configuration for finetune, not for pretrain, which has no `mode`; run "
        "jigsawssl finetune config=pneumonia_compact",
    ),
    (
        ["pretrain", "data=scans", "out=new", "config=kermany"],
        "`config` (kermany) must be a YAML file or the name of one that comes with jigsawssl (kermany_cpu, paper); "
        "nothing is there; did you mean kermany_cpu?",
    ),
    (["transfer", "breast", "out=new"], "`config` (breast) must be a YAML file or the name of one that comes with jig"),
    (
        ["transfer", "breast_histology", "out=new"],
        "`stages` (1-lung): `data` (lc25000_lung) must be a folder, an .npz file or 'demo'; nothing is there; check th",
    ),
    (["transfer", "empty.yaml", "out=new"], "`config` (empty.yaml) must list `stages`; see configs/transfer/ for exam"),
    (["study", "attention", "out=new"], "`data` (ham10000) must be a folder, an .npz file or 'demo'; nothing is there"),
    # data
    (["pretrain", "data=scnas", "out=new"], "`data` (scnas) must exist; did you mean scans?"),
    (
        ["pretrain", "data=nowhere", "out=new"],
        "`data` (nowhere) must be a folder, an .npz file or 'demo'; nothing is there; check the path.",
    ),
    (
        ["pretrain", "data=file", "out=new"],
        "`data` (file) must be a folder, an .npz file or 'demo'; that is another fi",
    ),
    (["pretrain", "data=hollow", "out=new"], "`data` (hollow) must hold images (.png .jpg"),
    (["pretrain", "data=falt", "out=new"], "`data` (falt) must exist; did you mean flat?"),
    (["pretrain", "data=flag", "out=new"], "`data` (flag) must exist; did you mean flat?"),
    (["doctor", "scnas"], "`data` (scnas) must exist; did you mean scans?"),
    (["doctor", "hollow"], "`data` (hollow) must hold images (.png .jpg"),
    (["bench", "scnas"], "`data` (scnas) must exist; did you mean scans?"),
    (
        ["finetune", "data=scans", "out=new", "encoder=random:resnet18"],
        "`data` (scans) must have labels of at least two classes; a folder by itself has none; give manifest=labels.csv"
        " with path,label or manifest=folders",
    ),
    (
        ["finetune", "data=flat", "manifest=folders", "out=new", "encoder=random:resnet18"],
        "`manifest` (folders) must f",
    ),
    # out
    (["pretrain", "data=scans", "out=file"], "`out` (file) must be a folder; a file is there; choose another name"),
    (
        ["pretrain", "data=scans", "out=file/new"],
        "`out` (file/new) must be a folder; file is a file; choose another pl",
    ),
    (
        ["pretrain", "data=scans", f"out={LONG}/new"],
        f"`out` ({LONG}/new) cannot be created; file name too long; choose an",
    ),
    (
        ["pretrain", "data=scans", "out=scans"],
        "`out` (scans) must be new, empty or the folder of an earlier run; it holds a; choose another folder, or mo",
    ),
    (
        ["pretrain", "data=scans", "out=scans", "resume=true"],
        "`out` (scans) must be new, empty or the folder of an earlier run; it holds a; choo",
    ),
    (["pretrain", "data=scans", "out=/"], "`out` (/) must be new, empty or the folder of an earlier run; it holds "),
    (
        ["pretrain", "data=scans", "out=unfinished"],
        "`out` (unfinished) must be new or empty; it holds an earlier run; add resume=true to go on with it, ",
    ),
    (
        ["doctor", "scans", "out=scans"],
        "`out` (scans) must be new, empty or the folder of an earlier doctor run; it holds a; choose another folder",
    ),
    (
        ["pretrain", "data=scans", "out=new", "cache=file/new"],
        "`cache` (file/new) must be a folder; file is a file; ch",
    ),
    (
        ["finetune", *FINETUNE[1:3], "encoder=random:resnet18", "out=file/new"],
        "`out` (file/new) must be a folder; file",
    ),
    (
        ["curve", *FINETUNE[1:3], "encoders={a: random:resnet18}", "out=file/new"],
        "`out` (file/new) must be a folder; f",
    ),
    (["transfer", "chain.yaml", "out=file/new"], "`out` (file/new) must be a folder; file is a file; choose another p"),
    (["doctor", "scans", "out=file/new"], "`out` (file/new) must be a folder; file is a file; choose another place"),
    (["demo", "out=file/new"], "`out` (file/new) must be a folder; file is a file; choose another place"),
    (
        ["pretrain", "data=scans", "out=unfinished", "resume=true", "seed=7"],
        "`seed` (7) must be the same as in the run to resume (0); change it back, or choose another `out`",
    ),
    (["report", "unfinishd"], "`run` (unfinishd) must exist; did you mean unfinished?"),
    (
        ["report", "scans"],
        "`run` (scans) must be the folder of a finished run, a curve or a study; no report.json is th",
    ),
    # encoders
    (
        [*FINETUNE, "encoder=unfinished"],
        "`encoder` (unfinished) must be a finished run; unfinished has no encoder.safetensors yet; finish it with "
        "jigsawssl pretrain config=unfinished/config.yaml resume=true",
    ),
    (
        [*FINETUNE, "encoder=unfinished/checkpoints/last.ckpt"],
        "`encoder` (unfinished/checkpoints/last.ckpt) must be a .safetensors file; a checkpoint is only for "
        "resume=true, and unfinished has no encoder.safetensors yet; finish it with jigsawssl pretrain "
        "config=unfinished/config.yaml resume=true",
    ),
    (
        [*FINETUNE, "encoder=runs/one/checkpoints/last.ckpt"],
        "`encoder` (runs/one/checkpoints/last.ckpt) must be a .safetensors file; give runs/one/encoder.safetensors; a "
        "checkpoint is only for resume=true",
    ),
    (
        [*FINETUNE, "encoder=weights.pth"],
        "`encoder` (weights.pth) must be a .safetensors file; give RUN/encoder.safetensors of a run, or weights of timm"
        " as timm:BACKBONE:FILE.safetensors; a checkpoint is only for resume=true",
    ),
    (
        [*FINETUNE, "encoder=runs"],
        "`encoder` (runs) must be the folder of one run; it holds the runs one; give one, such as runs/one",
    ),
    (
        [*FINETUNE, "encoder=scans"],
        "`encoder` (scans) must be a run's folder with encoder.safetensors or model.safetensors; it holds a, b; check",
    ),
    ([*FINETUNE, "encoder=runs/onne/encoder.safetensors"], "`encoder` (runs/onne/encoder.safetensors) must exist; did"),
    (
        [*FINETUNE, "encoder=nothing.safetensors"],
        "`encoder` (nothing.safetensors) must be a file; nothing is there; ch",
    ),
    (
        [*FINETUNE, "encoder=resnet18"],
        "`encoder` (resnet18) must be a file; nothing is there; did you mean random:resnet18 or timm:resnet18?",
    ),
    ([*FINETUNE, "encoder=other/resnet18"], "`encoder` (other/resnet18) must be a file; nothing is there; check the p"),
    ([*FINETUNE, "encoder=random:scans/"], "`encoder` (random:scans/) must be a run's folder with encoder.safetensors"),
    (
        [*FINETUNE, "encoder=timm:resnet18:w.safetensors"],
        "`encoder` (timm:resnet18:w.safetensors) must be a file; noth",
    ),
    ([*FINETUNE, "encoder=file"], "`encoder` (file) must be a complete safetensors file; "),
    (
        ["pretrain", "data=scans", "out=new", "encoder=scans"],
        "`encoder` (scans) must be a run's folder with encoder.sa",
    ),
    (
        ["curve", *FINETUNE[1:], "encoders={a: scans}"],
        "`encoders.a` (scans) must be a run's folder with encoder.safete",
    ),
    (
        ["study", *FINETUNE[1:], "variants={a: {encoder: scans}, b: {encoder: x}}"],
        "`variants.a`: `encoder` (scans) must be a run's folder with encoder.safetensors or model.safetensors; it ",
    ),
    (
        ["pretrain", "data=scans", "out=new", "encoder=random:resnet18", "backbone=resnet50"],
        "`backbone` (resnet50) must be left out beside `encoder` (random:resnet18), which decides it",
    ),
    # manifests and lists of labels
    (
        ["pretrain", "data=scans", "out=new", "manifest=lables.csv"],
        "`manifest` (lables.csv) must exist; did you mean labels.csv?",
    ),
    (
        ["pretrain", "data=scans", "out=new", "manifest=semicolons.csv"],
        "`manifest` (semicolons.csv) must separate its ",
    ),
    (
        ["pretrain", "data=scans", "out=new", "manifest=names.csv"],
        "`manifest` (names.csv) must have the columns path,l",
    ),
    (
        ["doctor", "scans", "manifest=names.csv"],
        "`manifest` (names.csv) must have the columns path,label and, if known",
    ),
    (
        ["finetune", "data=scans", "out=new", "encoder=random:resnet18", "manifest=names.csv"],
        "`manifest` (names.csv) must have the columns path,label and, if known, split,group; it has: filename, class; "
        "rename `filename` to `path` and `class` to `label`.",
    ),
    (
        ["finetune", "data=scans", "out=new", "encoder=random:resnet18", "manifest=swapped.csv"],
        "`manifest` (swapped.csv) must have classes in `label` and patients (lesions, slides) in `group`; `label` has"
        " 12 values, such as p0, and `group` 2, such as a; swap the two names in the first line.",
    ),
    (
        ["finetune", "data=scans", "out=new", "encoder=random:resnet18", "manifest=paths.csv"],
        "`manifest` (paths.csv) must have the columns path,label in its first line; it has: path; add `label`.",
    ),
    (
        ["pretrain", "data=scans", "out=new", "manifest=front.csv"],
        "`manifest` (front.csv) must name files that exist in `data` (scans); 24 of 24 are missing, the first is "
        "scans/a/0.png; take scans/ off every path: a/0.png.",
    ),
    (
        ["pretrain", "data=scans", "out=new", "manifest=absolute.csv"],
        "`manifest` (absolute.csv) must name paths inside `data`; line 2 has '",
    ),
    (
        ["pretrain", "data=demo", "out=new", "manifest=labels.csv"],
        "`manifest` (labels.csv) must go with a folder of im",
    ),
    (
        [*FINETUNE, "encoder=random:resnet18", "subset=none.csv"],
        "`subset` (none.csv) must be a CSV file; no file is th",
    ),
    (
        [*FINETUNE, "encoder=random:resnet18", "subgroups=[site]"],
        "`subgroups` (site) must be a column of `manifest` (l",
    ),
    (
        ["curve", *FINETUNE[1:], "encoders={a: random:resnet18}", "subsets=scans"],
        "`subsets` (scans) must be the folder",
    ),
]

# A character that no path can hold, for every command and each of its paths.
ANSWERS += [
    (
        arguments,
        f"`{arguments[-1].partition('=')[0]}` (a\\0b) must not contain the character NUL, which is not allowed in a",
    )
    for arguments in (
        ["pretrain", "out=new", "data=a\0b"],
        ["pretrain", "data=scans", "out=a\0b"],
        ["pretrain", "data=scans", "out=new", "cache=a\0b"],
        ["finetune", "data=scans", "out=new", "manifest=a\0b"],
        [*FINETUNE, "encoder=a\0b"],
        [*FINETUNE, "encoder=random:resnet18", "subset=a\0b"],
        ["curve", *FINETUNE[1:3], "out=a\0b"],
        ["study", *FINETUNE[1:3], "out=a\0b"],
        ["transfer", "chain.yaml", "out=a\0b"],
        ["doctor", "scans", "out=a\0b"],
        ["bench", "data=a\0b"],
        ["demo", "out=a\0b"],
        ["report", "run=a\0b"],
        ["pretrain", "data=scans", "out=new", "config=a\0b"],
    )
]


def write_place(root: Path) -> None:
    """A user's folder, in which things have the names that the mistakes above use."""
    rng = np.random.default_rng(0)
    paths = [f"{label}/{number}.png" for label in "ab" for number in range(12)]
    for path in [*(f"scans/{path}" for path in paths), "flat/1.png"]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48), dtype=np.uint8)).save(root / path)
    tables = {
        "labels": ("path,label", [f"{path},{path[0]}" for path in paths]),
        "semicolons": ("path;label", [f"{path};{path[0]}" for path in paths]),
        "names": ("filename,class", [f"{path},{path[0]}" for path in paths]),
        "swapped": ("path,label,group", [f"{path},p{at // 2},{path[0]}" for at, path in enumerate(paths)]),
        "paths": ("path", paths),
        "front": ("path,label", [f"scans/{path},{path[0]}" for path in paths]),
        "absolute": ("path,label", [f"{root / 'scans' / path},{path[0]}" for path in paths]),
    }
    for name, (header, rows) in tables.items():
        (root / f"{name}.csv").write_text("\n".join([header, *rows]))
    (root / "file").write_text("not what you look for")
    (root / "hollow").mkdir()
    (root / "hollow" / "notes.txt").touch()
    (root / "empty.yaml").write_text("stages: []\n")
    stage = f"{{name: first, data: scans, manifest: labels.csv, encoder: {'random:resnet18'!r}}}"
    (root / "chain.yaml").write_text(f"stages: [{stage}]\n")
    for run in ("unfinished", "runs/one"):
        (root / run / "checkpoints").mkdir(parents=True)
        (root / run / "checkpoints" / "last.ckpt").touch()
        config = settled(load_config(PretrainConfig, ["data=scans", f"out={run}"]))
        (root / run / "config.yaml").write_text(to_yaml(config))
    (root / "runs" / "one" / "encoder.safetensors").touch()


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("user")
    write_place(root)
    return root


@pytest.fixture
def place(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(written)
    return written


@pytest.mark.parametrize(("arguments", "answer"), ANSWERS, ids=lambda value: " ".join(value)[:60].replace("\0", "0"))
def test_a_mistake_is_answered_on_one_line_and_nothing_is_written(
    arguments: list[str], answer: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"jigsawssl: {answer}") and said.err.count("\n") == 1
    assert said.out == "" and tree(place) == before and not (place / "new").exists()


def test_no_mistake_waits_for_pytorch(place: Path) -> None:
    code = (
        "import json, sys; from jigsawssl.cli import main\n"
        "for arguments in json.load(sys.stdin):\n"
        "    code = main(arguments)\n"
        "    assert code == 2 and 'torch' not in sys.modules, arguments"
    )
    given = json.dumps([arguments for arguments, _ in ANSWERS])
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert len(done.stderr.splitlines()) == len(ANSWERS)


@pytest.mark.parametrize("arguments", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"jigsawssl {jigsawssl.__version__}\n"


@pytest.mark.parametrize(("asked", "given"), [(["help"], ["--help"]), (["help", "pretrain"], ["pretrain", "--help"])])
def test_help_is_a_word_too(asked: list[str], given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given) == 0
    expected = capsys.readouterr().out
    assert main(asked) == 0
    assert capsys.readouterr().out == expected != ""


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=lambda a: a[0])
def test_help_fits_a_hundred_columns_and_lists_the_configurations(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 100
    for name in shipped_configs():
        folder, _, stem = name.partition("/")
        assert any(line.startswith(f"  config={stem} ") for line in shown) == (
            folder == arguments[0] or (folder == "pretrain" and arguments[0] == "bench")
        )


def test_help_may_be_cut_short() -> None:
    command = [sys.executable, "-m", "jigsawssl", "pretrain", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0


def encoder_file(path: Path) -> Path:
    options = {"channels": [8, 8, 8, 8]}
    jigsawssl.save_encoder(
        path, jigsawssl.create_encoder("resnet18", ImageFormat(32, channels=1), backbone_options=options)
    )
    return path


@pytest.mark.parametrize("name", ["encoder.safetensors", "model.safetensors"])
def test_the_folder_of_a_run_stands_for_the_file_in_it(name: str, place: Path, tmp_path: Path) -> None:
    """So that all that follows, such as the guard that looks beside the file, gets the file."""
    run, file = tmp_path / "run", str(encoder_file(tmp_path / "run" / name))
    finetune = ["data=scans", "manifest=labels.csv", "out=new"]
    for given in (str(run), f"{run}/"):
        assert look(load_config(FinetuneConfig, [*finetune, f"encoder={given}"])).encoder == file
        assert look(load_config(FinetuneConfig, [*finetune, f"encoder=random:{given}"])).encoder == f"random:{file}"
        assert look(load_config(PretrainConfig, ["data=scans", "out=new", f"encoder={given}"])).encoder == file
    encoders = f"encoders={{a: {run}, b: 'random:{run}', c: 'random:resnet18'}}"
    curve = look(load_config(CurveConfig, [*finetune, encoders]))
    assert curve.encoders == {"a": file, "b": f"random:{file}", "c": "random:resnet18"}
    variants = f"variants={{a: {{encoder: {run}}}, b: {{encoder: 'random:resnet18', attention: se}}}}"
    study = look(load_config(StudyConfig, [*finetune, variants]))
    assert study.variants == {"a": {"encoder": file}, "b": {"encoder": "random:resnet18", "attention": "se"}}
    chain = tmp_path / "chain.yaml"
    stage = "data: scans, manifest: labels.csv"
    chain.write_text(f"stages: [{{name: a, {stage}, encoder: {run}}}, {{name: b, {stage}, encoder: previous}}]\n")
    stages = look(load_config(TransferConfig, [f"config={chain}", "out=new"])).stages
    assert [stage["encoder"] for stage in stages] == [file, "previous"]


def test_a_run_is_resumed_alike_by_the_folder_and_by_the_file_of_its_encoder(place: Path, tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "before" / "encoder.safetensors")
    out = tmp_path / "run"
    arguments = ["data=scans", "manifest=labels.csv", f"out={out}"]
    begun = look(load_config(FinetuneConfig, [*arguments, f"encoder={file.parent}"]))
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(begun))
    for encoder in (file.parent, file):
        assert look(load_config(FinetuneConfig, [*arguments, f"encoder={encoder}", "resume=true"])).encoder == str(file)
    with pytest.raises(UserError, match=r"`encoder` .* must be the same as in the run to resume"):
        look(load_config(FinetuneConfig, [*arguments, "encoder=random:resnet18", "resume=true"]))


def test_a_network_is_a_network_even_where_a_folder_has_its_name(place: Path) -> None:
    arguments = ["data=scans", "manifest=labels.csv", "out=new", "encoder=random:unfinished"]
    assert look(load_config(FinetuneConfig, arguments)).encoder == "random:unfinished"


def test_the_command_that_finishes_a_run_works_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_place(tmp_path)
    run = tmp_path / "my runs"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    arguments = ["data=scans", "manifest=labels.csv", "out=new", "encoder=my runs"]
    with pytest.raises(UserError, match=r"to finish it, add resume=true to the command that began it$"):
        look(load_config(FinetuneConfig, arguments))
    begun = settled(load_config(PretrainConfig, ["data=scans", "out=my runs", "overwrite=true", "seed=5"]))
    (run / "config.yaml").write_text(to_yaml(begun))
    with pytest.raises(UserError, match="finish it with ") as caught:
        look(load_config(FinetuneConfig, arguments))
    program, command, *words = shlex.split(str(caught.value).partition("finish it with ")[2])
    assert (program, command) == ("jigsawssl", "pretrain")
    again = look(load_config(PretrainConfig, words))
    assert again.resume and not again.overwrite and again.seed == 5 and again.out == "my runs"


def test_what_is_right_passes(place: Path) -> None:
    arguments = ["data=scans", "manifest=labels.csv", "out=new", "encoder=random:resnet18", "fraction=10%"]
    config = load_config(FinetuneConfig, arguments)
    assert look(config) == config and config.fraction == 0.1
    folders = load_config(FinetuneConfig, ["data=scans", "manifest=folders", *arguments[2:]])
    assert look(folders) == folders
    pretrain = settled(
        load_config(PretrainConfig, ["data=scans", "out=unfinished", "resume=true", "trainer.max_epochs=7"])
    )
    assert look(pretrain) == pretrain
    assert not (place / "new").exists()


def test_a_sound_archive_is_not_opened_twice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jigsawssl.cli.look.open_archive", lambda *_, **__: pytest.fail("opened"))
    for manifest in ("labels.csv", "folders"):
        look(load_config(FinetuneConfig, [f"manifest={manifest}", "data=scans", "out=new", "encoder=random:resnet18"]))
    look(load_config(PretrainConfig, ["data=scans", "out=new"]))


def test_only_the_first_of_several_processes_looks_at_the_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settled(load_config(PretrainConfig, ["data=scans", "out=unfinished"]))
    with pytest.raises(UserError, match=r"`out` .* must be new or empty"):
        look(config)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert look(config) == config


def test_a_place_without_leave_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for folder in ("new", "deep/er"):
        with pytest.raises(UserError, match=rf"^`out` \({folder}\) must be writable; you may not write to \.; choose"):
            check_place(folder)
    with pytest.raises(UserError, match=r"^`cache` \(new\) must be writable"):
        check_place("new", key="cache")
    assert not list(tmp_path.iterdir())


def test_a_report_where_nothing_may_be_written_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "runs" / "one" / "report.json").touch()
    config = load_config(ReportConfig, ["run=runs/one"])
    assert look(config) == config
    denied = PermissionError(errno.EACCES, "Permission denied", "runs/one/report.html")
    assert str(place_at_fault(denied, config)).startswith("`run` (runs/one) must be writable; report.html: permission ")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"^`run` \(runs/one\) must be writable; you may not write to runs/one; choose"):
        look(config)


def test_a_look_for_a_misspelt_name_leaves_no_folder_open(tmp_path: Path) -> None:
    for number in range(2001):  # more than are looked at
        (tmp_path / str(number)).touch()
    with pytest.raises(UserError, match="nothing is there; check the path"):
        look(load_config(PretrainConfig, [f"data={tmp_path / 'nowhere'}", "out=new"]))
    gc.collect()  # an iterator that was left open warns now, and a warning is an error


def test_a_doctor_may_write_where_it_wrote_before(place: Path) -> None:
    for name in ("cache", "sheets"):
        (place / "seen" / name).mkdir(parents=True, exist_ok=True)
    (place / "seen" / ".table.parquet.partial").touch()
    config = load_config(DoctorConfig, ["data=scans", "out=seen"])
    assert look(config) == config


def test_a_file_system_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        UserError, match=r"^`out` \(.*\) must be writable; read-only file system; choose another folder$"
    ):
        clear_run_folder(tmp_path / "new")


@pytest.mark.parametrize(
    ("number", "where", "code", "said"),
    [
        (errno.ENOSPC, None, 2, "jigsawssl: `out` (new) must have room; no space left on device; make room, or choose"),
        (
            errno.EACCES,
            "new/config.yaml",
            2,
            "jigsawssl: `out` (new) must be writable; config.yaml: permission denied; ",
        ),
        (errno.EROFS, "new", 2, "jigsawssl: `out` (new) must be writable; new: read-only file system; choose another "),
        (
            errno.EACCES,
            "decoded/x/y",
            2,
            "jigsawssl: `cache` (decoded/x) must be writable; y: permission denied; choose an",
        ),
        (errno.EACCES, "scans/a/0.png", 70, "Traceback"),
        (errno.ENOENT, "new/config.yaml", 70, "Traceback"),
        (errno.ENOENT, "new", 2, "jigsawssl: `out` (new) must be writable; new: no such file or directory; choose an"),
        (
            errno.ENOENT,
            "decoded",
            2,
            "jigsawssl: `cache` (decoded/x) must be writable; decoded: no such file or direct",
        ),
    ],
)
def test_writing_that_fails_later_is_one_line_too(
    number: int,
    where: str | None,
    code: int,
    said: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(config: object) -> None:
        raise OSError(number, os.strerror(number), *([] if where is None else [where]))

    monkeypatch.setattr(cli, "_imported", lambda command: SimpleNamespace(run=run))
    assert main(["pretrain", "data=scans", "out=new", "cache=decoded/x"]) == code
    error = capsys.readouterr().err
    assert error.startswith(said) and (code == 70 or error.count("\n") == 1)
