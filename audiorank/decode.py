"""Reads sound files as mono waves at one rate, and writes waves to files.

This module does not import jax, so that the processes that prepare a corpus
start quickly. `audio` offers the same names.

Shapes: C channels, S samples.
"""

from collections.abc import Iterator
import contextlib
import io
import os
import stat
from typing import Any
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from audiorank import config as config_lib
from audiorank import containers
from audiorank import files

# Frames times channels decoded at a time: bounds the memory of `blocks`.
BLOCK = 2**18
# A float file may exceed full scale a little (codecs, mastering). Beyond this
# it was written in another unit, such as int16 values, and cannot be scaled.
PEAK = 4.0
# Lower rates carry no audible sound. And a damaged header that says 1 Hz would
# turn a second into hours.
LOWEST_RATE = 1000
# The samples that these decoders return depend on where decoding began.
LOSSY = frozenset(('OGG', 'MP3', 'MPEG'))


class Decoder(soundfile.SoundFile):
  """A sound file that continues where its last read ended.

  soundfile itself seeks there after every read. For an MP3 this loses the bits
  that a frame has in earlier frames: tens of milliseconds after each block
  would be wrong, by up to a third of full scale. Only `seek` seeks here.
  """

  def seekable(self) -> bool:
    return False  # So that soundfile does not.

  def read(self, frames: int, *args: Any, **kwargs: Any) -> np.ndarray:
    # Beyond the end a decoder takes what follows for more of the sound.
    if super().seekable():
      frames = min(frames, max(self.frames - self.tell(), 0))
    return super().read(frames, *args, **kwargs)


def read(path: Any, rate: int = config_lib.RATE) -> np.ndarray:
  """Reads a sound file as one mono wave.

  Channels are averaged, other rates are resampled with soxr (HQ), and values
  beyond full scale are clipped.

  Args:
    path: a path (local, or gs://), an open binary file
      object, or the file's bytes.
    rate: samples per second wanted.

  Returns:
    wave_S: float32 in [-1, 1].

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file cannot be decoded, is cut off or of several parts,
      has no samples or an absurd rate, holds NaN or Inf, or exceeds `PEAK`
      times full scale; the message begins with its name.
  """
  parts = list(blocks(path, rate))
  if not parts:  # `blocks` yields no empty parts.
    raise ValueError(f'{name(path)}: empty: no samples')
  return np.concatenate(parts)


def blocks(path: Any, rate: int = config_lib.RATE,
           max_seconds: float = float('inf'), about: dict | None = None
           ) -> Iterator[np.ndarray]:
  """Yields a file's mono wave in pieces; `read` returns their concatenation.

  Memory stays bounded whatever the length. Arguments and errors are those of
  `read`, with two exceptions. A file without samples yields nothing. One longer
  than `max_seconds` raises ValueError after that many seconds: the length in
  headers is not trusted. After the file's name, each message gives the reason
  up to its next colon: not a regular file, undecodable, cut off, several parts,
  absurd rate, non-finite, wrong magnitude, too long.

  Args:
    path, rate: as for `read`.
    max_seconds: longest sound that is read.
    about: a dictionary to be filled with 'format', the detected format;
      'seconds', decoded so far; 'rate' and 'channels', the file's own; 'lossy',
      whether the samples depend on where decoding begins; 'mended', whether
      the header was replaced so that the whole file could be read.
  """
  label = name(path)
  if about is None:  # Not `or`: the caller's dictionary is empty too.
    about = {}
  with contextlib.ExitStack() as stack:
    source, file = _opened(path, label, stack)
    try:
      sound = containers.inspect(file)
    except ValueError as error:
      raise ValueError(f'{label}: {error}') from error
    about['format'] = sound.form
    if sound.file is not None:
      source = sound.file
    elif source is file:
      file.seek(0)
    try:
      decoder = stack.enter_context(Decoder(source))
    except (RuntimeError, TypeError) as error:
      raise _undecodable(label, error) from error
    about.update(
        format=sound.form or decoder.format.lower(), rate=decoder.samplerate,
        channels=decoder.channels, lossy=decoder.format in LOSSY,
        mended=sound.file is not None)
    yield from _decode(decoder, label, rate, max_seconds, sound, about)


