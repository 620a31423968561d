"""Configuration: which source wins, and that every mistake is one line that names its key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from jigsawssl.config.keys import keys_of
from jigsawssl.config.loading import describe_keys, load_config, to_yaml
from jigsawssl.config.schemas import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    TransferConfig,
)
from jigsawssl.config.shipped import find_config, shipped_configs, summary_of
from jigsawssl.config.suggest import SCHEMAS as SCHEMAS_OF_COMMANDS
from jigsawssl.config.suggest import command_of
from jigsawssl.types import UserError

SCHEMAS = (PretrainConfig, FinetuneConfig, DemoConfig)
REQUIRED: dict[type, list[str]] = {
    PretrainConfig: ["data=scans", "out=run"],
    FinetuneConfig: ["data=scans", "out=run", "encoder=encoder.safetensors"],
    CurveConfig: ["data=scans", "out=run", "encoders={a: b}"],
    StudyConfig: ["data=scans", "out=run"],
    BenchConfig: [],
    ReportConfig: [],
    TransferConfig: [],
    DemoConfig: [],
}


def load(schema: type, *arguments: str) -> Any:
    return load_config(schema, [*REQUIRED[schema], *arguments])


def refusal(schema: type, *arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(schema, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(instance: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key → default, read from the dataclasses themselves."""
    found = {}
    for entry in dataclasses.fields(instance):
        value = getattr(instance, entry.name)
        if dataclasses.is_dataclass(value):
            found.update(leaves(value, f"{prefix}{entry.name}."))
        else:
            found[prefix + entry.name] = value
    return found


def written(folder: Path, text: str) -> str:
    file = folder / "keys.yaml"
    file.write_text(text, encoding="utf-8")
    return f"config={file}"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_without_arguments_the_defaults_hold(schema: type) -> None:
    given = {argument.split("=")[0] for argument in REQUIRED[schema]}
    defaults, loaded = leaves(schema()), leaves(load(schema))
    assert {key: loaded[key] for key in defaults if key not in given} == {
        key: value for key, value in defaults.items() if key not in given
    }


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_loaded_configuration_does_not_touch_the_defaults(schema: type) -> None:
    before = leaves(schema())
    loaded = load(schema)
    for value in leaves(loaded).values():
        if isinstance(value, (list, dict)):
            value.clear()
    assert leaves(schema()) == before


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 1\nbatch: {size: 32}\nviews: {size: 64, grids: [4, 2, 1]}\nblock: {width: 7}\n")
    config = load(PretrainConfig, "batch.size=16", file, "views.size=32")
    assert (config.batch.size, config.views.size) == (16, 32)
    assert (config.seed, config.views.grids, config.block.width) == (1, [4, 2, 1], 7)
    assert (config.batch.workers, config.views.preset) == (None, "strong")


def test_the_file_may_give_what_is_required_and_name_keys_with_dots(tmp_path: Path) -> None:
    file = written(tmp_path, "data: scans\nout: run\nviews.size: 64\n")
    config = load_config(PretrainConfig, [file])
    assert (config.data, config.out, config.views.size) == ("scans", "run", 64)


def test_the_last_of_two_arguments_wins() -> None:
    assert load(PretrainConfig, "seed=1", "seed=2").seed == 2


def test_lists_and_mappings_are_replaced_not_mixed(tmp_path: Path) -> None:
    file = written(tmp_path, "backbone_options: {channels: [8, 16, 32, 64]}\n")
    assert load(PretrainConfig, file, "backbone_options={depth: 3}").backbone_options == {"depth": 3}
    assert load(PretrainConfig, "views.grids=[]").views.grids == []


