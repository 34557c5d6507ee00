"""Writing the synthetic dataset: resumable, atomic, in parallel, any order.

A file under its final name is whole; a marker, written last, says that a
folder is finished and with which arguments it was made.
"""

from collections.abc import Sequence
from concurrent import futures
import functools
import json
import multiprocessing
import os
import pathlib

import numpy as np

from audiorank import decode
from audiorank import files
from audiorank import progress as progress_lib
from audiorank.synth import recordings
from audiorank.synth import tasks as tasks_lib
from audiorank.synth import waves

RATE = waves.RATE
VERSION = 1  # Raised whenever the same seed gives other clips.
MARKER = 'synth.json'


def _write_json(path, content):
  # Nothing is synced: the same seed writes the same files again.
  files.write_text(path, json.dumps(content, indent=1) + '\n', sync=False)


def _write_wave(path: pathlib.Path, wave_S: np.ndarray, form: str) -> None:
  decode.write(path, wave_S, RATE, form)


def _read_marker(folder, asked):
  """The folder's marker or {}; raises where it was made otherwise."""
  path = folder / MARKER
  if not path.is_file():
    return {}
  marker = json.loads(path.read_text(encoding='utf-8'))
  for field, value in asked.items():
    if marker.get(field) != value:
      raise ValueError(f'{path}: {field} is {marker.get(field)!r}, asked for '
                       f'{value!r}; choose another folder')
  return marker


def _is_int(value, least):
  return (isinstance(value, int) and not isinstance(value, bool)
          and value >= least)


def _check(seed, workers):
  if not _is_int(seed, 0):
    raise ValueError(f'seed: found {seed!r}, expected an integer of 0 or more')
  if workers is not None and not _is_int(workers, 1):
    raise ValueError(f'workers: found {workers!r}, expected an integer of 1 '
                     'or more')


def _map(function, items, workers, progress, title):
  """Calls the function on every item, in worker processes if asked."""
  if workers is None:
    workers = os.cpu_count() or 1
  bar = progress_lib.Bar(len(items), 0, title) if progress and items else None

  def tell(n):
    if bar:
      bar.step(n)

  try:
    if workers == 1 or len(items) < 16:
      for item in items:
        function(item)
        tell(1)
      return
    # Spawned, not forked: the caller may hold JAX's threads.
    context = multiprocessing.get_context('spawn')
    with futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      pending = [pool.submit(_call, function, items[i:i + 8])
                 for i in range(0, len(items), 8)]
      try:
        for done in futures.as_completed(pending):
          tell(done.result())
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
  finally:
    if bar:
      bar.close()


def _call(function, items):
  for item in items:
    function(item)
  return len(items)


def _write_recording(out, seed, index):
  path = out / recordings.name(index)
  if not path.is_file():
    _write_wave(path, recordings.make(seed, index), 'FLAC')


def count(hours: float, seed: int) -> int:
  """How many recordings hold at least `hours` hours."""
  total, index = 0, 0
  while total < hours * 3600 * RATE:
    total += recordings.length(seed, index)
    index += 1
  return index


def write_audio(out: str | os.PathLike, hours: float, seed: int,
                workers: int | None = None,
                progress: bool = True) -> pathlib.Path:
  """Writes recordings for pretraining: <out>/<category>/<index>.flac.

  16 kHz mono 16-bit FLAC, 8 to 30 s each, at least `hours` hours in all. More
  hours of the same seed add recordings to those of fewer. What is there
  already is kept; a finished folder is left alone. `workers` processes
  (default: one a core) write the same bytes whatever their number. Give it a
  folder of its own: task clips below it would be taken for recordings.

  Returns the folder. Raises ValueError for bad arguments or a folder made with
  another seed or with more hours.
  """
  _check(seed, workers)
  if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not (
      0 < hours < float('inf')):
    raise ValueError(f'hours: found {hours!r}, expected a positive number')
  out = files.on_disk(out)
  marker = _read_marker(out, {'world': VERSION, 'kind': 'audio', 'seed': seed})
  wanted = count(hours, seed)
  have = marker.get('recordings', 0)
  if have > wanted:
    raise ValueError(f'{out / MARKER}: holds {have} recordings, {hours} hours '
                     f'need {wanted}; choose another folder')
  if have == wanted:
    return out
  for category in recordings.CATEGORIES:
    (out / category).mkdir(parents=True, exist_ok=True)
  _map(functools.partial(_write_recording, out, seed), range(wanted), workers,
       progress, 'synthetic dataset: recordings')
  samples = sum(recordings.length(seed, i) for i in range(wanted))
  _write_json(out / MARKER, {
      'world': VERSION, 'kind': 'audio', 'seed': seed, 'recordings': wanted,
      'hours': samples / RATE / 3600})
  return out


