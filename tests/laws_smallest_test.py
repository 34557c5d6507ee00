"""Every statistic at its smallest n: a number that can be, or none."""

import math

import numpy as np
import pandas as pd
import pytest

from audiorank import laws
from audiorank.laws import failures
from audiorank.laws import ranking
from audiorank.laws import select
from audiorank.laws import table


def least(name, seed=0):
  """A noisy table with one point more than the law has parameters."""
  form = laws.FORMS[name]
  n = len(form.names) + 1
  rng = np.random.default_rng(seed)
  cols = [np.exp(rng.uniform(np.log(10), np.log(1000), n)) for _ in form.x]
  log_x = sum(np.log(col) for col in cols)
  y = .3 + .05 * log_x + .01 * rng.normal(size=n)
  if form.y in ('y', 'loss'):
    y = 1.5 - y
  return dict(zip((*form.x, form.y), (*cols, y)))


SLOW = ('sigmoid', 'broken', 'separable', 'smooth_min')


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in laws.FORMS])
def test_a_law_through_as_few_points_as_can_be(name):
  """One degree of freedom: wide intervals, nothing judged, no warning."""
  data = least(name)
  fit = laws.fit(name, data)
  form = laws.FORMS[name]
  assert fit.n == fit.size + 1 and fit.sd >= 0
  for parameter in form.names:
    for method in ('wald', 'bootstrap'):
      low, high = fit.ci(parameter, method, draws=50)
      assert not low > high
  assert 'independent' in fit.report()
  t_N, leverage_N = failures.studentised(fit)
  assert np.isnan(t_N).all() and (leverage_N <= 1).all()
  assert not len(failures.outliers(fit))
  assert select.aicc(fit) == math.inf
  runs, expected, p = failures.runs_test(fit)
  assert math.isnan(p) or 0 < p <= 1
  with pytest.raises(ValueError, match='different points'):
    laws.fit(name, {key: col[1:] for key, col in data.items()})


def test_fewer_groups_than_parameters_bound_nothing():
  rng = np.random.default_rng(0)
  rank = np.geomspace(20, 400, 12)
  data = {'rank': rank, 'score': .9 - 4 * rank ** -.8 +
          .01 * rng.normal(size=12)}
  for groups in (np.zeros(12), np.arange(12) // 4):
    fit = laws.fit('saturating', data, groups=groups)
    for method in ('wald', 'bootstrap'):
      assert fit.ci('Q_inf', method) == (-math.inf, math.inf)
    assert fit.ci('Q_inf') == (-math.inf, math.inf)
    assert fit.ci('b') == (0., math.inf)
    band = fit.predict([30., 50.], band='mean')
    assert np.isnan([band.low, band.high]).all() and (band.y > 0).all()
    with pytest.raises(ValueError, match='needs more than 3 independent'):
      fit.draws(10)
    assert 'unbounded' in fit.report()


def thrice():
  rng = np.random.default_rng(0)
  rank = np.geomspace(30, 300, 14)
  score = .85 - 2.2 * rank ** -.6 + rng.normal(0, .008, 14)
  return pd.DataFrame({'rank': rank, 'score': score})


def test_rows_written_twice_are_one_row():
  """Every run three times: 14 independent points, and nearly their interval.

  The cluster-robust interval has its own estimate of the noise, which differs
  by some 20 % between one of 14 and another.
  """
  once = thrice()
  one = laws.fit('saturating', once)
  many = laws.fit('saturating', pd.concat([once] * 3))
  assert many.n == 42 and many.units == 14 and many.repeats == 28
  assert '14 independent' in many.report() and '28 rows' in many.report()
  assert many.params['b'] == pytest.approx(one.params['b'], rel=1e-5)
  for method in ('profile', 'wald', 'bootstrap'):
    width = [np.diff(fit.ci('b', method))[0] for fit in (one, many)]
    assert width[1] == pytest.approx(width[0], rel=.25), method
  assert one.repeats == 0 and 'rows are equal' not in one.report()
  # Groups say what is independent: nobody counts again.
  own = laws.fit('saturating', pd.concat([once] * 3), groups=np.arange(42))
  assert own.units == 42 and own.repeats == 0


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_equal_rows_of_a_file_are_read_once(tmp_path, kind):
  once, path = thrice(), tmp_path / f'runs.{kind}'
  data = pd.concat([once] * 3)
  if kind == 'csv':
    data.to_csv(path, index=False)
  else:
    data.to_parquet(path)
  got = table.read(path)
  pd.testing.assert_frame_equal(got, once)
  # Rows that differ in any column are other runs.
  data.assign(seed=np.arange(42)).to_csv(tmp_path / 'seeds.csv', index=False)
  assert len(table.read(tmp_path / 'seeds.csv')) == 42


def test_agreement_of_three_runs():
  got = ranking.agreement([1., 2, 3], [1., 3, 2])
  assert got.tau == pytest.approx(1 / 3) and got.exploratory
  assert math.isnan(got.tau_low) and math.isnan(got.tau_high)
  gap, low, high = ranking.difference([1., 2, 3], [3., 2, 1], [1., 3, 2])
  assert gap == pytest.approx(2 / 3) and math.isnan(low) and math.isnan(high)


def test_seeds_of_a_configuration_are_no_evidence_of_their_own():
  """Five configurations of ten seeds: p is that of their five means."""
  rng = np.random.default_rng(0)
  label = np.repeat(np.arange(5), 10)
  s = label + .01 * rng.normal(size=50)
  q = np.array([1., 3, 2, 5, 4])[label] + .01 * rng.normal(size=50)
  alone = ranking.agreement(s, q, draws=20)
  grouped = ranking.agreement(s, q, groups=label, draws=20)
  means = ranking.agreement(range(5), [1, 3, 2, 5, 4], draws=20)
  assert alone.p < 1e-6 < grouped.p == means.p
  one = ranking.agreement(s, q, groups=np.zeros(50), draws=20)
  assert math.isnan(one.p) and math.isnan(one.tau_low)


def test_predictors_of_four_groups():
  """No partial correlation with as many columns as points."""
  data = {'rank': [10., 20, 40, 80], 'width': [32., 32, 64, 64],
          'params': [1e4, 3e4, 1e5, 2e5], 'score': [.4, .45, .5, .52]}
  got = laws.compare_predictors(data, ['width', 'params'], draws=100)
  rows = got.set_index('predictor')
  assert math.isnan(rows.loc['rank', 'partial'])
  assert (rows['loo'] > 0).all()
  with pytest.raises(ValueError, match='at least 4 groups'):
    laws.compare_predictors({k: v[1:] for k, v in data.items()}, ['width'])


def test_valleys_need_a_size_more_than_coefficients():
  n = np.geomspace(1e6, 1e8, 4)
  data = {'flops': np.full(4, 1e18), 'params': n,
          'valid_loss': 2 + .1 * np.log(n / 1e7) ** 2}
  got = laws.scaling.valleys(data, degree=2)
  assert got['size_low'][0] <= got['size'][0] <= got['size_high'][0]
  with pytest.raises(ValueError, match='the 4 different'):
    laws.scaling.valleys({k: v[1:] for k, v in data.items()}, degree=2)
