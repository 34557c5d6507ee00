"""Scores a model on HEAR tasks, and measures its rank on a corpus.

  python -m launch.evaluate --checkpoint=runs/one --tasks=DIR
  python -m launch.evaluate --checkpoint=dasheng_base.pt --tasks=DIR --task=esc50-v2.0.0-full
  python -m launch.evaluate --checkpoint=runs/one --corpus=corpus --clips=30000
  python -m launch.evaluate --module=my_package.my_model --checkpoint=weights.pt --tasks=DIR
  python -m launch.evaluate --embeddings=z.npy
  python -m launch.evaluate --cached

A checkpoint is a run's folder, one step of it, an official Dasheng file (.pt,
.safetensors) or a Hugging Face id. With --module it is whatever that module's
load_model takes: any module with the HEAR API, of torch, TensorFlow or numpy,
such as the public wrappers of wav2vec 2.0 and PaSST. Embeddings are a .npy,
.npz, .parquet or .safetensors with an array (clips, width), of any model and
of any size: it is read in pieces.

Every result is a record: the model (weights' digest, step, layer, clamp), the
protocol, versions, scores and intervals. --out says where it goes. Embeddings
are kept in --cache and found again by weights, audio, layer, clamp and batch.
"""

import pathlib

from absl import flags

from launch import cli

_CHECKPOINT = flags.DEFINE_string('checkpoint', None,
                                  'Run, Dasheng file or hub id.')
_STEP = flags.DEFINE_integer('step', None, 'Which step; the newest otherwise.')
_MODULE = flags.DEFINE_string('module', None, 'Module with the HEAR API.')
_LAYER = flags.DEFINE_string('layer', 'final', "'final' or a block's number.")
_CLAMP = flags.DEFINE_enum(
    'clamp', 'clip', ['clip', 'batch'], "Whose loudest value bounds a log-mel: "
    "the clip's, or the batch's as in the official Dasheng.")
_TASKS = flags.DEFINE_string('tasks', None, 'Folder of HEAR task folders.')
_TASK = flags.DEFINE_list('task', [], 'Names of task folders; all otherwise.')
_PROTOCOL = flags.DEFINE_enum('protocol', 'hear',
                              ['hear', 'shuffled', 'logistic'], 'Predictor.')
_GRID = flags.DEFINE_integer('grid_points', 8, "Of HEAR's 16 settings.")
_BATCH = flags.DEFINE_integer('batch', 64, 'Clips embedded at once.',
                              lower_bound=1)
_CORPUS = flags.DEFINE_string('corpus', None, 'A prepared corpus, for RankMe.')
_CLIPS = flags.DEFINE_integer('clips', 30_000, 'Clips of it.',
                              lower_bound=2)
_SECONDS = flags.DEFINE_float('seconds', 10., 'Their length.',
                              lower_bound=.04)
_VIEWS = flags.DEFINE_integer(
    'views', 0, 'Crops and masks of each clip, for LiDAR; and Diff-eRank.')
_EMBEDDINGS = flags.DEFINE_string('embeddings', None, 'A file of embeddings.')
_ARRAY = flags.DEFINE_string('array', '', 'Which array of it, where several.')
_GROUPS = flags.DEFINE_string(
    'groups', '', 'Its array with the recording of each clip; the interval '
    'then leaves out whole recordings.')
_OUT = flags.DEFINE_string(
    'out', 'evaluations', 'JSON file, or folder that gets one, for the record.')
_CACHE = flags.DEFINE_string(
    'cache', None, "Folder of embeddings; '' keeps none. Otherwise "
    '~/.cache/audiorank/embeddings, which AUDIORANK_CACHE moves.')
_CACHED = flags.DEFINE_bool('cached', False, 'List the cache and end.')
_CLEAR = flags.DEFINE_bool('clear_cache', False, 'Empty the cache and end.')


def rank_lines(fields):
  """Returns the rank part of the table, conventions included."""
  out = []
  for name, text in (('rank', 'RankMe'), ('rank_center', 'RankMe, centred')):
    r = fields[name]
    if r['value'] is None:
      why = ('all embeddings are one vector' if name == 'rank_center' else
             'all are zero, or so small that their squares vanish')
      out.append(f'{text:32s}   undefined: {why}')
      continue
    endless = f"[{r['low_inf']:.3f}, {r['high_inf']:.3f}]"
    if r['value_inf'] is None:
      few = 'recordings' if r['n'] >= 4 * r['width'] else 'clips'
      endless = f' undefined  {endless}  too few {few} to tell'
    else:
      endless = f"{r['value_inf']:10.3f}  {endless}"
    out += [
        f"{text:32s} {r['value']:10.3f}  [{r['low']:.3f}, {r['high']:.3f}]  "
        f"n {r['n']}, width {r['width']}, eps {r['eps']:g}",
        f"{text + ', endless sample':32s} {endless}"]
  for name in fields['rank']['siblings']:
    pair = [f'{fields[r]["siblings"].get(name, float("nan")):10.4g}'
            for r in ('rank', 'rank_center')]
    out.append(f'{name:32s} {pair[0]}  centred {pair[1]}')
  for name, value in fields.get('directions', {}).items():
    out.append(f'{name:32s} {value:10.4g}')
  sizes = ', '.join(f'{value:.2f} of {n}' for n, value in
                    fields['rank']['curve'])
  out.append(f'{"RankMe by sample size":32s} {sizes}')
  return out