@pytest.mark.parametrize(
    ("schema", "argument", "key", "value"),
    [
        (PretrainConfig, "seed=7", "seed", 7),
        (PretrainConfig, "resume=true", "resume", True),
        (PretrainConfig, "precision=16", "precision", "16"),
        (PretrainConfig, "optimizer.lr=1e-3", "optimizer.lr", 1e-3),
        (PretrainConfig, "optimizer.lr=null", "optimizer.lr", None),
        (PretrainConfig, "stem_stride=null", "stem_stride", None),
        (PretrainConfig, "loss.weights=[1,0,0.5,2]", "loss.weights", [1.0, 0.0, 0.5, 2.0]),
        (PretrainConfig, "data=a=b", "data", "a=b"),
        (PretrainConfig, r"data=C:\scans", "data", r"C:\scans"),
        (FinetuneConfig, "fraction=0.01", "fraction", 0.01),
        (FinetuneConfig, "views.size=64", "views.size", 64),
        (FinetuneConfig, "encoder=timm:resnet18:weights.safetensors", "encoder", "timm:resnet18:weights.safetensors"),
        (DemoConfig, "out=elsewhere", "out", "elsewhere"),
    ],
)
def test_arguments_take_the_type_of_their_key(schema: type, argument: str, key: str, value: Any) -> None:
    loaded = leaves(load(schema, argument))[key]
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    "name",
    [
        "007",
        "2024_01_02",
        "1e3",
        "yes",
        "12:30",
        "run #2",
        "1_000",
        "[1, 2]",
        "[",
        "'1'",
        "*x",
        "{a: b",
        "a: b",
        "null",
    ],
)
def test_text_is_taken_as_it_was_typed(name: str) -> None:
    assert load(PretrainConfig, f"out={name}").out == name


@pytest.mark.parametrize("key", ["manifest", "split", "encoder"])
@pytest.mark.parametrize("name", ["007", "yes", "1e3", "[1, 2]", "run #2"])
def test_optional_text_is_taken_as_it_was_typed_too(key: str, name: str) -> None:
    assert leaves(load(PretrainConfig, f"{key}={name}"))[key] == name


@pytest.mark.parametrize("key", ["encoder", "manifest", "split", "config"])
@pytest.mark.parametrize("value", ["none", "None", "null", ""])
def test_optional_text_can_be_left_out_by_name(key: str, value: str) -> None:
    assert leaves(load(PretrainConfig, f"{key}={value}"))[key] is None


def test_an_encoder_that_is_required_cannot_be_left_out_by_an_empty_name() -> None:
    assert refusal(FinetuneConfig, "encoder=").startswith("`encoder` is required and was not given; add encoder=…")


def test_a_file_nests_groups_and_an_argument_gives_their_keys_one_by_one(tmp_path: Path) -> None:
    views = "{size: 64, grids: [8, 4, 2]}"
    for given in ([written(tmp_path, f"views: {views}\n")], ["views.size=64", "views.grids=[8,4,2]"]):
        config = load(PretrainConfig, *given)
        assert (config.views.size, config.views.grids, config.views.preset) == (64, [8, 4, 2], "strong")
    message = refusal(PretrainConfig, f"views={views}")
    assert message == "pretrain has no key `views`; did you mean `views.size`?"


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_a_required_key_that_is_missing_is_asked_for_by_name(schema: type) -> None:
    for missing in REQUIRED[schema]:
        key = missing.split("=")[0]
        others = [argument for argument in REQUIRED[schema] if argument != missing]
        with pytest.raises(UserError, match=f"^`{key}` is required and was not given; add {key}=…"):
            load_config(schema, others)


