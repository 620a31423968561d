"""The command that repeats a run, and the settings that it was given, from the configuration that its report keeps."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

from .checks import keys_of
from .schemas import CurveConfig, FinetuneConfig, PretrainConfig, StudyConfig, TransferConfig

__all__ = ["command_to_repeat", "command_with_file"]

_SCHEMAS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "curve": CurveConfig,
    "study": StudyConfig,
    "transfer": TransferConfig,
}
_FIRST = ("config", "data", "manifest", "layout", "encoder", "encoders", "out")


def command_with_file(command: str, values: Mapping[str, Any]) -> str:
    """The command line that repeats a run: RUN stands for its folder, whose ``config.yaml`` it reads, NEW for another.

    Args:
        command: as for :func:`command_to_repeat`.
        values: likewise; whether it was a run that went on, or replaced another, is not repeated.

    Example:
        >>> command_with_file("finetune", {"data": "scans", "overwrite": True})
        'jigsawssl finetune config=RUN/config.yaml out=NEW overwrite=false'
    """
    begun = [f"{key}=false" for key in ("resume", "overwrite") if values.get(key)]
    return " ".join(["jigsawssl", command, "config=RUN/config.yaml", "out=NEW", *begun])


def command_to_repeat(command: str, values: Mapping[str, Any]) -> str:
    """What was set, as a command line: every key that differs from its default, quoted for a shell.

    Args:
        command: ``pretrain``, ``finetune``, ``curve``, ``study`` or ``transfer``.
        values: the configuration, in groups; keys that it lacks, or that the command does not have, are left out, as it
            may be that of an older report.

    Example:
        >>> command_to_repeat("pretrain", {"data": "my scans", "out": "run", "seed": 0, "views": {"grids": [8, 4, 2]}})
        "jigsawssl pretrain data='my scans' out=run views.grids='[8, 4, 2]'"
    """
    schema = _SCHEMAS[command]
    # A chain stands in its file; what the file of another run says is spelled out here, so that it is not needed.
    left_out = {"resume", "overwrite", "stages" if command == "transfer" else "config"}
    words = []
    for key, (entry, kind) in sorted(keys_of(schema).items(), key=lambda pair: _place(pair[0])):
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        value = _at(values, key, default)
        if key not in left_out and value != default:
            words.append(f"{key}={shlex.quote(_text(value, kind))}")
    return " ".join(["jigsawssl", command, *words])


def _at(values: Mapping[str, Any], key: str, default: Any) -> Any:
    group, _, name = key.rpartition(".")
    inside = values.get(group, {}) if group else values
    return inside.get(name, default) if isinstance(inside, Mapping) else default


def _place(key: str) -> int:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST)


def _text(value: Any, kind: Any) -> str:
    """As the command line reads it: text as it stands, all else as YAML, of which JSON is a part."""
    if isinstance(value, str) and kind in (str, str | None):
        return value
    return json.dumps(value, ensure_ascii=False)
