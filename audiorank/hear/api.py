"""The HEAR API, which hear-eval-kit and hear-validator call.

  python -m heareval.embeddings.runner audiorank.hear.api --model runs/one ...
  hear-validator audiorank.hear.api --model dasheng_base.pt

The API is that of HEAR 2021 (arXiv 2203.03022). The kit requires a
torch.nn.Module, so torch is needed, but only for a shell without weights: the
encoder runs in JAX.

Shapes: B batch, S samples, L timestamps, D width.
"""

import os
from typing import Any

import numpy as np

from audiorank import config as config_lib
from audiorank import embed
from audiorank import encoders

VARIABLE = 'AUDIORANK_CHECKPOINT'


def load_model(model_file_path: str = '', layer: str | int = 'final',
               clamp: str = 'clip') -> Any:
  """Returns a model for the two functions below.

  Args:
    model_file_path: a run's folder, its checkpoints folder or one step of it;
      an official Dasheng file (.pt, .safetensors); or a Hugging Face id
      'owner/name'. '' takes the environment's AUDIORANK_CHECKPOINT.
    layer: 'final', or a block's index.
    clamp: the range of the log-mel is that of each 'clip', or that of the
      'batch', as in the official Dasheng. With 'batch' an embedding depends on
      the other clips.

  Returns:
    a torch.nn.Module without parameters and with the attributes sample_rate,
    scene_embedding_size and timestamp_embedding_size (both D).

  Raises:
    FileNotFoundError, ValueError: no such weights, damaged ones, an unknown
      layer or clamp, neither a path nor AUDIORANK_CHECKPOINT, or no torch.
  """
  # The kit calls load_model() without a path if it has no --model.
  path = model_file_path or os.environ.get(VARIABLE, '')
  if not path:
    raise ValueError('no checkpoint: give load_model a path (--model), or set '
                     f'{VARIABLE}')
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  config, params, _ = encoders.weights(path)
  embed.check_layer(config.model, layer, every=False)
  return shell(config.model, params, layer, clamp)


def get_scene_embeddings(audio: Any, model: Any) -> Any:
  """Returns z_BD float32: the mean of each clip's tokens over time.

  Args:
    audio: tensor [B, S] in [-1, 1] at 16 kHz.
    model: from load_model.
  """
  return model.tensor(model.tokens(audio)[0].mean(1), audio)


def get_timestamp_embeddings(audio: Any, model: Any) -> Any:
  """Returns (z_BLD, ms_BL) float32: tokens of 40 ms and their centres.

  The centres are 40 l + 20 milliseconds, L = (1 + S // 160) // 4, at least 1.

  Args:
    audio: tensor [B, S] in [-1, 1] at 16 kHz.
    model: from load_model.
  """
  z_BLD, ms_BL = model.tokens(audio)
  return model.tensor(z_BLD, audio), model.tensor(ms_BL, audio)


def shell(config: Any, params: Any, layer: str | int, clamp: str) -> Any:
  """Returns a torch.nn.Module around an encoder in JAX.

  Args:
    config: the model config.
    params: linen variables.
    layer, clamp: as for load_model.

  Raises:
    ValueError: torch is not installed.
  """
  try:
    import torch
  except ModuleNotFoundError:
    raise ValueError("the HEAR API needs torch (pip install "
                     "'audiorank[torch]'); launch.evaluate does not") from None

  class Shell(torch.nn.Module):
    """A module without parameters, so that `.to(device)` moves nothing."""
    sample_rate = config_lib.RATE
    scene_embedding_size = timestamp_embedding_size = config.width

    def tokens(self, audio: Any) -> tuple[np.ndarray, np.ndarray]:
      """Returns (z_BLD, ms_BL) of a tensor or array [B, S]."""
      if torch.is_tensor(audio):
        audio = audio.detach().cpu().numpy()
      if audio.ndim != 2 or not audio.size:
        raise ValueError(f'audio of shape {tuple(audio.shape)}, expected '
                         '(clips, samples)')
      # The kit passes clips of every length that a task has. Padding them to a
      # few lengths avoids a compilation for each.
      return embed.timestamps(config, params, audio.astype(np.float32), layer,
                              clamp, fill=True)

    def tensor(self, x: np.ndarray, like: Any) -> Any:
      """Returns x as a tensor on the device of `like`, if it is a tensor."""
      # A copy: torch warns of memory that cannot be written.
      y = torch.from_numpy(np.array(x))
      if torch.is_tensor(like):
        return y.to(like.device)
      return y

  return Shell().eval()
