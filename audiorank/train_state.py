"""The state of a run and the compiled programs that create and advance it.

Everything here is a function of config and arrays, without files or clocks.
The fields in which runs of one shape may differ (`Hparams`) are traced, so that
all of these runs share one compilation. `programs` caches compiled programs for
the life of the process: a second run of a shape is not traced or compiled.

Shapes: B batch, C steps of a call, K runs, S samples, N clips, M mels,
T frames.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
from numpy import typing as npt
import optax

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import mup
from audiorank import objectives
from audiorank import sharding
from audiorank.data import resident

Config = config_lib.Config

SHAPES = 32  # Programs are cached for so many shapes.
CALIBRATION_CLIPS = 1024  # Most clips that initialise BatchNorm's statistics.


def flops(config: Config) -> dict[str, int]:
  """Returns FLOPs of a training step on one clip, by our own count.

  {'encoder': of the visible patches, 'total': of all, ...}; for other parts
  see `cost` of the objective in objectives.py.
  """
  return objectives.parts(config).cost(config, config_lib.patches(config))


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes.

  step: int32 scalar, steps done.  params: float32 parameters.
  batch_stats: BatchNorm's statistics and other variables without a gradient.
  opt_state: of `optimizer`.
  """
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any


@flax.struct.dataclass
class Hparams:
  """The numbers in which runs of one compiled program may differ."""
  seed: Any
  init_scale: Any
  lr: Any
  warmup: Any
  steps: Any
  final_lr_ratio: Any
  weight_decay: Any
  clip: Any
  wsd: Any
  decay: Any


def make_hparams(config: Config) -> Hparams:
  """Returns a config's hyper-parameters as arguments of a program."""
  opt = config.opt
  return Hparams(np.uint32(config.seed), *(np.float32(x) for x in (
      config.train.init_scale, opt.lr, opt.warmup, config.train.steps,
      opt.final_lr_ratio, opt.weight_decay, opt.clip, opt.schedule == 'wsd',
      opt.decay)))


def hparams_shapes() -> Hparams:
  """Returns Hparams of jax.ShapeDtypeStruct."""
  rest = len(dataclasses.fields(Hparams)) - 1
  return Hparams(jax.ShapeDtypeStruct((), jnp.uint32),
                 *[jax.ShapeDtypeStruct((), jnp.float32)] * rest)


# Fields that a program gets as arguments, or that only the training loop and
# the evaluation use. No objective uses them.
NOT_COMPILED = (
    'experiment', 'seed', 'trackers', 'monitor', 'checkpoint', 'eval', 'mesh',
    'train.steps', 'train.init_scale', 'train.calibrate_batch_norm',
    'train.log_every',
    'train.steps_per_call', 'opt.lr', 'opt.warmup', 'opt.final_lr_ratio',
    'opt.weight_decay', 'opt.clip', 'opt.schedule', 'opt.decay')


def static_config(config: Config) -> config_dict.FrozenConfigDict:
  """Returns the fields that are compiled in.

  Runs for which they are equal share programs.
  """
  tree = config_lib.plain(config)
  for field in NOT_COMPILED:
    node, name = config_lib.parent(tree, field)
    node.pop(name, None)
  # Of the data only what the step computes with; the rest chooses clips.
  tree['data'] = {name: tree['data'][name]
                  for name in ('crop_seconds', 'gain_low', 'gain_high')}
  return config_lib.frozen(tree)


def learning_rate(step: jax.Array, hparams: Hparams) -> jax.Array:
  """Returns the rate: linear warm-up from 0, then a decay to final * lr.

  The decay is a cosine from the warm-up on, or linear in the last share
  `decay` of the steps (wsd), before which the rate is constant.
  """
  # The schedules of optax need the number of steps as a Python number, so that
  # every number of steps would compile a program of its own.
  warm = hparams.lr * step / jnp.maximum(hparams.warmup, 1)
  past = (step - hparams.warmup) / jnp.maximum(
      hparams.steps - hparams.warmup, 1)
  end = hparams.final_lr_ratio * hparams.lr
  cosine = end + (hparams.lr - end) * .5 * (1 + jnp.cos(jnp.pi * past))
  # Exactly lr before the decay, whatever the number of steps: runs branch.
  length = jnp.maximum(hparams.decay * hparams.steps, 1)
  left = jnp.clip((hparams.steps - step) / length, 0., 1.)
  constant = jnp.where(left < 1, end + (hparams.lr - end) * left, hparams.lr)
  after = jnp.where(hparams.wsd > 0, constant, cosine)
  return jnp.where(step < hparams.warmup, warm, after)


