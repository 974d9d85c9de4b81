"""Loaders whose tokens live on the training device: batches are sliced there, nothing is waited for.

Each gives the same batches, in the same order, as the loader of :mod:`datamodules.loaders` that it stands for.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from datamodules.loaders import IGNORED, Batch, EndlessBatchSampler, EvaluationDataset, Placement, Stopwatch
from datamodules.windows import TrainWindows, shard

#: micro-batches whose windows are chosen on the host at once and sent over in one transfer
_BATCHES_AHEAD = 256


def on_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Tokens ``(n,)`` on a device, in the smallest type that can be indexed there: uint8, int16 or int32."""
    high = int(tokens.max()) if tokens.dtype.itemsize > 1 and len(tokens) else 255
    dtype = np.uint8 if high < 1 << 8 else np.int16 if high < 1 << 15 else np.int32
    return torch.from_numpy(tokens.astype(dtype)).to(device)


class ResidentTrainLoader:
    """The endless training stream of one rank, see :func:`datamodules.loaders.train_loader`.

    Args:
        tokens: ``(n,)`` on the device, of :func:`on_device`.
        windows: the sequence of windows.
        batch_size: windows per optimizer step, over all ranks and accumulated micro-batches.
        placement: where this process stands and at which step the stream goes on.
        stopwatch: gets the time that the host takes for its batches.
    """

    def __init__(
        self,
        tokens: Tensor,
        windows: TrainWindows,
        batch_size: int,
        placement: Placement,
        stopwatch: Stopwatch | None = None,
    ):
        self.tokens = tokens
        self.windows = windows
        self.sampler = EndlessBatchSampler(batch_size, placement)
        self.stopwatch = stopwatch or Stopwatch()
        self._span = torch.arange(windows.block_size + 1, device=tokens.device)

    def __iter__(self) -> Iterator[Batch]:
        return self.stopwatch.timed(self._batches())

    def _batches(self) -> Iterator[Batch]:
        batches = iter(self.sampler)
        while True:
            index = np.array([next(batches) for _ in range(_BATCHES_AHEAD)])
            starts = torch.from_numpy(self.windows.starts(index.reshape(-1)).reshape(index.shape))
            if self.tokens.is_cuda:
                # Page-locked, so that neither side waits for the other.
                starts = starts.pin_memory().to(self.tokens.device, non_blocking=True)
            for starts_b in starts.unbind():
                window_bt = self.tokens[starts_b[:, None] + self._span].long()
                yield window_bt[:, :-1].contiguous(), window_bt[:, 1:].contiguous()


class ResidentEvaluationLoader:
    """Every target of a split once, see :class:`datamodules.loaders.EvaluationDataset`.

    Args:
        tokens: ``(n,)`` on the device, at least 2.
        block_size: longest context.
        batch_size: windows per optimizer step of training; its micro-batch is that of the evaluation.
        stride: targets by which a window moves on.
        placement: where this process stands.
    """

    def __init__(self, tokens: Tensor, block_size: int, batch_size: int, stride: int, placement: Placement):
        self.tokens = tokens
        self.layout = EvaluationDataset(
            np.broadcast_to(np.uint8(0), len(tokens)),
            block_size,
            stride,
            placement.world_size,
            placement.rank,
        )
        self.size = shard(batch_size, placement.world_size, placement.accumulation)
        self._offset = torch.arange(block_size, device=tokens.device)

    def __len__(self) -> int:
        return -(-len(self.layout) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        layout, n_targets = self.layout, len(self.tokens) - 1
        for first in range(0, len(layout), self.size):
            last = min(first + self.size, len(layout))
            number_b = torch.arange(first + layout.first, last + layout.first, device=self.tokens.device)
            place_bt = number_b[:, None] * layout.stride + self._offset
            is_text = place_bt < n_targets
            # The first window has no other before it, and all its targets count.
            is_new = (self._offset >= layout.block_size - layout.stride) | (number_b[:, None] == 0)
            place_bt = place_bt.clamp(max=n_targets - 1)
            x = torch.where(is_text, self.tokens[place_bt].long(), 0)
            yield x, torch.where(is_text & is_new, self.tokens[place_bt + 1].long(), IGNORED)
