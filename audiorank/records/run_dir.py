"""The folder of one run: its config, its records, its state.

  config.json                 the config
  records/<kind>-<step>.json  one result each
  metrics.jsonl               rows of training metrics
  checkpoints/                see checkpoint.py
  LEASE                       the lock, see lock.py
  TRAINED, DONE, FAILED       an empty file or a message: the state
  PAUSED, HALVED              the same, of a sweep that stops runs early
"""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

from absl import logging
from ml_collections import config_dict

from audiorank import config as config_lib
from audiorank import files
from audiorank.records import lock as lock_lib

# Fields of records and rows that differ between two runs of the same config.
TIMES = ('seconds', 'started', 'host', 'rate', 'waiting', 'clips_per_second',
         'tflops', 'encoder_tflops', 'mfu', 'memory', 'unverified', 'verified')


DIGEST = 'digest'  # The field of a record with the digest of the others.
# Fields of rows of metrics that are no numbers, and the largest number.
TEXTS = ('alarms', 'clips', 'why')
LARGEST = 1e300


def open_run(workdir: files.Path, config: Any) -> None:
  """Creates or checks a run's folder.

  If the folder has the same run with other settings, its config.json is
  rewritten. If the settings are those of the evaluation, DONE becomes TRAINED:
  then missing tasks are scored and nothing is trained again.

  Args:
    workdir: the folder.
    config: of the run; its files are named absolutely here, and relative to
      the folder's parent in config.json.

  Raises:
    ValueError: the folder belongs to another run; names both. Or the run is
      on a bucket and its files are not.
    LockHeld: a live process works on it with other settings.
  """
  folder = files.path(workdir)
  target = folder / 'config.json'
  ours = config_lib.plain(config)
  written = config_lib.portable(ours, folder.parent)
  try:
    theirs = config_tree(folder)
  except FileNotFoundError:
    check_own(folder)
    files.write_json(target, written)
    return
  # Compared by identity: settings of the evaluation and paths may differ.
  there, here = config_lib.run_id(theirs), config_lib.run_id(ours)
  if there != here:
    field = config_lib.difference(config_lib.identity(theirs),
                                  config_lib.identity(ours))
    raise ValueError(
        f'{folder}: holds run {there}, this config is run {here} ({field}): '
        'expected the same config or an empty folder')
  # With absolute paths on both sides, since a folder may have been moved.
  theirs = config_lib.located(config_lib.complete(theirs), folder.parent)
  ours = config_lib.complete(config_lib.located(written, folder.parent))
  if theirs == ours:
    return
  # Under the lock: a worker reads its config once, and would mark the run as
  # DONE under settings that it did not use.
  lock = lock_lib.Lock(folder)
  try:
    done = folder / 'DONE'
    if not same_evaluation(theirs['eval'], ours['eval']) and done.exists():
      done.replace(folder / 'TRAINED')
    files.write_json(target, written)
  finally:
    lock.release()


def check_own(folder: pathlib.Path) -> None:
  """Raises ValueError for a folder without a config that is no new run's.

  Old checkpoints of a run are deleted. Those of another program must not be
  taken for them because of their name.
  """
  others = sorted(files.names(folder) & {
      'checkpoints', 'records', 'damaged', 'metrics.jsonl', 'DONE', 'TRAINED'})
  if others:
    raise ValueError(f'{folder}: has {others[0]} but no config.json: expected '
                     'the folder of a run, or a new one')


def same_evaluation(theirs: config_lib.Tree, ours: config_lib.Tree) -> bool:
  """Returns whether two eval parts score alike: tasks of one checksum are the
  same wherever they lie. Older versions wrote none."""
  leave = {'sha256'}
  if theirs.get('sha256') and ours.get('sha256'):
    if theirs['sha256'] != ours['sha256']:
      return False
    leave.add('tasks')
  return all(theirs.get(name) == ours.get(name)
             for name in {*theirs, *ours} - leave)


def load_config(workdir: files.Path, places: Mapping[str, str] | None = None
                ) -> config_dict.FrozenConfigDict:
  """Returns the frozen config of a run's folder, files named absolutely.

  Args:
    workdir: the folder.
    places: {field: path} of files that lie elsewhere now: 'data.root',
      'eval.tasks'.

  Raises:
    FileNotFoundError, ValueError: as `config_tree`.
  """
  tree = config_lib.complete(config_tree(workdir))
  return config_lib.frozen(config_lib.located(
      tree, files.path(workdir).parent, places))


def config_tree(workdir: files.Path) -> config_lib.Tree:
  """Returns the config of a run's folder as it was written.

  Raises:
    FileNotFoundError: the folder has no config; names the file.
    ValueError: the file is no config; names the missing part.
  """
  source = files.path(workdir) / 'config.json'
  try:
    tree = files.read_json(source)
  except (FileNotFoundError, NotADirectoryError):
    raise FileNotFoundError(f'{source}: no such file: expected the folder of a '
                            'run') from None
  # Any JSON file may be called config.json.
  for part in config_lib.PARTS:
    if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
      raise ValueError(f'{source}: not the config of a run: no {part!r} in it')
  return tree


def path(workdir: files.Path, kind: str, step: int) -> pathlib.Path:
  """Returns the path of the record of (kind, step)."""
  # Padded, so that names sort like steps.
  return files.path(workdir) / 'records' / f'{kind}-{step:08d}.json'


