"""The encoder: what its taps promise, how far the network runs, what trains, and the preprocessing."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn

from jigsawssl.data import open_archive
from jigsawssl.models import Encoder, EncoderSpec, create_encoder
from jigsawssl.models.encoder import automatic_stem_stride
from jigsawssl.readers import fit_image
from jigsawssl.types import ImageFormat, UserError
from tests.readers.test_dicom import dicom

BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [8, 16, 32, 64]},
    "test_convnext": {},
    "test_efficientnet": {},
    "densenet121": {"growth_rate": 4, "block_config": [2, 2, 2, 2]},
}


def small(backbone: str = "resnet18", in_channels: int = 3, size: int = 64, **more: Any) -> Encoder:
    own = {name: more.pop(name) for name in ("mean", "std", "fit", "window") if name in more}
    images = ImageFormat(size, in_channels, **own)
    return create_encoder(backbone, images, **{"backbone_options": BACKBONES.get(backbone), **more})


def reset_norms(encoder: Encoder) -> None:
    """Undo zero-initialised residual branches, through which nothing flows back at the first step."""
    for module in encoder.modules():
        if hasattr(module, "gamma") and isinstance(module.gamma, nn.Parameter):
            nn.init.ones_(module.gamma)
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.ones_(module.weight)


def leaves(encoder: Encoder) -> dict[str, nn.Module]:
    return {name: module for name, module in encoder.named_modules() if not list(module.children())}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("in_channels", "size"), [(1, 32), (3, 64), (1, 96)])
def test_taps_have_the_channels_and_reductions_they_promise(backbone: str, in_channels: int, size: int) -> None:
    encoder = small(backbone, in_channels, size)
    taps = encoder.taps(torch.rand(2, in_channels, size, size))
    assert tuple(taps) == encoder.tap_names == tuple(encoder.channels) == tuple(encoder.reductions)
    assert len(taps) == 3
    for name, tap in taps.items():
        side = math.ceil(size / tap.reduction)
        assert (tap.channels, tap.reduction) == (encoder.channels[name], encoder.reductions[name])
        assert tap.features.shape == (2, tap.channels, side, side)
    reductions = list(encoder.reductions.values())
    assert reductions == [reductions[-1] // 4, reductions[-1] // 2, reductions[-1]]


@pytest.mark.parametrize("backbone", ["resnet18", "test_efficientnet"])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (33, 50), (17, 64)])
def test_sizes_that_no_stride_divides_round_up(backbone: str, height: int, width: int) -> None:
    encoder = small(backbone, size=28)
    for tap in encoder.taps(torch.rand(2, 3, height, width)).values():
        assert tap.features.shape[2:] == (math.ceil(height / tap.reduction), math.ceil(width / tap.reduction))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("height", "width"), [(44, 44), (33, 50), (37, 63)])
def test_sizes_that_no_stride_divides_round_up_or_down(backbone: str, height: int, width: int) -> None:
    encoder = small(backbone, size=32)
    for tap in encoder.taps(torch.rand(2, 3, height, width)).values():
        for side, size in zip(tap.features.shape[2:], (height, width), strict=True):
            assert side in (size // tap.reduction, math.ceil(size / tap.reduction))


@pytest.mark.parametrize(
    ("backbone", "size"), [("resnet18", 8), ("test_convnext", 8), ("test_efficientnet", 8), ("densenet121", 28)]
)
def test_the_deepest_tap_keeps_two_pixels_at_the_least_size_that_is_named(backbone: str, size: int) -> None:
    message = rf"^`size` \({size}\) must leave the deepest tap two pixels or more, and its stride is \d+; use at"
    with pytest.raises(UserError, match=message) as caught:
        small(backbone, size=size)
    least = int(str(caught.value).split("use at least ")[1].split()[0])
    encoder = small(backbone, size=least)
    assert min(encoder.taps(torch.rand(2, 3, least, least))[encoder.tap_names[-1]].features.shape[2:]) == 2


@pytest.mark.parametrize("backbone", BACKBONES)
def test_trying_the_size_leaves_the_encoder_as_it_was_built(backbone: str) -> None:
    torch.manual_seed(1)
    tried, drawn = small(backbone), torch.rand(1)
    torch.manual_seed(1)
    built = Encoder(tried.spec)
    assert torch.equal(torch.rand(1), drawn)
    assert [module.training for module in tried.modules()] == [module.training for module in built.modules()]
    for name, value in built.state_dict().items():
        assert torch.equal(tried.state_dict()[name], value), name
    assert all(value.grad is None and value.requires_grad for value in tried.parameters())


@pytest.mark.parametrize(
    ("size", "reductions"), [(28, [2, 4, 8]), (32, [2, 4, 8]), (33, [4, 8, 16]), (64, [4, 8, 16]), (65, [8, 16, 32])]
)
def test_the_automatic_stem_leaves_small_images_more_room(size: int, reductions: list[int]) -> None:
    assert list(small(size=size).reductions.values()) == reductions
    assert small(size=size).spec.stem_stride == automatic_stem_stride(size) == reductions[0] // 2


@pytest.mark.parametrize("stem_stride", [1, 2, 4])
def test_a_smaller_stem_takes_the_same_weights(stem_stride: int) -> None:
    published, encoder = small(stem_stride=4), small(stem_stride=stem_stride)
    encoder.load_state_dict(published.state_dict(), strict=True)
    assert list(encoder.reductions.values()) == [2 * stem_stride, 4 * stem_stride, 8 * stem_stride]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_network_stops_at_the_deepest_tap_that_is_asked_for(backbone: str, depth: int) -> None:
    encoder = small(backbone).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = encoder.taps(images)
    ran: list[str] = []
    for name, module in leaves(encoder.backbone).items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    asked = encoder.tap_names[depth]
    taps = encoder.taps(images, (asked,))
    assert list(taps) == [asked]
    assert torch.equal(taps[asked].features, expected[asked].features)
    needed = list(ran)
    # Whatever did not run cannot matter: not even when it is broken.
    for name, module in leaves(encoder.backbone).items():
        if name not in needed:
            for value in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                value.data.fill_(math.nan if value.is_floating_point() else 0)
    assert torch.equal(encoder.taps(images, (asked,))[asked].features, expected[asked].features)
    ran.clear()
    encoder.taps(images)
    assert (len(needed) < len(ran)) == (depth < 2)


def test_no_module_of_a_deeper_stage_runs() -> None:
    encoder = small()

    def refuse(*_: Any) -> None:
        raise AssertionError("a deeper stage ran")

    for stage in (encoder.backbone.layer3, encoder.backbone.layer4):
        stage.register_forward_pre_hook(refuse)
    images = torch.rand(2, 3, 64, 64)
    assert list(encoder.taps(images, ("layer2",))) == ["layer2"]
    with pytest.raises(AssertionError, match="a deeper stage ran"):
        encoder.taps(images, ("layer3",))


def test_taps_come_shallow_to_deep_whatever_the_order_asked() -> None:
    encoder = small()
    assert list(encoder.taps(torch.rand(2, 3, 64, 64), ("layer4", "layer2"))) == ["layer2", "layer4"]


def test_an_unknown_tap_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no tap is called layer9; taps: layer2, layer3, layer4"):
        small().taps(torch.rand(2, 3, 64, 64), ("layer4", "layer9"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_learns_from_the_deepest_tap(backbone: str) -> None:
    encoder = small(backbone)
    reset_norms(encoder)
    deepest = encoder.tap_names[-1]
    features = encoder.taps(torch.randn(4, 3, 64, 64), (deepest,))[deepest].features
    (features * torch.randn(features.shape)).sum().backward()
    untrained = [name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert untrained == []


def test_every_parameter_of_a_pre_activation_network_learns() -> None:
    encoder = create_encoder(
        "resnetv2_18", ImageFormat(64), backbone_options={"channels": [8, 16, 32, 64], "stem_chs": 8}
    )
    deepest = encoder.tap_names[-1]
    encoder.taps(torch.randn(2, 3, 64, 64), (deepest,))[deepest].features.square().sum().backward()
    assert [name for name, value in encoder.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_forward_pools_the_taps_side_by_side(backbone: str) -> None:
    encoder = small(backbone).eval()
    images = torch.rand(2, 3, 64, 64)
    features = encoder(images)
    assert features.shape == (2, encoder.features)
    start = 0
    for tap in encoder.taps(images).values():
        pooled = features[:, start : start + tap.channels]
        torch.testing.assert_close(pooled, tap.features.flatten(2).mean(dim=2))
        start += tap.channels
    assert start == encoder.features


def test_evaluation_is_deterministic_and_sees_images_one_by_one() -> None:
    encoder = small("test_efficientnet").eval()
    images = torch.rand(3, 3, 64, 64)
    features = encoder(images)
    assert torch.equal(encoder(images), features)
    torch.testing.assert_close(torch.cat([encoder(image[None]) for image in images]), features, atol=1e-5, rtol=1e-4)


def test_fresh_weights_follow_from_the_global_seed() -> None:
    weights = [(torch.manual_seed(seed), small().backbone.conv1.weight)[1] for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_building_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert small().features > 0


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 80), (17, 200), (1, 1)])
def test_preprocessing_makes_squares_of_the_encoders_size_and_channels(
    in_channels: int, channels: int, height: int, width: int
) -> None:
    encoder = small(in_channels=in_channels)
    images = torch.randint(256, (2, channels, height, width), dtype=torch.uint8)
    ready = encoder.preprocess(images)
    assert (ready.dtype, ready.shape) == (torch.float32, (2, in_channels, 64, 64))
    assert encoder.eval()(ready).shape == (2, encoder.features)


def test_preprocessing_normalises_each_channel() -> None:
    encoder = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = (images.numpy() / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.5, 0.6, 0.7], (3, 1, 1))
    np.testing.assert_allclose(encoder.preprocess(images).numpy(), expected, atol=1e-5)


def test_a_grey_encoder_sees_colour_as_pillow_does() -> None:
    encoder = small(in_channels=1, mean=(0.0,), std=(1.0,))
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    levels = encoder.preprocess(images)[:, 0] * 255
    pillow = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    assert np.abs(levels.numpy() - np.stack(pillow)).max() <= 1


def test_a_colour_encoder_sees_grey_in_every_channel() -> None:
    encoder = small(mean=(0.0,), std=(1.0,))
    images = torch.randint(256, (2, 1, 64, 64), dtype=torch.uint8)
    torch.testing.assert_close(encoder.preprocess(images), (images / 255).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
@pytest.mark.parametrize(("height", "width"), [(128, 96), (200, 64), (40, 51)])
def test_preprocessing_fits_as_the_archive_reader_does(height: int, width: int, fit: str) -> None:
    encoder = small(in_channels=1, mean=(0.0,), std=(1.0,), fit=fit)
    images = torch.randint(256, (2, 1, height, width), dtype=torch.uint8)
    levels = encoder.preprocess(images) * 255
    expected = np.stack(
        [fit_image(image.permute(1, 2, 0).numpy(), ImageFormat(64, channels=1, fit=fit)) for image in images]
    )
    np.testing.assert_allclose(levels, expected, atol=1e-4)
    deep = encoder.preprocess((images.int() * 257).to(torch.uint16)) * 255
    torch.testing.assert_close(deep, levels, atol=1, rtol=0)  # as 8 bits are rounded twice


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(torch.rand(2, 3, 8, 8), id="float"),
        pytest.param(torch.zeros(2, 2, 8, 8, dtype=torch.uint8), id="two channels"),
        pytest.param(torch.zeros(3, 8, 8, dtype=torch.uint8), id="no batch"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"`images` must be uint8 or uint16 \(B, C, H, W\) with C 1 or 3, got torch\."
    ) as caught:
        small().preprocess(images)
    assert str(tuple(images.shape)) in str(caught.value)


def write_pictures(folder: Path) -> list[Path]:
    """A file of each kind that differs in how it is read."""
    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 256, (70, 90), np.uint8), rng.integers(0, 256, (50, 40, 3), np.uint8)
    deep = rng.integers(100, 3000, (60, 80), np.uint16)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(colour).save(folder / "colour.jpg")
    Image.fromarray(colour).save(folder / "turned.jpg", exif=_turned())
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(np.dstack([colour, colour[..., 0]])).save(folder / "transparent.png")
    Image.fromarray(deep).save(folder / "deep.png")
    tifffile.imwrite(folder / "pages.tif", np.stack([deep, deep[::-1], deep[:, ::-1]]), photometric="minisblack")
    tifffile.imwrite(folder / "float.tif", deep.astype(np.float32) / 7)
    (folder / "windowed.dcm").write_bytes(dicom(deep, WindowCenter=1000, WindowWidth=1500))
    (folder / "frames.dcm").write_bytes(dicom(np.stack([deep, deep // 2, deep // 3]), RescaleSlope=2))
    return sorted(folder.iterdir())


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("window", ["file", "percentiles", "lung"])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_file_becomes_what_the_archive_reads_of_it(tmp_path: Path, window: str, fit: str) -> None:
    files = write_pictures(tmp_path)
    encoder = small(in_channels=1, fit=fit, window=window)
    archive = open_archive(str(tmp_path))
    read = [torch.from_numpy(archive.read(row, window).transpose(2, 0, 1).copy())[None] for row in range(len(archive))]
    assert [sample.path for sample in archive.samples] == [file.name for file in files]
    assert {pixels.dtype for pixels in read} == {torch.uint8, torch.uint16}
    expected = torch.cat([encoder.preprocess(pixels) for pixels in read])
    assert torch.equal(torch.cat([encoder.preprocess(file) for file in files]), expected)
    assert torch.equal(encoder.preprocess([str(file) for file in files]), expected)


def test_16_bits_of_a_file_stay_16_bits(tmp_path: Path) -> None:
    ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert len(small(in_channels=1).preprocess(tmp_path / "ramp.png").unique()) > 4000


def test_an_image_of_pillow_is_what_its_file_is(tmp_path: Path) -> None:
    encoder = small()
    for file in write_pictures(tmp_path):
        if file.suffix != ".dcm":
            with Image.open(file) as image:
                image.seek(getattr(image, "n_frames", 1) // 2)
                assert torch.equal(encoder.preprocess(image), encoder.preprocess(file)), file.name


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_tensors_with_their_channels_last(channels: int, kind: type) -> None:
    encoder = small(in_channels=1)
    stack = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, (4, 50, 70, channels)).astype(kind)
    expected = encoder.preprocess(torch.from_numpy(stack.transpose(0, 3, 1, 2).copy()))
    assert torch.equal(encoder.preprocess(stack), expected)
    foreign = stack.astype(stack.dtype.newbyteorder(">"))
    foreign.setflags(write=False)
    assert torch.equal(encoder.preprocess(foreign[:, ::-1]), encoder.preprocess(stack[:, ::-1].copy()))
    assert torch.equal(encoder.preprocess(list(stack)), expected)
    assert torch.equal(
        encoder.preprocess(tuple(torch.from_numpy(stack.transpose(0, 3, 1, 2).copy())[:, None])), expected
    )
    if channels == 1:
        assert torch.equal(encoder.preprocess(list(stack[..., 0])), expected)


def test_images_of_different_sizes_and_kinds_become_one_batch() -> None:
    encoder, rng = small(), np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((50, 70), (90, 30, 3))]
    mixed = [images[0], Image.fromarray(images[1]), torch.zeros(2, 1, 20, 20, dtype=torch.uint16)]
    ready = encoder.preprocess(mixed)
    assert ready.shape == (4, 3, 64, 64) and ready.dtype == torch.float32
    assert torch.equal(ready[:1], encoder.preprocess(images[0])) and torch.equal(
        ready[1:2], encoder.preprocess(mixed[1])
    )


def test_what_is_no_image_is_refused_with_what_was_given(tmp_path: Path) -> None:
    encoder = small()
    (tmp_path / "text.png").write_text("no picture")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:900]))
    for given, message in (
        (tmp_path / "missing.png", r"missing\.png\) must be an image that can be read; nothing is there"),
        (str(tmp_path), r"must be an image that can be read; that is no file"),
        (tmp_path / "text.png", r"text\.png\) must be .* not an image of a known format"),
        ("scan\0.png", r"nothing is there"),
        (cut, r"\(PIL image\) must be an image that can be read; corrupt or truncated"),
    ):
        with pytest.raises(UserError, match=message):
            encoder.preprocess(given)
    for wrong, message in (
        (np.zeros((8, 8)), r"where they are an array, got float64 \(8, 8\)"),
        (np.zeros((5, 9, 8), np.uint8), r"\(B, H, W, C\) .* got uint8 \(5, 9, 8\)"),
        (np.zeros((8, 8, 3), np.int16), r"got int16"),
        (np.zeros((0, 8), np.uint8), r"got torch\.uint8 \(1, 1, 0, 8\)"),
        ([], r"at least one image; the list is empty"),
        (None, r"a path or a list of these, got NoneType"),
        ([np.zeros((8, 8), np.uint8), 7], r"a path or a list of these, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.preprocess(wrong)  # type: ignore[arg-type]


def test_a_folder_given_as_a_network_is_answered_with_how_to_give_the_run_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(
        UserError, match=r"name of a timm model; for the run in the folder of that name, write random:\./"
    ):
        create_encoder("run", ImageFormat(32, channels=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet19"}, r"`backbone` \(resnet19\) must be the name of a timm model; near names: \w+"),
        ({"backbone": "zzz"}, r"`backbone` \(zzz\) must be the name of a timm model; try resnet18"),
        (
            {"backbone": "vit_tiny_patch16_224", "backbone_options": {"depth": 2}},
            r"`backbone` \(vit_tiny_patch16_224\) must have at least 3 stages",
        ),
        ({"in_channels": 2}, r"`channels` \(2\) must be 1 \(grey\) or 3 \(colour\)"),
        ({"stem_stride": 3}, r"`stem_stride` \(3\) must be 1, 2 or 4"),
        ({"backbone_options": {"pretrained": True}}, r"`backbone_options` \(pretrained=True\) must be numbers"),
        ({"backbone_options": {"pretrained_cfg": 1}}, r"`backbone_options` \(pretrained_cfg=1\) must be numbers"),
        (
            {"backbone_options": {"checkpoint_path": "w.pth"}},
            r"`backbone_options` \(checkpoint_path='w.pth'\) must be numbers",
        ),
        ({"backbone_options": {"channels": ["8"]}}, r"`backbone_options` \(channels=\['8'\]\) must be numbers"),
        (
            {"backbone_options": {"block_args": {"a": 1}}},
            r"`backbone_options` \(block_args=\{'a': 1\}\) must be numbers",
        ),
        (
            {"backbone_options": {"no_such": 1}},
            r"`backbone` \(resnet18\) cannot be built with `backbone_options` .*no_such",
        ),
        ({"backbone_options": {"channels": 3}}, r"`backbone` \(resnet18\) cannot be built with `backbone_options` .*3"),
        ({"size": 8}, r"`size` \(8\) must leave the deepest tap two pixels .* stride is 8; use at least 16"),
        ({"size": 32, "stem_stride": 4}, r"`size` \(32\) must leave .* stride is 32; use at least 64"),
        ({"size": 0}, r"`size` \(0\) must be a positive number of pixels"),
        ({"fit": "stretch"}, r"`fit` \(stretch\) must be one of pad, crop, squash"),
        ({"mean": (0.5, 0.5)}, r"`mean` \(\(0.5, 0.5\)\) must be one finite number, or one for each channel"),
        ({"std": (0.0,)}, r"`std` \(\(0.0,\)\) must be above 0"),
        ({"backbone": "resnet18.no_such_tag"}, r"`backbone` \(resnet18.no_such_tag\) cannot be built; .*no_such_tag"),
        (
            {"backbone_options": {"output_stride": 7}},
            r"`backbone` \(resnet18\) cannot be built with `backbone_options` .*7",
        ),
    ],
)
def test_mistakes_of_the_user_are_one_line_with_the_key_the_value_and_a_hint(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}") as caught:
        small(**{"backbone_options": None, **arguments})
    assert "\n" not in str(caught.value)


# Stems of other kinds: branches side by side, strides far from each other, no padding, 3D convolutions, the first
# stride not in the first convolution, pooling under another name, an image folded into channels before all else.
STEMS = ["repvgg_a0", "test_nfnet", "inception_v3", "lambda_resnet26t", "dla46x_c", "densenet121", "cs3darknet_focus_s"]


@pytest.mark.parametrize("backbone", STEMS)
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_reductions_are_those_of_the_network_whatever_its_stem(backbone: str, stem_stride: int) -> None:
    encoder = small(backbone, size=96, stem_stride=stem_stride).eval()
    sides = [
        [tap.features.shape[-1] for tap in encoder.taps(torch.zeros(1, 3, size, size)).values()] for size in (96, 160)
    ]
    assert [64 / (large - little) for little, large in zip(*sides, strict=True)] == list(encoder.reductions.values())
    assert list(encoder.reductions.values()) == [
        2 * encoder.stem_stride,
        4 * encoder.stem_stride,
        8 * encoder.stem_stride,
    ]
    assert encoder.stem_stride == 2
    assert ("cannot take `stem_stride` 1" in encoder.remark) == (stem_stride == 1)


def test_a_network_whose_stem_cannot_shrink_says_so_and_works_at_its_own() -> None:
    encoder = create_encoder("convmixer_768_32", ImageFormat(64), stem_stride=2).eval()
    assert (
        encoder.remark
        == "convmixer_768_32 cannot take `stem_stride` 2; its taps are 7, 7, 7 times smaller than the image"
    )
    assert all(tap.features.shape[-2:] == (21, 21) for tap in encoder.taps(torch.zeros(1, 3, 147, 147)).values())


def test_a_stem_keeps_the_random_numbers_that_follow() -> None:
    torch.manual_seed(0)
    first = small(stem_stride=1).backbone.conv1.weight.clone()
    torch.manual_seed(0)
    assert torch.equal(small(stem_stride=4).backbone.conv1.weight, first)


def test_the_spec_rebuilds_the_encoder() -> None:
    first = small(in_channels=1, size=28, mean=(0.3,), std=(0.1,))
    assert first.spec == EncoderSpec(
        "resnet18", ImageFormat(28, channels=1, mean=(0.3,), std=(0.1,)), stem_stride=1, options=BACKBONES["resnet18"]
    )
    second = Encoder(first.spec)
    second.load_state_dict(first.state_dict(), strict=True)
    images = torch.randint(256, (2, 3, 40, 30), dtype=torch.uint8)
    assert torch.equal(second.eval()(second.preprocess(images)), first.eval()(first.preprocess(images)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_preprocess_gives_what_the_network_takes(dtype: torch.dtype) -> None:
    encoder = create_encoder("resnet18", ImageFormat(32, channels=1)).eval().to(dtype)
    pixels = encoder.preprocess(torch.randint(256, (2, 1, 40, 30), dtype=torch.uint8))
    assert pixels.dtype == dtype
    assert encoder(pixels).dtype == dtype
