"""What one optimizer step does: clipping, keys, snapshots, and the coefficients of this configuration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from app.models.gpt import GPT
from app.records import LanguageModelOutput
from app.run.errors import ConfigurationError
from app.training import EquilibriumModule, GPTModule, LanguageModelModule
from app.training.run_callbacks.step_keys import StepKeys
from tests.support.in_process import fit

SGD: dict[str, Any] = dict(
    d_model=8, n_layers=1, n_heads=2, optimizer="sgd", beta1=0.0, weight_decay=0.0, learning_rate=0.5,
    schedule="constant", warmup_steps=0,
)  # fmt: skip


# -- clipping -------------------------------------------------------------------------------------------


class Movement(Callback):
    """How far the weights are from where they started, after each step; and the norm of each step's gradient."""

    def __init__(self) -> None:
        self.moved: list[float] = []
        self.norms: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        now = nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()
        self.moved.append(float((now - self.before).norm()))
        self.norms.append(float(pl_module.gradient_norm))
        self.before = now


@pytest.mark.parametrize("limit", [0.0, 0.01, 0.1, 1e6])
def test_a_step_is_as_long_as_the_clipped_gradient(tmp_path: Path, limit: float) -> None:
    watched = Movement()
    fit(tmp_path, lambda **sizes: GPTModule(**SGD, gradient_clip=limit, **sizes), callbacks=[watched])
    assert all(norm > 0.2 for norm in watched.norms)  # logged as it was before clipping
    expected = [0.5 * (min(norm, limit) if limit else norm) for norm in watched.norms]
    assert watched.moved == pytest.approx(expected, rel=1e-3)


# -- networks of somebody's own ---------------------------------------------------------------------------


class Lossless(GPT):
    """Leaves the loss out."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        return super().forward(idx, targets)._replace(loss=None)


class Bare(GPT):
    """Returns its logits alone."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        return super().forward(idx, targets).logits


@pytest.mark.parametrize(("network", "got"), [(Bare, "Tensor"), (Lossless, "no loss")])
def test_what_a_network_must_return_is_said(tmp_path: Path, network: type[GPT], got: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"{network.__name__}.forward returned {got}.*LanguageModelOutput\("
    ):
        fit(
            tmp_path,
            lambda **sizes: LanguageModelModule(network(**sizes, d_model=8, n_layers=1, n_heads=2)),
        )


# -- keys -----------------------------------------------------------------------------------------------


def drawn(seed: int = 7, step: int = 10, batch_idx: int = 21, rank: int = 0, accumulation: int = 2) -> Tensor:
    trainer: Any = SimpleNamespace(global_step=step, accumulate_grad_batches=accumulation, global_rank=rank)
    StepKeys(seed).on_train_batch_start(trainer, None, None, batch_idx)  # type: ignore[arg-type]
    return torch.rand(8)


def test_masks_belong_to_seed_step_micro_batch_and_rank() -> None:
    usual = drawn()
    torch.rand(3)
    assert torch.equal(drawn(), usual)
    # The micro-batch inside of its step counts, not how many there were before it.
    assert torch.equal(drawn(batch_idx=1), usual)
    for other in (dict(seed=8), dict(step=11), dict(batch_idx=20), dict(rank=1), dict(rank=2)):
        assert not torch.equal(drawn(**other), usual), other
    assert not torch.equal(drawn(rank=1), drawn(rank=2))


# -- what moves without a gradient ----------------------------------------------------------------------


class Bad(Callback):
    """Gives the weights of one step a gradient that is no number; keeps the running state after each step."""

    def __init__(self, step: int):
        self.step = step
        self.states: list[list[Tensor]] = []

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step + 1 == self.step:
            pl_module.network.head.weight.grad.fill_(float("nan"))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        if outputs["record"].is_last_micro:
            self.states.append([state.clone() for state in pl_module.network.running_state()])


@pytest.mark.parametrize("statistics", ["current", "lagged"])
def test_a_step_left_out_moves_nothing_in_any_of_its_micro_batches(tmp_path: Path, statistics: str) -> None:
    bad = Bad(step=2)
    fit(
        tmp_path,
        lambda **sizes: EquilibriumModule(
            **sizes, d_model=8, n_heads=2, n_layers=2, d_ff=8, statistics=statistics, nonfinite="skip"
        ),
        callbacks=[bad],
        accumulate_grad_batches=2,
    )
    first, left_out, third = bad.states
    assert all(torch.equal(a, b) for a, b in zip(first, left_out, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(left_out, third, strict=True))


# -- what a checkpoint brings along ---------------------------------------------------------------------


def groups(module: LanguageModelModule) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in module.trainer.optimizers[0].param_groups
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_resumed_run_has_the_coefficients_of_its_own_configuration(optimizer: Any) -> None:
    def prepared(**settings: Any) -> LanguageModelModule:
        module = LanguageModelModule(GPT(5, 4, 1, 1, 4), optimizer=optimizer, **settings)
        trainer: Any = SimpleNamespace(max_steps=10, global_step=0)
        module._trainer = trainer
        made: Any = module.configure_optimizers()
        trainer.optimizers = [made["optimizer"]]
        trainer.lr_scheduler_configs = [SimpleNamespace(**made["lr_scheduler"])]
        return module

    before = prepared(weight_decay=0.3, beta1=0.7, beta2=0.8, muon_momentum=0.6, learning_rate=0.1)
    after = prepared(weight_decay=0.02, beta1=0.95, beta2=0.99, muon_momentum=0.9)
    fresh = groups(after)
    assert {group["weight_decay"] for group in fresh} == {0.02, 0.0}
    after.trainer.optimizers[0].load_state_dict(before.trainer.optimizers[0].state_dict())
    assert groups(after) != fresh
    after.on_train_start()
    assert groups(after) == fresh
