"""Numbers that other launches have left in the environment silence nothing, and no run loses its metrics to them."""

import os
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.app.conftest import Reference
from tests.support import faults, runs
from tests.support.application import Application, Ended, real

pytestmark = pytest.mark.process

LEFT_OVER = {
    "rank": {"RANK": "1"},
    "local rank": {"LOCAL_RANK": "2"},
    "slurm": {"SLURM_PROCID": "3"},
    "nonsense": {"RANK": "abc", "LOCAL_RANK": "", "WORLD_SIZE": "-1", "SLURM_PROCID": "x"},
    "node": {"NODE_RANK": "1", "GROUP_RANK": "1"},
    "torchrun": {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"},
    "channel": {"ARCHLAB_CHANNEL": "3:1", "ARCHLAB_LAUNCHER": "1", "LOCAL_RANK": "1"},
}
#: the tests' processes have imported the framework before; it reads these variables when it is
AS_IMPORTED = faults.replaced(
    "app.commands.fit._train",
    "lambda *args: (setattr(__import__('lightning.fabric', fromlist=['x']).utilities.rank_zero.rank_zero_only, 'rank', "
    "__import__('lightning.fabric', fromlist=['x']).utilities.rank_zero._get_rank() or 0), original(*args))[1]",
)


def note(variables: dict[str, str]) -> str:
    names = [name for name in ORDER if name in variables]
    return f"note: {', '.join(names)}: left over from another launch and ignored; unset {'it' if len(names) == 1 else 'them'}\n"


ORDER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "TORCHELASTIC_RUN_ID",
    "ARCHLAB_CHANNEL", "ARCHLAB_LAUNCHER", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def trains(application: Application, reference: Reference, run: Path, variables: dict[str, str]) -> None:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run)
    ended = application.run(*words, cwd=run.parent, env=variables, prelude=AS_IMPORTED)
    assert (ended.code, ended.err) == (0, note(variables)), ended
    assert "finished step 20" in ended.out
    runs.assert_same_run(run, reference.baseline)


def starts_its_own_ranks(application: Application, reference: Reference, run: Path) -> None:
    # None of these processes would ever come.
    variables = {"LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"}
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--trainer.devices", 2)
    ended = application.run(*words, cwd=run.parent, env=variables, warm_rank=True, timeout=60)
    assert (ended.code, ended.err) == (0, note(variables)), ended
    assert "world size 2" in ended.out


def torchrun(
    application: Application, folder: Path, *words: object, preludes: tuple[str, str]
) -> list[Ended]:
    """The ends of two ranks; the second one's is waited for, and then the first is killed if it still runs."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    agent = {
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    ranks = [
        application.start(
            *words, cwd=folder, env=agent | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, prelude=prelude
        )
        for rank, prelude in enumerate(preludes)
    ]
    ended = [ranks[1].wait(60)]
    if preludes[1]:
        ranks[0].kill(group=True)
    return [ranks[0].wait(60), *ended]


def a_mistake_of_all_is_told_once(application: Application, reference: Reference, run: Path) -> None:
    base = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--trainer.devices", 2)
    for words, said in (
        ((*base, "--model.init_args.d_model", 17), "model.init_args"),  # known once the model is built
        (("fit", "--config", "nowhere"), "--config nowhere"),  # before rank zero has a plan
    ):
        first, second = torchrun(application, run.parent, *words, preludes=("", ""))
        assert (first.code, second.code) == (2, 2), f"{first}\n{second}"
        assert said in first.err
        assert first.err.count("error: ") == 1, first
        assert second.err == "", second


def a_mistake_of_one_is_told(application: Application, reference: Reference, run: Path) -> None:
    words = ("fit", "--config", reference.baseline_config, "--run_dir", run, "--trainer.devices", 2)
    fails = faults.replaced(
        "app.training.command_line.RunCLI.build_data",
        "lambda *args: (_ for _ in ()).throw(__import__('app.run.errors').run.errors.DataError('not on this machine'))",
    )
    impatient = faults.replaced("app.training.rendezvous.is_told_by_rank_zero.__defaults__", "(0.3,)")
    _, second = torchrun(application, run.parent, *words, preludes=("", fails + impatient))
    assert (second.code, second.err) == (2, "error: not on this machine\n"), second


JOBS: dict[str, Callable[[Application, Reference, Path], None]] = {
    **{name: partial(trains, variables=LEFT_OVER[name]) for name in ("rank", "nonsense", "channel")},
    "own ranks": starts_its_own_ranks,
    "mistake of all": a_mistake_of_all_is_told_once,
    "mistake of one": a_mistake_of_one_is_told,
}


@pytest.fixture(scope="module")
def jobs(
    application: Application, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[None]]:
    """All of them, side by side; each job asserts what must hold."""
    folder = tmp_path_factory.mktemp("ranks")
    return application.begin(
        {
            name: partial(job, application, reference, folder / name.replace(" ", "-"))
            for name, job in JOBS.items()
        }
    )


@pytest.mark.parametrize("name", JOBS)
def test_numbers_left_over(jobs: dict[str, Future[None]], name: str) -> None:
    jobs[name].result()


@pytest.mark.parametrize("name", LEFT_OVER)
def test_a_mistake_is_told(application: Application, tmp_path: Path, name: str) -> None:
    ended = application.run("fit", "--config", "nowhere", cwd=tmp_path, env=LEFT_OVER[name])
    assert ended.code == 2, ended
    assert ended.err.startswith(f"{note(LEFT_OVER[name])}error: --config nowhere: ")


def test_nonsense_in_a_launch_is_one_message(application: Application, tmp_path: Path) -> None:
    variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": "abc", "WORLD_SIZE": "2"}
    ended = application.run("fit", "--config", "nowhere", cwd=tmp_path, env=variables)
    assert ended.code == 2, ended
    assert ended.err.startswith("error: RANK: 'abc' is no whole number; torchrun sets it")
    assert ended.err.count("\n") == 1


@pytest.mark.stress
@pytest.mark.parametrize("name", [*LEFT_OVER, "mpi"])
def test_numbers_left_over_before_the_framework_is_imported(
    reference: Reference, tmp_path: Path, name: str
) -> None:
    variables = LEFT_OVER.get(name) or {"OMPI_COMM_WORLD_RANK": "1", "PMI_RANK": "1", "PMIX_RANK": "1"}
    words = ("fit", "--config", reference.baseline_config, "--run_dir", tmp_path / "run")
    process = real(words, tmp_path, env=variables)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, note(variables) if name != "mpi" else ""), out
    runs.assert_same_run(tmp_path / "run", reference.baseline)
    assert sorted(os.listdir(tmp_path)) == ["data", "run"]
