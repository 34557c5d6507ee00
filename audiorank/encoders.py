"""Whatever embeds sound, behind one face: ours, Dasheng's, anybody's.

A model of ours is a checkpoint folder, a folder of `export.save_pretrained`,
an official Dasheng file (.pt, .safetensors) or a Hugging Face repository with
one (owner/name). Anybody's is
a Python module with the HEAR API (arXiv 2203.03022): load_model(path),
get_scene_embeddings(audio, model), get_timestamp_embeddings(audio, model), and
a model with sample_rate, scene_embedding_size and timestamp_embedding_size.

Shapes: N clips, B batch, S samples, L timestamps, D width.
"""

from collections.abc import Callable
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import numbers
import pathlib
import re
import sys
from typing import NamedTuple

import jax
import numpy as np

from audiorank import checkpoint
from audiorank import dasheng
from audiorank import embed
from audiorank import files
from audiorank import records
from audiorank.export import pretrained

SUFFIXES = ('.pt', '.pth', '.safetensors')
HUB = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


class Encoder(NamedTuple):
  """What evaluation needs of a model."""
  rate: int             # samples a second that it takes
  scene: Callable       # waves, float32 or int16 -> z_ND float32
  timestamps: Callable  # wave_BS, likewise -> (z_BLD float32, ms_BL)
  about: dict           # what a record says of it, JSON material
  key: str              # digest of all that decides the embeddings, or ''


def ours(path, step=None, batch=64, layer='final', clamp='clip'):
  """Returns the Encoder of a checkpoint, a Dasheng file or a hub id.

  Args:
    path, step: see `weights`.
    batch: clips encoded at once.
    layer, clamp: see embed.scene.

  Raises:
    FileNotFoundError, ValueError: as `weights`; an unknown layer or clamp.
  """
  config, params, about = weights(path, step)
  return of_params(config, params, batch, layer, clamp, about)


def of_params(config, params, batch=64, layer='final', clamp='clip',
              about=None):
  """Returns the Encoder of a model in memory; see `ours`."""
  config = getattr(config, 'model', config)
  embed.check_layer(config, layer)
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  about = {**(about or {'weights': ''}), 'layer': layer, 'clamp': clamp,
           'batch': batch, 'rate': 16_000, 'width': config.width}

  def scene(waves):
    return embed.scene(config, params, waves, batch, layer, clamp)

  def timestamps(wave_BS):
    return embed.timestamps(config, params, wave_BS, layer, clamp, fill=True)

  decisive = {k: about[k] for k in ('weights', 'layer', 'clamp', 'batch')}
  return Encoder(16_000, scene, timestamps, about,
                 records.digest(decisive) if about['weights'] else '')


def weights(path, step=None):
  """Returns (config, params, about) of a model of ours or of Dasheng's.

  Args:
    path: a run's folder, its checkpoints folder or one step; a Dasheng file;
      a folder of export.save_pretrained; or a hub id 'owner/name', where
      nothing of that name lies on disk.
    step: of a checkpoint folder; None takes the newest.

  Returns:
    config: frozen; config.model describes the encoder.
    params: linen variables, numpy.
    about: kind, checkpoint, step (None outside runs) and weights, a digest of
      the model's config and every array of its encoder.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: damaged or foreign weights, or the hub cannot be reached.
  """
  kind, file = 'dasheng', files.path(path)
  if not file.exists() and HUB.fullmatch(str(path)):
    kind, folder = 'hub', from_hub(str(path))
    config, params = pretrained.load_pretrained(folder)
  elif (file / pretrained.WEIGHTS).is_file():
    kind = 'pretrained'
    config, params = pretrained.load_pretrained(file)
  elif file.suffix in SUFFIXES:
    config, params = dasheng.load(file)
  else:
    kind, (folder, only) = 'audiorank', checkpoint.find(path)
    step = only if step is None else step
    config, params = checkpoint.load(path, step)
    if step is None:
      step = checkpoint.steps(folder)[-1]
  if kind != 'audiorank' and step is not None:
    raise ValueError(f'{path}: step {step} asked for, but only the folder of a '
                     'run has steps')
  return config, params, {'kind': kind, 'checkpoint': str(path), 'step': step,
                          'weights': digest(config, params)}


def digest(config, params):
  """Returns 12 hex digits of a model's config and its encoder's arrays."""
  seen = hashlib.sha256(json.dumps(
      records.plain(config.model), sort_keys=True).encode())
  found, _ = jax.tree_util.tree_flatten_with_path(
      {kind: tree.get('encoder', tree) for kind, tree in params.items()})
  for path, x in found:
    x = np.ascontiguousarray(x)
    seen.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    seen.update(x.data)
  return seen.hexdigest()[:12]


def from_hub(name):
  """Returns the folder of a Hugging Face repository's files, 'owner/name'.

  Raises:
    ValueError: huggingface_hub is missing, or has no such file and cannot get
      it; one line.
  """
  try:
    import huggingface_hub
  except ModuleNotFoundError:
    raise ValueError(
        f'{name}: no such file or folder; as a hub id it needs '
        "huggingface_hub (pip install 'audiorank[hub]')") from None
  try:
    # Nothing but weights and what describes them: no code.
    return pathlib.Path(huggingface_hub.snapshot_download(
        name, allow_patterns=list(pretrained.FILES)))
  except Exception as error:  # Of httpx, requests or the hub itself.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'{name}: no such file or folder, and the hub gives '
                     f'nothing: {reason}') from None


