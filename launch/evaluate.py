"""Scores a model on HEAR tasks, and computes its RankMe on a corpus.

  python -m launch.evaluate --checkpoint=runs/one --tasks=DIR
  python -m launch.evaluate --checkpoint=dasheng_base.pt --tasks=DIR --task=esc50-v2.0.0-full
  python -m launch.evaluate --checkpoint=runs/one --corpus=corpus --clips=30000
  python -m launch.evaluate --checkpoint=hf:facebook/wav2vec2-base --tasks=DIR
  python -m launch.evaluate --module=my_package.my_model --checkpoint=weights.pt --tasks=DIR
  python -m launch.evaluate --embeddings=z.npy
  python -m launch.evaluate --embeddings=z.npz --labels=y.csv --protocol=knn
  python -m launch.evaluate --cached

A checkpoint is a run's folder, one step of it, an official Dasheng file (.pt,
.safetensors), a Hugging Face id, or hf:NAME for an audio encoder of the
transformers library (audiorank/families.py lists them). With --module it is the argument of that
module's load_model. Any module with the HEAR API works, of torch, TensorFlow or
numpy, such as the public wrappers of wav2vec 2.0 and PaSST. Embeddings are a
.npy, .npz, .parquet or .safetensors with an array (clips, width), of any model
and any size: they are read in pieces.

The predictor is --protocol, or that of the checkpoint's own sweep, or that of
another sweep, --like=ROOT. audiorank/hear/README.md describes them. --layer=all
measures and scores every layer from one pass.

Every score is printed with its 95 % interval, the number of test clips, and
chance, the score of predictions that ignore the clip. --features also scores
the mean log-mel and MFCC of the clips, which need no network.

Every result is written as a record of the model (digest of weights, step,
layer, clamp), the protocol, versions, scores and intervals, to the file or
folder --out. Embeddings are cached in --cache; the key is a digest of weights,
audio, layer, clamp and batch.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
from typing import Any

from absl import flags

from audiorank import files
from launch import cli

_CHECKPOINT = flags.DEFINE_string('checkpoint', None,
                                  'Run, Dasheng file, hub id or hf:NAME.')
_STEP = flags.DEFINE_integer('step', None, 'Step; by default the newest.')
_MODULE = flags.DEFINE_string('module', None, 'Module with the HEAR API.')
_LAYER = flags.DEFINE_string(
    'layer', 'final', "'final', a block's number, or 'all': every layer from "
    'one pass.')
_CLAMP = flags.DEFINE_enum(
    'clamp', 'clip', ['clip', 'batch'], 'The range of a log-mel ends at the '
    'loudest value of the clip, or of the batch as in the official Dasheng.')
_TASKS = flags.DEFINE_string('tasks', None, 'Folder of HEAR task folders.')
_TASK = flags.DEFINE_list('task', [], 'Names of task folders; by default all.')
_PROTOCOL = flags.DEFINE_enum(
    'protocol', None, ['hear', 'shuffled', 'logistic', 'knn', 'xares_knn',
                       'xares', 'fewshot', 'weighted'],
    "Predictor. By default that of the checkpoint's own sweep, or else 'hear'.")
_LIKE = flags.DEFINE_string(
    'like', None, 'A sweep or a run, whose protocol is used: for scores that '
    'can be compared with it.')
_GRID = flags.DEFINE_integer(
    'grid_points', None, "Number of HEAR's 16 settings to try; by default 8.")
_SHOTS = flags.DEFINE_list('shots', ['8'], "Labels of each class of 'fewshot'.")
_FEATURES = flags.DEFINE_bool(
    'features', False, 'Also score the mean log-mel and MFCC of the clips, '
    'with the same predictor.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Clips embedded at once.',
                              lower_bound=1)
_CORPUS = flags.DEFINE_string('corpus', None, 'A prepared corpus, for RankMe.')
_CLIPS = flags.DEFINE_integer('clips', 30_000, 'Number of clips of the corpus.',
                              lower_bound=2)
_SECONDS = flags.DEFINE_float('seconds', 10., 'Length of a clip of the corpus.',
                              lower_bound=.04)
_VIEWS = flags.DEFINE_integer(
    'views', 0, 'Views (crops and masks) per clip; computes LiDAR and '
    'Diff-eRank.')
_EMBEDDINGS = flags.DEFINE_string('embeddings', None, 'File of embeddings.')
_ARRAY = flags.DEFINE_string('array', '', 'Name of the array in the file, if '
                             'it has several.')
_GROUPS = flags.DEFINE_string(
    'groups', '', 'Name of the array with the recording of each clip; the '
    'interval then leaves out whole recordings.')
_LABELS = flags.DEFINE_string(
    'labels', '', 'Labels of the embeddings, for a score without audio: name of '
    'an array of the file, or a file with one label a row.')
_OUT = flags.DEFINE_string(
    'out', 'evaluations', 'JSON file, or folder of JSON files, for the record.')
_CACHE = flags.DEFINE_string(
    'cache', None, "Folder of cached embeddings; '' for no cache. By default "
    '~/.cache/audiorank/embeddings, which AUDIORANK_CACHE moves.')
_CACHED = flags.DEFINE_bool('cached', False, 'List the cache and exit.')
_CLEAR = flags.DEFINE_bool('clear_cache', False, 'Empty the cache and exit.')


# Explanations of the measures of spectrum and directions. Most of their authors
# centre the embeddings first; audiorank/rankme/summaries.py has the formulas.
MEANINGS = {
    'rankme_no_eps': 'effective rank (Roy and Vetterli): RankMe without eps',
    'rankme_normalised': 'RankMe over the largest it could be',
    'rankme_certificate': 'largest relative rounding error of RankMe',
    'von_neumann': 'effective rank of the covariance (its entropy)',
    'participation_ratio': 'directions that share the energy evenly',
    'stable_rank': 'energy over that of the first direction',
    'nesum': 'the same, centred: NESum',
    'nuclear_ratio': 'sum of singular values over the first',
    'renyi2': 'as RankMe, by an entropy of order 2',
    'alpha_req': 'decay exponent of the eigenvalues (alpha-ReQ)',
    'alpha_req_first': 'first eigenvalue of that fit',
    'alpha_req_last': 'last eigenvalue of that fit',
    'numerical_rank': 'directions above float32 rounding',
    'numerical_rank_1e3': 'directions above a 1000th of the first',
    'numerical_rank_1e2': 'directions above a 100th of the first',
    'condition_number': 'first singular value over the last',
    'top1_energy': 'share of the energy in the first direction',
    'dims90': 'directions that hold 90 % of the energy',
    'dims99': 'directions that hold 99 % of the energy',
    'log_det': 'mean log eigenvalue: the volume of the cloud',
    'uniformity': 'how evenly directions fill the sphere (lower: more)',
    'mean_cosine': 'mean cosine of two clips',
    'self_clustering': 'how far clips cluster by themselves (0 to 1)',
    'normalised_std': 'spread of the directions (1: as random ones)',
    'twonn': 'intrinsic dimension by the two nearest clips (TwoNN)',
    'mle_dimension': 'intrinsic dimension by 20 neighbours (Levina, Bickel)',
    'mst_dimension': 'intrinsic dimension by a spanning tree (IdEst)',
    'kmeans_inertia': 'share of the variance within clusters of k-means',
    'davies_bouldin': 'overlap of these clusters (lower: apart)',
    'cluster_learnability': 'clusters told by the nearest clip before (of CLID)'}


def rank_lines(fields: Mapping[str, Any]) -> list[str]:
  """Returns the lines of RankMe and other measures, raw and centred."""
  out = []
  for name, text in (('rank', 'RankMe'), ('rank_center', 'RankMe, centred')):
    out += rank_with_interval(text, fields[name])
  # A curve that still climbs at its end: the sample is too small.
  sizes = ', '.join(f'{value:.2f} of {n}'
                    for n, value in fields['rank']['curve'])
  out += [f'{"RankMe by sample size":32s} {sizes}', '',
          f'{"other measures":24s} {"raw":>10s} {"centred":>10s}']
  centred = fields['rank_center']['siblings']
  for name, value in fields['rank']['siblings'].items():
    if name != 'rankme':  # It is above, with its interval.
      out.append(measure_line(name, value, centred.get(name, math.nan)))
  # Missing where an embedding is zero: it has no direction.
  for name, value in fields.get('directions', {}).items():
    out.append(measure_line(name, value))
  # JSON has no NaN: an undefined measure is None in the record.
  for name, number in fields.get('neighbourhood', {}).items():
    if number is None:
      number = math.nan
    out.append(measure_line(name, number))
  return out


def rank_with_interval(text: str, rank: Mapping[str, Any]) -> list[str]:
  """Returns the lines of RankMe, or the reason why it has no value.

  Args:
    text: what the lines call it.
    rank: record of rankme.record.
  """
  if rank['value'] is None:
    reason = 'all are zero, or so small that their squares vanish'
    if rank['center']:
      reason = 'all embeddings are one vector'
    return [f'{text:32s}   undefined: {reason}']
  out = [f"{text:32s} {rank['value']:10.3f}  "
         f"[{rank['low']:.3f}, {rank['high']:.3f}]  "
         f"n {rank['n']}, width {rank['width']}, eps {rank['eps']:g}"]
  interval = f"[{rank['low_inf']:.3f}, {rank['high_inf']:.3f}]"
  if rank['value_inf'] is None:
    # With many clips, it is the number of independent recordings that limits.
    few = 'clips'
    if rank['n'] >= 4 * rank['width']:
      few = 'recordings'
    endless = f' undefined  {interval}  too few {few} to tell'
  else:
    endless = f"{rank['value_inf']:10.3f}  {interval}"
  return [*out, f"{text + ', endless sample':32s} {endless}"]


def measure_line(name: str, raw: float, centred: float | None = None) -> str:
  """Returns the line of one measure: its values and its explanation."""
  centred_text = ''
  if centred is not None:
    centred_text = f'{centred:.4g}'
  return (f'{name:24s} {raw:10.4g} {centred_text:>10s}  '
          f'{MEANINGS.get(name, "")}').rstrip()


def layer_profile(layers: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns one line per layer with its RankMe, raw and centred."""
  out = ['', f'{"RankMe of every layer":32s} {"raw":>10s}  95 % interval'
         f'{"":9s}{"centred":>10s}']
  for fields in layers:
    raw, centred = fields['rank'], fields['rank_center']
    if raw['value'] is None or centred['value'] is None:
      out.append(f"  {fields['layer']!s:30s}  undefined: all are one vector")
      continue
    interval = f"[{raw['low']:.3f}, {raw['high']:.3f}]"
    out.append(f"  {fields['layer']!s:30s} {raw['value']:10.3f}  "
               f"{interval:22s}{centred['value']:10.3f}")
  return out


