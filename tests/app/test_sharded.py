"""Runs on several ranks that keep weights, gradients and moments in shards."""

import signal
from pathlib import Path

import pytest
import torch

from tests.support import faults, runs, tiny
from tests.support.application import Application
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def in_shards(n: int) -> tuple[object, ...]:
    return ("--trainer.strategy", "fsdp", "--trainer.devices", n)


@side_by_side
def test_a_killed_run_goes_on_to_the_bit_and_one_process_reads_its_file(
    application: Application, tmp_path: Path
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.tilelli(text, trainer__max_steps=24))
    application.fit(config, tmp_path / "clean", *in_shards(2), warm_rank=True)
    words = ("fit", "--config", config, "--run_dir", "run", "--resume", "auto", *in_shards(2))
    ended = application.run(*words, cwd=tmp_path, warm_rank=True, prelude=faults.kill_at("step", 14))
    assert ended.code != 0
    ended = application.run(*words, cwd=tmp_path, warm_rank=True)
    assert ended.code == 0, ended
    assert "resumed  after step 10\n" in ended.out
    runs.assert_same_run(tmp_path / "run", tmp_path / "clean")
    # No watcher was switched off: between two steps it finds whole weights.
    assert not [finding for finding in runs.health(tmp_path / "run") if "failed" in str(finding)]
    written = application.run("generate", "run", "--tokens", 5, cwd=tmp_path)
    assert written.code == 0, written


@pytest.mark.stress
@pytest.mark.parametrize("how", [(), ("--trainer.strategy", "fsdp")], ids=["ddp", "fsdp"])
def test_the_number_of_ranks_changes_within_an_epoch(
    application: Application, tmp_path: Path, how: tuple[str, ...]
) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"model__init_args__dropout": 0.0, "trainer__limit_val_batches": 1.0}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    words = ("fit", "--config", config, "--run_dir", "run", "--resume", "auto", *how)
    # Stops are agreed at every step here and not once a second: these steps are over sooner.
    often = faults.replaced("app.training.run_callbacks.stopping.StopOnSignal.exchange_seconds", "0.0")
    for n, step in ((1, 7), (2, 15), (4, 23), (2, 31), (1, None)):
        fault = "" if step is None else often + faults.signal_at("step", signal.SIGTERM, step, group=True)
        ended = application.run(
            *words, "--trainer.devices", n, cwd=tmp_path, warm_rank=n == 2, prelude=fault, timeout=120
        )
        assert ended.code == (0 if step is None else 143), ended
    application.fit(config, tmp_path / "clean")
    ours, theirs = (runs.curve(tmp_path / name) for name in ("run", "clean"))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for key in ("train/loss", "val/loss", "train/grad_norm"):
            if key in other:
                assert float(mine[key]) == pytest.approx(float(other[key]), rel=1e-5), (mine["step"], key)


@pytest.mark.stress
def test_a_loss_that_is_not_finite_on_one_rank(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text))
    spoils = "lambda module, inputs, output: output._replace(loss=output.loss * float('nan')) if self.training else output"
    fault = faults.at("step", f"self.network.register_forward_hook({spoils})", 9)
    fault = fault.replace("if calls in", "if int(os.environ.get('LOCAL_RANK', 0)) == 1 and calls in")
    ended = application.run(
        "fit", "--config", config, "--run_dir", "run", *in_shards(2), cwd=tmp_path, warm_rank=True, prelude=fault, timeout=90
    )  # fmt: skip
    assert ended.code == 3, ended
    assert "stopped being finite at step 9" in ended.err
    assert "first module with a non-finite output: the network" in ended.err


@pytest.mark.stress
def test_an_average_cannot_be_in_shards(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    average = {"trainer__callbacks": [{"class_path": "EMAWeightAveraging"}]}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **average))
    ended = application.run("fit", "--config", config, *in_shards(2), cwd=tmp_path, warm_rank=True)
    assert ended.code == 2, ended
    (line,) = ended.err.splitlines()
    assert "an average is a copy of the whole network" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.stress
def test_muon_sees_whole_matrices(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt")
    settings = {"model__init_args__optimizer": "muon", "model__init_args__dropout": 0.0}
    config = tiny.write(tmp_path / "config.yaml", tiny.gpt(text, **settings))
    application.fit(config, tmp_path / "shards", *in_shards(2), warm_rank=True)
    application.fit(config, tmp_path / "whole", "--trainer.devices", 2, warm_rank=True)
    ours, theirs = runs.weights(tmp_path / "shards"), runs.weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)
