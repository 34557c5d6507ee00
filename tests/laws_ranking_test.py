"""Early prediction: agreement, decisions, and what they save."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiorank.laws import ranking


def test_agreement_matches_scipy():
  rng = np.random.default_rng(0)
  s = rng.normal(size=30).round(1)
  q = (s + rng.normal(size=30)).round(1)
  result = ranking.agreement(s, q, draws=200)
  np.testing.assert_allclose(result.tau, stats.kendalltau(s, q).statistic)
  np.testing.assert_allclose(result.spearman, stats.spearmanr(s, q).statistic)
  assert result.tau_low < result.tau < result.tau_high
  assert not result.exploratory


def test_pairs_are_half_tau():
  rng = np.random.default_rng(1)
  s, q = rng.normal(size=(2, 12))
  result = ranking.agreement(s, q, draws=50)
  np.testing.assert_allclose(result.pairs, (result.tau + 1) / 2)
  assert result.exploratory


def test_exact_p_of_few_runs():
  """Six runs in perfect order: two of 720 orders are as extreme."""
  result = ranking.agreement(range(6), range(6), draws=20)
  np.testing.assert_allclose(result.p, 2 / 720)
  s, q = [1., 2., 3., 4., 5.], [1., 3., 2., 5., 4.]
  observed = stats.kendalltau(s, q).statistic
  every = [abs(stats.kendalltau(s, order).statistic)
           for order in itertools.permutations(q)]
  np.testing.assert_allclose(ranking.agreement(s, q, draws=20).p,
                             np.mean(np.array(every) >= abs(observed) - 1e-9))


def test_strata_undo_simpson():
  """Families of different level: pooled agreement without any within."""
  rng = np.random.default_rng(2)
  family = np.repeat([0, 1, 2], 20)
  s = 5. * family + rng.normal(size=60)
  q = 5. * family + rng.normal(size=60)
  result = ranking.agreement(s, q, strata=family, draws=50)
  assert result.tau > .6 and abs(result.within) < .25


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
  table = ranking.predict(runs, 'early', 'final',
                       baselines=['early_over_width'], draws=50)
  assert len(table) == 2


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
  result = ranking.halving(np.stack([q, q]), [10, 20], 100, q)
  assert result.finished == (7, 6) and result.regret == 0.
  assert result.saved == pytest.approx(1 - (80 + 40 + 160) / 800)
  failed = np.stack([np.where(q == 7, np.nan, q)] * 2)
  assert ranking.halving(failed, [10, 20], 100, q).regret == 1.
  with pytest.raises(ValueError, match='ascending rungs'):
    ranking.halving(np.stack([q, q]), [20, 10], 100, q)


def test_too_few_runs():
  with pytest.raises(ValueError, match='at least 3 runs, found 2'):
    ranking.agreement([1., 2.], [1., 2.])
