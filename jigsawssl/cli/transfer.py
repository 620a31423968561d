"""Wire a chain of stages: each is a pretraining or a fine-tuning that starts from what the one before it learned."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..config.loading import config_of, to_yaml, without_folders
from ..config.schemas import FinetuneConfig, PretrainConfig, TransferConfig
from ..experiments.reporting import LIMITS, write_report
from ..runs import format_table
from ..runs.folder import clear_run_folder
from ..runs.parts import judgement_of
from ..types import UserError
from . import finetune, pretrain
from .look import run_folder, stage_names

WEIGHTS = {"supervised": "model.safetensors", "jigsaw": "encoder.safetensors"}
"""What a stage of either kind leaves."""


def run(config: TransferConfig) -> None:
    """Run the stages that are not finished, then report on all."""
    names, path = stage_names(config), run_folder(config)
    # All of it is read before anything is written, so that a mistake in the last stage shows now.
    left = [WEIGHTS[stage.get("objective", "supervised")] for stage in config.stages]
    stages = [
        _stage(dict(stage), path=path, names=names, number=number, before=left[number - 1])
        for number, stage in enumerate(config.stages)
    ]
    if not config.resume:
        clear_run_folder(path)
        for name in names:
            shutil.rmtree(path / name, ignore_errors=True)
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(to_yaml(config))
    for number, stage in enumerate(stages, start=1):
        print(f"\nstage {number} of {len(stages)}: {names[number - 1]}")
        if isinstance(stage, PretrainConfig):
            pretrain.run(stage)
        else:
            finetune.run(stage)
    _report(path, names, config)
    print(f"model:  {path / names[-1] / left[-1]}")


def _stage(
    values: dict[str, Any], *, path: Path, names: list[str], number: int, before: str
) -> PretrainConfig | FinetuneConfig:
    """The configuration of one stage; ``before`` is the file that the stage before it leaves."""
    values.pop("name")
    jigsaw = values.pop("objective", "supervised") == "jigsaw"
    schema: type[PretrainConfig | FinetuneConfig] = PretrainConfig if jigsaw else FinetuneConfig
    folder = path / names[number]
    if number and values.get("encoder", "previous") == "previous":
        values["encoder"] = str(path / names[number - 1] / before)
    begun = folder.is_dir() and any(folder.iterdir())
    try:
        return config_of(schema, {**values, "out": str(folder), "resume": begun})
    except UserError as error:
        raise UserError(f"`stages` ({names[number]}): {error}") from None


def _report(path: Path, names: list[str], config: TransferConfig) -> None:
    """One page for the whole chain."""
    stages = []
    for name in names:
        found = json.loads((path / name / "report.json").read_text(encoding="utf-8"))
        if found["command"] == "finetune":
            found["judgement"] = judgement_of(found)
            if found["judgement"].get("explanations"):
                found["judgement"]["explanations"]["file"] = f"{name}/explanations.jpg"
        stages.append({"name": name, **found})
    last = stages[-1]
    report = {
        "command": "transfer",
        "config": {**without_folders(config), "data": last["config"]["data"], "stages": names},
        "stages": stages,
        "environment": last["environment"],
        "when": {"began": stages[0].get("when", {}).get("began"), "ended": last.get("when", {}).get("ended")},
        "limits": LIMITS["transfer"],
    }
    lines = write_report(path, report)
    rows = [
        [stage["name"], stage["command"], stage["config"]["train"], stage.get("test", {}).get("auroc"),
         stage.get("test", {}).get("balanced_accuracy")]
        for stage in stages
    ]  # fmt: skip
    print("\n" + format_table(["stage", "command", "learns", "test AUROC", "balanced accuracy"], rows))
    print("\n" + "\n".join(lines))
    print(f"\nreport: {path / 'report.html'}")
