"""Exports an encoder as StableHLO: one file that runs without this package.

The jax version that wrote it and later ones can read it, on CPU, CUDA and TPU,
for any number of clips of one length.

Shapes: B batch, S samples, L tokens, D width.
"""

from collections.abc import Callable
import pathlib
from typing import Any

import jax
from jax import export
import jax.numpy as jnp

from audiorank import audio
from audiorank import config as config_lib
from audiorank import embed
from audiorank import files
from audiorank import model

PLATFORMS = ('cpu', 'cuda', 'tpu')


def encoder(config: Any, params: Any, layer: int | str = 'final'
            ) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns wave_BS -> (z_BD, z_BLD): clip embeddings and those of tokens.

  Args:
    config: the run's config, or its `model` part.
    params: the linen variables.
    layer: 'final', or a block's index.

  Raises:
    ValueError: an unknown layer.
  """
  # Embeddings are float32, whatever the model trained in.
  config = embed.float32(getattr(config, 'model', config))
  embed.check_layer(config, layer, every=False)
  variables = jax.tree.map(jnp.asarray, model.encoder_variables(params))

  def run(wave_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Clip by clip, because jax 0.7.2 cannot pad an array by reflection if the
    # size of its batch is symbolic.
    mel_BMT = jax.vmap(
        lambda wave_S: audio.front(config, wave_S[None])[0])(wave_BS)
    if layer == 'final':
      z_BLD = model.encode(config, variables, mel_BMT)
    else:
      z_BLD = model.encode(config, variables, mel_BMT, layers=True)[1][layer]
    return z_BLD.mean(1), z_BLD

  return run


def save(path: files.Path, config: Any, params: Any, seconds: float = 10.,
         layer: int | str = 'final') -> pathlib.Path:
  """Writes the encoder, weights included; returns the path.

  Args:
    path: the file.
    config, params, layer: as in `encoder`.
    seconds: length of a clip. The number of clips is not fixed.

  Raises:
    ValueError: an unknown layer, a clip shorter than a token, or flatbuffers
      is missing.
  """
  samples = config_lib.crop_samples(seconds)
  if samples < embed.SHORTEST:
    raise ValueError(f'seconds {seconds:g}: expected at least .04, one token')
  need_flatbuffers(path)
  # The number of clips is symbolic: one program serves any.
  shape = export.symbolic_shape(f'b, {samples}')
  # For every platform: a file is often read on another machine.
  program = export.export(
      jax.jit(encoder(config, params, layer)), platforms=PLATFORMS)(
          jax.ShapeDtypeStruct(shape, jnp.float32))
  files.write_bytes(path, bytes(program.serialize()))
  return files.path(path)


def load(path: files.Path
         ) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns wave_BS float32 -> (z_BD, z_BLD) from a file of `save`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: another file, or one by a later jax; flatbuffers is missing.
  """
  path = files.path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  need_flatbuffers(path)
  try:
    return export.deserialize(bytearray(path.read_bytes())).call
  except Exception as error:  # flatbuffers and XLA raise errors of any type.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    raise ValueError(f'{path}: not an export that jax {jax.__version__} '
                     f'reads: {reason}') from None


def need_flatbuffers(path: files.Path) -> None:
  """Raises ValueError if the package that reads the format is missing."""
  try:
    import flatbuffers  # noqa: F401
  except ModuleNotFoundError:
    raise ValueError(f"{path}: needs flatbuffers (pip install "
                     "'audiorank[export]')") from None
