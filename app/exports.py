"""A trained network as a folder of its own: weights in safetensors, a description, the tokenizer and a model card.

Nothing in it needs the run that it came from, and nothing of it is executed when it is read.
"""

import contextlib
import hashlib
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.models import LanguageModel
from app.models.gpt import GPT
from app.models.gpt.as_gpt2 import gpt2_config, gpt2_weights
from app.models.tilelli.packing import pack, unpack
from app.run.atomic import storage_error, sync_directory, temporary_path, write_bytes, write_json, write_text
from app.run.bounded import Budget, charge_json, open_regular, parse_json, read_json
from app.run.errors import ConfigurationError, IntegrityError
from app.run.storage import make_folder
from app.run.strict_json import to_json
from datamodules.tokenizers import Tokenizer

OUR_TOKENIZER = "archlab_tokenizer.json"
PACKED = "model.packed.safetensors"
WEIGHTS, DESCRIPTION, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
FORMAT = 1
#: what a model card shows: how an export is opened
CODE = """import app, torch

network, tokenizer, block_size = app.load("THIS FOLDER")
logits = network(torch.as_tensor(tokenizer.encode("a"))[None]).logits

import app.hugging_face
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")"""
GPT2_CODE = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")

from datamodules import tokenizers  # of archlab

tokenizer = tokenizers.load("THIS FOLDER/archlab_tokenizer.json")"""
#: of a header: a thousand times what a network of a thousand tensors has
_MAX_HEADER_BYTES = 16 << 20
#: what another writer of the format puts before every name
_PREFIX = "network."
_FIELDS: dict[str, type] = {"network": dict, "block_size": int, "tokenizer": str, "tied": dict}


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is an export, whole or not, and no run."""
    folder = Path(path)
    return (folder / DESCRIPTION).is_file() and not (folder / "checkpoints").is_dir()


@contextmanager
def new_folder(folder: str | os.PathLike[str], option: str) -> Iterator[Path]:
    """A folder that is there, whole, after the ``with`` block; after an exception nothing is.

    Args:
        folder: must not exist, or be empty.
        option: what names it, for the message.

    Yields:
        Where its files are written.

    Raises:
        ConfigurationError: it is a file, or holds something.
        StorageError: it cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(f"{option} {target}: is there already and not empty; name a new folder")
    make_folder(target.absolute().parent, option)
    staging = temporary_path(target.absolute())
    try:
        staging.mkdir()
        yield staging
        sync_directory(staging)
        with contextlib.suppress(OSError):  # an empty one gives way; whatever came meanwhile does not
            target.rmdir()
        os.rename(staging, target)
        sync_directory(target.absolute().parent)
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write(
    folder: Path,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    description: dict[str, Any],
    card: str,
) -> None:
    """Writes the files of an export into an empty folder.

    Args:
        folder: of :func:`new_folder`.
        weights: state dict; of tensors that share memory, the first by name is written and the others are named.
        tokenizer: of the network.
        description: ``network``, ``block_size`` and whatever else is plain.
        card: the model card, Markdown.

    Raises:
        StorageError: it cannot be written.
    """
    kept, tied = without_copies(weights)
    digest = write_tensors(folder / WEIGHTS, kept)
    _write_beside(folder, tokenizer, description | {"tied": tied, "weights_sha256": digest}, card)


class Packed(NamedTuple):
    """The weights of a network, the ternary ones five trits to a byte and the others as they were trained.

    Attributes:
        tensors: by name; of a ternary weight ``NAME.trits`` and ``NAME.scale``.
        tied: names of weights that are another one, with that one.
        shapes: of the ternary weights, by name.
    """

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    shapes: dict[str, list[int]]

    @property
    def n_ternary(self) -> int:
        """How many ternary weights there are."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def n_bytes(self) -> int:
        """That the ternary weights and their scales take."""
        return sum(
            self.tensors[f"{name}.{part}"].nbytes for name in self.shapes for part in ("trits", "scale")
        )

    @property
    def bits_per_weight(self) -> float:
        """Of a ternary weight, scales and padding included."""
        return 8 * self.n_bytes / self.n_ternary


