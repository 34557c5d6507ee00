"""Reads HEAR task folders: clips, splits, labels and measures.

A task is a folder `<name>-<version>-<mode>/` with task_metadata.json,
labelvocabulary.csv, one <split>.json per split and the clips in
<rate>/<split>/. This is the layout of hear-preprocess (arXiv 2203.03022).

Shapes: N clips of a split, C labels of the vocabulary, S samples, L frames.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import hashlib
import io
import json
import pathlib
import random
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank import config as config_lib
from audiorank import decode
from audiorank import files

METADATA = 'task_metadata.json'
VOCABULARY = 'labelvocabulary.csv'
# Optional, with the columns file and group: the origin of each clip.
PROVENANCE = 'provenance.csv'
SPLIT_MODES = ('trainvaltest', 'presplit_kfold', 'new_split_kfold')
# A clip that is called x.wav in the split file may also be compressed, with the
# same stem. WAV is preferred if both exist.
SUFFIXES = ('.wav', '.flac', '.ogg', '.opus')
BLOCK = 64  # Clips on a bucket that are read at once.
# How far a clip's length may be from sample_duration, as a share of it.
LENGTH_SLACK = .1
LONGEST = 1e9  # Seconds or milliseconds that no clip has.
# hear-eval-kit extends the half-open interval [start, end) of an event by so
# many milliseconds, so that it includes the end.
END_SLACK_MS = 1e-4


class Task(NamedTuple):
  """One task. Dictionaries are keyed by split, in the metadata's order."""
  name: str
  folder: pathlib.Path
  metadata: dict
  embedding_type: str  # 'scene' or 'event'.
  prediction_type: str  # 'multiclass' or 'multilabel'.
  split_mode: str  # One of SPLIT_MODES.
  splits: tuple[str, ...]
  labels: tuple[str, ...]  # In the order of the vocabulary.
  files: dict[str, tuple[str, ...]]  # Names of clips, in hear-eval-kit's order.
  targets: dict[str, Any]  # Scene: y_NC uint8; event: the events of each file.
  paths: dict[str, tuple[pathlib.Path, ...]]  # Of the clips, in this order.
  rate: int  # Hz.
  sample_duration: float | None  # Seconds; None if clips differ.
  evaluation: tuple[str, ...]  # Names of measures; the first is the primary.
  # The group of each clip, such as its recording, speaker or drum kit. None if
  # the task has no such table.
  groups: dict[str, tuple[str, ...]] | None = None

  @property
  def kfold(self) -> bool:
    """Whether every fold is tested once, instead of a single test split."""
    return self.split_mode != 'trainvaltest'


