"""What several tests of the command line begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

import jigsawssl
from jigsawssl.types import ImageFormat


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with fresh weights in a file."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    small = jigsawssl.create_encoder(
        "resnet18", ImageFormat(32, channels=1), stem_stride=2, backbone_options={"channels": [16, 16, 32, 32]}
    )
    jigsawssl.save_encoder(path, small, provenance={"archive": "none"})
    return path
