"""A dry run says what a run would take and leaves nothing."""

import re
from pathlib import Path

import pytest

from app.models.tilelli import TilelliLM
from tests.app.conftest import Reference
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


def test_first_weights_are_checked_as_a_run_checks_them(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    def tried(weights: Path | str, *options: object) -> Ended:
        words = ("--dry_run", "--config", reference.baseline_config, "--init_from", weights)
        return application.run("fit", *words, *options, cwd=tmp_path)

    damaged = runs.copied(reference.baseline, tmp_path / "damaged")
    (file,) = (damaged / "checkpoints").glob("best-*.ckpt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    fits, misfits, missing, broken = application.all(
        lambda: tried(reference.baseline),
        lambda: tried(reference.baseline, "--model.init_args.d_model", 24, "--model.init_args.n_heads", 3),
        lambda: tried("nowhere"),
        lambda: tried(damaged),
    )
    assert fits.code == 0, fits
    assert "dry run  nothing was written" in fits.out
    assert misfits.code == 2, misfits
    assert (
        "the weights do not fit this network: network.blocks.0.attn.k_proj.weight is (16, 16) there"
        in misfits.err
    )
    assert missing.code == 2, missing
    assert "nowhere" in missing.err
    assert broken.code == 4, broken
    assert all("Traceback" not in ended.err for ended in (misfits, missing, broken))
