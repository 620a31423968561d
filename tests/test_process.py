"""What is set for a process that runs a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jigsawssl.process import Interrupts, when_interrupted

_PAGES = """
import resource, sys
from jigsawssl.process import prepare_process

if sys.argv[1] == "prepared":
    prepare_process()
size = 2**26
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * size  # freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Jobs in the background ignore SIGINT, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_freed_memory_is_used_again_in_a_process_of_ours_and_only_there() -> None:
    def faults(which: str) -> int:
        command = [sys.executable, "-c", _PAGES, which]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    if faults("plain") < 1000:
        pytest.skip("this memory comes in large pages, or from another allocator")
    assert faults("prepared") < 100


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_both_signals_end_a_command_in_one_line(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for ask, told in ((True, "; three epochs are saved"), (False, "; run it again")):
        interrupts = Interrupts(own=False, otherwise="; run it again", ask=ask)
        when_interrupted(lambda: "; three epochs are saved")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert interrupts.tell() == code
        os.kill(os.getpid(), number)  # again, while it ends
        interrupts.restore()
        assert capsys.readouterr().err == f"jigsawssl: interrupted{told}\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    monkeypatch.setenv("LOCAL_RANK", "1")
    interrupts = Interrupts(own=False, otherwise="; run it again", ask=True)
    interrupts.tell()
    interrupts.restore()
    assert capsys.readouterr().err == "", "of several processes the first one tells it"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_that_an_import_swallows_is_heard_after_it() -> None:
    interrupts = Interrupts(own=False, otherwise="", ask=False)
    try:
        # Some packages suppress it.
        with pytest.raises(KeyboardInterrupt), interrupts.importing(), contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        interrupts.restore()


_IMPORTING = """
import os, signal
from jigsawssl.process import Interrupts
with Interrupts(own=True, otherwise="; run it again", ask=False).importing():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("an import went on")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_of_ours_ends_at_once_while_it_imports() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTING], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "jigsawssl: interrupted; run it again\n")
