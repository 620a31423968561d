"""How fast a pretraining run would be on this machine and archive, where its time goes, and what would help."""

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ..config.schemas import BenchConfig
from ..data.holdout import TEST_SHARE
from ..data.loading import PixelDataset
from ..functional import to_channels_last
from ..progress import Progress
from ..runs import format_table
from ..training.optim import autocast_on, autocast_precision, computes_bfloat16, create_optimizer, training_device
from ..training.pretrain import JigsawPretraining
from ..types import Batch, UserError, Views
from ..words import duration
from .building import build_dataset, build_module, encoder_to_train, planned_dataset, starting_encoder
from .unlabeled import unlabeled_archive

SAMPLED = 512
"""Images of the archive that are decoded, at most, and at least one batch."""

PARTS = ("data", "augmentation", "encoder", "block", "loss", "optimizer")

CANDIDATES: tuple[tuple[str, Any, str], ...] = (
    ("precision", "auto", "rounds to bfloat16 where the device computes it"),
    ("precision", "32", "computes in float32"),
    ("schedule", "joint", "one update a batch instead of four"),
    ("block.variant", "light", "a smaller block than published"),
    ("views.share", 0.5, "shuffles half of each batch"),
    ("views.size", "half", "smaller views"),
    ("batch.size", "double", "fewer updates an epoch"),
)
"""Settings that are tried one at a time, and what each changes about the training."""


class Measured(NamedTuple):
    """Seconds of one step, and of its parts where they were taken apart; MiB that the steps added."""

    step: float
    parts: dict[str, float]
    memory: float


