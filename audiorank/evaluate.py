"""Evaluates a model: RankMe and scores on HEAR tasks, as records.

Shapes: N clips, D width, K singular values, L timestamps.
"""

from collections.abc import Callable
from collections.abc import Iterable
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
from audiorank.hear import protocols
from audiorank.hear import scores as scores_lib
from audiorank.hear import staged
from audiorank.hear import tars
from audiorank.hear import tasks
from audiorank.rankme import record as rank_record


def task_folders(config: config_lib.Config) -> list[pathlib.Path]:
  """Returns the task folders of the eval part of a config.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or not the named ones.
  """
  return named_folders(config.eval.tasks, config.eval.task_names,
                       'eval.task_names')


def checked_folders(config: config_lib.Config) -> list[pathlib.Path]:
  """Returns `task_folders` if they are the tasks that the config was made with.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or other ones.
  """
  try:
    folders = task_folders(config)
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{error} (moved? --tasks=FOLDER says where they '
                            'are now)') from None
  # Scores on other tasks under the same names would not be comparable.
  wanted = config.eval.sha256
  if wanted and tasks.checksum(folders) != wanted:
    raise ValueError(f'eval.tasks {config.eval.tasks}: other tasks than this '
                     f'run is to be scored on (checksum {wanted}): run '
                     'launch.sweep with these tasks to take them instead')
  return folders


def task_paths(root: files.Path) -> dict[str, pathlib.Path]:
  """Returns {name: task folder} in a folder, of HEAR or of X-ARES' tars.

  Tars are unpacked into the cache.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or a damaged tar.
  """
  # Both layouts name a task by its folder, so callers see no difference.
  packed = tars.find(root)
  if packed:
    return {folder.name: tars.unpacked(folder) for folder in packed}
  return {folder.name: folder for folder in tasks.find(root)}


def named_folders(root: files.Path, names: Sequence[str],
                  field: str) -> list[pathlib.Path]:
  """Returns the task folders with these names.

  Args:
    root: see tasks.find.
    names: of folders; empty for all.
    field: the field or flag with the names, for the message.

  Raises:
    FileNotFoundError, ValueError: no tasks there, or not the named ones.
  """
  by_name = task_paths(root)
  for name in names:
    if name not in by_name:
      raise ValueError(f'{field}: no task {name!r} in {root}: there are '
                       f'{", ".join(sorted(by_name))}'
                       f'{nearest_task(name, by_name)}')
  return [by_name[name] for name in names or by_name]


def nearest_task(word: str, names: Iterable[str]) -> str:
  """Returns '. Did you mean ...?' with the most similar task, or ''."""
  # People write pitch for pitch-v1-full.
  full = {part: name for name in names for part in (name.split('-')[0], name)}
  return config_lib.nearest(word, full, full)


def clip_rate(folder: files.Path, rate: int) -> int:
  """Returns the rate of the clips to read for a model, in Hz.

  It is the model's own if the task has it, or else the lowest one above, whose
  clips are then resampled.

  Args:
    folder: of the task.
    rate: of the model, Hz.

  Raises:
    ValueError: the task has only lower rates; names them.
  """
  # The public archives of HEAR tasks have 48 kHz only.
  rates = sorted(int(p.name) for p in files.path(folder).iterdir()
                 if p.is_dir() and p.name.isdecimal())
  # Resampling down loses nothing that the model hears; up would invent it.
  enough = [r for r in rates if r >= rate]
  if rates and not enough:
    raise ValueError(f'{folder}: clips at {", ".join(map(str, rates))} Hz, the '
                     f'model takes {rate}')
  if enough:
    return enough[0]
  return rate  # tasks.load says what is missing.


