"""A checkpoint -> scores on HEAR tasks -> records.

Shapes: N clips, D width.
"""

import hashlib
import pathlib
import time

from audiorank import checkpoint
from audiorank import embed
from audiorank import records
from audiorank.hear import probe
from audiorank.hear import tasks


def task_folders(config):
  """Returns the task folders that a config's eval part names.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or not the named ones.
  """
  folders = tasks.find(config.eval.tasks)
  names = [n for n in config.eval.names.split(',') if n]
  if not names:
    return folders
  by_name = {f.name: f for f in folders}
  for name in names:
    if name not in by_name:
      raise ValueError(f'eval.names: no task {name!r} in {config.eval.tasks}: '
                       f'there are {", ".join(sorted(by_name))}')
  return [by_name[name] for name in names]


def fingerprint(folder):
  """Returns 12 hex digits of a task's labels, splits and audio.

  Of audio files the name, the size and the middle 4 KiB count: all of a large
  task would take longer to read than its embeddings to make.
  """
  folder = pathlib.Path(folder)
  seen = hashlib.sha256()
  for path in sorted(folder.glob('*.json')) + sorted(folder.glob('*.csv')):
    seen.update(path.name.encode() + path.read_bytes())
  for path in sorted(folder.glob('*/*/*')):
    relative = path.relative_to(folder)
    size = path.stat().st_size
    with open(path, 'rb') as file:
      file.seek(max(0, size // 2 - 2048))
      seen.update(f'{relative} {size}\n'.encode() + file.read(4096))
  return seen.hexdigest()[:12]


def embeddings(config, params, task, batch):
  """Returns what hear.probe.evaluate takes: split -> z_ND, or
  file -> (z_LD, ms_L) for an event task; `batch` clips at once."""
  out = {}
  for split in task.splits:
    files, waves = zip(*tasks.audio(task, split))
    if task.embedding_type == 'scene':
      out[split] = embed.scene(config, params, waves, batch=batch)
    else:
      for file, wave_S in zip(files, waves):
        z_BLD, ms_BL = embed.timestamps(config, params, wave_S[None])
        out[file] = (z_BLD[0], ms_BL[0])
  return out


def protocol(config):
  """Returns the predictor's settings, as a record carries them."""
  e = config.eval
  return {'protocol': e.protocol, 'grid_points': e.grid_points,
          'hidden': e.hidden, 'max_epochs': e.max_epochs, 'seed': e.seed}


def score(config, params, folder):
  """Returns the record of one task: scores, protocol and where they hold."""
  began = time.monotonic()
  task = tasks.load(folder)
  z = embeddings(config, params, task, config.eval.batch)
  found = probe.evaluate(task, z, **protocol(config))
  return {'task': task.name, 'task_sha256': fingerprint(folder),
          'embedding_type': task.embedding_type,
          'metric': task.evaluation[0], 'settings': protocol(config),
          'result': found, 'seconds': time.monotonic() - began}


def run(workdir, config, step=None, stop=lambda: False,
        tell=lambda *_, **__: None):
  """Scores a run's checkpoint on every task that has no such record yet.

  Args:
    workdir: the run's folder.
    config: frozen config; its `eval` part says which tasks and how.
    step: which checkpoint; None takes the newest.
    stop: polled between tasks; True leaves at once.
    tell: called with what is being done.

  Returns:
    whether every task has its record.
  """
  folders = task_folders(config)
  if step is None:
    step = checkpoint.steps(pathlib.Path(workdir) / 'checkpoints')[-1]
  wanted = []
  for folder in folders:
    path = records.path(workdir, f'hear.{folder.name}', step)
    if path.exists():
      have = records.read_json(path)
      if (have['settings'] == records.plain(protocol(config))
          and have['task_sha256'] == fingerprint(folder)):
        continue
    wanted.append(folder)
  if not wanted:
    return True
  _, params = checkpoint.load(workdir, step)
  for folder in wanted:
    if stop():
      return False
    tell(f'scoring {folder.name}', force=True)
    records.write(workdir, f'hear.{folder.name}', step,
                  score(config, params, folder))
  return True
