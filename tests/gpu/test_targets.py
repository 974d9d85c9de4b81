"""What a run costs on one GPU, against its targets: told and not asserted, for it is a figure of a machine and its load.

Times are those of whole commands, of the intervals between logged steps (``Throughput``), or of ``app bench``.
What may be counted is asserted: nothing waits for the device between two logged steps, and nothing is captured twice.
"""

import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from app.bench.models import ANY_ORDER
from app.study.plan import as_text, find_study, read_study
from tests.gpu.runs_there import (
    Figure,
    against,
    bench,
    column,
    fit,
    median_ratio,
    needs,
    printed,
    summary,
    timed,
    words,
)
from tests.support.application import Application

pytestmark = needs(1)
SPEEDRUN = read_study(find_study("speedrun"))
MAIN_JOB = ("fit", "--config", "tilelli_banks4", "--config", "hardware/gpu")
WARM_UP_ROWS = 2  # intervals with the eager steps and the capture in them


_CHAR = {key: value for key, value in SPEEDRUN.row("base").values.items() if not key.startswith("trainer.")}
#: the configuration of a network, and the words that change it
NETWORKS: dict[str, list[Any]] = {
    "tilelli_banks4": ["tilelli_banks4"],
    # 6 layers of 384, T 256, B 64, dropout 0.2, on the text that needs no download
    "char GPT": [
        "gpt_char", *(word for key, value in _CHAR.items() for word in (f"--{key}", as_text(value))), "--data.source",
        "stdlib", "--trainer.max_steps", 1000, "--checkpoint_every_n_steps", 200,
    ],
    "GPT 8x512": [
        "gpt_char", "--model.d_model", 512, "--model.n_layers", 8, "--model.n_heads", 8, "--data.block_size", 1024,
        "--data.batch_size", 16,
    ],
}  # fmt: skip


@pytest.mark.timing
def test_the_main_job(tmp_path: Path, figure: Figure) -> None:
    for state in ("cold", "warm"):
        run = tmp_path / state
        ended = timed(
            [*MAIN_JOB, "--run_dir", run], tmp_path, {"TRITON_CACHE_DIR": str(tmp_path / "kernels")}
        )
        seconds, step = (
            summary(run)["launch/seconds"],
            statistics.median(column(run, "speed/step_ms")[WARM_UP_ROWS:]),
        )
        figure(
            f"main job, {state} caches: first step after {ended.first_step:.1f} s ({against(ended.first_step, 10)}); "
            f"1,000 steps {seconds:.1f} s ({against(seconds, 10)}), {step:.2f} ms each ({against(step, 8)}); "
            f"whole command {ended.whole:.1f} s ({against(ended.whole, 25)}, goal 15)"
        )
    print(ended.path)


@pytest.mark.timing
@pytest.mark.parametrize("mode", ["none", "blocks", "full"])
def test_the_char_gpt_in_the_application(
    application: Application, tmp_path: Path, figure: Figure, mode: str
) -> None:
    file, run = printed(application, tmp_path / "char.yaml", *NETWORKS["char GPT"]), tmp_path / "run"
    given = ("fit", "--config", file, "--config", "hardware/gpu", "--compile", mode)
    tells = "import torch._logging; torch._logging.set_logs(recompiles=True)\n" if mode != "none" else ""
    ended = fit(application, run, *given, prelude=tells, timeout=600)
    speeds, found = column(run, "speed/tokens_per_second")[WARM_UP_ROWS:], summary(run)
    speed = statistics.median(speeds)
    figure(
        f"char GPT in app fit, --compile {mode}: {speed:,.0f} tokens/s, median of {len(speeds)} intervals "
        f"({against(speed, 2.2e6, is_least=True)}, goal 3e+06); {found['launch/tokens_per_second']:,.0f} over all of it, "
        f"{found['launch/captures']} captures, {ended.err.count('Recompiling')} recompilations"
    )
    assert found["launch/captures"] == 1


