"""What every language model offers to training, watching and generation."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.models.local_linear import local_linears
from app.models.rules import following
from app.records import LanguageModelOutput, Measure, TernaryWeight, TokenMeasure

IGNORED_TARGET = -100


class LanguageModel(nn.Module):
    """Base of the networks that predict the next token.

    A subclass implements :meth:`forward` and overrides of the rest what differs.

    Attributes:
        max_context: longest T that ``forward`` takes; None where any length will do.
        can_step: whether :meth:`prefill` and :meth:`step` are there, for generation at a constant cost per token.
    """

    max_context: int | None = None
    can_step: bool = False
    _init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes a subclass remember the arguments that it was built with, defaults included."""
        super().__init_subclass__(**kwargs)
        initialise = cls.__init__
        signature = inspect.signature(initialise)

        @functools.wraps(initialise)
        def remembering(self: "LanguageModel", *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
            initialise(self, *args, **kwargs)
            # The outermost constructor ends last, so that what stays is what the user's class was given.
            self._init_args = arguments

        cls.__init__ = remembering  # type: ignore[assignment, method-assign]

    def description(self) -> dict[str, Any]:
        """``{"class_path", "init_args"}``, plain values from which the same network is built again."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self._init_args),
        }

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
            of depth; empty for a network without any. With their graph, where there is one.
        """
        kept: dict[str, Tensor] = {}

        def keeper(name: str) -> Callable[..., None]:
            def keep(block: nn.Module, inputs: Any, output: Any) -> None:
                kept[name] = output[0] if isinstance(output, tuple) else output

            return keep

        blocks = getattr(self, "blocks", [])
        handles = [block.register_forward_hook(keeper(f"blocks.{i}")) for i, block in enumerate(blocks)]
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
    """Mean cross-entropy in nats over the targets that are not −100, in fp32; None without targets.

    Args:
        logits: ``(B, T, V)``.
        targets: ``(B, T)`` int64 or None.
    """
    if targets is None:
        return None
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.flatten(0, 1).to(dtype), targets.flatten(), ignore_index=IGNORED_TARGET)
