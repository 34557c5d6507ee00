"""What a config says of a model, and what the shapes of its tensors do."""

from collections.abc import Mapping

from absl import logging
from ml_collections import config_dict

# Heads cannot be seen in the weights. Published: base, 0.6B, 1.2B.
HEADS = {768: 12, 1280: 16, 1536: 24}
# Heads of encoder and decoder of what the official training builds by name.
NAMED_HEADS = {'dasheng_base': (12, 16), 'dasheng_06B': (24, 16),
               'dasheng_12B': (24, 24)}
# Arguments of the official class, and our names of them.
ARGUMENTS = {'embed_dim': 'width', 'depth': 'depth', 'num_heads': 'heads',
             'mlp_ratio': 'mlp_ratio', 'n_mels': 'mels',
             'target_length': 'target_frames'}
# Its arguments that change the numbers and show in no shape.
FIXED = {'n_fft': 512, 'win_size': 512, 'hop_size': 160, 'f_min': 0,
         'f_max': 8000, 'center': True, 'top_db': 120, 'pooling': 'mean',
         'init_values': None, 'block_type': 'Block',
         'attention_type': 'Attention', 'patch_size': [64, 4],
         'patch_stride': [64, 4]}
# What a config of ours says beyond what the shapes do.
FREE = {'heads': None, 'front': 'log_mel', 'dtype': 'float32',
        'remat': False, 'unroll': 1}
SIZES = ('width', 'depth', 'mlp_ratio', 'mels', 'patch_frames',
         'target_frames')


def plain(config):
  """Returns a config of any kind as nested dictionaries."""
  known = isinstance(config, config_dict.ConfigDict)
  return config.to_dict() if known else config


def told(config):
  """Returns what a config of any dialect says, in our names.

  Raises:
    ValueError: not a config, an unknown field of ours, or an official
      argument that has no equivalent here.
  """
  config = plain(config)
  if not config:
    return {}
  if not isinstance(config, Mapping):
    raise ValueError(f'config: a {type(config).__name__}, expected fields')
  if 'model' in config and isinstance(config['model'], Mapping):
    config = config['model']
  if 'encoder_kwargs' in config and isinstance(
      config['encoder_kwargs'], Mapping):
    config = config['encoder_kwargs']  # As Hugging Face's config.json has it.
  ours = {*SIZES, *FREE, 'decoder'}
  if set(config) & (ours - set(ARGUMENTS)):
    if set(config) - ours:
      raise ValueError(f'config: unknown field {min(set(config) - ours)}')
    return dict(config)
  args = config['model_args'] if 'model_args' in config else config
  for name in sorted(args.keys() & FIXED.keys()):
    found, value = args[name], FIXED[name]
    found = list(found) if isinstance(found, tuple) else found
    if found != value:
      raise ValueError(f'config.{name}: {found!r}, expected {value!r}')
  said = {ARGUMENTS[k]: v for k, v in args.items() if k in ARGUMENTS}
  for field, value in said.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (
        value != int(value)):
      raise ValueError(f'config: {field} {value!r}, expected a whole number')
  if 'target_frames' in said:  # Frames short of a patch get no position.
    said['target_frames'] -= said['target_frames'] % FIXED['patch_size'][1]
  if {'model_args', 'model'} <= set(config) and (
      config['model'] in NAMED_HEADS):
    encoder, decoder = NAMED_HEADS[config['model']]
    said = {'usual_heads': encoder, **said,
            'decoder': {'usual_heads': decoder}}
  return said


def infer(state, prefix, decoder, said):
  """Returns the model part of a config: sizes by shape, the rest as said."""
  def shape(name, *dims):
    want = f'expected ({", ".join(dims)})'
    if name not in state:
      raise ValueError(f'{name}: missing, {want}')
    if state[name].ndim != len(dims) or not all(state[name].shape):
      raise ValueError(f'{name}: shape {state[name].shape}, {want}')
    return state[name].shape

  def stack(part):
    start = f'{part}blocks.'
    numbers = [name[len(start):].split('.')[0] for name in state
               if name.startswith(start)]
    # Up to the first gap: a block beyond it is an error that names it.
    depth = 1
    while str(depth) in numbers:
      depth += 1
    F, D = shape(f'{start}0.mlp.fc1.weight', '4 D', 'D')
    return depth, F // D

  def check(sizes, said, label):
    for field, value in sizes.items():
      if said.get(field, value) != value:
        raise ValueError(f'config.{label}{field}: {said[field]}, but the '
                         f'tensors have {value}')

  D, _, M, frames = shape(f'{prefix}patch_embed.proj.weight',
                          'D', '1', '64', '4')
  if (M, frames) != (64, 4):
    raise ValueError(f'{prefix}patch_embed.proj.weight: shape '
                     f'{(D, 1, M, frames)}, expected {(D, 1, 64, 4)}')
  L = shape(f'{prefix}time_pos_embed', '1', 'D', '1', 'L')[3]
  depth, ratio = stack(prefix)
  tree = {'width': D, 'depth': depth, 'mlp_ratio': ratio, 'mels': M,
          'patch_frames': frames, 'target_frames': L * frames}
  check(tree, said, '')
  inner = said.get('decoder', {})
  if decoder:
    width = shape('decoder.input_proj.weight', 'W', 'D')[0]
    sizes = {'width': width, 'depth': stack('decoder.')[0]}
    check(sizes, inner, 'decoder.')
    sizes['heads'] = heads(width, inner, 'decoder.',
                           {512: 16, 768: 24}, max(1, width // 32))
  else:
    sizes = {'width': 512, 'depth': 8, 'heads': 16}
    if (D, depth) == (1536, 40):
      sizes = {'width': 768, 'depth': 8, 'heads': 24}
    sizes = {field: inner.get(field, value) for field, value in sizes.items()}
  free = {field: said.get(field, value) for field, value in FREE.items()}
  free['heads'] = heads(D, said, '', HEADS,
                        max(1, D // (64 if D >= 256 else 32)))
  return {**tree, **free, 'decoder': sizes}


def heads(width, said, label, published, rule):
  """Returns how many heads a config gives, or the usual number."""
  if 'heads' in said:
    if said['heads'] < 1 or width % said['heads']:
      raise ValueError(f"config.{label}heads: {said['heads']}, expected a "
                       f'divisor of the width {width}')
    return said['heads']
  usual = said.get('usual_heads')
  if usual and not width % usual:
    return usual
  if width in published:
    return published[width]
  if width % rule:
    raise ValueError(f'config.{label}heads: not given, expected a divisor of '
                     f'the width {width}')
  logging.warning('%sheads: not in the weights, assuming %d', label, rule)
  return rule
