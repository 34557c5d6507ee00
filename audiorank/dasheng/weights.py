"""Converts an official state_dict to a config and linen variables, and back."""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import config_dict
import numpy as np

from audiorank import config as config_lib
from audiorank.dasheng import names
from audiorank.dasheng import sizes

Tree = dict[str, Any]  # Linen variables: nested dictionaries of arrays.


def from_state_dict(state: Mapping[str, Any], config: Any = None
                    ) -> tuple[config_dict.FrozenConfigDict, Tree]:
  """Returns (config, params) of an official state_dict.

  Sizes follow from the shapes. Accepted are the state of an encoder, with the
  prefix 'encoder.' (Hugging Face) or without, with the front end's buffers or
  without; that of a full MAE ('encoder.', 'decoder.'); and either of them as
  {'model': ..., 'config': ...}. The classifier of a fine-tuned file
  ('outputlayer.') is left out with a warning.

  Args:
    state: name -> array, of numpy or of torch.
    config: further information: fields of our config (whole or its `model`
      part), arguments of the official class, or the config of its training
      code. Sizes are compared with the shapes. Without the number of heads in
      any config, the published number of that width is used, or else heads of
      64 dimensions (32 below width 256), with a warning.

  Returns:
    config: frozen; `config.model` is as in configs/base.py. If the state has no
      decoder, that part is the published one.
    params: linen variables {'params', 'batch_stats'}, numpy float32, each
      with 'encoder' and, for a full MAE, 'decoder'.

  Raises:
    ValueError: a tensor that is missing, unknown, of another shape or not
      finite, another front end than Dasheng's, or a config that contradicts
      the shapes. Names the tensor or field, its value and what is expected.
  """
  if not isinstance(state, Mapping):
    raise ValueError(f'a {type(state).__name__}, expected a state_dict')
  fields = sizes.read(config)
  if isinstance(state.get('model'), Mapping):
    inner = sizes.read(state.get('config'))
    decoder_fields = {**inner.get('decoder', {}), **fields.get('decoder', {})}
    # What the caller says takes precedence over the file's own config.
    fields = {**inner, **fields, 'decoder': decoder_fields}
    state = state['model']
  arrays = without_classifier({name: array(x) for name, x in state.items()})
  for name, x in arrays.items():
    if x.dtype.kind not in 'fiub' and x.dtype.name != 'bfloat16':
      raise ValueError(f'{name}: {x.dtype}, expected numbers')
  decoder = any(name.startswith('decoder.') for name in arrays)
  prefix = ''
  if any(name.startswith(('decoder.', 'encoder.')) for name in arrays):
    prefix = 'encoder.'
  tree = sizes.infer(arrays, prefix, decoder, fields)
  # Known tensors are taken out; whatever is left is an error.
  params = take_tensors(arrays, names.layout(tree, prefix, decoder))
  # The remaining tensors are the front end, or unknown.
  names.check_front_end(arrays, prefix)
  if arrays:
    name, x = next(iter(arrays.items()))
    raise ValueError(f'{name}: shape {x.shape}, expected no such tensor '
                     f'({len(arrays)} unknown in all)')
  return config_lib.frozen({'model': tree}), params


def without_classifier(arrays: sizes.State) -> sizes.State:
  """Returns a state without the classifier of a fine-tuned file."""
  head = [name for name in arrays if 'outputlayer.' in name
          and not name.startswith('decoder.')]
  if head:
    logging.warning('the classifier (%s) is left out', ', '.join(head))
  return {name: x for name, x in arrays.items() if name not in head}


