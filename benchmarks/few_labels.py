"""Pretrain side by side, then fine-tune on few labels: jigsaw, plain Barlow Twins and fresh weights, several seeds.

    python benchmarks/few_labels.py data=FOLDER out=RUNS [config=…] [epochs=56] [plain_epochs=81] [seeds=5]
                                    [fractions=0.01,0.1]

One pretraining each, at the same time with one thread each; ``plain_epochs`` is to be chosen so that both take equally
long, and the table says how long they took. Every fine-tuning uses the defaults. What is finished is not repeated.
Prints Markdown tables, and writes them to ``OUT/table.md``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jigsawssl.report import format_table

METHODS = ("jigsaw", "plain", "fresh")


def _run(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "jigsawssl", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-2000:]}")


def _pretrain(method: str, options: dict[str, str], out: Path) -> None:
    folder = out / method
    arguments = [f"data={options['data']}", f"manifest={options['manifest']}", f"config={options['config']}"]
    epochs = options["plain_epochs" if method == "plain" else "epochs"]
    arguments += [f"trainer.max_epochs={epochs}", *(["views.grids=[]"] if method == "plain" else [])]
    _run(["pretrain", *arguments, f"out={folder}", "resume=true"])


def _finetune(method: str, fraction: str, seed: int, options: dict[str, str], out: Path) -> dict[str, float]:
    encoder = out / ("jigsaw" if method == "fresh" else method) / "encoder.safetensors"
    folder = out / f"finetune-{method}-{fraction}-{seed}"
    reference = f"random:{encoder}" if method == "fresh" else str(encoder)
    arguments = [f"data={options['data']}", f"manifest={options['manifest']}", f"encoder={reference}"]
    _run(["finetune", *arguments, f"out={folder}", f"fraction={fraction}", f"seed={seed}", "resume=true"])
    report = json.loads((folder / "report.json").read_text())
    return {**report["test"], "labels": report["budget"]["labels"]}


def main() -> None:
    """Run what is missing and print the table."""
    options = {
        "config": "configs/pretrain/kermany_cpu.yaml",
        "epochs": "56",
        "plain_epochs": "81",
        "seeds": "5",
        "fractions": "0.01,0.1",
    }
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not {"data", "out"} <= set(options):
        raise SystemExit(__doc__)
    options.setdefault("manifest", str(Path(options["data"]) / "manifest.csv"))
    out = Path(options["out"])
    fractions, seeds = options["fractions"].split(","), range(int(options["seeds"]))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda method: _pretrain(method, options, out), ("jigsaw", "plain")))
        jobs = [(method, fraction, seed) for fraction in fractions for seed in seeds for method in METHODS]
        results = dict(zip(jobs, pool.map(lambda job: _finetune(*job, options, out), jobs), strict=True))
    rows = []
    for fraction in fractions:
        for method in METHODS:
            runs = [results[method, fraction, seed] for seed in seeds]
            cells = [
                f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
                for values in ([run[name] for run in runs] for name in ("auroc", "balanced_accuracy"))
            ]
            rows.append(
                [f"{float(fraction):.0%}", round(statistics.mean(run["labels"] for run in runs)), method, *cells]
            )
    runs = {method: json.loads((out / method / "report.json").read_text())["run"] for method in ("jigsaw", "plain")}
    times = [[method, run["epochs"], run["updates"], f"{run['seconds'] / 60:.1f}"] for method, run in runs.items()]
    table = format_table(["pretraining", "epochs", "updates", "minutes"], times) + "\n\n"
    table += format_table(["fraction", "labels", "encoder", "test AUROC", "balanced accuracy"], rows)
    (out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