def task_line(name, found):
  """Returns one task's line of the table."""
  stds = found.get('stds') or {}
  scores = ', '.join(
      f'{k} {v:.4f}' + (f' (sd {stds[k]:.4f})' if stds.get(k) else '')
      for k, v in found['scores'].items())
  kept = ', cached embeddings' if found['cached'] else ''
  return f"{name:32s} {scores}  ({found['protocol']}{kept})"


def check():
  """Raises ValueError for flags that do not go together."""
  model = _CHECKPOINT.value or _MODULE.value
  if _EMBEDDINGS.value:
    if _TASKS.value or _CORPUS.value or model:
      raise ValueError('--embeddings stands alone: expected no --checkpoint, '
                       '--module, --tasks or --corpus beside it')
  elif not model:
    raise ValueError('expected --checkpoint, --module or --embeddings')
  elif not (_TASKS.value or _CORPUS.value):
    raise ValueError('expected --tasks, --corpus or both')
  if _VIEWS.value == 1 or _VIEWS.value < 0:
    raise ValueError(f'--views={_VIEWS.value}: expected at least 2, or 0')
  if _VIEWS.value and (_MODULE.value or not _CORPUS.value
                       or not _CHECKPOINT.value
                       or pathlib.Path(_CHECKPOINT.value).is_file()):
    raise ValueError('--views needs the masks and the seed of a run of ours '
                     'and clips: expected --checkpoint=RUN and --corpus')
  if _MODULE.value and (_STEP.value is not None or _LAYER.value != 'final'
                        or _CLAMP.value != 'clip'):
    raise ValueError('--step, --layer and --clamp are of our checkpoints: '
                     'expected none beside --module')


def encoder():
  """Returns the Encoder that the flags name."""
  from audiorank import encoders
  cli.compile_cache()
  if _MODULE.value:
    return encoders.module(_MODULE.value, _CHECKPOINT.value or '',
                           _BATCH.value)
  layer = int(_LAYER.value) if _LAYER.value.isdigit() else _LAYER.value
  return encoders.ours(_CHECKPOINT.value, _STEP.value, _BATCH.value, layer,
                       _CLAMP.value)


def task_folders():
  """Returns the task folders that the flags name."""
  from audiorank.hear import tasks
  folders = {f.name: f for f in tasks.find(_TASKS.value)}
  for name in _TASK.value:
    if name not in folders:
      raise ValueError(f'no task {name!r} in {_TASKS.value}: there are '
                       f'{", ".join(folders)}{cli.nearest(name, folders)}')
  return [folders[name] for name in _TASK.value or folders]


def main(argv):
  del argv
  from audiorank import embedding_cache
  root = embedding_cache.default() if _CACHE.value is None else _CACHE.value
  if _CACHED.value or _CLEAR.value:
    for name, size in embedding_cache.listing(root):
      print(f'{size / 1e6:10.2f} MB  {name}')
    print(f'{root}: {embedding_cache.clear(root)} deleted' if _CLEAR.value else root)
    return
  check()
  from audiorank import evaluate
  from audiorank.rankme import files
  record = {'versions': embedding_cache.versions()}
  if _EMBEDDINGS.value:
    record['embeddings'] = {
        'file': _EMBEDDINGS.value, 'array': _ARRAY.value,
        'groups': _GROUPS.value,
        'seen': files.fingerprint(_EMBEDDINGS.value)}
    record['rank'] = files.file_rank(_EMBEDDINGS.value, _ARRAY.value,
                                     _GROUPS.value)
    print('\n'.join(rank_lines(record['rank'])))
    name = pathlib.Path(_EMBEDDINGS.value).name
  else:
    folders = task_folders() if _TASKS.value else []
    one = encoder()
    record['encoder'] = one.about
    name = pathlib.Path(_CHECKPOINT.value or _MODULE.value).name
    if one.about['step'] is not None:
      name += f"-{one.about['step']}"
    if _CORPUS.value:
      from audiorank import data
      corpus = data.load(_CORPUS.value)
      record['corpus'] = {'path': _CORPUS.value, 'sha256': corpus.sha256,
                          'clips': _CLIPS.value, 'seconds': _SECONDS.value}
      record['rank'], _ = evaluate.corpus_rank(
          one, corpus, _CLIPS.value, _SECONDS.value, root)
      print('\n'.join(rank_lines(record['rank'])))
      if _VIEWS.value:
        record['views'] = evaluate.views_of(
            _CHECKPOINT.value, one.about['step'], corpus, _CLIPS.value,
            _SECONDS.value, _VIEWS.value, _BATCH.value)
        for what in ('lidar', 'diff_erank'):
          print(f"{what:32s} {record['views'][what]:10.4g}")
    for folder in folders:
      record[folder.name] = evaluate.score_encoder(
          one, folder, root, protocol=_PROTOCOL.value,
          grid_points=_GRID.value)
      print(task_line(folder.name, record[folder.name]), flush=True)
  print(evaluate.keep(_OUT.value, name, record))


if __name__ == '__main__':
  cli.run(main)
