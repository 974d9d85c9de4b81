"""The framework's averages of weights, so that a resumed run goes on exactly and every checkpoint says what it holds.

While a run averages, ``state_dict`` of its checkpoints is the average, and ``current_model_state`` what is trained.
The average is what validation, best checkpoints, ``app validate``, ``app generate`` and ``--init_from`` use. Parameters
alone are averaged: buffers, such as running thresholds and counts, are statistics already and go along as they are.
Before the first update there is no average, and everything uses the weights that are trained.
"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.training.lightning_seams import OpenAveraging

AVERAGE_KEY, TRAINED_KEY = "state_dict", "current_model_state"


class RunAveraging(OpenAveraging):
    """What differs from the framework's class, before which it is put for a run.

    There, the swap for a validation ends before its checkpoints are saved and its texts are written; a save in the
    midst of one takes average and trained weights for each other; the end of the run forgets the trained weights, so
    that it cannot be gone on with; and an average that has not begun is that of the first, random weights.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The average is validated; :class:`TrainedWeights` ends it."""
        self.exchange(pl_module, swapped=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing yet: what follows a validation uses the weights that were validated."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module ends with the average, and the last checkpoint holds both."""
        self.exchange(pl_module, swapped=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the average, whichever of the two the module holds at the moment."""
        if not self.has_begun:
            return
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self.is_swapped:
            average, trained = checkpoint[TRAINED_KEY], checkpoint[AVERAGE_KEY]
            checkpoint[AVERAGE_KEY], checkpoint[TRAINED_KEY] = average, trained

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes both back; from a checkpoint without an average, the average begins with its next update."""
        if TRAINED_KEY in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class TrainedWeights(Callback):
    """Puts the trained weights back when everything that follows a validation is done; it stands last.

    Args:
        averaging: the callback that has put the average in their place.
    """

    def __init__(self, averaging: RunAveraging):
        self.averaging = averaging

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next step trains on."""
        self.averaging.exchange(pl_module, swapped=False)


def held_weights(trainer: Trainer) -> dict[str, str]:
    """What a checkpoint that is saved now says of its weights; nothing where they are those that are trained."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunAveraging) and callback.has_begun:
            return {"weights": f"averaged by {type(callback).__name__}"}
    return {}


def train_on(checkpoint: dict[str, Any]) -> bool:
    """Puts the trained weights of a checkpoint in place of the average, for a run that averages no more.

    Returns:
        Whether there was an average.
    """
    trained = checkpoint.pop(TRAINED_KEY, None)
    if trained is None:
        return False
    checkpoint[AVERAGE_KEY] = trained
    return True
