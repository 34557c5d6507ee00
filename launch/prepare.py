"""Prepares sound files: python -m launch.prepare --audio DIR_OR_TAR --out DIR.

The same command goes on where it was stopped.
"""

import sys

from absl import flags

from launch import cli

_AUDIO = flags.DEFINE_string(
    'audio', None, 'Folder (any depth, tars in it included) or tar of sound.',
    required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder to write.', required=True)
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes; by default one per core.')
_PIECE_SECONDS = flags.DEFINE_float(
    'piece_seconds', 30.0, 'Longest record; longer files are cut equally.')
_MAX_HOURS = flags.DEFINE_float('max_hours', 12.0, 'Longer files are refused.')
_TIMEOUT = flags.DEFINE_float(
    'timeout', 60.0, 'Seconds without progress after which a file is given up.')
_MAX_MEMBERS = flags.DEFINE_integer(
    'max_members', 10**6, 'The most members that a tar may have.')
_MAX_UNPACKED_GB = flags.DEFINE_float(
    'max_unpacked_gb', 200.0, 'The most that compressed tars may unpack to.')


def main(argv):
  del argv
  from audiorank import prepare
  try:
    made = prepare.run(
        _AUDIO.value, _OUT.value, workers=_WORKERS.value,
        piece_seconds=_PIECE_SECONDS.value, max_hours=_MAX_HOURS.value,
        timeout=_TIMEOUT.value, max_members=_MAX_MEMBERS.value,
        max_unpacked_gb=_MAX_UNPACKED_GB.value)
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    sys.exit(130)
  refused = ', '.join(
      f'{n} {reason}' for reason, n in sorted(made['refused'].items()))
  print(f'{made["hours"]:.2f} h in {made["records"]} records of '
        f'{made["files"]} files from {made["sources"]} sources -> '
        f'{_OUT.value}; refused: '
        + (f'{refused} (see quarantine.jsonl)' if refused else 'none')
        + f'; passed over: {made["ignored"]} other files')


if __name__ == '__main__':
  cli.run(main)
