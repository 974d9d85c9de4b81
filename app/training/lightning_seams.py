"""All that reaches into what the framework keeps to itself, in one file: what to look at when it is upgraded.

Each seam has a test in ``tests/training/test_lightning_seams.py`` that shows on the framework alone why it is here, and
fails when it is no longer needed.

**Loops.** The framework thinks in epochs and batches; here the optimizer step is the only position. The loops decide by
it alone when to validate, whether a resumed run still has something to do, and where a resumed run stands. They replace
the framework's restart bookkeeping, whose outcome depends on the hook in which a checkpoint was written.
"""

import atexit
import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
from lightning.fabric.utilities.distributed import _destroy_dist_connection
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.strategies.parallel import ParallelStrategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch import nn
from torch.distributed import Store
from torch.nn.parallel import DistributedDataParallel


def install(trainer: Trainer) -> None:
    """Puts loops, logging and signals in place of the trainer's own, before anything runs."""
    trainer.fit_loop = StepFitLoop(trainer, trainer.fit_loop.max_epochs)
    trainer._logger_connector = StepLogging(trainer)
    trainer._signal_connector = NoSignals(trainer)


def optimization(trainer: Trainer) -> "StepOptimization":
    """What makes the micro-batches of a trainer on which :func:`install` was called."""
    made = trainer.fit_loop.epoch_loop.automatic_optimization
    assert isinstance(made, StepOptimization)
    return made


def is_attached(module: LightningModule) -> bool:
    """Whether a module has a trainer."""
    return module._trainer is not None


