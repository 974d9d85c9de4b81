import numpy as np
import pytest

from app.analysis.colours import scale_of, short, shown_range


def _rising(n_columns: int, first: float = 1.0) -> np.ndarray:
    matrix = np.linspace(1, 2, n_columns)[None].repeat(2, axis=0)
    matrix[:, 0] = first
    return matrix


def test_a_start_that_dwarfs_the_rest_leaves_the_scale() -> None:
    spiked = _rising(100, first=50.0)
    assert shown_range([spiked]) == (pytest.approx(1.15, abs=0.01), 2.0)
    assert scale_of([spiked]).labels[2] == "≥ 2"
    assert scale_of([spiked, _rising(100, first=-9.0)]).labels[0] == "≤ 1.15"


def test_a_peak_that_passes_leaves_the_scale() -> None:
    peaked = _rising(100)
    peaked[0, 40:48] = 50.0
    assert scale_of([peaked]).labels[2] == "≥ 1.98"
    lasting = _rising(100)
    lasting[0] = 50.0
    assert scale_of([lasting]).labels[2] == "50", "a row that stays high is no peak"


@pytest.mark.parametrize("matrix", [_rising(100), _rising(4, first=50.0), np.r_[9.0, np.ones(99)][None]])
def test_all_else_stays_in_it(matrix: np.ndarray) -> None:
    assert shown_range([matrix]) == (matrix.min(), matrix.max())
    assert not any(label.startswith(("≤", "≥")) for label in scale_of([matrix]).labels)


def test_both_signs_part_at_zero_with_equal_colours_for_equal_distances() -> None:
    scale = scale_of([np.array([[-1.0, 0.5, 4.0]])])
    assert (scale.marks, scale.neutral, scale.labels) == ((-4.0, 0.0, 4.0), 0.0, ("-4", "0", "4"))
    assert scale.norm([-1.0, 0.0, 1.0]).tolist() == [0.375, 0.5, 0.625]


def test_a_neutral_number_is_inside_whatever_the_numbers() -> None:
    scale = scale_of([np.array([[91.0, 95.0]])], neutral=90.0)
    assert scale.marks == (85.5, 90.0, 95.0)
    assert float(scale.norm(90.0)) == 0.5


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.full((2, 3), 7.0), np.full((2, 3), np.nan)])
@pytest.mark.parametrize("from_zero", [True, False])
def test_one_number_has_a_scale_too(matrix: np.ndarray, from_zero: bool) -> None:
    low, _, high = scale_of([matrix], from_zero=from_zero).marks
    assert low < high


def test_numbers_have_the_digits_that_their_range_shows() -> None:
    assert short(1.2e-6, span=1.0) == "0"
    assert short(-1e-9, span=1.0) == "0"
    assert [short(number, span=2000.0) for number in (1647.2, 823.6, 3.0)] == ["1,647", "824", "3"]
    assert [short(0.33541, span=0.011), short(0.000494)] == ["0.335", "0.000494"]
