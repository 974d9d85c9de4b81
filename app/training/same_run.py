"""Whether a launch goes on with the run that a checkpoint is of."""

from typing import Any

from app.run.errors import ConfigurationError
from app.training.language_model import LanguageModelModule


def check_same_run(
    model: LanguageModelModule, data: Any, seed: int, state: dict[str, Any], accept_data_change: bool
) -> list[str]:
    """Refuses another architecture, optimizer, seed, block size or text than the run has.

    Args:
        model: of this launch, as the following three.
        data: its data module.
        seed: its seed.
        state: what the checkpoint says of the run.
        accept_data_change: whether another text, of the same tokenizer, is a change and no mistake.

    Returns:
        What was changed, for the record.

    Raises:
        ConfigurationError: naming everything that differs.
    """
    problems: list[str] = []
    changes: list[str] = []
    network = model.network
    ours, theirs = network.description(), state["network"]
    of_this, of_run = (network.with_defaults(one["init_args"]) for one in (ours, theirs))
    for key in sorted({*of_this, *of_run}):
        mine, other = of_this.get(key), of_run.get(key)
        if mine != other:
            problems.append(
                f"model.init_args.{key}: {mine!r}, but the run has {other!r}; resuming keeps the architecture, "
                "use --init_from for another one"
            )
    if ours["class_path"] != theirs["class_path"]:
        problems.append(
            f"model: {ours['class_path']}, but the run has {theirs['class_path']}; start a new run"
        )
    if model.optimizer_name != state["optimizer"]:
        problems.append(
            f"model.init_args.optimizer: {model.optimizer_name!r}, but the run has {state['optimizer']!r}, "
            "whose moments it cannot use; begin with --init_from"
        )
    if seed != state["seed"]:
        problems.append(f"seed: {seed}, but the run has {state['seed']}; a resumed run keeps its seed")
    if data.block_size != state["block_size"]:
        problems.append(
            f"data.init_args.block_size: {data.block_size}, but the run has {state['block_size']}; "
            "its position is counted in windows of that size, use --init_from for another one"
        )
    for key in sorted({*data.fingerprint, *state["data"]}):
        mine, other = data.fingerprint.get(key), state["data"].get(key)
        if mine == other:
            continue
        if key == "tokenizer":
            problems.append(
                f"data: tokenizer is {mine!r}, but the run was trained with {other!r}; restore the text, or set "
                "the tokenizer_path of the data to the run's tokenizer.json where it has one"
            )
        elif accept_data_change:
            changes.append(f"data {key}: {other!r} -> {mine!r}")
        else:
            problems.append(
                f"data: {key} is {mine!r}, but the run was trained with {other!r}; restore the text, or go on "
                "with the changed one with --accept_data_change"
            )
    if problems:
        raise ConfigurationError(problems)
    return changes
