"""What a measurement ran on."""

import platform
from pathlib import Path

import torch

from app import __version__
from app.bench.timing import cache_bytes


def described(device: torch.device) -> dict[str, str]:
    """``device`` and ``versions``, each on one line."""
    cache = f"cache {cache_bytes(device) / 2**20:.0f} MiB"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found = [properties.name, f"{properties.multi_processor_count} multiprocessors", cache]
    else:
        found = [_processor(), f"{torch.get_num_threads()} threads", cache]
    names = [f"archlab {__version__}", f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    if device.type == "cuda":
        names.append(f"triton {_triton()}")
    return {"device": ", ".join(found), "versions": ", ".join(names)}


def _processor() -> str:
    """Its name, as Linux knows it; elsewhere the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)
