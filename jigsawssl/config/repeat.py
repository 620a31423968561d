"""Commands as a shell takes them: the one that repeats a run, and those that messages offer."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from .keys import keys_of
from .schemas import COMMANDS

_FIRST = ("config", "data", "manifest", "layout", "encoder", "encoders", "out")


def settings_of(run: Path) -> dict[str, Any]:
    """The configuration in the folder of a run, empty where there is none that can be read."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=False)
    except Exception:  # whatever YAML and OmegaConf make of a file that others may have written
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def command_line(command: str, settings: Mapping[str, Any]) -> str:
    """A command and its settings, quoted for a shell.

    >>> command_line("pretrain", {"config": "my runs/config.yaml", "resume": True, "manifest": None})
    "jigsawssl pretrain config='my runs/config.yaml' resume=true manifest=null"
    """
    return " ".join(["jigsawssl", command, *(f"{key}={shlex.quote(_text(value))}" for key, value in settings.items())])


def command_with(command: str, run: Path, changes: Mapping[str, Any]) -> str:
    """The command that began a run, as its folder tells, with some settings changed; for messages.

    Args:
        command: such as ``pretrain``.
        run: folder of the run, with its ``config.yaml``.
        changes: settings by key. ``resume`` and ``overwrite`` of the run do not hold again unless given here.
    """
    return _from_file(command, str(run), changes, settings_of(run))


def command_with_file(command: str, values: Mapping[str, Any]) -> str:
    """The command line that repeats a run: RUN stands for its folder, whose ``config.yaml`` it reads, NEW for another.

    Args:
        command: as for :func:`command_to_repeat`.
        values: likewise; whether it was a run that went on, or replaced another, is not repeated.

    >>> command_with_file("finetune", {"data": "scans", "overwrite": True})
    'jigsawssl finetune config=RUN/config.yaml out=NEW overwrite=false'
    """
    return _from_file(command, "RUN", {"out": "NEW"}, values)


def _from_file(command: str, run: str, changes: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    once = {key: False for key in ("resume", "overwrite") if before.get(key) and key not in changes}
    return command_line(command, {"config": f"{run}/config.yaml", **changes, **once})


def command_to_repeat(command: str, values: Mapping[str, Any]) -> str:
    """What was set, as a command line: every key that differs from its default, quoted for a shell.

    Args:
        command: ``pretrain``, ``finetune``, ``curve``, ``study`` or ``transfer``.
        values: the configuration, in groups; keys that it lacks, or that the command does not have, are left out, as it
            may be that of an older report.

    >>> command_to_repeat("pretrain", {"data": "my scans", "out": "run", "seed": 0, "views": {"grids": [8, 4, 2]}})
    "jigsawssl pretrain data='my scans' out=run views.grids='[8, 4, 2]'"
    """
    schema = COMMANDS[command].schema
    # A chain stands in its file; what the file of another run says is spelled out here, so that it is not needed.
    left_out = {"resume", "overwrite", "stages" if command == "transfer" else "config"}
    settings = {}
    for key, (entry, _) in sorted(keys_of(schema).items(), key=lambda pair: _place(pair[0])):
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        value = _at(values, key, default)
        meant = None if values.get("encoder") else entry.metadata["fallback"]
        if key not in left_out and value not in (default, meant):
            settings[key] = value
    return command_line(command, settings)


def _at(values: Mapping[str, Any], key: str, default: Any) -> Any:
    group, _, name = key.rpartition(".")
    inside = values.get(group, {}) if group else values
    return inside.get(name, default) if isinstance(inside, Mapping) else default


def _place(key: str) -> int:
    return _FIRST.index(key) if key in _FIRST else len(_FIRST)


def _text(value: Any) -> str:
    """As the command line reads it: text as it stands, all else as YAML, of which JSON is a part."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
