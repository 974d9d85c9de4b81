"""What happens when a loss or a gradient stops being finite.

No step waits for the host to find out: a flag on the device gates the optimizer's update, so that the
weights stay as they were, and the host reads the flag where it logs anyway.
"""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from app.models import LanguageModel
from app.models.ranks import this_rank_alone
from app.run.errors import NonFiniteError
from app.run.randomness import rekey

GATE_KEY = "nonfinite"
COUNTS = ("first", "skipped", "in_a_row")


class FiniteGate:
    """A device-side flag between the gradient and the update.

    Args:
        mode: ``stop`` keeps the gate shut from the first bad step on; ``skip`` shuts it for bad steps only.
    """

    def __init__(self, mode: Literal["stop", "skip"]):
        self.mode = mode
        self._closed: Tensor | None = None
        self._counts: Tensor | None = None
        self._start = (0, 0, 0)

    def restore(self, first: int, skipped: int, in_a_row: int) -> None:
        """Goes on counting from what :meth:`read` returned in another launch; before the first update."""
        self._start = (first, skipped, in_a_row)

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_norm: Tensor,
        step: int | Tensor,
        is_shut: Tensor | None = None,
    ) -> None:
        """Shuts or opens the gate for the step about to be made; always in the same memory.

        Args:
            optimizer: one that leaves weights and moments alone while its ``found_inf`` is 1 (fused, or Muon).
            gradient_norm: ``()`` global norm, the same on every rank.
            step: number of the step, counted from 1.
            is_shut: ``()`` bool; shuts the gate whatever the norm, and is counted nowhere.
        """
        if self._closed is None or self._counts is None:
            self._closed = torch.zeros((), device=gradient_norm.device)
            self._counts = torch.tensor(self._start, dtype=torch.int64, device=gradient_norm.device)
        bad = ~torch.isfinite(gradient_norm)
        first, skipped, in_a_row = self._counts.unbind()
        new = [torch.where((first == 0) & bad, step, first), skipped + bad, (in_a_row + 1) * bad]
        self._counts.copy_(torch.stack(new))
        if self.mode == "stop":
            bad = bad | self._closed.bool()
        self._closed.copy_(bad if is_shut is None else bad | is_shut)
        optimizer.found_inf = self._closed  # type: ignore[attr-defined]

    def tensors(self) -> list[Tensor]:
        """What :meth:`update` moves; nothing before the first one."""
        return [tensor for tensor in (self._closed, self._counts) if tensor is not None]

    def keep(self, state: Tensor, before: Tensor) -> None:
        """Puts ``state`` back to ``before``, in place, where the gate was shut for the step just made."""
        assert self._closed is not None
        state.copy_(torch.where(self._closed.bool(), before, state))

    def read(self) -> tuple[int, int, int]:
        """First bad step (0 if none), steps left out so far, and how many in a row; one transfer."""
        if self._counts is None:
            return self._start
        first, skipped, in_a_row = self._counts.tolist()
        return first, skipped, in_a_row


def nonfinite_mask(loss: Tensor) -> Tensor:
    """The same loss, whose gradient is NaN where the loss is not finite.

    A gradient can stay finite under an infinite loss. Reduced over ranks it would hide from the others that
    one of them failed; multiplied by ``0 · loss + 1``, which is exactly 1 for every finite loss, it cannot.
    """
    return loss * (loss.detach() * 0 + 1)


