"""The interface for most uses: load, embed, fit; see audiorank/__init__.py.

Shapes: N clips, S samples, L tokens, D width.
"""

from collections.abc import Iterable
from collections.abc import Sequence
import numbers
import os
from typing import Any
from typing import NamedTuple

from ml_collections import config_dict
import numpy as np
from numpy import typing as npt
import pandas as pd
import soxr

from audiorank import audio
from audiorank import config as config_lib
from audiorank import decode
from audiorank import embed
from audiorank import encoders
from audiorank import files
from audiorank import laws
from audiorank import progress
from audiorank import records
from audiorank.analysis import study
from audiorank.laws import table
from audiorank.prepare import listing

RATE = config_lib.RATE
FILES = 256  # Files in memory at once.
HIGHEST_RATE = 10_000_000  # Hz.
# An array (samples, channels) looks like many clips of so few samples.
CHANNELS = 64

Path = str | os.PathLike[str]
Wave = npt.NDArray[Any]
Vectors = npt.NDArray[np.float32]


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
    # In parts, so that a large folder does not have to fit in memory.
    clips = listed(sounds)
    check_rate(rate)
    bar = progress.Bar(len(clips), 0, 'embedding')
    pieces = []
    for start in range(0, len(clips), FILES):
      waves = [wave(clip, rate, f'clip {start + i}')
               for i, clip in enumerate(clips[start:start + FILES])]
      pieces.append(embed.scene(self.config, self.params, waves, batch, layer))
      bar.step(len(waves))
    bar.close()
    return np.concatenate(pieces)

  def timestamps(self, sound: Path | Wave, rate: int = RATE,
                 layer: int | str = 'final') -> tuple[Vectors, Vectors]:
    """Returns (z_LD, ms_L): one embedding per 40 ms and its centre in ms.

    Args:
      sound: a sound file or one wave_S.
      rate, layer: as in `embed`.
    """
    check_rate(rate)
    wave_S = wave(sound, rate, 'the clip')
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
    ValueError: damaged or foreign weights, or the hub cannot be reached.
  """
  return Model(*encoders.weights(source, step))


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


def listed(sounds: Any) -> list[Any]:
  """Returns the argument of `Model.embed` as a list of files and waves.

  Raises:
    ValueError: nothing to embed, or an array that is not of mono waves.
  """
  if isinstance(sounds, (str, os.PathLike)):
    path = files.path(sounds)
    if not path.is_dir():
      return [path]
    # By their endings, so that a folder with covers and texts needs no
    # cleaning.
    paths: list[Any] = [p for p in files.walk(path)
                        if p.suffix.lower().lstrip('.') in listing.SOUND]
    if not paths:
      raise ValueError(f'{path}: no sound files in it')
    return paths
  if hasattr(sounds, 'ndim'):
    check_array(tuple(sounds.shape))
    if sounds.ndim == 1:
      return [sounds]
  try:
    clips = list(sounds)
  except TypeError:
    raise ValueError(f'{type(sounds).__name__}: expected a file, a folder, '
                     'waves or a list of them') from None
  if not clips:
    raise ValueError('no clips to embed')
  # A list of numbers is one wave.
  if np.isscalar(clips[0]) and not isinstance(clips[0], str):
    return [np.asarray(clips)]
  return clips


def check_rate(rate: Any) -> None:
  """Raises ValueError for a rate that no wave has; soxr would not return."""
  if not isinstance(rate, numbers.Real) or not (
      decode.LOWEST_RATE <= float(rate) <= HIGHEST_RATE):
    raise ValueError(f'rate {rate!r}: expected Hz, {decode.LOWEST_RATE} to '
                     f'{HIGHEST_RATE}')


def check_array(shape: tuple[int, ...]) -> None:
  """Raises ValueError unless a shape is that of a wave_S or wave_NS."""
  if len(shape) not in (1, 2):
    raise ValueError(f'waves of shape {shape}: expected (samples,) or '
                     '(clips, samples)')
  # soundfile.read returns (samples, channels), which would silently be taken
  # for many very short clips.
  if len(shape) == 2 and shape[1] <= CHANNELS < shape[0]:
    raise ValueError(f'waves of shape {shape}: {shape[0]} clips of {shape[1]} '
                     'samples; expected (clips, samples), of several channels '
                     'their mean')


def wave(clip: Any, rate: int, label: str) -> Wave:
  """Returns wave_S at 16 kHz, of a file or a wave.

  Args:
    clip: a path or an array.
    rate: of the array, in Hz.
    label: what messages call the array.

  Raises:
    ValueError: it is neither; names it.
  """
  if isinstance(clip, (str, os.PathLike)):
    return audio.read(clip)
  if np.ma.is_masked(clip):
    raise ValueError(f'{label}: masked samples, expected a whole wave')
  wave_S = encoders.to_numpy(clip)
  if wave_S.ndim != 1 or not wave_S.size:
    raise ValueError(f'{label}: shape {wave_S.shape}, expected (samples,)')
  if wave_S.dtype != np.int16:
    if wave_S.dtype.kind != 'f':
      raise ValueError(f'{label}: {wave_S.dtype}, expected floats in [-1, 1] '
                       'or int16')
    if not np.isfinite(wave_S).all():
      raise ValueError(f'{label}: NaN or infinity')
    # int16 values that were cast to float have a peak of thousands.
    peak = float(np.abs(wave_S).max())
    if peak > audio.PEAK:
      raise ValueError(f'{label}: a peak of {peak:.3g}, expected floats in '
                       '[-1, 1] or int16')
  # float32 for all, because a batch has one type.
  wave_S = audio.to_float(wave_S)
  if rate != RATE:
    wave_S = np.clip(soxr.resample(wave_S, rate, RATE, 'HQ'), -1, 1)
  # As prepare refuses it: silence would be most of the embedding.
  if len(wave_S) < embed.SHORTEST:
    raise ValueError(f'{label}: {len(wave_S)} samples at 16 kHz, expected at '
                     f'least {embed.SHORTEST}, one patch of 40 ms')
  return wave_S
