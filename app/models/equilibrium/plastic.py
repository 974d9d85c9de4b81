"""A small adapter for unusual tokens, which can go on learning while it is used."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.ranks import add_over_ranks, world_size


class PlasticAdapter(nn.Module):
    """``x + up(GELU(down x))``.

    A state dict holds the trained weights, also while the adapter is away from them.

    Args:
        d_model: D.
        hidden: width inside.
        rate: of a step of :meth:`adapt`.
        mask: share of tokens that it zeroes.
        noise: standard deviation of what it adds to every token.
        penalty: weight of the squared distance to the trained weights.
        kept: share of that distance that :meth:`decay` leaves.
    """

    def __init__(
        self,
        d_model: int,
        hidden: int = 64,
        rate: float = 1e-4,
        mask: float = 0.15,
        noise: float = 0.05,
        penalty: float = 0.01,
        kept: float = 0.99,
    ):
        super().__init__()
        self.rate = rate
        self.mask = mask
        self.noise = noise
        self.penalty = penalty
        self.kept = kept
        self.down = nn.Linear(d_model, hidden)
        self.up = nn.Linear(hidden, d_model)
        self._trained: list[Tensor] = []  # p0, where it has been taken
        # A run that is stopped in the midst of an evaluation saves what it has trained.
        self.register_state_dict_post_hook(self._save_trained)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        return x + self._residual(x)

    def _residual(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(F.gelu(self.down(x)))
        return y

    def adapt(self, h: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One gradient step towards restoring ``h`` from a corrupted copy, held close to the trained weights.

        Works inside ``no_grad`` and ``inference_mode``. On several ranks every rank has to call it, also one
        without tokens: the gradient is averaged, so that all make the same step.

        Args:
            h: ``(n, D)`` or ``(B, T, D)``, n ≥ 0 tokens.
            generator: draws the corruption; without one, the global generator of the device does.

        Returns:
            ``()`` objective of this rank before the step.
        """
        # A step in the precision of the weights: rounded to half of it, most of so small a gradient is noise.
        exact = torch.autocast(h.device.type, enabled=False)
        with torch.inference_mode(False), torch.enable_grad(), exact:
            parameters = list(self.parameters())
            if not self._trained:
                self._trained = [p.detach().clone() for p in parameters]
            h = h.detach().clone().to(parameters[0].dtype)
            drawn = torch.rand(h.shape[:-1], generator=generator, device=h.device)
            noise = torch.randn(h.shape, generator=generator, device=h.device, dtype=h.dtype)
            corrupted = torch.where(drawn.unsqueeze(-1) < self.mask, 0.0, h) + self.noise * noise
            objective = (
                self.penalty
                * torch.stack(
                    [(p - p0).square().mean() for p, p0 in zip(parameters, self._trained, strict=True)]
                ).sum()
            )
            if h.numel():
                objective = objective + F.mse_loss(self(corrupted), h)
            gradients = torch.autograd.grad(objective, parameters)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            if world_size() > 1:
                add_over_ranks(flat)
                flat = flat / world_size()
            with torch.no_grad():
                sizes = [p.numel() for p in parameters]
                for p, gradient in zip(parameters, flat.split(sizes), strict=True):
                    p.sub_(gradient.view_as(p), alpha=self.rate)
            return objective.detach()

    def decay(self) -> None:
        """Draws the weights back to the trained ones by the share that is not kept, one hundredth by default."""
        with torch.inference_mode(False), torch.no_grad():
            for p, p0 in self._with_trained():
                p.lerp_(p0, 1 - self.kept)

    def reset(self) -> None:
        """Puts the trained weights back; the next :meth:`adapt` takes its copy of them anew."""
        with torch.inference_mode(False), torch.no_grad():
            for p, p0 in self._with_trained():
                p.copy_(p0)  # not drawn all the way: what is not a number would stay so
        self._trained = []

    def _with_trained(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter with its trained value; empty where nothing has been adapted."""
        return list(zip(self.parameters(), self._trained, strict=True)) if self._trained else []

    @staticmethod
    def _save_trained(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        assert isinstance(module, PlasticAdapter)
        names = [name for name, _ in module.named_parameters()]
        state.update({prefix + name: p0 for name, p0 in zip(names, module._trained, strict=False)})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._trained = []  # what has been loaded is what was trained