def write(workdir: files.Path, kind: str, step: int, fields: dict[str, Any]
          ) -> None:
  """Writes one result; it replaces an earlier one of the same (kind, step).

  The file also has the digest of the result, so that a flipped bit shows.
  """
  # The tree as JSON gives it back: keys are strings, NaN is null.
  tree = json.loads(files.json_text({'kind': kind, 'step': step, **fields}))
  files.write_json(path(workdir, kind, step),
                   {**tree, DIGEST: files.digest(tree)})


def read_record(source: files.Path) -> dict[str, Any]:
  """Returns the record in a file, without its digest.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not a record, not the one of its name, or not what was
      written; names the file. Records of older versions have no digest.
  """
  return parse_record(files.read_regular(source), files.path(source))


def parse_record(data: bytes, source: pathlib.Path) -> dict[str, Any]:
  """Returns the record in the bytes of a file; see `read_record`."""
  tree = files.parse_json(data, source)
  kind: Any = ''
  step: Any = -1
  if isinstance(tree, dict):
    kind, step = tree.get('kind'), tree.get('step')
  # The very type, as True is an int to isinstance.
  if not isinstance(kind, str) or type(step) is not int or (
      path('', kind, step).name != source.name):
    raise ValueError(f'{source}: not a record of that kind and step')
  digest = tree.pop(DIGEST, None)
  if digest is not None and digest != digest_of(tree):
    raise ValueError(f'{source}: damaged or edited: not what was written '
                     f'({DIGEST})')
  return tree


def read(workdir: files.Path, kind: str | None = None
         ) -> list[dict[str, Any]]:
  """Returns the records of a run, in the order of kind and step.

  Args:
    workdir: the run's folder.
    kind: of the records; None returns all.

  Raises:
    ValueError: a record that is damaged; names it.
  """
  folder = files.path(workdir) / 'records'
  sources = [folder / name for name in sorted(files.names(folder))
             if name.endswith('.json') and not name.startswith('.')
             and (kind is None or name.startswith(f'{kind}-'))]
  return [parse_record(data, source)
          for source, data in zip(sources, files.read_many(sources))]


def digest_of(tree: Any) -> str:
  """Returns files.digest of a record; '' of one that JSON cannot hold."""
  try:
    return files.digest(tree)
  except ValueError:  # NaN, which no record has.
    return ''


def read_whole(workdir: files.Path, kind: str) -> list[dict[str, Any]]:
  """Returns the records of a kind, as `read`, without damaged ones.

  A warning names each that is left out.
  """
  folder, out = files.path(workdir) / 'records', []
  for name in sorted(files.names(folder)):
    if name.startswith(f'{kind}-') and name.endswith('.json'):
      try:
        out.append(read_record(folder / name))
      except (ValueError, OSError) as error:
        logging.warning('%s; it is left out', error)
  return out


def metric_rows(workdir: files.Path) -> list[dict[str, Any]]:
  """Returns the rows of a run's metrics.jsonl; none if there is no such file.

  Damaged lines are left out; a warning says how many. A process that was
  killed leaves half a line at the end, which is none.
  """
  source = files.path(workdir) / 'metrics.jsonl'
  try:
    data = files.read_regular(source)
  except FileNotFoundError:
    return []
  lines = data[:data.rfind(b'\n') + 1].splitlines()
  rows = [row for row in map(metric_row, lines) if row is not None]
  if len(rows) < len(lines):
    logging.warning('%s: %d of %d lines are damaged: they are left out',
                    source, len(lines) - len(rows), len(lines))
  return rows


def metric_row(line: bytes) -> dict[str, Any] | None:
  """Returns the row of metrics in a line, or None if it is damaged."""
  try:
    row = files.parse_json(line, '')
  except ValueError:
    return None
  if not isinstance(row, dict) or type(row.get('step')) is not int:
    return None
  for name, value in row.items():
    # Rows of skipped steps and of evaluations also have texts.
    number = type(value) in (int, float) and abs(value) < LARGEST
    if not (number or value is None or name in TEXTS):
      return None
  return row


def cut_metrics(workdir: files.Path, step: int) -> None:
  """Drops the rows of metrics.jsonl after a step, and a half-written one.

  The step's own evaluation, a row with a rank, is dropped as well.
  """
  target = files.path(workdir) / 'metrics.jsonl'
  if not target.exists():
    return
  # A run that resumes at a step saves, then evaluates, then goes on. So it
  # writes the evaluation of that step and all later rows again.
  rows = [row for row in metric_rows(workdir) if row['step'] < step or
          row['step'] == step and 'rank' not in row]
  files.write_text(target, ''.join(map(files.json_line, rows)))


def state(workdir: files.Path) -> str:
  """Returns the state of a run.

  'done', 'failed', 'halved' (stopped early, see launch/halving.py), 'paused'
  (waits for that decision), 'trained' (not scored), 'started' or 'new'.
  """
  folder = files.path(workdir)
  there = files.names(folder)
  # In the order of what counts: a run that is done may also have TRAINED.
  for name in ('DONE', 'FAILED', 'TRAINED', 'HALVED', 'PAUSED'):
    if name in there:
      return name.lower()
  # A released lock leaves an empty file, which reads as {}.
  if 'checkpoints' in there or ('LEASE' in there and lock_lib.read(folder)):
    return 'started'
  return 'new'
