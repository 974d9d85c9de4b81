"""Weights, gradients and moments in shards, one on each rank, put together block by block where needed (FSDP2).

Each rank keeps its rows of every parameter. A block's parameters are gathered when its forward or its backward pass
begins and given back when it ends; its gradient arrives reduced and cut. Source: PyTorch's ``fully_shard``, after
"PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (arXiv 2304.11277).

What looks at a network between two steps (watchers, samples of text, the search for what is not finite) reads whole
parameters, and at times on one rank alone. :meth:`SupervisedFSDPStrategy.gather` gives them to every rank for so long;
they take the memory of the whole network then.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from app.models import LanguageModel
from app.options import PositiveInt
from app.records import ReadsWeights
from app.training.distributed import Supervised, limit_of_collectives
from app.training.lightning_seams import OpenShardedStrategy, forget_forwards, is_attached

# Where they are used alone: they take most of a second to import.
if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class SupervisedFSDPStrategy(Supervised, OpenShardedStrategy):
    """Data parallelism with weights, gradients and moments in shards, watched as ``SupervisedDDPStrategy`` is.

    It computes what that one does. Checkpoints hold whole tensors in one file, the same that any other number of ranks
    writes and reads. Gradients are reduced in every micro-batch, so that none is ever whole on one rank.

    Args:
        process_group_backend: ``gloo`` or ``nccl``; by default what the device calls for.
        timeout_seconds: as of ``SupervisedDDPStrategy``.
    """

    def __init__(self, process_group_backend: str | None = None, timeout_seconds: PositiveInt = 900) -> None:
        super().__init__(process_group_backend, limit_of_collectives(timeout_seconds))
        self.timeout_seconds = timeout_seconds
        self._outermost: Any = None
        self._is_gathered = False

    # -- shards -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer) -> None:
        """Prepares training or evaluation; until the first batch the parameters are whole."""
        super().setup(trainer)
        self.gather()

    def shard(self, network: LanguageModel) -> None:
        """Cuts the parameters of a network, equal on all ranks, block by block; once.

        Args:
            network: what ``network.blocks`` holds are its blocks; one without is gathered at once.
        """
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if isinstance(network, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in () if network.needs_whole_weights else getattr(network, "blocks", ()):
            fully_shard(block, mesh=mesh)
        self._outermost = fully_shard(network, mesh=mesh)

    def gather(self) -> None:
        """Gives every rank the whole parameters until the next batch; all ranks have to call it.

        Forward and backward passes then talk to no other rank, and leave their gradients at the whole parameters.
        """
        self._set_apart(True)
        for part in self._parts():
            part.unshard()

    def let_go(self) -> None:
        """Leaves each rank its own shards again, which a pass puts together block by block."""
        self._set_apart(False)
        for part in self._parts():
            part.reshard()
            forget_forwards(part)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Lets go of what :meth:`gather` has put together."""
        self.let_go()

    def on_validation_start(self) -> None:
        """The same."""
        self.let_go()

    def on_test_start(self) -> None:
        """The same."""
        self.let_go()

    @contextmanager
    def _in_shards(self) -> Iterator[None]:
        """For the time of a ``with`` block, each rank has its own shards alone."""
        was_gathered = self._is_gathered
        self.let_go()
        try:
            yield
        finally:
            if was_gathered:
                self.gather()

    def _parts(self) -> "Iterator[FSDPModule]":
        from torch.distributed.fsdp import FSDPModule

        assert self.lightning_module is not None
        return (part for part in self.lightning_module.modules() if isinstance(part, FSDPModule))

    def _set_apart(self, is_apart: bool) -> None:
        """Whether passes keep parameters and gradients whole, each rank for itself."""
        self._is_gathered = is_apart
        for part in self._parts():
            part.set_requires_gradient_sync(not is_apart, recurse=False)
            part.set_reshard_after_backward(not is_apart, recurse=False)
            # The outermost part is needed again at once when the backward pass begins.
            is_outermost = part is self._outermost
            part.set_reshard_after_forward(not is_apart and not is_outermost, recurse=False)

    # -- checkpoints ------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on the host; on other ranks than zero, which write nothing, none."""
        assert self.lightning_module is not None
        with self._in_shards():
            return self._whole_state()

    def _whole_state(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        # By the parameters themselves: two names of one parameter are one tensor in the file too.
        named = self.lightning_module.state_dict(keep_vars=True)
        found: dict[int, Any] = {}
        for tensor in named.values():
            if id(tensor) not in found:
                found[id(tensor)] = self._whole(tensor)
        return {name: found[id(tensor)] for name, tensor in named.items()} if self.is_global_zero else {}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Cuts whole tensors into the shards of this rank."""
        assert self.lightning_module is not None
        with self._in_shards():
            own = self.lightning_module.state_dict(keep_vars=True)
            cut = {name: _cut(tensor, own.get(name)) for name, tensor in checkpoint["state_dict"].items()}
            self.lightning_module.load_state_dict(cut, strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The same of an optimizer's state, in the form that it has without shards."""
        state = getattr(optimizer, "optimizer", optimizer).state_dict()
        moments = {
            index: {name: self._whole(value) for name, value in each.items()}
            for index, each in state["state"].items()
        }
        return {**state, "state": moments} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Cuts moments as their parameters are cut."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            cut = {
                index: {name: _cut(value, parameters[index]) for name, value in each.items()}
                for index, each in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": cut})

    def _whole(self, value: Any) -> Any:
        """A tensor put together, on the host of rank zero; all ranks have to ask for it."""
        if not isinstance(value, Tensor):
            return value
        found = whole(value.detach())
        return found.cpu() if self.is_global_zero else None


class WholeWeights(LightningModule):
    """A module whose strategy may keep its network in shards, and put it together for whoever looks at it."""

    network: LanguageModel

    def is_logged(self, step: int) -> bool:
        """Whether watchers log at this step."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Cuts the network into shards where the strategy keeps it so."""
        if is_attached(self) and isinstance(self.trainer.strategy, SupervisedFSDPStrategy):
            self.trainer.strategy.shard(self.network)

    def on_validation_epoch_end(self) -> None:
        """Lets whoever looks at the weights after a validation see all of them."""
        super().on_validation_epoch_end()
        self.gather_weights()

    def gather_weights(self, step: int | None = None) -> None:
        """Gives every rank whole parameters until the next batch, for what looks at them between two steps.

        Args:
            step: the one just made, counted from 1: only where somebody reads weights after it, or what a logged step
                starts from.
        """
        strategy = self.trainer.strategy if is_attached(self) else None
        if not isinstance(strategy, SupervisedFSDPStrategy):
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        readers = [callback for callback in callbacks if isinstance(callback, ReadsWeights)]
        if (
            step is None
            or self.is_logged(step)
            or self.is_logged(step + 1)
            or any(reader.reads_weights(self.trainer, step) for reader in readers)
        ):
            strategy.gather()


def whole(tensor: Tensor) -> Tensor:
    """What a tensor is over all ranks, which have to ask for it together; itself where it is not cut."""
    together = getattr(tensor, "full_tensor", None)  # a DTensor's
    return tensor if together is None else together()


def _cut(value: Any, like: Tensor | None) -> Any:
    """This rank's share of a whole tensor, where ``like``, of the same shape, is cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Each rank has read the file itself: nothing is sent.
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