def optimizer(config: Config, hparams: Hparams,
              step: jax.Array) -> optax.GradientTransformation:
  """Returns AdamW with clipping for one step.

  The chain is built in every trace, from traced numbers. Unlike the state of
  optax.inject_hyperparams, its state contains the moments only.

  Args:
    config: its b1 and b2 are compiled in.
    hparams: traced.
    step: steps done, for the schedule.
  """
  # clip 0 means no clipping; the choice is traced, like all other numbers.
  no_limit = jnp.inf
  links = [
      optax.clip_by_global_norm(
          jnp.where(hparams.clip > 0, hparams.clip, no_limit)),
      optax.scale_by_adam(b1=config.opt.b1, b2=config.opt.b2),
      # Decoupled, on every parameter, as in Dasheng.
      optax.add_decayed_weights(hparams.weight_decay),
      optax.scale_by_learning_rate(learning_rate(step, hparams))]
  if config.opt.transfer:
    # After Adam and before the decay; see mup.py.
    links.insert(2, mup.scale_rates(config))
  return optax.chain(*links)


def adam_state(opt_state: Any) -> optax.ScaleByAdamState:
  """Returns the state of Adam within an optimizer's state.

  Checkpoints contain this part only. So the other links of the chain, whose
  states are empty, may change without making checkpoints unreadable.
  """
  adam, = (link for link in opt_state
           if isinstance(link, optax.ScaleByAdamState))
  return adam


def with_adam_state(opt_state: Any, adam: optax.ScaleByAdamState) -> Any:
  """Returns an optimizer's state with another state of Adam."""
  old = adam_state(opt_state)
  links = list(opt_state)
  links[[link is old for link in links].index(True)] = adam
  return tuple(links)


def init(config: Config, key: jax.Array) -> TrainState:
  """Returns a fresh state: float32 parameters, zero moments, step 0."""
  return scaled_init(config, key, config.train.init_scale)


def state_shapes(config: Config) -> TrainState:
  """Returns the TrainState of jax.ShapeDtypeStruct; computes nothing."""
  return jax.eval_shape(lambda key: init(config, key), jax.random.key(0))


def scaled_init(config: Config, key: jax.Array,
                scale: float | jax.Array) -> TrainState:
  """Returns a fresh state whose weight matrices are scaled by a factor."""
  variables = objectives.parts(config).variables(
      config, key, config_lib.patches(config))

  def scaled(path, x):
    # Weight matrices only: biases, norms and embeddings keep their scale.
    if path[-1].key == 'kernel':
      return x * scale
    return x

  # All collections: the copy of a network in batch_stats is scaled with it.
  variables = jax.tree.map_with_path(scaled, variables)
  params = variables['params']
  if config.opt.transfer:
    # Only what reads the encoder is scaled; a copy of the encoder stays equal.
    params = jax.tree.map(lambda x, factor: x * factor, params,
                          mup.init_scales(config, params))
  step = jnp.zeros((), jnp.int32)
  # Only the shape of the state counts here, so any numbers do.
  zeros = Hparams(*[jnp.zeros(())] * len(dataclasses.fields(Hparams)))
  return TrainState(
      step=step, params=params, batch_stats=variables['batch_stats'],
      opt_state=optimizer(config, zeros, step).init(params))


class Programs(NamedTuple):
  """The compiled programs of a shape on a mesh, and the state's shapes.

  shapes: TrainState of jax.ShapeDtypeStruct.
  shardings: TrainState of the shardings.
  init: (hparams) -> state.
  step: (state, batch, hparams, audio_RW) -> (state, metrics). The batch is
    wave_BS int16, without audio_RW, or clip_B3 of audio_RW; see
    data/resident.py.
  steps: the same with a first axis C of batch and metrics: C steps, one after
    the other, in one program.
  """
  shapes: TrainState
  shardings: TrainState
  init: Callable[..., TrainState]
  step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  steps: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def programs(config: Config, mesh: jax.sharding.Mesh) -> Programs:
  """Returns the Programs of a config on a mesh; cached."""
  return _programs(static_config(config), objectives.named(config.objective),
                   objectives.parts(config), mesh)


