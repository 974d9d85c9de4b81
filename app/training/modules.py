"""A LightningModule per architecture: its network's options beside those of training.

Each takes the options of its network, as that one's constructor states them, and those of
:class:`~app.training.language_model.LanguageModelModule`; only what is here of its own is said here.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from app.models import LanguageModelOutput
from app.models.crystal import CrystalGPT, ResidualBasis, weights_digest
from app.models.equilibrium import EquilibriumLM
from app.models.equilibrium.routing import PLASTIC
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM
from app.options import Given, Needs
from app.run.errors import ConfigurationError
from app.run.paths import typed_path
from app.training.language_model import LanguageModelModule

ADAPTATION = ("plastic_rate", "plastic_mask", "plastic_noise", "plastic_penalty", "plastic_decay")


class GPTModule(LanguageModelModule, network=GPT):
    """GPT-2-style transformer, the baseline."""


class TilelliModule(LanguageModelModule, network=TilelliLM):
    """Ternary pathways, a per-token router and weight banks."""


class LocalGPTModule(LanguageModelModule, network=LocalGPT):
    """Sigmoid or softmax GPT that can learn by local rules."""


class CrystalGPTModule(LanguageModelModule, network=CrystalGPT):
    """Attention as its top key plus a low-rank residual; from scratch or from a trained GPT (``--init_from RUN``).

    Args:
        basis: file with calibrated directions that ``app crystallize`` has written, to start from instead; it
            goes before the directions of ``--init_from RUN``. Read when the run begins and never again: its
            checkpoints hold the directions.
    """

    def __init__(
        self,
        network: CrystalGPT,
        *,
        basis: Annotated[str | None, Needs(mode="lowrank")] = None,
        **training: Any,
    ) -> None:
        super().__init__(network, **training)
        self._basis_file = basis

    @classmethod
    def without_effect(cls, given: Given) -> Iterator[tuple[str, str]]:
        """Also random directions that are replaced."""
        yield from super().without_effect(given)
        if given.basis is not None:
            yield "basis_seed", "beside basis, which replaces the random directions"

    def begin(self, weights: Mapping[str, Tensor] | None) -> list[str]:
        """Starts from the calibrated directions of ``basis``, where one is named.

        Raises:
            ConfigurationError: the file is missing, holds no basis, or one that does not fit.
        """
        assert isinstance(self.network, CrystalGPT)
        if self._basis_file is None or self.network.mode != "lowrank":
            return []
        try:
            basis = ResidualBasis.load(typed_path(self._basis_file, "basis"))
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


class EquilibriumModule(
    LanguageModelModule, network=EquilibriumLM, renamed={"warmup_steps": "routing_warmup_steps"}
):
    """Tokens routed by their deviation from running statistics.

    Args:
        adapt: in evaluation, let the plastic adapter go on learning: each batch is scored, then adapted on. The
            trained weights are put back at the end of the evaluation.
    """

    def __init__(
        self,
        network: EquilibriumLM,
        *,
        adapt: Annotated[bool, Needs(use_plastic=True)] = False,
        **training: Any,
    ) -> None:
        super().__init__(network, **training)
        self.adapt = adapt
        self._batches_scored = 0

    @classmethod
    def without_effect(cls, given: Given) -> Iterator[tuple[str, str]]:
        """Also what the adapter learns by."""
        yield from super().without_effect(given)
        if not given.adapt:
            for name in ADAPTATION:
                yield name, "without adapt, which validate can be given"

    # -- adaptation in evaluation -----------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Also counts batches anew; the noise of the adaptation is keyed by their number."""
        super().on_validation_epoch_start()
        self._batches_scored = 0

    on_test_epoch_start = on_validation_epoch_start

    def after_scoring(self, output: LanguageModelOutput, targets: Tensor) -> None:
        """With ``adapt``, one step on the last layer's plastic tokens, the same on every rank, then decay."""
        plastic = self._network.plastic
        if not self.adapt or plastic is None:
            return
        last = output.routing[-1]
        # Evaluation may wait for the device; padding is no token.
        tokens = last.plastic_input[(last.route == PLASTIC) & (targets >= 0)]
        generator = torch.Generator(tokens.device).manual_seed(self._batches_scored)
        plastic.adapt(tokens, generator)
        plastic.decay()
        self._batches_scored += 1

    def on_validation_epoch_end(self) -> None:
        """Also puts the trained weights back."""
        super().on_validation_epoch_end()
        self._forget()

    def on_test_epoch_end(self) -> None:
        """The same for the test split."""
        super().on_test_epoch_end()
        self._forget()

    def _forget(self) -> None:
        if self._network.plastic is not None:
            self._network.plastic.reset()

    @property
    def _network(self) -> EquilibriumLM:
        assert isinstance(self.network, EquilibriumLM)
        return self.network
