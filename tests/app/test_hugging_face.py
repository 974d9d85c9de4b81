"""Exports opened by transformers: the same logits, the same greedy tokens, saved and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app import exports
from app.cli import main
from app.loading import load
from app.models.generation import generate
from app.models.gpt import GPT
from app.run.errors import ConfigurationError
from tests.app.conftest import Reference
from tests.app.test_export import IDX, TOKENIZER, exported
from tests.models.test_wrapped_blocks import BLOCK_SIZE, NETWORKS, VOCABULARY, network

pytest.importorskip("transformers")
FAST = ("gpt", "local_gpt", "tilelli, banks", "equilibrium")


def opened(folder: Path) -> Any:
    import transformers

    import app.hugging_face  # noqa: F401 - makes the class known

    transformers.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.stress) for name in NETWORKS]
)
def test_every_architecture_is_a_model_of_transformers(name: str, tmp_path: Path) -> None:
    ours = network(name).eval()
    model = opened(exported(ours, tmp_path / "export"))
    assert torch.equal(model(IDX).logits, ours(IDX).logits)
    prompt = IDX[:1, :6]
    greedy = [int(token) for token in generate(ours, prompt, BLOCK_SIZE - 6, temperature=0)]
    theirs = model.generate(prompt, max_new_tokens=BLOCK_SIZE - 6, do_sample=False, pad_token_id=0)
    assert theirs[0, 6:].tolist() == greedy
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "again")
    TOKENIZER.save(tmp_path / "again" / "tokenizer.json")
    again = load(tmp_path / "again").network
    assert torch.equal(again(IDX).logits, model(IDX).logits)
    assert torch.equal(opened(tmp_path / "again")(IDX).logits, model(IDX).logits)


def test_labels_are_shifted_and_padding_is_refused(tmp_path: Path) -> None:
    ours = network("gpt").eval()
    model = opened(exported(ours, tmp_path / "export"))
    expected = ours(IDX[:, :-1], IDX[:, 1:]).loss
    torch.testing.assert_close(model(IDX, labels=IDX).loss, expected)
    mask = torch.ones_like(IDX)
    assert torch.equal(model(IDX, attention_mask=mask).logits, ours(IDX).logits)
    mask[0, 0] = 0
    with pytest.raises(ValueError, match="these networks know no padding"):
        model(IDX, attention_mask=mask)
    longer = model.generate(IDX, max_new_tokens=2 * BLOCK_SIZE, do_sample=False, pad_token_id=0)
    assert longer.shape == (2, IDX.shape[1] + 2 * BLOCK_SIZE)


def test_a_foreign_class_is_not_imported(tmp_path: Path) -> None:
    folder = exported(network("gpt"), tmp_path / "export")
    file = folder / exports.DESCRIPTION
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"network": {"class_path": "os.system", "init_args": {}}}))
    with pytest.raises(ConfigurationError, match="may not be imported"):
        opened(folder)


@pytest.mark.parametrize("options", [{}, {"bias": True, "tie_weights": False}])
def test_a_gpt_is_a_gpt2(options: dict[str, bool], tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = GPT(VOCABULARY, BLOCK_SIZE, 3, 2, 12, dropout=0.1, **options).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with exports.new_folder(tmp_path / "gpt2", "DIR") as folder:
        exports.write_gpt2(folder, ours, TOKENIZER, "# card\n")
    model = opened(tmp_path / "gpt2")
    assert type(model).__name__ == "GPT2LMHeadModel"
    torch.testing.assert_close(model(IDX).logits, ours(IDX).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.process
def test_a_run_becomes_a_gpt2_and_another_stays_ours(
    reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(reference.baseline), str(tmp_path / "gpt2"), "--to", "hf"]) == 0
    assert "without code of archlab" in capsys.readouterr().out
    ours = load(reference.baseline)
    idx = torch.randint(0, ours.tokenizer.vocab_size, (2, 12))
    torch.testing.assert_close(
        opened(tmp_path / "gpt2")(idx).logits, ours.network(idx).logits, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ConfigurationError, match="no export of archlab"):
        load(tmp_path / "gpt2")
    assert main(["export", str(reference.clean), str(tmp_path / "tilelli"), "--to", "hf"]) == 0
    assert "import app.hugging_face" in capsys.readouterr().out
    idx = torch.randint(0, load(reference.clean).tokenizer.vocab_size, (2, 12))
    assert torch.equal(opened(tmp_path / "tilelli")(idx).logits, load(reference.clean).network(idx).logits)
