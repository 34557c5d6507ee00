"""The paper's claims, each held against a study's records: the verdicts.

What is compared is only what differs in one thing: configurations equal in all
but, say, the masking rate. Within such groups the score is regressed on log2 of
RankMe, every group with a level of its own, so that what is told is what RankMe
says beyond what is held equal. The noise is that of runs that differ in nothing
but their seed or the order of clips.

Shapes: C configurations, G groups of them.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank import laws
from audiorank.findings import early
from audiorank.findings import score

HOLDS, FAILS, OPEN = 'holds', 'fails', 'cannot be told'
# What a family's configurations differ in; all else is equal.
FAMILIES = {
    'masking rate': ('mask_ratio',),
    'hours of audio': ('hours',),
    'size': ('size', 'heads'),
    'learning rate': ('lr',),
    'decoder': ('decoder',),
    'crop length at equal audio': ('crop_seconds', 'batch'),
    'sounds trained on': ('category',)}
DIFFERS = ('category', 'mask_ratio', 'decoder', 'crop_seconds', 'lr', 'hours',
           'size', 'heads')
EQUAL = 1.2  # Encoders whose sizes differ by less are of equal compute.


class Claim(NamedTuple):
  """A row of the verdicts; every field a sentence or two."""
  claim: str
  measured: str
  rival: str
  verdict: str
  would_tell: str


class Noise(NamedTuple):
  """Standard deviations between runs of one configuration.

  score, log2_rank: of a run.  free: degrees of freedom.  runs: how many.
  """
  score: float
  log2_rank: float
  free: int
  runs: int


def once(trained):
  """Returns the runs without those that only repeat another to the bit: the
  same configuration, seed and order, read at other steps."""
  same = [c for c in (*score.CONFIGURATION, 'seed', 'order') if c in trained]
  return trained.drop_duplicates(same, ignore_index=True)


def noise(trained):
  """Returns the Noise of runs that differ in seed or order alone."""
  trained = once(trained)
  label_N = score.configurations(trained)
  rank_N = np.log2(trained['rank'].to_numpy(float))
  score_N = trained['score'].to_numpy(float)
  squares, free, runs = np.zeros(2), 0, 0
  for label in np.unique(label_N):
    here = label_N == label
    if here.sum() > 1:
      squares += [np.sum((v[here] - v[here].mean()) ** 2)
                  for v in (score_N, rank_N)]
      free += here.sum() - 1
      runs += here.sum()
  sd = np.sqrt(squares / free) if free else np.full(2, np.nan)
  return Noise(float(sd[0]), float(sd[1]), int(free), int(runs))


def groups(trained, vary):
  """Returns the configurations that differ in `vary` alone, a row each.

  Columns: group, rank (log2), share (log2 of RankMe over width), score, loss,
  runs; and those of `vary`. Groups of one configuration are left out.
  """
  vary = [name for name in vary if name in trained]
  same = [name for name in score.CONFIGURATION
          if name in trained and name not in vary]
  rank_N = np.log2(trained['rank'].astype(float))
  rows = once(trained.assign(
      rank=rank_N, share=rank_N - np.log2(trained['width'].astype(float)),
      score=trained['score'].astype(float),
      loss=trained['valid_loss'].astype(float)))
  found = rows.groupby([*same, *vary], dropna=False, observed=True).agg(
      rank=('rank', 'mean'), share=('share', 'mean'), score=('score', 'mean'),
      loss=('loss', 'mean'), runs=('score', 'size')).reset_index()
  found['group'] = found.groupby(same, dropna=False, observed=True).ngroup()
  return found[found.groupby('group')['group'].transform('size') > 1]


class Slope(NamedTuple):
  """Score per doubling of RankMe within groups.

  value, low, high: with its 95 % interval.  by_rank, by_share, by_loss: shares
  of the score's variance within groups that a line in RankMe, in RankMe over
  width, or in the validation loss explains.  configurations, groups: how many.
  """
  value: float
  low: float
  high: float
  by_rank: float
  by_share: float
  by_loss: float
  configurations: int
  groups: int


def slope(found, floor):
  """Returns the Slope of a table of `groups`, or None where none is to be had.

  The error of a configuration's mean is the noise between seeds, or the
  residual's where that is larger: then something else moves the score too.

  Args:
    found: a table of `groups`.
    floor: the Noise.
  """
  if not len(found):
    return None
  n_C, group_C = found['runs'].to_numpy(float), found['group'].to_numpy()
  within = lambda name: _within(found[name].to_numpy(float), n_C, group_C)
  x_C, y_C = within('rank'), within('score')
  width, total = np.sum(n_C * x_C ** 2), np.sum(n_C * y_C ** 2)
  if not width or not total:
    return None

  def explained(name):
    v_C = within(name)
    power = np.sum(n_C * v_C ** 2)
    return (float(np.sum(n_C * v_C * y_C) ** 2 / power / total)
            if np.isfinite(power) and power > 0 else math.nan)

  value = np.sum(n_C * x_C * y_C) / width
  left = np.sum(n_C * (y_C - value * x_C) ** 2)
  count = found['group'].nunique()
  free = len(found) - count - 1
  variance, own = floor.score ** 2, floor.free
  if free > 0 and (not floor.free or left / free > variance):
    variance, own = left / free, free
  if not own:
    return None
  reach = special.stdtrit(own, .975) * math.sqrt(variance / width)
  return Slope(float(value), float(value - reach), float(value + reach),
               explained('rank'), explained('share'), explained('loss'),
               len(found), int(count))


def _within(v_C, n_C, group_C):
  """Values less their group's weighted mean."""
  out_C = np.empty(len(v_C))
  for group in np.unique(group_C):
    here = group_C == group
    out_C[here] = v_C[here] - np.average(v_C[here], weights=n_C[here])
  return out_C


