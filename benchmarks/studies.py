"""A study as one figure of mean ranks and one Markdown table, from the folder of ``jigsawssl study``.

python benchmarks/studies.py out=FILE.svg runs/study
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jigsawssl.report.plots import critical_difference_svg
from jigsawssl.runs import format_table


def main() -> None:
    """Draw and print."""
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    folder = next(Path(argument) for argument in sys.argv[1:] if "=" not in argument)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    domains = list(dict.fromkeys(row["domain"] for row in report["table"]))
    values = {(row["encoder"], row["domain"]): row["metrics"] for row in report["table"]}
    tests = {
        (row["first"], row["domain"]): row for row in report["comparisons"] if row["metric"] == "balanced_accuracy"
    }
    rows = []
    for name, facts in report["variants"].items():
        cells = [f"{facts['parameters'] / 1e6:.2f}", f"{facts['multiply_adds'] / 1e6:.0f}"]
        for domain in domains:
            found, test = values[name, domain], tests.get((name, domain))
            cells.append(f"{found['balanced_accuracy']['mean']:.3f} ± {found['balanced_accuracy']['sd']:.3f}")
            cells.append(f"{test['difference']:+.3f} ({test['p_holm']:.2g})" if test else "")
            cells.append(f"{found['auroc']['mean']:.3f}")
        rows.append([name, *cells])
    of_domain = [
        f"{title} {domain}" for domain in domains for title in ("balanced accuracy", "difference (p)", "AUROC")
    ]
    print(format_table(["variant", "M parameters", "M multiply-adds", *of_domain], rows))
    rows = [
        [row["variant"], row["map"], *(None if row[key] is None else f"{row[key]:.3f}" for key in
         ("border_share", "deletion", "insertion", "agreement"))]
        for row in report["explanations"]
    ]  # fmt: skip
    print("\n" + format_table(["variant", "map", "on the border", "deletion", "insertion", "agreement"], rows))
    # Where an SVG stands alone there is no page whose ink it could take.
    svg = critical_difference_svg(report["ranking"][domains[0]], f"Mean ranks {domains[0]}")
    Path(options["out"]).write_text(svg.replace("currentColor", "#808080").replace("<svg ", '<svg width="760" ', 1))


if __name__ == "__main__":
    main()
