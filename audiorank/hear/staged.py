"""Caches a task in three files, so that its clips are opened only once.

  <cache>/tasks/<name>-<digest>.fingerprint   identifies the task in a record
  <cache>/tasks/<name>-<digest>-<rate>.json   the task, without its clips
  <cache>/tasks/<name>-<digest>-<rate>.pcm    samples of all clips, an index

Opening every clip of a task takes seconds for a small task, and an hour for a
large one on a mounted bucket. The first evaluation does it; later ones, of any
model, open these files. The digest is of the name, size and modification time
of every file in the task's folder.

Shapes: N clips, C labels, S samples.
"""

from collections.abc import Callable
from collections.abc import Iterator
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any
import zlib

import numpy as np

from audiorank import files
from audiorank.hear import tasks

FORMAT = 2  # To be raised when the same digest would mean other contents.
# Share of the disk's free space that a task's samples may take, and the largest
# ratio of a compressed clip's samples to its file, in bytes.
MOST_OF_DISK, EXPANDS = .2, 12
REMEMBERED = 64  # Tasks and fingerprints that a process keeps.

_memory: dict[pathlib.Path, Any] = {}


def fingerprint(folder: files.Path) -> str:
  """Returns a digest of a task's labels, splits and audio, 12 hex digits.

  Args:
    folder: of the task.
  """
  folder = files.path(folder)
  path = _path(folder, '.fingerprint')

  def compute() -> str:
    digest = hashlib.sha256()
    for described in (*sorted(folder.glob('*.json')),
                      *sorted(folder.glob('*.csv'))):
      digest.update(described.name.encode() + described.read_bytes())
    # Of audio files only the name, the size and the middle 4 KiB. Reading all
    # of a large task takes longer than computing its embeddings.
    sizes = {name: size for name, (size, _) in files.stats(folder).items()
             if name.count('/') > 1}
    clips = sorted(sizes, key=pathlib.PurePosixPath)

    def middle(name: str) -> bytes:
      begin = max(0, sizes[name] // 2 - 2048)
      end = min(begin + 4096, sizes[name])
      return files.read_part(folder / name, begin, end)

    for name, part in zip(clips, files.mapped(middle, clips, folder)):
      digest.update(f'{name} {sizes[name]}\n'.encode() + part)
    return digest.hexdigest()[:12]

  return _remembered(
      path, lambda: path.read_text(encoding='ascii'), compute,
      lambda part, text: part.write_text(text, encoding='ascii'))


def load(folder: files.Path, rate: int) -> tasks.Task:
  """Returns tasks.load(folder, rate), from the cache if possible.

  Args:
    folder: of the task.
    rate: of its clips, Hz.

  Raises:
    FileNotFoundError, ValueError: as tasks.load.
  """
  folder = files.path(folder)
  path = _path(folder, f'-{rate}.json')
  return _remembered(
      path, lambda: from_json(folder, files.read_json(path)),
      lambda: tasks.load(folder, rate),
      lambda part, task: part.write_text(json.dumps(to_json(task)),
                                         encoding='utf-8'))


def audio(task: tasks.Task, split: str) -> Iterator[tuple[str, np.ndarray]]:
  """Iterates over tasks.audio(task, split), from the cache if possible.

  The samples are the same, bit for bit.

  Args:
    task: from `load`.
    split: of the task.

  Raises:
    ValueError: as tasks.audio; a damaged cache, which is deleted.
  """
  path = _path(task.folder, f'-{task.rate}.pcm')
  index = files.read_cached(path, read_index)
  if index is None and _fits(task, path):
    files.write_cached(path, lambda part: write_samples(task, part))
    index = files.read_cached(path, read_index)
  if index is None:
    yield from tasks.audio(task, split)
    return
  with open(path, 'rb') as file:
    for name, (start, size, bits, checksum) in zip(
        task.files[split], index[split], strict=True):
      file.seek(start)
      content = file.read(size)
      # A flipped bit in the cache would change a score without a trace.
      if zlib.crc32(content) != checksum:
        path.unlink(missing_ok=True)
        raise ValueError(f'{path}: damaged, and deleted: run again')
      # libsndfile divides samples of 16 bits by 32768 as well.
      if bits == 16:
        yield name, np.frombuffer(content, '<i2').astype(np.float32) / 32768
      else:
        # A copy, as an array over bytes cannot be written.
        yield name, np.frombuffer(content, '<f4').copy()


def write_samples(task: tasks.Task, path: pathlib.Path) -> None:
  """Writes the samples of all clips of a task, followed by an index.

  Args:
    task: with audio.
    path: file to write.
  """
  index: dict[str, list[tuple[int, int, int, int]]] = {}
  with open(path, 'wb') as file:
    for split in task.splits:
      index[split] = []
      for _, wave_S in tasks.audio(task, split):
        # Most clips have 16 bits per sample; then nothing is lost.
        short_S = np.rint(wave_S * 32768).clip(-32768, 32767).astype('<i2')
        bits, content = 16, short_S.tobytes()
        if not np.array_equal(short_S.astype(np.float32) / 32768, wave_S):
          bits, content = 32, wave_S.astype('<f4').tobytes()
        index[split].append(
            (file.tell(), len(content), bits, zlib.crc32(content)))
        file.write(content)
    # The index comes last, because offsets are known only then; its size is at
    # the very end.
    text = json.dumps(index).encode()
    file.write(text + len(text).to_bytes(8, 'little'))


def read_index(path: pathlib.Path) -> dict[str, list[list[int]]]:
  """Returns {split: [[first byte, bytes, bits per sample, checksum]]}.

  Args:
    path: of the samples. The last 8 bytes are the size of the index.
  """
  with open(path, 'rb') as file:
    end = file.seek(-8, os.SEEK_END)
    size = int.from_bytes(file.read(8), 'little')
    file.seek(end - size)
    return json.loads(file.read(size))


def to_json(task: tasks.Task) -> dict[str, Any]:
  """Returns a task as JSON, with paths relative to its folder."""
  tree = task._asdict()
  tree['folder'] = ''
  tree['paths'] = {
      split: [str(p.relative_to(task.folder)) for p in paths]
      for split, paths in task.paths.items()}
  if task.embedding_type == 'scene':
    # Columns of ones: a dense matrix as JSON would be large.
    tree['targets'] = {
        split: [np.flatnonzero(y_C).tolist() for y_C in y_NC]
        for split, y_NC in task.targets.items()}
  return tree


def from_json(folder: pathlib.Path, tree: dict[str, Any]) -> tasks.Task:
  """Returns the task of `to_json`.

  Args:
    folder: of the task now; it may have been moved.
    tree: from `to_json`.
  """
  targets: dict[str, Any] = {
      split: tuple(events) for split, events in tree['targets'].items()}
  if tree['embedding_type'] == 'scene':
    for split, rows in targets.items():
      y_NC = np.zeros((len(rows), len(tree['labels'])), np.uint8)
      for y_C, columns in zip(y_NC, rows):
        y_C[columns] = 1
      targets[split] = y_NC
  groups = tree['groups'] and {
      split: tuple(names) for split, names in tree['groups'].items()}
  return tasks.Task(**{
      **tree, 'groups': groups, 'folder': folder, 'targets': targets,
      'splits': tuple(tree['splits']), 'labels': tuple(tree['labels']),
      'evaluation': tuple(tree['evaluation']),
      'files': {s: tuple(names) for s, names in tree['files'].items()},
      'paths': {s: tuple(folder / p for p in paths)
                for s, paths in tree['paths'].items()}})


def listing(folder: pathlib.Path) -> str:
  """Returns a digest of the names, sizes and times of a folder's files."""
  rows = [[name, *about] for name, about in files.stats(folder).items()]
  return files.digest([FORMAT, sorted(rows)])


def _path(folder: pathlib.Path, suffix: str) -> pathlib.Path:
  """Returns the path in the cache of something of a task as it is now."""
  name = f'{folder.resolve().name}-{listing(folder)}{suffix}'
  return files.local_cache('tasks') / name


def _fits(task: tasks.Task, path: pathlib.Path) -> bool:
  """Returns whether the disk has room for the samples of a task."""
  size, stats = 0, files.stats(task.folder)
  for paths in task.paths.values():
    for clip in paths:
      size_on_disk, _ = stats[str(clip.relative_to(task.folder))]
      if clip.suffix != '.wav':
        size_on_disk *= EXPANDS
      size += size_on_disk
  # The cache's folder may not exist yet: its disk is that of a parent.
  folder = path.parent
  while not folder.is_dir():
    folder = folder.parent
  return size < MOST_OF_DISK * shutil.disk_usage(folder).free


def _remembered(path: pathlib.Path, read: Callable[[], Any],
                compute: Callable[[], Any],
                write: Callable[[pathlib.Path, Any], Any]) -> Any:
  """Returns a value from this process, from the cache, or from `compute`.

  Args:
    path: of the value in the cache.
    read: reads it from the cache.
    compute: makes it if it is not in the cache.
    write: (path, value) writes it.
  """
  if path in _memory:
    return _memory[path]
  value = files.read_cached(path, lambda _: read())
  if value is None:
    value = compute()
    files.write_cached(path, lambda part: write(part, value))
  if len(_memory) >= REMEMBERED:
    # All at once: which task comes next cannot be known.
    _memory.clear()
  _memory[path] = value
  return value