class _Bench:
    """A configuration made ready to run single steps."""

    def __init__(self, config: BenchConfig, dataset: PixelDataset, trained: int, device: torch.device) -> None:
        pl.seed_everything(config.seed, verbose=False)
        encoder = encoder_to_train(config, dataset, starting_encoder(config, dataset.format.channels))
        self.module: JigsawPretraining = to_channels_last(build_module(config, encoder).to(device)).train()
        rates = self.module.rates
        parts: dict[str, tuple[nn.Module, float]] = {"encoder": (encoder, rates[0])}
        parts["block"] = (self.module.block, rates[1])
        self.optimizer = create_optimizer(config.optimizer.name, parts, config.optimizer.weight_decay)
        self.kind = autocast_on(config.precision, device)
        self.device, self.dataset = device, dataset
        self.batch = min(config.batch.size, trained)
        self.branches = [name for name in self.module.block.branches if self.module.loss.weights[name] > 0]

    def fetch(self) -> Batch:
        """A random batch on the device; images come again where it is larger than the sample of the archive."""
        found = self.dataset.__getitems__(np.resize(np.random.permutation(len(self.dataset)), self.batch).tolist())
        return Batch(*(column.to(self.device) for column in found))

    def autocast(self) -> Any:
        """The run's precision."""
        return torch.autocast(self.device.type, self.kind, enabled=self.kind is not None)

    def step(self) -> None:
        """One batch as the run does it."""
        with self.autocast():
            self.module.step(self.fetch(), self._update)

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def seconds(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Wall time of some work with the device's own."""
        begin = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin, result

    def apart(self) -> dict[str, float]:
        """Seconds of the parts of one step."""
        parts = dict.fromkeys(PARTS, 0.0)
        parts["data"], batch = self.seconds(self.fetch)
        parts["augmentation"], views = self.seconds(lambda: self.module.build_views(batch))
        for branches in [self.branches] if self.module.joint else [[name] for name in self.branches]:
            self._forward_and_back(views, branches, parts)
            parts["optimizer"] += self.seconds(self.optimizer.step)[0]
            parts["optimizer"] += self.seconds(self.optimizer.zero_grad)[0]
        return parts

    def _forward_and_back(self, views: Views, branches: list[str], parts: dict[str, float]) -> None:
        module = self.module
        with self.autocast():
            projections: dict[str, Tensor] = {}
            for view, names in module.first_views(views, branches):
                projections |= self._view(view, names, parts)
            seen = self._view(views.distorted, branches, parts)

            def loss() -> None:
                pairs = {name: (z.requires_grad_(), seen[name][: len(z)]) for name, z in projections.items()}
                module.loss(pairs).total.backward()

            parts["loss"] += self.seconds(loss)[0]

    def _view(self, view: Tensor, names: list[str], parts: dict[str, float]) -> dict[str, Tensor]:
        """Encoder and block, forward and back, on one view."""
        module = self.module
        wanted = module.block.required_taps(names)
        seconds, taps = self.seconds(lambda: module.encoder.taps(view, wanted))
        parts["encoder"] += seconds
        cut = {name: tap._replace(features=tap.features.detach().requires_grad_()) for name, tap in taps.items()}
        seconds, z = self.seconds(lambda: module.block(cut, names))
        parts["block"] += seconds
        outputs = list(z.values())
        ones = [torch.ones_like(output) for output in outputs]
        parts["block"] += self.seconds(lambda: torch.autograd.backward(outputs, ones))[0]
        learning = [name for name in taps if taps[name].features.requires_grad]
        used = [name for name in learning if cut[name].features.grad is not None]
        features, gradients = [taps[name].features for name in used], [cut[name].features.grad for name in used]
        if features:
            parts["encoder"] += self.seconds(lambda: torch.autograd.backward(features, gradients))[0]
        return {name: value.detach().float() for name, value in z.items()}

    def measure(self, rounds: int, taken_apart: bool) -> Measured:
        """Medians over some steps after two to warm up."""
        before = _peak(self.device)
        self.step()
        self.step()
        steps = [self.seconds(self.step)[0] for _ in range(rounds)]
        memory = _peak(self.device) - before
        every = [self.apart() for _ in range(rounds)] if taken_apart else []
        parts = {name: statistics.median(found[name] for found in every) for name in PARTS} if every else {}
        return Measured(statistics.median(steps), parts, memory)


def _peak(device: torch.device) -> float:
    """MiB of memory at most so far; of this process on a CPU, where the system tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


class _Candidate(NamedTuple):
    """One setting changed: as it is written, what it changes about the training, and the whole configuration."""

    setting: str
    meaning: str
    config: BenchConfig


def run(config: BenchConfig) -> None:
    """Measure and print."""
    device = training_device(config.trainer.accelerator)
    unlabeled = unlabeled_archive(config)
    archive, total = unlabeled.archive, len(unlabeled.archive)
    trained = round((1 - TEST_SHARE) * total) if unlabeled.derived else total
    wanted = min(total, max(config.batch.size, SAMPLED))
    sample = archive.select(np.linspace(0, total - 1, wanted).round().astype(int).tolist())
    dataset, _ = planned_dataset(config, sample)
    begin = time.perf_counter()
    dataset.load(progress=True)
    decoding = (time.perf_counter() - begin) / wanted
    if len(dataset) < 2:
        raise UserError(f"`data` ({config.data}) must hold 2 readable images or more, not {len(dataset)}; add images")
    candidates = _candidates(config, device, trained)
    bench = _Bench(config, dataset, trained, device)
    print(f"{wanted} of {total} images, {device.type}, {_arithmetic(config, device)}")
    with Progress(total=1 + len(candidates), desc="Measuring") as bar:
        bar.set_postfix_str("as configured")
        measured = bench.measure(config.rounds, taken_apart=True)
        bar.update()
        tried = []
        for candidate in candidates:
            bar.set_postfix_str(candidate.setting)
            speed = _speed(candidate.config, now=config, dataset=dataset, trained=trained, device=device)
            if speed is not None:
                tried.append((speed * measured.step / bench.batch, candidate.setting, candidate.meaning))
            bar.update()
    decodings = config.trainer.max_epochs if config.cache == "off" and not archive.in_memory else 1
    _print_now(config, bench, measured, images=trained, total=total, decoding=decoding, decodings=decodings)
    _print_advice(sorted(tried, reverse=True))


def _arithmetic(config: BenchConfig, device: torch.device) -> str:
    """What the run computes in, and what this processor could."""
    kind = autocast_on(config.precision, device)
    name = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[kind]
    if device.type != "cpu":
        return name
    if not computes_bfloat16():
        return (
            f"{name}; this processor has no bfloat16 arithmetic, with which a run takes little more than half the time"
        )
    return f"{name}; this processor computes bfloat16{'' if kind == torch.bfloat16 else ', which precision=auto uses'}"


def _print_now(
    config: BenchConfig, bench: _Bench, measured: Measured, *, images: int, total: int, decoding: float, decodings: int
) -> None:
    every = sum(measured.parts.values())
    print(
        "\n"
        + format_table(
            ["part of a step", "share", "ms"],
            [[name, f"{part / every:.1%}", f"{1000 * part:.1f}"] for name, part in measured.parts.items()],
        )
    )
    batches = max(1, images // bench.batch)
    training, reading = batches * measured.step * config.trainer.max_epochs, total * decoding * decodings
    cached = 0 if config.cache == "off" else total * bench.dataset.cache_options().item_bytes
    rows = [
        ["images/s", f"{bench.batch / measured.step:.0f}"],
        ["a step as a whole, ms", f"{1000 * measured.step:.1f}"],
        [f"{config.trainer.max_epochs} epochs of {batches} batches", duration(training)],
        ["decoding, unless cached before" if decodings == 1 else "decoding in each epoch", duration(reading)],
        ["both together", duration(training + reading)],
        ["cache on disk, GB", f"{cached / 1e9:.2f}"],
        [f"memory of a step ({bench.device.type}), MiB", f"{measured.memory:.0f}"],
    ]
    print("\n" + format_table(["estimate for this run", ""], rows))


def _speed(
    config: BenchConfig, *, now: BenchConfig, dataset: PixelDataset, trained: int, device: torch.device
) -> float | None:
    """Images per second with other settings than ``now``; None where they do not fit, as grids or as memory."""
    try:
        if config.views.size != now.views.size:
            dataset = build_dataset(config, dataset.archive, dataset.format.channels)
            dataset.load(progress=False)
        bench = _Bench(config, dataset, trained, device)
        return bench.batch / bench.measure(config.rounds, taken_apart=False).step
    except (UserError, ValueError, torch.OutOfMemoryError):
        return None


def _print_advice(tried: list[tuple[float, str, str]]) -> None:
    """Which setting helps most, the first of all tried."""
    if not tried:
        return
    rows = [[setting, f"{ratio:.2f}", meaning] for ratio, setting, meaning in tried]
    print("\n" + format_table(["one setting changed", "times the images/s", "what it changes"], rows))
    best = tried[0]
    worth = f"{best[1]} would help most: {best[0]:.1f} times the images/s" if best[0] > 1.05 else "none would help much"
    print(f"\n{worth}. What a setting does to the encoder is not measured here.")


def _candidates(config: BenchConfig, device: torch.device, trained: int) -> list[_Candidate]:
    """What is worth a trial: settings that come to the same as the present ones, or as another's, are left out."""
    known, found = [_comes_to(config, device, trained)], []
    for key, value, meaning in CANDIDATES:
        changed = copy.deepcopy(config)
        group, _, name = key.rpartition(".")
        holder = getattr(changed, group) if group else changed
        now = getattr(holder, name)
        value = now // 2 if value == "half" else now * 2 if value == "double" else value
        setattr(holder, name, value)
        same = _comes_to(changed, device, trained)
        if same not in known and not (key == "views.share" and now < value):
            known.append(same)
            found.append(_Candidate(f"{key}={value}", meaning, changed))
    return found


def _comes_to(config: BenchConfig, device: torch.device, trained: int) -> tuple[Any, ...]:
    """What a step does under a configuration, as far as candidates change it."""
    shuffled = any(grid > 1 for grid in config.views.grids)
    branches = sum(weight > 0 for weight in config.loss.weights) if config.views.grids else 1
    return (
        autocast_precision(config.precision, device),
        config.schedule if branches > 1 else None,
        config.block.variant if config.views.grids else None,
        config.views.share if shuffled else None,
        config.views.size,
        min(config.batch.size, trained),
    )
