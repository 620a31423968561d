"""The command line: ``jigsawssl COMMAND key=value …``."""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from .. import __version__
from ..config import (
    BenchConfig,
    CurveConfig,
    DemoConfig,
    DoctorConfig,
    FinetuneConfig,
    PretrainConfig,
    ReportConfig,
    StudyConfig,
    TransferConfig,
    describe_keys,
    load_config,
)
from ..process import Interrupts, prepare_process
from ..types import UserError

__all__ = ["main"]

_COMMANDS = {
    "pretrain": (PretrainConfig, "pretrain an encoder on unlabeled images", "data=ARCHIVE out=RUN"),
    "finetune": (
        FinetuneConfig,
        "adapt an encoder to few labels and test it once",
        "data=ARCHIVE manifest=labels.csv encoder=RUN/encoder.safetensors out=RUN2 [fraction=0.01]",
    ),
    "curve": (
        CurveConfig,
        "say how many labels an encoder saves: adapt several to growing shares of the labels, and compare",
        "data=ARCHIVE manifest=labels.csv encoders='{jigsaw: RUN/encoder.safetensors, scratch: "
        '"random:RUN/encoder.safetensors"}\' out=CURVE',
    ),
    "study": (
        StudyConfig,
        "compare kinds of encoders: a search of equal size for each, repetitions, tests in and out of the domain",
        "configs/study/attention.yaml data=ARCHIVE manifest=labels.csv out=STUDY",
    ),
    "transfer": (
        TransferConfig,
        "learn in stages, each from what the one before learned",
        "config=configs/transfer/breast_histology.yaml out=CHAIN",
    ),
    "report": (ReportConfig, "make report.html of a run, curve or study anew from its files", "RUN"),
    "doctor": (DoctorConfig, "say what is in an archive, and what is wrong with it", "data=ARCHIVE [out=DIR]"),
    "bench": (
        BenchConfig,
        "say how fast a pretraining would be here, where its time goes, and what would help",
        "data=ARCHIVE [every key of pretrain]",
    ),
    "demo": (DemoConfig, "pretrain on embedded synthetic images, probe with few labels", "[out=runs/demo]"),
}

_BARE = {"report": "run", "study": "config"}
"""Key of the first argument, where it may stand alone."""

_KEPT = {
    "finetune": "; fine-tuning saves nothing before its end; resume=true begins anew",
    "curve": "; what is finished of the curve is kept; go on with resume=true",
    "study": "; what is finished of the study is kept; go on with resume=true",
    "transfer": "; finished stages, and finished epochs of a pretraining, are kept; go on with resume=true",
}
"""What an interrupted command leaves; the others, and a pretraining that has not begun, leave nothing."""


def _help(command: str | None) -> str:
    if command is None:
        lines = ["usage: jigsawssl COMMAND key=value …", "", "commands:"]
        lines += [f"  {name:<10}{meaning}" for name, (_, meaning, _) in _COMMANDS.items()]
        return "\n".join([*lines, "", "jigsawssl COMMAND --help lists every key; jigsawssl --version"])
    schema, meaning, usage = _COMMANDS[command]
    rows = describe_keys(schema)
    width = max(len(f"{key}={default}") for key, default, _ in rows) + 2
    lines = [
        f"usage: jigsawssl {command} {usage} [config=FILE.yaml] [key=value …]",
        "",
        f"{meaning}",
        "",
        "keys, with defaults:",
    ]
    return "\n".join(lines + [f"  {f'{key}={default}':<{width}}{text}" for key, default, text in rows])


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        0 for success, 1 where the doctor found defects or cells of a curve or study failed, 2 for a mistake of the user
        (one line on standard error), 70 for one of ours, 130 for Ctrl-C and 143 for SIGTERM, as a shell would say.

    Example:
        >>> main(["--version"])
        jigsawssl 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"jigsawssl {__version__}")
        return 0
    command = arguments[0] if arguments and arguments[0] in _COMMANDS else None
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(_help(command))
        return 0
    interrupts = Interrupts(argv is None, _KEPT.get(command or "", "; run it again"), ask=command == "pretrain")
    try:
        if command is None:
            raise UserError(f"command ({arguments[0]}) must be one of {', '.join(_COMMANDS)}; see jigsawssl --help")
        rest = arguments[1:]
        if command in _BARE and rest and "=" not in rest[0]:
            rest = [f"{_BARE[command]}={rest[0]}", *rest[1:]]
        config = load_config(_COMMANDS[command][0], rest)
        prepare_process()
        with interrupts.importing():
            module = _imported(command)
        code = module.run(config)
    except UserError as error:
        print(f"jigsawssl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns an interrupt during training into an exit of its own.
        return interrupts.tell()
    except Exception:
        if interrupts.heard is not None:  # and what was interrupted made another error of it
            return interrupts.tell()
        # A mistake of ours, which must not look like one of the user or like the doctor's findings.
        traceback.print_exc()
        return 70
    finally:
        interrupts.restore()
        gc.unfreeze()
    return code if isinstance(code, int) else 0
