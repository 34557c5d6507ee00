"""Rebuilds a sweep's report from its records, or fits anybody's table.

  python -m launch.report --workdir=runs/quickstart
  python -m launch.report --workdir=/colleague/sweep --out=theirs.html
  python -m launch.report --root=runs/a --root=runs/b --out=both.html
  python -m launch.report --root=runs/quickstart --follow   while others work
  python -m launch.report --workdir=runs/quickstart --publish=tables
  python -m launch.report --workdir=runs/a --scores=runs/a_knn --publish=tables
  python -m launch.report --workdir=runs/quickstart --points=evaluations
  python -m launch.report --board=evaluations       one page of encoders
  python -m launch.report --table=runs.parquet      a sweep's claims and law
  python -m launch.report --table=runs.parquet --markdown --slopes=slopes.png
  python -m launch.report --table=runs.parquet --optimum=opt.lr   best learning
                                                    rate, and is it the same
                                                    at all sizes
  python -m launch.report --table=runs.parquet --check=README.md   whether a
                                                 page has these claims
  python -m launch.report --table=runs.csv --law=saturating --x=rank --y=score
  python -m launch.report --table=runs.csv --law=separable --x=params,hours
      --y=valid_loss --loss=log_huber --budgets=1e15,1e16
      --flops_per=3600 --amount=10
"""

import difflib
import sys
import tempfile
import time
from typing import Any

from absl import flags

from audiorank import files
from launch import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'The sweep\'s folder.')
_ROOT = flags.DEFINE_multi_string(
    'root', [], 'The same; of several, one report shows the runs of all.')
_OUT = flags.DEFINE_string(
    'out', '', 'An .html file or a folder for the report of --workdir, if that '
    'cannot be written; or the file of --board, board.html otherwise.')
_FOLLOW = flags.DEFINE_boolean(
    'follow', False, 'Write report.html of one sweep again and again until its '
    'runs are done: for workers that launch.sweep did not start.')
_PRICE = flags.DEFINE_float(
    'price', 0., 'Price of a chip-hour (of an hour of one worker on a CPU), '
    'for the price of what to scale next.', lower_bound=0.)
_PUBLISH = flags.DEFINE_string(
    'publish', None, 'Folder for its tables and versions, to be shown without '
    'the runs: what notebooks/figures and notebooks/small_study read.')
_SCORES = flags.DEFINE_multi_string(
    'scores', [], 'With --publish: the root of a sweep of the same runs that '
    'were scored by another protocol; the claims on slopes are then repeated '
    'with its scores.')
_POINTS = flags.DEFINE_list(
    'points', [], 'Encoders of others to show in the report: records of '
    'launch.evaluate (files or folders), or tables with name, rank and score.')
_BOARD = flags.DEFINE_list(
    'board', [], 'Records of launch.evaluate (files or folders) of which a '
    'page of encoders, tasks and layers is made.')
_TABLE = flags.DEFINE_string('table', None, 'A .csv or .parquet with a row a '
                             'run.')
_LAW = flags.DEFINE_string('law', 'saturating', 'A form of audiorank/laws.')
_X = flags.DEFINE_list('x', None, 'Input columns; the form\'s own otherwise.')
_Y = flags.DEFINE_string('y', None, 'Output column.')
_LOSS = flags.DEFINE_string('loss', 'ls', 'ls, huber, lad, log_ls, log_huber, '
                            'log_lad or logit_ls.')
_COMPARE = flags.DEFINE_list('compare', [], 'Other forms of the same inputs to '
                             'set beside the law, by errors on rows left out.')
_BUDGETS = flags.DEFINE_list('budgets', [], 'FLOPs whose best size and amount '
                             'of data to tell, for a law of two inputs.')
_FLOPS_PER = flags.DEFINE_float(
    'flops_per', 6., 'FLOPs of training a parameter on one unit of data.',
    lower_bound=0.)
_AMOUNT = flags.DEFINE_float('amount', None, 'Data whose bound on the size to '
                             'tell, for a law of two inputs.')
_OPTIMUM = flags.DEFINE_string(
    'optimum', None, 'A setting whose best value to tell for each of the other '
    'settings: a column of --table, or a field of the config such as opt.lr. '
    'By --y: valid_loss otherwise.')
_GROUPS = flags.DEFINE_string('groups', None, 'Column of what is independent.')
_FIGURE = flags.DEFINE_string('figure', None, 'Image of the fit, .png or '
                              '.pdf; of several inputs, predicted against '
                              'observed.')
_MARKDOWN = flags.DEFINE_boolean(
    'markdown', False, 'Print the claims of a sweep\'s table as a Markdown '
    'table, and nothing else.')
_CHECK = flags.DEFINE_string(
    'check', None, 'A page with the claims of a sweep\'s table, as --markdown '
    'prints them, between <!-- claims --> and <!-- /claims -->: prints the '
    'lines that differ, and then ends with exit code 1.')
