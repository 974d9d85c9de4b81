"""What a run keeps of itself in its checkpoints, checked before anything is made of it."""

from pathlib import Path
from typing import Any

from app.run.checkpoint import FORMAT
from app.run.errors import IntegrityError

#: where it stands in a checkpoint, beside what the training framework keeps
STATE_KEY = "archlab"

_FIRST: dict[str, type] = {
    "step": int,
    "validation_pending": bool,
    "last_validation": dict,
    "network": dict,
    "optimizer": str,
    "seed": int,
    "block_size": int,
    "data": dict,
}
#: fields with their types by the format that brought them
_FIELDS = {1: _FIRST, 2: {"windows_seen": int, "configuration": dict, "place": dict}}
#: of what is counted, the least that there can be
_LEAST = {"step": 0, "seed": 0, "block_size": 1, "windows_seen": 0}


def saved_state(content: Any, path: Path) -> dict[str, Any]:
    """The state of the run that wrote a checkpoint; that of an older format lacks what later ones brought.

    Args:
        content: of the checkpoint.
        path: of the checkpoint, for the message.

    Raises:
        IntegrityError: no run has written it, a newer version of this program has, or it is damaged.
    """
    state = content.get(STATE_KEY) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise IntegrityError(f"{path}: is no checkpoint of a run; name one that app fit has written")
    found = state.get("format", 1)
    if type(found) is int and found > FORMAT:
        raise IntegrityError(
            f"{path}: was written by a newer archlab (format {found}); this one reads up to {FORMAT}"
        )
    problem = _problem(state, found) or _problem_of_parts(content, state)
    if problem:
        raise IntegrityError(f"{path}: is damaged: {problem}; use another checkpoint")
    return state


def _problem(state: dict[str, Any], found: Any) -> str | None:
    """What is wrong with the fields of a state of this format."""
    if type(found) is not int or found < 1:
        return f"its format is {found!r:.40}"
    for needed in range(1, found + 1):
        for name, kind in _FIELDS[needed].items():
            if type(state.get(name)) is not kind or (name in _LEAST and state[name] < _LEAST[name]):
                return f"its {STATE_KEY}.{name} is {state.get(name)!r:.40}"
    if "path" in state and not isinstance(state["path"], dict):
        return f"its {STATE_KEY}.path is {state['path']!r:.40}"
    return None


def _problem_of_parts(content: dict[str, Any], state: dict[str, Any]) -> str | None:
    """What is wrong with the network's description, the tokenizer's hash or the weights."""
    import torch

    network, weights = state["network"], content.get("state_dict")
    arguments = network.get("init_args")
    if not isinstance(network.get("class_path"), str) or not isinstance(arguments, dict):
        return f"{STATE_KEY}.network is no class_path with init_args"
    if not all(isinstance(name, str) for name in arguments):
        return f"{STATE_KEY}.network has arguments without a name"
    if not isinstance(state["data"].get("tokenizer"), str):
        return f"{STATE_KEY}.data.tokenizer is no hash"
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in weights.items()
    ):
        return "its state_dict is no dict of tensors"
    return None