@pytest.mark.parametrize(
    ("schema", "argument", "message"),
    [
        (PretrainConfig, "batch.siz=3", "pretrain has no key `batch.siz`; did you mean `batch.size`?"),
        (PretrainConfig, "batchsize=3", "pretrain has no key `batchsize`; did you mean `batch.size`?"),
        (FinetuneConfig, "fractoin=1", "finetune has no key `fractoin`; did you mean `fraction`?"),
        (FinetuneConfig, "trainer.devices=2", "finetune has no key `trainer.devices`"),
        (DemoConfig, "sed=3", "demo has no key `sed`; did you mean `seed`?"),
        (
            PretrainConfig,
            "trainer=3",
            "`trainer` is a group of keys; give one of trainer.max_epochs, trainer.accelerator",
        ),
        (FinetuneConfig, "reading=3", "finetune has no key `reading`; "),
        (FinetuneConfig, "seeds=3", "finetune has no key `seeds`; did you mean `seed`?"),
        (PretrainConfig, "trials=3", "pretrain has no key `trials`; study does; `--help` lists the keys"),
        (PretrainConfig, "qqqq=3", "pretrain has no key `qqqq`; `--help` lists the keys"),
        (PretrainConfig, "epochs=2", "pretrain has no key `epochs`; did you mean `trainer.max_epochs`?"),
        (PretrainConfig, "training.epochs=2", "pretrain has no key `training.epochs`; did you mean `trainer.max_e"),
        (PretrainConfig, "lr=0.1", "pretrain has no key `lr`; did you mean `optimizer.lr`?"),
        (PretrainConfig, "batch_size=8", "pretrain has no key `batch_size`; did you mean `batch.size`?"),
        (PretrainConfig, "model=resnet50", "pretrain has no key `model`; did you mean `backbone`?"),
        (PretrainConfig, "labels=a.csv", "pretrain has no key `labels`; did you mean `manifest`?"),
        (PretrainConfig, "mode=knn", "pretrain has no key `mode`; finetune, curve and study do; "),
        (FinetuneConfig, "model=a", "finetune has no key `model`; did you mean `encoder`?"),
        (FinetuneConfig, "gpus=1", "finetune has no key `gpus`; did you mean `trainer.accelerator`?"),
        (FinetuneConfig, "fractions=0.1", "finetune has no key `fractions`; did you mean `fraction`?"),
        (CurveConfig, "encoder=a", "curve has no key `encoder`; did you mean `encoders`?"),
        (PretrainConfig, "views=64", "pretrain has no key `views`; did you mean `views.size`?"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(schema: type, argument: str, message: str) -> None:
    assert refusal(schema, argument).startswith(message)


def test_an_unknown_key_of_the_file_is_refused_too(tmp_path: Path) -> None:
    assert refusal(PretrainConfig, written(tmp_path, "views: {siz: 64}\n")).startswith(
        "pretrain has no key `views.siz`; did you mean `views.size`?"
    )


@pytest.mark.parametrize(
    ("schema", "argument", "message"),
    [
        (PretrainConfig, "batch.size=many", "(many) must be a whole number, such as batch.size=256"),
        (PretrainConfig, "batch.size=2.5", "(2.5) must be a whole number, such as batch.size=256"),
        (PretrainConfig, "batch.size=null", "(null) must be a whole number, such as batch.size=256"),
        (PretrainConfig, "seed=true", "(true) must be a whole number, such as seed=0"),
        (PretrainConfig, "resume=maybe", "(maybe) must be true or false"),
        (
            PretrainConfig,
            "views.grids=8",
            "(8) must be a list of whole numbers, such as views.grids=[16,8,1], without ",
        ),
        (
            PretrainConfig,
            "views.grids=8,4,1",
            "(8,4,1) must be a list of whole numbers; write views.grids=[8,4,1], with",
        ),
        (
            PretrainConfig,
            "views.grids=[8,4,x]",
            "([8, 4, 'x']) must be a list of whole numbers, such as views.grids=[1",
        ),
        (PretrainConfig, "views.size={a: 1}", "({'a': 1}) must be a whole number, such as views.size=224"),
        (PretrainConfig, "optimizer.lr=fast", "(fast) must be a number"),
        (
            PretrainConfig,
            "loss.weights=1,1,2",
            "(1,1,2) must be a list of numbers; write loss.weights=[1,1,2], without",
        ),
        (
            PretrainConfig,
            "backbone_options=3",
            "(3) must be a mapping, such as 'backbone_options={channels: [32, 64, 1",
        ),
        (
            FinetuneConfig,
            "optimizer.lr=1e-3,1e-4",
            "(1e-3,1e-4) must be a list of numbers; write optimizer.lr=[1e-3,1e",
        ),
        (FinetuneConfig, "subgroups=site", "(site) must be a list of words; write subgroups=[site], without spaces or"),
        (FinetuneConfig, "fraction=half", "(half) must be a number, such as fraction=1.0"),
        (CurveConfig, "fractions=1%,10%", "(1%,10%) must be a list of numbers; write fractions=[1%,10%], without"),
        (CurveConfig, "encoders=RUN", "(RUN) must be a mapping, such as 'encoders={ours: RUN/encoder.safetensors, scr"),
        (StudyConfig, "variants=3", "(3) must be a mapping; see configs/ for examples"),
        (TransferConfig, "stages=a", "(a) must be a list of mappings; see configs/ for examples"),
        (DemoConfig, "seed=x", "(x) must be a whole number, such as seed=0"),
    ],
)
def test_a_value_of_the_wrong_type_is_answered_with_what_the_key_takes(
    schema: type, argument: str, message: str, tmp_path: Path
) -> None:
    key, _, text = argument.partition("=")
    answer = refusal(schema, argument)
    assert answer.startswith(f"`{key}` {message}")
    if schema is not DemoConfig:
        assert refusal(schema, written(tmp_path, f"{key}: {text}\n")) == answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["views.grids=[8,", "4,", "1]"],
            "`views.grids` ([8, 4, 1]) must be one argument; the shell split it at its sp",
        ),
        (["backbone_options={depth:", "3}"], "`backbone_options` ({depth: 3}) must be one argument; the shell split "),
    ],
)
def test_what_the_shell_cut_is_shown_whole(arguments: list[str], message: str) -> None:
    answer = refusal(PretrainConfig, *arguments)
    assert answer.startswith(message)
    key, _, _ = arguments[0].partition("=")
    example = re.search(rf"write '?({key}=.*?)'?, ", answer)
    assert example is not None and leaves(load(PretrainConfig, example[1]))[key] in ([8, 4, 1], {"depth": 3})


