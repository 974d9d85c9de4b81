"""An export gives the same network back, anywhere; a damaged or hostile one is one message."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app import exports
from app.browser import network_page
from app.cli import main
from app.loading import load
from app.models import LanguageModel
from app.models.generation import generate
from app.run.errors import AppError, ConfigurationError, IntegrityError, StorageError
from datamodules.tokenizers import CharTokenizer, Tokenizer, WordTokenizer
from tests.analysis.test_report import is_self_contained
from tests.app.conftest import Reference
from tests.models.test_wrapped_blocks import BLOCK_SIZE, NETWORKS, VOCABULARY, network, tilelli, tokens
from tests.support.application import REPOSITORY
from tests.support.memory import measured

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvw"[:VOCABULARY])
IDX = tokens(2, 13)
WITHOUT_LIGHTNING = """
import sys
for name in ("lightning", "jsonargparse", "matplotlib"):
    sys.modules[name] = None
import app, torch
network, tokenizer, block_size = app.load(sys.argv[1])
idx = torch.as_tensor(tokenizer.encode("abcabcab"))[None]
torch.save(network(idx).logits, sys.argv[2])
"""


def exported(model: LanguageModel, folder: Path) -> Path:
    with exports.new_folder(folder, "DIR") as made:
        described = {"network": model.description(), "block_size": BLOCK_SIZE}
        exports.write(made, model.state_dict(), TOKENIZER, described, "# card\n")
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(network("gpt"), tmp_path_factory.mktemp("sound") / "gpt")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_architecture_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = network(name).eval()
    loaded = load(exported(model, tmp_path / "export"))
    assert torch.equal(loaded.network(IDX).logits, model(IDX).logits)
    assert json.dumps(loaded.network.description()) == json.dumps(model.description())
    assert (loaded.tokenizer.hash, loaded.block_size) == (TOKENIZER.hash, BLOCK_SIZE)
    assert loaded.network.parameter_counts() == model.parameter_counts()  # what is tied stays tied
    assert load(tmp_path / "export", dtype=torch.bfloat16).network(IDX).logits.dtype == torch.bfloat16


@pytest.mark.process
def test_it_is_read_without_the_training_framework(sound: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, str(sound), str(tmp_path / "logits.pt")]
    subprocess.run(
        command, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=120
    )
    idx = torch.as_tensor(TOKENIZER.encode("abcabcab"))[None]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), network("gpt").eval()(idx).logits)


@pytest.mark.process
def test_a_run_is_exported_with_its_card(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "export"
    assert main(["export", str(reference.clean), str(target)]) == 0
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert "app.load(" in capsys.readouterr().out
    one, other = load(reference.clean), load(target)
    idx = torch.randint(0, one.tokenizer.vocab_size, (2, 12))
    assert torch.equal(one.network(idx).logits, other.network(idx).logits)
    card = (target / "README.md").read_text()
    summary = json.loads((reference.clean / "summary.json").read_text())
    assert f"| val/loss | {summary['val/loss']:,.6g} |" in card
    assert json.loads((reference.clean / "run.json").read_text())["launches"][-1]["commit"] in card
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert main(["export", str(reference.clean), str(target)]) == 2
    assert "is there already and not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]
    assert main(["export", str(reference.clean), str(tmp_path / "packed"), "--packed"]) == 0
    assert "ternary weights at" in capsys.readouterr().out
    assert torch.equal(load(tmp_path / "packed").network(idx).logits, one.network(idx).logits)
    page = tmp_path / "page" / "network.html"
    assert main(["export", str(reference.clean), str(page.parent), "--to", "html"]) == 0
    assert "in a browser, by itself" in capsys.readouterr().out
    content = page.read_text()
    assert is_self_contained(content)
    assert f"{summary['val/loss']:,.6g}" in content
    assert main(["export", str(reference.clean), str(page), "--to", "html"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert page.read_text() == content
    for words, said in (
        (["--packed", "--to", "hf"], "transformers cannot read it"),
        (["--packed", "--to", "html"], "a page is packed as it is"),
        (["--to", "onnx"], "invalid choice"),
    ):
        assert main(["export", str(reference.clean), str(tmp_path / "x"), *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["export", str(reference.baseline), str(tmp_path / "x"), "--packed"]) == 2
    assert "GPT has no ternary weights" in capsys.readouterr().err
    assert main(["export", str(reference.baseline), str(tmp_path / "x"), "--to", "html"]) == 2
    assert "--to html: GPT has no ternary weights" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("model", "tokenizer", "said"),
    [
        (network("equilibrium"), TOKENIZER, "EquilibriumLM: the page computes TilelliLM and no other"),
        (tilelli(n_banks=2, bank_choice="hash"), TOKENIZER, "bank_choice: hash: the page computes"),
        (
            tilelli(),
            WordTokenizer(["<unk>", "<eos>", "a"]),
            "tokenizer word: the page has char, byte, bpe and gpt2",
        ),
    ],
)
def test_a_page_of_what_its_scripts_do_not_compute_is_refused(
    model: LanguageModel, tokenizer: Tokenizer, said: str
) -> None:
    weights = exports.Packed({}, {}, {})
    with pytest.raises(ValueError, match=said):
        network_page(model, weights, tokenizer, {}, {})


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "write_text", full)
    with pytest.raises(StorageError):
        exported(network("gpt"), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is there already"):
        exported(network("gpt"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def _config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / exports.DESCRIPTION
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return change


def _network(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / exports.DESCRIPTION
        values = json.loads(file.read_text())
        values["network"]["init_args"] |= changes
        file.write_text(json.dumps(values))

    return change


def _bytes(name: str, make: Callable[[bytes], bytes], is_hashed: bool = True) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if not is_hashed:  # as if the writer had meant it
            _config(weights_sha256=...)(folder)
        (folder / name).write_bytes(make((folder / name).read_bytes()))

    return change


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        new = json.dumps(change(header) or header).encode()
        return struct.pack("<Q", len(new)) + new + content[8 + length :]

    return _bytes(exports.WEIGHTS, make, is_hashed=False)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    return header[next(name for name in header if name != "__metadata__")]


def _pipe(folder: Path) -> None:
    (folder / exports.WEIGHTS).unlink()
    os.mkfifo(folder / exports.WEIGHTS)


def _folder(folder: Path) -> None:
    (folder / exports.WEIGHTS).unlink()
    (folder / exports.WEIGHTS).mkdir()


HOSTILE: dict[str, tuple[Callable[[Path], Any], type[AppError]]] = {
    "no weights": (lambda f: (f / exports.WEIGHTS).unlink(), IntegrityError),
    "no tokenizer": (lambda f: (f / exports.TOKENIZER).unlink(), ConfigurationError),
    "weights cut": (_bytes(exports.WEIGHTS, lambda b: b[:-100]), IntegrityError),
    "weights cut, no hash": (_bytes(exports.WEIGHTS, lambda b: b[:-100], False), IntegrityError),
    "weights cut in the header": (_bytes(exports.WEIGHTS, lambda b: b[:60], False), IntegrityError),
    "weights empty": (_bytes(exports.WEIGHTS, lambda b: b"", False), IntegrityError),
    "one bit": (_bytes(exports.WEIGHTS, lambda b: b[:-1] + bytes([b[-1] ^ 1])), IntegrityError),
    "trailing bytes": (_bytes(exports.WEIGHTS, lambda b: b + b"x" * 9, False), IntegrityError),
    "a pickle": (_bytes(exports.WEIGHTS, lambda b: b"\x80\x04cos\nsystem\n." * 9, False), IntegrityError),
    "a header as large as memory": (
        _bytes(exports.WEIGHTS, lambda b: struct.pack("<Q", 1 << 60) + b[8:], False), IntegrityError,
    ),
    "a header of lists": (
        _bytes(exports.WEIGHTS, lambda b: struct.pack("<Q", 1 << 20) + b"[" * (1 << 20), False), IntegrityError,
    ),
    "a shape beyond its bytes": (_header(lambda h: _first(h).update(shape=[1 << 40, 1 << 10])), IntegrityError),
    "a negative shape": (_header(lambda h: _first(h).update(shape=[-1, 3])), IntegrityError),
    "offsets beyond the file": (_header(lambda h: _first(h).update(data_offsets=[0, 1 << 50])), IntegrityError),
    "an unknown type": (_header(lambda h: _first(h).update(dtype="F7")), IntegrityError),
    "no object": (_header(lambda h: [1]), IntegrityError),
    "a pipe": (_pipe, IntegrityError),
    "a folder for weights": (_folder, IntegrityError),
    "a link to itself": (
        lambda f: ((f / exports.WEIGHTS).unlink(), (f / exports.WEIGHTS).symlink_to(exports.WEIGHTS)), IntegrityError,
    ),
    "config cut": (_bytes(exports.DESCRIPTION, lambda b: b[:40]), IntegrityError),
    "config no UTF-8": (_bytes(exports.DESCRIPTION, lambda b: b"\xff\xfe"), IntegrityError),
    "config deep": (_bytes(exports.DESCRIPTION, lambda b: b"[" * 100_000), IntegrityError),
    "config of another library": (_config(model_type="gpt2"), ConfigurationError),
    "config of the future": (_config(format=7), IntegrityError),
    "no description": (_config(network=...), IntegrityError),
    "a block of nothing": (_config(block_size=0), IntegrityError),
    "tied to nothing": (_config(tied={"head.weight": "nowhere"}), IntegrityError),
    "a foreign class": (_config(network={"class_path": "os.system", "init_args": {}}), ConfigurationError),
    "a class of torch": (
        _config(network={"class_path": "app.models.gpt.network.nn", "init_args": {}}), ConfigurationError,
    ),
    "another tokenizer": (
        lambda f: (f / exports.TOKENIZER).write_text(json.dumps({"kind": "char", "alphabet": "xyz"})), ConfigurationError,
    ),
    "a billion layers": (_network(n_layers=10**9), IntegrityError),
    "a width of memory": (_network(d_model=10**8), IntegrityError),
    "another width": (_network(d_model=24), IntegrityError),
    "another vocabulary": (_network(vocab_size=24), IntegrityError),
    "an option of the future": (_network(n_wings=2), ConfigurationError),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_one_message(name: str, sound: Path, tmp_path: Path) -> None:
    damage, error = HOSTILE[name]
    folder = tmp_path / "export"
    shutil.copytree(sound, folder)
    damage(folder)
    listed = sorted(folder.iterdir())
    outcome = measured(lambda: load(folder))
    assert outcome.error is not None
    kinds = {kind.__name__ for kind in (error, *error.__subclasses__())}
    assert outcome.error[0] in kinds, outcome
    assert (
        str(folder) in outcome.error[1] or "class_path" in outcome.error[1] or "app." in outcome.error[1]
    ), outcome
    assert len(outcome.error[1].splitlines()) <= 2
    assert outcome.n_bytes < 64_000_000
    assert sorted(folder.iterdir()) == listed


def packed(model: LanguageModel, folder: Path) -> Path:
    with exports.new_folder(folder, "DIR") as made:
        described = {"network": model.description(), "block_size": BLOCK_SIZE}
        exports.write_packed(made, exports.packed(model), TOKENIZER, described, "# card\n")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_banks": 3, "lsq": True},
        {"hadamard": True},
        {"per_row": True, "pathways": 3},
        {"fp_attention": True},
    ],
)
def test_a_packed_network_computes_what_it_was_trained_to(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = tilelli(**options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    loaded = load(packed(model, tmp_path / "packed")).network
    assert torch.equal(loaded(IDX).logits, model(IDX).logits)
    steps = [list(generate(each, IDX, 9, temperature=0)) for each in (loaded, model)]
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
    assert not any(name.endswith(".weight") and ".trits" in name for name in loaded.state_dict())
    with pytest.raises(ValueError, match="GPT has no ternary weights"):
        packed(network("gpt"), tmp_path / "gpt")
    assert not (tmp_path / "gpt").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_config(packed={"head.weight": [3, 4]}), "does not fit|bytes"),
        (_config(packed={"head.weight": [1 << 40, 1 << 20]}), "bytes"),
        (_config(packed={"head.weight": "all"}), "packed shapes"),
        (_config(packed={"tok_emb.weight": [23, 12]}), "lacks its trits"),
        (lambda f: (f / exports.PACKED).unlink(), "has no model.packed.safetensors"),
        (_bytes(exports.PACKED, lambda b: b[:-1] + b"\xff"), "SHA-256"),
        (_bytes(exports.PACKED, lambda b: b[:200], False), "damaged|no safetensors"),
    ],
)
def test_a_damaged_packed_network_is_one_message(
    damage: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    folder = packed(tilelli(), tmp_path / "packed")
    damage(folder)
    with pytest.raises(IntegrityError, match=said):
        load(folder)
