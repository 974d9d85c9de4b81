"""A loss or gradient that stops being finite: no update is made from it, and the run says where it came from."""

from pathlib import Path

import pytest
import torch

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application, Ended
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()

# The fault belongs to a step, and is there again when that step is replayed for the diagnosis.
_PATCH = """
import torch
from app.training import LanguageModelModule
from app.training.run_callbacks import nonfinite
from {module} import {owner} as Owner
here, bad_steps = dict(step=0), {steps}
training_step = LanguageModelModule.training_step
def counted(self, batch, batch_idx):
    here["step"] = self.trainer.global_step + 1
    return training_step(self, batch, batch_idx)
LanguageModelModule.training_step = counted
replay = nonfinite.replay
def replayed(trainer, module, step, seed):
    here["step"] = step
    torch.save([module.state_dict(), module.optimizers().state_dict()["state"]], "weights.pt")
    return replay(trainer, module, step, seed)
nonfinite.replay = replayed
forward = Owner.forward
def faulty(self, *args):
    output = forward(self, *args)
    if not (torch.is_grad_enabled() and here["step"] in bad_steps):
        return output
    {fault}
Owner.forward = faulty
"""
#: where the fault sits, what it does there, and what the run must say of it
FAULTS = {
    "a module's output": (
        dict(module="app.models.gpt.network", owner="MLP", fault="return output * float('nan')"),
        "first module with a non-finite output: blocks.0.mlp (MLP), input range [",
    ),
    "the loss": (
        dict(
            module="app.models.gpt",
            owner="GPT",
            fault="return output._replace(loss=output.loss + float('inf'))",
        ),
        "first module with a non-finite output: the network (GPT), input range tokens",
    ),
    "one gradient": (
        dict(
            module="app.models.gpt.network",
            owner="MLP",
            fault="self.proj.weight.register_hook(lambda g: g * float('nan') if here['step'] in bad_steps else g); "
            "return output",
        ),
        "forward sound; first non-finite gradient at blocks.",
    ),
}


def prelude(fault: dict[str, str], *steps: int) -> str:
    return _PATCH.format(steps=steps, **fault)


def trained(
    application: Application, reference: Reference, run: Path, *options: object, prelude: str
) -> Ended:
    return application.run(
        "fit",
        "--config",
        reference.baseline_config,
        "--run_dir",
        run,
        *options,
        cwd=run.parent,
        prelude=prelude,
    )


@pytest.mark.parametrize("where", FAULTS)
def test_no_update_is_made_from_a_bad_step(
    application: Application, reference: Reference, tmp_path: Path, where: str
) -> None:
    fault, said = FAULTS[where]
    ended = trained(application, reference, tmp_path / "run", prelude=prelude(fault, 7))
    assert ended.code == 3, ended
    assert "Traceback" not in ended.err
    assert "stopped being finite at step 7 (windows 24 to 27); no update was made from it" in ended.err
    assert said in ended.err, ended
    assert "first window" in ended.err
    assert "last good checkpoint: resume-000005.ckpt; remedies: a lower learning_rate" in ended.err
    assert runs.status(tmp_path / "run")["state"] == "failed"
    assert runs.status(tmp_path / "run")["exit_code"] == 3
    assert runs.saved_steps(tmp_path / "run") == [5]
    # The same weights and moments as those of a run that ended before the step.
    looks = faults.at(
        "step", "torch.save([self.state_dict(), self.optimizers().state_dict()['state']], 'clean.pt')", 7
    )
    clean = trained(application, reference, tmp_path / "clean", "--trainer.max_steps", 20, prelude=looks)
    assert clean.code == 0, clean
    ours, theirs = (torch.load(tmp_path / name, weights_only=True) for name in ("weights.pt", "clean.pt"))
    assert not runs.differences(ours, theirs)


@side_by_side
def test_the_very_first_step(application: Application, reference: Reference, tmp_path: Path) -> None:
    fault, said = FAULTS["a module's output"]
    ended = trained(application, reference, tmp_path / "run", prelude=prelude(fault, 1))
    assert ended.code == 3, ended
    assert "stopped being finite at step 1 (windows 0 to 3)" in ended.err
    assert said in ended.err
    assert "last good checkpoint: none yet" in ended.err
    assert runs.saved_steps(tmp_path / "run") == []


