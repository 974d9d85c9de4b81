"""Grouping, figures and curves of runs beside each other."""

import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.analysis.comparison import Run, compare, flat, read_rows, told_apart
from app.analysis.comparison_figure import curve_of, draw_comparison, leaving
from app.commands.compare import what_compares


def made(
    seed: int = 1, losses: tuple[float, ...] = (3.0, 2.0, 2.5), path: str = "x/a", **settings: Any
) -> Run:
    """A run that validates at every second of its steps; a step is 100 tokens and half a second."""
    rows: list[dict[str, float]] = []
    for i, loss in enumerate(losses):
        step = 2.0 * (i + 1)
        rows += [
            {
                "step": step - 1,
                "train/loss": loss - 0.2,
                "tokens_seen": 100 * (step - 1),
                "speed/seconds": 0.5 * (step - 1),
            },
            {"step": step, "train/loss": loss - 0.1, "tokens_seen": 100 * step, "speed/seconds": 0.5 * step},
            {"step": step, "val/loss": loss},
        ]
    return Run(
        path, "finished", {"seed": seed, "model.n_banks": 1, **settings}, {"data.tokenizer": "t"}, rows
    )


def test_figures_of_a_run() -> None:
    figures = made().figures()
    assert figures == {
        "val/loss": 2.5,
        "best/val_loss": 2.0,
        "best/step": 4.0,
        "train/loss": pytest.approx(2.4),
        "tokens_seen": 600.0,
        "speed/seconds": 3.0,
        "tokens_per_second": 200.0,
    }
    assert made(losses=()).figures() == {}
    assert made(losses=(math.nan, 2.0)).figures()["best/val_loss"] == 2.0
    assert "best/val_loss" not in made(losses=(math.nan,)).figures()


def test_runs_that_differ_by_seed_alone_are_one_group() -> None:
    runs = [made(1), made(2, (3.0, 2.2, 2.7)), made(1, **{"model.n_banks": 4}), made(3, (3.0, 2.1, 2.9))]
    comparison = compare(runs)
    assert [[run.seed for run in group.runs] for group in comparison.groups] == [[1, 2, 3], [1]]
    assert comparison.differences == {"model.n_banks": [1, 4]}
    assert [group.name for group in comparison.groups] == ["A  n_banks 1  (n = 3)", "B  n_banks 4"]
    spread = comparison.groups[0].figures()["val/loss"]
    assert spread == (pytest.approx(2.7), pytest.approx(statistics.stdev([2.5, 2.7, 2.9])), 3)
    assert comparison.groups[1].figures()["val/loss"] == (2.5, 0.0, 1)


def test_a_run_that_ended_early_is_in_no_mean() -> None:
    comparison = compare([made(1), made(2), made(3, (3.0,))])
    assert [len(group.runs) for group in comparison.groups] == [2, 1]
    assert [group.label for group in comparison.groups] == ["x, to step 6", "x, to step 2"]
    assert comparison.differences == {}


def test_another_text_is_another_group_and_compares_per_byte() -> None:
    other = made()
    other.context = {"data.tokenizer": "u"}
    comparison = compare([made(), other])
    assert len(comparison.groups) == 2
    assert comparison.differences == {"data.tokenizer": ["t", "u"]}
    assert comparison.loss_key == "val/bpb"


def test_a_run_with_unknown_words_compares_with_none_of_another_tokenizer(tmp_path: Path) -> None:
    runs = [made(path=f"x/{i}", **{"model.n_banks": i}) for i in range(3)]
    for run, (tokenizer, extra) in zip(
        runs, [("byte", {"val/bpb": 2.0}), ("word", {"val/unknown_share": 0.125}), ("old", {})], strict=True
    ):
        run.context = {"data.tokenizer": tokenizer}
        for row in run.rows:
            row |= extra if "val/loss" in row else {}
    comparison = compare(runs)
    assert comparison.loss_key == "val/bpb"
    assert comparison.without_bytes == {"B": 0.125, "C": None}
    assert "val/bpb" not in comparison.groups[1].figures()
    assert comparison.groups[1].figures()["val/unknown_share"] == (0.125, 0.0, 1)
    assert what_compares(comparison) == [
        "the runs have different tokenizers: losses, in nats per token, do not compare; bits per byte (bpb) do, where they "
        "are given",
        "B compares with none of another tokenizer: it has no bits per byte, 12.50% of its validation tokens being unknown "
        "words",
        "C compares with none of another tokenizer: it has no bits per byte",
    ]
    draw_comparison(comparison, tmp_path / "curves.png")


