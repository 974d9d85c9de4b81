"""``kill -9`` at any moment: the resumed run ends bitwise as one that nobody disturbed."""

import os
import random
import re
import signal
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest

from tests.app.conftest import Reference
from tests.support import faults, runs, tiny
from tests.support.application import Application, Ended
from tests.support.side_by_side import SideBySide, selected

pytestmark = pytest.mark.process
side_by_side = SideBySide()


@side_by_side
def test_two_clean_runs_are_bitwise_the_same(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    runs.assert_same_run(application.fit(reference.config, tmp_path / "run"), reference.clean)


@side_by_side
def test_five_kills_where_they_hurt(application: Application, tmp_path: Path) -> None:
    text = tiny.write_text(tmp_path / "text.txt", n_words=150)
    config = tiny.write(
        tmp_path / "config.yaml",
        tiny.tilelli(
            text,
            trainer__accumulate_grad_batches=2,
            data__init_args__num_workers=2,
            data__init_args__val_fraction=0.3,
        ),
    )
    clean = application.start("fit", "--config", config, "--run_dir", tmp_path / "clean", cwd=tmp_path)
    run = tmp_path / "run"
    for place, step, resumed in (
        ("step", 4, None),  # before the first checkpoint
        ("step", 13, 0),
        ("step", 19, 10),  # at the edge of an epoch, see below
        ("validation", 20, 10),
        ("save", 30, 20),
    ):
        ended = application.run(
            "fit",
            "--config",
            config,
            "--run_dir",
            run,
            "--resume",
            "auto",
            cwd=tmp_path,
            prelude=faults.kill_at(place, step),
        )
        assert ended.code == -9, f"{place} {step}: {ended}"
        assert ("resumed  after step" in ended.out) == bool(resumed), ended
        assert not resumed or f"resumed  after step {resumed}\n" in ended.out, ended
    ended = application.go_on(run)
    assert ended.code == 0, ended
    assert clean.wait().code == 0, clean.output()
    runs.assert_same_run(run, tmp_path / "clean")
    assert runs.validated_steps(run) == [20, 40]
    n_windows = runs.launches(run)[0]["data"]["train_tokens"] // 16 - 1
    assert 18 * 4 < 2 * n_windows < 19 * 4  # the third epoch begins within step 19


@pytest.mark.parametrize(
    "n_kills", [pytest.param(int(os.environ.get("N_KILLS", "200")), marks=pytest.mark.stress)]
)
@pytest.mark.timeout(3600)
def test_kills_at_random_moments(
    application: Application, reference: Reference, tmp_path: Path, n_kills: int
) -> None:
    seed = time.time_ns()
    draw = random.Random(seed)
    made, number = 0, 0
    while made < n_kills:
        number += 1
        run = tmp_path / f"run-{number}"
        ended, moments = killed_until_done(application, reference.config, run, draw, n_kills - made)
        made += len(moments)
        what = f"seed {seed}, killed after {', '.join(f'{moment:.3f} s' for moment in moments)}"
        assert ended.code == 0, f"{what}\n{ended}"
        runs.assert_same_run(run, reference.clean, what)


def killed_until_done(
    application: Application, config: Path, run: Path, draw: random.Random, n_kills: int
) -> tuple[Ended, list[float]]:
    """Starts, kills and resumes a run until it ends by itself; no more than so many kills."""
    moments: list[float] = []
    while True:
        workers = draw.choice((0, 2))
        process = application.start(
            "fit", "--config", config, "--run_dir", run, "--resume", "auto", f"--data.init_args.num_workers={workers}",
            cwd=run.parent,
        )  # fmt: skip
        if len(moments) < n_kills:
            moment = draw.uniform(0.05, 1.2)
            time.sleep(moment)
            process.kill()
        ended = process.wait()
        if ended.code != -9:
            return ended, moments
        moments.append(moment)


@side_by_side
def test_the_number_of_workers_changes_nothing(
    application: Application, reference: Reference, tmp_path: Path
) -> None:
    # From none to two; the clean run had none.
    run = runs.copied(reference.broken, tmp_path / "run")
    started = application.start(
        "fit", "--run_dir", run, "--resume", "auto", "--data.init_args.num_workers", 2, cwd=tmp_path,
        prelude=faults.kill_at("validation", 40),
    )  # fmt: skip
    assert started.wait().code == -9, started.output()
    # From two to none.
    ended = application.go_on(run, "--data.init_args.num_workers", 0)
    assert ended.code == 0, ended
    assert "resumed  after step 40" in ended.out
    runs.assert_same_run(run, reference.clean)


@side_by_side
def test_a_lost_loader_worker_ends_the_run(application: Application, tmp_path: Path) -> None:
    settings = {
        "trainer__max_steps": 100_000,
        "data__init_args__num_workers": 1,
        "checkpoint_every_n_steps": 1,
    }
    config = tiny.write(
        tmp_path / "config.yaml", tiny.gpt(tiny.write_text(tmp_path / "text.txt"), **settings)
    )
    run = tmp_path / "run"
    process = application.start("fit", "--config", config, "--run_dir", run, cwd=tmp_path)
    process.wait_until(lambda: (run / "checkpoints").exists() and runs.saved_steps(run)[1:], "save twice")
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    ended = process.wait(15)
    assert ended.code == 1, ended
    # Told by the signal of its end, or by the queue that it no longer fills, whichever is first.
    assert re.search(
        rf"DataLoader worker \((pid {worker}\) is killed by signal|pid\(s\) {worker}\) exited)", ended.err
    ), ended
    assert runs.status(run)["state"] == "failed"
    assert runs.last_checkpoint(run)["archlab"]["step"] == runs.saved_steps(run)[-1]


MUTATIONS = {
    "dropout is not re-keyed": (faults.replaced("app.training.run_callbacks.step_keys.rekey", "lambda *position: None"), "state_dict"),
    "the data starts from the beginning": (
        faults.replaced("datamodules.loaders.EndlessBatchSampler.__iter__", """
lambda sampler: original(type("", (), dict(
    placement=sampler.placement._replace(window=0), batch_size=sampler.batch_size))())"""),
        "state_dict",
    ),
    "the optimizer's moments are lost": (
        faults.replaced(
            "app.training.run_callbacks.retention.RunState.on_load_checkpoint",
            "lambda self, trainer, module, checkpoint: (original(self, trainer, module, checkpoint), "
            "[state['state'].clear() for state in checkpoint['optimizer_states']])",
        ),
        "optimizer_states",
    ),
    "a watcher's count is forgotten": (
        faults.replaced("callbacks.TextSamples.load_state_dict", "lambda self, state: None"),
        "callbacks/TextSamples",
    ),
    "the step is off by one": (
        faults.replaced(
            "app.training.lightning_seams.position", "lambda trainer, step: original(trainer, step - 1)"
        ),
        "state_dict",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def mutated(
    application: Application,
    reference: Reference,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> dict[str, Future[list[str]]]:
    """Where the resumed run ends elsewhere than the clean one, for every mutation."""
    folder = tmp_path_factory.mktemp("mutations")

    def resume(number: int, prelude: str) -> list[str]:
        run = runs.copied(reference.broken, folder / str(number))
        ended = application.go_on(run, prelude=prelude)
        assert ended.code == 0, ended
        return runs.run_differences(run, reference.clean)

    preludes = {kind: MUTATIONS[kind][0] for kind in selected(request, "mutation")}
    return application.begin(
        {kind: partial(resume, number, prelude) for number, (kind, prelude) in enumerate(preludes.items())}
    )


#: in the quick form: one that moves weights, one that moves nothing but the optimizer
QUICK = ("dropout is not re-keyed", "the optimizer's moments are lost")


@pytest.mark.parametrize(
    "mutation", [pytest.param(name, marks=[pytest.mark.stress] * (name not in QUICK)) for name in MUTATIONS]
)
def test_the_comparison_sees_what_is_lost(mutated: dict[str, Future[list[str]]], mutation: str) -> None:
    place = MUTATIONS[mutation][1]
    assert any(place in difference for difference in mutated[mutation].result())


@side_by_side
def test_the_comparison_sees_a_forgotten_best_loss(application: Application, tmp_path: Path) -> None:
    # The rate rises until training falls apart: an early validation is the best one.
    config = tiny.write(
        tmp_path / "config.yaml",
        tiny.gpt(
            tiny.write_text(tmp_path / "text.txt"),
            model__init_args__learning_rate=2.0,
            model__init_args__warmup_steps=30,
            trainer__max_steps=30,
            trainer__val_check_interval=5,
        ),
    )
    broken = application.start(
        "fit",
        "--config",
        config,
        "--run_dir",
        tmp_path / "run",
        cwd=tmp_path,
        prelude=faults.kill_at("step", 24),
    )
    clean = application.fit(config, tmp_path / "clean")
    assert runs.saved_steps(clean, "best")[0] < 20
    assert broken.wait().code == -9, broken.output()
    forgetful = runs.copied(tmp_path / "run", tmp_path / "forgetful")
    forgets = faults.replaced(
        "app.training.run_callbacks.retention.BestCheckpoint.load_state_dict", "lambda self, state: None"
    )
    for ended in application.all(
        lambda: application.go_on(tmp_path / "run"), lambda: application.go_on(forgetful, prelude=forgets)
    ):
        assert ended.code == 0, ended
    runs.assert_same_run(tmp_path / "run", clean)
    assert any("best" in difference for difference in runs.run_differences(forgetful, clean))
