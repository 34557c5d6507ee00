"""Rank and score: the law between them, and what predicts the score as well.

A law is drawn only through runs that beat their own untrained network: a run
that does not has not learned what the tasks ask, and a curve through it would
describe the random features of a log-mel.
"""

import numpy as np
import pandas as pd
from scipy import stats

from audiorank import laws
from audiorank import records

LEAST = 6  # Runs without which three parameters are not fitted.
NARROW = .5  # Decades of R below which Q_inf is rarely identified.
SUBJECT, GIVEN = 'RankMe', ('parameters', 'width')
RIVALS = {
    'rank': SUBJECT, 'rank_center': 'RankMe, centred',
    'valid_loss': 'validation loss', 'params': 'parameters',
    'width': 'width', 'hours': 'hours of audio', 'mask_ratio': 'masking rate',
    'flops': 'training FLOPs (with decoder)',
    'sibling_participation_ratio': 'participation ratio',
    'sibling_stable_rank': 'stable rank', 'sibling_alpha_req': 'alpha-ReQ'}
# The shapes that a law from rank to score may have.
SHAPES = ('saturating', 'log_linear', 'exponential', 'sigmoid',
          'logit_linear')
CONFIGURATION = ('size', 'heads', 'decoder', 'hours', 'mask_ratio', 'lr',
                 'steps', 'crop_seconds', 'batch', 'objective', 'category')


def with_gain(runs):
  """Returns (trained, twins); trained has `untrained_score`, `gain`.

  A run that is not yet scored on every task is left out: its mean is over
  other tasks than the others'.
  """
  done = runs[runs['score'].notna()
              & (runs['scored_tasks'] == runs['scored_tasks'].max())]
  twins = done[done['untrained']]
  trained = done[~done['untrained']].copy()
  trained['untrained_score'] = trained['baseline'].map(
      twins.set_index('run_id')['score']).astype(float)
  trained['gain'] = trained['score'] - trained['untrained_score']
  return trained, twins


def law(trained):
  """Returns (fit, '') or (None, why not)."""
  known = trained['gain'].notna()
  beat = trained[trained['gain'] > 0]
  if not known.any():
    return None, 'no run has an untrained network to be held against yet'
  if len(beat) < LEAST:
    return None, (f'{len(beat)} of {known.sum()} runs beat their untrained '
                  f'network; a law of three parameters needs {LEAST}')
  if np.ptp(np.log10(beat['rank'].astype(float))) < .02:
    return None, 'RankMe hardly differs between the runs'
  try:
    return laws.fit('saturating', {'rank': beat['rank'].to_numpy(float),
                                   'score': beat['score'].to_numpy(float)},
                    groups=configurations(beat)), ''
  except ValueError as error:
    return None, str(error)


def shapes(trained, fit):
  """Returns laws.compare of the shapes of a law from rank to score.

  Args:
    trained: runs with their `gain`.
    fit: the Fit of `law`, or None: then there is nothing to compare.
  """
  if fit is None:
    return pd.DataFrame()
  beat = trained[trained['gain'] > 0]
  # The largest runs are those of the most compute, where it is known.
  by = next((name for name in ('flops', 'params')
             if name in beat and beat[name].notna().all()
             and beat[name].nunique() > 1), None)
  names = ['rank', 'score'] + ([by] if by else [])
  return laws.compare(SHAPES, beat[names].astype(float), by=by,
                      groups=configurations(beat))


def of_shapes(table):
  """Returns a sentence on which shape of law predicts runs left out best."""
  known = table.dropna(subset=['loo']) if len(table) else table
  if len(known) < 2:
    return []
  words = lambda row: f"{row['law'].replace('_', '-')} law"
  best, next_ = known.iloc[0], known.iloc[1]
  chosen = known.loc[known['aicc'].idxmin()]
  text = (f'Of the {len(known)} shapes compared the {words(best)} predicts '
          f'configurations left out best (error {best["loo"]:.3g}; next the '
          f'{words(next_)}, {next_["loo"]:.3g})')
  if chosen['law'] != best['law']:
    text += (f', while AICc prefers the {words(chosen)}: these runs do not '
             'settle the shape')
  return [f'{text}.']


def configurations(runs):
  """Returns a number a run: runs that differ in their seed share it."""
  return runs.groupby([c for c in CONFIGURATION if c in runs], dropna=False,
                      observed=True).ngroup().to_numpy()


