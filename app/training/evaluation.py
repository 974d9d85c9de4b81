"""Evaluation of a checkpoint, outside of training."""

from pathlib import Path
from typing import Any, Literal

from app.run.errors import ConfigurationError
from app.run.randomness import seed_initialisation
from app.training.command_line import RunCLI
from app.training.keepers import STATE_KEY, VerifiedCheckpointIO
from app.training.quiet import quiet


def evaluate(cli: RunCLI, checkpoint: Path, name: Literal["validate", "test"] | str) -> dict[str, float]:
    """Loss, bits per byte, perplexity and tokens of a whole split.

    Args:
        cli: the run's configuration with the command line's changes.
        checkpoint: whose weights are evaluated; it is only read.
        name: ``validate`` or ``test``.

    Raises:
        ConfigurationError: the text has other symbols than the run's, or the network is another.
        IntegrityError: the checkpoint is damaged.
    """
    quiet()
    content = VerifiedCheckpointIO().preload(checkpoint)
    data = cli.build_data()
    trained_on = content[STATE_KEY]["data"]["tokenizer"]
    if data.tokenizer.hash != trained_on:
        raise ConfigurationError(
            f"data: the tokenizer {data.tokenizer.hash} is not the run's {trained_on}; restore the text"
        )
    if data.fingerprint != content[STATE_KEY]["data"]:
        print("note     this is another text than the run was trained on")
    seed_initialisation(cli.config["seed"])
    model = cli.build_model(data)
    try:
        model.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ConfigurationError(
            f"{checkpoint}: does not fit this network: {str(error).splitlines()[-1].strip()}"
        ) from error
    # Every token counts here, also where the run looked at fewer to save time.
    cli.config["trainer"]["limit_val_batches"] = cli.config["trainer"]["limit_test_batches"] = 1.0
    trainer = cli.build_trainer([], [], [], checkpoint.parent.parent, with_watchers=False)
    loop: Any = trainer.validate if name == "validate" else trainer.test
    loop(model, datamodule=data, verbose=False)
    return model.last_validation if trainer.is_global_zero else {}
