"""(params, clips) -> embeddings: scenes, timestamps, any layer, any length.

XLA compiles one program per shape. If clips have only a few lengths, each
length gets a program. Otherwise clips are padded to a few sizes, eight per
octave, and the padding is masked: thousands of lengths then need a few dozen
programs, and embeddings are the same up to the rounding of float32.

`clamp` says whose loudest value the log-mel's range of 120 dB is measured
from; see audio.log_mel. With 'clip', the default, an embedding never depends
on the other clips of its batch. With 'batch' a quiet clip is embedded
differently beside a loud one, and in batches of another size; it is only for
exact parity with the official Dasheng.

`views` embeds random crops of a clip with some tokens masked, as in training.

Shapes: N clips, B batch, V views of a clip, S samples, T frames, L tokens, K
visible ones, D width.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np

from audiorank import audio
from audiorank import config as config_lib
from audiorank import model
from audiorank import sharding

SHORTEST = 640  # Samples of one token, 40 ms: shorter clips are padded.
LENGTHS = 4  # Up to so many different lengths, each gets its own program.

ModelConfig: TypeAlias = config_dict.FrozenConfigDict
Params = Any  # Linen variables, of an MAE or of its encoder.


def float32(config: ModelConfig) -> ModelConfig:
  """Returns a model config that computes in float32, whatever it trained in."""
  # Embeddings are compared across models and machines, and RankMe depends on
  # their small singular values, which bfloat16 would round away.
  return config_dict.FrozenConfigDict({**config.to_dict(), 'dtype': 'float32'})


@functools.lru_cache(maxsize=64)
def encoder(config: ModelConfig, kind: str, layer: int | str, clamp: str
            ) -> Callable[[Params, Any], jax.Array]:
  """Returns a jitted (params, wave_BS) -> z_BD or z_BLD, float32.

  Args:
    config: frozen model config.
    kind: 'scene' (mean of the tokens over time) or 'tokens'.
    layer: 'final' (after the last norm), a block's index, from 0, or 'all'
      for z_KBD or z_KBLD of every block and, last, of the final layer.
    clamp: see audio.log_mel.
  """
  config = float32(config)

  def run(params: Params, wave_BS: jax.Array) -> jax.Array:
    wave_BS = audio.to_float(wave_BS)
    mel_BMT = audio.front(config, wave_BS, clamp)
    z = tokens(config, params, mel_BMT, layer)
    if kind == 'scene':
      return z.mean(-2)
    return z

  return jax.jit(run)


def tokens(config: ModelConfig, params: Params, mel_BMT: jax.Array,
           layer: int | str, valid_L: jax.Array | None = None) -> jax.Array:
  """Returns z_BLD of a layer, or z_KBLD of every block and the final layer.

  Args:
    config, params, mel_BMT, valid_L: see model.encode.
    layer: 'final', a block's index, or 'all'.
  """
  if layer == 'final':
    return model.encode(config, params, mel_BMT, valid_L=valid_L)
  final_BLD, blocks_NBLD = model.encode(config, params, mel_BMT,
                                        valid_L=valid_L, layers=True)
  if layer == 'all':
    return jnp.concatenate([blocks_NBLD, final_BLD[None]])
  return blocks_NBLD[layer]


@functools.lru_cache(maxsize=64)
def filled_encoder(config: ModelConfig, kind: str, layer: int | str, clamp: str
                   ) -> Callable[[Params, Any, Any], jax.Array]:
  """`encoder` for `filled` clips: jitted (params, wave_BS, samples_B) -> z.

  Tokens beyond a clip's own length are meaningless.
  """
  config = float32(config)

  def run(params: Params, wave_BS: jax.Array, samples_B: jax.Array
          ) -> jax.Array:
    wave_BS = audio.to_float(wave_BS)
    frames_B = 1 + samples_B // audio.HOP
    if config.frontend == 'log_mel':
      mel_BMT = filled_log_mel(wave_BS, frames_B, clamp)
    else:
      # `filled` reflected the clip's end, which only the windows of a log-mel
      # need: the patches of a picture must end in zeros.
      own_BS = jnp.arange(wave_BS.shape[1])[None] < samples_B[:, None]
      mel_BMT = audio.front(config, jnp.where(own_BS, wave_BS, 0))
    # A patch that the clip fills only in part is no token, as in training.
    valid_B = frames_B // config.patch_frames
    z = tokens(config, params, mel_BMT, layer, valid_B)
    if kind == 'tokens':
      return z
    # The mean over a clip's own tokens.
    own_BL1 = (jnp.arange(z.shape[-2])[None] < valid_B[:, None])[:, :, None]
    count_B1 = valid_B[:, None].astype(jnp.float32)
    if layer == 'all':
      # An axis for the layers.
      own_BL1, count_B1 = own_BL1[None], count_B1[None]
    return jnp.where(own_BL1, z, 0).sum(-2) / count_B1

  return jax.jit(run)


def filled_log_mel(wave_BS: jax.Array, frames_B: jax.Array, clamp: str
                   ) -> jax.Array:
  """Returns audio.log_mel of `filled` clips.

  Args:
    wave_BS: float32, padded.
    frames_B: each clip's own frames.
    clamp: see audio.log_mel.
  """
  mel_BMT = 10 * jnp.log10(jnp.maximum(audio.mel_power(wave_BS), 1e-10))
  # The padding must not be the loudest value, so it is -inf until the clamp.
  own_BT = jnp.arange(mel_BMT.shape[2])[None] < frames_B[:, None]
  mel_BMT = jnp.where(own_BT[:, None], mel_BMT, -jnp.inf)
  axes = None
  if clamp == 'clip':
    axes = (1, 2)
  return jnp.maximum(
      mel_BMT, mel_BMT.max(axes, keepdims=True) - audio.TOP_DB)


def size(samples: int) -> int:
  """Returns how many samples a clip is padded to: eight sizes per octave."""
  # `filled` appends half a window of reflected end, which must fit as well.
  tokens = -(-(max(samples, SHORTEST) + audio.N_FFT // 2) // SHORTEST)
  # Up to 15 tokens in steps of 1, up to 31 in steps of 2, and so on.
  step = 2 ** max(0, tokens.bit_length() - 4)
  return SHORTEST * step * -(-tokens // step)


def filled(waves: Sequence[np.ndarray] | np.ndarray, rows: int
           ) -> tuple[np.ndarray, np.ndarray]:
  """Returns (wave_BS, samples_B): clips of any lengths in one padded array.

  Each clip is followed by its own end reflected, and then by silence.

  Args:
    waves: clips of one dtype.
    rows: B; silent clips make up the number.
  """
  lengths = [max(len(w), SHORTEST) for w in waves]
  wave_BS = np.zeros((rows, size(max(lengths))), np.asarray(waves[0]).dtype)
  # The front end reflects the end of the array, not that of each clip. So the
  # reflection that a clip's last windows need is written here.
  reach = audio.N_FFT // 2
  for row_S, wave_S, length in zip(wave_BS, waves, lengths):
    row_S[:len(wave_S)] = wave_S
    # Without the last sample itself, as numpy's mode 'reflect'.
    row_S[length:length + reach] = row_S[length - reach - 1:length - 1][::-1]
  # Rows that only fill the batch have one token: the mean over none would be
  # NaN.
  samples_B = np.full(rows, SHORTEST, np.int32)
  samples_B[:len(lengths)] = lengths
  return wave_BS, samples_B


def check_layer(config: Any, layer: int | str, every: bool = True) -> None:
  """Raises ValueError for a layer the model does not have.

  Args:
    config: of the model.
    layer: 'final', a block's index or 'all'.
    every: whether 'all' is allowed.
  """
  known = layer == 'final' or (every and layer == 'all')
  if not known and not (
      isinstance(layer, int) and 0 <= layer < config.depth):
    raise ValueError(f"layer {layer!r}: expected 'final' or 0 ... "
                     f'{config.depth - 1}')


def batches(waves: Sequence[np.ndarray] | np.ndarray, batch: int
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (positions in waves, wave_BS), batch by batch, length by length.

  All batches have B = `batch` rows, so that one program per length is enough.
  The last batch of a length is padded with silence: its `positions` are fewer.
  """
  # The type is that of the waves: int16 is sent to the device as it is, in
  # half the bytes, and becomes float32 there.
  lengths = np.array([len(w) for w in waves])
  for length in np.unique(lengths):
    index = np.flatnonzero(lengths == length)
    for start in range(0, len(index), batch):
      part = index[start:start + batch]
      wave_BS = np.zeros((batch, max(length, SHORTEST)),
                         np.asarray(waves[part[0]]).dtype)
      for row, i in enumerate(part):
        wave_BS[row, :length] = waves[i]
      yield part, wave_BS


