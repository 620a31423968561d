"""What a pretraining shows while it runs, and what it says when it is interrupted."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from jigsawssl.training import monitors
from jigsawssl.training.monitors import RunProgress, epochs, saved_epochs
from jigsawssl.training.optim import create_optimizer, create_scheduler
from tests.test_progress import attach


def trainer(max_epochs: int, batches: int, **metrics: float) -> Any:
    """As much of a trainer as the progress of a run looks at."""
    numbers = {"loss": 12.345, "images/s": 410.4, "data_wait": 0.02, **metrics}
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return SimpleNamespace(
        max_epochs=max_epochs,
        num_training_batches=batches,
        current_epoch=0,
        is_global_zero=True,
        is_last_batch=False,
        callback_metrics=values,
    )


def go(shown: RunProgress, run: Any, first: int, last: int, clock: list[float] | None = None) -> None:
    """Some whole epochs, each step of which takes a second on the clock."""
    run.current_epoch = first
    shown.on_train_start(run, None)  # type: ignore[arg-type]
    for run.current_epoch in range(first, last):
        shown.on_train_epoch_start(run, None)  # type: ignore[arg-type]
        for batch in range(run.num_training_batches):
            if clock is not None:
                clock[0] += 1.0
            run.is_last_batch = batch + 1 == run.num_training_batches
            shown.on_train_batch_end(run, None, None, None, batch)  # type: ignore[arg-type]
        shown.on_train_epoch_end(run, None)  # type: ignore[arg-type]
    run.current_epoch = last
    shown.on_train_end(run, None)  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(monitors, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_a_log_gets_one_line_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    go(RunProgress(tmp_path / "none", images_kept=True), trainer(3, 100), 0, 3, clock)
    assert stream.getvalue().splitlines() == [
        "epoch 1 of 3: loss 12.3, 410 images/s, data wait 2 %, 3.3 min left",
        "epoch 2 of 3: loss 12.3, 410 images/s, data wait 2 %, 1.7 min left",
        "epoch 3 of 3: loss 12.3, 410 images/s, data wait 2 %",
    ]


def test_the_time_left_after_a_resume_goes_by_what_this_process_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    go(RunProgress(tmp_path / "none", images_kept=True), trainer(10, 20), 8, 10, clock)
    assert stream.getvalue().splitlines()[0].endswith(", 20 s left")


def test_one_bar_for_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = attach(monkeypatch)
    run = trainer(3, 40)
    go(RunProgress(tmp_path / "none", images_kept=True), run, 0, 3, clock)
    frames = [frame.rstrip() for frame in terminal.getvalue().split("\r") if frame.strip()]
    assert terminal.getvalue().count("\n") == 1, "one bar"
    assert frames[0].startswith("epoch 1/3   0%|")
    (halfway,) = [frame for frame in frames if frame.startswith("epoch 2/3  50%|")]
    assert halfway.endswith("| 1:00 left, loss 12.3, 410 images/s, wait 2%")
    assert frames[-1].startswith("epoch 3/3 100%|") and " in 0:" in frames[-1]


def test_it_fits_80_columns_whatever_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    terminal = attach(monkeypatch)
    run = trainer(100_000, 3, **{"loss": -1.2345e-300, "images/s": 12_345_678.9, "data_wait": 1.0})
    clock[0] = -1e9  # and the rest of the run takes years
    go(RunProgress(tmp_path / "none", images_kept=True), run, 99_000, 99_002, clock)
    frames = [frame.rstrip("\n") for frame in terminal.getvalue().split("\r")]
    assert len(frames) > 5 and max(map(len, frames)) <= 80


def test_other_processes_of_a_run_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    run = trainer(2, 3)
    run.is_global_zero = False
    go(RunProgress(tmp_path / "none", images_kept=True), run, 0, 2)
    assert terminal.getvalue() == ""


def test_saved_epochs_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    assert saved_epochs(file) == 0
    torch.save({"epoch": 2}, file)
    assert saved_epochs(file) == 3 and epochs(3) == "epochs 1 to 3 are" and epochs(1) == "epoch 1 is"


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_longer_schedule_goes_on_at_its_own_rate(name: str) -> None:
    def rates(steps: int, state: Any = None, begin: int = 0, end: int | None = None) -> tuple[list[float], Any]:
        parts = {"encoder": (nn.Linear(2, 2), 0.5), "block": (nn.Linear(2, 2), 1.0)}
        optimizer = create_optimizer(name, parts)  # type: ignore[arg-type]
        scheduler = create_scheduler(optimizer, steps, warmup=0.1)
        if state is not None:
            optimizer.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
        found = []
        for _ in range(begin, steps if end is None else end):
            found.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return found, (optimizer.state_dict(), scheduler.state_dict())  # type: ignore[return-value]

    short, state = rates(20)
    whole, _ = rates(40)
    on, _ = rates(40, state, begin=20)
    assert on == whole[20:] and on[0][-1] > 10 * short[-1][-1], "the rate rises to where the longer schedule is"
    assert rates(20, rates(20, end=7)[1], begin=7)[0] == short[7:]
