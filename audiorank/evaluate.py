"""A model -> its embeddings -> RankMe and scores on HEAR tasks -> records.

Shapes: N clips, D width, K singular values, L timestamps.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
import pandas as pd
import soxr

from audiorank import audio
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import data
from audiorank import embed
from audiorank import embedding_cache
from audiorank import encoders
from audiorank import files
from audiorank import rankme
from audiorank import records
from audiorank import train_state
from audiorank.hear import probe
from audiorank.hear import staged
from audiorank.hear import tasks
from audiorank.rankme import record as rank_record


def task_folders(config: config_lib.Config) -> list[pathlib.Path]:
  """Returns the task folders that a config's eval part names.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or not the named ones.
  """
  return named_folders(config.eval.tasks, config.eval.task_names,
                       'eval.task_names')


def checked_folders(config: config_lib.Config) -> list[pathlib.Path]:
  """Returns `task_folders`, which must be those that a run's config means.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or others.
  """
  try:
    folders = task_folders(config)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{error} (moved? --tasks=FOLDER says where they '
                            'are now)') from None
  wanted = config.eval.sha256
  if wanted and tasks.checksum(folders) != wanted:
    raise ValueError(f'eval.tasks {config.eval.tasks}: other tasks than this '
                     f'run is to be scored on (checksum {wanted}): run '
                     'launch.sweep with these tasks to take them instead')
  return folders


def named_folders(root: files.Path, names: Sequence[str],
                  field: str) -> list[pathlib.Path]:
  """Returns the task folders of these names, of no name all.

  Args:
    root: see tasks.find.
    names: of folders.
    field: that the names are of, for the message.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or not the named ones.
  """
  by_name = {folder.name: folder for folder in tasks.find(root)}
  for name in names:
    if name not in by_name:
      raise ValueError(f'{field}: no task {name!r} in {root}: there are '
                       f'{", ".join(sorted(by_name))}'
                       f'{config_lib.nearest(name, by_name)}')
  return [by_name[name] for name in names or by_name]


def clip_rate(folder: files.Path, rate: int) -> int:
  """Returns the rate of the clips to read for a model of `rate` Hz.

  Its own where the task has it, else the lowest above it, to be resampled
  (the public archives have 48 kHz alone).

  Raises:
    ValueError: the task has only lower rates; names them.
  """
  rates = sorted(int(p.name) for p in files.path(folder).iterdir()
                 if p.is_dir() and p.name.isdigit())
  enough = [r for r in rates if r >= rate]
  if rates and not enough:
    raise ValueError(f'{folder}: clips at {", ".join(map(str, rates))} Hz, the '
                     f'model takes {rate}')
  return enough[0] if enough else rate


def clips(task: tasks.Task, split: str,
          rate: int) -> tuple[Sequence[str], Sequence[np.ndarray]]:
  """Returns (files, waves) of a split at `rate` Hz."""
  names, waves = zip(*staged.audio(task, split))
  if task.rate != rate:
    waves = [np.clip(soxr.resample(w, task.rate, rate, 'HQ'), -1, 1)
             for w in waves]
  return names, waves


def embeddings(encoder: encoders.Encoder, task: tasks.Task) -> dict[str, Any]:
  """Returns what hear.probe.evaluate takes: split -> z_ND, or
  file -> (z_LD, ms_L) for an event task."""
  out = {}
  for split in task.splits:
    names, waves = clips(task, split, encoder.rate)
    if task.embedding_type == 'scene':
      out[split] = encoder.scene(waves)
      continue
    for name, wave_S in zip(names, waves):
      z_BLD, ms_BL = encoder.timestamps(wave_S[None])
      out[name] = (z_BLD[0], ms_BL[0])
  return out


def cached_embeddings(encoder: encoders.Encoder, task: tasks.Task,
                      root: str) -> tuple[dict[str, Any], bool]:
  """Returns (embeddings of a task, whether they were in the cache).

  Args:
    encoder: of audiorank.encoders.
    task: of hear.tasks.load.
    root: the cache's folder, or ''.
  """
  event = task.embedding_type == 'event'

  def compute():
    z = embeddings(encoder, task)
    if not event:
      return z
    return {f'{part}/{file}': x for file, pair in z.items()
            for part, x in zip(('z', 'ms'), pair)}

  arrays, hit = embedding_cache.fetch(
      root, encoder.key, task.name, contents(task), compute)
  if not event:
    return arrays, hit
  return {file: (arrays[f'z/{file}'], arrays[f'ms/{file}'])
          for names in task.files.values() for file in names}, hit


def contents(task: tasks.Task) -> dict[str, Any]:
  """Returns what a task's clips are, for the key of a cache.

  The fingerprint reads only a part of each clip; a cache must not be wrong
  when another part changes, so that the times of the last change count too.
  """
  stats = files.stats(task.folder)
  names = [str(p.relative_to(task.folder))
           for paths in task.paths.values() for p in paths]
  touched = files.digest([[name, stats[name][1]] for name in names])
  return {'task': staged.fingerprint(task.folder), 'rate': task.rate,
          'touched': touched}


def protocol(config: config_lib.Config) -> dict[str, Any]:
  """Returns the predictor's settings, as a record carries them."""
  e = config.eval
  return {'protocol': e.protocol, 'grid_points': e.grid_points,
          'hidden': e.hidden, 'max_epochs': e.max_epochs, 'seed': e.seed}


