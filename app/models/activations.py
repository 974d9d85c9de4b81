"""Activations by name: read out of a forward pass, or replaced in it.

A network offers a tensor with :func:`tap` at the place where it is computed. Unless somebody asks, that is one look at
a global that is None: the same tensor goes on, and of a compiled pass nothing is left but a guard on that None.

The name of an activation is that of the module that offers it, as in ``state_dict``, and its own: ``blocks.2.attn.z``.
Shape suffixes: B batch, H heads, T queries, S keys, d head width.
"""

import difflib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Intervention = Callable[[Tensor], Tensor]

#: path components that are no name of their own: what PyTorch wraps around a module, and attention's exchangeable part
_UNNAMED = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "core"))
#: what TransformerLens calls an activation, and what it is called here
_ALIASES = (
    (r"hook_embed", "embed"),
    (r"hook_pos_embed", "pos_embed"),
    (r"(blocks\.\d+)\.hook_resid_pre", r"\1.in"),
    (r"(blocks\.\d+)\.hook_resid_mid", r"\1.mid"),
    (r"(blocks\.\d+)\.hook_resid_post", r"\1.out"),
    (r"(blocks\.\d+)\.hook_attn_out", r"\1.attn.out"),
    (r"(blocks\.\d+)\.hook_mlp_out", r"\1.mlp.out"),
    (r"(blocks\.\d+)\.attn\.hook_([qkvz])", r"\1.attn.\2"),
    (r"(blocks\.\d+)\.attn\.hook_pattern", r"\1.attn.weights"),
    (r"(blocks\.\d+)\.mlp\.hook_(pre|post)", r"\1.mlp.\2"),
)
_N_SUGGESTED = 3


class _Session:
    """One forward pass of a network that somebody looks into.

    Args:
        network: whose modules offer activations.
        wanted: names to keep; None keeps the shape of everything.
        replaced: functions by name.
    """

    def __init__(
        self, network: nn.Module, wanted: frozenset[str] | None, replaced: Mapping[str, Intervention]
    ):
        self.wanted = wanted
        self.replaced = replaced
        self.kept: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._prefix = {
            id(module): ".".join(part for part in name.split(".") if part and part not in _UNNAMED)
            for name, module in network.named_modules()
        }

    def name_of(self, owner: nn.Module, name: str) -> str:
        prefix = self._prefix.get(id(owner), "")
        return f"{prefix}.{name}" if prefix else name

    def asks(self, name: str) -> bool:
        return self.wanted is None or name in self.wanted or name in self.replaced

    def visit(self, name: str, x: Tensor, below: int | None) -> Tensor:
        if name in self.shapes:  # a module that is called again in the same pass
            return x
        self.shapes[name] = tuple(x.shape)
        if name in self.replaced:
            x = _checked(name, x, self.replaced[name](x), below)
        if self.wanted is not None and name in self.wanted:
            self.kept[name] = x
        return x


_session: _Session | None = None


def tap(owner: nn.Module, name: str, x: Tensor, below: int | None = None) -> Tensor:
    """Offers an activation, and returns what to go on with: ``x`` itself, unless an intervention replaces it.

    Args:
        owner: the module whose name comes before.
        name: of the activation within that module; the first of one name in a pass counts.
        x: the activation.
        below: of indices, how many there are to choose among.

    Raises:
        ValueError: an intervention gave something of another shape, type or device, or an index out of range.
    """
    if _session is None:
        return x
    return _session.visit(_session.name_of(owner, name), x, below)


def is_asked_for(owner: nn.Module, name: str) -> bool:
    """Whether somebody wants this activation, where it takes a computation of its own."""
    return _session is not None and _session.asks(_session.name_of(owner, name))


def is_watched() -> bool:
    """Whether somebody looks into the pass that is under way."""
    return _session is not None


