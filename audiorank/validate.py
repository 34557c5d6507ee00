"""Every check of a config, made before anything is trained.

`fields` needs only the config; `corpus` and `tasks` also read the folders that
it names. Commands call `run`, or `training` and `scoring` apart, as the two may
be done on different machines. Each raises for the first fault, with one line:
the field, its value, and what is expected.
"""

from collections.abc import Collection
from collections.abc import Iterable
import operator
import sys
from typing import Any
from typing import TypeAlias

from ml_collections import config_dict

from audiorank import audio
from audiorank import config as config_lib
from audiorank import data
from audiorank import evals
from audiorank import evaluate
from audiorank import files
from audiorank import metrics
from audiorank import model
from audiorank import objectives
from audiorank import sampling
from audiorank.hear import probe
from audiorank.hear import scores
from audiorank.hear import tasks as task_folders
from audiorank.synth import tasks as synth_tasks

Config: TypeAlias = config_lib.Config

# Whole numbers, with their bounds.
WHOLE = {
    'seed': '>= 0, < 4294967296',  # jax.random.key takes 32 bits.
    'model.width': '>= 1', 'model.depth': '>= 1', 'model.heads': '>= 1',
    'model.mels': '>= 1', 'model.patch_frames': '>= 1',
    'model.target_frames': '>= 1', 'model.unroll': '>= 0',
    'model.decoder.width': '>= 1', 'model.decoder.depth': '>= 1',
    'model.decoder.heads': '>= 1', 'mask.group_size': '>= 1',
    'data.seed': '>= 0, < 4294967296', 'data.subset_seed': '>= 0',
    'data.threads': '>= 1',
    'data.world.seed': '>= 0', 'data.world.train_clips': '>= 1',
    'data.world.valid_clips': '>= 1', 'data.world.test_clips': '>= 1',
    'train.steps': '>= 0', 'train.batch': '>= 1', 'train.log_every': '>= 1',
    'train.steps_per_call': '>= 1', 'train.max_skipped_steps': '>= 0',
    'opt.warmup': '>= 0', 'opt.transfer': '>= 0',
    'monitor.clips': '>= 2', 'monitor.seed': '>= 0',
    'monitor.num_evals': '>= 2',  # At least before training and after it.
    'monitor.eval_every': '>= 0', 'monitor.first_eval': '>= 1',
    'monitor.batch': '>= 1', 'monitor.neighbour_clips': '>= 0',
    'monitor.lidar_clips': '>= 0', 'monitor.lidar_views': '>= 2',
    'monitor.valid_clips': '>= 0', 'checkpoint.save_every': '>= 1',
    'checkpoint.keep_every': '>= 1',
    'eval.grid_points': '>= 1, <= 16',  # The size of HEAR's whole grid.
    'eval.hidden': '>= 1', 'eval.max_epochs': '>= 1', 'eval.batch': '>= 1',
    'eval.seed': '>= 0, < 4294967296',
}
# Finite numbers, with their bounds.
REAL = {
    'model.mlp_ratio': '> 0', 'mask.ratio': '> 0, < 1',
    'data.hours': '>= 0',
    'data.gain_low': '>= -60, <= 60', 'data.gain_high': '>= -60, <= 60',
    'data.valid_fraction': '> 0, < 1', 'data.crop_seconds': '> 0',
    'data.world.hours': '> 0', 'train.init_scale': '> 0', 'opt.lr': '> 0',
    'opt.final_lr_ratio': '>= 0, <= 1', 'opt.b1': '>= 0, < 1',
    'opt.b2': '>= 0, < 1', 'opt.decay': '> 0, <= 1',
    'opt.weight_decay': '>= 0', 'opt.clip': '>= 0',
    'monitor.crop_seconds': '> 0',
}
# True or False, not 1 or 0: a run's name depends on the value.
ITEMS = {int: 'whole numbers', str: 'strings'}
SWITCHES = ('data.in_memory', 'train.calibrate_batch_norm',
            'eval.every_layer')
# Lists of one type; what else they may hold, the checks of their users say.
LISTS = {field: int if field in config_lib.INTEGERS else str
         for field in config_lib.LISTS}
CHOICES: dict[str, tuple[Any, ...]] = {
    'objective': tuple(objectives.OBJECTIVES), 'model.frontend': audio.FRONTS,
    'model.dtype': ('float32', 'bfloat16'), 'opt.schedule': ('cosine', 'wsd'),
    # Old runs have True and False.
    'model.remat': (*model.REMAT, True, False),
    'eval.protocol': tuple(probe.PROTOCOLS)}
# Fields that say how a run is scored, beside its tasks.
PREDICTOR = ('eval.protocol', 'eval.grid_points', 'eval.hidden',
             'eval.max_epochs', 'eval.seed')
# Folders, and what is expected there.
PLACES = {'data.root': 'a prepared corpus (launch.sweep writes a synthetic '
                       'one)', 'eval.tasks': 'HEAR task folders'}
LARGEST = sys.float_info.max
OPERATORS = {'>=': (operator.ge, 'at least'), '>': (operator.gt, 'more than'),
             '<=': (operator.le, 'at most'), '<': (operator.lt, 'less than')}


