"""The tables of the page: frames of numbers as frames of texts."""

from collections.abc import Iterable
import math
import re
from typing import Any

import numpy as np
import pandas as pd

from audiorank import analysis
from audiorank import records
from audiorank.analysis import claims as numbers_of
from audiorank.analysis import law
from audiorank.report import html_parts
from audiorank.report import numbers
from audiorank.report import wording

# Clips per dimension below which RankMe of endless data is not told.
ENDLESS = 8
# Columns that runs are sorted by, the most important first.
ORDER = ['width', 'depth', 'untrained', 'hours', 'mask_ratio']


def claims(several: tuple[numbers_of.Claim, ...]) -> str:
  """Returns the table of claims."""
  return html_parts.rows(wording.frame(several),
                         [one.verdict for one in several], 'text claims')


def ordered(runs: pd.DataFrame) -> pd.DataFrame:
  """Returns runs by size, untrained networks after them."""
  return runs.sort_values([name for name in ORDER if name in runs])


def rank(row: Any, name: str) -> str:
  """Returns 'value [low, high]' of a rank."""
  value = row.get(name)
  if value is None or not math.isfinite(value):
    return numbers.DASH
  ends = numbers.between(row.get(f'{name}_low'), row.get(f'{name}_high'),
                         '{:.1f}')
  return f'{value:.1f} {ends}'


def endless(row: Any, name: str, clips: float) -> str:
  """Returns RankMe of endless data, a dash where it cannot be told.

  It cannot from few clips, and no RankMe is larger than the width.
  """
  value = row.get(f'{name}_value_inf')
  # A comparison with NaN is false, so unknown clips give a dash too.
  if value is None or not math.isfinite(value) or value > row['width'] or not (
      clips >= ENDLESS * row['width']):
    return numbers.DASH
  return f'{value:.1f}'


def runs(result: analysis.Analysis, table: pd.DataFrame) -> str:
  """Returns the table of every run, the untrained ones among them."""
  # Gains are of the analysis, which pairs each run with its own untrained
  # network.
  both = pd.concat([result.study.trained, result.study.others])
  gains = {row['run_id']: row for _, row in both.iterrows()}
  shown, classes = [], []
  for _, row in ordered(table).iterrows():
    own = gains.get(row['run_id'], {})
    cells = {'run': row['run_id'], 'size': row['size']}
    if row['untrained']:
      cells.update(hours=numbers.DASH, mask=numbers.DASH, steps='untrained')
    else:
      cells.update(hours=numbers.number(row['hours'], '{:.3g}'),
                   mask=f"{row['mask_ratio']:g}", steps=row['steps'])
    cells.update({
        'RankMe': rank(row, 'rank'), 'centred': rank(row, 'rank_center'),
        'valid loss': numbers.number(row.get('valid_loss')),
        'score': score(row),
        'gain over untrained': gain(own),
        'state': row['state']})
    shown.append(cells)
    kind = ''
    if row['untrained']:
      kind = 'off'
    elif own.get('gain', math.nan) <= 0:
      # Coloured, because such runs do not enter the law.
      kind = 'behind'
    classes.append(kind)
  return html_parts.rows(pd.DataFrame(shown), classes, 'sorted', link='run')


def score(row: Any) -> str:
  """Returns a score, with its interval where it has one."""
  text = numbers.number(row['score'])
  low, high = row.get('score_low'), row.get('score_high')
  # The sum is finite only if both ends are.
  if low is None or high is None or not math.isfinite(low + high):
    return text
  return f'{text} [{low:.3f}, {high:.3f}]'


def gain(row: Any) -> str:
  """Returns a gain over the untrained network, with its paired interval."""
  text = numbers.number(row.get('gain'), '{:+.3f}')
  ends = numbers.between(row.get('gain_low'), row.get('gain_high'), '{:+.3f}')
  if ends == numbers.DASH:
    return text
  return f'{text} {ends}'


def samples(table: pd.DataFrame, names: list[str]) -> str:
  """Returns the table of RankMe on the main sample and the further ones.

  Args:
    table: a row a run.
    names: of the further samples.
  """
  columns = {'main sample': ('rank', 'clips'), **{
      name: (f'rank_{name}', f'clips_{name}') for name in names}}
  shown = []
  for _, row in ordered(table).iterrows():
    cells = {'run': row['run_id'], 'what': row['name']}
    for text, (own, clips) in columns.items():
      # One number of clips stands in the heading, several in the cells.
      several = table[clips].dropna().unique()
      cell = f'{rank(row, own)} | {endless(row, own, row[clips])}'
      if len(several) == 1:
        text = f'{text}, {several[0]:.0f} clips'
      else:
        cell = f"{numbers.number(row[clips], '{:.0f}')}: {cell}"
      cells[text] = cell
    shown.append(cells)
  return html_parts.rows(pd.DataFrame(shown), kind='sorted', link='run')