class MakesMicroBatches(Protocol):
    """What may stand in for the framework at each micro-batch of a training."""

    def run(self, batch: Any, batch_idx: int, compute: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Makes one; ``compute`` is the framework's own way."""


class StepOptimization(_AutomaticOptimization):
    """Makes micro-batches and updates, or lets somebody else make them."""

    maker: MakesMicroBatches | None = None

    def run(self, optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Any]:
        """One micro-batch; with the last one of a step, the update."""
        if self.maker is None:
            return super().run(optimizer, batch_idx, kwargs)

        def compute(batch: Any) -> dict[str, Any]:
            changed = copy.copy(kwargs)
            changed["batch"] = batch
            return super(StepOptimization, self).run(optimizer, batch_idx, changed)

        return self.maker.run(kwargs["batch"], batch_idx, compute)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """For the time of a ``with`` block, micro-batches leave no trace in the counters."""
        before = copy.deepcopy(self.optim_progress.state_dict())
        try:
            yield
        finally:
            self.optim_progress.load_state_dict(before)

    def count(self, is_first: bool, is_last: bool) -> None:
        """Counts a micro-batch that was not made here."""
        progress = self.optim_progress.optimizer
        if is_first:
            progress.zero_grad.increment_ready()
            progress.zero_grad.increment_started()
            progress.zero_grad.increment_completed()
        if is_last:
            progress.step.increment_ready()
            progress.step.increment_completed()


class StepLoop(_TrainingEpochLoop):
    """Validates every ``val_check_interval`` optimizer steps and after the last one, whoever ends the run."""

    _start = 0

    def __init__(self, trainer: Trainer, max_steps: int) -> None:
        super().__init__(trainer, min_steps=None, max_steps=max_steps)
        self.automatic_optimization: StepOptimization = StepOptimization(trainer)

    @property
    def _batches_that_stepped(self) -> int:
        # The framework numbers what it and its callbacks log by steps from 0; here a step's numbers stand beside the
        # number of completed steps, so that they share one row with ours.
        progress: Any = self.batch_progress.current
        is_under_way = progress.ready > progress.processed or self._should_accumulate()
        return self.global_step + is_under_way

    @_batches_that_stepped.setter
    def _batches_that_stepped(self, value: int) -> None:
        """Nothing: the loop's other counters say it."""

    def reset(self) -> None:
        """Notes the step that this launch goes on from."""
        super().reset()
        self._start = self.global_step

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        # A resumed loop asks before its first step too; a validation still owed is run at the start instead.
        step = self.global_step
        if step == self._start or not self.trainer.enable_validation or self._should_accumulate():
            return False
        is_last = step >= self.max_steps or self.trainer.should_stop
        return is_last or step % int(self.trainer.val_check_interval) == 0

    @property
    def done(self) -> bool:
        """Also a run that is ended before its last step ends with a whole one."""
        return not self._should_accumulate() and super().done

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: stops are agreed at most once a second, on the host, by the stop callback."""


class StepFitLoop(_FitLoop):
    """Runs its hooks even when no step is left, so that an owed last validation can be made up."""

    def __init__(self, trainer: Trainer, max_epochs: int | None) -> None:
        super().__init__(trainer, min_epochs=None, max_epochs=max_epochs)
        self.epoch_loop = StepLoop(trainer, trainer.max_steps)

    @property
    def skip(self) -> bool:
        """Never; ``done`` alone ends the loop."""
        return False


def position(trainer: Trainer, step: int) -> dict[str, Any]:
    """State of the fit loop as it stands right after ``step`` optimizer steps of the first epoch.

    A checkpoint holds the step and nothing else of the loops; this builds the rest at load time, for the
    accumulation that the resumed run uses.
    """
    state: dict[str, Any] = trainer.fit_loop.state_dict()
    n_batches = step * trainer.accumulate_grad_batches
    for span in ("total", "current"):
        state["epoch_progress"][span].update(ready=1, started=1, processed=0, completed=0)
        state["epoch_loop.batch_progress"][span].update(
            ready=n_batches, started=n_batches, processed=n_batches, completed=n_batches
        )
        optimizer = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
        optimizer["step"][span].update(ready=step, completed=step)
        optimizer["zero_grad"][span].update(ready=step, started=step, completed=step)
    state["epoch_loop.batch_progress"]["is_last_batch"] = False
    return state


class StepLogging(_LoggerConnector):
    """Hands ``self.log`` and the framework's callbacks the steps that are logged: those of our own loggers."""

    @property
    def should_update_logs(self) -> bool:
        """Whether the step under way is logged."""
        loop, module = self.trainer._active_loop, self.trainer.lightning_module
        if not isinstance(loop, _FitLoop):
            return super().should_update_logs
        is_logged: Callable[[int], bool] = module.is_logged  # type: ignore[assignment]
        return is_logged(loop.epoch_loop._batches_that_stepped) or self.trainer.should_stop


class Unprofiled(PassThroughProfiler):
    """Where nothing is profiled: one empty context for all, in place of a generator around every hook of a callback."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing."""
        return self._nothing


class QuickNotes:
    """A module in which the framework notes the hook under way without asking whether that is a parameter.

    It does so some forty times in a step.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class NoSignals(_SignalConnector):
    """Leaves the signals to us.

    The framework's own handlers would stand between its start and :meth:`app.training.stopping.StopOnSignal`, and
    with several ranks hold a collective inside a handler: of one rank alone, that never returns.
    """

    def register_signal_handlers(self) -> None:
        """Registers nothing."""


class OpenDDPStrategy(DDPStrategy):
    """Data parallelism whose launcher can be replaced."""

    def make_launcher(self) -> Any:
        """The launcher of the ranks that nobody else starts."""
        raise NotImplementedError

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # The framework's own (2.6) wraps on a stream apart, for the capture of CUDA graphs: gradients would then cross
        # from stream to stream in every step, of which PyTorch from 2.10 on warns.
        devices = self.determine_ddp_device_ids()
        return DistributedDataParallel(module=model, device_ids=devices, **self._ddp_kwargs)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = self.make_launcher()
            self._rdzv_store = None


def begin_process_group(strategy: Any, store: Store) -> None:
    """Begins the group of all ranks of one machine at a store of ours.

    The framework's own way (2.6) knows PyTorch's store alone; it leaves a group as it is that has begun.

    Args:
        strategy: of the trainer.
        store: where the ranks meet.
    """
    device, backend = strategy.root_device, strategy._get_process_group_backend()
    store.set_timeout(strategy._timeout)
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=strategy.local_rank,
        world_size=strategy.num_processes,
        timeout=strategy._timeout,
        device_id=None if device.type == "cpu" else device,
    )
    if backend == "nccl":
        atexit.register(_destroy_dist_connection)  # as the framework does


class OpenShardedStrategy(ModelParallelStrategy):
    """Data parallelism over all ranks whose weights a module can cut into shards, and whose files are the trainer's.

    The framework's own would take the processes of a machine for parts of one model, and reads and writes checkpoints
    past the ``CheckpointIO``.
    """

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = True

    def __init__(self, process_group_backend: str | None, timeout: timedelta) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def make_launcher(self) -> Any:
        """The launcher of the ranks that nobody else starts."""
        raise NotImplementedError

    def setup_distributed(self) -> None:
        """Meets the other ranks."""
        super()._setup_distributed()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _setup_distributed(self) -> None:
        self.setup_distributed()

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if not self.cluster_environment.creates_processes_externally:
            self._launcher = self.make_launcher()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)


def forget_forwards(part: Any) -> None:
    """Lets a part that PyTorch has cut into shards forget in which order its parts have run forward.

    The backward pass gathers weights ahead in that order. Forwards of one rank alone would make it another there, and
    the ranks would wait for each other in different collectives. PyTorch's own ``reset_iter_state`` comes with 2.13.

    Args:
        part: an ``FSDPModule``.
    """
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for group in groups:
        if group is not None:
            group._post_forward_indices.clear()
            getattr(group.comm_ctx, "post_forward_order", []).clear()  # there from the first forward on


class OpenLauncher(_SubprocessScriptLauncher):
    """Leaves it to its heirs to start the other ranks and to watch them."""

    def meeting_place(self) -> dict[str, str]:
        """Makes this process rank zero of its machine; what the others need in their environment to join it."""
        place = {
            "MASTER_ADDR": self.cluster_environment.main_address,
            "MASTER_PORT": str(self.cluster_environment.main_port),
            "NODE_RANK": str(self.cluster_environment.node_rank()),
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        os.environ.update(place | {"LOCAL_RANK": "0"})
        return place


class OpenAveraging(WeightAveraging):
    """An average of weights that can be put into the module and taken out at any time."""

    is_swapped = False

    @property
    def has_begun(self) -> bool:
        """Whether there is an average."""
        return self._latest_update_step > 0

    def leave_buffers(self) -> None:
        """Averages parameters alone."""
        self._use_buffers = False

    def exchange(self, pl_module: LightningModule, swapped: bool) -> None:
        """Puts the average into the module, or the trained weights back; where they are already, nothing is done."""
        if self.has_begun and self.is_swapped != swapped:
            self._swap_models(pl_module)
            self.is_swapped = swapped
