"""The command line: ``jigsawssl COMMAND key=value …``."""

import difflib
import gc
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .. import __version__
from ..config.loading import describe_keys, load_config
from ..config.schemas import COMMANDS
from ..config.shipped import configs_of, summary_of
from ..process import Interrupts, prepare_process
from ..types import UserError

__all__ = ["main"]

_WIDTH, _COLUMN = 100, 36
_FIXED = "\N{NO-BREAK SPACE}"


def _help(command: str | None) -> str:
    if command is None:
        lines = ["usage: jigsawssl COMMAND key=value …", "", "commands:"]
        for name, one in COMMANDS.items():
            lines += _entry(name, one.meaning, 12)
        return "\n".join([*lines, "", "jigsawssl COMMAND --help lists every key; jigsawssl --version"])
    schema, meaning, usage, *_ = COMMANDS[command]
    keys = describe_keys(schema)
    if any(key == "config" for key, _, _ in keys) and "FILE.yaml" not in usage:
        usage += " [config=FILE.yaml]"
    begin = f"usage: jigsawssl {command} "
    whole = re.sub("'.*?'", lambda quoted: quoted[0].replace(" ", _FIXED), f"{usage} [key=value …]")
    lines = [line.replace(_FIXED, " ") for line in _wrapped(whole, begin, " " * len(begin))]
    lines += ["", *_wrapped(meaning), "", "keys, with defaults:"]
    for key, default, text in keys:
        lines += _entry(f"{key}={default}", text, _COLUMN)
    example = next((f"{key}={value}" for key, value, _ in keys if value.startswith("[") and "," in value), None)
    if example is not None:
        tight = example.replace(" ", "")
        lines += ["", *_wrapped(f"Write a list without spaces, such as {tight}, or in quotes; a mapping in quotes.")]
    own = configs_of(command)
    if own:
        lines += ["", "configurations that come with jigsawssl:"]
        for name, file in own.items():
            lines += _entry(f"config={name}", summary_of(file), _COLUMN)
    return "\n".join(lines)


def _entry(name: str, meaning: str, column: int) -> list[str]:
    """A name and beside it, or below where it is long, what it means."""
    begin = "  " + name
    margin = " " * (column + 2)
    if len(begin) < len(margin):
        return _wrapped(meaning, begin.ljust(len(margin)), margin)
    return [*_wrapped(name, "  ", "    "), *_wrapped(meaning, margin, margin)]


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _show(text: str) -> None:
    """Print what may be cut short, as by ``| head``."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit


def _no_command(given: str) -> str:
    """What to say of a first argument that is no command."""
    commands = ", ".join(COMMANDS)
    if "=" in given:
        return f"the command must come before `{given}`, as in jigsawssl pretrain {given}; commands are {commands}"
    near = difflib.get_close_matches(given.lower().replace("-", "").replace("_", ""), COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else "see jigsawssl --help"
    return f"command ({given}) must be one of {commands}; {hint}"


def _imported(command: str) -> ModuleType:
    """The module of a command.

    Garbage collection waits meanwhile: to look through all that PyTorch brings, again and again while it is imported,
    takes a quarter of the start-up. Until the command is over, it leaves out what was imported.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        module = importlib.import_module(f".{command}", __package__)
        gc.freeze()
        return module
    finally:
        if collects:
            gc.enable()


_KEYS = {
    "accelerator": "trainer.accelerator",
    "fit": "reading.fit",
    "grids": "views.grids",
    "lr": "optimizer.lr",
    "preset": "views.preset",
    "share": "views.share",
    "size": "views.size",
    "variant": "block.variant",
    "window": "reading.window",
}
"""The key that an argument of a part comes from, where it is called differently; `stain` is a key of its own."""


def _in_keys(message: str) -> str:
    """A message of a part, in the words of the command line."""
    return re.sub(r"`(\w+)`", lambda named: f"`{_KEYS.get(named[1], named[1])}`", message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        0 for success, 1 where the doctor found defects or cells of a curve or study failed, 2 for a mistake of the user
        (one line on standard error), 70 for one of ours, 130 for Ctrl-C and 143 for SIGTERM, as a shell would say.

    >>> main(["--version"])
    jigsawssl 0.1.0
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in (["--version"], ["-V"], ["version"]):
        print(f"jigsawssl {__version__}")
        return 0
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    command = arguments[0] if arguments and arguments[0] in COMMANDS else None
    if not arguments or "--help" in arguments or "-h" in arguments:
        _show(_help(command))
        return 0
    config: Any = None
    kept = COMMANDS[command].kept if command else ""
    interrupts = Interrupts(argv is None, kept, ask=command == "pretrain")
    try:
        if command is None:
            raise UserError(_no_command(arguments[0]))
        rest, bare = arguments[1:], COMMANDS[command].bare
        if bare is not None and rest and "=" not in rest[0] and not rest[0].startswith("-"):
            rest = [f"{bare}={rest[0]}", *rest[1:]]
        from .look import look  # here, as --help needs none of the libraries that it takes

        prepare_process()
        config = look(load_config(COMMANDS[command].schema, rest))
        with interrupts.importing():
            module = _imported(command)
        code = module.run(config)
    except UserError as error:
        print(f"jigsawssl: {_in_keys(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns an interrupt during training into an exit of its own.
        return interrupts.tell()
    except Exception as error:
        if interrupts.heard is not None:  # and what was interrupted made another error of it
            return interrupts.tell()
        from .look import place_at_fault

        fault = place_at_fault(error, config) if isinstance(error, OSError) else None
        if fault is not None:
            print(f"jigsawssl: {' '.join(fault.split())}", file=sys.stderr)
            return 2
        # Our own mistake, which must not look like the user's or like a finding of the doctor.
        traceback.print_exc()
        return 70
    finally:
        interrupts.restore()
        gc.unfreeze()
    return code if isinstance(code, int) else 0
