"""``app fit``: trains a network, or goes on with a run."""

import signal
import time
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from app.commands import dry_run, fit_help
from app.commands.picture import write_picture
from app.run import arguments, launching, output, ranks
from app.run.devices import n_known_processes
from app.run.errors import AppError, ExitCode, StorageError
from app.run.manifest import experiment
from app.run.rank_processes import OTHERS, rank_zero
from app.run.signals import StopRequests
from app.run.status import finished_words, write_status
from app.run.storage import disk_error
from app.run.terminal import announce, announced
from app.run.trust import trusted_for
from app.run.without_packages import quick_framework

if TYPE_CHECKING:
    from app.training.session import Session

#: prints what files and options come to, and stops
PRINT = "--print_config"


def run(name: str, words: list[str]) -> int:
    """Runs the command; everything that can be refused without the framework is refused before it.

    Args:
        name: ``fit``.
        words: the rest of the command line.

    Returns:
        The exit code.
    """
    started = time.monotonic()
    words = arguments.with_config(words)
    if dry_run.FLAG in words and not {"-h", "--help"} & {*words}:
        return dry_run.run([word for word in words if word != dry_run.FLAG])
    launch = arguments.read([word for word in words if word != PRINT])
    if launch.wants_help:
        fit_help.run(launch)
        return int(ExitCode.DONE)
    if PRINT in words:
        return _print_configuration(launch)
    output.make_courtesy()
    with StopRequests.of_this_process() as requests:
        return _launch(launch, requests, words, started)


def _print_configuration(launch: arguments.Launch) -> int:
    files = launching.files_of(launch)

    from app.training.command_line import RunCLI

    print(RunCLI(launch, files).resolved.rstrip())
    return int(ExitCode.DONE)


def _launch(launch: arguments.Launch, requests: StopRequests, words: list[str], started: float) -> int:
    launched = _plan(launch)
    if launched.is_finished:
        assert launched.directory is not None
        print(finished_words(launched.directory))
        return int(ExitCode.DONE)
    if launched.resumes and launched.directory is not None:
        launch.trust_imports = trusted_for(launched.directory, launch.trust_imports)
    requests.at_leaving = lambda code, reason: launched.close()
    try:
        if launched.is_launcher and not ranks.is_torchrun():
            OTHERS.on_lost = lambda reason: launched.close()
            OTHERS.say("plan", lambda: (None, launched.to_json()))
            OTHERS.start(n_known_processes(launched.files, launch) - 1)
        return _train(launch, launched, requests, words, started)
    except SystemExit:
        if requests.requested is not None and launched.is_launcher:
            when = "" if requests.deferring else " before the first step"
            print(f"stopped by {requests.requested.name}{when}; start the same command again", flush=True)
        raise
    finally:
        if launched.is_launcher:
            announced()  # what follows may be a single word
        OTHERS.end([signal.SIGKILL])  # whoever has trained has ended by now
        launched.close()


def _plan(launch: arguments.Launch) -> launching.Plan:
    """What this process does; rank zero decides and tells the others."""
    if not ranks.is_torchrun():
        zero = rank_zero()
        return launching.make(launch) if zero is None else launching.handed_over(zero.receive("plan")[0])
    from app.training.rendezvous import receive, send

    if ranks.number() > 0:
        return launching.handed_over(receive())
    launched = launching.make(launch)
    send(launched.to_json())
    return launched


def _train(
    launch: arguments.Launch,
    launched: launching.Plan,
    requests: StopRequests,
    words: list[str],
    started: float,
) -> int:
    begins = announce if launched.is_launcher else lambda text: None
    begins("loading PyTorch and the training framework")

    with quick_framework(launch.trust_imports):
        from app.training.command_line import RunCLI
        from app.training.run_callbacks.stopping import StopRun
        from app.training.session import Session

    cli = RunCLI(launch, launched.files)
    begins("reading the text")
    data = cli.build_data()
    directory = launched.open()
    session = Session(cli, data, launched, requests, words)
    requests.at_leaving = session.abandon
    ending: tuple[str, int, str] = ("failed", int(ExitCode.UNEXPECTED), "unexpected error")
    try:
        begins("building the network")
        session.prepare()
        if launched.is_launcher:
            announced()
        if session.is_finished:
            print(finished_words(directory))
            return int(ExitCode.DONE)
        session.print_start(seconds=time.monotonic() - started)
        session.fit()
        if session.is_incomplete and not session.ended_by:
            raise StopRun(ExitCode.DONE, session.step, "a callback")
        if launched.is_launcher:
            _draw(session)
            session.print_end()
        ending = ("finished", int(ExitCode.DONE), session.ended_by)
        return int(ExitCode.DONE)
    except StopRun as stop:
        ending = ("stopped", int(stop.exit_code), stop.reason)
        if not launched.is_launcher:
            return int(ExitCode.DONE)
        print(f"{stop}; go on with\n  app fit --resume {directory}", flush=True)
        return int(stop.exit_code)
    except SystemExit as leave:
        ending = ("stopped", int(leave.code or 0), requests.requested.name if requests.requested else "")
        raise
    except (StorageError, OSError) as error:
        # An error of a disk may come from where nobody expects one, such as inside of a library.
        found = error if isinstance(error, StorageError) else disk_error(error, directory.path)
        if found is None:
            ending = ("failed", int(ExitCode.UNEXPECTED), f"{type(error).__name__}: {error}"[:500])
            raise
        ending = ("failed", int(found.exit_code), str(found))
        remedy = f"; go on with --resume {directory}" if session.is_recorded and directory.is_run else ""
        raise StorageError(f"{found}{remedy}") from error
    except AppError as error:
        ending = ("failed", int(error.exit_code), str(error).splitlines()[0])
        raise
    except BaseException as error:
        ending = ("failed", int(ExitCode.UNEXPECTED), f"{type(error).__name__}: {error}"[:500])
        raise
    finally:
        # A launch that was refused leaves the word of the one before it, one that was displaced that of the next.
        if session.is_recorded and launched.may_write:
            state, code, reason = ending
            # Where even the last word does not fit, what has ended the run is still what is reported.
            with suppress(StorageError) if state == "failed" else nullcontext():
                write_status(directory.status, state, session.step, code, reason)  # type: ignore[arg-type]


def _draw(session: "Session") -> None:
    """The learning curve as a picture in the run directory."""
    from app.analysis.curves import draw_learning_curve

    if session.summary is None or not session.summary.figures:
        return
    figures = session.summary.figures
    draw = partial(
        draw_learning_curve,
        session.directory.metrics,
        title=f"{experiment(session.directory)}: {figures['parameters']:,} parameters".removeprefix(": "),
        counts=figures["baseline/count_loss"],
    )
    _, problem = write_picture(
        session.directory.figures / "learning_curve.png", lambda file: draw(target=file)
    )
    if problem:
        print(f"note     {problem}", flush=True)
