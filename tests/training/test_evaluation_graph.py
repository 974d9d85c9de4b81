"""Captured passes of evaluations: which are, that figures stay the same, and that a wrong one never counts.

As in ``test_step_graph.py`` a pass is made again in place of being replayed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from app.training import EquilibriumModule, GPTModule, LanguageModelModule, TilelliModule
from app.training.evaluation_graph import EvaluationGraphs
from app.training.rank_reduction import Outside, at_once
from app.training.step_graph import Outputs
from tests.support.in_process import fit

SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 2, "warmup_steps": 3}
MODULES: dict[str, Callable[..., LanguageModelModule]] = {
    "gpt": lambda **sizes: GPTModule(n_heads=2, dropout=0.2, **SMALL, **sizes),
    "tilelli": lambda **sizes: TilelliModule(n_banks=2, d_head=4, top_k=2, **SMALL, **sizes),
    "adapting": lambda **sizes: EquilibriumModule(
        n_heads=2, d_ff=8, routing_warmup_steps=1, use_plastic=True, adapt=True, **SMALL, **sizes
    ),
}
#: validations, each of some batches and a shorter last one
VALIDATIONS, STEPS = 3, 6


class Repeated:
    """Makes a pass again, by the code that a graph would have recorded."""

    def __init__(self, compute: Callable[[Outside], Outputs], parameters: Sequence[nn.Parameter]):
        self._compute = compute
        self.outputs = compute(at_once)

    def replay(self) -> None:
        self.outputs = self._compute(at_once)


class Graphs(Callback):
    """Steps in as :class:`GraphedSteps` does on a GPU, and keeps all figures."""

    def __init__(self, capture: Any = Repeated):
        self.capture = capture
        self.figures: list[dict[str, float]] = []
        self.passes: EvaluationGraphs | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModelModule)
        if self.capture is not None:
            self.passes = EvaluationGraphs(trainer, pl_module.network, capture=self.capture)
            pl_module.graphs = self.passes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LanguageModelModule)
        self.figures.append(dict(pl_module.last_validation))
        self.after(trainer, pl_module)

    def after(self, trainer: Trainer, module: LanguageModelModule) -> None:
        pass


def trained(folder: Path, name: str, graphs: Graphs) -> Graphs:
    every: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": STEPS // VALIDATIONS}
    every |= {"num_sanity_val_steps": 0, "block_size": 4, "batch_size": 5}  # batches of 5, 5 and 2 windows
    fit(folder, MODULES[name], steps=STEPS, callbacks=[graphs], **every)
    return graphs


@pytest.mark.parametrize("name", MODULES)
def test_figures_are_the_same(tmp_path: Path, name: str) -> None:
    plain = trained(tmp_path, name, Graphs(None))
    ours = trained(tmp_path, name, Graphs())
    assert len(ours.figures) == VALIDATIONS
    assert ours.figures == plain.figures
    passes = ours.passes
    assert passes is not None
    assert (passes.objection, passes.n_captures) == ("", 1)
    # Warmed up and captured in the first evaluation, held against the eager one in each later one; the last batch of
    # each is of a shape that does not come again.
    assert passes.n_replays == VALIDATIONS - 1
    assert passes.n_eager == (2 + 1) + (1 + 1) * (VALIDATIONS - 1)


class Drifts(Repeated):
    """As if a number of Python's were frozen in the graph: right in the first evaluation, wrong from then on."""

    drift = 0.0

    def replay(self) -> None:
        super().replay()
        self.outputs["output"].logits.add_(self.drift)


def test_a_pass_that_differs_never_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Graphed(Graphs):
        def after(self, trainer: Trainer, module: LanguageModelModule) -> None:
            Drifts.drift = 1e-3

    Drifts.drift = 0.0
    plain = trained(tmp_path, "gpt", Graphs(None))
    ours = trained(tmp_path, "gpt", Graphed(Drifts))
    assert ours.figures == plain.figures
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("graph")]
    assert told == ["graph    evaluation off: logits of a captured pass differ from those of an eager one"]


def test_what_cannot_be_captured_runs_eagerly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(compute: Callable[[Outside], Outputs], parameters: Any) -> Any:
        compute(at_once)
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = trained(tmp_path, "gpt", Graphs(None))
    ours = trained(tmp_path, "gpt", Graphs(refuse))
    assert ours.figures == plain.figures
    out = capsys.readouterr().out
    assert out.count("graph ") == 1
    assert "evaluation off: a pass cannot be captured: RuntimeError: operation not permitted" in out


def test_a_hook_is_called_at_every_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hooked(Graphs):
        n_calls = 0

        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            def count(*_: Any) -> None:
                self.n_calls += 1

            pl_module.network.blocks[0].register_forward_hook(count)  # type: ignore[union-attr]

    ours = trained(tmp_path, "gpt", Hooked())
    assert ours.passes is not None
    assert ours.passes.n_eager + STEPS == ours.n_calls
    assert "evaluation off: blocks.0 has a forward hook" in capsys.readouterr().out


def test_weights_in_other_memory_are_captured_anew(tmp_path: Path) -> None:
    class Moves(Graphs):
        def after(self, trainer: Trainer, module: LanguageModelModule) -> None:
            if len(self.figures) == 1:
                embedding = module.network.tok_emb.weight  # type: ignore[union-attr]
                embedding.data = embedding.data.clone()  # type: ignore[union-attr,operator]

    plain = trained(tmp_path, "gpt", Graphs(None))
    ours = trained(tmp_path, "gpt", Moves())
    assert ours.figures == plain.figures
    assert ours.passes is not None
    assert ours.passes.n_captures == 2


def test_casts_of_one_side_are_not_taken_by_the_other() -> None:
    """Autocast keeps what it has cast: a graph that took such a copy would never see the weights move again."""
    network = GPTModule(n_heads=2, vocab_size=7, block_size=8, **SMALL).network.eval()
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    seen: list[torch.Tensor] = []

    class Moved(Repeated):
        def __init__(self, compute: Callable[[Outside], Outputs], parameters: Any):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(2)
            super().__init__(compute, parameters)
            seen.append(self.outputs["output"].logits)

    graphs, idx = EvaluationGraphs(trainer, network, capture=Moved), torch.arange(4)[None]
    graphs.begin()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            graphs.run(idx)
        seen.append(network(idx).logits)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(idx).logits
    assert all(torch.equal(logits, expected) for logits in seen)
