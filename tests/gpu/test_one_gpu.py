"""One GPU: what is killed goes on to the bit, and steps from a graph are eager steps."""

import json
from pathlib import Path

import pytest
import torch

from tests.gpu.runs_there import SHIPPED, differing, fit, words
from tests.support import faults, runs
from tests.support.application import Application

pytestmark = [
    pytest.mark.process,
    pytest.mark.stress,
    pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize("tokens", [0, 16_384], ids=["shipped", "16384"])
@pytest.mark.parametrize("name", SHIPPED)
def test_killed_twice_a_run_ends_as_a_clean_one(
    application: Application, tmp_path: Path, name: str, tokens: int
) -> None:
    given = words(name, tokens=tokens)
    fit(application, tmp_path / "clean", *given)
    for step in (23, 41):
        fit(application, tmp_path / "killed", *given, code=-9, prelude=faults.kill_at("batch", step))
    fit(application, tmp_path / "killed", *given)
    runs.assert_same_run(tmp_path / "killed", tmp_path / "clean")
    fit(application, tmp_path / "eager", *given, "--graph", "false")
    assert differing(tmp_path / "eager", tmp_path / "clean") == []
    summary = json.loads((tmp_path / "clean" / "summary.json").read_text())
    assert summary["launch/replayed_micro_batches"] > 0
    assert summary["launch/replayed_evaluation_batches"] > 0
