"""What is said of a step that was not finite is what that step did: real fits whose step goes bad."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from app.ops.layer_norm import vectorized as layer_norm
from app.run.errors import NonFiniteError
from app.training import EquilibriumModule, GPTModule
from tests.support.in_process import fit

GPT: dict[str, Any] = dict(
    d_model=8, n_layers=1, n_heads=2, dropout=0.5, warmup_steps=0, schedule="constant", learning_rate=1e-2
)


class Fragile(nn.Module):
    """Its inner module, until it reads what it must not: exactly the same numbers as once before.

    What it reads depends on windows, masks, weights and mode, so that it breaks in one micro-batch alone, and again
    only where that one is made again to the last bit.
    """

    def __init__(self, inner: nn.Module, breaks: Callable[[Tensor, nn.Module], Tensor], at: set[str]):
        super().__init__()
        self.inner = inner
        self.breaks = breaks
        self.at = at
        self.read: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        if not torch.is_grad_enabled():
            return y
        self.read.append(hashlib.sha256(x.detach().numpy().tobytes()).hexdigest())
        return self.breaks(y, self.inner) if self.read[-1] in self.at else y


def fragile_gpt(at: set[str], breaks: Callable[[Tensor, nn.Module], Tensor], **changes: Any) -> Any:
    def make(**sizes: int) -> GPTModule:
        module = GPTModule(**GPT | changes, **sizes)
        module.network.blocks[0].mlp.proj = Fragile(module.network.blocks[0].mlp.proj, breaks, at)
        return module

    return make


def gradient_of(value: float) -> Callable[[Tensor, nn.Module], Tensor]:
    """Gives the weight this gradient everywhere, in this micro-batch."""

    def breaks(y: Tensor, inner: nn.Module) -> Tensor:
        weight = inner.weight
        # The handle keeps itself alive until the weight's share of this micro-batch is there.
        handle = weight.register_hook(lambda g: (handle.remove(), torch.full_like(g, value))[1])
        return y

    return breaks


def broken(folder: Path, breaks: Any, at: slice, **options: Any) -> tuple[str, Any]:
    """What a fit says that breaks in the micro-batches ``at`` of it, and its module.

    A first fit, which does not break, shows what those read.
    """
    changes = {name: options.pop(name) for name in ("nonfinite", "max_skips") if name in options}
    sound = fit(folder, fragile_gpt(set(), breaks, **changes), **options)
    read = list(sound.network.blocks[0].mlp.proj.read)
    with pytest.raises(NonFiniteError) as raised:
        fit(folder, fragile_gpt(set(read[at]), breaks, **changes), **options)
    return str(raised.value), raised.value.module  # type: ignore[attr-defined]


KINDS = {
    "output": (
        lambda y, inner: y * float("nan"),
        slice(3, 4),
        "non-finite output: blocks.0.mlp.proj (Fragile)",
    ),
    "gradient": (
        gradient_of(float("nan")),
        slice(3, 4),
        "forward sound; first non-finite gradient at blocks.0.mlp.proj.inner.weight",
    ),
    "sum of two gradients": (
        gradient_of(2e38),
        slice(2, 4),
        "forward sound; first non-finite gradient at blocks.0.mlp.proj.inner.weight",
    ),
    "norm": (
        gradient_of(1e25),
        slice(3, 4),
        "every gradient finite, but their norm is inf: squared they are beyond their type; the largest is 1e+25, at "
        "blocks.0.mlp.proj.inner.weight",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_the_second_micro_batch_of_a_step(tmp_path: Path, kind: str, nonfinite: str) -> None:
    breaks, at, expected = KINDS[kind]
    said, module = broken(tmp_path, breaks, at, accumulate_grad_batches=2, nonfinite=nonfinite, max_skips=1)
    assert "stopped being finite at step 2 (" in said
    assert expected in said
    assert "first window of micro-batch 2 of 2: " in said
    # Weights as before the step; nothing of the replay is left behind.
    before = fit(tmp_path, fragile_gpt(set(), breaks), steps=1, accumulate_grad_batches=2)
    theirs = before.state_dict()
    assert all(torch.equal(x, theirs[name]) for name, x in module.state_dict().items())
    assert all(p.grad is None for p in module.network.parameters())


class SavesAfterValidation(Callback):
    """As the keeper of the best checkpoint does: in evaluation mode, where no gradient is recorded."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "best.ckpt")


def test_a_step_that_a_checkpoint_inside_of_a_validation_asks_for(tmp_path: Path) -> None:
    breaks, _, expected = KINDS["output"]
    said, module = broken(
        tmp_path,
        breaks,
        slice(1, 2),
        callbacks=(SavesAfterValidation(),),
        log_every_n_steps=50,
        limit_val_batches=1,
        val_check_interval=2,
    )
    assert "stopped being finite at step 2 (" in said
    assert expected in said
    assert not module.network.training  # as it was: the evaluation goes on from here


def test_gradients_whose_norm_alone_is_beyond_fp32_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's own LayerNorm has them where dropout leaves nothing of a token."""

    def make(**sizes: int) -> EquilibriumModule:
        return EquilibriumModule(
            **sizes, d_model=16, n_heads=2, n_layers=10, d_ff=32, dropout=0.99, statistics="lagged"
        )

    fit(tmp_path, make)
    monkeypatch.setattr(layer_norm, "without_constant_rows", lambda reciprocal, eps: reciprocal)
    with pytest.raises(NonFiniteError) as raised:
        fit(tmp_path, make)
    assert "at step 1 (" in str(raised.value)
    assert "every gradient finite, but their norm is inf" in str(raised.value)


def test_another_rank_replays_with_its_own_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "global_rank", 1)
    breaks, at, expected = KINDS["output"]
    said, _ = broken(tmp_path, breaks, at, accumulate_grad_batches=2)
    assert expected in said
