"""A dry run says what a run would take and leaves nothing."""

import re
from pathlib import Path

import pytest

from app.models.tilelli import TilelliLM
from tests.support import runs, tiny
from tests.support.application import Application, Ended

pytestmark = pytest.mark.process


def number(ended: Ended, pattern: str) -> float:
    found = re.search(pattern, ended.out)
    assert found, ended
    return float(found[1].replace(",", ""))


def test_everything_is_said_and_nothing_written(application: Application, tmp_path: Path, text: Path) -> None:
    config = tiny.write(
        tmp_path / "small.yaml",
        tiny.tilelli(text, model__init_args__optimizer="muon", trainer__accumulate_grad_batches=2),
    )
    before = runs.files(tmp_path)
    ended = application.run(
        "fit", "--config", config, "--run_dir", tmp_path / "new", "--dry_run", cwd=tmp_path
    )
    assert ended.code == 0, ended
    assert runs.files(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.yaml", "text.txt"]
    network = TilelliLM(
        int(number(ended, r"(\d+) symbols")),
        d_model=16,
        n_layers=2,
        n_banks=2,
        d_head=8,
        kernel_size=3,
        wide_kernel_size=7,
    )
    n_parameters = sum(p.numel() for p in network.parameters())
    assert number(ended, r"all +TilelliLM +([\d,]+)") == n_parameters
    for part in ("tok_emb", "blocks    2 x TilelliBlock", "  dense ", "head"):
        assert part in ended.out
    n_tokens = 40 * 4 * 16
    assert number(ended, r"= ([\d,]+): ") == n_tokens
    assert number(ended, r"([\d.]+) per parameter") == pytest.approx(n_tokens / n_parameters, rel=0.01)
    epochs = n_tokens / number(ended, r"([\d,]+) train")
    assert number(ended, r"([\d.]+) epochs") == pytest.approx(epochs, rel=0.01)
    assert number(ended, r"weights +([\d.]+) KiB") == pytest.approx(n_parameters * 4 / 1024, rel=0.01)
    assert "micro-batch of 2 windows" in ended.out
    step_ms, hours = number(ended, r"([\d.,]+) ms per step"), number(ended, r"40 steps: ([\d.e-]+) hours")
    assert hours == pytest.approx(40 * step_ms / 3.6e6, rel=0.06)


def test_mistakes_are_those_of_a_run(application: Application, tmp_path: Path, text: Path) -> None:
    config = tiny.write(tmp_path / "small.yaml", tiny.tilelli(text, model__init_args__top_k=0))
    ended = application.run("fit", "--dry_run", "--config", config, cwd=tmp_path)
    assert ended.code == 2
    assert "top_k" in ended.err
    missing = application.run("fit", "--dry_run", cwd=tmp_path)
    assert missing.code == 2
    assert "--config is missing" in missing.err