@pytest.mark.timing
def test_the_char_gpt_by_every_path(application: Application, tmp_path: Path, figure: Figure) -> None:
    file = printed(application, tmp_path / "char.yaml", *NETWORKS["char GPT"])
    paths = ("eager", "graphed", "compiled_blocks", "compiled")
    for row in bench(application, tmp_path, "--model", file, "--paths", *paths)["models"]:
        figure(
            f"char GPT, bare, {row['path']}: {1e3 * row['median_seconds']:.2f} ms, "
            f"{row['tokens'] / row['median_seconds']:,.0f} tokens/s"
        )


@pytest.mark.timing
@pytest.mark.parametrize("name", ["tilelli_banks4", "char GPT"])
def test_the_tax(application: Application, tmp_path: Path, figure: Figure, name: str) -> None:
    file = printed(application, tmp_path / "network.yaml", *NETWORKS[name])
    for row in bench(application, tmp_path, "--model", file, "--tax", "--paths", "graphed")["tax"]:
        share = row["tax_seconds"] / row["bare"]["median_seconds"]
        figure(
            f"{name}, {row['loop']}: {1e3 * row['tax_seconds']:+.3f} ms on "
            f"{1e3 * row['bare']['median_seconds']:.2f} ms, {share:+.1%} ({against(share, 0.02)})"
        )


@pytest.mark.timing
@pytest.mark.parametrize("name", NETWORKS)
def test_what_equal_bits_cost(application: Application, tmp_path: Path, figure: Figure, name: str) -> None:
    file = printed(application, tmp_path / "network.yaml", *NETWORKS[name])
    given = ("--model", file, "--paths", "graphed", "--fast_nondeterministic")
    rows = {row["path"]: row for row in bench(application, tmp_path, *given)["models"]}
    exact, free = (rows[path]["windows_seconds"] for path in ("graphed", "graphed" + ANY_ORDER))
    cost = median_ratio(exact, free) - 1
    target = 0.1 if rows["graphed"]["sizes"]["T"] >= 1024 else 0.02  # there attention may cost more
    figure(
        f"{name}: {1e3 * statistics.median(exact):.3f} ms, in any order {1e3 * statistics.median(free):.3f} ms: "
        f"equal bits cost {cost:+.1%} ({against(cost, target)})"
    )


@pytest.mark.timing
@pytest.mark.parametrize("name", ["char GPT", "GPT 8x512"])
def test_what_the_guards_cost(application: Application, tmp_path: Path, figure: Figure, name: str) -> None:
    """The application's step with and without them, each over the bare step in the windows between its own."""
    over_bare, bare = {}, 0.0
    for kind, guards in (
        ("none", ()),
        ("state", ("--verify_state", "true")),
        ("twice", ("--verify_every_n_steps", 1)),
    ):
        file = printed(application, tmp_path / f"{kind}.yaml", *NETWORKS[name], *guards)
        found = bench(application, tmp_path, "--model", file, "--tax", "--paths", "graphed")
        row = next(row for row in found["tax"] if row["loop"] == "application")
        over_bare[kind] = median_ratio(row["windows_seconds"], row["bare"]["windows_seconds"])
        bare = row["bare"]["median_seconds"]
    cost = over_bare["state"] / over_bare["none"] - 1
    figure(
        f"guards, {name}, bare step {1e3 * bare:.2f} ms: checksums {cost:+.1%} of a step, {1e3 * bare * cost:.3f} ms "
        f"({against(cost, 0.02)}); a step made twice {over_bare['twice'] / over_bare['none']:.1f} replayed steps"
    )


# -- counted ----------------------------------------------------------------------------------------------

