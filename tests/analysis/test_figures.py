import io
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from app.analysis.depth_time import DepthTime, Rows
from app.analysis.figure_numbers import numbers_of
from app.analysis.figures import _step_ticks, draw_group, draw_quantity

LANES = ("slow", "fast")
CASES = {
    "share": Rows("used", "share", ("0", "1", "2"), LANES),
    "share on one target": Rows("used", "share", ("0",), LANES, target=((0.5, 0.5),)),
    "shares with targets of their own": Rows("used", "share", ("0", "1"), LANES, target=((0.2, 0.8),) * 2),
    "banks of pathways": Rows("load", "count", ("0", "1"), tuple(f"{x} · {i}" for x in LANES for i in range(4)), 4, "bank"),
    "too many entries for panels": Rows("used", "share", ("0", "1"), tuple(map(str, range(20)))),
    "level": Rows("entropy", "level", tuple(map(str, range(36))), unit="nats"),
    "gain": Rows("gain", "gain", ("0", "1"), note="mean of 128"),
    "named rows": Rows("angle", "level", ("blocks.0.attention.weight", "head.weight")),
    "both signs": Rows("offset", "level", ("0", "1"), LANES, unit="deviation", meaning="what learning has added"),
    "around a neutral number": Rows("angle", "level", ("0", "1"), unit="degrees", neutral=0.5, meaning="to the gradient"),
    "thresholds": Rows("cut", "threshold", ("0", "1", "2"), ("θ1", "θ2"), target=((0.5, 1.0),) * 3, unit="deviation"),
    "one threshold": Rows("cut", "threshold", ("0",)),
}  # fmt: skip


def _kept(rows: Rows, n_steps: int, numbers: Any = None) -> DepthTime:
    shape = len(rows.layers) * len(rows.entries)
    draw = np.random.default_rng(0)
    kept = DepthTime(shape)
    for step in range(1, n_steps + 1):
        kept.add(10 * step, draw.random(shape) if numbers is None else np.full(shape, numbers))
    return kept


def _picture(png: bytes) -> np.ndarray:
    return imread(io.BytesIO(png))


@pytest.mark.parametrize("case", CASES)
def test_every_kind_is_drawn(case: str) -> None:
    picture = _picture(draw_quantity(CASES[case], _kept(CASES[case], 20)))
    assert picture.shape[1] >= 682, "names of rows widen it"
    assert 220 <= picture.shape[0] <= 1300
    assert np.ptp(picture[..., :3]) > 0.9
    assert (picture[..., 3] == 1).all(), "the paper is opaque, for a dark page too"
    # Nothing is cut off: the border is paper.
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 1).all()


@pytest.mark.parametrize("numbers", [0.0, np.nan])
@pytest.mark.parametrize("case", ["share on one target", "level", "thresholds"])
def test_one_step_and_numbers_without_a_range(case: str, numbers: float) -> None:
    rows = CASES[case]
    assert draw_quantity(rows, _kept(rows, 1, numbers)).startswith(b"\x89PNG")


def test_a_group_has_a_panel_each() -> None:
    rows = Rows("x", "level", ("0", "1"))
    group = {name: (rows, _kept(rows, 5)) for name in ("zero", "flip_share", "scale", "flips")}
    assert _picture(draw_group("ternary", group)).shape[0] > _picture(draw_quantity(*group["zero"])).shape[0]


def test_panels_with_scales_of_their_own_are_not_cut_off() -> None:
    titles = ("angle", "length", "share")
    rows = [
        Rows(title, "level", ("0", "1"), meaning=title, unit="degrees", neutral=0.5) for title in titles[:2]
    ]
    rows.append(Rows(titles[2], "level", ("0", "1")))
    picture = _picture(draw_group("alignment", {row.name: (row, _kept(row, 9)) for row in rows}, "of all"))
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == 1).all()


def test_the_same_numbers_give_the_same_file() -> None:
    rows = CASES["share"]
    assert draw_quantity(rows, _kept(rows, 9)) == draw_quantity(rows, _kept(rows, 9))


@pytest.mark.parametrize("last", [1, 120, 3e7])
@pytest.mark.parametrize("width", [0.5, 1.5, 8.0])
def test_ticks_stand_at_steps_and_have_room(last: float, width: float) -> None:
    edges = np.linspace(0, last, 5) if last < 5 else np.linspace(0, last, 61)
    ticks = _step_ticks(edges, width)
    assert ticks[0] == 0 and ticks[-1] == last
    assert {*ticks} <= {*edges.tolist()}, "a tick stands where steps were logged"
    assert len(ticks) <= max(width / 0.75, 2) + 2


def test_loads_are_shares_against_even_ones() -> None:
    rows = CASES["banks of pathways"]
    kept = DepthTime(16)
    for step in (10, 20):
        kept.add(step, [*(3.0, 1.0, 0.0, 0.0) * 2, *(0.0,) * 4, *(5.0,) * 4])
    numbers = numbers_of(draw_quantity(rows, kept, "some/run, step 20"))
    assert numbers is not None
    slow, fast = numbers["panels"]
    assert (slow["unit"], slow["white"], slow["diverging"]) == ("share of its banks", "even, 0.25", True)
    assert slow["marks"][1] == fast["marks"][1] == 0.25
    assert slow["entries"] == [f"bank {number}" for number in range(4)]
    assert slow["values"] == [[0.75] * 2, [0.25] * 2, [0.0] * 2, [0.0] * 2, *[[None] * 2] * 4]
    assert fast["values"][4:] == [[0.25] * 2] * 4
    assert (numbers["steps"], numbers["stamp"]) == ([0.0, 10.0, 20.0], "some/run, step 20")


def test_the_most_that_an_entropy_can_be_is_marked() -> None:
    rows = Rows("entropy", "level", ("0", "1"), unit="nats", maximum=float(np.log(5)))
    numbers = numbers_of(draw_quantity(rows, _kept(rows, 20)))
    assert numbers is not None
    (panel,) = numbers["panels"]
    assert panel["labels"] == ["0", "0.8", "ln 5 = 1.61"]
    assert panel["marks"][2] == pytest.approx(np.log(5))


def test_quantities_of_one_unit_share_a_scale() -> None:
    kept = [_kept(Rows("x", "level", ("0",)), 9, number) for number in (0.2, 0.5, 7.0)]
    rows = [Rows("x", "level", ("0",), unit=unit) for unit in ("share", "share", "weights")]
    numbers = numbers_of(draw_group("ternary", dict(zip("abc", zip(rows, kept, strict=True), strict=True))))
    assert numbers is not None
    low, high, other = (panel["marks"] for panel in numbers["panels"])
    assert low == high != other
    assert (low[0], low[2]) == (pytest.approx(0.2), pytest.approx(0.5))


@pytest.mark.parametrize("case", CASES)
def test_a_file_carries_its_numbers(case: str) -> None:
    png = draw_quantity(CASES[case], _kept(CASES[case], 20))
    numbers = numbers_of(png)
    assert numbers is not None
    assert numbers["layers"] == list(CASES[case].layers)
    rows = [len(panel["values"]) for panel in numbers["panels"]]
    assert sum(rows) == len(CASES[case].layers) * len(CASES[case].entries)
    for number in range(len(png) - 200, len(png), 7):
        numbers_of(png[:number])
    assert numbers_of(png.replace(b"zTXt", b"tEXt")) is None
