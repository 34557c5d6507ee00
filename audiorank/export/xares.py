"""An encoder that the X-ARES benchmark imports as it is.

  AUDIORANK_CHECKPOINT=runs/one \\
      python -m xares.run audiorank/export/xares.py src/tasks/*.py

xares takes the one name of a file that ends with 'Encoder', and calls it. The
checkpoint is what launch.evaluate takes, hf:NAME included; another layer is
AUDIORANK_LAYER. The encoder runs in JAX (hf: models in torch); the module that
xares sees has no parameters.

Shapes: B batch, S samples, L tokens, D width.
"""

import os
from typing import Any

import numpy as np

VARIABLE, LAYER = 'AUDIORANK_CHECKPOINT', 'AUDIORANK_LAYER'


def encoder(path: str = '', layer: str | int = '') -> Any:
  """Returns a torch.nn.Module with the interface of xares 0.1.

  That is sampling_rate (Hz), output_dim, hop_size_in_ms, and a call with a
  tensor [B, S] in [-1, 1] that returns tokens [B, L, D].

  Args:
    path: as launch.evaluate --checkpoint; '' takes the environment's
      AUDIORANK_CHECKPOINT.
    layer: 'final' or a block's index; '' takes AUDIORANK_LAYER, or 'final'.

  Raises:
    ValueError: neither a path nor AUDIORANK_CHECKPOINT, no torch, or as
      encoders.ours and encoders.by_name.
  """
  from audiorank import encoders
  path = path or os.environ.get(VARIABLE, '')
  if not path:
    raise ValueError(f'no checkpoint: set {VARIABLE}')
  try:
    import torch
  except ModuleNotFoundError:
    raise ValueError("X-ARES needs torch (pip install 'audiorank[torch]')"
                     ) from None
  layer = layer or os.environ.get(LAYER, 'final')
  # A number is a block; 'final' stays text.
  if isinstance(layer, str) and layer.isdecimal():
    layer = int(layer)
  model = encoders.opened(path, layer=layer)
  # The step of the tokens, of a clip long enough for several.
  _, ms_BL = model.timestamps(np.zeros((1, 4 * model.rate), np.float32))
  hop = float(np.diff(ms_BL[0]).mean())

  class Audiorank(torch.nn.Module):
    """A module without parameters, so that `.to(device)` moves nothing."""
    sampling_rate = model.rate
    output_dim = int(model.about['width'])
    hop_size_in_ms = hop

    def forward(self, audio: Any) -> Any:
      """Returns tokens [B, L, D] of a tensor [B, S]."""
      wave_BS = audio.detach().cpu().numpy().astype(np.float32)
      # A single clip may come without an axis of clips.
      z_BLD, _ = model.timestamps(np.atleast_2d(wave_BS))
      # A copy: torch warns of memory that cannot be written.
      return torch.from_numpy(np.array(z_BLD)).to(audio.device)

  Audiorank.__name__ = 'AudiorankEncoder'  # xares asks for this ending.
  return Audiorank().eval()


AudiorankEncoder = encoder
