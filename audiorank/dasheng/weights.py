"""An official state_dict to a config and linen variables, and back."""

import collections
from collections.abc import Mapping

from absl import logging
import numpy as np

from audiorank import records
from audiorank.dasheng import names
from audiorank.dasheng import sizes


def from_state_dict(state, config=None):
  """Returns (config, params) of an official state_dict.

  Sizes are read from the shapes. Accepted: an encoder's dictionary, with the
  prefix 'encoder.' (Hugging Face) or without, with the front end's buffers or
  without; a full MAE's ('encoder.', 'decoder.'); either wrapped as
  {'model': ..., 'config': ...}. The classifier of a fine-tuned file
  ('outputlayer.') is left out with a warning.

  Args:
    state: name -> array, of numpy or of torch.
    config: what is known of the model: fields of a config of ours (whole or
      its `model` part), arguments of the official class, or the config of its
      training code. Sizes are checked against the shapes. Where nobody says
      how many heads there are, the published number of that width is taken,
      else one of 64 dimensions each (of 32 below width 256), with a warning.

  Returns:
    config: frozen; `config.model` is as configs/base.py describes it. A
      decoder that the state does not hold is described as published.
    params: linen variables {'params', 'batch_stats'}, numpy float32, each
      with 'encoder' and, for a full MAE, 'decoder'.

  Raises:
    ValueError: a tensor that is missing, unknown, of another shape or not
      finite, another front end than Dasheng's, or a config that contradicts
      the shapes. Names it, what was found and what was expected.
  """
  if not isinstance(state, Mapping):
    raise ValueError(f'a {type(state).__name__}, expected a state_dict')
  said = sizes.told(config)
  if isinstance(state.get('model'), Mapping):
    inner = sizes.told(state.get('config'))
    decoder = {**inner.get('decoder', {}), **said.get('decoder', {})}
    said = {**inner, **said, 'decoder': decoder}
    state = state['model']
  state = {name: array(x) for name, x in state.items()}
  for name, x in state.items():
    if x.dtype.kind not in 'fiub' and x.dtype.name != 'bfloat16':
      raise ValueError(f'{name}: {x.dtype}, expected numbers')
  head = [name for name in state if 'outputlayer.' in name
          and not name.startswith('decoder.')]
  if head:
    logging.warning('the classifier (%s) is left out', ', '.join(head))
  for name in head:
    del state[name]
  decoder = any(name.startswith('decoder.') for name in state)
  prefix = 'encoder.' if decoder or any(
      name.startswith('encoder.') for name in state) else ''
  tree = sizes.infer(state, prefix, decoder, said)
  params, stacks, missing = {}, collections.defaultdict(list), []
  for t in names.layout(tree, prefix, decoder):
    if t.name not in state:
      missing.append(t)
      continue
    x = state.pop(t.name)
    if x.shape != t.shape:
      raise ValueError(f'{t.name}: shape {x.shape}, expected {t.shape}')
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
      raise ValueError(f'{t.name}: {np.sum(~np.isfinite(x))} of {x.size} '
                       'values are not finite')
    x = x.reshape(t.ours[::-1]).T if t.turned else x.reshape(t.ours)
    if t.layer is None:
      put(params, t.path, np.ascontiguousarray(x))
    else:
      stacks[t.path].append(x)
  if missing:
    raise ValueError(f'{missing[0].name}: missing, expected shape '
                     f'{missing[0].shape} ({len(missing)} missing in all)')
  for path, layers in stacks.items():
    put(params, path, np.stack(layers))
  names.check_front_end(state, prefix)
  if state:
    name, x = next(iter(state.items()))
    raise ValueError(f'{name}: shape {x.shape}, expected no such tensor '
                     f'({len(state)} unknown in all)')
  return records.frozen({'model': tree}), params


def to_state_dict(config, params):
  """Returns {name: numpy array} that the official classes load strictly.

  An encoder alone gets the names of the class Dasheng, a full MAE those of
  AudioTransformerMAE. The counter num_batches_tracked, on which no number
  depends, is 0.

  Args:
    config: the run's config or its `model` part.
    params: linen variables, of an MAE or of its encoder.

  Raises:
    ValueError: an array that is missing, unknown or of another shape; names
      it.
  """
  tree = sizes.plain(getattr(config, 'model', config))
  if 'encoder' not in params['params']:
    params = {kind: {'encoder': part} for kind, part in params.items()}
  decoder = 'decoder' in params['params']
  prefix = 'encoder.' if decoder else ''
  state = {}
  known = {t.path for t in names.layout(tree, prefix, decoder)}
  for path, x in leaves(params):
    if path not in known:
      raise ValueError(f'{path}: shape {np.shape(x)}, expected no such array')
  for t in names.layout(tree, prefix, decoder):
    y = params
    for key in t.path.split('/'):
      if key not in y:
        raise ValueError(f'{t.path}: missing, expected shape {t.ours}')
      y = y[key]
    y = np.asarray(y)
    want = t.ours
    if t.layer is not None:
      part = tree['decoder'] if '/decoder/' in t.path else tree
      want = (part['depth'], *want)
    if y.shape != want:
      raise ValueError(f'{t.path}: shape {y.shape}, expected {want}')
    y = y if t.layer is None else y[t.layer]
    state[t.name] = np.ascontiguousarray(
        (y.T if t.turned else y).reshape(t.shape))
  counter = {f'{prefix}init_bn.1.num_batches_tracked': np.zeros((), np.int64)}
  return {**state, **names.front_end(prefix), **counter}


def array(x):
  """Returns a tensor of torch or an array as numpy."""
  if hasattr(x, 'detach'):
    x = x.detach().cpu()
    x = (x.float() if x.is_floating_point() else x).numpy()
  return np.asarray(x)


def leaves(tree, prefix=''):
  """Yields ('a/b/c', leaf) of nested dictionaries."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{key}/')
    else:
      yield f'{prefix}{key}', value


def put(tree, path, leaf):
  """Sets a leaf of nested dictionaries at 'a/b/c'."""
  *parents, last = path.split('/')
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = leaf
