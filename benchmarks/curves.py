"""Several label-efficiency curves as one figure and one Markdown table, from the folders of ``jigsawssl curve``.

python benchmarks/curves.py out=FILE.png 'chest X-rays=runs/kermany-linear' 'dermoscopies=runs/ham-linear' …

A curve whose points come from several runs is given as FOLDER+FOLDER.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from jigsawssl.report.figures import COLOURS
from jigsawssl.runs import format_table


def read(folders: str, metric: str) -> list[dict[str, str]]:
    """Rows of one metric of a curve's tables."""
    rows = []
    for folder in folders.split("+"):
        with (Path(folder) / "table.csv").open(encoding="utf-8") as file:
            rows += [row for row in csv.DictReader(file) if row["metric"] == metric]
    return rows


def main() -> None:
    """Draw and print."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out = Path(options.pop("out"))
    figure, panels = plt.subplots(1, len(options), figsize=(4.4 * len(options), 3.6), squeeze=False)
    table = []
    for panel, (name, folders) in zip(panels[0], options.items(), strict=True):
        rows = read(folders, "auroc")
        for number, encoder in enumerate(dict.fromkeys(row["encoder"] for row in rows)):
            mine = [row for row in rows if row["encoder"] == encoder]
            at = [float(row["labels"]) for row in mine]
            mean, low, high = ([float(row[key]) for row in mine] for key in ("mean", "low", "high"))
            panel.plot(at, mean, "o-", color=COLOURS[number], label=encoder, markersize=4)
            panel.fill_between(at, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
        for fraction in dict.fromkeys(row["fraction"] for row in rows):
            here = [row for row in rows if row["fraction"] == fraction]
            cells = [f"{float(r['mean']):.3f} ± {float(r['sd']):.3f}" for r in here]
            table.append([name, f"{100 * float(fraction):.3g} %", f"{float(here[0]['labels']):.0f}", *cells])
            header = ["images", "share", "labels", *(row["encoder"] for row in here)]
        panel.set(title=name, xlabel="labels", ylabel="test AUROC", xscale="log")
        panel.grid(color="0.9")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    print(format_table(header, table))


if __name__ == "__main__":
    main()