def predictors(trained):
  """Returns laws.rivals of the trained runs, or an empty frame.

  Predictors that a sweep does not vary are left out.
  """
  named = {**RIVALS, **{f'rank_{name}': f'{SUBJECT} of {name}'
                        for name in records.samples(trained)}}
  columns = {text: trained[name].astype(float)
             for name, text in named.items()
             if name in trained and trained[name].notna().all()
             and trained[name].nunique() > 1}
  if SUBJECT not in columns or len(set(configurations(trained))) < 4:
    return pd.DataFrame()
  return laws.rivals(
      pd.DataFrame({**columns, 'score': trained['score'].astype(float)}),
      list(columns), given=[g for g in GIVEN if g in columns],
      groups=configurations(trained), subject=SUBJECT)


def training_helps(trained):
  """Returns sentences: how many runs beat their untrained network."""
  known = trained[trained['gain'].notna()]
  beat = known[known['gain'] > 0]
  out = [f'{len(beat)} of {len(known)} trained runs score higher than '
         'their own untrained network; the mean difference is '
         f"{known['gain'].mean():+.3f}."] if len(known) else []
  alone = len(trained) - len(known)
  if alone:
    out.append(f'The untrained network of {alone} trained runs is not scored '
               'yet; they enter no law.')
  behind = trained[trained['gain'] <= 0]
  if len(behind):
    names = ', '.join(behind['name'])
    out.append(f'These do not, and no law is drawn through them: {names}.')
  return out


def of_rank(history):
  """Returns a sentence on how RankMe moved during training."""
  moved = history[~history['untrained']]
  fell = rose = 0
  for _, rows in moved.groupby('run_id'):
    rank = rows.sort_values('step')['rank'].to_numpy()
    if len(rank) > 2 and rank[1] < rank[0]:
      fell += 1
      rose += rank[-1] > 1.05 * rank.min()
  n = moved['run_id'].nunique()
  if not n:
    return []
  return [f'RankMe first fell below its untrained value in {fell} of {n} '
          f'runs, and had risen again by more than 5 % at the end in {rose}.']


def of_law(fit, reason, ceiling=1.):
  """Returns sentences on the fitted law, or on why there is none.

  Args:
    fit: a Fit or None.
    reason: why there is none.
    ceiling: the most that a score can be.
  """
  if fit is None:
    return [f'No law is fitted: {reason}.']
  low, high = fit.ci('Q_inf')
  span = fit.diagnostics['span']['rank']
  out = ['Q = Q_inf - a R^-b over the runs that beat their untrained '
         f"network ({fit.n} runs): residual sd {fit.sd:.3g}, R spans "
         f'{span:.2f} decades.']
  if np.isinf(high):
    out.append('Q_inf is unbounded above (95 % profile likelihood'
               + (f', above {low:.3f}' if np.isfinite(low) else '')
               + '): these runs do not say where the score saturates.')
  elif high > ceiling:
    out.append(f'Q_inf lies between {low:.3f} and {high:.3f} (95 % profile '
               f'likelihood): the upper end is above {ceiling:g}, the most '
               'that a score can be, so nothing is said about a ceiling.')
  else:
    out.append(f"Q_inf = {fit.params['Q_inf']:.3f}, between {low:.3f} and "
               f'{high:.3f} (95 % profile likelihood).')
  if span < NARROW:
    out.append(f'The range of R is too narrow to identify Q_inf: {span:.2f} '
               f'decades, where at least {NARROW} are wanted.')
  b_low, b_high = fit.ci('b')
  if np.isinf(b_high) or b_low <= 1e-3:
    out.append('The exponent b is not identified either: a straight line in '
               'log R describes these runs as well.')
  return out


def of_rivals(table, trained):
  """Returns sentences on RankMe beside the other predictors."""
  if not len(table):
    return []
  rho = table.set_index('predictor')['spearman']
  out = [f'Over the {len(trained)} trained runs the rank correlation with '
         f'the score (Spearman) is {rho[SUBJECT]:+.2f}.']
  if rho[SUBJECT] < 0:
    out.append('The sign is the opposite of the claim: higher RankMe goes '
               'with lower scores here.')
  out.append(laws.verdict(table, SUBJECT))
  part = []
  for width, rows in trained.groupby('width'):
    if len(rows) >= 4 and trained['width'].nunique() > 1:
      inside = stats.spearmanr(rows['rank'], rows['score']).statistic
      part.append(f'{inside:+.2f} at width {width} ({len(rows)} runs)')
  if part:
    out.append('RankMe cannot exceed the width, so across widths it is '
               'confounded with size; within one width its correlation '
               f'with the score is {", ".join(part)}.')
  return out
