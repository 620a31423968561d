"""The encoder: any timm backbone with stages, its taps, and the preprocessing that belongs to it."""

from __future__ import annotations

import difflib
import functools
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from .. import defaults
from ..functional import average_positions, to_unit_range
from ..readers import Unreadable, fit_image, from_pillow, read_file
from ..stain import normalize_stain
from ..types import ATTENTIONS, ImageFormat, Tap, Taps, UserError
from . import compact as compact  # registers its network with timm
from .attention import StageAttention
from .stem import PUBLISHED_STRIDE, Stem, plan_stem

OneImage = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
Images = OneImage | list[OneImage] | tuple[OneImage, ...]
"""What :meth:`Encoder.preprocess` takes."""

TAP_COUNT = 3
"""Taps of an encoder: its last three stages (FG-SSL, section 3: strides 8, 16 and 32)."""


@dataclass(frozen=True)
class EncoderSpec:
    """What it takes to build an encoder and to feed it: everything but the weights.

    Attributes:
        backbone: name of a timm model.
        format: of the images that :meth:`Encoder.preprocess` makes.
        stem_stride: by how much the image shrinks before the first stage: 4 as published, less for small images, as
            far as the network's stem allows (:attr:`Encoder.stem_stride` is the result).
        options: numbers or lists of numbers for the timm model, such as ``{"channels": [32, 64, 128, 256]}``.
        attention: one of :data:`jigsawssl.types.ATTENTIONS`.
        attention_stages: where; stage k is the one whose features are 2^(k+1) times smaller than the image in the
            network as published: 1 to 4 for most.
    """

    backbone: str
    format: ImageFormat
    stem_stride: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    attention: str = "none"
    attention_stages: tuple[int, ...] = defaults.ATTENTION_STAGES


