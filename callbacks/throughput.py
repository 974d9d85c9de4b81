"""Speed and memory of training."""

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from callbacks.watcher import Watcher, log_scalars, step_record

GIB = 2**30

# Dense bf16 peak in TFLOP/s from the makers' data sheets; the first name contained in the device's counts.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.4, "H200": 989.4, "A100": 312.0}


class Throughput(Watcher):
    """Measures speed, memory and FLOP utilisation.

    Speed is that of the interval from one logged step to the next. An interval leaves out validation, with
    everything that other callbacks do in it. The first one also holds
    what only happens once, such as compilation. On a GPU the clock is read after waiting for the device,
    which happens at logged steps and around validations only. Logged keys:

    - ``speed/tokens_per_second``: of all ranks together
    - ``speed/step_ms``: milliseconds per optimizer step
    - ``speed/data_wait_share``: share of the time that the host spent in the data loader, in [0, 1]; only with
      data that keeps the time (``trainer.datamodule.seconds_in_loader``). An upper bound where batches are cut
      on a busy GPU: handing it work then waits for work of earlier steps
    - ``speed/memory_gib``: GiB; on a GPU the most that tensors took since the start of the process, otherwise
      the memory of the process now; of rank zero
    - ``speed/flops_per_token``: model FLOPs of one training token, forward and backward:
      ``network.flops_per_token(block_size)`` where the network has it; otherwise 6 × the entries of its
      weights with two or more axes, without embeddings that are looked up only (Kaplan et al. 2020,
      arXiv 2001.08361, section 2.1, without the term of attention)
    - ``speed/mfu``: model-FLOP utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B):
      tokens/s × FLOPs per token / (ranks × peak), in [0, 1]; only with a known peak

    Args:
        peak_tflops: peak of one device in TFLOP/s at the precision of the run, > 0. None looks a GPU up in a
            table of dense bf16 peaks (A100, H100, H200); elsewhere ``speed/mfu`` is then not logged.

    Attributes:
        last: scalars of the newest logged step, by key.

    Raises:
        ValueError: for a peak that is not positive.
    """

    def __init__(self, peak_tflops: float | None = None):
        if peak_tflops is not None and not peak_tflops > 0:
            raise ValueError(f"peak_tflops is {peak_tflops}; it must be > 0, or null to look the device up")
        self.peak_tflops = peak_tflops
        self.last: dict[str, float] = {}
        self._validation_started: float | None = None
        self._start()

    def _start(self, step: int = 0, now: float | None = None) -> None:
        """Begins an interval after ``step``; without ``now``, at the next training batch."""
        self._step_before, self._started = step, now
        self._tokens = 0
        self._left_out = 0.0
        self._in_loader_before: float | None = None  # unknown until the interval's first batch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_started = None
        self._start(trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins the first interval, or ends a validation with all that followed it."""
        now = time.perf_counter()
        if self._started is None:
            self._started = now
        elif self._validation_started is not None:
            self._left_out += now - self._validation_started
        self._validation_started = None
        if self._in_loader_before is None:
            self._in_loader_before = seconds_in_loader(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts tokens; at a logged step, writes the interval's numbers."""
        record = step_record(outputs)
        self._tokens += record.tokens * trainer.world_size
        if record.is_logged and record.is_last_micro:
            now = self._now(pl_module)
            self.last = self._measure(trainer, pl_module, record.step, now, batch)
            self._start(record.step, now)
            self._in_loader_before = seconds_in_loader(trainer)
            log_scalars(trainer, self.last, record.step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock until the next training batch."""
        if not trainer.sanity_checking:
            self._validation_started = self._now(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for the device, so that validation's work is not counted as training's."""
        self._now(pl_module)

    def _now(self, pl_module: LightningModule) -> float:
        """Seconds on a steady clock once the device has done what it was given."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()

    def _measure(
        self, trainer: Trainer, pl_module: LightningModule, step: int, now: float, batch: Any
    ) -> dict[str, float]:
        assert self._started is not None
        seconds = max(now - self._started - self._left_out, 1e-9)
        tokens_per_second = self._tokens / seconds
        network: Any = pl_module.network
        flops = flops_per_token(network, batch[0].shape[-1])
        scalars = {
            "speed/tokens_per_second": tokens_per_second,
            "speed/step_ms": 1000 * seconds / (step - self._step_before),
            "speed/memory_gib": memory_bytes(pl_module.device) / GIB,
            "speed/flops_per_token": flops,
        }
        in_loader = seconds_in_loader(trainer)
        if in_loader is not None and self._in_loader_before is not None:
            scalars["speed/data_wait_share"] = min((in_loader - self._in_loader_before) / seconds, 1.0)
        peak = self.peak_tflops if self.peak_tflops is not None else known_peak_tflops(pl_module.device)
        if peak is not None:
            scalars["speed/mfu"] = tokens_per_second * flops / (trainer.world_size * peak * 1e12)
        return scalars


def seconds_in_loader(trainer: Trainer) -> float | None:
    """What the data has taken so far to give training batches; None where it does not say."""
    seconds: float | None = getattr(getattr(trainer, "datamodule", None), "seconds_in_loader", None)
    return seconds


def flops_per_token(network: nn.Module, block_size: int) -> float:
    """Model FLOPs of one training token; see ``speed/flops_per_token`` of :class:`Throughput`."""
    own_count = getattr(network, "flops_per_token", None)
    if own_count is not None:
        return float(own_count(block_size))
    matrices = {
        id(weight): weight.numel()
        for module in network.modules()
        if not isinstance(
            module, nn.Embedding
        )  # a tied weight still counts, through the layer it multiplies in
        for weight in module.parameters(recurse=False)
        if weight.dim() >= 2
    }
    return 6.0 * sum(matrices.values())


def known_peak_tflops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU in TFLOP/s; None where it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def memory_bytes(device: torch.device) -> int:
    """Peak of the tensors on a GPU, otherwise the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss  # no live figure without /proc; kilobytes on Linux
    return peak if sys.platform == "darwin" else peak * 1024
