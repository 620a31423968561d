"""Run many independent cells in processes: each is written when it is finished, and a crash costs one."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits


class Outcome(NamedTuple):
    """How a cell ended: ``error`` is ``None``, or what went wrong in one line, its kind and place before a colon."""

    cell: Any
    error: str | None


_work: Callable[[Any], None] | None = None


def _start(make_work: Callable[[], Callable[[Any], None]], threads: int, cards: Any) -> None:
    global _work
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed parent says nothing; without this its children would wait for work for ever.
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    card = cards.get()
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card  # before anything here looks for a GPU
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # of NumPy and scikit-learn, which would take every core in every process
    _work = make_work()


def _run(cell: Any) -> str | None:
    assert _work is not None
    return _attempt(_work, cell)


def _attempt(work: Callable[[Any], None], cell: Any) -> str | None:
    try:
        work(cell)
    except Exception as error:
        return error_line(error)
    return None


def error_line(error: Exception) -> str:
    """Its kind and place, and after a colon what it says, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(last.filename)}:{last.lineno}"
    return " ".join(f"{type(error).__name__} in {where}: {error}".split())


def run_cells(make_work: Callable[[], Callable[[Any], None]], cells: Sequence[Any], jobs: int) -> Iterator[Outcome]:
    """Work on each cell once.

    Args:
        make_work: picklable; called once in each process, returns what works on a cell and keeps its result.
        cells: picklable.
        jobs: processes; 1 works in this one.

    Yields:
        An :class:`Outcome` for each cell, in the order in which they end.
    """
    if jobs == 1 or len(cells) == 1:
        work = make_work()
        for cell in cells:
            yield Outcome(cell, _attempt(work, cell))
        return
    waiting, suspects = list(cells), list[Any]()
    while waiting:
        yield from _in_pool(make_work, waiting, suspects, jobs)
    # Whoever was at work when a process died tries again, each alone, so that the guilty one is known.
    while suspects:
        alone = [suspects.pop(0)]
        guilty: list[Any] = []
        yield from _in_pool(make_work, alone, guilty, 1)
        for cell in guilty:
            yield Outcome(cell, "its process died, perhaps for want of memory; fewer jobs= need less")


def _in_pool(
    make_work: Callable[[], Callable[[Any], None]], waiting: list[Any], suspects: list[Any], jobs: int
) -> Iterator[Outcome]:
    """Empty ``waiting`` until a process dies; cells that were at work then go to ``suspects``."""
    running: dict[Future[str | None], Any] = {}
    pool = _pool(make_work, min(jobs, len(waiting)))
    try:
        while waiting or running:
            # No more than are worked on, so that a crash takes few with it.
            while waiting and len(running) < jobs:
                with _deaf_children():
                    running[pool.submit(_run, waiting[0])] = waiting[0]
                waiting.pop(0)
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                error = done.result()
                yield Outcome(running.pop(done), error)
    except BrokenProcessPool:
        suspects += running.values()
    finally:
        if running:  # interrupted: nobody waits for what they would still do
            for process in list((pool._processes or {}).values()):
                process.terminate()
        # The pool's own thread waits for its processes: two that wait for one may both not learn that it ended.
        pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that begin here never hear Ctrl-C, which a terminal sends to all: this one hears it and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pool(make_work: Callable[[], Callable[[Any], None]], jobs: int) -> ProcessPoolExecutor:
    # Not forked: threads of PyTorch do not survive that.
    context = multiprocessing.get_context("spawn")
    cards = context.SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    for number in range(jobs):
        cards.put(known[number % len(known)] if len(known) > 1 else None)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    return ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(make_work, threads, cards))
