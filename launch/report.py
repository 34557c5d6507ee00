"""Rebuilds a sweep's report from its records, or fits anybody's table.

  python -m launch.report --workdir=runs/quickstart
  python -m launch.report --workdir=runs/quickstart --publish=tables
  python -m launch.report --table=runs.parquet      a sweep's claims and law
  python -m launch.report --table=runs.csv --law=saturating --x=rank --y=score
  python -m launch.report --table=runs.csv --law=separable --x=params,hours
      --y=valid_loss --loss=log_huber --budgets=1e15,1e16
      --flops_per=3600 --amount=10
"""

from absl import flags

from launch import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'The sweep\'s folder.')
_PUBLISH = flags.DEFINE_string(
    'publish', None, 'Folder for its tables and versions, to be shown without '
    'the runs: what notebooks/figures and notebooks/small_study read.')
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
_GROUPS = flags.DEFINE_string('groups', None, 'Column of what is independent.')
_FIGURE = flags.DEFINE_string('figure', None, 'Image of the fit, .png or '
                              '.pdf; of several inputs, predicted against '
                              'observed.')


def frontier(fit):
  """Returns the best size and amount of data at the budgets asked, as text."""
  from audiorank import laws
  budgets = laws.table.numbers('--budgets', _BUDGETS.value)
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


def is_sweep(data):
  """Returns whether a table is a sweep's own, with its untrained networks."""
  return {'run_id', 'untrained', 'rank', 'score', 'objective'} <= set(data)


def claims(data):
  """Prints the claims of a sweep's runs; returns the rows of its law.

  They are the report's: different trainings of the main objective that beat
  their untrained network.
  """
  import pandas as pd

  from audiorank import analysis
  from audiorank import files
  from audiorank import records
  from audiorank.analysis import study
  from audiorank.report import wording
  path, none = files.path(_TABLE.value), pd.DataFrame()
  tables = records.Tables(data, none, none)
  if path.name == 'runs.parquet' and (
      path.parent / 'history.parquet').is_file():
    tables = records.load(path.parent)
  it = analysis.analyze(tables)
  print('\n'.join(wording.opening(it)), '\n')
  print(wording.plain(it.claims), '\n')
  print('\n'.join(wording.rows_used(it)), '\n')
  if it.lacks:
    raise ValueError(f'{_TABLE.value}: no law is fitted; needed: '
                     f'{wording.needed_text(it.lacks)}')
  return study.beating(it.study.trained)


def main(argv):
  del argv
  if bool(_WORKDIR.value) == bool(_TABLE.value):
    raise ValueError('expected --workdir or --table')
  if _WORKDIR.value:
    from audiorank import report
    print(report.write(_WORKDIR.value))
    if _PUBLISH.value:
      from audiorank import records
      records.publish(_WORKDIR.value, _PUBLISH.value)
      print(_PUBLISH.value)
    return
  from audiorank import laws
  data, groups = laws.table.read(_TABLE.value), _GROUPS.value or None
  if is_sweep(data):
    data = claims(data)
    groups = groups or 'configuration'
  fit = laws.fit(_LAW.value, data, loss=_LOSS.value, groups=groups,
                 x=_X.value, y=_Y.value)
  print(fit.report())
  if _COMPARE.value:
    print('\nerrors on rows (groups) left out, the best first:')
    table = laws.compare([_LAW.value, *_COMPARE.value], data,
                         loss=_LOSS.value, groups=groups, x=_X.value,
                         y=_Y.value)
    print(table.drop(columns='formula').to_string(index=False))
  if _BUDGETS.value:
    print('\n' + frontier(fit))
  if _AMOUNT.value is not None:
    bound = laws.scaling.data_bound(fit, _AMOUNT.value)
    print(f'\n{_AMOUNT.value:g} {fit.x[1]} feed a {fit.x[0]} of ' + (
        f'{bound.size:.4g} ({bound.low:.4g} to {bound.high:.4g})'
        if not bound.refused else f'unknown size: {bound.refused}'))
  print('\nchecklist: what a reader must be told (arXiv 2502.18969)')
  print(laws.checklist.words(laws.checklist.fill(fit)))
  if _FIGURE.value:
    from audiorank import figures
    draw = figures.law if len(fit.x) == 1 else figures.predicted_actual
    draw(fit).figure.savefig(_FIGURE.value, dpi=150, bbox_inches='tight')
    print(_FIGURE.value)


if __name__ == '__main__':
  cli.run(main)
