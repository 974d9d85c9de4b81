"""What the watchers of a configuration add to a training step.

    python -m tests.callbacks.bench_watchers --config tilelli_banks4
    python -m tests.callbacks.bench_watchers --config tilelli_banks4 --config hardware/gpu --forbid_waits \
        --trainer.log_every_n_steps 50

One run of ``app fit`` whose watchers are taken away and put back from window to window, a window being the steps
from one logged one to the next, the logged one included; validation is not. A pair is a few windows with and as
many without, in turn, the first of them changing from pair to pair: what else the machine does meets both alike,
which in two runs after each other it does not. Prints each pair, then the median of the added time with the
interval from the second smallest to the second largest pair, which for nine pairs holds the true median with 96 %
(order statistics of the binomial). A first pair only warms up. Other options go to ``app fit``.

With ``--forbid_waits`` a CUDA operation that makes the host wait for the device is an error in every step that is
not logged.
"""

import argparse
import contextlib
import io
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import lightning
import torch

from app import cli
from app.training.language_model import LanguageModelModule


class Switch:
    """Takes the watchers of a run away for every second window, and keeps the time of each.

    Args:
        windows_per_form: windows of a pair with watchers, and without.
        forbid_waits: whether steps between two logged ones may wait for a CUDA device.

    Attributes:
        seconds: of each window; even pairs begin with watchers, odd ones without.
        is_watched: whether they were there, for each window.
        checked: steps with watchers in which waiting was forbidden.
    """

    def __init__(self, windows_per_form: int, forbid_waits: bool):
        self.windows_per_form = windows_per_form
        self.forbid_waits = forbid_waits
        self.seconds: list[float] = []
        self.is_watched: list[bool] = []
        self.checked = 0
        self._all_callbacks: list[Any] = []
        self._began: float | None = None

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """The training module's own hooks, which come after those of the watchers, work the switch."""

        def on_train_batch_end(module: LanguageModelModule, outputs: Any, *_: Any) -> None:
            trainer: Any = module.trainer
            step = trainer.global_step
            if not outputs["record"].is_last_micro:
                return
            if step % trainer.log_every_n_steps == 0:
                self._end_window(module)
            if module.device.type == "cuda":
                comes_last = step == trainer.max_steps  # what follows is validation
                is_free = not self.forbid_waits or step < 3 or comes_last or module.is_logged(step + 1)
                torch.cuda.set_sync_debug_mode("default" if is_free else "error")
                self.checked += not is_free and self._all_callbacks == trainer.callbacks

        LanguageModelModule.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]
        try:
            yield
        finally:
            del LanguageModelModule.on_train_batch_end
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")

    def _end_window(self, module: LanguageModelModule) -> None:
        trainer: Any = module.trainer
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        now = time.perf_counter()
        if self._began is None:
            self._all_callbacks = list(trainer.callbacks)
        else:
            self.seconds.append(now - self._began)
            self.is_watched.append(len(trainer.callbacks) == len(self._all_callbacks))
        pair, window = divmod(len(self.seconds), 2 * self.windows_per_form)
        trainer.callbacks = [
            callback
            for callback in self._all_callbacks
            if (window + pair) % 2 == 0 or not type(callback).__module__.startswith("callbacks.")
        ]
        self._began = time.perf_counter()


def main() -> None:
    """Runs it and prints the pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", action="append", required=True, help="as for app fit; may be repeated")
    parser.add_argument("--trainer.log_every_n_steps", dest="window", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--windows", type=int, default=4, help="windows of a pair with watchers, and without")
    parser.add_argument("--forbid_waits", action="store_true")
    arguments, others = parser.parse_known_args()
    n_windows = 2 * arguments.windows
    last = arguments.window * (1 + n_windows * (arguments.pairs + 1))
    settings = {
        "max_steps": last,
        "val_check_interval": last,
        "limit_val_batches": 1,
        "log_every_n_steps": arguments.window,
    }
    words = [word for name in arguments.config for word in ("--config", name)]
    words += [f"--trainer.{key}={value}" for key, value in settings.items()]
    words += [
        "--checkpoint_every_n_steps",
        str(last),
    ]  # in whose window a checkpoint falls says nothing of watchers
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{' + '.join(arguments.config)}, {' '.join(others) or 'as shipped'}: {last} steps, "
        f"windows of {arguments.window}\n{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"lightning {lightning.__version__}, Python {platform.python_version()}",
        flush=True,
    )
    switch = Switch(arguments.windows, arguments.forbid_waits)
    printed = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        switch.mounted(),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        code = cli.main(["fit", "--run_dir", f"{folder}/run", *words, *others])
    if code != 0:
        sys.exit(f"app fit ended with {code}\n{printed.getvalue()[-4000:]}")
    shares = []
    for pair in range(arguments.pairs + 1):
        places = range(pair * n_windows, (pair + 1) * n_windows)
        none, all_of_them = (
            1000
            / arguments.window
            * statistics.mean(
                switch.seconds[place] for place in places if switch.is_watched[place] is watched
            )
            for watched in (False, True)
        )
        shares.append(all_of_them / none - 1)
        print(
            f"pair {pair}: none {none:8.3f} ms, all {all_of_them:8.3f} ms, {shares[-1]:+7.2%}"
            f"{'' if pair else '  (warm-up)'}"
        )
    if arguments.forbid_waits:
        print(f"{switch.checked} steps with watchers could not have waited for the device")
    ordered = sorted(shares[1:])
    if len(ordered) > 2:
        print(
            f"added: median {statistics.median(ordered):+.2%}, from {ordered[1]:+.2%} to {ordered[-2]:+.2%}"
        )


if __name__ == "__main__":
    main()
