"""The portable encoder: weights, preprocessing and provenance in one safetensors file; strict, and never pickle."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import defaults
from .functional import to_channels_last
from .header import FORMAT, HEADER, read_header
from .models import Classifier, Encoder, EncoderSpec, HierarchicalClassifier, create_encoder
from .models.encoder import try_size
from .types import ImageFormat, UserError

__all__ = ["load_classifier", "load_encoder", "read_header", "resolve_encoder", "save_classifier", "save_encoder"]


def _versions() -> dict[str, str]:
    from . import __version__

    return {"jigsawssl": __version__, "torch": torch.__version__, "timm": timm.__version__}


def _save(path: Path, module: nn.Module, header: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch.compile wraps modules, and names what it wraps.
    tensors = {
        name.replace("_orig_mod.", ""): value.detach().cpu().contiguous() for name, value in module.state_dict().items()
    }
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    save_file(tensors, partial, metadata={HEADER: json.dumps(header)})
    try:
        load_encoder(partial) if header["kind"] == "encoder" else load_classifier(partial)
    except (UserError, RuntimeError, TypeError, ValueError) as error:
        partial.unlink()
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"`{path.name}` must be loadable again, and would not be ({reason}); save the network as it was created, "
            "without added or replaced layers"
        ) from None
    os.replace(partial, path)


def _taps(encoder: Encoder) -> list[dict[str, Any]]:
    return [
        {"name": name, "channels": encoder.channels[name], "reduction": encoder.reductions[name]}
        for name in encoder.tap_names
    ]


def _encoder_header(encoder: Encoder, provenance: Mapping[str, Any]) -> dict[str, Any]:
    values = dataclasses.asdict(encoder.spec)
    images = values.pop("format")
    images["in_channels"] = images.pop("channels")  # as files have it since the first
    return {
        "format": FORMAT,
        "kind": "encoder",
        "encoder": {**values, **images},
        "taps": _taps(encoder),
        "versions": _versions(),
        "provenance": dict(provenance),
    }


def save_encoder(
    path: str | os.PathLike[str], encoder: Encoder, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write an encoder with all it takes to use it elsewhere.

    Args:
        path: a ``.safetensors`` file; replaced in one step.
        encoder: what to save; weights are stored as they are.
        provenance: JSON values that say where the weights come from, such as a fingerprint of the data.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "encoder.safetensors"
    >>> save_encoder(path, create_encoder("resnet18", ImageFormat(64, channels=1)))
    >>> load_encoder(path).spec.format.size
    64
    """
    _save(Path(path), encoder, _encoder_header(encoder, provenance or {}))


