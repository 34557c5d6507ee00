"""Exports an encoder as a file for the official PyTorch Dasheng.

`dasheng.pretrained.pretrained.Dasheng.from_pretrained(path)` of the official
package loads it, and so does `audiorank.load(path)`.
"""

import io
import pathlib
from typing import Any

import numpy as np

from audiorank import dasheng
from audiorank import files
from audiorank.export import pretrained


def save(path: files.Path, config: Any, params: pretrained.Params
         ) -> pathlib.Path:
  """Writes {"model": state, "config": arguments}; returns the path.

  Args:
    path: the file, .pt.
    config: the run's config, or its `model` part.
    params: the linen variables; a decoder is left out.

  Raises:
    ValueError: arrays that do not fit the config, or torch is missing.
  """
  try:
    import torch
  except ModuleNotFoundError:
    raise ValueError(f"{path}: needs torch (pip install "
                     "'audiorank[torch]')") from None
  state = dasheng.to_state_dict(config, pretrained.encoder_alone(params))
  dump = {'model': {name: torch.from_numpy(np.array(x))
                    for name, x in state.items()},
          'config': pretrained.official(getattr(config, 'model', config))}
  # In memory first: of a full disk torch raises an error without the cause.
  data = io.BytesIO()
  torch.save(dump, data)
  files.write_bytes(path, data.getvalue())
  return files.path(path)
