"""Writes the synthetic dataset in parallel. Interrupted calls resume.

A file gets its final name only when it is complete. A marker file, which is
written last, contains the arguments that a complete folder was made with.
"""

from collections.abc import Callable
from collections.abc import Sequence
from concurrent import futures
import contextlib
import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import numpy as np

from audiorank import decode
from audiorank import files
from audiorank import progress as progress_lib
from audiorank.synth import recordings
from audiorank.synth import tasks as tasks_lib
from audiorank.synth import waves

RATE = waves.RATE
VERSION = 1  # To be raised when the same seed gives other clips.
MARKER = 'synth.json'
ROOT = pathlib.Path(__file__).resolve().parents[2]
SERVE = 'from audiorank.synth import write; write.serve()'


def _write_json(path: pathlib.Path, content: Any) -> None:
  # Without waiting for the disk, which takes long for thousands of files. If
  # one is lost, the same seed writes it again.
  files.write_text(path, json.dumps(content, indent=1) + '\n', sync=False)


def _write_wave(path: pathlib.Path, wave_S: np.ndarray, form: str) -> None:
  decode.write(path, wave_S, RATE, form)


def _read_marker(folder: pathlib.Path, asked: dict[str, Any]
                 ) -> dict[str, Any]:
  """Returns a folder's marker, or {} if it has none.

  Raises:
    ValueError: it was made with other values than `asked`.
  """
  path = folder / MARKER
  if not path.is_file():
    return {}
  marker = files.read_json(path)
  if not isinstance(marker, dict):
    raise ValueError(f'{path}: not a marker of a synthetic dataset; choose '
                     'another folder')
  for field, value in asked.items():
    if marker.get(field) != value:
      raise ValueError(f'{path}: {field} is {marker.get(field)!r}, asked for '
                       f'{value!r}; choose another folder')
  return marker


def _is_int(value: Any, least: int) -> bool:
  # A bool is an int to Python.
  return (isinstance(value, int) and not isinstance(value, bool)
          and value >= least)


def _check(seed: Any, workers: Any) -> None:
  """Raises ValueError for a wrong seed or number of workers."""
  if not _is_int(seed, 0):
    raise ValueError(f'seed: found {seed!r}, expected an integer of 0 or more')
  if workers is not None and not _is_int(workers, 1):
    raise ValueError(f'workers: found {workers!r}, expected an integer of 1 '
                     'or more')


def _map(function: Callable[[Any], None], items: Sequence[Any],
         workers: int | None, progress: bool, title: str) -> None:
  """Calls a function on every item, in worker processes if asked.

  Args:
    function: can be pickled.
    items: its arguments.
    workers: number of processes; None takes one per core.
    progress: whether to show a bar.
    title: of the bar.
  """
  if workers is None:
    workers = os.cpu_count() or 1
  bar = None
  if progress and items:
    bar = progress_lib.Bar(len(items), 0, title)

  def tell() -> None:
    if bar:
      bar.step()

  try:
    # For a few items, starting processes takes longer than the work.
    if workers == 1 or len(items) < 16:
      for item in items:
        function(item)
        tell()
      return
    _map_in_processes(function, items, workers, tell)
  finally:
    if bar:
      bar.close()


