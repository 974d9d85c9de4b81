"""The table of a running study at 60, 80 and 120 columns, in colour, and on what cannot be drawn on."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from app.study.display import LiveTable, table
from app.study.jobs import Job, Standing
from app.study.plan import Row

REASON = "error: model.d_model (row wide): must be a multiple of n_heads = 3, is 128; choose another n_heads"


def jobs(folder: Path) -> tuple[list[Job], dict[str, Standing], dict[str, int]]:
    """Two rows of three seeds: done, under way and failed."""
    made = [
        Job(Row(name, name, ("gpt_char",), {}), seed, folder, {})
        for name in ("[red]", "wide")
        for seed in (1, 2, 3)
    ]
    states = [
        Standing("finished", 1500), Standing("running", 300), Standing("waiting"),
        Standing("failed", 0, 2, REASON), Standing("running"), Standing("stopped", 40, 143, "was stopped"),
    ]  # fmt: skip
    metrics = made[1].run.metrics
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step,speed/seconds\n300,60.0\n")
    names = [job.name for job in made]
    return made, dict(zip(names, states, strict=True)), dict.fromkeys(names, 1500)


SHOWN = {
    120: """\
row    done  now
[red]  1/3   seed 2 at 300/1,500, 4:00 left
wide   0/3   seed 1 failed with exit code 2: error: model.d_model (row wide): must be a multiple of n_heads = 3, is 128;
             choose another n_heads
             seed 2 starts
             seed 3 stopped at step 40: was stopped
1 of 6 runs finished
""",
    60: """\
row    done  now
[red]  1/3   seed 2 at 300/1,500, 4:00 left
wide   0/3   seed 1 failed with exit code 2: error:
             model.d_model (row wide): must be a multiple of
             n_heads = 3, is 128; choose another n_heads
             seed 2 starts
             seed 3 stopped at step 40: was stopped
1 of 6 runs finished
""",
}


def drawn(folder: Path, width: int, colours: str | None = None) -> str:
    file = io.StringIO()
    console = Console(width=width, file=file, force_terminal=bool(colours), color_system=colours)  # type: ignore[arg-type]
    console.print(table(*jobs(folder)))
    return file.getvalue()


@pytest.mark.parametrize("width", SHOWN)
def test_nothing_is_cut_off(width: int, tmp_path: Path) -> None:
    assert [line.rstrip() for line in drawn(tmp_path, width).splitlines()] == SHOWN[width].splitlines()


def test_colours_tell_what_has_failed(tmp_path: Path) -> None:
    shown = drawn(tmp_path, 80, "standard")
    assert "\x1b[31mseed 1 failed" in shown and "\x1b[33mseed 3 stopped" in shown
    assert max(len(line) for line in drawn(tmp_path / "plain", 80).splitlines()) <= 80


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_terminal_that_cannot_be_drawn_on_gets_lines(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr(sys, "stdout", Screen())
    made, before, max_steps = jobs(tmp_path)
    with LiveTable(max_steps) as shown:
        shown.changed(made, before)
        shown.changed(made, before | {made[1].name: Standing("finished", 1500)})
    said = sys.stdout.getvalue()  # type: ignore[attr-defined]
    if kind == "dumb":
        assert said.endswith(" [red]/seed_2: finished at step 1,500\n") and "\x1b" not in said
    else:
        assert "2 of 6 runs finished" in said and "\x1b[?25h" in said, "the cursor is shown again"
