"""Early prediction and failure modes."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiorank import laws
from audiorank.laws import failures
from audiorank.laws import ranking


def test_agreement_matches_scipy():
  rng = np.random.default_rng(0)
  s = rng.normal(size=30).round(1)
  q = (s + rng.normal(size=30)).round(1)
  found = ranking.agreement(s, q, draws=200)
  np.testing.assert_allclose(found.tau, stats.kendalltau(s, q).statistic)
  np.testing.assert_allclose(found.spearman, stats.spearmanr(s, q).statistic)
  assert found.tau_low < found.tau < found.tau_high
  assert not found.exploratory


def test_pairs_are_half_tau():
  rng = np.random.default_rng(1)
  s, q = rng.normal(size=(2, 12))
  found = ranking.agreement(s, q, draws=50)
  np.testing.assert_allclose(found.pairs, (found.tau + 1) / 2)
  assert found.exploratory


def test_exact_p_of_few_runs():
  """Six runs in perfect order: two of 720 orders are as extreme."""
  found = ranking.agreement(range(6), range(6), draws=20)
  np.testing.assert_allclose(found.p, 2 / 720)
  s, q = [1., 2., 3., 4., 5.], [1., 3., 2., 5., 4.]
  seen = stats.kendalltau(s, q).statistic
  every = [abs(stats.kendalltau(s, order).statistic)
           for order in itertools.permutations(q)]
  np.testing.assert_allclose(ranking.agreement(s, q, draws=20).p,
                             np.mean(np.array(every) >= abs(seen) - 1e-9))


def test_strata_undo_simpson():
  """Families of different level: pooled agreement without any within."""
  rng = np.random.default_rng(2)
  family = np.repeat([0, 1, 2], 20)
  s = 5. * family + rng.normal(size=60)
  q = 5. * family + rng.normal(size=60)
  found = ranking.agreement(s, q, strata=family, draws=50)
  assert found.tau > .6 and abs(found.within) < .25


def test_dividing_both_sides_manufactures_agreement():
  """Independent ranks, both over the width: tau jumps, and it is refused."""
  rng = np.random.default_rng(3)
  width = rng.choice([128., 256., 512., 768.], 400)
  runs = pd.DataFrame({'early': 100 + 10 * rng.normal(size=400),
                       'final': 100 + 10 * rng.normal(size=400)})
  runs['early_over_width'] = runs['early'] / width
  runs['final_over_width'] = runs['final'] / width
  honest = ranking.agreement(runs['early'], runs['final'], draws=20)
  false = ranking.agreement(runs['early_over_width'], runs['final_over_width'],
                          draws=20)
  assert abs(honest.tau) < .1 and false.tau > .6
  with pytest.raises(ValueError, match='both divided by the width'):
    ranking.predict(runs, 'early_over_width', 'final_over_width')
  kept = ranking.predict(runs, 'early', 'final',
                       baselines=['early_over_width'], draws=50)
  assert len(kept) == 2


def test_difference_needs_pairs():
  rng = np.random.default_rng(4)
  q = rng.normal(size=60)
  good, bad = q + .3 * rng.normal(size=60), q + 2. * rng.normal(size=60)
  gap, low, high = ranking.difference(good, bad, q, draws=300)
  assert low > 0 and low < gap < high
  np.testing.assert_allclose(
      gap, stats.kendalltau(good, q).statistic -
      stats.kendalltau(bad, q).statistic)
  same = ranking.difference(good, good, q, draws=50)
  assert same == (0., 0., 0.)


def test_clusters_widen_the_interval():
  """Seeds of a configuration are not independent configurations."""
  rng = np.random.default_rng(5)
  config = np.repeat(np.arange(10), 6)
  s = np.repeat(rng.normal(size=10), 6) + .01 * rng.normal(size=60)
  q = np.repeat(rng.normal(size=10), 6) + .01 * rng.normal(size=60)
  wide = ranking.agreement(s, q, groups=config, draws=500)
  thin = ranking.agreement(s, q, draws=500)
  assert (wide.tau_high - wide.tau_low) > 1.5 * (
      thin.tau_high - thin.tau_low)


def test_top_and_its_regret():
  q = np.array([.1, .2, .3, .4])
  assert ranking.top(q, q) == (True, 0., pytest.approx(.15))
  worst = ranking.top(-q, q, 2)
  assert not worst.hit and worst.regret == pytest.approx(.2)
  every = [q.max() - max(pair) for pair in itertools.combinations(q, 2)]
  assert worst.random == pytest.approx(np.mean(every))
  # A tie must not be won by luck.
  assert ranking.top([1., 1., 0.], [.9, .1, .2]).regret == pytest.approx(.8)


def test_halving():
  """Eight runs, rungs at 10 and 20 of 100 steps: 8x10 + 4x10 + 2x80."""
  q = np.arange(8.)
  found = ranking.halving(np.stack([q, q]), [10, 20], 100, q)
  assert found.finished == (7, 6) and found.regret == 0.
  assert found.saved == pytest.approx(1 - (80 + 40 + 160) / 800)
  failed = np.stack([np.where(q == 7, np.nan, q)] * 2)
  assert ranking.halving(failed, [10, 20], 100, q).regret == 1.
  with pytest.raises(ValueError, match='ascending rungs'):
    ranking.halving(np.stack([q, q]), [20, 10], 100, q)


def test_too_few_runs():
  with pytest.raises(ValueError, match='at least 3 runs, found 2'):
    ranking.agreement([1., 2.], [1., 2.])


def _made(seed=0, odd=None):
  rng = np.random.default_rng(seed)
  rank = np.geomspace(30, 500, 25)
  score = .9 - 4. * rank ** -.8 + .005 * rng.normal(size=25)
  if odd is not None:
    score[odd] -= .06
  return laws.fit('saturating', {'rank': rank, 'score': score})


def test_studentised_is_leaving_out():
  """The linearised residual against the refitted one."""
  made = _made()
  t, leverage = failures.studentised(made)
  errors = laws.leave_one_out(made)
  np.testing.assert_allclose(made.residuals / (1 - leverage), errors,
                             rtol=.25, atol=3e-4)
  np.testing.assert_allclose(leverage.sum(), 3., rtol=1e-6)


def test_outliers_are_named():
  assert not len(failures.outliers(_made()))
  made = _made(odd=7)
  found = failures.outliers(made, labels=[f'run{i}' for i in range(25)],
                            families=np.arange(25) % 3)
  assert found['label'].tolist() == ['run7'] and found['studentised'][0] < -5


def test_families_stand_apart():
  rng = np.random.default_rng(1)
  rank = np.geomspace(30, 500, 30)
  family = np.where(np.arange(30) % 3 == 0, 'music', 'speech')
  score = .9 - 4 * rank ** -.8 + .004 * rng.normal(size=30)
  made = laws.fit('saturating', {'rank': rank, 'score': score + .03 * (
      family == 'music')})
  found = failures.families(made, family)
  assert found['family'][0] == 'music' and found['p'][0] < .01
  assert found['mean'][0] > 0


def test_runs_test_sees_a_bend():
  made = _made()
  assert failures.runs_test(made)[2] > .05
  rank = np.geomspace(30, 500, 25)
  bent = laws.fit('log_linear', {'rank': rank, 'score':
                                 .9 - 4 * rank ** -.8})
  runs, expected, p = failures.runs_test(bent)
  assert runs < expected and p < .01


def test_runs_test_is_exact():
  """The distribution over all arrangements of four and five signs."""
  made = _made()
  count = 0
  signs = np.sign(made.residuals)
  plus = int((signs > 0).sum())
  rng = np.random.default_rng(0)
  seen = failures.runs_test(made)[0]
  base = np.r_[np.ones(plus), -np.ones(25 - plus)]
  for _ in range(4000):
    mixed = rng.permutation(base)
    count += 1 + np.sum(mixed[1:] != mixed[:-1]) <= seen
  # 4,000 shuffles: standard error at most .008.
  assert abs(count / 4000 - failures.runs_test(made)[2]) < .03


def test_broken_is_preferred_only_where_it_breaks():
  rng = np.random.default_rng(2)
  x = np.geomspace(1e3, 1e9, 32)
  noise = np.exp(.01 * rng.normal(size=32))
  straight = failures.bends({'x': x, 'y': 3 * x ** -.2 * noise}, 'x', 'y')
  assert not straight.attrs['broken']
  broken = 3 * x ** -.05 * (1 + (x / 1e6) ** 2) ** -.2
  found = failures.bends({'x': x, 'y': broken * noise}, 'x', 'y')
  assert found.attrs['broken']


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
  found = failures.unstable(pd.concat(rows)).set_index('run_id')['kind']
  assert found.to_dict() == {'collapsed': 'collapse', 'dipped': 'dip',
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
  found = failures.unstable(pd.concat(rows))
  assert found[['run_id', 'kind', 'step']].values.tolist() == [
      ['lost', 'diverged', 3]]


def test_a_run_that_collapsed_at_once_is_found():
  history = pd.DataFrame({'run_id': 'a', 'step': range(10),
                          'rank': [300.] + [1.01] * 9})
  found = failures.unstable(history)
  assert list(found['kind']) == ['collapse']