def packed(network: LanguageModel) -> Packed:
    """The weights of a network with its ternary ones packed.

    Raises:
        ValueError: the network has none.
    """
    forms = network.ternary_weights()
    if not forms:
        raise ValueError(f"{type(network).__name__} has no ternary weights")
    tensors, tied = without_copies({name: x for name, x in network.state_dict().items() if name not in forms})
    for name, form in forms.items():
        tensors[f"{name}.trits"] = pack(form.trits)
        tensors[f"{name}.scale"] = form.scale
    return Packed(tensors, tied, {name: list(form.trits.shape) for name, form in forms.items()})


def write_packed(
    folder: Path, weights: Packed, tokenizer: Tokenizer, description: dict[str, Any], card: str
) -> None:
    """Writes an export whose ternary weights are packed.

    Args:
        folder: of :func:`new_folder`.
        weights: of :func:`packed`.
        tokenizer: as in :func:`write`, as the following.
        description: ``network``, ``block_size`` and whatever else is plain.
        card: the model card, Markdown.

    Raises:
        StorageError: it cannot be written.
    """
    digest = write_tensors(folder / PACKED, weights.tensors)
    own = {"tied": weights.tied, "packed": weights.shapes, "weights_sha256": digest}
    _write_beside(folder, tokenizer, description | own, card)


def _write_beside(folder: Path, tokenizer: Tokenizer, description: dict[str, Any], card: str) -> None:
    tokenizer.save(folder / TOKENIZER)
    write_text(folder / CARD, card)
    write_json(
        folder / DESCRIPTION,
        {
            "model_type": "archlab",
            "architectures": ["ArchlabForCausalLM"],
            "format": FORMAT,
            **description,
            "tokenizer": tokenizer.hash,
        },
    )


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes tensors that share no memory, and returns the SHA-256 of their file, in hexadecimal.

    Raises:
        StorageError: it cannot be written.
    """
    content = as_safetensors(tensors)
    write_bytes(file, content)
    return hashlib.sha256(content).hexdigest()


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a safetensors file of tensors that share no memory."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def write_gpt2(folder: Path, network: GPT, tokenizer: Tokenizer, card: str) -> None:
    """Writes a GPT as a model that transformers opens without any code of ours.

    Args:
        folder: of :func:`new_folder`.
        network: whose weights and configuration are turned into those of GPT-2.
        tokenizer: of the network; in our format, which transformers does not read.
        card: the model card, Markdown.

    Raises:
        StorageError: it cannot be written.
    """
    write_tensors(folder / WEIGHTS, gpt2_weights(network))
    tokenizer.save(folder / OUR_TOKENIZER)
    write_text(folder / CARD, card)
    write_json(folder / DESCRIPTION, gpt2_config(network))


def without_copies(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and the names of the others with the one that each is."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    place: dict[tuple[Any, ...], str] = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key in place:
            tied[name] = place[key]
        else:
            place[key] = name
            kept[name] = tensor
    return kept, tied


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and the description of an export, checked.

    Returns:
        Tensors by name, of which what ``description["packed"]`` names are scaled trits, and the description.

    Raises:
        ConfigurationError: it is none of ours.
        IntegrityError: it is damaged, incomplete, or of a newer version.
    """
    description = _description(folder)
    shapes = description.get("packed", {})
    file = folder / (PACKED if shapes else WEIGHTS)
    try:
        _check_header(file, description.get("weights_sha256"))
        weights = _tensors(file)
        for name, shape in shapes.items():
            weights[name] = _scaled(name, shape, weights)
    except FileNotFoundError:
        raise IntegrityError(
            f"{folder}: has no {file.name}; the export is incomplete, make it again"
        ) from None
    except OSError as error:
        raise IntegrityError(f"{file}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise IntegrityError(f"{file}: {error}; make the export again") from error
    if weights and all(name.startswith(_PREFIX) for name in weights):
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}
    for name, source in description["tied"].items():
        if source not in weights:
            raise IntegrityError(f"{folder / DESCRIPTION}: is damaged: tied.{name} is no tensor of {WEIGHTS}")
        weights[name] = weights[source]
    return weights, description


