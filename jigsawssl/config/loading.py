"""From a YAML file and ``key=value`` arguments to a checked configuration, and back to text."""

import dataclasses
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .. import defaults
from ..types import UserError
from .keys import check_keys, keys_of, single_values
from .repeat import command_line
from .schemas import PretrainConfig, SelectConfig, SupervisedConfig, TransferConfig
from .shipped import find_config
from .suggest import SCHEMAS, command_of, is_misspelt, meant, unknown_key

Config = TypeVar("Config")


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def describe_keys(schema: type) -> list[tuple[str, str, str]]:
    """Every key of a schema as ``(key, default, meaning)``, groups flattened with dots.

    >>> from jigsawssl.config.schemas import DemoConfig
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
    for number, argument in enumerate(arguments):
        key, sign, text = argument.partition("=")
        if not sign or not key or key.startswith("-"):
            raise _malformed(arguments[number:], schema)
        kind = leaves[key][1] if key in leaves else None
        if kind is str:
            values[key] = text
        elif kind == str | None:
            values[key] = None if text.lower() in ("", "null", "none") else text
        else:
            try:
                parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            except Exception as error:
                if kind is None:
                    raise UserError(unknown_key(key, schema)) from None
                if get_origin(_without_null(kind)) in (list, dict):
                    whole = _rejoined(text, arguments[number + 1 :])
                    if whole is not None:
                        form = _compact(key, whole)
                        raise UserError(
                            f"`{key}` ({whole}) must be one argument; the shell split it at its spaces; write {form}"
                        ) from None
                    raise UserError(f"`{key}` ({text}) must be {_form(key, kind, text, schema)}") from None
                raise UserError(f"`{key}` ({text}) must be a YAML value; {_reason(error)}") from None
            values[key] = parsed["value"]  # type: ignore[index, call-overload]
    return values


def _malformed(arguments: Sequence[str], schema: type) -> UserError:
    """What to say of an argument that has not the form ``key=value``; those behind it may hold its value."""
    argument, following = arguments[0], arguments[1] if len(arguments) > 1 else "="
    word, sign, text = argument.lstrip("-–—").partition("=")
    shown, key = argument, meant(word, schema) if word else None
    if not sign and "=" not in following and not following.startswith("-"):
        shown, text = f"{argument} {following}", following
    dashes = ", without dashes" if argument[0] in "-–—" else ""
    hint = "`--help` lists the keys"
    place = _key_of_place(argument, schema)
    if place is not None:
        shown, hint = argument, f"write {place}={argument}"
    elif key is not None:
        flag = keys_of(schema)[key][1] is bool
        hint = f"write {key}={text or ('true' if flag else 'VALUE')}"
    return UserError(f"argument ({shown}) must have the form key=value{dashes}; {hint}")


def _key_of_place(word: str, schema: type) -> str | None:
    """The key that a file or folder was most likely meant for; None where nothing of that name is there."""
    kind = Path(word).suffix.lower()
    usual = {".yaml": "config", ".yml": "config", ".csv": "manifest"}.get(kind)
    return next((key for key in (usual, "data", "run") if key in keys_of(schema) and os.path.exists(word)), None)


def _rejoined(text: str, following: Sequence[str]) -> str | None:
    """A list or mapping that the shell cut at its spaces, whole again; None where its end is missing."""
    for number, argument in enumerate(following):
        text = f"{text} {argument}"
        if text.count("[") == text.count("]") and text.count("{") == text.count("}"):
            return text
        if number == 50:
            break
    return None


def _compact(key: str, text: str) -> str:
    """How to give a list or mapping to a shell."""
    if "{" in text or '"' in text or "'" in text:
        return f"'{key}={text}', in quotes"
    tight = re.sub(r"\s*([,\[\]])\s*", r"\1", text)
    return f"{key}={tight}, without spaces or in quotes"


def _from_file(path: str, schema: type) -> dict[str, Any]:
    """The keys of a YAML file, groups flattened with dots."""
    command = command_of(schema)
    file = find_config(path, command)
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:
        raise UserError(f"`config` ({path}) must be valid YAML; {_reason(error)}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"`config` ({path}) must contain keys and values; see configs/ for examples")
    values = _flat(loaded, schema)
    foreign = [key for key in values if key not in keys_of(schema)]
    if not all(is_misspelt(key, schema) for key in foreign):
        owner = next((other for other in SCHEMAS if _flat(loaded, other).keys() <= keys_of(other).keys()), None)
        if owner is not None:
            other = command_of(owner)
            raise UserError(
                f"`config` ({path}) is a configuration for {other}, not for {command}, which has no `{foreign[0]}`; "
                f"run {command_line(other, {'config': path})}"
            )
    return values


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


_WORDS = {int: "whole number", float: "number", str: "word", bool: "true or false"}
_EXAMPLES = {
    "subgroups": "[site]",
    "encoders": '{ours: RUN/encoder.safetensors, scratch: "random:RUN/encoder.safetensors"}',
    "backbone_options": "{channels: [32, 64, 128, 256]}",
    "views.size": str(defaults.SIZE),
}
"""Of keys whose default is empty."""


def _without_null(kind: Any) -> Any:
    """The type of a value that may be null."""
    if get_origin(kind) is not types.UnionType:
        return kind
    return next(part for part in get_args(kind) if part is not types.NoneType)


def _form(key: str, kind: Any, value: Any, schema: type) -> str:
    """What a key takes, in words and as an example that works: ``a whole number, such as batch.size=256``."""
    kind = _without_null(kind)
    origin, default = get_origin(kind), _default(keys_of(schema)[key][0])
    if origin is None:
        if kind is str:
            return "text; in a YAML file, put it in quotes"
        default = _EXAMPLES.get(key, default)
        example = "" if default is None or kind is bool else f", such as {key}={default}"
        return f"{_WORDS[kind]}{example}" if kind is bool else f"a {_WORDS[kind]}{example}"
    example = _EXAMPLES.get(key, str(default) if default else "")
    if origin is dict:
        example = example.replace("'", "")
        return f"a mapping, such as {_compact(key, example)}" if example else "a mapping; see configs/ for examples"
    item = get_args(kind)[0]
    if item not in _WORDS:
        return "a list of mappings; see configs/ for examples"
    parts = [part for part in re.split(r"[\s,;]+", str(value)) if part]
    try:
        for part in parts:
            item(_percent(part) if item is float else part)
        whole = not str(value).startswith(("[", "{")) and (len(parts) > 1 or len(default) < 2)
    except ValueError:
        whole = False
    if whole:
        return f"a list of {_WORDS[item]}s; write {_compact(key, '[' + ','.join(parts) + ']')}"
    return f"a list of {_WORDS[item]}s, such as {_compact(key, example)}"


def _percent(value: Any) -> Any:
    """A share that is written in per cent: ``1%`` is 0.01."""
    if isinstance(value, list):
        return [_percent(part) for part in value]
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", value) if isinstance(value, str) else None
    return float(f"{found[1]}e-2") if found else value


def _refuse_nul(key: str, value: Any) -> None:
    if any(isinstance(part, str) and "\0" in part for part in single_values(value)):
        shown = str(value).replace("\0", "\\0")
        raise UserError(
            f"`{key}` ({shown}) must not contain the character NUL, which is not allowed in a path; remove it"
        )


def _set(config: DictConfig, key: str, value: Any, schema: type) -> None:
    """Set one key, so that an error can name it and its value."""
    known = keys_of(schema)
    if key not in known:
        parent = next((option for option in known if str(key).startswith(f"{option}.")), None)
        if parent is not None:
            raise UserError(f"`{key}` ({value}) must not set a part of `{parent}`; give {parent}=… as a whole")
        raise UserError(unknown_key(str(key), schema))
    kind = known[key][1]
    if _without_null(kind) in (float, list[float]):
        value = _percent(value)
    if kind == list[float] and isinstance(value, (int, float)):
        value = [value]  # one of what may be several
    if "${" in str(value) or "???" in str(value):
        raise UserError(f"`{key}` ({value}) must be a plain value; references to other keys are not supported")
    _refuse_nul(key, value)
    if any(isinstance(number, float) and not math.isfinite(number) for number in single_values(value)):
        raise UserError(f"`{key}` ({value}) must be finite")
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        raise UserError(f"`{key}` ({shown}) must be {_form(key, kind, value, schema)}") from None


def load_config(schema: type[Config], arguments: Sequence[str]) -> Config:
    """Defaults, then the YAML file that ``config=`` names (a path, or a shipped one), then ``key=value`` arguments.

    Args:
        schema: one of :class:`PretrainConfig`, :class:`FinetuneConfig`, :class:`CurveConfig`, :class:`StudyConfig`,
            :class:`DoctorConfig`, :class:`TransferConfig`, :class:`BenchConfig`, :class:`ReportConfig` and
            :class:`DemoConfig`.
        arguments: such as ``["data=scans", "out=runs/1", "batch.size=64"]``.

    Returns:
        An instance of ``schema`` whose values have been checked.

    Raises:
        UserError: for an unknown key, a wrong type, a missing file or a value out of range.

    >>> from jigsawssl.config.schemas import PretrainConfig
    >>> load_config(PretrainConfig, ["data=demo", "out=run", "views.size=64", "views.grids=[8,4,2]"]).views.size
    64
    """
    given = _from_arguments(arguments, schema)
    path = given.get("config")
    _refuse_nul("config", path)
    return _build(schema, _from_file(path, schema) if path is not None else {}, given)


def config_of(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Defaults, then values by key, in groups or with dots.

    Args:
        schema: as in :func:`load_config`.
        values: such as ``{"data": "scans", "views": {"size": 64}}``.

    Raises:
        UserError: as :func:`load_config`.

    >>> from jigsawssl.config.schemas import DemoConfig
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
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be used; {_reason(error)}; see `--help`") from None
    assert isinstance(result, schema)
    check_keys(result)
    return result


def to_yaml(config: PretrainConfig | SelectConfig | SupervisedConfig | TransferConfig) -> str:
    """The resolved configuration as YAML, every key written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def without_folder(reference: str) -> str:
    """The name of a file or folder, with what may stand before it.

    Files that every run calls alike keep the name of the run's folder, unless that is the home of somebody.

    >>> without_folder("random:/home/somebody/runs/a/encoder.safetensors"), without_folder("scans/")
    ('random:a/encoder.safetensors', 'scans')
    """
    before = re.match(r"([^/\\:]*:)*", reference)
    assert before is not None
    *folders, name = re.split(r"[/\\]", reference[before.end() :].rstrip("/\\"))
    folder = folders[-1] if folders and name in ("encoder.safetensors", "model.safetensors") else ""
    kept = "" if folder in ("", ".", "..", os.path.basename(os.path.expanduser("~"))) else f"{folder}/"
    return f"{before[0]}{kept}{name}"


def without_folders(config: Any) -> dict[str, Any]:
    """Every key and value for a report, with names of files and folders in place of their paths.

    >>> from jigsawssl.config.schemas import DemoConfig
    >>> without_folders(DemoConfig(out="/home/somebody/runs/demo"))
    {'out': 'demo', 'seed': 0}
    """
    values: dict[str, Any] = dataclasses.asdict(config)
    for key in ("data", "out", "config", "manifest", "cache", "encoder", "labelled", "subset", "subsets"):
        if isinstance(values.get(key), str):
            values[key] = without_folder(values[key])
    if "encoders" in values:
        values["encoders"] = {name: without_folder(encoder) for name, encoder in values["encoders"].items()}
    for key in ("variants", "domains"):
        for name, parts in values.get(key, {}).items():
            folders = {part: without_folder(parts[part]) for part in ("encoder", "data", "manifest") if parts.get(part)}
            values[key][name] = {**parts, **folders}
    return values