@pytest.mark.parametrize("text", ["[1, 2]", "{a: 1}", "null"])
def test_a_file_that_gives_something_else_for_text_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`out` \(.+\) must be text; "):
        load_config(PretrainConfig, ["data=scans", written(tmp_path, f"out: {text}\n")])


@pytest.mark.parametrize(
    ("schema", "argument", "message"),
    [
        (PretrainConfig, "seed=-1", "`seed` (-1) must be at least 0"),
        (PretrainConfig, "batch.size=1", "`batch.size` (1) must be at least 2"),
        (PretrainConfig, "batch.workers=0", "`batch.workers` (0) must be at least 1"),
        (PretrainConfig, "views.size=4", "`views.size` (4) must be at least 8"),
        (PretrainConfig, "block.width=0", "`block.width` (0) must be at least 1"),
        (PretrainConfig, "block.projection=1", "`block.projection` (1) must be at least 2"),
        (PretrainConfig, "trainer.max_epochs=0", "`trainer.max_epochs` (0) must be at least 1"),
        (PretrainConfig, "trainer.devices=0", "`trainer.devices` (0) must be at least 1"),
        (PretrainConfig, "loss.off_diagonal=-1", "`loss.off_diagonal` (-1.0) must be at least 0"),
        (PretrainConfig, "loss.off_diagonal=.nan", "`loss.off_diagonal` (nan) must be finite"),
        (PretrainConfig, "optimizer.weight_decay=-1", "`optimizer.weight_decay` (-1.0) must be at least 0"),
        (PretrainConfig, "optimizer.lr=0", "`optimizer.lr` (0.0) must be more than 0"),
        (PretrainConfig, "optimizer.lr=.nan", "`optimizer.lr` (nan) must be finite"),
        (PretrainConfig, "optimizer.lr=.inf", "`optimizer.lr` (inf) must be finite"),
        (PretrainConfig, "optimizer.encoder_scale=0", "`optimizer.encoder_scale` (0.0) must be more than 0"),
        (PretrainConfig, "optimizer.warmup=1", "`optimizer.warmup` (1.0) must lie in [0, 1)"),
        (PretrainConfig, "optimizer.warmup=-0.1", "`optimizer.warmup` (-0.1) must lie in [0, 1)"),
        (PretrainConfig, "loss.weights=[1,2]", "`loss.weights` ([1.0, 2.0]) must be four numbers"),
        (PretrainConfig, "loss.weights=[]", "`loss.weights` ([]) must be four numbers"),
        (PretrainConfig, "loss.weights=[-1,1,1,1]", "`loss.weights` ([-1.0, 1.0, 1.0, 1.0]) must be four numbers"),
        (PretrainConfig, "loss.weights=[0,0,0,0]", "`loss.weights` ([0.0, 0.0, 0.0, 0.0]) must be four numbers"),
        (PretrainConfig, "loss.weights=[1,1,1,.nan]", "`loss.weights` ([1, 1, 1, nan]) must be finite"),
        (PretrainConfig, "loss.weights=[.inf,1,1,1]", "`loss.weights` ([inf, 1, 1, 1]) must be finite"),
        (PretrainConfig, "seed=4294967296", "`seed` (4294967296) must be at most 4294967295"),
        (PretrainConfig, "seed=99999999999999999999", "`seed` (99999999999999999999) must be at most 4294967295"),
        (PretrainConfig, "views.share=0", "`views.share` (0.0) must lie in (0, 1]"),
        (PretrainConfig, "views.share=1.5", "`views.share` (1.5) must lie in (0, 1]"),
        (PretrainConfig, "views.share=.nan", "`views.share` (nan) must be finite"),
        (PretrainConfig, "precision=64", "`precision` (64) must be one of auto, bf16, 16, 32"),
        (PretrainConfig, "schedule=both", "`schedule` (both) must be one of joint, progressive"),
        (PretrainConfig, "block.variant=heavy", "`block.variant` (heavy) must be one of light, paper"),
        (PretrainConfig, "optimizer.name=adam", "`optimizer.name` (adam) must be one of adamw, sgd, lars"),
        (PretrainConfig, "trainer.accelerator=tpu", "`trainer.accelerator` (tpu) must be one of auto, cpu, gpu, mps"),
        (PretrainConfig, "views.preset=mild", "`views.preset` (mild) must be one of strong, paper"),
        (PretrainConfig, "views.grids=[8,4]", "`views.grids` ([8, 4]) must have three entries"),
        (PretrainConfig, "views.grids=[8,4,0]", "`views.grids` (0) must be at least 1"),
        (FinetuneConfig, "views.preset=paper", "`views.preset` (paper) must be one of mild, strong"),
        (FinetuneConfig, "views.grids=[]", "`views.grids` ([]) must have three entries"),
        (FinetuneConfig, "fraction=0", "`fraction` (0.0) must lie in (0, 1]"),
        (FinetuneConfig, "fraction=1.5", "`fraction` (1.5) must lie in (0, 1]"),
        (
            FinetuneConfig,
            "fraction=10",
            "`fraction` (10.0) must lie in (0, 1]; 1 is all labels, and 10 per cent is 0.1 or",
        ),
        (FinetuneConfig, "fraction=.nan", "`fraction` (nan) must be finite"),
        (FinetuneConfig, "mode=half", "`mode` (half) must be one of auto, full, linear, knn, progressive"),
        (FinetuneConfig, "validation=none", "`validation` (none) must be one of budget, split"),
        (FinetuneConfig, "class_weights=heavy", "`class_weights` (heavy) must be one of balanced, none"),
        (FinetuneConfig, "optimizer.head_scale=0", "`optimizer.head_scale` (0.0) must be more than 0"),
        (FinetuneConfig, "trainer.max_epochs=0", "`trainer.max_epochs` (0) must be at least 1"),
        (DemoConfig, "seed=-1", "`seed` (-1) must be at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_key_value_and_constraint(schema: type, argument: str, message: str) -> None:
    assert refusal(schema, argument).startswith(message)


def test_the_largest_seed_is_taken() -> None:
    assert load(PretrainConfig, "seed=4294967295").seed == 2**32 - 1


@pytest.mark.parametrize("options", ["{a: .nan}", "{a: [1, .inf]}"])
def test_an_option_that_is_not_finite_is_refused(options: str) -> None:
    assert refusal(PretrainConfig, f"backbone_options={options}").startswith("`backbone_options`")


def test_a_value_of_two_lines_is_refused_in_one(tmp_path: Path) -> None:
    message = "`precision` (6 4) must be one of auto, bf16, 16, 32"
    assert refusal(PretrainConfig, "precision=6\n4") == message
    assert refusal(PretrainConfig, written(tmp_path, 'precision: "6\\n4"\n')) == message


def test_every_message_for_the_user_is_one_line() -> None:
    assert str(UserError("`seed` (1\n2)\r\n must\tbe one")) == "`seed` (1 2) must be one"


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (PretrainConfig, ["views.size=225"], "`views.size` (225) must be divisible by `views.grids` (16); nearest"),
        (PretrainConfig, ["views.size=225", "views.grids=[8,4,2]"], "(8); nearest sizes: 224, 232"),
        (PretrainConfig, ["views.size=8", "views.grids=[16,8,4]"], "(16); nearest sizes: 16"),
        (PretrainConfig, ["views.size=100", "views.grids=[4,3,2]"], "(3); nearest sizes: 99, 102"),
        (FinetuneConfig, ["views.size=30"], "`views.size` (30) must be divisible by `views.grids` (8); nearest"),
    ],
)
def test_a_grid_that_does_not_divide_the_size_names_the_nearest_sizes(
    schema: type, arguments: list[str], message: str
) -> None:
    assert message in refusal(schema, *arguments)


def test_without_a_size_any_grid_may_wait_for_the_encoders() -> None:
    assert load(FinetuneConfig, "views.grids=[7,5,3]").views.size is None


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_resume_and_overwrite_exclude_each_other(schema: type) -> None:
    assert refusal(schema, "resume=true", "overwrite=true").startswith("`resume` and `overwrite`")
    assert load(schema, "resume=true").resume
    assert load(schema, "overwrite=true").overwrite


@pytest.mark.parametrize("argument", ["seed", "=3", "--seed"])
def test_an_argument_without_a_key_and_a_value_is_quoted(argument: str) -> None:
    assert f"({argument}) must have the form key=value" in refusal(PretrainConfig, argument)


@pytest.mark.parametrize("argument", ["seed=[", "seed='1", "seed=*x", "seed={a: b"])
def test_an_argument_that_is_not_yaml_is_refused(argument: str) -> None:
    key, _, text = argument.partition("=")
    assert refusal(PretrainConfig, argument).startswith(f"`{key}` ({text}) must be a YAML value; ")


@pytest.mark.parametrize(
    "argument", ["data=${nope}", "data=a/${seed}", "data=???", "encoder=${out}", "seed=${seed}", "seed=???"]
)
def test_references_in_arguments_are_refused(argument: str) -> None:
    key, _, text = argument.partition("=")
    assert refusal(PretrainConfig, argument).startswith(f"`{key}` ({text}) must be a plain value; ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: ${nope}\n", "`seed` (${nope}) must be a plain value; "),
        ("seed: ${batch.size}\n", "`seed` (${batch.size}) must be a plain value; "),
        ("seed: ???\n", "`seed` (???) must be a plain value; "),
        ("views: {size: '${seed}'}\n", "`views.size` (${seed}) must be a plain value; "),
        ("3: 4\n", "pretrain has no key `3`; "),
    ],
)
def test_references_and_keys_without_a_name_are_refused_in_files(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(PretrainConfig, written(tmp_path, text)).startswith(message)


@pytest.mark.parametrize(
    "argument",
    [
        "backbone_options={channels: [8, '${seed}']}",
        "backbone_options={depth: '${nope}'}",
        "views.grids=[8,4,'${batch.workers}']",
        "views.grids=[8,4,'???']",
    ],
)
def test_references_inside_lists_and_mappings_are_refused(argument: str) -> None:
    message = refusal(PretrainConfig, argument)
    assert message.startswith(f"`{argument.split('=')[0]}` (")
    assert "must be a plain value" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--epochs", "2"],
            "argument (--epochs 2) must have the form key=value, without dashes; write trainer.max_epochs=2",
        ),
        (["--data=x"], "argument (--data=x) must have the form key=value, without dashes; write data=x"),
        (["--resume"], "argument (--resume) must have the form key=value, without dashes; write resume=true"),
        (["--resume", "seed=1"], "argument (--resume) must have the form key=value, without dashes; write resume=true"),
        (
            ["--batch-size", "8"],
            "argument (--batch-size 8) must have the form key=value, without dashes; write batch.size",
        ),
        (["seed", "3"], "argument (seed 3) must have the form key=value; write seed=3"),
        (
            ["--frobnicate"],
            "argument (--frobnicate) must have the form key=value, without dashes; `--help` lists the ke",
        ),
        (["=3"], "argument (=3) must have the form key=value; `--help` lists the keys"),
    ],
)
def test_an_argument_in_the_form_of_other_programs_is_shown_in_ours(arguments: list[str], message: str) -> None:
    assert refusal(PretrainConfig, *arguments).startswith(message)


