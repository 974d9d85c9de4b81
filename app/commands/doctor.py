"""``app doctor``: what this machine has, and whether a run would work on it."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from app import __version__
from app.commands.parsing import CommandParser
from app.run.errors import ExitCode
from app.run.machine import Check, Level, available_cores, machine_checks
from app.run.manifest import PACKAGES, repository, versions
from app.run.paths import typed_path
from app.run.strict_json import to_json
from app.run.terminal import wrapped

OLDEST_PYTHON = (3, 11)
#: releases that must not run at all
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
LARGEST_ERROR = 1e-4  # of a small network between the two forms of its operators, relative


def run(name: str, words: list[str]) -> int:
    """Prints one line per check, or one JSON object.

    Args:
        name: ``doctor``.
        words: the rest of the command line.

    Returns:
        0, or 2 where a check fails.
    """
    options = command_parser().parse_args(words)
    checks = [*package_checks(), *torch_checks(), *machine_checks(Path(options.runs), Path(options.data))]
    levels = {check.level for check in checks}
    worst: Level = "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"
    if options.json:
        print(to_json({"level": worst, "checks": [check._asdict() for check in checks]}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(wrapped(f"{check.level:<5} {check.name:<{width}}  {check.found}", width + 8))
            if check.remedy:
                print(wrapped(f"{'':<5} {'':<{width}}  -> {check.remedy}", width + 11))
    return int(ExitCode.CONFIGURATION if worst == "fail" else ExitCode.DONE)


def package_checks() -> Iterator[Check]:
    """Versions of the application, of Python and of every package that is needed."""
    place = repository()
    where = "an installation" if place is None else "a source checkout"
    yield Check("archlab", "ok", f"{__version__}, {where}")
    python = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield Check("python", "fail", python, f"install Python {oldest} or later")
    else:
        yield Check("python", "ok", python)
    ranges = requirements()
    found = {package: version for package, version in versions().items() if package in PACKAGES[1:]}
    for package in dict.fromkeys([*found, *ranges]):
        yield _package_check(package, found.get(package) or _version(package), ranges.get(package, ""))


def requirements() -> dict[str, str]:
    """Range of every package that is declared as needed; empty where that cannot be told."""
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with the framework, which may be what is missing
        return {}
    place = repository()
    if place is not None:
        import tomllib

        lines = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "dependencies"
        ]
    else:
        try:
            lines = importlib.metadata.requires("archlab") or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
    parsed = [Requirement(line) for line in lines if "extra ==" not in line]
    return {requirement.name: str(requirement.specifier) for requirement in parsed}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package_check(package: str, version: str | None, wanted: str) -> Check:
    remedy = f"pip install '{package}{wanted}'"
    if version is None:
        return Check(package, "fail", "not installed", remedy)
    if version in MALICIOUS.get(package, ()):
        return Check(
            package, "fail", f"{version}, a malicious upload", f"{remedy}, and change your passwords"
        )
    if wanted:
        from packaging.specifiers import SpecifierSet

        if not SpecifierSet(wanted).contains(version, prereleases=True):
            return Check(package, "warn", f"{version}, outside of {wanted}", remedy)
    return Check(package, "ok", version)


def torch_checks() -> Iterator[Check]:
    """Devices, threads, and the forms of the operators that run here."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("devices", "fail", f"torch cannot be imported: {error}", "reinstall torch")
        return
    threads, cores = torch.get_num_threads(), available_cores()
    too_many = threads > cores
    yield Check(
        "threads",
        "warn" if too_many else "ok",
        f"{threads} of {cores} cores",
        f"set OMP_NUM_THREADS={cores}" if too_many else "",
    )
    yield from _devices()
    yield from _operators()


def _devices() -> Iterator[Check]:
    import torch

    built = torch.version.cuda
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            free, total = torch.cuda.mem_get_info(i)
            found = (
                f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
                f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free, CUDA {built}"
            )
            is_taken = free < total / 2
            remedy = "another process uses this GPU; see nvidia-smi, choose with CUDA_VISIBLE_DEVICES"
            yield Check(f"cuda:{i}", "warn" if is_taken else "ok", found, remedy if is_taken else "")
            if not torch.cuda.is_bf16_supported():
                yield Check(
                    f"cuda:{i}", "warn", "computes no bfloat16", "train with --trainer.precision 32-true"
                )
    elif built is not None:
        found = f"torch is built for CUDA {built}, but sees no GPU"
        yield Check("cuda", "warn", found, "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES")
    else:
        yield Check("cuda", "ok", "torch is built without CUDA; runs use the processor")
    if torch.backends.mps.is_available():
        yield Check("mps", "ok", "available")


def _operators() -> Iterator[Check]:
    """Which forms there are, and whether the fast one of each device gives what the reference gives."""
    import torch

    has_gpu = torch.cuda.is_available()
    folder = Path(__file__).resolve().parents[1] / "ops"
    with_kernels = sorted(path.parent.name for path in folder.glob("*/triton.py"))
    version = _version("triton")
    if not with_kernels:
        yield Check("kernels", "ok", "operators in PyTorch on every device; none has a kernel of its own")
    elif version is None:
        remedy = "pip install triton" if has_gpu else ""
        found = f"Triton kernels of {', '.join(with_kernels)} do not run: triton is not installed"
        yield Check("kernels", "warn" if has_gpu else "ok", found, remedy)
    else:
        runs = "run here" if has_gpu else "need a GPU; operators run in PyTorch"
        yield Check("kernels", "ok", f"triton {version}; kernels of {', '.join(with_kernels)} {runs}")
    for device in ("cpu", *(["cuda"] if has_gpu else [])):
        try:
            error = _operator_error(device)
        except Exception as fault:  # whatever a broken installation raises is the finding
            yield Check(
                f"operators on {device}", "fail", str(fault).splitlines()[0], "reinstall torch and triton"
            )
            continue
        is_right = error <= LARGEST_ERROR
        found = f"differ by {error:.1e} from their references"
        remedy = "" if is_right else "report this, with the output of app doctor --json"
        yield Check(f"operators on {device}", "ok" if is_right else "fail", found, remedy)


def _operator_error(device: str) -> float:
    """How far a small banked network is from its original form."""
    import torch

    from app.models.tilelli import TilelliLM
    from app.ops import use_form

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = TilelliLM(13, 16, 1, d_head=4, n_banks=2, quantize=False)
        idx = torch.randint(0, 13, (2, 24)).to(device)
        network = network.to(device)
        fast = network(idx).logits
        with use_form("naive"):
            reference = network(idx).logits
    return float((fast - reference).norm() / reference.norm())


def command_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        "doctor",
        description="Says what this machine has and whether a run would work on it; ends with 2 where one would not.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for a bug report")
    parser.add_argument("--runs", type=typed_path, default="runs", help="folder of the runs (default runs)")
    parser.add_argument("--data", type=typed_path, default="data", help="folder of the data (default data)")
    return parser
