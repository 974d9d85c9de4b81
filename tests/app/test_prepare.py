"""Prepared texts from the command line to trained, evaluated and continued runs."""

import hashlib
import json
import math
import re
import signal
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import app
from tests.support import faults, runs, tiny
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process

LINES = [
    " = A <unk> title = \n",
    " \n",
    " the quick brown fox , seven wizards . \n",
    " a lazy dog jumps . \n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in the word-level form, as text files with splits."""
    made = tmp_path_factory.mktemp("prepared")
    for split, n in (("train", 60), ("valid", 9), ("test", 11)):
        (made / f"{split}.txt").write_text("".join(LINES[i % 4] for i in range(4 * n + len(split))))
    return made


def configuration(folder: Path, **changes: Any) -> dict[str, Any]:
    made = tiny.gpt(
        folder, trainer__max_steps=4, trainer__val_check_interval=4, trainer__limit_val_batches=1.0
    )
    made["data"] = {
        "class_path": "datamodules.TextDataModule",
        "init_args": {
            "path": str(folder),
            "tokenizer": "word",
            "block_size": 16,
            "batch_size": 4,
            "cache_dir": str(folder / ".cache"),
        },
    }
    return tiny.changed(made, changes)


@pytest.fixture(scope="module")
def run(application: Application, folder: Path) -> Path:
    """A run on words, made once; to be read only."""
    config = tiny.write(folder / "word.yaml", configuration(folder))
    prepared = application.run("prepare", "--config", config, cwd=folder)
    assert prepared.code == 0, prepared
    assert re.search(r"data +.*tokens of \d+ \(word\).*licence not stated", prepared.out), prepared
    assert "\n         training    train.txt\n         validation  valid.txt\n" in prepared.out, prepared
    assert "\n         skipped     word.yaml (another ending than those that are read)\n" in prepared.out, (
        prepared
    )
    no_work = "from datamodules import preparation\npreparation.Preparation._prepare = None"
    return application.fit(config, folder / "run", prelude=no_work)


def no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def figures(ended: Ended) -> dict[str, float]:
    assert ended.code == 0, ended
    found = re.findall(r"^((?:val|test)/\w+) +([\d.,]+)$", ended.out, re.MULTILINE)
    return {key: float(value.replace(",", "")) for key, value in found}


def brute_force(run: Path, tokens: torch.Tensor, block_size: int, stride: int) -> float:
    """Nats of every target, each with as much context as the strides leave it, one window at a time."""
    network, _, _ = app.load(run)
    total = 0.0
    with torch.no_grad():
        for target in range(1, len(tokens)):
            window = 0 if target <= block_size else -(-(target - block_size) // stride)
            idx = tokens[None, window * stride : target]
            total += float(F.cross_entropy(network(idx).logits[0, -1:].double(), tokens[target : target + 1]))
    return total


def test_perplexities_and_strides_equal_brute_force(
    application: Application, folder: Path, run: Path
) -> None:
    _, tokenizer, _ = app.load(run)
    tokens = torch.from_numpy(tokenizer.encode((folder / "test.txt").read_text()).astype("int64"))
    n_bytes = len((folder / "test.txt").read_bytes())
    for stride in (16, 5):
        nats = brute_force(run, tokens, 16, stride)
        words = [] if stride == 16 else ["--data.init_args.stride", stride]
        found = figures(application.run("test", run, *words, cwd=folder))
        n_targets = len(tokens) - 1
        assert found["test/tokens"] == n_targets
        assert found["test/loss"] == pytest.approx(nats / n_targets, abs=2e-6)
        # On words both perplexities are one.
        assert found["test/token_perplexity"] == pytest.approx(math.exp(nats / n_targets), rel=1e-5)
        assert found["test/word_perplexity"] == pytest.approx(math.exp(nats / n_targets), rel=1e-5)
        # All bytes of the text but those of its first token, a "=" with its space, in proportion.
        pieces = tokenizer.token_bytes[tokens.numpy()]
        scored = n_bytes * (pieces[1:].sum() / pieces.sum())
        assert found["test/bpb"] == pytest.approx(nats / math.log(2) / scored, rel=1e-5)


def test_that_generated_words_occur_is_not_said_of_a_word_vocabulary(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["baseline/count_loss"] > 0
    for key in ("samples/known_word_share", "samples/n_words", "baseline/count_known_word_share"):
        assert summary[key] is None, key


def test_word_perplexity_of_a_text_counted_by_hand(application: Application, tmp_path: Path) -> None:
    # 3 + 1 words on two lines with their ends are 6; the first byte is the space before the first of them.
    (tmp_path / "valid.txt").write_text(" one two three\nfour\n")
    (tmp_path / "train.txt").write_text("one two three four five\n" * 20)
    config = configuration(tmp_path, data__init_args__tokenizer="byte", trainer__max_steps=1)
    made = tmp_path / "run"
    words = ("--config", tiny.write(tmp_path / "byte.yaml", config), "--run_dir", made)
    trained = application.run("fit", *words, cwd=tmp_path)
    found = figures(application.run("validate", made, cwd=tmp_path))
    nats = found["val/loss"] * 19
    assert f", {math.exp(nats / 6):.1f} word perplexity" in trained.out, trained
    assert f"  word ppl {math.exp(nats / 6):.1f}\n" in trained.out, trained
    assert found["val/tokens"] == 19
    assert found["val/word_perplexity"] == pytest.approx(math.exp(nats / 6), rel=1e-4)
    assert found["val/token_perplexity"] == pytest.approx(math.exp(nats / 19), rel=1e-5)
    assert found["val/bpb"] == pytest.approx(nats / math.log(2) / 19, rel=1e-5)
    row = next(row for row in runs.curve(made) if "val/loss" in row)
    assert {"val/word_perplexity", "val/token_perplexity", "val/bpb"} <= set(row)


def test_what_means_nothing_is_left_out_everywhere(application: Application, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("unknown", "unspaced")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "train.txt").write_text("one two three four five\n" * 20)
    (folders["unknown"] / "valid.txt").write_text("one two five\n" * 20)
    (folders["unspaced"] / "valid.txt").write_text("onetwothree" * 60)
    options: dict[str, dict[str, Any]] = {
        "unknown": {"data__init_args__max_vocab_size": 4},
        "unspaced": {"data__init_args__tokenizer": "byte"},
    }
    ended, figured = {}, {}
    for name, folder in folders.items():
        config = tiny.write(
            tmp_path / f"{name}.yaml", configuration(folder, trainer__max_steps=2, **options[name])
        )
        ended[name] = application.run(
            "fit", "--config", config, "--run_dir", tmp_path / "runs" / name, cwd=tmp_path
        )
        assert ended[name].code == 0, ended[name]
        figured[name] = figures(application.run("validate", tmp_path / "runs" / name, cwd=tmp_path))
    # Of one, two, five and a line end the vocabulary, <unk> and <eos> among its four, has the last two.
    assert figured["unknown"].keys() == {
        "val/loss",
        "val/token_perplexity",
        "val/tokens",
        "val/unknown_share",
    }
    assert figured["unknown"]["val/unknown_share"] == 0.5
    assert figured["unspaced"].keys() == {"val/loss", "val/bpb", "val/token_perplexity", "val/tokens"}
    told = ended["unknown"].out
    assert (
        "note     50.00% of the tokens of the validation split are words that the vocabulary has not" in told
    )
    assert re.search(r"validation  loss [\d.]+ nats  unknown 50\.00%\n", told), told
    assert re.search(r"loss     validation [\d.]+ nats, 50\.00% of its tokens being unknown words", told), (
        told
    )
    assert "bpb" not in told
    assert "perplexity" not in told.replace("word perplexity are left out", "")
    assert "word ppl" not in ended["unspaced"].out
    for name, missing in (
        ("unknown", ("train/bpb", "val/bpb", "val/word_perplexity")),
        ("unspaced", ("val/word_perplexity",)),
    ):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        rows = runs.curve(tmp_path / "runs" / name)
        for key in missing:
            assert key not in summary
            assert not any(row.get(key) for row in rows)
    compared = application.run("compare", tmp_path / "runs", cwd=tmp_path)
    assert compared.code == 0, compared
    assert "A compares with none of another tokenizer: it has no bits per byte, 50.00% of its" in compared.out
    written = [*(tmp_path / "runs").rglob("*.json"), *(tmp_path / "comparison").rglob("*.json")]
    lines = [line for path in (tmp_path / "runs").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(written) >= 9  # run, status, summary, tokenizer of each, and the comparison
    for text in [*(path.read_text() for path in written), *lines]:
        json.loads(text, parse_constant=no_json)


@pytest.mark.parametrize("tokenizer", ["bpe", "char"])
def test_a_run_needs_its_own_files_only(
    application: Application, folder: Path, tmp_path: Path, tokenizer: str
) -> None:
    config = configuration(
        folder, data__init_args__tokenizer=tokenizer, data__init_args__cache_dir=str(tmp_path / "cache")
    )
    made = application.fit(tiny.write(tmp_path / "a.yaml", config), tmp_path / "run")
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    ended = application.run("generate", made, "--prompt", "the quick", "--tokens", 5, cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.out.startswith("the quick")
    # Prepared again, with the same tokenizer.
    assert application.run("validate", made, cwd=tmp_path).code == 0


def test_another_tokenizer_of_the_same_size_is_refused(
    application: Application, folder: Path, run: Path, tmp_path: Path
) -> None:
    own = tmp_path / "run"
    runs.copied(run, own)
    words = json.loads((run / "tokenizer.json").read_text())
    words["words"][3], words["words"][4] = words["words"][4], words["words"][3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    other = ["--data.init_args.tokenizer_path", tmp_path / "tokenizer.json"]
    old = runs.launches(run)[0]["data"]["tokenizer"]
    for ended in (
        application.go_on(own, *other, "--trainer.max_steps", 6),
        application.go_on(own, *other, "--trainer.max_steps", 6, "--accept_data_change"),
        application.run("validate", own, *other, cwd=tmp_path),
    ):
        assert ended.code == 2, ended
        hashes = set(
            re.findall(r"[0-9a-f]{64}", next(line for line in ended.err.splitlines() if "tokenizer" in line))
        )
        assert old in hashes
        assert len(hashes) == 2


def test_an_edited_text_is_refused_or_recorded(application: Application, tmp_path: Path) -> None:
    for split, n in (("train", 20), ("valid", 19)):
        (tmp_path / f"{split}.txt").write_text("".join(LINES) * n)
    made = application.fit(tiny.write(tmp_path / "a.yaml", configuration(tmp_path)), tmp_path / "run")
    text = (tmp_path / "train.txt").read_text()
    # The same words as often, in another order: nothing but the text itself tells.
    (tmp_path / "train.txt").write_text(text.replace("quick brown", "brown quick"))
    refused = application.go_on(made, "--trainer.max_steps", 6)
    assert refused.code == 2, refused
    assert re.search(
        r"data: train_sha256 is '\w{64}', but the run was trained with '\w{64}'; restore the text",
        refused.err,
    )
    assert "--accept_data_change" in refused.err
    assert "train.txt changed since it was prepared" in refused.err
    told = [line.split(" is ")[0] for line in refused.err.splitlines() if line.startswith("error: ")]
    assert told == ["error: data: tokens_sha256", "error: data: train_sha256"]
    accepted = application.go_on(made, "--trainer.max_steps", 6, "--accept_data_change")
    assert accepted.code == 0, accepted
    change = runs.launches(made)[-1]["changes"]
    assert any(re.fullmatch(r"data train_sha256: '\w{64}' -> '\w{64}'", line) for line in change), change
    assert "changed  data train_sha256" in accepted.out
    assert application.go_on(made, "--trainer.max_steps", 8).code == 0  # the run has the new text now


def test_tokens_that_were_edited_are_refused(application: Application, tmp_path: Path) -> None:
    for split, n in (("train", 20), ("valid", 10)):
        (tmp_path / f"{split}.txt").write_text("".join(LINES) * n)
    made = application.fit(tiny.write(tmp_path / "a.yaml", configuration(tmp_path)), tmp_path / "run")
    (folder,) = (path.parent for path in (tmp_path / ".cache").glob("*/meta.json"))
    tokens = (folder / "train.bin").read_bytes()
    edited = tokens[1:] + tokens[:1]
    (folder / "train.bin").write_bytes(edited)
    meta = (folder / "meta.json").read_text()
    hashes = [hashlib.sha256(content).hexdigest() for content in (tokens, edited)]
    assert hashes[0] in meta
    (folder / "meta.json").write_text(meta.replace(*hashes))  # together with their hash
    refused = application.go_on(made, "--trainer.max_steps", 6)
    assert refused.code == 2, refused
    assert "error: data: tokens_sha256 is '" in refused.err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_preparation_and_clears_away(
    application: Application, folder: Path, tmp_path: Path, signum: int, code: int
) -> None:
    cache = tmp_path / "cache"
    config = tiny.write(tmp_path / "a.yaml", configuration(folder, data__init_args__cache_dir=str(cache)))
    at_work = f"import os\nfrom datamodules.token_files import SplitWriter\nSplitWriter.ids = lambda *_, **__: os.kill(os.getpid(), {int(signum)})"
    ended = application.run("prepare", "--config", config, cwd=tmp_path, prelude=at_work)
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp" or (path / "meta.json").exists()]


#: a signal to the whole group while the second worker starts; an interpreter is killed by it, or prints where it was
WHILE_A_WORKER_STARTS = """
import os, time
from concurrent.futures import process
from datamodules import preparation
preparation.MIN_BYTES_FOR_PROCESSES = 0
original = process.ProcessPoolExecutor._spawn_process
def spawn(self):
    original(self)
    if len(self._processes) == 2:
        time.sleep(0.1)  # both are there; neither has come to ignoring anything, nor would on a slower machine
        os.killpg(0, $signum)
process.ProcessPoolExecutor._spawn_process = spawn
"""


@pytest.mark.parametrize(
    ("command", "signum", "code"),
    [("prepare", signal.SIGINT, 130), pytest.param("fit", signal.SIGTERM, 143, marks=pytest.mark.stress)],
)
def test_a_signal_to_all_processes_of_a_preparation(
    application: Application, tmp_path: Path, command: str, signum: int, code: int
) -> None:
    folder, cache = tmp_path / "text", tmp_path / "cache"
    folder.mkdir()
    for split, n in (("train", 30_000), ("valid", 29_999)):
        (folder / f"{split}.txt").write_text("".join(LINES) * n)  # several segments
    changes = {"data__init_args__cache_dir": str(cache), "data__init_args__n_processes": 2}
    config = tiny.write(tmp_path / "a.yaml", configuration(folder, **changes))
    prelude = WHILE_A_WORKER_STARTS.replace("$signum", str(int(signum)))
    ended = application.run(command, "--config", config, cwd=tmp_path, prelude=prelude)
    assert ended.code == code, ended
    name = signal.Signals(signum).name
    assert ended.out.startswith(f"stopped by {name}")
    assert ended.out.count("\n") == 1
    assert ended.err == ""
    assert not (tmp_path / "runs").exists()
    assert not [path for path in cache.iterdir() if path.suffix == ".tmp" or (path / "meta.json").exists()]


BAD = {
    "blank": (" \n" * 50, "the text is only white space"),
    "short": ("a b\n", "tokens, block_size 16 needs 17"),
    "invalid": (b"fine \xff", "invalid UTF-8 at byte offset 5"),
}


@pytest.fixture(scope="module")
def refusals(application: Application, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ended]]:
    """The end of a run on texts that cannot be used, before a network is built."""
    root = tmp_path_factory.mktemp("bad")
    jobs = {}
    for kind, (content, _) in BAD.items():
        own = root / kind
        own.mkdir()
        (own / "text.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        config = tiny.write(own / "a.yaml", configuration(own, data__init_args__path=str(own / "text.txt")))
        jobs[kind] = lambda config=config, own=own: application.run(
            "fit", "--config", config, cwd=own, prelude=faults.at("model", "os._exit(99)")
        )
    return application.begin(jobs)


@pytest.mark.parametrize("kind", BAD)
def test_a_text_that_cannot_be_used(refusals: dict[str, Future[Ended]], kind: str) -> None:
    ended = refusals[kind].result()
    assert ended.code == 2, ended
    assert BAD[kind][1] in ended.err, ended
    assert "error: data.init_args.path (" in ended.err


def test_what_prepare_refuses(application: Application, tmp_path: Path) -> None:
    assert "usage: app prepare" in application.run("prepare", "--help", cwd=tmp_path).out
    ended = application.run("prepare", "--config", "gpt_char", "--run_dir", "x", cwd=tmp_path)
    assert ended.code == 2
    assert "belong to app fit" in ended.err
    ended = application.run("prepare", "--seed", 1, cwd=tmp_path)
    assert ended.code == 2
    assert "--config is missing" in ended.err


RESIDENT = (
    "import torch\n"
    "from datamodules.base import TokenDataModule\n"
    "from datamodules.resident import on_device\n"
    "TokenDataModule._on_device = lambda self, split, tokens: on_device(tokens, torch.device('cpu'))\n"
)


def test_slicing_on_the_device_trains_the_same_network(
    application: Application, folder: Path, run: Path, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "word.yaml", configuration(folder, checkpoint_every_n_steps=1))
    killed = application.run(
        "fit", "--config", config, "--run_dir", tmp_path / "run", cwd=tmp_path, prelude=RESIDENT + faults.kill_at("step", 3),
    )  # fmt: skip
    assert killed.code == -9, killed
    assert application.go_on(tmp_path / "run", prelude=RESIDENT).code == 0
    assert not runs.differences(runs.weights(tmp_path / "run"), runs.weights(run))
    ours, theirs = (
        [row for row in runs.curve(where) if "val/loss" in row] for where in (tmp_path / "run", run)
    )
    assert ours == theirs
