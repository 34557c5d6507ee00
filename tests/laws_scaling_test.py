"""Frontiers, valleys and bounds against closed forms."""

import math

import numpy as np
import pandas as pd
import pytest

from audiorank import laws
from audiorank.laws import scaling

TRUTH = dict(E=1.8, A=480., B=2100., alpha=.35, beta=.37)


def _grid(noise=0., seed=0):
  n, d = (axis.ravel() for axis in np.meshgrid(
      np.geomspace(1e7, 1e10, 7), np.geomspace(1e9, 1e12, 7)))
  loss = TRUTH['E'] + TRUTH['A'] * n ** -.35 + TRUTH['B'] * d ** -.37
  loss *= np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))
  return {'N': n, 'D': d, 'loss': loss}


@pytest.fixture(scope='module')
def fit():
  return laws.fit('separable', _grid(.002), loss='log_ls')


def test_frontier_is_the_closed_form(fit):
  """N* = G (C / 6)^(beta / (alpha + beta)), Hoffmann et al. eq. 4."""
  budgets = np.geomspace(1e19, 1e22, 4)
  result = scaling.frontier(fit, budgets, draws=60)
  p = fit.params
  power = p['beta'] / (p['alpha'] + p['beta'])
  scale = (p['alpha'] * p['A'] / (p['beta'] * p['B'])) ** (
      1 / (p['alpha'] + p['beta']))
  np.testing.assert_allclose(result['size'], scale * (budgets / 6) ** power,
                             rtol=1e-5)
  np.testing.assert_allclose(6 * result['size'] * result['data'], budgets)
  value, low, high = result.attrs['size_exponent']
  np.testing.assert_allclose(value, power, rtol=1e-5)
  assert low < value < high
  assert (result['size_low'] < result['size']).all()
  assert (result['size'] < result['size_high']).all()
  assert result.attrs['compute'] == 'encoder only'
  assert (result['distance'] == 0).all()


def test_decoder_moves_the_frontier(fit):
  """A fixed cost per unit of data, the decoder's, favours larger models."""
  plain = scaling.frontier(fit, [1e20], draws=5)
  fixed = scaling.frontier(fit, [1e20], lambda C, N: C / (6 * N + 6e9),
                           'encoder and decoder', draws=5)
  assert fixed['size'][0] > plain['size'][0]
  assert fixed.attrs['compute'] == 'encoder and decoder'


def _valley(alpha, beta, width=1.2, points=9):
  """One isoFLOP curve off centre, with exponents that differ."""
  c = 1e20
  best = (alpha * 400. / (beta * 2000.)) ** (1 / (alpha + beta)) * (
      c / 6) ** (beta / (alpha + beta))
  n = best * np.geomspace(10 ** (-width + .4), 10 ** (width + .4), points)
  loss = 1.7 + 400. * n ** -alpha + 2000. * (c / 6 / n) ** -beta
  return pd.DataFrame({'flops': c, 'params': n, 'valid_loss': loss}), best


def test_cubic_valley_beats_the_parabola():
  data, best = _valley(.3, .45)
  error = {degree: abs(math.log(scaling.valleys(data, degree=degree)[
      'size'][0] / best)) for degree in (2, 3)}
  assert error[3] < .5 * error[2] and error[3] < .1


def test_budgets_that_differ_by_whole_steps_are_one():
  data, _ = _valley(.35, .37)
  exact = scaling.valleys(data)
  shaken = data.assign(flops=data['flops'] * np.random.default_rng(0).uniform(
      .98, 1.02, len(data)))
  result = scaling.valleys(shaken)
  assert len(result) == len(exact)
  np.testing.assert_allclose(result['flops'], exact['flops'], rtol=.02)
  np.testing.assert_array_equal(result['size'], exact['size'])


def test_valley_outside_is_said():
  data, best = _valley(.35, .37)
  rest = data[data['params'] > 1.5 * best]
  result = scaling.valleys(rest, degree=2)
  assert not result['inside'][0] and math.isnan(result['size'][0])
  with pytest.raises(ValueError, match='the 5 different'):
    scaling.valleys(data.iloc[:4])


def _bounded(noise=.01):
  rng = np.random.default_rng(0)
  n, d = (axis.ravel() for axis in np.meshgrid(
      np.geomspace(1e6, 1e9, 7), np.geomspace(1., 1000., 6)))
  rank = ((.5 * n ** .3) ** -3 + (20 * d ** .4) ** -3) ** (-1 / 3)
  return {'params': n, 'hours': d,
          'rank': rank * np.exp(noise * rng.normal(size=len(n)))}


def test_data_bound():
  fit = laws.fit('smooth_min', _bounded(), loss='log_ls',
                  x=('params', 'hours'), y='rank')
  result = scaling.data_bound(fit, 30., draws=100)
  truth = (20 / .5 * 30 ** .4) ** (1 / .3)
  assert result.low < truth < result.high and not result.refused
  assert result.high < 1.5 * result.low
  outside = scaling.data_bound(fit, 1000., draws=20)
  assert math.isnan(outside.size) and 'outside the params' in outside.refused
  far = scaling.data_bound(fit, 5000., draws=20)
  assert '5000 lies outside the hours observed' in far.refused


def test_bound_by_slope():
  """For any law: where the elasticity of the loss falls to eps."""
  data = _grid()
  fit = laws.fit('separable', data, loss='log_ls')
  result = scaling.data_bound(fit, 1e11, eps=.05, draws=5)
  y = lambda n: 1.8 + 480 * n ** -.35 + 2100 * 1e11 ** -.37
  slope = .35 * 480 * result.size ** -.35 / y(result.size)
  np.testing.assert_allclose(slope, .05, rtol=1e-5)


def test_longer_or_larger(fit):
  result = scaling.longer_or_larger(fit, 1e8, 1e12, 4., draws=100)
  rows = result.set_index('choice')
  # Far too much data for the size: growing must win.
  assert rows.loc['larger', 'value'] < rows.loc['longer', 'value']
  assert result.attrs['longer_wins'] < .05
  np.testing.assert_allclose(rows.loc['larger', 'size'], 4e8, rtol=1e-9)
  np.testing.assert_allclose(rows.loc['longer', 'data'], 4e12, rtol=1e-9)
  assert rows['value'].idxmin() == 'best split'


def test_one_input_has_no_frontier():
  rank = np.geomspace(20, 200, 9)
  fit = laws.fit('log_linear', {'rank': rank, 'score': np.log(rank) / 9})
  with pytest.raises(ValueError, match='needs a size and an amount of data'):
    scaling.frontier(fit, [1e18])