def load(task_dir: files.Path, rate: int = config_lib.RATE,
         with_audio: bool = True) -> Task:
  """Reads a task.

  Args:
    task_dir: its folder.
    rate: of the clips, Hz.
    with_audio: whether the clips must exist. Without them `paths` is empty; a
      folder of embeddings by hear-eval-kit describes its task but has no clips.

  Returns:
    the task. `targets[split]` of a scene task is y_NC (uint8, one column per
    label). Of an event task it is a tuple with the events of each file,
    dictionaries of label (string), start and end (milliseconds).

  Raises:
    FileNotFoundError: a file is missing; names it.
    ValueError: contents that do not fit together, or a split in which all
      clips have the same labels; names the file.
  """
  folder = files.path(task_dir)
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder}: no such task folder')
  fields = _metadata(folder)
  labels = _vocabulary(folder / VOCABULARY)
  # The order of clips is that of hear-eval-kit: one generator per task shuffles
  # the names of every split in turn. It is part of the protocol, because the
  # kit does not shuffle training batches.
  order = random.Random(0)
  names_of: dict[str, tuple[str, ...]] = {}
  targets: dict[str, Any] = {}
  paths: dict[str, tuple[pathlib.Path, ...]] = {}
  for split in fields['splits']:
    described = folder / f'{split}.json'
    entries = _json(described, dict)
    if not entries:
      raise ValueError(f'{described}: no clips')
    names = list(entries)
    order.shuffle(names)
    names_of[split] = tuple(names)
    if with_audio:
      paths[split] = _paths(folder / str(rate) / split, names, described)
    if fields['embedding_type'] == 'scene':
      targets[split] = _scene_targets(described, names, entries, labels,
                                      fields['prediction_type'])
      _check_classes(described, targets[split], labels)
    else:
      targets[split] = tuple(
          _events(described, name, entries[name], labels,
                  fields['sample_duration']) for name in names)
      if not any(targets[split]):
        raise ValueError(f'{described}: no event in {len(names)} clips: '
                         'expected some')
  return Task(name=folder.resolve().name, folder=folder, labels=labels,
              files=names_of, targets=targets, paths=paths, rate=rate,
              groups=_groups(folder / PROVENANCE, names_of), **fields)


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the fields of a Task that come from its metadata.

  Raises:
    FileNotFoundError, ValueError: there is none, or a field is wrong.
  """
  path = folder / METADATA
  metadata = _json(path, dict)
  field = lambda name, among=None: _field(path, metadata, name, among)
  out = {'metadata': metadata,
         'embedding_type': field('embedding_type', ('scene', 'event')),
         'prediction_type': field('prediction_type',
                                  ('multiclass', 'multilabel')),
         'split_mode': field('split_mode', SPLIT_MODES),
         'splits': _names(path, 'splits', field('splits')),
         'evaluation': _names(path, 'evaluation', field('evaluation')),
         'sample_duration': field('sample_duration')}
  if not out['evaluation']:
    raise ValueError(f'{path}: evaluation names no score')
  for split in out['splits']:
    # A split is a folder's name; '../x' must not lead out of the task.
    if pathlib.PurePath(split).name != split:
      raise ValueError(f'{path}: splits: {split!r} is no name of a folder')
  if (out['embedding_type'], out['prediction_type']) == ('event', 'multiclass'):
    raise ValueError(f"{path}: event tasks are multilabel, found "
                     "prediction_type 'multiclass'")
  splits = out['splits']
  if out['split_mode'] == 'trainvaltest':
    if sorted(splits) != ['test', 'train', 'valid']:
      raise ValueError(f'{path}: split_mode trainvaltest wants splits train, '
                       f'valid, test, found {list(splits)}')
  elif len(splits) < 3 or len(set(splits)) < len(splits):
    raise ValueError(f'{path}: split_mode {out["split_mode"]} wants 3 or more '
                     f'distinct folds, found {list(splits)}')
  seconds = out['sample_duration']
  if seconds is not None:
    if not (_is_number(seconds) and 0 < seconds < LONGEST):
      raise ValueError(f'{path}: sample_duration is {seconds!r}, expected '
                       'seconds or null')
    out['sample_duration'] = float(seconds)
  return out


def _names(path: pathlib.Path, field: str, value: Any) -> tuple[str, ...]:
  """Returns a field of the metadata that is a list of names.

  Raises:
    ValueError: it is something else.
  """
  if not isinstance(value, list) or not all(
      isinstance(name, str) and name for name in value):
    raise ValueError(f'{path}: {field} is {value!r}, expected a list of names')
  return tuple(value)


def _is_number(value: Any) -> bool:
  """Returns whether a value of a JSON file is a finite number."""
  # Not isinstance: a bool is an int to it. NaN fails both comparisons.
  return type(value) in (int, float) and -LONGEST < value < LONGEST


def find(root: files.Path) -> list[pathlib.Path]:
  """Returns the sorted task folders in `root` or `root`/tasks.

  Args:
    root: folder of tasks, or a single task.

  Raises:
    FileNotFoundError: there is no task, or a folder has a task's vocabulary but
      not its metadata.
  """
  root = files.path(root)
  if not root.is_dir():
    raise FileNotFoundError(f'{root}: no such folder of tasks')
  if (root / METADATA).is_file():
    return [root]
  for parent in (root, root / 'tasks'):
    # Other folders may be beside the tasks, such as a corpus. But a damaged
    # task must not be left out, which would change the mean score.
    folders = sorted(path.parent for path in parent.glob(f'*/{METADATA}'))
    for path in sorted(parent.glob(f'*/{VOCABULARY}')):
      if path.parent not in folders:
        raise FileNotFoundError(f'{path.parent / METADATA}: no such file, '
                                f'but a {VOCABULARY} beside it')
    if folders:
      return folders
  raise FileNotFoundError(
      f'{root}: no task here, expected folders with a {METADATA}')


def checksum(folders: Iterable[files.Path]) -> str:
  """Returns 12 hex digits of what describes some tasks: their names, labels,
  splits and measures. No clip is opened."""
  described = []
  for folder in map(files.path, folders):
    names = sorted(name for name in files.names(folder)
                   if name.endswith(('.json', '.csv')))
    contents = files.read_many(folder / name for name in names)
    described.append([folder.resolve().name, [
        [name, hashlib.sha256(data).hexdigest()]
        for name, data in zip(names, contents)]])
  # In the order of names, whatever the order of the arguments.
  return files.digest(sorted(described))


def audio(task: Task, split: str) -> Iterator[tuple[str, np.ndarray]]:
  """Iterates over (file, wave_S) of a split, in the order of `task.files`.

  Args:
    task: from `load`.
    split: of the task.

  Yields:
    the name of a clip, and wave_S float32 in [-1, 1].

  Raises:
    ValueError: a clip that `launch.prepare` would refuse as well (cut off,
      damaged, ...: see decode.read), or that is not mono at the task's rate;
      names the file.
  """
  for name, path, source in zip(task.files[split], task.paths[split],
                                _sources(task.paths[split])):
    # Filled by decode.blocks while it is read.
    about: dict[str, Any] = {}
    try:
      parts = list(decode.blocks(source, task.rate, about=about))
    except ValueError as error:
      # The bytes of an object have no name, so the path is added.
      if str(path) in str(error):
        raise
      raise ValueError(f'{path}: {error}') from error
    if about['rate'] != task.rate or about['channels'] != 1 or not parts:
      raise ValueError(
          f'{path}: {about["rate"]} Hz, {about["channels"]} channels, '
          f'{about["seconds"]:g} s; expected mono at {task.rate} Hz, not empty')
    yield name, np.concatenate(parts)


def other_lengths(task: Task, split: str,
                  samples: Sequence[int]) -> list[str]:
  """Returns the files of a split that are not as long as the task says.

  hear-preprocess cuts or pads every clip of a task to its sample_duration; a
  codec may add or lose some milliseconds.

  Args:
    task, split: of the clips.
    samples: of each clip, at the task's rate.
  """
  if task.sample_duration is None:
    return []
  seconds = task.sample_duration
  return [name for name, count in zip(task.files[split], samples)
          if abs(count / task.rate - seconds) > LENGTH_SLACK * seconds]


def _sources(paths: Sequence[pathlib.Path]) -> Iterator[Any]:
  """Yields for each path what libsndfile can open: the path, or its bytes."""
  # Many objects of a bucket are read at once, because each takes long.
  for begin in range(0, len(paths), BLOCK):
    block = paths[begin:begin + BLOCK]
    if files.is_on_bucket(block[0]):
      yield from map(io.BytesIO, files.read_many(block))
    else:
      yield from block


def frame_targets(events: Iterable[Mapping[str, Any]], labels: Sequence[str],
                  ms_L: np.ndarray) -> np.ndarray:
  """Returns y_LC (uint8): which labels are active at each time of one file.

  Args:
    events: dictionaries of label, start and end, ms.
    labels: names of the columns.
    ms_L: times, ms.
  """
  ms_L = np.asarray(ms_L, np.float64)
  y_LC = np.zeros((len(ms_L), len(labels)), np.uint8)
  column = {label: c for c, label in enumerate(labels)}
  for event in events:
    # Half-open, but for the slack that the kit adds.
    active_L = ((ms_L >= event['start'])
                & (ms_L < event['end'] + END_SLACK_MS))
    y_LC[active_L, column[event['label']]] = 1
  return y_LC


def folds(task: Task) -> list[tuple[tuple[str, ...], str, str]]:
  """Returns (train splits, valid split, test split) of every model.

  As in hear-eval-kit: folds are sorted, and model i is tested on fold i,
  validated on fold i + 1 and trained on the others.
  """
  if not task.kfold:
    return [(('train',), 'valid', 'test')]
  # Sorted as text, as in the kit: fold10 comes before fold2.
  names = sorted(task.splits)
  out = []
  for i, test in enumerate(names):
    valid = names[(i + 1) % len(names)]
    out.append((tuple(n for n in names if n not in (test, valid)), valid, test))
  return out


def _json(path: pathlib.Path, kind: type) -> Any:
  """Returns the contents of a JSON file, which must be of a type.

  Raises:
    FileNotFoundError, ValueError: it is missing or not like this.
  """
  # json takes the last of two equal keys: the labels of a clip would be lost
  # without a word.
  twice: list[str] = []

  def tree(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
      names = [name for name, _ in pairs]
      twice.append(next(name for name in names if names.count(name) > 1))
    return out

  try:
    value = json.loads(files.read_regular(path).decode('utf-8'),
                       object_pairs_hook=tree)
  except FileNotFoundError:
    raise FileNotFoundError(f'{path}: missing from the task folder') from None
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path}: not JSON ({files.one_line(error)})') from None
  if twice:
    raise ValueError(f'{path}: {files.one_line(twice[0])!r} is there twice')
  if not isinstance(value, kind):
    raise ValueError(f'{path}: expected an object, found '
                     f'{type(value).__name__}')
  return value


def _field(path: pathlib.Path, metadata: dict[str, Any], name: str,
           among: Sequence[str] | None) -> Any:
  """Returns a field of the metadata.

  Raises:
    ValueError: it is missing, or not one of the values in `among`.
  """
  if name not in metadata:
    raise ValueError(f'{path}: no field {name!r}')
  if among and metadata[name] not in among:
    raise ValueError(f'{path}: {name} is {metadata[name]!r}, expected one of '
                     f'{list(among)}')
  return metadata[name]


def _vocabulary(path: pathlib.Path) -> tuple[str, ...]:
  """Returns the labels of a task, in order.

  Raises:
    FileNotFoundError, ValueError: the file is missing or wrong.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path}: missing from the task folder')
  rows = _rows(path)
  if not rows or any(set(row) != {'idx', 'label'} or not row['label']
                     for row in rows):
    raise ValueError(f'{path}: expected a header idx,label and one row a label')
  try:
    # Of two rows with one idx the first is lost here, and noticed below.
    by_index = {int(row['idx']): row['label'] for row in rows}
  except (TypeError, ValueError):
    raise ValueError(
        f'{path}: idx must be a whole number on every row') from None
  # Columns of the targets are in the order of idx.
  labels = tuple(by_index[i] for i in range(len(rows)) if i in by_index)
  if len(labels) < len(rows) or len(set(labels)) < len(labels):
    raise ValueError(f'{path}: expected distinct labels with idx 0 to '
                     f'{len(rows) - 1}, found {sorted(by_index)}')
  return labels


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  """Returns the rows of a CSV file with a header.

  Raises:
    ValueError: it is no such file.
  """
  try:
    # Some programs write a byte-order mark.
    text = files.read_regular(path).decode('utf-8-sig')
    return list(csv.DictReader(io.StringIO(text, newline='')))
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: not a CSV file ({files.one_line(error)})'
                     ) from None


