"""Captured steps: which are, that they count as eager ones do, and that a wrong one never counts.

Without a GPU nothing can be captured; :class:`Repeated` makes a step again in place of replaying it. That a CUDA graph
has the bits of its step is shown by ``app bench --check`` where there is one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from app.models.local_gpt import LocalGPT
from app.training import EquilibriumModule, GPTModule, LanguageModelModule, LocalGPTModule, TilelliModule
from app.training.lightning_seams import optimization
from app.training.rank_reduction import Outside, at_once
from app.training.step_graph import N_CHECKS, WARM_UP_STEPS, Compute, Outputs, StepGraphs
from tests.support.in_process import fit

STEPS = 9
SMALL: dict[str, Any] = {"d_model": 8, "n_layers": 2, "schedule": "cosine", "warmup_steps": 3}


class Repeated:
    """Makes a micro-batch again, by the code that a graph would have recorded."""

    def __init__(self, compute: Callable[[Outside], Outputs], parameters: Sequence[nn.Parameter]):
        self._compute = compute
        self.outputs: Outputs = {}

    def replay(self) -> None:
        self.outputs = self._compute(at_once)


class Graphs(Callback):
    """Steps in as :class:`GraphedSteps` does on a GPU."""

    def __init__(self, capture: Any = Repeated):
        self.capture = capture

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop, module = optimization(trainer), pl_module
        assert isinstance(module, LanguageModelModule)
        self.graphs = loop.maker = StepGraphs(trainer, module, loop, capture=self.capture)


class Curve(Callback):
    """What each micro-batch hands on, and the norms that its watchers see."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        record = outputs["record"]
        measures = {name: measure.values.tolist() for name, measure in record.measures.items()}
        place = (record.step, record.micro_step, record.is_last_micro, record.is_logged, record.tokens)
        module: Any = pl_module
        numbers = (float(outputs["loss"]), float(record.output.loss), float(module.gradient_norm or 0))
        grads = [None if p.grad is None else float(p.grad.sum()) for p in module.parameters()]
        self.seen.append(
            (place, numbers, grads, measures, trainer.global_step, trainer.fit_loop.epoch_loop.batch_idx)
        )


def gpt(**options: Any) -> Callable[..., LanguageModelModule]:
    return lambda **sizes: GPTModule(n_heads=2, dropout=0.2, **(SMALL | options), **sizes)


def equilibrium(**options: Any) -> Callable[..., LanguageModelModule]:
    return lambda **sizes: EquilibriumModule(
        n_heads=2, d_ff=8, routing_warmup_steps=2, **(SMALL | options), **sizes
    )


MODULES: dict[str, Callable[..., LanguageModelModule]] = {
    "gpt": gpt(),
    "muon": gpt(optimizer="muon"),
    "sgd": gpt(optimizer="sgd"),
    "tilelli": lambda **sizes: TilelliModule(
        n_banks=2, d_head=4, top_k=2, balance="bias", router_noise=0.5, dropout=0.1, **SMALL, **sizes
    ),
    "equilibrium": equilibrium(),
    "equilibrium lagged": equilibrium(statistics="lagged", quantile="histogram"),
    # Its feedback moves by numbers that are drawn from the step's.
    "grape": lambda **sizes: LocalGPTModule(n_heads=2, method="fa", fa_grape=True, **SMALL, **sizes),
}


def same(left: LanguageModelModule, right: LanguageModelModule) -> bool:
    theirs = right.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in left.state_dict().items())


@pytest.mark.parametrize(
    ("name", "accumulation"), [*((name, 1) for name in MODULES), ("gpt", 4), ("equilibrium lagged", 4)]
)
def test_a_run_is_the_same_run(tmp_path: Path, name: str, accumulation: int) -> None:
    eager, captured, graphs = Curve(), Curve(), Graphs()
    arguments: dict[str, Any] = {"accumulate_grad_batches": accumulation, "steps": STEPS}
    plain = fit(tmp_path, MODULES[name], callbacks=[eager], **arguments)
    ours = fit(tmp_path, MODULES[name], callbacks=[graphs, captured], **arguments)
    assert captured.seen == eager.seen
    assert same(ours, plain)
    assert ours.gate.read() == plain.gate.read()
    assert graphs.graphs.objection == ""
    assert graphs.graphs.n_captures == min(accumulation, 3)
    # Those between first and last are one graph. What is checked is made both ways.
    n_checked = N_CHECKS * min(accumulation, 3)
    assert graphs.graphs.n_eager == WARM_UP_STEPS * accumulation + n_checked
    assert graphs.graphs.n_replays == (STEPS - WARM_UP_STEPS) * accumulation


def test_a_step_that_is_not_finite_is_left_out_of_a_captured_run_too(tmp_path: Path) -> None:
    def broken(**sizes: Any) -> LanguageModelModule:
        module = gpt(nonfinite="skip")(**sizes)
        module.network.register_forward_hook(poison)
        return module

    def poison(network: Any, inputs: Any, output: Any) -> Any:
        return output._replace(loss=output.loss / (inputs[0][0, 0] != inputs[0][1, 1]))

    plain = fit(tmp_path, broken, steps=30)
    graphs = Graphs()
    ours = fit(tmp_path, broken, steps=30, callbacks=[graphs])
    assert graphs.graphs.objection == ""
    assert ours.gate.read() == plain.gate.read()
    assert ours.gate.read()[1] > 0
    assert same(ours, plain)