def run(config: Config, devices: int = 1,
        read: set[str] | None = None) -> None:
  """Raises unless a run can be trained and scored.

  Args:
    config: with the fields of configs/base.py, its corpus and tasks named.
    devices: number of devices of the run, which may be on other machines.
    read: see `training`.

  Raises:
    ValueError, FileNotFoundError: the first fault, in one line.
  """
  training(config, devices, read)
  scoring(config, read)


def training(config: Config, devices: int = 1,
             read: set[str] | None = None) -> None:
  """Raises unless a run can be trained: its fields and its corpus.

  Args:
    config: of the run.
    devices: number of its devices.
    read: digests of what was read before, for runs that share a corpus: it is
      not read again, and what is read is added.

  Raises:
    ValueError, FileNotFoundError: the first fault, in one line.
  """
  fields(config, devices)
  place(config, 'data.root')
  tree = config_lib.plain(config)
  # An untrained network does not need the hours of training.
  key = files.digest([tree['data'], tree['monitor'], not config.train.steps])
  if read is None or key not in read:
    corpus(config)
    if read is not None:
      read.add(key)


def scoring(config: Config, read: set[str] | None = None) -> None:
  """Raises unless a trained run can be scored: its predictor and its tasks.

  Args:
    config: of the run.
    read: as in `training`.

  Raises:
    ValueError, FileNotFoundError: the first fault, in one line.
  """
  values(config, PREDICTOR)
  place(config, 'eval.tasks')
  key = files.digest(config_lib.plain(config)['eval'])
  if read is None or key not in read:
    tasks(config)
    if read is not None:
      read.add(key)


def places(config: config_dict.ConfigDict) -> None:
  """Names corpus and tasks of a config absolutely, in place.

  Raises:
    ValueError: as `place`.
  """
  for field in PLACES:
    part, name = field.split('.')
    config[part][name] = place(config, field)


def place(config: Config, field: str) -> str:
  """Returns the absolute path or URL in one of PLACES.

  Raises:
    ValueError: it is empty, or on a store that cannot be read; names the
      field.
  """
  value = config_lib.get(config, field)
  if not value:
    raise ValueError(f'{field} is empty: expected --config.{field}=FOLDER of '
                     f'{PLACES[field]}')
  return files.absolute(value, field)


def fields(config: Config, devices: int = 1) -> None:
  """Raises for impossible values, and for values that contradict each other.

  It reads no file and opens no device.

  Args:
    config: with the fields of configs/base.py.
    devices: number of devices of the run.

  Raises:
    ValueError: names the field, its value and what is expected.
  """
  values(config)
  # Fields that must fit one another, and lists of names.
  shapes(config)
  schedule(config)
  batches(config, devices)
  evals.layers(config)
  sampling.names(config)
  metrics.tracker_names(config)
  synthetic_tasks(config)


def synthetic_tasks(config: Config) -> None:
  """Raises ValueError for a task that the synthetic dataset will not have."""
  if config.eval.tasks:
    return  # These are looked up in their folder.
  world = config.data.world.tasks or tuple(synth_tasks.TASKS)
  known = [f'{name}-v1-full' for name in world]
  for name in config.eval.task_names:
    if name not in known:
      raise ValueError(f'eval.task_names: no task {name!r} in the synthetic '
                       f'dataset: there are {", ".join(known)}'
                       f'{evaluate.nearest_task(name, known)}')


def values(config: Config, only: Collection[str] | None = None) -> None:
  """Raises ValueError for a field with a value that it cannot have.

  Args:
    config: with the fields of configs/base.py.
    only: the fields to check; None checks all.
  """
  asked = lambda field: only is None or field in only
  for old, new in config_lib.RENAMED.items():
    if config_lib.has(config, old):
      raise ValueError(f'{old}: no such field: it is now {new}')
  for field in filter(asked, WHOLE):
    value, bounds = config_lib.get(config, field), WHOLE[field]
    # In Python, True is an int.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not within(value, bounds):
      raise ValueError(f'{field} {value!r}: expected a whole number of '
                       f'{in_words(bounds)}')
  for field in filter(asked, REAL):
    value, bounds = config_lib.get(config, field), REAL[field]
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN is not within; a whole number may be too large for a float.
    if not real or not abs(value) <= LARGEST or not within(value, bounds):
      raise ValueError(f'{field} {value!r}: expected a number of '
                       f'{in_words(bounds)}')
  for field in filter(asked, SWITCHES):
    value = config_lib.get(config, field)
    if not isinstance(value, bool):
      raise ValueError(f'{field} {value!r}: expected True or False')
  for field in filter(asked, LISTS):
    value, kind = config_lib.get(config, field), LISTS[field]
    if field == 'monitor.layers' and value in (
        ('all',), ['all'], ('final',), ['final']):
      continue
    # The very type, as True is an int to isinstance.
    if not isinstance(value, (tuple, list)) or not all(
        type(item) is kind for item in value):
      raise ValueError(f'{field} {value!r}: expected a tuple of '
                       f'{ITEMS[kind]}')
  for field in filter(asked, CHOICES):
    value = config_lib.get(config, field)
    if value not in CHOICES[field]:
      raise ValueError(f'{field} {value!r}: expected one of '
                       f'{", ".join(map(str, CHOICES[field]))}')


