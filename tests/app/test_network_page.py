"""``app export --to html``: the page computes in a headless Chromium what the network computes in Python."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from app.browser import network_page
from app.exports import packed
from app.models.generation import generate, generation_window
from app.models.tilelli import TilelliLM
from datamodules.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from datamodules.tokenizers.bpe import train_bpe
from tests.parity import relative_error
from tests.support.browser import CHROMIUM, Browser, Page
from tests.tolerances import OUTPUT

pytestmark = [
    pytest.mark.process,
    pytest.mark.stress,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
]
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CHARACTERS = CharTokenizer(ALPHABET)
PROMPT = "def main(text):\n    return <text> & 'é' + \"naïve 😀\""
N_TOKENS = 200
REFERENCE = {"d_model": 96, "n_banks": 4}  # configs/tilelli_banks4.yaml
OPTIONS: dict[str, dict[str, Any]] = {
    "one bank": {},
    "the reference experiment": REFERENCE,
    "an odd width": {"d_model": 23, "d_head": 7, "n_banks": 3},
    "learned scales, the bank's gate, a bias": {
        "n_banks": 3, "lsq": True, "bank_gate": "bank", "balance": "bias", "top_k_routing": 4,
    },
    "one route": {"n_banks": 2, "top_k_routing": 1},
    "another basis": {"hadamard": True, "n_banks": 2},
    "a scale for each row, three pathways": {"per_row": True, "pathways": 3},
    "attention in full, norms of pathways": {"fp_attention": True, "path_norm": True, "n_banks": 2},
    "learned positions": {"position": "learned", "block_size": 48, "n_banks": 2},
}  # fmt: skip


def tilelli(vocab_size: int = CHARACTERS.vocab_size, **options: Any) -> TilelliLM:
    """A network whose weights are all at work, as training would leave them."""
    torch.manual_seed(5)
    sizes = {"d_model": 24, "n_layers": 3, "d_head": 8, "wide_kernel_size": 7, "top_k": 3}
    made = TilelliLM(vocab_size, **sizes | options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * parameter.abs().mean().clamp(min=0.1) * torch.randn_like(parameter)
        for bias in made.running_state():
            bias.normal_(0, 0.05)
    return made


def written(model: TilelliLM, folder: Path, tokenizer: Tokenizer = CHARACTERS) -> Path:
    file = folder / "network.html"
    described = {"network": model.description(), "block_size": 48}
    file.write_text(network_page(model, packed(model), tokenizer, described, {"from": "a test"}))
    return file


def greedy(model: TilelliLM, ids: list[int]) -> list[int]:
    window = generation_window(model, 48)
    steps = generate(model, torch.tensor([ids]), N_TOKENS, temperature=0, block_size=window)
    return [int(token) for token in steps]


def tokens_of(page: Page, start: str) -> list[int]:
    """What the page writes on, greedily, from tokens that an expression gives."""
    script = f"""(() => {{
      const stream = continued(network, {start}, likeliest);
      return Array.from({{ length: {N_TOKENS} }}, () => stream.next().value);
    }})()"""
    found: list[int] = page.evaluate(script)
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_it_writes_what_python_writes(name: str, browser: Browser, tmp_path: Path) -> None:
    model = tilelli(**OPTIONS[name])
    file = written(model, tmp_path)
    page = browser.open(file.as_uri(), 1280)
    expected = greedy(model, CHARACTERS.encode("def main():\n").tolist())
    assert tokens_of(page, "tokenizer.encode('def main():\\n')") == expected
    assert len(set(expected)) > 20, "a text that repeats itself tells nothing"
    text = (CHARACTERS.encode("def main():\n").tolist() + expected)[-48:]  # what learned positions reach
    script = (
        f"(() => {{ network.reset(); let y; for (const t of {text}) y = network.step(t); return [...y]; }})()"
    )
    logits = torch.tensor(page.evaluate(script))
    assert relative_error(logits, model(torch.tensor([text])).logits[0, -1]) < OUTPUT
    for weight in model.ternary_weights():
        owner = model.get_submodule(weight.rpartition(".")[0])
        values = f"network.weights.get({json.dumps(weight)}).values"
        text = page.evaluate(
            f"btoa(Array.from(new Uint8Array({values}.buffer), (byte) => String.fromCharCode(byte)).join(''))"
        )
        found = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)
        assert torch.equal(found, owner.effective_weight().detach().flatten()), weight
    assert page.errors == []
    page.close()


def test_every_tokenizer_reads_and_writes_as_in_python(browser: Browser, tmp_path: Path) -> None:
    text = (PROMPT + "  \n\n\tI'll re-read 1234 ‘words’ \u00a0 \x85 it's\r") * 3
    for tokenizer in (ByteTokenizer(), train_bpe([text + "the quick brown fox " * 40], 300)):
        page = browser.open(written(tilelli(tokenizer.vocab_size), tmp_path, tokenizer).as_uri(), 1280)
        ids = page.evaluate(f"tokenizer.encode({json.dumps(text)})")
        assert ids == tokenizer.encode(text).tolist()
        back = page.evaluate(f"(() => {{ const d = tokenizer.decoder(); return {ids}.map(d).join(''); }})()")
        assert back == text
        assert page.evaluate("tokenizer.start") == tokenizer.start().tolist()
        page.close()
    page = browser.open(written(tilelli(), tmp_path).as_uri(), 1280)
    assert page.evaluate("tokenizer.start") == CHARACTERS.start().tolist()
    page.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(
        tilelli(**REFERENCE, d_head=32, wide_kernel_size=21, top_k=8), tmp_path_factory.mktemp("page")
    )


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_and_is_readable(width: int, is_dark: bool, file: Path, browser: Browser) -> None:
    assert file.stat().st_size < 3_000_000
    page = browser.open(file.as_uri(), width, is_dark=is_dark)
    page.require_readable(file.as_uri(), width)
    page.evaluate("element('form').requestSubmit()")
    page.wait_for("element('said').textContent.includes('a second')")
    page.require_readable(file.as_uri(), width)
    page.close()


def test_it_answers_to_keys(file: Path, browser: Browser) -> None:
    page = browser.open(file.as_uri(), 1280)
    said = "element('said').textContent"
    focused = []
    for _ in range(5):
        page.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert focused == ["prompt", "tokens", "temperature", "seed", "Write"]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid", "what has the focus is seen to have it"
    page.press("Enter")
    page.wait_for(f"{said}.includes('a second')")
    assert page.evaluate(said).startswith("400 tokens, ")
    first = page.evaluate("element('output').textContent")
    assert len(first) == 400
    page.evaluate("element('tokens').value = 100000, element('prompt').focus()")
    page.press("Enter", modifiers=2)
    page.wait_for("element('output').textContent.length > 400")
    assert page.evaluate("element('output').textContent").startswith(first), "one seed, one text"
    assert not page.evaluate("element('stop').disabled")
    page.press("Escape")
    page.wait_for("element('stop').disabled")
    n_tokens = int(re.match(r"[\d,]+", page.evaluate(said))[0].replace(",", ""))
    assert 400 < n_tokens == page.evaluate("element('output').textContent.length") < 100_000
    page.evaluate("element('prompt').value = 'naïve', element('form').requestSubmit()")
    assert page.evaluate(said) == "The network does not know the character “ï”."
    page.close()
