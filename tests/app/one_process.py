"""A callback, trusted by path, that makes a step of several ranks again in one process and compares."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.loaders import TrainDataset


class OneProcess(Callback):
    """At every 10th step, before the optimizer's: loss, gradient and bank decisions of the whole global batch.

    Args:
        path: JSON file with one entry per comparison.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.found: list[dict[str, Any]] = []
        self._is_due = False
        self._loss: Tensor | None = None
        self._index: Tensor | None = None  # (layers, B, T, P) bank decisions of one process
        self._gap: Tensor | None = None  # how far apart, relative, the two likeliest banks were

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # A step in which a decision flipped is made up for by the next one.
        self._is_due = self._is_due or (trainer.global_step + 1) % 10 == 0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach().clone()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self._is_due:
            return
        torch.distributed.all_reduce(self._loss)
        if trainer.global_rank > 0:
            return
        ours = torch.cat([p.grad.flatten() for p in pl_module.network.parameters()])
        network = copy.deepcopy(pl_module.network)
        network.zero_grad()
        logits: list[Tensor] = []
        for block in network.blocks:
            block.router.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
        output = network(*self._global_batch(trainer))
        loss = output.loss + output.aux_loss
        loss.backward()
        theirs = torch.cat([p.grad.flatten() for p in network.parameters()])
        self._index = torch.stack([decided.bank_index for decided in output.routing])
        n_pathways = self._index.shape[-1]
        probability = torch.stack(logits).softmax(-1).unflatten(-1, (n_pathways, -1))
        first, second = probability.topk(2).values.unbind(-1)
        self._gap = (first - second) / first
        self.found.append(
            {
                "step": trainer.global_step + 1,
                "loss_error": abs(float(self._loss) / trainer.world_size - float(loss)) / abs(float(loss)),
                "gradient_error": float((ours - theirs).norm() / theirs.norm()),
                "aux_loss": float(output.aux_loss),
            }
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if not self._is_due:
            return
        own = torch.stack([decided.bank_index for decided in outputs["record"].output.routing])
        every = [torch.empty_like(own) for _ in range(trainer.world_size)]
        torch.distributed.all_gather(every, own)
        flips = torch.zeros(1, dtype=torch.int64)
        if trainer.global_rank == 0:
            assert self._index is not None and self._gap is not None
            flipped = torch.cat(every, dim=1) != self._index
            flips += flipped.sum()
            self.found[-1] |= {
                "flips": int(flips),
                "widest_gap": float(self._gap[flipped].max()) if int(flips) else 0.0,
                "decisions": flipped.numel(),
            }
            self.path.write_text(json.dumps(self.found))
        torch.distributed.broadcast(flips, 0)
        self._is_due = bool(flips)

    @staticmethod
    def _global_batch(trainer: Any) -> tuple[Tensor, Tensor]:
        """All windows of the step, undivided."""
        data, step = trainer.datamodule, trainer.global_step
        windows = TrainDataset(data.check_source().train, data.train_windows())
        return windows.__getitems__(range(step * data.batch_size, (step + 1) * data.batch_size))
