"""One interface for all encoders: our models, modules of others, features.

- Our models: a checkpoint folder, a folder of `export.save_pretrained`, an
  official Dasheng file (.pt, .safetensors) or a Hugging Face repository with
  one (owner/name).
- Models of the transformers library by name, such as
  'hf:facebook/wav2vec2-base'; families.py lists their types.
- Others: any Python module with the HEAR API (arXiv 2203.03022), that is
  load_model(path), get_scene_embeddings(audio, model),
  get_timestamp_embeddings(audio, model), and a model with sample_rate,
  scene_embedding_size and timestamp_embedding_size.
- Features without a network, as baselines: mean log-mel and MFCC.

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
from audiorank import families
from audiorank import files
from audiorank import hub
from audiorank import sounds as sounds_lib
from audiorank.export import pretrained

SUFFIXES = ('.pt', '.pth', '.safetensors')


# Width of each: the mean over time of 64 log-mel bands; mean and standard
# deviation of 20 MFCC.
FEATURES = {'log_mel': 64, 'mfcc': 40}
# Frames of 10 ms that are averaged for a timestamp, 40 ms as in our models.
TOKEN_FRAMES = 4


class Encoder(NamedTuple):
  """An encoder as evaluation uses it.

  One of every layer returns dictionaries, {layer: what another returns}, from
  one pass; the last layer is 'final'.
  """
  rate: int  # Hz of the waves that it takes.
  scene: Callable  # waves, float32 or int16 -> z_ND float32.
  timestamps: Callable  # wave_BS, the same -> (z_BLD float32, ms_BL).
  about: dict  # Its description in a record, as JSON.
  key: str  # Digest of all that determines embeddings; '' must not be cached.
  layers: tuple[int | str, ...] = ()  # Of an encoder of every layer.

  @property
  def width(self) -> int:
    """Returns the width of an embedding of the final layer."""
    return int(self.about['width'])

  def embed(self, sounds: sounds_lib.Sounds,
            rate: int = config_lib.RATE) -> Any:
    """Returns z_ND: per clip, its embedding; of every layer {layer: z_ND}.

    Args:
      sounds: a sound file, a folder of them (searched to any depth, in the
        order of their names), one wave_S, waves wave_NS, or a list of files
        or waves of any lengths. Waves are mono, float in [-1, 1] or int16.
      rate: of the waves, in Hz. Files have their own. Both are resampled to
        the model's rate.

    Raises:
      FileNotFoundError, ValueError: nothing to embed, or a clip that is no
        sound; names the file or the clip.
    """
    return sounds_lib.embedded(sounds, rate, self.scene, self.rate)


def ours(path: files.Path, step: int | None = None, batch: int = 64,
         layer: str | int = 'final', clamp: str = 'clip') -> Encoder:
  """Returns the Encoder of a checkpoint, a Dasheng file or a hub id.

  Args:
    path, step: see `weights`.
    batch: clips encoded at once.
    layer, clamp: see embed.scene; 'all' is an encoder of every layer.

  Raises:
    FileNotFoundError, ValueError: as `weights`; an unknown layer or clamp.
  """
  config, params, about = weights(path, step)
  return of_params(config, params, batch, layer, clamp, about)


def opened(path: files.Path, step: int | None = None, batch: int = 64,
           layer: str | int = 'final', clamp: str = 'clip') -> Encoder:
  """Returns `by_name` of 'hf:NAME', and `ours` of any other checkpoint.

  Args:
    path: the checkpoint.
    step, clamp: of ours alone.
    batch, layer: as for `ours`.

  Raises:
    FileNotFoundError, ValueError: as `ours` and `by_name`.
  """
  if str(path).startswith(hub.PREFIX):
    return by_name(str(path), batch, layer)
  return ours(path, step, batch, layer, clamp)


def of_params(config: config_lib.Config, params: Any, batch: int = 64,
              layer: str | int = 'final', clamp: str = 'clip',
              about: dict[str, Any] | None = None,
              mesh: jax.sharding.Mesh | None = None) -> Encoder:
  """Returns the Encoder of a model in memory.

  Args:
    config: of the run, or its `model` part.
    params: linen variables.
    batch, layer, clamp: as for `ours`.
    about: from `weights`; without it embeddings are not cached.
    mesh: on which `params` are placed, for scenes; see embed.scene.

  Raises:
    ValueError: an unknown layer or clamp.
  """
  config = getattr(config, 'model', config)
  embed.check_layer(config, layer)
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  about = {**(about or {'weights': ''}), 'layer': layer, 'clamp': clamp,
           'batch': batch, 'rate': config_lib.RATE, 'width': config.width}

  layers: tuple[int | str, ...] = ()
  if layer == 'all':
    layers = (*range(config.depth), 'final')

  def scene(waves: Sequence[np.ndarray]) -> Any:
    z = embed.scene(config, params, waves, batch, layer, clamp, mesh)
    if layers:
      return dict(zip(layers, z))
    return z

  def timestamps(wave_BS: np.ndarray) -> Any:
    z, ms_BL = embed.timestamps(config, params, wave_BS, layer, clamp,
                                fill=True)
    if layers:
      return {k: (z_BLD, ms_BL) for k, z_BLD in zip(layers, z)}
    return z, ms_BL

  # Without a digest of the weights two models could share a cache entry.
  key = ''
  if about['weights']:
    key = files.digest({k: about[k] for k in
                        ('weights', 'layer', 'clamp', 'batch')})
  return Encoder(config_lib.RATE, scene, timestamps, about, key, layers)


def features(name: str) -> Encoder:
  """Returns the Encoder of features that need no network.

  They are computed by librosa from waves at 16 kHz. Timestamps are means over
  40 ms.

  Args:
    name: 'log_mel', the mean over time of the log-mel spectrogram, or 'mfcc',
      mean and standard deviation of the MFCC with librosa's defaults.

  Raises:
    ValueError: another name.
  """
  if name not in FEATURES:
    raise ValueError(f'features {name!r}: expected one of '
                     f'{", ".join(FEATURES)}')

  def scene(waves: Sequence[np.ndarray]) -> np.ndarray:
    z_ND = np.zeros((len(waves), FEATURES[name]), np.float32)
    for index, wave_BS in embed.batches(waves, batch=64):
      # Without the padded rows, which librosa would compute as well.
      x_BDT = spectral_frames(name, audio.to_float(wave_BS[:len(index)]))
      z_BD = x_BDT.mean(2)
      if name == 'mfcc':
        z_BD = np.concatenate([z_BD, x_BDT.std(2)], axis=1)
      z_ND[index] = z_BD
    return z_ND

  def timestamps(wave_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x_BDT = spectral_frames(name, audio.to_float(np.asarray(wave_BS)),
                            config_lib.HOP)
    B, D, T = x_BDT.shape
    L = T // TOKEN_FRAMES
    # A last token of fewer frames would be noisier than the others.
    x_BDT = x_BDT[:, :, :L * TOKEN_FRAMES]
    z_BLD = x_BDT.reshape(B, D, L, TOKEN_FRAMES).mean(3).transpose(0, 2, 1)
    # The middle of each token.
    ms_L = TOKEN_FRAMES * 10. * (np.arange(L, dtype=np.float32) + .5)
    return z_BLD.astype(np.float32), np.broadcast_to(ms_L, z_BLD.shape[:2])

  # The version too: another one of librosa may compute other values.
  about = {'kind': 'features', 'features': name, 'rate': config_lib.RATE,
           'width': FEATURES[name], 'step': None,
           'librosa': importlib.metadata.version('librosa')}
  return Encoder(config_lib.RATE, scene, timestamps, about,
                 files.digest(about))


def spectral_frames(name: str, wave_BS: np.ndarray,
                    hop: int | None = None) -> np.ndarray:
  """Returns x_BDT, log-mel (dB) or MFCC frames of clips.

  Args:
    name: one of FEATURES.
    wave_BS: float32 in [-1, 1] at 16 kHz.
    hop: samples between frames; None takes librosa's default for MFCC, and
      the 10 ms of our models for the log-mel.
  """
  import librosa  # Takes seconds, which most commands need not wait.
  # 32 ms for the log-mel, as in our models; librosa's default for MFCC.
  window = 512
  if name == 'mfcc':
    window = 2048
  # Shorter clips are padded with silence to one window.
  wave_BS = np.pad(wave_BS, ((0, 0), (0, max(0, window - wave_BS.shape[1]))))
  if name == 'mfcc':
    return librosa.feature.mfcc(y=wave_BS, sr=config_lib.RATE,
                                hop_length=hop or 512)
  power_BDT = librosa.feature.melspectrogram(
      y=wave_BS, sr=config_lib.RATE, n_fft=window,
      hop_length=hop or config_lib.HOP, n_mels=FEATURES[name])
  # One by one: power_to_db cuts off below the loudest value of its argument,
  # and an embedding must not depend on the other clips of a batch.
  return np.stack([librosa.power_to_db(x_DT) for x_DT in power_BDT])


def weights(path: files.Path, step: int | None = None
            ) -> tuple[config_lib.Config, Any, dict[str, Any]]:
  """Returns (config, params, about) of one of our models or of Dasheng.

  Args:
    path: a run's folder, its checkpoints folder or one step; a Dasheng file;
      a folder of export.save_pretrained; or a hub id 'owner/name', if no file
      has this name.
    step: of a checkpoint folder; None takes the newest.

  Returns:
    config: frozen; config.model describes the encoder.
    params: linen variables, numpy.
    about: kind, checkpoint, step (None outside runs), weights, a digest of
      the model's config and every array of its encoder, and verified, whether
      a run's checkpoint has checksums (None outside runs), and parameters,
      the number of those of the encoder.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: damaged or foreign weights, or the hub cannot be reached.
  """
  kind, file, verified = 'dasheng', files.path(path), None
  # A local file takes precedence over a repository of the same name.
  if not file.exists() and hub.NAME.fullmatch(str(path)):
    kind, folder = 'hub', hub.download(str(path), pretrained.FILES)
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
    raise ValueError(f'{path}: no step {step}: only the folder of a run has '
                     'steps')
  return config, params, {'kind': kind, 'checkpoint': str(path), 'step': step,
                          'weights': digest(config, params),
                          'verified': verified,
                          'parameters': parameters(params)}


def digest(config: config_lib.Config, params: Any) -> str:
  """Returns a digest of a model's config and its encoder, 12 hex digits."""
  # Without the decoder, on which embeddings do not depend.
  sha = hashlib.sha256(json.dumps(
      config_lib.plain(config.model), sort_keys=True).encode())
  # Flattening sorts dictionaries by key, so the digest does not depend on the
  # order of insertion.
  arrays, _ = jax.tree_util.tree_flatten_with_path(
      {kind: tree.get('encoder', tree) for kind, tree in params.items()})
  for path, x in arrays:
    # A digest needs the bytes in one piece.
    x = np.ascontiguousarray(x)
    sha.update(f'{jax.tree_util.keystr(path)} {x.dtype} {x.shape}'.encode())
    sha.update(x.data)
  return sha.hexdigest()[:12]