def more_scores(record: Mapping[str, Any]) -> list[str]:
  """Returns lines of a record's layers and of its numbers of labels, if any.

  The layer that the validation clips choose is marked.
  """
  out = []
  for row in record['result'].get('curve', ()):
    out.append(f"  {row['shots']:4d} labels a class       "
               f"{record['metric']:>22s} {row['score']:9.4f}  "
               f"{interval_text(row)}, sd of draws {row['std']:.4f}")
  for layer, share in record['result'].get('layer_weights', {}).items():
    out.append(f'  layer {layer:24s} weight {share:.3f}')
  for row in record.get('layers', ()):
    mark = ''
    if row['layer'] == record['best']['layer']:
      mark = '  <- best on validation'
    out.append(f"  layer {row['layer']!s:24s} {record['metric']:22s} "
               f"{row['score']:7.4f}  {interval_text(row)}{mark}")
  if out:
    out.append('')
  return out


def interval_text(row: Mapping[str, Any]) -> str:
  """Returns the interval of a row as text."""
  if row['low'] is None or math.isnan(row['low']):
    return 'no interval'
  return f"[{row['low']:.4f}, {row['high']:.4f}]"


def score_lines(record: Mapping[str, Any], encoder: str = '') -> list[str]:
  """Returns one line per measure of a task, the task's own measure first.

  Args:
    record: from evaluate.score.
    encoder: name of the features; '' for the model.
  """
  from audiorank import evaluate
  out, result = [], record['result']
  for i, row in enumerate(evaluate.measures(record)):
    chance = ''
    if not math.isnan(row['chance']):
      chance = f", chance {row['chance']:.4f}"
    name, about = '', ''
    # What all measures of a task share is printed once, in its first row.
    if i == 0:
      name = encoder or record['task']
      about = result['protocol']
      if record['cached']:
        about += ', cached embeddings'
      about = f"  {result['clips']} clips ({about})"
    out.append(f"{name:32s} {row['measure']:22s} {row['score']:7.4f}  "
               f'{interval_text(row)}{chance}{about}')
  return out


