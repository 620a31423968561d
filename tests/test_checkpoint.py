"""The portable encoder: what goes in comes out, to the bit, and nothing else gets in."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import jigsawssl
from jigsawssl.checkpoint import (
    load_classifier,
    load_encoder,
    read_header,
    resolve_encoder,
    save_classifier,
    save_encoder,
)
from jigsawssl.models import Classifier, Encoder, HierarchicalClassifier, create_encoder
from jigsawssl.types import ImageFormat, UserError

OPTIONS = {"channels": [8, 16, 32, 64]}
TIMM = "test_resnet"
CLASSES = ("benign", "malignant", "normal")


def trained(in_channels: int = 1, seed: int = 1) -> Encoder:
    """An encoder whose buffers have moved too, as after training."""
    torch.manual_seed(seed)
    encoder = create_encoder(
        "resnet18", ImageFormat(64, channels=in_channels, mean=(0.3,), std=(0.2,)), backbone_options=OPTIONS
    )
    encoder.train()(torch.randn(4, in_channels, 64, 64))
    return encoder.eval()


def images(channels: int = 1) -> Tensor:
    return torch.randint(256, (3, channels, 50, 70), dtype=torch.uint8)


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected = second.state_dict()
    assert first.state_dict().keys() == expected.keys()
    for name, value in first.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, trained(), provenance={"archive": "a1b2", "images": 120})
    return path


@pytest.fixture
def rewritten(file: Path) -> Callable[..., Path]:
    """Write the file again with changes to its header, its encoder's description or its tensors."""

    def write(tensors: dict[str, Tensor] | None = None, drop: str = "", text: str = "", **changes: Any) -> Path:
        header = read_header(file)
        header["encoder"].update(changes.pop("encoder", {}))
        header.update(changes)
        header.pop(drop, None)
        path = file.with_name("rewritten.safetensors")
        save_file(load_file(file) if tensors is None else tensors, path, {"jigsawssl": text or json.dumps(header)})
        return path

    return write


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of downloads, and no way to fill it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def timm_file(tmp_path: Path) -> Path:
    """Weights as timm publishes them, head included."""
    torch.manual_seed(5)
    path = tmp_path / "timm.safetensors"
    save_file(timm.create_model(TIMM, pretrained=False).state_dict(), path)
    return path