def clips(task: tasks.Task, split: str,
          rate: int) -> tuple[Sequence[str], Sequence[np.ndarray]]:
  """Returns (files, waves) of a split at `rate` Hz.

  Warns of clips that are not as long as the task says.
  """
  names, waves = zip(*staged.audio(task, split))
  # A warning only: the score is still what HEAR would give.
  odd = tasks.other_lengths(task, split, [len(wave_S) for wave_S in waves])
  if odd:
    seconds = len(waves[names.index(odd[0])]) / task.rate
    logging.warning(
        '%s: %d of %d clips of %s are not %g s long, its sample_duration: '
        '%s has %g s', task.folder, len(odd), len(names), split,
        task.sample_duration, odd[0], seconds)
  short = [name for name, wave_S in zip(names, waves)
           if len(wave_S) * config_lib.RATE < embed.SHORTEST * task.rate]
  if short:
    logging.warning('%s: %d of %d clips of %s are shorter than one patch of 40 '
                    'ms, such as %s: silence is appended', task.folder,
                    len(short), len(names), split, short[0])
  if task.rate != rate:
    # Resampling overshoots at steps, but models expect [-1, 1].
    waves = [np.clip(soxr.resample(w, task.rate, rate, 'HQ'), -1, 1)
             for w in waves]
  return names, waves


def embeddings(encoder: encoders.Encoder, task: tasks.Task) -> dict[Any, Any]:
  """Returns the embeddings of a task, as hear.probe.evaluate takes them.

  Of a scene task {split: z_ND}, of an event task {file: (z_LD, ms_L)}; of an
  encoder of every layer {layer: these}.
  """
  # Every layer comes from the same pass, so a clip is encoded once.
  out: dict[Any, dict[str, Any]] = {
      layer: {} for layer in encoder.layers or ('',)}

  def keep(name: str, z: Any, first: bool = False) -> None:
    for layer, of_one in out.items():
      value = z
      if encoder.layers:
        value = z[layer]
      if first:  # The only clip of a batch.
        value = (value[0][0], value[1][0])
      of_one[name] = value

  for split in task.splits:
    names, waves = clips(task, split, encoder.rate)
    if task.embedding_type == 'scene':
      keep(split, encoder.scene(waves))
      continue
    # One by one: files of an event task are long and of different lengths.
    for name, wave_S in zip(names, waves):
      keep(name, encoder.timestamps(wave_S[None]), first=True)
  if encoder.layers:
    return out
  return out['']


