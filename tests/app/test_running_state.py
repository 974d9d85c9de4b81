"""State that training moves without a gradient: once per step, of the global batch, and never by a bad step."""

from pathlib import Path

import pytest
import torch

from tests import tolerances
from tests.parity import relative_error
from tests.support import runs, tiny
from tests.support.application import REPOSITORY, Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
TRUST = ("--trust_imports", "lane_mixer")
NAME = "network.running_share"

_BAD_STEP = """
import torch
from app.training import LanguageModelModule
training_step = LanguageModelModule.training_step
def faulty(self, batch, batch_idx):
    result = training_step(self, batch, batch_idx)
    if self.trainer.global_step + 1 == {step}:
        self.network.share_sums.fill_(float("nan"))
        self.network.running_share.fill_(7.0)  # a forward that moves its state at once is put back too
        result["loss"] = result["loss"] * float("nan")
    return result
LanguageModelModule.training_step = faulty
"""


def configuration(folder: Path, **changes: object) -> Path:
    (folder / "lane_mixer.py").write_text((REPOSITORY / "tests" / "app" / "lane_mixer.py").read_text())
    settings = {
        "model": {
            "class_path": "lane_mixer.LaneMixerModule",
            "init_args": {"dropout": 0.0, "learning_rate": 0.01, "warmup_steps": 5, "nonfinite": "skip"},
        },
        "trainer__max_steps": 10,
        "trainer__callbacks": [],
    }
    return tiny.write(
        folder / "config.yaml", tiny.tilelli(tiny.write_text(folder / "text.txt"), **settings | changes)
    )


def share(run: Path) -> torch.Tensor:
    return runs.last_checkpoint(run)["state_dict"][NAME]


@side_by_side
def test_accumulation_and_ranks_move_it_once_per_step(application: Application, tmp_path: Path) -> None:
    # The auxiliary loss is one of micro-batches; with weights that stand still it cannot tell in the shares.
    config = configuration(tmp_path, model__init_args__learning_rate=1e-9)
    whole = share(application.fit(config, tmp_path / "whole", *TRUST))
    assert not torch.equal(whole, torch.full_like(whole, 0.5))
    for name, options in (
        ("micro", ("--trainer.accumulate_grad_batches", 4)),
        ("ranks", ("--trainer.devices", 2)),
    ):
        part = share(application.fit(config, tmp_path / name, *options, *TRUST, warm_rank=True))
        assert relative_error(part, whole) <= tolerances.OUTPUT, name


@side_by_side
def test_a_bad_step_leaves_it_alone(application: Application, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    bad = application.fit(
        config, tmp_path / "bad", *TRUST, "--trainer.max_steps", 5, prelude=_BAD_STEP.format(step=5)
    )
    clean = application.fit(config, tmp_path / "clean", *TRUST, "--trainer.max_steps", 4)
    assert torch.equal(share(bad), share(clean))