@pytest.mark.parametrize("schema", SCHEMAS_OF_COMMANDS)
def test_every_word_from_elsewhere_leads_to_a_key_that_the_command_has(schema: type) -> None:
    from jigsawssl.config.suggest import _ELSEWHERE, meant

    every = {key for other in SCHEMAS_OF_COMMANDS for key in keys_of(other)}
    assert set(_ELSEWHERE) <= every
    for words in _ELSEWHERE.values():
        for word in words.split():
            assert meant(word, schema) in {None, *keys_of(schema)}


@pytest.mark.parametrize("key", ["data", "out", "manifest", "encoder", "cache", "config"])
def test_a_character_that_no_path_can_hold_is_refused(key: str, tmp_path: Path) -> None:
    message = f"`{key}` (a\\0b) must not contain the character NUL, which is not allowed in a path; remove it"
    assert refusal(PretrainConfig, f"{key}=a\0b").startswith(message)
    assert refusal(PretrainConfig, written(tmp_path, f'{key}: "a\\0b"\n')).startswith(message)


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.7 %", 0.007), ("12.5%", 0.125), ("100%", 1.0)])
def test_a_share_may_be_written_in_per_cent(text: str, value: float, tmp_path: Path) -> None:
    assert load(FinetuneConfig, f"fraction={text}").fraction == value
    assert (
        load_config(FinetuneConfig, [*REQUIRED[FinetuneConfig], written(tmp_path, f"fraction: {text}\n")]).fraction
        == value
    )
    assert load(CurveConfig, f"fractions=[{text},1]").fractions == [value, 1.0]
    assert load(CurveConfig, f"fractions={text}").fractions == [value]


