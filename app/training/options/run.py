"""The options of a run beside those of its model, data and trainer."""

from typing import Literal

from app.options import NonNegativeInt, PositiveInt

CompileMode = Literal["none", "blocks", "full"]


class RunOptions:
    """What is said once for a whole run.

    Args:
        seed: of weights, data order and dropout.
        checkpoint_every_n_steps: optimizer steps between checkpoints, of which the last two are kept.
        keep_every_n_steps: steps between checkpoints that stay, written where none is due; 0 for none.
        fast_nondeterministic: the fastest operations of a GPU, with which equal runs differ.
        graph: replay a step's kernels as a CUDA graph: on a GPU they are recorded once and launched together from then
            on; the bits are the same.
        compile: what ``torch.compile`` has: each block, or all of the network; training steps are computed by
            operations that it fuses, to other bits than eager ones, and the first of them takes up to minutes.
        verify_state: checksums of all state at each update: weights, moments, buffers and the tokens in memory have to
            be what the update before has left, else the run ends with exit code 4.
        verify_every_n_steps: steps between two that are made twice, gradients compared to the bit before the update; 0
            for none. A difference ends the run with exit code 4.
    """

    def __init__(
        self,
        seed: NonNegativeInt = 1337,
        checkpoint_every_n_steps: PositiveInt = 250,
        keep_every_n_steps: NonNegativeInt = 0,
        fast_nondeterministic: bool = False,
        graph: bool = True,
        compile: CompileMode = "none",
        verify_state: bool = False,
        verify_every_n_steps: NonNegativeInt = 0,
    ):
        self.seed = seed
        self.checkpoint_every_n_steps = checkpoint_every_n_steps
        self.keep_every_n_steps = keep_every_n_steps
        self.fast_nondeterministic = fast_nondeterministic
        self.graph = graph
        self.compile = compile
        self.verify_state = verify_state
        self.verify_every_n_steps = verify_every_n_steps
