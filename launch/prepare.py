"""Prepares sound files: python -m launch.prepare --audio=INPUT --out=DIR.

INPUT is a folder (searched to any depth, with the tars and parquet files in
it), a tar or a parquet file, on a disk or on gs://. If it is interrupted, run
the same command again to resume. Recipes for public datasets:
audiorank/prepare/README.md.
"""

import shlex
import sys

from absl import flags

from launch import cli

_AUDIO = flags.DEFINE_string(
    'audio', None, 'Folder (searched to any depth, with its tars and parquet '
    'files), tar or parquet file; local or gs://.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder to write; local or gs://.',
                           required=True)
_STORE = flags.DEFINE_enum(
    'store', 'int16', ['int16', 'flac', 'opus', 'none'],
    'How records are stored; none: the files are checked, and later read in '
    'place.')
_MANIFEST = flags.DEFINE_string(
    'manifest', None, 'Table with the recording of each file; by default '
    'manifest.csv of the input folder.')
_FILE_COLUMN = flags.DEFINE_string(
    'file_column', '', 'Its column of file names; by default file, path, ...')
_SOURCE_COLUMN = flags.DEFINE_string(
    'source_column', '', 'Its column of recordings; by default source.')
_SOURCE_PATTERN = flags.DEFINE_string(
    'source_pattern', '', 'Regular expression that finds the recording in a '
    'file\'s name; a table then only sets categories.')
_WORKERS = flags.DEFINE_integer(
    'workers', None, 'Processes; by default one per core.')
_PIECE_SECONDS = flags.DEFINE_float(
    'piece_seconds', 30.0, 'Longest record; longer files are cut into equal '
    'parts.')
_MIN_SECONDS = flags.DEFINE_float(
    'min_seconds', .04, 'Shorter files are refused.')
_MAX_HOURS = flags.DEFINE_float('max_hours', 12.0, 'Longer files are refused.')
_TIMEOUT = flags.DEFINE_float(
    'timeout', 60.0, 'Seconds without progress after which a file is refused.')
_MAX_MEMBERS = flags.DEFINE_integer(
    'max_members', 10**6, 'The most members that a tar may have.')
_MAX_UNPACKED_GB = flags.DEFINE_float(
    'max_unpacked_gb', 200.0, 'The most that compressed tars may unpack to.')


def main(argv: list[str]) -> None:
  del argv
  # Imported late, so that --help need not wait.
  from audiorank import prepare
  from audiorank.prepare import summary
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
  # 130 is the shell's code for SIGINT.
  except KeyboardInterrupt:
    print('stopped; run the same command again to resume', file=sys.stderr)
    sys.exit(130)
  for line in summary.lines(about):
    print(line)
  # Quoted, so that the line can be pasted into a shell.
  print('next: python -m launch.sweep --config=configs/quickstart.py '
        f'--config.data.root={shlex.quote(_OUT.value)} '
        '--config.eval.tasks=TASKS --root=SWEEP '
        '(TASKS: a folder of HEAR task folders; SWEEP: a new folder)')
  # Last, so that it is not overlooked.
  if attention := summary.attention(about):
    print(attention)


if __name__ == '__main__':
  cli.run(main)
