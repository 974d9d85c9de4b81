"""The shipped configurations: each names the command that runs it, and that command is understood."""

import shlex
from pathlib import Path

import pytest
import torch

from app.run import arguments
from app.run.configuration import find_config, read_config, shipped_directory, shipped_names
from app.run.errors import ConfigurationError
from app.training import SupervisedDDPStrategy
from app.training.command_line import RunCLI

NAMES = shipped_names(shipped_directory())


def parse(words: list[str]) -> RunCLI:
    launch = arguments.read(words)
    return RunCLI(launch, [read_config(find_config(name)) for name in launch.configs])


def heading(name: str) -> list[str]:
    """The lines of the comment that opens a configuration, without the signs."""
    lines = find_config(name).read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def test_configurations_are_found() -> None:
    assert shipped_directory() == Path(__file__).resolve().parents[1] / "configs"
    assert {"tilelli_banks4", "tilelli_banks1", "gpt_char", "debug/overfit"} <= set(NAMES)
    assert {"hardware/cpu", "hardware/gpu", "hardware/ddp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_opens_with_the_command_that_runs_it(name: str) -> None:
    command, blank, *explanation = heading(name)
    words = shlex.split(command)
    assert words[:2] == ["app", "fit"]
    assert arguments.read(words[2:]).configs[-1] == name
    assert not blank
    assert all(explanation)
    parse(words[2:])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hardware/")])
@pytest.mark.parametrize("experiment", [name for name in NAMES if not name.startswith("hardware/")])
def test_overlay_changes_the_trainer_only(name: str, experiment: str) -> None:
    overlay = read_config(find_config(name)).data
    assert list(overlay) == ["trainer"]
    plain = parse(["--config", experiment]).config
    overlaid = parse(["--config", experiment, "--config", name]).config
    for section in ("seed", "model", "data", "checkpoint_every_n_steps"):
        assert plain[section] == overlaid[section]
    for key, value in overlay["trainer"].items():
        given = overlaid.trainer[key]
        if key == "strategy":  # the parser adds the default arguments
            given, value = given.class_path, value["class_path"]
        assert given == value


@pytest.mark.parametrize("name", NAMES)
def test_trainer_is_built(name: str, tmp_path: Path) -> None:
    # Two processes need two GPUs, or none at all.
    device = [] if name == "hardware/gpu" else ["--trainer.accelerator", "cpu"]
    words = shlex.split(heading(name)[0])[2:]
    parsed = parse([*words, *device])
    if name == "hardware/gpu" and not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="gpu"):
            parsed.build_trainer([], [], [], tmp_path)
        return
    trainer = parsed.build_trainer([], [], [], tmp_path)
    assert isinstance(trainer.strategy, SupervisedDDPStrategy) == (name == "hardware/ddp")
    assert trainer.num_devices == (2 if name == "hardware/ddp" else 1)


def test_one_bank_differs_from_four_in_the_banks_alone() -> None:
    four, one = (read_config(find_config(f"tilelli_banks{n}")).data for n in (4, 1))
    assert four["model"]["init_args"].pop("n_banks") == 4
    assert one["model"]["init_args"].pop("n_banks") == 1
    watchers = [
        entry for entry in four["trainer"]["callbacks"] if entry["class_path"] != "callbacks.BankBalance"
    ]
    assert four["trainer"].pop("callbacks") != watchers
    assert one["trainer"].pop("callbacks") == watchers
    assert one == four


def test_the_baseline_sees_the_same_windows() -> None:
    tilelli, gpt = (read_config(find_config(name)).data for name in ("tilelli_banks4", "gpt_char"))
    assert gpt["data"] == tilelli["data"]
    assert gpt["seed"] == tilelli["seed"]
    for key in ("max_steps", "val_check_interval"):
        assert gpt["trainer"][key] == tilelli["trainer"][key]
