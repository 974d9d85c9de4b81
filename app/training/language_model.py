"""The LightningModule that every architecture trains in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from app.models import LanguageModel, LanguageModelOutput
from app.models.generation import generate, generation_window
from app.records import StepRecord
from app.run.errors import ConfigurationError
from app.training.distributed import mean_over_ranks, sum_over_ranks
from app.training.nonfinite import FiniteGate, poison
from app.training.optimizers import OptimizerName, build_optimizer, optimizer_groups
from app.training.schedules import Schedule, rate_factor

LN2 = 0.6931471805599453


class LanguageModelModule(LightningModule):
    """Trains any :class:`~app.models.LanguageModel`: loss, optimizer, schedule, exact evaluation.

    An architecture's own module builds its network and passes everything else on. Nothing in here knows
    which architecture it trains.

    Args:
        network: the network; it decides which parameters decay and what its auxiliary loss is.
        optimizer: ``adamw`` (Loshchilov & Hutter 2019), ``sgd`` with momentum ``beta1``, or ``muon`` (Jordan et al.
            2024) for the network's hidden matrices, each of a stack by itself, with ``adamw`` for everything else.
        learning_rate: peak rate, > 0. Muon's updates are as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), so
            that one rate serves both of its parts and a rate found for AdamW carries over.
        schedule: shape of the rate over the run, see :func:`app.training.schedules.rate_factor`.
        warmup_steps: optimizer steps of linear warm-up, >= 0.
        final_learning_rate_ratio: rate at the last step over the peak, in [0, 1].
        decay_fraction: share of the run over which ``wsd`` decays, in (0, 1].
        weight_decay: decoupled decay of matrices, >= 0; norms, gains and biases never decay.
        beta1: first-moment coefficient, in [0, 1).
        beta2: second-moment coefficient, in [0, 1).
        muon_momentum: momentum of Muon's matrices, in [0, 1).
        gradient_clip: largest global gradient norm; 0 switches clipping off.
        nonfinite: ``stop`` ends the run at the next logging step after a non-finite loss or gradient norm,
            with the weights as they were before that step; ``skip`` leaves the step out and goes on.
        max_skips: with ``skip``, consecutive steps left out before the run ends all the same, >= 1.

    Raises:
        ConfigurationError: naming every argument outside its range.
    """

    def __init__(
        self,
        network: LanguageModel,
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 1e-3,
        schedule: Schedule = "cosine",
        warmup_steps: int = 100,
        final_learning_rate_ratio: float = 0.1,
        decay_fraction: float = 0.2,
        weight_decay: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        muon_momentum: float = 0.95,
        gradient_clip: float = 1.0,
        nonfinite: Literal["stop", "skip"] = "stop",
        max_skips: int = 10,
    ) -> None:
        super().__init__()
        settings = {name: value for name, value in locals().items() if name in TRAINING_ARGUMENTS}
        problems = LanguageModelModule.problems(**settings)
        if problems:
            raise ConfigurationError(problems)
        self.network = network
        self.optimizer_name: OptimizerName = optimizer
        self.learning_rate = learning_rate
        self.schedule: Schedule = schedule
        self.warmup_steps = warmup_steps
        self.final_learning_rate_ratio = final_learning_rate_ratio
        self.decay_fraction = decay_fraction
        self.weight_decay = weight_decay
        self.beta1 = beta1
        self.beta2 = beta2
        self.muon_momentum = muon_momentum
        self.gradient_clip = gradient_clip
        self.nonfinite = nonfinite
        self.max_skips = max_skips
        self.gate = FiniteGate(nonfinite)
        self.gradient_norm: Tensor | None = None
        self.last_validation: dict[str, float] = {}
        self._state_before: list[Tensor] = []
        self._evaluation_sums: Tensor | None = None
        self._token_bytes: Tensor | None = None

    @classmethod
    def problems(cls, **arguments: Any) -> list[str]:
        """Every range rule that these constructor arguments break, one message each; absent ones pass."""
        found = []

        def check(name: str, holds: bool, rule: str) -> None:
            if not holds:
                found.append(f"{name}: {arguments[name]!r} is out of range; {rule}")

        for name, (low, low_allowed, high, high_allowed, rule) in _RANGES.items():
            value = arguments.get(name)
            if isinstance(value, int | float):
                above = value >= low if low_allowed else value > low
                below = value <= high if high_allowed else value < high
                check(name, above and below, rule)
        return found

    @classmethod
    def without_effect(cls, **arguments: Any) -> list[tuple[str, str]]:
        """Name and reason of every argument that does nothing beside the others."""
        found = []
        if arguments.get("schedule", "wsd") != "wsd":
            found.append(("decay_fraction", f"with schedule: {arguments['schedule']}"))
        if arguments.get("schedule") == "constant":
            found.append(("final_learning_rate_ratio", "with schedule: constant"))
        if arguments.get("nonfinite", "skip") != "skip":
            found.append(("max_skips", "without nonfinite: skip"))
        if arguments.get("optimizer") == "sgd":
            found.append(("beta2", "with optimizer: sgd"))
        if arguments.get("optimizer", "muon") != "muon":
            found.append(("muon_momentum", "without optimizer: muon"))
        return found

    def begin(self, weights: Mapping[str, Tensor] | None) -> list[str]:
        """Hook: a run begins with its first step; what is resumed or evaluated brings all of its state along.

        Called before the weights of another run are taken. For what the network starts from beside them, such as a
        file that need not exist any more once a checkpoint does.

        Args:
            weights: state dict of the network that the run begins from (``--init_from``); None without one.

        Returns:
            What a person should know about it.

        Raises:
            ConfigurationError: it cannot begin like this.
        """
        return []

    # -- training ---------------------------------------------------------------------------------------

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> LanguageModelOutput:
        """The network's own forward: ``idx (B, T)`` to :class:`~app.records.LanguageModelOutput`."""
        output: LanguageModelOutput = self.network(idx, targets)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Any]:
        """One micro-batch ``(idx, targets)``, each ``(B, T)``; returns the loss and its record."""
        idx, targets = batch
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._state_before = [state.detach().clone() for state in self.network.running_state()]
        output = self.network(idx, targets)
        auxiliary = self._auxiliary_loss(output)
        assert output.loss is not None
        loss = poison(output.loss + auxiliary)
        detached = LanguageModelOutput(
            logits=output.logits.new_empty(0),
            loss=output.loss.detach(),
            aux_loss=auxiliary.detach(),
            routing=output.routing,
        )
        return {"loss": loss, "record": self._record(detached, idx.numel(), batch_idx)}

    def _auxiliary_loss(self, output: LanguageModelOutput) -> Tensor:
        """The auxiliary loss of the whole global batch.

        It is a function of batch means, so the mean over ranks comes before the function, not after: one
        differentiable all-reduce carries the means of all layers.
        """
        if self._trainer is None or self.trainer.world_size == 1:
            return output.aux_loss
        means = self.network.auxiliary_means(output)
        if means is None:
            return output.aux_loss
        return self.network.auxiliary_losses(mean_over_ranks(means))

    def _record(self, output: LanguageModelOutput, tokens: int, batch_idx: int) -> StepRecord:
        accumulation = self.trainer.accumulate_grad_batches
        step = self.trainer.global_step + 1
        return StepRecord(
            step=step,
            micro_step=batch_idx % accumulation,
            is_last_micro=(batch_idx + 1) % accumulation == 0,
            is_logged=self.is_logged(step),
            tokens=tokens,
            output=output,
            measure=self.network.measures,
        )

    def is_logged(self, step: int) -> bool:
        """Whether watchers log at this optimizer step: the first, the last and every n-th."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step == 1 or step == self.trainer.max_steps or step % every == 0

    # -- optimizer --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over the network's parameter groups, whose step a flag on the device can gate."""
        return build_optimizer(
            self.optimizer_name,
            self._optimizer_groups(),
            self.learning_rate,
            (self.beta1, self.beta2),
            self.muon_momentum,
        )

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        return optimizer_groups(self.network, self.optimizer_name, self.weight_decay)

    def on_train_start(self) -> None:
        """Puts this configuration's decay and coefficients in place of those a checkpoint brought along."""
        optimizer = self.trainer.optimizers[0]
        for group, described in zip(optimizer.param_groups, self._optimizer_groups(), strict=True):
            group["weight_decay"] = described["weight_decay"]
            group["rate"] = described["rate"]
            if self.optimizer_name == "sgd":
                group["momentum"] = self.beta1
                continue
            group["betas"] = (self.beta1, self.beta2)
            if self.optimizer_name == "muon":
                group["momentum"] = self.muon_momentum

    def current_learning_rate(self, step: int) -> float:
        """The rate of the optimizer step with this index, counted from 0."""
        return self.learning_rate * rate_factor(
            self.schedule,
            step,
            self.trainer.max_steps,
            self.warmup_steps,
            self.final_learning_rate_ratio,
            self.decay_fraction,
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by global norm, keeps the norm on the device, and sets the rate of this step."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.gradient_clip if self.gradient_clip > 0 else float("inf")
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True).detach()
        rate = self.current_learning_rate(self.trainer.global_step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.gate.update(optimizer, self.gradient_norm, self.trainer.global_step + 1)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One update of the weights, then of whatever else the network moves once per step."""
        step = self.trainer.global_step + 1
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        sums = self.network.step_sums()
        if sums and self.trainer.world_size > 1:
            sum_over_ranks(sums)
        with torch.no_grad():
            self.network.after_optimizer_step(step)
            for total in sums:
                total.zero_()
            for state, before in zip(self.network.running_state(), self._state_before, strict=True):
                self.gate.keep(state, before)

    # -- evaluation -------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Takes the bytes per token from the tokenizer, so that losses can be stated per byte."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            self._token_bytes = torch.as_tensor(datamodule.tokenizer.token_bytes, dtype=torch.float64)

    def on_validation_epoch_start(self) -> None:
        """Empties the sums of the evaluation: nats, tokens, bytes."""
        self._evaluation_sums = torch.zeros(3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Adds one batch to the sums; targets of −100 count nothing, so padding leaves no trace."""
        idx, targets = batch
        output = self.network(idx)
        self._count(output.logits, targets)
        self.after_scoring(output, targets)

    def after_scoring(self, output: LanguageModelOutput, targets: Tensor) -> None:
        """Called with each evaluation batch once it is counted; a network that adapts to what it reads does so here.

        Args:
            output: of the network, on this rank's ``(B, T)`` part of the batch.
            targets: ``(B, T)`` int64, −100 where there is padding.
        """

    def _count(self, logits: Tensor, targets: Tensor) -> None:
        # Added up in double precision: the figure does not depend on how the split falls into batches.
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
        ).double()
        counted = targets >= 0
        assert self._evaluation_sums is not None and self._token_bytes is not None
        self._token_bytes = self._token_bytes.to(targets.device)
        n_bytes = (self._token_bytes[targets.clamp(min=0)] * counted).sum()
        self._evaluation_sums += torch.stack([nats.sum(), counted.sum().double(), n_bytes])

    def on_validation_epoch_end(self) -> None:
        """Reduces the sums over ranks and publishes the figures of the whole split.

        Keys, the same with ``test/``:
            ``val/loss``: nats per token.
            ``val/bpb``: bits per UTF-8 byte of the text.
            ``val/token_perplexity``: exp of the loss; comparable only with the same tokens.
            ``val/word_perplexity``: exp of the nats per word, a line end being one: that of the literature on
                word-level texts, whatever the tokenizer. Only where the data counts words.
        """
        self._finish_evaluation("val")

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        """The same for the test split."""
        self._finish_evaluation("test")

    def _finish_evaluation(self, stage: str) -> None:
        assert self._evaluation_sums is not None
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._evaluation_sums)
        nats, tokens, n_bytes = self._evaluation_sums.tolist()
        self._evaluation_sums = None
        bytes_scale, words_per_token = self._evaluated_text(stage)
        self.last_validation = {
            f"{stage}/loss": nats / tokens,
            f"{stage}/bpb": nats / LN2 / (n_bytes * bytes_scale),
            f"{stage}/token_perplexity": perplexity(nats, tokens),
            f"{stage}/tokens": tokens,
        }
        if words_per_token is not None:
            self.last_validation[f"{stage}/word_perplexity"] = perplexity(nats, tokens * words_per_token)
        curve = {name: value for name, value in self.last_validation.items() if not name.endswith("/tokens")}
        for logger in self.trainer.loggers:
            logger.log_metrics(curve, step=self.trainer.global_step)

    def _evaluated_text(self, stage: str) -> tuple[float, float | None]:
        """Bytes of the text per byte of its tokens, and words per target where the data counts words."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return (1.0, None) if datamodule is None else datamodule.evaluated_text(stage)

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes per token of the training text."""
        return float(self.trainer.datamodule.bytes_per_token)  # type: ignore[attr-defined]

    # -- text -------------------------------------------------------------------------------------------

    def generate_text(self, prompt: str = "", **options: Any) -> str:
        """Text that continues one prompt; options as in :meth:`generate_texts`."""
        return self.generate_texts([prompt], **options)[0]

    def generate_texts(
        self,
        prompts: Sequence[str | np.ndarray],
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Texts that continue prompts of equal length; no mode and no global generator is left changed.

        Args:
            prompts: texts to continue, or their tokens, with equally many tokens; an empty one starts after a
                line break, or after the first symbol where there is none.
            max_new_tokens: tokens to generate.
            temperature: 0 is greedy.
            top_k: keep the k likeliest tokens.
            top_p: keep the smallest set of tokens with this probability.
            seed: of the generator used for these texts alone.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = data.tokenizer
        starts = [
            prompt
            if isinstance(prompt, np.ndarray)
            else tokenizer.encode(prompt)
            if prompt
            else tokenizer.start()
            for prompt in prompts
        ]
        idx = torch.tensor([start.tolist() for start in starts], dtype=torch.int64, device=self.device)
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                stream = generate(
                    self.network,
                    idx,
                    max_new_tokens,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    generator=torch.Generator(device=self.device).manual_seed(seed),
                    block_size=generation_window(self.network, data.block_size),
                )
                tokens = torch.stack(list(stream), dim=1)
        finally:
            self.network.train(was_training)
        return [tokenizer.decode(row) for row in tokens.cpu().numpy()]


def perplexity(nats: float, n_units: float) -> float:
    """``exp(nats / n_units)``; infinite where that is beyond any number."""
    return float(torch.tensor(nats / n_units, dtype=torch.float64).exp())


_RANGES: Mapping[str, tuple[float, bool, float, bool, str]] = {
    "learning_rate": (0, False, float("inf"), False, "it must be positive, for example 1.0e-3"),
    "warmup_steps": (0, True, float("inf"), False, "it must be 0 or more optimizer steps"),
    "final_learning_rate_ratio": (0, True, 1, True, "it must lie in [0, 1]"),
    "decay_fraction": (0, False, 1, True, "it must lie in (0, 1]"),
    "weight_decay": (0, True, float("inf"), False, "it must be 0 or more"),
    "beta1": (0, True, 1, False, "it must lie in [0, 1)"),
    "beta2": (0, True, 1, False, "it must lie in [0, 1)"),
    "muon_momentum": (0, True, 1, False, "it must lie in [0, 1)"),
    "gradient_clip": (0, True, float("inf"), False, "it must be 0 (off) or a positive norm"),
    "max_skips": (1, True, float("inf"), False, "it must be 1 or more"),
}
TRAINING_ARGUMENTS = frozenset({*_RANGES, "optimizer", "schedule", "nonfinite"})
