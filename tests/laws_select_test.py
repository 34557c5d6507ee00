"""Selection by left-out data, and whether RankMe adds anything."""

import math

import numpy as np
import pandas as pd
import pytest

from audiorank import laws
from audiorank.laws import select


def _scores(seed=0, n=30, sd=.01):
  rng = np.random.default_rng(seed)
  rank = np.geomspace(20, 600, n)
  score = .9 - 4. * rank ** -.8 + sd * rng.normal(size=n)
  return {'rank': rank, 'score': score, 'flops': rank ** 2}


def test_leave_one_out_is_refitting():
  data = _scores(n=12)
  fit = laws.fit('saturating', data)
  errors = laws.leave_one_out(fit)
  for i in (0, 5, 11):
    rest = {name: np.delete(col, i) for name, col in data.items()}
    other = laws.fit('saturating', rest)
    expected = data['score'][i] - other.predict(data['rank'][i])[0]
    np.testing.assert_allclose(errors[i], expected, atol=1e-7)


def test_groups_are_left_out_together():
  data = _scores(n=24)
  family = np.repeat(np.arange(8), 3)
  fit = laws.fit('saturating', data, groups=family)
  errors = laws.leave_one_out(fit)
  rest = {name: col[3:] for name, col in data.items()}
  other = laws.fit('saturating', rest)
  expected = data['score'][:3] - other.predict(data['rank'][:3])
  np.testing.assert_allclose(errors[:3], expected, atol=1e-7)


def test_compare_finds_the_law():
  result = laws.compare(['log_linear', 'saturating', 'exponential'],
                       _scores(sd=.003), by='flops')
  assert result['law'][0] == 'saturating'
  assert result.set_index('law')['aicc']['saturating'] == 0
  best = result.set_index('law')['held_out']
  assert best['saturating'] < best['log_linear']


def test_compare_says_why_a_law_is_missing():
  data = {name: col[[0, 10, 20, 29]] for name, col in _scores().items()}
  result = laws.compare(['saturating', 'sigmoid'], data).set_index('law')
  assert 'needs at least 5' in result.loc['sigmoid', 'problem']
  assert math.isnan(result.loc['sigmoid', 'loo'])
  with pytest.raises(ValueError, match='no law could be fitted'):
    laws.compare(['sigmoid'], data)


def test_held_out_reproduces_epoch(shared):
  """Fit below 1e21 FLOP, judged above: errors measured independently."""
  raw = pd.read_csv(shared / 'fixtures/laws/epoch_chinchilla_svg.csv')
  raw = raw.sort_values('loss').iloc[:-5]
  n, c = raw['Model Size'].to_numpy(), raw['Training FLOP'].to_numpy()
  data = {'N': n, 'D': c / (6 * n), 'loss': raw['loss'].to_numpy()}
  for form, loss, expected in (('separable', 'log_ls', .01382),
                               ('separable', 'log_huber', .01249)):
    got = laws.held_out(form, data, c >= 1e21, loss)
    np.testing.assert_allclose(got, expected, atol=6e-6)


def test_weights_count_in_every_error():
  """A row of weight two is that row twice, in one group."""
  data = pd.DataFrame(_scores())
  twice = pd.concat([data, data.iloc[:6]], ignore_index=True)
  weights = np.where(np.arange(len(data)) < 6, 2., 1.)
  label = np.r_[np.arange(len(data)), np.arange(6)]
  names = ['saturating', 'log_linear']
  ours = laws.compare(names, data, weights=weights).set_index('law')
  theirs = laws.compare(names, twice, groups=label).set_index('law')
  np.testing.assert_allclose(ours.loc[names, 'loo'], theirs.loc[names, 'loo'],
                             rtol=1e-6)
  out = np.arange(len(data)) < 9
  np.testing.assert_allclose(
      laws.held_out('log_linear', data, out, weights=weights),
      laws.held_out('log_linear', twice, np.r_[out, np.full(6, True)],
                    groups=label), rtol=1e-9)


def test_a_point_without_a_prediction_is_not_left_out_of_the_error(
    monkeypatch):
  fit = laws.fit('log_linear', _scores())
  e_N = select.leave_one_out(fit)
  monkeypatch.setattr(select, 'leave_one_out', lambda fit: np.where(
      np.arange(len(e_N)) == 3, np.nan, e_N))
  result = laws.compare(['log_linear'], _scores())
  assert result['loo'][0] == math.inf


def test_largest():
  data = {'flops': [1., 2., 2., 3., 3.]}
  assert laws.largest(data, 'flops', .4).tolist() == [0, 0, 0, 1, 1]
  # Even one value too many is held out rather than none.
  assert laws.largest(data, 'flops', .1).tolist() == [0, 0, 0, 1, 1]


def test_aicc_charges_for_parameters():
  fit = laws.fit('log_linear', _scores())
  n, k = 30, 3
  expected = (n * np.log(fit.objective / n) + 2 * k +
              2 * k * (k + 1) / (n - k - 1))
  np.testing.assert_allclose(select.aicc(fit), expected, rtol=1e-12)


def _sweep(seed, by_rank):
  """Runs whose score follows either rank or size; rank follows size too."""
  rng = np.random.default_rng(seed)
  n = 48
  width = rng.choice([64., 128., 256., 512.], n)
  params = width ** 2 * rng.choice([2., 4., 8.], n)
  rank = width ** .6 * np.exp(.35 * rng.normal(size=n))
  cause = np.log(rank) if by_rank else .5 * np.log(params)
  return pd.DataFrame({
      'width': width, 'params': params, 'rank': rank,
      'valid_loss': np.exp(rng.normal(size=n)),
      'score': .1 + .1 * cause + .01 * rng.normal(size=n)})


def test_predictors_when_rank_rules():
  result = laws.compare_predictors(_sweep(0, True),
                                  ['params', 'width', 'valid_loss'])
  rows = result.set_index('predictor')
  assert result['predictor'][0] == 'rank'
  assert rows.loc['rank', 'partial'] > .9
  assert rows.loc['rank', 'partial_low'] > .5
  assert rows.loc['params', 'worse_low'] > 0
  assert rows.loc['valid_loss', 'loo'] > .9 * rows.loc['(mean)', 'loo']


def test_predictors_when_size_rules():
  """Rank correlates with the score by way of size, and is found out."""
  result = laws.compare_predictors(_sweep(1, False), ['params', 'width'])
  rows = result.set_index('predictor')
  assert rows.loc['rank', 'spearman'] > .5
  assert abs(rows.loc['rank', 'partial']) < .4
  assert rows.loc['params', 'worse_high'] < 0


def test_predictors_refuse():
  sweep = _sweep(0, True)
  with pytest.raises(ValueError, match='at least 4 groups'):
    laws.compare_predictors(sweep, ['params'], groups=np.arange(48) % 3)
  with pytest.raises(ValueError, match="'flat' is constant"):
    laws.compare_predictors(sweep.assign(flat=1.), ['flat'])
