"""This project beside what a user would pick instead: ratios of the same work on the same images, in turn.

    python benchmarks/peers.py [lines=tiles,augmentation,step,plain_step,features,memory,loading,finetune,start]
                               [rounds=5] [threads=2] [device=cpu] [process=plain] [out=FILE.md]

Each line does the work of both once to warm up, then in turn for some rounds; the ratio of each round is taken, and
the median and the range are printed. Both have the same number of threads; data loaders of the others have that many
worker processes besides. `process=command` sets the process up as our commands do, so that both keep freed memory.
Nothing here is a test: what is compared is tested to give the same result elsewhere.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kornia.augmentation as K
import numpy as np
import timm
import torch
import torchvision
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform, SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from jigsawssl import create_encoder, load_encoder, save_encoder
from jigsawssl.augment import JigsawViews, ViewChain, augmentation_chain
from jigsawssl.functional import permute_tiles, sample_permutations, to_channels_last
from jigsawssl.losses import HierarchicalLoss
from jigsawssl.models import HierarchicalBlock, PlainProjector
from jigsawssl.process import prepare_process
from jigsawssl.runs import format_table
from jigsawssl.training.optim import autocast_on, create_optimizer
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.types import Batch, ImageFormat


class Row(NamedTuple):
    """One line of the table; ``ratios`` are times of the other over ours, or ours over the limit."""

    work: str
    against: str
    goal: str
    ratios: list[float]


class Setting(NamedTuple):
    """What all lines share."""

    rounds: int
    threads: int
    device: torch.device

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of one call."""
        begin = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def ratios(self, theirs: Callable[[], object], ours: Callable[[], object], ahead: int = 0) -> list[float]:
        """Their time over ours in each round, after one call of each.

        ``ahead`` is how many calls' worth of batches their workers may prepare in advance: that many are used up
        before their clock starts, that many are timed, and ours waits until the workers have prepared as many again
        and leave the cores to it.
        """
        theirs(), ours()
        found = []
        for _ in range(self.rounds):
            for _ in range(ahead):
                theirs()
            calls = max(1, ahead)
            taken = sum(self.seconds(theirs) for _ in range(calls))
            time.sleep(1.5 * taken if ahead else 0)
            found.append(taken / sum(self.seconds(ours) for _ in range(calls)))
        return found


def pictures(count: int, channels: int, size: int) -> Tensor:
    """Smooth uint8 images ``(count, channels, size, size)``; noise would decode and resize as no photograph does."""
    coarse = torch.rand(count, channels, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


class PerImage(Dataset):
    """Images as PIL pictures through a transform, one at a time, as data loaders are used everywhere."""

    def __init__(self, images: Tensor, transform: Callable[[Image.Image], Any], repeats: int = 1000) -> None:
        arrays = images.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(a[..., 0] if a.shape[2] == 1 else a) for a in arrays]
        self.transform = transform
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.images) * self.repeats

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index % len(self.images)])


def batches(images: Tensor, transform: Callable[[Image.Image], Any], size: int, workers: int) -> Iterator[Any]:
    """An endless stream from worker processes."""
    return iter(DataLoader(PerImage(images, transform), size, num_workers=workers, drop_last=True, prefetch_factor=1))


def tiles(setting: Setting) -> list[Row]:
    """Permuting tiles, 64x3x224x224."""
    rows = []
    for dtype in (torch.float32, torch.uint8):
        values = pictures(64, 3, 224).to(setting.device)
        images = values.float().div(255) if dtype == torch.float32 else values
        for layout in (torch.contiguous_format, torch.channels_last):
            pixels = images.contiguous(memory_format=layout)
            kornia, copy = [], []
            for grid in (2, 4, 8, 16, 32):
                order = sample_permutations(64, grid**2, device=setting.device)
                jigsaw = K.RandomJigsaw((grid, grid), p=1.0)

                def ours(pixels: Tensor = pixels, order: Tensor = order, grid: int = grid) -> Tensor:
                    return permute_tiles(pixels, order, grid)

                def theirs(pixels: Tensor = pixels, jigsaw: nn.Module = jigsaw) -> Tensor:
                    return jigsaw(pixels if pixels.dtype == torch.float32 else pixels.float())

                kornia.append(statistics.median(setting.ratios(theirs, ours)))
                copy.append(1 / statistics.median(setting.ratios(pixels.clone, ours)))
            name = f"permuting tiles, {str(dtype)[6:]}, {str(layout)[6:]}"
            least = "1.6" if setting.device.type == "cpu" else "1.3"
            rows.append(Row(name, "kornia RandomJigsaw, grids 2 to 32", "4 or more", kornia))
            rows.append(Row(name, "clone(), grids 2 to 32: time over its", f"{least} or less", copy))
    return rows