def by_name(name: str, batch: int = 64,
            layer: str | int = 'final') -> Encoder:
  """Returns the Encoder of 'hf:NAME', a model of the transformers library.

  Args:
    name: 'hf:owner/name', with '@REVISION' for a branch, tag or commit; or
      'hf:FOLDER', a folder of save_pretrained. Dasheng's repositories and our
      own are read without transformers.
    batch: clips encoded at once, at most.
    layer: 'final', a block's index, or 'all' for an encoder of every layer.

  Raises:
    ValueError: no audio encoder, no such repository, a gated one, no network,
      a missing library; one line.
  """
  source_name, revision = hub.split(name)
  folder = pathlib.Path(source_name)
  local = folder.is_dir()
  if not local:
    if not hub.NAME.fullmatch(source_name):
      raise ValueError(f'{name}: no such folder, and no hub id: expected '
                       'hf:owner/name or hf:FOLDER')
    # Small files first: the type may be refused before gigabytes arrive.
    folder = hub.download(source_name, families.SMALL, families.EXTRA, revision)
  kind = families.model_type(folder, name)
  if kind == 'dasheng':
    if not local:
      folder = hub.download(source_name, pretrained.FILES, 'hub', revision)
    return of_saved(folder, name, batch, layer)
  # Before the weights are downloaded.
  families.check(folder, kind, name)
  if not local:
    # safetensors if there are any: older repositories have only pickles.
    folder = hub.download(source_name, families.SAFE, families.EXTRA, revision)
    if not any(folder.glob('*.safetensors')):
      folder = hub.download(source_name, families.OLD, families.EXTRA, revision)
  adapter = families.load(folder, name)
  if layer not in (*adapter.layers, 'all'):
    raise ValueError(f"layer {layer!r}: expected 'final' or 0 ... "
                     f'{adapter.depth - 1}')
  about = {'kind': 'transformers', 'checkpoint': name, 'step': None,
           'model_type': kind, 'weights': content(adapter.model, ''),
           'revision': hub.revision_of(folder), 'licence': hub.licence(folder),
           'parameters': sum(p.numel() for p in adapter.model.parameters()),
           'preprocessing': preprocessing(adapter.extractor),
           'pooling': adapter.pooling, 'layer': layer, 'depth': adapter.depth,
           'width': adapter.width, 'rate': adapter.rate, 'batch': batch,
           'distributions': {
               d: importlib.metadata.version(d)
               for d in ('torch', 'transformers', *{'muq'} & {kind})}}
  return of_adapter(adapter, batch, layer, about)


