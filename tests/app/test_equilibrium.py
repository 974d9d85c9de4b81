"""Equilibrium in the application: what moves beside the weights, and adaptation in evaluation."""

import re
import signal
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.models.equilibrium import EquilibriumLM
from app.run import checkpoint
from tests.app.test_host_reads import COUNTER
from tests.support import faults, runs, tiny
from tests.support.application import Application

pytestmark = pytest.mark.process

MOVING = ("running", "num_batches", "deviation_")
# The output of a block is not a number from a step on.
POISON = """
import torch
from app.models.equilibrium.attention_residual import AttentionResidual
from app.training import LanguageModelModule
here = dict(step=0)
training_step = LanguageModelModule.training_step
def counted(self, batch, batch_idx):
    here["step"] = self.trainer.global_step + 1
    return training_step(self, batch, batch_idx)
LanguageModelModule.training_step = counted
forward = AttentionResidual.forward
def faulty(self, *args):
    y = forward(self, *args)
    return y * float("nan") if torch.is_grad_enabled() and here["step"] > 10 else y
AttentionResidual.forward = faulty
"""


def equilibrium(text: Path, **changes: Any) -> dict[str, Any]:
    """Three layers with lagged statistics and every watcher, no dropout."""
    configuration = tiny.tilelli(text, checkpoint_every_n_steps=10, trainer__max_steps=10)
    configuration["model"] = {
        "class_path": "app.training.EquilibriumModule",
        "init_args": {
            "d_model": 16, "n_heads": 2, "n_layers": 3, "d_ff": 24, "dropout": 0.0, "statistics": "lagged",
            "standardize": True, "soft": "ordinal", "shared_router": False, "quantile": "histogram",
            "routing_warmup_steps": 3, "learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 5, "nonfinite": "skip",
        },
    }  # fmt: skip
    configuration["data"]["init_args"]["batch_size"] = 8
    names = ("RunningThresholds", "EnergyBudget", "RouteFractions", "Throughput")
    configuration["trainer"]["callbacks"] = [{"class_path": f"callbacks.{name}"} for name in names]
    return tiny.changed(configuration, changes)


def moving(run: Path, step: int) -> Mapping[str, Tensor]:
    """What had moved beside the weights after a step."""
    file = next(path for at, path in checkpoint.list_checkpoints(run / "checkpoints") if at == step)
    state = checkpoint.read(file, require_sidecar=True)["state_dict"]
    return {name: t for name, t in state.items() if any(word in name for word in MOVING)}


