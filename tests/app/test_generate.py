"""What is done with a trained run: text, evaluation, and its network in somebody else's program."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process
Generate = Callable[..., Ended]


@pytest.fixture
def generate(application: Application, reference: Reference) -> Generate:
    """Generates with the baseline run."""

    def call(*words: object, run: Path = reference.baseline) -> Ended:
        return application.run("generate", run, "--tokens", 30, *words, cwd=reference.config.parent)

    return call


def test_the_same_seed_gives_the_same_text(application: Application, generate: Generate) -> None:
    first, same, other, greedy, again = application.all(
        lambda: generate("--seed", 1),
        lambda: generate("--seed", 1),
        lambda: generate("--seed", 2),
        lambda: generate("--greedy", "--seed", 1),
        lambda: generate("--greedy", "--seed", 2),
    )
    assert {ended.code for ended in (first, same, other, greedy, again)} == {0}, first
    assert first.out == same.out != other.out
    assert greedy.out == again.out != first.out
    assert len(first.out) == 31  # and the line's end


def test_a_prompt_is_continued(generate: Generate) -> None:
    ended = generate("--prompt", "the quick", "--top_k", 5, "--top_p", 0.9, "--temperature", 0.5)
    assert ended.code == 0, ended
    assert ended.out.startswith("the quick")
    assert len(ended.out) == len("the quick") + 31
    assert re.search(r"baseline, best-0000\d\d.ckpt: 30 tokens, [\d.]+ tokens/s on cpu", ended.err)


def test_line_ends_of_a_prompt_are_those_of_the_text(
    application: Application, generate: Generate, reference: Reference, tmp_path: Path
) -> None:
    unix, windows, traced = application.all(
        lambda: generate("--prompt", "the\nquick\n"),
        lambda: generate("--prompt", "the\r\nquick\r"),
        lambda: application.run("trace", reference.baseline, "--text", "the\r\nquick", cwd=tmp_path),
    )
    assert unix.code == windows.code == traced.code == 0, traced
    assert unix.out == windows.out
    assert "(9 tokens)" in traced.out, traced


def test_several_samples_have_seeds_of_their_own(application: Application, generate: Generate) -> None:
    three, third = application.all(
        lambda: generate("--samples", 3, "--seed", 5), lambda: generate("--seed", 7)
    )
    parts = three.out.split("--- sample ")[1:]
    assert [part[0] for part in parts] == ["1", "2", "3"]
    assert len({part[2:] for part in parts}) == 3
    assert parts[2][2:] == third.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "Ω"), "Ω"),
        (("--tokens", 0), "--tokens 0: must be 1 or more"),
        (("--temperature", 0), "for the likeliest token use --greedy"),
        (("--temperature", "inf"), "--temperature inf: must be finite"),
        (("--temperature", "nan"), "--temperature nan: must be finite"),
        (("--temperature", -1), "--temperature -1.0: must be above 0"),
        (("--top_p", 1.5), "--top_p 1.5: must lie in (0, 1]"),
        (("--seed", 2**64), f"--seed {2**64}: must be at least 0 and below 2^64"),
        (("--seed", -1), "--seed -1: must be at least 0"),
        (("--seed", 2**64 - 1, "--samples", 2), "with --samples 2 the last text's seed is not below 2^64"),
        (("--temprature", 1), "unrecognized arguments: --temprature 1"),
        (("--temp", 1), "unrecognized arguments: --temp 1"),
        (("--tokens", "many"), "argument --tokens: invalid int value: 'many'"),
        (("--checkpoint", "middle"), "invalid choice: 'middle'"),
        (("--device", "cuda:99"), "cuda:99"),
    ],
)
def test_a_mistake(generate: Generate, words: tuple[object, ...], said: str) -> None:
    ended = generate(*words)
    assert ended.code == 2, ended
    assert said in ended.err, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1


def test_every_mistake_is_told_at_once(generate: Generate) -> None:
    ended = generate(
        "--tokens", 0, "--samples", 0, "--top_k", 0, "--top_p", 0, "--temperature", 0, "--seed", 2**65
    )
    assert ended.code == 2, ended
    told = [line.removeprefix("error: ").split()[0] for line in ended.err.splitlines()]
    assert sorted(told) == ["--samples", "--seed", "--temperature", "--tokens", "--top_k", "--top_p"], ended


def test_the_ends_of_every_range(generate: Generate) -> None:
    ended = generate("--top_p", "1e-300", "--top_k", 10**30, "--temperature", "1e300", "--seed", 2**64 - 1)
    assert ended.code == 0, ended
    assert len(ended.out) == 31


def test_a_run_without_a_checkpoint(application: Application, reference: Reference, tmp_path: Path) -> None:
    run = tmp_path / "run"
    killed = application.start(
        "fit",
        "--config",
        reference.baseline_config,
        "--run_dir",
        run,
        cwd=tmp_path,
        prelude=faults.kill_at("step", 2),
    )
    assert killed.wait().code == -9
    for command in ("generate", "validate"):
        ended = application.run(command, run, cwd=tmp_path)
        assert ended.code == 2, ended
        assert "holds no" in ended.err


@pytest.mark.parametrize("which", ["best", "last"])
def test_validation_gives_what_training_gave(
    application: Application, reference: Reference, tmp_path: Path, which: str
) -> None:
    before = runs.files(reference.baseline)
    ended = application.run("validate", reference.baseline, "--checkpoint", which, cwd=tmp_path)
    assert ended.code == 0, ended
    assert ended.err == ""
    validations = {row["step"]: row for row in runs.curve(reference.baseline) if "val/loss" in row}
    step = runs.saved_steps(reference.baseline, "best" if which == "best" else "resume")[-1]
    for key in ("val/loss", "val/bpb", "val/token_perplexity"):
        (value,) = re.findall(rf"^{key} +([\d.]+)$", ended.out, re.MULTILINE)
        assert float(value) == pytest.approx(float(validations[str(step)][key]), abs=1e-6)
    assert runs.files(reference.baseline) == before
    assert not list(tmp_path.iterdir())


def test_a_test_split_must_exist(application: Application, reference: Reference, tmp_path: Path) -> None:
    ended = application.run("test", reference.baseline, cwd=tmp_path)
    assert ended.code == 2, ended
    assert "test_fraction: 0 leaves no test split" in ended.err


LOAD = """
import sys
sys.modules["lightning"] = sys.modules["jsonargparse"] = None
import app
import torch
network, tokenizer, block_size = app.load({run!r})
assert not network.training
idx = torch.tensor([tokenizer.encode("the lazy dog").tolist()])
with torch.no_grad():
    logits = network(idx).logits
print(type(network).__name__, tokenizer.vocab_size, block_size, tuple(logits.shape))
assert not [name for name in sys.modules if name.startswith("lightning") and sys.modules[name]]
sys.exit(0)
"""


def test_a_network_loads_without_the_framework(reference: Reference) -> None:
    import subprocess
    import sys

    from tests.support.application import REPOSITORY

    code = LOAD.format(run=str(reference.baseline))
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "GPT 29 16 (1, 12, 29)\n"
