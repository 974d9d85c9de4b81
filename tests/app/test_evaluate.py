"""lm-eval on our networks: what it is told is what the network computes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from app.cli import main
from app.loading import load
from app.models.generation import generate
from tests.app.test_export import TOKENIZER, exported
from tests.models.test_wrapped_blocks import BLOCK_SIZE, NETWORKS, network

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
---
"""


def test_without_the_extra_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["evaluate", str(tmp_path), "--tasks", "x"]) == 2
    assert "pip install 'archlab[eval]'" in capsys.readouterr().err


def asked(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize("name", ["gpt", "tilelli, banks", "equilibrium"])
def test_likelihoods_are_the_networks_own(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from app.harness import NetworkLM

    assert name in NETWORKS
    loaded = load(exported(network(name), tmp_path / "export"))
    model = NetworkLM(loaded)
    context, continuation = "abcab", "cde"
    idx = torch.as_tensor(TOKENIZER.encode(context + continuation))[None]
    log_p = loaded.network(idx).logits.detach().double().log_softmax(-1)[0]
    expected = sum(float(log_p[at - 1, idx[0, at]]) for at in range(len(context), idx.shape[1]))
    ((found, is_greedy),) = model.loglikelihood([asked(context, continuation)])
    assert found == pytest.approx(expected, abs=1e-5)
    greedy = [int(token) for token in generate(loaded.network, idx[:, :5], 3, temperature=0)]
    assert model.loglikelihood([asked(context, TOKENIZER.decode(greedy))])[0][1]
    assert is_greedy == (greedy == idx[0, 5:].tolist())
    (text,) = model.generate_until(
        [asked(context, {"until": [TOKENIZER.decode(greedy[2:])], "max_gen_toks": 3})]
    )
    assert text == TOKENIZER.decode(greedy).split(TOKENIZER.decode(greedy[2:]))[0]


def test_a_long_text_counts_every_token_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from app.harness import NetworkLM

    monkeypatch.setattr(type(TOKENIZER), "start", lambda self: self.encode("a"))
    loaded = load(exported(network("gpt"), tmp_path / "export"))
    ids = TOKENIZER.encode("abcdefgh" * 9)
    (found,) = NetworkLM(loaded).loglikelihood_rolling([asked(TOKENIZER.decode(ids))])
    whole, expected = torch.as_tensor([0, *ids]), 0.0
    windows = [(s, min(s + BLOCK_SIZE, len(ids))) for s in range(0, len(ids), BLOCK_SIZE)]
    for begin, end in windows:  # the last one reads as far back as it can
        first = max(0, end - BLOCK_SIZE)
        logits = loaded.network(whole[None, first:end]).logits[0, begin - first :]
        expected -= float(F.cross_entropy(logits.double(), whole[begin + 1 : end + 1], reduction="sum"))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_local_task_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export = exported(network("gpt"), tmp_path / "export")
    loaded = load(export)
    documents = [
        {"question": "abc" + "abcde"[n], "choices": ["a", "bc", "d"], "answer": n % 3} for n in range(5)
    ]
    data = tmp_path / "letters.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in documents))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "letters.yaml").write_text(TASK.format(data=data).replace("---\n", ""))
    words = ["--include_path", str(tmp_path / "tasks"), "--output", str(tmp_path / "figures.json")]
    assert main(["evaluate", str(export), "--tasks", "letters", *words]) == 0
    assert "letters" in capsys.readouterr().out
    n_right = 0
    for each in documents:
        question = str(each["question"])
        scores = []
        for choice in each["choices"]:  # type: ignore[attr-defined]
            idx = torch.as_tensor(TOKENIZER.encode(question + choice))[None]
            log_p = loaded.network(idx).logits.detach().log_softmax(-1)[0]
            scores.append(sum(float(log_p[at - 1, idx[0, at]]) for at in range(len(question), idx.shape[1])))
        n_right += scores.index(max(scores)) == each["answer"]
    results = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert results["letters"]["acc,none"] == pytest.approx(n_right / len(documents))
    assert main(["evaluate", str(export), "--tasks", "lettres", *words]) == 2
    assert "--tasks lettres: is no task of lm-eval" in capsys.readouterr().err
