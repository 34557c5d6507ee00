"""A sweep's records -> report.html: one file, images inside, nothing else.

The page is rebuilt from the records alone; it never needs the runs' data.
"""

import base64
import html
import io
import os
import pathlib

import numpy as np
import pandas as pd

from audiorank import figures
from audiorank import findings
from audiorank import records

STYLE = '''
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .84rem; display: block;
        overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.twin { color: #777; font-style: italic } tr.behind td { color: #a33 }
figure { margin: 1rem 0 } img { max-width: 100% }
figcaption, .small { font-size: .85rem; color: #555 }
.grid { display: grid; gap: 1rem;
        grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)) }
'''

CALLED = {'hours': 'hours of audio', 'params': 'encoder parameters',
          'score': 'Score', 'rank': 'RankMe'}


def image(draw, caption):
  """Returns a <figure> of what draw() draws, or its excuse."""
  try:
    ax = draw()
  except ValueError as error:
    return f'<p class="small">Not drawn: {html.escape(str(error))}.</p>'
  buffer = io.BytesIO()
  ax.figure.savefig(buffer, format='png', dpi=130, bbox_inches='tight')
  data = base64.b64encode(buffer.getvalue()).decode()
  text = html.escape(caption)
  return (f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
          f'<figcaption>{text}</figcaption></figure>')


def number(value, form='{:.3f}'):
  """Returns a number as text; what is missing is a dash, never 0."""
  if value is None or (isinstance(value, float) and not np.isfinite(value)):
    return '–'
  return form.format(value)


def rows(table, classes=None):
  """Returns an HTML table of a frame of texts."""
  head = ''.join(f'<th>{html.escape(str(c))}</th>' for c in table.columns)
  body = []
  for i, (_, row) in enumerate(table.iterrows()):
    cells = ''.join(f'<td>{html.escape(str(v))}</td>' for v in row)
    kind = f' class="{classes[i]}"' if classes and classes[i] else ''
    body.append(f'<tr{kind}>{cells}</tr>')
  return (f'<table><thead><tr>{head}</tr></thead><tbody>'
          f'{"".join(body)}</tbody></table>')


def runs_table(found, runs):
  """Returns the table of every run, the untrained ones among them."""
  gain = dict(zip(found.runs['run_id'], found.runs['gain']))
  ordered = runs.sort_values(
      ['width', 'depth', 'untrained', 'hours', 'mask_ratio'])
  shown, classes = [], []
  for _, r in ordered.iterrows():
    mine = gain.get(r['run_id'], np.nan)
    shown.append({
        'run': r['run_id'], 'size': r['size'],
        'hours': '–' if r['untrained'] else number(r['hours'], '{:.3g}'),
        'mask': '–' if r['untrained'] else f"{r['mask_ratio']:g}",
        'steps': 'untrained' if r['untrained'] else r['steps'],
        'RankMe': interval(r, 'rank'), 'centred': interval(r, 'rank_center'),
        'valid loss': number(r.get('valid_loss')),
        'score': number(r['score']),
        'over untrained': '–' if r['untrained'] else number(mine, '{:+.3f}'),
        'state': r['state']})
    classes.append('twin' if r['untrained'] else
                   'behind' if mine <= 0 else '')
  return rows(pd.DataFrame(shown), classes)


def interval(row, name):
  """Returns 'value [low, high]' of a rank."""
  if name not in row or not np.isfinite(row[name]):
    return '–'
  return (f'{row[name]:.1f} [{row[f"{name}_low"]:.1f}, '
          f'{row[f"{name}_high"]:.1f}]')


def tasks_table(tasks):
  """Returns untrained and trained scores of every task."""
  tasks = tasks[tasks['step'] == tasks['steps']]
  shown = []
  for task, part in tasks.groupby('task'):
    off, on = part[part['untrained']], part[~part['untrained']]
    best = on.loc[on['score'].idxmax()] if len(on) else None
    shown.append({
        'task': task, 'metric': part['metric'].iloc[0],
        'untrained, mean': number(off['score'].mean()),
        'untrained, best': number(off['score'].max()),
        'trained, mean': number(on['score'].mean()),
        'trained, best': number(on['score'].max()),
        'best run': '–' if best is None else best['name']})
  return rows(pd.DataFrame(shown))


def rivals_table(found):
  """Returns the predictors of the score, the best left out first."""
  return rows(pd.DataFrame([{
      'predictor': r['predictor'], 'error left out': number(r['loo']),
      'with size and width': number(r['loo_given']),
      'Spearman': number(r['spearman'], '{:+.2f}'),
      'partial, given size and width': number(r['partial'], '{:+.2f}'),
      '95 %': '–' if np.isnan(r['partial_low']) else
              f"[{r['partial_low']:+.2f}, {r['partial_high']:+.2f}]"}
      for _, r in found.rivals.iterrows()]))


