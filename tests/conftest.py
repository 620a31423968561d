"""What holds for every test: no display, no network, the same random numbers on each run."""

import os

# before the libraries that read them are imported; commands that a test starts inherit them
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
# tests run beside one another, and threads of several processes on the same cores wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch

# the tensors of the tests are tiny: more threads only wait for one another
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the global generators before each test, so no test depends on those before it, and return the seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0
