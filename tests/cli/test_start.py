"""What happens before a command begins: help without PyTorch, imports without garbage collection."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from jigsawssl.cli import main


def test_help_and_version_do_not_wait_for_pytorch() -> None:
    code = "import sys; from jigsawssl.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for arguments in (["--help"], ["pretrain", "--help"], ["--version"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_garbage_is_collected_again_once_a_command_was_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, take = [], importlib.import_module

    def watched(*names: str, **options: str) -> object:
        seen.append(gc.isenabled())
        return take(*names, **options)

    monkeypatch.setattr(importlib, "import_module", watched)
    arguments = ["pretrain", "data=demo", f"out={tmp_path / 'run'}", "split=nowhere"]
    assert main(arguments) == 2
    assert seen[0] is False and gc.isenabled() and gc.get_freeze_count() == 0

    def broken(*names: str) -> object:
        raise ImportError("half an installation")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert main(arguments) == 70
    assert gc.isenabled() and gc.get_freeze_count() == 0