@pytest.mark.parametrize("path", sorted(shipped_configs().values()), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_configuration_is_found_by_name(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = path.parent.name
    for name in (f"{folder}/{path.stem}", f"configs/{folder}/{path.name}", str(path)):
        assert find_config(name, "pretrain") == path
    if folder != "smoke":
        assert all(find_config(path.stem, command_of(schema)) == path for schema in SCHEMAS_OF_COMMANDS)
    assert len(summary_of(path)) > 20


def test_shipped_configurations_are_those_of_the_checkout() -> None:
    root = Path(__file__).resolve().parents[1] / "configs"
    assert sorted(shipped_configs().values()) == sorted(root.rglob("*.yaml"))
    assert {file.parent.name for file in root.rglob("*.yaml")} <= {"smoke", *map(command_of, SCHEMAS_OF_COMMANDS)}


def test_a_file_here_wins_over_a_shipped_configuration_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(PretrainConfig, "config=kermany_cpu").views.size == 64
    (tmp_path / "kermany_cpu").write_text("views: {size: 32}\n")
    assert load(PretrainConfig, "config=kermany_cpu").views.size == 32


@pytest.mark.parametrize(
    ("schema", "name", "message"),
    [
        (PretrainConfig, "kermany", "`config` (kermany) must be a YAML file or the name of one that comes with "
         "jigsawssl (kermany_cpu, paper); nothing is there; did you mean kermany_cpu?"),
        (PretrainConfig, "pneumonia_compact", "`config` (pneumonia_compact) is a configuration for finetune, not for "
         "pretrain, which has no `mode`; run jigsawssl finetune config=pneumonia_compact"),
        (FinetuneConfig, "kermany_cpu", "`config` (kermany_cpu) is a configuration for pretrain, not for finetune, "),
        (StudyConfig, "breast_histology", "`config` (breast_histology) is a configuration for transfer, not for stu"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_answered_with_where_it_belongs(
    schema: type, name: str, message: str
) -> None:
    assert refusal(schema, f"config={name}").startswith(message)


def test_the_command_for_a_configuration_of_another_is_quoted(tmp_path: Path) -> None:
    file = tmp_path / "my file.yaml"
    file.write_text("fraction: 0.5\nmode: knn\nencoder: random:resnet18\n")
    assert refusal(PretrainConfig, f"config={file}").endswith(f"; run jigsawssl finetune config='{file}'")


def test_a_misspelt_key_in_a_file_is_not_taken_for_another_commands(tmp_path: Path) -> None:
    message = refusal(FinetuneConfig, written(tmp_path, "fractions: 0.1\n"))
    assert message == "finetune has no key `fractions`; did you mean `fraction`?"


def test_a_run_named_as_configuration_is_answered_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert refusal(PretrainConfig, f"config={tmp_path}").endswith(f"did you mean {tmp_path / 'config.yaml'}?")


def test_a_bench_is_told_the_configurations_of_a_pretraining() -> None:
    assert refusal(BenchConfig, "config=kermany_cpuu").endswith(
        "that comes with jigsawssl (kermany_cpu, paper); nothing is there; did you mean kermany_cpu?"
    )


@pytest.mark.parametrize(
    ("schema", "word", "key"),
    [
        (PretrainConfig, "im", "data"),
        (PretrainConfig, "data", "data"),
        (FinetuneConfig, "labels.csv", "manifest"),
        (StudyConfig, "mine.yaml", "config"),
        (TransferConfig, "mine.yaml", "config"),
        (ReportConfig, "im", "run"),
    ],
)
def test_a_file_or_folder_without_its_key_is_answered_with_the_key(
    schema: type, word: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).touch()
    message = f"argument ({word}) must have the form key=value; write {key}={word}"
    assert refusal(schema, word, "out=o4") == message
    assert refusal(schema, f"{key}=", word) == message
    assert not refusal(schema, "nothing", "out=o4").endswith("nothing")


def test_a_missing_configuration_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        assert refusal(PretrainConfig, f"config={path}").startswith(f"`config` ({path}) must be a YAML file")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [\n", "seed: 1\nseed: 2\n", "a: 'b\n", "\t- a"])
def test_a_configuration_file_that_holds_no_keys_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(PretrainConfig, written(tmp_path, text)).startswith(f"`config` ({tmp_path / 'keys.yaml'})")


def test_a_binary_configuration_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert refusal(PretrainConfig, f"config={tmp_path / 'keys.yaml'}").startswith("`config` (")


def test_an_empty_configuration_file_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    assert load(PretrainConfig, file) == dataclasses.replace(load(PretrainConfig), config=file.removeprefix("config="))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_key_is_described(schema: type) -> None:
    rows = describe_keys(schema)
    assert [row[0] for row in rows] == list(leaves(schema()))
    for key, default, meaning in rows:
        assert default.strip(), key
        assert meaning.strip(), key
        assert "\n" not in meaning, key


@pytest.mark.parametrize("schema", SCHEMAS)
def test_described_defaults_are_the_defaults(schema: type) -> None:
    for key, default, _ in describe_keys(schema):
        value = leaves(schema())[key]
        assert default == "(none)" if value == "" else OmegaConf.create(f"value: {default}").value == value


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_required_keys_are_those_that_say_so(schema: type) -> None:
    required = {argument.split("=")[0] for argument in REQUIRED[schema]}
    assert {key for key, _, meaning in describe_keys(schema) if "(required)" in meaning} == required


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (PretrainConfig, []),
        (
            PretrainConfig,
            ["views.size=64", "views.grids=[8,4,2]", "backbone_options={channels: [8, 16, 32, 64]}", "precision=16"],
        ),
        (PretrainConfig, ["optimizer.lr=1e-5", "loss.weights=[0,0,0,1]", "encoder=timm:resnet18", "resume=true"]),
        (FinetuneConfig, []),
        (FinetuneConfig, ["fraction=0.01", "views.size=64", "mode=knn", "manifest=labels.csv"]),
    ],
)
def test_the_saved_configuration_loads_as_itself(schema: type, arguments: list[str], tmp_path: Path) -> None:
    config = load(schema, *arguments)
    text = to_yaml(config)
    assert set(OmegaConf.create(text)) == {entry.name for entry in dataclasses.fields(schema)}
    file = written(tmp_path, text)
    again = load_config(schema, [file])
    assert again == dataclasses.replace(config, config=file.removeprefix("config="))


@pytest.mark.parametrize("value", ["007", "yes", "1e3", "a: b", "#1", "ünï"])
def test_text_survives_the_saved_configuration(value: str, tmp_path: Path) -> None:
    config = dataclasses.replace(load(PretrainConfig), out=value)
    assert load_config(PretrainConfig, [written(tmp_path, to_yaml(config))]).out == value


def test_several_devices_need_a_cache() -> None:
    message = "`cache` (off) must be left out with several devices"
    assert refusal(PretrainConfig, "trainer.devices=2", "cache=off").startswith(message)
