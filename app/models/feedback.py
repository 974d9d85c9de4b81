"""Fixed matrices that carry errors backwards in place of the transposed weights.

Every draw happens on the CPU from a key, so that a matrix depends on the seed and the layer's name alone.
"""

import hashlib
from typing import Literal, get_args

import torch
from torch import Tensor, nn

FeedbackInit = Literal["gaussian", "orthogonal", "ortho_he", "sparse"]
FEEDBACK_INITS: tuple[str, ...] = get_args(FeedbackInit)


def key(seed: int, *parts: object) -> int:
    """First eight bytes of ``sha256("{seed}/{part}/…")`` as a number."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(seed: int, *parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator with that key."""
    return torch.Generator(device=device).manual_seed(key(seed, *parts))


def initial_scale(weight: Tensor) -> Tensor:
    """s, the standard deviation of freshly drawn weights, ``()``; of a single one its magnitude."""
    entries = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return (entries.std() if weight.numel() > 1 else entries.abs().sum()).to(weight.dtype)


def feedback_matrix(weight: Tensor, init: FeedbackInit, sparse_k: int, seed: int, layer_name: str) -> Tensor:
    """B ``(out, in)`` of feedback alignment (Lillicrap et al. 2016), as wide as the weights of its layer.

    Args:
        weight: ``(out, in)`` after its initialisation; s is its standard deviation.
        init: ``gaussian`` N(0, s²); ``orthogonal`` semi-orthogonal with root mean square s; ``ortho_he``
            semi-orthogonal times √2, whatever s; ``sparse`` ``sparse_k`` entries per row from N(0, s²·in/k).
        sparse_k: k; 0 for max(1, in // 16).
        seed: of the network.
        layer_name: where the layer stands in the network, as in the state dict.

    Returns:
        A tensor like ``weight``; empty memory where ``weight`` has none (device ``meta``).

    Raises:
        ValueError: an unknown ``init``.
    """
    if weight.is_meta:
        return torch.empty_like(weight)
    n_out, n_in = weight.shape
    draw = generator(seed, layer_name)
    s = initial_scale(weight.detach().float()).item()
    matrix = torch.empty(n_out, n_in, device="cpu", dtype=torch.float32)
    if init == "gaussian":
        matrix.normal_(generator=draw).mul_(s)
    elif init == "sparse":
        k = sparse_k or max(1, n_in // 16)
        place = _uniform(n_out, n_in, draw).topk(k, dim=1).indices
        values = _normal(n_out, k, draw) * (s * (n_in / k) ** 0.5)
        matrix.zero_().scatter_(1, place, values)
    elif init in ("orthogonal", "ortho_he"):
        # Entries of a semi-orthogonal matrix have a mean square of 1 / max(out, in).
        gain = 2**0.5 if init == "ortho_he" else s * max(n_out, n_in) ** 0.5
        nn.init.orthogonal_(matrix, gain, generator=draw)
    else:
        raise ValueError(f"init = {init!r}: must be one of {', '.join(FEEDBACK_INITS)}")
    return matrix.to(weight)


def broadcast_matrix(weight: Tensor, n_logits: int, seed: int, layer_name: str) -> Tensor:
    """R ``(V, out)`` of direct feedback alignment (Nøkland 2016), N(0, 1/V); like ``weight`` otherwise."""
    if weight.is_meta:
        return weight.new_empty(n_logits, weight.shape[0])
    draw = _normal(n_logits, weight.shape[0], generator(seed, layer_name))
    return (draw / n_logits**0.5).to(weight)


def _normal(n_rows: int, n_columns: int, draw: torch.Generator) -> Tensor:
    # In fp32 whatever the default type is, so that the numbers depend on the key alone.
    return torch.randn(n_rows, n_columns, generator=draw, device=draw.device, dtype=torch.float32)


def _uniform(n_rows: int, n_columns: int, draw: torch.Generator) -> Tensor:
    return torch.rand(n_rows, n_columns, generator=draw, device=draw.device, dtype=torch.float32)


def probes(n_probes: int, weight: Tensor, draw: torch.Generator) -> Tensor:
    """N(0, I) ``(n, in)`` for the weights ``(out, in)`` of a layer, as wide as they but in fp32 at least.

    Args:
        n_probes: n.
        weight: on the device of ``draw``.
        draw: source of the numbers.
    """
    return _normal(n_probes, weight.shape[1], draw).to(torch.promote_types(weight.dtype, torch.float32))


def aligned(feedback: Tensor, weight: Tensor, probes: Tensor, rate: float) -> Tensor:
    """B turned towards the Jacobian that random probes of the forward pass show; its length stays.

    Probes V give U = V Wᵀ and the estimate Ĵ = Uᵀ V / n. Of a linear layer Ĵ is W in the mean, so that B converges to
    a multiple of W: a sampled weight mirror (Akrout et al. 2019).

    Args:
        feedback: B ``(…, out, in)``, of one layer or of several.
        weight: W ``(…, out, in)``.
        probes: V ``(…, n, in)``, see :func:`probes`.
        rate: length of the step on the unit sphere.

    Returns:
        ``(…, out, in)`` in the format of the probes.
    """
    jacobian = (probes @ weight.to(probes.dtype).mT).mT @ probes / probes.shape[-2]
    tiny = torch.finfo(probes.dtype).tiny
    before = feedback.to(probes.dtype)
    length = _norm(before)
    towards = jacobian / _norm(jacobian).clamp_min(tiny)
    unit = before / length.clamp_min(tiny)
    moved = unit + rate * (towards - (unit * towards).sum((-2, -1), keepdim=True) * unit)
    return length * moved / _norm(moved).clamp_min(tiny)


def _norm(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
