"""The tables of the page: frames of the findings as frames of texts."""

import numpy as np
import pandas as pd

from audiorank.report import parts


def runs(found, runs):
  """Returns the table of every run, the untrained ones among them."""
  gain = dict(zip(found.runs['run_id'], found.runs['gain']))
  ordered = runs.sort_values(
      ['width', 'depth', 'untrained', 'hours', 'mask_ratio'])
  shown, classes = [], []
  for _, r in ordered.iterrows():
    mine, off = gain.get(r['run_id'], np.nan), r['untrained']
    shown.append({
        'run': r['run_id'], 'size': r['size'],
        'hours': '–' if off else parts.number(r['hours'], '{:.3g}'),
        'mask': '–' if off else f"{r['mask_ratio']:g}",
        'steps': 'untrained' if off else r['steps'],
        'RankMe': parts.interval(r, 'rank'),
        'centred': parts.interval(r, 'rank_center'),
        'valid loss': parts.number(r.get('valid_loss')),
        'score': parts.number(r['score']),
        'over untrained': '–' if off else parts.number(mine, '{:+.3f}'),
        'state': r['state']})
    classes.append('twin' if off else 'behind' if mine <= 0 else '')
  return parts.rows(pd.DataFrame(shown), classes, 'sorted', link='run')


def samples(runs, names):
  """Returns the table of RankMe on the main sample and the further ones.

  Args:
    runs: a row a run.
    names: of the further samples.
  """
  shown = []
  for _, r in runs.sort_values(
      ['width', 'depth', 'untrained', 'hours', 'mask_ratio']).iterrows():
    row = {'run': r['run_id'], 'what': r['name']}
    for name in ('', *names):
      rank, clips = (f'rank_{name}', f'clips_{name}') if name else (
          'rank', 'clips')
      row[name or 'main sample'] = (
          f"{parts.number(r[clips], '{:.0f}')}: {parts.interval(r, rank)} | "
          f"{parts.number(r[f'{rank}_value_inf'], '{:.1f}')}")
    shown.append(row)
  return parts.rows(pd.DataFrame(shown), kind='sorted', link='run')


def tasks(tasks, runs):
  """Returns untrained and trained scores of every task, and how the trained
  ones go with RankMe.

  Args:
    tasks: a row a run, step and task.
    runs: a row a run.
  """
  rank = runs.set_index('run_id')['rank']
  tasks = tasks[tasks['step'] == tasks['steps']]
  shown = []
  for task, part in tasks.groupby('task'):
    off, on = part[part['untrained']], part[~part['untrained']]
    known = on['score'].notna().any()
    best = on.loc[on['score'].idxmax()] if known else None
    both = pd.DataFrame({'score': on['score'].to_numpy(float), 'rank':
                         on['run_id'].map(rank).to_numpy(float)}).dropna()
    told = len(both) > 3 and (both.nunique() > 1).all()
    rho = both.corr('spearman').iloc[0, 1] if told else np.nan
    shown.append({
        'task': task, 'metric': part['metric'].iloc[0],
        'untrained, mean': parts.number(off['score'].mean()),
        'untrained, best': parts.number(off['score'].max()),
        'trained, mean': parts.number(on['score'].mean()),
        'trained, best': parts.number(on['score'].max()),
        'Spearman with RankMe': parts.number(rho, '{:+.2f}'),
        'best run': '–' if best is None else best['name']})
  return parts.rows(pd.DataFrame(shown))


def rivals(found):
  """Returns the predictors of the score, the best left out first."""
  return parts.rows(pd.DataFrame([{
      'predictor': r['predictor'], 'error left out': parts.number(r['loo']),
      'with size and width': parts.number(r['loo_given']),
      'Spearman': parts.number(r['spearman'], '{:+.2f}'),
      'partial, given size and width': parts.number(r['partial'], '{:+.2f}'),
      '95 %': parts.between(r['partial_low'], r['partial_high'])}
      for _, r in found.rivals.iterrows()]))


def shapes(table):
  """Returns the shapes of law compared, the best left out first."""
  shown = pd.DataFrame([{
      'law': r['law'].replace('_', '-'), 'formula': r['formula'],
      'left out': parts.number(r['loo'], '{:.4f}'),
      'largest': parts.number(r['held_out'], '{:.4f}'),
      'AICc over best': parts.number(r['aicc'], '{:.1f}'),
      'at a bound': r['at_bound'], 'not fitted because': r['problem']}
      for _, r in table.iterrows()])
  # A column of nothing says nothing.
  shown = shown[[name for name in shown if (shown[name] != '').any()]]
  return parts.rows(shown, ['own' if law == 'saturating' else ''
                            for law in table['law']])


def early(found):
  """Returns every early number against the final score."""
  shown, classes, own = [], [], {name for _, name in found.rungs}
  for _, r in found.agreement.iterrows():
    mine = r['early'] in own
    shown.append({
        'known early': r['early'],
        'Spearman': parts.number(r['spearman'], '{:+.2f}'),
        'tau [95 %]': f"{parts.number(r['tau'], '{:+.2f}')} "
                      + parts.between(r['tau_low'], r['tau_high']),
        'p': parts.chance(r['holm']),
        'in a size': parts.number(r['within'], '{:+.2f}'),
        'pairs': parts.percent(r['pairs']),
        'regret': parts.number(r['regret']),
        'RankMe better by': '–' if mine else (
            f"{parts.number(r['difference'], '{:+.2f}')} "
            + parts.between(r['difference_low'], r['difference_high']))})
    classes.append('own' if mine else '')
  return parts.rows(pd.DataFrame(shown), classes)


def halving(table):
  """Returns what successive halving saves and costs."""
  return parts.rows(pd.DataFrame([{
      'runs dropped by': r['chooser'],
      'compute saved': parts.percent(r['saved']),
      'runs finished': r['kept'], 'regret': parts.number(r['regret']),
      'as many by lot': parts.number(r['random'])}
      for _, r in table.iterrows()]), [
          'own' if name == 'RankMe' else '' for name in table['chooser']])


def outliers(table):
  """Returns the runs that lie off the law."""
  return parts.rows(pd.DataFrame([{
      'run': r['label'], 'size': r['family'],
      'score': parts.number(r['observed']),
      'by the law': parts.number(r['expected']),
      'studentised': parts.number(r['studentised'], '{:+.1f}'),
      'p (Holm)': parts.chance(r['p'])}
      for _, r in table.iterrows()]))


def unstable(table):
  """Returns the runs that collapsed, dipped, jumped or diverged."""
  return parts.rows(pd.DataFrame([{
      'run': r['name'], 'what': r['kind'], 'step': f"{r['step']:g}",
      'value': parts.number(r['value'], '{:.3g}'),
      'before': parts.number(r['before'], '{:.3g}')}
      for _, r in table.iterrows()]))


def alarms(table):
  """Returns what the monitor said while training."""
  return parts.rows(pd.DataFrame([{
      'run': r['name'], 'first step': f"{r['step']:g}", 'times': r['times'],
      'first said': r['alarm']} for _, r in table.iterrows()]), kind='text')


def checklist(table):
  """Returns the filled checklist of a fit."""
  shown = table.rename(columns={'item': 'what', 'answer': 'here'})
  again = shown['head'] == shown['head'].shift()
  return parts.rows(shown.assign(head=shown['head'].mask(again, '')),
                    kind='text')
