"""How a step can be made, and in which arithmetic; nothing heavy is imported here."""

from typing import Literal, get_args

#: operation by operation; from a CUDA graph; each block, or the whole network, by ``torch.compile``
StepPath = Literal["eager", "graphed", "compiled_blocks", "compiled"]
PATHS: tuple[StepPath, ...] = get_args(StepPath)
#: those that are asked for where nothing is said, and that a run of the application has
USUAL_PATHS = PATHS[:2]
Precision = Literal["32-true", "bf16-mixed"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