def init_state(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """Returns the initial state of a config on a mesh."""
  return programs(config, mesh).init(make_hparams(config))


@functools.lru_cache(SHAPES)
def _programs(config, objective, parts, mesh):
  # Objective and parts are looked up by name. They are arguments so that the
  # cache distinguishes another objective of the same name.
  del objective, parts

  def from_hparams(hparams):
    return scaled_init(config, jax.random.key(hparams.seed),
                       hparams.init_scale)

  # Shapes first: shardings must be known before anything is allocated.
  shapes = jax.eval_shape(from_hparams, hparams_shapes())
  shardings = sharding.place(shapes, mesh)
  # Donated: the new state takes the memory of the old one.
  steps = jax.jit(scan_steps(train_step(config)), donate_argnums=0,
                  out_shardings=(shardings, None))
  return Programs(
      shapes, shardings, jax.jit(from_hparams, out_shardings=shardings),
      make_step(config, shardings), steps)


def make_step(config: Config, shardings: TrainState) -> Callable[..., Any]:
  """Returns the jitted step of a config; see `Programs.step`."""
  return jax.jit(train_step(config), donate_argnums=0,
                 out_shardings=(shardings, None))


def scan_steps(step: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that takes a step on each of several batches."""
  def steps(state, batches, hparams, audio_RW=None):
    return jax.lax.scan(lambda s, batch: step(s, batch, hparams, audio_RW),
                        state, batches)

  return steps


class PackedPrograms(NamedTuple):
  """The compiled steps of K runs.

  step: (states, batch, hparams_K, audio_RW) -> (states, metrics_K). The batch
    is that of one run (see Programs) where all share it; otherwise it has a
    first axis K.
  steps: the same with a first axis C of batch and metrics.
  """
  step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
  steps: Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def packed_programs(config: Config, spread: jax.sharding.NamedSharding,
                    shared: bool) -> PackedPrograms:
  """Returns the PackedPrograms of a shape; cached.

  Args:
    config: of one of the runs.
    spread: the sharding of states over the runs' axis.
    shared: whether all runs have the same batches.
  """
  return _packed_programs(static_config(config),
                          objectives.named(config.objective), spread, shared)


@functools.lru_cache(SHAPES)
def _packed_programs(config, objective, spread, shared):
  del objective  # As in `_programs`.
  batch_axis = 0
  if shared:
    batch_axis = None
  over_runs = sharding.over_runs(
      # States and hyper-parameters have an axis of runs, the audio has none.
      jax.vmap(train_step(config), (0, batch_axis, 0, None)), spread, shared)

  def step(states, batch, hparams, audio_RW=None):
    return over_runs(states, batch, hparams, audio_RW)

  spread_CK = jax.sharding.NamedSharding(
      spread.mesh, jax.sharding.PartitionSpec(None, *spread.spec))
  return PackedPrograms(
      jax.jit(step, donate_argnums=0, out_shardings=(spread, spread)),
      jax.jit(scan_steps(step), donate_argnums=0,
              out_shardings=(spread, spread_CK)))


def train_step(config: Config) -> Callable[..., Any]:
  """Returns the step of a config, to be jitted; see `Programs.step`.

  Args:
    config: with all the fields of a static config.
  """
  objective = objectives.named(config.objective)
  samples = config_lib.crop_samples(config.data.crop_seconds)

  def step(state, batch, hparams, audio_RW=None):
    # Keys are folded with the step, not split from a chain: a resumed run draws
    # what an uninterrupted one would have drawn.
    mask_key = jax.random.fold_in(jax.random.key(hparams.seed), 1)
    key = jax.random.fold_in(mask_key, state.step)
    wave_BS = batch
    # The corpus is on the device: the batch only says where its clips are.
    if audio_RW is not None:
      wave_BS = resident.gather(audio_RW, batch, samples)
    wave_BS = audio.to_float(wave_BS)
    gain = config.data.gain_low, config.data.gain_high
    # A key of its own, so that masks do not change when the gain does.
    if any(gain):
      wave_BS = audio.random_gain(jax.random.fold_in(key, 1), wave_BS, *gain)

    def loss_of(params):
      return objective(
          config, {'params': params, 'batch_stats': state.batch_stats},
          wave_BS, key, train=True)

    (loss, (stats, extra)), grads = jax.value_and_grad(
        loss_of, has_aux=True)(state.params)
    # Before clipping: a spike must be seen in the record.
    norm = optax.tree.norm(grads)
    updates, opt_state = optimizer(config, hparams, state.step).update(
        grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(state.step + 1, params, stats, opt_state)
    if config.train.max_skipped_steps:
      # A step that is not finite changes nothing but the step number.
      good = jnp.isfinite(loss) & jnp.isfinite(norm)
      new = jax.tree.map(lambda n, o: jnp.where(good, n, o), new,
                         state.replace(step=new.step))
      extra = {**extra, 'skipped': 1. - good}
    return new, {'loss': loss, 'grad_norm': norm,
                 # The rate that this step used.
                 'lr': learning_rate(state.step, hparams),
                 'param_norm': optax.tree.norm(new.params), **extra}

  return step


def calibrate_batch_norm(config: Config, state: TrainState,
                         wave_NS: npt.NDArray[np.int16]) -> TrainState:
  """Returns the state with BatchNorm's statistics set to a sample's.

  Dasheng starts at mean 0 and variance 1 and needs hundreds of steps to reach
  the statistics of the data. Without calibration the untrained baseline would
  get unnormalised decibels.
  """
  return with_statistics(
      state, *mel_statistics(config.model.frontend, config.model.mels, wave_NS))


def with_statistics(state: TrainState, mean_M: npt.NDArray[np.float32],
                    var_M: npt.NDArray[np.float32]) -> TrainState:
  """Returns the state with other statistics in the encoder's BatchNorm."""
  # Placed as the old ones are, so that no program is compiled anew.
  placed = jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding),
      {'norm_mel': {'mean': mean_M, 'var': var_M}},
      state.batch_stats['encoder'])
  return dataclasses.replace(
      state, batch_stats={**state.batch_stats, 'encoder': placed})