@functools.lru_cache(maxsize=64)
def scene_program(config: ModelConfig, layer: int | str, clamp: str,
                  padded: bool, mesh: jax.sharding.Mesh | None
                  ) -> Callable[..., jax.Array]:
  """Returns `encoder`, or `filled_encoder` if padded, of scenes.

  With a mesh it is run over all of its devices, each on its own rows. Every
  process passes all rows and gets all results.
  """
  run: Callable[..., jax.Array] = encoder(config, 'scene', layer, clamp)
  if padded:
    run = filled_encoder(config, 'scene', layer, clamp)
  if mesh is None:
    return run
  return own_rows(over_mesh(run, mesh))


def own_rows(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns a program of `over_mesh` that takes the rows of all processes."""
  count = jax.process_count()

  def of_all(params: Params, *arrays: np.ndarray) -> jax.Array:
    share = len(arrays[0]) // count
    first = jax.process_index() * share
    return run(params, *(x[first:first + share] for x in arrays))

  return of_all


def scene(config: Any, params: Params, waves: Sequence[np.ndarray] | np.ndarray,
          batch: int = 64, layer: int | str = 'final', clamp: str = 'clip',
          mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
  """Returns z_ND float32: per clip, the mean of its tokens over time.

  With layer='all', z_KND of every block and, last, of the final layer, at the
  cost of one. With clamp='clip' an embedding never depends on the other clips.

  Args:
    config: the run's config (or its `model` part).
    params: the linen variables.
    waves: wave_NS, or a sequence of wave_S of any lengths; float32 in
      [-1, 1] or int16, 16 kHz.
    batch: clips encoded at once.
    layer: 'final', a block's index, or 'all'.
    clamp: see audio.log_mel; 'batch' holds over each batch of `batch` clips.
    mesh: over which `params` are placed and `batch` is split; None for one
      device. Every process has all waves, and gets all embeddings.

  Raises:
    ValueError: no clips, an unknown layer.
  """
  config = getattr(config, 'model', config)
  check_layer(config, layer)
  if not len(waves):
    raise ValueError('no clips to embed')
  run = scene_program(config, layer, clamp, False, mesh)
  shape: tuple[int, ...] = (len(waves), config.width)
  if layer == 'all':
    shape = (config.depth + 1, *shape)
  z = np.zeros(shape, np.float32)
  lengths = np.array([len(w) for w in waves])
  # A single clip should not be computed as 64; but a mesh splits whole batches.
  if mesh is None or mesh.size == 1:
    batch = min(batch, len(waves))
  # With clamp='batch', padding and the order of clips would change embeddings.
  if len(np.unique(lengths)) <= LENGTHS or clamp == 'batch':
    for index, wave_BS in batches(waves, batch):
      z[..., index, :] = np.asarray(run(params, wave_BS))[..., :len(index), :]
    return z
  run_filled = scene_program(config, layer, clamp, True, mesh)
  # Sorted by length, so that clips of a batch need little padding.
  order = np.argsort(lengths, kind='stable')
  for start in range(0, len(order), batch):
    index = order[start:start + batch]
    part = run_filled(params, *filled([waves[i] for i in index], batch))
    z[..., index, :] = np.asarray(part)[..., :len(index), :]
  return z


def timestamps(config: Any, params: Params, waves: np.ndarray,
               layer: int | str = 'final', clamp: str = 'clip',
               fill: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """Returns (z_BLD, ms_BL): one embedding per 40 ms and its centre in ms.

  With layer='all' the embeddings are z_KBLD, as of `scene`.

  Args:
    config: the run's config (or its `model` part).
    params: the linen variables.
    waves: wave_BS, clips of one length.
    layer: 'final', a block's index, or 'all'.
    clamp: see the module's docstring.
    fill: pad clips to one of a few sizes, and the batch to a power of two.
      Then calls with many shapes need few programs; the embeddings are the
      same up to rounding.

  Returns:
    z_BLD: float32, L = (1 + S // 160) // 4 whatever `fill`, at least 1.
    ms_BL: float32, 40 l + 20 milliseconds.

  Raises:
    ValueError: an unknown layer.
  """
  config = getattr(config, 'model', config)
  check_layer(config, layer)
  wave_BS = np.asarray(waves)
  B, S = wave_BS.shape
  if fill:
    z = np.asarray(filled_encoder(config, 'tokens', layer, clamp)(
        params, *filled(wave_BS, 1 << (B - 1).bit_length())))
    frames = 1 + max(S, SHORTEST) // audio.HOP
    z = z[..., :B, :frames // config.patch_frames, :]
  else:
    wave_BS = np.pad(wave_BS, ((0, 0), (0, max(0, SHORTEST - S))))
    z = np.asarray(encoder(config, 'tokens', layer, clamp)(params, wave_BS))
  token = 10. * config.patch_frames  # Milliseconds: a frame is 10 ms.
  ms_L = (token * np.arange(z.shape[-2]) + token / 2).astype(np.float32)
  return z, np.broadcast_to(ms_L, z.shape[-3:-1])


def over_mesh(program: Callable[..., jax.Array], mesh: jax.sharding.Mesh
              ) -> Callable[..., jax.Array]:
  """Returns a program of (params, *arrays) that is run over a mesh.

  It takes this process's rows of the arrays; every device has all results.
  """
  if mesh.size == 1:
    device = mesh.devices.item()
    # Without the mesh it is the program of `scene`, which later scores the
    # run: it is compiled once.
    return lambda params, *rows: program(
        jax.device_put(params, device), *rows)
  # Two programs. In one, XLA may gather the clips instead of the embeddings,
  # and then every device encodes all of them.
  gathered = jax.jit(lambda z: z, out_shardings=sharding.replicated(mesh))

  def run(params: Params, *rows: np.ndarray) -> jax.Array:
    with jax.set_mesh(mesh):
      return gathered(program(
          params, *(sharding.to_global(x, mesh) for x in rows)))

  return run


@functools.lru_cache(maxsize=64)
def sharded_encoder(config: ModelConfig, layer: int | str,
                    mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
  """Returns (params, wave_BS) -> z_BD; see `over_mesh`."""
  return over_mesh(encoder(config, 'scene', layer, 'clip'), mesh)


@functools.lru_cache(maxsize=16)
def sharded_layers(config: ModelConfig, mesh: jax.sharding.Mesh
                   ) -> Callable[..., jax.Array]:
  """Returns (params, wave_BS, at_B) -> z_2KBD; see `over_mesh`.

  The first is of the mean of every layer's tokens, the second of one token: of
  L tokens that of the number floor(at L), at in [0, 1).
  """
  run = encoder(config, 'tokens', 'all', 'clip')

  def both(z_KBLD: jax.Array, at_B: jax.Array) -> jax.Array:
    index_B = (at_B * z_KBLD.shape[2]).astype(jnp.int32)
    token_KBD = jnp.take_along_axis(
        z_KBLD, index_B[None, :, None, None], axis=2)[:, :, 0]
    return jnp.stack([z_KBLD.mean(2), token_KBD])

  return over_mesh(jax.jit(lambda params, wave_BS, at_B: both(
      run(params, wave_BS), at_B)), mesh)


def sharded(config: ModelConfig, params: Params, wave_NS: np.ndarray,
            mesh: jax.sharding.Mesh, batch: int, layer: int | str = 'final',
            leave: Callable[[], bool] = lambda: False,
            at_N: np.ndarray | None = None) -> np.ndarray | None:
  """Returns z_ND, computed over a whole mesh and copied to every host.

  With layer='all' it is z_KND, as of `scene`.

  Args:
    config: frozen model config.
    params: the linen variables, placed on the mesh.
    wave_NS: int16, the same on every process.
    mesh: over all devices.
    batch: clips encoded at once, over all devices.
    layer: 'final', a block's index, or 'all'.
    leave: called before every batch; once it returns True, the result is None.
    at_N: with layer='all', float32 in [0, 1): also the token at this share of
      each clip; the result is then z_2KND, see `sharded_layers`.
  """
  check_layer(config, layer)
  run: Callable[..., jax.Array] = sharded_encoder(config, layer, mesh)
  if at_N is not None:
    run = sharded_layers(config, mesh)
  N, S = wave_NS.shape
  mine = slice(None)
  # Every process has all clips, and passes its own rows of each batch.
  if jax.process_count() > 1:
    share = batch // jax.process_count()
    mine = slice(jax.process_index() * share,
                 (jax.process_index() + 1) * share)
  pieces = []
  for start in range(0, N, batch):
    if leave():
      return None
    wave_BS = np.zeros((batch, S), wave_NS.dtype)
    part = wave_NS[start:start + batch]
    wave_BS[:len(part)] = part
    arrays = [wave_BS]
    if at_N is not None:
      arrays.append(np.resize(at_N[start:start + batch], batch))
    z = run(params, *(x[mine] for x in arrays))
    pieces.append(np.asarray(z)[..., :len(part), :])
  return np.concatenate(pieces, axis=-2)


@functools.lru_cache(maxsize=16)
def masked_encoder(config: ModelConfig, ratio: float, group: int,
                   mesh: jax.sharding.Mesh | None = None
                   ) -> Callable[..., jax.Array]:
  """Returns ((params, key), wave_BS) -> z_BD of the visible tokens.

  The key is of jax.random.key_data, as a numpy array: processes of a mesh have
  the same one. With a mesh every process passes all rows.
  """
  net = model.Encoder(config)

  @jax.jit
  def run(parts: tuple[Params, Any], wave_BS: jax.Array) -> jax.Array:
    params, key = parts[0], jax.random.wrap_key_data(parts[1])
    mel_BMT = audio.front(config, audio.to_float(wave_BS))
    variables = model.encoder_variables(params)
    patches_BLP: Any = net.apply(variables, mel_BMT, method='patches')
    keep_BK, _ = model.random_mask(
        key, len(patches_BLP), patches_BLP.shape[1], ratio, group)
    z_BKD: Any = net.apply(variables, patches_BLP, keep_BK)
    return z_BKD.mean(1)

  if mesh is None:
    return run
  return own_rows(over_mesh(run, mesh))


def view_samples(config: Any, samples: int) -> int:
  """Returns the length of a view of clips of so many samples.

  It is the crop that the run trains on, at most three quarters of the clip, so
  that crops of one clip differ; a whole number of groups of masked patches.
  """
  samples = min(config_lib.crop_samples(config.data.crop_seconds),
                samples * 3 // 4)
  group = config.mask.group_size * config.model.patch_frames * audio.HOP
  return samples // group * group


def views(config: Any, params: Params, wave_NS: np.ndarray, count: int,
          samples: int, seed: int = 0, batch: int = 64,
          mesh: jax.sharding.Mesh | None = None) -> np.ndarray:
  """Returns z_NVD float32, the embeddings of V random views of every clip.

  A view is a random crop of a clip with some tokens masked, as in training.

  Args:
    config: the run's config.
    params: the linen variables.
    wave_NS: int16 clips, longer than a view.
    count: V, views of a clip.
    samples: length of a crop.
    seed: of crops and masks.
    batch: clips encoded at once.
    mesh: as for `scene`.

  Raises:
    ValueError: clips shorter than a crop, or crops that do not divide into
      groups of patches.
  """
  N, S = wave_NS.shape
  L = (1 + samples // audio.HOP) // config.model.patch_frames
  if samples > S:
    raise ValueError(f'views of {samples} samples of clips of {S}: expected '
                     'longer clips')
  K = config_lib.unmasked(L, config.mask.ratio)
  if L % config.mask.group_size or not 0 < K < L:
    raise ValueError(f'views of {L} patches do not go with mask.group_size '
                     f'{config.mask.group_size} and mask.ratio '
                     f'{config.mask.ratio}')
  run = masked_encoder(config.model, config.mask.ratio, config.mask.group_size,
                       mesh)
  # The crops come from numpy, so that they are the same on every platform.
  start_NV = np.random.default_rng(seed).integers(
      0, S - samples + 1, (N, count))
  z_NVD = np.zeros((N, count, config.model.width), np.float32)
  # The masks of a batch depend on its size, which a mesh must not change.
  if mesh is None:
    batch = min(batch, N)
  for view in range(count):
    for first in range(0, N, batch):
      rows = np.arange(first, min(first + batch, N))
      wave_BS = np.zeros((batch, samples), wave_NS.dtype)
      for b, n in enumerate(rows):
        at = start_NV[n, view]
        wave_BS[b] = wave_NS[n, at:at + samples]
      # One key per view and batch, so that results depend on `batch` and
      # `seed` only, not on the order of calls.
      key = jax.random.fold_in(
          jax.random.fold_in(jax.random.key(seed), view), first)
      parts = params, np.asarray(jax.random.key_data(key))
      z_NVD[rows, view] = np.asarray(run(parts, wave_BS))[:len(rows)]
  return z_NVD