def module(name, path='', batch=64):
  """Returns the Encoder of a module with the HEAR API.

  Args:
    name: of the module, importable, as 'my_package.my_model'.
    path: what its load_model takes; '' calls it without an argument.
    batch: clips of one length given to it at once.

  Returns:
    An Encoder; the model of torch or TensorFlow gets tensors, on a GPU where
    torch has one; any other gets numpy arrays. Its key is '' (do not cache)
    where neither `path` nor the model shows any weights.

  Raises:
    ValueError: no such module or not this API; later, embeddings of other
      shapes than promised. Names the module.
  """
  try:
    api = importlib.import_module(name)
  except Exception as error:  # A module of a user's can raise anything.
    raise ValueError(f'--module={name}: {type(error).__name__}: '
                     f'{" ".join(str(error).split())[:300]}') from None
  for function in ('load_model', 'get_scene_embeddings',
                   'get_timestamp_embeddings'):
    if not callable(getattr(api, function, None)):
      raise ValueError(f'{name}: no function {function}, expected the HEAR API')
  model = api.load_model(path) if path else api.load_model()
  for field in ('sample_rate', 'scene_embedding_size',
                'timestamp_embedding_size'):
    if not isinstance(getattr(model, field, None), numbers.Integral):
      raise ValueError(f'{name}: its model has no whole number {field}, '
                       'expected the HEAR API')
  give, guard = dressed(model)

  def scene(waves):
    out_ND = np.zeros((len(waves), model.scene_embedding_size), np.float32)
    for index, wave_BS in embed.batches(waves, batch):
      with guard():
        z_BD = taken(api.get_scene_embeddings(
            give(as_float(wave_BS[:len(index)])), model))
      if z_BD.shape != (len(index), out_ND.shape[1]):
        raise ValueError(f'{name}: scene embeddings of shape {z_BD.shape}, '
                         f'expected {(len(index), out_ND.shape[1])}')
      if not np.isfinite(z_BD).all():
        raise ValueError(f'{name}: scene embeddings with NaN or infinity')
      out_ND[index] = z_BD
    return out_ND

  def timestamps(wave_BS):
    with guard():
      z_BLD, ms_BL = map(taken, api.get_timestamp_embeddings(
          give(as_float(np.asarray(wave_BS))), model))
    width = model.timestamp_embedding_size
    if z_BLD.shape != (len(wave_BS), *ms_BL.shape[1:], width):
      raise ValueError(f'{name}: timestamp embeddings of shape {z_BLD.shape} '
                       f'at times {ms_BL.shape}, expected {len(wave_BS)} clips '
                       f'of width {width}')
    return z_BLD.astype(np.float32), ms_BL

  seen = content(model, path)
  about = {'kind': 'module', 'module': name, 'checkpoint': path, 'step': None,
           'weights': seen, 'code': source(api), 'batch': batch,
           'distributions': distributions(name),
           'rate': int(model.sample_rate),
           'width': int(model.scene_embedding_size)}
  key = records.digest(about) if seen else ''
  return Encoder(int(model.sample_rate), scene, timestamps, about, key)


def dressed(model):
  """Returns (give, guard): arrays as the model wants them, and around calls."""
  # A model of a framework has imported it; nothing is imported for its sake.
  torch, tf = sys.modules.get('torch'), sys.modules.get('tensorflow')
  if torch and isinstance(model, torch.nn.Module):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model.to(device).eval()
    return (lambda x: torch.from_numpy(x).to(device)), torch.no_grad
  if tf and isinstance(model, tf.Module):
    return tf.convert_to_tensor, contextlib.nullcontext
  return (lambda x: x), contextlib.nullcontext


def as_float(wave_BS):
  """Returns float32 in [-1, 1] of int16 or of floats."""
  if np.issubdtype(wave_BS.dtype, np.integer):
    return wave_BS.astype(np.float32) / 32768
  return wave_BS.astype(np.float32)


def taken(x):
  """Returns what a module gave as numpy."""
  return np.asarray(x.detach().cpu() if hasattr(x, 'detach') else x)


def content(model, path):
  """Returns a digest of a foreign model's weights; '' where none show."""
  seen, any_seen = hashlib.sha256(), False
  if hasattr(model, 'state_dict'):
    for name, x in model.state_dict().items():
      x = np.ascontiguousarray(taken(x.float() if hasattr(x, 'float') else x))
      seen.update(f'{name} {x.shape}'.encode() + x.tobytes())
      any_seen = True
  files = [pathlib.Path(path)] if path and pathlib.Path(path).is_file() else (
      sorted(p for p in pathlib.Path(path).rglob('*') if p.is_file())
      if path and pathlib.Path(path).is_dir() else [])
  for file in files:
    with open(file, 'rb') as f:
      seen.update(hashlib.file_digest(f, 'sha256').digest())
    any_seen = True
  return seen.hexdigest()[:12] if any_seen else ''


def source(api):
  """Returns a digest of every .py of a module's package, or of its one file;
  '' where it has none."""
  top = sys.modules[api.__name__.split('.')[0]]
  folders = [pathlib.Path(p) for p in getattr(top, '__path__', ())]
  files = sorted(p for folder in folders for p in folder.rglob('*.py'))
  if not files and getattr(api, '__file__', None):
    files = [pathlib.Path(api.__file__)]
  seen = hashlib.sha256()
  for file in files:
    seen.update(file.name.encode() + file.read_bytes())
  return seen.hexdigest()[:12] if files else ''


def distributions(name):
  """Returns {distribution: version} of the package that a module is of."""
  found = importlib.metadata.packages_distributions().get(
      name.split('.')[0], [])
  return {d: importlib.metadata.version(d) for d in sorted(set(found))}