def _map_in_processes(function: Callable[[Any], None], items: Sequence[Any],
                      workers: int, tell: Callable[[], None]) -> None:
  """Calls a function on every item in processes; `tell` after each.

  The processes import this module alone. Those of multiprocessing would import
  the program's main module as well, and with it jax, which takes seconds.
  """
  paths = [str(ROOT), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
  environment = {**os.environ,
                 'PYTHONPATH': os.pathsep.join(filter(None, paths))}
  processes = [subprocess.Popen(
      [sys.executable, '-c', SERVE], env=environment,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)]
  with futures.ThreadPoolExecutor(workers) as threads:
    try:
      # Every k-th item, so that all have about as much to do.
      pending = [threads.submit(
          _oversee, process, function, items[k::workers], tell)
          for k, process in enumerate(processes)]
      for done in futures.as_completed(pending):
        done.result()
    finally:
      # After an error or an interrupt, which must not wait for all items.
      for process in processes:
        process.kill()
        process.wait()


def _oversee(process: subprocess.Popen, function: Callable[[Any], None],
             items: Sequence[Any], tell: Callable[[], None]) -> None:
  """Has a process do some items; raises the error that it meets.

  Raises:
    OSError: the process died.
  """
  assert process.stdin and process.stdout
  with process.stdin as stdin, process.stdout as stdout:
    # It may have died before it read this.
    with contextlib.suppress(BrokenPipeError):
      pickle.dump((function, items), stdin)
      stdin.flush()
    for _ in items:
      try:
        error = pickle.load(stdout)
      except EOFError:
        raise OSError('a process that writes the synthetic dataset died '
                      f'(exit code {process.wait()}): run the same command '
                      'again') from None
      if error:
        raise error
      tell()


def serve() -> None:
  """Does what `_oversee` asks for; the main function of its processes."""
  function, items = pickle.load(sys.stdin.buffer)
  for item in items:
    error: Exception | None = None
    try:
      function(item)
    except Exception as reason:  # Raised again in the process that waits.
      error = reason
    # Fails if that process is gone, which ends this one.
    pickle.dump(error, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _write_recording(out: pathlib.Path, seed: int, index: int) -> None:
  path = out / recordings.name(index)
  # Under its final name a file is complete.
  if not path.is_file():
    _write_wave(path, recordings.make(seed, index), 'FLAC')


def count(hours: float, seed: int) -> int:
  """Returns how many recordings have at least `hours` hours together."""
  total, index = 0, 0
  # Lengths are drawn without making a sound, so this takes moments.
  while total < hours * 3600 * RATE:
    total += recordings.length(seed, index)
    index += 1
  return index


@functools.lru_cache(16)  # The runs of a sweep share few settings.
def clips(hours: float, seed: int, samples: int) -> int:
  """Returns how many clips of a length so many hours of recordings have.

  Args:
    hours, seed: as of `write_audio`.
    samples: of a clip. Clips do not overlap; a shorter recording is one clip.
  """
  return sum(max(recordings.length(seed, i) // samples, 1)
             for i in range(count(hours, seed)))


def write_audio(out: str | os.PathLike, hours: float, seed: int,
                workers: int | None = None,
                progress: bool = True) -> pathlib.Path:
  """Writes recordings for pretraining: <out>/<category>/<index>.flac.

  They are 16 kHz mono 16-bit FLAC of 8 to 30 s. More hours of the same seed add
  recordings to those of fewer hours.

  Args:
    out: folder to write, for nothing else: `prepare` would take the clips of
      tasks in it for recordings.
    hours: at least, in all.
    seed: of the dataset.
    workers: number of processes; None takes one per core. The files do not
      depend on it.
    progress: whether to show a bar.

  Returns:
    the folder.

  Raises:
    ValueError: wrong arguments, or a folder with another seed or more hours.
  """
  _check(seed, workers)
  # The comparison refuses NaN as well.
  if isinstance(hours, bool) or not isinstance(hours, (int, float)) or not (
      0 < hours < float('inf')):
    raise ValueError(f'hours: found {hours!r}, expected a positive number')
  out = files.on_disk(out)
  marker = _read_marker(out, {'world': VERSION, 'kind': 'audio', 'seed': seed})
  wanted = count(hours, seed)
  have = marker.get('recordings', 0)
  if have > wanted:
    raise ValueError(f'{out / MARKER}: {have} recordings, but {hours} hours '
                     f'have {wanted}; choose another folder')
  if have == wanted:
    return out
  for category in recordings.CATEGORIES:
    (out / category).mkdir(parents=True, exist_ok=True)
  # All of them: those that are there are skipped at once.
  _map(functools.partial(_write_recording, out, seed), range(wanted), workers,
       progress, 'synthetic dataset: recordings')
  samples = sum(recordings.length(seed, i) for i in range(wanted))
  # The marker last: without it the folder counts as unfinished.
  _write_json(out / MARKER, {
      'world': VERSION, 'kind': 'audio', 'seed': seed, 'recordings': wanted,
      'hours': samples / RATE / 3600})
  return out


def _write_clip(seed: int, item: tuple) -> None:
  """Writes one clip and a file of its labels, which `_finish` collects."""
  folder, task, split, index = item
  path = folder / str(RATE) / split / f'{index:05d}.wav'
  aside = path.with_suffix('.json')
  # Both, as an interrupt may come between the two.
  if not (path.is_file() and aside.is_file()):
    wave_S, labels = tasks_lib.make(seed, task, split, index)
    _write_wave(path, wave_S, 'WAV')
    _write_json(aside, labels)


def _begin(folder: pathlib.Path, asked: dict[str, Any]
           ) -> pathlib.Path | None:
  """Returns the unfinished folder of a task, or None if it is finished.

  Args:
    folder: of the task when it is finished.
    asked: contents of its marker.

  Raises:
    ValueError: it belongs to something else.
  """
  if _read_marker(folder, asked):
    return None
  if folder.exists():
    raise ValueError(f'{folder}: no {MARKER} in it, so it is not a folder of '
                     'this dataset; choose another folder')
  # In a hidden folder, so that nobody reads an unfinished task.
  partial = folder.parent / '.partial' / folder.name
  if not _read_marker(partial, asked):
    partial.mkdir(parents=True, exist_ok=True)
    _write_json(partial / MARKER, asked)
  for split in asked['clips']:
    (partial / str(RATE) / split).mkdir(parents=True, exist_ok=True)
  return partial


def _finish(partial: pathlib.Path, folder: pathlib.Path, name: str,
            clips: dict[str, int]) -> None:
  """Writes the description of a task, then moves it to its final place.

  Args:
    partial: the unfinished folder.
    folder: the final one.
    name: of the task.
    clips: number of clips by split.
  """
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
  # The grid of HEAR's DCASE 2016 task, which hear-eval-kit searches on the
  # validation split.
  if task.embedding == 'event':
    metadata['evaluation_params'] = {'event_postprocessing_grid': {
        'median_filter_ms': [250], 'min_duration': [125, 250]}}
  _write_json(partial / 'task_metadata.json', metadata)
  # By now they are in the file of their split.
  for aside in partial.glob(f'{RATE}/*/*.json'):
    aside.unlink()
  os.replace(partial, folder)
  # The last task that is finished removes the hidden folder.
  if not any(partial.parent.iterdir()):
    partial.parent.rmdir()


def write_tasks(out: str | os.PathLike, seed: int,
                clips_per_task: Sequence[int] = (320, 100, 200),
                names: Sequence[str] | None = None, workers: int | None = None,
                progress: bool = True) -> pathlib.Path:
  """Writes task folders in HEAR's layout: <out>/tasks/<name>-v1-full/.

  A larger split begins with the clips of a smaller one.

  Args:
    out: folder to write.
    seed: of the dataset.
    clips_per_task: number of clips of the train, valid and test split.
    names: of tasks.EVERY; None takes all of tasks.TASKS.
    workers: number of processes; None takes one per core.
    progress: whether to show a bar.

  Returns:
    the folder of the tasks.

  Raises:
    ValueError: wrong arguments, or a task folder made with other ones.
  """
  _check(seed, workers)
  if not (isinstance(clips_per_task, (tuple, list))
          and len(clips_per_task) == 3
          and all(_is_int(n, 1) for n in clips_per_task)):
    raise ValueError(f'clips_per_task: found {clips_per_task!r}, expected '
                     'three positive integers: train, valid, test')
  if names is None:
    names = tuple(tasks_lib.TASKS)
  if not isinstance(names, (tuple, list)) or not names or (
      set(names) - set(tasks_lib.EVERY)):
    raise ValueError(f'names: found {names!r}, expected a list of some of '
                     f'{", ".join(tasks_lib.EVERY)}')
  root = files.on_disk(out) / 'tasks'
  clips = dict(zip(tasks_lib.SPLITS, clips_per_task))
  asked = {'world': VERSION, 'kind': 'task', 'seed': seed, 'clips': clips}
  folders = {name: root / f'{name}-v{VERSION}-full' for name in names}
  unfinished = {name: partial for name, folder in folders.items()
                if (partial := _begin(folder, asked))}
  items = [(partial, name, split, i) for name, partial in unfinished.items()
           for split, n in clips.items() for i in range(n)]
  _map(functools.partial(_write_clip, seed), items, workers, progress,
       'synthetic dataset: task clips')
  for name, partial in unfinished.items():
    _finish(partial, folders[name], name, clips)
  return root
