"""The process that runs are copied from touches no GPU: what is forked from one that did cannot use it."""

import os
import subprocess
import sys

import pytest

#: whoever asks torch for a GPU before the fork is written down; the framework is then imported as for real
PROGRAM = """
import sys, traceback
import torch
import torch.cuda

asked = []

def written_down(name):
    def ask(*arguments, **options):
        asked.append(name + " by " + " < ".join(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()[-4:-1]))
        raise RuntimeError("a GPU is touched before the fork")
    return ask

for name in (
    "_lazy_init", "init", "is_available", "device_count", "_device_count_nvml", "current_device", "is_bf16_supported",
    "get_device_capability", "get_device_properties", "get_device_name", "mem_get_info", "synchronize",
):
    assert hasattr(torch.cuda, name), name
    setattr(torch.cuda, name, written_down("torch.cuda." + name))
for name in ("_cuda_init", "_cuda_getDeviceCount"):
    if hasattr(torch._C, name):
        setattr(torch._C, name, written_down("torch._C." + name))

from app.warm import import_framework
{more}
import_framework()
print("\\n".join(asked), file=sys.stderr)
sys.exit(len(asked))
"""


def imported(more: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM.replace("{more}", more)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)


def test_imports_touch_no_gpu() -> None:
    done = imported()
    assert done.returncode == 0, done.stderr


@pytest.mark.stress
def test_a_module_that_touched_one_would_be_found() -> None:
    more = "import contextlib\nwith contextlib.suppress(RuntimeError): torch.zeros(1).cuda() if torch.cuda.is_available() else None\nimport_framework = lambda: None"
    done = imported(more)
    assert done.returncode == 1
    assert "torch.cuda.is_available by" in done.stderr
