"""Encoder files before PyTorch: where the file of a run lies, and what its header says."""

import json
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .config.repeat import command_with
from .types import UserError

FORMAT = 1
HEADER = "jigsawssl"
_KINDS = ("encoder", "classifier", "hierarchical_classifier")
_WEIGHTS = ("encoder.safetensors", "model.safetensors")
_FOREIGN = (".ckpt", ".pt", ".pth", ".pkl", ".bin", ".h5", ".onnx", ".npz", ".tar")


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a file of ours: ``kind``, ``encoder``, ``taps``, ``versions``, ``provenance`` and more.

    Raises:
        UserError: if the file is missing, is not safetensors, or was not written by jigsawssl.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"`encoder` ({path}) must be a file; nothing is there; check the path")
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(HEADER)
        if text is None:
            raise UserError(
                f"`encoder` ({path}) must be a file written by jigsawssl; it has no jigsawssl header; "
                "give weights of timm as timm:BACKBONE:FILE"
            )
        header = json.loads(text)
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"`encoder` ({path}) must be a complete safetensors file; {reason}; copy it again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"`encoder` ({path}) must have format {FORMAT}; update jigsawssl to read it")
    if header.get("kind") not in _KINDS or (header["kind"] != "encoder" and not _is_classifier(header)):
        raise UserError(
            f"`encoder` ({path}) must have a complete header; its kind or classes are missing; save it again"
        )
    return header


def _is_classifier(header: Mapping[str, Any]) -> bool:
    classes, width = header.get("classes"), header.get("width", 1)
    named = isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes)
    needs_width = header["kind"] == "hierarchical_classifier"
    return named and type(width) is int and width > 0 and (not needs_width or "width" in header)


def find_encoder(reference: str, *, key: str = "encoder") -> str:
    """The file that a user means by an encoder: that of the run, where the run's folder is given.

    Args:
        reference: as :func:`jigsawssl.checkpoint.resolve_encoder` takes it, or a folder, or ``random:`` and a folder. A
            bare name after ``random:`` is a network; a folder needs a slash there, as in ``random:./run``.
        key: the setting that names it, for messages.

    Returns:
        The reference with a file in place of the folder; else as it was.

    Raises:
        UserError: for a file that cannot be an encoder, such as a checkpoint, and for a folder that holds none; it
            says what to give.

    >>> find_encoder("random:resnet18"), find_encoder("timm:resnet18")
    ('random:resnet18', 'timm:resnet18')
    """
    rest = reference.removeprefix("random:")
    prefix = reference.removesuffix(rest)
    slash = "/" in rest or os.sep in rest
    if reference.startswith("timm:") or not rest or (prefix and not slash and not rest.endswith(_FOREIGN)):
        return reference
    path = Path(rest)
    what = f"`{key}` ({reference})"
    if path.suffix.lower() in _FOREIGN:
        raise UserError(f"{what} must be a .safetensors file; {_instead_of_checkpoint(path, prefix)}")
    if not path.is_dir():
        return reference
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is not None:
        return f"{prefix}{found}"
    if path.name == "checkpoints":
        raise UserError(f"{what} must be a run's folder; {_instead_of_checkpoint(path / 'last.ckpt', prefix)}")
    if (path / "checkpoints" / "last.ckpt").is_file():
        raise UserError(f"{what} must be a finished run; {_finish(path)}")
    names = sorted(entry.name for entry in islice(path.iterdir(), 1000) if not entry.name.startswith("."))
    inside = [name for name in names if any((path / name / weights).is_file() for weights in _WEIGHTS)]
    if inside:
        raise UserError(
            f"{what} must be the folder of one run; it holds the runs {_few(inside)}; give one, such as "
            f"{path / inside[0]}"
        )
    raise UserError(
        f"{what} must be a run's folder with {' or '.join(_WEIGHTS)}; it holds {_few(names) if names else 'nothing'}; "
        "check the path"
    )


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _instead_of_checkpoint(path: Path, prefix: str) -> str:
    """What to give for a file that is to go on with, or that another program wrote."""
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    found = next((run / name for name in _WEIGHTS if (run / name).is_file()), None)
    if found is not None:
        return f"give {prefix}{found}; a checkpoint is only for resume=true"
    if (run / "config.yaml").is_file() and path.parent.name == "checkpoints":
        return f"a checkpoint is only for resume=true, and {_finish(run)}"
    return (
        "give RUN/encoder.safetensors of a run, or weights of timm as timm:BACKBONE:FILE.safetensors; a checkpoint is "
        "only for resume=true"
    )


def _finish(run: Path) -> str:
    lacks = f"{run} has no encoder.safetensors yet"
    if not (run / "config.yaml").is_file():
        return f"{lacks}; to finish it, add resume=true to the command that began it"
    return f"{lacks}; finish it with {command_with('pretrain', run, {'resume': True})}"
