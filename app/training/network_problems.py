"""What a network's own rules say of a configuration."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch


def network_problems(network_class: type, arguments: Mapping[str, Any], width: str = "d_model") -> list[str]:
    """What a network's constructor has against these arguments, found without memory for its weights.

    Args:
        network_class: the network's, or that of its configuration; the constructor raises ``ValueError`` with a
            line ``name = value: rule`` per problem.
        arguments: of the whole module; those that the network does not take are left out, and sizes that
            only the data knows stand at 2.
        width: the argument to blame where the weights are too large for any memory.
    """
    accepted = inspect.signature(network_class).parameters
    given = {"vocab_size": 2, "block_size": 2} | dict(arguments)
    try:
        with torch.device("meta"):
            network_class(**{name: value for name, value in given.items() if name in accepted})
    except (RuntimeError, TypeError, OverflowError) as error:  # the last two for sizes beyond 64 bits
        return [f"{width}: the network cannot be laid out: {str(error).splitlines()[0]}"]
    except ValueError as error:
        return [line.replace(" = ", ": ", 1) if " = " in line else line for line in str(error).splitlines()]
    return []
