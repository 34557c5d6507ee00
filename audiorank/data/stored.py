"""Samples of a record out of whatever holds it: a sound file, tar, parquet.

A record is a piece of a sound file: from sample `begin` of it, at the rate of
the corpus. What is read for a crop of it does not depend on the crop: formats
that seek exactly (FLAC, WAV, ...) are read from the crop on; those whose
decoders need what came before (Opus, Vorbis, MP3) from the record's beginning;
and what has to be resampled is, record by record, always as a whole.

Shapes: C channels, S samples.
"""

import io
import math
import os
import struct
from typing import Any
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from audiorank import containers
from audiorank import decode
from audiorank.data import parquet

# Beside what is resampled, at its own rate: longer than soxr's filter.
MARGIN = 8192
# A file of at most so many bytes a sample wanted is read at once.
WHOLE = 4
BUFFER = 2**14  # Bytes read ahead in other files.
MEND = 'mend'  # Of an address: the file needs a header of containers.inspect.


class Address(NamedTuple):
  """Where a sound file lies.

  path: what to call it.  offset, size: of its bytes there; a size of
    0 is all there are.  inner: MEND or '', and of parquet the place in it.
  """
  path: str
  offset: int
  size: int
  inner: str


class Handle:
  """An open file that threads share, closed when nobody holds it."""

  def __init__(self, path: str):
    self.fd = os.open(path, os.O_RDONLY)
    self.size = os.fstat(self.fd).st_size

  def __del__(self, close=os.close):
    # Not there where it could not be opened; os may be gone at the very end.
    if hasattr(self, 'fd'):
      close(self.fd)


class Region(io.RawIOBase):
  """Some bytes of a file, read in place, as a file of their own."""

  def __init__(self, handle: Handle, name: str, begin: int, size: int):
    super().__init__()
    self.name, self.failed = name, None
    self._handle, self._begin, self._size, self._at = handle, begin, size, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = 0) -> int:
    self._at = max(0, (0, self._at, self._size)[whence] + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer) -> int:
    want = max(0, min(len(buffer), self._size - self._at))
    try:
      count = os.preadv(self._handle.fd, [memoryview(buffer)[:want]],
                        self._begin + self._at)
    # libsndfile cannot hear of it: the caller looks at `failed`.
    except OSError as error:
      self.failed = error.strerror
      return 0
    self._at += count
    return count


def opened(handle: Handle, address: Address, last: dict) -> Any:
  """Returns a sound file within an open one, as a file.

  Args:
    handle: the file of address.path.
    address: which bytes of it.
    last: a dictionary of this file's, empty at first; see parquet.read.

  Raises:
    ValueError: there is none.
  """
  if ':' in address.inner:
    whole = Region(handle, address.path, 0, handle.size)
    try:
      if address.inner.startswith(parquet.SPAN):
        data = parquet.read_span(whole, address.offset, address.size,
                                 address.inner)
      else:
        data = parquet.read(
            whole, parquet.place(address.offset, address.inner), last)
    except (IndexError, struct.error) as error:
      raise ValueError(f'unreadable: {error}') from error
    if whole.failed:
      raise ValueError(f'unreadable: {whole.failed}')
    if data is None:
      raise ValueError('unreadable: no bytes in this row')
    return io.BytesIO(data)
  size = address.size or handle.size - address.offset
  return Region(handle, address.path, address.offset, size)


def span(handle: Handle, address: Address, last: dict) -> parquet.Span:
  """Returns the bytes of parquet that hold a sound file, to be read alone."""
  return parquet.locate(
      Region(handle, address.path, 0, handle.size),
      parquet.place(address.offset, address.inner), last)


def piece(source: Any, begin: int, length: int, start: int, samples: int,
          rate: int) -> np.ndarray:
  """Returns samples of a record, wave_S int16.

  Args:
    source: a sound file, open, or its path as bytes.
    begin: first sample of the record in it, at `rate`.
    length: samples of the record.
    start: first sample wanted, in the record.
    samples: how many at the most.
    rate: samples per second.

  Raises:
    ValueError: it cannot be decoded.
  """
  samples = min(samples, length - start)
  try:
    with soundfile.SoundFile(source) as file:
      if file.samplerate != rate:
        wave_S = _resampled(file, begin, length, rate)[start:start + samples]
      elif file.format in decode.LOSSY:
        _seek(file, begin)
        wave_S = _mono(file, start + samples)[start:]
      else:
        _seek(file, begin + start)
        wave_S = _mono(file, samples)
  except (RuntimeError, TypeError) as error:
    why = getattr(error, 'error_string', str(error)).strip().rstrip('.')
    raise ValueError(f'undecodable: {why}') from error
  if len(wave_S) < samples:
    raise ValueError(f'cut off: {len(wave_S)} of {samples} samples from '
                     f'{begin + start}')
  return wave_S


def _seek(file: soundfile.SoundFile, frame: int) -> None:
  # libsndfile decodes to find a place, even the one where it is.
  if frame:
    file.seek(frame)


def _mono(file: soundfile.SoundFile, frames: int) -> np.ndarray:
  """Returns the next samples, int16, rounded as `prepare` does."""
  if file.channels == 1 and file.subtype == 'PCM_16':
    return file.read(frames, dtype='int16')
  wave_SC = file.read(frames, dtype='float32', always_2d=True)
  return decode.to_int16(np.clip(wave_SC.mean(1), -1, 1))


def _resampled(file: soundfile.SoundFile, begin: int, length: int,
               rate: int) -> np.ndarray:
  """Returns a record that is stored at another rate, int16."""
  # A window that begins where a sample of either rate does.
  step = math.gcd(file.samplerate, rate)
  own, ours = file.samplerate // step, rate // step
  first = max(0, begin // ours - MARGIN // own - 1)
  last = -(-(begin + length) // ours) + MARGIN // own + 1
  file.seek(min(first * own, max(file.frames, 0)))
  wave_SC = file.read((last - first) * own, dtype='float32', always_2d=True)
  wave_S = soxr.resample(wave_SC.mean(1), file.samplerate, rate, quality='HQ')
  inner = begin - first * ours
  return decode.to_int16(np.clip(wave_S[inner:inner + length], -1, 1))


def buffered(source: Any, samples: int) -> Any:
  """Returns a sound file that is quick to read for so many samples.

  Many small reads of a Region are slow: a short file is read at once, of a
  longer one a little more than libsndfile asks for.
  """
  if not isinstance(source, Region):
    return source
  size = source.seek(0, io.SEEK_END)
  source.seek(0)
  if size <= WHOLE * samples:
    return io.BytesIO(source.read(size))  # At once, not block by block.
  return io.BufferedReader(source, BUFFER)


def mended(source: Any) -> Any:
  """Returns a sound file as libsndfile can read it whole."""
  sound = containers.inspect(source)
  if sound.file is not None:
    return sound.file
  source.seek(0)
  return source
