"""Rank and score: the law between them, and what predicts the score as well.

A law is drawn only through runs that score above their untrained baseline: a
run that does not has not learned what the tasks ask, and a curve through it
would describe the random features of a log-mel.

Shapes: N runs.
"""

import math

import numpy as np
import pandas as pd

from audiorank import laws
from audiorank import records
from audiorank.analysis import claims
from audiorank.analysis import study

LEAST = 6  # Runs without which three parameters are not fitted.
FEWEST = 8  # Configurations below which a bootstrap decides nothing.
NARROW = .5  # Decades of RankMe below which Q_inf is rarely identified.
FLAT = .02  # Decades below which no law is tried.
EQUIVALENT = .1  # Share of the error within which two samples are one.
DRAWS = 2000
SUBJECT = 'RankMe'
ERROR = 'root mean square error of the score'
WIDTH, PARAMS = 'width', 'parameters'
UNTRAINED = "the untrained network's RankMe"
# What is known before the first step, the width first.
KNOWN = {'width': WIDTH, 'params': PARAMS, 'untrained_rank': UNTRAINED,
         'hours_asked': 'hours of audio', 'mask_ratio': 'masking rate',
         'steps': 'training steps', 'lr': 'learning rate'}
CLID = 'clid'
LEARNABILITY, TWONN = 'neighbour_cluster_learnability', 'neighbour_twonn'
# What is measured beside RankMe while a run trains: its name, and 1 where its
# authors take larger values for better, -1 where they take smaller ones.
MEASURED = {
    'rank_token': ('RankMe of tokens', 1), 'lidar': ('LiDAR', 1),
    'knn': ('kNN score of one task', 1), TWONN: ('TwoNN dimension', 1),
    'neighbour_mle_dimension': ('maximum-likelihood dimension', 1),
    'neighbour_mst_dimension': ('MST dimension (IdEst)', -1),
    'neighbour_kmeans_inertia': ('k-means inertia', -1),
    'neighbour_davies_bouldin': ('Davies-Bouldin index', -1),
    LEARNABILITY: ('cluster learnability', 1), CLID: ('CLID', 1)}
PREDICTORS = {
    'rank': SUBJECT, **KNOWN, 'rank_center': 'RankMe, centred',
    'valid_loss': 'validation loss', 'flops': 'training FLOPs (with decoder)',
    'sibling_participation_ratio': 'participation ratio',
    'sibling_stable_rank': 'stable rank', 'sibling_alpha_req': 'alpha-ReQ',
    **{column: name for column, (name, _) in MEASURED.items()}}
# The rivals of every claim that RankMe predicts better.
RIVALS = (*KNOWN.values(), 'validation loss', 'training FLOPs (with decoder)',
          *(name for name, _ in MEASURED.values()))
GIVEN = (WIDTH, PARAMS, UNTRAINED)
# The forms that a law from rank to score may have.
FORMS = ('saturating', 'log_linear', 'exponential', 'sigmoid',
         'logit_linear')


def fit(trained: pd.DataFrame) -> tuple[laws.Fit | None, claims.Needed | None]:
  """Returns (the law, None), or (None, what it lacks)."""
  rows = study.above_baseline(trained)
  if not len(trained) or trained['gain'].isna().all():
    return None, claims.Needed('baselines')
  if len(rows) < LEAST:
    return None, claims.Needed('above', LEAST - len(rows))
  if np.ptp(np.log10(rows['rank'].astype(float))) < FLAT:
    return None, claims.Needed('range', NARROW)
  try:
    return laws.fit('saturating', {'rank': rows['rank'].to_numpy(float),
                                   'score': rows['score'].to_numpy(float)},
                    groups=rows['configuration'].to_numpy()), None
  except ValueError as error:
    return None, claims.Needed('fit', names=(str(error),))


def forms(trained: pd.DataFrame, law: laws.Fit | None) -> pd.DataFrame:
  """Returns laws.compare of the forms of a law from rank to score."""
  if law is None:
    return pd.DataFrame()
  rows = study.above_baseline(trained)
  # The largest runs are those of the most compute, where it is known.
  by = next((name for name in ('flops', 'params')
             if name in rows and rows[name].notna().all()
             and rows[name].nunique() > 1), None)
  names = [name for name in ('rank', 'score', by) if name]
  return laws.compare(FORMS, rows[names].astype(float), by=by,
                      groups=rows['configuration'].to_numpy())