def test_experiments_names_where_they_tell_setups_apart() -> None:
    runs = [
        made(path="runs/one/1"),
        made(path="runs/two/1", **{"model.n_banks": 2}),
        made(2, path="runs/one/2"),
    ]
    assert [group.label for group in compare(runs).groups] == ["one", "two"]


def test_own_names_where_many_settings_differ() -> None:
    settings, changes = ({f"model.setting_{i}": i + shift for i in range(4)} for shift in (0, 1))
    named = [made(path="runs/one", **settings), made(path="runs/two", **changes)]
    assert [group.label for group in compare(named).groups] == ["one", "two"]
    generated = ["20260101T000000.000Z-0a1b", "20260101T000001.000Z-0a1c"]
    for run, name in zip(named, generated, strict=True):
        run.path = f"runs/{name}"
    assert compare(named).groups[1].label == "setting_0 1, setting_1 2, setting_2 3"


def test_what_was_trained_comes_first_in_a_label() -> None:
    runs = [
        made(path="a/x", **{"trainer.accelerator": device, "model.class_path": f"app.training.{name}"})
        for name, device in (("One", "cpu"), ("Two", "gpu"))
    ]
    assert [group.label for group in compare(runs).groups] == [
        "One, accelerator cpu",
        "Two, accelerator gpu",
    ]


def test_settings_that_go_with_a_class_are_left_out() -> None:
    differences = {
        "model.class_path": ["A", "B"],
        "model.init_args.rate": [1, 2],
        "model.init_args.n_banks": [4, None],
        "trainer.callbacks.Health": ["yes", None],
        "trainer.callbacks.Health.dead_steps": [200, None],
        "trainer.callbacks.Samples.seed": [1, 2],
        "data.init_args.path": [None, "x"],
    }
    told, n_left = told_apart(differences)
    left_out = {"model.init_args.n_banks", "trainer.callbacks.Health.dead_steps"}
    assert told == {key: values for key, values in differences.items() if key not in left_out}
    assert n_left == 2
    del differences["model.class_path"]
    assert "model.init_args.n_banks" in told_apart(differences)[0]


def test_context_of_a_group_is_shown_where_it_differs() -> None:
    runs = [made(1), made(2), made(1, **{"model.n_banks": 4})]
    for run, python in zip(runs, ("3.11", "3.12", "3.12"), strict=True):
        run.context = {**run.context, "launch.python": python}
    assert compare(runs).differences == {"model.n_banks": [1, 4], "launch.python": ["several", "3.12"]}


@pytest.mark.parametrize(
    ("key", "values", "named"),
    [
        ("launch.commit", ["ab" * 20, "cd" * 20], ["commit abababab", "commit cdcdcdcd"]),
        (
            "launch.source_diff_sha256",
            [None, "cd" * 32],
            ["uncommitted changes none", "uncommitted changes cdcdcdcd"],
        ),
        ("place.device", ["cpu", "NVIDIA H200"], ["cpu", "NVIDIA H200"]),
        ("place.torch", ["2.11.0", "2.13.0"], ["torch 2.11.0", "torch 2.13.0"]),
        ("place.world_size", [1, [1, 2]], ["world size 1", "world size 1 then 2"]),
        ("place.reproducible", [True, False], ["reproducible True", "reproducible False"]),
        ("launch.changes", [None, ["a: 1 -> 2"]], ["changed none", "changed a: 1 -> 2"]),
    ],
)
def test_runs_made_with_something_else_are_no_sample_of_one_thing(
    key: str, values: list[Any], named: list[str]
) -> None:
    runs = [made(seed) for seed in (1, 2, 3, 4)]
    for run, value in zip(runs, [*values, *values], strict=True):
        run.context = {**run.context, key: value}
    groups = compare(runs).groups
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 3], [2, 4]]
    assert [group.label.split(", ", 1)[1] for group in groups] == named


def test_a_seed_counts_once() -> None:
    runs = [made(1), made(2, (4.0, 3.0, 2.7)), made(1), made(1)]
    for number, run in enumerate(runs):
        run.path = f"runs/x/{number}"
    comparison = compare(runs)
    (group,) = comparison.groups
    assert [run.path for run in group.runs] == ["runs/x/0", "runs/x/1"]
    assert [run.path for run in group.repeats] == ["runs/x/2", "runs/x/3"]
    assert group.figures()["val/loss"] == compare(runs[:2]).groups[0].figures()["val/loss"]
    assert group.figures()["val/loss"].n == 2
    assert what_compares(comparison) == [
        f"runs/x/{number}: seed 1 once more in A; a seed counts once" for number in (2, 3)
    ]
    unknown = [made(1), made(1)]
    for number, run in enumerate(unknown):
        run.path, run.configuration = f"runs/x/{number}", {**run.configuration, "seed": None}
    assert len(compare(unknown).groups[0].runs) == 2


