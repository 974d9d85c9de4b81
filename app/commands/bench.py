"""``app bench``: how fast operators and training steps are, and whether their fast forms compute the same."""

import argparse
import contextlib
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from app.bench.paths import PATHS, PRECISIONS, USUAL_PATHS, Precision, StepPath
from app.commands.parsing import CommandParser, check_device
from app.run.configuration import find_config, read_config, shipped_directory, shipped_names
from app.run.errors import ConfigurationError, ExitCode
from app.run.paths import typed_path

if TYPE_CHECKING:
    from app.bench.ceilings import Ceilings
    from app.bench.report import Finding
    from app.bench.steps import Subject
    from app.ops.case import Case, Size

#: options of a size: of an operator's call, and of a configuration
SIZES = {"batch_size": "B", "block_size": "T", "d_model": "D", "n_banks": "N", "n_layers": ""}
SWEEPS = {letter: option for option, letter in SIZES.items() if letter}
CHECKED_WITHOUT = ("debug/", "hardware/")  # folders of configurations that are no experiments
WINDOWS, MIN_WINDOWS, QUICK_WINDOWS = 7, 5, 2
#: sizes of a network where a quick look is enough
QUICK_SIZES = {"batch_size": 2}


def run(name: str, words: list[str]) -> int:
    """Measures, checks and prints.

    Args:
        name: ``bench``.
        words: the rest of the command line.

    Returns:
        0, or 1 where a form or a path does not compute what it has to.
    """
    options = command_parser().parse_args(words)
    _refuse(options)
    check_device(options.device)
    bench = Bench(options)
    passed = bench.check() if options.check else bench.measure()
    if options.json:
        from app.run.atomic import write_json

        write_json(options.json, bench.report)
        print(f"written  {options.json}")
    return int(ExitCode.DONE if passed else ExitCode.UNEXPECTED)


def _refuse(options: argparse.Namespace) -> None:
    """Raises :class:`~app.run.errors.ConfigurationError` with all that does not go together."""
    kinds = [f"--{kind}" for kind in ("tax", "sweep", "check") if getattr(options, kind)]
    problems = []
    if options.op and options.model:
        problems.append("--op and --model: measure one after the other; leave one out")
    if not (options.op or options.model or options.check):
        problems.append(
            "nothing to measure: name an operator (--op), a network (--model), or --check all of them"
        )
    if len(kinds) > 1:
        problems.append(f"{' and '.join(kinds)}: are measurements of their own; keep one")
    if options.tax and not options.model:
        problems.append("--tax: needs the configuration whose steps are taxed; add --model NAME")
    if options.record and not options.check:
        problems.append("--record: notes what a check has found; add --check")
    if options.record and (options.quick or any(getattr(options, size) for size in SIZES)):
        problems.append("--record: is of whole checks, and of no others; leave --quick and sizes out")
    if options.op and (options.n_layers or options.paths):
        given = "n_layers" if options.n_layers else "paths"
        problems.append(f"--{given}: is of networks, and an operator has none; leave it out")
    if options.tax and options.paths and not {*options.paths} <= {*USUAL_PATHS}:
        problems.append("--paths: a training takes its steps eagerly or graphed; keep these")
    if options.check and not options.model and any(getattr(options, size) for size in SIZES):
        problems.append(
            "--check: has sizes of its own; those of one network can be changed, with --model NAME"
        )
    if options.fast_nondeterministic and (not options.model or options.check or options.tax):
        problems.append("--fast_nondeterministic: is of the times of a network's paths; name it with --model")
    if options.fast_nondeterministic and options.device == "cpu":
        problems.append(
            "--fast_nondeterministic: on the CPU equal steps are equal at no cost; add --device cuda"
        )
    if "graphed" in (options.paths or ()) and not options.check and options.device == "cpu":
        problems.append("--paths graphed: graphs need a GPU; leave it out")
    if options.windows < MIN_WINDOWS and not options.quick:
        problems.append(
            f"--windows {options.windows}: must be at least {MIN_WINDOWS}, for a median to mean something"
        )
    for option in ("json", "record"):
        file = Path(getattr(options, option) or ".")
        if not file.parent.is_dir():
            problems.append(f"--{option} {file}: there is no folder {file.parent}; make it first")
    if problems:
        raise ConfigurationError(f"app bench: {problem}" for problem in problems)


