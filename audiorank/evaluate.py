"""A model -> its embeddings -> RankMe and scores on HEAR tasks -> records.

Shapes: N clips, D width, K singular values, L timestamps.
"""

from collections.abc import Sequence
import os
import pathlib
import time
from typing import Any

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
from audiorank.rankme import record


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
                       f'there are {", ".join(sorted(by_name))}'
                       f'{config_lib.nearest(name, by_name)}')
  return [by_name[name] for name in names]


def clip_rate(folder, rate):
  """Returns the rate of the clips to read for a model of `rate` Hz.

  Its own where the task has it, else the lowest above it, to be resampled
  (the public archives have 48 kHz alone).

  Raises:
    ValueError: the task has only lower rates; names them.
  """
  have = sorted(int(p.name) for p in pathlib.Path(folder).iterdir()
                if p.is_dir() and p.name.isdigit())
  enough = [r for r in have if r >= rate]
  if not enough and have:
    raise ValueError(f'{folder}: clips at {", ".join(map(str, have))} Hz, the '
                     f'model takes {rate}')
  return enough[0] if enough else rate


def clips(task, split, rate):
  """Returns (files, waves) of a split at `rate` Hz."""
  files, waves = zip(*staged.audio(task, split))
  if task.rate != rate:
    waves = [np.clip(soxr.resample(w, task.rate, rate, 'HQ'), -1, 1)
             for w in waves]
  return files, waves


def embeddings(encoder, task):
  """Returns what hear.probe.evaluate takes: split -> z_ND, or
  file -> (z_LD, ms_L) for an event task."""
  out = {}
  for split in task.splits:
    files, waves = clips(task, split, encoder.rate)
    if task.embedding_type == 'scene':
      out[split] = encoder.scene(waves)
    else:
      for file, wave_S in zip(files, waves):
        z_BLD, ms_BL = encoder.timestamps(wave_S[None])
        out[file] = (z_BLD[0], ms_BL[0])
  return out


def cached_embeddings(encoder, task, root):
  """Returns (embeddings of a task, whether they were in the cache).

  Args:
    encoder: of audiorank.encoders.
    task: of hear.tasks.load.
    root: the cache's folder, or ''.
  """
  event = task.embedding_type == 'event'

  def make():
    z = embeddings(encoder, task)
    if not event:
      return z
    return {f'{part}/{file}': x for file, pair in z.items()
            for part, x in zip(('z', 'ms'), pair)}

  found, hit = embedding_cache.fetch(root, encoder.key, task.name, {
      'task': staged.fingerprint(task.folder), 'rate': task.rate,
      'touched': touched(task)}, make)
  if not event:
    return found, hit
  return {file: (found[f'z/{file}'], found[f'ms/{file}'])
          for files in task.files.values() for file in files}, hit


def touched(task):
  """Returns a digest of when every clip was last written.

  The fingerprint reads only a part of each; a cache must not be wrong when
  another part changes.
  """
  return records.digest([[str(p.relative_to(task.folder)),
                          p.stat().st_mtime_ns]
                         for paths in task.paths.values() for p in paths])


def protocol(config):
  """Returns the predictor's settings, as a record carries them."""
  e = config.eval
  return {'protocol': e.protocol, 'grid_points': e.grid_points,
          'hidden': e.hidden, 'max_epochs': e.max_epochs, 'seed': e.seed}


def score(config, params, folder):
  """Returns the record of one task: scores, protocol and where they hold."""
  began = time.monotonic()
  encoder = encoders.of_params(config, params, config.eval.batch)
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  found = probe.evaluate(task, embeddings(encoder, task), **protocol(config))
  return {'task': task.name, 'task_sha256': staged.fingerprint(folder),
          'embedding_type': task.embedding_type,
          'metric': task.evaluation[0], 'settings': protocol(config),
          'result': found, 'seconds': time.monotonic() - began}


