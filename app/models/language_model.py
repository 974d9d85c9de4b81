"""What every language model offers to training, watching and generation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app import options
from app.models.activations import Intervention, observed, shapes_of
from app.models.local_linear import local_linears
from app.models.rules import following
from app.records import LanguageModelOutput, Measure, TernaryWeight, TokenMeasure

IGNORED_TARGET = -100


class LanguageModel(nn.Module):
    """Base of the networks that predict the next token.

    A subclass implements :meth:`forward` and overrides of the rest what differs.

    Attributes:
        max_context: longest T that ``forward`` takes; None where any length will do.
        former_names: names that options had in earlier versions, to those that they have now.
        can_step: whether :meth:`prefill` and :meth:`step` are there, for generation at a constant cost per token.
        can_capture_after_step: whether :meth:`after_optimizer_step` does the same whatever the step's number is and
            reads nothing but tensors, so that a captured step may hold it; else it is called behind every replay.
        needs_whole_weights: whether a step reads a block's weights outside of the forward and the backward pass of that
            block, or :meth:`after_optimizer_step` reads weights. Weights that are kept in shards are then gathered for
            the whole step.
    """

    max_context: int | None = None
    can_step: bool = False
    can_capture_after_step: bool = False
    needs_whole_weights: bool = False
    former_names: ClassVar[Mapping[str, str]] = {}
    _init_args: dict[str, Any]
    _class_path: str

    def __init_subclass__(cls, options_of: type | None = None, **kwargs: Any) -> None:
        """Makes a subclass check its arguments and remember them, defaults included.

        Args:
            options_of: class whose options ``**others`` of the constructor stands for, and whose rules it keeps unless
                it has its own; its base class by default.
            kwargs: for other bases.
        """
        super().__init_subclass__(**kwargs)
        for rule in ("conflicts", "without_effect"):
            if options_of is not None and rule not in vars(cls) and hasattr(options_of, rule):
                setattr(cls, rule, getattr(options_of, rule))
        if "after_optimizer_step" in vars(cls):
            # What a base class says of its own is not said of this one.
            cls.can_capture_after_step = vars(cls).get("can_capture_after_step", False)
        if "__init__" not in vars(cls):
            return
        initialise = cls.__init__
        if options.has_others(initialise):
            initialise = options.taking(initialise, options_of or cls.__mro__[1])
        # The outermost constructor ends last, so that what stays is what the user's class was given.
        cls.__init__ = options.checked(initialise, _remember)  # type: ignore[method-assign]

    def __call__(
        self,
        *args: Any,
        capture: Sequence[str] | None = None,
        intervene: Mapping[str, Intervention] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs :meth:`forward`; what is asked of its activations is between the two.

        Args:
            args: of :meth:`forward`.
            capture: names of activations that come back in ``output.captured``, see :meth:`activations`; with their
                graph, where there is one.
            intervene: by name, what replaces an activation: a function from the tensor to one of its shape and type.
            kwargs: of :meth:`forward`.

        Raises:
            ValueError: no such activation, with the nearest ones; or an intervention changed shape, type or device.
        """
        if capture is None and intervene is None:
            return super().__call__(*args, **kwargs)
        output, captured = observed(
            self, lambda: nn.Module.__call__(self, *args, **kwargs), capture or (), intervene
        )
        return output._replace(captured=captured)

    def activations(self) -> dict[str, tuple[int | str, ...]]:
        """Names and shapes of what can be captured and replaced, in the order of a forward pass in evaluation.

        Of a shape, ``"B"`` is the number of rows and ``"T"`` that of tokens; another size that depends on them is
        ``"?"``.
        """
        # Two passes whose sizes no share of a row would have by chance.
        n_rows, longest = (3, 7), min(self.max_context or 17, 17)
        n_tokens = max(1, longest - 4), longest
        found = []
        for B, T in zip(n_rows, n_tokens, strict=True):
            idx = torch.zeros(B, T, dtype=torch.int64, device=next(self.parameters()).device)
            found.append(shapes_of(self, lambda idx=idx: self._evaluated(idx)))  # type: ignore[misc]
        names = {n_rows: "B", n_tokens: "T"}
        return {
            name: tuple(
                a if a == b else names.get((a, b), "?") for a, b in zip(shape, found[1][name], strict=True)
            )
            for name, shape in found[0].items()
        }

    @torch.no_grad()
    def _evaluated(self, idx: Tensor) -> None:
        """A forward pass that leaves no trace."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            self(idx)
        finally:
            for module, training in modes:
                module.training = training

    def description(self) -> dict[str, Any]:
        """``{"class_path", "init_args"}``, plain values from which the same network is built again."""
        return {"class_path": self._class_path, "init_args": dict(self._init_args)}

    @classmethod
    def with_defaults(cls, init_args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a :meth:`description` of any version: by today's names, and with the options that came later."""
        return options.defaults(cls) | {cls.former_names.get(name, name): x for name, x in init_args.items()}

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """Predict the token after each position.

        Args:
            idx: ``(B, T)`` int64 token numbers.
            targets: ``(B, T)`` int64, the tokens that follow; −100 where a position does not count.

        Returns:
            Logits, and with targets the mean cross-entropy over the positions that count.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters, each exactly once and in a fixed order, by whether weight decay applies.

        Returns:
            ``{"name", "params", "decay"}`` for matrices (decayed) and vectors (not); a group may add ``"rate"``,
            the factor on its learning rate, 1 where absent.
        """
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (matrices if self.is_matrix(name, parameter) else vectors).append(parameter)
        return [
            {"name": "matrices", "params": matrices, "decay": True},
            {"name": "vectors", "params": vectors, "decay": False},
        ]

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter maps features to features, rather than scaling or shifting each."""
        return parameter.dim() >= 2

    def is_hidden_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is a matrix, or a stack of matrices, between hidden features.

        An optimizer may then treat each matrix as a linear map. By default the matrices of the blocks (whose names
        carry a block's number), without embeddings and convolutions; so neither the token embedding nor the head.
        """
        owner, _, _ = name.rpartition(".")
        is_in_block = any(part.isdigit() for part in owner.split("."))
        kept_out = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        return (
            is_in_block
            and self.is_matrix(name, parameter)
            and not isinstance(self.get_submodule(owner), kept_out)
        )

    def auxiliary_means(self, output: LanguageModelOutput) -> Tensor | None:
        """Batch means that the auxiliary loss is a function of, with their graph; None without one."""
        return None

    def auxiliary_losses(self, means: Tensor) -> Tensor:
        """The weighted auxiliary loss ``()`` of :meth:`auxiliary_means`, of one batch or averaged."""
        return means.new_zeros(())

    def step_sums(self) -> list[Tensor]:
        """Where training forwards add up what :meth:`after_optimizer_step` needs of the global batch.

        Non-persistent buffers: sums and counts of the micro-batches of one optimizer step on this rank. They are
        added up over the ranks by one all-reduce before that call, and emptied after it.
        """
        return []

    def after_optimizer_step(self, step: int) -> None:
        """Moves what training moves without a gradient: once per optimizer step, the same on every rank.

        Must not read a value back to the host. Where the step is left out as non-finite, what
        :meth:`running_state` names is put back as it was before the step.

        Args:
            step: number of the step just made, counted from 1; with a seed it keys whatever is drawn here.
        """

    def running_state(self) -> list[Tensor]:
        """Everything that forwards in training or :meth:`after_optimizer_step` move without a gradient."""
        return []

    def starting_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this network begins from when it takes the weights of another run.

        A network that can go on from another architecture's weights adds or leaves out what differs; what
        does not fit after that is an error of the one who takes them.

        Args:
            weights: state dict of the other network.
        """
        return dict(weights)

    def parameter_counts(self) -> dict[str, int]:
        """Numbers that the network holds: ``trainable`` and ``frozen`` parameters, fixed ``feedback`` matrices."""
        counts = {"trainable": 0, "frozen": 0}
        for parameter in self.parameters():
            counts["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
        fixed = (layer.feedback for layer in local_linears(self))
        return counts | {"feedback": sum(matrix.numel() for matrix in fixed if matrix is not None)}

    @contextmanager
    def with_rule(self, rule: str) -> Iterator["LanguageModel"]:
        """For the time of a ``with`` block, every layer that can learn by another rule learns by this one.

        Args:
            rule: ``"bp"`` is back-propagation, the only rule of a network without such layers; hand-written
                backward passes of norms and activations are exact with it too.

        Raises:
            ValueError: no layer of this network knows the rule.
        """
        with following(self, rule):
            yield self

    @contextmanager
    def layer_outputs(self) -> Iterator[dict[str, Tensor]]:
        """For the time of a ``with`` block, keeps what each block gives in the newest forward pass.

        Returns:
            A dict that forward passes fill: ``(B, T, D)`` of each module in ``self.blocks``, by its name, in order
            of depth; empty for a network without any. With their graph, where there is one. Of a block that is called
            again in the same pass, what it gave first.
        """
        kept: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable[..., None]:
            def keep(block: nn.Module, inputs: Any, output: Any) -> None:
                kept.setdefault(name, output[0] if isinstance(output, tuple) else output)

            return keep

        blocks = getattr(self, "blocks", [])
        handles = [block.register_forward_hook(keeper(f"blocks.{i}")) for i, block in enumerate(blocks)]
        handles.append(self.register_forward_pre_hook(lambda network, inputs: kept.clear()))
        try:
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    def prefill(self, idx: Tensor) -> tuple[Tensor, Any]:
        """Reads a prompt at once.

        Args:
            idx: ``(B, T)`` int64, T ≥ 1.

        Returns:
            Logits ``(B, V)`` of the token after the prompt, and a cache to go on from with :meth:`step`.
        """
        raise NotImplementedError

    def step(self, token: Tensor, cache: Any) -> Tensor:
        """Reads one more token of each row, at a cost that does not grow with a second reading of the rest.

        Args:
            token: ``(B,)`` int64.
            cache: of :meth:`prefill` on the same rows; changed in place.

        Returns:
            Logits ``(B, V)`` of the next token, as :meth:`forward` would give them for the last position.
        """
        raise NotImplementedError

    def state_size(self, n_tokens: int) -> int:
        """Bytes that one sequence keeps of its first tokens in order to go on, in the format of the weights.

        Neither weights count nor room for tokens to come. A network that cannot step keeps the tokens themselves, 8
        bytes each, and reads them again; one that can says what it keeps in their place.

        Args:
            n_tokens: T, at least 1; of a text longer than ``max_context`` so many are kept.
        """
        return 8 * (n_tokens if self.max_context is None else min(n_tokens, self.max_context))

    def measures(self, output: LanguageModelOutput) -> Mapping[str, Measure]:
        """What this network reports about itself; nothing unless overridden."""
        return {}

    def token_measures(self, output: LanguageModelOutput) -> Mapping[str, TokenMeasure]:
        """What happened to each token of a forward, for reading single texts; nothing unless overridden.

        Args:
            output: of this network; its means over tokens are what :meth:`measures` reports of it.
        """
        return {}

    def ternary_weights(self) -> Mapping[str, TernaryWeight]:
        """The quantised form of every weight that is used as trits, by parameter name; none unless overridden."""
        return {}


def next_token_loss(logits: Tensor, targets: Tensor | None) -> Tensor | None:
    """Mean cross-entropy in nats over the targets that are not −100, in fp32; 0 where none is, None without targets.

    Args:
        logits: ``(B, T, V)``.
        targets: ``(B, T)`` int64 or None.
    """
    if targets is None:
        return None
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = F.cross_entropy(
        logits.flatten(0, 1).to(dtype), targets.flatten(), ignore_index=IGNORED_TARGET, reduction="sum"
    )
    return total / (targets != IGNORED_TARGET).sum().clamp(min=1)


def _remember(network: LanguageModel, arguments: dict[str, Any]) -> None:
    network._init_args = arguments
    # Now: whoever cuts a network into shards puts a class of its own in place of this one.
    network._class_path = f"{type(network).__module__}.{type(network).__qualname__}"
