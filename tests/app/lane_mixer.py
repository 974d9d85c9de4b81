"""An architecture of a user's own in one file: two lanes per token, chosen by a learned gate.

It also follows its lanes' shares of tokens with running means, which move once per optimizer step.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.language_model import LanguageModel, next_token_loss
from app.records import Axis, LanguageModelOutput, Measure
from app.training import LanguageModelModule


class LaneMixer(LanguageModel):
    """Each layer mixes two linear maps of a running mean over the sequence."""

    def __init__(self, vocab_size: int, d_model: int = 8, n_layers: int = 2, dropout: float = 0.1):
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.gates = nn.ModuleList(nn.Linear(d_model, 2) for _ in range(n_layers))
        self.lanes = nn.ModuleList(nn.Linear(d_model, 2 * d_model) for _ in range(n_layers))
        self.head = nn.Linear(d_model, vocab_size)
        self.register_buffer("running_share", torch.full((n_layers, 2), 0.5))
        self.register_buffer("share_sums", torch.zeros(n_layers, 2), persistent=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        x = F.dropout(self.embedding(idx), self.dropout, self.training)
        count = torch.arange(1, idx.shape[1] + 1, device=idx.device)[:, None]
        routing = []
        for gate, lanes in zip(self.gates, self.lanes, strict=True):
            weights = gate(x).softmax(-1)  # (B, T, 2)
            mean = x.cumsum(1) / count
            x = x + (lanes(mean).unflatten(-1, (2, -1)) * weights[..., None]).sum(-2)
            routing.append(weights)
        logits = self.head(x)
        weights = torch.stack(routing)
        means = weights.mean((1, 2))
        if self.training:
            self.share_sums += weights.detach().sum((1, 2))
        return LanguageModelOutput(
            logits, next_token_loss(logits, targets), self.auxiliary_losses(means), routing
        )

    def auxiliary_means(self, output: LanguageModelOutput) -> Tensor:
        return torch.stack(output.routing).mean((1, 2))

    def auxiliary_losses(self, means: Tensor) -> Tensor:
        return 0.01 * (means - 0.5).square().sum()

    def step_sums(self) -> list[Tensor]:
        return [self.share_sums]

    def after_optimizer_step(self, step: int) -> None:
        self.running_share.lerp_(self.share_sums / self.share_sums.sum(-1, keepdim=True), 0.1)

    def running_state(self) -> list[Tensor]:
        return [self.running_share]

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        weights = torch.stack(output.routing).detach()
        layer, lane = Axis("layer"), Axis("lane", ("slow", "fast"))
        entropy = -(weights * weights.log()).sum(-1)
        chosen = F.one_hot(weights.argmax(-1), 2).sum((1, 2))[:, :, None]
        return {
            "lane_share": Measure(weights.mean((1, 2)), (layer, lane), "share", target=torch.tensor(0.5)),
            "running_share": Measure(self.running_share.detach(), (layer, lane), "share", reduce="none"),
            "lane_entropy": Measure(entropy.mean((1, 2)), (layer,), "level", unit="nats"),
            "lane_load": Measure(chosen, (layer, lane, Axis("bank")), "count", reduce="sum"),
        }


class LaneMixerModule(LanguageModelModule):
    """Trains it."""

    def __init__(
        self, vocab_size: int, d_model: int = 8, n_layers: int = 2, dropout: float = 0.1, **training: Any
    ):
        super().__init__(LaneMixer(vocab_size, d_model, n_layers, dropout), **training)


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, without decay.

    Args:
        params: what it moves.
        lr: rate.
        beta: weight of the past in the update.
    """

    def __init__(self, params: Any, lr: float = 1e-4, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("average", torch.zeros_like(parameter))
                parameter.sub_(average.lerp(parameter.grad, 1 - group["beta"]).sign(), alpha=group["lr"])
                average.lerp_(parameter.grad, 0.01)