def save_classifier(
    path: str | os.PathLike[str],
    model: Classifier | HierarchicalClassifier,
    classes: tuple[str, ...],
    *,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write a classifier: encoder, head, names of the classes and provenance, as :func:`save_encoder` does."""
    header = _encoder_header(model.encoder, provenance or {})
    hierarchical = isinstance(model, HierarchicalClassifier)
    header.update(kind="hierarchical_classifier" if hierarchical else "classifier", classes=list(classes))
    if isinstance(model, HierarchicalClassifier):
        header["width"] = model.heads[model.branches[0]].in_features
    else:
        header["head"] = model.kind
    _save(Path(path), model, header)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`encoder` ({path}) must be a complete safetensors file; {reason}; copy it again") from None


def _spec(path: Path, header: Mapping[str, Any]) -> EncoderSpec:
    try:
        # Files of version 0.1.0 say nothing of how images became squares: they were squashed.
        values = {"fit": "squash", **header["encoder"]}
        values["channels"] = values.pop("in_channels")
        for name, kind in (("mean", float), ("std", float), ("stain_target", float), ("attention_stages", int)):
            if name in values:
                values[name] = tuple(map(kind, values[name]))
        images = ImageFormat(**{name: values.pop(name) for name in ImageFormat.__dataclass_fields__ if name in values})
        spec = EncoderSpec(format=images, **values)
        if type(spec.stem_stride) is not int or spec.stem_stride < 1 or not isinstance(spec.options, dict):
            raise ValueError("numbers out of range")
        if len(images.stain_target) not in (0, 6, 8) or not isinstance(spec.backbone, str):
            raise ValueError("an unknown stain target or backbone")
        return spec
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"`encoder` ({path}) must have a complete header; {error!r}; save it again") from None


def _build(path: Path, header: Mapping[str, Any]) -> Encoder:
    """The network of a file, with fresh weights."""
    encoder = Encoder(_spec(path, header))
    if header.get("taps") != _taps(encoder):
        raise UserError(
            f"`encoder` ({path}) must have the taps that it was trained with; built here it has "
            f"{', '.join('{name} ({channels} channels, 1/{reduction})'.format(**tap) for tap in _taps(encoder))}; use "
            "the versions it was written with"
        )
    return encoder


def _load_strictly(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:]), "")[:200]
        raise UserError(
            f"`encoder` ({path}) must hold the weights of the network it is for; {first}; save it again, or use the "
            "versions it was written with"
        ) from None


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Load an encoder in eval mode, on the CPU; also the encoder inside a classifier file.

    Args:
        path: a file written by :func:`save_encoder` or :func:`save_classifier`.

    Returns:
        :class:`jigsawssl.models.Encoder`, an ordinary ``nn.Module``, whose ``preprocess`` takes files too.

    Raises:
        UserError: if the file is missing, damaged or not ours.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "encoder.safetensors"
    >>> save_encoder(path, create_encoder("resnet18", ImageFormat(64)))
    >>> encoder = load_encoder(path)
    >>> images = torch.randint(256, (2, 3, 100, 80), dtype=torch.uint8)
    >>> encoder(encoder.preprocess(images)).shape[0]
    2
    """
    file = Path(path)
    header, tensors = _read(file)
    encoder = _build(file, header)
    if header["kind"] != "encoder":
        prefix = "encoder."
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    _load_strictly(file, encoder, tensors)
    return to_channels_last(encoder).eval()


def load_classifier(path: str | os.PathLike[str]) -> tuple[Classifier | HierarchicalClassifier, tuple[str, ...]]:
    """Load a classifier in eval mode and the names of its classes.

    Args:
        path: ``model.safetensors`` of a fine-tuning run.

    Returns:
        ``(model, classes)``; ``model(model.encoder.preprocess(images))`` gives logits ``(B, len(classes))``, where
        ``images`` may be the path of a file; see :meth:`jigsawssl.models.Encoder.preprocess`.

    Raises:
        UserError: if the file is missing, damaged, or holds an encoder only.
    """
    file = Path(path)
    header, tensors = _read(file)
    if header["kind"] == "encoder":
        raise UserError(f"`{file}` must hold a classifier, not an encoder; give model.safetensors of a fine-tuning run")
    encoder, classes = _build(file, header), tuple(header["classes"])
    model: Classifier | HierarchicalClassifier
    if header["kind"] == "classifier":
        model = Classifier(encoder, len(classes), head="dense" if header.get("head") == "dense" else "linear")
    else:
        model = HierarchicalClassifier(encoder, len(classes), width=header["width"])
    _load_strictly(file, model, tensors)
    return model.eval(), classes


def _published(backbone: str) -> Any:
    """timm's facts about published weights, ``None`` where there are none."""
    try:
        return timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        raise UserError(
            f"`encoder` (timm:{backbone}) must name published weights; {error}; leave the tag out"
        ) from None


def _timm_file(backbone: str) -> Path:
    """Weights of a timm model in the local cache, without asking the network."""
    if not timm.is_model(backbone):
        raise UserError(f"`encoder` (timm:{backbone}) must name a timm model; see timm.list_models()")
    config = _published(backbone)
    repository = config.hf_hub_id if config is not None else None
    if not repository:
        raise UserError(f"`encoder` (timm:{backbone}) must have published weights; choose another or random:{backbone}")
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if not isinstance(cached, str):
        raise UserError(
            f"`encoder` (timm:{backbone}) must have its weights on this machine, and they are not cached; nothing is "
            f"downloaded here: fetch model.safetensors of {repository} elsewhere and give encoder=timm:{backbone}:FILE"
        )
    return Path(cached)


def _timm_encoder(backbone: str, file: Path | None, in_channels: int, size: int) -> Encoder:
    path = file or _timm_file(backbone)
    if not path.is_file():
        raise UserError(f"`encoder` (timm:{backbone}:{path}) must name a file; nothing is there; check the path")
    config = _published(backbone)
    mean = tuple(config.mean) if config is not None else (0.485, 0.456, 0.406)
    std = tuple(config.std) if config is not None else (0.229, 0.224, 0.225)
    if in_channels == 1:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    encoder = create_encoder(backbone, ImageFormat(size, in_channels, mean=mean, std=std))
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"`encoder` ({path}) must be a safetensors file; {str(error).splitlines()[0]}") from None
    first = next(name for name, module in encoder.backbone.named_modules() if isinstance(module, nn.Conv2d))
    weight = tensors.get(f"{first}.weight")
    if weight is not None and weight.shape[1] == 3 and in_channels == 1:
        # Summing over colours gives the response to a grey image (timm's adapt_input_conv does the same).
        tensors[f"{first}.weight"] = weight.sum(dim=1, keepdim=True)
    wanted = encoder.backbone.state_dict()
    # The head, and what lies behind the deepest tap, is not part of an encoder.
    _load_strictly(path, encoder.backbone, {name: value for name, value in tensors.items() if name in wanted})
    return encoder.eval()


