"""Optima against published constants, and what bad tables are told."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from audiorank import laws


@pytest.fixture(scope='module')
def epoch(shared):
  """Epoch's 240 points: the five highest losses dropped, D = C / (6 N)."""
  raw = pd.read_csv(shared / 'fixtures/laws/epoch_chinchilla_svg.csv')
  raw = raw.sort_values('loss').iloc[:-5]
  n = raw['Model Size'].to_numpy()
  return {'N': n, 'D': raw['Training FLOP'].to_numpy() / (6 * n),
          'loss': raw['loss'].to_numpy()}


def _close(fit, expected, rtol):
  for name, value in expected.items():
    np.testing.assert_allclose(fit.params[name], value, rtol=rtol)


def test_epoch_huber(epoch):
  """The optimum that three independent solvers agree on to 1e-8."""
  fit = laws.fit('separable', epoch, loss='log_huber', delta=1e-3)
  assert abs(fit.objective - .0010182740178006) < 1e-12
  _close(fit, {'A': 477.8259, 'B': 2143.417, 'E': 1.817218,
                'alpha': .3473105, 'beta': .3671724}, 1e-6)
  assert fit.diagnostics['starts_agreeing'] == 1.
  assert fit.diagnostics['gradient'] < 1e-9
  # 4,000 resamples by others: SE alpha .0154, beta .0206; ours have 400.
  draws = fit.draws(400)
  np.testing.assert_allclose(draws['alpha'].std(), .0150, rtol=.15)
  np.testing.assert_allclose(draws['beta'].std(), .0205, rtol=.15)


def test_epoch_absolute(epoch):
  """The published 482.01, 2085.43, .3478, .3658 are this loss's optimum."""
  fit = laws.fit('separable', epoch, loss='log_lad')
  assert abs(fit.objective - 1.1294946537) < 1e-7
  _close(fit, {'A': 482.006, 'B': 2085.436, 'E': 1.816864,
                'alpha': .347813, 'beta': .365854}, 1e-5)


def test_epoch_squares(epoch):
  fit = laws.fit('separable', epoch, loss='log_ls')
  _close(fit, {'A': 593.322, 'B': 4875.64, 'E': 1.864550,
                'alpha': .360253, 'beta': .405883}, 1e-5)


def test_porian_exponents(shared):
  """N* ~ C^a of ten configurations, plain and weighted by 1 / sd^2."""
  folder = shared / 'fixtures/laws'
  pairs = pd.read_csv(folder / 'porian_optimal_pairs.csv').dropna()
  targets = pd.read_csv(folder / 'porian_fit_targets.csv').set_index(
      ['config', 'fit'])['n_exponent']
  checked = 0
  for config, part in pairs.groupby('config'):
    for kind, weights in (('basic', None),
                          ('weighted', part['n_star_std'].to_numpy() ** -2)):
      fit = laws.fit('power', part, 'log_ls', x='flops', y='n',
                      weights=weights)
      assert abs(-fit.params['alpha'] - targets[config, kind]) < 1e-6
      checked += 1
  assert checked == 20


@pytest.mark.parametrize('loss', ['ls', 'huber'])
@pytest.mark.parametrize('offset,factor,unit', [
    (1e6, 1., 1.), (0., 1e-40, 1.), (0., 1e40, 1.), (0., 1., 1e-40),
    (0., 1., 1e40)])
def test_units_and_offsets_move_nothing_else(loss, offset, factor, unit):
  rng = np.random.default_rng(0)
  rank = np.geomspace(5, 200, 30)
  score = .9 - .8 * rank ** -.7 + .01 * rng.normal(size=30)
  plain = laws.fit('saturating', {'rank': rank, 'score': score}, loss,
                   delta=.01)
  other = laws.fit('saturating', {
      'rank': rank * unit, 'score': score * factor + offset}, loss,
                   delta=.01 * factor)
  # The offset leaves 1e-10 of y, its square root at a minimum: 1e-5.
  np.testing.assert_allclose(other.params['b'], plain.params['b'], rtol=3e-5)
  np.testing.assert_allclose(
      (np.array(other.ci('Q_inf')) - offset) / factor, plain.ci('Q_inf'),
      rtol=3e-5)


