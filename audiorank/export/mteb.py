"""An encoder that MTEB evaluates as it is, on its audio tasks (MAEB).

  import mteb
  from audiorank.export import mteb as export
  mteb.evaluate(export.encoder('hf:facebook/wav2vec2-base'),
                mteb.get_tasks(['ESC50']))

The checkpoint is what launch.evaluate takes. MTEB's own encoders resample with
torchaudio; here clips are resampled with soxr, as for all other scores.

Shapes: N clips, S samples, D width.
"""

from collections.abc import Iterable
import re
from typing import Any

import numpy as np

from audiorank import encoders
from audiorank import sounds


def encoder(path: str, layer: str | int = 'final', batch: int = 64) -> Any:
  """Returns an encoder with the interface of mteb 2 (EncoderProtocol).

  Args:
    path: as launch.evaluate --checkpoint, hf:NAME included.
    layer: 'final' or a block's index.
    batch: clips encoded at once; MTEB's own batches are smaller.

  Raises:
    ValueError: no mteb, or as encoders.opened.
  """
  try:
    from mteb.models import abs_encoder
    from mteb.models import model_meta
  except ModuleNotFoundError as error:
    raise ValueError(f"needs {error.name} (pip install 'audiorank[mteb]')"
                     ) from None
  model = encoders.opened(path, layer=layer, batch=batch)

  class Audiorank(abs_encoder.AbsEncoder):  # type: ignore[misc]
    """Embeds the clips of an audio task of MTEB."""

    def __init__(self) -> None:
      self.mteb_model_meta = meta(model_meta.ModelMeta, path, model)

    def encode(self, inputs: Iterable[Any], **_: Any) -> np.ndarray:
      """Returns z_ND of the clips of a DataLoader, in its order."""
      waves = [wave(clip, model.rate) for batch in inputs
               for clip in batch['audio']]
      return model.scene(waves)

  return Audiorank()


def wave(clip: Any, rate: int) -> np.ndarray:
  """Returns wave_S of a clip of MTEB: a mapping of array and sampling_rate."""
  x = np.asarray(clip['array'], np.float32)
  # (channels, samples), as torchcodec and torchaudio decode.
  if x.ndim == 2:
    x = x.mean(0)
  return sounds.wave(x, int(clip['sampling_rate']), 'a clip', rate)


def meta(kind: Any, path: str, model: encoders.Encoder) -> Any:
  """Returns the description of a model by which MTEB files its results.

  Args:
    kind: mteb's class ModelMeta.
    path: of the checkpoint.
    model: its Encoder.
  """
  about = model.about
  # Results are filed under owner/name and revision.
  name = re.sub(r'[^\w.-]+', '-', path.removeprefix('hf:')).strip('-')
  return kind.create_empty({
      'name': f'audiorank/{name}-{about["layer"]}', 'modalities': ['audio'],
      'revision': str(about.get('revision') or about['weights']),
      'embed_dim': model.width, 'n_parameters': about.get('parameters'),
      'similarity_fn_name': 'cosine', 'framework': []})