def _write_clip(seed, item):
  """Writes one clip and, beside it until the task is whole, its labels."""
  folder, task, split, index = item
  path = folder / str(RATE) / split / f'{index:05d}.wav'
  aside = path.with_suffix('.json')
  if not (path.is_file() and aside.is_file()):
    wave_S, labels = tasks_lib.make(seed, task, split, index)
    _write_wave(path, wave_S, 'WAV')
    _write_json(aside, labels)


def _begin(folder, asked):
  """The unfinished folder of a task, to be filled; None for a finished one."""
  if _read_marker(folder, asked):
    return None
  if folder.exists():
    raise ValueError(f'{folder}: no {MARKER} in it, so not made here; choose '
                     'another folder')
  # Made where no reader of tasks looks; moved when whole.
  partial = folder.parent / '.partial' / folder.name
  if not _read_marker(partial, asked):
    partial.mkdir(parents=True, exist_ok=True)
    _write_json(partial / MARKER, asked)
  for split in asked['clips']:
    (partial / str(RATE) / split).mkdir(parents=True, exist_ok=True)
  return partial


def _finish(partial, folder, name, clips):
  """Writes what describes the clips, then gives the folder its name."""
  task = tasks_lib.EVERY[name]
  for split, n in clips.items():
    root = partial / str(RATE) / split
    labels = {f'{i:05d}.wav': json.loads(
        (root / f'{i:05d}.json').read_text(encoding='utf-8'))
              for i in range(n)}
    _write_json(partial / f'{split}.json', labels)
  rows = [f'{i},{label}\n' for i, label in enumerate(task.labels)]
  (partial / 'labelvocabulary.csv').write_text('idx,label\n' + ''.join(rows),
                                               encoding='utf-8')
  metadata = {
      'task_name': name, 'version': f'v{VERSION}',
      'embedding_type': task.embedding, 'prediction_type': task.prediction,
      'split_mode': 'trainvaltest', 'sample_duration': task.samples / RATE,
      'evaluation': list(task.evaluation), 'mode': 'full',
      'splits': list(clips), 'sample_rates': [RATE],
      'label_count': len(task.labels)}
  if task.embedding == 'event':
    metadata['evaluation_params'] = {'event_postprocessing_grid': {
        'median_filter_ms': [250], 'min_duration': [125, 250]}}
  _write_json(partial / 'task_metadata.json', metadata)
  for aside in partial.glob(f'{RATE}/*/*.json'):
    aside.unlink()
  os.replace(partial, folder)
  if not any(partial.parent.iterdir()):
    partial.parent.rmdir()


def write_tasks(out: str | os.PathLike, seed: int,
                clips_per_task: Sequence[int] = (320, 100, 200),
                names: Sequence[str] | None = None, workers: int | None = None,
                progress: bool = True) -> pathlib.Path:
  """Writes task folders in HEAR's layout: <out>/tasks/<name>-v1-full/.

  `clips_per_task` are the clips of the train, valid and test split; `names`
  chooses among tasks.EVERY (default: tasks.TASKS). A finished task is left
  alone, a half-written one is finished; the clips of a larger split begin
  with those of a smaller one.

  Returns the folder of the tasks. Raises ValueError for bad arguments or a
  task folder made with other ones.
  """
  _check(seed, workers)
  if not (isinstance(clips_per_task, (tuple, list))
          and len(clips_per_task) == 3
          and all(_is_int(n, 1) for n in clips_per_task)):
    raise ValueError(f'clips_per_task: found {clips_per_task!r}, expected '
                     'three positive integers: train, valid, test')
  names = tuple(tasks_lib.TASKS) if names is None else names
  if not isinstance(names, (tuple, list)) or not names or (
      set(names) - set(tasks_lib.EVERY)):
    raise ValueError(f'names: found {names!r}, expected a list of some of '
                     f'{", ".join(tasks_lib.EVERY)}')
  root = files.on_disk(out) / 'tasks'
  clips = dict(zip(tasks_lib.SPLITS, clips_per_task))
  asked = {'world': VERSION, 'kind': 'task', 'seed': seed, 'clips': clips}
  folders = {name: root / f'{name}-v{VERSION}-full' for name in names}
  begun = {name: _begin(folder, asked) for name, folder in folders.items()}
  begun = {name: partial for name, partial in begun.items() if partial}
  items = [(partial, name, split, i) for name, partial in begun.items()
           for split, n in clips.items() for i in range(n)]
  _map(functools.partial(_write_clip, seed), items, workers, progress,
       'synthetic dataset: task clips')
  for name, partial in begun.items():
    _finish(partial, folders[name], name, clips)
  return root