def conventions(root, tables):
  """Returns how rank and score were measured, from the records."""
  workdir = next((w for w in records.sweep_folders(root)
                  if records.read(w, 'monitor')), root)
  out = []
  for r in records.read(workdir, 'monitor')[-1:]:
    e = r['rank']
    out.append(
        f"RankMe: {r['n']} clips of {r['sources']} recordings, width "
        f"per run, uncentred singular values of the {r['layer']} layer's time "
        f"mean, eps {e['eps']:g} added outside the fraction; intervals by "
        'jackknife over blocks of recordings.')
  protocols = sorted(tables.tasks['protocol'].unique()) if len(
      tables.tasks) else []
  out.append('Score: unweighted mean over the scene tasks of each task\'s '
             'first metric on its test split; predictor: '
             f'{", ".join(protocols) or "none yet"}. Event tasks are listed '
             'but not averaged.')
  out.append('Compute counts encoder and decoder, forward and backward.')
  return out


def page(root, tables, title):
  """Returns the report as one HTML text."""
  found = findings.find(tables)
  runs, history = tables.runs, tables.history
  counted = set(found.runs['run_id']) | set(found.twins['run_id'])
  scored = runs[runs['run_id'].isin(counted)]
  beat = set(found.runs['run_id'][found.runs['gain'] > 0])
  in_law = scored[scored['untrained'] | scored['run_id'].isin(beat)]
  behind = len(scored) - len(in_law)
  law = image(lambda: figures.rank_score(scored, found.fit),
              'RankMe against score; open grey: untrained networks.'
              + (' The line is fitted to the runs that beat theirs'
                 + (f' and leaves out {behind}.' if behind else '.')
                 if found.fit is not None else f' No law: {found.reason}.'))
  parts = [
      f'<h1>{html.escape(title)}</h1>',
      f'<p>{int((~runs["untrained"]).sum())} trained runs and '
      f'{int(runs["untrained"].sum())} untrained networks.</p>',
      '<h2>What was found</h2><ul>',
      *(f'<li>{html.escape(w)}</li>' for w in found.words), '</ul>',
      '<h2>Rank and score</h2>', law,
      '<h2>Rank during training</h2>',
      image(lambda: figures.rank_steps(history[~history['untrained']]),
            'RankMe of the fixed monitor clips, with 95 % intervals.'),
      '<h2>Data and size</h2><div class="grid">']
  for x in ('hours', 'params'):
    for y in ('score', 'rank'):
      parts.append(image(
          lambda x=x, y=y: figures.against(scored, x=x, y=y),
          f'{CALLED[y]} against {CALLED[x]}; dashed: untrained networks.'))
  parts.append('</div>')
  if len(tables.tasks):
    parts += ['<h2>Trained against untrained, task by task</h2>',
              image(lambda: figures.trained_untrained(tables.tasks),
                    'Every run on every task.'), tasks_table(tables.tasks)]
  parts += [
      '<h2>What predicts the score</h2>', rivals_table(found),
      '<p class="small">Each predictor by a line in its logarithm over the '
      'trained runs, every configuration left out in turn; root mean square '
      'error of the score. RankMe has to stand beside what is cheaper to '
      'know.</p>',
      '<h2>Runs</h2>', runs_table(found, runs),
      '<p class="small">Grey: untrained. Red: does not beat its untrained '
      'network.</p>',
      '<h2>How it was measured</h2><ul>',
      *(f'<li>{html.escape(w)}</li>' for w in conventions(root, tables)),
      '</ul>']
  return ('<!doctype html><html lang="en"><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width">'
          f'<title>{html.escape(title)}</title><style>{STYLE}</style>'
          f'<body>{"".join(parts)}</body></html>\n')


def heading(root):
  """Returns the sweep's title, or the folder's name."""
  path = root / 'sweep.json'
  return (records.read_json(path).get('title', root.name) if path.exists()
          else root.name)


def write(root):
  """Rebuilds <root>/report.html from the records; returns its path.

  Raises:
    FileNotFoundError: there are no runs under the root.
    ValueError: there are runs, but none with a record yet.
  """
  root = pathlib.Path(root)
  tables = records.collect(root)
  if 'rank' not in tables.runs or tables.runs['rank'].isna().all():
    raise ValueError(f'{root}: no run has a record yet: expected '
                     '<run_id>/records/*.json')
  part = root / f'.report.{os.getpid()}.html'
  part.write_text(page(root, tables, heading(root)), encoding='utf-8')
  part.replace(root / 'report.html')
  return root / 'report.html'
