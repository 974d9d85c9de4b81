"""Tilelli as a LightningModule."""

import inspect
from typing import Any, Literal

from app.models.tilelli import TilelliLM
from app.training.language_model import LanguageModelModule
from app.training.network_problems import network_problems

NETWORK_ARGUMENTS = frozenset(inspect.signature(TilelliLM).parameters)


class TilelliModule(LanguageModelModule):
    """Trains :class:`app.models.tilelli.TilelliLM`.

    Args:
        vocab_size: symbols; taken from the data.
        d_model: width of the residual stream.
        n_layers: Tilelli blocks.
        dropout: on the embedding and on each block's mixed output, in [0, 1).
        d_head: width of the sparse path's queries and keys.
        kernel_size: taps of the local path.
        wide_kernel_size: taps of the wide path (``pathways: 5`` only).
        top_k: positions that each query of the sparse path keeps.
        pathways: 5 (local, wide, state, sparse, dense) or 3 (local, state, sparse).
        n_banks: full copies of every pathway's weights, of which each token uses one.
        skip_threshold: path weight below which ``network.infer`` leaves a path out, in [0, 1]; training never does.
        skip_mode: ``per_call`` leaves out a path that is below on all tokens, ``per_token`` on each token where it is.
        quantize: ternary weights; False trains the same form in full precision.
        per_row: a ternary scale per output row, or channel of a convolution, in place of one per weight and bank.
        hadamard: quantise router and dense path in the Walsh-Hadamard basis of their inputs.
        lsq: learn the ternary scales (LSQ) of router, convolutions and dense path.
        dense_expand: width of the dense path's hidden layer over ``d_model``.
        fp_attention: leave the weights of the sparse path in full precision.
        top_k_routing: router entries (path and bank) that each token keeps; 0 keeps all. With 1 the task gives
            the router no gradient but rounding, nor does any loss but ``router_z_loss``.
        bank_gate: ``sum`` weighs a path by all its banks, ``bank`` by the chosen one; the choice then has a gradient.
        balance: what keeps banks in use: the ``original`` loss, that of the Switch Transformer (``switch``), a ``bias``
            on the choice that is moved after each step, or ``none``.
        state_init: gains of the state path; ``original`` starts it next to silent, ``unit`` at the scale of its input.
        router_z_loss: weight on the squared logsumexp of the router's logits, >= 0.
        router_noise: scale of Gumbel noise on the router's logits in training, >= 0.
        pathway_balance: weight on the squared deviation of path shares from uniform, >= 0.
        path_norm: scale the output of every path to unit mean square before it is mixed.
        position: ``none``, or ``learned`` embeddings, which fix the longest context at the data's block size.
        block_size: longest context with learned positions; taken from the data.
        aux_weight: factor on the sum of the blocks' auxiliary losses.
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
        skip_threshold: float = 0.05,
        skip_mode: Literal["per_call", "per_token"] = "per_call",
        quantize: bool = True,
        per_row: bool = False,
        hadamard: bool = False,
        lsq: bool = False,
        dense_expand: int = 2,
        fp_attention: bool = False,
        top_k_routing: int = 0,
        bank_gate: Literal["sum", "bank"] = "sum",
        balance: Literal["original", "switch", "bias", "none"] = "original",
        state_init: Literal["original", "unit"] = "original",
        router_z_loss: float = 0.0,
        router_noise: float = 0.0,
        pathway_balance: float = 0.0,
        path_norm: bool = False,
        position: Literal["none", "learned"] = "none",
        block_size: int | None = None,
        aux_weight: float = 1.0,
        **training: Any,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name in NETWORK_ARGUMENTS}
        if position == "none":
            arguments["block_size"] = None  # the data's, which this network does not depend on
        super().__init__(network=TilelliLM(**arguments), **training)

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        return network_problems(TilelliLM, arguments) + super().problems(**arguments)

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Also what belongs to pathways, banks, losses, trits or positions that are not there."""
        found = super().without_effect(**arguments)
        found += [
            (name, "in training and validation: network.infer alone skips")
            for name in ("skip_threshold", "skip_mode")
        ]
        if arguments["pathways"] == 3:
            found += [(name, "with pathways: 3") for name in ("wide_kernel_size", "dense_expand")]
        if arguments["n_banks"] == 1:
            found += [(name, "with a single bank") for name in ("bank_gate", "balance")]
        if not arguments["quantize"]:
            reason = "with quantize: false, where no weight is ternary"
            found += [(name, reason) for name in ("per_row", "hadamard", "fp_attention")]
        elif _is_odd(arguments["d_model"]) and (
            arguments["pathways"] == 3 or _is_odd(arguments["dense_expand"])
        ):
            found.append(("hadamard", "with inputs of odd width, which no block of the transform divides"))
        if arguments["top_k_routing"] >= arguments["pathways"] * arguments["n_banks"]:
            found.append(("top_k_routing", "where it keeps every entry of the router"))
        if arguments["position"] == "none":
            found.append(("block_size", "with position: none"))
        losses = ("router_z_loss", "pathway_balance")
        has_bank_loss = arguments["n_banks"] > 1 and arguments["balance"] in ("original", "switch")
        if arguments["top_k_routing"] == 1:
            # r is 1 or 0: its means have no gradient, and no second bank is left to choose.
            reason = "with top_k_routing: 1, where the one entry that is kept weighs 1"
            found += [(name, reason) for name in ("bank_gate", "balance", "pathway_balance")]
        if arguments["aux_weight"] == 0:
            found += [(name, "with aux_weight: 0") for name in losses]
            if arguments["balance"] == "switch":
                found.append(("balance", "with aux_weight: 0"))
        elif not has_bank_loss and not any(arguments[name] > 0 for name in losses):
            found.append(
                ("aux_weight", "without an auxiliary loss: no balance of several banks, none of the router")
            )
        return found


def _is_odd(number: int) -> bool:
    return number % 2 == 1
