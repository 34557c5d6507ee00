"""Compares our model with the official Dasheng, tensor by tensor.

  python -m audiorank.dasheng.parity --fixture parity_tiny.npz
  python -m audiorank.dasheng.parity --peer

`--fixture` is a file of arrays of the official code at every stage, of any
sizes: weights as w/<name>, the stages under the names below, and a .json of the
same stem with the numbers of heads. `--peer` runs the installed package dasheng
(tests/peers/install.sh) with random weights of the sizes in the flags. The
table is Markdown. The exit status is 1 if a tolerance is exceeded.

Errors are the largest absolute difference; with a relative tolerance it is
divided by the largest absolute value of the official tensor.

Shapes: B batch, S samples, M mels, T frames, L tokens, K kept tokens, R
removed, P values of a patch, D width, N layers.
"""

from collections.abc import Iterable
from collections.abc import Iterator
import json
import sys
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from audiorank import audio
from audiorank import dasheng
from audiorank import files
from audiorank import model
from audiorank import objectives

_FIXTURE = flags.DEFINE_string('fixture', None, 'An .npz of official arrays.')
_PEER = flags.DEFINE_bool('peer', False, 'Compare with the package dasheng.')
_WIDTH = flags.DEFINE_integer('width', 96, 'Of the random weights.')
_DEPTH = flags.DEFINE_integer('depth', 3, 'Of the random weights.')
_HEADS = flags.DEFINE_integer('heads', 6, 'Of the random weights.')
_FRAMES = flags.DEFINE_integer('target_length', 200, 'Of the random weights.')

# The tolerances are for float32 with other orders of summation. torchaudio
# computes its mel filters in float32, ours are rounded once: near 8 kHz, where
# float32 has steps of 4.9e-4 Hz and filters are 337 Hz apart, a weight differs
# by 1.5e-6. A value in dB is least certain if the power is near its floor of
# 1e-10.
POWER, DB, TOKENS = 'relative 2e-6', '5e-3', '5e-5'
LOSS, STATS, GRADS = 'relative 2e-4', 'relative 1e-5', 'relative 1e-3'
# The target of a silent patch is the rounding error of its mean, up to two
# steps of float32 at 80 dB, 1.5e-5, over the official sqrt(eps) of 1e-3.
TARGETS, SILENT_TARGETS = '1e-5', '1.6e-2'
SILENT = 1e-4  # Variance in dB^2 below which a patch is silent.
EXACT = '0'
encode = jax.jit(model.encode, static_argnames=('config', 'layers'))
log_mel = jax.jit(audio.log_mel, static_argnames='clamp')


class Row(NamedTuple):
  """A line of the table."""
  name: str
  error: float
  tolerance: str  # A number, after 'relative' if it is relative.
  holds: bool


def row(name: str, ours: Any, official: Any, tolerance: str) -> Row:
  """Returns the Row of a tensor.

  Raises:
    ValueError: other shapes.
  """
  ours, official = (np.asarray(x, np.float64) for x in (ours, official))
  if ours.shape != official.shape:
    raise ValueError(f'{name}: shape {ours.shape}, the official one has '
                     f'{official.shape}')
  error = np.abs(ours - official).max()
  if 'relative' in tolerance:
    error /= np.abs(official).max()
  holds = bool(error <= float(tolerance.split()[-1]))
  return Row(name, float(error), tolerance, holds)


def of_fixture(path: files.Path) -> list[Row]:
  """Returns the table's rows for a file of official arrays.

  Raises:
    FileNotFoundError, ValueError, KeyError: another file.
  """
  path = files.path(path)
  with np.load(path, allow_pickle=False) as arrays:
    z = dict(arrays)
  facts = json.loads(path.with_suffix('.json').read_text())
  state = {name[2:]: x for name, x in z.items() if name.startswith('w/')}
  heads = {'heads': facts['encoder']['num_heads'],
           'decoder': {'heads': facts['decoder']['num_heads']}}
  config, params = dasheng.from_state_dict(state, heads)
  return [*round_trip(state, config, params),
          *encoder_rows(z, config.model, params),
          *mae_rows(z, config.model, params),
          *training_rows(z, facts, config, params)]


