"""Rebuilds a sweep's report from its records alone.

  python -m launch.report --workdir=runs/quickstart
"""

from absl import flags

from launch import cli

_WORKDIR = flags.DEFINE_string('workdir', None, 'The sweep\'s folder.',
                               required=True)


def main(argv):
  del argv
  from audiorank import report
  print(report.write(_WORKDIR.value))


if __name__ == '__main__':
  cli.run(main)