class NonFiniteStop(Callback):
    """Reads the gate where the run logs or saves, and ends the run with a diagnosis.

    Args:
        seed: the run's seed, to draw the bad step's masks again.
        checkpoints: the run's checkpoint folder, to name the last good one.

    Keys:
        ``train/skipped_steps``: steps left out so far; only with ``nonfinite: skip`` and once there are some.
    """

    def __init__(self, seed: int, checkpoints: Path):
        self.seed = seed
        self.checkpoints = checkpoints

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Looks at every logged step."""
        record = outputs["record"]
        if record.is_logged and record.is_last_micro:
            self.check(trainer, pl_module, record.step, logs=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A state behind a shut gate is never saved as a good one; with ``skip`` the counts are kept."""
        self.check(trainer, pl_module, trainer.global_step)
        gate: Any = pl_module.gate
        checkpoint[GATE_KEY] = dict(zip(COUNTS, gate.read(), strict=True))

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the counts back; to a run that now stops at the first bad step, those left out mean nothing."""
        gate: Any = pl_module.gate
        if gate.mode == "skip":
            gate.restore(*(checkpoint[GATE_KEY][name] for name in COUNTS))

    def check(self, trainer: Trainer, pl_module: Any, step: int, logs: bool = False) -> None:
        """Raises :class:`~app.run.errors.NonFiniteError` when the run has to end.

        Args:
            trainer: of the run.
            pl_module: its module.
            step: completed optimizer steps.
            logs: whether to log the steps left out: not where the run is saved, which leaves no trace in the curve.
        """
        first, skipped, in_a_row = pl_module.gate.read()
        if first == 0:
            return
        if pl_module.nonfinite == "skip":
            for logger in trainer.loggers if logs else ():
                logger.log_metrics({"train/skipped_steps": float(skipped)}, step=step)
            if in_a_row < pl_module.max_skips:
                return
            first = step - in_a_row + 1
        names = sorted(file.name for file in self.checkpoints.glob("resume-*.ckpt"))
        windows = trainer.datamodule.windows_seen  # type: ignore[attr-defined]
        raise NonFiniteError(
            f"the loss or the gradient norm stopped being finite at step {first} "
            f"(windows {windows(first - 1)} to {windows(first) - 1}); no update was made from it\n"
            f"{replay(trainer, pl_module, first, self.seed)}\n"
            f"last good checkpoint: {names[-1] if names else 'none yet'}; remedies: a lower learning_rate, a longer "
            "warmup_steps, a smaller gradient_clip, or nonfinite: skip"
        )


def replay(trainer: Trainer, pl_module: Any, step: int, seed: int) -> str:
    """Makes the bad step again, up to its update, from the weights in memory, with every module watched.

    All of what the step did: the same windows, masks, micro-batches and their sum, losses, norm; also where this is
    called between two batches of a validation. Each rank makes its own part by itself: what it finds is its own, and
    none waits for another that has found its culprit already. Weights, gradients (none), modes and running state are
    afterwards as they were before.

    Returns:
        Which module first gave a value that is not finite, the range of its input, and the text it read; where the
        forward is sound, the parameter nearest to the loss whose gradient is not finite; where all of them are,
        the parameter with the largest.
    """
    if not hasattr(trainer.datamodule, "training_batch"):  # type: ignore[attr-defined]
        return "its batches are not known by their position, so that the step cannot be replayed"
    network: LanguageModel = pl_module.network
    pl_module.gather_weights()
    found: list[str] = []
    moving = [*network.running_state(), *network.step_sums()]
    before = [state.detach().clone() for state in moving]
    modes = {module: module.training for module in network.modules()}
    handles = [module.register_forward_hook(_watch(name, found)) for name, module in network.named_modules()]
    try:
        # A checkpoint that is due inside of a validation asks from there.
        with torch.inference_mode(False), torch.enable_grad(), this_rank_alone():
            network.train()
            said = _made_again(trainer, pl_module, step, seed, found)
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad()
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for state, old in zip(moving, before, strict=True):
                state.copy_(old)
    if said:
        return said
    if trainer.world_size == 1:
        return "the step is finite when replayed"
    return (
        "the step is finite when replayed on this rank; another rank names the culprit, or the fault lies in what is "
        "reckoned over all ranks"
    )


def _made_again(trainer: Trainer, pl_module: Any, step: int, seed: int, found: list[str]) -> str:
    """What is not finite in this step; nothing if all is. ``found`` is filled by :func:`_watch`."""
    network: LanguageModel = pl_module.network
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    n_micro_batches = trainer.accumulate_grad_batches
    network.zero_grad()
    for micro_step in range(n_micro_batches):
        idx, targets = datamodule.training_batch(step - 1, micro_step)
        idx, targets = idx.to(pl_module.device), targets.to(pl_module.device)
        rekey(seed, step - 1, micro_step, trainer.global_rank)
        with trainer.precision_plugin.forward_context():
            output = network(idx, targets)
            loss = nonfinite_mask(output.loss + output.aux_loss)
        place = f" of micro-batch {micro_step + 1} of {n_micro_batches}" if n_micro_batches > 1 else ""
        window = f"first window{place}: {datamodule.tokenizer.decode(idx[0].cpu().numpy())[:80]!r}"
        if found:
            return f"{found[0]}\n{window}"
        if not math.isfinite(float(loss.detach())):
            return f"every module is finite, the loss itself is {float(loss.detach())}\n{window}"
        (loss / n_micro_batches).backward()
        for name, parameter in reversed(list(network.named_parameters())):
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"forward sound; first non-finite gradient at {name}\n{window}"
    # Not by the optimizer's parameters, which may be shards: no other rank takes part.
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients, foreach=True))
    if math.isfinite(norm):
        return ""
    largest = {
        name: float(p.grad.abs().max()) for name, p in network.named_parameters() if p.grad is not None
    }
    name = max(largest, key=lambda name: largest[name])
    return (
        f"forward sound and every gradient finite, but their norm is {norm}: squared they are beyond their type; the "
        f"largest is {largest[name]:.4g}, at {name}\n{window}"
    )


def _watch(name: str, found: list[str]) -> Any:
    """A forward hook that notes the first output that is not finite."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [t for t in (output if isinstance(output, tuple | list) else [output]) if is_floating(t)]
        if not found and any(not bool(torch.isfinite(t).all()) for t in tensors):
            ranges = [f"[{t.min():.4g}, {t.max():.4g}]" for t in inputs if is_floating(t)]
            found.append(
                f"first module with a non-finite output: {name or 'the network'} "
                f"({type(module).__name__}), input range {', '.join(ranges) or 'tokens'}"
            )

    return hook


def is_floating(value: Any) -> bool:
    """Whether this is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()
