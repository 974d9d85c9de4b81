"""The framework's callbacks as a run takes them up: with what makes them right when it is resumed."""

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging

from app.training.run_callbacks.weight_averaging import RunAveraging, TrainedWeights


class RunEarlyStopping(EarlyStopping):
    """Resumed, it has the patience of the configuration and not that of the checkpoint."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what it has seen."""
        super().load_state_dict(state_dict | {"patience": self.patience})


def adopt(callbacks: list[Callback]) -> list[Callback]:
    """Makes the callbacks that a configuration names fit for a run, also those of classes derived from the framework's.

    Args:
        callbacks: which are changed.

    Returns:
        What has to stand behind all others.
    """
    last: list[Callback] = []
    for callback in callbacks:
        for theirs, ours in ((EarlyStopping, RunEarlyStopping), (WeightAveraging, RunAveraging)):
            if isinstance(callback, theirs) and not isinstance(callback, ours):
                kind = type(callback)
                # Under the same name, by which checkpoints know the callback's state.
                callback.__class__ = type(kind.__name__, (ours, kind), {"__module__": kind.__module__})
        if isinstance(callback, RunAveraging):
            callback.leave_buffers()
            last.append(TrainedWeights(callback))
    return last
