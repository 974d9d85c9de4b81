"""Times of a network's training step by each path, against the bytes and operations that it asks for."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from app.bench.ceilings import Ceilings
from app.bench.parity import any_order
from app.bench.paths import StepPath
from app.bench.steps import BareStep, Batch, Subject, as_before
from app.bench.timing import WARM_UP_CALLS, Call, Timing, measure
from app.models.operators import called_by
from app.training.compiled import MODES, compile_in_place
from app.training.run_path import choose_attention

#: behind the name of a path that need not be reproducible
ANY_ORDER = ", any order"
#: times that each number per parameter is moved: weight read in the forward and the backward pass, gradient written and
#: read, weight and two moments read and written by the optimizer
MOVED_PER_PARAMETER = 2 + 2 + 6


@dataclass(frozen=True)
class Row:
    """A path of a step.

    Attributes:
        subject: name of the network.
        sizes: of the step.
        path: how it is made, with :data:`ANY_ORDER` behind it where equal steps need not have equal bits; ``naive`` by
            the operators' references.
        timing: of a step.
        tokens: of a step.
        n_bytes: moved at least: weights, gradients and moments, and what the forward keeps, written and read once.
        flops: of the matrix products that run in the eager step, forward and backward.
        peak_bytes: most memory at once; None on the CPU.
        copy_share: the time of a copy of as many bytes, over that of the step.
        product_share: the same with the operations of square products.
        speedup: time of the reference over that of the step; None without a reference.
    """

    subject: str
    sizes: dict[str, int]
    path: str
    timing: Timing
    tokens: int
    n_bytes: int
    flops: int
    peak_bytes: int | None
    copy_share: float
    product_share: float
    speedup: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "timing"} | self.timing.as_dict()


def times(
    subject: Subject,
    paths: Sequence[StepPath],
    ceilings: Ceilings,
    n_windows: int,
    quick: bool = False,
    in_any_order: bool = False,
) -> list[Row]:
    """Times the step of a network by several paths in one run, the reference beside them where there is one.

    Args:
        subject: the network.
        paths: those that are asked for; ``graphed`` needs a GPU.
        ceilings: of the device.
        n_windows: of each.
        quick: windows of a single step.
        in_any_order: whether each path is timed a second time, with the fastest operations of the device.
    """
    batches, device = subject.batches(), subject.device
    choose_attention(subject.block_size)
    n_bytes, flops = work(subject, BareStep(subject, batches))
    makes: dict[str, Callable[[], Call]] = {path: partial(_call, subject, batches, path) for path in paths}
    for path in paths if in_any_order else ():
        makes[path + ANY_ORDER] = partial(_free, makes[path])
    if called_by(subject.module().network):
        makes["naive"] = partial(_free, lambda: BareStep(subject, batches, "naive").eager)
    calls: dict[str, Call] = {}
    peaks = {}
    for name, make in makes.items():
        calls[name], peaks[name] = _with_peak(make, device)
    found = measure(calls, device, n_windows, 0.0 if quick else None)
    rate = ceilings.products["bf16" if subject.precision == "bf16-mixed" else "fp32"]
    naive = found.get("naive")
    return [
        Row(
            subject.name,
            subject.shape | dict(subject.sizes),
            name,
            timing,
            subject.batch_size * subject.block_size,
            n_bytes,
            flops,
            peaks[name],
            n_bytes / ceilings.copy / timing.median,
            flops / rate / timing.median,
            None if naive is None else naive.median / timing.median,
        )
        for name, timing in found.items()
    ]


def _call(subject: Subject, batches: Sequence[Batch], path: StepPath) -> Call:
    step = BareStep(subject, batches)
    if path == "graphed":
        return step.graphed
    if path != "eager":
        compile_in_place(step.network, MODES[path])
    return step.eager


def _free(make: Callable[[], Call]) -> Call:
    """A path whose sums may be made in any order."""
    with any_order():
        step = make()

    def call(number: int) -> None:
        with any_order():
            step(number)

    return call


def _with_peak(make: Callable[[], Call], device: torch.device) -> tuple[Call, int | None]:
    """A path whose first steps have been made, and the most memory that these took; None on the CPU."""
    if device.type != "cuda":
        return make(), None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call = make()
    for number in range(WARM_UP_CALLS):
        call(number)
    torch.cuda.synchronize(device)
    return call, torch.cuda.max_memory_allocated(device) - before


def work(subject: Subject, step: BareStep) -> tuple[int, int]:
    """Bytes that an optimizer step has to move, and operations of the products that it makes."""
    network, batch = step.network, step.batches[0]
    stays = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stays:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The fused attention of a processor is not counted; its plain form is.
    plain = sdpa_kernel(SDPBackend.MATH) if subject.device.type == "cpu" else nullcontext()
    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with as_before(network), FlopCounterMode(display=False) as counter, plain:
        with saving:
            loss, _ = subject.losses(network, batch)
        loss.backward()
    parameters = [p for p in network.parameters() if p.requires_grad]
    moved = MOVED_PER_PARAMETER * sum(p.numel() * p.element_size() for p in parameters)
    network.zero_grad()
    return moved + 2 * sum(kept.values()), int(counter.get_total_flops())
