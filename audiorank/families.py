"""Audio encoders by name, in torch: one adapter for each family.

Of the transformers library:

waveform  wav2vec 2.0 (and Conformer), HuBERT, WavLM, data2vec-audio, UniSpeech,
          SEW: clips of any length; the embedding is the mean of the tokens
bert      wav2vec 2.0 BERT: the same
whisper   Whisper's encoder: clips padded with silence to 30 s; the mean of the
          clip's own tokens
ast       Audio Spectrogram Transformer: clips padded to 10 s; the mean of the
          two class tokens, as in its classifier
clap      CLAP's audio tower: clips repeated up to 10 s; the mean over time and
          frequency, before the projection

Of the package muq (Zhu et al., arXiv 2501.01108):

muq       MuQ: clips of any length at 24 kHz; the mean of the tokens

Each model gets what its own feature extractor makes of a clip, at its own
sampling rate. An embedding never depends on the other clips of a batch: clips
are padded only where the model has a mask that makes padding exact, or where
the extractor pads every clip to one length. Padding of Whisper is encoded, as
its authors do, but is left out of the mean. Longer clips than a model takes are
cut, and the mean of the pieces is weighted by their lengths.

Shapes: N clips, B batch, S samples, L tokens, D width, K layers, F rows
(frequency), T columns (time).
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib.metadata
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from audiorank import audio

EXTRA = 'transformers'
CONFIG, FRONT_END = 'config.json', 'preprocessor_config.json'
SMALL = (CONFIG, FRONT_END, 'processor_config.json', 'README.md')
SAFE = ('model*.safetensors', 'model.safetensors.index.json')
# Of repositories without safetensors; torch reads them with weights_only.
OLD = ('pytorch_model*.bin', 'pytorch_model.bin.index.json')

WAVEFORM = 'Wav2Vec2FeatureExtractor'
# Model type -> family, class of the model, class of its feature extractor.
TYPES = {
    'wav2vec2': ('waveform', 'Wav2Vec2Model', WAVEFORM),
    'wav2vec2-conformer': ('waveform', 'Wav2Vec2ConformerModel', WAVEFORM),
    'hubert': ('waveform', 'HubertModel', WAVEFORM),
    'wavlm': ('waveform', 'WavLMModel', WAVEFORM),
    'data2vec-audio': ('waveform', 'Data2VecAudioModel', WAVEFORM),
    'unispeech': ('waveform', 'UniSpeechModel', WAVEFORM),
    'unispeech-sat': ('waveform', 'UniSpeechSatModel', WAVEFORM),
    'sew': ('waveform', 'SEWModel', WAVEFORM),
    'sew-d': ('waveform', 'SEWDModel', WAVEFORM),
    'wav2vec2-bert': ('bert', 'Wav2Vec2BertModel',
                      'SeamlessM4TFeatureExtractor'),
    'whisper': ('whisper', 'WhisperModel', 'WhisperFeatureExtractor'),
    'audio-spectrogram-transformer': ('ast', 'ASTModel', 'ASTFeatureExtractor'),
    'clap': ('clap', 'ClapModel', 'ClapFeatureExtractor'),
    'muq': ('muq', 'MuQ', '')}
MUQ_RATE = 24_000  # Hz; its config does not say it.
# Parts of MuQ that embedding uses; the others are of its training.
MUQ_PARTS = ('model.conv.', 'model.conformer.')
# Types whose models give the same tokens with padding and a mask as without.
# Others would mix padding into their first layers: a GroupNorm over time, or
# several convolutions over neighbouring tokens.
MASKED = ('wav2vec2', 'hubert', 'wavlm', 'unispeech', 'unispeech-sat')
# The part of a model that is used. Parts of others may be missing.
PART = {'whisper': 'encoder', 'clap': 'audio_model'}
# Weights that embedding does not use.
UNUSED = ('masked_spec_embed',)
SHORTEST = .05  # Seconds; shorter clips are padded with silence.
SECONDS = 160  # Of audio in one call, at most, whatever `batch`.


class FrontEnd(NamedTuple):
  """In place of a feature extractor, for a model that takes samples."""
  sampling_rate: int  # Hz.

  def to_dict(self) -> dict[str, int]:
    """Returns the settings, as a feature extractor of transformers does."""
    return self._asdict()


class Adapter(NamedTuple):
  """How an encoder in torch is called. Arrays are of torch."""
  model: Any
  extractor: Any
  model_type: str
  width: int  # Of the final layer.
  depth: int  # Blocks.
  pooling: str  # How a clip's embedding is computed, for records.
  window: int  # Samples of the longest clip of a call; 0 for any length.
  ragged: bool  # Whether clips of one call may differ in length.
  # (waves, all layers?) -> ([x] of the layers and of the final one, own_B).
  states: Callable[..., Any]
  # (x, own_B) -> z_BD; own_B is the number of each clip's own tokens.
  pool: Callable[..., Any]
  frames: Callable[..., Any]  # x -> tokens_BLD over time.
  token: tuple[float, float]  # Milliseconds: centre of the first, and step.

  @property
  def rate(self) -> int:
    """Returns the sampling rate of its clips, Hz."""
    return int(self.extractor.sampling_rate)

  @property
  def layers(self) -> tuple[int | str, ...]:
    """Returns the names of the layers that `scenes` can return."""
    return (*range(self.depth), 'final')


# --- Reading a folder ---


def model_type(folder: pathlib.Path, name: str) -> str:
  """Returns the model_type of a folder's config.json.

  Args:
    folder: with the files of a repository.
    name: of the repository, for the message.

  Raises:
    ValueError: there is none; names it.
  """
  try:
    tree = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise ValueError(f'{name}: no {CONFIG}, expected a model of the '
                     'transformers library') from None
  except ValueError as error:
    raise ValueError(f'{name}: {CONFIG} is no JSON: {error}') from None
  kind = isinstance(tree, dict) and tree.get('model_type')
  # MuQ's config has no such entry, but these.
  if isinstance(tree, dict) and {'w2v2_config', 'codebook_dim'} <= set(tree):
    kind = 'muq'
  if not isinstance(kind, str):
    raise ValueError(f'{name}: {CONFIG} has no model_type, expected a model of '
                     'the transformers library')
  return kind


def check(folder: pathlib.Path, kind: str, name: str) -> None:
  """Raises ValueError unless a folder has a known audio encoder.

  Args:
    folder: with the small files of a repository; weights may be missing.
    kind: its model_type.
    name: of the repository, for messages.
  """
  if kind not in TYPES:
    raise ValueError(f'{name}: a model of type {kind!r}, expected an audio '
                     f'encoder: {", ".join(sorted(TYPES))}; for others write '
                     'a module with the HEAR API (--module)')
  if kind != 'muq' and not any(
      (folder / file).is_file()
      for file in (FRONT_END, 'processor_config.json')):
    raise ValueError(f'{name}: no {FRONT_END}, which says how its audio is '
                     'prepared')
  libraries(name)
  if kind == 'muq':
    muq_package(name)


def libraries(name: str) -> tuple[Any, Any]:
  """Returns the modules (torch, transformers).

  Raises:
    ValueError: one is not installed; names the extra.
  """
  try:
    import torch
    import transformers
  except ModuleNotFoundError as error:
    raise ValueError(f'{name}: needs {error.name} (pip install '
                     f"'audiorank[{EXTRA}]')") from None
  return torch, transformers


def muq_package(name: str) -> Any:
  """Returns the module muq.

  Raises:
    ValueError: it, or what it needs, is not installed.
  """
  try:
    import muq
  except (ModuleNotFoundError, OSError) as error:  # torchaudio's libraries.
    raise ValueError(f"{name}: needs the package muq (pip install "
                     f"'audiorank[muq]'): {' '.join(str(error).split())[:150]}"
                     ) from None
  # muq 0.1 asks a part of transformers for hidden states, which version 5 has
  # of whole models only.
  version = importlib.metadata.version('transformers')
  if int(version.partition('.')[0]) >= 5:
    raise ValueError(f"{name}: the package muq needs transformers 4, found "
                     f"{version} (pip install 'audiorank[muq]')")
  return muq


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[None]:
  """Silences transformers: its table of unused weights, its progress bars."""
  log = transformers.logging
  level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
  log.set_verbosity(log.CRITICAL)
  log.disable_progress_bar()
  try:
    yield
  finally:
    log.set_verbosity(level)
    if bars:
      log.enable_progress_bar()


def load(folder: pathlib.Path, name: str) -> Adapter:
  """Returns the Adapter of a folder written by save_pretrained.

  The model is in evaluation mode, float32, on a GPU if torch has one.

  Args:
    folder: with config, feature extractor and weights.
    name: of the repository, for messages.

  Raises:
    ValueError: no audio encoder, a missing library, missing or damaged
      weights; one line.
  """
  kind = model_type(folder, name)
  check(folder, kind, name)
  torch, transformers = libraries(name)
  family, model_class, extractor_class = TYPES[kind]
  device = 'cpu'
  if torch.cuda.is_available():
    device = 'cuda'
  if kind == 'muq':
    model = muq_model(folder, name).float().to(device).eval()
    return muq(model, FrontEnd(MUQ_RATE), kind)
  try:
    with quiet(transformers):
      extractor = getattr(transformers, extractor_class).from_pretrained(folder)
      model, report = getattr(transformers, model_class).from_pretrained(
          folder, output_loading_info=True, local_files_only=True)
  except Exception as error:  # Of the file system, torch, safetensors, json.
    raise ValueError(f'{name}: cannot be loaded: {type(error).__name__}: '
                     f'{" ".join(str(error).split())[:200]}') from None
  part = PART.get(family, '')
  # transformers would leave missing weights at random values.
  missing = sorted(key for key in report['missing_keys']
                   if key.startswith(part) and not key.endswith(UNUSED))
  if missing:
    raise ValueError(f'{name}: {len(missing)} weights are missing, such as '
                     f'{missing[0]}')
  if not isinstance(getattr(extractor, 'sampling_rate', None), int):
    raise ValueError(f'{name}: {FRONT_END} has no sampling_rate')
  if part:
    model = getattr(model, part)
  model.float().to(device).eval()
  return FAMILIES[family](model, extractor, kind)


def muq_model(folder: pathlib.Path, name: str) -> Any:
  """Returns the MuQ of a folder with its config and weights.

  Raises:
    ValueError: missing or damaged weights, or settings that MuQ does not know.
  """
  import torch
  package = muq_package(name)
  safe = sorted(folder.glob('model*.safetensors'))
  old = sorted(folder.glob('pytorch_model*.bin'))
  if not safe and not old:
    raise ValueError(f'{name}: no model.safetensors or pytorch_model.bin')
  try:
    config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    # The package passes these settings to transformers, which asks for this one
    # too.
    config['w2v2_config'] = {'_attn_implementation': 'eager',
                             **config['w2v2_config']}
    model = package.MuQ(config)
    state: dict[str, Any] = {}
    for file in safe or old:
      if safe:
        import safetensors.torch
        state |= safetensors.torch.load_file(file)
      else:
        state |= torch.load(file, map_location='cpu', weights_only=True)
    # Its from_pretrained would leave missing weights at random values.
    result = model.load_state_dict(state, strict=False)
  except Exception as error:  # Of torch, safetensors, the package.
    raise ValueError(f'{name}: cannot be loaded: {type(error).__name__}: '
                     f'{" ".join(str(error).split())[:200]}') from None
  missing = [key for key in result.missing_keys
             if key.startswith(MUQ_PARTS) and not key.endswith(UNUSED)]
  if missing:
    raise ValueError(f'{name}: {len(missing)} weights are missing, such as '
                     f'{missing[0]}')
  return model


# --- Families ---


def waveform(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of a model that takes samples."""
  config = model.config
  ragged = kind in MASKED and config.feat_extract_norm == 'layer'
  stride = math.prod(config.conv_stride)
  reach = 1  # Samples that one token sees.
  # From the last convolution back to the samples.
  for kernel, step in zip(config.conv_kernel[::-1], config.conv_stride[::-1]):
    reach = (reach - 1) * step + kernel
  milliseconds = 1000 / extractor.sampling_rate

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    inputs = extractor(list(waves), sampling_rate=extractor.sampling_rate,
                       return_tensors='pt', padding=True,
                       return_attention_mask=ragged)
    # The output length of convolutions without padding.
    own_B = [(len(wave_S) - reach) // stride + 1 for wave_S in waves]
    return hidden(model, inputs, layers), own_B

  return Adapter(model, extractor, kind, config.hidden_size,
                 config.num_hidden_layers, 'mean of tokens', 0, ragged, states,
                 mean_of_own, lambda x_BLD: x_BLD,
                 (reach / 2 * milliseconds, stride * milliseconds))


def bert(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of wav2vec 2.0 BERT, which takes log-mel frames."""
  config = model.config
  # Tokens are of `stride` frames of 10 ms, each of 25 ms.
  stride = extractor.stride

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    inputs = extractor(list(waves), sampling_rate=extractor.sampling_rate,
                       return_tensors='pt')
    own_B = inputs['attention_mask'].sum(1).tolist()
    return hidden(model, inputs, layers), own_B

  # The centre of the first token is that of its frames: the first frame's is
  # at 12.5 ms.
  return Adapter(model, extractor, kind, config.hidden_size,
                 config.num_hidden_layers, 'mean of tokens', 0, False, states,
                 mean_of_own, lambda x_BLD: x_BLD,
                 (5. * (stride - 1) + 12.5, 10. * stride))


def whisper(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of Whisper's encoder."""
  config = model.config
  samples = extractor.n_samples // config.max_source_positions  # Of a token.
  step = 1000 * samples / extractor.sampling_rate

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    inputs = extractor(list(waves), sampling_rate=extractor.sampling_rate,
                       return_tensors='pt')
    # Rounded up: the clip's last token may be filled in part.
    own_B = [-(-len(wave_S) // samples) for wave_S in waves]
    return hidden(model, inputs, layers), own_B

  return Adapter(model, extractor, kind, config.d_model, config.encoder_layers,
                 "mean of the clip's own tokens", extractor.n_samples, True,
                 states, mean_of_own, lambda x_BLD: x_BLD, (step / 2, step))


def ast(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of an Audio Spectrogram Transformer."""
  config = model.config
  # Patches overlap: 16 wide, every 10 bands and frames as published.
  rows = 1 + ((config.num_mel_bins - config.patch_size)
              // config.frequency_stride)
  columns = 1 + (config.max_length - config.patch_size) // config.time_stride
  hop = extractor.sampling_rate // 100  # Samples of a frame, 10 ms.

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    inputs = extractor(list(waves), sampling_rate=extractor.sampling_rate,
                       return_tensors='pt')
    own_B = [min(columns, max(1, len(wave_S) // (hop * config.time_stride)))
             for wave_S in waves]
    return hidden(model, inputs, layers), own_B

  def frames(x_BLD: Any) -> Any:
    # Two class tokens, then the patches, frequency by frequency.
    x_BFTD = x_BLD[:, 2:].reshape(len(x_BLD), rows, -1, x_BLD.shape[2])
    return x_BFTD.mean(1)

  return Adapter(model, extractor, kind, config.hidden_size,
                 config.num_hidden_layers, 'mean of the two class tokens',
                 extractor.max_length * hop, True, states,
                 lambda x_BLD, _: x_BLD[:, :2].mean(1), frames,
                 (5. * config.patch_size, 10. * config.time_stride))


def clap(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of CLAP's audio tower, a Swin transformer (HTSAT)."""
  import torch
  config = model.config
  if getattr(config, 'audio_config', None) is not None:
    config = config.audio_config
  window = extractor.nb_max_samples
  # The spectrogram is folded into a square of `ratio` stretches of time.
  ratio = config.spec_size // config.num_mel_bins
  # Every stage but the first halves both sides.
  tokens = config.spec_size // config.patch_size // 2 ** (
      len(config.depths) - 1) * ratio

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    inputs = dict(extractor(
        list(waves), sampling_rate=extractor.sampling_rate,
        return_tensors='pt'))
    # The extractor calls a random clip of each batch "longer" if none is, which
    # is meant for training. No clip here is longer than the window.
    inputs['is_longer'] = torch.zeros(len(waves), 1, dtype=torch.bool)
    # (clips, channels, rows, columns), the final one already unfolded.
    *blocks, final = hidden(model, inputs, layers)
    blocks = [unfolded(x_BDFT, ratio) for x_BDFT in blocks]
    own_B = [max(1, min(tokens, -(-len(w) * tokens // window))) for w in waves]
    return [*blocks, final], own_B

  return Adapter(model, extractor, kind, config.hidden_size,
                 len(config.depths), 'mean over time and frequency', window,
                 True, states, lambda x_BDFT, _: x_BDFT.mean((2, 3)),
                 lambda x_BDFT: x_BDFT.mean(2).transpose(1, 2),
                 (500 * window / extractor.sampling_rate / tokens,
                  1000 * window / extractor.sampling_rate / tokens))


def muq(model: Any, extractor: Any, kind: str) -> Adapter:
  """Returns the Adapter of MuQ, which takes samples at 24 kHz."""
  import torch
  config = model.config
  step = 1000 / config.label_rate

  def states(waves: Sequence[np.ndarray], layers: bool) -> Any:
    wave_BS = torch.from_numpy(np.stack(waves))
    # Clips of a call are equally long: all tokens are their own.
    return hidden(model, {'x': wave_BS}, layers), [1 << 30] * len(waves)

  return Adapter(model, extractor, kind, config.encoder_dim,
                 config.encoder_depth, 'mean of tokens', 0, False, states,
                 mean_of_own, lambda x_BLD: x_BLD, (step / 2, step))


def unfolded(x_BDFT: Any, ratio: int) -> Any:
  """Returns a square of `ratio` stretches of time as one long picture."""
  B, D, F, T = x_BDFT.shape
  x_BDCFT = x_BDFT.reshape(B, D, ratio, F // ratio, T)
  return x_BDCFT.transpose(2, 3).reshape(B, D, F // ratio, ratio * T)


FAMILIES = {'waveform': waveform, 'bert': bert, 'whisper': whisper, 'ast': ast,
            'clap': clap, 'muq': muq}


def hidden(model: Any, inputs: Any, layers: bool) -> list[Any]:
  """Returns the outputs of the blocks, if asked for, and the final layer's.

  Args:
    model: of transformers.
    inputs: its arguments, as the extractor returns them.
    layers: whether to return those of the blocks.
  """
  import torch
  device = next(model.parameters()).device
  inputs = {key: value.to(device) for key, value in inputs.items()}
  with torch.inference_mode():
    out = model(**inputs, output_hidden_states=layers)
  if not layers:
    return [out.last_hidden_state]
  # The first hidden state is the input of the first block.
  return [*out.hidden_states[1:], out.last_hidden_state]


def mean_of_own(x_BLD: Any, own_B: Sequence[int]) -> Any:
  """Returns z_BD, the mean of each clip's own tokens."""
  import torch
  L = x_BLD.shape[1]
  # A model may return fewer tokens than are counted, such as SEW.
  own_B1 = torch.tensor(own_B, device=x_BLD.device).clamp(1, L)[:, None]
  own_BL1 = (torch.arange(L, device=x_BLD.device)[None] < own_B1)[:, :, None]
  # where: a padded token that is NaN would stay NaN times 0.
  return torch.where(own_BL1, x_BLD, 0).sum(1) / own_B1


# --- Embeddings ---


def scenes(adapter: Adapter, waves: Sequence[np.ndarray], batch: int,
           layers: bool) -> list[np.ndarray]:
  """Returns z_ND float32 of the blocks, if asked for, and of the final layer.

  Args:
    adapter: from `load`.
    waves: clips of any lengths, float32 in [-1, 1] or int16, at its rate.
    batch: clips of one call.
    layers: whether to return those of the blocks; it takes the same one pass.

  Raises:
    ValueError: no clips, or an embedding with NaN or infinity.
  """
  if not len(waves):
    raise ValueError('no clips to embed')
  window = adapter.window or max(len(wave_S) for wave_S in waves) or 1
  clip_P, pieces = [], []
  for n, wave_S in enumerate(waves):
    for start in range(0, max(len(wave_S), 1), window):
      clip_P.append(n)
      pieces.append(wave_S[start:start + window])
  # Weighted means of the pieces of a clip, in float64 because they are sums.
  sums: list[np.ndarray] = []
  weight_N1 = np.zeros((len(waves), 1))
  for index in groups(adapter, [len(p) for p in pieces], batch):
    states, own_B = adapter.states(
        [prepared(adapter, pieces[i]) for i in index], layers)
    for i in index:
      weight_N1[clip_P[i]] += max(len(pieces[i]), 1)
    for k, x in enumerate(states):
      z_BD = adapter.pool(x, own_B).cpu().numpy()
      # The widths of the layers are known after the first call.
      if k == len(sums):
        sums.append(np.zeros((len(waves), z_BD.shape[1])))
      for i, z_D in zip(index, z_BD):
        sums[k][clip_P[i]] += max(len(pieces[i]), 1) * z_D.astype(np.float64)
  out = [(sum_ND / weight_N1).astype(np.float32) for sum_ND in sums]
  if not all(np.isfinite(z_ND).all() for z_ND in out):
    raise ValueError('embeddings with NaN or infinity')
  return out


def timestamps(adapter: Adapter, wave_BS: np.ndarray, layers: bool
               ) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns [(z_BLD, ms_BL)]: embeddings of tokens and their centres in ms.

  Of the blocks, if asked for, and of the final layer.

  Args:
    adapter: from `load`.
    wave_BS: clips of one length at its rate.
    layers: whether to return those of the blocks.
  """
  wave_BS = np.asarray(wave_BS)
  window = adapter.window or wave_BS.shape[1] or 1
  pieces = []
  for start in range(0, max(wave_BS.shape[1], 1), window):
    waves = [prepared(adapter, wave_S[start:start + window])
             for wave_S in wave_BS]
    states, own_B = adapter.states(waves, layers)
    x = [adapter.frames(state).cpu().numpy() for state in states]
    # Clips of one length have equal numbers of own tokens.
    pieces.append([located(adapter, x_BLD, x[-1].shape[1], own_B[0],
                           1000 * start / adapter.rate) for x_BLD in x])
  out = []
  for parts in zip(*pieces):
    z_BLD = np.concatenate([z for z, _ in parts], axis=1)
    ms_L = np.concatenate([ms for _, ms in parts]).astype(np.float32)
    out.append((z_BLD, np.broadcast_to(ms_L, z_BLD.shape[:2])))
  return out


def located(adapter: Adapter, x_BLD: np.ndarray, final: int, own: int,
            start: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns (z_BLD, ms_L): a clip's own tokens and their centres.

  Args:
    adapter: of the tokens.
    x_BLD: tokens of a layer.
    final: tokens of the final layer, of which a block of CLAP has a multiple.
    own: the final layer's tokens that are the clip's own.
    start: of the clip, ms.
  """
  first, step = adapter.token
  finer = max(1, x_BLD.shape[1] // final)
  z_BLD = x_BLD[:, :own * finer].astype(np.float32)
  ms_L = start + (first + step * np.arange(z_BLD.shape[1])) / finer
  return z_BLD, ms_L


def prepared(adapter: Adapter, wave_S: np.ndarray) -> np.ndarray:
  """Returns a clip in float32, at least as long as the shortest allowed."""
  wave_S = audio.to_float(np.asarray(wave_S))
  shortest = int(SHORTEST * adapter.rate)
  return np.pad(wave_S, (0, max(0, shortest - len(wave_S))))


def groups(adapter: Adapter, lengths: Sequence[int],
           batch: int) -> Iterator[np.ndarray]:
  """Yields the positions of the clips of each call, the shortest first.

  Args:
    adapter: says whether clips of a call may differ in length.
    lengths: of the clips, in samples.
    batch: clips of a call at most.
  """
  shortest = int(SHORTEST * adapter.rate)
  length_P = np.maximum(np.asarray(lengths), shortest)
  # By length, so that clips of a call need little padding.
  order = np.argsort(length_P, kind='stable')
  start = 0
  while start < len(order):
    # Models that pad to their window cost the same for every clip.
    seconds = (adapter.window or length_P[order[start]]) / adapter.rate
    count = min(batch, max(1, int(SECONDS / seconds)))
    index = order[start:start + count]
    if not adapter.ragged:
      index = index[length_P[index] == length_P[index[0]]]
    yield index
    start += len(index)
