"""Evaluation of a checkpoint, outside of training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from app.run import ranks
from app.run.errors import ConfigurationError
from app.run.randomness import seed_initialisation
from app.run.saved_state import STATE_KEY
from app.training.command_line import RunCLI
from app.training.counts import count_baseline, measured, print_counts
from app.training.framework_output import silence_framework
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.progress_notes import ProgressNotes
from app.training.run_callbacks.retention import VerifiedCheckpointIO


class Evaluated(NamedTuple):
    """What was found on a split.

    Attributes:
        figures: loss, bits per byte, perplexity and tokens by key; empty on other ranks than the first.
        data: the data module.
    """

    figures: dict[str, float]
    data: Any

    def print_counts(self, split: Literal["val", "test"]) -> None:
        """Says what counting reaches on the split; counted now, and not kept, where no training has done it."""
        if not self.data.has_words:
            return
        found = measured("what counting reaches", lambda: count_baseline(self.data, keep=False), "left out")
        if found is not None:
            print_counts(found.losses.get(split), found.order, self.figures.get(f"{split}/loss"))


def _notes(state: dict[str, Any], data: Any, name: str) -> Iterator[str]:
    """What a person should know of the weights and of the text."""
    if "weights" in state:
        yield f"the weights are {state['weights']}"
    if data.fingerprint != state["data"]:
        yield "this is another text than the run was trained on"
    yield from data.notes("val" if name == "validate" else "test")


def evaluate(cli: RunCLI, checkpoint: Path, name: Literal["validate", "test"] | str) -> Evaluated:
    """Evaluates a whole split.

    Args:
        cli: the run's configuration with the command line's changes.
        checkpoint: whose weights are evaluated; it is only read.
        name: ``validate`` or ``test``.

    Raises:
        ConfigurationError: the text has other symbols than the run's, or the network is another.
        IntegrityError: the checkpoint is damaged.
    """
    silence_framework()
    content = VerifiedCheckpointIO().preload(checkpoint)
    data = cli.build_data()
    data.open_validation()
    trained_on = content[STATE_KEY]["data"]["tokenizer"]
    if data.fingerprint["tokenizer"] != trained_on:
        raise ConfigurationError(
            f"data: the tokenizer {data.fingerprint['tokenizer']} is not the run's {trained_on}; restore the text"
        )
    if ranks.number() == 0:
        for note in _notes(content[STATE_KEY], data, name):
            print(f"note     {note}")
    seed_initialisation(cli.config["seed"])
    model = cli.build_model(data, content["state_dict"])
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ConfigurationError(
            f"{checkpoint}: does not fit this network: {str(error).splitlines()[-1].strip()}"
        ) from error
    # Every token counts here, also where the run looked at fewer to save time.
    cli.config["trainer"]["limit_val_batches"] = cli.config["trainer"]["limit_test_batches"] = 1.0
    graphed = [GraphedSteps()] if cli.config["graph"] else []
    trainer = cli.build_trainer(
        [ProgressNotes(), *graphed], [], [], checkpoint.parent.parent, with_watchers=False
    )
    loop: Any = trainer.validate if name == "validate" else trainer.test
    loop(model, datamodule=data, verbose=False)
    return Evaluated(model.last_validation if trainer.is_global_zero else {}, data)