def check() -> None:
  """Raises ValueError for flags that cannot be combined."""
  model = _CHECKPOINT.value or _MODULE.value
  # A file of embeddings needs no model, so flags of models would have no
  # effect.
  if _EMBEDDINGS.value:
    if _TASKS.value or _CORPUS.value or model:
      raise ValueError('--embeddings cannot be combined with --checkpoint, '
                       '--module, --tasks or --corpus')
  elif _LABELS.value:
    raise ValueError('--labels needs --embeddings')
  elif not model:
    raise ValueError('expected --checkpoint, --module or --embeddings')
  elif not (_TASKS.value or _CORPUS.value):
    raise ValueError('expected --tasks, --corpus or both')
  if _LIKE.value and _PROTOCOL.value:
    raise ValueError('--like takes the protocol of a sweep and cannot be '
                     'combined with --protocol')
  if _VIEWS.value == 1 or _VIEWS.value < 0:
    raise ValueError(f'--views={_VIEWS.value}: expected at least 2, or 0')
  # Views repeat a run's own masking, which other encoders do not have.
  if _VIEWS.value and (_MODULE.value or not _CORPUS.value
                       or not _CHECKPOINT.value
                       or files.path(_CHECKPOINT.value).is_file()):
    raise ValueError('--views needs the masks and the seed of one of our runs, '
                     'and clips: expected --checkpoint=RUN and --corpus')
  if _MODULE.value and (_STEP.value is not None or _LAYER.value != 'final'
                        or _CLAMP.value != 'clip'):
    raise ValueError('--step, --layer and --clamp are for our checkpoints and '
                     'cannot be combined with --module')
  # Encoders of transformers have no steps, no masks and no log-mel of ours.
  if named() and (_STEP.value is not None or _CLAMP.value != 'clip'
                  or _VIEWS.value):
    raise ValueError('--step, --clamp and --views are for our checkpoints and '
                     f'cannot be combined with {_CHECKPOINT.value}')


