"""The paper's claims, each held against a study's records: the verdicts.

Every claim is told at 95 % of its own; families of changes, which ask one
question several times over, by Holm's method among them.

Shapes: N runs, C configurations.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank import laws
from audiorank.findings import described
from audiorank.findings import early
from audiorank.findings import score
from audiorank.findings import within

HOLDS, FAILS, OPEN = within.HOLDS, within.FAILS, within.OPEN


class Claim(NamedTuple):
  """A row of the verdicts; every field a sentence or two."""
  claim: str
  measured: str
  rival: str
  verdict: str
  would_tell: str


def _signed(value):
  return f'{value:+.3f}'.replace('+0.', '+.').replace('-0.', '-.')


def _short(value):
  return f'{value:.3f}'.replace('0.', '.', 1) if abs(value) < 1 else (
      f'{value:.3g}')


def of_family(row):
  """Returns the Claim that RankMe follows the score within a family."""
  found = within.Slope(*(row[name] for name in within.Slope._fields))
  percent = lambda v: f'{100 * v:.0f} %' if math.isfinite(v) else 'unknown'
  return Claim(
      f'RankMe tells the score when only this is changed: {row["family"]}',
      f'{_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}] '
      f'of score per doubling of RankMe; {found.configurations} '
      f'configurations in {found.groups} '
      f'group{"s" * (found.groups > 1)}',
      f'of the variance within groups RankMe explains '
      f'{percent(found.by_rank)}, RankMe over width {percent(found.by_share)}, '
      f'validation loss {percent(found.by_loss)}',
      row['verdict'], within.needed(found) if row['verdict'] == OPEN else '')


def of_noise(trained, floor):
  """Returns the Claim that differences between configurations are real."""
  label_N = score.configurations(trained)
  mean_C = trained.groupby(label_N)['score'].mean()
  between = float(mean_C.std(ddof=1))
  ratio = (between / floor.score) ** 2 if floor.score else math.inf
  p = float(special.fdtrc(len(mean_C) - 1, max(floor.free, 1), ratio))
  return Claim(
      'Configurations differ by more than seeds do',
      f'between {floor.runs} runs that differ in seed or order of clips alone '
      f'the score has a standard deviation of {_short(floor.score)} and '
      f'RankMe one of {100 * (2 ** floor.log2_rank - 1):.0f} %; between '
      f'{len(mean_C)} configurations the score has {_short(between)}',
      '', HOLDS if p < .025 else OPEN, '' if p < .025 else 'more seeds')


def of_law(trained, fit, reason, ceiling=1.):
  """Returns the Claim that one saturating power law ties rank to score."""
  claim = ('Rank and score lie on one saturating power law with a limit '
           'below 1')
  if fit is None:
    return Claim(claim, f'no law: {reason}', '', OPEN, 'runs that beat their '
                 'untrained networks')
  low, high = fit.ci('Q_inf')
  b_low, b_high = fit.ci('b')
  bounded = high < ceiling and np.isfinite(low)
  curved = np.isfinite(b_high) and b_low > 1e-3
  limit = ('Q_inf unbounded' if np.isinf(low) and np.isinf(high) else
           f'Q_inf above {_short(low)}' if np.isinf(high) else
           f'Q_inf in {_short(low)} to {_short(high)}')
  span = fit.diagnostics['span']['rank']
  # Left out, every configuration must be told better than by the mean.
  loo = float(np.sqrt(np.mean(laws.choose.leave_one_out(fit) ** 2)))
  y_N = fit.problem.y_N
  plain = float(np.std(y_N) * len(y_N) / (len(y_N) - 1))
  told = HOLDS if bounded and curved and loo < plain else OPEN
  return Claim(
      claim,
      f'{fit.n} of {len(trained)} runs beat their untrained network; through '
      f'them: {limit}, exponent {_short(b_low)} to {_short(b_high)}, residual '
      f'sd {_short(fit.sd)}; R spans {span:.2f} decades',
      f'left out, the law errs by {_short(loo)}, their mean by '
      f'{_short(plain)}',
      told, '' if told == HOLDS else f'RankMe over at least {score.NARROW:g} '
      'decades of runs that beat their untrained networks')


def of_unity(trained, fit):
  """Returns the Claim that one curve holds whatever is varied."""
  claim = 'One curve holds whatever is scaled'
  beat = trained[trained['gain'] > 0]
  if fit is None:
    return Claim(claim, 'no law', '', OPEN, 'a law')
  apart = laws.failures.families(fit, described.differs(beat, trained))
  off = apart[apart['p'] < .05]
  what = ', '.join(f'{r.family} {_signed(r.mean)} ({r.n})'
                   for r in apart.itertuples())
  return Claim(
      claim, f'mean distance from the common curve by what differs from the '
      f'reference (runs): {what}',
      'beyond chance: ' + (', '.join(off['family']) if len(off) else 'none'),
      FAILS if len(off) else OPEN,
      '' if len(off) else 'a law whose limit is bounded')


def of_rivals(trained):
  """Returns the Claim that RankMe predicts better than what is cheaper."""
  claim = 'RankMe predicts the score better than what is cheaper to know'
  table = score.predictors(trained)
  if not len(table):
    return Claim(claim, 'too few configurations', '', OPEN, 'more of them')
  rows = table.set_index('predictor')
  own, mean = rows.loc[score.SUBJECT], rows.loc['(mean)', 'loo']
  others = rows[[not str(i).startswith('(') and i != score.SUBJECT
                 and not str(i).startswith(score.SUBJECT) for i in rows.index]]
  best = others['loo'].idxmin()
  sure_worse = (others['worse_high'] < 0).any()
  sure_better = (others['worse_low'] > 0).all()
  verdict = FAILS if sure_worse else HOLDS if sure_better else OPEN
  partial = ('' if not math.isfinite(own['partial']) else
             f"; given size and width its partial correlation is "
             f"{own['partial']:+.2f} [{own['partial_low']:+.2f}, "
             f"{own['partial_high']:+.2f}]")
  named = ', '.join(f'{name} {_short(r.loo)}' for name, r in
                    others.sort_values('loo').head(3).iterrows())
  return Claim(
      claim, f'error on configurations left out {_short(own["loo"])} (the '
      f'mean\'s {_short(mean)}), Spearman {own["spearman"]:+.2f}{partial}',
      f'{named}; ' + (f'{best} is better beyond chance' if
                      others.loc[best, 'worse_high'] < 0 else
                      f'{best} against it: not beyond chance'
                      if others.loc[best, 'loo'] < own['loo'] else
                      'none is better'),
      verdict, '' if verdict != OPEN else 'more configurations')


def of_early(trained, tables):
  """Returns the Claim that early rank predicts the final score."""
  claim = 'RankMe early in training orders the runs by their final score'
  found = early.find(trained, tables.history, tables.tasks)
  if found.reason:
    return Claim(claim, found.reason, '', OPEN, 'readings early in training')
  rows = found.agreement.set_index('early')
  share, name = found.rungs[-1]
  own = rows.loc[name]
  others = rows[(rows['share'] == share) & (rows.index != name)]
  rival = ', '.join(f'{i} {100 * r["pairs"]:.0f} %'
                    for i, r in others.iterrows())
  better = others.index[others['difference_high'] < 0].tolist()
  worse = others.index[others['difference_low'] > 0].tolist()
  verdict = within.sign(own['tau_low'], own['tau_high'])
  return Claim(
      claim, f'at {100 * share:.0f} % of training {100 * own["pairs"]:.0f} % '
      f'of pairs in order, tau {own["tau"]:+.2f} [{own["tau_low"]:+.2f}, '
      f'{own["tau_high"]:+.2f}]'
      + (f', within a size {own["within"]:+.2f}'
         if math.isfinite(own['within']) else ''),
      f'pairs in order by {rival}; beyond chance better than RankMe: '
      f'{", ".join(better) or "none"}, worse: {", ".join(worse) or "none"}',
      verdict, '' if verdict != OPEN else 'more runs')


def of_bound(trained, floor):
  """Returns the Claim that little data stops larger models."""
  claim = 'A small amount of data stops larger models from scoring higher'
  found = within.groups(trained, ('size', 'heads', 'decoder'))
  sized = trained.groupby('size')['params'].first()
  for name in ('mask_ratio', 'lr', 'category', 'crop_seconds'):
    if name in found:
      found = found[found[name] == trained[name].mode().iloc[0]]
  wide = found.groupby('hours')['size'].transform('nunique') > 2
  found = found[wide].sort_values('hours')
  hours_C = found['hours'].to_numpy(float)
  made = within.lines(
      np.log2(sized[found['size']].to_numpy(float)),
      found['score'].to_numpy(float), found['runs'].to_numpy(float), hours_C,
      hours_C, floor)
  if made is None or len(made.slope_G) < 2:
    return Claim(claim, 'too few sizes at one amount of data', '', OPEN,
                 'a grid of both')
  gap = made.slope_G[-1] - made.slope_G[0]
  reach = special.stdtrit(made.free, .975) * math.sqrt(
      made.variance * (1 / made.width_G[-1] + 1 / made.width_G[0]))
  verdict = within.sign(gap - reach, gap + reach)
  slopes = ', '.join(f'{hours:.2g} h {_signed(s)}'
                     for hours, s in zip(np.unique(hours_C), made.slope_G))
  return Claim(
      claim, f'score per doubling of parameters: {slopes}; the difference '
      f'between most and least data is {_signed(gap)} '
      f'[{_signed(gap - reach)}, {_signed(gap + reach)}]', '', verdict,
      '' if verdict != OPEN else 'sizes and amounts further apart')


def of_transfer(trained, others):
  """Returns the Claims that other objectives lie on the MAE's curve.

  Args:
    trained: runs of the MAE.
    others: runs of other objectives.
  """
  sizes = set(others['size'])
  near = within.once(trained[trained['size'].isin(sizes)])
  x_N = np.log2(near['rank'].to_numpy(float))
  y_N = near['score'].to_numpy(float)
  for name, rows in others.groupby('objective'):
    away, reach = within.off_line(
        x_N, y_N, np.log2(rows['rank'].to_numpy(float)),
        rows['score'].to_numpy(float))
    beyond = float(rows['score'].max() - trained['score'].max())
    yield Claim(
        f'Encoders trained by another objective lie on the same curve: {name}',
        f'{_signed(away)} [{_signed(away - reach)}, {_signed(away + reach)}] '
        f"of score from the line through the MAE's {len(near)} runs of these "
        f'sizes; RankMe {rows["rank"].min():.1f} to {rows["rank"].max():.1f} '
        f'({len(rows)} runs)',
        f"its best score is {_signed(beyond)} from the MAE's best",
        FAILS if abs(away) > reach else OPEN,
        '' if abs(away) > reach else 'more runs: an interval that holds 0 '
        'shows no difference, not that there is none')


def of_samples(trained):
  """Returns the Claim that it matters little which clips RankMe is read on."""
  claim = 'Which clips RankMe is read on does not matter'
  found = score.predictors(trained)
  mine = (found[found['predictor'].str.startswith(f'{score.SUBJECT} of')]
          if len(found) else found)
  if not len(mine):
    return Claim(claim, 'one sample', '', OPEN, '--config.monitor.samples')
  own = found.set_index('predictor').loc[score.SUBJECT]
  names = {p: p.removeprefix(f'{score.SUBJECT} of ') for p in mine['predictor']}
  order = {p: laws.early.spearman(trained['rank'].to_numpy(float),
                                  trained[f'rank_{n}'].to_numpy(float))
           for p, n in names.items()}
  apart = mine[(mine['worse_low'] > 0) | (mine['worse_high'] < 0)]
  said = ', '.join(f'{names[r.predictor]} {_short(r.loo)} (order '
                   f'{order[r.predictor]:+.2f})' for r in mine.itertuples())
  return Claim(
      claim, f'error left out by the sample: whole corpus {_short(own["loo"])}'
      f', {said}; order is the rank correlation with the whole corpus',
      'beyond chance different: ' + (', '.join(
          names[p] for p in apart['predictor']) or 'none'),
      FAILS if len(apart) else OPEN,
      '' if len(apart) else 'more configurations: none shows a difference yet')


def table(tables):
  """Returns the verdicts of a study, a Claim a row.

  All but those on other objectives are of masked autoencoders.

  Args:
    tables: records.Tables; runs of many experiments on one corpus.

  Raises:
    ValueError: no trained run is scored.
  """
  every, _ = score.with_gain(tables.runs)
  is_mae = every['objective'].str.startswith('mae')
  trained, others = every[is_mae], every[~is_mae]
  if not len(trained):
    raise ValueError('no trained run is scored: there is nothing to judge')
  floor = within.noise(trained)
  fit, reason = score.law(trained)
  rows = [of_noise(trained, floor), of_law(trained, fit, reason),
          of_unity(trained, fit), of_rivals(trained),
          *(of_family(row) for _, row in within.families(trained).iterrows()),
          of_bound(trained, floor), of_early(trained, tables),
          of_samples(trained),
          *(of_transfer(trained, others) if len(others) else ())]
  return pd.DataFrame(rows)


def markdown(found):
  """Returns a table as the lines of a Markdown table."""
  line = lambda cells: '| ' + ' | '.join(str(c) for c in cells) + ' |'
  head = [str(c).replace('_', ' ') for c in found.columns]
  return '\n'.join([line(head), '|' + '---|' * len(head),
                    *(line(row) for row in found.itertuples(index=False))])
