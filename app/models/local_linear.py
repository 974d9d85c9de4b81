"""Linear layers that learn by local rules, for every architecture.

The forward pass is always ``x Wᵀ + b``. What differs is the error that a layer sends down and, with direct
feedback alignment, the error that it learns from itself:

- ``bp``: back-propagation.
- ``fa``: feedback alignment, ``∂L/∂x := g B`` with B fixed (Lillicrap et al. 2016).
- ``sign_sym``: sign-symmetry, ``∂L/∂x := g (s · sign(W))`` (Liao, Leibo & Poggio 2016).
- ``dfa``: direct feedback alignment, ``∂L/∂W := (e R ⊙ f′)ᵀ x`` with e the gradient of the logits and R fixed
  (Nøkland 2016; in transformers Launay et al. 2020, arXiv 2006.12878). Both papers have f′, the derivative of what
  follows the layer; here it is 1, unless the network names it by :meth:`LocalLinear.multiply_error`.

Shape suffixes: N tokens, V logits.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from app.models import feedback as draws
from app.models.direct_feedback import DirectFeedback
from app.models.feedback import FEEDBACK_INITS, FeedbackInit
from app.models.rules import FollowsRule

Method = Literal["bp", "fa", "dfa", "sign_sym"]
METHODS: tuple[str, ...] = get_args(Method)
#: most weights whose feedback is turned in one product, which takes five times their memory
WEIGHTS_TOGETHER = 2**24


class LocalLinear(nn.Linear, FollowsRule):
    """A linear layer whose error is carried backwards by ``method``.

    Gradients of weight and bias are exact for the error g that arrives, except with ``dfa``, where they come from
    the gradient e of the logits of the same token: ``(e R ⊙ f′)ᵀ x`` and ``Σ e R ⊙ f′``. That needs an
    :class:`OutputError`, see :func:`learn_locally`; it is delivered inside the backward pass, so that
    accumulation, clipping, mixed precision and data parallelism see ordinary gradients.

    Args:
        in_features: width of x.
        out_features: width of y.
        bias: whether there is one.
        method: ``bp``, ``fa``, ``dfa`` or ``sign_sym``.
        n_logits: V, with ``dfa``.
        propagate: with ``dfa``, whether ``∂L/∂x`` is ``g W``, so that embeddings, norms and gates still learn by
            back-propagation (the hybrid of Launay et al.), or zero.
        init: how B is drawn, see :func:`app.models.feedback.feedback_matrix`.
        sparse_k: entries per row of B with ``init="sparse"``; 0 for max(1, in // 16).
        seed: of the feedback matrices.
        layer_name: where the layer stands; another name gives another matrix.
        draws_feedback: False where the weights are initialised later: :meth:`draw_feedback` is called then.

    Attributes:
        feedback: buffer, B ``(out, in)`` with ``fa``, R ``(V, out)`` with ``dfa``; otherwise None.
        sign_scale: buffer, s ``()`` with ``sign_sym``, the standard deviation of W at its initialisation.
        output_error: with ``dfa``, where the layer takes e from.

    Raises:
        ValueError: an unknown method or ``init``, ``sparse_k`` above ``in_features``, or ``dfa`` without
            ``n_logits``; the message names every such argument.
    """

    feedback: Tensor | None
    sign_scale: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        method: Method = "bp",
        *,
        n_logits: int = 0,
        propagate: bool = True,
        init: FeedbackInit = "gaussian",
        sparse_k: int = 0,
        seed: int = 0,
        layer_name: str = "",
        draws_feedback: bool = True,
    ):
        problems = []
        if method not in METHODS:
            problems.append(f"method = {method!r}: must be one of {', '.join(METHODS)}")
        if method == "dfa" and n_logits < 1:
            problems.append(f"n_logits = {n_logits}: method dfa needs the number of logits")
        if init not in FEEDBACK_INITS:
            problems.append(f"init = {init!r}: must be one of {', '.join(FEEDBACK_INITS)}")
        if not 0 <= sparse_k <= in_features:
            problems.append(f"sparse_k = {sparse_k}: must lie in [0, in_features] = [0, {in_features}]")
        if problems:
            raise ValueError("\n".join(problems))
        super().__init__(in_features, out_features, bias)
        self.method = method
        self.rules = ("bp", method)
        self.rule = method
        self.n_logits = n_logits
        self.propagate = propagate
        self.init = init
        self.sparse_k = sparse_k
        self.seed = seed
        self.layer_name = layer_name
        self.output_error: OutputError | None = None
        self.register_buffer("feedback", None)
        self.register_buffer("sign_scale", None)
        if draws_feedback:
            self.draw_feedback()

    def draw_feedback(self) -> None:
        """Draws B, R or s for the weights as they are; call it again once they are initialised otherwise."""
        if self.method == "fa":
            self.feedback = draws.feedback_matrix(
                self.weight, self.init, self.sparse_k, self.seed, self.layer_name
            )
        elif self.method == "dfa":
            self.feedback = draws.broadcast_matrix(self.weight, self.n_logits, self.seed, self.layer_name)
        elif self.method == "sign_sym":
            self.sign_scale = draws.initial_scale(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in) → (…, out)``.

        Raises:
            RuntimeError: with ``dfa``, the layer is trained but no :class:`OutputError` is connected.
        """
        if self.rule == "bp":
            return F.linear(x, self.weight, self.bias)
        if self.rule == "dfa":
            return self._forward_dfa(x)
        y = F.linear(x.detach(), self.weight, self.bias)
        if not x.requires_grad:
            return y
        if self.rule == "fa":
            return send_down(y, x, self.feedback)
        return send_down(y, x, self.weight.detach(), self.sign_scale)

    def _forward_dfa(self, x: Tensor) -> Tensor:
        x = x.to(_compute_dtype(x))  # once, for the product and for the gradient
        bias = None if self.bias is None else self.bias.detach()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            if self.output_error is None:
                raise RuntimeError(
                    f"layer {self.layer_name!r} learns by dfa and is connected to no logits; see learn_locally"
                )
            self.output_error.expect(self, x.detach())
        if self.propagate:
            return F.linear(x, self.weight.detach(), bias)
        y = F.linear(x.detach(), self.weight.detach(), bias)
        return send_down(y, x, None) if x.requires_grad else y

    def multiply_error(self, factor: Tensor) -> None:
        """Names f′ of what this layer has just read in a forward pass: its error ``e R`` is multiplied by it.

        Without ``dfa``, and where nothing is learned, it has no effect.

        Args:
            factor: ``(…, out)``, the derivative of what follows the layer, unit by unit.
        """
        if self.rule == "dfa" and self.output_error is not None:
            self.output_error.multiply(self, factor.detach())

    def extra_repr(self) -> str:
        """The method beside the sizes."""
        return f"{super().extra_repr()}, method={self.method}"


@torch.no_grad()
def align_feedback(layers: Iterable[LocalLinear], n_probes: int, rate: float, step: int) -> None:
    """One step of each B towards W, see :func:`app.models.feedback.aligned`; the same on every rank.

    Layers of one shape are turned together: a step of single ones is hundreds of launches of little work.

    Args:
        layers: that learn by ``fa``.
        n_probes: random inputs of each.
        rate: length of the step on the unit sphere.
        step: with seed and layer name the key of the probes.
    """
    alike: dict[object, list[LocalLinear]] = {}
    for layer in layers:
        weight = layer.weight
        together = alike.setdefault((weight.shape, weight.dtype, weight.device), [])
        together.append(layer)
        if (len(together) + 1) * weight.numel() > WEIGHTS_TOGETHER:
            _align([*together], n_probes, rate, step)
            together.clear()
    for together in alike.values():
        if together:
            _align(together, n_probes, rate, step)


def _align(layers: list[LocalLinear], n_probes: int, rate: float, step: int) -> None:
    weights, feedback, probes = [], [], []
    for layer in layers:
        assert layer.feedback is not None
        draw = draws.generator(layer.seed, layer.layer_name, step, device=layer.weight.device)
        weights.append(layer.weight)
        feedback.append(layer.feedback)
        probes.append(draws.probes(n_probes, layer.weight, draw))
    turned = draws.aligned(torch.stack(feedback), torch.stack(weights), torch.stack(probes), rate)
    torch._foreach_copy_(feedback, list(turned.to(feedback[0].dtype).unbind()))


def send_down(y: Tensor, x: Tensor, matrix: Tensor | None, sign_scale: Tensor | None = None) -> Tensor:
    """``y`` itself, whose gradient g also goes to ``x`` as g times ``matrix``.

    Args:
        y: ``(…, out)``, computed without the graph of ``x``.
        x: ``(…, in)``.
        matrix: ``(out, in)``; None sends zeros.
        sign_scale: ``()``; with it, its product with the signs of ``matrix`` stands for ``matrix``.
    """
    sent: Tensor = _SendDown.apply(y, x, matrix, sign_scale)
    return sent


class _SendDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, matrix: Tensor | None, sign_scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(matrix, sign_scale)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        matrix, sign_scale = ctx.saved_tensors
        if matrix is None:
            down = g.new_zeros(ctx.shape, dtype=ctx.dtype)
        elif sign_scale is None:
            down = (g @ matrix.to(g.dtype)).to(ctx.dtype)
        else:
            # Of the two factors of s the matrix is the smaller: it is read and written once more, not the product.
            down = (g @ (matrix.sign() * sign_scale).to(g.dtype)).to(ctx.dtype)
        return g, down, None, None


class OutputError:
    """Carries the gradient of the logits to the layers that learn by direct feedback alignment.

    In a forward pass each of them leaves its input here; the logits then pass through a function whose backward
    has e at hand, as it is with loss scaling, accumulation factors and token weights in it, and returns the
    gradient of each layer's weight. Nothing is stored beyond the graph of that pass.

    Token by token: every input must be ordered as the logits are, ``(…, in)`` beside ``(…, V)``. What a layer reads
    outside of a forward pass of the network (a block called alone, :meth:`LanguageModel.prefill`) is not kept, and
    teaches its weights nothing.
    """

    def __init__(self) -> None:
        # Layer, input, and what its error is multiplied by; None: no pass is under way.
        self._expected: list[tuple[LocalLinear, Tensor, Tensor | None]] | None = None

    def connect(self, network: nn.Module, head: nn.Module) -> None:
        """Takes part in the forward passes of ``network``, whose logits are the output of ``head``."""
        for layer in network.modules():
            if isinstance(layer, LocalLinear) and layer.method == "dfa":
                layer.output_error = self
        network.register_forward_pre_hook(self._begin)
        head.register_forward_hook(self._deliver)

    def expect(self, layer: LocalLinear, x: Tensor) -> None:
        """A layer has read ``x`` ``(…, in)``; kept where a pass is under way."""
        if self._expected is not None:
            self._expected.append((layer, x, None))

    def multiply(self, layer: LocalLinear, factor: Tensor) -> None:
        """The error of what ``layer`` has read last counts ``factor (…, out)`` times."""
        for at in reversed(range(len(self._expected or ()))):
            assert self._expected is not None
            expected, x, before = self._expected[at]
            if expected is layer:
                self._expected[at] = (layer, x, factor if before is None else before * factor)
                return

    def _begin(self, network: nn.Module, inputs: Any) -> None:
        self._expected = []  # of a pass that ended before its logits

    def _deliver(self, head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        expected, self._expected = self._expected, None
        if not expected:
            return logits
        for layer, x, _ in expected:
            if x.shape[:-1] != logits.shape[:-1]:
                raise RuntimeError(
                    f"layer {layer.layer_name!r} learns by dfa from an input {tuple(x.shape)}, which is not ordered "
                    f"as the logits {tuple(logits.shape)}: which error belongs to which of its rows is unknown"
                )
        tensors = [
            part
            for layer, x, factor in expected
            for part in (x, layer.feedback, factor, layer.weight, layer.bias)
        ]
        delivered: Tensor = DirectFeedback.apply(logits, *tensors)
        return delivered


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of ``x`` are computed here."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def local_linears(network: nn.Module) -> Iterator[LocalLinear]:
    """All :class:`LocalLinear` layers, in order."""
    return (module for module in network.modules() if isinstance(module, LocalLinear))


def learn_locally(
    network: nn.Module,
    method: Method,
    *,
    head: str = "head",
    propagate: bool = True,
    init: FeedbackInit = "gaussian",
    sparse_k: int = 0,
    seed: int = 0,
) -> None:
    """Makes every ``nn.Linear`` of an architecture learn by a local rule, in place.

    Parameters stay the same objects, tied ones included, and a layer that stands in several places stays one layer;
    feedback is drawn for the weights as they are, so call it after they are initialised and before an optimizer or a
    data-parallel wrapper sees the network. For training, the call belongs at the end of an architecture's
    constructor, with an argument for the rule: a network converted from outside is not rebuilt by its
    :meth:`LanguageModel.description`.

    Not reached, and so learning by back-propagation: subclasses of ``nn.Linear`` and parametrised layers, which have
    a forward pass of their own, and whatever multiplies by a parameter without a linear layer. A layer whose weight
    another module reads (``F.linear(x, layer.weight)``, the fast paths of ``nn.TransformerEncoderLayer``) follows
    the rule where it is called alone.

    Args:
        network: of any architecture; with ``dfa``, the input of each of its linear layers must be ordered as the
            logits, see :class:`OutputError`, and the error of each is ``e R`` alone, without the derivative of what
            follows it.
        method: ``fa``, ``dfa`` or ``sign_sym``.
        head: name of the linear layer whose output are the logits; with ``dfa`` it stays an ordinary one.
        propagate: see :class:`LocalLinear`, as for the following.
        init: how B is drawn.
        sparse_k: entries per row of B with ``init="sparse"``.
        seed: of the feedback matrices.

    Raises:
        ValueError: another method; the network has no linear layer, or with ``dfa`` none called ``head``; it learns
            locally already; a layer has hooks, which would be lost; an argument that :class:`LocalLinear` refuses.
            The network is then as it was.
    """
    if method not in METHODS[1:]:
        raise ValueError(f"method = {method!r}: must be one of {', '.join(METHODS[1:])}")
    if any(True for _ in local_linears(network)):
        raise ValueError(f"network = {type(network).__name__}: its layers have a learning rule already")
    found = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear
    ]
    if not found:
        raise ValueError(f"network = {type(network).__name__}: has no nn.Linear that could learn by {method}")
    names = dict(found)
    if method == "dfa" and head not in names:
        raise ValueError(f"head = {head!r}: no linear layer has this name; known: {', '.join(names)}")
    if hooked := [name for name, linear in found if _has_hooks(linear)]:
        raise ValueError(f"network = {type(network).__name__}: remove the hooks of {', '.join(hooked)} first")
    converted: dict[nn.Linear, LocalLinear] = {}
    for name, linear in found:
        if linear in converted or (method == "dfa" and linear is names[head]):
            continue
        with torch.device("meta"):  # the memory is there already
            local = LocalLinear(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                method,
                n_logits=names[head].out_features if method == "dfa" else 0,
                propagate=propagate,
                init=init,
                sparse_k=sparse_k,
                seed=seed,
                layer_name=name,
                draws_feedback=False,
            )
        local.weight, local.bias = linear.weight, linear.bias
        local.draw_feedback()
        local.train(linear.training)
        converted[linear] = local
    for name, linear in found:
        if linear in converted:
            network.set_submodule(name, converted[linear])
    if method == "dfa":
        OutputError().connect(network, network.get_submodule(head))


def _has_hooks(module: nn.Module) -> bool:
    kinds = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        module._state_dict_hooks,
        module._state_dict_pre_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    )
    return any(kinds)
