"""What a Lightning user reaches for, from YAML: callbacks that end, save, average, watch; profilers; loggers beside ours."""

import csv
import importlib.util
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from app.run import checkpoint
from tests.support import faults, runs, tiny
from tests.support.application import Application

pytestmark = pytest.mark.process


def written(folder: Path, *callbacks: Any, **changes: Any) -> Path:
    """A configuration of the baseline: 12 steps, validated every 4th, with these callbacks."""
    settings = {
        "checkpoint_every_n_steps": 4, "trainer__max_steps": 12, "trainer__val_check_interval": 4,
        "trainer__log_every_n_steps": 3, "trainer__callbacks": [*callbacks],
        "model__init_args__schedule": "constant",
    }  # fmt: skip
    text = folder / "text.txt"
    if not text.exists():
        tiny.write_text(text)
    return tiny.write(folder / "config.yaml", tiny.gpt(text, **settings | changes))


def named(kind: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": kind} | ({"init_args": arguments} if arguments else {})


# -- what ends a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EarlyStopping", "lightning.pytorch.callbacks.EarlyStopping"])
def test_early_stopping_finishes_a_run(application: Application, tmp_path: Path, name: str) -> None:
    stops = named(name, monitor="val/loss", stopping_threshold=100.0)
    run = application.fit(written(tmp_path, stops), tmp_path / "run")
    status = runs.status(run)
    assert (status["state"], status["step"], status["exit_code"]) == ("finished", 4, 0)
    assert status["reason"].startswith("EarlyStopping: Stopping threshold reached: val/loss = ")
    assert "\n" not in status["reason"]
    assert runs.saved_steps(run) == [4]
    assert runs.last_checkpoint(run)["archlab"]["validation_pending"] is False
    assert json.loads((run / "summary.json").read_text())["step"] == 4
    assert runs.validated_steps(run) == [4]
    before = runs.files(run)
    for words in ((), ("--model.init_args.learning_rate", "1e-4")):
        ended = application.go_on(run, *words)
        assert ended.code == 0, ended
        assert f"{run} is finished (EarlyStopping: " in ended.out, ended
        assert "nothing to do, unless with a greater trainer.max_steps" in ended.out
        assert runs.files(run) == before
    ended = application.go_on(run, "--trainer.max_steps", 16)
    assert ended.code == 0, ended
    assert "resumed  after step 4" in ended.out
    assert "ended    before step 16 by EarlyStopping: " in ended.out
    assert runs.status(run)["step"] == 8


def test_a_resumed_run_has_the_patience_of_its_configuration(
    application: Application, tmp_path: Path
) -> None:
    stops = named("EarlyStopping", monitor="val/loss", min_delta=100.0, patience=1)
    run = application.fit(written(tmp_path, stops, trainer__max_steps=24), tmp_path / "run")
    assert runs.status(run)["step"] == 8
    later = written(
        tmp_path,
        named("EarlyStopping", monitor="val/loss", min_delta=100.0, patience=3),
        trainer__max_steps=24,
    )
    ended = application.go_on(run, "--config", later)
    assert ended.code == 0, ended
    assert runs.status(run)["step"] == 16
    assert runs.status(run)["reason"].startswith("EarlyStopping: Monitored metric val/loss did not improve")


@pytest.mark.parametrize("how", ["max_time", "Timer"])
def test_a_run_ends_when_its_time_is_over(application: Application, tmp_path: Path, how: str) -> None:
    time = "00:00:00:01"
    changes = {
        "trainer__max_steps": 10**6,
        "trainer__val_check_interval": 10**5,
        "checkpoint_every_n_steps": 10**5,
    }
    if how == "max_time":
        config = written(tmp_path, trainer__max_time=time, trainer__accumulate_grad_batches=2, **changes)
    else:
        config = written(tmp_path, named("Timer", duration=time), **changes)
    run = application.fit(config, tmp_path / "run")
    status = runs.status(run)
    step = status["step"]
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert re.fullmatch(r"Timer: [1-9]\.\d s of training are over", status["reason"])
    assert 1 < step < 10**5
    assert runs.saved_steps(run) == [step]
    assert runs.validated_steps(run) == [step]
    assert json.loads((run / "summary.json").read_text())["step"] == step
    ended = application.go_on(run)
    assert "is finished (Timer: " in ended.out, ended
    assert runs.status(run)["step"] == step
    if how == "max_time":
        ended = application.go_on(run, "--trainer.max_time", "00:00:00:02")
        assert ended.code == 0, ended
        assert f"resumed  after step {step}" in ended.out
        assert re.fullmatch(r"Timer: [2-9]\.\d s of training are over", runs.status(run)["reason"])
        assert runs.status(run)["step"] > step


def test_the_configuration_that_is_printed_is_the_one_that_is_kept(
    application: Application, tmp_path: Path
) -> None:
    config = written(tmp_path, named("Timer", duration="00:01:00:00"), EMA, trainer__max_steps=1)
    printed = application.run("fit", "--config", config, "--print_config", cwd=tmp_path)
    assert printed.code == 0, printed
    assert "interval: step" in printed.out
    assert "use_buffers: false" in printed.out
    run = application.fit(config, tmp_path / "run")
    assert yaml.safe_load(printed.out) == yaml.safe_load((run / "config.yaml").read_text())


# -- checkpoints beside ours ----------------------------------------------------------------------------


def test_a_model_checkpoint_saves_beside_ours_and_can_be_gone_on_with(
    application: Application, tmp_path: Path
) -> None:
    saves = named("ModelCheckpoint", every_n_train_steps=3, save_top_k=-1)
    best = named("ModelCheckpoint", monitor="val/loss", filename="top-{step}", save_last=True, dirpath="best")
    config = written(tmp_path, saves, best)
    run = application.fit(config, tmp_path / "run")
    folder = run / "checkpoints" / "lightning"
    steps = ["3", "6", "9", "12"]
    names = [f"epoch=0-step={step}.ckpt" for step in steps]
    assert sorted(p.name for p in folder.glob("*.ckpt")) == sorted(names)
    assert sorted(p.name for p in folder.glob("*.ckpt.sha256")) == sorted(f"{name}.sha256" for name in names)
    assert [p.name for p in (folder / "best").glob("top*.ckpt")] == ["top-step=12.ckpt"]
    assert (folder / "best" / "last.ckpt").exists()
    assert runs.saved_steps(run) == [8, 12]  # ours are kept as ever
    # Step 12's was saved before the last validation, which is then made.
    owed = {
        step: checkpoint.read(folder / f"epoch=0-step={step}.ckpt")["archlab"]["validation_pending"]
        for step in steps
    }
    assert owed == {"3": False, "6": False, "9": False, "12": True}
    copy = runs.copied(run, tmp_path / "copy")
    ended = application.run(
        "fit", "--resume", copy / "checkpoints" / "lightning" / "epoch=0-step=6.ckpt", cwd=tmp_path
    )
    assert ended.code == 0, ended
    assert "resumed  after step 6" in ended.out
    ours = [runs.last_checkpoint(of) for of in (copy, run)]
    for content in ours:
        for key in [key for key in content["callbacks"] if key.startswith("ModelCheckpoint")]:
            del content["callbacks"][key]  # they hold the folder
    assert not runs.differences(*ours)
    assert not runs.differences(runs.curve(copy), runs.curve(run))
    assert (copy / "checkpoints" / "lightning" / "epoch=0-step=9-v1.ckpt").exists()


# -- averages -------------------------------------------------------------------------------------------

EMA = named("EMAWeightAveraging", decay=0.8)


EQUILIBRIUM = {
    "class_path": "app.training.EquilibriumModule",
    "init_args": {"d_model": 16, "n_layers": 2, "n_heads": 2, "warmup_steps": 5, "schedule": "constant"},
}


@pytest.mark.parametrize(
    "averaging", [EMA, pytest.param(named("WeightAveraging"), marks=pytest.mark.stress)], ids=["ema", "equal"]
)
def test_averages_go_on_exactly(application: Application, tmp_path: Path, averaging: Any) -> None:
    config = written(tmp_path, averaging, model=EQUILIBRIUM)
    longer = ("--trainer.max_steps", 24)
    clean, run = tmp_path / "clean", tmp_path / "run"
    application.all(
        lambda: application.fit(config, clean, *longer),
        lambda: application.fit(config, run),
    )
    half = runs.last_checkpoint(run)
    assert application.go_on(run, *longer).code == 0
    whole = [runs.last_checkpoint(of) for of in (clean, run)]
    assert not runs.differences(*whole)
    content = whole[0]
    assert content["archlab"]["weights"] == f"averaged by {averaging['class_path']}"
    average, trained = content["state_dict"], content["current_model_state"]
    differ = {name for name in average if not torch.equal(average[name], trained[name])}
    moving = {name for name in average if "running_" in name or "num_batches" in name}
    assert differ
    assert moving
    assert not differ & moving
    # What is trained has moved on from the half, with the optimizer's moments, and not from its average.
    assert any(not torch.equal(trained[name], half["current_model_state"][name]) for name in trained)
    rows = {row["step"]: row for row in runs.curve(run) if "val/loss" in row}
    best = runs.saved_steps(run, "best")[-1]
    evaluated = application.run("validate", run, "--trainer.devices", 2, cwd=tmp_path, warm_rank=True)
    told = f"note     the weights are averaged by {averaging['class_path']}"
    assert evaluated.out.count(told) == 1, evaluated
    generated = application.run("generate", run, "--tokens", 3, cwd=tmp_path)
    assert f".ckpt, weights averaged by {averaging['class_path']}: 3 tokens" in generated.err, generated
    printed = re.search(r"val/loss +(\S+)", evaluated.out)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(float(rows[str(best)]["val/loss"]), abs=1e-8)


@pytest.mark.stress
def test_an_average_is_right_whenever_a_run_is_stopped(application: Application, tmp_path: Path) -> None:
    config = written(tmp_path, EMA)
    clean = application.fit(config, tmp_path / "clean")
    for name, prelude in {
        "killed": faults.kill_at("step", 7),
        "validating": faults.at("validation", f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})", 8),
    }.items():
        run = tmp_path / name
        words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
        ended = application.run(*words, cwd=tmp_path, prelude=prelude)
        assert ended.code in (-9, 143), ended
        ended = application.run(*words, cwd=tmp_path)
        assert ended.code == 0, ended
        runs.assert_same_run(run, clean, name)


