"""Screen ways to pretrain at equal cost (CPU-seconds of one thread), judged on training patients outside the labels.

python benchmarks/objectives.py data=KERMANY manifest=KERMANY/manifest.csv out=runs/screen [seconds=300] [seeds=2]
    [draws=20] [only=plain,default] [variants=benchmarks/objectives.yaml]

Each variant of the YAML file is a set of keys of ``pretrain``. Every pretraining gets the same seconds, augmentation
included, and a schedule by share of them. A fifth of the training split's groups judges; labels are drawn from the
rest, so that no test split is touched. A linear probe, its strength chosen inside the draw, is fitted on all taps and
on the deepest alone. What is finished is kept in ``out``: run it again to go on, or beside itself for another core.
The table shows all that is there: the mean over seeds, and how far a variant is ahead of the first, with the standard
error over draws of the labels, where both have the same seeds; ``seeds=0`` shows it and runs nothing.
``benchmarks/screened/`` keeps what was found, in folders by archive, seconds and arithmetic (bf16 or not). Seconds buy
more on a faster processor, most of all on one with bfloat16: compare rows of one machine, and look at the epochs.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from candidates import build_candidate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch import Tensor

from jigsawssl.checkpoint import save_encoder
from jigsawssl.cli import building
from jigsawssl.cli.building import build_dataset, build_module, encoder_to_train
from jigsawssl.cli.look import settled
from jigsawssl.config.loading import config_of
from jigsawssl.config.schemas import PretrainConfig
from jigsawssl.data import cross_validation_folds, holdout_split, label_fraction, open_archive
from jigsawssl.data.budget import FOLDS
from jigsawssl.data.loading import LabelledSet, PixelDataset, channels_of, training_loader
from jigsawssl.evaluation import macro_auroc
from jigsawssl.functional import to_channels_last
from jigsawssl.process import prepare_process
from jigsawssl.runs import format_table, write_json
from jigsawssl.training.adapt import choose_probe
from jigsawssl.training.optim import autocast_on, create_optimizer, create_scheduler
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.training.probe import extract_features

FRACTIONS = (0.01, 0.1)
CPU = torch.device("cpu")
OWN = ("recipe", "recalibrate", "margin")
"""What a row may have beside keys of `pretrain`: a candidate's recipe; running statistics of whole images; how much
larger than the views images are kept."""
PARTS = 10_000  # of the schedule, which the seconds are divided into


def pretrain(module: JigsawPretraining, dataset: PixelDataset, config: PretrainConfig, seconds: float) -> float:
    """Train until the seconds of this process are spent; gives the epochs that they were enough for."""
    loader = training_loader(dataset, batch_size=config.batch.size, drop_last=True, seed=config.seed)
    encoder_rate, rate = module.rates
    parts = {"encoder": (module.encoder, encoder_rate), "block": (module.block, rate)}
    optimizer = create_optimizer(config.optimizer.name, parts, config.optimizer.weight_decay)
    schedule = create_scheduler(optimizer, PARTS, config.optimizer.warmup)
    autocast = autocast_on(config.precision, CPU)
    steps, epoch = 0, 0
    module.train()
    torch.manual_seed(config.seed)
    begin = time.process_time()

    def update(loss: Tensor) -> None:
        share = min(1.0, (time.process_time() - begin) / seconds)
        module.progress = share  # which candidates may look at
        for group, top in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = top * schedule.scale_lr(int(share * (PARTS - 1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            if time.process_time() - begin >= seconds:
                return steps / len(loader)
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                module.step(batch, update)
            steps += 1
        epoch += 1


@torch.no_grad()
def recalibrate(module: JigsawPretraining, options: dict[str, str]) -> None:
    """Running statistics of batch normalisation from whole images, as they are judged, and nothing else."""
    archive = open_archive(options["data"], manifest=options.get("manifest"), split="train")
    dataset = PixelDataset(archive, module.encoder.spec.format, workers=1)
    dataset.load(progress=False)
    layers = [layer for layer in module.encoder.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over batches
    module.encoder.train()
    order = np.random.default_rng(0).permutation(len(dataset))
    for rows in np.array_split(order, max(1, len(order) // 256))[:16]:
        images = module.encoder.preprocess(dataset.__getitems__(rows.tolist()).images)
        module.encoder(images.contiguous(memory_format=torch.channels_last))


def probed(known: LabelledSet, features: Tensor, judged: NDArray[np.int64]) -> float:
    """AUROC of the judged rows by a probe on the known ones, whose strength cross-validation among them chooses."""
    head = choose_probe(features, known, balanced=True).fit(known.refit_rows)
    with torch.no_grad():
        return macro_auroc(head(features[judged]).softmax(dim=1), known.labels[judged])


def judge(module: JigsawPretraining, options: dict[str, str]) -> dict[str, list[float]]:
    """AUROC for each draw of the labels, by share and features."""
    archive = open_archive(options["data"], manifest=options.get("manifest"))
    archive = archive.select(np.intersect1d(archive.rows_of("train"), np.flatnonzero(archive.labels >= 0)).tolist())
    dataset = PixelDataset(archive, module.encoder.spec.format, workers=1)
    dataset.load(progress=False)
    every, labels = extract_features(module.encoder, dataset, device=CPU), dataset.labels
    groups = None if archive.groups is None else archive.groups[dataset.rows]
    pool, judged = holdout_split(labels, groups, share=0.2, seed=0)
    deepest = list(module.encoder.channels.values())[-1]
    found: dict[str, list[float]] = {}
    for fraction in FRACTIONS:
        for seed in range(int(options["draws"])):
            own = None if groups is None else groups[pool]
            chosen = pool[label_fraction(labels[pool], own, fraction=fraction, seed=seed)]
            folds = cross_validation_folds(labels[chosen], None, folds=FOLDS, seed=seed)
            folds = [(chosen[train], chosen[val]) for train, val in folds]
            known = LabelledSet(dataset, labels, len(archive.classes), folds, chosen)
            for name, features in (("all", every), ("deepest", every[:, -deepest:])):
                found.setdefault(f"{fraction:g} {name}", []).append(round(probed(known, features, judged), 4))
    return found


def screen(name: str, keys: dict[str, Any], seed: int, options: dict[str, str]) -> dict[str, Any]:
    """Pretrain and judge one variant with one seed."""
    places = {"data": options["data"], "manifest": options.get("manifest"), "out": "-", "seed": seed}
    own = {key: value for key, value in keys.items() if key in OWN}
    config = settled(config_of(PretrainConfig, {**{k: v for k, v in keys.items() if k not in OWN}, **places}))
    pl.seed_everything(seed, verbose=False)
    archive = open_archive(options["data"], manifest=options.get("manifest"), split="train")
    building.CROP_MARGIN = own.get("margin", building.CROP_MARGIN)
    dataset = build_dataset(config, archive, channels_of(archive))
    dataset.load(progress=False)
    module = build_module(config, encoder_to_train(config, dataset, None))
    if "recipe" in own:
        module = build_candidate(module.encoder, own["recipe"], module, config.block.projection)
        module.dataset = dataset
    module = to_channels_last(module)
    epochs = pretrain(module, dataset, config, float(options["seconds"]))
    if own.get("recalibrate"):
        recalibrate(module, options)
    save_encoder(Path(options["out"]) / f"{name}@{seed}.safetensors", module.encoder, provenance={"variant": name})
    return {"variant": name, "keys": keys, "seed": seed, "epochs": epochs, **judge(module, options)}


def table(out: Path, names: list[str]) -> str:
    """All that is finished: mean over seeds and draws, and what it is ahead of the first variant by.

    That is by draw, over the seeds that both have; without a common one there is nothing to compare.
    """
    done = {
        name: {
            run["seed"]: run for run in (json.loads(file.read_text()) for file in sorted(out.glob(f"{name}@*.json")))
        }
        for name in names
    }
    done = {name: found for name, found in done.items() if found}
    columns = [f"{fraction:g} {which}" for fraction in FRACTIONS for which in ("all", "deepest")]
    first = next(iter(done.values()), {})
    rows = []
    for name, found in done.items():
        common = sorted(found.keys() & first.keys())
        cells = []
        for column in columns:
            text = f"{np.mean([run[column] for run in found.values()]):.3f}"
            if common:
                ahead = np.mean([np.subtract(found[seed][column], first[seed][column]) for seed in common], axis=0)
                text += f" ({np.mean(ahead):+.3f} ± {np.std(ahead) / math.sqrt(len(ahead)):.3f})"
            cells.append(text)
        rows.append([name, len(found), f"{np.mean([run['epochs'] for run in found.values()]):.1f}", *cells])
    return format_table(["variant", "seeds", "epochs", *columns], rows)


def main() -> None:
    """Screen what is not finished, and print the table."""
    options = {"seconds": "300", "seeds": "2", "draws": "20", "variants": str(Path(__file__).with_suffix(".yaml"))}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    prepare_process()
    torch.set_num_threads(1)
    file: Any = OmegaConf.to_container(OmegaConf.load(options["variants"]))
    common, variants = file["common"], file["variants"]
    names = options["only"].split(",") if "only" in options else list(variants)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    for seed in range(int(options["seeds"])):
        for name in names:
            claim, result = out / f"{name}@{seed}.claim", out / f"{name}@{seed}.json"
            if result.is_file():
                continue
            try:
                os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue  # another process works on it; delete the file where that one was killed
            try:
                write_json(result, screen(name, {**common, **(variants[name] or {})}, seed, options))
            finally:
                claim.unlink()
            print(f"{name}, seed {seed}: done", flush=True)
    print(table(out, names))


if __name__ == "__main__":
    main()