def score_encoder(encoder, folder, root, **settings):
  """Returns what hear.probe.evaluate does, and of which task and audio.

  Args:
    encoder: of audiorank.encoders.
    folder: of the task.
    root: the cache's folder, or ''.
    **settings: of hear.probe.evaluate.
  """
  began = time.monotonic()
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  z, hit = cached_embeddings(encoder, task, root)
  found = probe.evaluate(task, z, **settings)
  return {**found, 'task': task.name, 'task_sha256': staged.fingerprint(folder),
          'metric': task.evaluation[0], 'clip_rate': task.rate,
          'cached': hit, 'seconds': time.monotonic() - began}


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
          and have['task_sha256'] == staged.fingerprint(folder)):
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


def keep(out, name, record):
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
    of = {k: ({f: v[f] for f in ('task_sha256', 'protocol', 'settings')}
              if isinstance(v, dict) and 'task_sha256' in v else
              sorted(v) if k == 'rank' else v) for k, v in record.items()}
    path = path / f'{name}-{records.digest(of)}.json'
  records.write_json(path, record)
  return path


def scores(model: tuple[Any, Any, Any] | str | os.PathLike[str],
           tasks_root: str | os.PathLike[str],
           names: Sequence[str] | None = None, protocol: str = 'hear',
           grid_points: int = 8,
           cached: str | os.PathLike[str] = '') -> pd.DataFrame:
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
    Columns task, measure, score, std (over folds or seeds; NaN without) and
    protocol; the task's own measure comes first.

  Raises:
    FileNotFoundError, ValueError: no such model or task, an unknown protocol.
  """
  config, params, about = (
      encoders.weights(model) if isinstance(model, (str, os.PathLike))
      else model)
  encoder = encoders.of_params(config, params, about=about)
  folders = {f.name: f for f in tasks.find(tasks_root)}
  rows = []
  for name in folders if names is None else names:
    if name not in folders:
      raise ValueError(f'{tasks_root}: no task {name!r}: there are '
                       f'{", ".join(folders)}'
                       f'{config_lib.nearest(name, folders)}')
    found = score_encoder(encoder, folders[name], os.fspath(cached),
                          protocol=protocol, grid_points=grid_points)
    stds = found.get('stds') or {}
    order = sorted(found['scores'], key=lambda m: m != found['metric'])
    rows += [{'task': found['task'], 'measure': measure,
              'score': found['scores'][measure],
              'std': stds.get(measure) or float('nan'),
              'protocol': found['protocol']} for measure in order]
  return pd.DataFrame(rows)


def corpus_rank(encoder, corpus, clips, seconds, root):
  """Returns (rank fields, whether the embeddings were in the cache).

  Args:
    encoder: of audiorank.encoders.
    corpus: of data.load.
    clips, seconds: how many, of what length.
    root: the cache's folder, or ''.
  """
  def make():
    wave_NS, source_N = data.sample(
        corpus, clips, int(round(seconds * corpus.rate)), 0)
    if encoder.rate != corpus.rate:
      wave_NS = [soxr.resample(w, corpus.rate, encoder.rate, 'HQ')
                 for w in wave_NS]
    return {'z': encoder.scene(wave_NS), 'source': source_N}

  found, hit = embedding_cache.fetch(root, encoder.key, 'corpus', {
      'corpus': corpus.sha256, 'clips': clips, 'seconds': seconds}, make)
  return record.rank_fields(
      found['z'], found['source'], encoder.about.get('layer', 'scene')), hit


def views_of(path, step, corpus, clips, seconds, count, batch):
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


def untrained(config, wave_NS):
  """Returns the linen variables that a run of `config` would start from.

  Where train.calibrate is set its BatchNorm statistics are those of
  `wave_NS`: the run's own are of other clips, and stand in its step 0.
  """
  state = jax.jit(lambda key: train_state.init(config, key))(
      jax.random.key(config.seed))
  if config.train.calibrate:
    state = train_state.calibrate_batch_norm(config, state, wave_NS)
  return {'params': state.params, 'batch_stats': state.batch_stats}


def view_fields(config, params, before, wave_NS, views=10, seed=0, batch=64,
                tokens=256):
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
  group = config.mask.group * config.model.patch_frames * audio.HOP
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
