"""The config of a run: its identity, the fields of old runs, derived sizes.

A config is a ConfigDict with the fields of configs/base.py, or the same as
JSON. Two configs with the same `identity` are the same run: they have the same
`run_id` and so the same folder. validate.py checks whether a config can run.

This module imports no other part of the library but files.py.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import copy
import difflib
import math
import os
import posixpath
from typing import Any
from typing import TypeAlias

from ml_collections import config_dict

from audiorank import files

Config: TypeAlias = config_dict.ConfigDict | config_dict.FrozenConfigDict
Tree = dict[str, Any]  # A config as JSON: dictionaries, lists, scalars.

RATE = 16_000  # Hz of every wave that our models take, as in Dasheng.
HOP = 160  # Samples between frames: 100 frames per second.

SCHEMA = 3  # To be raised when the same config would mean another experiment.
# Fields that do not change what is trained: where files are, how fast the
# program runs, how often it saves, and how the run is scored afterwards.
NOT_IDENTITY = ('experiment', 'eval', 'checkpoint', 'mesh', 'data.root',
                'data.mixture', 'data.threads', 'data.in_memory', 'model.remat',
                'model.unroll', 'train.steps_per_call', 'train.log_every',
                'monitor.batch', 'trackers')
# Fields that were added later, each with the value that reproduces the runs
# from before. At that value a field does not enter the identity, so that old
# runs keep their run_id.
LATER: dict[str, Any] = {
    'opt.schedule': 'cosine', 'opt.decay': .1, 'opt.transfer': 0,
    'train.max_skipped_steps': 0, 'train.steps_per_call': 1, 'trackers': [],
    'data.mixture': [], 'data.gain_low': 0, 'data.gain_high': 0,
    'data.category': [], 'monitor.samples': [], 'monitor.neighbour_clips': 0,
    'monitor.knn_task': '', 'monitor.lidar_clips': 0,
    'monitor.lidar_views': 10, 'model.frontend': 'log_mel',
    'eval.sha256': '', 'eval.every_layer': False,
    'contrastive': {'share': .5, 'hidden': 512, 'width': 128,
                    'temperature': .1},
    'latent': {'decay': .999}}
# Fields that had another name in runs from before: {old: new}. A run_id is
# the digest of the old names, so that old runs keep theirs.
RENAMED = {
    'track': 'trackers', 'model.front': 'model.frontend',
    'mask.group': 'mask.group_size', 'data.resident': 'data.in_memory',
    'train.calibrate': 'train.calibrate_batch_norm',
    'train.call': 'train.steps_per_call',
    'train.skip': 'train.max_skipped_steps',
    'opt.final': 'opt.final_lr_ratio',
    'monitor.readings': 'monitor.num_evals',
    'monitor.every': 'monitor.eval_every',
    'monitor.first': 'monitor.first_eval',
    'checkpoint.every': 'checkpoint.save_every',
    'checkpoint.keep': 'checkpoint.keep_every',
    'eval.names': 'eval.task_names'}
# Fields that are lists. In runs from before, and in the digest, they are
# text with commas. Those of INTEGERS are numbers.
LISTS = ('trackers', 'data.mixture', 'data.category', 'data.world.tasks',
         'monitor.layers', 'monitor.samples', 'eval.task_names')
INTEGERS = ('monitor.layers',)
PART_TYPES = (Mapping, config_dict.ConfigDict)
# The parts that every config has.
PARTS = ('model', 'mask', 'data', 'train', 'opt', 'monitor', 'checkpoint',
         'eval', 'mesh')


# --- Identity ---


def plain(value: Any, field: str = 'config') -> Any:
  """Returns a config value as canonical JSON, sorted, with 1.0 as 1.

  Args:
    value: a config, or any value in one.
    field: its name, for the message.

  Raises:
    ValueError: a value that JSON cannot hold; names the field.
  """
  # YAML, flags and Python write the same number as 1 or 1.0; both must give
  # one run_id.
  if isinstance(value, (config_dict.ConfigDict, Mapping)):
    items = value.items()
    return {k: plain(v, f'{field}.{k}') for k, v in sorted(items)}
  if isinstance(value, (list, tuple)):
    return [plain(v, f'{field}[{i}]') for i, v in enumerate(value)]
  if value is None or isinstance(value, (bool, str, int)):
    return value
  if isinstance(value, float) and math.isfinite(value):
    if value == int(value):
      return int(value)
    return value
  raise ValueError(f'{field}: {value!r} is not a finite number, a string, '
                   'a boolean or a list of them')


def identity(config: Config | Tree) -> Tree:
  """Returns the part of a config that determines what is trained."""
  tree = complete(plain(config))
  for field in NOT_IDENTITY:
    node, name = parent(tree, field)
    node.pop(name, None)
  for field, value in LATER.items():
    if field.split('.')[0] not in tree:
      continue
    node, name = parent(tree, field)
    if name in node and node[name] == value:
      node.pop(name)
  return tree


def run_id(config: Config | Tree) -> str:
  """Returns a run's name: a digest of its identity."""
  return files.digest({'schema': SCHEMA, **hashed(identity(config))})


