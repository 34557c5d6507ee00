"""Reads samples of a record from a sound file, a tar or a parquet file.

A record is a part of a sound file, from sample `begin` on, at the rate of the
corpus. Its samples must not depend on which crop is read. Formats that seek
exactly (FLAC, WAV, ...) are read from the crop on. The samples of the others
(Opus, Vorbis, MP3) depend on where decoding began, and those of a file at
another rate on where resampling began. Such a record consists of chunks of 10
seconds, each of which is decoded by itself, from a little before it on. So a
crop of a long record costs as much as the chunks that it touches.

Shapes: C channels, S samples.
"""

import functools
import io
import math
import os
import struct
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

import numpy as np
import soxr

from audiorank import containers
from audiorank import decode
from audiorank import files
from audiorank.data import mp3
from audiorank.data import parquet

# Samples that are resampled on both sides of a record: longer than soxr's
# filter, so that the record's own samples do not depend on the edges.
MARGIN = 8192
# Seconds of a chunk. Longer ones would waste more at both ends of a crop.
CHUNK = 10.
# Seconds that are decoded before a chunk and dropped, until the decoder has
# forgotten where it began: 13 frames of any MP3 (see mp3.py), and more than the
# 80 ms of RFC 7845, 4.6 (Opus).
LEAD = .6
# A file of at most so many bytes per wanted sample is read at once.
WHOLE = 4
BUFFER = 2**14  # Bytes read ahead in other files,
AHEAD = 2**20  # and in those on a bucket, where each read is a request.
AT_ONCE = 2**23  # Bytes up to which a sound on a bucket is read at once.
# In an address: the file needs the corrected header of containers.inspect.
MEND = 'mend'


class Address(NamedTuple):
  """The place of a sound file within another file."""
  path: str  # Its name, for messages.
  offset: int  # First byte.
  size: int  # Bytes; 0 for all up to the end.
  # MEND or '', and for parquet the place in it, for an MP3 its mp3.Chunks.
  inner: str


class Handle:
  """An open file that threads share. It is closed with its last reference.

  Attributes:
    remote: whether it is an object on a bucket, where each read is a request.
  """

  def __init__(self, path: str):
    self.remote = files.is_on_bucket(path)
    if self.remote:
      self._object = files.path(path)
    else:
      self.fd = os.open(path, os.O_RDONLY)

  @functools.cached_property
  def size(self) -> int:
    """The bytes of the file: on a bucket a request, so only if needed."""
    if self.remote:
      return self._object.stat().st_size
    return os.fstat(self.fd).st_size

  def read(self, begin: int, count: int) -> bytes:
    """Returns the bytes from `begin` on, fewer at the file's end."""
    if self.remote:
      return files.read_part(self._object, begin, begin + count)
    return os.pread(self.fd, count, begin)

  def __del__(self, close=os.close):
    # At the interpreter's end the module os may be gone, hence the argument.
    if hasattr(self, 'fd'):  # Not if the file could not be opened.
      close(self.fd)


class Region(io.RawIOBase):
  """A range of bytes of a file, as a file. It does not move a shared position.

  libsndfile cannot report an error of reading. So `error` keeps it, and the
  file seems to end there, unless `strict`.
  """

  def __init__(self, handle: Handle, name: str, begin: int, size: int,
               strict: bool = False):
    super().__init__()
    self.name = name
    self.error: OSError | None = None
    self.remote = handle.remote
    self._handle, self._begin, self._size, self._at = handle, begin, size, 0
    self._strict = strict

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = 0) -> int:
    self._at = max(0, (0, self._at, self._size)[whence] + offset)
    return self._at

  def tell(self) -> int:
    return self._at

  def read(self, size: int | None = -1) -> bytes:
    # Of io.RawIOBase it copies the bytes, which costs as much as reading them.
    want = max(0, self._size - self._at)
    if size is not None and size >= 0:
      want = min(want, size)
    if not want:
      return b''  # At the end; of an object this would be a request.
    try:
      data = self._get(self._at, want)
    except OSError as error:
      if self._strict:
        raise
      self.error = error
      return b''
    self._at += len(data)
    return data

  def _get(self, at: int, count: int) -> bytes:
    """Returns the bytes from `at` on, fewer at the end of the file."""
    return self._handle.read(self._begin + at, count)

  def readinto(self, buffer: Any) -> int:
    data = self.read(len(buffer))
    buffer[:len(data)] = data
    return len(data)

  def check(self) -> None:
    """Raises the error of a read, if there was one.

    Raises:
      files.StoreError: the store failed, which says nothing about the file.
      ValueError: the file cannot be read.
    """
    if isinstance(self.error, files.StoreError):
      raise self.error
    if self.error is not None:
      raise ValueError(f'unreadable: {self.error.strerror or self.error}')


