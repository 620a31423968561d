"""Runs of ``finetune`` that differ by their seed, as means with spread, and compared in pairs by seed and patient.

python benchmarks/repeated.py [class=pneumonia] 'compact=runs/compact-*' 'jigsaw=runs/jigsaw-*' …

The first is compared with each of the others. With ``class`` precision, recall and F1 are those of that class.
"""

from __future__ import annotations

import glob
import json
import sys
from pathlib import Path

import numpy as np

from jigsawssl.evaluation.assessment import Criteria
from jigsawssl.experiments.aggregates import Done, compared, points_of, with_holm
from jigsawssl.experiments.trials import load_predictions
from jigsawssl.runs import format_table


def main() -> None:
    """Print the tables."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    positive = options.pop("class", None)
    rows, cells = [], []
    for name, pattern in options.items():
        reports = [json.loads((Path(run) / "report.json").read_text()) for run in sorted(glob.glob(pattern))]
        columns: dict[str, list[float]] = {key: [] for key in ("accuracy", "precision", "recall", "f1", "auroc")}
        columns["balanced accuracy"] = []
        for run, report in zip(sorted(glob.glob(pattern)), reports, strict=True):
            found = report["test"] if positive is None else {**report["test"], **report["test"]["per_class"][positive]}
            for key, values in columns.items():
                values.append(found[key.replace(" ", "_")])
            predictions = load_predictions(Path(run) / "predictions.npz")
            assert predictions is not None, run
            cells.append(Done(name, 1.0, report["config"]["seed"], predictions, {"budget": report["budget"]}))
        rows.append([name, len(reports), *(f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in columns.values())])
    print(format_table(["", "seeds", *columns], rows))
    points = points_of(cells, Criteria(reports[0]["data"]["classes"]), count_groups=False)
    first, *others = options
    for metric in ("auroc", "balanced_accuracy"):
        found = [compared(points, first=first, second=other, metric=metric, fraction=1.0) for other in others]
        for row in with_holm(found):
            print(
                f"{first} less {row['second']}, {metric}: {row['difference']:+.3f} ({row['low']:+.3f} to "
                f"{row['high']:+.3f}), ahead in {row['ahead']} of {row['seeds']}, p = {row['p_holm']:.2g} after Holm"
            )


if __name__ == "__main__":
    main()