def _description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    try:
        found = read_json(file)
    except OSError as error:
        raise IntegrityError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise IntegrityError(f"{file}: is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("model_type") != "archlab":
        raise ConfigurationError(f"{folder}: is no export of archlab; name one that app export has written")
    version = found.get("format")
    if type(version) is int and version > FORMAT:
        raise IntegrityError(
            f"{file}: was written by a newer archlab (format {version}); this one reads up to {FORMAT}"
        )
    for name, kind in _FIELDS.items():
        if type(found.get(name)) is not kind:
            raise IntegrityError(f"{file}: is damaged: its {name} is {found.get(name)!r:.40}")
    network, texts = found["network"], [*found["tied"], *found["tied"].values()]
    is_described = isinstance(network.get("class_path"), str) and isinstance(network.get("init_args"), dict)
    if not is_described or found["block_size"] < 1 or not all(isinstance(text, str) for text in texts):
        raise IntegrityError(f"{file}: is damaged: its network, block_size or tied names say nothing")
    shapes = found.get("packed", {})
    if not isinstance(shapes, dict) or not all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        for shape in shapes.values()
    ):
        raise IntegrityError(f"{file}: is damaged: its packed shapes are none")
    return found


def _scaled(name: str, shape: list[int], weights: dict[str, Tensor]) -> Tensor:
    """A packed weight, unpacked and scaled; its parts are taken out of ``weights``.

    Raises:
        ValueError: they are missing or do not fit.
    """
    packed, scale = weights.pop(f"{name}.trits", None), weights.pop(f"{name}.scale", None)
    if packed is None or scale is None:
        raise ValueError(f"is damaged: {name} lacks its trits or their scale")
    if scale.dim() != len(shape) or any(a not in (1, b) for a, b in zip(scale.shape, shape, strict=True)):
        raise ValueError(
            f"is damaged: the scale of {name}, {tuple(scale.shape)}, does not fit {tuple(shape)}"
        )
    try:
        return unpack(packed, shape, scale.dtype) * scale
    except ValueError as error:
        raise ValueError(f"is damaged: {name}: {error}") from error


def _check_header(file: Path, digest: Any) -> None:
    """Whether a file is what its description says, and its header small enough to be read.

    Raises:
        ValueError: it is not.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError("is no safetensors file")
        header = stream.read(length)
        budget = Budget.of_file(size)
        charge_json(header, budget)
        parse_json(header)
        if digest is not None:
            stream.seek(0)
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                raise ValueError(f"is damaged: its SHA-256 is not the one in {DESCRIPTION}")


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"is damaged: {reason}") from error


def card(
    name: str,
    parameters: int,
    figures: Mapping[str, Any],
    data: Mapping[str, Any],
    commit: str,
    weights: str,
    code: str,
) -> str:
    """The model card: what it is, how good, on what, under which licence, and from which code.

    Args:
        name: of the architecture.
        parameters: how many.
        figures: of the run, by key.
        data: what the run's fingerprint says of its text.
        commit: of the code that trained it; empty where unknown.
        weights: which of the run's.
        code: that opens it.
    """
    rows = [f"| {key} | {_shown(value)} |" for key, value in figures.items()]
    table = ["| figure | value |", "| --- | --- |", *rows] if rows else ["No figure was logged."]
    about = [f"- {key}: {_shown(value)}" for key, value in data.items()]
    licence = data.get("licence") or "not recorded; that of the text decides what may be done with it"
    return "\n".join(
        [
            "---",
            "library_name: archlab",
            "tags: [archlab, language-model]",
            "---",
            "",
            f"# {name}",
            "",
            f"A language model of {parameters:,} parameters, trained by archlab; {weights}.",
            "",
            "## Figures",
            "",
            "Losses are nats per token on held-out text; bpb is bits per byte.",
            "",
            *table,
            "",
            "## Data",
            "",
            *about,
            "",
            f"Licence of the text: {licence}.",
            "",
            "## Code",
            "",
            f"Commit {commit or 'not recorded'}, PyTorch {torch.__version__}.",
            "",
            "```python",
            code,
            "```",
            "",
        ]
    )


def _shown(value: Any) -> str:
    """One line without what a table or a page would take for its own signs."""
    text = f"{value:,.6g}" if isinstance(value, float) else to_json(value, ensure_ascii=False)
    return text.strip('"').replace("|", "\\|").replace("<", "&lt;")
