"""Rebuilds a sweep's report from its records, or fits anybody's table.

  python -m launch.report --workdir=runs/quickstart
  python -m launch.report --table=runs.csv --law=saturating --x=rank --y=score
"""

from absl import flags

from launch import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'The sweep\'s folder.')
_TABLE = flags.DEFINE_string('table', None, 'A .csv or .parquet with a row a '
                             'run.')
_LAW = flags.DEFINE_string('law', 'saturating', 'A form of audiorank/laws.')
_X = flags.DEFINE_list('x', None, 'Input columns; the form\'s own otherwise.')
_Y = flags.DEFINE_string('y', None, 'Output column.')
_LOSS = flags.DEFINE_string('loss', 'ls', 'ls, huber, lad, log_ls, log_huber, '
                            'log_lad or logit_ls.')
_GROUPS = flags.DEFINE_string('groups', None, 'Column of what is independent.')
_FIGURE = flags.DEFINE_string('figure', None, 'Image of the fit, .png or '
                              '.pdf; of several inputs, predicted against '
                              'observed.')


def main(argv):
  del argv
  if bool(_WORKDIR.value) == bool(_TABLE.value):
    raise ValueError('expected --workdir or --table')
  if _WORKDIR.value:
    from audiorank import report
    print(report.write(_WORKDIR.value))
    return
  from audiorank import laws
  from audiorank.laws import table
  fit = laws.fit(_LAW.value, table.read(_TABLE.value), loss=_LOSS.value,
                 groups=_GROUPS.value or None, x=_X.value, y=_Y.value)
  print(fit.report())
  print('\nchecklist: what a reader must be told (arXiv 2502.18969)')
  print(laws.checklist.words(laws.checklist.fill(fit)))
  if _FIGURE.value:
    from audiorank import figures
    draw = figures.law if len(fit.x) == 1 else figures.predicted_actual
    draw(fit).figure.savefig(_FIGURE.value, dpi=150, bbox_inches='tight')
    print(_FIGURE.value)


if __name__ == '__main__':
  cli.run(main)
