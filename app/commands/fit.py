"""``app fit``: trains a network, or goes on with a run."""

import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, NoReturn

from app.commands import dry_run
from app.run import arguments, plan
from app.run.absent import absent
from app.run.errors import AppError, ExitCode
from app.run.signals import StopRequests
from app.run.status import write_status

if TYPE_CHECKING:
    from app.training.session import Session


def run(name: str, words: list[str]) -> int:
    """Runs the command; everything that can be refused without the framework is refused before it.

    Args:
        name: ``fit``.
        words: the rest of the command line.

    Returns:
        The exit code.
    """
    started = time.monotonic()
    if dry_run.FLAG in words and not {"-h", "--help"} & {*words}:
        return dry_run.run([word for word in words if word != dry_run.FLAG])
    launch = arguments.read(words)
    if launch.wants_help:
        _print_help(launch)
    requests = StopRequests()
    try:
        launched = _plan(launch)
        if launched.is_finished:
            print(f"{launched.directory} is finished; nothing to do")
            return int(ExitCode.DONE)
        try:
            return _train(launch, launched, requests, words, started)
        finally:
            launched.close()
    finally:
        requests.restore()


def _print_help(launch: arguments.Launch) -> NoReturn:
    """Prints the options, or those of one class, and ends the process."""
    is_about_a_class = any(arguments.asks_for_class_help(word) for word in launch.overrides)
    with nullcontext() if is_about_a_class else absent("matplotlib", "scipy", "transformers"):
        from app.training.command_line import RunCLI
    RunCLI(launch, [])
    raise AssertionError("the parser ends the process once it has printed its help")


def _plan(launch: arguments.Launch) -> plan.Plan:
    """What this process does; under torchrun rank zero decides and tells the others."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return plan.make(launch)
    from app.training.handover import receive, send

    if int(os.environ["RANK"]) > 0:
        return plan.handed_over(receive())
    try:
        launched = plan.make(launch)
        send(launched.to_json())
    except AppError:
        send("")
        raise
    return launched


def _train(
    launch: arguments.Launch, launched: plan.Plan, requests: StopRequests, words: list[str], started: float
) -> int:
    from app.training.command_line import RunCLI
    from app.training.distributed import ParentWatch
    from app.training.session import Session
    from app.training.stopping import StopRun

    if not launched.is_launcher:
        ParentWatch.of_this_rank().start()
    cli = RunCLI(launch, launched.files)
    data = cli.build_data()
    directory = launched.open()
    session = Session(cli, data, launched, requests, words)
    ending: tuple[str, int, str] = ("failed", int(ExitCode.UNEXPECTED), "unexpected error")
    try:
        session.prepare()
        session.print_start(seconds=time.monotonic() - started)
        session.fit()
        if session.is_incomplete:
            raise StopRun(ExitCode.DONE, session.step, "a callback")
        if launched.is_launcher:
            _draw(session)
            session.print_end()
        ending = ("finished", int(ExitCode.DONE), "")
        return int(ExitCode.DONE)
    except StopRun as stop:
        ending = ("stopped", int(stop.exit_code), stop.reason)
        if not launched.is_launcher:
            return int(ExitCode.DONE)
        print(f"{stop}; go on with\n  app fit --resume {directory}", flush=True)
        return int(stop.exit_code)
    except SystemExit as leave:
        ending = ("stopped", int(leave.code or 0), "signal before the first step")
        raise
    except AppError as error:
        ending = ("failed", int(error.exit_code), str(error).splitlines()[0])
        raise
    except BaseException as error:
        ending = ("failed", int(ExitCode.UNEXPECTED), f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        # A launch that was refused leaves the word of the one before it.
        if session.is_recorded:
            state, code, reason = ending
            write_status(directory.status, state, session.step, code, reason)  # type: ignore[arg-type]


def _draw(session: "Session") -> None:
    """The learning curve as a picture in the run directory."""
    from app.analysis.curves import draw_learning_curve

    if session.summary is None or not session.summary.figures:
        return
    draw_learning_curve(
        session.directory.metrics,
        session.directory.figures / "learning_curve.png",
        tokens_per_step=session.data.tokens_per_step,
        title=f"{session.launched.stem}: {session.summary.figures['parameters']:,} parameters",
        bigram=session.summary.figures["baseline/bigram_loss"],
    )
