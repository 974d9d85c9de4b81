import pytest

from app.training.optim.schedules import Schedule, rate_factor


def factor(schedule: Schedule, step: int) -> float:
    return rate_factor(schedule, step, max_steps=101, warmup_steps=10, final_ratio=0.1, decay_fraction=0.2)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant", "linear"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule: Schedule) -> None:
    assert [factor(schedule, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(schedule, 10) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_the_last_step_has_the_final_rate(schedule: Schedule) -> None:
    assert factor(schedule, 100) == pytest.approx(0.1)
    assert factor(schedule, 5000) == pytest.approx(0.1)


def test_shapes_between() -> None:
    assert factor("cosine", 55) == pytest.approx(0.55)
    assert factor("linear", 55) == pytest.approx(0.55)
    assert factor("constant", 99) == 1.0
    assert factor("wsd", 80) == 1.0
    assert factor("wsd", 91) == pytest.approx(1 - 0.9 * 10 / 19)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rate_factor("cosine", 0, 100, 0, 0.0, 0.2) == 1.0
