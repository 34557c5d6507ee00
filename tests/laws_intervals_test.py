"""Intervals: what they cover, and that they say when nothing is known."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats

from audiorank import laws
from audiorank.laws import intervals


def _study(rng, n=24, low=60., high=400., b=.8, sd=.01):
  """A truth with Q_inf = .9 and Q = .55 at the least rank."""
  rank = np.geomspace(low, high, n)
  score = .9 - .35 * (rank / low) ** -b + sd * rng.normal(size=n)
  return {'rank': rank, 'score': score}


def test_profile_ends_lie_on_the_threshold():
  fit = laws.fit('saturating', _study(np.random.default_rng(0)))
  for name in ('Q_inf', 'b', 'a'):
    low, high = fit.ci(name)
    at = intervals.profile(fit, name, [low, fit.params[name], high])
    limit = intervals.threshold(fit, name, .95)
    np.testing.assert_allclose(at[[0, 2]], limit, rtol=1e-5)
    np.testing.assert_allclose(at[1], fit.objective, rtol=1e-9)


def test_profile_of_a_line_is_student():
  """For a law linear in its parameters the profile is the t interval."""
  rng = np.random.default_rng(1)
  rank = np.geomspace(20, 300, 15)
  score = .2 + .1 * np.log(rank) + .02 * rng.normal(size=15)
  fit = laws.fit('log_linear', {'rank': rank, 'score': score})
  line = stats.linregress(np.log(rank), score)
  half = stats.t.ppf(.975, 13) * line.stderr
  for method in ('profile', 'wald'):
    np.testing.assert_allclose(fit.ci('d', method),
                               (line.slope - half, line.slope + half),
                               rtol=1e-5)
  shift = stats.t.ppf(.975, 13) * line.intercept_stderr
  np.testing.assert_allclose(fit.ci('c'), (line.intercept - shift,
                                            line.intercept + shift), rtol=1e-5)


def test_both_roads_give_one_profile():
  """Projection and Newton follow the same curve, for every parameter."""
  data = _study(np.random.default_rng(2))
  plain = laws.fit('saturating', data)
  huber = laws.fit('saturating', data, loss='huber', delta=10.)
  for name in ('Q_inf', 'a', 'b'):
    v = plain.params[name] * np.array([.9, 1., 1.15])
    np.testing.assert_allclose(2 * intervals.profile(huber, name, v),
                               intervals.profile(plain, name, v), rtol=1e-6)


def test_amplitudes_are_profiled_in_their_own_units():
  """Newton in the units of the data: brute force over the exponent agrees."""
  rng = np.random.default_rng(3)
  x = np.geomspace(1e3, 1e6, 30)
  y = (.5 + 40. * x ** -.4) * np.exp(.01 * rng.normal(size=30))
  fit = laws.fit('power_floor', {'x': x, 'y': y}, loss='log_ls')
  value = 1.2 * fit.params['A']
  # With A and alpha held, only E is left.
  squares = lambda floor, alpha: np.sum((np.log(y) - np.log(
      floor + value * x ** -alpha)) ** 2)
  inner = lambda alpha: optimize.minimize_scalar(
      squares, bounds=(0., .6), args=(alpha,), method='bounded',
      options={'xatol': 1e-12}).fun
  best = optimize.minimize_scalar(inner, bounds=(.3, .6), method='bounded',
                                  options={'xatol': 1e-10}).fun
  got = intervals.profile(fit, 'A', [value])[0]
  np.testing.assert_allclose(got, best, rtol=1e-5)
  assert got <= best * (1 + 1e-9)


def test_unbounded_above_is_an_answer():
  """A logarithm has no ceiling: the interval of Q_inf must not invent one."""
  rng = np.random.default_rng(0)
  rank = np.geomspace(60, 400, 24)
  score = .3 + .08 * np.log(rank) + .01 * rng.normal(size=24)
  fit = laws.fit('saturating', {'rank': rank, 'score': score})
  low, high = fit.ci('Q_inf')
  assert high == math.inf and .7 < low < 1.5
  assert fit.ci('b')[0] == 0.
  assert fit.diagnostics['identifiable']['Q_inf'] is False
  assert 'unbounded above' in fit.report()
  assert 'Q_inf =' not in fit.report()
  assert np.isfinite(fit.ci('Q_inf', 'wald')).all()


def test_narrower_range_wider_interval():
  rng = np.random.default_rng(5)
  width = {}
  for name, low, high in (('narrow', 60., 400.), ('wide', 20., 800.)):
    rank = np.geomspace(low, high, 24)
    score = .9 - .35 * (rank / 60) ** -.8 + .01 * rng.normal(size=24)
    ends = laws.fit('saturating', {'rank': rank, 'score': score}).ci('Q_inf')
    width[name] = ends[1] - ends[0]
  assert width['wide'] < .6 * width['narrow']


def test_groups_widen_intervals():
  """Eight copies of every run with one shared error are not eight runs."""
  rng = np.random.default_rng(6)
  rank = np.repeat(np.geomspace(30, 500, 12), 8)
  shared = np.repeat(.02 * rng.normal(size=12), 8)
  score = .9 - .35 * (rank / 30) ** -.8 + shared + .001 * rng.normal(size=96)
  data = {'rank': rank, 'score': score}
  family = np.repeat(np.arange(12), 8)
  alone = laws.fit('saturating', data)
  grouped = laws.fit('saturating', data, groups=family)
  for method in ('profile', 'wald', 'bootstrap'):
    size = [np.diff(fit.ci('b', method))[0] for fit in (alone, grouped)]
    assert size[1] > 1.7 * size[0]
  assert grouped.diagnostics['groups'] == 12


def test_bootstrap_is_reproducible_and_weighted_by_groups():
  fit = laws.fit('saturating', _study(np.random.default_rng(0)))
  one, two = fit.draws(50, seed=3), fit.draws(50, seed=3)
  assert one.equals(two) and not one.equals(fit.draws(50, seed=4))
  # A resample is the fit to the rows it repeats.
  rng = np.random.default_rng(3)
  times = rng.multinomial(24, np.full(24, 1 / 24), 50)[0]
  rows = np.repeat(np.arange(24), times)
  again = laws.fit('saturating', {name: np.asarray(fit.data[name])[rows]
                                  for name in ('rank', 'score')})
  np.testing.assert_allclose(one['b'][0], again.params['b'], rtol=1e-5)


def _covered(fits, truth, method='profile'):
  """The fraction of fits whose interval holds each planted value."""
  hit = dict.fromkeys(truth, 0)
  for fit in fits:
    for name, value in truth.items():
      low, high = fit.ci(name, method, draws=300)
      hit[name] += low <= value <= high
  return {name: count / len(fits) for name, count in hit.items()}


def test_coverage_small():
  """40 studies: the standard error of a coverage of .95 is .034."""
  rng = np.random.default_rng(0)
  fits = [laws.fit('saturating', _study(rng)) for _ in range(40)]
  assert .85 <= _covered(fits, {'Q_inf': .9})['Q_inf'] <= 1.
  assert .80 <= _covered(fits, {'Q_inf': .9}, 'bootstrap')['Q_inf'] <= 1.


@pytest.mark.slow
@pytest.mark.parametrize('truth', [
    dict(n=12), dict(n=24), dict(n=48), dict(n=24, low=20., high=800.),
    dict(n=24, b=.4), dict(n=24, sd=.003)])
def test_coverage(truth):
  """300 studies: within two standard errors (.013) of 92 to 97 %."""
  rng = np.random.default_rng(1)
  fits = [laws.fit('saturating', _study(rng, **truth)) for _ in range(300)]
  planted = {'Q_inf': .9, 'b': truth.get('b', .8)}
  for method in ('profile', 'bootstrap'):
    for share in _covered(fits, planted, method).values():
      assert .92 - .026 <= share <= .97 + .026


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['log_ls', 'log_huber'])
def test_coverage_of_newton(loss):
  """200 studies of two resources: two standard errors are .031."""
  rng = np.random.default_rng(3)
  n, d = (axis.ravel() for axis in np.meshgrid(
      np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7)))
  y = 1.8 + 480 * n ** -.35 + 2100 * d ** -.37
  fits = [laws.fit('separable', {'N': n, 'D': d, 'loss': y * np.exp(
      .01 * rng.normal(size=49))}, loss=loss) for _ in range(200)]
  for share in _covered(fits, {'E': 1.8, 'alpha': .35, 'beta': .37}).values():
    assert .92 - .031 <= share <= .97 + .031
