import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.analysis.trace import Trace, TracedMeasure, TracedRun, token_texts, trace, trace_page
from app.analysis.trace.texts import parts_of_characters, visible
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.tilelli import TilelliLM
from app.records import TokenMeasure
from tests.analysis.test_report import HOSTILE, Reader, is_self_contained

T = 8


@pytest.fixture(scope="module")
def network() -> TilelliLM:
    torch.manual_seed(0)
    return TilelliLM(11, d_model=8, n_layers=2, n_banks=3, d_head=4).eval()


def test_shares_are_those_of_the_callbacks(network: TilelliLM) -> None:
    ids = np.random.default_rng(0).integers(0, 11, 5 * T)
    found = trace(network, ids, T)
    with torch.no_grad():
        measures = network.measures(network(torch.from_numpy(ids).view(5, T)))
    names = network.pathway_names
    for p, name in enumerate(names):
        weight = found.measures[f"weight of {name}"].values
        np.testing.assert_allclose(weight.mean(1), measures["pathway_share"].values[:, p], rtol=1e-5)
        bank = found.measures[f"bank of {name}"]
        assert bank.labels == ("bank 0", "bank 1", "bank 2")
        load = (bank.values[..., None] == np.arange(3)).sum(1)
        np.testing.assert_array_equal(load, measures["bank_load"].values[:, p])
    entropy = found.measures["router entropy"]
    np.testing.assert_allclose(entropy.values.mean(1), measures["router_entropy"].values, rtol=1e-5)
    assert entropy.unit == "nats"
    weights = np.stack([found.measures[f"weight of {name}"].values for name in names])
    np.testing.assert_array_equal(found.measures["pathway"].values, weights.argmax(0))


def test_a_text_shorter_than_a_window(network: TilelliLM) -> None:
    found = trace(network, np.array([1, 2, 3]), T)
    assert found.measures["pathway"].values.shape == (2, 3)
    assert found.measures["loss"].values.shape == (3,)


def test_routes_are_those_of_the_callbacks() -> None:
    torch.manual_seed(0)
    network = EquilibriumLM(11, block_size=T, d_model=8, n_heads=2, n_layers=3, d_ff=8, warmup_steps=0).eval()
    ids = np.random.default_rng(0).integers(0, 11, 4 * T)
    found = trace(network, ids, T).measures
    with torch.no_grad():
        measures = network.measures(network(torch.from_numpy(ids).view(4, T)))
    route = found["route"]
    assert route.labels == ("forward", "branch", "backward", "plastic")
    shares = (route.values[..., None] == np.arange(4)).mean(1)
    np.testing.assert_allclose(shares, measures["route_share"].values, rtol=1e-5)
    for name in ("deviation", "budget"):
        np.testing.assert_allclose(found[name].values.mean(1), measures[name].values, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, T, T + 1, 3 * T - 1, 20 * T + 3])
def test_loss_and_entropy_of_every_network(n: int) -> None:
    torch.manual_seed(0)
    network = GPT(11, T, n_layers=1, n_heads=1, d_model=8).eval()
    ids = np.random.default_rng(0).integers(0, 11, n)
    found = trace(network, ids, T)
    assert set(found.measures) == {"loss", "entropy"}
    loss, entropy = found.measures["loss"].values, found.measures["entropy"].values
    assert loss.shape == entropy.shape == (n,)
    assert np.isnan(loss[0]) and np.isnan(entropy[0])
    for position in range(1, n):
        start = (position - 1) // T * T
        with torch.no_grad():
            logits = network(torch.from_numpy(ids[start:position])[None]).logits[0, -1]
        expected = F.cross_entropy(logits, torch.tensor(ids[position]))
        assert loss[position] == pytest.approx(expected.item(), rel=1e-4)
        p = logits.softmax(-1)
        assert entropy[position] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-4)


def _page(texts: list[str]) -> str:
    n = len(texts)
    measures = {
        HOSTILE: TracedMeasure(np.zeros((2, n), dtype=np.int64), (HOSTILE, "b")),
        "loss": TracedMeasure(np.array([np.nan] + [1.5] * (n - 1), dtype=np.float32), unit="nats"),
    }
    return trace_page([TracedRun(Trace(np.arange(n), measures, 4), texts, HOSTILE)] * 2, HOSTILE, HOSTILE)


def test_a_hostile_text_is_shown_and_not_run() -> None:
    page = _page([HOSTILE, "</script>", "<!--", "b\n"])
    assert is_self_contained(page)
    reader = Reader(page)
    assert [attributes.get("type") for tag, attributes in reader.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not any(tag == "img" for tag, _ in reader.elements)
    (content,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    data, again = json.loads(content)["runs"]
    assert data == again
    assert data["tokens"] == [visible(HOSTILE), "</script>", "<!--", "b⏎"]
    assert data["breaks"] == [3]
    assert data["measures"][0]["name"] == HOSTILE
    assert data["measures"][1]["values"][0][:2] == [None, 1.5]
    assert "innerHTML" not in page, "texts enter as texts"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "·a"),
        ("\n", "⏎"),
        ("\t", "→"),
        ("\x00\x1b", "␀␛"),
        ("é漢🙂", "é漢🙂"),
        ("\u200b", "⟨200B⟩"),
        ("\u202e", "⟨202E⟩"),
        ("\u0301", "◌\u0301"),
        ("", "∅"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_what_is_not_seen_gets_a_sign(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_character_of_several_tokens_stands_at_the_first() -> None:
    text = "a🙂é\ufffdb"
    content = text.encode()
    decode = lambda ids: bytes(ids).decode("utf-8", "replace")  # noqa: E731
    shown = token_texts(list(content), decode)
    assert shown == ["a", "🙂", "⋯", "⋯", "⋯", "é", "⋯", *["\ufffd"] * 3, "b"]
    assert token_texts(list("🙂".encode())[:3], decode) == ["\ufffd"] * 3, "cut off: no whole character"
    assert token_texts([], decode) == []


def test_parts_of_a_character_are_told_apart() -> None:
    assert parts_of_characters(["a", "é", "⋯", "b"]) == [
        "",
        "part 1 of 2 of é: byte C3",
        "part 2 of 2 of é: byte A9",
        "",
    ]
    assert parts_of_characters(["🙂", "⋯"]) == ["part 1 of 2 of 🙂", "part 2 of 2 of 🙂"], (
        "two tokens of four bytes"
    )


def test_a_unit_is_not_said_twice() -> None:
    measures = {"deviation": TracedMeasure(np.zeros((2, 1), dtype=np.float32), unit="deviation")}
    page = trace_page([TracedRun(Trace(np.zeros(1, dtype=np.int64), measures, 4), ["a"], "x")], "t", "s")
    (content,) = re.findall(r'type="application/json">(.*?)</script>', page)
    assert json.loads(content)["runs"][0]["measures"][0]["unit"] == ""


def test_a_token_measure_has_a_shape() -> None:
    with pytest.raises(ValueError, match=r"\(layers, B, T\) or \(B, T\), not \(3,\)"):
        TokenMeasure(torch.zeros(3))
