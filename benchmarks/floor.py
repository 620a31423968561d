"""How far the steps are from what the machine allows: operations over its matrix rate, bytes over its copy bandwidth.

    python benchmarks/floor.py [threads=2] [rounds=5]

The rate is that of a large product of matrices in bfloat16 and in float32, the bandwidth that of copying 256 MiB into
memory that is there already, counting what is read and what is written. Operations of a step are counted while it
runs, forward and backward. A convolution, forward and backward, tells how much of a step's lead its precision can be.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jigsawssl import create_encoder
from jigsawssl.augment import JigsawViews
from jigsawssl.functional import permute_tiles, sample_permutations, to_channels_last
from jigsawssl.losses import HierarchicalLoss
from jigsawssl.models import HierarchicalBlock
from jigsawssl.runs import format_table
from jigsawssl.training.pretrain import JigsawPretraining
from jigsawssl.types import ImageFormat


def median(work: Callable[[], object], rounds: int) -> float:
    """Seconds, after one call to warm up."""
    work()
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def convolution_rate(dtype: torch.dtype, rounds: int) -> float:
    """Operations a second of a 3x3 convolution as ResNets have it, 64x128x16x16, forward and backward."""
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(dtype, memory_format=torch.channels_last)
    images, gradient = (torch.randn(64, 128, 16, 16).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    images.requires_grad_()

    def work() -> None:
        layer(images).backward(gradient)

    return 3 * 2 * 64 * 16**2 * 128**2 * 9 / median(work, 4 * rounds)


def main() -> None:
    """Measure and print the rates and a table."""
    options = {"threads": "2", "rounds": "5"} | dict(argument.split("=", 1) for argument in sys.argv[1:])
    rounds = int(options["rounds"])
    torch.set_num_threads(int(options["threads"]))
    torch.manual_seed(0)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(3072, 3072).to(dtype) for _ in range(2))
        rates[dtype] = 2 * 3072**3 / median(lambda a=a, b=b: a @ b, rounds)
    source, target = torch.rand(2**26), torch.rand(2**26)
    bandwidth = 2 * source.nbytes / median(lambda: target.copy_(source), rounds)
    convolutions = {dtype: convolution_rate(dtype, rounds) for dtype in rates}
    for name, found in (("matrix", rates), ("convolution", convolutions)):
        single, half = (found[dtype] / 1e9 for dtype in (torch.float32, torch.bfloat16))
        print(f"{name} rate {single:.0f} GFLOP/s in float32, {half:.0f} in bfloat16")
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    rows = []
    for backbone, batch in (("resnet18", 64), ("resnet50", 32)):
        encoder = create_encoder(backbone, ImageFormat(64), stem_stride=2)
        block = HierarchicalBlock(encoder.channels, width=512)
        loss = HierarchicalLoss(dict.fromkeys(block.branches, 1.0))
        module = JigsawPretraining(
            encoder, block=block, views=JigsawViews(size=64, grids=(8, 4, 2), share=1.0), loss=loss
        ).train()
        to_channels_last(module)
        views = module.views(torch.randint(256, (batch, 3, 80, 80), dtype=torch.uint8))

        def step(module: JigsawPretraining = module, views: object = views) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                total = module.losses_view_by_view(views).total
            total.backward()

        with FlopCounterMode(display=False) as counter:
            step()
        floor = counter.get_total_flops() / rates[torch.bfloat16]
        name = f"forward and backward of a step, {backbone}, {batch}x3x64x64, bfloat16"
        rows.append([name, "operations", floor, median(step, rounds)])
    images = torch.randint(256, (256, 3, 280, 280), dtype=torch.uint8)
    build = JigsawViews(size=224, grids=(), preset="strong")
    views_bytes = 2 * (images.nbytes + 256 * 3 * 224 * 224 * 4)
    rows.append(
        ["two strong views, 256x3x224x224", "bytes", views_bytes / bandwidth, median(lambda: build(images), rounds)]
    )
    pixels = torch.rand(64, 3, 224, 224)
    order = sample_permutations(64, 64)
    tiles = median(lambda: permute_tiles(pixels, order, 8), rounds)
    rows.append(["permuting 8x8 tiles, 64x3x224x224 float32", "bytes", 2 * pixels.nbytes / bandwidth, tiles])
    table = [[name, of, f"{1000 * f:.1f}", f"{1000 * t:.1f}", f"{t / f:.1f}"] for name, of, f, t in rows]
    print(format_table(["work", "floor by", "floor, ms", "measured, ms", "times the floor"], table))


if __name__ == "__main__":
    main()