def of_layers(trained: pd.DataFrame
              ) -> tuple[laws.Fit, laws.Fit, float] | None:
  """Returns (law of the final layer's score, of the best layer's, mean gain).

  Of the runs above their untrained network that were scored at every layer;
  None where they are too few, or RankMe varies too little, for a law.
  """
  if 'best_layer_score' not in trained:
    return None
  rows = study.above_baseline(trained)
  rows = rows[rows['best_layer_score'].notna()]
  if len(rows) < LEAST or np.ptp(
      np.log10(rows['rank'].astype(float))) < FLAT:
    return None
  final, best = (rows[name].to_numpy(float)
                 for name in ('score', 'best_layer_score'))
  groups = rows['configuration'].to_numpy()
  try:
    fits = [laws.fit('saturating', {'rank': rows['rank'].to_numpy(float),
                                    'score': y_N}, groups=groups)
            for y_N in (final, best)]
  except ValueError:
    return None
  return fits[0], fits[1], float(np.mean(best - final))


def of_law(rows: study.Study, law: laws.Fit | None,
           lacks: claims.Needed | None) -> claims.Claim:
  """Returns the claim that rank and score lie on one saturating power law.

  It holds where the limit and the exponent are bounded and, with every
  configuration left out in turn, the law errs less than the mean by a paired
  interval. It is not refused: too narrow a range bounds nothing.
  """
  trained = rows.trained
  counts = counted(study.above_baseline(trained))
  if law is None:
    return claims.claim('law', 'score', counts=counts, needed=lacks,
                        trained=len(trained))
  low, high = law.ci('Q_inf')
  b_low, b_high = law.ci('b')
  # Configurations are left out whole: seeds of one know each other's score.
  e_N = laws.leave_one_out(law)
  plain_N = left_out_mean(law.problem.y_N, law.group_N)
  # Paired over configurations: some are hard for any prediction.
  gap, gap_low, gap_high = paired(plain_N, e_N, law.group_N)
  ceiling = 1. if rows.bounded else math.inf
  bounded = high < ceiling and math.isfinite(low)
  # An exponent of 0 is a straight line in log RankMe, which has no limit.
  curved = math.isfinite(b_high) and b_low > 1e-3
  verdict = claims.INCONCLUSIVE
  if bounded and curved and gap_low > 0:
    verdict = claims.HOLDS
  span = law.diagnostics['span']['rank']
  needed = claims.Needed('decades', NARROW)
  if span >= NARROW:
    needed = claims.Needed('wider', span)
  # A limit that the data do not bound is no number.
  limit = math.nan
  if bounded:
    limit = law.params['Q_inf']
  return claims.claim(
      'law', 'score', limit, low, high, math.nan, verdict, needed,
      counts=counts, trained=len(trained), b_low=b_low, b_high=b_high,
      sd=law.sd, span=span, left_out=rms(e_N), mean=rms(plain_N),
      better=gap, better_low=gap_low, better_high=gap_high, ceiling=ceiling)


def counted(rows: pd.DataFrame) -> tuple[int, int, int]:
  """Returns (rows, configurations, trainings)."""
  return len(rows), int(rows['configuration'].nunique()), len(rows)


def rms(e_N: np.ndarray) -> float:
  """Returns the root mean square of errors."""
  return float(np.sqrt(np.mean(np.asarray(e_N, float) ** 2)))


