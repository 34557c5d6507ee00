"""The page: what a user can act on, the slopes, then what they rest on."""

from collections.abc import Iterable
from collections.abc import Sequence
import functools
import html
import os
import pathlib

from audiorank import analysis
from audiorank import figures
from audiorank import files
from audiorank import laws
from audiorank import records
from audiorank.analysis import forecast
from audiorank.analysis import joint
from audiorank.analysis import law
from audiorank.analysis import layers as layer_claims
from audiorank.analysis import optima
from audiorank.analysis import study
from audiorank.report import board
from audiorank.report import curves
from audiorank.report import explore
from audiorank.report import html_parts
from audiorank.report import tables
from audiorank.report import wording

TITLES = {'hours_asked': 'hours of audio', 'params': 'encoder parameters',
          'score': 'Score', 'rank': 'RankMe'}
EMPTY = 'Too few configurations, or too little variation, to leave any out.'


def sections(root: os.PathLike, result: analysis.Analysis,
             sweep: records.Tables, own: Sequence[board.Point] = ()
             ) -> list[tuple[str, list[str]]]:
  """Returns the sections of the report as (title, [html]).

  Args:
    root: the sweep's folder.
    result: its analysis.
    sweep: its tables.
    own: encoders of others, from board.points.
  """
  # In the order of use: what to conclude, then the evidence, then how it was
  # measured.
  return [
      ('What a doubling of RankMe is worth', slopes(result)),
      ('All claims', claims(result)),
      ('Rank and score', rank_score(result, own)),
      ('Encoders of others', foreign(result, own)),
      ('Rank during training', during(result)),
      ('What predicts the score', predictors(result)),
      ('Can RankMe choose a run early?', early(result)),
      ('Data and size', data_size(result)),
      ('What to scale next', scale_next(result)),
      ('Best learning rate', best_rates(sweep)),
      ('Forecasts', forecasts(root, result)),
      ('Trained against untrained, task by task', tasks(result)),
      ('RankMe by sample', samples(sweep)),
      ('Layer by layer', layers(result, sweep)),
      ('Where the law fails, and unstable runs', trouble(result)),
      ('Runs', [tables.runs(result, sweep.runs), html_parts.small(
          'Grey: untrained. Red: scores no higher than its untrained '
          'network. A click on a heading sorts, one on a run shows its '
          'curves.')]),
      ('Filter and compare runs', [explore.of_tables(sweep)]),
      ('Run by run', curves.runs(root, sweep)),
      ('How it was measured and judged', [html_parts.listed(
          wording.rows_used(result)
          + wording.conventions(
              last_monitor(root, sweep.runs['run_id']), result))]),
      ('How the law was fitted', fitted(result))]


def slopes(result: analysis.Analysis) -> list[str]:
  """Returns the first figure."""
  if not result.claims:
    return []
  return [html_parts.drawing(
      lambda: figures.slopes(result.claims),
      'Score per doubling of RankMe among configurations that differ only in '
      'what is named; in brackets, the number of configurations. Right of 0 '
      'the score rises with RankMe. If one slope held for all changes, every '
      'interval would contain the dashed line.')]


def claims(result: analysis.Analysis) -> list[str]:
  """Returns the table of claims."""
  return [tables.claims(result.claims)]


def foreign(result: analysis.Analysis,
            own: Sequence[board.Point]) -> list[str]:
  """Returns what the law says about encoders of others."""
  if not own:
    return []
  last = result.study.tasks
  # The table has every evaluation; the report compares finished runs.
  if len(last):
    last = last[last['step'] == last['steps']]
  return [html_parts.rows(
      board.placed(own, result.fit, result.study.trained, last),
      kind='sorted text'), html_parts.small(
          'Law: the score that the law of the runs predicts at this RankMe, '
          'with the 95 % interval of a further run of this sweep. An encoder '
          'lies on it if its score is inside. It is not comparable if its '
          'RankMe is of another corpus, number or length of clips, or its '
          'score of other tasks or another protocol: launch.evaluate --corpus '
          '--clips --seconds, and --like.')]


