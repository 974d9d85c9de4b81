"""Loaders whose tokens live on the training device: batches are sliced there, nothing is waited for.

Each gives the same batches, in the same order, as the loader of :mod:`datamodules.loaders` that it stands for.
"""

from collections.abc import Iterator
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from datamodules.loaders import IGNORED, Batch, EndlessBatchSampler, EvaluationDataset, Placement, Stopwatch
from datamodules.windows import TrainWindows, shard

#: tokens of the micro-batches that are cut at once: so many cost a step next to nothing, in 24 MiB
_TOKENS_AHEAD = 1 << 20
#: micro-batches that are cut at once: of tiny ones that many tokens would be seconds of work at the start
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
        placement: where this process stands and at which window the stream goes on.
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
        self._offset = torch.arange(windows.block_size, device=tokens.device)

    def __iter__(self) -> Iterator[Batch]:
        return self.stopwatch.timed(self._batches())

    def _batches(self) -> Iterator[Batch]:
        sampler = iter(self.sampler)
        first = next(sampler)
        n_ahead = min(max(1, _TOKENS_AHEAD // (len(first) * self.windows.block_size)), _BATCHES_AHEAD)
        batches = chain([first], sampler)
        while True:
            # Cutting is a handful of launches, which on a host that is behind its GPU is time that every step
            # would lose; many batches at once share them.
            index = np.array(list(islice(batches, n_ahead)))
            starts = torch.from_numpy(self.windows.starts(index.reshape(-1)).reshape(index.shape))
            if self.tokens.is_cuda:
                # Page-locked, so that neither side waits for the other.
                starts = starts.pin_memory().to(self.tokens.device, non_blocking=True)
            place_nbt = starts[:, :, None] + self._offset
            x_nbt = self.tokens[place_nbt].long()
            y_nbt = self.tokens[place_nbt.add_(1)].long()
            yield from zip(x_nbt.unbind(), y_nbt.unbind(), strict=True)


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
