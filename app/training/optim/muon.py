"""Muon for the hidden matrices and AdamW for everything else, in one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

#: quintic whose iteration drives every singular value in (0, 1] to about 1 (Jordan et al. 2024)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
#: root mean square of an AdamW update, which Muon's is scaled to (Liu et al. 2025, arXiv 2502.16982, section 2.2)
UPDATE_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices between features; AdamW for all other parameters.

    A matrix W (m × n) with gradient G moves by (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural
    networks"; scale of Liu et al. 2025, arXiv 2502.16982, equation 4):

    ``M ← μ M + G``, ``O = NewtonSchulz(G + μ M)``, ``W ← (1 − lr · decay) W − lr · 0.2 · √max(m, n) · O``

    O has singular values near 1, so that the update's root mean square is about 0.2, as AdamW's is: one learning rate
    and one weight decay serve both kinds, and rates found for AdamW carry over. A parameter with more than two axes is
    a stack of matrices; each is made orthogonal by itself.

    The whole state is in ``state_dict``. While ``found_inf``, a device scalar set from outside, is 1, a step changes
    neither weights nor state; nothing is read back to the host.

    Args:
        groups: dicts with ``params``, ``muon`` (which of the two updates), and optionally ``lr``, ``weight_decay``,
            ``momentum``, ``betas``, ``eps``.
        lr: learning rate.
        weight_decay: decoupled, of both kinds.
        momentum: μ, in [0, 1).
        betas: of AdamW.
        eps: of AdamW.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        # With `fused` set, PyTorch puts a restored step counter back on the device.
        super().__init__(list(groups), defaults | {"fused": True})
        for group in self.param_groups:
            for parameter in group["params"]:
                # All of it at once: nothing may depend on whether the first step was left out.
                state = self.state[parameter]
                if group["muon"]:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                else:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["muon"]:
                self._step_matrices(group, parameters)
            elif parameters:
                self._step_others(group, parameters)
        return loss

    def _step_matrices(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Muon, all matrices of one shape in one batch."""
        is_open = None if self.found_inf is None else self.found_inf == 0
        batches: dict[tuple[torch.Size, torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in parameters:
            batches.setdefault((parameter.shape[-2:], parameter.device, parameter.dtype), []).append(
                parameter
            )
        for (shape, _, _), members in batches.items():
            stacks = [_as_stack(parameter) for parameter in members]
            buffers = [_as_stack(self.state[parameter]["momentum_buffer"]) for parameter in members]
            gradient = torch.cat([p.grad.reshape(-1, *shape) for p in members if p.grad is not None])
            momentum = torch.cat(buffers) * group["momentum"] + gradient
            update = orthogonal(gradient + group["momentum"] * momentum)
            scale = group["lr"] * UPDATE_RMS * max(shape) ** 0.5
            weight = torch.cat(stacks)
            moved = weight * (1 - group["lr"] * group["weight_decay"]) - scale * update.to(weight.dtype)
            if is_open is not None:
                moved = torch.where(is_open, moved, weight)
                momentum = torch.where(is_open, momentum, torch.cat(buffers))
            sizes = [len(stack) for stack in stacks]
            for stack, new in zip(stacks, moved.split(sizes), strict=True):
                stack.copy_(new)
            for buffer, new in zip(buffers, momentum.split(sizes), strict=True):
                buffer.copy_(new)

    def _step_others(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """PyTorch's own fused AdamW, which honours the flag itself."""
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonal(x: Tensor) -> Tensor:
    """Nearly the nearest semi-orthogonal matrix, by five Newton–Schulz iterations (Jordan et al. 2024).

    The singular vectors are kept and the singular values brought to between 0.7 and 1.2, all but those below about
    1e-3 of the Frobenius norm; that is as good as 1 for an optimizer. In bfloat16 on a GPU, where it costs least.

    Args:
        x: ``(..., m, n)``; leading axes are a batch of matrices.

    Returns:
        The same shape; zero for a matrix of zeros.
    """
    a, b, c = COEFFICIENTS
    y = x.to(torch.bfloat16) if x.device.type == "cuda" else x
    is_tall = y.shape[-2] > y.shape[-1]
    if is_tall:
        y = y.mT
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(N_ITERATIONS):
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.mT if is_tall else y).to(x.dtype)


def _as_stack(x: Tensor) -> Tensor:
    """``(..., m, n)`` as ``(stack, m, n)``, the same memory."""
    return x.view(-1, *x.shape[-2:])
