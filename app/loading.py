"""Trained networks, back in memory; works without the training framework."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from app.models import LanguageModel
from app.run import checkpoint as checkpoint_file
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError, IntegrityError
from app.run.plan import weights_of
from datamodules import tokenizers


class Loaded(NamedTuple):
    """A trained network and what is needed to talk to it.

    Attributes:
        network: in evaluation mode.
        tokenizer: text to token ids and back.
        block_size: the longest context it was trained with.
    """

    network: LanguageModel
    tokenizer: tokenizers.Tokenizer
    block_size: int


def load(run: str | Path, device: str = "cpu", trust_imports: Sequence[str] = ()) -> Loaded:
    """Rebuilds the network of a run and loads its weights.

    Args:
        run: a run directory (its best checkpoint, else its last) or a checkpoint file in one.
        device: where the network is put.
        trust_imports: import prefixes beside ``app`` that the network's class may come from.

    Raises:
        ConfigurationError: no such run, a network class outside the allowed prefixes, or another tokenizer.
        IntegrityError: the checkpoint is damaged or none of ours.
    """
    path = weights_of(str(run))
    directory, _ = resolve_run(path)
    content: Any = checkpoint_file.read(path)
    if not isinstance(content, dict) or "archlab" not in content:
        raise IntegrityError(f"{path}: is no checkpoint of a run; name one that app fit has written")
    state = content["archlab"]
    network = build(state["network"], trust_imports)
    prefix = "network."
    weights = {
        name.removeprefix(prefix): t for name, t in content["state_dict"].items() if name.startswith(prefix)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise IntegrityError(
            f"{path}: its weights do not fit its own network ({str(error).splitlines()[0]})"
        ) from error
    tokenizer = tokenizers.load(directory.tokenizer)
    if tokenizer.hash != state["data"]["tokenizer"]:
        raise ConfigurationError(
            f"{directory.tokenizer}: is another tokenizer ({tokenizer.hash}) than the checkpoint's "
            f"({state['data']['tokenizer']})"
        )
    return Loaded(network.to(torch.device(device)).eval(), tokenizer, state["block_size"])


def build(description: dict[str, Any], trust_imports: Sequence[str] = ()) -> LanguageModel:
    """A fresh network from its description; what it names is refused before it is imported.

    Args:
        description: ``class_path`` and ``init_args``, see :meth:`app.models.LanguageModel.description`.
        trust_imports: import prefixes beside ``app.models``.
    """
    class_path = str(description["class_path"])
    prefixes = ("app.models", *trust_imports)
    if not any(class_path.startswith(f"{prefix}.") for prefix in prefixes):
        raise ConfigurationError(
            f"{class_path}: may not be imported; networks come from app.models, your own need --trust_imports PREFIX"
        )
    if trust_imports and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, name = class_path.rpartition(".")
    try:
        class_type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{class_path}: {error}; was the run made by another version?") from error
    if not (isinstance(class_type, type) and issubclass(class_type, LanguageModel)):
        raise ConfigurationError(f"{class_path}: is no language model")
    try:
        return class_type(**description["init_args"])
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{class_path}: {error}; was the run made by another version?") from error
