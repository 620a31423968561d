"""The demo: pretrain on embedded synthetic images, probe with a tenth of their labels, compare with fresh weights."""

import json
import shlex
from pathlib import Path

from ..config.loading import load_config
from ..config.schemas import DemoConfig, FinetuneConfig, PretrainConfig
from ..runs import format_table
from . import finetune, pretrain

FRACTION = 0.1


def run(config: DemoConfig) -> None:
    """Run the two commands that a user would type, for trained and fresh weights, and print a table."""
    out = Path(config.out)
    first = [
        "data=demo",
        f"out={out / 'pretrain'}",
        "overwrite=true",
        f"seed={config.seed}",
        "backbone_options={channels: [16, 32, 64, 128]}",
        "views.size=64",
        "views.grids=[8, 4, 2]",
        "stem_stride=4",
        "batch.size=64",
        "trainer.max_epochs=15",
    ]
    # 1:14 and 3:56 min were measured, with bfloat16 arithmetic and without
    print("Three steps; about 1 to 4 minutes on two idle CPU cores.\n")
    print("Step 1 of 3, pretraining:\n")
    print(f"$ jigsawssl pretrain {shlex.join(first)}")
    encoder = pretrain.run(load_config(PretrainConfig, first))
    rows = []
    steps = (("pretrained", str(encoder)), ("fresh weights", f"random:{encoder}"))
    for number, (name, reference) in enumerate(steps, 2):
        folder = out / f"finetune-{name.split()[0]}"
        second = [
            "data=demo",
            f"encoder={reference}",
            f"out={folder}",
            "overwrite=true",
            f"seed={config.seed}",
            f"fraction={FRACTION}",
            "mode=linear",
        ]
        print(f"\nStep {number} of 3, a probe on {FRACTION:.0%} of the labels, {name}:\n")
        print(f"$ jigsawssl finetune {shlex.join(second)}")
        finetune.run(load_config(FinetuneConfig, second))
        report = json.loads((folder / "report.json").read_text())
        rows.append([name, report["budget"]["labels"], report["test"]["auroc"], report["test"]["balanced_accuracy"]])
    print(f"\nSynthetic lesions, a linear probe on {FRACTION:.0%} of the labels, tested once:\n")
    print(format_table(["encoder", "labels", "test AUROC", "balanced accuracy"], rows))
    print(f"\nLook at {out / 'pretrain' / 'views.png'} and {out / 'finetune-pretrained' / 'curves.png'}")
