"""The interface for most uses: load, embed, fit; see audiorank/__init__.py.

Shapes: N clips, S samples, L tokens, D width.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple

from ml_collections import config_dict
import numpy as np
import pandas as pd

from audiorank import config as config_lib
from audiorank import embed
from audiorank import encoders
from audiorank import files
from audiorank import hub
from audiorank import laws
from audiorank import records
from audiorank import sounds as sounds_lib
from audiorank.analysis import study
from audiorank.laws import table

RATE = config_lib.RATE

Path = sounds_lib.Path
Wave = sounds_lib.Wave
Vectors = sounds_lib.Vectors


class Model(NamedTuple):
  """An encoder in memory."""
  config: config_dict.FrozenConfigDict  # config.model describes the encoder.
  params: dict[str, Any]  # Linen variables, numpy.
  about: dict[str, Any]  # Kind, checkpoint, step and a digest of the weights.

  def embed(self, sounds: Path | Wave | Iterable[Path | Wave],
            rate: int = RATE, layer: int | str = 'final',
            batch: int = 64) -> Vectors:
    """Returns z_ND: per clip, the mean of its tokens over time.

    Args:
      sounds: a sound file, a folder of them (searched to any depth, in the
        order of their names), one wave_S, waves wave_NS, or a list of files
        or waves of any lengths. Waves are mono, float in [-1, 1] or int16.
      rate: of the waves, in Hz. Files have their own.
      layer: 'final', or a block's index.
      batch: clips encoded at once.

    Raises:
      FileNotFoundError, ValueError: nothing to embed, a clip that is no
        sound, an unknown layer; names the file or the clip.
    """
    return sounds_lib.embedded(sounds, rate, lambda waves: embed.scene(
        self.config, self.params, waves, batch, layer))

  def timestamps(self, sound: Path | Wave, rate: int = RATE,
                 layer: int | str = 'final') -> tuple[Vectors, Vectors]:
    """Returns (z_LD, ms_L): one embedding per 40 ms and its centre in ms.

    Args:
      sound: a sound file or one wave_S.
      rate, layer: as in `embed`.
    """
    sounds_lib.check_rate(rate)
    wave_S = sounds_lib.wave(sound, rate, 'the clip')
    z_BLD, ms_BL = embed.timestamps(self.config, self.params, wave_S[None],
                                    layer)
    return z_BLD[0], np.array(ms_BL[0])

  def save_pretrained(self, folder: Path, decoder: bool = False) -> None:
    """Writes the model in the layout of the Hugging Face hub, with a card.

    The files are model.safetensors, config.json, preprocessor_config.json and
    README.md. `audiorank.load(folder)` reads them back.

    Args:
      folder: a new one, or one that this method wrote before.
      decoder: also write the decoder, which only further training needs.

    Raises:
      ValueError: the folder has other files, or safetensors is not installed.
    """
    # Imported here, because loading and embedding do not need it.
    from audiorank import export
    export.save_pretrained(folder, self.config, self.params, self.about,
                           decoder)


def load(source: Path, step: int | None = None) -> Model:
  """Returns the Model of a checkpoint.

  Args:
    source: a run's folder, its checkpoints folder or one step; an official
      Dasheng file (.pt, .safetensors); a folder that `save_pretrained` wrote;
      or a Hugging Face id 'owner/name', where nothing of that name lies on
      disk.
    step: of a run; None takes the newest.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: damaged or foreign weights, or the hub cannot be reached; or
      'hf:NAME', for which there is `encoder`.
  """
  if str(source).startswith(hub.PREFIX):
    raise ValueError(f'{source}: a model of another library: use '
                     'audiorank.encoder, which takes any')
  return Model(*encoders.weights(source, step))


def encoder(source: Path, step: int | None = None, layer: int | str = 'final',
            batch: int = 64) -> encoders.Encoder:
  """Returns the Encoder of any model by its name; it embeds sounds.

  Args:
    source: as for `load`, on a disk or on gs://; or 'hf:NAME', a model of the
      transformers library (audiorank/families.py lists them).
    step: of a run; None takes the newest.
    layer: 'final', a block's index, or 'all', whose embeddings are
      {layer: z_ND} from one pass.
    batch: clips encoded at once.

  Raises:
    FileNotFoundError, ValueError: as `load`; no audio encoder, an unknown
      layer, a missing library.
  """
  return encoders.opened(source, step, batch, layer)


def fit(data: Any, law: str = 'saturating',
        x: str | Sequence[str] | None = None, y: str | None = None,
        loss: str = 'ls', groups: Any = None) -> laws.Fit:
  """Fits a law; returns a laws.Fit, with `ci` and `predict`.

  Args:
    data: named columns (a DataFrame, a dictionary), a .csv or .parquet of
      them, or a sweep's folder. Of a sweep, the runs above their untrained
      network are used.
    law: a form of audiorank/laws, such as 'saturating', 'power', 'separable'.
    x, y: columns; None takes the form's own, 'rank' and 'score' for
      'saturating'.
    loss: see laws.fit.
    groups: independent groups of rows for the intervals: a column's name, or a
      label per row.

  Raises:
    FileNotFoundError, ValueError: no such file or law; columns that are
      missing, constant or not numbers; a sweep that allows no law, and why.
  """
  if isinstance(data, (str, os.PathLike)):
    if files.path(data).is_dir():
      data = beating(data)
      # Runs that differ by seed only are not independent.
      if groups is None:
        groups = data['configuration']
    else:
      data = table.read(data)
  return laws.fit(law, data, loss=loss, groups=groups, x=x, y=y)


def beating(root: Path) -> pd.DataFrame:
  """Returns the runs of a sweep that score above their untrained network.

  Raises:
    FileNotFoundError: there are no runs under the root.
    ValueError: none of them does.
  """
  if not records.run_folders(root):
    raise FileNotFoundError(f'{root}: no runs: expected <run_id>/config.json '
                            'in it')
  beat = study.above_baseline(study.read(records.tables(root)).trained)
  if not len(beat):
    raise ValueError(f'{root}: no run scores above its untrained network, so '
                     'there is no law to fit')
  return beat