def layers(sweep: records.Tables) -> pd.DataFrame:
  """Returns a row of texts for every run measured or scored at every layer.

  Args:
    sweep: its tables.
  """
  table = sweep.runs
  # By number: as text, layer_10 would come before layer_2.
  number_of = lambda name: int(name.rsplit('_', 1)[1])
  ranks = sorted((c for c in table if re.fullmatch(r'rank_layer_\d+', c)),
                 key=number_of)
  shown = []
  for _, row in ordered(table).iterrows():
    # Models of several depths stand in one table.
    depth = [c for c in ranks if not pd.isna(row[c])]
    scored = not pd.isna(row.get('best_layer_score'))
    if not depth and not scored:
      continue
    cells = {'run_id': row['run_id'], 'what': row['name']}
    for name in ranks:
      cells[f'RankMe, block {number_of(name)}'] = beside(
          row.get(name), row.get(name.replace('rank_', 'rank_token_')))
    cells['RankMe, final'] = beside(row['rank'], row.get('rank_token'))
    if scored:
      for name in sorted((c for c in table
                          if re.fullmatch(r'score_layer_\d+', c)),
                         key=number_of):
        cells[f'score, block {number_of(name)}'] = numbers.number(
            row[name], '{:.3f}')
      cells['score, final'] = numbers.number(row['score'], '{:.3f}')
      cells['score, best layer'] = numbers.number(row['best_layer_score'],
                                                  '{:.3f}')
    shown.append(cells)
  # Deeper models have columns that others lack.
  return pd.DataFrame(shown).fillna('')


def beside(pooled: Any, token: Any) -> str:
  """Returns RankMe of pooled embeddings and, if known, of single tokens."""
  if pooled is None or pd.isna(pooled):
    return ''
  if token is None or pd.isna(token):
    return f'{pooled:.1f}'
  return f'{pooled:.1f} | {token:.1f}'


def tasks(table: pd.DataFrame) -> str:
  """Returns untrained and trained scores of every task.

  Args:
    table: of analysis.training.tasks.
  """
  shown = []
  for task, row in table.iterrows():
    cells = {'task': task, 'metric': row['metric']}
    if 'test_clips' in row:
      cells['test clips'] = numbers.number(row['test_clips'], '{:.0f}')
    for name, text in (('chance', 'chance'), ('log_mel', 'mean log-mel'),
                       ('mfcc', 'mean MFCC')):
      if name in row:
        cells[text] = numbers.number(row[name])
    cells.update({
        'untrained, mean': numbers.number(row['untrained']),
        'trained, mean': trained(row),
        'gain over untrained': numbers.number(row['gain'], '{:+.3f}'),
        'runs above untrained': numbers.percent(row['above']),
        **by_interval(row),
        'best': numbers.number(row['best']),
        'Spearman with RankMe': numbers.number(row['spearman'], '{:+.2f}'),
        'score per doubling of RankMe, within a size': numbers.number(
            row['doubling'], '{:+.3f}')})
    shown.append(cells)
  return html_parts.rows(pd.DataFrame(shown))


def by_interval(row: Any) -> dict[str, str]:
  """Returns how many runs are above and below by their paired intervals."""
  if 'beat' not in row or not math.isfinite(row['beat']):
    return {}
  return {'significantly above': numbers.percent(row['beat']),
          'significantly below': numbers.percent(row['below'])}


def trained(row: Any) -> str:
  """Returns the mean score of a task, with a run's usual interval."""
  text = numbers.number(row['trained'])
  if 'score_low' not in row or not math.isfinite(row['score_low']):
    return text
  return f"{text} [{row['score_low']:.3f}, {row['score_high']:.3f}]"


def predictors(table: pd.DataFrame) -> str:
  """Returns the predictors of the score, the lowest error first."""
  together = wording.listed(name for name in law.GIVEN
                            if name in set(table['predictor']))
  # Rows of the analysis that are no predictor.
  called = {'(mean)': 'the mean score',
            '(given alone)': f'{together}, together'}
  return html_parts.rows(pd.DataFrame([{
      'predictor': called.get(row['predictor'], row['predictor']),
      'error': numbers.number(row['loo']),
      'error given size': numbers.number(row['loo_given']),
      'Spearman': numbers.number(row['spearman'], '{:+.2f}'),
      'partial correlation': numbers.number(row['partial'], '{:+.2f}'),
      '95 %': numbers.between(row['partial_low'], row['partial_high'])}
      for _, row in table.iterrows()]),
                         own_rows(table['predictor'], {law.SUBJECT}))


