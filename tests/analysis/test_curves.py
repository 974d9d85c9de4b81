import numpy as np

from app.analysis.curves import smoothed


def test_a_trend_is_not_shifted_and_noise_is_averaged() -> None:
    line = np.linspace(5, 1, 50)
    np.testing.assert_allclose(smoothed(line, 4), line)
    noise = np.tile([1.0, -1.0], 25)
    assert np.abs(smoothed(line + noise, 4) - line)[4:-4].max() < 0.2
    np.testing.assert_allclose(smoothed(noise, 0), noise)
    assert smoothed(np.empty(0), 3).shape == (0,)


def test_a_number_that_is_not_finite_spoils_no_other() -> None:
    values = np.ones(9)
    values[4] = np.inf
    np.testing.assert_array_equal(smoothed(values, 2), np.ones(9))
    assert np.isnan(smoothed(np.full(3, np.nan), 1)).all()
