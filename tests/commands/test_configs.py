"""``app configs``: the list of what is shipped."""

from pathlib import Path

import pytest

from app.cli import main
from app.commands.configs import OFFLINE, heading
from app.run.configuration import find_config, shipped_directory, shipped_names
from app.run.errors import ConfigurationError


def test_every_configuration_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if line[:2] == "  " and line[2] != " "]
    assert sorted(set(listed) - {"downloads"}) == shipped_names(shipped_directory())
    for options in OFFLINE.values():
        assert f"without a network add {options}" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  tilelli_banks4 "))
    said = " ".join(" ".join(lines[at : at + 3]).split())
    assert said == (
        "tilelli_banks4 The reference experiment: ternary weights, five pathways, four banks each "
        "1,000 steps of 16 x 128, 89 s on two CPU threads"
    )
    assert lines.index("overlays: app fit NAME --config OVERLAY") < next(
        n for n, line in enumerate(lines) if line.startswith("  hardware/cpu")
    )


def test_one_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "hardware/gpu"]) == 0
    assert capsys.readouterr().out == find_config("hardware/gpu").read_text()


def test_a_name_with_a_typo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "gpt_chr"]) == 2
    assert "did you mean gpt_char?" in capsys.readouterr().err
    with pytest.raises(ConfigurationError):
        find_config("gpt_chr")


def test_the_heading_of_a_file_without_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\n# later\n")
    assert heading(path) == ("", "")
    path.write_text("# What it shows\n# Cost: nothing\nseed: 1\n")
    assert heading(path) == ("What it shows", "nothing")