def hashed(tree: Tree) -> Tree:
  """Returns a config tree, or a part of one, as it enters a digest.

  Fields have the names, and lists the text, of the first runs.
  """
  tree = plain(tree)
  for field in LISTS:
    if has(tree, field):
      node, name = parent(tree, field)
      node[name] = ','.join(map(str, node[name]))
  for old, new in RENAMED.items():
    move(tree, new, old)
  return tree


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
  return config_dict.FrozenConfigDict(_with_tuples(tree))


def _with_tuples(value: Any) -> Any:
  """Returns a tree with tuples for lists, as configs/base.py has them."""
  # A FrozenConfigDict with a list is not equal to the same with a tuple.
  if isinstance(value, Mapping):
    return {k: _with_tuples(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_with_tuples(v) for v in value)
  return value


def complete(tree: Tree) -> Tree:
  """Returns a config tree, as it may be in an old run, with today's fields.

  Changes the tree: renames what is in RENAMED, splits the text of LISTS, adds
  what is in LATER.
  """
  for old, new in RENAMED.items():
    move(tree, old, new)
  for field in LISTS:
    if has(tree, field):
      node, name = parent(tree, field)
      if isinstance(node[name], str):
        node[name] = split(field, node[name])
  for field, value in LATER.items():
    if has(tree, field.rpartition('.')[0]):
      node, name = parent(tree, field)
      node.setdefault(name, copy.deepcopy(value))
  return tree


def split(field: str, text: str) -> list[Any]:
  """Returns the items of a list field that is written with commas.

  Of INTEGERS, what is no number stays text, for validate.py to refuse.
  """
  items = [item.strip() for item in text.split(',') if item.strip()]
  if field not in INTEGERS:
    return list(dict.fromkeys(items))
  return [int(item) if item.isdecimal() else item for item in items]


def has(tree: Tree | Config, field: str) -> bool:
  """Returns whether a config tree has a field; '' is the tree itself."""
  node: Any = tree
  for name in filter(None, field.split('.')):
    if not isinstance(node, PART_TYPES) or name not in node:
      return False
    node = node[name]
  return True


def move(tree: Tree, field: str, to: str) -> None:
  """Moves the value of a field, where there is one, to another name."""
  if has(tree, field):
    node, name = parent(tree, field)
    value = node.pop(name)
    node, name = parent(tree, to)
    node[name] = value


def parent(tree: Any, field: str) -> tuple[Any, str]:
  """Returns (the part that contains a field, the field's last name)."""
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


def nearest(word: str, known: Iterable[str],
            full: Mapping[str, str] | None = None) -> str:
  """Returns '. Did you mean ...?' with the most similar known name, or ''.

  Args:
    word: what was written.
    known: names.
    full: {known name: the name to print}; else names are printed as they are.
  """
  for guess in difflib.get_close_matches(word, list(known), 1):
    return f'. Did you mean {full[guess] if full else guess}?'
  return ''


# --- Where files lie ---


def portable(tree: Tree, root: files.Path, strict: bool = True) -> Tree:
  """Returns a config tree that names its files relative to a folder.

  A folder can then be moved, copied or mounted with what lies beside it. What
  lies on another bucket keeps its URL.

  Args:
    tree: absolute paths and URLs.
    root: the folder that holds the run's folder.
    strict: refuse files on a disk of a run on a bucket; else they are left
      unnamed.

  Raises:
    ValueError: such files, where `strict`; names the field.
  """
  base = files.absolute(root)

  def name(field, place):
    if not files.is_on_bucket(place):
      if files.is_on_bucket(base) and not strict:
        return ''
      if files.is_on_bucket(base):
        raise ValueError(
            f'{field} {place}: a local folder, but the run is on {base}: '
            'expected a folder on a bucket (gcloud storage cp -r copies it)')
      return os.path.relpath(place, base)
    bucket, _, key = place.removeprefix('gs://').partition('/')
    ours, _, folder = base.removeprefix('gs://').partition('/')
    if not files.is_on_bucket(base) or bucket != ours:
      return place
    return posixpath.relpath(f'/{key}', f'/{folder}')

  return _with_places(tree, name)


def located(tree: Tree, root: files.Path,
            places: Mapping[str, str] | None = None) -> Tree:
  """Returns a config tree with absolute paths: undoes `portable`.

  Args:
    tree: a config tree; what it names absolutely, as older versions did, stays.
    root: the folder that holds the run's folder.
    places: {field: path} of what lies elsewhere now.
  """
  base = files.absolute(root)

  def name(field, place):
    if places and places.get(field):
      return files.absolute(places[field], field)
    # A URL of another kind is refused where it is read.
    if '://' in place or os.path.isabs(place):
      return place
    return files.absolute(f'{base}/{place}')

  return _with_places(tree, name)


def _with_places(tree: Tree, name: Callable[[str, str], str]) -> Tree:
  """Returns a tree whose folders are named by a function of (field, place)."""
  tree = complete(copy.deepcopy(tree))
  for part, field in (('data', 'root'), ('eval', 'tasks')):
    place = tree[part].get(field)
    if not isinstance(place, str | None):
      raise ValueError(f'{part}.{field} {place!r}: expected a folder')
    if place:
      tree[part][field] = name(f'{part}.{field}', place)
  mixture = tree['data']['mixture']
  if not isinstance(mixture, (list, tuple)) or not all(
      isinstance(share, str) for share in mixture):
    raise ValueError(f'data.mixture {mixture!r}: expected a list of '
                     'FOLDER=WEIGHT')
  shares = []
  for share in mixture:
    place, _, weight = share.rpartition('=')
    if not place:
      shares.append(share)  # For validate.py to refuse.
    elif named := name('data.mixture', place):
      shares.append(f'{named}={weight}')
  tree['data']['mixture'] = shares
  return tree


# --- Derived sizes ---


def crop_samples(seconds: float) -> int:
  """Returns the number of samples of a crop."""
  return int(round(seconds * RATE))


def patches(config: Config) -> int:
  """Returns L, the patches of a training crop."""
  # One frame more than hops: windows are centred, the first one at sample 0.
  frames = 1 + crop_samples(config.data.crop_seconds) // HOP
  return frames // config.model.patch_frames


def positions(model: Config) -> int:
  """Returns the number of patches that a model has position embeddings for."""
  return model.target_frames // model.patch_frames


def visible(config: Config) -> int:
  """Returns K, the patches of a training crop that stay visible."""
  return unmasked(patches(config), config.mask.ratio)


def unmasked(tokens: int, ratio: float) -> int:
  """Returns how many tokens stay visible at a masking ratio."""
  # As the published code computes it, rounding errors included: 1 - .8 is less
  # than .2, so that 50 tokens leave 9.
  return int(tokens * (1 - ratio))


def size_name(width: int, depth: int) -> str:
  """Returns the name of a model size, such as 'en128-12'."""
  return f'en{width}-{depth}'


def mesh_sides(data: int, fsdp: int, devices: int) -> tuple[int, int]:
  """Returns the sides (data, fsdp) of a mesh over some devices.

  Args:
    data: devices along 'data'; -1 takes all that fsdp leaves.
    fsdp: devices along 'fsdp'.
    devices: their number. None of them is opened.

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
