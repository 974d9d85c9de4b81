"""Inputs that no picture is made for are drawn or left out: one point, no range, no finite number, hostile names."""

import csv
import io
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from app.analysis import drawable, gamma_figure
from app.analysis.colours import scale_of, short
from app.analysis.comparison import Run, compare
from app.analysis.comparison_figure import draw_comparison
from app.analysis.curves import draw_learning_curve, read_series
from app.analysis.depth_time import DepthTime, Rows
from app.analysis.figures import draw_group, draw_quantity
from app.analysis.gamma import analyse
from app.analysis.gamma_families import Scales
from app.analysis.report import Material, report
from app.analysis.report.chart import Line, line_chart
from app.analysis.trace import Trace, TracedMeasure, TracedRun, trace_page

#: six of it have another mean in single precision, which lies above all of them
UNEQUAL_TO_ITS_MEAN = next(
    x for x in np.linspace(0.1, 1, 99, dtype=np.float32) if np.full((6, 1), x).mean(axis=0) > x
)
SERIES: dict[str, list[float]] = {
    "empty": [],
    "one": [1.5],
    "two equal": [2.0, 2.0],
    "constant": [0.1] * 9,
    "rounded": [float(UNEQUAL_TO_ITS_MEAN)] * 6,
    "nearly constant": [1.0, 1.0 + 2**-52, 1.0],
    "NaN": [math.nan] * 3,
    "some NaN": [1.0, math.nan, 2.0, math.nan],
    "infinite": [math.inf] * 3,
    "some infinite": [1.0, math.inf, 2.0, -math.inf, 3.0],
    "negative": [-1.0, -2.0, -4.0],
    "huge": [1e300, -1e300, 1.7e308],
    "one huge": [1e300, 1.0, 2.0, 3.0],
    "single precision": [3e38, -3e38],
    "tiny": [1e-310, 5e-324, 0.0],
    "beyond 2^53": [float(2**53 + 2 * i) for i in range(5)],
}
NAMES = (
    "$x_{$",
    r"$\frac{1}{$ \ %s {x}",
    "_hidden",
    "\ud800\x00\x1b[31m\n\t\u202e",
    "漢字 🙂",
    "x" * 3000,
    "",
)
KINDS = ("share", "count", "threshold", "level", "gain")


def series(*quick: str) -> list[Any]:
    """Names of all series; the rest of them is left to the exhaustive form."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.stress) for name in SERIES]


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    """A number that has no place is left out, not divided by."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def picture(draw: Callable[[Any], object]) -> np.ndarray:
    file = io.BytesIO()
    draw(file)
    return imread(io.BytesIO(file.getvalue()))


def kept(rows: Rows, columns: list[list[float]]) -> DepthTime:
    numbers = DepthTime(len(rows.layers) * len(rows.entries))
    for step, column in enumerate(columns, 1):
        numbers.add(step, np.resize(np.asarray(column), numbers.n_rows))
    return numbers


def draws_quantity(kind: Any, name: str, n_layers: int, n_steps: int, **described: Any) -> None:
    rows = Rows("x", kind, tuple(map(str, range(n_layers))), **described)
    columns = [SERIES[name] or [0.0]] * n_steps
    assert draw_quantity(rows, kept(rows, columns)).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", series("rounded", "some infinite"))
def test_figures_over_depth(name: str) -> None:
    for kind, n_steps in (("threshold", 1), ("threshold", 12), ("level", 1), ("share", 12)):
        draws_quantity(kind, name, 6, n_steps)


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SERIES)
def test_figures_over_depth_of_every_shape(name: str, kind: str) -> None:
    for n_layers, n_steps, entries in itertools.product((1, 6, 40), (1, 2, 30), (("",), ("a", "b", "c"))):
        draws_quantity(kind, name, n_layers, n_steps, entries=entries)


@pytest.mark.parametrize("number", [math.nan, 1e300])
def test_targets_and_neutral_numbers_that_are_none(number: float) -> None:
    draws_quantity("share", "constant", 2, 2, entries=("a", "b"), target=((number, number),))
    draws_quantity("threshold", "constant", 2, 2, entries=("a", "b"), target=((number, number),))
    draws_quantity("level", "constant", 2, 2, neutral=number)


def test_a_mean_lies_between_the_ends_of_its_band() -> None:
    """What ended trainings: in single precision the mean of six equal thresholds is another number."""
    values = np.full((6, 1), UNEQUAL_TO_ITS_MEAN)
    assert values.mean(axis=0) > values.max(axis=0)
    assert drawable.numbers(values).mean(axis=0) == values.max(axis=0)


