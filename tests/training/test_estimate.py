"""What is counted before a run is begun."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from app.training.estimate import MAX_STEPS, MIN_STEPS, CostMeter, Enough, Part, parts


def outer(rows: list[Part]) -> int:
    return sum(row.trainable + row.frozen for row in rows if not row.name.startswith(" "))


@pytest.mark.parametrize("tie_weights", [True, False])
def test_parts_of_the_baseline(tie_weights: bool) -> None:
    network = GPT(11, 4, 2, 2, 8, tie_weights=tie_weights)
    network.pos_emb.weight.requires_grad = False
    rows = parts(network)
    assert rows[0] == Part("tok_emb", "Embedding", 88, 0)
    assert rows[1] == Part("pos_emb", "Embedding", 0, 32)
    assert rows[2] == Part("blocks", "2 x GPTBlock", 2 * (12 * 64 + 4 * 8), 0)
    inside = {row.name.strip(): row.trainable for row in rows if row.name.startswith(" ")}
    assert inside == {"ln1": 32, "attn": 512, "ln2": 32, "mlp": 1024}
    assert rows[-1] == Part("head", "Linear", 0 if tie_weights else 88, 0, is_tied=tie_weights)
    assert outer(rows) == sum(p.numel() for p in network.parameters())


def test_parts_of_another_architecture_and_of_mixed_blocks() -> None:
    network = TilelliLM(11, d_model=8, n_layers=2, d_head=4, n_banks=2)
    assert outer(parts(network)) == sum(p.numel() for p in network.parameters())
    mixed = nn.Module()
    mixed.scale = nn.Parameter(torch.ones(3))
    mixed.blocks = nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)])
    rows = parts(mixed)
    assert [row.name for row in rows] == ["itself", "blocks", "  itself", "blocks", "  itself"]
    assert [row.kind for row in rows if row.name == "blocks"] == ["2 x Linear", "1 x LayerNorm"]
    assert outer(rows) == 3 + 12 + 4


class Chain(nn.Module):
    """Keeps x for the weight's gradient, and tanh's output; the weight itself costs nothing further."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 2 @ self.weight)


def test_what_is_kept_for_the_backward_pass_is_counted_once() -> None:
    network, meter = Chain(), CostMeter()
    trainer: Any = SimpleNamespace(global_step=0)
    module: Any = SimpleNamespace(
        parameters=network.parameters, buffers=network.buffers, device=torch.device("cpu"), network=network
    )
    for batch_idx in range(2):  # the second one is not looked at
        meter.on_train_batch_start(trainer, module, None, batch_idx)
        network(torch.ones(10, 4)).sum().backward()
        meter.on_train_batch_end(trainer, module, {"record": SimpleNamespace(is_last_micro=False)})
    assert meter.cost.activations == 4 * (10 * 4 + 10 * 6)


def test_the_first_step_is_not_timed_and_there_is_an_end() -> None:
    meter = CostMeter(patience_seconds=0.0)
    network = Chain()
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    trainer: Any = SimpleNamespace(global_step=0, optimizers=[optimizer])
    module: Any = SimpleNamespace(device=torch.device("cpu"), network=network)
    outputs = {"record": SimpleNamespace(is_last_micro=True)}
    for step in range(1, MIN_STEPS + 1):
        trainer.global_step = step
        meter.on_train_batch_end(trainer, module, {"record": SimpleNamespace(is_last_micro=False)})
        meter.on_train_batch_end(trainer, module, outputs)
    trainer.global_step += 1
    with pytest.raises(Enough):
        meter.on_train_batch_end(trainer, module, outputs)
    cost = meter.cost
    assert len(cost.seconds) == MIN_STEPS <= MAX_STEPS
    assert (cost.weights, cost.gradients, cost.optimizer) == (96, 96, 2 * 96 + 4)
    assert cost.peak > 2**24