def cached_embeddings(encoder: encoders.Encoder, task: tasks.Task,
                      root: str) -> tuple[dict[Any, Any], bool]:
  """Returns (embeddings of a task, whether they were in the cache).

  Args:
    encoder: from audiorank.encoders.
    task: from hear.tasks.load.
    root: the cache's folder, or ''.
  """
  event = task.embedding_type == 'event'
  # The cache stores arrays by name, so layers and pairs are taken apart.
  prefixes = {layer: f'layer-{layer}/' for layer in encoder.layers}

  def flat(z: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    # The clips of a split are one array. Event files differ in length, so each
    # has its own pair of arrays.
    if not event:
      return {f'{prefix}{split}': z_ND for split, z_ND in z.items()}
    return {f'{prefix}{part}/{file}': x for file, pair in z.items()
            for part, x in zip(('z', 'ms'), pair)}

  def compute() -> dict[str, Any]:
    z = embeddings(encoder, task)
    if not encoder.layers:
      return flat(z)
    out: dict[str, Any] = {}
    for layer, prefix in prefixes.items():
      out |= flat(z[layer], prefix)
    return out

  arrays, hit = embedding_cache.fetch(
      root, encoder.key, task.name, lambda: contents(task), compute)

  def nested(prefix: str = '') -> dict[str, Any]:
    if not event:
      return {split: arrays[f'{prefix}{split}'] for split in task.splits}
    return {file: (arrays[f'{prefix}z/{file}'], arrays[f'{prefix}ms/{file}'])
            for names in task.files.values() for file in names}

  if not encoder.layers:
    return nested(), hit
  return {layer: nested(prefix) for layer, prefix in prefixes.items()}, hit


def contents(task: tasks.Task) -> dict[str, Any]:
  """Returns what identifies the clips of a task, for the key of a cache."""
  # The fingerprint reads only a part of each clip. Modification times are added
  # so that a cache is not used when another part has changed.
  stats = files.stats(task.folder)
  names = [str(p.relative_to(task.folder))
           for paths in task.paths.values() for p in paths]
  touched = files.digest([[name, stats[name][1]] for name in names])
  return {'task': staged.fingerprint(task.folder), 'rate': task.rate,
          'touched': touched}


def protocol(config: config_lib.Config) -> dict[str, Any]:
  """Returns the predictor's settings, as they are in a record."""
  e = config.eval
  out = {'protocol': e.protocol, 'grid_points': e.grid_points,
         'hidden': e.hidden, 'max_epochs': e.max_epochs, 'seed': e.seed}
  # Not where it is False: records from before have no such entry.
  if e.every_layer:
    out['every_layer'] = True
  return out


def sweep_protocol(root: files.Path,
                   check: Callable[[config_lib.Config], None]
                   = lambda config: None) -> dict[str, Any]:
  """Returns the predictor's settings of the runs of a sweep, or of one run.

  Args:
    root: folder of a sweep, or of a run.
    check: raises ValueError for a config with settings that cannot be.

  Raises:
    FileNotFoundError, ValueError: no runs there, or of several settings, or
      one that fails the check; names the run.
  """
  folders = records.run_folders(root) or [files.path(root)]
  if not (folders[0] / 'config.json').is_file():
    raise FileNotFoundError(f'{root}: no runs: expected <run_id>/config.json '
                            'in it')
  # Settings are dicts, which a set cannot contain: compare digests.
  by_digest = {}
  for folder in folders:
    config = records.load_config(folder)
    try:
      check(config)
    except ValueError as error:
      raise ValueError(f"{folder / 'config.json'}: {error}") from None
    settings = protocol(config)
    by_digest[files.digest(settings)] = settings
  if len(by_digest) > 1:
    names = ', '.join(sorted({s['protocol'] for s in by_digest.values()}))
    raise ValueError(f'{root}: runs scored by {len(by_digest)} different '
                     f'settings ({names}): name one run')
  return next(iter(by_digest.values()))


def score(encoder: encoders.Encoder, folder: files.Path,
          settings: Mapping[str, Any], cache: str = '') -> dict[str, Any]:
  """Scores one encoder on one task.

  Args:
    encoder: from audiorank.encoders.
    folder: of the task.
    settings: arguments of hear.probe.evaluate.
    cache: folder of embeddings; '' for no cache.

  Returns:
    a record:
    task, task_sha256, embedding_type, metric, clip_rate: of the task.
    settings, version: of the predictor; see `probe.VERSION`.
    result: from hear.probe.evaluate.
    layers: of an encoder of every layer, from `layer_results`.
    cached, seconds: whether embeddings were in the cache, and wall time.

  Raises:
    FileNotFoundError, ValueError: an invalid task, encoder or setting.
  """
  began = time.monotonic()
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  name = settings.get('protocol', 'hear')
  # every_layer chooses what is embedded; the predictor has no such argument.
  arguments = {k: v for k, v in settings.items() if k != 'every_layer'}
  if name in probe.OTHERS:  # Before any audio is read.
    protocols.check(task, name)
  z, hit = cached_embeddings(encoder, task, cache)
  more = {}
  if name == 'weighted' and not encoder.layers:  # Of features: one layer.
    z = {'final': z}
  # 'weighted' mixes the layers itself and takes all at once; any other
  # protocol scores them one by one.
  if encoder.layers and name != 'weighted':
    results = {layer: probe.evaluate(task, z[layer], **arguments)
               for layer in encoder.layers}
    result, more = results['final'], layer_results(task, results)
  else:
    result = probe.evaluate(task, z, **arguments)
  # Of X-ARES' tasks: their weight in its mean.
  if task.metadata.get('weight'):
    more['weight'] = task.metadata['weight']
  return {'task': task.name, 'task_sha256': staged.fingerprint(folder),
          'embedding_type': task.embedding_type,
          'metric': task.evaluation[0], 'clip_rate': task.rate,
          'settings': dict(settings), 'version': probe.VERSION,
          'result': result, 'cached': hit,
          'seconds': time.monotonic() - began, **more}


def xares_mean(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Returns the mean of tasks of X-ARES with its weights, the tasks' sizes.

  Args:
    scored: records of `score`.

  Returns:
    score, low, high (95 %; NaN where a task has no interval) and tasks, their
    number; None of fewer than two tasks of X-ARES.
  """
  known = [one for one in scored if one.get('weight')]
  if len(known) < 2:
    return None
  weight_T = np.array([one['weight'] for one in known], float)
  weight_T /= weight_T.sum()
  score_T, se_T = (np.array([_number(one['result'].get(name))
                             for one in known]) for name in ('score', 'se'))
  # Test clips of different tasks are independent.
  mean = float(weight_T @ score_T)
  se = float(np.sqrt(weight_T ** 2 @ se_T ** 2))
  return {'score': mean, 'low': mean - 1.96 * se, 'high': mean + 1.96 * se,
          'tasks': len(known)}


def layer_results(task: tasks.Task, results: Mapping[int | str, Any]
                  ) -> dict[str, Any]:
  """Returns the scores of every layer, and the layer that validation chooses.

  Args:
    task: that was scored.
    results: {layer: result of hear.probe.evaluate}.

  Returns:
    layers: a list of layer, score, low, high and valid, the validation score;
    best: of these the layer with the best validation score, the first of
      equal ones, with its whole result. Its test score is of a layer that
      was not chosen by the test clips.
  """
  rows = [{'layer': layer, **{name: result[name] for name in
                              ('score', 'low', 'high', 'valid')}}
          for layer, result in results.items()]
  # Errors are negated, so that the best layer always has the largest value.
  sign = 1
  if not scores_lib.maximise(task.evaluation[0]):
    sign = -1
  value_K = np.array([sign * _number(row['valid']) for row in rows])
  # np.argmax prefers NaN to every number, so NaN becomes -inf.
  best = rows[int(np.argmax(np.where(np.isnan(value_K), -np.inf, value_K)))]
  return {'layers': rows,
          'best': {**best, 'result': results[best['layer']]}}


def feature_score(name: str, folder: files.Path,
                  settings: Mapping[str, Any]) -> dict[str, Any] | None:
  """Scores a set of features on one task, once per user.

  The record is kept in the user's cache; its key is a digest of task, features
  and settings.

  Args:
    name: one of encoders.FEATURES.
    folder: of the task.
    settings: arguments of hear.probe.evaluate.

  Returns:
    a record as from `score`, or None if another process is computing it.
  """
  encoder = encoders.features(name)
  task = staged.load(folder, clip_rate(folder, encoder.rate))
  # All that the score depends on, so any sweep of this user can share it.
  key = files.digest([encoder.key, contents(task), config_lib.plain(settings),
                      probe.VERSION, embedding_cache.versions()])
  path = files.cache_folder('scores') / f'{name}-{task.name}-{key}.json'
  record = files.read_cached(path, files.read_json)
  if record is not None:
    return record
  # Does not wait for the lock: two processes would compute one record twice.
  with contextlib.ExitStack() as stack:
    try:
      # On a disk even if the cache is on a bucket, which has no locks.
      ours = files.local_cache('scores') / f'{path.stem}.lock'
      ours.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(ours, 'a'))
      files.lock(lock)
    except BlockingIOError:
      return None
    except OSError as error:  # Without a cache it is computed every time.
      logging.warning('%s: cannot be locked (%s)', path, error.strerror)
    record = score(encoder, folder, settings)
    files.write_cached(path, lambda part: files.write_json(part, record))
  return record


def run(workdir: files.Path, config: config_lib.Config,
        step: int | None = None, stop: Callable[[], bool] = lambda: False,
        tell: Callable[..., None] = lambda *_, **__: None) -> bool:
  """Scores a run's checkpoint on every task that lacks a current record.

  For an untrained baseline the features that need no network are scored as
  well, with the same predictor: the mean log-mel and MFCC of the clips.

  Args:
    workdir: the run's folder.
    config: frozen config with the tasks and the predictor in `eval`.
    step: of the checkpoint; None takes the newest.
    stop: called before every task; if it returns True, `run` returns.
    tell: called with a message before every task.

  Returns:
    whether every task has its record.
  """
  workdir, settings = files.path(workdir), protocol(config)
  folders = checked_folders(config)
  if step is None:
    step = checkpoint.steps(workdir / 'checkpoints')[-1]
  jobs = [(f'hear.{folder.name}', folder, '') for folder in folders]
  # A run of 0 steps is the untrained baseline.
  if not config.train.steps:
    jobs += [(f'features.{name}.{folder.name}', folder, name)
             for name in encoders.FEATURES for folder in folders]
  # Records with other settings, of changed tasks or of an older protocol are
  # computed again.
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
      # Loaded only if a record is missing.
      if encoder is None:
        _, params = checkpoint.load(workdir, step)
        # Sent once, and to a device by name, as evaluations while training do:
        # then they share the compiled program (embed.over_mesh).
        params = jax.device_put(params, jax.local_devices()[0])
        encoder = encoders.of_params(config, params, config.eval.batch,
                                     scored_layer(config))
      record = score(encoder, folder, settings)
    if record:
      # Says whether a flipped bit in the weights would have been noticed.
      record['verified'] = checkpoint.checksums(
          workdir / 'checkpoints', step).exists()
      records.write(workdir, kind, step, record)
  return True


def scored_layer(config: config_lib.Config) -> str:
  """Returns the layer that a run is scored at: 'final' or 'all'."""
  if config.eval.every_layer or config.eval.protocol == 'weighted':
    return 'all'
  return 'final'


def is_current(path: pathlib.Path, folder: files.Path,
               settings: Mapping[str, Any]) -> bool:
  """Returns whether there is a record of this task with these settings."""
  if not path.exists():
    return False
  try:
    record = records.read_record(path)
  except ValueError as error:
    logging.warning('%s; it is computed again', error)
    return False
  # All three: with other settings, clips or code the score would differ.
  return (record.get('settings') == config_lib.plain(settings)
          and record.get('task_sha256') == staged.fingerprint(folder)
          and record.get('version') == probe.VERSION)


def write(out: files.Path, name: str, record: Mapping[str, Any]
          ) -> pathlib.Path:
  """Writes a record; returns its path.

  Args:
    out: a .json file, or a folder. In a folder the file's name consists of
      `name` and a digest of `identity`: repeating an evaluation overwrites its
      file, and a different one has another file.
    name: of the model.
    record: as JSON.
  """
  path = files.path(out)
  if path.suffix != '.json':
    path = path / f'{name}-{files.digest(identity(record))}.json'
  files.write_json(path, record)
  return path


def check_out(out: files.Path) -> None:
  """Raises OSError if `write` could not write there."""
  path = files.path(out)
  if path.suffix != '.json':
    path = path / 'record.json'
  files.check_writable(path, '--out')


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what identifies an evaluation: a record without its results."""
  out: dict[str, Any] = {}
  for key, value in record.items():
    if key == 'xares_mean':  # A result of the tasks' records.
      continue
    if isinstance(value, dict) and 'task_sha256' in value:  # A score.
      out[key] = {'task_sha256': value['task_sha256'],
                  'protocol': value['result']['protocol'],
                  'settings': value['result']['settings']}
    elif key == 'rank':
      # Which fields there are, not their values: those are results.
      out[key] = sorted(value)
    elif key == 'encoder':
      # Checksums that were lost or restored make it no other evaluation.
      out[key] = {k: v for k, v in value.items() if k != 'verified'}
    else:
      out[key] = value
  return out


def scores(model: tuple[Any, Any, Any] | encoders.Encoder | files.Path,
           tasks_root: files.Path,
           names: Sequence[str] | None = None, protocol: str = 'hear',
           grid_points: int = 8, cached: files.Path = '') -> pd.DataFrame:
  """Scores a model on HEAR tasks: `audiorank.scores(model, tasks)`.

  Args:
    model: from `audiorank.load`, an argument for it, 'hf:NAME', or an Encoder
      of audiorank.encoders.
    tasks_root: a folder of HEAR task folders, or one of them.
    names: of the folders to use; None for all.
    protocol: of hear.probe.PROTOCOLS; see audiorank/hear/README.md.
    grid_points: number of HEAR's 16 settings to try.
    cached: a folder for embeddings; '' for no cache.

  Returns:
    one row per task and measure, the task's own measure first. Columns task,
    measure, score, low, high (95 %; NaN if unknown), chance (of predictions
    that ignore the clip), clips (number of test clips), std (over folds or
    seeds; NaN without) and protocol.

  Raises:
    FileNotFoundError, ValueError: no such model or task, an unknown protocol.
  """
  layer = 'final'
  # The weights of the mix are trained, so every layer is needed.
  if protocol == 'weighted':
    layer = 'all'
  if isinstance(model, (str, os.PathLike)):
    encoder = encoders.opened(model, layer=layer)
  elif isinstance(model, encoders.Encoder):
    encoder = model
  else:
    config, params, about = model
    encoder = encoders.of_params(config, params, layer=layer, about=about)
  settings = {'protocol': protocol, 'grid_points': grid_points}
  rows = []
  for folder in named_folders(tasks_root, names or (), 'names'):
    rows += measures(score(encoder, folder, settings, os.fspath(cached)))
  return pd.DataFrame(rows)


def measures(record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns one row per measure of a record of `score`.

  The task's own measure is the first.
  """
  result, rows = record['result'], []
  # Sorting is stable, so the other measures keep their order.
  order = sorted(result['scores'], key=lambda m: m != record['metric'])
  for measure in order:
    interval = result['intervals'].get(measure, {})
    rows.append({
        'task': record['task'], 'measure': measure,
        'score': result['scores'][measure],
        'low': _number(interval.get('low')),
        'high': _number(interval.get('high')),
        'chance': _number(result['chance'].get(measure)),
        'clips': result['clips'],
        'std': _number((result['stds'] or {}).get(measure)),
        'protocol': result['protocol']})
  return rows


def _number(value: float | None) -> float:
  """Returns a number of a record: None, which JSON has for NaN, as NaN."""
  if value is None:
    return math.nan
  return value


def corpus_rank(encoder: encoders.Encoder, corpus: data.Corpus, clips: int,
                seconds: float, root: str) -> tuple[dict[str, Any], bool]:
  """Returns (rank fields, whether the embeddings were in the cache).

  Of an encoder of every layer those of the final one, and 'layers', a list of
  those of every layer.

  Args:
    encoder: from audiorank.encoders.
    corpus: from data.load.
    clips: number of clips.
    seconds: of a clip.
    root: the cache's folder, or ''.
  """
  def compute() -> dict[str, np.ndarray]:
    # Seed 0 for every encoder: RankMe is compared on the same clips.
    wave_NS, source_N = data.sample(
        corpus, clips, int(round(seconds * corpus.rate)), 0)
    waves: Any = wave_NS
    if encoder.rate != corpus.rate:
      waves = [soxr.resample(w, corpus.rate, encoder.rate, 'HQ')
               for w in wave_NS]
    z = encoder.scene(waves)
    if encoder.layers:
      return {'source': source_N,
              **{f'layer-{layer}': z[layer] for layer in encoder.layers}}
    return {'z': z, 'source': source_N}

  arrays, hit = embedding_cache.fetch(root, encoder.key, 'corpus', lambda: {
      'corpus': corpus.sha256, 'clips': clips, 'seconds': seconds}, compute)
  if not encoder.layers:
    return {**rank_record.rank_fields(
        arrays['z'], arrays['source'], encoder.about.get('layer', 'scene')),
            'neighbourhood': rank_record.neighbourhood(arrays['z'])}, hit
  fields = [rank_record.rank_fields(arrays[f'layer-{layer}'], arrays['source'],
                                    layer) for layer in encoder.layers]
  near = rank_record.neighbourhood(arrays['layer-final'])
  return {**fields[-1], 'layers': fields, 'neighbourhood': near}, hit


def views_of(path: files.Path, step: int | None, corpus: data.Corpus,
             clips: int, seconds: float, count: int,
             batch: int) -> dict[str, Any]:
  """Returns LiDAR and Diff-eRank of one of our runs; see view_fields.

  Args:
    path, step: the checkpoint.
    corpus: from data.load.
    clips: number of clips.
    seconds: of a clip.
    count: views of a clip.
    batch: clips encoded at once.
  """
  config, params = checkpoint.load(path, step)
  wave_NS, _ = data.sample(corpus, clips, int(round(seconds * corpus.rate)), 0)
  folder, _ = checkpoint.find(path)
  # The true untrained network, if its checkpoint is still there.
  if 0 in checkpoint.steps(folder):
    _, before = checkpoint.load(folder, 0)
  else:
    before = untrained(config, wave_NS)
  return view_fields(config, params, before, wave_NS, count, batch=batch)


def untrained(config: config_lib.Config,
              wave_NS: np.ndarray) -> dict[str, Any]:
  """Returns the initial linen variables of a run.

  With train.calibrate_batch_norm its BatchNorm statistics are of `wave_NS`.
  Those of a real run are of other clips; they are in its checkpoint of step 0.

  Args:
    config: of the run.
    wave_NS: int16 clips.
  """
  # One compiled program: op by op, the initialisers take much longer.
  state = jax.jit(lambda key: train_state.init(config, key))(
      jax.random.key(config.seed))
  if config.train.calibrate_batch_norm:
    state = train_state.calibrate_batch_norm(config, state, wave_NS)
  return {'params': state.params, 'batch_stats': state.batch_stats}


def view_fields(config: config_lib.Config, params: dict[str, Any],
                before: dict[str, Any], wave_NS: np.ndarray, views: int = 10,
                seed: int = 0, batch: int = 64,
                tokens: int = 256) -> dict[str, Any]:
  """Returns LiDAR and Diff-eRank of one of our runs, with their settings.

  Args:
    config: the run's config, with its masks, crop and seed.
    params: the linen variables.
    before: the initial ones.
    wave_NS: int16 clips, at least as long as the run's crop.
    views: number of views per clip, for LiDAR.
    seed: of crops and masks.
    batch: clips encoded at once.
    tokens: number of clips for Diff-eRank, which compares tokens with those of
      the untrained network.

  Raises:
    ValueError: as `embed.views`.

  Source: Thilak et al., arXiv 2312.04000 (LiDAR); Wei et al., arXiv
  2401.17139 (Diff-eRank); see rankme.lidar and rankme.diff_erank.
  """
  samples = embed.view_samples(config, wave_NS.shape[1])
  z_NVD = embed.views(config, params, wave_NS, views, samples, seed, batch)
  # Token ranks cost an SVD per clip; a few hundred clips are enough.
  few_NS = wave_NS[:tokens]
  rank = [rankme.token_rank(embed.timestamps(config, p, few_NS)[0])
          for p in (before, params)]
  return {'lidar': rankme.lidar(z_NVD), 'lidar_views': views,
          'lidar_seconds': samples / config_lib.RATE,
          'lidar_clips': len(wave_NS),
          'token_rank_untrained': rank[0], 'token_rank': rank[1],
          'diff_erank': rank[0] - rank[1], 'token_clips': len(few_NS)}
