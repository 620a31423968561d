"""The command that a report offers gives the configuration that the run had."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from jigsawssl.config.loading import load_config, to_yaml, without_folder, without_folders
from jigsawssl.config.repeat import command_to_repeat, command_with_file
from jigsawssl.config.schemas import CurveConfig, FinetuneConfig, PretrainConfig, StudyConfig, TransferConfig

CASES: list[tuple[type, list[str]]] = [
    (PretrainConfig, ["data=demo", "out=run"]),
    (PretrainConfig, ["data=my scans", "out=it's a run; rm -rf $HOME", "views.size=64", "views.grids=[8,4,2]"]),
    (PretrainConfig, ["data=007", "out=run", "backbone_options={channels: [16, 32]}", "optimizer.weight_decay=1e-5"]),
    (PretrainConfig, ["data=d", "out=r", "views.grids=[]", "precision=32", "stem_stride=2", "reading.stain=macenko"]),
    (FinetuneConfig, ["data=d", "out=r", "encoder=random:e.safetensors", "fraction=0.001", "optimizer.lr=[1e-5,3e-4]"]),
    (FinetuneConfig, ["data=d", "out=r", "encoder=e.safetensors", "subgroups=[site, sex]", "ordered=true", "seed=3"]),
    (CurveConfig, ["data=d", "out=r", 'encoders={a: e.safetensors, b: "random:e.safetensors"}', "fractions=[0.1,1]"]),
    (
        StudyConfig,
        ["data=d", "out=r", "variants={a: {encoder: 'random:x'}, b: {encoder: y, attention: se, against: a}}"],
    ),
]


@pytest.mark.parametrize(("schema", "arguments"), CASES)
def test_the_command_gives_the_same_configuration(schema: Any, arguments: list[str]) -> None:
    config = load_config(schema, arguments)
    name = schema.__name__.removesuffix("Config").lower()
    program, command, *words = shlex.split(command_to_repeat(name, without_folders(config)))
    assert (program, command) == ("jigsawssl", name)
    assert load_config(schema, words) == config


@pytest.mark.parametrize("given", ["", "resume=true", "overwrite=true"])
@pytest.mark.parametrize(("schema", "arguments"), CASES)
def test_the_command_with_the_file_of_a_run_repeats_it(
    schema: Any, arguments: list[str], given: str, tmp_path: Path
) -> None:
    config = load_config(schema, [*arguments, *given.split()])
    run, name = tmp_path / "a run", schema.__name__.removesuffix("Config").lower()
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config))
    check_the_command(schema, name, config, run)


def check_the_command(schema: Any, name: str, config: Any, run: Path) -> None:
    text = command_with_file(name, without_folders(config)).replace("RUN", shlex.quote(str(run))).replace("NEW", "new")
    program, command, *words = shlex.split(text)
    assert (program, command) == ("jigsawssl", name)
    begun = {"config": str(run / "config.yaml"), "out": "new", "resume": False, "overwrite": False}
    assert load_config(schema, words) == dataclasses.replace(config, **begun)


def test_the_command_with_the_file_of_a_chain_repeats_it(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text("stages: [{name: a, data: d}, {name: b, data: e, encoder: previous}]")
    config = load_config(TransferConfig, [f"config={tmp_path / 'chain.yaml'}", "out=run", "resume=true"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    check_the_command(TransferConfig, "transfer", config, tmp_path)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("runs/a/encoder.safetensors", "a/encoder.safetensors"),
        ("runs\\a\\model.safetensors", "a/model.safetensors"),
        ("random:/x/a/encoder.safetensors", "random:a/encoder.safetensors"),
        ("timm:resnet18:/x/a/model.safetensors", "timm:resnet18:a/model.safetensors"),
        ("random:/x/a/mine.safetensors", "random:mine.safetensors"),
        ("encoder.safetensors", "encoder.safetensors"),
        ("../encoder.safetensors", "encoder.safetensors"),
        ("~/encoder.safetensors", "encoder.safetensors"),
        ("timm:resnet18", "timm:resnet18"),
        ("/x/odd:name/scans/", "scans"),
    ],
)
def test_files_that_all_runs_call_alike_keep_the_name_of_the_run(reference: str, expected: str) -> None:
    assert without_folder(reference.replace("~", str(Path.home()))) == expected


def test_keys_of_a_file_are_spelled_out_and_the_way_it_was_begun_is_not(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("views: {size: 64, grids: [8, 4, 2]}")
    given = ["data=d", "out=r", f"config={tmp_path / 'mine.yaml'}", "overwrite=true"]
    text = command_to_repeat("pretrain", without_folders(load_config(PretrainConfig, given)))
    assert text == "jigsawssl pretrain data=d out=r views.size=64 views.grids='[8, 4, 2]'"


def test_the_configuration_of_another_version_is_no_obstacle() -> None:
    values = {**dataclasses.asdict(PretrainConfig(data="d", out="r")), "gone": 3, "views": {"size": 64, "old": 1}}
    del values["loss"]
    assert command_to_repeat("pretrain", values) == "jigsawssl pretrain data=d out=r views.size=64"


def test_a_chain_is_repeated_from_its_file() -> None:
    values = {"config": "chain.yaml", "out": "run", "data": "d", "stages": ["1-a", "2-b"]}
    assert command_to_repeat("transfer", values) == "jigsawssl transfer config=chain.yaml out=run"