def _check_classes(described: pathlib.Path, y_NC: np.ndarray,
                   labels: Sequence[str]) -> None:
  """Raises ValueError if all clips of a split have the same labels."""
  # Every predictor is right or undefined on such a split.
  share_C = y_NC.mean(0)
  if ((share_C == 0) | (share_C == 1)).all():
    ours = [label for label, share in zip(labels, share_C) if share]
    raise ValueError(
        f'{described}: all {len(y_NC)} clips have the same labels '
        f'({", ".join(ours) or "none"}): expected clips of at least two '
        'classes')


def _groups(path: pathlib.Path, names_of: dict[str, tuple[str, ...]]
            ) -> dict[str, tuple[str, ...]] | None:
  """Returns {split: the group of every clip}, or None without a table.

  Raises:
    ValueError: a clip has no row.
  """
  if not path.is_file():
    return None
  rows = _rows(path)
  # The table is optional, so another file of this name is no error.
  if not rows or not {'file', 'group'} <= set(rows[0]):
    return None
  group_of: dict[str, str] = {}
  for row in rows:
    if not row['file'] or not row['group']:
      raise ValueError(f'{path}: a row without file or group')
    if group_of.setdefault(row['file'], row['group']) != row['group']:
      raise ValueError(f'{path}: {row["file"]} has two groups, '
                       f'{group_of[row["file"]]} and {row["group"]}')
  for split, names in names_of.items():
    for name in names:
      if name not in group_of:
        raise ValueError(f'{path}: no row for {name} of {split}: expected a '
                         'group for every clip')
  return {split: tuple(group_of[name] for name in names)
          for split, names in names_of.items()}