def of_saved(folder: pathlib.Path, name: str, batch: int,
             layer: str | int) -> Encoder:
  """Returns the Encoder of a folder of Dasheng, or of export.save_pretrained.

  Args:
    folder: with config.json and model.safetensors.
    name: of the model, for the record.
    batch, layer: as for `by_name`.

  Raises:
    FileNotFoundError, ValueError: missing, damaged or foreign weights.
  """
  config, params = pretrained.load_pretrained(folder)
  about = {'kind': 'hub', 'checkpoint': name, 'step': None,
           'model_type': 'dasheng', 'weights': digest(config, params),
           'verified': None, 'revision': hub.revision_of(folder),
           'licence': hub.licence(folder), 'parameters': parameters(params),
           'depth': config.model.depth}
  return of_params(config, params, batch, layer, 'clip', about)


def parameters(params: Any) -> int:
  """Returns the number of parameters of the encoder of linen variables."""
  tree = params['params']
  return sum(x.size for x in jax.tree.leaves(tree.get('encoder', tree)))


def of_adapter(adapter: families.Adapter, batch: int, layer: str | int,
               about: dict[str, Any]) -> Encoder:
  """Returns the Encoder of an adapter; arguments as for `by_name`."""
  names = adapter.layers

  def scene(waves: Sequence[np.ndarray]) -> Any:
    z = families.scenes(adapter, waves, batch, layer != 'final')
    if layer == 'all':
      return dict(zip(names, z))
    if layer == 'final':
      return z[-1]
    return z[names.index(layer)]

  def timestamps(wave_BS: np.ndarray) -> Any:
    parts = families.timestamps(adapter, wave_BS, layer != 'final')
    if layer == 'all':
      return dict(zip(names, parts))
    if layer == 'final':
      return parts[-1]
    return parts[names.index(layer)]

  layers: tuple[int | str, ...] = ()
  if layer == 'all':
    layers = names
  # Where a repository lies and what its card says change no embedding.
  key = files.digest({k: v for k, v in about.items() if k not in (
      'checkpoint', 'revision', 'licence')})
  return Encoder(adapter.rate, scene, timestamps, about, key, layers)