def sign(low, high):
  """Returns the verdict on a positive effect from its interval."""
  return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def needed(found):
  """Returns what would decide a Slope whose interval holds 0, as text."""
  times = ((found.high - found.value) / found.value) ** 2
  if times > 100:
    return 'a wider range: no number of runs within reason'
  return (f'{math.ceil(times)} times as many runs, if the slope is what it '
          'looks like')


def families(trained):
  """Returns a row a family: its Slope and the verdict.

  Columns: family, those of Slope, verdict. Families without two comparable
  configurations are left out.
  """
  found = noise(trained)
  rows = []
  for name, vary in FAMILIES.items():
    own = slope(groups(trained, vary), found)
    if own:
      rows.append({'family': name, **own._asdict(),
                   'verdict': sign(own.low, own.high)})
  own = slope(groups(of_one_size(trained), ('size', 'heads')), found)
  if own:
    rows.append({'family': 'shape at equal size', **own._asdict(),
                 'verdict': sign(own.low, own.high)})
  return pd.DataFrame(rows)


def of_one_size(trained):
  """Returns the reference's runs at the size that most shapes share: width is
  paid for by depth."""
  rows = trained[_at_reference(trained, ('size', 'heads'))]
  size_N = rows['params'].to_numpy(float)
  near_NN = np.abs(np.log(size_N[:, None] / size_N[None])) < math.log(EQUAL)
  shapes = rows[['size', 'heads']].apply(tuple, axis=1)
  most = max(range(len(rows)), key=lambda i: shapes[near_NN[i]].nunique())
  return rows[near_NN[most]]


def _at_reference(trained, vary):
  """Which rows equal the commonest value in all but `vary`."""
  keep = np.ones(len(trained), bool)
  for name in score.CONFIGURATION:
    if name in trained and name not in vary:
      keep &= (trained[name] == trained[name].mode().iloc[0]).to_numpy()
  return keep


def _signed(value):
  return f'{value:+.3f}'.replace('+0.', '+.').replace('-0.', '-.')


def _short(value):
  return f'{value:.3f}'.replace('0.', '.', 1) if abs(value) < 1 else (
      f'{value:.3g}')


def of_family(row):
  """Returns the Claim that RankMe follows the score within a family."""
  found = Slope(*(row[name] for name in Slope._fields))
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
      row['verdict'], needed(found) if row['verdict'] == OPEN else '')


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


def differs(rows, trained):
  """Returns the first thing in which each row differs from the commonest."""
  commonest = {name: trained[name].mode().iloc[0] for name in DIFFERS
               if name in trained}
  return [next((name for name in commonest if row[name] != commonest[name]),
               'reference') for _, row in rows.iterrows()]


