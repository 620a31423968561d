"""How a process of ours is set up: what other packages say, freed memory, and what happens when it is interrupted."""

import ctypes
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h

_say: Callable[[], str] | None = None


def prepare_process() -> None:
    """Set up a process that runs a command of ours, or a part of one; for no program that only imports the package."""
    _quiet()
    _keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Or in a log file all lines of standard output would follow those of standard error.
        sys.stdout.reconfigure(line_buffering=True)


def when_interrupted(say: Callable[[], str]) -> None:
    """From now on, an interrupt asks ``say`` what to tell the user: where it came, what is kept, how to go on."""
    global _say
    _say = say


class Interrupts:
    """While a command runs, SIGTERM ends it as Ctrl-C does, by a ``KeyboardInterrupt``, and both are remembered.

    Made before the command begins; :meth:`restore` puts the handlers back that were there before.

    Args:
        own: whether this process is the command's own, which may end at once where nothing is to be kept.
        otherwise: what to tell the user where nobody called :func:`when_interrupted`.
        ask: whether to heed :func:`when_interrupted`.
    """

    def __init__(self, own: bool, otherwise: str, ask: bool) -> None:
        global _say
        _say = None
        self.heard: int | None = None
        self._own, self._otherwise, self._ask = own, otherwise, ask
        self._importing = False
        self._before: dict[int, Any] = {}
        self._handle(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handle(signal.SIGINT, self._stop)

    def _handle(self, number: int, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(number, handler)
            self._before.setdefault(number, before)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.heard = number
        if self._importing and self._own:
            code = self.tell()
            sys.stderr.flush()
            os._exit(code)
        raise KeyboardInterrupt

    @contextmanager
    def importing(self) -> Iterator[None]:
        """While packages are imported, some of which swallow an interrupt and are broken from then on."""
        self._importing = True
        try:
            yield
        finally:
            self._importing = False
        if self.heard is not None:
            raise KeyboardInterrupt

    def tell(self) -> int:
        """Write the line about an interrupt; of several processes of a run, the first one does.

        Returns:
            The exit code: 130 after Ctrl-C, 143 after SIGTERM.
        """
        for number in (signal.SIGINT, signal.SIGTERM):  # once more would tear this line
            self._handle(number, signal.SIG_IGN)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            told = _say() if _say is not None and self._ask else self._otherwise
            print(f"jigsawssl: interrupted{told}", file=sys.stderr)
        return 128 + (self.heard or signal.SIGINT)

    def restore(self) -> None:
        """Put back the handlers; not before an interrupted process of ours ends, which takes Python a while."""
        if self._own and self.heard is not None:
            return
        for number, before in self._before.items():
            # None: it was not set from Python, and so cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._before = {}


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, which otherwise gets, and clears, new pages each time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _quiet() -> None:
    """Keep Lightning's notes about devices and workers out of the way of the user's own output."""
    lightning = "pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"
    # The last two tell of ranks, and of SIGTERM, as we do; when Lightning is imported, it sets its packages' levels.
    others = "lightning_fabric.utilities.distributed", "pytorch_lightning.trainer.connectors.signal_connector"
    for name in (*lightning, *others):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*treespec.*",
        ".*exists and is not empty.*",
        ".*dirpath has changed.*",
        ".*in eval mode at the start of training.*",
        ".*exceeds limit of.*decompression bomb.*",
        ".*all_reduce is deprecated.*",
        ".*Grad strides do not match bucket view strides.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # It warns of each odd element of a file; the table says what could not be read.
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
