"""The shipped configurations: each names the command that runs it, and that command is understood."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from app.commands import configs
from app.run import arguments
from app.run.configuration import find_config, read_config, shipped_directory, shipped_names
from app.run.errors import ConfigurationError
from app.training import SupervisedDDPStrategy, SupervisedFSDPStrategy
from app.training.command_line import RunCLI

NAMES = shipped_names(shipped_directory())


@pytest.fixture
def _two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a configuration asks of a machine is there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def parse(words: list[str]) -> RunCLI:
    launch = arguments.read(arguments.with_config(words))
    return RunCLI(launch, [read_config(find_config(name)) for name in launch.configs])


def comment(name: str) -> list[str]:
    """The paragraphs of the comment that opens a configuration: what it shows and costs, its command, the rest."""
    lines = find_config(name).read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    paragraphs = "\n".join(line.removeprefix("#").strip() for line in lines[:end]).split("\n\n", 2)
    assert len(paragraphs) > 2, (
        f"{name}: begin with what it shows, perhaps `Cost: …`, an empty #, its command, an empty #, and what one learns"
    )
    return paragraphs


def catalogue() -> dict[str, dict[str, str]]:
    """The rows of the catalogue in configs/README.md: by name, title of the column to text, without code marks."""
    rows: dict[str, dict[str, str]] = {}
    titles: list[str] = []
    for line in (shipped_directory() / "README.md").read_text().partition("## Evidence")[0].splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            titles = []
        elif not titles:
            titles = cells
        elif "---" not in line:
            rows[cells[0]] = dict(zip(titles, cells, strict=True))
    return rows


def pairs() -> list[Any]:
    """Each experiment with one overlay after the other; with all of them in the slow form."""
    overlays = [name for name in NAMES if name.startswith("hardware/")]
    experiments = [name for name in NAMES if name not in overlays]
    return [
        pytest.param(experiment, overlay, marks=[pytest.mark.stress] * ((i + j) % len(overlays) > 0))
        for i, experiment in enumerate(experiments)
        for j, overlay in enumerate(overlays)
    ]


def test_configurations_are_found() -> None:
    assert shipped_directory() == Path(__file__).resolve().parents[1] / "configs"
    assert {"tilelli_banks4", "tilelli_banks1", "gpt_char", "debug/overfit"} <= set(NAMES)
    assert {"hardware/cpu", "hardware/gpu", "hardware/ddp"} <= set(NAMES)


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize("name", NAMES)
def test_opens_with_what_it_shows_and_the_command_that_runs_it(name: str) -> None:
    opening, command, _ = comment(name)
    headline, *cost = opening.splitlines()
    assert 20 < len(headline) <= 90, "the first line has 21 to 90 characters"
    assert not headline.endswith(".")
    assert [line[:6] for line in cost] in ([], ["Cost: "])
    words = shlex.split(command)
    assert words[:2] == ["app", "fit"]
    assert arguments.read(arguments.with_config(words[2:])).configs[-1] == name
    parse(words[2:])


def test_the_catalogue_says_what_they_say() -> None:
    rows = catalogue()
    without = set(NAMES) ^ set(rows)
    assert not without, f"a row of the catalogue in configs/README.md, or its file, is missing: {without}"
    for name, row in rows.items():
        headline, cost = configs.heading(find_config(name))
        shows = row["shows" if "shows" in row else "does"]
        assert shows.partition(";")[0].lower() == headline.lower(), f"{name}: the row repeats the first line"
        assert row.get("cost", cost) == cost


@pytest.mark.usefixtures("_two_gpus")
@pytest.mark.parametrize(("experiment", "name"), pairs())
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
    words = shlex.split(comment(name)[1])[2:]
    if name == "hardware/gpu" and not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="there is no GPU here"):
            parse([*words, *device])
        return
    trainer = parse([*words, *device]).build_trainer([], [], [], tmp_path)
    kinds = {"hardware/ddp": SupervisedDDPStrategy, "hardware/fsdp": SupervisedFSDPStrategy}
    assert [key for key, kind in kinds.items() if isinstance(trainer.strategy, kind)] == [name] * (
        name in kinds
    )
    assert trainer.num_devices == (2 if name in kinds else 1)


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


def test_what_downloads_its_text_says_how_to_do_without() -> None:
    """Every shipped data set is here, or listed with the options that put one in its place; these are understood."""
    for name in NAMES:
        data = read_config(find_config(name)).data.get("data", {})
        title = [
            str(data.get("class_path", "")).rpartition(".")[2],
            *map(str, data.get("init_args", {}).values()),
        ]
        needs = any(word in title for word in configs.OFFLINE)
        assert needs or title[0] in ("", "CharDataModule", "SyntheticDataModule"), name
    for name, word in (("local_gpt_softmax", "tinyshakespeare"), ("wikitext2_gpt", "WikiTextDataModule")):
        parsed = parse([name, *configs.OFFLINE[word].split()]).config["data"]
        assert parsed.class_path == "datamodules.CharDataModule"
        assert parsed.init_args.source == "stdlib"