@pytest.mark.parametrize('tasks', [
    'inet_10', pytest.param('all', marks=pytest.mark.slow)])
def test_extrapolates_learning_curves(shared, tasks):
  """29 curves that the official M4 finished: no farther off on average."""
  folder = shared / 'fixtures/laws'
  curves = pd.concat([pd.read_csv(folder / f'nsl_benchmark_{part}.csv')
                      for part in ('vision', 'lang')])
  measured = pd.read_csv(folder / 'nsl_head_to_head_measured.csv')
  measured = measured[measured['method'] == 'off M4'].reset_index(drop=True)
  if tasks != 'all':
    measured = measured[measured['task'] == tasks]
  errors = []
  for _, row in measured.iterrows():
    part = curves[(curves['Task'] == row['task']) &
                  (curves['Model'] == row['model'])]
    early, late = (part[part['Training'] == i] for i in (1, 0))
    fit = laws.fit('broken', early, 'log_ls', x='Seen Examples', y='Loss')
    gap = np.log(fit.predict(late['Seen Examples']) / late['Loss'])
    errors.append(np.sqrt(np.mean(gap ** 2)))
  measured['ours'] = errors
  inet = measured[measured['task'] == 'inet_10']
  assert len(inet) == 6 and len(measured) == (29 if tasks == 'all' else 6)
  assert inet['ours'].mean() < inet['rmsle'].mean() < .01635
  by_domain = measured.groupby('domain')[['ours', 'rmsle']].mean()
  assert (by_domain['ours'] < by_domain['rmsle']).all()


def _noisy(seed, n=24, b=.8, sd=.01):
  rng = np.random.default_rng(seed)
  rank = np.geomspace(60, 400, n)
  score = .9 - .35 * (rank / 60) ** -b + sd * rng.normal(size=n)
  return {'rank': rank, 'score': score}


@pytest.mark.parametrize('seed', range(3))
def test_saturating_beats_curve_fit(seed):
  """A general optimiser from the truth ends no lower, and at the same b."""
  data = _noisy(seed)
  fit = laws.fit('saturating', data)
  curve = lambda r, q, a, b: q - a * (r / 60) ** -b
  best, _ = optimize.curve_fit(curve, data['rank'], data['score'],
                               [.9, .35, .8], xtol=1e-14, ftol=1e-14,
                               maxfev=100_000)
  theirs = np.sum((curve(data['rank'], *best) - data['score']) ** 2)
  assert fit.objective <= theirs * (1 + 1e-10)
  np.testing.assert_allclose(fit.params['b'], best[2], rtol=1e-4)
  np.testing.assert_allclose(fit.params['Q_inf'], best[0], rtol=1e-4)


def test_weights_repeat_rows():
  data = _noisy(0)
  twice = {name: np.append(col, col[:5]) for name, col in data.items()}
  weights = np.where(np.arange(24) < 5, 2., 1.)
  one = laws.fit('saturating', data, weights=weights)
  two = laws.fit('saturating', twice)
  np.testing.assert_allclose(one.objective, two.objective, rtol=1e-9)
  np.testing.assert_allclose(one.params['b'], two.params['b'], rtol=1e-5)


@pytest.mark.parametrize('loss', ['ls', 'log_ls'])
def test_rows_of_no_weight_are_absent(loss):
  data = _noisy(1)
  wild = {name: np.append(col, 3 * col[:2]) for name, col in data.items()}
  weights = np.append(np.ones(24), np.zeros(2))
  one = laws.fit('saturating', wild, loss=loss, weights=weights)
  two = laws.fit('saturating', data, loss=loss)
  np.testing.assert_allclose(one.objective, two.objective, rtol=1e-9)
  np.testing.assert_allclose(one.params['Q_inf'], two.params['Q_inf'],
                             rtol=1e-5)
  assert one.n == 24