def layers(result: analysis.Analysis, sweep: records.Tables) -> list[str]:
  """Returns RankMe and score of every layer; nothing where not measured."""
  table = tables.layers(sweep)
  if not len(table):
    return []
  words = wording.layer_words(law.of_layers(result.study.trained))
  words += [f'{wording.title(one)}: {one.verdict}; {wording.measured(one)}.'
            for one in result.claims if one.key in ('best_layer', 'top_first')]
  return [layer_figures(result), html_parts.listed(words),
          html_parts.rows(table, kind='sorted', link='run_id'),
          html_parts.small(
              'RankMe of every measured block at the last evaluation, of '
              'pooled embeddings and, after the bar, of single tokens. Best '
              'layer: the mean score of the layers that the validation clips '
              'of each task choose, on its test clips, beside that of the '
              'final layer.')]


def layer_figures(result: analysis.Analysis) -> str:
  """Returns the figures of RankMe and score by layer; '' without layers."""
  trained, out = result.study.trained, []
  for y, what in (('rank', 'RankMe'), ('score', 'Mean score')):
    if f'{y}_layer_0' not in trained:
      continue
    values = {str(size): layer_claims.matrix(rows, f'{y}_layer_', y)
              for size, rows in trained.groupby('size')}
    out.append(html_parts.drawing(
        functools.partial(figures.layers, values, y),
        f'{what} by layer: median of the runs of a size and their range, the '
        'number of runs in brackets. The last block counts once, after the '
        'final normalisation.'))
  return f'<div class="grid">{"".join(out)}</div>' * bool(out)


def rank_score(result: analysis.Analysis,
               own: Sequence[board.Point] = ()) -> list[str]:
  """Returns the figure of the law, its limit, and the forms compared."""
  line, fit = 'No law is fitted.', result.fit
  if fit:
    line = ('The line is fitted to the runs that score above their untrained '
            'network.')
  out = [html_parts.drawing(
      lambda: figures.rank_score(
          study.every(result.study), fit,
          others=[(p.rank, p.score, p.name) for p in own]),
      f'RankMe against score, 95 % intervals of RankMe. {line}'),
         html_parts.listed(wording.law_words(result)
                           + wording.form_words(result.forms))]
  if fit:
    out.append(html_parts.drawing(
        lambda: figures.profile(fit),
        'Profile likelihood of the limit Q_inf: values below the dashed line '
        'lie in its 95 % interval.'))
  if len(result.forms):
    out += ['<h3>Which form of law?</h3>', tables.forms(result.forms),
            html_parts.small(
                'Root mean square errors of the score: cross-validated (each '
                'configuration left out in turn), and of the runs with the '
                'most compute (left out together).')]
  return out


def during(result: analysis.Analysis) -> list[str]:
  """Returns the figure of rank over training, troubled runs marked."""
  events = result.diagnostics.events
  # The monitor's alarms have a table of their own; a mark each would hide the
  # curves.
  marked = events[events['source'] == 'curve']
  growth = [f'{wording.measured(one)}.' for one in result.claims
            if one.key == 'growth']
  return [html_parts.drawing(
      lambda: figures.rank_steps(result.study.history, marked=marked),
      'RankMe of the fixed monitor clips during training.'),
          html_parts.listed(growth + wording.event_words(events))]


def samples(sweep: records.Tables) -> list[str]:
  """Returns RankMe of the further samples; nothing where there are none."""
  names = records.samples(sweep.runs)
  if not names:
    return []
  return [tables.samples(sweep.runs, names), html_parts.small(
      'The last evaluation of each run: number of clips, RankMe with its 95 % '
      'interval, and after the bar its extrapolation to infinitely many clips '
      f'(if there are at least {tables.ENDLESS} clips per dimension). A small '
      'sample is biased low: compare the numbers after the bar.')]


def data_size(result: analysis.Analysis) -> list[str]:
  """Returns the figures of score and rank against hours and size."""
  def drawn(x: str, y: str) -> figures.style.Axes:
    return figures.against(study.every(result.study), x=x, y=y)

  out = []
  for x in ('hours_asked', 'params'):
    for y in ('score', 'rank'):
      # functools.partial, as a lambda would see the last x and y of the loop.
      out.append(html_parts.drawing(
          functools.partial(drawn, x, y),
          f'{TITLES[y]} against {TITLES[x]}.'))
  return [f'<div class="grid">{"".join(out)}</div>', *together(result)]