def forms(table: pd.DataFrame) -> str:
  """Returns the forms of law compared, the lowest error first."""
  shown = pd.DataFrame([{
      'law': row['law'].replace('_', '-'), 'formula': row['formula'],
      'cross-validated error': numbers.number(row['loo'], '{:.4f}'),
      'error of the largest': numbers.number(row['held_out'], '{:.4f}'),
      'AICc minus lowest': numbers.number(row['aicc'], '{:.1f}'),
      'at a bound': row['at_bound'], 'not fitted because': row['problem']}
      for _, row in table.iterrows()])
  # A column of nothing says nothing.
  shown = shown[[name for name in shown if (shown[name] != '').any()]]
  return html_parts.rows(shown, own_rows(table['law'], {'saturating'}))


def own_rows(names: Iterable[str], own: set[str]) -> list[str]:
  """Returns the class of every row: 'own' for those of RankMe itself."""
  return ['own' if name in own else '' for name in names]


def early(soon: analysis.early.Early) -> str:
  """Returns every early number against the final score."""
  shown, own = [], {name for _, name in soon.rungs}
  for _, row in soon.agreement.iterrows():
    better = numbers.DASH
    # RankMe compared with itself says nothing.
    if row['early'] not in own:
      ends = numbers.between(row['difference_low'], row['difference_high'])
      better = f"{numbers.number(row['difference'], '{:+.2f}')} {ends}"
    ends = numbers.between(row['tau_low'], row['tau_high'])
    shown.append({
        'predictor': row['early'],
        'Spearman': numbers.number(row['spearman'], '{:+.2f}'),
        'tau [95 %]': f"{numbers.number(row['tau'], '{:+.2f}')} {ends}",
        'p': numbers.p_value(row['holm']).removeprefix('= '),
        'tau within a size': numbers.number(row['within'], '{:+.2f}'),
        'pairs correct': numbers.percent(row['pairs']),
        'regret': numbers.number(row['regret']),
        'tau of RankMe minus this': better})
  return html_parts.rows(pd.DataFrame(shown),
                         own_rows(soon.agreement['early'], own))


def halving(table: pd.DataFrame) -> str:
  """Returns what successive halving saves and costs."""
  return html_parts.rows(pd.DataFrame([{
      'runs chosen by': row['chooser'],
      'compute saved': numbers.percent(row['saved']),
      'runs finished': row['kept'], 'regret': numbers.number(row['regret']),
      'regret at random': numbers.number(row['random'])}
      for _, row in table.iterrows()]),
                         own_rows(table['chooser'], {law.SUBJECT}))


def outliers(table: pd.DataFrame) -> str:
  """Returns the runs that lie off the law."""
  return html_parts.rows(pd.DataFrame([{
      'run': row['label'], 'size': row['family'],
      'score': numbers.number(row['observed']),
      'predicted': numbers.number(row['expected']),
      'studentised residual': numbers.deviations(row['studentised']),
      'p (Holm)': numbers.p_value(row['p']).removeprefix('= ')}
      for _, row in table.iterrows()]))


def forecasts(table: pd.DataFrame) -> str:
  """Returns predictions beside what came of them; see forecast.compared."""
  verdicts = {True: 'inside', False: 'outside'}
  return html_parts.rows(pd.DataFrame([{
      'run': row['run_id'], 'written': row['date'][:16].replace('T', ' '),
      'compute': f"{row['times']:.3g} x", 'what': row['quantity'],
      'predicted': f"{numbers.short(row['value'])} "
                   f"[{numbers.short(row['low'])}, "
                   f"{numbers.short(row['high'])}]",
      'came out': numbers.short(row['observed']),
      # NaN does not equal itself: no verdict without an observed value.
      'interval': verdicts[row['inside']] * bool(row['observed'] ==
                                                 row['observed']),
      'scaling': row['scaling']} for _, row in table.iterrows()]), kind='text')


def events(table: pd.DataFrame) -> str:
  """Returns what went wrong with runs, by curve or by the monitor."""
  # A kind of both tables gets the words for the curve, which come last.
  known = {**wording.ALARMS, **wording.EVENTS}
  return html_parts.rows(pd.DataFrame([{
      'run': row['name'],
      'what': known.get(row['kind'], row['kind'].replace('_', ' ')),
      'seen in': {'curve': 'the curve'}.get(row['source'], 'the monitor'),
      'first step': f"{row['step']:g}", 'times': row['times'],
      'value': numbers.number(_float(row['value']), '{:.3g}'),
      'threshold': numbers.number(_float(row['threshold']), '{:.3g}')}
      for _, row in table.iterrows()]), kind='text')


def _float(value: Any) -> float:
  """Returns a number, NaN where there is none."""
  if value is None:
    return math.nan
  return float(np.float64(value))


def checklist(table: pd.DataFrame) -> str:
  """Returns the filled checklist of a fit."""
  shown = table.rename(columns={'item': 'what', 'answer': 'here'})
  # A heading is written once above its items.
  again = shown['head'] == shown['head'].shift()
  return html_parts.rows(shown.assign(head=shown['head'].mask(again, '')),
                         kind='text')
