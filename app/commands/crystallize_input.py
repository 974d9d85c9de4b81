"""What ``app crystallize`` measures, and on which text: a run of ours, or a model of transformers."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from app.loading import load
from app.models.crystal import weights_digest
from app.models.crystal.hugging_face import FAMILIES
from app.run.configuration import find_config, read_config
from app.run.directory import resolve_run
from app.run.errors import ConfigurationError
from app.run.imports import imported
from app.run.launching import weights_of

HUGGING_FACE = "hf:"
#: tokens of a split that are turned into text for another tokenizer, per token needed
TEXT_MARGIN = 16
#: what a token is called, by kind of tokenizer
UNITS = {"char": "character", "byte": "byte", "word": "word"}


class Subject(NamedTuple):
    """A network and the text to measure it on.

    Attributes:
        model: in evaluation mode, on its device.
        name: for titles.
        text: name of what it is measured on, for titles.
        unit: what a token is, such as ``character``.
        calibration: ``(n,)`` token ids of the training split.
        evaluation: ``(n,)`` token ids of the validation split.
        limit: longest block that it reads; None where there is no limit.
        usual: length of block that it was trained with; None where unknown.
        folder: where results go unless told otherwise.
        fingerprints: plain values that change when weights or text do.
    """

    model: nn.Module
    name: str
    text: str
    unit: str
    calibration: np.ndarray
    evaluation: np.ndarray
    limit: int | None
    usual: int | None
    folder: Path
    fingerprints: dict[str, Any]


def of_run(
    argument: str, checkpoint: str, data: str | None, device: str, trust_imports: Sequence[str]
) -> Subject:
    """A run of ours, on the text that it was trained and validated on, or on another with the same tokenizer.

    Args:
        argument: a run directory or one of its checkpoint files.
        checkpoint: ``best`` or ``last``.
        data: configuration or text file to measure on instead; None for the run's own.
        device: where the network is put.
        trust_imports: import prefixes of the user's own.

    Raises:
        ConfigurationError: no such run, or a text of other symbols.
    """
    directory, _ = resolve_run(argument)
    path = weights_of(argument, checkpoint)
    network, tokenizer, block_size = load(path, device, trust_imports)
    module = datamodule(data or str(directory.config), trust_imports)
    corpus = module.check_source()
    if corpus.tokenizer.hash != tokenizer.hash:
        raise ConfigurationError(
            f"{data or directory.config}: this text has another tokenizer ({corpus.tokenizer.hash}) than the run "
            f"({tokenizer.hash}); restore the text, or name one of the same symbols with --data"
        )
    return Subject(
        network,
        type(network).__name__,
        corpus.summary.partition(": ")[0],
        UNITS.get(tokenizer.kind, "token"),
        corpus.train,
        corpus.val,
        network.max_context,
        block_size,
        Path(directory.path) / "crystallize",
        {"model": weights_digest(network.state_dict()), "data": dict(module.fingerprint)},
    )


def of_hugging_face(
    name: str,
    data: str | None,
    device: str,
    n_blocks: tuple[int, int],
    seq_len: int,
    trust_imports: Sequence[str],
) -> Subject:
    """A model of transformers on the text of a configuration or file, in its own tokens.

    Args:
        name: folder or identifier.
        data: configuration whose data is used, or a text file.
        device: where the model is put.
        n_blocks: blocks needed of the training and of the validation split.
        seq_len: tokens of a block, unless the model reads fewer. No more text is tokenised anew than such blocks
            may need, in pieces from all over a split.
        trust_imports: import prefixes of the user's own, for the data.

    Raises:
        ConfigurationError: transformers or the model is missing, or it is of another family.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigurationError(
            f"--model {HUGGING_FACE}{name}: needs the package transformers; pip install 'archlab[hf]'"
        ) from error
    if data is None:
        raise ConfigurationError(
            f"--data is missing: a text for {HUGGING_FACE}{name}; name a configuration, such as gpt_char, or a file"
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        family = transformers.AutoConfig.from_pretrained(name).model_type
        if family not in FAMILIES:
            raise ConfigurationError(
                f"--model {HUGGING_FACE}{name}: is of the family {family!r}; can be crystallised: {', '.join(FAMILIES)}"
            )
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(name)
    except ConfigurationError:
        raise
    except Exception as error:  # the library lets through whatever its parts raise on a damaged folder
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"--model {HUGGING_FACE}{name}: {reason}; name a folder made by save_pretrained, or an identifier"
        ) from error
    module = datamodule(data, trust_imports)
    corpus = module.check_source()
    tokenizer, splits = _tokenizer(name), [corpus.train, corpus.val]
    if tokenizer is not None:
        seq_len = min(seq_len, int(model.config.max_position_embeddings))

        def tokens(piece: np.ndarray) -> np.ndarray:
            return np.asarray(tokenizer(corpus.tokenizer.decode(piece), verbose=False)["input_ids"])

        splits = [
            in_other_tokens(split, tokens, n, seq_len) for split, n in zip(splits, n_blocks, strict=True)
        ]
    elif module.vocab_size != model.config.vocab_size:
        raise ConfigurationError(
            f"--model {HUGGING_FACE}{name}: brings no tokenizer, and the {module.vocab_size} tokens of --data {data} "
            f"are not its {model.config.vocab_size}; save its tokenizer beside it"
        )
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip("-.") or "model"
    return Subject(
        model.float().to(device).eval(),
        f"{type(model).__name__} {Path(name).name}",
        corpus.summary.partition(": ")[0],
        UNITS.get(corpus.tokenizer.kind, "token") if tokenizer is None else "token",
        splits[0],
        splits[1],
        int(model.config.max_position_embeddings),
        None,
        Path(f"crystallize-{stem}"),
        {
            "model": weights_digest(model.state_dict()),
            "data": dict(module.fingerprint),
            "tokenizer": type(tokenizer).__name__,
        },
    )


