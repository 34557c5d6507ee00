"""The config of a model, from the shapes of its tensors and other configs."""

from collections.abc import Mapping
import math
from typing import Any

from absl import logging
from ml_collections import config_dict
import numpy as np

from audiorank import audio
from audiorank import model

# Width -> heads of the published models base, 0.6B and 1.2B. The number of
# heads does not follow from the shapes.
HEADS = {768: 12, 1280: 16, 1536: 24}
DECODER_HEADS = {512: 16, 768: 24}
# Heads of encoder and decoder of the models in the official training code.
NAMED_HEADS = {'dasheng_base': (12, 16), 'dasheng_06B': (24, 16),
               'dasheng_12B': (24, 24)}
# Arguments of the official class -> our names of them.
ARGUMENTS = {'embed_dim': 'width', 'depth': 'depth', 'num_heads': 'heads',
             'mlp_ratio': 'mlp_ratio', 'n_mels': 'mels',
             'target_length': 'target_frames'}
# Arguments that change results but no shape. Only these values are supported.
FIXED: dict[str, Any] = {
    'n_fft': 512, 'win_size': 512, 'hop_size': 160, 'f_min': 0, 'f_max': 8000,
    'center': True, 'top_db': 120, 'pooling': 'mean', 'init_values': None,
    'block_type': 'Block', 'attention_type': 'Attention',
    'patch_size': [64, 4], 'patch_stride': [64, 4]}
# Fields of our config that do not follow from shapes, with their defaults.
FREE = {'heads': None, 'frontend': 'log_mel', 'dtype': 'float32',
        'remat': 'auto', 'unroll': 0}
SIZES = ('width', 'depth', 'mlp_ratio', 'mels', 'patch_frames',
         'target_frames')

# Bounds of the fields of our config, as in validate.py: the smallest whole
# number of each, and the values of others.
LEAST = {'width': 1, 'depth': 1, 'heads': 1, 'mels': 1, 'patch_frames': 1,
         'target_frames': 1, 'unroll': 0}
CHOICES: dict[str, tuple[Any, ...]] = {
    'frontend': audio.FRONTS, 'dtype': ('float32', 'bfloat16'),
    'remat': (*model.REMAT, True, False)}

Fields = dict[str, Any]
State = dict[str, np.ndarray]


def as_dict(config: Any) -> Any:
  """Returns a config of any kind as nested dictionaries."""
  if isinstance(config, config_dict.ConfigDict):
    return config.to_dict()
  return config


def read(config: Any) -> Fields:
  """Returns the fields of a config of any kind, with our names.

  Args:
    config: of one of our runs or its `model` part, the arguments of the
      official class, Hugging Face's config.json, or the config of the official
      training code; None has no fields.

  Raises:
    ValueError: not a config, an unknown field, or an official argument that is
      not supported.
  """
  config = as_dict(config)
  if not config:
    return {}
  if not isinstance(config, Mapping):
    raise ValueError(f'config: a {type(config).__name__}, expected fields')
  # 'model' contains our fields; in the official training code it is a name.
  for part in ('model', 'encoder_kwargs'):
    if isinstance(config.get(part), Mapping):
      config = config[part]
  ours = {*SIZES, *FREE, 'decoder'}
  if set(config) & (ours - set(ARGUMENTS)):
    unknown = set(config) - ours
    if unknown:
      raise ValueError(f'config: unknown field {min(unknown)}')
    check_fields(config)
    return dict(config)
  return official(config)


def check_fields(fields: Mapping[str, Any], label: str = '') -> None:
  """Raises ValueError for a value that a field of our config cannot have.

  Args:
    fields: of the `model` part, or of its decoder.
    label: 'decoder.' or '', for messages.
  """
  for field, value in fields.items():
    number = is_number(value)
    if field in LEAST and not (
        number and value >= LEAST[field] and value == int(value)):
      raise ValueError(f'config.{label}{field}: {value!r}, expected a whole '
                       f'number of at least {LEAST[field]}')
    if field == 'mlp_ratio' and not (number and value > 0):
      raise ValueError(f'config.{label}{field}: {value!r}, expected a number '
                       'of more than 0')
    if field in CHOICES and value not in CHOICES[field]:
      raise ValueError(f'config.{label}{field}: {value!r}, expected one of '
                       f'{", ".join(map(str, CHOICES[field]))}')
    if field == 'decoder':
      if not isinstance(value, Mapping):
        raise ValueError(f'config.decoder: {value!r}, expected fields')
      check_fields(value, 'decoder.')


def is_number(value: Any) -> bool:
  """Returns whether a value is a finite number. In Python, True is an int."""
  if isinstance(value, float):
    return math.isfinite(value)
  return isinstance(value, int) and not isinstance(value, bool)


def official(config: Mapping[str, Any]) -> Fields:
  """Returns the fields of arguments of the official class; see `read`."""
  arguments = config.get('model_args', config)
  if not isinstance(arguments, Mapping):
    raise ValueError(f'config.model_args: a {type(arguments).__name__}, '
                     'expected fields')
  for name in sorted(arguments.keys() & FIXED.keys()):
    value = arguments[name]
    # JSON has lists where Python has tuples.
    if isinstance(value, tuple):
      value = list(value)
    if value != FIXED[name]:
      raise ValueError(f'config.{name}: {value!r}, expected {FIXED[name]!r}')
  fields = {ARGUMENTS[name]: value for name, value in arguments.items()
            if name in ARGUMENTS}
  for field, value in fields.items():
    if not is_number(value) or value != int(value):
      raise ValueError(f'config: {field} {value!r}, expected a whole number')
  if 'target_frames' in fields:  # An incomplete patch has no position.
    fields['target_frames'] -= fields['target_frames'] % FIXED['patch_size'][1]
  name = config.get('model')
  if 'model_args' in config and isinstance(name, str) and name in NAMED_HEADS:
    encoder, decoder = NAMED_HEADS[name]
    fields = {'usual_heads': encoder, **fields,
              'decoder': {'usual_heads': decoder}}
  return fields