@pytest.fixture(scope="module")
def poisoned(application: Application, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 14 steps, of which the last four left no trace."""
    folder = tmp_path_factory.mktemp("equilibrium")
    text = tiny.write_text(folder / "text.txt")
    config = tiny.write(folder / "a.yaml", equilibrium(text, trainer__max_steps=14))
    return application.fit(config, folder / "run", prelude=POISON)


def test_a_step_left_out_moves_nothing(poisoned: Path) -> None:
    before, after = moving(poisoned, 10), moving(poisoned, 14)
    assert len(before) == 3 * (5 + 2)
    assert int(before["network.signals.0.num_batches_tracked"]) == 10
    for name, state in before.items():
        assert torch.equal(state, after[name]), name


def test_ranks_and_accumulation_move_what_one_batch_moves(
    application: Application, poisoned: Path, tmp_path: Path
) -> None:
    text = poisoned.parent / "text.txt"
    config = tiny.write(tmp_path / "b.yaml", equilibrium(text))
    accumulated, parallel = application.all(
        lambda: application.fit(config, tmp_path / "two", "--trainer.accumulate_grad_batches", 2),
        lambda: application.fit(config, tmp_path / "ranks", "--trainer.devices", 2, warm_rank=True),
    )
    expected = moving(poisoned, 10)
    # The auxiliary loss is one of the global batch over ranks, and of each micro-batch with accumulation: what the
    # weights learn differs a little, and a threshold may fall into the neighbouring bin.
    for run, tolerance in ((parallel, 1e-6), (accumulated, 1e-3)):
        for name, state in moving(run, 10).items():
            torch.testing.assert_close(state, expected[name], rtol=tolerance, atol=tolerance, msg=name)


def test_adaptation_changes_the_score_and_not_the_checkpoint(
    application: Application, poisoned: Path
) -> None:
    def hashes() -> dict[str, str]:
        return {
            path.name: sha256(path.read_bytes()).hexdigest() for path in (poisoned / "checkpoints").iterdir()
        }

    def loss(*options: object, **more: Any) -> str:
        ended = application.run("validate", poisoned, *options, cwd=poisoned.parent, **more)
        assert ended.code == 0, ended
        found = re.search(r"val/loss +([\d.]+)", ended.out)
        assert found is not None
        return found[1]

    before = hashes()
    adapt = ("--model.init_args.adapt", "true")
    # A rate at which so few tokens show an effect in the printed digits.
    eager = ("--model.init_args.plastic_rate", 0.1)
    row_by_row = ("--data.init_args.batch_size", 1)  # as many steps as there are rows
    plain, same, adapted, again, at_its_own_rate, on_two = application.all(
        lambda: loss(),
        lambda: loss(*row_by_row),
        lambda: loss(*adapt, *eager),
        lambda: loss(*adapt, *eager),
        lambda: loss(*adapt, *row_by_row),
        lambda: loss(*adapt, *eager, "--trainer.devices", 2, prelude=KEEPS_ADAPTER, warm_rank=True),
    )
    assert hashes() == before
    assert plain != adapted == again
    assert float(same) == pytest.approx(float(plain), abs=2e-9)
    assert at_its_own_rate != same
    assert float(at_its_own_rate) == pytest.approx(float(same), abs=1e-5)
    # Other batches side by side, hence other steps, and the same on both ranks.
    assert on_two != plain
    assert float(on_two) == pytest.approx(float(plain), abs=0.1)
    ours, theirs = (torch.load(poisoned.parent / f"adapter-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    trained = checkpoint.read(poisoned / "checkpoints" / "best-000014.ckpt")["state_dict"]
    assert not torch.equal(ours[2], trained["network.plastic.up.weight"])


KEEPS_ADAPTER = """
import os, torch
from app.training import EquilibriumModule
forget = EquilibriumModule._forget
def keep(self):
    weights = [p.detach().clone() for p in self.network.plastic.parameters()]
    torch.save(weights, f"adapter-{os.environ.get('LOCAL_RANK', 0)}.pt")
    forget(self)
EquilibriumModule._forget = keep
"""


def test_a_stop_during_an_adapting_validation_saves_what_was_trained(
    application: Application, text: Path, tmp_path: Path
) -> None:
    adapting = equilibrium(
        text,
        model__init_args__adapt=True,
        model__init_args__plastic_rate=0.1,
        trainer__val_check_interval=5,
        checkpoint_every_n_steps=5,
    )
    config = tiny.write(tmp_path / "a.yaml", adapting)
    stop = faults.signal_at("validation", signal.SIGTERM, 5)
    words = ("fit", "--config", config, "--run_dir", "stopped")
    clean, ended = application.all(
        lambda: application.fit(config, tmp_path / "clean"),
        lambda: application.run(*words, cwd=tmp_path, prelude=MARKS_ADAPTED + stop),
    )
    assert ended.code == 143, ended
    assert (tmp_path / "adapted").exists()
    stopped = tmp_path / "stopped"
    ours, theirs = (
        checkpoint.read(run / "checkpoints" / "resume-000005.ckpt")["state_dict"] for run in (stopped, clean)
    )
    assert not runs.differences(ours, theirs)
    assert application.go_on(stopped).code == 0
    runs.assert_same_run(stopped, clean)


# When a checkpoint is saved in the midst of a validation, the weights are away from the trained ones.
MARKS_ADAPTED = """
import pathlib
from app.training.run_callbacks.retention import LatestCheckpoints
save = LatestCheckpoints.save
def marked(self, trainer, step, pending):
    if any(p0.ne(p).any() for p, p0 in trainer.lightning_module.network.plastic._with_trained()):
        pathlib.Path("adapted").touch()
    save(self, trainer, step, pending)
LatestCheckpoints.save = marked
"""

# A fault on one rank at one step, there again when that is replayed; what is left of the running state is kept.
AT_ONE_STEP = """
import os, torch
from app.models.equilibrium import EquilibriumLM, attention_residual
from app.training import LanguageModelModule
from app.training.run_callbacks import nonfinite
here, rank = dict(step=0), os.environ.get("LOCAL_RANK", "0")
training_step = LanguageModelModule.training_step
def counted(self, batch, batch_idx):
    here["step"] = self.trainer.global_step + 1
    return training_step(self, batch, batch_idx)
LanguageModelModule.training_step = counted
replay = nonfinite.replay
def replayed(trainer, module, step, seed):
    here["step"] = step
    network = module.network
    kept = [[t.clone() for t in (*network.running_state(), *network.step_sums())]]
    said = replay(trainer, module, step, seed)
    kept.append([*network.running_state(), *network.step_sums()])
    assert all(p.grad is None for p in network.parameters())
    torch.save(kept, f"state-{{rank}}.pt")
    return said
nonfinite.replay = replayed
def is_bad():
    return torch.is_grad_enabled() and here["step"] == {step} and rank == "{rank}"
{fault}
"""
IN_A_MODULE = """
forward = attention_residual.AttentionResidual.forward
attention_residual.AttentionResidual.forward = lambda self, *args: forward(self, *args) * (float("nan") if is_bad() else 1)
"""
IN_A_GRADIENT = """
forward = EquilibriumLM.forward
def faulty(self, *args):
    output = forward(self, *args)
    if is_bad():
        output.loss.register_hook(lambda g: g * float("inf"))
    return output
EquilibriumLM.forward = faulty
"""


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_rank_of_a_bad_step_is_told_although_all_share_their_statistics(
    application: Application, text: Path, tmp_path: Path, accumulation: int
) -> None:
    config = equilibrium(
        text, model__init_args__statistics="current", model__init_args__nonfinite="stop", trainer__log_every_n_steps=1,
        trainer__accumulate_grad_batches=accumulation,
    )  # fmt: skip
    ended = application.run(
        "fit", "--config", tiny.write(tmp_path / "a.yaml", config), "--run_dir", "run", "--trainer.devices", 2,
        cwd=tmp_path, warm_rank=True, prelude=AT_ONE_STEP.format(step=4, rank=1, fault=IN_A_MODULE),
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "stopped being finite at step 4 (" in ended.err
    culprits = [line for line in ended.err.splitlines() if "first module with a non-finite output" in line]
    assert len(culprits) == 1
    assert "blocks.0.residual (AttentionResidual), input range [" in culprits[0]
    assert "the step is finite when replayed on this rank; another rank names the culprit, or" in ended.err
    assert "Traceback" not in ended.err
    left = [torch.load(tmp_path / f"state-{rank}.pt") for rank in (0, 1)]
    for before, after in left:
        assert not runs.differences(before, after)
        assert all(t.isfinite().all() for t in after)
    assert not runs.differences(left[0][1], left[1][1])


@pytest.mark.parametrize("statistics", ["current", "lagged"])
def test_a_bad_first_step_leaves_everything_as_it_began(
    application: Application, text: Path, tmp_path: Path, statistics: str
) -> None:
    config = equilibrium(
        text, model__init_args__statistics=statistics, model__init_args__nonfinite="stop", trainer__log_every_n_steps=1
    )  # fmt: skip
    fault = IN_A_GRADIENT if statistics == "current" else IN_A_MODULE
    ended = application.run(
        "fit", "--config", tiny.write(tmp_path / "a.yaml", config), "--run_dir", "run",
        cwd=tmp_path, prelude=AT_ONE_STEP.format(step=1, rank=0, fault=fault),
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "stopped being finite at step 1 (windows 0 to 7)" in ended.err
    said = {
        "current": "forward sound; first non-finite gradient at ",
        "lagged": "first module with a non-finite output: blocks.0.residual (AttentionResidual), input range [",
    }
    assert said[statistics] in ended.err
    before, after = torch.load(tmp_path / "state-0.pt")
    network = EquilibriumLM(
        27, 16, 16, 2, 3, 24, 0.0, statistics=statistics, standardize=True, shared_router=False
    )
    untouched = network.running_state()
    assert not runs.differences(before, after)
    assert not runs.differences(untouched, after[: len(untouched)])


def test_routes_without_a_token_on_one_rank(application: Application, text: Path, tmp_path: Path) -> None:
    starves = faults.replaced(
        "app.models.equilibrium.RoutingDecision.forward",
        "lambda router, deviation: (lambda r: r._replace(route=r.route * 0) "
        "if __import__('os').environ.get('LOCAL_RANK') == '1' else r)(original(router, deviation))",
    )
    config = tiny.write(tmp_path / "a.yaml", equilibrium(text))
    run = application.fit(config, tmp_path / "run", "--trainer.devices", 2, warm_rank=True, prelude=starves)
    assert runs.status(run)["step"] == 10


@pytest.mark.stress
@pytest.mark.parametrize("statistics", ["current", "lagged"])
def test_more_steps_read_no_more(
    application: Application, tmp_path: Path, text: Path, statistics: str
) -> None:
    found = []
    for steps in (5, 15):
        folder = tmp_path / str(steps)
        folder.mkdir()
        config = equilibrium(
            text, checkpoint_every_n_steps=10_000, trainer__max_steps=steps, trainer__val_check_interval=10_000,
            trainer__log_every_n_steps=10_000, model__init_args__statistics=statistics,
        )  # fmt: skip
        application.fit(tiny.write(folder / "a.yaml", config), folder / "run", prelude=COUNTER)
        found.append((folder / "reads.json").read_text())
    assert found[0] == found[1]