def take_tensors(arrays: sizes.State, layout: Iterator[names.Tensor]) -> Tree:
  """Moves the tensors of a layout out of a state into linen variables.

  Raises:
    ValueError: a tensor that is missing, of another shape or not finite.
  """
  params: Tree = {}
  stacks, missing = collections.defaultdict(list), []
  for tensor in layout:
    if tensor.name not in arrays:
      missing.append(tensor)
      continue
    x = arrays.pop(tensor.name)
    if x.shape != tensor.shape:
      raise ValueError(f'{tensor.name}: shape {x.shape}, expected '
                       f'{tensor.shape}')
    # Some files are in half precision.
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
      raise ValueError(f'{tensor.name}: {np.sum(~np.isfinite(x))} of {x.size} '
                       'values are not finite')
    if tensor.turned:
      # torch has (out, in), flax (in, out).
      x = x.reshape(tensor.ours[::-1]).T
    else:
      x = x.reshape(tensor.ours)
    if tensor.layer is None:
      put(params, tensor.path, np.ascontiguousarray(x))
    else:
      stacks[tensor.path].append(x)
  if missing:
    raise ValueError(f'{missing[0].name}: missing, expected shape '
                     f'{missing[0].shape} ({len(missing)} missing in all)')
  # Our model scans over its blocks, so their weights are stacked.
  for path, layers in stacks.items():
    put(params, path, np.stack(layers))
  return params


def to_state_dict(config: Any, params: Tree) -> sizes.State:
  """Returns {name: numpy array} that the official classes load strictly.

  An encoder alone gets the names of the class Dasheng, a full MAE those of
  AudioTransformerMAE. The counter num_batches_tracked is 0; no result depends
  on it.

  Args:
    config: the run's config or its `model` part.
    params: linen variables, of an MAE or of its encoder.

  Raises:
    ValueError: an array that is missing, unknown or of another shape; names
      it.
  """
  tree = sizes.as_dict(getattr(config, 'model', config))
  if 'encoder' not in params['params']:
    # An encoder alone is an MAE without its decoder.
    params = {kind: {'encoder': part} for kind, part in params.items()}
  decoder = 'decoder' in params['params']
  prefix = ''
  if decoder:
    prefix = 'encoder.'
  # An array that the layout lacks would be lost without a word.
  known = {tensor.path for tensor in names.layout(tree, prefix, decoder)}
  for path, x in leaves(params):
    if path not in known:
      raise ValueError(f'{path}: shape {np.shape(x)}, expected no such array')
  state = {}
  for tensor in names.layout(tree, prefix, decoder):
    x = np.asarray(leaf(params, tensor))
    shape = tensor.ours
    if tensor.layer is not None:
      part = tree
      if '/decoder/' in tensor.path:
        part = tree['decoder']
      # Our arrays have all blocks, stacked.
      shape = (part['depth'], *shape)
    if x.shape != shape:
      raise ValueError(f'{tensor.path}: shape {x.shape}, expected {shape}')
    if tensor.layer is not None:
      x = x[tensor.layer]
    if tensor.turned:
      x = x.T
    state[tensor.name] = np.ascontiguousarray(x.reshape(tensor.shape))
  # A strict load_state_dict asks for it.
  counter = {f'{prefix}init_bn.1.num_batches_tracked': np.zeros((), np.int64)}
  return {**state, **names.front_end(prefix), **counter}


def array(x: Any) -> np.ndarray:
  """Returns a tensor of torch or an array as numpy."""
  if hasattr(x, 'detach'):
    x = x.detach().cpu()
    if x.is_floating_point():
      x = x.float()  # numpy has no bfloat16.
    x = x.numpy()
  return np.asarray(x)


def leaf(tree: Tree, tensor: names.Tensor) -> Any:
  """Returns the array of a tensor in linen variables.

  Raises:
    ValueError: it is missing; names it.
  """
  node: Any = tree
  for key in tensor.path.split('/'):
    if key not in node:
      raise ValueError(f'{tensor.path}: missing, expected shape {tensor.ours}')
    node = node[key]
  return node


def leaves(tree: Mapping[str, Any], prefix: str = ''
           ) -> Iterator[tuple[str, Any]]:
  """Yields ('a/b/c', leaf) of nested dictionaries."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{key}/')
    else:
      yield f'{prefix}{key}', value


def put(tree: Tree, path: str, value: Any) -> None:
  """Sets a leaf of nested dictionaries at 'a/b/c'."""
  *parents, last = path.split('/')
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[last] = value
