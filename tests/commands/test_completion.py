"""``app completion``: scripts that a real shell is asked by."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.commands import COMMANDS
from app.commands.completion import SHELLS
from app.run.configuration import shipped_directory, shipped_names
from tests.support.application import REPOSITORY

pytestmark = pytest.mark.process
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
completes=$(complete -p app | sed -n 's/.*-F \\([^ ]*\\) app$/\\1/p')
"$completes" app "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def app(*words: str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "app", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bash script, beside a configuration, a run and another file."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "app.bash").write_text(app("completion", "bash", cwd=folder))
    (folder / "gpt_mine.yaml").touch()
    (folder / "gpt_notes.txt").touch()
    (folder / "run").mkdir()
    return folder


def completed(folder: Path, line: str, cuts_at_sign: bool = True) -> list[str]:
    """What bash offers behind a line; it cuts words at ``=`` unless ``COMP_WORDBREAKS`` was changed."""
    words = line.split(" ")
    if cuts_at_sign:
        words = [part for word in words for part in re.findall(r"=|[^=]+", word) or [""]]
    result = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", "app.bash", *words],
        cwd=folder, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("app v", ["validate", "verify"]),
        ("app fit gpt_", ["gpt_char", "gpt_deep36", "gpt_task", "gpt_mine.yaml"]),
        ("app fit --config hard", ["hardware/cpu", "hardware/ddp", "hardware/fsdp", "hardware/gpu"]),
        ("app fit gpt_char hardware/g", ["hardware/gpu"]),
        ("app fit --config=hard", ["hardware/cpu", "hardware/ddp", "hardware/fsdp", "hardware/gpu"]),
        ("app fit --config=gpt_char --config=hardware/g", ["hardware/gpu"]),
        ("app fit --config=gpt_char --model.optimizer=", ["adamw", "sgd", "muon"]),
        ("app fit --config=gpt_char --model.opt", ["--model.optimizer"]),
        ("app fit --dry_run gpt_d", ["gpt_deep36"]),
        ("app prepare wikitext1", ["wikitext103_gpt"]),
        ("app configs tilelli_f", ["tilelli_fp"]),
        ("app fit gpt_char --trainer.acc", ["--trainer.accelerator", "--trainer.accumulate_grad_batches"]),
        ("app fit gpt_char --model T", ["TilelliModule"]),
        ("app fit gpt_char --model.help C", ["CrystalGPTModule"]),
        ("app fit gpt_char --data Te", ["TextDataModule"]),
        ("app fit gpt_char --trainer.callbacks+ Te", ["TernaryHealth", "TextSamples"]),
        ("app fit gpt_char --model.optimizer ", ["adamw", "sgd", "muon"]),
        ("app fit gpt_char --model.n_ba", ["--model.n_banks"]),
        ("app fit gpt_char --data.max_v", ["--data.max_vocab_size"]),
        ("app fit gpt_char --fast_nondeterministic ", ["true", "false"]),
        ("app fit --resume ru", ["run"]),
        ("app fit --resume_inexact ", ["true", "false"]),
        ("app validate ru", ["run"]),
        ("app validate run --checkpoint ", ["best", "last"]),
        ("app validate run --dry", []),
        ("app generate run --top", ["--top_k", "--top_p"]),
        ("app study --ver", ["--verify"]),
        ("app study routing run --n_", ["--n_blocks", "--n_tokens"]),
        ("app study routing run --checkpoint ", ["best", "last"]),
        ("app study routing ru", ["run"]),
        ("app new ", ["architecture", "callback", "data", "task"]),
        ("app completion ", list(SHELLS)),
    ],
)
def test_bash_offers(folder: Path, line: str, offered: list[str]) -> None:
    assert completed(folder, line) == offered


@needs_bash
def test_bash_offers_values_where_it_does_not_cut_at_the_sign(folder: Path) -> None:
    line = "app fit --config=gpt_char --config=hardware/g"
    assert completed(folder, line, cuts_at_sign=False) == ["--config=hardware/gpu"]
    line = "app fit --config=gpt_char --model.optimizer="
    offered = [f"--model.optimizer={name}" for name in ("adamw", "sgd", "muon")]
    assert completed(folder, line, cuts_at_sign=False) == offered


@needs_bash
def test_nothing_that_the_help_lists_is_missing(folder: Path) -> None:
    assert completed(folder, "app ") == list(COMMANDS)
    assert {*shipped_names(shipped_directory())} <= {*completed(folder, "app fit ")}
    listed = re.findall(r"^  (--[\w.]+)", app("fit", "--help", "all", cwd=folder), re.MULTILINE)
    offered = completed(folder, "app fit --")
    assert len(listed) > 50
    assert {*listed} <= {*offered}
    # Nor is anything offered that is always refused.
    assert not {"--trainer.max_epochs", "--trainer.fast_dev_run"} & {*offered}
    assert "16-mixed" not in completed(folder, "app fit --trainer.precision ")
    assert "LearningRateFinder" not in completed(folder, "app fit --trainer.callbacks+ ")


@pytest.mark.parametrize("shell", ["zsh", pytest.param("tcsh", marks=pytest.mark.stress)])
def test_other_shells_get_a_script_that_they_can_read(tmp_path: Path, shell: str) -> None:
    script = app("completion", shell, cwd=tmp_path)
    for word in ("crystallize", "gpt_char", "model.learning_rate", "TilelliModule", "hardware/ddp"):
        assert word in script
    if shutil.which(shell) is not None:
        (tmp_path / "script").write_text(script)
        result = subprocess.run([shell, "-f", "-n", "script"], cwd=tmp_path, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
