"""The configurations that come with the package, found by name."""

import difflib
import re
from pathlib import Path

from ..types import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_HIDDEN = "smoke"
"""Folder of the configurations that only tests use: found by their whole name, and listed nowhere."""


def shipped_configs() -> dict[str, Path]:
    """Every configuration that comes with the package, by folder and name; the folder is that of the command.

    >>> shipped_configs()["pretrain/kermany_cpu"].name
    'kermany_cpu.yaml'
    """
    # Installed they lie in the package; in a checkout, and where that is installed editable, beside it.
    root = next((root for root in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if root.is_dir()), None)
    files = sorted(root.glob("*/*.yaml")) if root is not None else []
    return {f"{file.parent.name}/{file.stem}": file for file in files}


def configs_of(command: str) -> dict[str, Path]:
    """The shipped configurations of a command by name; those of ``bench`` are of the pretraining that it measures.

    >>> configs_of("bench") == configs_of("pretrain"), "paper" in configs_of("pretrain")
    (True, True)
    """
    folder = "pretrain" if command == "bench" else command
    return {name.partition("/")[2]: file for name, file in shipped_configs().items() if name.startswith(f"{folder}/")}


def find_config(given: str, command: str) -> Path:
    """The file that ``config=`` names: a path, or the name of a shipped configuration with or without its folder.

    Args:
        given: such as ``mine.yaml``, ``kermany_cpu`` or ``pretrain/kermany_cpu``.
        command: whose configurations come first where several have that name.

    Raises:
        UserError: where there is none, or more than one.

    >>> find_config("kermany_cpu", "pretrain").name
    'kermany_cpu.yaml'
    """
    file = Path(given)
    if file.is_file():
        return file
    every = shipped_configs()
    name = given.replace("\\", "/").removeprefix("configs/").removesuffix(".yaml")
    public = [known for known in every if not known.startswith(f"{_HIDDEN}/")]
    named = [known for known in public if known.partition("/")[2] == name]
    own = configs_of(command)
    if name in every:
        return every[name]
    if name in own:
        return own[name]
    if len(named) == 1:
        return every[named[0]]
    if named:
        raise UserError(f"`config` ({given}) must name one configuration; there are {', '.join(named)}; give one")
    shipped = f" or the name of one that comes with jigsawssl ({', '.join(own)})" if own else ""
    near = difflib.get_close_matches(name, [*own, *public], n=1)
    hint = f"did you mean {near[0]}?" if near else "check the path"
    if (file / "config.yaml").is_file():
        hint = f"did you mean {file / 'config.yaml'}?"
    there = "a folder" if file.is_dir() else "nothing"
    raise UserError(f"`config` ({given}) must be a YAML file{shipped}; {there} is there; {hint}")


def summary_of(file: Path) -> str:
    """The first sentence of the comment at the top of a configuration."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return re.split(r"(?<=[.?])\s+(?=[A-Z])", comment, maxsplit=1)[0]