def mel_statistics(frontend: str, mels: int, wave_NS: npt.NDArray[np.int16]
                   ) -> tuple[npt.NDArray[np.float32], ...]:
  """Returns (mean_M, var_M) float32 of the log-mel over clips and time.

  Args:
    frontend, mels: fields of the model's config.
    wave_NS: the clips; only the first CALIBRATION_CLIPS are used.
  """
  # Sums per clip on the device, their total in float64 on the host.
  moments = _moments(frontend, mels)
  total_M, square_M, n = np.zeros(mels), np.zeros(mels), 0
  for index, wave_BS in embed.batches(
      wave_NS[:CALIBRATION_CLIPS], min(256, len(wave_NS))):
    # The last batch is padded with silence, which must not count.
    sum_M, sq_M = (np.asarray(x, np.float64)[:len(index)].sum(0)
                   for x in moments(wave_BS))
    total_M, square_M = total_M + sum_M, square_M + sq_M
    # Frames of a centred STFT: one more than hops fit.
    n += len(index) * (1 + wave_BS.shape[1] // config_lib.HOP)
  mean_M = total_M / n
  # A silent band must not be divided by 0.
  var_M = np.maximum(square_M / n - mean_M ** 2, 1e-3)
  return mean_M.astype(np.float32), var_M.astype(np.float32)


@functools.lru_cache(SHAPES)
def _moments(frontend, mels):
  """Returns the jitted wave_BS int16 -> sums over time (of dB, of dB^2)."""
  model_config = config_dict.FrozenConfigDict(
      {'frontend': frontend, 'mels': mels})

  @jax.jit
  def moments(wave_BS):
    mel_BMT = audio.front(model_config, audio.to_float(wave_BS))
    sums = mel_BMT.sum(2), jnp.square(mel_BMT).sum(2)
    if jax.sharding.get_abstract_mesh().empty:
      return sums
    # On a mesh the front end leaves the clips distributed over the devices.
    return jax.lax.with_sharding_constraint(
        sums, jax.sharding.PartitionSpec())

  return moments