# -- what is not captured ---------------------------------------------------------------------------------


class Looks(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.n_calls = getattr(self, "n_calls", 0) + 1


class Clips(GPTModule):
    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(*args, **kwargs)


def test_a_callback_in_a_hook_of_the_step_is_called_at_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks, graphs = Looks(), Graphs()
    fit(tmp_path, gpt(), steps=STEPS, callbacks=[looks, graphs])
    assert looks.n_calls == STEPS == graphs.graphs.n_eager
    assert capsys.readouterr().out == "graph    off: Looks looks into the step (on_after_backward)\n"


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (
            lambda **sizes: Clips(n_heads=2, **SMALL, **sizes),
            {},
            "Clips has a configure_gradient_clipping of its own",
        ),
        (gpt(optimizer=torch.optim.Adagrad), {}, "torch.optim.adagrad.Adagrad is asked on the host"),
        (gpt(), {"detect_anomaly": True}, "trainer.detect_anomaly waits"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_is_told_once(
    tmp_path: Path, make: Any, arguments: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = Graphs()
    fit(tmp_path, make, steps=STEPS, callbacks=[graphs], **arguments)
    assert graphs.graphs.n_eager == STEPS
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("graph")]
    assert len(told) == 1
    assert words in told[0]


def test_a_capture_that_breaks_off_costs_nothing_but_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(compute: Callable[[Outside], Outputs], parameters: Any) -> Any:
        compute(at_once)
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    eager, captured, graphs = Curve(), Curve(), Graphs(refuse)
    plain = fit(tmp_path, gpt(), steps=STEPS, callbacks=[eager])
    ours = fit(tmp_path, gpt(), steps=STEPS, callbacks=[graphs, captured])
    assert captured.seen == eager.seen
    assert same(ours, plain)
    assert (graphs.graphs.n_captures, graphs.graphs.n_replays) == (1, 0)
    assert (
        "off: the step cannot be captured: RuntimeError: operation not permitted" in capsys.readouterr().out
    )


class Drifts(Repeated):
    """As if a number of Python's were frozen in the graph: right the first time, wrong the second."""

    n_replays = 0

    def replay(self) -> None:
        super().replay()
        self.n_replays += 1
        if self.n_replays == 2:
            with torch.no_grad():
                self.parameters[3].flatten()[0].add_(1e-7)

    def __init__(self, compute: Compute, parameters: Sequence[nn.Parameter]):
        super().__init__(compute, parameters)
        self.parameters = parameters


def test_a_captured_step_that_differs_never_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = Graphs(Drifts)
    plain = fit(tmp_path, gpt(), steps=STEPS)
    ours = fit(tmp_path, gpt(), steps=STEPS, callbacks=[graphs])
    assert same(ours, plain)
    assert graphs.graphs.n_replays == 2
    assert "differs after a captured step" in capsys.readouterr().out


def decay(trainer: Trainer, module: Any) -> None:
    trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.5


def freeze(trainer: Trainer, module: Any) -> None:
    module.network.blocks[0].requires_grad_(False)


def move(trainer: Trainer, module: Any) -> None:
    module.network.tok_emb.weight.data = module.network.tok_emb.weight.data.clone()


class Changes(Callback):
    """Changes between two steps what no tensor's value says."""

    def __init__(self, change: Callable[[Trainer, Any], None]):
        self.change = change

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 6:
            self.change(trainer, pl_module)


@pytest.mark.parametrize("change", [decay, freeze, move])
def test_what_has_changed_is_captured_anew(tmp_path: Path, change: Any) -> None:
    graphs = Graphs()
    plain = fit(tmp_path, gpt(), steps=12, callbacks=[Changes(change)])
    ours = fit(tmp_path, gpt(), steps=12, callbacks=[Changes(change), graphs])
    assert same(ours, plain)
    assert graphs.graphs.n_captures == 2


class Shapes(Callback):
    """Cuts the batches of some steps, as data of somebody's own may."""

    def __init__(self, lengths: Sequence[int]):
        self.lengths = lengths

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop = optimization(trainer)
        run = loop.run

        def cut(optimizer: Any, batch_idx: int, kwargs: Any) -> Any:
            length = self.lengths[batch_idx % len(self.lengths)]
            kwargs["batch"] = [tensor[:, :length] for tensor in kwargs["batch"]]
            return run(optimizer, batch_idx, kwargs)

        loop.run = cut  # type: ignore[method-assign]


@pytest.mark.parametrize(("lengths", "n_captures"), [([8, 5], 2), ([8, 7, 6, 5, 4], 4)])
def test_each_shape_has_a_graph_up_to_a_few(
    tmp_path: Path, lengths: Sequence[int], n_captures: int, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = Graphs()
    plain = fit(tmp_path, gpt(), steps=25, callbacks=[Shapes(lengths)])
    ours = fit(tmp_path, gpt(), steps=25, callbacks=[Shapes(lengths), graphs])
    assert same(ours, plain)
    assert graphs.graphs.n_captures == n_captures
    assert ("more than 4 shapes" in capsys.readouterr().out) == (len(lengths) > 4)


def test_a_network_that_goes_by_the_steps_number_is_asked_behind_the_replay() -> None:
    class Counts(LocalGPT):
        can_capture_after_step = True

    class Keyed(Counts):
        def after_optimizer_step(self, step: int) -> None:
            """Something else in every step."""

    assert Counts.can_capture_after_step
    assert not Keyed.can_capture_after_step
