"""What a key of the configuration is: its default, its line of meaning, and the values that it takes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import field
from operator import attrgetter
from typing import Any, get_type_hints

from ..types import UserError


def key(
    default: Any,
    meaning: str,
    *,
    choices: Sequence[str | None] = (),
    least: float | None = None,
    most: float | None = None,
    positive: bool = False,
    fallback: Any = None,
) -> Any:
    """A field of a schema.

    Args:
        default: its value where nobody gives one.
        meaning: one line for ``--help``; it ends with ``(required)`` where there must be a value.
        choices: the words that it may be; ``None`` among them stands for null.
        least: the smallest number that it may be.
        most: the largest number that it may be.
        positive: whether it, or each of several, must be above 0.
        fallback: what null means where no encoder says otherwise.
    """
    metadata = dict(
        meaning=meaning, choices=tuple(choices), least=least, most=most, positive=positive, fallback=fallback
    )
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type) -> Any:
    """A field that holds keys of its own."""
    return field(default_factory=kind)


def listed(choices: Mapping[str, str]) -> str:
    """Choices and what each does, for a line of meaning."""
    *first, last = (f"{name} ({does})" for name, does in choices.items())
    return f"{', '.join(first)} or {last}"


def keys_of(schema: type, prefix: str = "") -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Every key of a schema, groups flattened with dots → (field, type)."""
    leaves: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    hints = get_type_hints(schema)
    for entry in dataclasses.fields(schema):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            leaves |= keys_of(kind, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
        else:
            leaves[prefix + entry.name] = (entry, kind)
    return leaves


def single_values(value: Any) -> list[Any]:
    """What is inside lists and mappings, however deep."""
    inside = list(value.values()) if isinstance(value, dict) else value
    return [leaf for part in inside for leaf in single_values(part)] if isinstance(inside, list) else [value]


def check_keys(config: Any) -> None:
    """Each key by itself, then what the groups and the command say of theirs together.

    Raises:
        UserError: for the first one that does not hold.
    """
    for name, (entry, _) in keys_of(type(config)).items():
        _check_value(name, attrgetter(name)(config), entry.metadata)
    for part in (*(getattr(config, entry.name) for entry in dataclasses.fields(config)), config):
        if dataclasses.is_dataclass(part) and hasattr(part, "check"):
            part.check()


def _check_value(name: str, value: Any, allowed: Mapping[str, Any]) -> None:
    choices, least, most = allowed["choices"], allowed["least"], allowed["most"]
    if allowed["meaning"].endswith("(required)") and not value:
        raise UserError(f"`{name}` is required and was not given; add {name}=…, `--help` says what it takes")
    if choices and value not in choices:
        raise UserError(f"`{name}` ({value}) must be one of {', '.join(filter(None, choices))}")
    if least is not None and value is not None and not value >= least:
        raise UserError(f"`{name}` ({value}) must be at least {least}; raise it")
    if most is not None and value is not None and not value <= most:
        raise UserError(f"`{name}` ({value}) must be at most {most}; choose a smaller one")
    if allowed["positive"] and value is not None and not min(single_values(value), default=0) > 0:
        raise UserError(f"`{name}` ({value}) must be more than 0; leave it out for the default")
