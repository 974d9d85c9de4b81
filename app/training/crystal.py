"""The GPT with crystallised attention as a LightningModule."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from app.models.crystal import CrystalGPT, ResidualBasis, weights_digest
from app.run.errors import ConfigurationError
from app.training.language_model import LanguageModelModule
from app.training.network_problems import network_problems


class CrystalGPTModule(LanguageModelModule):
    """Trains :class:`app.models.crystal.CrystalGPT`, from scratch or from a trained GPT (``--init_from RUN``).

    Args:
        vocab_size: symbols; taken from the data.
        block_size: longest sequence in tokens; taken from the data.
        n_layers: transformer blocks.
        n_heads: attention heads per block; must divide ``d_model``.
        d_model: width of the residual stream.
        dropout: on embeddings, attention and both residual branches, in [0, 1).
        bias: biases in the linear layers and norms.
        tie_weights: one matrix for embedding and output head.
        crystal_layers: blocks whose attention is crystallised, from 0; all of them by default.
        mode: ``lowrank`` (the top key's value plus the residual in ``rank`` directions per head) or ``topk``
            (softmax over the ``top_k`` best keys).
        rank: directions per head, from 1 to d_model / n_heads.
        top_k: keys that count, at least 1.
        learn_basis: whether the directions train.
        basis_seed: of the random directions to start from.
        basis: file with calibrated directions that ``app crystallize`` has written, to start from instead; it
            goes before the directions of ``--init_from RUN``. Read when the run begins and never again: its
            checkpoints hold the directions.
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
        crystal_layers: list[int] | None = None,
        mode: Literal["topk", "lowrank"] = "lowrank",
        rank: int = 4,
        top_k: int = 2,
        learn_basis: bool = False,
        basis_seed: int = 42,
        basis: str | None = None,
        **training: Any,
    ) -> None:
        network = CrystalGPT(
            vocab_size=vocab_size,
            block_size=block_size,
            n_layers=n_layers,
            n_heads=n_heads,
            d_model=d_model,
            dropout=dropout,
            bias=bias,
            tie_weights=tie_weights,
            crystal_layers=crystal_layers,
            mode=mode,
            rank=rank,
            top_k=top_k,
            learn_basis=learn_basis,
            basis_seed=basis_seed,
        )
        super().__init__(network=network, **training)
        self._basis_file = basis if mode == "lowrank" else None

    def begin(self, weights: Mapping[str, Tensor] | None) -> list[str]:
        """Starts from the calibrated directions of ``basis``, where one is named.

        Raises:
            ConfigurationError: the file is missing, holds no basis, or one that does not fit.
        """
        if self._basis_file is None:
            return []
        assert isinstance(self.network, CrystalGPT)
        try:
            basis = ResidualBasis.load(self._basis_file)
            self.network.set_basis(basis)
        except ValueError as error:
            raise ConfigurationError(
                f"model.init_args.basis: {error}; leave it out (null) for directions of the run's own"
            ) from error
        what = f"model.init_args.basis: {self._basis_file} was made for"
        if weights is None:
            return [f"{what} trained weights, but none are taken; add --init_from RUN"]
        if basis.fingerprints.get("model") != weights_digest(weights):
            return [
                f"{what} other weights than those that --init_from takes, so that its directions need not be those of "
                "most energy; run app crystallize on them"
            ]
        return []

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Range rules of the network and of the training arguments."""
        return network_problems(CrystalGPT, arguments) + super().problems(**arguments)

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Also what belongs to the other mode, or to directions that are replaced."""
        found = super().without_effect(**arguments)
        if arguments["mode"] == "topk":
            names = ("rank", "learn_basis", "basis_seed", "basis")
            return found + [(name, "with mode: topk") for name in names]
        found.append(("top_k", "with mode: lowrank"))
        if arguments["basis"] is not None:
            found.append(("basis_seed", "beside basis, which replaces the random directions"))
        return found
