"""What is installed: every package, the shipped configurations, and a command that works anywhere."""

import csv
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import app
from app.commands.new import KINDS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("app", "callbacks", "datamodules")
#: all that a build may read; a build in the source tree itself would leave its traces there
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "configs", *PACKAGES)


def call(command: Sequence[str | Path], directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command that does not see the source tree, and expects success."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ARCHLAB"))
    }
    result = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def test_every_package_is_named() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in PACKAGES
        for path in (ROOT / name).rglob("__init__.py")
    }
    folders = {path.parent for path in (ROOT / "configs").rglob("*.yaml")}
    found |= {".".join(("app", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_no_module_lies_outside_a_package() -> None:
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == app.__version__
    assert f"version: {app.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{app.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_constraints_leave_the_choice_of_torch() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not {"torch", "archlab", "setuptools"} & pins.keys()
    assert {"lightning", "jsonargparse", "numpy", "pytest", "ruff", "mypy"} <= pins.keys()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean environment with the built wheel; all other packages come from the test's own environment."""
    folder = tmp_path_factory.mktemp("packaging")
    source, dist, clean = folder / "source", folder / "dist", folder / "venv"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    # The wheel is built from the source distribution, so that both are shown to be complete.
    call([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source], folder)
    shutil.rmtree(source)
    venv.create(clean)
    (wheel,) = dist.glob("*.whl")
    call(
        [sys.executable, "-m", "pip", "--python", clean / "bin/python", "install", "--no-deps", wheel], folder
    )
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(clean), "platbase": str(clean)}))
    # A path in a .pth file adds a directory without the .pth files in it, such as an editable install's.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    yield clean
    shutil.rmtree(folder)


@pytest.mark.process
def test_wheel_holds_packages_and_configurations(installation: Path, tmp_path: Path) -> None:
    code = """
import json
from importlib.metadata import metadata
from importlib.util import find_spec
from app.run.configuration import shipped_directory, shipped_names
origins = [find_spec(name).origin for name in ("app", "callbacks", "datamodules")]
shipped = shipped_directory()
print(json.dumps([origins, str(shipped), shipped_names(shipped), metadata("archlab")["License-Expression"]]))
"""
    output = call([installation / "bin/python", "-c", code], tmp_path).stdout
    origins, directory, names, license_name = json.loads(output)
    assert all(Path(path).is_relative_to(installation) for path in (*origins, directory))
    folder = ROOT / "configs"
    studies = {path.name for path in (folder / "study").iterdir()}
    assert {path.name for path in (Path(directory) / "study").iterdir()} == studies
    assert names == sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.yaml")
        if path.name not in studies
    )
    scripts = {path.name for path in (ROOT / "app/browser").iterdir() if path.suffix in (".css", ".js")}
    assert scripts <= {path.name for path in (Path(origins[0]).parent / "browser").iterdir()}
    assert license_name == "Apache-2.0"
    assert len(list(installation.rglob("archlab-*/licenses/LICENSE"))) == 1
    assert not list(installation.rglob("test_packaging.py"))


@pytest.mark.process
def test_installed_command_trains_and_generates(installation: Path, tmp_path: Path) -> None:
    words = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog")
    text = " ".join(words[(7 * n * n + n) % len(words)] for n in range(2000))
    (tmp_path / "text.txt").write_text(text)
    settings = {
        "model.init_args.d_model": 32,
        "model.init_args.n_layers": 1,
        "data.init_args.path": "text.txt",
        "data.init_args.block_size": 32,
        "data.init_args.batch_size": 4,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.accelerator": "cpu",
    }
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    output = call([installation / "bin/app", "fit", "--config", "tilelli_banks4", *options], tmp_path).stdout
    (run,) = (tmp_path / "runs" / "tilelli_banks4").iterdir()
    assert str(run.relative_to(tmp_path)) in output
    assert (run / "checkpoints" / "resume-000002.ckpt").exists()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["2"]
    generate: list[str | Path] = [
        installation / "bin/app",
        "generate",
        run,
        "--tokens",
        "8",
        "--prompt",
        "the ",
    ]
    assert call(generate, tmp_path).stdout.startswith("the ")


@pytest.mark.process
def test_installed_command_writes_examples(installation: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        call([installation / "bin/app", "new", kind, f"My{kind.title()}"], tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written > {"my_architecture.py", "my_architecture.yaml", "test_my_callback.py", "my_data.py"}


@pytest.mark.process
def test_module_starts_the_same_command(installation: Path, tmp_path: Path) -> None:
    script = call([installation / "bin/app", "--version"], tmp_path).stdout
    module = call([installation / "bin/python", "-m", "app", "--version"], tmp_path).stdout
    assert script == module == f"archlab {app.__version__}\n"