def test_many_groups_have_letters() -> None:
    groups = compare([made(**{"model.n_banks": n}) for n in range(30)]).groups
    assert [group.letter for group in groups][24:28] == ["Y", "Z", "AA", "AB"]


def test_flat_configuration() -> None:
    values = {
        "seed": 1,
        "model": {"init_args": {"d": 2, "betas": [0.9, 0.95], "none": None, "empty": {}}},
        "callbacks": [{"class_path": "c.One", "init_args": {"n": 3}}, {"class_path": "c.Two"}],
    }
    assert flat(values) == {
        "seed": 1,
        "model.init_args.d": 2,
        "model.init_args.betas": [0.9, 0.95],
        "model.init_args.none": None,
        "model.init_args.empty": {},
        "callbacks.One": "yes",
        "callbacks.One.n": 3,
        "callbacks.Two": "yes",
    }


def test_damaged_rows_are_left_out(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    table.write_text("step,train/loss\n1,2.5\n2,\nx,1.0\n3,1.5,9\n4,tw\n5,nan\n6,1")
    rows, n_damaged = read_rows(table)
    assert [row["step"] for row in rows] == [1, 2, 5, 6]
    assert n_damaged == 3
    table.write_text("loss\n")
    with pytest.raises(ValueError, match="column `step`"):
        read_rows(table)
    table.write_text("")
    with pytest.raises(ValueError, match="column `step`"):
        read_rows(table)


def test_curves_over_tokens_and_seconds() -> None:
    runs = [made(1), made(2, (4.0, 3.0, 2.7, 2.5))]
    for key, per_step in (("tokens_seen", 100), ("speed/seconds", 0.5)):
        curve = curve_of(runs, key, "val/loss")
        assert curve.x.tolist() == [per_step * step for step in (2, 4, 6)]
        assert curve.mean == pytest.approx([3.5, 2.5, 2.6])
        assert curve.sd == pytest.approx([statistics.stdev(pair) for pair in ((3, 4), (2, 3), (2.5, 2.7))])
    assert len(curve_of([made(losses=())], "tokens_seen", "val/loss").x) == 0
    assert not curve_of([made()], "tokens_seen", "val/loss").sd.any()


def test_a_validation_between_two_logged_steps_has_a_time() -> None:
    run = made(losses=(3.0,))
    run.rows = [
        {"step": 4.0, "speed/seconds": 2.0},
        {"step": 6.0, "val/loss": 1.0},
        {"step": 8.0, "speed/seconds": 6.0},
    ]
    assert run.against("speed/seconds", "val/loss") == (np.array([4.0]), np.array([1.0]))


@pytest.mark.parametrize(
    "runs",
    [
        [made()],
        [made(1), made(2), made(**{"model.n_banks": 4})],
        [made(losses=(math.nan, math.nan)), made(losses=())],
        [made(**{"model.n_banks": n}) for n in range(9)],
    ],
    ids=["one", "groups", "nothing finite", "many"],
)
def test_a_picture_is_drawn(runs: list[Run], tmp_path: Path) -> None:
    notes = draw_comparison(compare(runs), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert len(notes) == 2 * sum(not run.rows for run in runs)


def test_texts_that_differ_are_said() -> None:
    runs = [
        Run("r/a", "finished", {"model.class_path": "A"}, {"data.sha256": "a" * 64, "data.source": "stdlib"}),
        Run(
            "r/b",
            "finished",
            {"model.class_path": "B", "data.init_args.path": "somewhere/plays.txt"},
            {"data.sha256": "b" * 64, "data.source": "path"},
        ),
    ]
    (note,) = what_compares(compare(runs))
    assert "different texts (A: stdlib; B: plays.txt)" in note
    assert what_compares(compare(runs[:1])) == []


def test_every_series_that_leaves_the_frame_is_named() -> None:
    series = {
        "A": [np.array([2.0, 1.0])], "B": [np.array([1.5, np.nan]), np.array([0.5])],
        "counting alone": [np.array([0.1])],
    }  # fmt: skip
    assert leaving(series, 0.4, 1.8) == "leave the frame: at the top A; at the bottom counting alone"
    assert leaving(series, 0.6, 1.8) == "leave the frame: at the top A; at the bottom B, counting alone"
    assert leaving(series, 0.0, 3.0) == ""