def augmentation(setting: Setting) -> list[Row]:
    """Two views of a batch of 256 at 224 px."""
    rows = []
    goal = "2 or more" if setting.device.type == "cpu" else "5 or more"
    for preset, channels in (("strong", 3), ("paper", 3), ("strong", 1), ("paper", 1)):
        size = 280 if preset == "strong" else 224
        images = pictures(256, channels, size).to(setting.device)
        names = ("strong", "strong") if preset == "strong" else ("paper-original", "paper-distorted")
        chains = [ViewChain(augmentation_chain(name, 224, channels), 224) for name in names]

        def ours(images: Tensor = images, chains: list[ViewChain] = chains) -> None:
            for chain in chains:
                chain(images, chain.draw(images.shape))

        def plainly(images: Tensor = images, chains: list[ViewChain] = chains) -> None:
            for chain in chains:
                chain.plainly(images, chain.draw(images.shape))

        work = f"two {preset} views, 256x{channels}x224x224"
        rows.append(Row(work, "the same kornia operations called plainly", goal, setting.ratios(plainly, ours)))
        if preset == "strong" and channels == 3:
            transform = SimCLRTransform(224, min_scale=0.35, cj_strength=0.5, gaussian_blur=0.3)
            stream = batches(images.cpu(), transform, 64, setting.threads)

            def lightly(stream: Iterator[Any] = stream) -> None:
                for _ in range(4):
                    next(stream)

            ratios = setting.ratios(lightly, ours, ahead=1)
            rows.append(Row(work, "lightly's transforms in worker processes", goal, ratios))
    return rows


class Work(NamedTuple):
    """What a step does: network, side in pixels, stride of the stem, tiles for each tap, share that is shuffled."""

    backbone: str
    size: int
    stem: int
    grids: tuple[int, ...]
    share: float = 1.0


def _pretraining(work: Work, projection: int) -> JigsawPretraining:
    backbone, size, stem, grids, share = work
    encoder = create_encoder(backbone, ImageFormat(size), stem_stride=stem)
    views = JigsawViews(size=size, grids=grids, preset="strong", share=share)
    block = HierarchicalBlock(encoder.channels, width=512, projection=projection) if grids else None
    module = JigsawPretraining(
        encoder,
        block=block or PlainProjector(encoder.channels, projection=projection),
        views=views,
        loss=HierarchicalLoss(dict.fromkeys((block or PlainProjector(encoder.channels)).branches, 1.0)),
    )
    return module.train()


def our_step(setting: Setting, images: Tensor, work: Work) -> Any:
    """One update on a batch as `pretrain` does it: uint8 in memory, views, shared forwards, one backward."""
    module = _pretraining(work, 512 if work.grids else 2048).to(setting.device)
    to_channels_last(module)
    optimizer = create_optimizer("adamw", {"all": (nn.ModuleList([module.encoder, module.block]), 1e-3)})
    kind = autocast_on("auto", setting.device)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step() -> None:
        rows = torch.randperm(len(images))
        batch = Batch(images[rows].to(setting.device), torch.full((len(images),), -1), rows)
        with torch.autocast(setting.device.type, kind, enabled=kind is not None):
            module.step(batch, update)

    return step


class _ViewsPerImage:
    """X', X'' and the jigsaw versions of one picture, by torchvision and a loop over tiles."""

    def __init__(self, size: int, grids: tuple[int, ...]) -> None:
        self.grids = grids
        self.view = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(max(3, size // 10 // 2 * 2 + 1), (0.1, 2.0))], p=0.3),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.45] * 3, [0.225] * 3),
            ]
        )

    def __call__(self, image: Image.Image) -> list[Tensor]:
        original, distorted = self.view(image), self.view(image)
        return [original, distorted, *(self._jigsaw(original, grid) for grid in self.grids)]

    @staticmethod
    def _jigsaw(image: Tensor, grid: int) -> Tensor:
        side = image.shape[-1] // grid
        shuffled = image.clone()
        for to, source in enumerate(torch.randperm(grid * grid).tolist()):
            (y, x), (v, u) = divmod(to, grid), divmod(source, grid)
            tile = image[:, v * side : (v + 1) * side, u * side : (u + 1) * side]
            shuffled[:, y * side : (y + 1) * side, x * side : (x + 1) * side] = tile
        return shuffled


