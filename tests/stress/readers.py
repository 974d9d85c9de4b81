"""Everything that reads a file which somebody else may have written, for the fuzzer and for its corpus.

Whatever stands in a file, its reader gives a value or refuses it by an error of its own: no other exception, no
hang, no memory beyond what the size allows, and nothing written.
"""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow.parquet
import torch
import yaml
from safetensors.torch import save

from app import exports
from app.analysis.gamma import analyse
from app.commands.gamma import _scales
from app.loading import load
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from app.run import checkpoint
from app.run.configuration import read_config, strict_load
from app.run.errors import AppError, ConfigurationError, DataError, IntegrityError
from app.run.saved_state import saved_state
from datamodules import tokenizers
from datamodules.rows import read_jsonl, read_parquet
from datamodules.text import read_text
from datamodules.tokenizers.bpe import train_bpe

CORPUS = Path(__file__).parent / "corpus"
TEXT = "a quick brown fox\n"
#: description of an export, its weights and its tokenizer: which of them an input replaces
EXPORTED = {b"d": exports.DESCRIPTION, b"w": exports.WEIGHTS, b"p": exports.PACKED, b"t": exports.TOKENIZER}


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: of the file that an input is written into.
        read: reads the file, and does with the value what is done with it next.
        refusals: errors that are an answer.
        seeds: inputs that it takes, made by what writes such files.
    """

    name: str
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    seeds: Callable[[Path], Iterator[bytes]]

    def takes(self, content: bytes, folder: Path) -> bool:
        """Reads an input; whether it was taken.

        Args:
            content: of the file.
            folder: to write it into; what lies there already is written over.

        Raises:
            Exception: what the reader must not raise.
        """
        path = folder / self.name
        path.write_bytes(content)
        try:
            with warnings.catch_warnings(action="ignore"):
                self.read(path)
        except self.refusals:
            return False
        return True


# ---- what is done with a file


def _read_yaml(path: Path) -> None:
    read_config(path)
    try:
        strict_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise AssertionError("the parser refuses what was read before it") from error


def _read_checkpoint(path: Path) -> None:
    saved_state(checkpoint.read(path), path)


def _read_scales(path: Path) -> None:
    analyse(_scales(path)[0]).as_dict()


def _read_rows(rows: Callable[[Path, str], Iterator[str]]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        for text in rows(path, "text"):
            text.encode()

    return read


def _read_tokenizer(path: Path) -> None:
    tokenizer = tokenizers.load(path)
    ids = tokenizer.start()
    tokenizer.decode(ids)
    tokenizer.hash  # noqa: B018 - computed when asked for
    tokenizer.decode(tokenizer.encode(TEXT))


def _read_export(path: Path) -> None:
    content = path.read_bytes()
    kind, content = content[:1], content[1:]
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    sound = _packed_export() if kind == b"p" else _plain_export()
    for name in EXPORTED.values():
        (folder / name).unlink(missing_ok=True)
    for name, original in sound.items():
        (folder / name).write_bytes(original)
    name = EXPORTED.get(kind, exports.DESCRIPTION)
    if kind in (b"w", b"p"):  # otherwise it would be refused by its hash, whatever it is
        description = json.loads(sound[exports.DESCRIPTION])
        del description["weights_sha256"]
        (folder / exports.DESCRIPTION).write_text(json.dumps(description))
    (folder / name).write_bytes(content)
    load(folder)


# ---- seeds


def _yaml_seeds(folder: Path) -> Iterator[bytes]:
    yield b"seed: 7\nmodel:\n  class_path: app.training.GPTModule\n  init_args: {d_model: 16, dropout: 1e-1}\n"
    yield b"trainer:\n  callbacks:\n    - class_path: callbacks.Throughput\n      init_args:\n        x: [1, .5, null]\n"
    yield b"a: |\n  text\nb: >-\n  folded\nc: 'quo''ted'\nd: \"\\U0001F600\\n\"\n? e\n: !!str 0x1F\n"
    yield b"a: !!int 0b1_0\nb: !!float -.5\nc: !!bool yes\nd: !!null ~\ne: !!seq [+.inf, .nan]\n"


def _checkpoint_seeds(folder: Path) -> Iterator[bytes]:
    network = {"class_path": "app.models.GPT", "init_args": {"d_model": 4}}
    state = {
        "step": 1, "validation_pending": False, "last_validation": {}, "network": network, "optimizer": "AdamW",
        "seed": 0, "block_size": 4, "data": {"tokenizer": "0"}, "windows_seen": 4, "configuration": {}, "place": {},
        "format": checkpoint.FORMAT,
    }  # fmt: skip
    path = folder / "seed.ckpt"
    checkpoint.write({"archlab": state, "state_dict": {"network.a": torch.ones(2)}}, path)
    yield path.read_bytes()
    plain = {"x": [1, 2.5, None, True, b"b", 1 << 70, (1, {2}), torch.float16], "y": torch.ones(2, 3).T}
    checkpoint.write(plain, path)
    yield path.read_bytes()


def _weights() -> dict[str, torch.Tensor]:
    return {f"h.{layer}.ln_1.weight": torch.full((2,), 1.0 + layer) for layer in range(3)}


def _safetensors_seeds(folder: Path) -> Iterator[bytes]:
    yield save(_weights())
    yield save({"h.0.attn.c_attn.weight": torch.ones(2, 6, dtype=torch.bfloat16), "x": torch.zeros(0)})


def _archive_seeds(folder: Path) -> Iterator[bytes]:
    path = folder / "seed.pt"
    torch.save(_weights(), path)
    yield path.read_bytes()
    torch.save({"state_dict": {"blocks.0.ln1.gain": torch.nn.Parameter(torch.ones(2))}}, path)
    yield path.read_bytes()


def _gamma_seeds(folder: Path) -> Iterator[bytes]:
    scales = {"ln1": [1.0, 1.2, 1.1, 0.9], "w1": [0.02, 0.03, None, 0.05]}
    yield json.dumps({"source": "a", "scales": scales}).encode()
    yield json.dumps(
        {"scales": scales, "mean_abs": scales, "kinds": {"ln1": "norm"}, "one_plus": True}
    ).encode()


def _parquet_seeds(folder: Path) -> Iterator[bytes]:
    path = folder / "seed.parquet"
    columns = {"text": ["one", "", "two\nthree"], "n": [1, 2, 3]}
    for compression, options in (("none", {}), ("snappy", {}), ("zstd", {"use_dictionary": False})):
        pyarrow.parquet.write_table(
            pyarrow.table(columns), path, compression=compression, store_schema=False, **options
        )
        yield path.read_bytes()


def _jsonl_seeds(folder: Path) -> Iterator[bytes]:
    yield b'{"text": "one"}\n\n{"n": [1, -2.5e3, null, true], "text": "two\\n\\u00e9"}\n{"text": ""}'


def _tokenizer_seeds(folder: Path) -> Iterator[bytes]:
    characters = tokenizers.CharTokenizer("".join(sorted(set(TEXT))))
    words = tokenizers.WordTokenizer(["<unk>", "<eos>", "fox", "quick"])
    for tokenizer in (
        tokenizers.CharTokenizer("a\U0001f600"), characters, words, tokenizers.ByteTokenizer(), tokenizers.SymbolTokenizer(7), train_bpe([TEXT * 3], 260),
    ):  # fmt: skip
        yield json.dumps(tokenizer.to_dict()).encode()


def _text_seeds(folder: Path) -> Iterator[bytes]:
    yield "\ufeffline\r\nä€😀\rend".encode()


@cache
def _plain_export() -> dict[str, bytes]:
    return _exported(packed=False)


@cache
def _packed_export() -> dict[str, bytes]:
    return _exported(packed=True)


def _exported(packed: bool) -> dict[str, bytes]:
    """The files of an export of a tiny network."""
    tokenizer = tokenizers.CharTokenizer("abc\n")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"vocab_size": 4, "block_size": 4, "d_model": 4, "n_layers": 1}
        if packed:
            del sizes["block_size"]
            network = TilelliLM(**sizes, n_banks=1, d_head=4, kernel_size=2, wide_kernel_size=3, pathways=3)
            described = {"network": network.description(), "block_size": 4}
            exports.write_packed(folder, exports.packed(network), tokenizer, described, "")
        else:
            model = GPT(**sizes, n_heads=1)
            described = {"network": model.description(), "block_size": 4}
            exports.write(folder, model.state_dict(), tokenizer, described, "")
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in EXPORTED.values()}


def _export_seeds(folder: Path) -> Iterator[bytes]:
    for kind, name in EXPORTED.items():
        yield kind + (_packed_export() if kind == b"p" else _plain_export())[name]


READERS = {
    "yaml": Reader("a.yaml", _read_yaml, (ConfigurationError,), _yaml_seeds),
    "checkpoint": Reader("a.ckpt", _read_checkpoint, (IntegrityError,), _checkpoint_seeds),
    "safetensors": Reader("a.safetensors", _read_scales, (AppError,), _safetensors_seeds),
    "archive": Reader("a.pt", _read_scales, (AppError,), _archive_seeds),
    "gamma": Reader("a.json", _read_scales, (AppError,), _gamma_seeds),
    "parquet": Reader("a.parquet", _read_rows(read_parquet), (DataError,), _parquet_seeds),
    "jsonl": Reader("a.jsonl", _read_rows(read_jsonl), (DataError,), _jsonl_seeds),
    "text": Reader("a.txt", _read_rows(lambda path, _: read_text(path)), (DataError,), _text_seeds),
    "tokenizer": Reader("a.json", _read_tokenizer, (DataError,), _tokenizer_seeds),
    "export": Reader("export.input", _read_export, (AppError,), _export_seeds),
}