def refusal(call: Callable[[], object]) -> str:
    """The one line that a user gets."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("`")
    return message


def test_round_trip_is_exact_to_the_bit(file: Path) -> None:
    encoder, loaded = trained(), load_encoder(file)
    assert_same_weights(loaded, encoder)
    assert loaded.spec == encoder.spec
    assert not loaded.training
    batch = images()
    assert torch.equal(loaded.preprocess(batch), encoder.preprocess(batch))
    # In the layout that loaded encoders have; in another one sums are rounded in another order.
    encoder.to(memory_format=torch.channels_last)
    assert torch.equal(loaded(loaded.preprocess(batch)), encoder(encoder.preprocess(batch)))


def test_saving_twice_writes_the_same_bytes_and_nothing_beside_them(file: Path) -> None:
    before = file.read_bytes()
    save_encoder(file, load_encoder(file), provenance={"archive": "a1b2", "images": 120})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    save_encoder(tmp_path / "runs" / "1" / "encoder.safetensors", trained())
    assert read_header(str(tmp_path / "runs" / "1" / "encoder.safetensors"))["provenance"] == {}


def test_a_failed_save_leaves_the_earlier_file(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(TypeError):
        save_encoder(file, trained(seed=2), provenance={"not": {"a", "JSON", "value"}})
    assert file.read_bytes() == before


def test_the_header_says_what_the_encoder_is_and_where_it_comes_from(file: Path) -> None:
    assert read_header(file) == {
        "format": 1,
        "kind": "encoder",
        "encoder": {
            "backbone": "resnet18",
            "in_channels": 1,
            "size": 64,
            "stem_stride": 2,
            "fit": "pad",
            "window": "file",
            "mean": [0.3],
            "std": [0.2],
            "options": OPTIONS,
            "attention": "none",
            "attention_stages": [4],
            "stain": "none",
            "stain_target": [],
        },
        "taps": [
            {"name": "layer2", "channels": 16, "reduction": 4},
            {"name": "layer3", "channels": 32, "reduction": 8},
            {"name": "layer4", "channels": 64, "reduction": 16},
        ],
        "versions": {"jigsawssl": jigsawssl.__version__, "torch": torch.__version__, "timm": timm.__version__},
        "provenance": {"archive": "a1b2", "images": 120},
    }


def test_an_encoder_that_would_be_built_otherwise_is_refused(file: Path, rewritten: Callable[..., Path]) -> None:
    first, *others = read_header(file)["taps"]
    path = rewritten(taps=[{**first, "reduction": 8}, *others])
    message = refusal(lambda: load_encoder(path))
    assert "must have the taps that it was trained with; built here it has layer2 (16 channels, 1/4), layer3" in message


def test_networks_with_3d_convolutions_come_back(tmp_path: Path) -> None:
    encoder = create_encoder("lambda_resnet26t", ImageFormat(64, channels=1)).eval()
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(load_encoder(tmp_path / "encoder.safetensors")(images), encoder(images))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("backbone.conv1.weight"), "backbone.conv1.weight"),
        (lambda tensors: tensors.pop("backbone.bn1.running_mean"), "backbone.bn1.running_mean"),
        (lambda tensors: tensors.update(stray=torch.zeros(1)), "stray"),
        (lambda tensors: tensors.update({"backbone.conv1.weight": torch.zeros(3, 3)}), "backbone.conv1.weight"),
    ],
    ids=["a parameter is missing", "a buffer is missing", "a tensor too many", "another shape"],
)
def test_tensors_must_fit_exactly(
    file: Path, rewritten: Callable[..., Path], change: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    tensors = load_file(file)
    change(tensors)
    path = rewritten(tensors)
    message = refusal(lambda: load_encoder(path))
    assert message.startswith(f"`encoder` ({path}) must hold the weights of the network it is for; ")
    assert named in message


@pytest.mark.parametrize("read", [load_encoder, load_classifier, read_header])
@pytest.mark.parametrize("content", ["pickle", "torch.save", "text", "empty", "garbage"])
def test_files_of_another_kind_are_refused(tmp_path: Path, read: Callable[[Path], object], content: str) -> None:
    path = tmp_path / "encoder.safetensors"
    if content == "torch.save":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        blobs = {"pickle": pickle.dumps({"a": 1}), "text": b"not an encoder", "empty": b"", "garbage": b"\xff" * 64}
        path.write_bytes(blobs[content])
    assert f"`encoder` ({path}) must be a complete safetensors file" in refusal(lambda: read(path))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "encoder.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    for call in (
        load_encoder,
        load_classifier,
        lambda file: resolve_encoder(f"timm:{TIMM}:{file}", in_channels=1, size=64),
    ):
        refusal(lambda call=call: call(path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kept", [0.0001, 0.01, 0.5, 0.9999])
def test_truncated_files_are_refused(file: Path, kept: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert "must be a complete safetensors file" in refusal(lambda: load_encoder(file))


def test_foreign_safetensors_are_refused_with_a_way_to_use_them(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    message = refusal(lambda: load_encoder(path))
    assert "no jigsawssl header" in message
    assert "timm:BACKBONE:FILE" in message


@pytest.mark.parametrize("name", ["nothing.safetensors", ""])
def test_missing_files_and_folders_are_refused(tmp_path: Path, name: str) -> None:
    for call in (load_encoder, load_classifier, read_header):
        message = refusal(lambda call=call: call(tmp_path / name))
        assert f"`encoder` ({tmp_path / name}) must be a file" in message


@pytest.mark.parametrize("text", ["{nope", "[]", "3", "{}", json.dumps({"format": 2})])
def test_headers_that_are_not_ours_are_refused(rewritten: Callable[..., Path], text: str) -> None:
    path = rewritten(text=text)
    assert f"`encoder` ({path})" in refusal(lambda: load_encoder(path))


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "/tmp/weights.pth"},
        {"pretrained": True},
        {"pretrained": 1},
        {"pretrained_cfg": {"url": "http://example.org/weights"}},
        {"pretrained_cfg_overlay": {"file": "/tmp/weights.pth"}},
        {"cache_dir": "/tmp"},
        {"channels": [8, 16, 32, "/tmp"]},
        {"channels": [[8], [16]]},
        {"act_layer": None},
    ],
)
def test_options_of_a_hostile_header_are_refused_before_anything_is_built(
    rewritten: Callable[..., Path], offline: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    path = rewritten(encoder={"options": options})
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    for call in (load_encoder, lambda file: resolve_encoder(f"random:{file}", in_channels=1, size=64)):
        message = refusal(lambda call=call: call(path))
        assert message.startswith(f"`backbone_options` ({next(iter(options))}=")
        assert "must be numbers or lists of numbers" in message


@pytest.mark.parametrize("backbone", ["hf-hub:somebody/resnet18", "local-dir:/tmp", "/tmp/weights.pth", "resnet9999"])
def test_a_hostile_backbone_is_refused(rewritten: Callable[..., Path], offline: Path, backbone: str) -> None:
    path = rewritten(encoder={"backbone": backbone})
    assert f"`backbone` ({backbone}) must be the name of a timm model" in refusal(lambda: load_encoder(path))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"encoder": {"no_such": 1}}, id="unknown field"),
        pytest.param({"encoder": {"mean": 0.5}}, id="mean is a number"),
        pytest.param({"encoder": {"in_channels": 2}}, id="two channels"),
        pytest.param({"encoder": {"in_channels": 1.0}}, id="channels that are no whole number"),
        pytest.param({"encoder": {"stem_stride": 3}}, id="stem of three"),
        pytest.param({"drop": "encoder"}, id="no description"),
    ],
)
def test_a_damaged_header_is_refused(rewritten: Callable[..., Path], changes: dict[str, Any]) -> None:
    path = rewritten(**changes)
    refusal(lambda: load_encoder(path))


@pytest.mark.parametrize(
    ("load", "changes"),
    [
        pytest.param(load_encoder, {"encoder": {"options": None}}, id="options are null"),
        pytest.param(load_encoder, {"encoder": {"options": [1]}}, id="options are a list"),
        pytest.param(load_encoder, {"encoder": {"backbone": 3}}, id="backbone is a number"),
        pytest.param(load_encoder, {"encoder": {"mean": ["a"]}}, id="mean is text"),
        pytest.param(load_encoder, {"encoder": {"size": "64"}}, id="size is text"),
        pytest.param(load_encoder, {"encoder": {"size": -3}}, id="size is negative"),
        pytest.param(load_encoder, {"drop": "kind"}, id="no kind"),
        pytest.param(load_classifier, {"drop": "kind"}, id="classifier without kind"),
        pytest.param(load_classifier, {"kind": "classifier"}, id="no classes"),
        pytest.param(load_classifier, {"kind": "classifier", "classes": ["a"]}, id="one class"),
        pytest.param(load_classifier, {"kind": "classifier", "classes": ["a", 1]}, id="a class is a number"),
        pytest.param(load_classifier, {"kind": "hierarchical_classifier", "classes": ["a", "b"]}, id="no width"),
        pytest.param(
            load_classifier,
            {"kind": "hierarchical_classifier", "classes": ["a", "b"], "width": "8"},
            id="width is text",
        ),
    ],
)
def test_a_damaged_header_is_refused_whatever_is_wrong(
    rewritten: Callable[..., Path], load: Callable[[Path], object], changes: dict[str, Any]
) -> None:
    path = rewritten(**changes)
    assert refusal(lambda: load(path)).startswith(f"`encoder` ({path}) must have a complete header; ")


@pytest.mark.parametrize("values", [{"mean": []}, {"mean": [0.1, 0.2]}, {"std": [0.1] * 4}, {"mean": [float("nan")]}])
def test_preprocessing_that_cannot_be_used_is_refused(
    rewritten: Callable[..., Path], values: dict[str, list[float]]
) -> None:
    path = rewritten(encoder=values)
    assert refusal(lambda: load_encoder(path)).startswith(f"`encoder` ({path})")


def test_random_file_keeps_the_architecture_and_preprocessing_but_not_the_weights(file: Path) -> None:
    first, was_trained = resolve_encoder(f"random:{file}", in_channels=3)
    second, _ = resolve_encoder(f"random:{file}", in_channels=3)
    assert not was_trained
    original = trained()
    assert first.spec == original.spec
    for one, other in ((first, original), (first, second)):
        assert not torch.equal(one.backbone.conv1.weight, other.backbone.conv1.weight)
    assert first.backbone.bn1.num_batches_tracked == 0


def test_random_backbone_takes_channels_and_size_of_the_archive() -> None:
    torch.manual_seed(3)
    encoder, was_trained = resolve_encoder(f"random:{TIMM}", in_channels=1, size=28)
    assert not was_trained
    assert (encoder.spec.backbone, encoder.spec.format.channels, encoder.spec.format.size) == (TIMM, 1, 28)
    torch.manual_seed(3)
    assert_same_weights(resolve_encoder(f"random:{TIMM}", in_channels=1, size=28)[0], encoder)


def test_a_file_of_ours_brings_its_own_channels_and_size(file: Path) -> None:
    encoder, was_trained = resolve_encoder(str(file), in_channels=3)
    assert was_trained
    assert encoder.spec == trained().spec
    assert_same_weights(encoder, trained())


def test_weights_of_timm_land_in_the_encoder(timm_file: Path, offline: Path) -> None:
    encoder, was_trained = resolve_encoder(f"timm:{TIMM}:{timm_file}", in_channels=3, size=96)
    published = timm.create_model(TIMM, pretrained=False).eval()
    published.load_state_dict(load_file(timm_file))
    assert was_trained
    assert not encoder.training
    expected = load_file(timm_file)
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, expected[name]), name
    batch = torch.randn(2, 3, 96, 96)
    deepest = encoder.taps(batch)[encoder.tap_names[-1]].features
    torch.testing.assert_close(deepest, published.forward_features(batch))
    config = timm.get_pretrained_cfg(TIMM)
    assert (encoder.spec.format.mean, encoder.spec.format.std) == (config.mean, config.std)


def test_grey_images_get_the_sum_of_the_first_convolution_over_colours(timm_file: Path, offline: Path) -> None:
    colour, _ = resolve_encoder(f"timm:{TIMM}:{timm_file}", in_channels=3, size=64)
    grey, _ = resolve_encoder(f"timm:{TIMM}:{timm_file}", in_channels=1, size=64)
    batch = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(batch), colour(batch.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-4)
    assert grey.spec.format.mean == pytest.approx([sum(colour.spec.format.mean) / 3])
    assert grey.spec.format.std == pytest.approx([sum(colour.spec.format.std) / 3])


def test_timm_weights_survive_our_own_format(timm_file: Path, tmp_path: Path) -> None:
    encoder, _ = resolve_encoder(f"timm:{TIMM}:{timm_file}", in_channels=1, size=64)
    save_encoder(tmp_path / "ours.safetensors", encoder)
    assert_same_weights(load_encoder(tmp_path / "ours.safetensors"), encoder)


def test_cached_weights_of_timm_are_found_without_the_network(timm_file: Path, offline: Path) -> None:
    repository = offline / f"models--{timm.get_pretrained_cfg(TIMM).hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    (repository / "snapshots" / "0123").mkdir(parents=True)
    (repository / "snapshots" / "0123" / "model.safetensors").write_bytes(timm_file.read_bytes())
    encoder, was_trained = resolve_encoder(f"timm:{TIMM}", in_channels=3, size=64)
    assert was_trained
    assert_same_weights(encoder, resolve_encoder(f"timm:{TIMM}:{timm_file}", in_channels=3, size=64)[0])


def test_uncached_weights_of_timm_are_refused_with_a_way_to_provide_them(offline: Path) -> None:
    message = refusal(lambda: resolve_encoder(f"timm:{TIMM}", in_channels=3, size=64))
    assert f"`encoder` (timm:{TIMM})" in message
    assert timm.get_pretrained_cfg(TIMM).hf_hub_id in message
    assert f"encoder=timm:{TIMM}:FILE" in message


def test_weights_of_another_timm_model_are_refused(timm_file: Path) -> None:
    refusal(lambda: resolve_encoder(f"timm:test_efficientnet:{timm_file}", in_channels=3, size=64))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no/such.safetensors", "`encoder` (no/such.safetensors) must be a file"),
        ("random:no/such.safetensors", "`encoder` (random:no/such.safetensors) must name a file or a timm model"),
        ("random:resnet19", "`backbone` (resnet19) must be the name of a timm model"),
        ("timm:resnet19", "`encoder` (timm:resnet19) must name a timm model"),
        (f"timm:{TIMM}:no/such.safetensors", f"`encoder` (timm:{TIMM}:no/such.safetensors) must name a file"),
        ("random:", "`encoder` (random:)"),
        ("timm:", "`encoder` (timm:)"),
        ("timm:resnet18.no_such_tag", "`encoder` (timm:resnet18.no_such_tag)"),
    ],
)
def test_references_to_nothing_are_refused(reference: str, message: str, offline: Path) -> None:
    assert message in refusal(lambda: resolve_encoder(reference, in_channels=3, size=64))


@pytest.mark.parametrize(
    "build",
    [lambda encoder: Classifier(encoder, 3), lambda encoder: HierarchicalClassifier(encoder, 3, width=12)],
    ids=["classifier", "hierarchical"],
)
def test_classifiers_round_trip(
    tmp_path: Path, build: Callable[[Encoder], Classifier | HierarchicalClassifier]
) -> None:
    torch.manual_seed(4)
    model = build(trained()).eval()
    path = tmp_path / "model.safetensors"
    save_classifier(path, model, CLASSES, provenance={"fraction": 0.1})
    loaded, classes = load_classifier(path)
    assert type(loaded) is type(model)
    assert classes == CLASSES
    assert not loaded.training
    assert_same_weights(loaded, model)
    batch = images(channels=3)
    logits = loaded(loaded.encoder.preprocess(batch))
    assert torch.equal(logits, model(model.encoder.preprocess(batch)))
    assert logits.shape == (3, 3)
    Image.fromarray(batch[0].permute(1, 2, 0).numpy()).save(tmp_path / "first.png")
    assert torch.equal(loaded.encoder.preprocess(tmp_path / "first.png"), loaded.encoder.preprocess(batch[:1]))
    header = read_header(path)
    assert header["kind"] == ("classifier" if isinstance(model, Classifier) else "hierarchical_classifier")
    assert (header["classes"], header["provenance"]) == (list(CLASSES), {"fraction": 0.1})
    for encoder in (load_encoder(path), resolve_encoder(str(path), in_channels=3)[0]):
        assert_same_weights(encoder, model.encoder)
        assert encoder.spec == model.encoder.spec


def test_an_encoder_is_no_classifier(file: Path) -> None:
    assert "must hold a classifier, not an encoder" in refusal(lambda: load_classifier(file))


def test_another_image_size_keeps_the_weights(tmp_path: Path) -> None:
    encoder = create_encoder("resnet18", ImageFormat(64, channels=1), backbone_options={"channels": [16, 16, 32, 32]})
    save_encoder(tmp_path / "e.safetensors", encoder)
    larger, _ = resolve_encoder(str(tmp_path / "e.safetensors"), in_channels=1, size=96)
    assert larger.spec.format.size == 96 and not larger.training
    assert_same_weights(larger, encoder)
    assert "`size` (8)" in refusal(lambda: resolve_encoder(str(tmp_path / "e.safetensors"), in_channels=1, size=8))


def test_a_compiled_encoder_is_saved_as_what_it_compiles(tmp_path: Path) -> None:
    encoder = trained()
    compiled = torch.compile(encoder)
    save_encoder(tmp_path / "encoder.safetensors", compiled)  # type: ignore[arg-type]
    assert_same_weights(load_encoder(tmp_path / "encoder.safetensors"), encoder)


def test_an_altered_network_is_not_written(file: Path) -> None:
    before = file.read_bytes()
    altered = trained()
    altered.add_module("more", torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"`encoder.safetensors` must be loadable again.*without added or replaced"):
        save_encoder(file, altered)
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]