def test_before_its_first_update_there_is_no_average(application: Application, tmp_path: Path) -> None:
    late = named("EMAWeightAveraging", decay=0.8, update_starting_at_step=9)
    run = application.fit(written(tmp_path, late), tmp_path / "run")
    plain = application.fit(written(tmp_path), tmp_path / "plain")
    rows = [[row for row in runs.curve(of) if "val/loss" in row] for of in (run, plain)]
    assert [a == b for a, b in zip(*rows, strict=True)] == [True, True, False]
    contents = dict(checkpoint.list_checkpoints(run / "checkpoints"))
    before, after = checkpoint.read(contents[8]), checkpoint.read(contents[12])
    assert "weights" not in before["archlab"]
    assert "current_model_state" not in before
    assert after["archlab"]["weights"] == "averaged by EMAWeightAveraging"


def test_a_run_that_averages_no_more_trains_on_what_was_trained(
    application: Application, tmp_path: Path
) -> None:
    run = application.fit(written(tmp_path, EMA), tmp_path / "run")
    plain = application.fit(written(tmp_path), tmp_path / "plain")
    ended = application.go_on(run, "--trainer.max_steps", 16, "--trainer.callbacks", "null")
    assert "note     the average of the weights ends here" in ended.out, ended
    assert application.go_on(plain, "--trainer.max_steps", 16).code == 0
    assert not runs.differences(runs.weights(run), runs.weights(plain))


