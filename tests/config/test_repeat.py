"""The command that a report offers gives the configuration that the run had."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from jigsawssl.config import (
    CurveConfig,
    FinetuneConfig,
    PretrainConfig,
    StudyConfig,
    command_to_repeat,
    load_config,
    without_folders,
)

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
