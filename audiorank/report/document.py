"""The page: what was found, then what it rests on."""

import html

from audiorank import figures
from audiorank import files
from audiorank import findings
from audiorank import laws
from audiorank import records
from audiorank.report import curves
from audiorank.report import parts
from audiorank.report import tables

CALLED = {'hours': 'hours of audio', 'params': 'encoder parameters',
          'score': 'Score', 'rank': 'RankMe'}


def sections(root, found, made):
  """Returns the sections of the report as (title, [html]).

  Args:
    root: the sweep's folder.
    found: its findings.Findings.
    made: its records.Tables.
  """
  return [
      ('What was found', [parts.listed(found.words)]),
      ('Rank and score', rank_score(found, made)),
      ('Rank during training', during(found, made)),
      ('RankMe by sample', samples(made)),
      ('Data and size', data_size(found, made)),
      ('Trained against untrained, task by task', tasks(made)),
      ('What predicts the score', rivals(found)),
      ('Can RankMe choose a run early?', early(found)),
      ('Where the law fails', trouble(found)),
      ('Runs', [tables.runs(found, made.runs), parts.small(
          'Grey: untrained. Red: does not beat its untrained network. A '
          'click on a heading sorts, one on a run shows its curves.')]),
      ('Run by run', curves.runs(root, made)),
      ('How it was measured', [parts.listed(conventions(root, made))]),
      ('How the law was fitted', fitted(found))]


def exploratory(found):
  """Returns a warning where the runs are too few to settle anything."""
  n = len(found.runs)
  if n >= laws.early.ENOUGH:
    return ''
  return (f'<p class="warn">Exploratory: {n} runs. With fewer than '
          f'{laws.early.ENOUGH} an order of runs may be luck; read the '
          'intervals, not the values.</p>')


def scored(found, runs):
  """Returns the rows of runs that are scored on every task."""
  counted = set(found.runs['run_id']) | set(found.twins['run_id'])
  return runs[runs['run_id'].isin(counted)]


def rank_score(found, made):
  """Returns the figure of the law, and the shapes it was chosen from."""
  rows = scored(found, made.runs)
  beat = set(found.runs['run_id'][found.runs['gain'] > 0]
             if 'gain' in found.runs else ())
  behind = len(rows) - int((rows['untrained'] |
                            rows['run_id'].isin(beat)).sum())
  out = [parts.image(
      lambda: figures.rank_score(rows, found.fit),
      'RankMe against score; open grey: untrained networks.'
      + (' The line is fitted to the runs that beat theirs'
         + (f' and leaves out {behind}.' if behind else '.')
         if found.fit is not None else f' No law: {found.reason}.'))]
  if len(found.shapes):
    out += ['<h3>Which shape of law?</h3>', tables.shapes(found.shapes),
            parts.small(
                'Root mean square errors of the score: of configurations '
                'left out in turn, and of the runs of most compute, held '
                'out together. How well a law fits the runs it has seen '
                'chooses nothing.')]
  return out


def during(found, made):
  """Returns the figure of rank over training, troubled runs marked."""
  curves = made.history
  if len(curves):
    curves = curves[~curves['untrained']]
  return [parts.image(
      lambda: figures.rank_steps(curves, marked=found.trouble.unstable),
      'RankMe of the fixed monitor clips, with 95 % intervals.')]


def samples(made):
  """Returns RankMe of the further samples; nothing where none was read."""
  names = records.samples(made.runs)
  if not names:
    return []
  return [tables.samples(made.runs, names), parts.small(
      'The last reading of each run: number of clips, RankMe with its 95 % '
      'interval, and after the bar what endless data would give. A sample of '
      'fewer clips or recordings reads lower: compare the numbers after the '
      'bar. Which sample predicts the score best stands under "What predicts '
      'the score".')]


def data_size(found, made):
  """Returns the figures of score and rank against hours and size."""
  rows = scored(found, made.runs)
  out = []
  for x in ('hours', 'params'):
    for y in ('score', 'rank'):
      out.append(parts.image(
          lambda x=x, y=y: figures.against(rows, x=x, y=y),
          f'{CALLED[y]} against {CALLED[x]}; dashed: untrained networks.'))
  return [f'<div class="grid">{"".join(out)}</div>']


def tasks(made):
  """Returns the figure and table of every task; nothing without scores."""
  if not len(made.tasks):
    return []
  last = made.tasks[made.tasks['step'] == made.tasks['steps']]
  return [parts.image(lambda: figures.trained_untrained(last),
                      'Every run on every task.'),
          tables.tasks(made.tasks, made.runs)]