def _scene_targets(described: pathlib.Path, names: Sequence[str],
                   entries: dict[str, Any], labels: Sequence[str],
                   prediction_type: str) -> np.ndarray:
  """Returns y_NC of the clips of a split.

  Raises:
    ValueError: an unknown label, or not one label per clip if multiclass.
  """
  y_NC = np.zeros((len(names), len(labels)), np.uint8)
  column = {label: c for c, label in enumerate(labels)}
  for row_C, name in zip(y_NC, names):
    own = entries[name]
    if not isinstance(own, list):
      raise ValueError(f'{described}: {name} has {type(own).__name__}, '
                       'expected a list of labels')
    # A label may be a number in JSON, such as a pitch; the vocabulary is text.
    for label in map(str, own):
      if label not in column:
        raise ValueError(f'{described}: {name} has label {label!r}, which '
                         f'{VOCABULARY} does not list')
      row_C[column[label]] = 1
    if prediction_type == 'multiclass' and len(own) != 1:
      raise ValueError(f'{described}: {name} has {len(own)} labels, a '
                       'multiclass task wants exactly one')
  return y_NC


def _events(described: pathlib.Path, name: str, entries: Any,
            labels: Sequence[str], seconds: float | None
            ) -> tuple[dict[str, Any], ...]:
  """Returns the events of one clip.

  Args:
    described: the split's file.
    name: of the clip.
    entries: what the file says of it.
    labels: of the task.
    seconds: of every clip, if the task says that.

  Raises:
    ValueError: no list of events; an event without a field, with an unknown
      label, or at times that cannot be.
  """
  out = []
  if not isinstance(entries, list):
    raise ValueError(f'{described}: {name} has {type(entries).__name__}, '
                     'expected a list of events')
  # Annotations may be of the uncut recording: an event may end after its clip,
  # but not begin after it.
  latest = LONGEST
  if seconds is not None:
    latest = 1000 * seconds * (1 + LENGTH_SLACK)
  for event in entries:
    if not isinstance(event, dict):
      raise ValueError(f'{described}: an event of {name} is {event!r}, '
                       'expected label, start and end')
    missing = {'label', 'start', 'end'} - set(event)
    if missing:
      raise ValueError(f'{described}: an event of {name} has no '
                       f'{sorted(missing)[0]}')
    label = str(event['label'])
    if label not in labels:
      raise ValueError(f'{described}: {name} has label {label!r}, which '
                       f'{VOCABULARY} does not list')
    start, end = event['start'], event['end']
    if not (_is_number(start) and _is_number(end)
            and 0 <= start <= end and start <= latest):
      raise ValueError(
          f'{described}: an event of {name} is from {start!r} to {end!r} ms: '
          f'expected 0 <= start <= end, and start within the clip')
    out.append({'label': label, 'start': float(start), 'end': float(end)})
  return tuple(out)


def _paths(folder: pathlib.Path, names: Sequence[str],
           described: pathlib.Path) -> tuple[pathlib.Path, ...]:
  """Returns the files of the clips of a split, in the order of their names.

  A name may have a folder of its own.

  Raises:
    FileNotFoundError: one is missing; names it.
    ValueError: a name that leads out of the folder.
  """
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder}: no such folder of clips')
  # One listing of each folder: asking for each clip takes long on a bucket.
  present: dict[pathlib.Path, set[str]] = {}
  out = []
  for name in names:
    place = (folder / name).parent
    # Names come from a downloaded file.
    if pathlib.PurePath(name).is_absolute() or '..' in place.parts:
      raise ValueError(f'{described}: {name} lies outside {folder}')
    if place not in present:
      present[place] = set()
      if place.is_dir():
        present[place] = set(files.names(place))
    file = pathlib.PurePath(name).name
    stem = file.removesuffix('.wav')
    # The name itself first, then the preferred formats.
    lying = [other for other in (file, *(stem + s for s in SUFFIXES))
             if other in present[place]]
    if not lying:
      raise FileNotFoundError(
          f'{folder / name}: missing, though {described.name} lists it')
    out.append(place / lying[0])
  return tuple(out)