def left_out_mean(y_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
  """Returns each value less the mean of the other groups, (N,)."""
  y_N = np.asarray(y_N, float)
  total, size = np.bincount(group_N, y_N), np.bincount(group_N)
  # One group alone has no others: its own mean less nothing.
  others_G = (y_N.sum() - total) / np.maximum(len(y_N) - size, 1)
  return y_N - others_G[group_N]


def paired(worse_N: np.ndarray, own_N: np.ndarray, group_N: np.ndarray,
           confidence: float = .95) -> tuple[float, float, float]:
  """Returns how much larger one mean square is than another, with its
  interval by a bootstrap over groups."""
  gap_G = np.bincount(group_N, worse_N ** 2 - own_N ** 2)
  size_G = np.bincount(group_N).astype(float)
  rng = np.random.default_rng(0)  # The same tables, the same interval.
  live = np.flatnonzero(size_G)
  times_SG = rng.multinomial(len(live), np.full(len(live), 1 / len(live)),
                             DRAWS)
  # A ratio of sums, since configurations have different numbers of seeds.
  each_S = times_SG @ gap_G[live] / (times_SG @ size_G[live])
  tail = (1 - confidence) / 2
  low, high = np.quantile(each_S, [tail, 1 - tail])
  return float(gap_G.sum() / size_G.sum()), float(low), float(high)


def with_clid(rows: pd.DataFrame) -> pd.DataFrame:
  """Returns rows with the column CLID, where its two parts are known.

  Lu et al., arXiv 2206.01251: the sum of cluster learnability and intrinsic
  dimension, each standardised over the models that are compared. So it is a
  number of a set of runs, not of a run.
  """
  if not {LEARNABILITY, TWONN} <= set(rows):
    return rows
  parts = rows[[LEARNABILITY, TWONN]].astype(float)
  spread = parts.std(ddof=0)
  # What is the same in all runs says nothing of them.
  scaled = (parts - parts.mean()) / spread.where(spread > 0, np.inf)
  return rows.assign(**{CLID: scaled.sum(axis=1, skipna=False)})


def at_widths(trained: pd.DataFrame) -> pd.DataFrame:
  """Returns the runs of widths with at least two configurations."""
  if 'width' not in trained:
    return trained[:0]
  kinds = trained.groupby('width')['configuration'].transform('nunique')
  return trained[kinds > 1].reset_index(drop=True)


def columns(trained: pd.DataFrame, within: bool = False) -> pd.DataFrame:
  """Returns the predictors that a study knows of every run and varies.

  Args:
    trained: the runs.
    within: whether they must vary among runs of one width.
  """
  trained = with_clid(trained)
  same = np.zeros(len(trained), int)
  if within:
    same = trained['width'].to_numpy()
  named = {**PREDICTORS, **{f'rank_{name}': f'{SUBJECT} of {name}'
                            for name in records.samples(trained)}}
  return pd.DataFrame({
      text: trained[name].astype(float) for name, text in named.items()
      if name in trained and trained[name].notna().all()
      and (trained[name].groupby(same).nunique() > 1).any()})


def predictors(trained: pd.DataFrame, confidence: float = .95,
               within: bool = False) -> pd.DataFrame:
  """Returns laws.rivals of the trained runs, or an empty frame.

  Args:
    trained: the runs.
    confidence: of the intervals.
    within: whether every width has a mean of its own, so that what differs
      between widths predicts nothing; then of `at_widths` alone.
  """
  given: tuple[str, ...] = GIVEN
  levels = None
  if within:
    trained, given = at_widths(trained), ()
    levels = trained.get('width')
  table = columns(trained, within)
  if SUBJECT not in table or trained['configuration'].nunique() < 4 or (
      trained['score'].nunique() < 2):
    return pd.DataFrame()
  out = laws.rivals(
      table.assign(score=trained['score'].astype(float)), list(table),
      given=[name for name in given if name in table],
      groups=trained['configuration'].to_numpy(), subject=SUBJECT,
      confidence=confidence, draws=DRAWS, levels=levels)
  if trained['configuration'].nunique() < FEWEST:
    # A bootstrap over a handful of configurations is no interval.
    out[[name for name in out if name.endswith(('_low', '_high'))]] = np.nan
  return out


def decided(low: float, high: float, configurations: int) -> int:
  """Returns 1 or -1 by an interval of a difference, 0 where it holds 0 or
  rests on too few configurations for a bootstrap."""
  # The product is positive where both ends are on one side of 0, and NaN is
  # not.
  if configurations < FEWEST or not low * high > 0:
    return 0
  return int(np.sign(low))


def beside(name: str, row: pd.Series, own: float, wide: pd.Series,
           configurations: int) -> claims.Rival:
  """Returns a predictor as a Rival, all in root mean square errors.

  Args:
    name: what it is called.
    row: of `predictors`.
    own: RankMe's error.
    wide: of `predictors`, with intervals corrected for the rivals' number.
    configurations: how many.
  """
  # Gaps are in mean squares; people read root mean squares.
  root = lambda gap: float(np.sqrt(np.maximum(own ** 2 + gap, 0.))) - own
  return claims.Rival(
      name, float(row['loo']), root(row['worse']), root(row['worse_low']),
      root(row['worse_high']),
      decided(wide['worse_low'], wide['worse_high'], configurations))


def of_rivals(rows: study.Study, table: pd.DataFrame,
              within: bool = False) -> claims.Claim:
  """Returns the claim that RankMe predicts the score of configurations left
  out better than what is known without it.

  Args:
    rows: the study.
    table: of `predictors`.
    within: whether the table is of predictors at equal width.
  """
  key, trained, unit = 'rivals', rows.trained, ERROR
  if within:
    key, trained = 'width_rivals', at_widths(rows.trained)
  counts = counted(trained)
  if not len(table):
    return claims.claim(key, unit, counts=counts,
                        needed=claims.Needed('configurations', 4))
  names = [name for name in RIVALS if name in set(table['predictor'])]
  # Bonferroni over the rivals; the intervals that are shown stay at 95 %.
  corrected = predictors(trained, 1 - claims.LEVEL / max(len(names), 1), within
                         ).set_index('predictor')
  known = table.set_index('predictor')
  own, mean = known.loc[SUBJECT], known.loc['(mean)', 'loo']
  rivals = tuple(beside(name, known.loc[name], own['loo'],
                        corrected.loc[name], counts[1]) for name in names)
  verdict = claims.against(rivals)
  # Better than rivals that predict nothing is not yet a prediction.
  if verdict == claims.HOLDS and not own['loo'] < mean:
    verdict = claims.INCONCLUSIVE
  return claims.claim(
      key, unit, own['loo'], verdict=verdict,
      needed=claims.Needed('configurations', max(
          FEWEST, 2 * counts[1])), counts=counts, rivals=rivals,
      mean=mean, spearman=own['spearman'],
      partial=own['partial'], partial_low=own['partial_low'],
      partial_high=own['partial_high'],
      given=(WIDTH,) * within + tuple(
          name for name in GIVEN if name in known.index and not within))


def of_samples(rows: study.Study, table: pd.DataFrame) -> claims.Claim | None:
  """Returns the claim that it matters little which clips RankMe is measured
  on; None where it was measured on one sample.

  It holds where all errors left out agree within EQUIVALENT of the main
  sample's, by their 95 % intervals, and fails where one lies beyond that, by
  an interval corrected for their number.
  """
  names = records.samples(rows.trained)
  if not names:
    return None
  unit, counts = ERROR, counted(rows.trained)
  none = claims.claim('samples', unit, counts=counts,
                      needed=claims.Needed('configurations', 4))
  if not len(table):
    return none
  known = table.set_index('predictor')
  mine = [name for name in names if f'{SUBJECT} of {name}' in known.index]
  if not mine:
    return none
  corrected = predictors(rows.trained, 1 - claims.LEVEL / len(mine)
                         ).set_index('predictor')
  own = known.loc[SUBJECT, 'loo']
  margin = EQUIVALENT * own
  rivals, order, apart = [], {}, False
  for name in mine:
    text = f'{SUBJECT} of {name}'
    rivals.append(beside(name, known.loc[text], own, corrected.loc[text],
                         counts[1]))
    wide = beside(name, corrected.loc[text], own, corrected.loc[text],
                  counts[1])
    # Beyond the margin as a whole, in either direction.
    apart |= wide.low > margin or wide.high < -margin
    order[name] = laws.early.spearman(
        rows.trained['rank'].to_numpy(float),
        rows.trained[f'rank_{name}'].to_numpy(float))
  verdict = claims.INCONCLUSIVE
  if apart and counts[1] >= FEWEST:
    verdict = claims.FAILS
  # An equivalence test: every interval lies inside the margin.
  elif counts[1] >= FEWEST and all(
      -margin < rival.low and rival.high < margin for rival in rivals):
    verdict = claims.HOLDS
  return claims.claim(
      'samples', unit, own, verdict=verdict,
      needed=claims.Needed('configurations', 2 * counts[1]), counts=counts,
      rivals=tuple(rivals), order=order, margin=margin)
