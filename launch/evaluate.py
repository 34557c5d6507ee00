"""Scores a checkpoint on HEAR tasks, and measures its rank on a corpus.

  python -m launch.evaluate --checkpoint=runs/one --tasks=DIR
  python -m launch.evaluate --checkpoint=dasheng_base.pt --tasks=DIR --task=esc50-v2.0.0-full
  python -m launch.evaluate --checkpoint=runs/one --corpus=corpus --clips=30000
  python -m launch.evaluate --embeddings=z.npy

A checkpoint is a run's folder, one step of it, or an official Dasheng file
(.pt, .safetensors). Embeddings are an .npy of shape (clips, width), of any
model; it is mapped, not loaded. --out keeps the results as JSON.
"""

import pathlib

from absl import flags

from launch import cli

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A run or Dasheng file.')
_STEP = flags.DEFINE_integer('step', None, 'Which step; the newest otherwise.')
_TASKS = flags.DEFINE_string('tasks', None, 'Folder of HEAR task folders.')
_TASK = flags.DEFINE_list('task', [], 'Names of task folders; all otherwise.')
_PROTOCOL = flags.DEFINE_enum('protocol', 'hear',
                              ['hear', 'shuffled', 'logistic'], 'Predictor.')
_GRID = flags.DEFINE_integer('grid_points', 8, "Of HEAR's 16 settings.")
_BATCH = flags.DEFINE_integer('batch', 64, 'Clips embedded at once.')
_CORPUS = flags.DEFINE_string('corpus', None, 'A prepared corpus, for RankMe.')
_CLIPS = flags.DEFINE_integer('clips', 30_000, 'Clips of it.')
_SECONDS = flags.DEFINE_float('seconds', 10., 'Their length.')
_EMBEDDINGS = flags.DEFINE_string('embeddings', None, 'An .npy of embeddings.')
_OUT = flags.DEFINE_string('out', None, 'JSON file for the results.')


def load(path, step):
  """Returns (config, params) of a run or of an official file."""
  if pathlib.Path(path).suffix in ('.pt', '.pth', '.safetensors'):
    from audiorank import dasheng
    return dasheng.load(path)
  from audiorank import checkpoint
  return checkpoint.load(path, step)


def rank_lines(fields):
  """Returns the rank part of the table, conventions included."""
  out = []
  for name, text in (('rank', 'RankMe'), ('rank_center', 'RankMe, centred')):
    r = fields[name]
    out.append(f"{text:32s} {r['value']:10.3f}  [{r['low']:.3f}, "
               f"{r['high']:.3f}]  n {r['n']}, width {r['width']}, eps "
               f"{r['eps']:g}")
  for name, value in fields['rank']['siblings'].items():
    out.append(f'{name:32s} {value:10.4g}')
  return out


def mapped(path):
  """Returns the (clips, width) array of an .npy, mapped into memory."""
  import numpy as np
  try:
    z_ND = np.load(path, mmap_mode='r', allow_pickle=False)
  except (EOFError, ValueError) as error:
    raise ValueError(f'{path}: not an .npy of numbers ({error})') from None
  if not isinstance(z_ND, np.ndarray) or z_ND.ndim != 2:
    found = getattr(z_ND, 'shape', 'an archive')
    raise ValueError(f'{path}: found {found}, expected an .npy of shape '
                     '(clips, width)')
  return z_ND


def main(argv):
  del argv
  import numpy as np
  from audiorank import data
  from audiorank import embed
  from audiorank import monitor
  from audiorank import program
  from audiorank import records
  from audiorank.hear import probe
  from audiorank.hear import tasks
  results = {}
  if _EMBEDDINGS.value:
    if _TASKS.value or _CORPUS.value or _CHECKPOINT.value:
      raise ValueError('--embeddings stands alone: expected no --checkpoint, '
                       '--tasks or --corpus beside it')
    z_ND = mapped(_EMBEDDINGS.value)
    try:
      results['rank'] = monitor.rank_fields(z_ND, np.arange(len(z_ND)))
    except ValueError as error:
      raise ValueError(f'{_EMBEDDINGS.value}: {error}') from None
    print('\n'.join(rank_lines(results['rank'])))
  elif not _CHECKPOINT.value:
    raise ValueError('expected --checkpoint or --embeddings')
  elif not (_TASKS.value or _CORPUS.value):
    raise ValueError('expected --tasks, --corpus or both')
  else:
    cli.compile_cache()
    config, params = load(_CHECKPOINT.value, _STEP.value)
  if _CORPUS.value and not _EMBEDDINGS.value:
    wave_NS, source_N = data.sample(
        data.load(_CORPUS.value), _CLIPS.value,
        program.crop_samples(_SECONDS.value), 0)
    z_ND = embed.scene(config, params, wave_NS, batch=_BATCH.value)
    results['rank'] = monitor.rank_fields(z_ND, source_N)
    print('\n'.join(rank_lines(results['rank'])))
  if _TASKS.value and not _EMBEDDINGS.value:
    folders = tasks.find(_TASKS.value)
    names = [f.name for f in folders]
    for name in _TASK.value:
      if name not in names:
        raise ValueError(f'no task {name!r} in {_TASKS.value}: there are '
                         f'{", ".join(names)}')
    from audiorank import evaluate
    for folder in folders:
      if _TASK.value and folder.name not in _TASK.value:
        continue
      task = tasks.load(folder)
      z = evaluate.embeddings(config, params, task, _BATCH.value)
      found = probe.evaluate(task, z, protocol=_PROTOCOL.value,
                             grid_points=_GRID.value)
      results[task.name] = found
      scores = ', '.join(f'{k} {v:.4f}' for k, v in found['scores'].items())
      print(f"{task.name:32s} {scores}  ({found['protocol']})", flush=True)
  if _OUT.value:
    records.write_json(_OUT.value, results)
    print(_OUT.value)


if __name__ == '__main__':
  cli.run(main)
