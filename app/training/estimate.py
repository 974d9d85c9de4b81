"""What a run will take, measured on a few of its own steps before it is begun."""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from app.run.memory import peak_bytes

#: measured steps after the first, which also holds what only happens once
MIN_STEPS, MAX_STEPS = 3, 20


class Part(NamedTuple):
    """Parameters of one part of a network, each counted where it appears first.

    Attributes:
        name: of the module, indented below the blocks that it belongs to.
        kind: its class, with the number of blocks where there are several.
        trainable: parameters that are trained.
        frozen: parameters that are not.
        is_tied: whether all it has is counted in an earlier part.
    """

    name: str
    kind: str
    trainable: int
    frozen: int
    is_tied: bool = False


def parts(network: nn.Module) -> list[Part]:
    """The network's direct children; a list of blocks once per class of block, with the blocks' own children below.

    The rows without indentation add up to the whole network.
    """
    seen: set[Tensor] = set()
    rows = [Part("itself", type(network).__name__, *_count(network.parameters(recurse=False), seen))]
    for name, child in network.named_children():
        if not isinstance(child, nn.ModuleList):
            rows.append(_part(name, type(child).__name__, child.parameters(), seen))
            continue
        kinds: dict[type, list[nn.Module]] = {}
        for block in child:
            kinds.setdefault(type(block), []).append(block)
        for kind, blocks in kinds.items():
            before = set(seen)
            label = f"{len(blocks)} x {kind.__name__}"
            rows.append(_part(name, label, (p for b in blocks for p in b.parameters()), seen))
            children = dict.fromkeys(inner for block in blocks for inner, _ in block.named_children())
            own = (p for block in blocks for p in block.parameters(recurse=False))
            inside = [Part("  itself", "", *_count(own, before))]
            for inner in children:
                members = [dict(block.named_children())[inner] for block in blocks if hasattr(block, inner)]
                counted = (p for member in members for p in member.parameters())
                inside.append(_part(f"  {inner}", type(members[0]).__name__, counted, before))
            rows += [row for row in inside if row.trainable or row.frozen]
    return [row for row in rows if row.trainable or row.frozen or row.is_tied]


def _part(name: str, kind: str, parameters: Iterator[nn.Parameter], seen: set[Tensor]) -> Part:
    given = list(parameters)
    trainable, frozen = _count(iter(given), seen)
    return Part(name, kind, trainable, frozen, is_tied=bool(given) and not trainable and not frozen)


def _count(parameters: Iterator[nn.Parameter], seen: set[Tensor]) -> tuple[int, int]:
    """Entries that are trained and that are not, of parameters that have not been seen; they then have been."""
    counts = {True: 0, False: 0}
    for parameter in parameters:
        if parameter not in seen:
            seen.add(parameter)
            counts[parameter.requires_grad] += parameter.numel()
    return counts[True], counts[False]


@dataclass
class Cost:
    """What a step was seen to take; bytes are of one device.

    Attributes:
        weights: parameters and buffers.
        gradients: of the trainable parameters.
        optimizer: the optimizer's state after a step.
        activations: tensors that the forward pass of one micro-batch keeps for the backward pass.
        peak: on a GPU, the most that was allocated; elsewhere the most memory that this process has taken.
        seconds: of each measured step.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    peak: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Median of the measured steps."""
        return statistics.median(self.seconds)


class Enough(Exception):
    """Ends a training whose cost is known."""


class CostMeter(Callback):
    """Measures the cost of a training step, and ends the training with :class:`Enough`.

    Args:
        patience_seconds: how long to go on measuring, once there are a few steps.
    """

    def __init__(self, patience_seconds: float = 5.0):
        self.patience_seconds = patience_seconds
        self.cost = Cost()
        self._kept: dict[int, int] = {}  # bytes by address of what is kept for the backward pass
        self._hooks: Any = None
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watches what the very first micro-batch keeps."""
        if batch_idx == 0:
            stays = {t.untyped_storage().data_ptr() for t in (*pl_module.parameters(), *pl_module.buffers())}

            def pack(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in stays:
                    self._kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
            self._hooks.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Adds up what the first forward pass has kept; takes the time of each step but the first.

        Raises:
            Enough: there are enough steps.
        """
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None
            self.cost.activations = sum(self._kept.values())
        if not outputs["record"].is_last_micro:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        if trainer.global_step > 1:
            self.cost.seconds.append(now - self._started)
        self._started = now
        n_steps, spent = len(self.cost.seconds), sum(self.cost.seconds)
        if n_steps >= MAX_STEPS or (n_steps >= MIN_STEPS and spent > self.patience_seconds):
            self._weigh(trainer, pl_module)
            raise Enough

    def _weigh(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        parameters = list(network.parameters())
        self.cost.weights = sum(_bytes(t) for t in (*parameters, *network.buffers()))
        self.cost.gradients = sum(_bytes(p) for p in parameters if p.requires_grad)
        states = trainer.optimizers[0].state.values()
        self.cost.optimizer = sum(_bytes(t) for state in states for t in state.values() if torch.is_tensor(t))
        if pl_module.device.type == "cuda":
            self.cost.peak = torch.cuda.max_memory_allocated(pl_module.device)
        else:
            self.cost.peak = peak_bytes()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def describe_network(network: Any) -> str:
    """Class, parameters, and how many of them are matrices, on one line."""
    counts = network.parameter_counts()
    total = counts["trainable"] + counts["frozen"]
    matrices = sum(
        p.numel() for group in network.parameter_groups() if group["decay"] for p in group["params"]
    )
    frozen = f", {counts['frozen']:,} frozen" if counts["frozen"] else ""
    feedback = f", {counts['feedback']:,} fixed feedback entries" if counts["feedback"] else ""
    return f"{type(network).__name__}, {total:,} parameters ({matrices:,} in matrices{frozen}){feedback}"


def device_name(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads of {os.cpu_count()})"