_SLOPES = flags.DEFINE_string(
    'slopes', None, 'Image of what a doubling of RankMe is worth in a sweep\'s '
    'table, .png or .pdf.')


def frontier(fit: Any) -> str:
  """Returns the best size and amount of data at the budgets asked, as text.

  Args:
    fit: a laws.Fit of two inputs.
  """
  from audiorank import laws
  budgets = laws.table.numbers('--budgets', _BUDGETS.value)
  # Compute = FLOPS_PER x size x data: the data that a budget leaves a size.
  optimal = laws.scaling.frontier(
      fit, budgets, lambda C, N: C / (_FLOPS_PER.value * N),
      compute=f'{_FLOPS_PER.value:g} FLOPs per {fit.x[0]} and {fit.x[1]}')
  lines = [f'the best split, at {optimal.attrs["compute"]}; distance: decades '
           'beyond the data', optimal.to_string(
               index=False, float_format=lambda v: f'{v:.4g}')]
  for name, column in zip(('size', 'data'), fit.x):
    if f'{name}_exponent' in optimal.attrs:
      value, low, high = optimal.attrs[f'{name}_exponent']
      lines.append(f'{column} grow as C^{value:.3f} ({low:.3f} to {high:.3f})')
  return '\n'.join(lines)


def is_sweep(data: Any) -> bool:
  """Returns whether a table is a sweep's own, with its untrained networks."""
  # Any table may have a column `score`; only a sweep's has all of these.
  return {'run_id', 'untrained', 'rank', 'score', 'objective'} <= set(data)


def analyzed(data: Any) -> Any:
  """Returns the analysis of a sweep's runs: the report's own.

  Args:
    data: the table of runs. Those of evaluations and tasks are read beside it.
  """
  import pandas as pd

  from audiorank import analysis
  from audiorank import records
  path, none = files.path(_TABLE.value), pd.DataFrame()
  tables = records.Tables(data, none, none)
  # With the tables beside it more claims can be judged: training, tasks.
  if path.name == 'runs.parquet' and (
      path.parent / 'history.parquet').is_file():
    tables = records.load(path.parent)
  return analysis.analyze(tables)


def print_claims(result: Any) -> None:
  """Prints the claims of an analysis and draws their slopes where asked."""
  from audiorank import figures
  from audiorank.report import wording
  if _SLOPES.value:
    draw = figures.slopes(result.claims).figure
    draw.savefig(_SLOPES.value, dpi=150)
  # Nothing else is printed, so that the output can go into a file.
  if _MARKDOWN.value:
    print(wording.markdown(result.claims))
    return
  print('\n'.join(wording.opening(result)), '\n')
  print(wording.plain(result.claims), '\n')
  print('\n'.join(wording.rows_used(result)), '\n')
  if result.lacks:
    print(f'No law is fitted. Needed: {wording.needed_text(result.lacks)}.')


def check_page(result: Any, page: files.Path) -> None:
  """Compares the claims of an analysis with those that a page has.

  Raises:
    ValueError: the page is no text or has no claims.
    SystemExit: 1 if they differ; the lines are printed, the page's with a
      minus.
  """
  from audiorank.report import wording
  start, end = '<!-- claims -->', '<!-- /claims -->'
  try:
    text = files.path(page, '--check').read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{page}: not a text file: {error}') from error
  if text.count(start) != 1 or text.count(end) != 1:
    raise ValueError(f'{page}: expected one table between {start} and {end}')
  there = text.split(start)[1].split(end)[0].strip().splitlines()
  ours = wording.markdown(result.claims).splitlines()
  differ = [line for line in difflib.ndiff(there, ours)
            if line[:1] in '-+']
  if differ:
    print('\n'.join(differ))
    sys.exit(1)
  print(f'{len(result.claims)} claims: all as in {page}')


def print_law(data: Any, groups: str | None) -> None:
  """Fits a law to a table and prints all that was asked of it.

  Args:
    data: the table.
    groups: column of what is independent, or None.
  """
  from audiorank import laws
  columns = dict(loss=_LOSS.value, groups=groups, x=_X.value, y=_Y.value)
  fit = laws.fit(_LAW.value, data, **columns)
  print(fit.report())
  if _COMPARE.value:
    print('\nerrors on rows (groups) left out, the best first:')
    # The law itself is one of those compared.
    table = laws.compare([_LAW.value, *_COMPARE.value], data, **columns)
    print(table.drop(columns='formula').to_string(index=False))
  if _BUDGETS.value:
    print('\n' + frontier(fit))
  if _AMOUNT.value is not None:
    # The size from which on more parameters do not help.
    bound = laws.scaling.data_bound(fit, _AMOUNT.value)
    size = f'unknown size: {bound.refused}'
    if not bound.refused:
      size = f'{bound.size:.4g} ({bound.low:.4g} to {bound.high:.4g})'
    print(f'\n{_AMOUNT.value:g} {fit.x[1]} feed a {fit.x[0]} of {size}')
  print('\nchecklist: what a reader must be told (arXiv 2502.18969)')
  print(laws.checklist.words(laws.checklist.fill(fit)))
  if _FIGURE.value:
    from audiorank import figures
    # A law of several inputs has no curve in a plane.
    draw = figures.predicted_actual
    if len(fit.x) == 1:
      draw = figures.law
    draw(fit).figure.savefig(_FIGURE.value, dpi=150, bbox_inches='tight')
    print(_FIGURE.value)


