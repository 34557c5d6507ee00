"""The optimum of a setting on a grid, against the truth of simulations."""

import numpy as np
import pytest

from audiorank.laws import optimum as optimum_lib

RATES = np.repeat(5e-4 * 2. ** np.arange(7), 2)
SEEDS = np.tile([0, 1], 7)


def losses(rng, best, noise, curvature=.02, between=0.):
  """Returns a loss a run: noise of its own, and that of its seed."""
  return (1 + curvature * np.square(np.log2(RATES / best))
          + rng.normal(0, noise, len(RATES))
          + rng.normal(0, between, 2)[SEEDS])


@pytest.mark.parametrize('seeds, between', [(None, 0.), (SEEDS, .05)])
def test_the_vertex_of_a_parabola_is_found_and_covered(seeds, between):
  """The interval contains the truth in 95 % of 400 simulated grids, and is as
  narrow where seeds differ by far more than the runs of a seed."""
  rng = np.random.default_rng(0)
  covered, estimates = 0, []
  for _ in range(400):
    best = float(np.exp(rng.uniform(np.log(2e-3), np.log(8e-3))))
    fit = optimum_lib.optimum(RATES, losses(rng, best, .004, between=between),
                              seeds)
    covered += fit.low <= best <= fit.high
    estimates.append(np.log2(fit.best / best))
  # 95 % of 400 give 380 with a standard deviation of 4.4.
  assert 367 <= covered <= 393
  assert abs(np.mean(estimates)) < .02 and np.std(estimates) < .2


def test_the_vertex_is_that_of_least_squares_with_an_offset_a_seed():
  """Against polynomials with a column a seed, unbalanced."""
  rng = np.random.default_rng(1)
  y_N, use = losses(rng, 4e-3, .01, between=.1), np.arange(14) != 5
  fit = optimum_lib.optimum(RATES[use], y_N[use], SEEDS[use])
  x_N, seeds, y_N = np.log(RATES)[use], SEEDS[use], y_N[use]
  chosen = optimum_lib.near(x_N, y_N)
  design = np.stack([seeds == 0, seeds == 1, x_N, x_N ** 2], 1)[chosen]
  *_, b, a = np.linalg.lstsq(design, y_N[chosen], rcond=None)[0]
  assert fit.best == pytest.approx(np.exp(-b / 2 / a))
  assert fit.free == chosen.sum() - 4


@pytest.mark.slow
def test_the_change_with_size_is_covered():
  """The interval of the factor contains the truth in 95 % of 300 studies."""
  rng = np.random.default_rng(2)
  covered, factors, widths = 0, [], np.array([16, 32, 64, 128])
  for _ in range(300):
    optima = [optimum_lib.optimum(RATES, losses(
        rng, 6e-3 * (width / 16) ** -.3, .004, between=.02), SEEDS)
              for width in widths]
    fit = optimum_lib.change(widths, optima)
    covered += fit.low <= 8 ** -.3 <= fit.high
    factors.append(np.log(fit.factor))
  # 95 % of 300 give 285 with a standard deviation of 3.8.
  assert 274 <= covered <= 296
  assert np.mean(factors) == pytest.approx(-.3 * np.log(8), abs=.03)


def test_sizes_without_a_bounded_interval_do_not_count():
  sharp = optimum_lib.Optimum(1e-3, 9e-4, 1.1e-3, 1., 10, 7)
  flat = optimum_lib.Optimum(1e-3, 0., 2e-3, 1., 10, 7)
  assert optimum_lib.change((16, 32, 64), (sharp, flat, sharp)).sizes == 2
  with pytest.raises(ValueError, match='1 sizes with a bounded interval'):
    optimum_lib.change((16, 32), (sharp, flat))


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