def round_trip(state: dict[str, Any], config: Any, params: Any
               ) -> Iterator[Row]:
  """Yields the row of official -> ours -> official."""
  back = dasheng.to_state_dict(config, params)
  if set(back) - set(state):
    raise ValueError(f'names that the official state lacks: '
                     f'{sorted(set(back) - set(state))[:3]}')
  learned = [name for name in state if 'front_end.' not in name
             and 'num_batches_tracked' not in name]
  # Bytes, so that NaN and -0 are compared as well.
  differ = sum(back[n].tobytes() != np.asarray(state[n]).tobytes()
               for n in learned)
  yield row(f'weights that differ after a round trip, of {len(learned)}',
            differ, 0, EXACT)


def encoder_rows(z: dict[str, np.ndarray], config: Any, params: Any
                 ) -> Iterator[Row]:
  """Yields the rows of front end, encoder, lengths and long audio."""
  wave_BS = z['audio_i16'].astype(np.float32) / 32767
  yield row('mel', audio.mel_power(jnp.asarray(wave_BS)), z['mel'], POWER)
  mel_BMT = log_mel(wave_BS, clamp='batch')
  yield row('log-mel, dB', mel_BMT, z['db'], DB)
  for b in range(len(z.get('db_single', ()))):
    yield row(f'log-mel of clip {b} alone', log_mel(wave_BS[b:b + 1])[0],
              z['db_single'][b], DB)
  encoder = model.encoder_variables(params)
  own, t = encoder['params'], config.patch_frames
  patches_BLP = jnp.asarray(model.Encoder(config).apply(
      encoder, mel_BMT, method='patches'))
  L = patches_BLP.shape[1]
  yield row('BatchNorm', model.unpatchify(patches_BLP, t),
            z['bn'][:, :, :L * t], TOKENS)
  x_BLD = patches_BLP @ own['patch']['kernel'] + own['patch']['bias'][
      None, None]
  yield row('patch embedding', x_BLD, z['patch_embed'].transpose(0, 2, 1),
            TOKENS)
  at_LD = own['time'][:L] + own['freq'][None]
  yield row('tokens with positions', x_BLD + at_LD[None], z['tokens_in'],
            TOKENS)
  z_BLD, layers_NBLD = encode(config, params, mel_BMT, layers=True)
  for i in range(config.depth):
    yield row(f'block {i}', layers_NBLD[i], z[f'block{i}_out'], TOKENS)
  yield row('final norm', z_BLD, z['emb'], TOKENS)
  yield row('clip embedding', z_BLD.mean(1), z['emb_mean'], TOKENS)
  # A token has 640 samples, 40 ms.
  yield row('final norm with x_length', encode(
      config, params, mel_BMT, valid_L=z['x_length'] // 640),
            z['emb_xlength'], TOKENS)
  long_BMT = log_mel(z['long_i16'].astype(np.float32) / 32767, clamp='batch')
  yield row('long audio, dB', long_BMT, z['long_db'], DB)
  yield row('long audio in chunks', encode(config, params, long_BMT),
            z['long_emb'], TOKENS)


def mae_rows(z: dict[str, np.ndarray], config: Any, params: Any
             ) -> Iterator[Row]:
  """Yields the rows of masks, latents, predictions and losses."""
  mel_BMT = log_mel(z['audio_i16'].astype(np.float32) / 32767, clamp='batch')
  raw_BLP = model.patchify(mel_BMT, config.patch_frames)
  B, L, _ = raw_BLP.shape
  yield row('targets', raw_BLP, z['target_patches'], DB)
  encoder = model.encoder_variables(params)
  patches_BLP = model.Encoder(config).apply(encoder, mel_BMT, method='patches')
  for case, text, ratio, group in (
      ('g75', '75 % in pairs', .75, 2), ('u50', '50 % freely', .5, 1)):
    keep_BK, drop_BR = model.mask_from_noise(
        jnp.asarray(z[f'{case}/noise']), L, ratio, group)
    mask_BL = np.ones((B, L))
    np.put_along_axis(mask_BL, np.asarray(keep_BK), 0, 1)
    yield row(f'{text}: mask', mask_BL, z[f'{case}/mask'], EXACT)
    latent_BKD = jax.jit(model.Encoder(config).apply)(
        encoder, patches_BLP, keep_BK)
    yield row(f'{text}: latent', latent_BKD, z[f'{case}/latent'], TOKENS)
    pred_BRP = jax.jit(model.MAE(config).apply)(
        params, mel_BMT, keep_BK, drop_BR)
    yield row(f'{text}: prediction', pred_BRP,
              model.take(jnp.asarray(z[f'{case}/pred']), drop_BR), TOKENS)
    for by, name in (('patch', 'true'), ('batch', 'global'),
                     ('none', 'false')):
      loss = objectives.reconstruction(
          pred_BRP, model.take(objectives.normalise(raw_BLP, by), drop_BR))
      yield row(f'{text}: loss, normalised by {by}', loss,
                z[f'{case}/loss_{name}'], LOSS)


def training_rows(z: dict[str, np.ndarray], facts: dict[str, Any], config: Any,
                  params: Any) -> Iterator[Row]:
  """Yields the rows of a training step: targets, loss, statistics, gradients.

  Gradients are compared for targets with the same rounding as the official
  ones. In digital silence the compiled targets are 0, and the official ones are
  rounding errors; the row of silent targets shows the difference.
  """
  c, mel_BMT = config.model, jnp.asarray(z['db'])
  raw_BLP = model.patchify(mel_BMT, c.patch_frames)
  keep_BK, drop_BR = model.mask_from_noise(
      jnp.asarray(z['g75/noise']), raw_BLP.shape[1], .75, 2)
  # numpy rounds the mean of a silent patch as torch does, XLA does not.
  by_numpy: Any = np.asarray(raw_BLP)
  rounded_BLP: Any = objectives.normalise(by_numpy)
  compiled_BLP = np.asarray(jax.jit(objectives.normalise)(raw_BLP))
  silent_BL = raw_BLP.var(-1) < SILENT
  yield row('training: targets, compiled', compiled_BLP[~silent_BL],
            rounded_BLP[~silent_BL], TARGETS)
  if silent_BL.any():
    yield row('training: targets of silence, compiled',
              compiled_BLP[silent_BL], rounded_BLP[silent_BL], SILENT_TARGETS)
  target_BRP = model.take(rounded_BLP, drop_BR)

  def loss_of(tree: Any) -> tuple[jax.Array, Any]:
    pred_BRP, new = model.MAE(c).apply(
        {**params, 'params': tree}, mel_BMT, keep_BK, drop_BR, train=True,
        mutable=['batch_stats'])
    return objectives.reconstruction(pred_BRP, target_BRP), new

  (loss, new), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
      params['params'])
  yield row('training: loss', loss, z['train/loss'], LOSS)
  stats = new['batch_stats']['encoder']['norm_mel']
  for ours, name in (('mean', 'running_mean'), ('var', 'running_var')):
    yield row(f'training: {name}', stats[ours], z[f'train/{name}_after'],
              STATS)
  # Gradients have the same tree as parameters, so they get official names.
  named = dasheng.to_state_dict(
      config, {'params': grads, 'batch_stats': new['batch_stats']})
  for name, gradient in (
      ('patch_embed_bias', named['encoder.patch_embed.proj.bias']),
      ('block0_qkv_bias', named['encoder.blocks.0.attn.qkv.bias']),
      ('time_pos_embed', named['encoder.time_pos_embed'][0, :, 0]),
      ('mask_token', named['decoder.mask_token'])):
    yield row(f'training: gradient of {name}', gradient,
              z[f'train/grad_{name}'], GRADS)
  # On a CPU torch computes a wrong affine gradient of BatchNorm if its input is
  # transposed in memory, as the output of the front end is.
  names = [n for n in facts['grad_norms_train'] if 'init_bn' not in n]
  ratio = [np.linalg.norm(named[n]) / facts['grad_norms_train'][n]
           for n in names]
  yield row(f'training: norms of {len(names)} gradients, each',
            ratio, np.ones(len(names)), GRADS)