def observed(
    network: nn.Module,
    forward: Callable[[], Any],
    capture: Sequence[str] = (),
    intervene: Mapping[str, Intervention] | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Runs a forward pass that keeps and replaces activations.

    Compiled parts run as they are written, without compilation, for this pass.

    Args:
        network: whose activations are named.
        forward: runs the pass.
        capture: names to keep, ours or those of TransformerLens.
        intervene: by name, functions from an activation to what stands in its place.

    Returns:
        What ``forward`` returned, and the activations by the names that were asked for: after their interventions, with
        their graph where there is one.

    Raises:
        ValueError: a name that the pass did not come by, with the nearest ones; one that is replaced twice; or what an
            intervention must not return, see :func:`tap`.
    """
    if isinstance(capture, str):
        raise ValueError(f"capture = {capture!r}: must be a list of names, such as [{capture!r}]")
    ours = {name: _canonical(name) for name in (*capture, *(intervene or {}))}
    replaced: dict[str, Intervention] = {}
    for name, function in (intervene or {}).items():
        if ours[name] in replaced:
            raise ValueError(f"intervene: {ours[name]} is named twice")
        replaced[ours[name]] = function
    session = _Session(network, frozenset(ours[name] for name in capture), replaced)
    with _watching(session):
        output = forward()
    if missing := [name for name in ours if ours[name] not in session.shapes]:
        raise ValueError("\n".join(_unknown(name, session.shapes) for name in missing))
    return output, {name: session.kept[ours[name]] for name in capture}


def shapes_of(network: nn.Module, forward: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every activation that a forward pass comes by, by name, in order."""
    session = _Session(network, None, {})
    with _watching(session):
        forward()
    return session.shapes


@contextmanager
def _watching(session: _Session) -> Iterator[None]:
    global _session
    before, _session = _session, session
    try:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        _session = before


def _checked(name: str, x: Tensor, new: Any, below: int | None) -> Tensor:
    if not isinstance(new, Tensor):
        raise ValueError(f"intervene: {name} became {type(new).__name__}; return a tensor")
    for what, ours, theirs in (
        ("shape", tuple(x.shape), tuple(new.shape)),
        ("dtype", x.dtype, new.dtype),
        ("device", x.device, new.device),
    ):
        if ours != theirs:
            raise ValueError(f"intervene: {name} has {what} {ours}, and became {theirs}; keep it")
    if (
        below is not None
        and new is not x
        and new.numel()
        and not 0 <= int(new.min()) <= int(new.max()) < below
    ):
        raise ValueError(
            f"intervene: {name} became {int(new.min())} … {int(new.max())}; must lie in 0 … {below - 1}"
        )
    return new


def _canonical(name: str) -> str:
    for pattern, ours in _ALIASES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(_canonical(name), known, _N_SUGGESTED, 0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"{name!r}: this network has no such activation; {hint}network.activations() lists them"


# -- attention whose weights are asked for -----------------------------------------------------------------------------


def with_weights(owner: nn.Module, fused: Tensor, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Softmax attention that offers its weights ``(B, H, T, S)`` as ``weights``.

    Where they stay what they were, the values are those of the fused kernel, bit for bit, and gradients go through the
    weights; in training with dropout gradients stay the kernel's own.

    Args:
        owner: offers the weights.
        fused: ``(B, H, T, d)``, what the kernel made of the following.
        q: ``(B, H, T, d)``, the queries of the last T of S positions.
        k: ``(B, H, S, d)``.
        v: ``(B, H, S, d)``.
        dropout: probability with which a weight is dropped.
    """
    T, S = q.shape[-2], k.shape[-2]
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    own = scores.masked_fill(future, float("-inf")).softmax(-1)
    weights = tap(owner, "weights", own)
    if weights is not own and not torch.equal(weights, own):
        return torch.nn.functional.dropout(weights, dropout).to(v.dtype) @ v
    if dropout > 0 or not fused.requires_grad:
        return fused
    through: Tensor = _ValueOf.apply(weights.to(v.dtype) @ v, fused.detach())
    return through


class _ValueOf(torch.autograd.Function):
    """The values of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, through: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
