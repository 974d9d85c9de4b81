"""How far the learning signal of each layer is from the true gradient."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from app.analysis.depth_time import About
from app.records import StepRecord
from callbacks.watcher import Watcher, log_details, log_scalars, over_layers, step_record

# Angles below this many degrees are rounding.
SAME_DIRECTION = 1e-2

#: what the details mean; at 90 degrees a signal is worth as much as a random one
ABOUT = {
    "alignment/angle": About("angle to the true gradient", "degrees", 90.0),
    "alignment/gradient_norm": About("length of the learning signal"),
    "alignment/bp_gradient_norm": About("length of the true gradient"),
    "alignment/activation_norm": About("root mean square of the output"),
    "alignment/angle_by_parameter": About(
        "angle between a parameter's learning signal and its true gradient; blue goes downhill, red uphill",
        "degrees",
        90.0,
    ),
}


class GradientAlignment(Watcher):
    """Compares learning signals with the back-propagated gradient.

    On the first windows of the step's own batch and the weights after the step, without dropout, the loss is
    differentiated twice: by the rule of each layer, and with ``network.with_rule("bp")``. The batch is the global one:
    every rank reads the same windows, whichever rank they belong to. Weights, gradients, buffers and random states are
    left as they were. A layer is a block (the parameters under the first number in their names) or one of the parts
    around the blocks (``tok_emb``, ``head``, …); its gradients count as one vector.
    Logged keys:

    - ``alignment/angle``: degrees between the two gradients of a block, mean over blocks, in [0, 180]; below 90
      the rule goes downhill, 90 is also what a vanished gradient counts as
    - ``alignment/angle/<part>``: the same of a part around the blocks
    - ``alignment/gradient_norm``, ``alignment/bp_gradient_norm``: length of a block's learning signal and of its
      true gradient, mean over blocks, nats per unit of weight, >= 0
    - ``alignment/activation_norm``: root mean square of a block's output, mean over blocks, >= 0
    - each of them, but for parts, also as ``/min``, ``/max`` and, in networks of up to 8 blocks, ``/l<ii>``

    Details: the same four over blocks, and ``alignment/angle_by_parameter``, the angle of every trained parameter by
    its name, in the network's order.

    Args:
        every_n_steps: optimizer steps between measurements, >= 1; the first step is measured too.
        n_windows: windows of the batch that are read, >= 1; a smaller batch is read whole.

    Attributes:
        last: scalars of the newest measurement, by key; the same on every rank.
        last_details: details of the newest measurement; the same on every rank.

    Raises:
        ValueError: for an argument outside its range.
    """

    def __init__(self, every_n_steps: int = 100, n_windows: int = 8):
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be >= 1")
        if n_windows < 1:
            raise ValueError(f"n_windows is {n_windows}; it must be >= 1")
        self.every_n_steps = every_n_steps
        self.n_windows = n_windows
        self.last: dict[str, float] = {}
        self.last_details: dict[str, Any] = {}
        self._batches: list[tuple[Tensor, Tensor]] = []  # of the step that is being measured
        self._has_warned = False

    def exchanges(self, record: StepRecord) -> bool:
        """At the end of the steps that are measured."""
        return record.is_last_micro and self.reads_weights(None, record.step)

    def reads_weights(self, trainer: Any, step: int) -> bool:
        """After the first step and every n-th."""
        return step == 1 or step % self.every_n_steps == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures at the end of every n-th optimizer step."""
        record = step_record(outputs)
        if not self.reads_weights(trainer, record.step):
            return
        if record.micro_step == 0:
            self._batches = []
        self._batches.append(batch)
        if not record.is_last_micro:
            return
        idx, targets = _first_windows(self._batches, self.n_windows, self.before_exchange)
        self._batches = []
        with trainer.precision_plugin.forward_context():
            found = measure(pl_module.network, idx, targets)
        self.last, self.last_details = self._report(*found)
        log_scalars(trainer, self.last, record.step)
        log_details(trainer, self.last_details, record.step, ABOUT)

    def _report(
        self, names: list[str], products: Tensor, rms: Tensor
    ) -> tuple[dict[str, float], dict[str, Any]]:
        groups = [layer_of(name) for name in names]
        order = list(dict.fromkeys(groups))
        member = torch.tensor([[group == one for group in groups] for one in order], device=products.device)
        by_group = member.to(products.dtype) @ products  # (groups, 3)
        values = torch.cat([_angles(products), _angles(by_group), by_group[:, 1:].sqrt().flatten(), rms])
        sizes = [len(names), len(order), 2 * len(order), len(rms)]
        by_parameter, angles, norms, activations = (part.numpy() for part in values.cpu().split(sizes))
        if angles.max() < SAME_DIRECTION and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                "GradientAlignment has no effect beyond norms: every trained parameter of this network gets the "
                "back-propagated gradient, so that all angles are 0; remove it from the callbacks"
            )
        blocks = sorted(group for group in order if isinstance(group, int))
        rows = [order.index(block) for block in blocks]
        over_blocks = {"angle": angles[rows], "activation_norm": activations}
        over_blocks |= zip(("gradient_norm", "bp_gradient_norm"), norms.reshape(-1, 2)[rows].T, strict=True)
        scalars = {
            f"alignment/angle/{part}": float(angle)
            for part, angle in zip(order, angles, strict=True)
            if isinstance(part, str)
        }
        by_name = zip(names, by_parameter, strict=True)
        details: dict[str, Any] = {
            "alignment/angle_by_parameter": {name: float(angle) for name, angle in by_name}
        }
        for key, column in over_blocks.items():
            if len(column):
                scalars |= over_layers(f"alignment/{key}", column)
                details[f"alignment/{key}"] = column.tolist()
        return scalars, details


