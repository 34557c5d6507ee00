"""Whatever embeds sound, behind one face: ours, Dasheng's, anybody's, none.

A model of ours is a checkpoint folder, a folder of `export.save_pretrained`,
an official Dasheng file (.pt, .safetensors) or a Hugging Face repository with
one (owner/name). Anybody's is a Python module with the HEAR API (arXiv
2203.03022): load_model(path), get_scene_embeddings(audio, model),
get_timestamp_embeddings(audio, model), and a model with sample_rate,
scene_embedding_size and timestamp_embedding_size. No model at all are the
`features` that every encoder should beat: mean log-mel and MFCC.

Shapes: N clips, B batch, S samples, L timestamps, D width.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import numbers
import pathlib
import re
import sys
import types
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from audiorank import audio
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import dasheng
from audiorank import embed
from audiorank import files
from audiorank.export import pretrained

SUFFIXES = ('.pt', '.pth', '.safetensors')
HUB = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


# What needs no network, and its width: the mean over time of 64 log-mel bands,
# and mean and standard deviation of 20 MFCC.
FEATURES = {'log_mel': 64, 'mfcc': 40}
# Frames of 10 ms that are averaged for a timestamp: 40 ms, as the models here.
TOKEN_FRAMES = 4


class Encoder(NamedTuple):
  """What evaluation needs of a model."""
  rate: int             # samples a second that it takes
  scene: Callable       # waves, float32 or int16 -> z_ND float32
  timestamps: Callable  # wave_BS, likewise -> (z_BLD float32, ms_BL)
  about: dict           # what a record says of it, JSON material
  key: str              # digest of all that decides the embeddings, or ''


def ours(path: files.Path, step: int | None = None, batch: int = 64,
         layer: str | int = 'final', clamp: str = 'clip') -> Encoder:
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


def of_params(config: config_lib.Config, params: Any, batch: int = 64,
              layer: str | int = 'final', clamp: str = 'clip',
              about: dict[str, Any] | None = None) -> Encoder:
  """Returns the Encoder of a model in memory; see `ours`."""
  config = getattr(config, 'model', config)
  embed.check_layer(config, layer)
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  about = {**(about or {'weights': ''}), 'layer': layer, 'clamp': clamp,
           'batch': batch, 'rate': config_lib.RATE, 'width': config.width}

  def scene(waves):
    return embed.scene(config, params, waves, batch, layer, clamp)

  def timestamps(wave_BS):
    return embed.timestamps(config, params, wave_BS, layer, clamp, fill=True)

  decisive = {k: about[k] for k in ('weights', 'layer', 'clamp', 'batch')}
  return Encoder(config_lib.RATE, scene, timestamps, about,
                 files.digest(decisive) if about['weights'] else '')


def features(name: str) -> Encoder:
  """Returns the Encoder of features that need no network.

  Both are librosa's, of waves at 16 kHz.

  Args:
    name: 'log_mel', the mean over time of the log-mel spectrogram, or 'mfcc',
      mean and standard deviation of the MFCC, of librosa's own settings.
      Timestamps are means over 40 ms.

  Raises:
    ValueError: another name.
  """
  if name not in FEATURES:
    raise ValueError(f'features {name!r}: expected one of '
                     f'{", ".join(FEATURES)}')

  def scene(waves):
    z_ND = np.zeros((len(waves), FEATURES[name]), np.float32)
    for index, wave_BS in embed.batches(waves, batch=64):
      x_BDT = spectral_frames(name, audio.to_float(wave_BS[:len(index)]))
      z_BD = x_BDT.mean(2)
      if name == 'mfcc':
        z_BD = np.concatenate([z_BD, x_BDT.std(2)], axis=1)
      z_ND[index] = z_BD
    return z_ND

  def timestamps(wave_BS):
    x_BDT = spectral_frames(name, audio.to_float(np.asarray(wave_BS)),
                            config_lib.HOP)
    B, D, T = x_BDT.shape
    L = T // TOKEN_FRAMES
    x_BDT = x_BDT[:, :, :L * TOKEN_FRAMES]
    z_BLD = x_BDT.reshape(B, D, L, TOKEN_FRAMES).mean(3).transpose(0, 2, 1)
    ms_L = TOKEN_FRAMES * 10. * (np.arange(L, dtype=np.float32) + .5)
    return z_BLD.astype(np.float32), np.broadcast_to(ms_L, z_BLD.shape[:2])

  about = {'kind': 'features', 'features': name, 'rate': config_lib.RATE,
           'width': FEATURES[name], 'step': None,
           'librosa': importlib.metadata.version('librosa')}
  return Encoder(config_lib.RATE, scene, timestamps, about,
                 files.digest(about))


def spectral_frames(name: str, wave_BS: np.ndarray,
                    hop: int | None = None) -> np.ndarray:
  """Returns x_BDT, log-mel (dB) or MFCC frames of clips.

  Args:
    name: of FEATURES.
    wave_BS: float32 in [-1, 1] at 16 kHz.
    hop: samples between frames; None takes librosa's for MFCC, and for the
      log-mel the 10 ms of the models here.
  """
  import librosa  # Seconds that most commands need not wait.
  window = 2048 if name == 'mfcc' else 512
  # A clip shorter than a window is followed by silence.
  wave_BS = np.pad(wave_BS, ((0, 0), (0, max(0, window - wave_BS.shape[1]))))
  if name == 'mfcc':
    return librosa.feature.mfcc(y=wave_BS, sr=config_lib.RATE,
                                hop_length=hop or 512)
  power_BDT = librosa.feature.melspectrogram(
      y=wave_BS, sr=config_lib.RATE, n_fft=window,
      hop_length=hop or config_lib.HOP, n_mels=FEATURES[name])
  # Each clip's own range of 80 dB, whatever its batch-mates.
  return np.stack([librosa.power_to_db(x_DT) for x_DT in power_BDT])


def weights(path: files.Path, step: int | None = None
            ) -> tuple[config_lib.Config, Any, dict[str, Any]]:
  """Returns (config, params, about) of a model of ours or of Dasheng's.

  Args:
    path: a run's folder, its checkpoints folder or one step; a Dasheng file;
      a folder of export.save_pretrained; or a hub id 'owner/name', where
      nothing of that name lies on disk.
    step: of a checkpoint folder; None takes the newest.

  Returns:
    config: frozen; config.model describes the encoder.
    params: linen variables, numpy.
    about: kind, checkpoint, step (None outside runs), weights, a digest of
      the model's config and every array of its encoder, and verified, whether
      a run's checkpoint has checksums (None outside runs).

  Raises:
    FileNotFoundError: nothing there.
    ValueError: damaged or foreign weights, or the hub cannot be reached.
  """
  kind, file, verified = 'dasheng', files.path(path), None
  if not file.exists() and HUB.fullmatch(str(path)):
    kind, folder = 'hub', from_hub(str(path))
    config, params = pretrained.load_pretrained(folder)
  elif (file / pretrained.WEIGHTS).is_file():
    kind = 'pretrained'
    config, params = pretrained.load_pretrained(file)
  elif file.suffix in SUFFIXES:
    config, params = dasheng.load(file)
  else:
    # The newest step may be damaged, so that an older one is read.
    kind, (folder, step) = 'audiorank', checkpoint.choose(path, step)
    verified = checkpoint.checksums(folder, step).exists()
    config, params = checkpoint.read(folder, step)
  if kind != 'audiorank' and step is not None:
    raise ValueError(f'{path}: step {step} asked for, but only the folder of a '
                     'run has steps')
  return config, params, {'kind': kind, 'checkpoint': str(path), 'step': step,
                          'weights': digest(config, params),
                          'verified': verified}


def digest(config: config_lib.Config, params: Any) -> str:
  """Returns 12 hex digits of a model's config and its encoder's arrays."""
  sha = hashlib.sha256(json.dumps(
      config_lib.plain(config.model), sort_keys=True).encode())
  arrays, _ = jax.tree_util.tree_flatten_with_path(
      {kind: tree.get('encoder', tree) for kind, tree in params.items()})
  for path, x in arrays:
    x = np.ascontiguousarray(x)
    sha.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    sha.update(x.data)
  return sha.hexdigest()[:12]


def from_hub(name: str) -> pathlib.Path:
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


def module(name: str, path: str = '', batch: int = 64) -> Encoder:
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
  give, guard = adapter(model)

  def scene(waves):
    out_ND = np.zeros((len(waves), model.scene_embedding_size), np.float32)
    for index, wave_BS in embed.batches(waves, batch):
      with guard():
        z_BD = to_numpy(api.get_scene_embeddings(
            give(audio.to_float(wave_BS[:len(index)])), model))
      if z_BD.shape != (len(index), out_ND.shape[1]):
        raise ValueError(f'{name}: scene embeddings of shape {z_BD.shape}, '
                         f'expected {(len(index), out_ND.shape[1])}')
      if not np.isfinite(z_BD).all():
        raise ValueError(f'{name}: scene embeddings with NaN or infinity')
      out_ND[index] = z_BD
    return out_ND

  def timestamps(wave_BS):
    with guard():
      z_BLD, ms_BL = map(to_numpy, api.get_timestamp_embeddings(
          give(audio.to_float(np.asarray(wave_BS))), model))
    width = model.timestamp_embedding_size
    if z_BLD.shape != (len(wave_BS), *ms_BL.shape[1:], width):
      raise ValueError(f'{name}: timestamp embeddings of shape {z_BLD.shape} '
                       f'at times {ms_BL.shape}, expected {len(wave_BS)} clips '
                       f'of width {width}')
    return z_BLD.astype(np.float32), ms_BL

  digest_of_weights = content(model, path)
  about = {'kind': 'module', 'module': name, 'checkpoint': path, 'step': None,
           'weights': digest_of_weights, 'code': source(api), 'batch': batch,
           'distributions': distributions(name),
           'rate': int(model.sample_rate),
           'width': int(model.scene_embedding_size)}
  key = files.digest(about) if digest_of_weights else ''
  return Encoder(int(model.sample_rate), scene, timestamps, about, key)


def adapter(model: Any) -> tuple[Callable, Callable]:
  """Returns (give, guard) of a foreign model.

  give: float32 array -> what the model takes.  guard: -> a context that its
  calls stand in.
  """
  # A model of a framework has imported it; nothing is imported for its sake.
  torch, tf = sys.modules.get('torch'), sys.modules.get('tensorflow')
  if torch and isinstance(model, torch.nn.Module):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model.to(device).eval()
    return (lambda x: torch.from_numpy(x).to(device)), torch.no_grad
  if tf and isinstance(model, tf.Module):
    return tf.convert_to_tensor, contextlib.nullcontext
  return (lambda x: x), contextlib.nullcontext


def to_numpy(x: Any) -> np.ndarray:
  """Returns an array or tensor of a foreign model as numpy."""
  if hasattr(x, 'detach'):
    x = x.detach().cpu()
  return np.asarray(x)


def content(model: Any, path: str) -> str:
  """Returns a digest of a foreign model's weights; '' where none show.

  Its state_dict counts, and the file or every file of the folder at `path`.
  """
  sha, parts = hashlib.sha256(), 0
  if hasattr(model, 'state_dict'):
    for name, x in model.state_dict().items():
      if hasattr(x, 'float'):  # numpy knows no bfloat16.
        x = x.float()
      x = np.ascontiguousarray(to_numpy(x))
      sha.update(f'{name} {x.shape}'.encode() + x.tobytes())
      parts += 1
  for file in weight_files(path):
    with open(file, 'rb') as f:
      sha.update(hashlib.file_digest(f, 'sha256').digest())
    parts += 1
  return sha.hexdigest()[:12] if parts else ''


def weight_files(path: str) -> Sequence[pathlib.Path]:
  """Returns the file, or the files of the folder, at a path; of '' none."""
  if path and pathlib.Path(path).is_dir():
    return files.walk(path)
  if path and pathlib.Path(path).is_file():
    return [pathlib.Path(path)]
  return []


def source(api: types.ModuleType) -> str:
  """Returns a digest of every .py of a module's package, or of its one file;
  '' where it has none."""
  top = sys.modules[api.__name__.split('.')[0]]
  folders = [pathlib.Path(p) for p in getattr(top, '__path__', ())]
  modules = sorted(p for folder in folders for p in folder.rglob('*.py'))
  if not modules and getattr(api, '__file__', None):
    modules = [pathlib.Path(api.__file__)]
  sha = hashlib.sha256()
  for file in modules:
    sha.update(file.name.encode() + file.read_bytes())
  return sha.hexdigest()[:12] if modules else ''


def distributions(name: str) -> dict[str, str]:
  """Returns {distribution: version} of the package that a module is of."""
  names = importlib.metadata.packages_distributions().get(
      name.split('.')[0], [])
  return {d: importlib.metadata.version(d) for d in sorted(set(names))}
