"""Every check of a config, made before anything is trained.

`fields` needs only the config; `corpus` and `tasks` also read the folders that
it names. Commands call `run` for one config and `sweep` for many. Each raises
for the first fault, with one line: the field, its value, and what is expected.
"""

from collections.abc import Iterable
import math
import operator
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
    'opt.warmup': '>= 0',
    'monitor.clips': '>= 2', 'monitor.seed': '>= 0',
    'monitor.num_evals': '>= 2',  # At least before training and after it.
    'monitor.eval_every': '>= 0', 'monitor.first_eval': '>= 1',
    'monitor.batch': '>= 1', 'monitor.neighbour_clips': '>= 0',
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
OPERATORS = {'>=': (operator.ge, 'at least'), '>': (operator.gt, 'more than'),
             '<=': (operator.le, 'at most'), '<': (operator.lt, 'less than')}


def run(config: Config, devices: int = 1) -> None:
  """Raises unless a run can be trained and scored.

  Args:
    config: with the fields of configs/base.py, its corpus and tasks named.
    devices: number of devices of the run, which may be on other machines.

  Raises:
    ValueError, FileNotFoundError: the first fault, in one line.
  """
  fields(config, devices)
  corpus(config)
  tasks(config)


def sweep(configs: Iterable[Config], devices: int = 1) -> None:
  """Raises unless every run of a sweep can be trained and scored.

  Args:
    configs: of the runs.
    devices: number of devices of each run.

  Raises:
    ValueError, FileNotFoundError: the first fault, in one line.
  """
  # Reading a corpus takes seconds, and hundreds of runs share one: it is read
  # once for all configs that agree in the parts that its check depends on.
  read = set()
  for config in configs:
    fields(config, devices)
    for check, parts in ((corpus, ('data', 'monitor')), (tasks, ('eval',))):
      tree = config_lib.plain(config)
      key = check, files.digest({part: tree[part] for part in parts})
      if key not in read:
        check(config)
        read.add(key)


def places(config: config_dict.ConfigDict) -> None:
  """Names corpus and tasks of a config absolutely, in place.

  Raises:
    ValueError: one is empty, or on a store that cannot be read; names the
      field.
  """
  for field, what in (('data.root', 'a prepared corpus (launch.sweep writes a '
                       'synthetic one)'), ('eval.tasks', 'HEAR task folders')):
    part, name = field.split('.')
    if not config[part][name]:
      raise ValueError(f'{field} is empty: expected --config.{field}=FOLDER of '
                       f'{what}')
    config[part][name] = files.absolute(config[part][name], field)


def fields(config: Config, devices: int = 1) -> None:
  """Raises for impossible values, and for values that contradict each other.

  It reads no file and opens no device.

  Args:
    config: with the fields of configs/base.py.
    devices: number of devices of the run.

  Raises:
    ValueError: names the field, its value and what is expected.
  """
  # Each field by itself.
  for old, new in config_lib.RENAMED.items():
    if config_lib.has(config, old):
      raise ValueError(f'{old}: no such field: it is now {new}')
  for field, bounds in WHOLE.items():
    value = config_lib.get(config, field)
    # In Python, True is an int.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not within(value, bounds):
      raise ValueError(f'{field} {value!r}: expected a whole number of '
                       f'{in_words(bounds)}')
  for field, bounds in REAL.items():
    value = config_lib.get(config, field)
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not within(value, bounds):
      raise ValueError(f'{field} {value!r}: expected a number of '
                       f'{in_words(bounds)}')
  for field in SWITCHES:
    value = config_lib.get(config, field)
    if not isinstance(value, bool):
      raise ValueError(f'{field} {value!r}: expected True or False')
  for field, kind in LISTS.items():
    value = config_lib.get(config, field)
    if field == 'monitor.layers' and tuple(value or ()) == ('all',):
      continue
    # The very type, as True is an int to isinstance.
    if not isinstance(value, (tuple, list)) or not all(
        type(item) is kind for item in value):
      raise ValueError(f'{field} {value!r}: expected a tuple of '
                       f'{ITEMS[kind]}')
  for field, choices in (
      ('objective', objectives.OBJECTIVES), ('model.frontend', audio.FRONTS),
      ('model.dtype', ('float32', 'bfloat16')),
      ('opt.schedule', ('cosine', 'wsd')),
      # Old runs have True and False.
      ('model.remat', (*model.REMAT, True, False)),
      ('eval.protocol', probe.PROTOCOLS)):
    value = config_lib.get(config, field)
    if value not in choices:
      raise ValueError(f'{field} {value!r}: expected one of '
                       f'{", ".join(map(str, choices))}')
  # Fields that must fit one another, and lists of names.
  shapes(config)
  schedule(config)
  batches(config, devices)
  evals.layers(config)
  sampling.names(config)
  metrics.tracker_names(config)


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
  for folder in evaluate.task_folders(config):
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