def preprocessing(extractor: Any) -> str:
  """Returns a digest of the settings of a feature extractor."""
  # Tables of filters follow from the numbers.
  settings = {key: value for key, value in extractor.to_dict().items()
              if isinstance(value, (bool, int, float, str, type(None)))}
  return files.digest(settings)


def module(name: str, path: str = '', batch: int = 64) -> Encoder:
  """Returns the Encoder of a module with the HEAR API.

  Args:
    name: of the module, importable, such as 'my_package.my_model'.
    path: argument of its load_model; '' calls it without one.
    batch: clips of one length that are encoded at once.

  Returns:
    an Encoder. A model of torch or TensorFlow gets tensors, on a GPU if torch
    has one; any other gets numpy arrays. Embeddings are not cached if neither
    `path` nor the model has weights that can be read.

  Raises:
    ValueError: no such module or another API; later, embeddings of wrong
      shapes. Names the module.
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
  # A module may bring or download its own weights.
  if path:
    model = api.load_model(path)
  else:
    model = api.load_model()
  for field in ('sample_rate', 'scene_embedding_size',
                'timestamp_embedding_size'):
    if not isinstance(getattr(model, field, None), numbers.Integral):
      raise ValueError(f'{name}: its model has no whole number {field}, '
                       'expected the HEAR API')
  give, guard = adapter(model)

  def scene(waves: Sequence[np.ndarray]) -> np.ndarray:
    out_ND = np.zeros((len(waves), model.scene_embedding_size), np.float32)
    for index, wave_BS in embed.batches(waves, batch):
      # No gradients: a graph of every batch would be kept.
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

  def timestamps(wave_BS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
  if hasattr(model, 'parameters'):  # Of torch.
    about['parameters'] = sum(int(p.numel()) for p in model.parameters())
  key = ''
  if digest_of_weights:
    key = files.digest(about)
  return Encoder(int(model.sample_rate), scene, timestamps, about, key)


def adapter(model: Any) -> tuple[Callable, Callable]:
  """Returns (give, guard) of a module's model.

  give: converts a float32 array to an argument of the model.
  guard: returns a context for calls of the model.
  """
  # A model has already imported its framework, so no import is needed here.
  torch: Any = sys.modules.get('torch')
  tf: Any = sys.modules.get('tensorflow')
  if torch and isinstance(model, torch.nn.Module):
    device = 'cpu'
    if torch.cuda.is_available():
      device = 'cuda'
    # eval: dropout off, BatchNorm with its running statistics.
    model.to(device).eval()
    return (lambda x: torch.from_numpy(x).to(device)), torch.no_grad
  if tf and isinstance(model, tf.Module):
    return tf.convert_to_tensor, contextlib.nullcontext
  return (lambda x: x), contextlib.nullcontext


def to_numpy(x: Any) -> np.ndarray:
  """Returns an array or a tensor as numpy."""
  # numpy refuses tensors that need gradients.
  if hasattr(x, 'detach'):
    x = x.detach().cpu()
  return np.asarray(x)


def content(model: Any, path: str) -> str:
  """Returns a digest of the weights of a module's model, '' if it has none.

  Args:
    model: whose state_dict counts, if it has one.
    path: file or folder of files that count; may be anything else.
  """
  sha, parts = hashlib.sha256(), 0
  if hasattr(model, 'state_dict'):
    for name, x in model.state_dict().items():
      if hasattr(x, 'float'):  # numpy has no bfloat16.
        x = x.float()
      x = np.ascontiguousarray(to_numpy(x))
      sha.update(f'{name} {x.shape}'.encode() + x.tobytes())
      parts += 1
  for file in weight_files(path):
    with open(file, 'rb') as f:
      sha.update(hashlib.file_digest(f, 'sha256').digest())
    parts += 1
  if not parts:
    return ''
  return sha.hexdigest()[:12]


def weight_files(path: str) -> Sequence[pathlib.Path]:
  """Returns the file at a path, or the files of the folder there, if any."""
  if path and pathlib.Path(path).is_dir():
    return files.walk(path)
  if path and pathlib.Path(path).is_file():
    return [pathlib.Path(path)]
  return []


def source(api: types.ModuleType) -> str:
  """Returns a digest of a module's source, '' if it has none.

  It is of all .py files of its package, or of its only file.
  """
  # The whole package, since a model's code is rarely one file.
  top = sys.modules[api.__name__.split('.')[0]]
  folders = [pathlib.Path(p) for p in getattr(top, '__path__', ())]
  modules = sorted(p for folder in folders for p in folder.rglob('*.py'))
  only = getattr(api, '__file__', None)  # Missing in namespace packages.
  if not modules and only:
    modules = [pathlib.Path(only)]
  sha = hashlib.sha256()
  for file in modules:
    sha.update(file.name.encode() + file.read_bytes())
  if not modules:
    return ''
  return sha.hexdigest()[:12]


def distributions(name: str) -> dict[str, str]:
  """Returns {distribution: version} of the package of a module."""
  # Several distributions may share one name to import.
  names = importlib.metadata.packages_distributions().get(
      name.split('.')[0], [])
  return {d: importlib.metadata.version(d) for d in sorted(set(names))}
