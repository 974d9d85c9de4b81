"""Captures the training step on a GPU."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.lightning_seams import optimization
from app.training.reproducible import is_reproducible
from app.training.step_graph import StepGraphs


class GraphedSteps(Callback):
    """Lets a training on a GPU make its steps from CUDA graphs, see :mod:`app.training.step_graph`."""

    graphs: StepGraphs | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps in where there is a GPU."""
        module: Any = pl_module
        if module.device.type == "cuda":
            loop = optimization(trainer)
            self.graphs = loop.maker = StepGraphs(trainer, module, loop, is_reproducible(module.device))

    def described(self) -> dict[str, Any]:
        """How many micro-batches of this launch were made which way; nothing without a GPU."""
        graphs = self.graphs
        if graphs is None:
            return {}
        return {
            "launch/replayed_micro_batches": graphs.n_replays,
            "launch/eager_micro_batches": graphs.n_eager,
            "launch/captures": graphs.n_captures,
            "launch/graph_off": graphs.objection or None,
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives back the memory of the graphs."""
        if self.graphs is not None:
            optimization(trainer).maker = None
            self.graphs.release()
