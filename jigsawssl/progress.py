"""How far something is: a bar on a terminal, and in a log file a line a minute."""

import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 60.0
"""Between two lines where there is no terminal; what takes less leaves none."""


class Progress(tqdm):
    """tqdm, called in the same way; where standard error is no terminal, whole lines in place of a bar.

    >>> list(Progress(range(3), "Reading", disable=True))
    [0, 1, 2]
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.terminal = sys.stderr.isatty()
        if not self.terminal:
            options |= {"mininterval": LINE_SECONDS, "miniters": 1, "delay": LINE_SECONDS, "leave": False}
        super().__init__(*arguments, dynamic_ncols=self.terminal, **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What is shown: how many of how many, and the time left, or in the end the time it took."""
        values: dict[str, Any] = super().format_dict
        finished = values["total"] is not None and values["n"] >= values["total"]
        shape = values["bar_format"] or "{l_bar}{bar}| {n_fmt} of {total_fmt}, {remaining} left{postfix}"
        if finished:
            shape = shape.replace("{remaining} left", "in {elapsed}")
        if not self.terminal:
            shape = shape.replace("{l_bar}{bar}| ", "{desc}: ")
        known = (values["ncols"] or 0) > 0
        return {**values, "bar_format": shape, "ncols": values["ncols"] if known else 79}

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or write a line; tqdm calls it."""
        if self.terminal:
            return bool(super().display(msg, pos))
        if msg is None:
            self.fp.write(f"{self}\n")
            self.fp.flush()
        return False
