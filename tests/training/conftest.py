"""Images that are easy to tell apart, and a network that learns them in seconds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from jigsawssl.data import open_archive
from jigsawssl.data.loading import PixelDataset
from jigsawssl.models import Encoder, create_encoder
from jigsawssl.types import ImageFormat


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> PixelDataset:
    """Two classes that any network can tell apart: dark and bright noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    images = (rng.normal(80 + 80 * labels[:, None, None], 20, (40, 32, 32))).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("npz") / "two.npz"
    np.savez(path, images=images, labels=labels)
    dataset = PixelDataset(open_archive(str(path)), ImageFormat(32, channels=1))
    dataset.load(progress=False)
    return dataset


@pytest.fixture
def tiny_encoder() -> Callable[[], Encoder]:
    """Makes an encoder with the same weights each time."""

    def make() -> Encoder:
        torch.manual_seed(0)
        options = {"channels": [16, 16, 32, 32]}
        return create_encoder("resnet18", ImageFormat(32, channels=1), stem_stride=2, backbone_options=options)

    return make
