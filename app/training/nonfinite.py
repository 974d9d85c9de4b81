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

    def update(self, optimizer: torch.optim.Optimizer, gradient_norm: Tensor, step: int) -> None:
        """Shuts or opens the gate for the step about to be made.

        Args:
            optimizer: one that leaves weights and moments alone while its ``found_inf`` is 1 (fused, or Muon).
            gradient_norm: ``()`` global norm, the same on every rank.
            step: number of the step, counted from 1.
        """
        if self._closed is None or self._counts is None:
            self._closed = torch.zeros((), device=gradient_norm.device)
            self._counts = torch.tensor(self._start, dtype=torch.int64, device=gradient_norm.device)
        bad = ~torch.isfinite(gradient_norm)
        first, skipped, in_a_row = self._counts.unbind()
        self._counts = torch.stack(
            [torch.where((first == 0) & bad, step, first), skipped + bad, (in_a_row + 1) * bad]
        )
        sticky = self._closed if self.mode == "stop" else torch.zeros_like(self._closed)
        self._closed = torch.maximum(sticky, bad.to(sticky.dtype))
        optimizer.found_inf = self._closed  # type: ignore[attr-defined]

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


def poison(loss: Tensor) -> Tensor:
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
        size = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        raise NonFiniteError(
            f"the loss or the gradient norm stopped being finite at step {first} "
            f"(windows {(first - 1) * size} to {first * size - 1}); no update was made from it\n"
            f"{replay(trainer, pl_module, first, self.seed)}\n"
            f"last good checkpoint: {names[-1] if names else 'none yet'}; remedies: a lower learning_rate, a longer "
            "warmup_steps, a smaller gradient_clip, or nonfinite: skip"
        )


def replay(trainer: Trainer, pl_module: Any, step: int, seed: int) -> str:
    """Runs the bad step again from the weights in memory, with every module watched.

    Each rank runs its own part by itself: what it finds is its own, and none waits for another that has found its
    culprit already. Weights, gradients (none) and running state are afterwards as they were before.

    Returns:
        Which module first gave a value that is not finite, the range of its input, and the text it read; or,
        where the forward is sound, the parameter nearest to the loss whose gradient is not finite.
    """
    network: LanguageModel = pl_module.network
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensors = [
                t for t in (output if isinstance(output, tuple | list) else [output]) if is_floating(t)
            ]
            if not found and any(not bool(torch.isfinite(t).all()) for t in tensors):
                ranges = [f"[{t.min():.4g}, {t.max():.4g}]" for t in inputs if is_floating(t)]
                found.append(
                    f"first module with a non-finite output: {name or 'the network'} "
                    f"({type(module).__name__}), input range {', '.join(ranges) or 'tokens'}"
                )

        return hook

    moving = [*network.running_state(), *network.step_sums()]
    before = [state.detach().clone() for state in moving]
    handles = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        for micro_step in range(trainer.accumulate_grad_batches):
            idx, targets = datamodule.training_batch(step - 1, micro_step)
            idx, targets = idx.to(pl_module.device), targets.to(pl_module.device)
            rekey(seed, step - 1, micro_step, trainer.global_rank)
            network.zero_grad()
            with trainer.precision_plugin.forward_context(), torch.enable_grad(), this_rank_alone():
                output = network(idx, targets)
                loss = output.loss + output.aux_loss
            text = datamodule.tokenizer.decode(idx[0].cpu().numpy())[:80]
            if found:
                return f"{found[0]}\nfirst window of the batch: {text!r}"
            if not math.isfinite(float(loss.detach())):
                return f"every module is finite, the loss itself is {float(loss.detach())}\nfirst window: {text!r}"
            with this_rank_alone():
                loss.backward()
            for name, parameter in reversed(list(network.named_parameters())):
                if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                    return f"forward sound; first non-finite gradient at {name}\nfirst window of the batch: {text!r}"
    finally:
        for handle in handles:
            handle.remove()
        network.zero_grad()
        with torch.no_grad():
            for state, old in zip(moving, before, strict=True):
                state.copy_(old)
    if trainer.world_size == 1:
        return "the step is finite when replayed"
    return (
        "the step is finite when replayed on this rank; another rank names the culprit, or the fault lies in what is "
        "reckoned over all ranks"
    )


def is_floating(value: Any) -> bool:
    """Whether this is a floating-point tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()
