"""The LightningModule that every architecture trains in."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from app import options
from app.models import LanguageModel, LanguageModelOutput
from app.options import (
    Needs,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    UnitInterval,
    Within,
)
from app.records import StepRecord, detached
from app.run.errors import ConfigurationError
from app.training.compiled import Compiled
from app.training.evaluation_steps import EvaluationSteps
from app.training.guards import Guards
from app.training.lightning_seams import QuickNotes, is_attached
from app.training.optim.optimizers import (
    OPTIMIZERS,
    OptimizerName,
    OwnOptimizer,
    build_optimizer,
    class_made_by,
    optimizer_groups,
    own_optimizer,
)
from app.training.optim.schedules import SCHEDULES, OwnSchedule, Schedule, StepSchedule, rate_factor
from app.training.optim.step_numbers import StepNumbers
from app.training.rank_reduction import (
    Outside,
    RankReduction,
    at_once,
    mean_over_ranks,
    sum_over_ranks,
)
from app.training.run_callbacks.nonfinite import FiniteGate, nonfinite_mask
from app.training.sharded import WholeWeights, whole
from app.training.text_generation import TextGeneration


class LanguageModelModule(QuickNotes, WholeWeights, EvaluationSteps, TextGeneration):
    """Trains any network; ``--model.network`` names one of your own.

    An architecture's own module builds its network and passes everything else on. Nothing in here knows
    which architecture it trains.

    Args:
        network: the network; it decides which parameters decay and what its auxiliary loss is.
        optimizer: what moves the weights: AdamW (Loshchilov & Hutter 2019), SGD with momentum ``beta1``, or Muon
            (Jordan et al. 2024) for the network's hidden matrices, each of a stack by itself, with AdamW for everything
            else; or a class of your own (``{class_path: mylab.Lion, init_args: …}``), whose rate and weight decay per
            group are still those of here.
        learning_rate: peak rate. Muon's updates are as large as AdamW's (Liu et al. 2025, arXiv 2502.16982), so that
            one rate serves both of its parts and a rate found for AdamW carries over.
        schedule: shape of the rate over the run, see :func:`app.training.optim.schedules.rate_factor`; or a scheduler
            class of your own, stepped after every optimizer step.
        warmup_steps: optimizer steps of linear warm-up.
        final_learning_rate_ratio: rate at the last step over the peak.
        decay_fraction: share of the run that ``wsd`` decays in.
        weight_decay: decoupled decay of matrices; norms, gains and biases never decay.
        beta1: first-moment coefficient.
        beta2: second-moment coefficient.
        muon_momentum: momentum of Muon's matrices.
        gradient_clip: largest global gradient norm; 0 switches clipping off.
        nonfinite: non-finite losses or gradients: ``stop`` ends the run at the next logging step, with
            the weights as they were before; ``skip`` leaves the step out and goes on.
        max_skips: skipped steps in a row that end the run.

    Raises:
        ConfigurationError: naming every argument outside its range.
    """

    network_class: ClassVar[type[LanguageModel] | None] = None
    former_names: ClassVar[Mapping[str, str]] = {}
    _renamed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(
        cls,
        network: type[LanguageModel] | None = None,
        renamed: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes a subclass the module of one network, which takes that network's options in place of the network.

        Args:
            network: its class.
            renamed: names of the network's options here, where the training options have the same name.
            kwargs: for other bases.
        """
        super().__init_subclass__(**kwargs)
        initialise = cls.__init__
        if "__init__" in vars(cls) and options.has_others(initialise):
            own = inspect.signature(initialise).parameters
            # One that takes the size of the vocabulary builds its network itself.
            without = ("network",) if "vocab_size" in own else ()
            initialise = options.taking(initialise, cls.__mro__[1], without)
        if network is not None:
            cls.network_class, cls.former_names, cls._renamed = network, network.former_names, renamed or {}
            initialise = options.building(initialise, "network", network, cls._renamed)
        if initialise is not cls.__init__:
            cls.__init__ = options.checked(initialise, refused=_refused)  # type: ignore[method-assign]

    def __init__(
        self,
        network: LanguageModel,
        optimizer: OptimizerName | OwnOptimizer = "adamw",
        learning_rate: PositiveFloat = 1e-3,
        schedule: Schedule | OwnSchedule = "cosine",
        warmup_steps: Annotated[NonNegativeInt, Needs(schedule=SCHEDULES)] = 100,
        final_learning_rate_ratio: Annotated[UnitInterval, Needs(schedule=("cosine", "linear", "wsd"))] = 0.1,
        decay_fraction: Annotated[float, Within("(0, 1]"), Needs(schedule="wsd")] = 0.2,
        weight_decay: NonNegativeFloat = 0.1,
        beta1: Annotated[Probability, Needs(optimizer=OPTIMIZERS)] = 0.9,
        beta2: Annotated[Probability, Needs(optimizer=("adamw", "muon"))] = 0.95,
        muon_momentum: Annotated[Probability, Needs(optimizer="muon")] = 0.95,
        gradient_clip: NonNegativeFloat = 1.0,
        nonfinite: Literal["stop", "skip"] = "stop",
        max_skips: Annotated[PositiveInt, Needs(nonfinite="skip")] = 10,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_name = optimizer if isinstance(optimizer, str) else class_made_by(optimizer)
        self._own_optimizer = None if isinstance(optimizer, str) else optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
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
        self.guards = Guards()
        self.numbers = StepNumbers()
        self.is_captured = False
        self.outside: Outside = at_once
        self.reduction: RankReduction | None = None
        self.compiled: Compiled | None = None
        self.logged_steps: Collection[int] | None = None
        self.gradient_norm: Tensor | None = None
        self._last_rate = learning_rate
        self._state_before: list[Tensor] = []

    @classmethod
    def conflicts(cls, given: options.Given) -> Iterator[tuple[str, str]]:
        """Rules between options: those of the network, by the names that they have here."""
        return cls._of_network("conflicts", given)

    @classmethod
    def without_effect(cls, given: options.Given) -> Iterator[tuple[str, str]]:
        """Options that do nothing beside the others: those that the network says."""
        return cls._of_network("without_effect", given)

    @classmethod
    def _of_network(cls, what: str, given: options.Given) -> Iterator[tuple[str, str]]:
        said = getattr(cls.network_class, what, None)
        if said is not None:
            for name, text in said(options.Given(**cls.network_options(vars(given)))):
                yield cls._renamed.get(name, name), text

    @classmethod
    def network_options(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of some options of this module those of its network, by the names that they have there."""
        if cls.network_class is None:
            return {}
        ours = {name: cls._renamed.get(name, name) for name in options.options_of(cls.network_class)}
        return {theirs: given[our] for theirs, our in ours.items() if our in given}

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
        self.guards.before_forward(self, batch_idx)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._keep_state()
        with nullcontext() if self.compiled is None else self.compiled.step():
            output = self.network(idx, targets)
        if not isinstance(output, LanguageModelOutput) or output.loss is None:
            raise ConfigurationError(_no_output(self.network, output))
        auxiliary = self._auxiliary_loss(output)
        loss = nonfinite_mask(output.loss + auxiliary)
        self.guards.after_forward(self, batch, batch_idx, loss)
        left = LanguageModelOutput(output.logits.new_empty(0), output.loss, auxiliary, output.routing)
        return {"loss": loss, "record": self.step_record(detached(left), idx.numel(), batch_idx)}

    def _keep_state(self) -> None:
        """Keeps the running state as it is before an optimizer step, always in the same memory."""
        state = [state.detach() for state in self.network.running_state()]
        if len(self._state_before) != len(state):
            self._state_before = [torch.empty_like(each) for each in state]
        for before, now in zip(self._state_before, state, strict=True):
            before.copy_(now)

    def _auxiliary_loss(self, output: LanguageModelOutput) -> Tensor:
        """The auxiliary loss of the whole global batch.

        It is a function of batch means, so the mean over ranks comes before the function, not after: one
        differentiable all-reduce carries the means of all layers.
        """
        if not is_attached(self) or self.trainer.world_size == 1:
            return output.aux_loss
        means = self.network.auxiliary_means(output)
        if means is None:
            return output.aux_loss
        return self.network.auxiliary_losses(mean_over_ranks(means, self.outside))

    def step_record(self, output: LanguageModelOutput, tokens: int, batch_idx: int) -> StepRecord:
        """What a micro-batch left behind.

        Args:
            output: of the network, detached and without logits.
            tokens: of the micro-batch.
            batch_idx: its index in this launch.
        """
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
        """Whether watchers log at this step: the first, the last and every n-th, or those in ``logged_steps``."""
        if self.logged_steps is not None:
            return step in self.logged_steps
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step == 1 or step == self.trainer.max_steps or step % every == 0

    # -- optimizer --------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer, and the schedule of its rate by optimizer steps."""
        optimizer = self.make_optimizer()
        schedule: Any
        if isinstance(self.schedule, str):
            schedule = StepSchedule(optimizer, self.current_learning_rate)
        else:
            schedule = self.schedule(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """One optimizer over the network's parameter groups, whose step a flag on the device can gate."""
        if self._own_optimizer is not None:
            return own_optimizer(self._own_optimizer, self._optimizer_groups(), self.learning_rate)
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
        """Puts this configuration's decay, coefficients and rate in place of those a checkpoint brought along."""
        optimizer = self.trainer.optimizers[0]
        for group, described in zip(optimizer.param_groups, self._optimizer_groups(), strict=True):
            group["weight_decay"] = described["weight_decay"]
            group["rate"] = described["rate"]
            group["initial_lr"] = self.learning_rate
            if self._own_optimizer is not None:
                continue
            if self.optimizer_name == "sgd":
                group["momentum"] = self.beta1
                continue
            group["betas"] = (self.beta1, self.beta2)
            if self.optimizer_name == "muon":
                group["momentum"] = self.muon_momentum
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, StepSchedule):
                config.scheduler.place(self.trainer.global_step)

    def current_learning_rate(self, step: int) -> float:
        """The rate of the optimizer step with this index, counted from 0; of a schedule of one's own only the last."""
        if not isinstance(self.schedule, str):
            return self._last_rate
        return self.learning_rate * rate_factor(
            self.schedule,
            step,
            self.trainer.max_steps,
            self.warmup_steps,
            self.final_learning_rate_ratio,
            self.decay_fraction,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Adds up over the ranks, keeps the gradient's norm on the device, and shuts the gate before a bad step."""
        self._reduce()
        norm = self.global_norm(optimizer)
        if self.gradient_norm is None:
            self.gradient_norm = torch.empty_like(norm)
        self.gradient_norm.copy_(norm)
        self.gate.update(optimizer, self.gradient_norm, self.numbers.step, self.guards.before_update(self))

    def _reduce(self) -> None:
        """What the ranks add up in a step: the network's sums, and gradients where the strategy leaves them to us."""
        if self.trainer.world_size == 1:
            return
        sums = self.network.step_sums()
        if self.reduction is not None:
            self.reduction.reduce(sums, self.outside)
        elif sums:
            sum_over_ranks(sums)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by the global norm."""
        assert self.gradient_norm is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        limit = self.gradient_clip if self.gradient_clip > 0 else float("inf")
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, self.gradient_norm, foreach=True)

    @staticmethod
    def global_norm(optimizer: torch.optim.Optimizer) -> Tensor:
        """``()`` norm of all gradients of an optimizer's parameters."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        return whole(torch.nn.utils.get_total_norm(gradients, foreach=True).detach())

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One update of the weights, then of whatever else the network moves once per step."""
        step = self.trainer.global_step + 1
        if not self.is_captured:
            self.take_step_numbers(optimizer, step)
        with self.numbers.used_by(optimizer, self.is_captured):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not self.is_captured or self.network.can_capture_after_step:
            self.after_optimizer_step(step)
        self.gather_weights(step)

    def take_step_numbers(self, optimizer: Any, step: int) -> None:
        """Notes the numbers of the step about to be made, for its kernels; before any of them is launched.

        Args:
            optimizer: with the step's rates.
            step: counted from 1.
        """
        self._last_rate = optimizer.param_groups[0]["lr"]
        self.numbers.set(step, optimizer)

    @torch.no_grad()
    def after_optimizer_step(self, step: int) -> None:
        """Moves what the network moves without a gradient, by the sums of the whole step.

        Args:
            step: number of the step just made, counted from 1.
        """
        if self.network.needs_whole_weights:
            self.gather_weights()
        self.network.after_optimizer_step(step)
        for total in self.network.step_sums():
            total.zero_()
        for state, before in zip(self.network.running_state(), self._state_before, strict=True):
            self.gate.keep(state, before)
        self.guards.after_update(self)


def _refused(problems: Sequence[options.Problem]) -> ConfigurationError:
    return ConfigurationError(map(str, problems))


LanguageModelModule.__init__ = options.checked(LanguageModelModule.__init__, refused=_refused)  # type: ignore[method-assign]


def _no_output(network: LanguageModel, output: Any) -> str:
    """What is wrong with what a network of somebody's own returned."""
    got = (
        "no loss, though it was given targets"
        if isinstance(output, LanguageModelOutput)
        else type(output).__name__
    )
    return (
        f"model: {type(network).__module__}.{type(network).__qualname__}.forward returned {got}; it must return "
        "LanguageModelOutput(logits, next_token_loss(logits, targets), aux_loss, routing)"
    )
