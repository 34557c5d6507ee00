"""Where a law fails: outliers, families, bends, unstable runs."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiorank import laws
from audiorank.laws import failures


def _fit(seed=0, odd=None):
  rng = np.random.default_rng(seed)
  rank = np.geomspace(30, 500, 25)
  score = .9 - 4. * rank ** -.8 + .005 * rng.normal(size=25)
  if odd is not None:
    score[odd] -= .06
  return laws.fit('saturating', {'rank': rank, 'score': score})


def test_studentised_is_leaving_out():
  """The linearised residual against the refitted one."""
  fit = _fit()
  _, leverage = failures.studentised(fit)
  errors = laws.leave_one_out(fit)
  np.testing.assert_allclose(fit.residuals / (1 - leverage), errors,
                             rtol=.25, atol=3e-4)
  np.testing.assert_allclose(leverage.sum(), 3., rtol=1e-6)


def test_studentised_of_a_line_is_the_textbook_formula():
  rng = np.random.default_rng(0)
  rank = np.geomspace(20, 300, 15)
  score = .2 + .1 * np.log(rank) + .02 * rng.normal(size=15)
  fit = laws.fit('log_linear', {'rank': rank, 'score': score})
  design = np.stack([np.ones(15), np.log(rank)], 1)
  h = np.diag(design @ np.linalg.pinv(design))
  r = score - design @ np.linalg.lstsq(design, score, rcond=None)[0]
  s = np.sqrt((np.sum(r ** 2) - r ** 2 / (1 - h)) / (15 - 3))
  t, leverage = failures.studentised(fit)
  np.testing.assert_allclose(leverage, h, atol=1e-8)
  np.testing.assert_allclose(t, r / (s * np.sqrt(1 - h)), rtol=1e-5)


def test_a_point_that_decides_its_own_prediction_is_not_judged():
  """Six runs, three parameters: one lies alone at the low end.

  Its leverage is .999, and r^2 / (1 - leverage) exceeds the sum of squares:
  the formula for a line gives it 1e149 standard errors.
  """
  rank = [14.92, 27.21, 29.58, 30.44, 33.08, 35.5]
  score = [.3613, .4438, .4585, .4421, .4902, .4899]
  fit = laws.fit('saturating', {'rank': rank, 'score': score})
  t, leverage = failures.studentised(fit)
  assert leverage[0] > .99 and np.isnan(t[0])
  assert np.isfinite(t[1:]).all() and np.abs(t[1:]).max() < 10
  outliers = failures.outliers(fit, labels=list('abcdef'))
  assert not len(outliers)
  assert outliers.attrs == {'judged': 5, 'not_judged': ['a']}


def test_nothing_is_judged_without_a_degree_of_freedom():
  fit = laws.fit('saturating', {'rank': [10., 20, 40, 80],
                                'score': [.30, .42, .49, .55]})
  t, _ = failures.studentised(fit)
  assert np.isnan(t).all() and not len(failures.outliers(fit))
  # Nor is a point of no weight.
  fit = _fit()
  weights = np.where(np.arange(25) == 3, 0., 1.)
  other = laws.fit('saturating', fit.data, weights=weights)
  assert np.isnan(failures.studentised(other)[0][3])


@pytest.mark.slow
@pytest.mark.parametrize('n', [5, 6, 8, 12, 24])
def test_chance_names_an_outlier_as_rarely_as_it_claims(n):
  """400 studies without any: two standard errors of .05 are .022."""
  count = 0
  for seed in range(400):
    rng = np.random.default_rng(seed)
    rank = np.exp(rng.uniform(np.log(10), np.log(100), n))
    score = .6 - 2. * rank ** -.8 + .01 * rng.normal(size=n)
    fit = laws.fit('saturating', {'rank': rank, 'score': score})
    count += len(failures.outliers(fit)) > 0
  assert count / 400 <= .072


def test_holm_passes_over_what_was_not_tested():
  p = np.array([.01, np.nan, .04, .03])
  np.testing.assert_allclose(failures.holm(p), [.03, np.nan, .06, .06])
  assert np.isnan(failures.holm(np.array([np.nan]))).all()


def test_holm_with_weights_is_the_papers_second_procedure():
  """Smallest p / weight first, each times the weights left over its own."""
  p, weight = np.array([.04, .01, .03]), np.array([3., 1., 2.])
  # Order .01 (6 / 1), .04 (5 / 3), .03 (2 / 2), none below the one before.
  np.testing.assert_allclose(failures.holm(p, weight),
                             [.04 * 5 / 3, .06, .04 * 5 / 3])
  np.testing.assert_allclose(failures.holm(p, np.full(3, 7.)),
                             failures.holm(p))


def test_outliers_are_named():
  assert not len(failures.outliers(_fit()))
  fit = _fit(odd=7)
  result = failures.outliers(fit, labels=[f'run{i}' for i in range(25)],
                            families=np.arange(25) % 3)
  assert result['label'].tolist() == ['run7'] and result['studentised'][0] < -5


def test_families_stand_apart():
  rng = np.random.default_rng(1)
  rank = np.geomspace(30, 500, 30)
  family = np.where(np.arange(30) % 3 == 0, 'music', 'speech')
  score = .9 - 4 * rank ** -.8 + .004 * rng.normal(size=30)
  fit = laws.fit('saturating', {'rank': rank, 'score': score + .03 * (
      family == 'music')})
  result = failures.families(fit, family)
  music = result.set_index('family').loc['music']
  assert music['p'] < .01 and 0 < music['low'] < music['mean']


def test_the_noise_of_a_family_is_its_own():
  """Three runs far apart say nothing, however quiet the others are."""
  rng = np.random.default_rng(0)
  rank = np.geomspace(30, 500, 33)
  family = np.where(np.arange(33) % 11 == 5, 'few', 'many')
  family[20] = 'one'
  score = .9 - 4 * rank ** -.8 + .001 * rng.normal(size=33)
  score[family == 'few'] += [.009, .049, .107]
  fit = laws.fit('saturating', {'rank': rank, 'score': score}, loss='huber')
  table = failures.families(fit, family).set_index('family')
  assert table.loc['few', 'n'] == 3 and table.loc['few', 'p'] > .1
  assert table.loc['few', 'low'] < 0 < table.loc['few', 'high']
  # As by the t test of their mean.
  alone = stats.ttest_1samp(fit.residuals[family == 'few'], 0.)
  low, high = alone.confidence_interval(.95)
  np.testing.assert_allclose(table.loc['few', ['low', 'high']].astype(float),
                             [low, high], rtol=1e-6)
  assert table.loc['one', ['p', 'low', 'high']].isna().all()


def test_runs_test_sees_a_bend():
  fit = _fit()
  assert failures.runs_test(fit)[2] > .05
  rank = np.geomspace(30, 500, 25)
  bent = laws.fit('log_linear', {'rank': rank, 'score':
                                 .9 - 4 * rank ** -.8})
  runs, expected, p = failures.runs_test(bent)
  assert runs < expected and p < .01


def test_runs_test_is_exact():
  """The distribution over all arrangements of four and five signs."""
  fit = _fit()
  count = 0
  signs = np.sign(fit.residuals)
  plus = int((signs > 0).sum())
  rng = np.random.default_rng(0)
  observed = failures.runs_test(fit)[0]
  base = np.r_[np.ones(plus), -np.ones(25 - plus)]
  for _ in range(4000):
    mixed = rng.permutation(base)
    count += 1 + np.sum(mixed[1:] != mixed[:-1]) <= observed
  # 4,000 shuffles: standard error at most .008.
  assert abs(count / 4000 - failures.runs_test(fit)[2]) < .03


def test_broken_is_preferred_only_where_it_breaks():
  rng = np.random.default_rng(2)
  x = np.geomspace(1e3, 1e9, 32)
  noise = np.exp(.01 * rng.normal(size=32))
  straight = failures.bends({'x': x, 'y': 3 * x ** -.2 * noise}, 'x', 'y')
  assert not straight.attrs['broken']
  broken = 3 * x ** -.05 * (1 + (x / 1e6) ** 2) ** -.2
  result = failures.bends({'x': x, 'y': broken * noise}, 'x', 'y')
  assert result.attrs['broken']


def test_unstable_runs():
  step = [0, 10, 30, 100, 300, 1000]
  good = dict(rank=[30, 15, 16, 20, 24, 28], loss=[1, .8, .6, .5, .45, .4])
  cases = {
      'good': good,
      'collapsed': {**good, 'rank': [30, 15, 20, 24, 6, 3]},
      'dipped': {**good, 'rank': [30, 15, 20, 8, 20, 28]},
      'spiked': {**good, 'loss': [1, .8, .6, .95, .5, .4]},
      'diverged': {**good, 'loss': [1, .8, .6, math.inf, math.inf, math.inf]},
  }
  rows = [pd.DataFrame({'run_id': name, 'step': step, 'rank': case['rank'],
                        'valid_loss': case['loss']})
          for name, case in cases.items()]
  result = failures.unstable(pd.concat(rows)).set_index('run_id')['kind']
  assert result.to_dict() == {'collapsed': 'collapse', 'dipped': 'dip',
                             'spiked': 'spike', 'diverged': 'diverged'}


def test_what_only_looks_unstable():
  """A flat start that wobbles, a loss measured now and then, and a tail that
  was lost."""
  nan = math.nan
  cases = {
      'flat start': [2., 1.999, 2.0001, 1.9, 1., .5],
      'flat': [2., 1.99, 2.01, 2., 1.98, 2.01],
      'now and then': [2., nan, 1.5, nan, 1.2, nan],
      'lost': [2., 1.8, 1.5, nan, nan, nan]}
  rows = [pd.DataFrame({'run_id': name, 'step': range(6), 'train_loss': loss})
          for name, loss in cases.items()]
  result = failures.unstable(pd.concat(rows))
  assert result[['run_id', 'kind', 'step']].values.tolist() == [
      ['lost', 'diverged', 3]]


def test_a_run_that_collapsed_at_once_is_found():
  history = pd.DataFrame({'run_id': 'a', 'step': range(10),
                          'rank': [300.] + [1.01] * 9})
  result = failures.unstable(history)
  assert list(result['kind']) == ['collapse']