def together(result: analysis.Analysis) -> list[str]:
  """Returns valleys, contours, data bound and longer or larger."""
  known, plots = joint.read(result.study), []
  if known.valleys is not None:
    valleys = known.valleys
    plots.append(html_parts.drawing(
        lambda: figures.isoflop(valleys),
        'Validation loss against size at equal compute.'))
  for fit, words in ((known.hours, 'hours of audio'),
                     (known.steps, 'training steps')):
    if fit is not None:
      plots.append(html_parts.drawing(
          functools.partial(figures.contours, fit),
          f'Lines of equal validation loss over size and {words}, by a '
          'separable power law.'))
  # No empty box where nothing was drawn.
  return [f'<div class="grid">{"".join(plots)}</div>' * bool(plots),
          html_parts.listed(wording.joint_words(known))]


def scale_next(result: analysis.Analysis) -> list[str]:
  """Returns what a doubling of each axis adds, and the best next run."""
  return [html_parts.listed(wording.gain_words(result.scaling)
                            + wording.best_words(result.scaling)),
          html_parts.small('launch.sweep next proposes runs for a budget and '
                           'writes their config.')]


def best_rates(sweep: records.Tables) -> list[str]:
  """Returns the best learning rate of each setting; nothing where fewer than
  three rates were tried."""
  runs = sweep.runs
  if not {'lr', optima.MEASURE} <= set(runs) or not (runs['lr'] > 0).all():
    return []
  if runs['lr'].nunique() < optima.LEAST:
    return []
  known = optima.read(runs)
  if not len(known.table):
    return []
  return [html_parts.rows(wording.optima_table(known), kind='text'),
          html_parts.listed(wording.optima_words(known)),
          html_parts.small(
              'Where a parabola through the validation losses around the '
              'lowest has its minimum, over the logarithm of the rate; runs of '
              'one seed share an offset. launch.report --optimum does this for '
              'any setting and measure.')]


def forecasts(root: os.PathLike, result: analysis.Analysis) -> list[str]:
  """Returns predictions beside what came of them; nothing without any."""
  several = forecast.read(root)
  if not several:
    return []
  table = forecast.compared(several, result.study)
  return [html_parts.listed(wording.forecast_verdict(table)),
          tables.forecasts(table)]


def tasks(result: analysis.Analysis) -> list[str]:
  """Returns the figure and table of every task; nothing without scores."""
  table = result.study.tasks
  if not len(table):
    return []
  # Evaluations before the end are left to the section of training.
  last = table[table['step'] == table['steps']]
  return [html_parts.drawing(lambda: figures.trained_untrained(last),
                             'Every run on every task.'),
          tables.tasks(result.tasks)]


def predictors(result: analysis.Analysis) -> list[str]:
  """Returns the predictors of the score on the same folds."""
  if not len(result.predictors):
    return [html_parts.small(EMPTY)]
  return [tables.predictors(result.predictors), html_parts.listed(
      wording.width_words(result.study.trained)), html_parts.small(
          'Cross-validated root mean square error of the score, predicted by a '
          'line in the logarithm of the predictor; each configuration left out '
          'in turn. "Given size": together with width, parameters and the '
          "untrained network's RankMe. Partial correlation: with the score, "
          'given the same.')]


def early(result: analysis.Analysis) -> list[str]:
  """Returns whether RankMe measured early orders the final scores."""
  soon = result.early
  if soon.lacks:
    return [html_parts.listed(wording.early_words(result))]
  # Colours of a single size would say nothing.
  family = None
  if soon.runs['size'].nunique() > 1:
    family = 'size'
  plots = [html_parts.drawing(
      functools.partial(figures.early_final, soon.runs, name, 'score', family),
      f'{name} of training against the final score, by size.')
           # The first and the last rung; those between look alike.
           for _, name in soon.rungs[:1] + soon.rungs[1:][-1:]]
  return [
      html_parts.listed(wording.early_words(result)),
      f'<div class="grid">{"".join(plots)}</div>', tables.early(soon),
      html_parts.small(
          'p: of no association, adjusted for the number of rungs (Holm). Tau '
          'within a size: of pairs of one size only. Regret: the best final '
          'score minus that of the run that looks best early; for a run chosen '
          f"at random {soon.agreement['random_regret'].iloc[0]:.3f}. Last "
          'column: tau of RankMe at the same point (for what is known before '
          'training, at the last one) minus tau of the row, with a bootstrap '
          'interval over configurations.'),
      '<h3>What stopping early would save</h3>', tables.halving(soon.halving),
      html_parts.small(
          'At every rung the worse half of the runs is stopped. Compute counts '
          'encoder and decoder. Ties are broken against the predictor.')]