def test_huber_meets_its_limits():
  """Huber with a large delta is half the squares, with a tiny one the LAD."""
  data = _noisy(2)
  squares = laws.fit('saturating', data, loss='ls')
  wide = laws.fit('saturating', data, loss='huber', delta=10.)
  np.testing.assert_allclose(2 * wide.objective, squares.objective, rtol=1e-9)
  np.testing.assert_allclose(wide.params['b'], squares.params['b'], rtol=1e-5)
  flat = laws.fit('saturating', data, loss='lad')
  thin = laws.fit('saturating', data, loss='huber', delta=1e-9)
  np.testing.assert_allclose(thin.objective / 1e-9, flat.objective, rtol=1e-4)
  # At a LAD optimum as many points are met as there are parameters.
  assert np.sum(np.abs(flat.residuals) < 1e-7) >= 3


def test_global_precision_is_left_alone():
  laws.fit('saturating', _noisy(0), loss='log_ls')
  assert not jax.config.jax_enable_x64
  assert jax.numpy.ones(2).dtype == np.float32


def test_predict_and_report():
  data = _noisy(0)
  fit = laws.fit('saturating', data)
  np.testing.assert_allclose(fit.predict(data), fit.fitted, rtol=1e-12)
  band = fit.predict(np.array([100., 1000.]), band='mean')
  wide = fit.predict({'rank': [100., 1000.]}, band='new')
  assert np.all(band.low < band.y) and np.all(band.y < band.high)
  assert wide.high[0] - wide.low[0] > 1.5 * (band.high[0] - band.low[0])
  np.testing.assert_allclose(fit.distance([100., 4000.]), [0., 1.],
                             atol=1e-12)
  assert 'Q_inf = ' in fit.report() and 'decades of rank' in fit.report()


@pytest.mark.parametrize('change, words', [
    ({'rank': np.full(24, 30.)}, "'rank' is constant"),
    ({'rank': np.repeat([20., 50., 90.], 8)},
     'needs at least 4 different points, found 3'),
    ({'score': np.full(24, .5)}, "'score' is constant"),
    ({'rank': np.append(np.geomspace(20, 90, 23), 0.)},
     "'rank' is 0 in row 23.*logarithm"),
    ({'score': np.append(np.linspace(0, 1, 23), np.nan)},
     "'score' is nan in row 23"),
    ({'score': np.array(['.5'] * 23 + ['x'])},
     "'score' is not numeric: 'x' in row 23"),
    ({'score': np.arange(24) > 3}, "'score' is of true and false"),
    ({'score': np.geomspace(1, 1e60, 24)},
     "'score' is .*e.5[0-9] in row 20: .*take another unit"),
    ({'rank': np.geomspace(20, 90, 5)}, "'rank' has 5 rows, 'score' has 24"),
])
def test_bad_tables(change, words):
  with pytest.raises(ValueError, match=words) as caught:
    laws.fit('saturating', {**_noisy(0), **change})
  assert '\n' not in str(caught.value)


def test_bad_arguments():
  data = _noisy(0)
  with pytest.raises(ValueError, match="no loss named 'l2'"):
    laws.fit('saturating', data, loss='l2')
  with pytest.raises(ValueError, match="no column 'flops'.*rank, score"):
    laws.fit('saturating', data, x='flops')
  with pytest.raises(ValueError, match='takes 2 input column'):
    laws.fit('separable', data, x='rank', y='score')
  with pytest.raises(ValueError, match='logit needs values between 0 and 1'):
    laws.fit('saturating', {**data, 'score': data['score'] + 1},
             loss='logit_ls')
  with pytest.raises(ValueError, match='3 labels for 24 rows'):
    laws.fit('saturating', data, groups=[1, 2, 3])
  fit = laws.fit('saturating', data)
  with pytest.raises(ValueError, match="no parameter 'c'.*Q_inf"):
    fit.ci('c')
  with pytest.raises(ValueError, match="by 'magic'"):
    fit.ci('b', 'magic')
  with pytest.raises(ValueError, match="'rank' is -3 in row 0"):
    fit.predict([-3.])


def test_a_group_without_a_label_is_refused():
  data = {'rank': np.geomspace(5, 50, 12),
          'score': .9 - np.geomspace(5, 50, 12) ** -.7}
  groups = np.array([None] + list('abcdefghijk'), object)
  with pytest.raises(ValueError, match='groups: row 0 has no label'):
    laws.fit('saturating', data, groups=groups)