def print_optima(data: Any) -> None:
  """Prints the best values of a setting, and whether sizes share one.

  Raises:
    ValueError: a setting or measure that the table lacks, or one value alone.
  """
  from audiorank.analysis import optima
  from audiorank.report import wording
  known = optima.read(data, _OPTIMUM.value, _Y.value or optima.MEASURE)
  if not len(known.table):
    raise ValueError(
        f'{_TABLE.value}: no trained runs that differ in {_OPTIMUM.value} '
        'alone: expected at least two values of it')
  print(wording.optima_table(known).to_string(index=False))
  print('\n'.join(['', *wording.optima_words(known)]))


def of_sweeps(roots: list[str]) -> None:
  """Writes the report of sweeps, and their tables where --publish asks."""
  from audiorank import records
  from audiorank import report
  # The joined sweep lies in it until its report is written.
  with tempfile.TemporaryDirectory() as folder:
    root = roots[0]
    if len(roots) > 1:
      if not _OUT.value:
        raise ValueError('--out=FILE: expected a file for the report of '
                         'several sweeps')
      root = str(records.joined(roots, folder))
    print(report.write(root, _POINTS.value, _OUT.value,
                       _PRICE.value))
    if _PUBLISH.value:
      records.publish(root, _PUBLISH.value, _SCORES.value)
      print(_PUBLISH.value)


def follow(root: str) -> None:
  """Writes the page of a sweep that others work on, until its runs are done.

  Raises:
    FileNotFoundError: there is no sweep.
  """
  from launch import overview
  from launch import run_queue
  board = run_queue.Board(files.path(root, '--root'))
  meter = overview.Meter(root, files.path(root).name)
  while board.left(run_queue.ROLES):
    meter.show(board)
    # A folder is cheap to look at; a bucket is asked as often as workers do.
    time.sleep(run_queue.WAIT)
    board.look()
  meter.close()


def main(argv: list[str]) -> None:
  """Rebuilds a report, or prints what a table shows."""
  del argv
  roots = [*filter(None, [_WORKDIR.value]), *_ROOT.value]
  if sum(map(bool, (roots, _TABLE.value, _BOARD.value))) != 1:
    raise ValueError('expected one of --workdir, --table and --board')
  if _POINTS.value and not roots:
    raise ValueError('--points needs --workdir, the sweep that they join')
  if _FOLLOW.value and (len(roots) != 1 or _OUT.value):
    raise ValueError('--follow needs the --root of one sweep, and no --out')
  if _OPTIMUM.value and not _TABLE.value:
    raise ValueError('--optimum needs --table, such as a sweep\'s '
                     'runs.parquet')
  if _SCORES.value and not _PUBLISH.value:
    raise ValueError('--scores needs --publish, the folder for the tables')
  if _CHECK.value and not _TABLE.value:
    raise ValueError('--check needs --table, a sweep\'s runs.parquet')
  if _OUT.value and _TABLE.value:
    raise ValueError('--out is for --workdir and --board')
  # Before any fit, so that a folder that is missing fails at once.
  for flag in (_FIGURE, _SLOPES):
    if flag.value:
      files.check_writable(flag.value, f'--{flag.name}')
  if _PUBLISH.value:
    files.check_writable(f'{_PUBLISH.value}/about.json', '--publish')
  if _BOARD.value:
    from audiorank.report import board
    out = _OUT.value or 'board.html'
    files.check_writable(out, '--out')
    print(board.write(_BOARD.value, out))
    return
  if _FOLLOW.value:
    follow(roots[0])
  if roots:
    of_sweeps(roots)
    return
  from audiorank import laws
  data, groups = laws.table.read(_TABLE.value), _GROUPS.value or None
  if _OPTIMUM.value:
    print_optima(data)
    return
  if not is_sweep(data):
    if _MARKDOWN.value or _SLOPES.value or _CHECK.value:
      raise ValueError(f'{_TABLE.value}: no sweep\'s table: --markdown, '
                       '--check and --slopes need run_id, untrained, rank, '
                       'score and objective')
    print_law(data, groups)
    return
  from audiorank.analysis import study
  result = analyzed(data)
  if _CHECK.value:
    check_page(result, _CHECK.value)
    return
  print_claims(result)
  # A law goes through the runs above their baseline, as in the report.
  if (result.fit or _X.value) and not _MARKDOWN.value:
    # Runs of one configuration are not independent of each other.
    print_law(study.above_baseline(result.study.trained),
              groups or 'configuration')


if __name__ == '__main__':
  cli.run(main)