def resolve_encoder(
    reference: str,
    *,
    in_channels: int,
    size: int | None = None,
    attention: str | None = None,
    attention_stages: Sequence[int] = defaults.ATTENTION_STAGES,
    backbone_options: Mapping[str, Any] | None = None,
) -> tuple[Encoder, bool]:
    """The encoder that a user names, and whether its weights were trained.

    Args:
        reference: a file of ours; ``random:FILE`` (same architecture and preprocessing, fresh weights);
            ``random:BACKBONE``; ``timm:BACKBONE`` (from the local cache) or ``timm:BACKBONE:FILE``.
        in_channels: channels of the archive, for ``random:BACKBONE`` and ``timm:``.
        size: side of the images in pixels; default: that of a file of ours, else 224.
        attention: what to add, see :class:`jigsawssl.models.EncoderSpec`; it begins as the identity. Default: what a
            file of ours has.
        attention_stages: where.
        backbone_options: of the timm model, for ``random:BACKBONE`` alone.

    Returns:
        ``(encoder, trained)``; fresh weights come from torch's global generator.

    Raises:
        UserError: if there is no such file, backbone or cached weight.

    >>> encoder, trained = resolve_encoder("random:resnet18", in_channels=1, size=64)
    >>> encoder.spec.format.channels, trained
    (1, False)
    """
    kind, _, rest = reference.partition(":")
    attended = (attention, attention_stages)
    if backbone_options and (kind != "random" or Path(rest).is_file()):
        raise UserError(f"`backbone_options` go with random:BACKBONE, not with `encoder` ({reference}); leave them out")
    if kind == "random" and rest:
        if Path(rest).is_file():
            return _adjusted(_build(Path(rest), read_header(rest)), size, *attended), False
        if "/" in rest or rest.endswith(".safetensors"):
            raise UserError(f"`encoder` ({reference}) must name a file or a timm model; nothing is at {rest}")
        return _adjusted(
            create_encoder(rest, ImageFormat(size or defaults.SIZE, in_channels), backbone_options=backbone_options),
            None,
            *attended,
        ), False
    if kind == "timm" and rest:
        backbone, _, file = rest.partition(":")
        encoder = _timm_encoder(backbone, Path(file) if file else None, in_channels, size or defaults.SIZE)
        return _adjusted(encoder, None, *attended), True
    return _adjusted(load_encoder(reference), size, *attended), True


def _adjusted(encoder: Encoder, size: int | None, attention: str | None, stages: Sequence[int]) -> Encoder:
    """The same weights for another image size, or with attention that has still to learn."""
    spec = encoder.spec
    wanted = dataclasses.replace(spec, format=dataclasses.replace(spec.format, size=size or spec.format.size))
    if attention is not None:
        wanted = dataclasses.replace(wanted, attention=attention, attention_stages=tuple(stages))
    if wanted == spec:
        return encoder
    changed = Encoder(wanted)
    known = encoder.state_dict()
    if spec.attention != wanted.attention or spec.attention_stages != wanted.attention_stages:
        known = {name: value for name, value in known.items() if not name.startswith("attention.")}
        known |= {name: value for name, value in changed.state_dict().items() if name.startswith("attention.")}
    try:
        changed.load_state_dict(known)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"`size` ({wanted.format.size}) must suit the encoder, built for {spec.format.size}; {reason}; leave it out"
        ) from None
    try_size(changed)
    return to_channels_last(changed).train(encoder.training)