def in_other_tokens(
    split: np.ndarray, tokens: Callable[[np.ndarray], np.ndarray], n_blocks: int, seq_len: int
) -> np.ndarray:
    """A split in the tokens of another tokenizer, as much of it as some blocks need, from its whole length.

    Args:
        split: ``(n,)`` token ids.
        tokens: a piece of it in the other tokens.
        n_blocks: blocks that will be taken.
        seq_len: tokens of each.

    Returns:
        ``(m,)`` ids; of a split that is not read whole, each piece is cut to whole blocks, so that no block of
        ``seq_len`` reaches over a gap.
    """
    length = seq_len * TEXT_MARGIN
    if n_blocks * length >= len(split):
        return tokens(split)
    starts = np.linspace(0, len(split) - length, n_blocks).astype(np.int64)
    pieces = (tokens(split[start : start + length]) for start in starts)
    return np.concatenate([piece[: len(piece) // seq_len * seq_len] for piece in pieces])


def _tokenizer(name: str) -> Any:
    """The tokenizer that a model brings along; None without one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # For a folder without one the library makes an empty one up, which turns every text into nothing.
    return tokenizer if tokenizer("some text")["input_ids"] else None


def datamodule(name: str, trust_imports: Sequence[str], kind: type | None = None) -> Any:
    """The data module of a configuration, or the characters of a text file.

    Args:
        name: configuration or text file.
        trust_imports: import prefixes of the user's own.
        kind: what it has to be; by default one that reads a text.
    """
    path = Path(name)
    if path.exists() and path.suffix not in (".yaml", ".yml"):
        from datamodules import CharDataModule

        return CharDataModule(path=name)
    section = read_config(find_config(name)).data.get("data")
    if not isinstance(section, dict) or "class_path" not in section:
        raise ConfigurationError(f"{name}: has no `data` section with a class_path; name another --data")
    from datamodules.base import TokenDataModule

    refusal = "may not be imported; data comes from datamodules, your own needs --trust_imports PREFIX"
    class_type = imported(str(section["class_path"]), ("datamodules",), trust_imports, refusal)
    if not (isinstance(class_type, type) and issubclass(class_type, kind or TokenDataModule)):
        raise ConfigurationError(f"{name}: {section['class_path']} is no data module")
    try:
        return class_type(**(section.get("init_args") or {}))
    except TypeError as error:
        raise ConfigurationError(f"{name}: {section['class_path']}: {error}") from error
