"""Progress on a terminal, and where there is none."""

from __future__ import annotations

import io
import sys

import pytest

from jigsawssl import progress
from jigsawssl.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and not how wide it is."""

    def isatty(self) -> bool:
        return True


def attach(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal; not in a fixture, after which pytest puts its own stream there."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_log_gets_whole_lines_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(Progress(range(5), "Reading")) == list(range(5))
    assert stream.getvalue() == "", "what takes less than a minute leaves no line"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress(total=3, initial=1, desc="Reading") as bar:
        bar.set_postfix(unreadable=2, refresh=False)
        bar.update()
        bar.update()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and "" not in lines
    assert lines[-1].startswith("Reading: 3 of 3, in 00:0") and lines[-1].endswith("unreadable=2")
    assert lines[-2].startswith("Reading: 2 of 3, ") and "left" in lines[-2]


def test_a_bar_fits_80_columns_where_a_terminal_tells_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    with Progress(total=10**9, desc="Reading " + "x" * 30, mininterval=0) as bar:
        bar.set_postfix_str("y" * 40)
        bar.update(10**9)
    frames = [frame.rstrip("\n") for frame in terminal.getvalue().split("\r")]
    assert len(frames) > 2 and 70 < max(map(len, frames)) < 80


def test_nothing_is_shown_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = attach(monkeypatch)
    assert list(Progress([1, 2], "Reading", disable=True)) == [1, 2]
    assert terminal.getvalue() == ""
