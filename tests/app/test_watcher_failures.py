"""Drawing and watching end no training, on one process and on two."""

import json
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny, watched
from tests.support.application import Application, Ended
from tests.support.side_by_side import SideBySide

pytestmark = pytest.mark.process
side_by_side = SideBySide()


def told(ended: Ended) -> list[str]:
    """What was said of the health of the watchers, without what to try."""
    conditions = ("watcher_failed", "figure_left_out", "not_logged")
    lines = [line.removeprefix("health   ") for line in ended.out.splitlines() if line.startswith("health ")]
    return [line.partition("; it is")[0] for line in lines if line.split()[2].strip(",") in conditions]


def configured(folder: Path, **changes: object) -> Path:
    """Equilibrium routing in six layers, whose thresholds begin equal, with all of its watchers."""
    text = tiny.write_text(folder / "text.txt", n_words=1500)
    changes = {"model__init_args__n_layers": 6, "trainer__limit_val_batches": 1.0, **changes}
    return tiny.write(folder / "config.yaml", watched.configuration("equilibrium", text, **changes))


@pytest.mark.stress
@side_by_side
def test_one_logged_step_is_drawn(application: Application, tmp_path: Path) -> None:
    config = configured(tmp_path, trainer__max_steps=1, trainer__val_check_interval=1)
    config = config.rename(
        tmp_path / "$x_{$.yaml"
    )  # which is the title of the learning curve, and no formula
    ended = application.run(
        "fit", "--config", config, "--run_dir", tmp_path / "run", cwd=tmp_path, whole_ending=True
    )
    assert ended.code == 0, ended
    assert not told(ended), ended
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {"depth-threshold.png", "depth-route_share.png", "learning_curve.png"} <= figures


FAULTS = "".join(
    (
        faults.replaced("callbacks.RouteFractions.report", "lambda self, measures: 1 / 0"),
        faults.replaced("app.analysis.figures._draw_lines", "lambda *args: [].pop()"),
        faults.replaced(
            "app.training.logging.loggers.TensorBoardRunLogger.log_text", "lambda *args: {}['text']"
        ),
        faults.replaced("datamodules.CharDataModule.known_words", "lambda self, texts: 1 / 0"),
        faults.replaced("datamodules.CharDataModule.count_baseline", "lambda *args, **kwargs: 1 / 0"),
        faults.replaced("app.analysis.curves.draw_learning_curve", "lambda *args, **kwargs: 1 / 0"),
    )
)


@pytest.mark.stress
@side_by_side
def test_whatever_fails_around_a_training_it_is_finished(application: Application, tmp_path: Path) -> None:
    config, run = configured(tmp_path), tmp_path / "run"
    ended = application.run(
        "fit", "--config", config, "--run_dir", run, cwd=tmp_path, prelude=FAULTS, whole_ending=True
    )
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err
    assert sorted(told(ended)) == [
        "step 1: watcher_failed, RouteFractions: ZeroDivisionError: division by zero",
        "step 4: figure_left_out, DepthTimeFigures, depth/threshold: IndexError: pop from empty list",
        "step 4: not_logged, TensorBoardRunLogger.log_text: KeyError: 'text'",
    ], ended
    assert runs.status(run)["state"] == "finished"
    lines = [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]
    assert [(line["step"], line["place"], line["what"]) for line in lines if line["condition"] == "watcher_failed"] == [
        (1, "RouteFractions", "ZeroDivisionError: division by zero")
    ]  # fmt: skip
    keys = {key for row in runs.curve(run) for key in row}
    assert any(key.startswith("thresholds/") for key in keys)
    assert not any(key.startswith("routes/") for key in keys)
    assert runs.samples(run), "the other logger takes the text"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val/loss"] > 0
    assert [
        summary[key] for key in ("baseline/count_loss", "samples/known_word_share", "samples/n_words")
    ] == [None] * 3
    notes = [line for line in ended.out.splitlines() if line.startswith("note ") and "left out" in line]
    assert [line.split(" is left out")[0] for line in notes] == [
        "note     the share of known words", "note     what counting reaches", "note     learning_curve.png",
    ]  # fmt: skip


#: what each rank does wrong: before its numbers are exchanged, after that, and both ranks alike
ON_ONE_RANK = """
import os
import callbacks
rank = int(os.environ.get("LOCAL_RANK", 0))
def fail_at(step, owner, name, ranks):
    original = getattr(owner, name)
    def faulty(self, *args):
        self.count = getattr(self, "count", 0) + 1  # steps 1, 2, 4, 6, 8 are logged
        if self.count == step and rank in ranks:
            raise RuntimeError(f"{name} of rank {rank}")
        return original(self, *args)
    setattr(owner, name, faulty)
fail_at(3, callbacks.RouteFractions, "select", (1,))
fail_at(2, callbacks.RunningThresholds, "report", (1,))
fail_at(2, callbacks.EnergyBudget, "report", (0, 1))
fail_at(3, callbacks.RunHealth, "on_train_batch_end", (0,))
"""


@side_by_side
def test_a_watcher_that_fails_on_one_rank_leaves_no_other_waiting(
    application: Application, tmp_path: Path
) -> None:
    config, run = configured(tmp_path), tmp_path / "run"
    ended = application.run(
        "fit", "--config", config, "--run_dir", run, "--trainer.devices", 2, cwd=tmp_path, prelude=ON_ONE_RANK,
        warm_rank=True, timeout=60,
    )  # fmt: skip
    assert ended.code == 0, ended
    assert sorted(told(ended)) == [
        "step 2: watcher_failed, EnergyBudget: RuntimeError: report of rank 0 on rank 0, step 2",
        "step 3: watcher_failed, RunHealth: RuntimeError: on_train_batch_end of rank 0 on rank 0, step 3",
        "step 4: watcher_failed, RouteFractions: RuntimeError: select of rank 1 on rank 1, step 4",
        "step 4: watcher_failed, RunningThresholds: RuntimeError: report of rank 1 on rank 1, step 2",
    ], ended
    for group in ("thresholds", "routes"):
        logged = [line["step"] for line in runs.details(run) if line["key"].startswith(f"{group}/")]
        assert set(logged) == {1, 2}, group
    assert {path.name for path in (run / "figures").iterdir()} >= {"depth-threshold.png"}, "the others go on"


@pytest.mark.stress
@side_by_side
def test_a_state_that_a_watcher_cannot_read_is_handed_on(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    run = runs.copied(reference.broken, tmp_path / "run")
    before = runs.last_checkpoint(run)["callbacks"]["RunHealth"]
    fault = faults.replaced("callbacks.RunHealth.load_state_dict", "lambda self, state: state['missing']")
    ended = application.go_on(run, prelude=fault)
    assert ended.code == 0, ended
    assert told(ended) == ["step 30: watcher_failed, RunHealth: KeyError: 'missing'"], ended
    assert runs.last_checkpoint(run)["callbacks"]["RunHealth"] == before
