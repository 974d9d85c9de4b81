"""Guards while steps are replayed: no false alarm, every flipped bit told before an update is made from it."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from app.training.reproducible import make_reproducible
from app.training.run_callbacks.graphed_steps import GraphedSteps
from app.training.run_callbacks.integrity import IntegrityStop
from tests.gpu.runs_there import SHIPPED, Figure, differing, fit, needs, summary, words
from tests.support import faults, in_process, runs
from tests.support.application import Application
from tests.training.test_guards import equilibrium, flip, gpt, of_kind

pytestmark = needs(1)
STATE = ("--verify_state", "true")
N_FLIPS = 100
#: steps before which nothing flips: eager ones, and those in which captured ones are held against them
N_EAGER = 8


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_is_told_of_a_sound_run_and_no_bit_is_another(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    n_steps, every = 300, 25
    given = words(name, "--trainer.max_steps", n_steps, "--trainer.val_check_interval", 100)
    guarded = [*given, *STATE, "--verify_every_n_steps", every]
    application.all(
        partial(fit, application, tmp_path / "plain", *given),
        partial(fit, application, tmp_path / "guarded", *guarded),
    )
    found = summary(tmp_path / "guarded")
    assert found["launch/eager_micro_batches"] >= n_steps // every
    assert differing(tmp_path / "guarded", tmp_path / "plain") == []
    assert runs.curve(tmp_path / "guarded") == runs.curve(tmp_path / "plain")
    figure(f"{name}: {n_steps} steps checked, {n_steps // every} made twice: 0 false alarms, no bit differs")


# -- at rest ----------------------------------------------------------------------------------------------

#: keeps the weights that a run ends with
_AT_THE_END = """
import torch
from app.training.run_callbacks.integrity import IntegrityStop
end = IntegrityStop._end
def ended(self, trainer):
    try:
        end(self, trainer)
    except BaseException:
        torch.save(trainer.lightning_module.state_dict(), "ended.pt")
        raise
IntegrityStop._end = ended
"""
#: the tensor in which a bit flips
FLIPPED = {
    "weights": "max(args[1].network.parameters(), key=lambda x: x.numel())",
    "moments": "next(iter(args[0].optimizers[0].state.values()))['exp_avg']",
    "tokens": "args[0].datamodule.tokens_in_memory()['train']",
}


@pytest.mark.parametrize("kind", FLIPPED)
@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4"])
def test_a_flipped_bit_ends_the_run(
    application: Application, tmp_path: Path, figure: Figure, name: str, kind: str
) -> None:
    given = words(name, *STATE)
    action = (
        f"{FLIPPED[kind]}.data.view(-1).view(torch.uint8)[7] ^= 16; "
        "torch.save(args[1].state_dict(), 'flipped.pt')"
    )
    run = tmp_path / "run"
    prelude = _AT_THE_END + faults.at("batch", action, 33)
    ended = fit(application, run, *given, code=4, prelude=prelude)
    assert f"before the update of step 33: {kind}: " in ended.err
    assert "by one bit" in ended.err
    assert "no update was made from it\nlast good checkpoint: resume-000030.ckpt" in ended.err
    flipped, left = (torch.load(tmp_path / file, weights_only=True) for file in ("flipped.pt", "ended.pt"))
    assert not runs.differences(left, flipped)
    fit(application, run, *given)
    fit(application, tmp_path / "clean", *given)
    assert differing(run, tmp_path / "clean") == []
    figure(
        f"{name}: a bit of {kind} before step 33: told at step 40, no update from it, exit 4; goes on bitwise"
    )


#: by what flips a network that has it; not tokens, of which one beyond the alphabet ends the process
GUARDED = {
    "weights": gpt(d_model=64),
    "moments": gpt(d_model=64),
    "moments of muon": gpt(d_model=64, optimizer="muon"),
    "buffers": equilibrium(d_model=64, d_ff=128),
}


class FlipsAtRest(Callback):
    """Flips a bit before every step that is replayed, looks whether it is found, and puts all back as it was."""

    def __init__(self, kind: str):
        self.kind = kind
        self.draw = random.Random(kind)
        self.n_flips = self.n_found = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Not before the last step, which is logged: the run would end there.
        self.is_flipped = N_EAGER <= trainer.global_step < N_EAGER + N_FLIPS
        if not self.is_flipped:
            return
        module: Any = pl_module
        self.live = [*module.guards.tensors(), *module.gate.tensors()]
        for kind in ("weights", "moments", "buffers"):
            self.live += of_kind(kind, trainer, pl_module)
        self.before = [x.detach().clone() for x in self.live]
        guarded = [x for x in of_kind(self.kind, trainer, module) if x.numel() and x.device == module.device]
        flip(self.draw.choice(guarded), self.draw)
        self.moved = [x.clone() for x in _moved(trainer, pl_module)]
        self.n_flips += 1

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        module: Any = pl_module
        if not self.is_flipped:
            return
        step, said = module.guards.findings()
        self.n_found += (
            step == trainer.global_step and said[0].startswith(self.kind) and "by one bit" in said[0]
        )
        for ours, before in zip(_moved(trainer, pl_module), self.moved, strict=True):
            assert torch.equal(_bits(ours), _bits(before)), "an update was made"
        for tensor, before in zip(self.live, self.before, strict=True):
            tensor.copy_(before)


def _moved(trainer: Trainer, module: LightningModule) -> Iterator[Tensor]:
    """What an update moves; not the optimizer's numbers of steps, which are counted up and down again."""
    yield from module.state_dict().values()
    yield from (x for x in of_kind("moments", trainer, module) if x.dim())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Equal steps of this process have equal bits, as those of a run have."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_reproducible(torch.device("cuda"))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", GUARDED)
