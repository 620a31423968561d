"""Groups of keys that commands share, each with what must hold within it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .. import defaults
from ..types import FITS, STAINS, WINDOW_CHOICES, UserError
from .keys import key, listed

_ACCELERATORS = ("auto", "cpu", "gpu", "mps")
_KEPT = "null: as the encoder to go on from, else"


def check_grids(size: int | None, grids: Iterable[int]) -> None:
    """Grids must divide images into whole tiles."""
    for grid in grids:
        if grid < 1:
            raise UserError(f"`views.grids` ({grid}) must be at least 1; 1 leaves the tiles in order")
        if size is not None and size % grid:
            below, above = size // grid * grid, (size // grid + 1) * grid
            nearest = f"{below}, {above}" if below else f"{above}"
            raise UserError(
                f"`views.size` ({size}) must be divisible by `views.grids` ({grid}); nearest sizes: {nearest}"
            )


@dataclass
class BatchConfig:
    size: int = key(256, "images in a batch", least=2)
    workers: int | None = key(None, "threads that decode images; null: one per CPU core", least=1)


@dataclass
class FinetuneBatchConfig:
    size: int = key(32, "labelled images in a batch; fewer where the budget is small", least=2)


@dataclass
class ReadingConfig:
    fit: str | None = key(
        None,
        f"how images become square: pad (whole, on black), crop (the centre) or squash; {_KEPT} {defaults.FIT}",
        choices=(None, *FITS),
        fallback=defaults.FIT,
    )
    window: str | None = key(
        None,
        "more than 8 bits: file (the DICOM's window, else percentiles), percentiles, or for CT lung, mediastinum, "
        f"abdomen, brain, bone; {_KEPT} {defaults.WINDOW}",
        choices=(None, *WINDOW_CHOICES),
        fallback=defaults.WINDOW,
    )
    stain: str | None = key(
        None,
        f"stained tissue: none, macenko, or reinhard (to the archive's own average colours); {_KEPT} none",
        choices=(None, *STAINS),
        fallback="none",
    )
    frames: str = key("all", "frames of multi-frame files: all, middle or every_N, such as every_5")

    def check(self) -> None:
        """Frames by number."""
        if not re.fullmatch(r"all|middle|every_[1-9]\d*", self.frames):
            raise UserError(f"`reading.frames` ({self.frames}) must be all, middle or every_N, such as every_5")


@dataclass
class ViewsConfig:
    size: int | None = key(
        None, f"side of the square views in pixels; {_KEPT} {defaults.SIZE}", least=8, fallback=defaults.SIZE
    )
    grids: list[int] = key(
        list(defaults.GRIDS), "tiles per side for each tap, finest first; 1 keeps the order; [] is plain Barlow Twins"
    )
    share: float = key(
        defaults.SHARE, "share of each batch that is shuffled; 1, as published, doubles the cost of the jigsaw"
    )
    preset: str = key(defaults.VIEWS, listed(defaults.PRESETS), choices=tuple(defaults.PRESETS))

    def check(self) -> None:
        """One grid per tap or none, of whole tiles, and a share."""
        if len(self.grids) not in (0, 3):
            raise UserError(f"`views.grids` ({self.grids}) must have three entries, one per tap; such as [8,4,2]")
        check_grids(self.size, self.grids)
        if not 0 < self.share <= 1:
            raise UserError(f"`views.share` ({self.share}) must lie in (0, 1]; 1 shuffles the whole batch")


@dataclass
class FinetuneViewsConfig:
    size: int | None = key(None, "side of the images in pixels; null: the encoder's", least=8)
    grids: list[int] = key([8, 4, 2], "tiles per side in the three jigsaw steps of mode progressive")
    preset: str = key("mild", "mild (crop .6-1, flip, jitter) or strong", choices=("mild", "strong"))

    def check(self) -> None:
        """One grid per step, of whole tiles."""
        if len(self.grids) != 3:
            raise UserError(f"`views.grids` ({self.grids}) must have three entries, one per tap; such as [8,4,2]")
        check_grids(self.size, self.grids)


@dataclass
class BlockConfig:
    variant: str = key(
        defaults.BRANCH,
        "light (1x1 convolution, average pooling, projector) or paper (two convolutions, max)",
        choices=("light", "paper"),
    )
    width: int = key(defaults.WIDTH, "channels inside a branch", least=1)
    projection: int = key(defaults.PROJECTION, "width of the projections", least=2)


@dataclass
class LossConfig:
    weights: list[float] = key(list(defaults.TAP_WEIGHTS), "weights of the three taps and of their concatenation")
    off_diagonal: float = key(defaults.OFF_DIAGONAL, "lambda of Barlow Twins' redundancy term", least=0)

    def check(self) -> None:
        """A weight for each branch."""
        if len(self.weights) != 4 or min(self.weights) < 0 or max(self.weights) <= 0:
            raise UserError(f"`loss.weights` ({self.weights}) must be four numbers of at least 0, one of them above 0")


@dataclass
class OptimizerConfig:
    name: str = key(defaults.OPTIMIZER, "adamw, sgd or lars", choices=tuple(defaults.RATES))
    lr: float | None = key(
        None, "learning rate at the top of the schedule; null: adamw 2e-3, sgd 2e-3, lars 0.2", positive=True
    )
    weight_decay: float | None = key(
        None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases", least=0
    )
    encoder_scale: float = key(
        defaults.ENCODER_SCALE, "the encoder's learning rate as a multiple of lr (0.1 as published)", positive=True
    )
    warmup: float = key(defaults.WARMUP, "share of the run in which the learning rate warms up")

    def check(self) -> None:
        """Warm-up ends within the run."""
        if not 0 <= self.warmup < 1:
            raise UserError(f"`optimizer.warmup` ({self.warmup}) must lie in [0, 1)")


@dataclass
class FinetuneOptimizerConfig:
    name: str = key("adamw", "adamw, sgd or lars", choices=tuple(defaults.RATES))
    lr: list[float] = key(
        [5e-4], "the encoder's learning rate, or several for validation to choose from", positive=True
    )
    weight_decay: float | None = key(
        None, "null: adamw 0.05, sgd 5e-4, lars 1.5e-6; never on norms and biases", least=0
    )
    head_scale: float = key(10.0, "the classifier's learning rate as a multiple of lr", positive=True)
    layer_decay: float = key(1.0, "a stage's learning rate as a multiple of that of the next deeper one", positive=True)


@dataclass
class CurveOptimizerConfig(FinetuneOptimizerConfig):
    lr: list[float] = key(
        [2.5e-4, 1e-3], "learning rates for validation to choose from, the same for every encoder", positive=True
    )


@dataclass
class TrainerConfig:
    max_epochs: int = key(100, "epochs: passes over the archive", least=1)
    accelerator: str = key("auto", "auto, cpu, gpu or mps", choices=_ACCELERATORS)
    devices: int = key(1, "number of devices; more than one trains data-parallel with synchronised batch norm", least=1)


@dataclass
class FinetuneTrainerConfig:
    max_epochs: int | None = key(None, "most epochs; null: 30, or as many as 150 updates take", least=1)
    accelerator: str = key("auto", "auto, cpu, gpu or mps", choices=_ACCELERATORS)
