"""One network, computed by another form of its operators."""

from typing import TypeVar

from torch import nn

from app.models.tilelli.weights import OperatorModule
from app.ops import Operations

Network = TypeVar("Network", bound=nn.Module)


def compute_with(network: Network, operations: Operations) -> Network:
    """Let every module of ``network`` compute with ``operations``, in place; parameters stay as they are.

    ``compute_with(copy.deepcopy(network), app.ops.NAIVE)`` is the original form of a network: every bank on
    every token. Tests and benchmarks hold the fast form against it.
    """
    for module in network.modules():
        if isinstance(module, OperatorModule):
            module.operations = operations
    return network
