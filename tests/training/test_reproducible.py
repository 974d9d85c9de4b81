"""What a GPU is told so that equal runs end in equal bits; that they do is shown on one, see `app.training.reproducible`."""

import os
from collections.abc import Iterator

import pytest
import torch

from app.training.reproducible import is_reproducible, make_reproducible

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def test_a_gpu_is_told() -> None:
    assert not is_reproducible(CUDA)
    make_reproducible(CUDA)
    assert is_reproducible(CUDA)
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_work_space_that_will_do_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_reproducible(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_cpu_needs_nothing() -> None:
    make_reproducible(CPU)
    assert is_reproducible(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
