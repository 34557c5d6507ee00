"""Claims about layers, floors, width and other scores: known answers.

Studies are made up here: configurations of several sizes and masking rates,
with seeds. The slow tests count how often 200 of them are decided wrongly.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiorank import laws
from audiorank.analysis import claims
from audiorank.analysis import factors
from audiorank.analysis import law
from audiorank.analysis import layers
from audiorank.analysis import scorings
from audiorank.analysis import size
from audiorank.analysis import study
from audiorank.report import wording

WIDTHS, RATES, SEEDS, DEPTH = (16, 32, 48, 64, 96), (.5, .75, .9), 3, 4
STEPS = (0, 50, 126, 316, 795, 2000)
RANK, SCORE = .05, .012  # Noise of seeds, of log2 RankMe and of the score.
STUDIES = 200


def runs():
  """Returns a row a run: its configuration and seed, without any number."""
  rows = [dict(width=width, heads=width // 16, depth=DEPTH, mask_ratio=rate,
               seed=seed, size=f'en{width}-4', params=12 * DEPTH * width ** 2,
               configuration=k)
          for k, (width, rate) in enumerate(
              (w, r) for w in WIDTHS for r in RATES)
          for seed in range(SEEDS)]
  out = pd.DataFrame(rows)
  return out.assign(run_id=[f'r{i}' for i in range(len(out))])


def made_up(rng, **columns):
  """Returns a Study of `runs` with some columns; the others are noise."""
  rows = runs()
  noise = rng.standard_normal((2, len(rows)))
  values = {'rank': 2 ** (3.5 + RANK * noise[0]),
            'score': .6 + SCORE * noise[1], 'valid_loss': rng.random(len(rows)),
            'hours_asked': 1 + rng.random(len(rows))}
  trained = rows.assign(**{**values, **columns})
  none = pd.DataFrame()
  return study.Study(trained, none, none, none, none,
                     ('width', 'depth', 'heads', 'mask_ratio'),
                     study.Counts(*[len(rows)] * 6), True)


def at_layers(prefix, value_NL):
  """Returns the columns of every layer but the last, by their prefix."""
  return {f'{prefix}{k}': value_NL[:, k] for k in range(value_NL.shape[1] - 1)}


def scored(rng, rank_NL, valid_NL):
  """Returns a Study of runs measured and scored at every layer."""
  score_NL = valid_NL + 1e-4 * rng.standard_normal(valid_NL.shape)
  return made_up(rng, rank=rank_NL[:, -1], score=score_NL[:, -1],
                 valid_layer_final=valid_NL[:, -1],
                 **at_layers('rank_layer_', rank_NL),
                 **at_layers('score_layer_', score_NL),
                 **at_layers('valid_layer_', valid_NL))


def trained_for(rows, rank_NEL):
  """Returns a Study with a history: RankMe of evaluations and layers."""
  parts = []
  for e, step in enumerate(STEPS):
    now = rows.trained.assign(rank=rank_NEL[:, e, -1],
                              **at_layers('rank_layer_', rank_NEL[:, e]))
    parts.append(now.assign(step=step, steps=STEPS[-1]))
  return rows._replace(history=pd.concat(parts, ignore_index=True))


def verdict_of(one):
  """Returns a claim's verdict; the claim must be told in words."""
  row, = wording.claims((one,))
  assert 'nan' not in ' '.join(row)
  assert bool(row.needed) == (one.verdict == claims.INCONCLUSIVE)
  return one.verdict


def test_a_share_has_the_exact_interval_of_its_configurations():
  hit, group = np.array([1, 1, 0, 1, 0, 0, 0.]), np.arange(7)
  theirs = stats.binomtest(3, 7).proportion_ci(.95, 'exact')
  np.testing.assert_allclose(claims.share(hit, group),
                             (3 / 7, theirs.low, theirs.high))
  # Seeds of a configuration that agree are one trial.
  again = claims.share(np.repeat(hit, 3), np.repeat(group, 3))
  np.testing.assert_allclose(again, claims.share(hit, group))
  assert claims.share(np.ones(5), np.arange(5))[2] == 1
  assert claims.most(.51, .9, .25) == claims.HOLDS
  assert claims.most(.1, .45, .25) == claims.FAILS
  # More often than by chance, in fewer than half.
  assert claims.most(.3, .45, .25) == claims.INCONCLUSIVE


def test_a_distance_beyond_seeds_has_the_noncentral_interval():
  low, high = size.beyond_seeds(6., 4, 30, 15)
  for end, share in ((low, .975), (high, .025)):
    assert stats.ncf.cdf(6., 4, 30, 15 * end ** 2) == pytest.approx(share)
  # Distances below the noise have no lower end; nothing bounds the absurd.
  assert size.beyond_seeds(.5, 4, 30, 15)[0] == 0
  assert size.beyond_seeds(1e9, 4, 30, 15)[1] == np.inf