def _opened(path: Any, label: str, stack: contextlib.ExitStack) -> tuple[
    Any, BinaryIO]:
  """Returns (what libsndfile opens, the same as an open file)."""
  if isinstance(path, (bytes, bytearray, memoryview)):
    file = io.BytesIO(path)
    return file, file
  if hasattr(path, 'read'):
    return path, path
  path = os.fspath(path)
  if '://' in path:
    file = io.BytesIO(files.path(path).read_bytes())
    return file, file
  if not os.path.exists(path):
    raise FileNotFoundError(f'{label}: no such file')
  # Opening a pipe would wait for somebody to write to it.
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise ValueError(f'{label}: not a regular file')
  return os.fsencode(path), stack.enter_context(open(path, 'rb'))


def _decode(file, label, rate, max_seconds, sound, about):
  """Yields the checked mono wave of an open SoundFile; see `blocks`."""
  if file.samplerate < LOWEST_RATE:
    raise ValueError(f'{label}: absurd rate: {file.samplerate} Hz, expected at '
                     f'least {LOWEST_RATE}')
  resampler = None
  if file.samplerate != rate:
    resampler = soxr.ResampleStream(
        file.samplerate, rate, 1, dtype='float32', quality='HQ')
  # A low rate grows when it is resampled, which BLOCK bounds as well.
  frames = max(1, BLOCK // max(file.channels, -(-rate // file.samplerate)))
  done = 0  # Frames decoded.
  while True:
    try:
      block_SC = file.read(frames, dtype='float32', always_2d=True)
    except RuntimeError as error:
      if sound.torn:
        raise ValueError(f'{label}: cut off: the decoder stops behind '
                         f'{done / file.samplerate:.3f} s') from error
      raise _undecodable(label, error) from error
    if not np.isfinite(block_SC).all():
      raise ValueError(f'{label}: non-finite: NaN or Inf near sample {done}')
    peak = np.abs(block_SC).max(initial=0)
    if peak > PEAK:
      raise ValueError(f'{label}: wrong magnitude: a peak of {peak:.3g} near '
                       f'sample {done}, full scale is 1')
    done += len(block_SC)
    about['seconds'] = done / file.samplerate
    if done > max_seconds * file.samplerate:
      raise ValueError(f'{label}: too long: more than {max_seconds:g} s')
    # libsndfile returns fewer frames only at the end. Then the container is
    # asked whether that is where its header says it ends.
    last = len(block_SC) < frames
    if last:
      try:
        containers.check(sound, done, file.frames, file.samplerate)
      except ValueError as error:
        raise ValueError(f'{label}: {error}') from error
    wave_S = block_SC.mean(1)
    if resampler is not None and done:
      wave_S = resampler.resample_chunk(wave_S, last=last)
    if wave_S.size:
      yield np.clip(wave_S, -1, 1)
    if last:
      return


def _undecodable(label, error):
  # The error's own text would name the file object, with its address.
  why = getattr(error, 'error_string', str(error)).strip().rstrip('.')
  return ValueError(f'{label}: undecodable: {why}')


def name(path: Any) -> str:
  """Returns how messages name an input of `read`."""
  if isinstance(path, (bytes, bytearray, memoryview)):
    return f'<{len(path)} bytes>'
  if hasattr(path, 'read'):
    return str(getattr(path, 'name', '<file object>'))
  return str(path)


def write(path: str | os.PathLike, wave_S: np.ndarray, rate: int,
          form: str = 'WAV') -> None:
  """Writes a wave as a 16-bit sound file, whole or not at all.

  Args:
    path: the file.
    wave_S: int16, or float in [-1, 1].
    rate: samples per second.
    form: libsndfile's name of the format: WAV, FLAC.

  Raises:
    OSError: it cannot be written; names the file and the cause.
  """
  # Encoded in memory, because libsndfile reports a full disk in obscure words.
  data = io.BytesIO()
  soundfile.write(data, wave_S, rate, format=form, subtype='PCM_16')
  # Without fsync, which is slow: these sounds can be generated again.
  files.write_bytes(path, data.getvalue(), sync=False)


def to_float(wave_S: Any) -> Any:
  """Returns a wave (numpy or jax, any shape) as float32 in [-1, 1].

  Args:
    wave_S: int16, or floats, which keep their values.
  """
  if np.issubdtype(wave_S.dtype, np.integer):
    return wave_S.astype(np.float32) / 32768
  return wave_S.astype(np.float32)


def to_int16(wave_S: np.ndarray) -> np.ndarray:
  """Rounds a float wave in [-1, 1] to int16; 16-bit sources come back exact."""
  return np.clip(np.rint(wave_S * np.float32(32768)), -32768, 32767).astype(
      np.int16)