def of_peer(width: int, depth: int, heads: int, target_length: int,
            seed: int = 0) -> list[Row]:
  """Returns the rows for the installed official class, with random weights.

  Args:
    width, depth, heads, target_length: sizes of the model.
    seed: of weights and sounds.

  Raises:
    ValueError: the package dasheng or torch is not installed.
  """
  try:
    from dasheng.pretrained import pretrained
    import torch
  except (ImportError, OSError) as error:
    raise ValueError('--peer needs the package dasheng (tests/peers/'
                     f'install.sh): {error}') from None
  theirs = pretrained.Dasheng(
      embed_dim=width, depth=depth, num_heads=heads,
      target_length=target_length).eval()
  rng = np.random.default_rng(seed)
  state = {name: x.numpy() for name, x in theirs.state_dict().items()}
  for name, x in state.items():
    # Different biases, norms and statistics, so that a swap would be noticed.
    if x.dtype == np.float32 and x.ndim == 1 and 'front_end' not in name:
      state[name] = (x + rng.uniform(.01, .1, x.shape)).astype(np.float32)
  # Like real sound in dB; otherwise tokens would be in the hundreds, with
  # larger rounding errors.
  state['init_bn.1.running_mean'] -= 20
  state['init_bn.1.running_var'] *= 400
  config, params = dasheng.from_state_dict(state, {'heads': heads})
  out = list(round_trip(state, config, params))
  back = dasheng.to_state_dict(config, params)
  # strict: an additional or missing name or another shape is an error.
  theirs.load_state_dict(
      {name: torch.from_numpy(x) for name, x in back.items()}, strict=True)
  # Four frames a token.
  positions = target_length // 4
  # No multiples of a token, so that the end of a clip is tested too.
  for text, samples in (('one chunk', 640 * (positions // 2) + 333),
                        ('chunks', 640 * (2 * positions + 3) + 17)):
    wave_BS = (rng.normal(size=(3, samples)) * np.array(
        [[1e-4], [.03], [.3]])).clip(-1, 1).astype(np.float32)
    with torch.no_grad():
      mel_BMT = theirs.front_end(torch.from_numpy(wave_BS)).numpy()
      z_BLD = theirs(torch.from_numpy(wave_BS)).numpy()
    ours_BMT = log_mel(wave_BS, clamp='batch')
    out += [row(f'{text}: log-mel, dB', ours_BMT, mel_BMT, DB),
            row(f'{text}: tokens', encode(config.model, params, ours_BMT),
                z_BLD, TOKENS)]
  with torch.no_grad():
    length_B = np.array([samples, samples // 2, 9000])
    z_BLD = theirs(torch.from_numpy(wave_BS), torch.from_numpy(length_B))
  out.append(row('chunks: tokens with x_length', encode(
      config.model, params, ours_BMT, valid_L=length_B // 640),
                 z_BLD.numpy(), TOKENS))
  return out


def show(rows: Iterable[Row]) -> str:
  """Returns the Markdown table."""
  lines = ['| tensor | max error | tolerance |', '|---|---|---|']
  marks = {True: '', False: ' **off**'}
  return '\n'.join(lines + [
      f'| {r.name} | {r.error:.1e} | {r.tolerance} |{marks[r.holds]}'
      for r in rows])


def main(_: list[str]) -> None:
  if not (_FIXTURE.value or _PEER.value):
    raise app.UsageError('expected --fixture, --peer or both')
  rows = []
  try:
    if _FIXTURE.value:
      rows += of_fixture(_FIXTURE.value)
    if _PEER.value:
      rows += of_peer(_WIDTH.value, _DEPTH.value, _HEADS.value, _FRAMES.value)
  except (OSError, ValueError) as error:
    sys.exit(f'error: {error}')
  print(show(rows))
  if not all(r.holds for r in rows):
    sys.exit(1)


if __name__ == '__main__':
  jax.config.update('jax_platforms', 'cpu')
  app.run(main)
