"""Evaluations without labels while a run trains: steps, records, alarms.

An evaluation embeds the fixed monitor clips, measures RankMe and related
numbers and the loss on held-out clips, and compares with earlier evaluations.

Shapes: N clips, B batch, S samples, D width.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import math
import pathlib
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np
from numpy import typing as npt

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import encoders
from audiorank import evaluate as scoring
from audiorank import metrics
from audiorank import objectives
from audiorank import rankme
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import train_state
from audiorank.hear import protocols
from audiorank.hear import staged
from audiorank.rankme import record

Config = config_lib.Config

CLIPS_PER_DIMENSION = 4  # Fewer bias RankMe downwards.
COLLAPSED = 1.5  # A RankMe below this is a collapse.
SINKS = 3  # Evaluations in a row with a lower centred rank raise an alarm.
LOSS_RISE = 1.2  # Times the lowest validation loss so far raises an alarm.
RANK_JUMP = 2.  # A larger factor between two evaluations raises an alarm.

Fields = dict[str, Any]  # The fields of a record.


def eval_steps(config: Config) -> list[int]:
  """Returns the steps at which a run is evaluated, ascending.

  Step 0, the last, `monitor.num_evals - 2` between them at equal ratios from
  `monitor.first_eval`, and every multiple of `monitor.eval_every`.
  """
  last, monitor = config.train.steps, config.monitor
  # Equal ratios: representations change fastest at the beginning.
  between = np.geomspace(min(monitor.first_eval, max(last, 1)), max(last, 1),
                         monitor.num_evals - 1)[:-1]
  fixed: Iterable[int] = ()
  if monitor.eval_every:
    # The first step and the last are there in any case.
    fixed = range(monitor.eval_every, last, monitor.eval_every)
  return sorted({0, last, *fixed, *(
      int(round(x)) for x in between if x < last)})


def layers(config: Config) -> list[int]:
  """Returns the blocks whose outputs are measured beside the final layer.

  Raises:
    ValueError: neither 'all', 'final' nor the numbers of blocks; names the
      field.
  """
  if tuple(config.monitor.layers) == ('final',):
    return []
  if tuple(config.monitor.layers) == ('all',):
    return list(range(config.model.depth))
  for layer in config.monitor.layers:
    if layer not in range(config.model.depth):
      raise ValueError(f'monitor.layers {layer!r}: expected numbers of blocks, '
                       f"0 to {config.model.depth - 1}, 'all' or 'final'")
  return list(config.monitor.layers)


def loss_program(config: Config) -> Callable[..., jax.Array]:
  """Returns the jitted (variables, wave_BS int16) -> loss with fixed masks.

  Configs of one shape share it.
  """
  return _loss_program(train_state.static_config(config),
                       objectives.named(config.objective))


@functools.lru_cache(train_state.SHAPES)
def _loss_program(config, objective):
  @jax.jit
  def valid_loss(variables, wave_BS):
    wave_BS = audio.to_float(wave_BS)
    return objective(config, variables, wave_BS, jax.random.key(0),
                     train=False)[0]

  return valid_loss


def evaluate(config: Config, state: train_state.TrainState,
             samples: sampling.Samples, mesh: jax.sharding.Mesh,
             stop: Callable[[], bool] = lambda: False,
             further: Iterable[tuple[str, sampling.Sample]] = ()
             ) -> Fields | None:
  """Returns the label-free record of a state.

  Args:
    config: the run's config.
    state: a train state, placed on the mesh.
    samples: the Samples of the config.
    mesh: of the state.
    stop: polled with every batch; once True, None is returned.
    further: (name, sample) on which RankMe is measured as well.

  Returns:
    the fields of `record.rank_fields` of the final layer; 'layers' and
    'samples', lists of those of further layers and samples; 'valid_loss' if
    there are held-out clips; 'memory' in bytes; 'seconds'. With monitor.layers
    each one, and the final one, also has 'tokens': value, low and high of
    RankMe of single tokens, one of each clip. 'neighbourhood', the measures
    of rankme.neighbourhood, if monitor.neighbour_clips asks for them. 'knn',
    see `knn_fields`, if there is a monitor.knn_task; 'lidar', see
    `lidar_fields`, if there are monitor.lidar_clips.
  """
  start = time.monotonic()
  variables = {'params': state.params, 'batch_stats': state.batch_stats}

  def rank_fields(sample, neighbour_clips=0):
    z_ND = embed.sharded(config.model, variables, sample.wave_NS, mesh,
                         config.monitor.batch, 'final', stop)
    if z_ND is None:
      return None
    return record.rank_fields(z_ND, sample.source_N, 'final', neighbour_clips)

  blocks, per_sample = layers(config), []
  # The final layer first: its fields are the record's own.
  if config.monitor.layers:
    per_layer = layer_fields(config, variables, samples.monitor, mesh, blocks,
                             stop)
  else:
    per_layer = [rank_fields(samples.monitor,
                             config.monitor.neighbour_clips)]
  if not per_layer or per_layer[0] is None:
    return None
  for name, sample in further:
    fields = rank_fields(sample)
    if fields is None:
      return None
    per_sample.append({'sample': name, **fields})
  fields = {**per_layer[0], 'layers': per_layer[1:], 'samples': per_sample}
  if config.monitor.knn_task:
    fields['knn'] = knn_fields(config, variables, mesh)
  if config.monitor.lidar_clips:
    fields['lidar'] = lidar_fields(config, variables, samples.monitor, mesh)
  if len(samples.valid):
    with jax.set_mesh(mesh):
      fields['valid_loss'] = valid_loss(config, variables,
                                        samples.valid.wave_NS, mesh)
  return {**fields, 'memory': metrics.peak_memory(),
          'seconds': time.monotonic() - start}


def layer_fields(config: Config, variables: Any, sample: sampling.Sample,
                 mesh: jax.sharding.Mesh, blocks: Sequence[int],
                 stop: Callable[[], bool]) -> list[Fields]:
  """Returns the rank fields of the final layer and of blocks, from one pass.

  Each has 'tokens', see `evaluate`. Returns [] if stop() became True.

  Args:
    config, variables, mesh, stop: as for `evaluate`.
    sample: of clips.
    blocks: their numbers.
  """
  # A fixed place in each clip, so that all evaluations see the same tokens.
  at_N = np.random.default_rng(0).random(len(sample.wave_NS), np.float32)
  z_2KND = embed.sharded(config.model, variables, sample.wave_NS, mesh,
                         config.monitor.batch, 'all', stop, at_N)
  if z_2KND is None:
    return []
  out = []
  for k in (-1, *blocks):  # The final layer is the last of the stack.
    layer: int | str = k
    neighbour_clips = 0
    if k < 0:
      layer, neighbour_clips = 'final', config.monitor.neighbour_clips
    fields = record.rank_fields(z_2KND[0, k], sample.source_N, layer,
                                neighbour_clips)
    fields['tokens'] = record.token_fields(z_2KND[1, k], sample.source_N)
    out.append(fields)
  return out


def lidar_fields(config: Config, variables: Any, sample: sampling.Sample,
                 mesh: jax.sharding.Mesh) -> Fields:
  """Returns LiDAR of views of some clips: see rankme.lidar and embed.views.

  Args:
    config, variables, mesh: as for `evaluate`.
    sample: of which monitor.lidar_clips, evenly spaced, are viewed.

  Returns:
    value, None where all clips have one mean; clips, views and seconds of a
    view.

  Raises:
    ValueError: as embed.views.
  """
  clips = min(config.monitor.lidar_clips, len(sample.wave_NS))
  rows = np.linspace(0, len(sample.wave_NS) - 1, clips).astype(int)
  length = embed.view_samples(config, sample.wave_NS.shape[1])
  # Crops and masks are the same at all evaluations, as the clips are.
  z_NVD = embed.views(config, variables, sample.wave_NS[rows],
                      config.monitor.lidar_views, length,
                      batch=config.monitor.batch, mesh=mesh)
  value = None
  if np.ptp(z_NVD.mean(1), axis=0).any():
    value = rankme.lidar(z_NVD)
  return {'value': value, 'clips': clips, 'views': config.monitor.lidar_views,
          'seconds': length / config_lib.RATE}


def knn_fields(config: Config, variables: Any,
               mesh: jax.sharding.Mesh) -> Fields:
  """Returns the kNN score of the task monitor.knn_task: see hear.protocols.

  Args:
    config: of the run; eval.tasks has the task.
    variables: the linen variables, placed on the mesh.
    mesh: over which the task's clips are embedded. Every process reads all of
      them, and computes the same score.

  Returns:
    task, metric, score, low and high.

  Raises:
    FileNotFoundError, ValueError: no such task, or one of events.
  """
  folder, = scoring.named_folders(
      config.eval.tasks, [config.monitor.knn_task], 'monitor.knn_task')
  task = staged.load(folder, scoring.clip_rate(folder, config_lib.RATE))
  protocols.check(task, 'knn')
  encoder = encoders.of_params(config, variables, config.monitor.batch,
                               mesh=mesh)
  result = protocols.knn(task, scoring.embeddings(encoder, task))
  return {'task': task.name, 'metric': task.evaluation[0],
          **{name: result[name] for name in ('score', 'low', 'high')}}


def valid_loss(config: Config, variables: Any,
               valid_NS: npt.NDArray[np.int16],
               mesh: jax.sharding.Mesh) -> float:
  """Returns the mean loss on held-out clips."""
  loss_of = loss_program(config)
  # The masks depend on the number of rows. train.batch is part of the run's
  # identity, monitor.batch is not.
  B = config.train.batch
  share = B // jax.process_count()
  first = jax.process_index() * share
  losses = []
  for i in range(0, len(valid_NS), B):
    # This process's rows of the global batch.
    wave_BS = valid_NS[i:i + B][first:first + share]
    losses.append(float(loss_of(variables, sharding.to_global(wave_BS, mesh))))
  return float(np.mean(losses))


def evaluate_once(workdir: pathlib.Path, config: Config,
                  state: train_state.TrainState, step: int,
                  samples: sampling.Samples, mesh: jax.sharding.Mesh,
                  stop: Callable[[], bool]) -> Fields | None:
  """Returns the record of a run at a step; evaluates only if there is none.

  Returns None if stop() became True.
  """
  path = records.path(workdir, 'monitor', step)
  known = path.exists()
  if jax.process_count() > 1:
    # All processes must agree on it; a shared file system may lag.
    known = bool(multihost_utils.broadcast_one_to_all(np.int32(known)))
  # A record is never measured twice: a resumed run keeps what it reported.
  if known:
    try:
      return records.read_record(path)
    except ValueError as error:  # The same on every process.
      logging.warning('%s; it is computed again', error)
  further: Iterable[tuple[str, sampling.Sample]] = ()
  # Further samples cost as much again, so only at both ends.
  if step in (0, config.train.steps):
    further = sampling.further(config)
  fields = evaluate(config, state, samples, mesh, stop, further)
  if fields is None:
    return None
  # Alarms compare with earlier steps only, so they are the same in a run that
  # was resumed.
  before = [r for r in records.read_whole(workdir, 'monitor')
            if r['step'] < step]
  fields['alarms'] = alarms(fields, step, before)
  # All processes have the same numbers; one writes.
  if jax.process_index() == 0:
    records.write(workdir, 'monitor', step, fields)
  log_new_alarms(workdir.name, fields['alarms'], before)
  return fields


def alarms(fields: Fields, step: int, before: Sequence[Fields] = ()
           ) -> list[Fields]:
  """Returns the alarms of an evaluation; usually none.

  Args:
    fields: a record of `evaluate`.
    step: of the record.
    before: the earlier records, in the order of their steps.

  Returns:
    {'kind', 'value', 'threshold', 'step'} of each; value is None if it is not
    a finite number. Kinds:
    small_sample: fewer than 4 clips per dimension, so RankMe is biased low;
    collapse: RankMe below 1.5;
    collapse_centred: no centred rank, because all embeddings are equal;
    sinking_centred_rank: its interval was below the previous one at each of
      the last 3 evaluations. The threshold is the value before these three;
    valid_loss_not_finite;
    valid_loss_rise: more than 1.2 times the lowest, which is the threshold;
    rank_jump: RankMe changed by more than a factor of 2 between evaluations
      after the second. The threshold is the previous value.
  """
  out: list[Fields] = []

  def alarm(kind, value=None, threshold=None):
    out.append({'kind': kind, 'value': value, 'threshold': threshold,
                'step': step})

  # A rank of None (all embeddings zero) is below every threshold.
  rank, centred = fields['rank']['value'] or 0., fields['rank_center']
  if fields['n'] < CLIPS_PER_DIMENSION * fields['width']:
    alarm('small_sample', fields['n'], CLIPS_PER_DIMENSION * fields['width'])
  if rank < COLLAPSED:
    alarm('collapse', rank, COLLAPSED)
  elif centred['value'] is None:
    alarm('collapse_centred')
  # Fewer in a row are normal: RankMe falls at the start of most trainings.
  last = [r['rank_center'] for r in [*before, fields][-SINKS - 1:]]
  if (len(last) == SINKS + 1 and all(r['value'] is not None for r in last)
      and all(after['high'] < earlier['low']
              for earlier, after in zip(last, last[1:]))):
    alarm('sinking_centred_rank', last[-1]['value'], last[0]['value'])
  losses = [r['valid_loss'] for r in before
            if r.get('valid_loss') is not None]
  loss = fields.get('valid_loss')
  if loss is not None and not math.isfinite(loss):
    alarm('valid_loss_not_finite')
  elif loss is not None and losses and loss > LOSS_RISE * min(losses):
    alarm('valid_loss_rise', loss, min(losses))
  earlier = None
  # RankMe falls steeply at the start of most trainings: the change from the
  # first evaluation to the second is no alarm.
  if len(before) > 1:
    earlier = before[-1]['rank']['value']
  if earlier and rank and not 1 / RANK_JUMP < rank / earlier < RANK_JUMP:
    alarm('rank_jump', rank, earlier)
  return out


def log_new_alarms(name: str, raised: Sequence[Fields],
                   before: Sequence[Fields]) -> None:
  """Logs alarms of a kind that the previous evaluation did not raise."""
  # Older versions wrote sentences instead of dictionaries.
  known = {alarm['kind'] for record in before[-1:]
           for alarm in record['alarms'] if isinstance(alarm, dict)}
  for alarm in raised:
    if alarm['kind'] not in known:
      logging.warning(
          '%s, step %d: alarm %s: value %s, threshold %s', name, alarm['step'],
          alarm['kind'], alarm['value'], alarm['threshold'])