def _first_windows(
    batches: Sequence[tuple[Tensor, Tensor]], n: int, before_exchange: Callable[[int], None]
) -> Tensor:
    """The first windows of the global batch, in the order in which one process would read them.

    Args:
        batches: this rank's micro-batches of one step, idx and targets ``(B, T)`` int64 each; a rank has a contiguous
            part of the global batch, all parts are equally large.
        n: number of windows.
        before_exchange: called with how many numbers are handed to the other ranks.

    Returns:
        ``(2, n or fewer, T)`` int64, idx and targets; the same on every rank.
    """
    windows = torch.stack([torch.cat(parts)[:n] for parts in zip(*batches, strict=True)])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        every = [torch.empty_like(windows) for _ in range(dist.get_world_size())]
        before_exchange(windows.numel())
        dist.all_gather(every, windows)
        windows = torch.cat(every, dim=1)[:, :n]
    return windows


def layer_of(name: str) -> int | str:
    """The first number in a parameter's dotted name; without one, its first word."""
    words = name.split(".")
    return next((int(word) for word in words if word.isdecimal()), words[0])


def measure(network: Any, idx: Tensor, targets: Tensor) -> tuple[list[str], Tensor, Tensor]:
    """Both gradients of every trained parameter on one batch, held against each other.

    Args:
        network: with ``with_rule`` and ``layer_outputs``, as every language model has.
        idx: ``(B, T)`` int64.
        targets: ``(B, T)`` int64.

    Returns:
        Names of the n trained parameters, ``(n, 3)`` the inner product of both gradients and their squared
        lengths, and ``(layers,)`` the root mean square of each block's output; in the widest type of the device.
    """
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    wide = torch.float32 if idx.device.type == "mps" else torch.float64
    with _undisturbed(network, idx.device), torch.enable_grad():
        with network.layer_outputs() as activations:
            own = _gradients(network, idx, targets, [p for _, p in named])
        with network.with_rule("bp"):
            true = _gradients(network, idx, targets, [p for _, p in named])
    rms = [x.detach().to(wide).square().mean().sqrt() for x in activations.values()]
    rows = []
    for ours, theirs in zip(own, true, strict=True):
        a, b = ours.flatten().to(wide), theirs.flatten().to(wide)
        rows.append(torch.stack([a @ b, a @ a, b @ b]))
    return [name for name, _ in named], torch.stack(rows), torch.stack(rms) if rms else rows[0].new_zeros(0)


def _gradients(network: Any, idx: Tensor, targets: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Of the training loss; nothing is added to any ``.grad``, and data parallelism is not told."""
    output = network(idx, targets)
    found = torch.autograd.grad(output.loss + output.aux_loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode for a ``with`` block; afterwards modes, buffers and random states are as before."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    devices = [device] if device.type == "cuda" else []
    # A compiled network would be compiled again for another mode, rule and batch size; without a compiler in the
    # process there is nothing to compile, and importing it would cost seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.random.fork_rng(devices), eager:
            network.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _angles(products: Tensor) -> Tensor:
    """Degrees, ``(n, 3) → (n,)``; 90 where either vector is zero."""
    lengths = (products[:, 1] * products[:, 2]).sqrt()
    cosine = torch.where(lengths > 0, products[:, 0] / lengths, 0.0)
    return cosine.clamp(-1, 1).acos().rad2deg()
