"""What a run is: its identity, the fields of old runs, and derived sizes.

A config is a ConfigDict with the fields of configs/base.py, or the same as
JSON. Two configs with one `identity` are one run: they have one `run_id`, and
so one folder. Whether a config can run at all: validate.py.

This module imports no other part of the library but files.py.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import difflib
import math
from typing import Any
from typing import TypeAlias

from ml_collections import config_dict

from audiorank import files

Config: TypeAlias = config_dict.ConfigDict | config_dict.FrozenConfigDict
Tree = dict[str, Any]  # A config as JSON: dictionaries, lists, scalars.

RATE = 16_000  # Samples a second of every wave that a model of ours takes.
HOP = 160  # Samples between frames: 100 frames a second.

SCHEMA = 3  # Raised when the same config would mean another experiment.
# Where files lie, what they are called and how a run is scored afterwards do
# not change what is trained.
NOT_IDENTITY = ('experiment', 'eval', 'checkpoint', 'mesh', 'data.root',
                'data.mixture', 'data.threads', 'data.resident', 'model.remat',
                'model.unroll', 'train.call', 'train.log_every',
                'monitor.batch', 'track')
# Fields that were added later, with what they are in a run written before.
# Such a run has no such field and keeps its run_id.
LATER: dict[str, Any] = {'train.skip': 0, 'train.call': 1, 'track': '',
         'data.mixture': '', 'data.gain_low': 0, 'data.gain_high': 0,
         'data.category': '', 'monitor.samples': '',
         'model.front': 'log_mel',
         'contrastive': {'share': .5, 'hidden': 512, 'width': 128,
                         'temperature': .1},
         'latent': {'decay': .999}}
# The parts that every config has.
PARTS = ('model', 'mask', 'data', 'train', 'opt', 'monitor', 'checkpoint',
         'eval', 'mesh')


# --- Identity ---


def plain(value: Any, field: str = 'config') -> Any:
  """Returns a config value as canonical JSON: 1.0 becomes 1.

  Args:
    value: a config, or any value in one.
    field: its name, for the message.

  Raises:
    ValueError: a value that JSON cannot hold; names the field.
  """
  if isinstance(value, (config_dict.ConfigDict, Mapping)):
    items = value.items()
    return {k: plain(v, f'{field}.{k}') for k, v in sorted(items)}
  if isinstance(value, (list, tuple)):
    return [plain(v, f'{field}[{i}]') for i, v in enumerate(value)]
  if value is None or isinstance(value, (bool, str, int)):
    return value
  if isinstance(value, float) and math.isfinite(value):
    return int(value) if value == int(value) else value
  raise ValueError(f'{field}: {value!r} is not a finite number, a string, '
                   'a boolean or a list of them')


def identity(config: Config | Tree) -> Tree:
  """Returns the part of a config that makes a run the run it is."""
  tree = plain(config)
  for field in NOT_IDENTITY:
    node, name = parent(tree, field)
    node.pop(name, None)
  for field, value in LATER.items():
    node, name = parent(tree, field)
    if name in node and node[name] == value:
      node.pop(name)
  return tree


def run_id(config: Config | Tree) -> str:
  """Returns a run's name; equal for configs of one identity."""
  return files.digest({'schema': SCHEMA, **identity(config)})


def difference(theirs: Tree, ours: Tree, prefix: str = '') -> str:
  """Returns the first field in which two config trees differ, as text."""
  for key in sorted(set(theirs) | set(ours)):
    a, b = theirs.get(key), ours.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      text = difference(a, b, f'{prefix}{key}.')
      if text:
        return text
    elif a != b:
      return f'{prefix}{key}: {a!r} there, {b!r} here'
  return ''


# --- Reading and writing ---


def frozen(tree: Config | Tree) -> config_dict.FrozenConfigDict:
  """Returns a FrozenConfigDict (hashable) of a JSON tree or a config."""
  if isinstance(tree, config_dict.ConfigDict):
    tree = tree.to_dict()
  return config_dict.FrozenConfigDict(tree)


def complete(tree: Tree) -> Tree:
  """Returns a config tree with the fields that were added after it was
  written."""
  for field, value in LATER.items():
    node, name = parent(tree, field)
    node.setdefault(name, value)
  return tree


def parent(tree: Any, field: str) -> tuple[Any, str]:
  """Returns (the part of a tree that holds a field, the field's last name)."""
  *parents, name = field.split('.')
  for part in parents:
    tree = tree[part]
  return tree, name


def get(config: Any, field: str) -> Any:
  """Returns the value of a field such as 'opt.lr'.

  Raises:
    ValueError: there is no such field.
  """
  try:
    node, name = parent(config, field)
    return node[name]
  except (KeyError, TypeError):
    raise ValueError(f'{field}: missing from the config: expected the fields '
                     'of configs/base.py') from None


def nearest(word: str, known: Iterable[str]) -> str:
  """Returns '. Did you mean ...?' of the nearest of some names, or ''."""
  for guess in difflib.get_close_matches(word, list(known), 1):
    return f'. Did you mean {guess}?'
  return ''


def names(text: str) -> list[str]:
  """Returns the names in a comma-separated field, each once, in order."""
  return list(dict.fromkeys(n.strip() for n in text.split(',') if n.strip()))


# --- Derived sizes ---


def crop_samples(seconds: float) -> int:
  """Returns the samples of a crop of so many seconds."""
  return int(round(seconds * RATE))


def patches(config: Config) -> int:
  """Returns L, the patches of a training crop."""
  frames = 1 + crop_samples(config.data.crop_seconds) // HOP
  return frames // config.model.patch_frames


def positions(model: Config) -> int:
  """Returns how many patches a model has learned positions for."""
  return model.target_frames // model.patch_frames


def visible(config: Config) -> int:
  """Returns K, the patches of a training crop that the mask leaves."""
  return unmasked(patches(config), config.mask.ratio)


def unmasked(tokens: int, ratio: float) -> int:
  """Returns how many tokens a mask leaves: rounded down, in floating point."""
  return int(tokens * (1 - ratio))


def size_name(width: int, depth: int) -> str:
  """Returns what a model size is called, such as 'en128-12'."""
  return f'en{width}-{depth}'


def mesh_sides(data: int, fsdp: int, devices: int) -> tuple[int, int]:
  """Returns the sides (data, fsdp) of a mesh over some devices.

  Args:
    data: devices along 'data'; -1 takes what fsdp leaves.
    fsdp: devices along 'fsdp'.
    devices: how many there are. None of them is opened.

  Raises:
    ValueError: the sides do not fit the number of devices.
  """
  sides = data, fsdp
  if data == -1 and fsdp > 0 and devices % fsdp == 0:
    sides = devices // fsdp, fsdp
  if min(sides) < 1 or sides[0] * sides[1] > devices:
    raise ValueError(f'mesh.data {data} x mesh.fsdp {fsdp}: expected a '
                     f'product of at most {devices} devices')
  return sides
