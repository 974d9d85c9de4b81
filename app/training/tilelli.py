"""Tilelli as a LightningModule."""

from typing import Any

from app.models.tilelli import TilelliLM
from app.training.language_model import LanguageModelModule, network_problems


class TilelliModule(LanguageModelModule):
    """Trains :class:`app.models.tilelli.TilelliLM`.

    Args:
        vocab_size: symbols; taken from the data.
        d_model: width of the residual stream.
        n_layers: Tilelli blocks.
        dropout: on the embedding and on each block's mixed output, in [0, 1).
        d_head: width of the sparse path's queries and keys.
        kernel_size: taps of the local path.
        wide_kernel_size: taps of the wide path (``pathways=5`` only).
        top_k: positions that each query of the sparse path keeps.
        pathways: 5 (local, wide, state, sparse, dense) or 3 (local, state, sparse).
        n_banks: full copies of every pathway's weights, of which each token uses one.
        quantize: ternary weights; False trains the same form in full precision.
        dense_expand: width of the dense path's hidden layer over ``d_model``.
        aux_weight: factor on the sum of the blocks' balance losses.
        training: optimizer, schedule and clipping, see :class:`LanguageModelModule`.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 128,
        n_layers: int = 4,
        dropout: float = 0.0,
        d_head: int = 32,
        kernel_size: int = 5,
        wide_kernel_size: int = 21,
        top_k: int = 8,
        pathways: int = 5,
        n_banks: int = 1,
        quantize: bool = True,
        dense_expand: int = 2,
        aux_weight: float = 1.0,
        **training: Any,
    ) -> None:
        network = TilelliLM(
            vocab_size=vocab_size,
            d_model=d_model,
            n_layers=n_layers,
            dropout=dropout,
            d_head=d_head,
            kernel_size=kernel_size,
            wide_kernel_size=wide_kernel_size,
            top_k=top_k,
            pathways=pathways,
            n_banks=n_banks,
            quantize=quantize,
            dense_expand=dense_expand,
            aux_weight=aux_weight,
        )
        super().__init__(network=network, **training)

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        return network_problems(TilelliLM, arguments) + super().problems(**arguments)

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Also what belongs to pathways or banks that are not there."""
        found = super().without_effect(**arguments)
        if arguments["pathways"] == 3:
            found += [(name, "with pathways: 3") for name in ("wide_kernel_size", "dense_expand")]
        if arguments["n_banks"] == 1:
            found.append(("aux_weight", "with a single bank, which needs no balance"))
        return found
