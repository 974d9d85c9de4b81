"""What the kernels have room for."""

from torch import Tensor

from app.ops.choice import has_kernel
from app.ops.second_pass import naive, second_pass


def has_kernels(x: Tensor, n_history: int = 0, d_head: int = 0) -> bool:
    """Whether kernels would compute the passes of ``x (B, T, D)``; without them the modules themselves are faster.

    Args:
        x: as the operators get it.
        n_history: earlier outputs.
        d_head: width of an attention head.
    """
    fits = x.shape[-1] <= naive.WIDEST and n_history <= naive.MOST_HISTORY and d_head <= naive.WIDEST_HEAD
    return fits and has_kernel(second_pass, x)
