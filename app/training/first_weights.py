"""The weights of another run as those that a network begins with (``--init_from``)."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from app.models import LanguageModel
from app.run.errors import ConfigurationError
from app.training.language_model import LanguageModelModule

PREFIX = "network."


def take_weights(model: LanguageModelModule, state_dict: Mapping[str, Tensor], source: str) -> list[str]:
    """Begins from the network of a checkpoint.

    Every weight has to be there, and in its shape. What is moved without a gradient (running statistics, thresholds,
    biases of banks) an option may add or leave out: what the checkpoint has none of starts as in a new run, what this
    network has no place for is left out, and both are said.

    Args:
        model: whose hook ``begin`` is called with the weights first.
        state_dict: of the other module.
        source: the checkpoint in the words of the user.

    Returns:
        What a person should know about it.

    Raises:
        ConfigurationError: the weights do not fit.
    """
    network = model.network
    weights = {name.removeprefix(PREFIX): x for name, x in state_dict.items()}
    notes = model.begin(weights)
    theirs = network.starting_weights(weights)
    ours = network.state_dict()
    buffers = {name for name, _ in network.named_buffers()}
    new = {name: ours[name] for name in buffers & ours.keys() - theirs.keys()}
    superfluous = {name for name in theirs.keys() - ours.keys() if _is_left_out(network, name)}
    taken = {name: x for name, x in theirs.items() if name not in superfluous} | new
    wrong = [name for name in sorted({*ours, *taken}) if _shape(ours, name) != _shape(taken, name)]
    if wrong:
        raise ConfigurationError(
            f"{source}: the weights do not fit this network: {PREFIX}{wrong[0]} is {_shape(taken, wrong[0])} there and "
            f"{_shape(ours, wrong[0])} here ({len(wrong)} tensors differ)"
        )
    network.load_state_dict(taken)
    for pattern, names in _alike(new):
        values = {float(x) for name in names for x in new[name].flatten().unique()}
        start = f"at {values.pop():g}" if len(values) == 1 else "as in a new run"
        notes.append(f"{source}: holds no {pattern}, which starts {start}")
    for pattern, _ in _alike(superfluous):
        notes.append(f"{source}: holds {pattern}, which this network does without")
    return notes


def _is_left_out(network: LanguageModel, name: str) -> bool:
    """Whether this is a buffer of a network like this one, which its options leave empty."""
    owner, _, last = name.rpartition(".")
    try:
        module: nn.Module = network.get_submodule(owner)
    except AttributeError:
        return False
    return last in module._buffers


def _alike(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Names that differ in the number of a layer alone, under one that has a star for it."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return [(names[0] if len(names) == 1 else pattern, names) for pattern, names in found.items()]


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
