"""Prepares sound files: python -m launch.prepare --audio=INPUT --out=DIR.

INPUT is a folder (any depth; tars and parquet in it are read too), a tar or a
parquet file. The same command goes on where it was stopped. Recipes for public
sets: audiorank/prepare/README.md.
"""

import sys

from absl import flags

from launch import cli

_AUDIO = flags.DEFINE_string(
    'audio', None, 'Folder (any depth, tars and parquet in it included), tar '
    'or parquet file.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder to write.', required=True)
_STORE = flags.DEFINE_enum(
    'store', 'int16', ['int16', 'flac', 'opus', 'none'],
    'How records are kept; none: the files are checked, and read where they '
    'are.')
_MANIFEST = flags.DEFINE_string(
    'manifest', None, 'Table of which recording each file is of; by default '
    'manifest.csv of the input folder.')
_FILE_COLUMN = flags.DEFINE_string(
    'file_column', '', 'Its column of file names; by default file, path, ...')
_SOURCE_COLUMN = flags.DEFINE_string(
    'source_column', '', 'Its column of recordings; by default source.')
_SOURCE_PATTERN = flags.DEFINE_string(
    'source_pattern', '', 'Regular expression that finds the recording in a '
    'file\'s name, in place of a table.')
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes; by default one per core.')
_PIECE_SECONDS = flags.DEFINE_float(
    'piece_seconds', 30.0, 'Longest record; longer files are cut equally.')
_MIN_SECONDS = flags.DEFINE_float(
    'min_seconds', .04, 'Shorter files are refused.')
_MAX_HOURS = flags.DEFINE_float('max_hours', 12.0, 'Longer files are refused.')
_TIMEOUT = flags.DEFINE_float(
    'timeout', 60.0, 'Seconds without progress after which a file is given up.')
_MAX_MEMBERS = flags.DEFINE_integer(
    'max_members', 10**6, 'The most members that a tar may have.')
_MAX_UNPACKED_GB = flags.DEFINE_float(
    'max_unpacked_gb', 200.0, 'The most that compressed tars may unpack to.')


def main(argv: list[str]) -> None:
  del argv
  from audiorank import prepare
  from audiorank.prepare import summary
  # A path may hold what the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    about = prepare.run(
        _AUDIO.value, _OUT.value, workers=_WORKERS.value,
        piece_seconds=_PIECE_SECONDS.value, max_hours=_MAX_HOURS.value,
        timeout=_TIMEOUT.value, max_members=_MAX_MEMBERS.value,
        max_unpacked_gb=_MAX_UNPACKED_GB.value,
        min_seconds=_MIN_SECONDS.value, store=_STORE.value,
        manifest=_MANIFEST.value, file_column=_FILE_COLUMN.value,
        source_column=_SOURCE_COLUMN.value,
        source_pattern=_SOURCE_PATTERN.value)
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    sys.exit(130)
  for line in summary.lines(about):
    print(line)
  print(f'next: python -m launch.sweep --config=configs/quickstart.py '
        f'--config.data.root={_OUT.value} --root=SWEEP')
  # At the end, where it is seen.
  if attention := summary.attention(about):
    print(attention)


if __name__ == '__main__':
  cli.run(main)
