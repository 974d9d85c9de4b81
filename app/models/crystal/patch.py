"""Exchanging the attention of a trained network for a while, and reading its residuals.

Shape suffixes: B batch, T sequence, L layers, H heads, d head width, r rank.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from app.models.attention import SoftmaxAttention
from app.models.crystal import hugging_face
from app.models.crystal.attention import ExchangedAttention
from app.models.crystal.basis import ResidualBasis, ResidualMoments
from app.ops.crystal_attention import MODES, Mode, decompose_attention, random_basis
from app.ops.crystal_attention.modes import additive_mask

#: what each exchanged layer held before, and what it was given since; the newest is the one in use
_HELD: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()

READABLE = (
    "GPT, LocalGPT with softmax, EquilibriumLM and transformers' models of GPT-2, Llama, Mistral and Qwen"
)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention layers of a network in the order of their depth: the numbers that layers are named by.

    A layer of ours holds its attention as a module called ``core``, one of transformers looks it up in the
    library's table of attention functions.

    Raises:
        ValueError: the network has none.
    """
    found = [module for module in model.modules() if isinstance(getattr(module, "core", None), nn.Module)]
    found = found or hugging_face.attention_layers(model)
    if not found:
        raise ValueError(
            f"model = {type(model).__name__}: has no softmax attention that can be exchanged; {READABLE} have"
        )
    return found


def deepest_quarter(n_layers: int) -> list[int]:
    """Indices of the deepest quarter of so many layers, at least one."""
    return list(range(n_layers - max(1, round(n_layers / 4)), n_layers))


@contextmanager
def exchanged(model: nn.Module, cores: Mapping[int, nn.Module]) -> Iterator[None]:
    """For the time of a ``with`` block, chosen attention layers compute with other cores; then exactly as before.

    Blocks may overlap and end in any order: the newest of those that last is the one in use.

    Args:
        model: a network with attention layers.
        cores: by index of the layer, modules called like :class:`ExchangedAttention`.

    Raises:
        ValueError: a layer does not exist, or its attention is not softmax.
    """
    layers = attention_layers(model)
    problems = [
        f"layer = {index}: {type(model).__name__} has attention layers 0 … {len(layers) - 1}"
        for index in cores
        if not 0 <= index < len(layers)
    ]
    if not problems:
        problems = [
            f"layer = {index}: its attention is {type(core).__name__}, not softmax over all keys"
            for index in cores
            if (core := getattr(layers[index], "core", None)) is not None
            and not isinstance(core, SoftmaxAttention | ExchangedAttention | ReadAttention)
        ]
    if problems:
        raise ValueError("\n".join(problems))
    with ExitStack() as stack:
        theirs = {}
        for index, core in cores.items():
            layer = layers[index]
            if isinstance(getattr(layer, "core", None), nn.Module):
                _give(layer, core)
                stack.callback(_take_back, layer, core)
            else:
                theirs[layer] = core
        if theirs:
            stack.enter_context(hugging_face.exchanged(layers, theirs))
        yield


def _give(layer: nn.Module, core: nn.Module) -> None:
    own: nn.Module = layer.core  # type: ignore[assignment]
    _HELD.setdefault(layer, [own]).append(core)
    layer.core = core


def _take_back(layer: nn.Module, core: nn.Module) -> None:
    held = _HELD[layer]
    held.remove(core)  # modules equal themselves alone
    layer.core = held[-1]
    if len(held) == 1:
        del _HELD[layer]


