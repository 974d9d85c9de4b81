"""All that the ranks add up in an optimizer step, in one place between the backward pass and the update.

Data parallelism as PyTorch has it (``DistributedDataParallel``) reduces gradients during the backward pass, bucket by
bucket. A step that is captured holds no collective: where a rank is lost, the others' kernels would wait for it where
nobody looks, and no time limit of the library reaches them. So such a step is two graphs, and between them the ranks
exchange one flat buffer of gradients, of which the gradients are views from then on, and one of the network's sums.
The means of an auxiliary loss are exchanged in the same way between two graphs of the forward pass.
Nothing overlaps with it. On GPUs that are joined it is short: 104 MB of a network of 26 M parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: does what it is given at once, or between the graphs of a step that is being captured
Outside = Callable[[Callable[[], None]], None]


def at_once(function: Callable[[], None]) -> None:
    """What a step that is not captured does with what belongs outside of a graph."""
    function()


def mean_over_ranks(values: Tensor, outside: Outside = at_once) -> Tensor:
    """The mean of a tensor over all ranks, of which every rank makes the same.

    Its gradient is that of the mean, and needs no exchange: since each rank computes the same function of the mean, all
    have the same. The mean of the parameters' gradients over the ranks then counts every rank's values by their share.

    Args:
        values: any shape, the same on every rank.
        outside: where the collective runs.
    """
    mean: Tensor = _MeanOverRanks.apply(values, outside)
    return mean


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, outside: Outside) -> Tensor:
        total = values.detach().clone()
        outside(lambda: torch.distributed.all_reduce(total))
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class RankReduction:
    """Means of gradients, and sums of a network's statistics, over all ranks.

    Args:
        parameters: whose gradients are reduced.
        n_ranks: how many there are.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], n_ranks: int):
        self._parameters = parameters
        self._n_ranks = n_ranks

    def reduce(self, sums: Sequence[Tensor], outside: Outside) -> None:
        """Replaces every gradient by its mean over the ranks, and each of ``sums``, in place, by its sum.

        Args:
            sums: of any shapes; added up in double precision.
            outside: where the collectives run.
        """
        buffers = [*self._flat_gradients(), *([_flat(sums)] if sums else [])]

        def exchange() -> None:
            for buffer in buffers:
                torch.distributed.all_reduce(buffer)

        outside(exchange)
        if sums:
            _put_back(buffers[-1], sums)

    def _flat_gradients(self) -> list[Tensor]:
        """The gradients over the number of ranks, in one buffer of each type, of which they are views afterwards."""
        of_type: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in self._parameters:
            if parameter.grad is not None:
                of_type.setdefault(parameter.grad.dtype, []).append(parameter)
        buffers = []
        for parameters in of_type.values():
            buffer = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
            # Before the sum, as DistributedDataParallel does it, so that both ways agree to the bit on two ranks.
            buffers.append(buffer.div_(self._n_ranks))
            for parameter, part in zip(
                parameters, buffer.split([p.numel() for p in parameters]), strict=True
            ):
                parameter.grad = part.view_as(parameter)
        return buffers


def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Adds tensors of any shapes up over all ranks, in place, by one all-reduce in double precision."""
    flat = _flat(tensors)
    torch.distributed.all_reduce(flat)
    _put_back(flat, tensors)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return torch.cat([tensor.reshape(-1).to(wide) for tensor in tensors])


def _put_back(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.reshape(tensor.shape))