@side_by_side
def test_a_run_goes_on_from_the_last_good_checkpoint(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    fault, _ = FAULTS["the loss"]
    run = tmp_path / "run"
    # Step 15 is a bad one and due to be saved, but no checkpoint is made from a state behind a shut gate.
    ended = trained(
        application, reference, run, "--trainer.log_every_n_steps", 50, prelude=prelude(fault, 12)
    )
    assert ended.code == 3, ended
    assert "at step 12 (" in ended.err
    assert runs.saved_steps(run) == [5, 10]
    ended = application.go_on(run, "--trainer.log_every_n_steps", 5)
    assert "resumed  after step 10" in ended.out, ended
    differ = runs.differences(runs.last_checkpoint(run), runs.last_checkpoint(reference.baseline))
    # The launch before wrote fewer rows.
    assert not [place for place in differ if "/running_hashes/" not in place]


@side_by_side
def test_bad_steps_are_left_out_on_request(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    fault, _ = FAULTS["one gradient"]
    options = ("--model.init_args.nonfinite", "skip")
    bad = prelude(fault, 7, 8, 13)
    ended = trained(application, reference, tmp_path / "clean", *options, prelude=bad)
    assert ended.code == 0, ended
    rows = [row for row in runs.curve(tmp_path / "clean") if "train/loss" in row]
    counted = {int(row["step"]): row.get("train/skipped_steps") for row in rows}
    assert counted == {1: None, 5: None, 10: "2.0", 15: "3.0", 20: "3.0"}
    state = runs.last_checkpoint(tmp_path / "clean")
    assert all(torch.isfinite(tensor).all() for tensor in state["state_dict"].values())
    assert {float(entry["step"]) for entry in state["optimizer_states"][0]["state"].values()} == {17.0}
    # The count is part of the run: killed and resumed, it ends the same.
    ended = trained(
        application, reference, tmp_path / "run", *options, prelude=bad + faults.kill_at("step", 12)
    )
    assert ended.code == -9, ended
    ended = application.go_on(tmp_path / "run", prelude=bad)
    assert ended.code == 0, ended
    runs.assert_same_run(tmp_path / "run", tmp_path / "clean")


@side_by_side
def test_too_many_bad_steps_in_a_row_end_the_run(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    fault, said = FAULTS["a module's output"]
    ended = trained(
        application, reference, tmp_path / "run", "--model.init_args.nonfinite", "skip", "--model.init_args.max_skips", 3,
        prelude=prelude(fault, 4, 7, 8, 9, 10),
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "at step 7 (" in ended.err
    assert said in ended.err


@side_by_side
def test_a_huge_learning_rate_is_caught(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    ended = trained(
        application, reference, tmp_path / "run", "--model.init_args.learning_rate", "1e38",
        "--model.init_args.warmup_steps", 0, "--model.init_args.optimizer", "sgd", prelude="",
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "first module with a non-finite output: " in ended.err
    assert "Traceback" not in ended.err


# The fault belongs to what a step reads, and is there again only where the same windows are read with the same masks.
_BAD_WINDOWS = """
import torch
from app.training import LanguageModelModule
from app.models.gpt.network import MLP
here, bad = dict(step=0), []
training_step = LanguageModelModule.training_step
def counted(self, batch, batch_idx):
    here["step"] = self.trainer.global_step + 1
    return training_step(self, batch, batch_idx)
LanguageModelModule.training_step = counted
forward = MLP.forward
def faulty(self, x):
    if torch.is_grad_enabled() and here["step"] == {step} and not bad:
        bad.append(x.detach().clone())
    is_bad = bool(bad) and torch.equal(x.detach(), bad[0])
    return forward(self, x) * (float("nan") if is_bad else 1.0)
MLP.forward = faulty
"""


@side_by_side
def test_a_step_after_a_resume_with_another_batch_size_is_found_again(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.baseline, tmp_path / "run")
    ended = application.go_on(
        run, "--trainer.max_steps", 30, "--data.init_args.batch_size", 2, "--model.init_args.nonfinite", "skip",
        "--model.init_args.max_skips", 1, "--trainer.log_every_n_steps", 1, prelude=_BAD_WINDOWS.format(step=23),
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "stopped being finite at step 23 (" in ended.err
    assert "first module with a non-finite output: blocks.0.mlp (MLP), input range [" in ended.err, ended
