"""Sounds as a caller passes them: files, folders, arrays, lists of these.

Shapes: N clips, S samples, D width.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import numbers
import os
from typing import Any

import numpy as np
from numpy import typing as npt
import soxr

from audiorank import audio
from audiorank import config as config_lib
from audiorank import decode
from audiorank import embed
from audiorank import files
from audiorank import progress
from audiorank.prepare import listing

RATE = config_lib.RATE
FILES = 256  # Files in memory at once.
HIGHEST_RATE = 10_000_000  # Hz.
# An array (samples, channels) looks like many clips of so few samples.
CHANNELS = 64

Path = str | os.PathLike[str]
Wave = npt.NDArray[Any]
Vectors = npt.NDArray[np.float32]
Sounds = Path | Wave | Iterable[Path | Wave]


def embedded(sounds: Sounds, rate: int, encode: Callable[..., Any],
             wanted: int = RATE) -> Any:
  """Returns the embeddings of sounds, encoded in parts with a progress bar.

  Args:
    sounds: see `Model.embed`.
    rate: of arrays, in Hz; files have their own.
    encode: a list of wave_S at the model's rate -> z_ND, or {layer: z_ND}.
    wanted: rate of the model, in Hz.

  Raises:
    FileNotFoundError, ValueError: nothing to embed, or a clip that is no
      sound; names the file or the clip.
  """
  # In parts, so that a large folder does not have to fit in memory.
  clips = listed(sounds)
  check_rate(rate)
  bar = progress.Bar(len(clips), 0, 'embedding')
  pieces = []
  for start in range(0, len(clips), FILES):
    waves = [wave(clip, rate, f'clip {start + i}', wanted)
             for i, clip in enumerate(clips[start:start + FILES])]
    pieces.append(encode(waves))
    bar.step(len(waves))
  bar.close()
  return joined(pieces)


def joined(pieces: Sequence[Any]) -> Any:
  """Returns the embeddings of parts as one array, or one for each layer."""
  if isinstance(pieces[0], dict):
    return {layer: np.concatenate([piece[layer] for piece in pieces])
            for layer in pieces[0]}
  return np.concatenate(pieces)


def listed(sounds: Any) -> list[Any]:
  """Returns what a caller passes to `embed` as a list of files and waves.

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


def wave(clip: Any, rate: int, label: str, wanted: int = RATE) -> Wave:
  """Returns wave_S at the rate of a model, of a file or a wave.

  Args:
    clip: a path or an array.
    rate: of the array, in Hz.
    label: what messages call the array.
    wanted: rate of the model, in Hz.

  Raises:
    ValueError: it is neither; names it.
  """
  if isinstance(clip, (str, os.PathLike)):
    return audio.read(clip, wanted)
  if np.ma.is_masked(clip):
    raise ValueError(f'{label}: masked samples, expected a whole wave')
  if hasattr(clip, 'detach'):  # A tensor, which may need gradients.
    clip = clip.detach().cpu()
  wave_S = np.asarray(clip)
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
  if rate != wanted:
    wave_S = np.clip(soxr.resample(wave_S, rate, wanted, 'HQ'), -1, 1)
  # As prepare refuses it: silence would be most of the embedding.
  shortest = embed.SHORTEST * wanted // RATE
  if len(wave_S) < shortest:
    raise ValueError(f'{label}: {len(wave_S)} samples at '
                     f'{wanted / 1000:g} kHz, '
                     f'expected at least {shortest}, one patch of 40 ms')
  return wave_S
