"""Tables on terminals of 60, 80 and 120 columns."""

import io

import pytest
from rich.console import Console

from app.commands.tables import print_table

HEADER = ["", "val loss", "val bpb", "best val", "at step", "tokens", "tokens/s"]
ROWS = [
    ["A", "2.0346 ± 0.0022", "2.9353 ± 0.0031", "2.0346", "200", "409,600", "16,174 ± 2,467"],
    ["B", "2.3609", "3.4060", "2.3609", "200", "409,600", "6,450"],
    ["C", "2.6601", "3.8378", "2.6601", "120", "245,760", "6,517"],
]
UPRIGHT = """\
          val loss          val bpb  best val  at step   tokens        tokens/s
A  2.0346 ± 0.0022  2.9353 ± 0.0031    2.0346      200  409,600  16,174 ± 2,467
B           2.3609           3.4060    2.3609      200  409,600           6,450
C           2.6601           3.8378    2.6601      120  245,760           6,517
"""
LYING = """\
                        A        B        C
val loss  2.0346 ± 0.0022   2.3609   2.6601
val bpb   2.9353 ± 0.0031   3.4060   3.8378
best val           2.0346   2.3609   2.6601
at step               200      200      120
tokens            409,600  409,600  245,760
tokens/s   16,174 ± 2,467    6,450    6,517
"""
APART = """\
          A
val loss  2.0346 ± 0.0022
val bpb   2.9353 ± 0.0031
best val  2.0346
at step   200
tokens    409,600
tokens/s  16,174 ± 2,467

                B        C
val loss   2.3609   2.6601
val bpb    3.4060   3.8378
best val   2.3609   2.6601
at step       200      120
tokens    409,600  245,760
tokens/s    6,450    6,517
"""


def printed(width: int, is_coloured: bool = False) -> str:
    file = io.StringIO()
    output = Console(
        width=width, file=file, force_terminal=is_coloured, color_system="truecolor" if is_coloured else None
    )
    print_table(output, HEADER, ROWS)
    return file.getvalue()


@pytest.mark.parametrize(("width", "wanted"), [(120, UPRIGHT), (80, UPRIGHT), (60, LYING), (30, APART)])
def test_a_table_fits(width: int, wanted: str) -> None:
    shown = printed(width)
    assert [line.rstrip() for line in shown.splitlines()] == [*wanted.splitlines(), ""]


def test_colour_marks_the_header_alone() -> None:
    header, *rows = printed(80, is_coloured=True).splitlines()
    assert "\x1b[1m" in header
    assert not any("\x1b" in row for row in rows)


def test_a_cell_wider_than_all_of_the_room_is_broken() -> None:
    file = io.StringIO()
    print_table(Console(width=30, file=file), ["setting", "A"], [["name", "x" * 70]])
    shown = file.getvalue()
    assert shown.count("x") == 70
    assert max(map(len, shown.splitlines())) <= 30
