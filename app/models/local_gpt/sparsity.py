"""What reduces the residual stream: its largest entries, a fixed subspace, a code direction."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.rules import FollowsRule

SUBSPACE_SEED = 42
PER_BLOCK_SEED = 42


def hard_top_k(x: Tensor, k: int) -> Tensor:
    """Keeps exactly the k entries of largest magnitude on the last axis, zeros elsewhere; gradients likewise.

    Args:
        x: ``(…, D)``.
        k: in [1, D].

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= x.shape[-1]:
        raise ValueError(f"k = {k}: must lie in [1, {x.shape[-1]}], the width")
    kept = _largest(x, k)
    return torch.zeros_like(x).scatter(-1, kept, x.gather(-1, kept))


def top_k_mask(x: Tensor, k: int) -> Tensor:
    """1 where :func:`hard_top_k` keeps an entry, 0 elsewhere; in the type of ``x``."""
    return torch.zeros_like(x).scatter(-1, _largest(x, k), 1.0)


def _largest(x: Tensor, k: int) -> Tensor:
    return x.detach().abs().topk(k, dim=-1, sorted=False).indices


class FrozenSubspace(nn.Module):
    """``h Q Qᵀ`` with orthonormal columns Q ``(D, r)``, drawn once from a fixed seed and never trained.

    Args:
        rank: r, in [1, D).
        d_model: D.
        seed: of the Gaussian matrix whose QR decomposition gives Q.

    Raises:
        ValueError: the rank is out of range.
    """

    Q: Tensor

    def __init__(self, rank: int, d_model: int, seed: int = SUBSPACE_SEED):
        super().__init__()
        if not 1 <= rank < d_model:
            raise ValueError(f"rank = {rank}: must lie in [1, d_model) = [1, {d_model})")
        draw = torch.Generator().manual_seed(seed)
        Q, _ = torch.linalg.qr(torch.randn(d_model, rank, generator=draw, device="cpu", dtype=torch.float32))
        self.register_buffer("Q", Q.to(torch.get_default_dtype()), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        return (h @ self.Q) @ self.Q.T


class VQResidualDirection(nn.Module, FollowsRule):
    """``‖h‖ · code`` with the code of largest cosine; fixed unit-norm codes, identity backwards.

    Args:
        n_codes: K, at least 1.
        d_model: D.
        seed: of the codes; None for the generator's own default, which makes all such codebooks equal.

    Raises:
        ValueError: there is no code.
    """

    codebook: Tensor

    def __init__(self, n_codes: int, d_model: int, seed: int | None = None):
        super().__init__()
        if n_codes < 1:
            raise ValueError(f"n_codes = {n_codes}: must be at least 1")
        self.rules, self.rule = ("bp", "ste"), "ste"
        draw = torch.Generator() if seed is None else torch.Generator().manual_seed(seed)
        codes = torch.randn(n_codes, d_model, generator=draw, device="cpu", dtype=torch.float32)
        codes = F.normalize(codes, dim=-1).to(torch.get_default_dtype())
        self.register_buffer("codebook", codes, persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        """``(…, D) → (…, D)``."""
        # Which code is nearest is a decision: in full precision, whatever the products around it run in.
        with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
            chosen = (h.to(self.codebook.dtype) @ self.codebook.T).argmax(-1)
        codes = self.codebook[chosen]
        if self.rule == "bp":
            return h.norm(dim=-1, keepdim=True) * codes
        straight: Tensor = _AlongCode.apply(h, codes)
        return straight


class _AlongCode(torch.autograd.Function):
    """``‖h‖ · code`` forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, codes: Tensor) -> Tensor:
        return h.norm(dim=-1, keepdim=True) * codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
