"""``app fit``: trains a network, or goes on with a run."""

import time

from app.run import arguments, plan
from app.run.errors import AppError, ExitCode
from app.run.signals import StopRequests
from app.run.status import write_status


def run(name: str, words: list[str]) -> int:
    """Runs the command; everything that can be refused without the framework is refused before it.

    Args:
        name: ``fit``.
        words: the rest of the command line.

    Returns:
        The exit code.
    """
    launch = arguments.read(words)
    if launch.wants_help:
        from app.training.command_line import RunCLI

        RunCLI(launch, [])
    requests = StopRequests()
    try:
        launched = plan.make(launch)
        if launched.is_finished:
            print(f"{launched.directory} is finished; nothing to do")
            return int(ExitCode.DONE)
        try:
            return _train(launch, launched, requests, words)
        finally:
            launched.close()
    finally:
        requests.restore()


def _train(launch: arguments.Launch, launched: plan.Plan, requests: StopRequests, words: list[str]) -> int:
    started = time.monotonic()
    from app.training.command_line import RunCLI
    from app.training.session import Session
    from app.training.stopping import StopRun

    cli = RunCLI(launch, launched.files)
    data = cli.build_data()
    directory = launched.open()
    session = Session(cli, data, launched, requests, words)
    ending: tuple[str, int, str] = ("failed", int(ExitCode.UNEXPECTED), "unexpected error")
    try:
        if launched.is_launcher:
            write_status(directory.status, "starting", session.step)
        session.prepare()
        session.print_start(seconds=time.monotonic() - started)
        session.fit()
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
        if launched.is_launcher and directory.is_run:
            state, code, reason = ending
            write_status(directory.status, state, session.step, code, reason)  # type: ignore[arg-type]
        elif launched.is_launcher:
            directory.status.unlink(missing_ok=True)