def test_every_bit_is_found_in_the_step_that_follows(
    exact: None, tmp_path: Path, figure: Figure, name: str
) -> None:
    flips, graphed = FlipsAtRest(name.split()[0]), GraphedSteps()
    guards = IntegrityStop(in_process.SEED, tmp_path, True, 0)
    in_process.fit(
        tmp_path,
        GUARDED[name],
        steps=N_EAGER + N_FLIPS + 1,
        callbacks=[graphed, guards, flips],
        accelerator="gpu",
        block_size=64,
        batch_size=8,
        log_every_n_steps=10**9,
    )
    assert graphed.graphs is not None
    assert graphed.graphs.objection == ""
    assert graphed.graphs.n_captures == 1
    assert graphed.graphs.n_replays >= N_FLIPS
    figure(f"{name}: {flips.n_found} of {flips.n_flips} flipped bits found in the replayed step that follows")
    assert flips.n_found == flips.n_flips >= N_FLIPS


# -- what a step computes ---------------------------------------------------------------------------------


def test_a_unit_that_errs_once_is_found_in_a_step_made_twice(
    application: Application, tmp_path: Path, figure: Figure
) -> None:
    errs = (
        "once = [1.0009765625]; args[1].network.blocks[0].mlp.proj.weight.register_hook("
        "lambda gradient: gradient * once.pop() if once else gradient)"
    )
    given = words("gpt_char", "--verify_every_n_steps", 15)
    ended = fit(application, tmp_path / "run", *given, code=4, prelude=faults.at("batch", errs, 45))
    assert "step 45: made twice, these were not the same: gradient of blocks.0.mlp.proj.weight;" in ended.err
    figure("a gradient that is wrong once, in step 45 that is made twice: told, exit 4")


#: The fault belongs to what a step reads, and to the device, as a replay does.
_BAD_WINDOWS = """
import torch
from app.models.gpt import GPT
from app.models.gpt.network import MLP
bad = []
embed, mlp = GPT.embed, MLP.forward
def embedded(self, idx, *args):
    if torch.is_grad_enabled():
        bad or bad.append(torch.full_like(idx, -1))
        self.blocks[1].mlp.is_bad = (idx == bad[0]).all()
    return embed(self, idx, *args)
def computed(self, x):
    is_bad = getattr(self, "is_bad", None)
    y = mlp(self, x)
    return y if is_bad is None or not torch.is_grad_enabled() else torch.where(is_bad, float("nan"), y)
GPT.embed, MLP.forward = embedded, computed
import builtins
builtins.bad_windows = bad  # for the fault that is put in next
"""


def test_a_replayed_step_that_is_not_finite_ends_the_run_and_names_the_culprit(
    application: Application, tmp_path: Path, figure: Figure
) -> None:
    given = words("gpt_char")
    run = tmp_path / "run"
    prelude = _BAD_WINDOWS + faults.at("batch", "bad_windows[0].copy_(args[2][0])", 33)
    ended = fit(application, run, *given, code=3, prelude=prelude)
    assert "steps are replayed from here on" in ended.out
    assert "stopped being finite at step 33 (windows 512 to 527); no update was made from it" in ended.err
    assert "first module with a non-finite output: blocks.1.mlp (MLP), input range [" in ended.err
    assert "last good checkpoint: resume-000030.ckpt" in ended.err
    assert runs.saved_steps(run) == [20, 30]
    fit(application, run, *given)
    fit(application, tmp_path / "clean", *given)
    assert differing(run, tmp_path / "clean") == []
    figure("NaN in replayed step 33: exit 3 at step 40, blocks.1.mlp named, no update; goes on bitwise")
