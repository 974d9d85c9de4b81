"""Captures training steps and the passes of evaluations on a GPU."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.evaluation_graph import EvaluationGraphs
from app.training.language_model import LanguageModelModule
from app.training.lightning_seams import optimization
from app.training.reproducible import is_reproducible
from app.training.step_graph import StepGraphs


class GraphedSteps(Callback):
    """Lets a GPU make training steps from CUDA graphs, see :mod:`app.training.step_graph`, and evaluations too."""

    graphs: StepGraphs | None = None
    passes: EvaluationGraphs | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Steps in at evaluations where there is a GPU."""
        module, device = pl_module, trainer.strategy.root_device
        if device.type == "cuda" and isinstance(module, LanguageModelModule):
            module.graphs = self.passes = EvaluationGraphs(trainer, module.network, is_reproducible(device))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps in where there is a GPU."""
        module: Any = pl_module
        if module.device.type == "cuda":
            loop = optimization(trainer)
            self.graphs = loop.maker = StepGraphs(trainer, module, loop, is_reproducible(module.device))

    def described(self) -> dict[str, Any]:
        """How many micro-batches and passes of this launch were made which way; nothing without a GPU."""
        graphs, passes = self.graphs, self.passes
        if graphs is None or passes is None:
            return {}
        return {
            "launch/replayed_micro_batches": graphs.n_replays,
            "launch/eager_micro_batches": graphs.n_eager,
            "launch/captures": graphs.n_captures,
            "launch/graph_off": graphs.objection or None,
            "launch/replayed_evaluation_batches": passes.n_replays,
            "launch/eager_evaluation_batches": passes.n_eager,
            "launch/evaluation_captures": passes.n_captures,
            "launch/evaluation_graph_off": passes.objection or None,
        }

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives back the memory of the graphs."""
        if self.graphs is not None:
            optimization(trainer).maker = None
            self.graphs.release()
        if self.passes is not None:
            self.passes.release()
