"""The optimum of a setting on a grid, against the truth of simulations."""

import numpy as np
import pytest

from audiorank.laws import optimum as optimum_lib

RATES = np.repeat(5e-4 * 2. ** np.arange(7), 2)


def losses(rng, best, noise, curvature=.02):
  return (1 + curvature * np.square(np.log2(RATES / best))
          + rng.normal(0, noise, len(RATES)))


def test_the_vertex_of_a_parabola_is_found_and_covered():
  """The interval contains the truth in 95 % of 400 simulated grids."""
  rng = np.random.default_rng(0)
  covered, estimates = 0, []
  for _ in range(400):
    best = float(np.exp(rng.uniform(np.log(2e-3), np.log(8e-3))))
    fit = optimum_lib.optimum(RATES, losses(rng, best, .004))
    covered += fit.low <= best <= fit.high
    estimates.append(np.log2(fit.best / best))
  # 95 % of 400 give 380 with a standard deviation of 4.4.
  assert 367 <= covered <= 393
  assert abs(np.mean(estimates)) < .02 and np.std(estimates) < .2


def test_runs_that_diverge_and_points_far_away_do_not_count():
  y_N = losses(np.random.default_rng(0), 2e-3, 0.)
  y_N[-2:] = np.nan
  y_N[-4:-2] = 9.
  fit = optimum_lib.optimum(RATES, y_N)
  assert fit.best == pytest.approx(2e-3) and fit.runs == 10
  assert fit.lowest == pytest.approx(1.)


def test_what_does_not_bend_has_no_optimum():
  rng = np.random.default_rng(0)
  flat = optimum_lib.optimum(RATES, rng.normal(1, .1, len(RATES)))
  assert flat.low == 0 or flat.high == np.inf
  with pytest.raises(ValueError, match='2 runs at 1 values .* expected at lea'):
    optimum_lib.optimum([1e-3, 1e-3], [1., 2.])
