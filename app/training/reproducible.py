"""Whether equal runs end in equal bits, and what a device has to be told for that."""

import os

import torch

#: work spaces with which cuBLAS adds in one order
_FIXED_WORKSPACES = (":4096:8", ":16:8")


def make_reproducible(device: torch.device) -> None:
    """Lets PyTorch choose operations on a CUDA device whose result does not depend on the order of threads.

    Above a few thousand tokens a step the gradients of an embedding and of attention are otherwise added up in the
    order in which threads arrive, and no two runs are equal. On the CPU nothing needs to be said. To be called before
    the device is used: cuBLAS reads its variable once.

    Args:
        device: where the run trains or is evaluated.
    """
    if device.type != "cuda":
        return
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in _FIXED_WORKSPACES:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = _FIXED_WORKSPACES[0]
    # Strict: with `warn_only` attention keeps its atomic additions.
    torch.use_deterministic_algorithms(True)
    # Memory that nothing has written yet is never read here; filling it would cost a pass over every tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def is_reproducible(device: torch.device) -> bool:
    """Whether equal runs of this process on this device end in equal bits."""
    return device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
