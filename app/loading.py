"""Trained networks, back in memory; works without the training framework."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app import exports
from app.models import LanguageModel
from app.models.blueprint import lay_out
from app.models.tilelli.weights import QuantisedWeight
from app.run import checkpoint as checkpoint_file
from app.run.bounded import Budget, BudgetError
from app.run.directory import RunDirectory, resolve_run
from app.run.errors import ConfigurationError, IntegrityError
from app.run.imports import imported, is_below
from app.run.launching import weights_of
from app.run.paths import typed_path
from app.run.saved_state import saved_state
from app.run.trust import trusted_for
from datamodules import tokenizers

#: where the networks of this program are
OUR_NETWORKS = ("app.models",)


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


def load(
    run: str | Path,
    device: str = "cpu",
    trust_imports: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Rebuilds the network of a run or an export and loads its weights.

    Args:
        run: a run directory (its best checkpoint, else its last), a checkpoint file in one, or a folder that ``app
            export`` has written.
        device: where the network is put.
        trust_imports: import prefixes beside ``app`` that the network's class may come from.
        dtype: number format of its weights, such as ``torch.bfloat16``; as they were trained by default.

    Raises:
        ConfigurationError: no such run, a network class outside the allowed prefixes, or another tokenizer.
        IntegrityError: the checkpoint is damaged or none of ours.
    """
    return load_described(run, device, trust_imports, dtype=dtype)[0]


def load_described(
    run: str | Path,
    device: str = "cpu",
    trust_imports: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Loaded, str]:
    """The same as :func:`load`, and what averaged the weights, in words; empty where they are as they were trained."""
    if exports.is_export(named := typed_path(str(run))):
        network, tokenizer, block_size = _exported(Path(named), trust_imports)
        return Loaded(network.to(torch.device(device), dtype).eval(), tokenizer, block_size), ""
    path = weights_of(named)
    directory, _ = resolve_run(path)
    content = checkpoint_file.read(path)
    state = saved_state(content, path)
    prefix = "network."
    weights = {
        name.removeprefix(prefix): t for name, t in content["state_dict"].items() if name.startswith(prefix)
    }
    del content  # the optimizer's moments, before the network is built
    tokenizer = _tokenizer_of(state, directory, path)
    network = _built_for(
        weights, state["network"], trusted_for(directory, trust_imports), path, path.stat().st_size
    )
    loaded = Loaded(network.to(torch.device(device), dtype).eval(), tokenizer, state["block_size"])
    return loaded, str(state.get("weights", ""))


def build(description: dict[str, Any], trust_imports: Sequence[str] = ()) -> LanguageModel:
    """A fresh network from its description; what it names is refused before it is imported.

    Args:
        description: ``class_path`` and ``init_args``, see :meth:`app.models.LanguageModel.description`.
        trust_imports: import prefixes beside ``app.models``.
    """
    class_path = str(description["class_path"])
    class_type = imported(
        class_path,
        OUR_NETWORKS,
        trust_imports,
        "may not be imported; networks come from app.models, your own need --trust_imports PREFIX",
    )
    if not (isinstance(class_type, type) and issubclass(class_type, LanguageModel)):
        raise ConfigurationError(f"{class_path}: is no language model")
    try:
        return class_type(**class_type.with_defaults(description["init_args"]))
    except BudgetError:
        raise
    except Exception as error:  # a constructor is given whatever stands in the file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"{class_path}: {reason}; was the run made by another version?") from error


def _exported(folder: Path, trust_imports: Sequence[str]) -> Loaded:
    """The network of an export, on the CPU."""
    weights, description = exports.read(folder)
    file = folder / exports.TOKENIZER
    tokenizer = _checked_tokenizer(file, description["tokenizer"], description["network"], folder)
    n_bytes = sum(tensor.nbytes for tensor in weights.values())
    network = _built_for(weights, description["network"], trust_imports, folder, n_bytes)
    for name in description.get("packed", {}):
        owner = network.get_submodule(name.rpartition(".")[0])
        if not (isinstance(owner, QuantisedWeight) and owner.quantize):
            raise IntegrityError(f"{folder}: is damaged: {name} is no ternary weight of its network")
        owner.settle()
    return Loaded(network, tokenizer, description["block_size"])


def _built_for(
    weights: Mapping[str, Tensor],
    description: dict[str, Any],
    trust_imports: Sequence[str],
    path: Path,
    n_bytes: int,
) -> LanguageModel:
    """The network of a checkpoint, with its weights; laid out first, so that none is built that they could not fill."""
    misfit = f"{path}: its weights do not fit its own network"
    try:
        lay_out(lambda: build(description, trust_imports), Budget.of_file(n_bytes).charge)
    except BudgetError as error:
        raise IntegrityError(f"{misfit}, which {error}") from error
    except ConfigurationError:
        if is_below(description["class_path"], OUR_NETWORKS):
            raise
        # A constructor of the user's own may need tensors with entries; its code is trusted with memory too.
    network = build(description, trust_imports)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise IntegrityError(f"{misfit} ({str(error).splitlines()[0]})") from error
    return network


def _tokenizer_of(state: dict[str, Any], directory: RunDirectory, path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a checkpoint's network was trained with.

    Raises:
        ConfigurationError: the run directory holds another one, or none.
        IntegrityError: the network has another number of symbols.
    """
    if "datamodule" in state["data"]:
        raise ConfigurationError(
            f"{path}: was trained on the batches of {state['data']['datamodule']}, which has no tokenizer: there is no "
            "text to read or to write"
        )
    return _checked_tokenizer(directory.tokenizer, state["data"]["tokenizer"], state["network"], path)


def _checked_tokenizer(
    file: Path, expected: str, network: dict[str, Any], path: Path
) -> tokenizers.Tokenizer:
    """The tokenizer in a file, if it is the one of this hash and has as many symbols as the network.

    Raises:
        ConfigurationError: it is another one, or none.
        IntegrityError: the network has another number of symbols.
    """
    tokenizer = tokenizers.load(file)
    if tokenizer.hash != expected:
        raise ConfigurationError(
            f"{file}: is another tokenizer ({tokenizer.hash}) than the network's ({expected})"
        )
    vocab_size = network["init_args"].get("vocab_size", tokenizer.vocab_size)
    if vocab_size != tokenizer.vocab_size:
        raise IntegrityError(
            f"{path}: is damaged: its network has {vocab_size!r:.20} symbols, its tokenizer {tokenizer.vocab_size:,}"
        )
    return tokenizer
