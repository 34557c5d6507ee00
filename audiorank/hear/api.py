"""audiorank as a HEAR model: what hear-eval-kit and hear-validator call.

  python -m heareval.embeddings.runner audiorank.hear.api --model runs/one ...
  hear-validator audiorank.hear.api --model dasheng_base.pt

The API is HEAR 2021's (arXiv 2203.03022). The kit wants a torch.nn.Module, so
torch is needed, for a shell that holds no weights: the encoder runs in JAX.

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
      'owner/name'. Without it the environment's AUDIORANK_CHECKPOINT, since
      the kit calls load_model() where it is given no --model.
    layer: 'final', or a block's index.
    clamp: 'clip', each clip's own range of the log-mel, or 'batch', the
      official Dasheng's, with which embeddings depend on batch-mates.

  Returns:
    a torch.nn.Module without parameters and with the attributes sample_rate,
    scene_embedding_size and timestamp_embedding_size (both D).

  Raises:
    FileNotFoundError, ValueError: no such weights, damaged ones, an unknown
      layer or clamp, neither a path nor AUDIORANK_CHECKPOINT, or no torch.
  """
  path = model_file_path or os.environ.get(VARIABLE, '')
  if not path:
    raise ValueError('no checkpoint: give load_model a path (--model), or set '
                     f'{VARIABLE}')
  if clamp not in ('clip', 'batch'):
    raise ValueError(f"clamp {clamp!r}: expected 'clip' or 'batch'")
  config, params, _ = encoders.weights(path)
  embed.check_layer(config.model, layer)
  return shell(config.model, params, layer, clamp)


def get_scene_embeddings(audio: Any, model: Any) -> Any:
  """Returns z_BD float32: the time mean of each clip's tokens.

  Args:
    audio: tensor [B, S] in [-1, 1] at 16 kHz.
    model: of load_model.
  """
  return model.tensor(model.tokens(audio)[0].mean(1), audio)


def get_timestamp_embeddings(audio: Any, model: Any) -> Any:
  """Returns (z_BLD, ms_BL) float32: tokens of 40 ms and their centres.

  The centres are 40 l + 20 milliseconds, L = (1 + S // 160) // 4, at least 1.

  Args:
    audio: tensor [B, S] in [-1, 1] at 16 kHz.
    model: of load_model.
  """
  z_BLD, ms_BL = model.tokens(audio)
  return model.tensor(z_BLD, audio), model.tensor(ms_BL, audio)


def shell(config: Any, params: Any, layer: str | int, clamp: str) -> Any:
  """Returns the torch.nn.Module that the kit demands.

  Raises:
    ValueError: there is no torch.
  """
  try:
    import torch
  except ModuleNotFoundError:
    raise ValueError("the HEAR API needs torch (pip install "
                     "'audiorank[torch]'); launch.evaluate does not") from None

  class Shell(torch.nn.Module):
    """No parameters: `.to(device)` finds nothing to move."""
    sample_rate = config_lib.RATE
    scene_embedding_size = timestamp_embedding_size = config.width

    def tokens(self, audio):
      """(z_BLD, ms_BL) as numpy of a tensor or array [B, S]."""
      if torch.is_tensor(audio):
        audio = audio.detach().cpu().numpy()
      if audio.ndim != 2 or not audio.size:
        raise ValueError(f'audio of shape {tuple(audio.shape)}, expected '
                         '(clips, samples)')
      # The kit brings every length that a task has.
      return embed.timestamps(config, params, audio.astype(np.float32), layer,
                              clamp, fill=True)

    def tensor(self, x, like):
      """x as a tensor where `like` is, on the CPU for an array."""
      y = torch.from_numpy(np.array(x))
      return y.to(like.device) if torch.is_tensor(like) else y

  return Shell().eval()