class CrystalPatch:
    """Context manager: chosen layers of a trained network with crystallised attention.

    Weights are not touched; at the end, also after an exception, every layer has the very attention it had.
    Several may be in force at once and end in any order; each is entered once at a time. A copy of a network of
    ours that is made meanwhile (``deepcopy``, pickling) keeps the exchanged attention for good, one of
    transformers starts with its own: copy before or after. Padding masks of a model of transformers are respected.

    Args:
        model: a network of ours with softmax attention, or a model of transformers, of a family in
            :data:`app.models.crystal.hugging_face.FAMILIES`.
        layers: indices of attention layers, see :func:`attention_layers`.
        mode: see :func:`app.models.crystal.crystal_attention`.
        rank: r of ``lowrank`` and ``random``.
        top_k: keys of ``topk``.
        basis: for ``lowrank``, a :class:`ResidualBasis` or ``(H, d, r or more)`` per layer.
        seed: of the ``random`` bases, one per layer and head.

    Raises:
        ValueError: on entering, a layer that does not exist or is not softmax, a mode without what it needs,
            a rank above the head width, a basis of other heads.
        RuntimeError: on entering, it is in force already.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int],
        mode: Mode,
        rank: int | None = None,
        top_k: int | None = None,
        basis: ResidualBasis | Mapping[int, Tensor] | None = None,
        seed: int = 42,
    ):
        self.model = model
        self.layers = list(layers)
        self.mode: Mode = mode
        self.rank = rank
        self.top_k = top_k
        self.basis = basis
        self.seed = seed
        self._stack: ExitStack | None = None

    def __enter__(self) -> nn.Module:
        if self._stack is not None:
            raise RuntimeError("CrystalPatch is in force already; make another one to exchange again")
        cores = {}
        for layer in self.layers:
            H, d = head_shape(self.model, layer)
            if problem := self._problem(layer, H, d):
                raise ValueError(problem)
            basis = self._basis_of(layer, H, d)
            cores[layer] = ExchangedAttention(self.mode, self.rank, self.top_k, basis)
        with ExitStack() as stack:
            stack.enter_context(exchanged(self.model, cores))
            self._stack = stack.pop_all()
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _problem(self, layer: int, H: int, d: int) -> str | None:
        if self.mode not in MODES:
            return f"mode = {self.mode!r}: must be one of {', '.join(MODES)}"
        if self.mode == "topk" and (self.top_k is None or self.top_k < 1):
            return f"top_k = {self.top_k}: mode topk needs a number of keys, at least 1"
        if self.mode not in ("lowrank", "random"):
            return None
        if self.rank is None or not 1 <= self.rank <= d:
            return f"rank = {self.rank}: must lie in 1 … {d}, the head width of layer {layer}"
        if self.mode == "random":
            return None
        if self.basis is None:
            return "basis = None: mode lowrank needs one; calibrate() makes it"
        basis = self._basis_of(layer, H, d)
        assert basis is not None
        if basis.dim() != 3 or basis.shape[:2] != (H, d) or basis.shape[2] < self.rank:
            shape = tuple(basis.shape)
            return f"basis = {shape}: layer {layer} needs ({H}, {d}, {self.rank} or more)"
        return None

    def _basis_of(self, layer: int, H: int, d: int) -> Tensor | None:
        if self.mode == "random":
            return random_basis(H, d, self.rank or 1, self.seed, layer)
        if self.mode != "lowrank" or self.basis is None:
            return None
        if isinstance(self.basis, ResidualBasis):
            return self.basis.of_layer(layer)
        if layer not in self.basis:
            raise ValueError(f"basis: holds nothing for layer {layer}")
        return self.basis[layer]


class ReadAttention(nn.Module):
    """Softmax attention that shows what it computes with: ``look(q, k, v, mask, scale)``."""

    def __init__(self, look: Callable[..., None]):
        super().__init__()
        self.look = look
        # Not called `core`: that is what attention layers are told by.
        self.attention = ExchangedAttention("full")

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout: float = 0.0,
        *,
        mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:
        """As :class:`ExchangedAttention`."""
        self.look(q, k, v, mask, scale)
        mixed: Tensor = self.attention(q, k, v, dropout, mask=mask, scale=scale)
        return mixed


def head_shape(model: nn.Module, layer: int) -> tuple[int, int]:
    """Number and width of the heads of an attention layer, found by reading two tokens."""
    seen: list[tuple[int, int]] = []

    def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> None:
        seen.append((v.shape[1], v.shape[3]))

    device = next(model.parameters()).device
    with exchanged(model, {layer: ReadAttention(look)}), evaluating(model):
        model(torch.zeros(1, 2, dtype=torch.int64, device=device))
    return seen[0]


def calibrate(
    model: nn.Module,
    layers: Sequence[int],
    batches: Iterable[Tensor | Mapping[str, Tensor]],
    fingerprints: Mapping[str, Any] | None = None,
) -> ResidualBasis:
    """The basis of the residuals of chosen layers on a text, in memory that does not grow with the text.

    With several ranks each reads its own part of the text and all get the basis of the whole.

    Args:
        model: as for :class:`CrystalPatch`; evaluated as it is, with its own attention.
        layers: indices of attention layers.
        batches: ``(B, T)`` int64 token numbers on the device of the model, or keyword arguments for it, such
            as ``input_ids`` and ``attention_mask``; positions of padding are not counted.
        fingerprints: plain values to keep beside the basis.

    Raises:
        ValueError: a layer does not exist, or the text is shorter than a head is wide.
    """
    shapes = {layer: head_shape(model, layer) for layer in layers}
    moments = ResidualMoments(shapes, next(model.parameters()).device)

    def reader(layer: int) -> ReadAttention:
        def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> None:
            _, _, residual = decompose_attention(q, k, v, mask=mask, scale=scale)
            moments.add(layer, residual, _counted(q, k, mask))

        return ReadAttention(look)

    with exchanged(model, {layer: reader(layer) for layer in layers}), evaluating(model):
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    moments.all_reduce()
    return moments.basis(fingerprints)


def _counted(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor | None:
    """``(B, T)`` whether a position is text: padding may not even look at itself."""
    added = None if mask is None else additive_mask(q, k, mask)
    if added is None:
        return None
    B, _, T, _ = q.shape
    own = (
        added[(None,) * (4 - added.dim())]
        .expand(B, -1, T, k.shape[-2])[:, 0]
        .diagonal(k.shape[-2] - T, -2, -1)
    )
    return own > torch.finfo(added.dtype).min / 2


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode comes back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