class Bench:
    """One run of the command, and what it has found as plain values.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        import torch

        from app.bench.device import described
        from app.training.reproducible import make_reproducible

        self.options = options
        self.device: torch.device = torch.device(options.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", self.device.index or 0)
            torch.cuda.set_device(self.device)
        make_reproducible(self.device)
        self.precision: Precision = options.precision or PRECISIONS[self.device.type == "cuda"]
        self.n_windows = QUICK_WINDOWS if options.quick else options.windows
        if options.record:
            from app.training import passed

            passed.read(Path(options.record))  # before hours of checks, not behind them
        self.report: dict[str, Any] = {"device": described(self.device), "quick": options.quick}
        for title, value in self.report["device"].items():
            print(f"{title:<8} {value}")
        if options.quick:
            print("quick    small sizes and few windows: no figure below is a measurement")

    # -- checking ---------------------------------------------------------------------------------------

    def check(self) -> bool:
        """Every form and path that is asked for; whether all are right."""
        from app.bench.report import CHECK_TITLES, check_lines, skipped_lines

        findings: list[Finding] = []
        seconds: dict[str, float] = {}
        print(CHECK_TITLES)
        with contextlib.closing(self._parts_to_check()) as parts:
            begin = perf_counter()
            for name, part in parts:
                found = list(part)
                findings += found
                seconds[name], begin = perf_counter() - begin, perf_counter()
                for line in check_lines(found):
                    print(line)
                print(f"seconds {name:<41}{seconds[name]:>6.1f}", flush=True)
        n_failed = sum(not finding.passed for finding in findings)
        for line in skipped_lines(findings):
            print(line)
        print(f"checked {sum(not finding.skipped for finding in findings):,} calls, {n_failed:,} failed")
        self.report["seconds"] = seconds
        self.report["findings"] = [finding.as_dict() for finding in findings]
        if self.options.record:
            self._record(findings)
        return n_failed == 0

    def _parts_to_check(self) -> "Generator[tuple[str, Iterable[Finding]]]":
        """What is checked, a part at a time, under its name; each is printed once it is through."""
        from app.bench.check_operators import check_sizes
        from app.bench.check_processes import OperatorChecks, most_processes
        from app.bench.check_steps import QUICK_TOKENS, TOKENS, check_subject
        from app.ops.case import operators

        options, quick = self.options, self.options.quick
        if not options.model:
            with OperatorChecks(check_sizes(quick), self.device, most_processes(self.device)) as checks:
                for name in options.op or operators():
                    yield name, checks.check(name)
        # Elsewhere all is added up in one order, however many tokens there are.
        tokens = QUICK_TOKENS if quick else TOKENS if self.device.type == "cuda" else TOKENS[:1]
        names = [options.model] if options.model else [] if options.op else experiments(every=not quick)
        for name in names:
            paths = options.paths or USUAL_PATHS
            yield name, check_subject(self._subject(name), paths, tokens)

    def _record(self, findings: "Sequence[Finding]") -> None:
        from app.training import passed

        outcomes: dict[str, dict[str, bool]] = {}
        for finding in findings:
            if finding.subject and not finding.skipped:
                known = outcomes.setdefault(finding.path, {})
                known[finding.subject] = known.get(finding.subject, True) and finding.passed
        file = Path(self.options.record)
        passed.record(file, self.device, outcomes)
        print(f"recorded {file}: torch {passed.torch_version()} on {passed.family(self.device)}")

    # -- measuring --------------------------------------------------------------------------------------

    def measure(self) -> bool:
        """Times what is asked for; true."""
        if self.options.tax:
            self._tax()
        elif self.options.op:
            self._operator()
        else:
            self._model()
        return True

    def _ceilings(self) -> "Ceilings":
        from app.bench import ceilings

        found = ceilings.measured(self.device, self.n_windows, self.options.quick)
        print(f"ceilings {found.describe()}")
        self.report["ceilings"] = found._asdict()
        return found

    def _say_how(self) -> None:
        clock = "CUDA events" if self.device.type == "cuda" else "the host's clock"
        print(f"timing   {clock}, medians of {self.n_windows} windows taken in turn, {self.precision}")

    def _operator(self) -> None:
        import torch

        from app.bench import operators
        from app.bench.report import operator_lines
        from app.ops.case import cases

        letter, quick = self.options.sweep, self.options.quick
        usual = operators.QUICK if quick else operators.USUAL[self.device.type]
        given = {axis: getattr(self.options, option) for option, axis in SIZES.items() if axis}
        size = usual._replace(**{axis: value for axis, value in given.items() if value})
        described: dict[str, Case] = {}
        sizes: dict[str, list[Size]] = {}
        for name in self.options.op:
            described |= cases(name)
            sizes |= {
                kind: operators.swept(size, letter, case) if letter else [size]
                for kind, case in cases(name).items()
            }
            if not any(sizes[kind] for kind in cases(name)):
                raise ConfigurationError(
                    f"--sweep {letter}: {name} does not depend on it; sweep another size"
                )
        dtype = torch.bfloat16 if self.precision == "bf16-mixed" else torch.float32
        ceilings, rows = self._ceilings(), []
        self._say_how()
        for kind, case in described.items():
            for each in sizes[kind]:
                found = operators.times(kind, case, each, self.device, dtype, ceilings, self.n_windows, quick)
                rows += found
                print("\n".join(operator_lines(found)), flush=True)
        self.report["operators"] = [row.as_dict() for row in rows]

    def _model(self) -> None:
        from app.bench import models
        from app.bench.report import model_lines

        subjects = [self._subject(self.options.model, sizes) for sizes in self._swept_sizes()]
        ceilings, rows = self._ceilings(), []
        self._say_how()
        for subject in subjects:
            found = models.times(
                subject,
                self._paths(),
                ceilings,
                self.n_windows,
                self.options.quick,
                self.options.fast_nondeterministic,
            )
            rows += found
            print("\n".join(model_lines(subject.describe(), found)), flush=True)
        self.report["models"] = [row.as_dict() for row in rows]

    def _swept_sizes(self) -> list[dict[str, int]]:
        """The sizes of a network that are changed, for each table of a sweep."""
        if not self.options.sweep:
            return [{}]
        from app.bench.operators import around

        option = SWEEPS[self.options.sweep]
        middle = self._subject(self.options.model).size(option)
        # Heads divide a width: no odd ones.
        values = [value for value in around(middle) if option != "d_model" or value != middle - 1]
        return [{option: value} for value in values]

    def _tax(self) -> None:
        from app.bench import tax
        from app.bench.report import tax_lines

        subject, rows = self._subject(self.options.model), []
        self._say_how()
        for path in self._paths():
            rows += tax.times(subject, path, self.n_windows, self.options.quick)
        print("\n".join([subject.describe(), *tax_lines(rows)]))
        self.report["tax"] = [row.as_dict() for row in rows]

    def _paths(self) -> list[StepPath]:
        """Those that are asked for and that this device has."""
        asked = self.options.paths or USUAL_PATHS
        on_gpu = self.device.type == "cuda"
        return [path for path in asked if path != "graphed" or on_gpu]

    def _subject(self, name: str, changed: dict[str, int] | None = None) -> "Subject":
        from app.bench.steps import Subject

        given = {option: getattr(self.options, option) for option in SIZES}
        sizes = (QUICK_SIZES if self.options.quick else {}) | {
            x: value for x, value in given.items() if value
        }
        return Subject(name, self.device, self.precision, sizes | (changed or {}), self.options.trust_imports)


def experiments(every: bool) -> list[str]:
    """The shipped configurations that train a network worth a check.

    Args:
        every: all of them; else the first of each architecture.
    """
    first: dict[str, str] = {}
    names = [name for name in shipped_names(shipped_directory()) if not name.startswith(CHECKED_WITHOUT)]
    for name in names:
        first.setdefault(read_config(find_config(name)).data["model"]["class_path"], name)
    return names if every else list(first.values())


def number(text: str) -> int:
    """A number of something, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "bench",
        description="Times operators and training steps, their reference forms beside them, against what the device "
        "can do at most; or checks that every fast form and path computes the same.",
        epilog="An operator's sizes are B windows of T tokens, width D, N banks.",
    )
    operators = tuple(
        sorted(path.parent.name for path in (Path(__file__).resolve().parents[1] / "ops").glob("*/cases.py"))
    )
    parser.add_argument(
        "--op", nargs="+", metavar="NAME", choices=operators, help=f"operators: {', '.join(operators)}"
    )
    parser.add_argument(
        "--model",
        metavar="NAME_OR_FILE",
        help="a training step: a configuration, or a class such as GPTModule",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare forms and paths in place of timing them; everything, or what --op or --model names",
    )
    parser.add_argument(
        "--tax",
        action="store_true",
        help="time the step in a bare loop, in Trainer(barebones=True) and in the application",
    )
    parser.add_argument("--sweep", choices=tuple(SWEEPS), help="a quarter of this size to four times it")
    meanings = {
        "batch_size": "B, windows of a step or call",
        "block_size": "T, tokens of a window",
        "d_model": "D, width",
        "n_banks": "N, weight banks",
        "n_layers": "layers of the network",
    }
    for option, meaning in meanings.items():
        parser.add_argument(
            f"--{option}", type=number, metavar="NUMBER", help=f"{meaning}, in place of the usual"
        )
    parser.add_argument(
        "--paths",
        nargs="+",
        choices=PATHS,
        metavar="PATH",
        help=f"of a step: {', '.join(PATHS)} (default: eager, and graphed on a GPU); to compile takes minutes",
    )
    parser.add_argument(
        "--fast_nondeterministic",
        action="store_true",
        help="time each path also as app fit --fast_nondeterministic true takes it: what equal bits cost",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="bf16-mixed on a GPU, 32-true on the CPU, unless given"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    parser.add_argument(
        "--windows",
        type=number,
        default=WINDOWS,
        metavar="NUMBER",
        help=f"of each measurement (default {WINDOWS})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="shows that all of it runs, and measures nothing"
    )
    parser.add_argument(
        "--json", type=typed_path, metavar="FILE", help="all that was found, every window included"
    )
    parser.add_argument(
        "--record",
        type=typed_path,
        metavar="FILE",
        help="with --check: the table to note in which paths passed here",
    )
    parser.add_argument(
        "--trust_imports",
        action="append",
        default=[],
        metavar="PREFIX",
        help="import a network of your own from here",
    )
    return parser