def trouble(result: analysis.Analysis) -> list[str]:
  """Returns outliers, bends and unstable runs."""
  wrong, fit = result.diagnostics, result.fit
  out = [html_parts.listed(wording.trouble_words(result))]
  if fit:
    # The rows that the law was fitted to, as sizes must match its residuals.
    above = study.above_baseline(result.study.trained)
    out.append(html_parts.drawing(
        lambda: figures.residuals(fit, 'rank', above['size'].to_numpy(),
                                  marked=wrong.outliers),
        'Residuals of the law against RankMe, by size; outliers are ringed '
        'and named.'))
  if len(wrong.outliers):
    out.append(tables.outliers(wrong.outliers))
  if len(wrong.events):
    out += ['<h3>Events during training</h3>',
            tables.events(wrong.events)]
  return out


def fitted(result: analysis.Analysis) -> list[str]:
  """Returns the checklist of the fit."""
  if not result.fit:
    return []
  # The fit knows its own part; the rest is of the sweep.
  table = laws.checklist.fill(result.fit, wording.checklist(result))
  return [tables.checklist(table), html_parts.small(
      'The checklist of "(Mis)Fitting: A Survey of Scaling Laws", arXiv '
      '2502.18969.')]


def last_monitor(root: os.PathLike, run_ids: Iterable[str]) -> dict | None:
  """Returns a monitor record of one of some runs, or None."""
  # One record is enough: the conventions are the same for all runs.
  for run_id in run_ids:
    several = records.read(files.path(root) / run_id, 'monitor')
    if several:
      return several[-1]
  return None


def page(root: os.PathLike, sweep: records.Tables, title: str,
         own: Sequence[board.Point] = (), price: float = 0.) -> str:
  """Returns the report as one HTML text.

  Args:
    root, sweep, own: as for `sections`.
    title: of the page.
    price: of a chip-hour; 0 for none.
  """
  result = analysis.analyze(sweep, root, price)
  # A section without content leaves the page and its list of links.
  parts = [(name, body) for name, body in sections(root, result, sweep, own)
           if any(body)]
  # Links are numbers, so a title may have any character.
  nav = ' '.join(f'<a href="#s{i}">{html.escape(name)}</a>'
                 for i, (name, _) in enumerate(parts))
  body = ''.join(f'<h2 id="s{i}">{html.escape(name)}</h2>{"".join(inside)}'
                 for i, (name, inside) in enumerate(parts))
  lead = ''.join(f'<p>{html_parts.escaped(text)}</p>'
                 for text in wording.opening(result))
  rows = html_parts.escaped(wording.rows_used(result)[0])
  return html_parts.document(
      title, f'<div class="lead">{lead}</div><p class="small">{rows}</p>'
      f'<nav>{nav}</nav>{body}')


def heading(root: pathlib.Path) -> str:
  """Returns the sweep's title, or the folder's name."""
  return str(records.index(root).get('title', root.name))


def write(root: files.Path, points: Iterable[files.Path] = (),
          out: files.Path = '', price: float = 0.) -> pathlib.Path:
  """Rebuilds the report of a sweep from its records; returns its path.

  Args:
    root: the sweep's folder.
    points: files of encoders of others, see board.points.
    out: an .html file, or a folder for report.html; '' for the sweep's.
    price: of a chip-hour, for the price of what to scale next; 0 for none.

  Raises:
    FileNotFoundError: there are no runs under the root.
    ValueError: there are runs, but none with a record yet.
    OSError: the report cannot be written there; before any work.
  """
  folder, own = files.path(root), board.points(points)
  target = files.path(out or root)
  if target.suffix != '.html' or target.is_dir():
    target = target / 'report.html'
  files.check_writable(target)
  # Also writes the tables, which notebooks and commands read.
  sweep = records.collect(folder)
  if 'rank' not in sweep.runs or sweep.runs['rank'].isna().all():
    raise ValueError(f'{folder}: no run has a record yet: expected '
                     '<run_id>/records/*.json')
  files.write_text(target, page(folder, sweep, heading(folder), own,
                                price))
  return target
