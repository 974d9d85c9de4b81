"""What must be settled before the first test module is imported."""

import os
import resource
from collections.abc import Iterator

import pytest

# One thread: the networks of the tests are too small to be worth more, golden values stay comparable, and a forked
# process does not wait for threads that only its parent has. Read when PyTorch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from app.run import ranks

# Triton chooses its interpreter when it is imported, and Lightning imports it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Hundreds of loggers and stores of one process are closed when they are collected, and some systems allow 1,024.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 8192 if _hard == resource.RLIM_INFINITY else min(8192, _hard)
if _soft < _wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_wanted, _hard))


@pytest.fixture(autouse=True)
def no_launch_left_over() -> Iterator[None]:
    """What a test leaves behind of a launch, the next command of this process would speak of."""
    before = {name: os.environ.get(name) for name in (*ranks.NUMBERS, *ranks.MEETING_PLACE)}
    yield
    assert {name: os.environ.get(name) for name in before} == before