def within(value: float, bounds: str) -> bool:
  """Returns whether a number satisfies bounds such as '>= 0, < 1'."""
  pairs = (bound.split() for bound in bounds.split(', '))
  return all(OPERATORS[sign][0](value, float(limit)) for sign, limit in pairs)


def in_words(bounds: str) -> str:
  """Returns bounds such as '>= 0, < 1' as 'at least 0 and less than 1'."""
  pairs = (bound.split() for bound in bounds.split(', '))
  return ' and '.join(f'{OPERATORS[sign][1]} {limit}' for sign, limit in pairs)


def shapes(config: Config) -> None:
  """Raises if the sizes of the model, the crop and the mask do not fit."""
  m, L = config.model, config_lib.patches(config)
  for field, part in (('model', m), ('model.decoder', m.decoder)):
    # Heads have equal parts of the width.
    if part.width % part.heads:
      raise ValueError(f'{field}.width {part.width} is not a multiple of '
                       f'{field}.heads {part.heads}')
  # A log-mel has 64 mels. A column of pixels is the samples of one hop.
  rows = {'log_mel': 64, 'pixels': audio.HOP}[m.frontend]
  if m.mels > rows:
    raise ValueError(f'model.mels {m.mels}: model.frontend {m.frontend} gives '
                     f'at most {rows} rows')
  if L > config_lib.positions(m):
    raise ValueError(
        f'data.crop_seconds {config.data.crop_seconds} is {L} patches, but '
        f'model.target_frames {m.target_frames} gives '
        f'{config_lib.positions(m)} positions')
  # Patches are masked in whole groups.
  if L % config.mask.group_size:
    raise ValueError(f'data.crop_seconds {config.data.crop_seconds} is {L} '
                     f'patches, not a multiple of mask.group_size '
                     f'{config.mask.group_size}')
  # Of a short clip, rounding may leave all patches or none.
  K = config_lib.visible(config)
  if not 0 < K < L:
    raise ValueError(f'mask.ratio {config.mask.ratio} keeps {K} of {L} '
                     'patches: expected some kept and some removed')
  # Each objective checks its own part of the config.
  objectives.check(config, L)


def schedule(config: Config) -> None:
  """Raises if the warm-up does not end before training does."""
  steps, warmup = config.train.steps, config.opt.warmup
  # An untrained baseline has 0 steps and uses no schedule.
  if steps and warmup >= steps:
    raise ValueError(f'opt.warmup {warmup}: expected less than train.steps '
                     f'{steps}')


def batches(config: Config, devices: int) -> None:
  """Raises if a batch cannot be split evenly over the devices of the mesh."""
  data, fsdp = config_lib.mesh_sides(config.mesh.data, config.mesh.fsdp,
                                     devices)
  for field in ('train.batch', 'monitor.batch'):
    batch = config_lib.get(config, field)
    if batch % (data * fsdp):
      raise ValueError(f'{field} {batch} is not a multiple of {data * fsdp} '
                       'devices')
  # The validation loss is computed in batches of the training size.
  if config.monitor.valid_clips % config.train.batch:
    raise ValueError(
        f'monitor.valid_clips {config.monitor.valid_clips}: expected a '
        f'multiple of train.batch {config.train.batch}, or 0')


def corpus(config: Config) -> None:
  """Raises if the corpus lacks what a config needs.

  Raises:
    FileNotFoundError: no corpus at data.root.
    ValueError: too few hours, clips, recordings or categories; names the
      field.
  """
  parts, wanted = sampling.parts(config), config.monitor
  samples = config_lib.crop_samples(wanted.crop_seconds)
  clips = data.clips_in(parts.usable, samples)
  if clips < wanted.clips:
    raise ValueError(
        f'monitor.clips {wanted.clips}: {config.data.root} has {clips} clips '
        f'of {wanted.crop_seconds:g} s beside those held out: expected at most '
        'that many')


def tasks(config: Config) -> None:
  """Raises if a task cannot be scored.

  It checks every label, the name of every clip and every measure, and opens no
  clip.

  Raises:
    FileNotFoundError: no task folder, or a missing clip.
    ValueError: an unknown or damaged task.
  """
  for folder in evaluate.checked_folders(config):
    task(folder)


def task(folder: files.Path, rate: int = config_lib.RATE) -> Any:
  """Returns a task, after checking that it has all clips and known measures.

  Args:
    folder: of the task.
    rate: the model's, in Hz.

  Raises:
    FileNotFoundError, ValueError: as `tasks`.
  """
  loaded = task_folders.load(folder, evaluate.clip_rate(folder, rate))
  known: Iterable[str] = scores.EVENT
  if loaded.embedding_type == 'scene':
    known = scores.SCENE
  for measure in loaded.evaluation:
    if measure not in known:
      raise ValueError(f'{folder}: evaluation: no measure {measure!r}: '
                       f'expected one of {", ".join(known)}')
  return loaded