def rivals(found):
  """Returns the predictors of the score on the same folds."""
  if not len(found.rivals):
    return [parts.small('Too few configurations, or too little variation, '
                        'to leave any out.')]
  return [exploratory(found), tables.rivals(found), parts.small(
      'Each predictor by a line in its logarithm over the trained runs, every '
      'configuration left out in turn; root mean square error of the score. '
      'RankMe has to stand beside what is cheaper to know.')]


def early(found):
  """Returns whether RankMe read early orders the final scores."""
  soon = found.early
  if soon.reason:
    return [parts.small(f'Not asked: {soon.reason}.')]
  several = soon.runs['size'].nunique() > 1
  drawn = [parts.image(
      lambda name=name: figures.early_final(
          soon.runs, name, 'score', 'size' if several else None),
      f'{name} of training against the final score.')
           for _, name in soon.rungs[:1] + soon.rungs[1:][-1:]]
  return [
      exploratory(found), parts.listed(soon.words),
      f'<div class="grid">{"".join(drawn)}</div>', tables.early(soon),
      parts.small(
          'p: of no order at all, adjusted for the readings (Holm). In a '
          'size: tau of pairs of one size only. Pairs: decided rightly. '
          'Regret: the best final score less that of the run that looks best '
          'early; a run drawn by lot has '
          f"{soon.agreement['random_regret'].iloc[0]:.3f}. RankMe better by: "
          'its tau at that point (for what is known beforehand, at its last) '
          'less that of the row; bootstrap over configurations.'),
      '<h3>What stopping early would save</h3>', tables.halving(soon.halving),
      parts.small('At every rung the worse half is stopped. Compute counts '
                  'encoder and decoder. Ties are broken against the '
                  'chooser.')]


def trouble(found):
  """Returns outliers, bends and unstable runs."""
  wrong, out = found.trouble, [parts.listed(found.trouble.words)]
  if found.fit is None:
    out.append(parts.small(f'No law, no outliers: {found.reason}.'))
  else:
    beat = found.runs[found.runs['gain'] > 0]
    out.append(parts.image(
        lambda: figures.residuals(found.fit, 'rank', beat['size'].to_numpy(),
                                  marked=wrong.outliers),
        'Residuals of the law against RankMe, by size; ringed and named: '
        'beyond chance.'))
  if len(wrong.outliers):
    out.append(tables.outliers(wrong.outliers))
  if len(wrong.unstable):
    out += ['<h3>Unstable runs</h3>', tables.unstable(wrong.unstable)]
  if len(wrong.alarms):
    out += ['<h3>Alarms of the monitor</h3>', tables.alarms(wrong.alarms)]
  return out


def fitted(found):
  """Returns the checklist of the fit."""
  if not len(found.checklist):
    return [parts.small(f'No law is fitted: {found.reason}.')]
  return [tables.checklist(found.checklist), parts.small(
      'The checklist of "(Mis)Fitting: A Survey of Scaling Laws", arXiv '
      '2502.18969.')]


def conventions(root, made):
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
  protocols = sorted(made.tasks['protocol'].unique()) if len(
      made.tasks) else []
  out.append('Score: unweighted mean over the scene tasks of each task\'s '
             'first metric on its test split; predictor: '
             f'{", ".join(protocols) or "none yet"}. Event tasks are listed '
             'but not averaged.')
  out.append('Compute counts encoder and decoder, forward and backward.')
  return out


def page(root, made, title):
  """Returns the report as one HTML text."""
  found = findings.find(made)
  parts_ = [(name, body) for name, body in sections(root, found, made)
            if any(body)]
  nav = ' '.join(f'<a href="#s{i}">{html.escape(name)}</a>'
                 for i, (name, _) in enumerate(parts_))
  body = ''.join(f'<h2 id="s{i}">{html.escape(name)}</h2>{"".join(inside)}'
                 for i, (name, inside) in enumerate(parts_))
  runs = made.runs
  return ('<!doctype html><html lang="en"><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, '
          'initial-scale=1"><meta name="color-scheme" content="light dark">'
          f'<title>{html.escape(title)}</title><style>{parts.STYLE}</style>'
          f'<body><h1>{html.escape(title)}</h1>'
          f'<p>{int((~runs["untrained"]).sum())} trained runs and '
          f'{int(runs["untrained"].sum())} untrained networks.</p>'
          f'<nav>{nav}</nav>{body}<script>{parts.SCRIPT}</script></body></html>\n')


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
  root = files.path(root)
  made = records.collect(root)
  if 'rank' not in made.runs or made.runs['rank'].isna().all():
    raise ValueError(f'{root}: no run has a record yet: expected '
                     '<run_id>/records/*.json')
  files.write_text(root / 'report.html', page(root, made, heading(root)))
  return root / 'report.html'