def named() -> bool:
  """Returns whether --checkpoint is hf:NAME."""
  return bool(_CHECKPOINT.value) and _CHECKPOINT.value.startswith('hf:')


def encoder(settings: Mapping[str, Any]) -> Any:
  """Returns the Encoder of the flags.

  Args:
    settings: of the predictor; 'weighted' needs every layer.
  """
  from audiorank import encoders
  cli.compile_cache()
  if _MODULE.value:
    return encoders.module(_MODULE.value, _CHECKPOINT.value or '',
                           _BATCH.value)
  layer: int | str = _LAYER.value
  # RankMe alone needs only the layer that was asked for.
  if _TASKS.value and settings['protocol'] == 'weighted':
    layer = 'all'
  if _LAYER.value.isdecimal():
    layer = int(_LAYER.value)
  return encoders.opened(_CHECKPOINT.value, _STEP.value, _BATCH.value, layer,
                         _CLAMP.value)


def protocol() -> dict[str, Any]:
  """Returns the settings of hear.probe.evaluate that the flags ask for.

  Raises:
    FileNotFoundError, ValueError: --like is no sweep, --shots no numbers.
  """
  from audiorank import evaluate
  # The weakest first: defaults, then the settings of a sweep, then flags.
  # hear-eval-kit also tries 8 settings by default.
  settings: dict[str, Any] = {'protocol': 'hear', 'grid_points': 8}
  own = own_run()
  if _LIKE.value:
    settings = evaluate.sweep_protocol(_LIKE.value, check_predictor)
  elif own and not _PROTOCOL.value:
    settings = evaluate.sweep_protocol(own, check_predictor)
  settings.pop('every_layer', None)  # --layer says it.
  if _PROTOCOL.value:
    settings['protocol'] = _PROTOCOL.value
  if _GRID.value:
    settings['grid_points'] = _GRID.value
  if settings['protocol'] == 'fewshot':
    if not all(text.isdecimal() for text in _SHOTS.value):
      raise ValueError(f'--shots={",".join(_SHOTS.value)}: expected numbers of '
                       'labels, such as 8,32,128')
    settings['shots'] = [int(text) for text in _SHOTS.value]
  return settings