@pytest.mark.parametrize(
    "name",
    [NAMES[0] + NAMES[3] + NAMES[4], *(pytest.param(name, marks=pytest.mark.stress) for name in NAMES)],
)
def test_names(name: str, tmp_path: Path) -> None:
    rows = Rows(name, "level", (name, "1"), (name,), unit=name, meaning=name, note=name)
    numbers = kept(rows, [[1.0, 2.0]] * 3)
    for drawn in (
        draw_quantity(rows, numbers),
        draw_group(name, {name: (rows, numbers), "b": (rows, numbers)}, name),
    ):
        edges = imread(io.BytesIO(drawn))
        assert all((edge == 1).all() for edge in (edges[0], edges[-1], edges[:, 0])), (
            "no row's name is cut off"
        )
    lines = Rows(name, "threshold", ("0",), (name, "b"), unit=name)
    draw_quantity(lines, kept(lines, [[1.0, 2.0]] * 3))
    picture(lambda file: draw_learning_curve(metrics(tmp_path, [2.0, 1.0], [2.0]), file, name, 2.0))
    runs = [run(f"{name}/a", [2.0, 1.0], [2.0], **{"model.name": name}), run("b", [2.0, 1.0], [2.0])]
    picture(lambda file: draw_comparison(compare(runs), file))
    scales = Scales({name or "ln": [1.0, 2.0, 3.0]}, {}, {name or "ln": "norm"})
    picture(lambda file: gamma_figure.draw(analyse(scales, with_chance=False), file, name))
    assert "<svg" in line_chart([Line(np.arange(2.0), np.ones(2), 0)], name, name, name)


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    def drawn(entry: str) -> np.ndarray:
        rows = Rows("x", "threshold", ("0",), (entry,))
        return imread(io.BytesIO(draw_quantity(rows, kept(rows, [[1.0]] * 3))))

    assert not np.array_equal(drawn("_a"), drawn("_b"))


def metrics(folder: Path, training: list[float], validation: list[float]) -> Path:
    path = folder / "metrics.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "train/loss", "val/loss"])
        table.writerows([step, loss, ""] for step, loss in enumerate(training, 1))
        table.writerows([step, "", loss] for step, loss in enumerate(validation, 1))
    return path


@pytest.mark.parametrize("name", series("empty", "huge"))
def test_learning_curves(name: str, tmp_path: Path) -> None:
    path = metrics(tmp_path, SERIES[name], SERIES[name])
    assert picture(lambda file: draw_learning_curve(path, file, "t", (SERIES[name] or [None])[0])).size


def test_one_logged_step_can_be_seen(tmp_path: Path) -> None:
    one, none = (
        picture(
            lambda file, losses=losses: draw_learning_curve(metrics(tmp_path, losses, [1.0]), file, "t", None)
        )
        for losses in ([1.5], [math.nan])
    )
    blue = [((shown[..., :3] - (0, 0.447, 0.698)) ** 2).sum(-1) < 0.01 for shown in (one, none)]
    assert blue[0].sum() > blue[1].sum() + 20


def test_a_damaged_table_gives_the_rows_that_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,train/loss\n1,2.0\n2,x\nq,1\n3\n4,\xff\n5,1.0,7\n6,")
    assert [column.tolist() for column in read_series(path, "train/loss")] == [[1, 5], [2.0, 1.0]]
    for content in (b"", b"\xff\xfe\x00", b"loss\n1\n"):
        path.write_bytes(content)
        assert not len(read_series(path, "train/loss")[0])
    path.unlink()
    assert picture(lambda file: draw_learning_curve(path, file, "t", None)).size


def run(path: str, training: list[float], validation: list[float], seed: int = 1, **settings: Any) -> Run:
    rows = [
        {"step": step, "tokens_seen": 64.0 * step, "speed/seconds": 0.1 * step, "train/loss": loss}
        for step, loss in enumerate(training, 1)
    ] + [{"step": float(step), "val/loss": loss} for step, loss in enumerate(validation, 1)]
    configuration = {"seed": seed, "model.class_path": "app.training.X", **settings}
    return Run(path, "finished", configuration, {"data.tokenizer": "c"}, rows)


