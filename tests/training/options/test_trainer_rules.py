"""What is said of devices that a machine does not have."""

from typing import Any

import pytest
import torch

from app.training.options.trainer_rules import device_problems


@pytest.mark.parametrize(
    ("n_gpus", "given", "said"),
    [
        (0, {"accelerator": "gpu"}, "accelerator: there is no GPU here; leave it out"),
        (0, {"accelerator": "cuda", "devices": 4}, "accelerator: there is no GPU here; leave it out"),
        (0, {"devices": [0, 2]}, "devices: [0, 2] numbers GPUs, and there is no GPU here; leave it out"),
        (
            2,
            {"accelerator": "cpu", "devices": "0,1"},
            "devices: [0, 1] numbers GPUs, and the CPU has no numbers",
        ),
        (
            1,
            {"accelerator": "gpu", "devices": 4},
            "devices: 4 are asked for, and there is 1 GPU here; write 1, or",
        ),
        (
            2,
            {"devices": "3"},
            "devices: 3 are asked for, and there are 2 GPUs here; write 2, or leave it out",
        ),
        (
            2,
            {"accelerator": "gpu", "devices": [0, 2]},
            "devices: [0, 2]: there are 2 GPUs here, numbered from 0",
        ),
        (2, {"devices": 0}, "devices: 0 is out of range; it must be at least 1"),
        (0, {"devices": "1:30"}, "devices: '1:30' is no number of devices; write how many"),
    ],
)
def test_a_device_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, given: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    ((name, message),) = device_problems(given)
    assert f"{name}: {message}".startswith(said)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("n_gpus", "given"),
    [
        (0, {}),
        (0, {"accelerator": "cpu", "devices": 8}),
        (0, {"devices": 2}),
        (0, {"accelerator": "tpu", "devices": 8}),
        (1, {"accelerator": "gpu"}),
        (2, {"accelerator": "gpu", "devices": [1]}),
        (2, {"accelerator": "gpu", "devices": "auto"}),
        (2, {"devices": -1}),
        (2, {"devices": "0,1"}),
    ],
)
def test_one_that_is(monkeypatch: pytest.MonkeyPatch, n_gpus: int, given: dict[str, Any]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert list(device_problems(given)) == []


def test_several_nodes_are_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process started by hand does not know on which node it is before the framework does."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ((name, message),) = device_problems({"num_nodes": 2})
    assert f"{name}: {message}".startswith("num_nodes: 2 nodes are asked for; start torchrun on each of them")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert list(device_problems({"num_nodes": 2})) == []