def infer(state: State, prefix: str, decoder: bool, fields: Fields) -> Fields:
  """Returns the model part of a config: sizes from shapes, others from fields.

  Args:
    state: official name -> array.
    prefix: of the encoder's names.
    decoder: whether the state has a decoder.
    fields: from `read`.

  Raises:
    ValueError: a tensor that is missing or has another shape, or a field that
      contradicts the shapes; names it.
  """
  D, _, M, frames = shape_of(state, f'{prefix}patch_embed.proj.weight',
                             'D', '1', '64', '4')
  if (M, frames) != (64, 4):
    raise ValueError(f'{prefix}patch_embed.proj.weight: shape '
                     f'{(D, 1, M, frames)}, expected {(D, 1, 64, 4)}')
  L = shape_of(state, f'{prefix}time_pos_embed', '1', 'D', '1', 'L')[3]
  depth, ratio = blocks_of(state, prefix)
  tree = {'width': D, 'depth': depth, 'mlp_ratio': ratio, 'mels': M,
          'patch_frames': frames, 'target_frames': L * frames}
  check_stated(tree, fields, '')
  # Small models have heads of 32 dimensions, others of 64.
  dimensions = 32
  if D >= 256:
    dimensions = 64
  free = {field: fields.get(field, value) for field, value in FREE.items()}
  free['heads'] = heads(D, fields, '', HEADS, max(1, D // dimensions))
  stated = fields.get('decoder', {})
  if decoder:
    inner = decoder_of(state, stated)
  else:
    inner = published_decoder(D, depth, stated)
  return {**tree, **free, 'decoder': inner}


def decoder_of(state: State, fields: Fields) -> Fields:
  """Returns the decoder part of a config, from the shapes of its tensors."""
  width = shape_of(state, 'decoder.input_proj.weight', 'W', 'D')[0]
  sizes = {'width': width, 'depth': blocks_of(state, 'decoder.')[0]}
  check_stated(sizes, fields, 'decoder.')
  return {**sizes, 'heads': heads(width, fields, 'decoder.', DECODER_HEADS,
                                  max(1, width // 32))}


def published_decoder(width: int, depth: int, fields: Fields) -> Fields:
  """Returns the published decoder of an encoder of this size."""
  sizes = {'width': 512, 'depth': 8, 'heads': 16}
  # Of the published models the 1.2B has a larger decoder.
  if (width, depth) == (1536, 40):
    sizes = {'width': 768, 'depth': 8, 'heads': 24}
  return {field: fields.get(field, value) for field, value in sizes.items()}


def shape_of(state: State, name: str, *dimensions: str) -> tuple[int, ...]:
  """Returns the shape of a tensor.

  Raises:
    ValueError: it is missing, or has another number of dimensions.
  """
  expected = f'expected ({", ".join(dimensions)})'
  if name not in state:
    raise ValueError(f'{name}: missing, {expected}')
  shape = state[name].shape
  if len(shape) != len(dimensions) or not all(shape):
    raise ValueError(f'{name}: shape {shape}, {expected}')
  return shape


def blocks_of(state: State, part: str) -> tuple[int, int]:
  """Returns (the number of blocks, the width of their MLP over D)."""
  start = f'{part}blocks.'
  numbers = {name[len(start):].split('.')[0] for name in state
             if name.startswith(start)}
  # Only up to the first gap. A block beyond it becomes an unknown tensor, about
  # which the error is clearer.
  depth = 1
  while str(depth) in numbers:
    depth += 1
  F, D = shape_of(state, f'{start}0.mlp.fc1.weight', '4 D', 'D')
  return depth, F // D


def check_stated(sizes: Fields, fields: Fields, label: str) -> None:
  """Raises ValueError if a config has another size than the shapes."""
  for field, value in sizes.items():
    if fields.get(field, value) != value:
      raise ValueError(f'config.{label}{field}: {fields[field]!r}, but the '
                       f'tensors have {value}')


def heads(width: int, fields: Fields, label: str, published: dict[int, int],
          rule: int) -> int:
  """Returns the number of heads of a config, or the usual number.

  Args:
    width: of the model.
    fields: from `read`.
    label: 'decoder.' or '', for messages.
    published: width -> heads.
    rule: number for any other width, with a warning.

  Raises:
    ValueError: the width is not a multiple of it.
  """
  if 'heads' in fields:
    if fields['heads'] < 1 or width % fields['heads']:
      raise ValueError(f"config.{label}heads: {fields['heads']}, expected a "
                       f'divisor of the width {width}')
    return fields['heads']
  usual = fields.get('usual_heads')
  if usual and not width % usual:
    return usual
  if width in published:
    return published[width]
  if width % rule:
    raise ValueError(f'config.{label}heads: not stated, expected a divisor of '
                     f'the width {width}')
  logging.warning('%sheads: not in the weights, assuming %d', label, rule)
  return rule
