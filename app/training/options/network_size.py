"""Whether a network can be laid out at all."""

from collections.abc import Callable

from torch import nn

from app.models.blueprint import MODULE_BYTES, lay_out
from app.run.bounded import Budget, BudgetError

#: counted for modules and tensors apart from their entries: some thousand layers, after which nobody wants to wait
_PARTS_BYTES = 160 << 20


def size_problem(build: Callable[[], nn.Module]) -> tuple[str, str] | None:
    """The option to blame and what is wrong where a network is larger than any can be; found without its memory.

    Args:
        build: makes the network.
    """
    parts = Budget(_PARTS_BYTES)
    try:
        lay_out(build, lambda n_bytes: parts.charge(min(n_bytes, MODULE_BYTES)))
    except BudgetError:
        return "n_layers", "the network cannot be laid out: it has more parts than any network"
    except ValueError:  # options that break a rule, which is told elsewhere
        return None
    except (RuntimeError, TypeError, OverflowError) as error:  # the last two for sizes beyond 64 bits
        return "d_model", f"the network cannot be laid out: {str(error).splitlines()[0]}"
    return None