def _checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options may come from a file, so nothing that names a path or a download may pass."""

    def is_number(value: object) -> bool:
        return isinstance(value, (bool, int, float)) and math.isfinite(value)

    for key, value in options.items():
        if key.startswith("pretrained") or not (
            is_number(value) or (isinstance(value, list) and all(map(is_number, value)))
        ):
            raise UserError(
                f"`backbone_options` ({key}={value!r}) must be numbers or lists of numbers; leave the key out"
            )
    return dict(options)


def automatic_stem_stride(size: int) -> int:
    """Stem stride that leaves small images enough room: 1 up to 32 px, 2 up to 64 px, else 4.

    >>> [automatic_stem_stride(size) for size in (28, 64, 224)]
    [1, 2, 4]
    """
    return 1 if size <= 32 else 2 if size <= 64 else 4


def _build_backbone(spec: EncoderSpec) -> nn.Module:
    if not timm.is_model(spec.backbone):
        near = difflib.get_close_matches(str(spec.backbone), timm.list_models(), n=3)
        hint = f"near names: {', '.join(near)}" if near else "try resnet18, resnet50, convnext_tiny or efficientnet_b0"
        if os.path.isdir(str(spec.backbone)):
            hint = f"for the run in the folder of that name, write random:.{os.sep}{spec.backbone}"
        raise UserError(f"`backbone` ({spec.backbone}) must be the name of a timm model; {hint}")
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in spec.options.items()
    }
    if _has_fixed_size(spec.backbone):
        options = {"img_size": spec.format.size, **options}
    try:
        return timm.create_model(
            spec.backbone, pretrained=False, in_chans=spec.format.channels, num_classes=0, global_pool="", **options
        )
    except (TypeError, RuntimeError, AttributeError, ValueError, AssertionError) as error:
        given = f" with `backbone_options` {spec.options}" if spec.options else ""
        raise UserError(f"`backbone` ({spec.backbone}) cannot be built{given}; {error}") from None


def _has_fixed_size(backbone: str) -> bool:
    """Whether a network is built for one image size, as transformers with position embeddings are."""
    try:
        known = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
    except RuntimeError:  # an unknown tag, which building it will name
        return False
    return known is not None and bool(known.fixed_input_size)


@functools.lru_cache(maxsize=64)
def _stem(backbone: str, *, options: str, in_channels: int, stem_stride: int, indices: tuple[int, ...]) -> Stem | None:
    """Planned once a process: a curve builds the same network in each of its cells."""
    spec = EncoderSpec(backbone, ImageFormat(channels=in_channels), options=json.loads(options))
    with torch.device("meta"):
        network = _build_backbone(spec)
    return plan_stem(network, indices=indices, in_channels=in_channels, stem_stride=stem_stride)


class Encoder(nn.Module):
    """A timm backbone without its head, its last three stages as taps, and its preprocessing.

    Attributes:
        spec: how it was built.
        channels: channels of each tap, by name, shallow to deep.
        stem_stride: by how much an image shrinks before the first stage; more than ``spec.stem_stride`` where the
            network cannot do with less.
        reductions: by how much each tap is smaller than the image, by name; measured, but for networks that run at
            one size only.
        features: D, channels of all taps together.

    >>> encoder = Encoder(EncoderSpec("resnet18", ImageFormat(64, channels=1), stem_stride=2)).eval()
    >>> images = torch.randint(256, (2, 1, 50, 70), dtype=torch.uint8)
    >>> encoder(encoder.preprocess(images)).shape
    torch.Size([2, 896])
    >>> [(name, tap.channels, tap.reduction) for name, tap in encoder.taps(encoder.preprocess(images)).items()]
    [('layer2', 128, 4), ('layer3', 256, 8), ('layer4', 512, 16)]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        if spec.stem_stride not in (1, 2, 4):
            raise UserError(f"`stem_stride` ({spec.stem_stride}) must be 1, 2 or 4")
        _checked_options(spec.options)
        self.spec = spec
        self.backbone = _build_backbone(spec)
        info = getattr(self.backbone, "feature_info", None)
        stages = list(getattr(info, "info", info) or [])
        # The last module at each reduction is the end of a stage.
        ends = {stage["reduction"]: index for index, stage in enumerate(stages)}
        self.isotropic = len(ends) == 1 and len(stages) >= TAP_COUNT
        if self.isotropic:  # a plain transformer: a third, two thirds and all of its blocks
            ends = {part: len(stages) * part // TAP_COUNT - 1 for part in range(1, TAP_COUNT + 1)}
        if len(ends) < TAP_COUNT or not hasattr(self.backbone, "forward_intermediates"):
            raise UserError(
                f"`backbone` ({spec.backbone}) must have at least {TAP_COUNT} stages of falling resolution; "
                "choose a convolutional network such as resnet50 or convnext_tiny"
            )
        indices = [index for _, index in sorted(ends.items())][-TAP_COUNT:]
        self._fixed_size = _has_fixed_size(spec.backbone)
        stem = None
        if not self._fixed_size:
            options = json.dumps(spec.options, sort_keys=True)
            stem = _stem(
                spec.backbone,
                options=options,
                in_channels=spec.format.channels,
                stem_stride=spec.stem_stride,
                indices=tuple(indices),
            )
        if stem is not None:
            stem.apply(self.backbone)
        self.stem_stride = PUBLISHED_STRIDE if stem is None else stem.stride
        names = [str(stages[index]["module"]).replace(".", "_") for index in indices]
        self._index = dict(zip(names, indices, strict=True))
        self._points = nn.ModuleDict({name: nn.Identity() for name in names})
        self._stage = {name: str(stages[index]["module"]) for name, index in self._index.items()}
        self.channels = {name: int(stages[index]["num_chs"]) for name, index in self._index.items()}
        stated = [int(stages[index]["reduction"]) for index in indices]
        self.reductions = dict(zip(names, stated if stem is None else stem.reductions, strict=True))
        self.features = sum(self.channels.values())
        # What lies behind the deepest tap would hold parameters that no step trains.
        behind = "norm" not in names[-1]
        self.backbone.prune_intermediate_layers(indices, prune_norm=behind, prune_head=True)  # type: ignore[operator]
        self.register_buffer("mean", torch.tensor(spec.format.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.format.std).view(1, -1, 1, 1), persistent=False)
        self.attention = nn.ModuleDict()
        places = {int(stage["reduction"]).bit_length() - 2: str(stage["module"]) for stage in stages}
        self._ends = {0: str(stages[-1]["module"])} if self.isotropic else dict(sorted(places.items()))
        self._frozen: tuple[nn.Module, ...] = ()
        if spec.attention != "none":
            self._add_attention({} if self.isotropic else self._ends)

    def _add_attention(self, places: Mapping[int, str]) -> None:
        spec = self.spec
        if spec.attention not in ATTENTIONS:
            raise UserError(f"`attention` ({spec.attention}) must be one of {', '.join(ATTENTIONS)}")
        unknown = set(spec.attention_stages) - set(places)
        if unknown or not spec.attention_stages:
            raise UserError(
                f"`attention_stages` ({list(spec.attention_stages)}) must be stages of {spec.backbone}; it has "
                f"{', '.join(map(str, sorted(places))) or 'none that attention can be added to'}"
            )
        for stage in sorted(spec.attention_stages):
            name = places[stage]
            module = self.backbone.get_submodule(name if spec.attention != "ela" else self._last_convolution(name))
            found = StageAttention(spec.attention, *self._output_shape(module))
            self.attention[f"stage{stage}"] = found
            # Weights keep the names that they have without attention, and published ones fit.
            module.register_forward_hook(found.hook)

    def _last_convolution(self, stage: str) -> str:
        """The convolution that ends the last block of a stage, before its result joins the shortcut."""
        last, inside = "", False
        for name, module in self.backbone.named_modules():
            if inside and not name.startswith(f"{stage}."):
                break
            inside = inside or name == stage
            if isinstance(module, nn.Conv2d) and "downsample" not in name:
                last = name
        return last  # of the stage before, where a stage ends with a norm alone

    @torch.no_grad()
    def _output_shape(self, module: nn.Module) -> tuple[int, tuple[int, int]]:
        shapes: list[torch.Size] = []
        handle = module.register_forward_hook(lambda _, inputs, output: shapes.append(output.shape))
        training = self.training
        self.eval()
        try:
            self.taps(_blank(self.spec.format))
        finally:
            handle.remove()
            self.train(training)
        return shapes[0][1], (shapes[0][2], shapes[0][3])

    def by_stage(self) -> dict[int, list[nn.Module]]:
        """Modules that themselves hold weights or statistics, by the stage that they belong to, shallow to deep.

        Stages are numbered as in :class:`EncoderSpec`; what lies before a stage's end and behind the one before is part
        of it. A plain transformer is one stage, 0.
        """
        ends = list(self._ends.items())
        found: dict[int, list[nn.Module]] = {stage: [] for stage, _ in ends}
        at, reached = 0, False
        for name, module in self.backbone.named_modules():
            end = ends[at][1]
            inside = name == end or name.startswith(f"{end}.")
            if reached and not inside and at + 1 < len(ends):
                at, reached = at + 1, False
                inside = name == ends[at][1] or name.startswith(f"{ends[at][1]}.")
            reached = reached or inside
            if any(True for held in (module.parameters, module.buffers) for _ in held(recurse=False)):
                found[ends[at][0]].append(module)
        for name, attention in self.attention.items():
            found[int(name.removeprefix("stage"))] += attention.modules()
        return found

    def train_only(self, stages: Collection[int]) -> None:
        """Freeze all other stages: their weights take no gradient, and their batch norms keep their statistics.

        Raises:
            UserError: for a stage that the network has not.
        """
        modules = self.by_stage()
        unknown = set(stages) - set(modules)
        if unknown:
            raise UserError(
                f"`train` (stage{min(unknown)}) must be a stage of {self.spec.backbone}; it has "
                f"{', '.join(f'stage{stage}' for stage in modules)}"
            )
        for stage, members in modules.items():
            for module in members:
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(stage in stages)
        frozen = [module for stage, members in modules.items() if stage not in stages for module in members]
        self._frozen = tuple(frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode for all but what is frozen."""
        super().train(mode)
        for module in self._frozen:
            module.training = False  # this one alone, as its children may belong to another stage
        return self

    @property
    def remark(self) -> str:
        """One line where the network cannot do what its specification asks for, else empty."""
        if self.stem_stride <= self.spec.stem_stride:
            return ""
        return (
            f"{self.spec.backbone} cannot take `stem_stride` {self.spec.stem_stride}; its taps are "
            f"{', '.join(map(str, self.reductions.values()))} times smaller than the image"
        )

    @property
    def tap_names(self) -> tuple[str, ...]:
        """Names of the taps, shallow to deep."""
        return tuple(self._index)

    def tap_module(self, name: str) -> nn.Module:
        """A module whose output is the features of a tap, for methods that look at their gradient.

        It is the stage itself in convolutional networks. Transformers shape the output of theirs differently, and have
        a module that passes the features on to the pooling alone: the deepest tap's gradient is complete there.
        """
        return self._points[name] if self._fixed_size else self.backbone.get_submodule(self._stage[name])

    def taps(self, images: Tensor, names: tuple[str, ...] | None = None) -> Taps:
        """Features of the named stages; the network stops at the deepest of them.

        Args:
            images: float ``(B, in_channels, H, W)``, as :meth:`preprocess` returns it.
            names: some of :attr:`tap_names`; default: all.

        Returns:
            name → :class:`jigsawssl.types.Tap`, shallow to deep.

        Raises:
            ValueError: for a name that is no tap.
        """
        wanted = self.tap_names if names is None else names
        unknown = set(wanted) - set(self._index)
        if unknown:
            raise ValueError(f"no tap is called {', '.join(sorted(unknown))}; taps: {', '.join(self._index)}")
        ordered = [name for name in self._index if name in wanted]
        features = self.backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=[self._index[name] for name in ordered], stop_early=True, intermediates_only=True
        )
        return {
            name: Tap(self._points[name](feature), self.channels[name], self.reductions[name])
            for name, feature in zip(ordered, features, strict=True)
        }

    def forward(self, images: Tensor) -> Tensor:
        """Average-pooled taps side by side, shallow to deep: float ``(B, in_channels, H, W)`` → ``(B, D)``.

        All three, because few labels go further with them than with the deepest alone (``docs/results.md``).
        """
        return torch.cat([average_positions(tap.features) for tap in self.taps(images).values()], dim=1)

    def preprocess(self, images: Images) -> Tensor:
        """Bring images of any size to what the encoder was trained on.

        Files are read as an archive's are: any format of :func:`jigsawssl.readers.read`, DICOM included, with the
        encoder's window, the middle one of several frames, and all bits kept.

        Args:
            images: one of

                - a tensor, uint8 ``(B, C, H, W)`` in [0, 255] or uint16 in [0, 65535], C 1 or 3;
                - an array of the same types, ``(H, W)``, ``(H, W, C)`` or ``(B, H, W, C)``;
                - the path of an image file;
                - a ``PIL.Image.Image``, at the frame where it is;
                - a list of these, whose sizes may differ.

                Tensors and arrays of 16 bits are display values. What a detector counts, such as 12 bits of 16, is
                mapped by the file's window where the file itself is given.

        Returns:
            ``(B, in_channels, size, size)`` of the encoder's type, float32 unless that was changed; fitted to the
            square as in training, and normalised; on the encoder's device, but a tensor stays on its own.

        Raises:
            UserError: for a file that cannot be read.
            ValueError: for another type or shape.

        >>> encoder = create_encoder("resnet18", ImageFormat(64, channels=1))
        >>> encoder.preprocess(Image.new("RGB", (100, 80))).shape
        torch.Size([1, 1, 64, 64])
        >>> encoder.preprocess([np.zeros((50, 70), np.uint8), np.zeros((90, 40, 3), np.uint16)]).shape
        torch.Size([2, 1, 64, 64])
        """
        if isinstance(images, list | tuple):
            if not images:
                raise ValueError("`images` must hold at least one image; the list is empty")
            return torch.cat([self.preprocess(image) for image in images])
        if not isinstance(images, Tensor):
            images = _read(images, self.spec.format).to(self.mean.device)
        known = images.dtype in (torch.uint8, torch.uint16) and images.ndim == 4 and images.shape[1] in (1, 3)
        if not known or 0 in images.shape[-2:]:
            raise ValueError(
                "`images` must be uint8 or uint16 (B, C, H, W) with C 1 or 3, "
                f"got {images.dtype} {tuple(images.shape)}; convert them first"
            )
        pixels = to_unit_range(self.normalize_stain(_squares(images, self.spec.format)))
        # In full precision, and only then in that of the network.
        return ((pixels - self.mean.float()) / self.std.float()).to(self.mean.dtype)

    def normalize_stain(self, images: Tensor) -> Tensor:
        """Stained tissue in the colours that the encoder knows; uint8 ``(B, 3, H, W)``, others as they are."""
        format = self.spec.format
        if format.stain == "none" or images.shape[1] != 3 or images.dtype != torch.uint8:
            return images
        return normalize_stain(images, format.stain, format.stain_target)

    def read_as(self, format: ImageFormat) -> None:
        """Take images of another format from now on, as far as no weight depends on it.

        Raises:
            ValueError: for another size, other channels, or another normalisation.
        """
        kept = ("size", "channels", "mean", "std")
        if any(getattr(format, name) != getattr(self.spec.format, name) for name in kept):
            raise ValueError(f"`format` must keep {', '.join(kept)} of the encoder; build another one")
        self.spec = replace(self.spec, format=format)


def _blank(format: ImageFormat) -> Tensor:
    return torch.zeros(1, format.channels, format.size, format.size)


def _squares(images: Tensor, format: ImageFormat) -> Tensor:
    """Images as :func:`jigsawssl.readers.fit_image` makes them in training; such ones as they are."""
    if images.shape[1:] == (format.channels, format.size, format.size):
        return images
    pixels = images.cpu().permute(0, 2, 3, 1).numpy()
    fitted = [fit_image(image, format, sixteen_bit=images.dtype == torch.uint16) for image in pixels]
    return torch.from_numpy(np.stack(fitted)).to(images.device)


def _read(image: str | os.PathLike[str] | Image.Image | NDArray[Any], format: ImageFormat) -> Tensor:
    """Pixels uint8 or uint16 ``(B, C, H, W)`` of what is not a tensor yet."""
    if isinstance(image, str | os.PathLike | Image.Image):
        named = "PIL image" if isinstance(image, Image.Image) else os.fsdecode(image)
        try:
            pixels = (
                from_pillow(image)
                if isinstance(image, Image.Image)
                else read_file(image, format.window, at_least=2 * format.size)
            )
        except Unreadable as error:
            raise UserError(f"`images` ({named}) must be an image that can be read; {error}; check it") from None
    elif isinstance(image, np.ndarray):
        pixels = image[:, :, None] if image.ndim == 2 else image
        wide = pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2
        if wide or pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3):
            raise ValueError(
                "`images` must be uint8 or uint16 (H, W), (H, W, C) or (B, H, W, C) with C 1 or 3 where they are an "
                f"array, got {image.dtype} {image.shape}; convert them first"
            )
    else:
        raise ValueError(
            "`images` must be a tensor, an array, a PIL image, a path or a list of these, "
            f"got {type(image).__name__}; convert them first"
        )
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    # A copy in the machine's order of bytes, as arrays may be read-only, turned or foreign, and torch takes none such.
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(pixels.dtype.newbyteorder("="), order="C"))


def create_encoder(
    backbone: str,
    format: ImageFormat,
    *,
    stem_stride: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    attention: str = "none",
    attention_stages: tuple[int, ...] = defaults.ATTENTION_STAGES,
) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        backbone: name of a timm model with at least three stages.
        format: of the images.
        stem_stride: 1, 2 or 4; default by the size of the images (:func:`automatic_stem_stride`).
        backbone_options: numbers or lists of numbers for the timm model.
        attention: ``none``, ``se``, ``eca``, ``cbam``, ``ga`` (global), ``la`` (local) or ``ela`` (embedded local).
        attention_stages: where, see :class:`EncoderSpec`.

    Returns:
        :class:`Encoder` in training mode, weights from torch's global generator.

    Raises:
        UserError: for an unknown or unsuitable backbone, or an image too small for it.

    >>> narrow = {"channels": [16, 32, 64, 128]}
    >>> encoder = create_encoder("resnet18", ImageFormat(64, channels=1), backbone_options=narrow)
    >>> encoder.features, list(encoder.reductions.values())
    (224, [4, 8, 16])
    """
    encoder = Encoder(
        EncoderSpec(
            backbone,
            format,
            stem_stride=automatic_stem_stride(format.size) if stem_stride is None else stem_stride,
            options=dict(backbone_options or {}),
            attention=attention,
            attention_stages=tuple(attention_stages),
        )
    )
    try_size(encoder)
    return encoder


@torch.no_grad()
def try_size(encoder: Encoder) -> None:
    """Whether the network takes the size: what a few of them round, or refuse, shows only in a forward pass."""
    size = encoder.spec.format.size
    encoder.eval()
    try:
        deepest = encoder.taps(_blank(encoder.spec.format))[encoder.tap_names[-1]]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"`backbone` ({encoder.spec.backbone}) cannot take images of `size` ({size}) with `stem_stride` "
            f"{encoder.stem_stride}; {str(error) or type(error).__name__}; choose another of these"
        ) from None
    encoder.train()
    if min(deepest.features.shape[-2:]) < 2:
        raise UserError(
            f"`size` ({size}) must leave the deepest tap two pixels or more, and its stride is "
            f"{deepest.reduction}; use at least {2 * deepest.reduction} or a smaller `stem_stride`"
        )