def test_the_layer_of_highest_rank_is_best_or_is_not():
  rng = np.random.default_rng(0)
  n = len(runs())
  rank_NL = rng.uniform(5, 20, (n, DEPTH))
  for valid_NL, verdict in ((rank_NL / 20, claims.HOLDS),
                            (1 - rank_NL / 20, claims.FAILS)):
    one = layers.of_best(scored(rng, rank_NL, valid_NL))
    assert verdict_of(one) == verdict and one.details['chance'] == 1 / DEPTH
    assert (one.estimate, one.configurations) == (verdict == claims.HOLDS, 15)
  # The opposite rule is the better one there.
  lowest = one.rivals[0]
  assert (lowest.name, lowest.value, lowest.decided) == (layers.LOWEST, 1, -1)
  assert one.details['cost'][layers.LOWEST] == pytest.approx(0, abs=1e-3)
  assert one.details['cost'][layers.HIGHEST] > .1
  # Without layers there is no such claim.
  assert layers.of_best(made_up(rng)) is None


def test_validation_chooses_the_layer_where_it_is_known():
  rng = np.random.default_rng(0)
  rank_NL = rng.uniform(5, 20, (len(runs()), DEPTH))
  rows = scored(rng, rank_NL, rank_NL / 20)
  # Test clips would choose the opposite.
  other = rows.trained.assign(**at_layers('score_layer_', 1 - rank_NL / 20),
                              score=1 - rank_NL[:, -1] / 20)
  assert layers.of_best(rows._replace(trained=other)).estimate == 1
  older = other.drop(columns=[c for c in other if c.startswith('valid_')])
  assert layers.of_best(rows._replace(trained=older)).estimate == 0


def test_the_layer_whose_rank_falls_first_is_counted():
  rng = np.random.default_rng(0)
  n, at = len(runs()), np.arange(len(STEPS))
  fall = lambda low_L: 20 + 3 * np.abs(at[:, None] - np.asarray(low_L)[None])
  # Layers are lowest at these evaluations, before which RankMe falls.
  for low_L, verdict in (((3, 3, 2, 1), claims.HOLDS),
                         ((1, 2, 3, 3), claims.FAILS)):
    rank_NEL = np.broadcast_to(fall(low_L), (n, len(STEPS), DEPTH))
    one = layers.of_order(trained_for(made_up(rng), rank_NEL))
    assert verdict_of(one) == verdict
    assert one.rivals[0].value == 1 - one.estimate
  # Two of four at once are half a hit each; all at once say nothing.
  np.testing.assert_allclose(
      [layers.first(layers.first_low(fall((1, 2, 3, 1))), k)
       for k in range(4)], [.5, 0, 0, .5])
  same_NEL = np.broadcast_to(fall((2, 2, 2, 2)), (n, len(STEPS), DEPTH))
  one = layers.of_order(trained_for(made_up(rng), same_NEL))
  assert one.details['tied'] == n and verdict_of(one) == claims.INCONCLUSIVE
  # What never falls reaches no floor.
  rising = layers.first_low(np.arange(12.).reshape(6, 2))
  assert np.isinf(rising).all()


def fallen(rng, floor_N, at=2):
  """Returns a Study whose runs fall to a floor, with the noise of seeds."""
  floor_N = floor_N * 2 ** (RANK * rng.standard_normal(len(floor_N)))
  rank_NEL = np.repeat(floor_N[:, None, None] * 1.5, len(STEPS), 1)
  rank_NEL[:, at] = floor_N[:, None]
  return trained_for(made_up(rng), np.repeat(rank_NEL, DEPTH, 2))


def test_a_floor_that_depends_on_size_is_told_from_one_that_does_not():
  rng = np.random.default_rng(1)
  width_N = runs()['width'].to_numpy(float)
  one = size.of_floor(fallen(rng, np.full(len(width_N), 9.)))
  assert verdict_of(one) == claims.HOLDS and one.high < 1
  assert one.details['early'] == 1 and one.details['share'] == 126 / 2000
  one = size.of_floor(fallen(rng, 2 * width_N ** .3))
  assert verdict_of(one) == claims.FAILS and one.p < 1e-6
  # sd of .3 log2 of these widths, in units of the noise.
  expected = .3 * np.log2(WIDTHS).std() / RANK
  assert one.low < expected < one.high
  # A floor at the very end is no early one.
  one = size.of_floor(fallen(rng, np.full(len(width_N), 9.), at=5))
  assert verdict_of(one) == claims.FAILS and one.details['early'] == 0
  assert size.of_floor(made_up(rng)) is None


