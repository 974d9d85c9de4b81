"""What a study's file says, and every way in which it can be wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.run.errors import ConfigurationError
from app.study.plan import Study, find_study, read_study
from app.study.tuning import n_seed_jobs, seed_jobs, tuning_jobs


def study(folder: Path, **keys: Any) -> Study:
    path = folder / "widths.yaml"
    given = {"base": "gpt_char", "seeds": [1, 2]} | keys
    path.write_text(f"# What width is worth\n{yaml.safe_dump(given, sort_keys=False)}")
    return read_study(path)


def test_rows_are_labels_times_values(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        rows={"gpt": {}, "tilelli": {"config": "tilelli_banks4", "model.n_banks": 2}},
        set={"trainer.max_steps": 10},
        product={"model.dropout": [0.0, 0.1]},
        zip={"model.d_model": [64, 128], "model.learning_rate": [1e-3, 2e-3]},
    )
    assert len(found.rows) == 8
    assert [row.name for row in found.rows][:2] == [
        "gpt-dropout_0.0-d_model_64-learning_rate_0.001",
        "gpt-dropout_0.0-d_model_128-learning_rate_0.002",
    ]
    last = found.rows[-1]
    assert last.configs == ("gpt_char", "tilelli_banks4")
    assert last.words(2, {"model.x": "y"}) == [
        "--config", "gpt_char", "--config", "tilelli_banks4", "--trainer.max_steps", "10", "--model.n_banks", "2",
        "--model.dropout", "0.1", "--model.d_model", "128", "--model.learning_rate", "0.002", "--model.x", "y", "--seed", "2",
    ]  # fmt: skip
    assert (found.name, found.headline, found.against) == ("widths", "What width is worth", "gpt")
    assert n_seed_jobs(found) == len(seed_jobs(found, tmp_path)) == 16


def test_what_decides_a_run_decides_its_digest(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("seed: 1\n")
    row = study(tmp_path, base="mine.yaml").rows[0]
    assert row.name == "mine"
    before = row.digest(1)
    assert before == row.digest(1) != row.digest(2)
    assert before != row.digest(1, {"model.dropout": 0.1})
    config.write_text("seed: 2\n")
    assert before != row.digest(1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sedes": [1]}, "sedes: there is no such key; did you mean 'seeds'?"),
        ({"seeds": [1, 1]}, "seeds: [1, 1]: must be different numbers"),
        ({"seeds": [-1]}, "seeds: [-1]: must be different numbers, each at least 0"),
        ({"seeds": 3}, "seeds: 3: must be a list of whole numbers"),
        ({"base": "gpt_chr"}, "base: gpt_chr: neither a file nor a shipped configuration; did you mean gpt_char?"),
        ({"base": []}, "has no configuration"),
        ({"rows": {"a": {"x": 1}, "b": {"x": 1}}}, "'b' and 'a' collide"),
        ({"product": {"model.x": [1, 1]}}, "collide"),
        ({"product": {"model.x": ["a b", "a-b"]}}, "collide: they have the same name or values"),
        ({"product": {"model.x": []}}, "product.model.x: []: must be a list of values"),
        ({"product": [1]}, "product: must be `option: value` lines"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "zip: its lists must be equally long, and these are not: a 2, b 1"),
        ({"rows": ["a"]}, "rows: must be `label: {option: value}` lines"),
        ({"rows": {"a": 3}}, "rows.a: must be `option: value` lines, or {}"),
        ({"set": {"seed": 3}}, "set.seed: the study decides it; leave it out"),
        ({"set": {"run_dir": "x"}}, "set.run_dir: the study decides it"),
        ({"margin": 0}, "margin: 0 is out of range; it must be a positive number"),
        ({"margin": "small"}, "margin: 'small' is out of range"),
        ({"against": "gtp"}, "against: there is no row 'gtp'; rows: gpt_char"),
        ({"ladder": "gtp"}, "ladder: no row has the label 'gtp'"),
        ({"tune": {"grid": {}}}, "tune: must be {seed: …, fraction: …, grid: {option: [values]}}"),
        ({"tune": {"seed": 1, "grid": {"model.x": [1]}}}, "tune.seed: 1 is one of the seeds"),
        ({"tune": {"fraction": 2.0, "grid": {"model.x": [1]}}}, "tune.fraction: 2.0 is out of range"),
        ({"tune": {"gird": 1, "grid": {"model.x": [1]}}}, "tune.gird: there is no such key"),
        ({"rows": {"a" * 300: {}}}, "too long for the name of a folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        study(tmp_path, **keys)
    assert said in str(error.value)
    assert all(problem.startswith(str(tmp_path / "widths.yaml")) for problem in error.value.problems)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as error:
        study(tmp_path, sedes=[1], margin=-1, seeds=[])
    assert len(error.value.problems) == 3


def test_a_study_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match="neither a file nor a shipped study"):
        find_study("no_such_study")


def test_every_point_of_a_grid_is_tuned_for_every_row(tmp_path: Path) -> None:
    grid = {"model.learning_rate": [1e-3, 3e-3], "model.dropout": [0.0, 0.1, 0.2]}
    found = study(
        tmp_path, rows={"a": {}, "b": {"model.bias": True}}, tune={"seed": 9, "fraction": 0.1, "grid": grid}
    )
    jobs = tuning_jobs(found, tmp_path)
    assert len(jobs) == 12
    assert {job.seed for job in jobs} == {9}
    assert jobs[1].values == {"model.learning_rate": 1e-3, "model.dropout": 0.1, "data.tuning_fraction": 0.1}
    with pytest.raises(ConfigurationError, match="row b: not all of its tuning runs are finished"):
        seed_jobs(found, tmp_path)


def test_each_variant_is_compared_with_its_own_base(tmp_path: Path) -> None:
    found = study(
        tmp_path, rows={"gpt": {}, "wide": {"model.d_model": 256}, "ladder": {"zip": {"model.d_model": [8, 16]}}},
        product={"model.dropout": [0.0, 0.1]}, ladder="ladder",
    )  # fmt: skip
    bases = {row.name: base.name if (base := found.base_of(row)) else None for row in found.rows}
    assert bases == {
        "gpt-dropout_0.0": None,
        "gpt-dropout_0.1": None,
        "wide-dropout_0.0": "gpt-dropout_0.0",
        "wide-dropout_0.1": "gpt-dropout_0.1",
        "ladder-d_model_8-dropout_0.0": None,
        "ladder-d_model_8-dropout_0.1": None,
        "ladder-d_model_16-dropout_0.0": None,
        "ladder-d_model_16-dropout_0.1": None,
    }
    one = study(tmp_path, rows={"gpt": {}, "wide": {"model.d_model": 256}}, against="wide")
    assert one.base_of(one.rows[0]) == one.rows[1]
    assert one.base_of(one.rows[1]) is None
    alone = study(tmp_path, product={"model.d_model": [8, 16]})
    assert alone.base_of(alone.rows[1]) == alone.rows[0]