def score(encoder: encoders.Encoder, folder: files.Path,
          settings: Mapping[str, Any], cache: str = '') -> dict[str, Any]:
  """Returns the record of one encoder on one task.

  Args:
    encoder: of audiorank.encoders.
    folder: of the task.
    settings: of hear.probe.evaluate.
    cache: folder of embeddings; '' keeps none.

  Returns:
    task, task_sha256, embedding_type, metric, clip_rate: what was scored.
    settings, version: by what; see `probe.VERSION`.
    result: of hear.probe.evaluate.
    cached, seconds: whether embeddings were in the cache; how long it took.

  Raises:
    FileNotFoundError, ValueError: a task, encoder or setting that cannot be.
  """
  began = time.monotonic()
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  z, hit = cached_embeddings(encoder, task, cache)
  result = probe.evaluate(task, z, **settings)
  return {'task': task.name, 'task_sha256': staged.fingerprint(folder),
          'embedding_type': task.embedding_type,
          'metric': task.evaluation[0], 'clip_rate': task.rate,
          'settings': dict(settings), 'version': probe.VERSION,
          'result': result, 'cached': hit,
          'seconds': time.monotonic() - began}


def feature_score(name: str, folder: files.Path,
                  settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the record of a set of features on one task: see `score`.

  It is kept in the user's cache by content, and computed once.

  Args:
    name: of encoders.FEATURES.
    folder: of the task.
    settings: of hear.probe.evaluate.

  Returns:
    the record; None where another process is computing it.
  """
  encoder = encoders.features(name)
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  key = files.digest([encoder.key, contents(task), config_lib.plain(settings),
                      probe.VERSION, embedding_cache.versions()])
  path = files.cache_folder('scores') / f'{name}-{task.name}-{key}.json'
  record = files.read_cached(path, files.read_json)
  if record is not None:
    return record
  with contextlib.ExitStack() as stack:
    try:
      ours = files.local_cache('scores') / f'{path.stem}.lock'
      ours.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(ours, 'a'))
      files.lock(lock)
    except BlockingIOError:
      return None
    except OSError as error:  # No cache: it is computed every time.
      logging.warning('%s: cannot be locked (%s)', path, error.strerror)
    record = score(encoder, folder, settings)
    files.write_cached(path, lambda part: files.write_json(part, record))
  return record


def run(workdir: files.Path, config: config_lib.Config,
        step: int | None = None, stop: Callable[[], bool] = lambda: False,
        tell: Callable[..., None] = lambda *_, **__: None) -> bool:
  """Scores a run's checkpoint on every task that has no such record yet.

  An untrained baseline also scores what needs no network: the mean log-mel
  and MFCC of the clips (`feature_score`), under the same predictor.

  Args:
    workdir: the run's folder.
    config: frozen config; its `eval` part says which tasks and how.
    step: which checkpoint; None takes the newest.
    stop: polled between tasks; True leaves at once.
    tell: called with what is being done.

  Returns:
    whether every task has its record.
  """
  workdir, settings = files.path(workdir), protocol(config)
  folders = checked_folders(config)
  if step is None:
    step = checkpoint.steps(workdir / 'checkpoints')[-1]
  jobs = [(f'hear.{folder.name}', folder, '') for folder in folders]
  if not config.train.steps:
    jobs += [(f'features.{name}.{folder.name}', folder, name)
             for name in encoders.FEATURES for folder in folders]
  jobs = [job for job in jobs
          if not is_current(records.path(workdir, job[0], step), job[1],
                            settings)]
  encoder = None
  for kind, folder, features in jobs:
    if stop():
      return False
    tell(f'scoring {folder.name}', force=True)
    if features:
      record = feature_score(features, folder, settings)
    else:
      if encoder is None:
        _, params = checkpoint.load(workdir, step)
        encoder = encoders.of_params(config, params, config.eval.batch)
      record = score(encoder, folder, settings)
    if record:
      record['verified'] = checkpoint.checksums(
          workdir / 'checkpoints', step).exists()
      records.write(workdir, kind, step, record)
  return True


def is_current(path: pathlib.Path, folder: files.Path,
               settings: Mapping[str, Any]) -> bool:
  """Returns whether a record is there, of this task and by these settings."""
  if not path.exists():
    return False
  record = files.read_json(path)
  return (record['settings'] == config_lib.plain(settings)
          and record['task_sha256'] == staged.fingerprint(folder)
          and record.get('version') == probe.VERSION)


def write(out: files.Path, name: str, record: Mapping[str, Any]
          ) -> pathlib.Path:
  """Writes a record; returns its path.

  Args:
    out: a .json file, or a folder: the file in it is then named after `name`
      and a digest of what the record is of, so that the same evaluation has
      the same file and another one another.
    name: of the model.
    record: JSON material.
  """
  path = files.path(out)
  if path.suffix != '.json':
    path = path / f'{name}-{files.digest(identity(record))}.json'
  files.write_json(path, record)
  return path


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what an evaluation is of, without what came out."""
  out = {}
  for key, value in record.items():
    if isinstance(value, dict) and 'task_sha256' in value:
      out[key] = {'task_sha256': value['task_sha256'],
                  'protocol': value['result']['protocol'],
                  'settings': value['result']['settings']}
    elif key == 'rank':
      out[key] = sorted(value)
    elif key == 'encoder':
      # Checksums that were lost or restored make it no other evaluation.
      out[key] = {k: v for k, v in value.items() if k != 'verified'}
    else:
      out[key] = value
  return out


def scores(model: tuple[Any, Any, Any] | files.Path, tasks_root: files.Path,
           names: Sequence[str] | None = None, protocol: str = 'hear',
           grid_points: int = 8, cached: files.Path = '') -> pd.DataFrame:
  """Returns the scores of a model on HEAR tasks, a row a task and measure.

  It is offered as `audiorank.scores(model, tasks)`.

  Args:
    model: of `audiorank.load`, or what that takes.
    tasks_root: a folder of HEAR task folders, or one of them.
    names: of the folders to take; None takes all.
    protocol: 'hear', 'shuffled' or 'logistic'; see audiorank/hear/README.md.
    grid_points: of HEAR's 16 settings.
    cached: a folder where embeddings are kept; '' keeps none.

  Returns:
    Columns task, measure, score, low, high (95 %; NaN where unknown), chance
    (of predictions that ignore the clip), clips (tested), std (over folds or
    seeds; NaN without) and protocol; the task's own measure comes first.

  Raises:
    FileNotFoundError, ValueError: no such model or task, an unknown protocol.
  """
  if isinstance(model, (str, os.PathLike)):
    model = encoders.weights(model)
  config, params, about = model
  encoder = encoders.of_params(config, params, about=about)
  settings = {'protocol': protocol, 'grid_points': grid_points}
  rows = []
  for folder in named_folders(tasks_root, names or (), 'names'):
    rows += measures(score(encoder, folder, settings, os.fspath(cached)))
  return pd.DataFrame(rows)


def measures(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a row a measure of a record of `score`, the task's own first."""
  result, rows = record['result'], []
  number = lambda value: math.nan if value is None else value
  order = sorted(result['scores'], key=lambda m: m != record['metric'])
  for measure in order:
    interval = result['intervals'].get(measure, {})
    rows.append({
        'task': record['task'], 'measure': measure,
        'score': result['scores'][measure],
        'low': number(interval.get('low')),
        'high': number(interval.get('high')),
        'chance': number(result['chance'].get(measure)),
        'clips': result['clips'],
        'std': number((result['stds'] or {}).get(measure)),
        'protocol': result['protocol']})
  return rows


def corpus_rank(encoder: encoders.Encoder, corpus: data.Corpus, clips: int,
                seconds: float, root: str) -> tuple[dict[str, Any], bool]:
  """Returns (rank fields, whether the embeddings were in the cache).

  Args:
    encoder: of audiorank.encoders.
    corpus: of data.load.
    clips, seconds: how many, of what length.
    root: the cache's folder, or ''.
  """
  def compute():
    wave_NS, source_N = data.sample(
        corpus, clips, int(round(seconds * corpus.rate)), 0)
    if encoder.rate != corpus.rate:
      wave_NS = [soxr.resample(w, corpus.rate, encoder.rate, 'HQ')
                 for w in wave_NS]
    return {'z': encoder.scene(wave_NS), 'source': source_N}

  arrays, hit = embedding_cache.fetch(root, encoder.key, 'corpus', {
      'corpus': corpus.sha256, 'clips': clips, 'seconds': seconds}, compute)
  return rank_record.rank_fields(
      arrays['z'], arrays['source'], encoder.about.get('layer', 'scene')), hit


def views_of(path: files.Path, step: int | None, corpus: data.Corpus,
             clips: int, seconds: float, count: int,
             batch: int) -> dict[str, Any]:
  """Returns LiDAR and Diff-eRank of a run of ours; see view_fields.

  Args:
    path, step: the checkpoint.
    corpus: of data.load.
    clips, seconds: how many, of what length.
    count: views of a clip.
    batch: clips encoded at once.
  """
  config, params = checkpoint.load(path, step)
  wave_NS, _ = data.sample(corpus, clips, int(round(seconds * corpus.rate)), 0)
  folder, _ = checkpoint.find(path)
  if 0 in checkpoint.steps(folder):
    _, before = checkpoint.load(folder, 0)
  else:
    before = untrained(config, wave_NS)
  return view_fields(config, params, before, wave_NS, count, batch=batch)


def untrained(config: config_lib.Config,
              wave_NS: np.ndarray) -> dict[str, Any]:
  """Returns the linen variables that a run of `config` would start from.

  Where train.calibrate_batch_norm is set its BatchNorm statistics are those of
  `wave_NS`: the run's own are of other clips, and stand in its step 0.
  """
  state = jax.jit(lambda key: train_state.init(config, key))(
      jax.random.key(config.seed))
  if config.train.calibrate_batch_norm:
    state = train_state.calibrate_batch_norm(config, state, wave_NS)
  return {'params': state.params, 'batch_stats': state.batch_stats}


def view_fields(config: config_lib.Config, params: dict[str, Any],
                before: dict[str, Any], wave_NS: np.ndarray, views: int = 10,
                seed: int = 0, batch: int = 64,
                tokens: int = 256) -> dict[str, Any]:
  """Returns LiDAR and Diff-eRank of a run of ours, with their settings.

  Args:
    config: the run's config: its masks, its crop, its seed.
    params: the linen variables.
    before: those that training started from.
    wave_NS: int16 clips, at least as long as the run's crop.
    views: of a clip, for LiDAR.
    seed: of crops and masks.
    batch: clips encoded at once.
    tokens: clips whose tokens are compared with the untrained network's.

  Raises:
    ValueError: as `embed.views`.

  Source: Thilak et al., arXiv 2312.04000 (LiDAR); Wei et al., arXiv
  2401.17139 (Diff-eRank); see rankme.lidar and rankme.diff_erank.
  """
  samples = min(config_lib.crop_samples(config.data.crop_seconds),
                wave_NS.shape[1] * 3 // 4)
  group = config.mask.group_size * config.model.patch_frames * audio.HOP
  samples = samples // group * group
  z_NVD = embed.views(config, params, wave_NS, views, samples, seed, batch)
  few_NS = wave_NS[:tokens]
  rank = [rankme.token_rank(embed.timestamps(config, p, few_NS)[0])
          for p in (before, params)]
  return {'lidar': rankme.lidar(z_NVD), 'lidar_views': views,
          'lidar_seconds': samples / config_lib.RATE,
          'lidar_clips': len(wave_NS),
          'token_rank_untrained': rank[0], 'token_rank': rank[1],
          'diff_erank': rank[0] - rank[1], 'token_clips': len(few_NS)}
