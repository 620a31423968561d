"""From a YAML file and ``key=value`` arguments to a checked configuration, and back to text."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..types import UserError
from .checks import check, keys_of, single_values
from .schemas import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    SupervisedConfig,
    TransferConfig,
)

__all__ = ["config_of", "describe_keys", "load_config", "to_yaml", "without_folder", "without_folders"]

Config = TypeVar(
    "Config",
    PretrainConfig,
    FinetuneConfig,
    CurveConfig,
    StudyConfig,
    TransferConfig,
    DoctorConfig,
    DemoConfig,
    BenchConfig,
    ReportConfig,
)


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def describe_keys(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a schema as ``(key, default, meaning)``, groups flattened with dots.

    Example:
        >>> describe_keys(DemoConfig)[1]
        ('seed', '0', 'seed of everything')
    """
    rows = []
    for key, (entry, _) in keys_of(schema).items():
        value = _default(entry)
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        rows.append((key, text or "(none)", entry.metadata["meaning"]))
    return rows


def _from_arguments(arguments: Sequence[str], schema: type) -> dict[str, Any]:
    """``key=value`` arguments by key. Text is taken as it stands: YAML would read a folder 007 as 7."""
    leaves = keys_of(schema)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or not key:
            raise UserError(f"argument ({argument}) must have the form key=value; `--help` lists the keys")
        kind = leaves[key][1] if key in leaves else None
        if kind is str:
            values[key] = text
        elif kind == str | None:
            values[key] = None if text.lower() in ("", "null", "none") else text
        else:
            try:
                parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            except Exception as error:
                raise UserError(f"`{key}` ({text}) must be a YAML value; {_reason(error)}") from None
            values[key] = parsed["value"]  # type: ignore[index, call-overload]
    return values


def _from_file(path: str, schema: type) -> dict[str, Any]:
    """The keys of a YAML file, groups flattened with dots."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"`config` ({path}) must be a YAML file; nothing is there; check the path")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:
        raise UserError(f"`config` ({path}) must be valid YAML; {_reason(error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"`config` ({path}) must hold keys and values; see configs/ for examples")
    return _flat(loaded, schema)


def _flat(nested: Mapping[Any, Any], schema: type) -> dict[str, Any]:
    """Values by key, groups of the schema joined with dots."""
    groups = {key.rpartition(".")[0] for key in keys_of(schema)} - {""}
    values: dict[str, Any] = {}

    def flatten(node: Mapping[Any, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in groups and isinstance(value, dict):
                flatten(value, f"{key}.")
            else:
                values[key] = value

    flatten(nested, "")
    return values


def _reason(error: Exception) -> str:
    # OmegaConf appends where in its own tree it was; the message names the key already.
    return " ".join(str(error).partition("full_key:")[0].split())[:200] or type(error).__name__


def _set(config: DictConfig, key: str, value: Any, schema: type) -> None:
    """Set one key, so that an error can name it and its value."""
    known = keys_of(schema)
    if key not in known:
        parent = next((option for option in known if key.startswith(f"{option}.")), None)
        if parent is not None:
            raise UserError(f"`{key}` ({value}) must not go below `{parent}`; give {parent}=… as a whole")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else "`--help` lists the keys"
        raise UserError(f"`{key}` is not a key of this command; {hint}")
    if known[key][1] == list[float] and isinstance(value, (int, float)):
        value = [value]  # one of what may be several
    if "${" in str(value) or "???" in str(value):
        raise UserError(f"`{key}` ({value}) must be a plain value; references to other keys are not supported")
    if any(isinstance(number, float) and not math.isfinite(number) for number in single_values(value)):
        raise UserError(f"`{key}` ({value}) must be finite")
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        raise UserError(f"`{key}` ({value}) has the wrong type; {_reason(error)}; see `--help`") from None


def load_config(schema: type[Config], arguments: Sequence[str]) -> Config:
    """Defaults, then the YAML file named by ``config=``, then ``key=value`` arguments.

    Args:
        schema: one of :class:`PretrainConfig`, :class:`FinetuneConfig`, :class:`CurveConfig`, :class:`StudyConfig`,
            :class:`DoctorConfig`, :class:`TransferConfig`, :class:`BenchConfig`, :class:`ReportConfig` and
            :class:`DemoConfig`.
        arguments: such as ``["data=scans", "out=runs/1", "batch.size=64"]``.

    Returns:
        An instance of ``schema`` whose values have been checked.

    Raises:
        UserError: for an unknown key, a wrong type, a missing file or a value out of range.

    Example:
        >>> load_config(PretrainConfig, ["data=demo", "out=run", "views.size=64", "views.grids=[8,4,2]"]).views.size
        64
    """
    given = _from_arguments(arguments, schema)
    path = given.get("config")
    return _build(schema, _from_file(path, schema) if path is not None else {}, given)


def config_of(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Defaults, then values by key, in groups or with dots.

    Args:
        schema: as in :func:`load_config`.
        values: such as ``{"data": "scans", "views": {"size": 64}}``.

    Raises:
        UserError: as :func:`load_config`.

    Example:
        >>> config_of(DemoConfig, {"seed": 3}).seed
        3
    """
    return _build(schema, _flat(values, schema))


def _build(schema: type[Config], *sources: Mapping[str, Any]) -> Config:
    config = OmegaConf.structured(schema)
    for source in sources:
        for key, value in source.items():
            _set(config, key, value, schema)
    try:
        check(config, schema)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be used; {_reason(error)}; see `--help`") from None
    assert isinstance(result, schema)
    return result


def to_yaml(config: PretrainConfig | SupervisedConfig | TransferConfig) -> str:
    """The resolved configuration as YAML, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def without_folder(reference: str) -> str:
    """The name of a file or folder, with what may stand before it.

    Example:
        >>> without_folder("random:/home/somebody/runs/encoder.safetensors"), without_folder("scans/")
        ('random:encoder.safetensors', 'scans')
    """
    return re.sub(r"[^:]*[/\\]", "", reference.rstrip("/\\"))


def without_folders(config: Any) -> dict[str, Any]:
    """Every key and value for a report, with names of files and folders in place of their paths.

    Example:
        >>> without_folders(DemoConfig(out="/home/somebody/runs/demo"))
        {'out': 'demo', 'seed': 0}
    """
    values: dict[str, Any] = dataclasses.asdict(config)
    for key in ("data", "out", "config", "manifest", "cache", "encoder", "subset", "subsets"):
        if isinstance(values.get(key), str):
            values[key] = without_folder(values[key])
    if "encoders" in values:
        values["encoders"] = {name: without_folder(encoder) for name, encoder in values["encoders"].items()}
    for key in ("variants", "domains"):
        for name, parts in values.get(key, {}).items():
            folders = {part: without_folder(parts[part]) for part in ("encoder", "data", "manifest") if parts.get(part)}
            values[key][name] = {**parts, **folders}
    return values