@pytest.mark.parametrize("name", series("huge"))
def test_comparisons_and_reports(name: str) -> None:
    sound = run("c", [2.0, 1.0], [2.0, 1.0], **{"model.n_layers": 3})
    odd = [run(path, SERIES[name], SERIES[name], seed) for path, seed in (("a", 1), ("b", 2))]
    for runs in ([odd[0]], odd, [odd[0], sound]):
        comparison = compare(runs)
        assert picture(lambda file, comparison=comparison: draw_comparison(comparison, file)).size
        assert "</html>" in report(comparison, {each.path: Material(each) for each in runs}, [], "0")


@pytest.mark.parametrize(
    "number",
    [math.nan, *(pytest.param(x, marks=pytest.mark.stress) for x in (math.inf, -1.0, 0.0, 1e300, 2.0**60))],
)
def test_axes_that_are_odd(number: float) -> None:
    odd = run("a", [2.0, 1.0], [2.0, 1.0])
    for key in ("tokens_seen", "speed/seconds"):
        for row in odd.rows[:1]:
            row[key] = number
        comparison = compare([odd])
        assert picture(lambda file, comparison=comparison: draw_comparison(comparison, file)).size
        assert "</html>" in report(comparison, {"a": Material(odd)}, [], "0")


@pytest.mark.parametrize("name", SERIES)
def test_charts(name: str) -> None:
    y = np.asarray(SERIES[name])
    for spread, limits in itertools.product(
        (None, np.full(len(y), np.nan), np.full(len(y), 1e308)),
        (None, (1.0, 1.0), (math.nan, 1.0), (-math.inf, 1e308)),
    ):
        shown = line_chart([Line(np.arange(len(y), dtype=float), y, 0, spread)], "x", "y", "t", limits)
        assert "nan" not in shown and "inf" not in shown.replace("infinite", "")
    line_chart([Line(y, np.ones(len(y)), 0)], "x", "y")


@pytest.mark.parametrize("name", series("tiny"))
def test_gains(name: str) -> None:
    kinds: Any = {"ln1": "norm", "q_proj": "matrix", "k_proj": "matrix"}
    for layers in (SERIES[name] or [0.0], (SERIES[name] or [0.0]) * 7):
        gammas = analyse(Scales({family: list(layers) for family in kinds}, {}, kinds), with_chance=False)
        assert picture(lambda file, gammas=gammas: gamma_figure.draw(gammas, file, "t")).size
    numbers = repr(gammas.as_dict()["fits"]) + repr(gammas.as_dict()["temperatures"])
    assert "nan" not in numbers and "inf" not in numbers


@pytest.mark.parametrize("name", SERIES)
def test_traced_tokens(name: str) -> None:
    with np.errstate(over="ignore"):
        values = np.asarray(SERIES[name]).astype(np.float32)
    found = Trace(
        np.arange(len(values)), {"loss": TracedMeasure(values), "x": TracedMeasure(values[None])}, 2
    )
    assert "</html>" in trace_page([TracedRun(found, ["a"] * len(values), "x")], "t", "s")


@pytest.mark.parametrize(
    "number", [0.0, 1.0, -3.0, math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-310, 1e16]
)
def test_labels_are_short(number: float) -> None:
    for span in (0.0, 1.0, math.nan, math.inf, 1e300, 1e-310, -1.0):
        assert len(short(number, span)) <= 14
    matrix = drawable.numbers([[number, 1.0]])
    for neutral, from_zero in itertools.product((None, 0.0, 1e90), (True, False)):
        low, middle, high = scale_of([matrix], neutral, from_zero).marks
        assert low < middle < high


USER_SETTINGS = {
    "text.usetex": True, "font.family": ["No Such Font"], "savefig.bbox": "tight", "savefig.dpi": 20,
    "axes.facecolor": "black", "figure.autolayout": True, "axes.formatter.use_mathtext": True, "path.sketch": (1, 100, 2),
}  # fmt: skip


def test_settings_of_the_user_are_of_other_figures(tmp_path: Path) -> None:
    rows = Rows("x", "threshold", ("0", "1"))
    path = metrics(tmp_path, [2.0, 1.0], [2.0])
    drawn = []
    for settings in ({}, USER_SETTINGS):
        with matplotlib.rc_context(settings):
            drawn.append(draw_quantity(rows, kept(rows, [[1.0, 2.0]] * 3)))
            drawn.append(picture(lambda file: draw_learning_curve(path, file, "t", 2.0)).tobytes())
            assert matplotlib.rcParams["savefig.dpi"] == settings.get("savefig.dpi", "figure"), (
                "and are left alone"
            )
    assert drawn[:2] == drawn[2:]
