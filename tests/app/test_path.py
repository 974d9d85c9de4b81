"""The path of a run: kept where it goes on at the same place, told where it changes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from tests.support.application import Application, Ended
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def lines(ended: Ended, word: str) -> list[str]:
    return re.findall(rf"^{word:<8} (.*)$", ended.out, re.MULTILINE)


@side_by_side
def test_forms_are_kept_until_somebody_says_otherwise(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(
        tmp_path / "config.yaml", tiny.gpt(text, trainer__max_steps=8, trainer__log_every_n_steps=1)
    )
    clean, run = tmp_path / "clean", tmp_path / "run"
    naive: dict[str, Any] = {"env": {"APP_OP_FORM": "naive"}}
    application.fit(config, clean, **naive)
    application.fit(config, run, "--trainer.max_steps", 4, **naive)
    ended = application.go_on(run, "--trainer.max_steps", 8)
    assert lines(ended, "path") == ["eager steps, math attention, naive operators"], ended
    assert any(
        note.startswith("operators compute as in the checkpoint: naive") for note in lines(ended, "note")
    )
    assert lines(ended, "changed") == ["trainer.max_steps: 4 -> 8"]
    weights = [
        torch.load(folder / "checkpoints" / "resume-000008.ckpt", weights_only=True)
        for folder in (run, clean)
    ]
    ours, theirs = (content["state_dict"] for content in weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert weights[0]["archlab"]["path"]["operators"]["layer_norm"] == "naive"
    assert runs.launches(run)[-1]["path"] == weights[0]["archlab"]["path"]
    # An empty word is a word.
    ended = application.go_on(run, "--trainer.max_steps", 10, env={"APP_OP_FORM": ""})
    assert lines(ended, "path") == ["eager steps, math attention, vectorized operators"], ended
    assert "the run goes on by another path: as exactly, but not to the same bits" in lines(ended, "note")
    assert "path.operators.layer_norm: 'naive' -> 'vectorized'" in runs.launches(run)[-1]["changes"]
    # Steps of either path are made again by their own: naive up to the eighth, then not.
    ended = application.run("replay", run, "--sample", 10, cwd=tmp_path)
    assert ended.code == 0, ended
    assert "as recorded, bit for bit" in ended.out


@side_by_side
def test_what_cannot_be_compiled_is_told_before_a_run_begins(
    application: Application, tmp_path: Path
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text))
    words = ("fit", "--config", config, "--run_dir", tmp_path / "run", "--compile")
    without = "import torch._inductor.config as inductor; inductor.cpp.cxx = ('no-such-compiler',)"
    ended = application.run(*words, "blocks", cwd=tmp_path, prelude=without)
    assert ended.code == 2, ended
    assert "compile: needs a C++ compiler" in ended.err
    assert not (tmp_path / "run").exists()
    ended = application.run(*words, "half", cwd=tmp_path)
    assert ended.code == 2, ended
    assert "compile" in ended.err
    assert "none, blocks, full" in ended.err
