"""What is set for a process that runs a command."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is told")
def test_freed_memory_is_used_again_in_a_process_of_ours_and_only_there() -> None:
    def faults(which: str) -> int:
        command = [sys.executable, "-c", _PAGES, which]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    if faults("plain") < 1000:
        pytest.skip("this memory comes in large pages, or from another allocator")
    assert faults("prepared") < 100
