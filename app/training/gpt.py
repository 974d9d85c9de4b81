"""The GPT baseline as a LightningModule."""

from typing import Any

from app.models.gpt import GPT
from app.training.language_model import LanguageModelModule
from app.training.network_problems import network_problems


class GPTModule(LanguageModelModule):
    """Trains :class:`app.models.gpt.GPT`.

    Args:
        vocab_size: symbols; taken from the data.
        block_size: longest sequence in tokens; taken from the data.
        n_layers: transformer blocks.
        n_heads: attention heads per block; must divide ``d_model``.
        d_model: width of the residual stream.
        dropout: on embeddings, attention and both residual branches, in [0, 1).
        bias: biases in the linear layers of the blocks; the norms always have one.
        tie_weights: one matrix for embedding and output head.
        training: optimizer, schedule and clipping, see :class:`LanguageModelModule`.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layers: int = 6,
        n_heads: int = 6,
        d_model: int = 384,
        dropout: float = 0.0,
        bias: bool = False,
        tie_weights: bool = True,
        **training: Any,
    ) -> None:
        network = GPT(
            vocab_size=vocab_size,
            block_size=block_size,
            n_layers=n_layers,
            n_heads=n_heads,
            d_model=d_model,
            dropout=dropout,
            bias=bias,
            tie_weights=tie_weights,
        )
        super().__init__(network=network, **training)

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        return network_problems(GPT, arguments) + super().problems(**arguments)
