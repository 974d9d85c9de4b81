"""Compiled training steps: which passes are compiled, how often, and what does not change with it."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.run.errors import ConfigurationError
from app.training import GPTModule, LanguageModelModule
from app.training.compiled import has_passed, require_compiler
from app.training.options.run import CompileMode
from app.training.run_callbacks.compiled_steps import CompiledSteps
from tests.support.in_process import fit

CPU = torch.device("cpu")


def gpt(**sizes: Any) -> LanguageModelModule:
    return GPTModule(d_model=8, n_heads=2, n_layers=2, dropout=0.2, warmup_steps=3, **sizes)


class Backend:
    """Counts the graphs that it is given, and computes them as they are."""

    def __init__(self) -> None:
        self.n_graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.n_graphs += 1
        return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """In place of the compiler, which takes minutes."""
    found = Backend()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=found))
    return found


class Looks(Callback):
    """What a watcher may do between two steps."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        network: Any = pl_module.network
        for n_tokens in (3, 5):
            network(torch.zeros(1, n_tokens, dtype=torch.int64))
        logits, cache = network.prefill(torch.zeros(1, 2, dtype=torch.int64))
        network.step(logits.argmax(-1), cache)


@pytest.mark.parametrize("mode", ["blocks", pytest.param("full", marks=pytest.mark.stress)])
def test_only_training_steps_are_compiled_and_they_once(
    tmp_path: Path, mode: CompileMode, backend: Backend
) -> None:
    plain = fit(tmp_path, gpt, steps=5, callbacks=[Looks()])
    ours = fit(tmp_path, gpt, steps=5, callbacks=[Looks(), CompiledSteps(mode)], limit_val_batches=1.0)
    # Blocks of one kind share what was compiled; nothing was compiled behind the first step.
    assert backend.n_graphs == 1
    assert ours.compiled is None
    theirs = plain.state_dict()
    assert [*ours.state_dict()] == [*theirs]
    # The graphs are computed by PyTorch's own operations, in their order.
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_what_the_compiler_raises_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("ld: cannot find -lgomp\nmore of it")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(ConfigurationError, match=r"compile: torch.compile failed: .*-lgomp.*leave it out"):
        fit(tmp_path, gpt, callbacks=[CompiledSteps("blocks")])
    # As before: another network of this process may be compiled.
    assert torch.compile(lambda x: x + 1, backend=lambda graph, inputs: lambda x: (x - 1,))(
        torch.ones(1)
    ) == torch.zeros(1)


def test_a_missing_compiler_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ConfigurationError, match=r"compile: needs a C\+\+ compiler"):
        require_compiler(CPU)


def test_nothing_has_passed_where_nothing_was_checked() -> None:
    network = torch.nn.Linear(2, 2)
    assert not has_passed(network, CPU, "blocks")


@pytest.mark.stress
@pytest.mark.parametrize("mode", ["blocks", "full"])
def test_the_compiler_itself(tmp_path: Path, mode: CompileMode) -> None:
    def without_dropout(**sizes: Any) -> LanguageModelModule:
        return GPTModule(d_model=8, n_heads=2, n_layers=2, **sizes)

    ours, again = (fit(tmp_path, without_dropout, callbacks=[CompiledSteps(mode)]) for _ in range(2))
    plain = fit(tmp_path, without_dropout)
    first, second, theirs = ours.state_dict(), again.state_dict(), plain.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Three steps of Adam move a weight by three rates at most, whatever rounds.
    assert all(torch.allclose(first[name], theirs[name], atol=1e-3) for name in first)
