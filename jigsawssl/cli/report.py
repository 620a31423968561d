"""Rebuild the ``report.html`` of a run."""

from pathlib import Path

from ..config.schemas import ReportConfig
from ..experiments.reporting import rebuild


def run(config: ReportConfig) -> None:
    """Rebuild the page from the files of a run or curve.

    Raises:
        UserError: where there is none.
    """
    print(f"report: {rebuild(Path(config.run))}")
