"""Local learning rules in the application: feedback that moves is part of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.run import checkpoint
from tests import tolerances
from tests.parity import relative_error
from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()

_BAD_STEP = """
from app.training import LanguageModelModule
training_step = LanguageModelModule.training_step
def faulty(self, batch, batch_idx):
    result = training_step(self, batch, batch_idx)
    if self.trainer.global_step + 1 == 5:
        result["loss"] = result["loss"] * float("nan")
    return result
LanguageModelModule.training_step = faulty
"""


def configuration(folder: Path, **changes: Any) -> Path:
    """Two layers by feedback alignment whose feedback follows the weights, with pictures."""
    settings: dict[str, Any] = {
        "checkpoint_every_n_steps": 5,
        "model": {
            "class_path": "app.training.LocalGPTModule",
            "init_args": {
                "n_layers": 2, "n_heads": 2, "d_model": 16, "dropout": 0.0, "method": "fa", "fa_grape": True, "fa_grape_n_probe": 4,
                "learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 2, "nonfinite": "skip",
            },
        },
        "trainer__max_steps": 10,
        "trainer__val_check_interval": 5,
        "trainer__callbacks": [
            {"class_path": "callbacks.GradientAlignment", "init_args": {"every_n_steps": 5}},
            {"class_path": "callbacks.DepthTimeFigures", "init_args": {"every_n_validations": 5}},
            {"class_path": "callbacks.RunHealth"},
        ],
    }  # fmt: skip
    return tiny.write(
        folder / "config.yaml", tiny.gpt(tiny.write_text(folder / "text.txt"), **settings | changes)
    )


def feedback(run: Path, at: int = -1) -> dict[str, Tensor]:
    """Of one of the checkpoints that the run has kept, the newest unless told."""
    _, path = checkpoint.list_checkpoints(run / "checkpoints")[at]
    state = checkpoint.read(path)["state_dict"]
    return {name: tensor for name, tensor in state.items() if name.endswith(".feedback")}


@pytest.mark.stress
@side_by_side
def test_feedback_after_a_kill_and_on_two_ranks(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    clean = application.fit(config, tmp_path / "clean")
    before, after = feedback(clean, -2), feedback(clean)
    assert len(after) == 13
    still = {name for name, matrix in after.items() if torch.equal(before[name], matrix)}
    assert still == {"network.head.feedback"}  # the head keeps its own
    figures = {path.name for path in (clean / "figures").iterdir()}
    assert figures >= {
        "depth-feedback_cosine.png",
        "alignment-layers.png",
        "alignment-angle_by_parameter.png",
    }

    run = tmp_path / "run"
    ended = application.run(
        "fit", "--config", config, "--run_dir", run, cwd=tmp_path, prelude=faults.kill_at("step", 8)
    )
    assert ended.code == -9, ended
    ended = application.go_on(run)
    assert ended.code == 0, ended
    runs.assert_same_run(run, clean)

    # Nothing that is drawn knows the rank.
    ranks = runs.weights(application.fit(config, tmp_path / "ranks", "--trainer.devices", 2, warm_rank=True))
    for name, tensor in runs.weights(clean).items():
        assert relative_error(ranks[name], tensor) <= tolerances.GRADIENT, name


@side_by_side
def test_a_bad_step_leaves_feedback_alone(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path, checkpoint_every_n_steps=4, trainer__max_steps=5, trainer__callbacks=[])
    run = application.fit(config, tmp_path / "run", prelude=_BAD_STEP)
    assert runs.saved_steps(run) == [4, 5]
    before, after = feedback(run, 0), feedback(run, 1)
    assert all(torch.equal(before[name], matrix) for name, matrix in after.items())
