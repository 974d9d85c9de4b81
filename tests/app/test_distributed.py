"""Two ranks on one machine: the same mathematics, and no rank that outlives another."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.app.conftest import Reference
from tests.app.test_equilibrium import equilibrium
from tests.support import faults, runs, tiny
from tests.support.application import (
    REPOSITORY,
    Application,
    Ended,
    Running,
    assert_gone,
    children,
    connected_to,
)
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()
ONE, TWO = ("--trainer.devices", 1), ("--trainer.devices", 2)


def rank_one(launcher: Running) -> int:
    """The other rank of a launcher that trains."""
    launcher.wait_for("step      1/")
    return children(launcher.pid)[0]


def on_rank(rank: int, fault: str) -> str:
    """A fault of one rank only; the others run the same source without it."""
    return fault.replace("if calls in", f"if int(os.environ.get('LOCAL_RANK', 0)) == {rank} and calls in")


def endless(folder: Path) -> Path:
    """A run that goes on until something happens to it."""
    text = tiny.write_text(folder / "text.txt")
    settings = {
        "model__init_args__dropout": 0.0,
        "trainer__max_steps": 100_000,
        "trainer__log_every_n_steps": 1,
    }
    return tiny.write(folder / "config.yaml", tiny.gpt(text, **settings))


@side_by_side
def test_two_ranks_make_the_steps_of_one(application: Application, tmp_path: Path) -> None:
    (tmp_path / "one_process.py").write_text((REPOSITORY / "tests" / "app" / "one_process.py").read_text())
    found = tmp_path / "found.json"
    settings = {
        "model__init_args__dropout": 0.0,
        "model__init_args__aux_weight": 100.0,  # so much that a mean of local terms would show
        "trainer__max_steps": 200,
        "trainer__val_check_interval": 1000,
        "checkpoint_every_n_steps": 1000,
        "trainer__callbacks": [{"class_path": "one_process.OneProcess", "init_args": {"path": str(found)}}],
    }
    config = tiny.write(
        tmp_path / "config.yaml", tiny.tilelli(tiny.write_text(tmp_path / "text.txt"), **settings)
    )
    application.fit(config, tmp_path / "run", *TWO, "--trust_imports", "one_process", warm_rank=True)
    for words in (("replay", tmp_path / "run", "--step", 5), ("verify", tmp_path / "run")):
        refused = application.run(*words, cwd=tmp_path)
        assert refused.code == 2, refused
        assert "were made by several processes, which add up in another order than one" in refused.err
    compared = json.loads(found.read_text())
    assert runs.launches(tmp_path / "run")[0]["world_size"] == 2
    flipped = [entry for entry in compared if entry["flips"]]
    sound = [entry for entry in compared if not entry["flips"]]
    assert len(sound) == 20, compared
    print(f"{len(flipped)} steps with near-ties that flipped: {flipped}")
    for entry in flipped:
        assert entry["widest_gap"] <= 1e-5, entry
    for entry in sound:
        assert entry["loss_error"] <= 1e-6, entry
        assert entry["gradient_error"] <= 1e-5, entry
        assert entry["aux_loss"] > 0
        assert entry["decisions"] == 2 * 4 * 16 * 5


@side_by_side
def test_a_lost_rank_ends_the_run(application: Application, tmp_path: Path) -> None:
    # With a rank that is started as ever.
    launcher = application.start("fit", "--config", endless(tmp_path), "--run_dir", "run", *TWO, cwd=tmp_path)
    started = [launcher.pid, rank_one(launcher), *children(launcher.pid)]
    os.kill(started[1], signal.SIGKILL)
    ended = launcher.wait(15)
    assert ended.code == 6, ended
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("error: rank 1 was lost (signal 9);")
    said = runs.status(tmp_path / "run")
    assert (said["state"], said["exit_code"]) == ("failed", 6)
    assert said["reason"].startswith("rank 1 was lost")
    assert not (tmp_path / "run" / "lock").exists()
    assert_gone(started, 10)


@side_by_side
def test_a_lost_launcher_leaves_nobody_behind_and_the_run_goes_on_with_one_rank_and_with_two(
    application: Application, tmp_path: Path
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(
        tmp_path / "config.yaml",
        tiny.gpt(
            text,
            model__init_args__dropout=0.0,
            data__init_args__num_workers=1,
            trainer__limit_val_batches=1.0,  # a number of batches would be other windows on two ranks
        ),
    )
    run = tmp_path / "run"
    # A rank that hears of nobody's end through a broken connection: it is busy.
    busy = on_rank(1, faults.at("step", "print('busy', flush=True); __import__('time').sleep(60)", 14))
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    launcher = application.start(*words, *TWO, cwd=tmp_path, warm_rank=True, prelude=busy)
    launcher.wait_for("busy")
    others = children(launcher.pid)
    launcher.kill()
    assert launcher.wait().code == -9
    assert_gone(others, 15)
    # On one rank, which is told to stop.
    ended = application.run(*words, *ONE, cwd=tmp_path, prelude=faults.signal_at("step", signal.SIGTERM, 23))
    assert ended.code == 143, ended
    assert "resumed  after step 10\n" in ended.out
    # On two again, of which only the launcher is told to; they agree at every step here and not once a second.
    often = faults.replaced("app.training.run_callbacks.stopping.StopOnSignal.exchange_seconds", "0.0")
    told = on_rank(0, faults.signal_at("step", signal.SIGTERM, 31))
    ended = application.run(*words, *TWO, cwd=tmp_path, warm_rank=True, prelude=often + told)
    assert ended.code == 143, ended
    assert "resumed  after step 23\n" in ended.out
    assert "stopped by SIGTERM after step 31;" in ended.out
    assert "changed  trainer.devices: '1' -> '2'" in ended.out
    assert ended.err == ""
    assert runs.status(run) == {
        "state": "stopped",
        "step": 31,
        "exit_code": 143,
        "reason": "SIGTERM",
        "unprinted": None,
    }
    ended = application.run(*words, *ONE, cwd=tmp_path)
    assert ended.code == 0, ended
    # The same curve as on one rank, up to the order of sums.
    clean = application.fit(config, tmp_path / "clean")
    ours, theirs = (runs.curve(path) for path in (run, clean))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other_row in zip(ours, theirs, strict=True):
        for key in ("train/loss", "val/loss", "train/grad_norm"):
            if key in other_row:
                assert float(mine[key]) == pytest.approx(float(other_row[key]), rel=1e-5), (mine["step"], key)


def both(application: Application, folder: Path, prelude: str) -> tuple[Ended, list[int]]:
    """The end of a run on two ranks, and the processes that took part."""
    config = endless(folder)
    launcher = application.start(
        "fit", "--config", config, "--run_dir", "run", *TWO, cwd=folder, warm_rank=True, prelude=prelude
    )
    pids = [rank_one(launcher), *children(launcher.pid)]
    return launcher.wait(15), pids


@side_by_side
def test_a_stop_before_the_first_step(application: Application, tmp_path: Path) -> None:
    # The other rank is on its way into a collective that the launcher will not take part in.
    told = on_rank(0, faults.signal_at("stage", signal.SIGTERM))
    ended = application.run(
        "fit", "--config", endless(tmp_path), "--run_dir", "run", *TWO, cwd=tmp_path, warm_rank=True, prelude=told,
        timeout=15,
    )  # fmt: skip
    assert ended.code == 143, ended
    assert "Traceback" not in ended.err
    assert runs.status(tmp_path / "run")["state"] == "stopped"


def hanging(application: Application, folder: Path, prelude: str) -> tuple[Running, list[int]]:
    """A run on two ranks that waits in a collective for the other rank, and all its processes."""
    config = endless(folder)
    launcher = application.start(
        "fit", "--config", config, "--run_dir", "run", *TWO, "--data.init_args.num_workers", 1, cwd=folder, warm_rank=True,
        prelude=prelude,
    )  # fmt: skip
    other = rank_one(launcher)
    if "sleep" in prelude:
        launcher.wait_for("sleeps")
    else:
        os.kill(other, signal.SIGSTOP)
    started = [launcher.pid, *children(launcher.pid)]
    # The launcher does its part of the step, and then writes no row any more.
    rows = -1
    while (now := len(runs.curve(folder / "run"))) != rows:
        rows = now
        time.sleep(0.3)
    return launcher, started


def assert_stopped(launcher: Running, started: list[int], run: Path, code: int, reason: str) -> None:
    began = time.monotonic()
    ended = launcher.wait(20)
    assert time.monotonic() - began < 10
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert "was lost" not in ended.err
    said = runs.status(run)
    assert (said["state"], said["exit_code"]) == ("stopped", code)
    assert said["reason"].startswith(reason)
    assert not (run / "lock").exists()
    assert_gone(started)


@pytest.mark.stress
@pytest.mark.parametrize("is_group", [False, True])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hangs", ["stopped", "sleeps"])
def test_any_signal_while_a_rank_hangs(
    application: Application, tmp_path: Path, hangs: str, signum: signal.Signals, is_group: bool
) -> None:
    # A rank that sleeps gives itself up at the same moment as the launcher does, and must not be called lost.
    sleeps = on_rank(1, faults.at("step", "print('sleeps', flush=True); __import__('time').sleep(60)", 9))
    launcher, started = hanging(application, tmp_path, sleeps if hangs == "sleeps" else "")
    launcher.kill(signum, group=is_group)
    reason = "SIGTERM while the process waited in "
    if signum == signal.SIGINT:
        time.sleep(0.3)
        launcher.kill(signum, group=is_group)
        reason = "SIGINT twice"
    assert_stopped(launcher, started, tmp_path / "run", 143 if signum == signal.SIGTERM else 130, reason)


@side_by_side
def test_a_rank_that_waits_for_a_plan_can_be_told_to_stop(application: Application, tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    rank = application.start(
        "fit",
        "--config",
        endless(tmp_path),
        cwd=tmp_path,
        env=agent(store) | {"RANK": "1", "LOCAL_RANK": "1"},
    )
    rank.wait_until(lambda: connected_to(rank.pid, store.port), "ask the store")
    rank.kill(signal.SIGTERM)
    ended = rank.wait(10)
    assert ended.code == 143, ended
    assert ended.err == ""  # it looks every tenth of a second, and hears the signal itself


@side_by_side
def test_an_exception_on_one_rank(application: Application, tmp_path: Path) -> None:
    ended, pids = both(
        application, tmp_path, on_rank(1, faults.at("step", "raise KeyError('the first cause')", 9))
    )
    assert ended.code == 6, ended
    assert "KeyError: 'the first cause'" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: rank 1 was lost (exit code 1);")
    assert_gone(pids, 10)


@side_by_side
def test_an_exception_on_the_launcher(application: Application, tmp_path: Path) -> None:
    ended, pids = both(
        application, tmp_path, on_rank(0, faults.at("step", "raise KeyError('the first cause')", 9))
    )
    assert ended.code == 1, ended
    assert "KeyError: 'the first cause'" in ended.err
    assert "rank 1 was lost" not in ended.err
    assert_gone(pids, 10)
    assert runs.status(tmp_path / "run")["exit_code"] == 1


@side_by_side
def test_a_loss_that_is_not_finite_on_one_rank(application: Application, tmp_path: Path) -> None:
    spoils = "lambda module, inputs, output: output._replace(loss=output.loss * float('nan')) if self.training else output"
    fault = on_rank(1, faults.at("step", f"self.network.register_forward_hook({spoils})", 9))
    ended, pids = both(application, tmp_path, fault)
    assert ended.code == 3, ended
    assert "stopped being finite at step 9 (windows 32 to 35); no update was made from it" in ended.err
    # Both ranks replay the step; the launcher's own text is sound.
    assert "the step is finite when replayed on this rank; another rank names the culprit" in ended.err
    assert "first module with a non-finite output: the network (GPT)" in ended.err
    assert "Traceback" not in ended.err
    assert_gone(pids, 10)


GUARDS = ("--verify_state", "true", "--verify_every_n_steps", 2)
FLIPS = "self.network.blocks[0].mlp.proj.weight.data.view(-1).view(torch.int32)[3] ^= 1 << 20"


@side_by_side
def test_a_bit_that_flips_on_one_rank(application: Application, tmp_path: Path) -> None:
    """Before it, steps are made twice by both, to the same bits."""
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(
        tmp_path / "config.yaml",
        tiny.gpt(text, checkpoint_every_n_steps=5, trainer__accumulate_grad_batches=2),
    )
    words = ("fit", "--config", config, "--run_dir", tmp_path / "run", *GUARDS, *TWO)
    fault = on_rank(1, faults.at("step", FLIPS, 9))
    ended = application.run(*words, cwd=tmp_path, prelude=fault, warm_rank=True)
    assert ended.code == 4, ended
    assert ": rank 1 has found a difference; no update was made from it" in ended.err
    assert "before the update of step 9: weights: " in ended.err
    assert "by one bit, number 20 of a 32-bit word" in ended.err
    assert "last good checkpoint: resume-000005.ckpt" in ended.err
    assert "Traceback" not in ended.err
    assert runs.status(tmp_path / "run")["exit_code"] == 4
    assert runs.saved_steps(tmp_path / "run") == [5]


@pytest.mark.stress
@side_by_side
def test_guards_change_no_bit_of_a_run_on_two_ranks(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    for name, make, settings in (
        ("gpt", tiny.gpt, {"trainer__accumulate_grad_batches": 2}),
        ("tilelli", tiny.tilelli, {"model__init_args__dropout": 0.1}),
        ("equilibrium", equilibrium, {"trainer__max_steps": 20}),
    ):
        config = tiny.write(tmp_path / f"{name}.yaml", make(text, **settings))
        plain, guarded = (tmp_path / f"{name}-{kind}" for kind in ("plain", "guarded"))
        application.fit(config, plain, *TWO, warm_rank=True)
        application.fit(config, guarded, *TWO, *GUARDS, warm_rank=True)
        differences = runs.run_differences(guarded, plain)
        assert not [each for each in differences if "/configuration/verify_" not in each], differences


@pytest.mark.stress
@side_by_side
def test_a_gradient_that_errs_on_one_rank(application: Application, tmp_path: Path) -> None:
    """In a step that is made twice, before the ranks add up: both see that the sum is another one."""
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text))
    once = "gradient if seen else (seen.append(0) or gradient * 2)"
    errs = (
        f"seen = []; self.network.blocks[0].mlp.proj.weight.register_hook(lambda gradient, seen=seen: {once})"
    )
    words = ("fit", "--config", config, "--run_dir", tmp_path / "run", *GUARDS, *TWO)
    fault = on_rank(1, faults.at("step", errs, 8))
    ended = application.run(*words, cwd=tmp_path, prelude=fault, warm_rank=True)
    assert ended.code == 4, ended
    said = "before the update of step 8: made twice, these were not the same: gradient of blocks.0.mlp.proj.weight"
    assert ended.err.count(said) == 2, ended


@pytest.mark.stress
@side_by_side
def test_a_bank_without_a_token_on_one_rank(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(
        tmp_path / "config.yaml", tiny.tilelli(text, trainer__max_steps=10, trainer__val_check_interval=5)
    )
    starves = faults.replaced(
        "app.models.tilelli.block.TilelliBlock._route",
        "lambda block, *given: (lambda r: r._replace(bank_index=r.bank_index * 0) "
        "if __import__('os').environ.get('LOCAL_RANK') == '1' else r)(original(block, *given))",
    )
    application.fit(config, tmp_path / "run", *TWO, warm_rank=True, prelude=starves)
    assert runs.status(tmp_path / "run")["step"] == 10


def agent(store: TCPStore) -> dict[str, str]:
    """What torchrun's agent, which keeps this store, leaves in the environment of two ranks."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }


@side_by_side
def test_ranks_that_torchrun_starts(application: Application, reference: Reference, tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [
        application.start(
            "fit",
            "--config",
            reference.baseline_config,
            *TWO,
            cwd=tmp_path,
            env=agent(store) | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    ended = [rank.wait() for rank in ranks]
    assert [end.code for end in ended] == [0, 0], "\n".join(map(str, ended))
    assert "world size 2" in ended[0].out
    assert ended[1].out == ""
    (run,) = (tmp_path / "runs" / "baseline").iterdir()
    assert runs.status(run)["state"] == "finished"