def check_predictor(config: Any) -> None:
  """Raises ValueError for a predictor that launch.sweep would refuse."""
  from audiorank import validate
  validate.values(config, validate.PREDICTOR)


def own_run() -> pathlib.Path | None:
  """Returns the folder of the run that --checkpoint names, if it is one."""
  if not _CHECKPOINT.value or _MODULE.value or named():
    return None
  folder = files.path(_CHECKPOINT.value)
  # A run, its checkpoints folder, or one step.
  for path in (folder, *folder.parents[:2]):
    if (path / 'config.json').is_file() and (path / 'checkpoints').is_dir():
      return path
  return None


def main(argv: list[str]) -> None:
  """Runs the command."""
  del argv
  from audiorank import embedding_cache
  cache = _CACHE.value
  if cache is None:
    cache = embedding_cache.default()
  if _CACHED.value or _CLEAR.value:
    list_cache(cache)
    return
  check()
  from audiorank import evaluate
  # Before the work, whose results would otherwise be lost.
  evaluate.check_out(_OUT.value)
  record = {'versions': embedding_cache.versions()}
  if _EMBEDDINGS.value:
    name = pathlib.Path(_EMBEDDINGS.value).name
    record |= embeddings_record()
  else:
    # Before weights are read: a wrong name must fail at once.
    folders = []
    if _TASKS.value:
      folders = evaluate.named_folders(_TASKS.value, _TASK.value, '--task')
    settings = protocol()
    model = encoder(settings)
    # Before any audio is read: a task may have only lower rates.
    for folder in folders:
      evaluate.clip_rate(folder, model.rate)
    record['encoder'] = model.about
    name = pathlib.Path(_CHECKPOINT.value or _MODULE.value).name
    if model.about['step'] is not None:
      # The step that was chosen, which need not be the newest.
      name += f"-{model.about['step']}"
    if _CORPUS.value:
      # RankMe first: it needs no labels and takes less time than the tasks.
      record |= corpus_record(model, cache)
    record |= task_records(model, folders, settings, cache)
  print(evaluate.write(_OUT.value, name, record))