def of_unity(trained, fit):
  """Returns the Claim that one curve holds whatever is varied."""
  claim = 'One curve holds whatever is scaled'
  beat = trained[trained['gain'] > 0]
  if fit is None:
    return Claim(claim, 'no law', '', OPEN, 'a law')
  apart = laws.failures.families(fit, differs(beat, trained))
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
  verdict = sign(own['tau_low'], own['tau_high'])
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
  found = groups(trained, ('size', 'heads', 'decoder'))
  sized = trained.groupby('size')['params'].first()
  cells = {}
  for name in ('mask_ratio', 'lr', 'category', 'crop_seconds'):
    if name in found:
      found = found[found[name] == trained[name].mode().iloc[0]]
  for hours, rows in found.groupby('hours'):
    if rows['size'].nunique() < 3:
      continue
    x_C = np.log2([sized[s] for s in rows['size']])
    cells[float(hours)] = (np.polyfit(x_C, rows['score'], 1)[0],
                           np.sqrt(np.sum((x_C - x_C.mean()) ** 2)))
  if len(cells) < 2:
    return Claim(claim, 'too few sizes at one amount of data', '', OPEN,
                 'a grid of both')
  least, most = min(cells), max(cells)
  gap = cells[most][0] - cells[least][0]
  reach = special.stdtrit(max(floor.free, 1), .975) * floor.score * math.hypot(
      1 / cells[least][1], 1 / cells[most][1])
  verdict = sign(gap - reach, gap + reach)
  slopes = ', '.join(f'{hours:.2g} h {_signed(s)}'
                     for hours, (s, _) in sorted(cells.items()))
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
  near = once(trained[trained['size'].isin(sizes)])
  line = np.polyfit(np.log2(near['rank'].astype(float)), near['score'], 1)
  sd = float(np.std(near['score'] - np.polyval(
      line, np.log2(near['rank'].astype(float))), ddof=2))
  for name, rows in others.groupby('objective'):
    away = float((rows['score'] - np.polyval(
        line, np.log2(rows['rank'].astype(float)))).mean())
    reach = special.stdtrit(len(near) - 2, .975) * sd * math.sqrt(
        1 / len(rows) + 1 / len(near))
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
  floor = noise(trained)
  fit, reason = score.law(trained)
  rows = [of_noise(trained, floor), of_law(trained, fit, reason),
          of_unity(trained, fit), of_rivals(trained),
          *(of_family(row) for _, row in families(trained).iterrows()),
          of_bound(trained, floor), of_early(trained, tables),
          of_samples(trained),
          *(of_transfer(trained, others) if len(others) else ())]
  return pd.DataFrame(rows)


def tasks(tables):
  """Returns a row a task: what training does to it, and RankMe with it.

  Columns: metric, untrained and trained (means of the MAE's runs), gain (over
  each run's own untrained network), beat (share of runs with a gain),
  spearman (of score with RankMe), doubling (score per doubling of RankMe among
  runs of one size).
  """
  runs = tables.runs.drop(columns=['score', 'scored_tasks'])
  rows = {}
  last = tables.tasks[tables.tasks['step'] == tables.tasks['steps']]
  for task, part in last.groupby('task'):
    own = runs.merge(part[['run_id', 'score', 'metric']], on='run_id')
    every, twins = score.with_gain(own.assign(scored_tasks=1))
    mae = once(every[every['objective'].str.startswith('mae')])
    x_N = np.log2(mae['rank'].to_numpy(float))
    y_N = mae['score'].to_numpy(float)
    ones_N, size_N = np.ones(len(mae)), mae['size'].to_numpy()
    in_N, out_N = (_within(v, ones_N, size_N) for v in (x_N, y_N))
    rows[task] = {
        'metric': part['metric'].iloc[0], 'untrained': twins['score'].mean(),
        'trained': y_N.mean(), 'gain': mae['gain'].mean(),
        'beat': (mae['gain'] > 0).mean(),
        'spearman': laws.early.spearman(x_N, y_N),
        'doubling': np.sum(in_N * out_N) / np.sum(in_N ** 2)}
  return pd.DataFrame(rows).T.infer_objects()


def farthest(trained, fit, most=10):
  """Returns the runs that lie farthest from the law, with what they differ in.

  Args:
    trained: runs of `score.with_gain`.
    fit: the law of `score.law`, or None: then a line in log RankMe.
    most: how many.
  """
  if fit is None:
    x_N = np.log2(trained['rank'].to_numpy(float))
    expected = np.polyval(np.polyfit(x_N, trained['score'], 1), x_N)
  else:
    expected = fit.predict({'rank': trained['rank'].to_numpy(float)})
  rows = trained[['name', 'experiment', 'rank', 'score', 'gain']].assign(
      expected=expected, away=trained['score'] - expected,
      differs=differs(trained, trained))
  return rows.reindex(rows['away'].abs().sort_values(ascending=False).index
                      ).head(most).reset_index(drop=True)


def markdown(found):
  """Returns a table as the lines of a Markdown table."""
  line = lambda cells: '| ' + ' | '.join(str(c) for c in cells) + ' |'
  head = [str(c).replace('_', ' ') for c in found.columns]
  return '\n'.join([line(head), '|' + '---|' * len(head),
                    *(line(row) for row in found.itertuples(index=False))])