class Blocks(Region):
  """Bytes of a parquet file with a tag before every 64 KB of them.

  See parquet.PLAIN_BLOCKS.
  """

  def __init__(self, handle: Handle, name: str, where: parquet.Span):
    super().__init__(handle, name, where.offset, where.length)
    self._lead = where.begin  # Bytes of the first block that come before.

  def _get(self, at: int, count: int) -> bytes:
    block, tag = parquet.SNAPPY_BLOCK, parquet.TAG
    first = self._lead + at
    last = first + count - 1
    # As many tags come before a byte as blocks begin up to it.
    begin = first + tag * (first // block + 1)
    end = last + 1 + tag * (last // block + 1)
    data = memoryview(self._handle.read(self._begin + begin, end - begin))
    parts, left = [], block - first % block
    while data:
      parts.append(data[:left])
      data, left = data[left + tag:], block
    return b''.join(parts)


def open_file(path: str | os.PathLike) -> BinaryIO:
  """Opens a file on a disk or on a bucket, to be read in parts."""
  if not files.is_on_bucket(path):
    return open(path, 'rb')
  handle = Handle(os.fspath(path))
  return ahead(Region(handle, os.fspath(path), 0, handle.size, strict=True))


def opened(handle: Handle, address: Address, last: dict) -> Any:
  """Returns a sound file within an open file, as a file.

  Args:
    handle: the open file.
    address: the sound file's place in it.
    last: a dictionary per open file, empty at first; see parquet.read.

  Raises:
    ValueError: there is none.
  """
  # The chunks of an MP3 are read one by one, also on a bucket.
  if address.inner.startswith(mp3.NAME):
    size = address.size or handle.size - address.offset
    return Region(handle, address.path, address.offset, size)
  if ':' not in address.inner:
    size = address.size or handle.size - address.offset
    return _region(Region(handle, address.path, address.offset, size), size)
  # A place in a parquet file.
  whole = Region(handle, address.path, 0, handle.size)
  data: bytes | memoryview | None
  try:
    if address.inner.startswith(parquet.SPAN):
      where = parquet.span(address.offset, address.size, address.inner)
      if where.codec == 'UNCOMPRESSED':
        return _region(Region(handle, address.path, where.offset + where.begin,
                              where.length), where.length)
      if where.codec == parquet.PLAIN_BLOCKS:
        return _region(Blocks(handle, address.path, where), where.length)
      data = parquet.read_span(whole, where)
    else:
      data = parquet.read(
          whole, parquet.place(address.offset, address.inner), last)
  except (IndexError, ValueError, struct.error) as error:
    # If reading failed, the missing bytes are no damage.
    whole.check()
    if isinstance(error, ValueError):
      raise
    raise ValueError(f'unreadable: {error}') from error
  whole.check()
  if data is None:
    raise ValueError('unreadable: no bytes in this row')
  return parquet.as_file(data)


def _region(region: Region, size: int) -> Any:
  """Returns a sound file, read at once if it is short and on a bucket."""
  if not region.remote or size > AT_ONCE:
    return region
  data = region.read(size)  # In one request.
  region.check()
  return io.BytesIO(data)


def span(handle: Handle, address: Address, last: dict) -> parquet.Span:
  """Returns which bytes of a parquet file contain a sound file.

  Args:
    handle, address, last: as for `opened`.
  """
  return parquet.locate(
      Region(handle, address.path, 0, handle.size),
      parquet.place(address.offset, address.inner), last)


def piece(source: Any, begin: int, length: int, start: int, samples: int,
          rate: int, chunk: int, index: mp3.Chunks | None = None) -> np.ndarray:
  """Returns samples of a record, wave_S int16.

  Args:
    source: an open sound file.
    begin: first sample of the record in it, at `rate`.
    length: samples of the record.
    start: first wanted sample of the record.
    samples: number of wanted samples; fewer at the record's end.
    rate: samples per second.
    chunk: samples of a chunk; 0 for a corpus from before there were chunks,
      whose records are one chunk.
    index: where the record's chunks are, if it is of an MP3.

  Raises:
    ValueError: it cannot be decoded.
    files.StoreError: it is on a bucket that cannot be reached.
  """
  samples = min(samples, length - start)
  at, parts = start, [np.zeros(0, np.int16)]
  lead = 0.
  if chunk:
    lead = LEAD
  chunk = chunk or length
  try:
    while at < start + samples:
      number = at // chunk
      # Opened again for each chunk: a decoder's state depends on what it
      # decoded before.
      with decode.Decoder(_chunk_source(source, index, number)) as file:
        if file.samplerate == rate and file.format not in decode.LOSSY:
          _seek(file, begin + at)
          wave_S = _mono(file, start + samples - at)
        else:
          first = number * chunk
          stop = min(first + chunk, length)
          wave_S = _of_chunk(file, begin + first, stop - first,
                             start + samples - first, rate, lead, index,
                             number)[at - first:]
      if not len(wave_S):
        break
      parts.append(wave_S)
      at += len(wave_S)
  except (RuntimeError, TypeError) as error:
    check_reads(source)
    why = getattr(error, 'error_string', str(error)).strip().rstrip('.')
    raise ValueError(f'undecodable: {why}') from error
  # Either the store failed or the file is shorter than when it was prepared.
  if at < start + samples:
    check_reads(source)
    raise ValueError(f'cut off: {at - start} of {samples} samples from '
                     f'{begin + start}')
  return np.concatenate(parts)


def _chunk_source(source: Any, index: mp3.Chunks | None, number: int) -> Any:
  """Returns what libsndfile opens to decode a chunk."""
  if index is not None:
    return mp3.opened(source, index.chunks[number])
  source.seek(0)
  return source


def _of_chunk(file: decode.Decoder, begin: int, length: int, samples: int,
              rate: int, lead: float, index: mp3.Chunks | None,
              number: int) -> np.ndarray:
  """Returns the first samples of a chunk, int16.

  Args:
    file: just opened.
    begin: first sample of the chunk in the whole sound, at `rate`.
    length: samples of the chunk.
    samples: number of wanted samples; fewer at its end.
    rate: samples per second wanted.
    lead: seconds to decode before the chunk.
    index: where the record's chunks are, if it is of an MP3.
    number: of the chunk.
  """
  samples = min(samples, length)
  first, last = begin, begin + samples
  if file.samplerate != rate:
    first, last = window(begin, begin + length, file.samplerate, rate)
  if index is not None:
    skip, total = index.chunks[number].skip, index.total
  else:
    skip, total = min(first, round(lead * file.samplerate)), file.frames
    _seek(file, min(first - skip, max(total, 0)))
  if file.samplerate == rate:
    _skip(file, skip)
    return _mono(file, samples)
  _skip(file, skip)
  wave_SC = file.read(min(last, max(total, first)) - first, dtype='float32',
                      always_2d=True)
  wave_S = soxr.resample(wave_SC.mean(1), file.samplerate, rate, quality='HQ')
  # The first sample of the window at the corpus's rate.
  inner = begin - first * rate // file.samplerate
  return decode.to_int16(np.clip(wave_S[inner:inner + length], -1, 1))[:samples]


def window(begin: int, end: int, own: int, rate: int) -> tuple[int, int]:
  """Returns which samples of a file are needed to resample some of them.

  Args:
    begin, end: of the samples that are wanted, at `rate`.
    own: the file's rate.
    rate: samples per second wanted.

  Returns:
    first and last + 1, at the rate `own`.
  """
  # The window begins where a sample of one rate coincides with one of the
  # other, so that the resampler's phase is the same for every window.
  step = math.gcd(own, rate)
  # In one step of the two clocks there are own // step samples of the file and
  # rate // step of the corpus.
  own, rate = own // step, rate // step
  first = max(0, begin // rate - MARGIN // own - 1)
  last = -(-end // rate) + MARGIN // own + 1
  return first * own, last * own


def check_reads(source: Any) -> None:
  """Raises the error of reading a sound file, if there was one.

  A decoder takes what could not be read for the end of the file.

  Args:
    source: what the decoder reads.
  """
  region = getattr(source, 'raw', source)  # Beneath the buffer.
  if isinstance(region, Region):
    region.check()


def _seek(file: decode.Decoder, frame: int) -> None:
  """Goes to a frame of a file that has just been opened."""
  # libsndfile decodes to find a frame, even the first one.
  if frame:
    file.seek(frame)


def _skip(file: decode.Decoder, frames: int) -> None:
  """Decodes some frames and forgets them."""
  if frames:
    file.read(frames, dtype='float32')


def _mono(file: decode.Decoder, frames: int) -> np.ndarray:
  """Returns the next samples, int16, rounded as in `prepare`."""
  # The usual case needs no conversion.
  if file.channels == 1 and file.subtype == 'PCM_16':
    return file.read(frames, dtype='int16')
  wave_SC = file.read(frames, dtype='float32', always_2d=True)
  return decode.to_int16(np.clip(wave_SC.mean(1), -1, 1))


def buffered(source: Any, samples: int) -> Any:
  """Returns a sound file with a buffer, for reading some samples of it.

  Args:
    source: an open file.
    samples: number of wanted samples.
  """
  # libsndfile reads in small pieces, each of which is a system call. So a short
  # file is read at once, and of a longer one more than is asked for.
  if not isinstance(source, Region):
    return source
  size = source.seek(0, io.SEEK_END)
  source.seek(0)
  if size <= WHOLE * samples:
    return io.BytesIO(source.read(size))
  if source.remote:
    return ahead(source)
  return io.BufferedReader(source, BUFFER)


def ahead(region: Region) -> BinaryIO:
  """Returns a large sound on a bucket with a large buffer."""
  return io.BufferedReader(region, AHEAD)


def mended(source: Any) -> Any:
  """Returns a sound file with the header that libsndfile needs."""
  sound = containers.inspect(source)
  if sound.file is not None:
    return sound.file
  source.seek(0)
  return source