#: Counts what makes the host wait for the device, by PyTorch's own debug mode and by the calls that it does not see.
_COUNTER = """
import functools, json, warnings
import torch
import app.training.session as session
n = dict(waits=0)
def counted(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        n["waits"] += 1
        return function(*args, **kwargs)
    return call
shown = warnings.showwarning
def show(message, *args, **kwargs):
    if "synchronizing CUDA operation" in str(message):
        n["waits"] += 1
    else:
        shown(message, *args, **kwargs)
fit = session.Session.fit
def fitted(self):
    for owner in (torch.cuda, torch.cuda.Stream, torch.cuda.Event):
        owner.synchronize = counted(owner.synchronize)
    warnings.showwarning = show
    warnings.filterwarnings("always", ".*synchronizing CUDA operation")
    torch.cuda.set_sync_debug_mode("warn")
    fit(self)
    torch.cuda.set_sync_debug_mode("default")
    with open(f"waits-{self.trainer.max_steps}.json", "w") as file:
        json.dump(n["waits"], file)
session.Session.fit = fitted
"""


@pytest.mark.parametrize("name", ["gpt_char", "tilelli_banks4", "equilibrium_char"])
def test_no_step_between_two_logged_ones_waits_or_is_captured_anew(
    application: Application, tmp_path: Path, figure: Figure, name: str
) -> None:
    """A run of more steps, which logs, saves and validates as often, waits for the device as often."""
    never = 10**6
    rare = (
        "--trainer.log_every_n_steps", never, "--trainer.val_check_interval", never, "--checkpoint_every_n_steps", never,
    )  # fmt: skip
    waits, captures = [], []
    for n_steps in (40, 340):
        run = tmp_path / str(n_steps)
        fit(application, run, *words(name, *rare, "--trainer.max_steps", n_steps), prelude=_COUNTER)
        waits.append(int((tmp_path / f"waits-{n_steps}.json").read_text()))
        captures.append(summary(run)["launch/captures"])
    figure(
        f"{name}: 300 more steps make the host wait {waits[1] - waits[0]} times more (of {waits[0]}); captures {captures}"
    )
    assert waits[0] > 0, "the counter counts nothing"
    assert waits[1] == waits[0]
    # Also where the run logs, saves and validates between them.
    fit(application, tmp_path / "busy", *words(name, "--trainer.max_steps", 340))
    found = summary(tmp_path / "busy")
    assert [*captures, found["launch/captures"]] == [1, 1, 1]
    assert found["launch/eager_micro_batches"] <= 4, (
        "two to warm up, and two that are held against captured ones"
    )


# -- a job ------------------------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.skipif("TINYSHAKESPEARE" not in os.environ, reason="TINYSHAKESPEARE=FILE names the text")
def test_tinyshakespeare_to_1_4697(tmp_path: Path, figure: Figure) -> None:
    """A row of the study, judged by its mean over the whole split at the step that the study has fixed beforehand."""
    row = SPEEDRUN.row(os.environ.get("SPEEDRUN_ROW", "together"))
    data = {"data.source": None, "data.path": str(Path(os.environ["TINYSHAKESPEARE"]).resolve())}
    losses, jobs, after_first, path = [], [], [], ""
    for seed in SPEEDRUN.seeds:
        run = tmp_path / str(seed)
        ended = timed(["fit", *row.words(seed, data), "--config", "hardware/gpu", "--run_dir", run], tmp_path)
        losses.append(summary(run)["val/loss"])
        jobs.append(ended.whole)
        after_first.append(ended.whole - ended.first_step)
        path = ended.path
    mean, seconds = statistics.mean(losses), (statistics.mean(after_first), statistics.mean(jobs))
    figure(
        f"tinyshakespeare, row {row.name}, {len(losses)} seeds at step {row.values['trainer.max_steps']}: validation "
        f"{mean:.4f} +- {statistics.stdev(losses):.4f} nats ({against(mean, 1.4697)}), {seconds[0]:.1f} s after the first step "
        f"({against(seconds[0], 10)}, goal 5), {seconds[1]:.1f} s from the command ({against(seconds[1], 20)}, goal 12); {path}"
    )