def powers(rng, log2_rank_N):
  """Returns a Study whose trained runs have these ranks, with noise, and
  whose untrained networks have twice them, one a size and seed."""
  noise = RANK * rng.standard_normal(len(log2_rank_N))
  rows = made_up(rng, rank=2 ** (log2_rank_N + noise))
  once = rows.trained[rows.trained['mask_ratio'] == RATES[0]]
  return rows._replace(untrained=once.assign(
      rank=2 * once['rank'], mask_ratio=.75).drop(columns='configuration'))


def test_a_power_of_width_is_told_from_a_law_that_saturates():
  rng = np.random.default_rng(2)
  width_N = runs()['width'].to_numpy(float)
  trained, untrained = size.of_power(powers(rng, .4 * np.log2(width_N)))
  assert verdict_of(trained) == claims.HOLDS
  assert trained.low < .4 < trained.high < .5
  assert trained.details['groups'] == len(RATES)
  assert (untrained.family, untrained.runs) == ('untrained', 15)
  assert untrained.low < .4 < untrained.high
  # It grows to width 32 and then no further.
  bent, _ = size.of_power(powers(rng, 2 * np.log2(np.minimum(width_N, 32))))
  assert verdict_of(bent) == claims.FAILS and bent.rivals[0].decided == -1
  assert 'saturates' in wording.compared(bent)


def test_a_power_of_width_is_what_a_regression_finds():
  rng = np.random.default_rng(3)
  rows = powers(rng, .4 * np.log2(runs()['width'].to_numpy(float)))
  one = size.of_power(rows)[0]
  # Levels of the masking rates and one slope, by plain least squares.
  mean = rows.trained.assign(x=np.log2(rows.trained['rank'])).groupby(
      ['mask_ratio', 'width'], as_index=False)['x'].mean()
  design = np.column_stack([np.log2(mean['width']), pd.get_dummies(
      mean['mask_ratio']).to_numpy(float)])
  slope = np.linalg.lstsq(design, mean['x'], rcond=None)[0][0]
  assert one.estimate == pytest.approx(slope)


def test_at_equal_width_only_what_differs_there_is_a_rival():
  rng = np.random.default_rng(4)
  rows = made_up(rng)
  trained = rows.trained
  # The score is the width's but for a part that the loss knows.
  score = .1 * np.log2(trained['width']) + .05 * trained['valid_loss']
  rows = rows._replace(trained=trained.assign(score=score))
  table = law.predictors(rows.trained, within=True)
  one = law.of_rivals(rows, table, within=True)
  names = [rival.name for rival in one.rivals]
  assert law.WIDTH not in names and law.PARAMS not in names
  assert {'validation loss', 'hours of audio', 'masking rate'} == set(names)
  best = one.rivals[names.index('validation loss')]
  assert verdict_of(one) == claims.FAILS and best.decided == -1
  # Over all widths it is the width that predicts.
  every = law.predictors(rows.trained).set_index('predictor')['loo']
  assert every[law.WIDTH] < .2 * every['RankMe']
  # By other code: each configuration left out, a mean for every width.
  design = np.column_stack([pd.get_dummies(trained['width']),
                            np.log(trained['valid_loss'])]).astype(float)
  errors = []
  for k in range(len(WIDTHS) * len(RATES)):
    out = (trained['configuration'] == k).to_numpy()
    fit = np.linalg.lstsq(design[~out], score[~out], rcond=None)[0]
    errors += list(score[out] - design[out] @ fit)
  assert best.value == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_what_a_single_configuration_varies_predicts_nothing_of_it():
  rng = np.random.default_rng(7)
  y, k = rng.random(20), np.arange(20)
  table = pd.DataFrame({'score': y, 'rank': rng.random(20) + 1,
                        'rate': np.where(k == 3, .9, .75)})
  errors = laws.compare_predictors(table, ['rate'], known=()).set_index(
      'predictor')['loo']
  # Left out, it is predicted by the mean of the others; they are about theirs.
  alone = y[3] - y[k != 3].mean()
  rest = [y[i] - y[(k != i) & (k != 3)].mean() for i in k if i != 3]
  assert errors['rate'] == pytest.approx(
      np.sqrt(np.mean(np.square([alone, *rest]))))