def published_step(setting: Setting, images: Tensor, work: Work) -> Any:
    """The published schedule done plainly: views by image in workers, eight full forwards, four updates, float32.

    Where a share of the batch is shuffled, the forwards of its two views are of that share.
    """
    module = _pretraining(work, 512).to(setting.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    stream = batches(images, _ViewsPerImage(work.size, work.grids), len(images), setting.threads)
    branches, loss = module.block.branches, BarlowTwinsLoss()
    counts = [round(len(images) * work.share) if grid > 1 else len(images) for grid in (*work.grids, 1)]

    def step() -> None:
        original, distorted, *jigsaw = (view.to(setting.device) for view in next(stream))
        for branch, view, count in zip(branches, [*jigsaw, original], counts, strict=True):
            first = module.block(module.encoder.taps(view[:count]), branches)[branch]
            second = module.block(module.encoder.taps(distorted[:count]), branches)[branch]
            optimizer.zero_grad()
            loss(first, second).backward()
            optimizer.step()

    return step


def step(setting: Setting) -> list[Row]:
    """One full pretraining step."""
    rows = []
    size, stem, fine = (64, 2, (8, 4)) if setting.device.type == "cpu" else (224, 4, (16, 8))
    views = {"published": ((*fine, fine[-1] // 2), 1.0), "default": ((*fine, 1), 0.5)}
    for backbone, count in (("resnet18", 64), ("resnet50", 32)):
        for which, (grids, share) in views.items():
            images = pictures(count, 3, size)
            work = Work(backbone, size, stem, grids, share)
            theirs, ours = published_step(setting, images, work), our_step(setting, images, work)
            name = f"one pretraining step, {backbone}, {count}x3x{size}x{size}, {which} views"
            ratios = setting.ratios(theirs, ours, ahead=setting.threads)
            rows.append(Row(name, "the published schedule done plainly", "4 or more", ratios))
    return rows


def plain_step(setting: Setting) -> list[Row]:
    """Per view processed, against lightly's Barlow Twins example."""
    size, count = (64, 64) if setting.device.type == "cpu" else (224, 64)
    images = pictures(count, 3, size)
    backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
    model = nn.Sequential(backbone, nn.Flatten(), BarlowTwinsProjectionHead(512, 2048, 2048)).to(setting.device)
    transform = BYOLTransform(BYOLView1Transform(size), BYOLView2Transform(size))
    stream = batches(images, transform, count, setting.threads)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.06), BarlowTwinsLoss()

    def lightly() -> None:
        first, second = (view.to(setting.device) for view in next(stream)[:2])
        criterion(model(first), model(second)).backward()
        optimizer.step()
        optimizer.zero_grad()

    goal = "1.5 or more" if setting.device.type == "cpu" else "3 or more"
    rows = []
    for name, grids in (("plain Barlow Twins, 2 views", ()), ("jigsaw, 5 views", (8, 4, 2))):
        # The network that the example has: strides 2 and 2 before the first stage.
        ours = our_step(setting, images, Work("resnet18", size, 4, grids))
        ratios = setting.ratios(lightly, ours, ahead=setting.threads)
        views = 5 / 2 if grids else 1
        rows.append(
            Row(
                f"per view of a step, resnet18, {count}x3x{size}x{size}, {name}",
                "lightly's Barlow Twins example",
                goal,
                [ratio * views for ratio in ratios],
            )
        )
    return rows


def features(setting: Setting) -> list[Row]:
    """Features of images with an exported encoder."""
    rows = []
    kind = autocast_on("auto", setting.device)
    for backbone, count in (("resnet18", 32), ("resnet50", 16)):
        images = pictures(count, 3, 224)
        plain = timm.create_model(backbone, num_classes=0).eval().to(setting.device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.safetensors"
            save_encoder(path, create_encoder(backbone, ImageFormat(224)), provenance={})
            encoder = load_encoder(path).to(setting.device)

        @torch.no_grad()
        def theirs(images: Tensor = images, plain: nn.Module = plain) -> Tensor:
            return plain((images.to(setting.device).float() / 255 - 0.45) / 0.225)

        @torch.no_grad()
        def ours(images: Tensor = images, encoder: Any = encoder) -> Tensor:
            pixels = encoder.preprocess(images.to(setting.device))
            with torch.autocast(setting.device.type, kind, enabled=kind is not None):
                return encoder(pixels)

        work = f"features, {backbone}, {count}x3x224x224"
        rows.append(Row(work, "timm, eager, float32, contiguous", "2 or more", setting.ratios(theirs, ours)))
    return rows


def _peak() -> float:
    """MiB of memory, at most (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory(setting: Setting) -> list[Row]:
    """Memory that a step adds, each in a process of its own."""
    size, grids = (64, (8, 4, 2)) if setting.device.type == "cpu" else (224, (16, 8, 4))
    found: dict[str, list[float]] = {"ours": [], "published": []}
    for _ in range(min(3, setting.rounds)):
        for who in found:
            command = [sys.executable, __file__, f"memory_of={who}", f"threads={setting.threads}"]
            command += [f"device={setting.device.type}", f"size={size}", f"grids={','.join(map(str, grids))}"]
            command += [argument for argument in sys.argv if argument.startswith("process=")]
            found[who].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    ratios = [ours / theirs for ours, theirs in zip(found["ours"], found["published"], strict=True)]
    work = f"memory of a step, resnet18, 128x3x{size}x{size}, ours over theirs"
    return [Row(work, "the published schedule done plainly", "0.6 or less", ratios)]


def _memory_of(setting: Setting, options: dict[str, str]) -> None:
    size, grids = int(options["size"]), tuple(map(int, options["grids"].split(",")))
    images = pictures(128, 3, size)
    build = our_step if options["memory_of"] == "ours" else published_step
    step = build(setting, images, Work("resnet18", size, 2 if size == 64 else 4, grids))
    before = _peak()
    for _ in range(3):
        step()
    used = torch.cuda.max_memory_allocated() / 2**20 if setting.device.type == "cuda" else _peak() - before
    print(used)


def loading(setting: Setting) -> list[Row]:
    """Batches of 256 at 224 px from the cache."""
    from loading import measure

    speeds = measure(224, 256, setting.threads, 2048, setting.rounds)
    ratios = [ours / theirs for ours, theirs in zip(speeds["cache"], speeds["JPEG"], strict=True)]
    return [Row("loading, 256x1x224x224", "torchvision ImageFolder in worker processes", "30 or more", ratios)]


def finetune(setting: Setting) -> list[Row]:
    """A fine-tuning run on few labels, whole processes: load, train with ten looks at validation, judge."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        encoder = Path(folder) / "encoder.safetensors"
        save_encoder(encoder, create_encoder("resnet18", ImageFormat(64, channels=1), stem_stride=4), provenance={})
        runs = iter(range(1000))

        def ours() -> None:
            arguments = ["finetune", "data=demo", f"encoder={encoder}", f"out={folder}/{next(runs)}", "fraction=0.1"]
            arguments += ["mode=full", "validation=split", "trainer.max_epochs=30", "trainer.accelerator=cpu"]
            subprocess.run([sys.executable, "-m", "jigsawssl", *arguments], check=True, capture_output=True)

        def theirs() -> None:
            command = [sys.executable, str(here / "lightning_finetune.py"), str(encoder), "30", "0.1"]
            subprocess.run(command, check=True, capture_output=True)

        ratios = setting.ratios(theirs, ours)
    return [Row("fine-tuning at 10 % of the demo, whole process", "a plain Lightning script", "1 or more", ratios)]


def start(setting: Setting) -> list[Row]:
    """Start-up, whole processes."""

    def run(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    bare, helped = run("-c", "pass"), run("-m", "jigsawssl", "--help")
    bare(), helped()
    extra = [setting.seconds(helped) - setting.seconds(bare) for _ in range(setting.rounds)]
    imports = run("-c", "import torch, torchvision, pytorch_lightning, timm")

    def command() -> None:
        arguments = ["-m", "jigsawssl", "pretrain", "data=nowhere", "out=nowhere-either"]
        assert subprocess.run([sys.executable, *arguments], check=False, capture_output=True).returncode == 2

    ratios = [1 / ratio for ratio in setting.ratios(imports, command)]
    return [
        Row("jigsawssl --help, seconds more than", "a bare Python start", "0.5 or less", extra),
        Row("until a command looks for its data, time over", "importing what it needs", "1.3 or less", ratios),
    ]


LINES = {
    function.__name__: function
    for function in (tiles, augmentation, step, plain_step, features, memory, loading, finetune, start)
}


def main() -> None:
    """Measure and print a table, line by line."""
    options = {"lines": ",".join(LINES), "rounds": "5", "threads": "2", "device": "cpu", "process": "plain"}
    options |= dict(argument.split("=", 1) for argument in sys.argv[1:])
    if options["process"] == "command":
        prepare_process()
    torch.set_num_threads(int(options["threads"]))
    torch.manual_seed(0)
    np.random.seed(0)
    setting = Setting(int(options["rounds"]), int(options["threads"]), torch.device(options["device"]))
    if "memory_of" in options:
        return _memory_of(setting, options)
    table = []
    for name in options["lines"].split(","):
        for row in LINES[name](setting):
            spread = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}"
            table.append([row.work, row.against, row.goal, f"{statistics.median(row.ratios):.2f}", spread])
            print(" | ".join(table[-1]), flush=True)
    text = format_table(["work", "against", "goal", "median", "range"], table)
    print(f"\n{text}")
    if "out" in options:
        Path(options["out"]).write_text(text + "\n")


if __name__ == "__main__":
    main()
