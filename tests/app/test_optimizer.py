"""Every optimizer's state comes back; a run keeps its optimizer."""

from pathlib import Path

import pytest

from tests.support import faults, runs, tiny
from tests.support.application import Application

pytestmark = pytest.mark.process


@pytest.mark.stress
def test_muon_goes_on_bit_for_bit_and_stays_muon(
    application: Application, tmp_path: Path, text: Path
) -> None:
    config = tiny.write(
        tmp_path / "muon.yaml",
        tiny.tilelli(text, model__init_args__optimizer="muon", trainer__max_steps=20),
    )
    killed = application.start(
        "fit",
        *("--config", config, "--run_dir", tmp_path / "broken"),
        cwd=tmp_path,
        prelude=faults.kill_at("step", 16),
    )
    clean = application.fit(config, tmp_path / "clean")
    assert killed.wait().code == -9
    refused = application.go_on(tmp_path / "broken", "--model.init_args.optimizer", "adamw")
    assert refused.code == 2
    assert "model.init_args.optimizer: 'adamw', but the run has 'muon'" in refused.err
    ended = application.go_on(tmp_path / "broken", "--model.init_args.optimizer", "muon")
    assert ended.code == 0, ended
    runs.assert_same_run(tmp_path / "broken", clean)