def test_verdicts_are_repeated_with_other_scores():
  rng = np.random.default_rng(5)
  trained = made_up(rng).trained
  x = np.log2(trained['width']) + 2 * trained['mask_ratio']
  noise = lambda: SCORE * rng.standard_normal(len(x))
  rows = made_up(rng, rank=2 ** (x + RANK * rng.standard_normal(len(x))),
                 score=.2 + .4 * x + noise(),
                 best_layer_score=.3 + .4 * x + noise(), knn=.9 - .4 * x
                 + noise())
  it = factors.compare(rows)
  own = factors.of_one_slope(it), factors.of_width(it)
  out = {one.family: one for one in scorings.of_scorings(rows, *own)}
  assert set(out) == {'the best layer', 'kNN of one task'}
  best, knn = out['the best layer'], out['kNN of one task']
  assert [one.verdict for one in own] == [claims.HOLDS] * 2
  assert verdict_of(best) == claims.HOLDS and best.details['spearman'] > .9
  # By kNN the score falls where RankMe rises.
  assert verdict_of(knn) == claims.FAILS and knn.estimate < -.3
  assert knn.details['again'][1].verdict == claims.FAILS


def test_every_layer_is_a_scoring_with_its_own_rank():
  rng = np.random.default_rng(6)
  rank_NL = rng.uniform(5, 20, (len(runs()), DEPTH))
  rows = scored(rng, rank_NL, rank_NL / 20)
  known = scorings.scorings(rows.trained)
  assert [one.name for one in known] == ['layer 1', 'layer 2', 'layer 3']
  for k, one in enumerate(known):
    np.testing.assert_allclose(one.trained['rank'], rank_NL[:, k])
    np.testing.assert_allclose(one.trained['score'], rank_NL[:, k] / 20,
                               atol=1e-3)


# --- How often 200 studies without an effect are decided wrongly ---


def wrong(decide, seed):
  """Returns how many of STUDIES are decided wrongly; checks at most 5 %, by
  the exact interval of what was counted."""
  rng = np.random.default_rng(seed)
  count = sum(bool(decide(rng)) for _ in range(STUDIES))
  assert stats.binom.sf(count - 1, STUDIES, .05) > .025, count
  return count


@pytest.mark.slow
def test_200_studies_of_layers_without_an_effect():
  n = len(runs())

  def holds_by_chance(rng):
    one = layers.of_best(scored(rng, rng.random((n, DEPTH)) + 1,
                                rng.random((n, DEPTH))))
    return one.verdict == claims.HOLDS

  def half(rng):
    """In half of the configurations, all seeds alike: neither way."""
    rank_NL, best_N = rng.random((n, DEPTH)) + 1, rng.random(15)[
        np.repeat(np.arange(15), SEEDS)] < .5
    sign_N = np.where(best_N, 1., -1.)
    one = layers.of_best(scored(rng, rank_NL, sign_N[:, None] * rank_NL))
    return one.verdict != claims.INCONCLUSIVE

  def order(rng):
    rank_NEL = rng.random((n, len(STEPS), DEPTH)) + 1
    rank_NEL[:, 0] = 3.
    one = layers.of_order(trained_for(made_up(rng), rank_NEL))
    return one.verdict == claims.HOLDS

  for seed, decide in enumerate((holds_by_chance, half, order)):
    wrong(decide, seed)


@pytest.mark.slow
def test_200_studies_of_floors_and_widths_without_an_effect():
  width_N = runs()['width'].to_numpy(float)
  same = np.full(len(width_N), 9.)
  # As far apart as seeds move them: neither less nor, for sure, more.
  apart = RANK * stats.zscore(np.log2(width_N))
  wrong(lambda rng: size.of_floor(fallen(rng, same)).verdict == claims.FAILS,
        10)
  wrong(lambda rng: size.of_floor(fallen(rng, same * 2 ** apart)).verdict
        == claims.HOLDS, 11)
  verdict = lambda rng, log2_rank_N: size.of_power(
      powers(rng, log2_rank_N))[0].verdict
  wrong(lambda rng: verdict(rng, .4 * np.log2(width_N)) == claims.FAILS, 12)
  # No relation to width is no power of it.
  wrong(lambda rng: verdict(rng, same) == claims.HOLDS, 13)


@pytest.mark.slow
def test_200_studies_in_which_nothing_predicts_the_score(monkeypatch):
  monkeypatch.setattr(law, 'DRAWS', 1000)
  rng = np.random.default_rng(14)
  decided = {'width_rivals': 0, 'scoring': 0}
  for _ in range(STUDIES):
    n = len(runs())
    rows = made_up(
        rng, rank=2 ** (3 + rng.random(n)), best_layer_score=rng.random(n),
        lidar=rng.random(n) + 1, knn=rng.random(n))
    table = law.predictors(rows.trained, within=True)
    one = law.of_rivals(rows, table, within=True)
    decided['width_rivals'] += one.verdict != claims.INCONCLUSIVE
    it = factors.compare(rows)
    decided['scoring'] += any(
        each.verdict != claims.INCONCLUSIVE for each in scorings.of_scorings(
            rows, factors.of_one_slope(it), factors.of_width(it)))
  for count in decided.values():
    assert stats.binom.sf(count - 1, STUDIES, .05) > .025, decided