# -- two ranks ------------------------------------------------------------------------------------------


@pytest.mark.stress
def test_two_ranks_end_average_and_save_alike(application: Application, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    config = written(
        tmp_path,
        EMA,
        named("EarlyStopping", monitor="val/bpb", patience=1, min_delta=100.0),
        named("ModelCheckpoint", monitor="val/loss"),
        named("LearningRateMonitor"),
        trainer__max_steps=24,
        trainer__logger=named("CSVLogger", save_dir="", name="csv", version=""),
        model__init_args__dropout=0.0,
    )
    assert text.exists()
    one, two = (tmp_path / name for name in ("one", "two"))
    application.fit(config, one)
    application.fit(config, two, "--trainer.devices", 2, warm_rank=True)
    for run in (one, two):
        assert runs.status(run)["state"] == "finished"
        assert runs.status(run)["reason"].startswith(
            "EarlyStopping: Monitored metric val/bpb did not improve"
        )
        assert runs.status(run)["step"] == 8
        assert [p.name for p in (run / "checkpoints" / "lightning").glob("*.ckpt")] != []
        with (run / "loggers" / "csv" / "metrics.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["4", "8"]
    for key in ("state_dict", "current_model_state"):
        ours, theirs = (runs.last_checkpoint(run)[key] for run in (one, two))
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours), key


# -- what watches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch"])
def test_a_profilers_table_lies_in_the_run_folder(
    application: Application, tmp_path: Path, profiler: str
) -> None:
    config = written(tmp_path, trainer__profiler=profiler, trainer__max_steps=4)
    run = application.fit(config, tmp_path / "run")
    assert "run_training_batch" in (run / "fit-profile.txt").read_text() or profiler == "pytorch"
    assert len((run / "fit-profile.txt").read_text()) > 200


def test_rates_stand_beside_ours(application: Application, tmp_path: Path) -> None:
    run = application.fit(
        written(tmp_path, named("LearningRateMonitor", logging_interval="step")), tmp_path / "run"
    )
    plain = application.fit(written(tmp_path), tmp_path / "plain")
    assert [row["lr-AdamW/pg1"] for row in runs.curve(run) if "train/lr" in row] == [
        row["train/lr"] for row in runs.curve(plain) if "train/lr" in row
    ]
    ours = [{k: v for k, v in row.items() if not k.startswith("lr-")} for row in runs.curve(run)]
    assert ours == runs.curve(plain)


def test_a_devices_numbers(application: Application, tmp_path: Path) -> None:
    config = written(tmp_path, named("DeviceStatsMonitor"))
    if importlib.util.find_spec("psutil") is None:
        ended = application.run("fit", "--config", config, "--run_dir", tmp_path / "run", cwd=tmp_path)
        assert ended.code == 2, ended
        assert "DeviceStatsMonitor needs the package psutil; pip install psutil" in ended.err
        return
    run = application.fit(config, tmp_path / "run")
    rows = runs.curve(run)
    assert [row["step"] for row in rows] == ["1", "3", "4", "4", "6", "8", "8", "9", "12", "12"]
    assert all(
        "DeviceStatsMonitor.on_train_batch_end/cpu_percent" in row for row in rows if "train/loss" in row
    )


# -- loggers beside ours --------------------------------------------------------------------------------


def test_a_csv_logger_writes_beside_ours_and_touches_nothing_of_it(
    application: Application, tmp_path: Path
) -> None:
    beside = named("CSVLogger", save_dir="csv", name="", version="only")
    config = written(tmp_path, trainer__logger=beside)
    plain = application.fit(written(tmp_path), tmp_path / "plain")
    config = written(tmp_path, trainer__logger=beside)
    run = tmp_path / "run"
    words = ("fit", "--config", config, "--run_dir", run, "--resume", "auto")
    assert application.run(*words, cwd=tmp_path, prelude=faults.kill_at("step", 11)).code == -9
    assert application.run(*words, cwd=tmp_path).code == 0
    assert runs.curve(run) == runs.curve(plain)
    theirs = run / "loggers" / "csv" / "only"
    with (theirs / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows if row["train/loss"]} == {"9", "12"}
    assert "model.init_args.d_model: 16" in (theirs / "hparams.yaml").read_text()


def test_no_logger_writes_over_ours(application: Application, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for arguments in (
        {"save_dir": str(run), "name": "", "version": ""},
        {"save_dir": "..", "name": "", "version": ""},
    ):
        config = written(tmp_path, trainer__logger=named("CSVLogger", **arguments))
        ended = application.run("fit", "--config", config, "--run_dir", run, cwd=tmp_path)
        assert ended.code == 2, ended
        assert "it would write over the run's own files; name another save_dir" in ended.err


@pytest.mark.parametrize(("kind", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_loggers_of_other_packages(application: Application, tmp_path: Path, kind: str, package: str) -> None:
    arguments: dict[str, Any] = (
        {"project": "tiny", "offline": True}
        if package == "wandb"
        else {"experiment_name": "tiny", "tags": {"of": "a test"}}
    )
    config = written(tmp_path, trainer__logger=[named(kind, **arguments)])
    run = tmp_path / "run"
    ended = application.run(
        "fit", "--config", config, "--run_dir", run, cwd=tmp_path, env={"WANDB_SILENT": "true"}
    )
    if importlib.util.find_spec(package) is None:
        assert ended.code == 2, ended
        assert ended.err == (
            f"error: trainer.logger.0.class_path ({config}, line {line_of(config, kind)}): {kind} needs the package "
            f"{package}; pip install 'archlab[{package}]'\n"
        )
        return
    assert ended.code == 0, ended
    assert "not_logged" not in ended.out
    assert any((run / "loggers").rglob("*")), ended
    assert [row["step"] for row in runs.curve(run) if "train/loss" in row] == ["1", "3", "6", "9", "12"]
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", "run", "text.txt", "data"}


def line_of(file: Path, word: str) -> int:
    return next(n for n, line in enumerate(file.read_text().splitlines(), start=1) if word in line)


# -- refusals -------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a finder of rates": ({"callbacks": [named("LearningRateFinder")]}, "trainer.callbacks.0.class_path", "is not used here; it trains and rewinds"),
    "SWA": (
        {"callbacks": [named("lightning.pytorch.callbacks.StochasticWeightAveraging", swa_lrs=0.1)]},
        "trainer.callbacks.0.class_path", "use WeightAveraging or EMAWeightAveraging",
    ),
    "a finder of batch sizes": ({"callbacks": [named("BatchSizeFinder")]}, "trainer.callbacks.0.class_path", "see app fit --dry_run"),
    "a table": ({"callbacks": [named("ModelSummary")]}, "trainer.callbacks.0.class_path", "printed at start"),
    "a bar": ({"callbacks": [named("RichProgressBar")]}, "trainer.callbacks.0.class_path", "enable_progress_bar"),
    "accumulation by epochs": (
        {"callbacks": [named("GradientAccumulationScheduler", scheduling={0: 2})]},
        "trainer.callbacks.0.class_path", "set trainer.accumulate_grad_batches",
    ),
    "pruning": ({"callbacks": [named("ModelPruning", pruning_fn="l1_unstructured")]}, "trainer.callbacks.0.class_path", "prune an export"),
    "a time": (
        {"callbacks": [named("Timer", duration="tomorrow")]},
        "trainer.callbacks.0.init_args.duration", "Expected a string in the format DD:HH:MM:SS",
    ),
    "a longest time": ({"max_time": "1h"}, "trainer.max_time", "Expected a string in the format DD:HH:MM:SS"),
    "a mode": (
        {"callbacks": [named("EarlyStopping", monitor="val/loss", mode="best")]},
        "trainer.callbacks.0.init_args.mode", "`mode` can be min, max, got best",
    ),
    "a decay": ({"callbacks": [named("EMAWeightAveraging", decay=2.0)]}, "trainer.callbacks.0.init_args.decay", "2.0"),
    "buffers": (
        {"callbacks": [named("WeightAveraging", use_buffers=True)]},
        "trainer.callbacks.0.init_args.use_buffers", "running thresholds and counts are statistics",
    ),
    "epochs": (
        {"callbacks": [named("ModelCheckpoint", every_n_epochs=2)]},
        "trainer.callbacks.0.init_args.every_n_epochs", "there are no epochs; use every_n_train_steps",
    ),
    "a key of other frameworks": (
        {"callbacks": [named("EarlyStopping", monitor="val_loss")]},
        "trainer.callbacks.0.init_args.monitor", "nothing is logged as 'val_loss'; did you mean 'val/loss'?",
    ),
    "no validation": (
        {"callbacks": [named("EarlyStopping", monitor="val/loss")], "limit_val_batches": 0},
        "trainer.callbacks.0.init_args.monitor", "'val/loss' is never there",
    ),
    "any logger": ({"logger": True}, "trainer.logger", "name the class of another one"),
    "our own logger": ({"logger": named("TensorBoardLogger", save_dir="x")}, "trainer.logger.class_path", "has TensorBoard's events already"),
    "a profiler": ({"profiler": "quick"}, "trainer.profiler", "'quick' is not one of simple, advanced, pytorch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_is_one_line_with_its_place(application: Application, tmp_path: Path, kind: str) -> None:
    changes, key, said = REFUSALS[kind]
    config = written(tmp_path, **{f"trainer__{name}": value for name, value in changes.items()})
    ended = application.run("fit", "--config", config, cwd=tmp_path)
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1, ended
    assert re.match(rf"error: {re.escape(key)} \({re.escape(str(config))}, line \d+\): ", ended.err), ended
    assert said in ended.err
    assert not (tmp_path / "runs").exists()