def list_cache(cache: str) -> None:
  """Prints the contents of the cache, and empties it with --clear_cache."""
  from audiorank import embedding_cache
  for name, size in embedding_cache.listing(cache):
    print(f'{size / 1e6:10.2f} MB  {name}')
  if _CLEAR.value:
    print(f'{cache}: {embedding_cache.clear(cache)} deleted')
  else:
    print(cache)


def embeddings_record() -> dict[str, Any]:
  """Prints RankMe, and the score, of a file of embeddings; returns its record.
  """
  from audiorank.rankme import files as embeddings
  rank = embeddings.file_rank(_EMBEDDINGS.value, _ARRAY.value, _GROUPS.value)
  print('\n'.join(rank_lines(rank)))
  out: dict[str, Any] = {}
  if _LABELS.value:
    from audiorank import labelled
    one = labelled.score(_EMBEDDINGS.value, _LABELS.value, _ARRAY.value,
                         _GROUPS.value, protocol())
    out[one['task']] = one
    print('\n'.join(score_lines(one)))
    print('\n'.join(more_scores(one)), end='')
  return {**out, 'rank': rank, 'embeddings': {
      'file': _EMBEDDINGS.value, 'array': _ARRAY.value,
      'groups': _GROUPS.value, 'seen': embeddings.fingerprint(_EMBEDDINGS.value)}}


def corpus_record(model: Any, cache: str) -> dict[str, Any]:
  """Prints RankMe of a model on a corpus, and measures of views, if any.

  Args:
    model: an Encoder.
    cache: folder of embeddings, or ''.

  Returns:
    their record.
  """
  from audiorank import data
  from audiorank import evaluate
  corpus = data.load(_CORPUS.value)
  rank, _ = evaluate.corpus_rank(model, corpus, _CLIPS.value, _SECONDS.value,
                                 cache)
  print('\n'.join(rank_lines(rank)))
  if 'layers' in rank:
    print('\n'.join(layer_profile(rank['layers'])))
  out = {'rank': rank, 'corpus': {
      'path': _CORPUS.value, 'sha256': corpus.sha256, 'clips': _CLIPS.value,
      'seconds': _SECONDS.value}}
  if _VIEWS.value:
    # From the checkpoint itself: an Encoder embeds whole clips, unmasked.
    out['views'] = evaluate.views_of(
        _CHECKPOINT.value, model.about['step'], corpus, _CLIPS.value,
        _SECONDS.value, _VIEWS.value, _BATCH.value)
    for name in ('lidar', 'diff_erank'):
      print(f"{name:32s} {out['views'][name]:10.4g}")
  return out


def task_records(model: Any, folders: list[pathlib.Path],
                 settings: Mapping[str, Any], cache: str) -> dict[str, Any]:
  """Prints the scores of a model and, with --features, of features.

  Args:
    model: an Encoder.
    folders: of the tasks.
    settings: of the predictor.
    cache: folder of embeddings, or ''.

  Returns:
    {task, or task.features: record}.
  """
  from audiorank import encoders
  from audiorank import evaluate
  out = {}
  for folder in folders:
    record = evaluate.score(model, folder, settings, cache)
    out[folder.name] = record
    # Task by task: a reader need not wait for the last one.
    print('\n'.join(score_lines(record)), flush=True)
    print('\n'.join(more_scores(record)), end='', flush=True)
    if not _FEATURES.value:
      continue
    for name in encoders.FEATURES:
      beside = evaluate.feature_score(name, folder, settings)
      if beside is None:
        print(f'  {name}: another process is scoring it')
        continue
      out[f'{folder.name}.{name}'] = beside
      print('\n'.join(score_lines(beside, f'  {name}')), flush=True)
  mean = evaluate.xares_mean([out[folder.name] for folder in folders])
  if mean:
    out['xares_mean'] = mean
    print(f"{'mean weighted as in X-ARES':32s} {'':22s} {mean['score']:7.4f}  "
          f"{interval_text(mean)}  {mean['tasks']} tasks")
  return out


if __name__ == '__main__':
  cli.run(main)
