"""The display of a run at 60, 80 and 120 columns, in colour and without."""

import io

import pytest
from rich.console import Console

from app.training.run_callbacks.display import Display


def display() -> Display:
    shown = Display(1200, 10_000)
    shown.figures = ("loss 2.0476", "val 2.2129  bpb 3.1926", "13,653 tokens/s")
    shown.seconds_left = 4000
    shown.health = "dead_bank (3), one_sided (1)"
    shown.doing = "validating, batch 3 of 12"
    return shown


SHOWN = {
    120: """\
step 1,200/10,000  ━━━━━━━━╸                                                                 12%  1:06:40 left
loss 2.0476  val 2.2129  bpb 3.1926  13,653 tokens/s  validating, batch 3 of 12
health: dead_bank (3), one_sided (1)
""",
    80: """\
step 1,200/10,000  ━━━━╸                                       12%  1:06:40 left
loss 2.0476  val 2.2129  bpb 3.1926  13,653 tokens/s  validating, batch 3 of 12
health: dead_bank (3), one_sided (1)
""",
    60: """\
step 1,200/10,000  ━━╸                     12%  1:06:40 left
loss 2.0476  val 2.2129  bpb 3.1926  13,653 tokens/s
validating, batch 3 of 12
health: dead_bank (3), one_sided (1)
""",
}


def drawn(shown: Display, width: int, colours: str | None = None) -> str:
    file = io.StringIO()
    console = Console(width=width, file=file, force_terminal=bool(colours), color_system=colours)  # type: ignore[arg-type]
    console.print(shown)
    return file.getvalue()


@pytest.mark.parametrize("width", SHOWN)
def test_it_fits(width: int) -> None:
    lines = [line.rstrip() for line in drawn(display(), width).splitlines()]
    assert lines == SHOWN[width].splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_colours_tell_well_from_ill(width: int) -> None:
    ill = drawn(display(), width, "standard")
    well = display()
    well.health = ""
    assert "\x1b[33mhealth: dead_bank" in ill
    assert "\x1b[32mhealth: nothing found" in drawn(well, width, "standard")
    unwatched = display()
    unwatched.health = None
    assert "health" not in drawn(unwatched, width, "standard")


def test_before_the_first_step() -> None:
    assert drawn(Display(0, 20), 80).split()[:2] == ["step", "0/20"]
