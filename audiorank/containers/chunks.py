"""Formats made of chunks, and old ones with a size in their header.

In all of them, some number in a header is the size of the samples. Each
function compares it with the bytes that are there. Its arguments are the open
file, the first byte of the format (behind tags), and the file's size; it
returns a Sound or raises ValueError, as `containers.inspect` does.

Sources: RIFF (Microsoft, 1991), EBU Tech 3306 (RF64), AIFF-C (Apple, 1991),
Apple's CAF specification, Sony's Wave64, NIST SPHERE.
"""

from collections.abc import Iterator
import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import check_rest
from audiorank.containers.views import cut_off
from audiorank.containers.views import MOST_CHUNKS
from audiorank.containers.views import patched
from audiorank.containers.views import read_at
from audiorank.containers.views import refuse_second
from audiorank.containers.views import Sound
from audiorank.containers.views import UNKNOWN


class _Data(NamedTuple):
  """The chunk of samples."""
  begin: int  # Its first byte.
  size: int  # Bytes, as its header says.
  at: int  # Position of that number.


def _chunks(file: BinaryIO, at: int, end: int, order: str
            ) -> Iterator[tuple[bytes, int, int, int]]:
  """Yields (name, first byte, size, position of the size) of RIFF chunks.

  Args:
    file: open.
    at: first byte of the first chunk.
    end: where the chunks end.
    order: of bytes, as struct has it: '<', or '>' for IFF and RIFX.
  """
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 8)
    if len(head) < 8 or at >= end:
      return
    size, = struct.unpack(f'{order}I', head[4:])
    yield head[:4], at + 8, size, at + 4
    at += 8 + size + size % 2  # Chunks begin at even bytes.


def riff(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects WAV, also with 64-bit sizes (RF64, BW64) or big-endian (RIFX)."""
  head = read_at(file, begin, 12)
  order = {b'RIFX': '>'}.get(head[:4], '<')
  wide = None  # RF64's 64-bit size of the samples.
  for name, at, length, place in _chunks(file, begin + 12, size, order):
    if name == b'ds64' and length >= 16:
      wide, = struct.unpack(f'{order}Q', read_at(file, at + 8, 8))
    if name == b'data':
      if length == 0xFFFFFFFF and wide is not None:
        length = wide
      return _samples(file, 'wav', begin, size, _Data(at, length, place), order)
  raise ValueError('cut off: no chunk of samples in it')


def iff(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects AIFF, AIFC, 8SVX and 16SV."""
  kind = read_at(file, begin + 8, 4)
  form, sample = 'svx', b'BODY'
  if kind[:3] == b'AIF':
    form, sample = 'aiff', b'SSND'
  frames, frames_at, width = None, 0, 0
  data = None
  for name, at, length, place in _chunks(file, begin + 12, size, '>'):
    if name == b'COMM' and length >= 18:
      channels, frames, bits = struct.unpack('>hIh', read_at(file, at, 8))
      frames_at, width = at + 2, max(channels, 1) * ((bits + 7) // 8)
    if name == sample:
      data = _Data(at, length, place)
      break
  if data is None:
    if frames == 0:
      return Sound(form)
    raise ValueError('cut off: no chunk of samples in it')
  sound = _samples(file, form, begin, size, data, '>')
  # The number of frames is in another chunk too. Compressed forms (AIFC) count
  # otherwise. Samples follow 8 bytes, an offset and a block size.
  if kind == b'AIFF' and sound.file is None and frames is not None and (
      frames < UNKNOWN and frames * width > data.size - 8):
    raise cut_off((data.size - 8) // width, frames, 'frames are there')
  if sound.file is not None and frames is not None and not (
      0 < frames < UNKNOWN) and width:
    # That number must be corrected too.
    count = (size - data.begin - 8) // width
    sound = sound._replace(file=patched(file, begin, size, {
        frames_at: struct.pack('>I', count),
        data.at: struct.pack('>I', size - data.begin)}))
  return sound


def _samples(file: BinaryIO, form: str, begin: int, size: int, data: _Data,
             order: str) -> Sound:
  """Compares the announced end of the samples with the end of the file."""
  have = size - data.begin
  # Programs that record into a pipe cannot go back to write the size.
  unknown = UNKNOWN <= data.size <= 0xFFFFFFFF and data.size > have
  # A size of 0 may be true: then another chunk follows, or nothing.
  if data.size == 0 and have > 0 and not _is_chunk(
      file, data.begin, size, order):
    unknown = True
  if unknown:
    # 0xFFFFFFFF itself would mean unknown again.
    length = struct.pack(f'{order}I', min(have, 0xFFFFFFFE))
    return Sound(form, patched(file, begin, size, {data.at: length}))
  if data.size > have:
    raise cut_off(have, data.size, 'bytes of samples are there')
  _check_tail(file, data.begin + data.size, size, data.size, order)
  return Sound(form)


def _is_chunk(file: BinaryIO, at: int, size: int, order: str) -> bool:
  """Returns whether a whole chunk with a printable name begins here."""
  head = read_at(file, at, 8)
  if len(head) < 8 or not all(32 <= b < 127 for b in head[:4]):
    return False
  length, = struct.unpack(f'{order}I', head[4:])
  # Some writers count the padding of the last chunk without writing it.
  return at + 8 + length <= size + 1


def _check_tail(file: BinaryIO, at: int, size: int, samples: int,
                order: str) -> None:
  """Refuses a file with more sound after its end. Other chunks are allowed."""
  # The next chunk begins at an even byte, unless the writer left the padding
  # out.
  if at % 2 and size - at > 8 and not _is_chunk(file, at, size, order):
    at += 1
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 8)
    if head[:4] in (b'RIFF', b'RIFX', b'FORM', b'data', b'SSND', b'fLaC',
                    b'OggS') and size - at > 64:
      raise ValueError(f'several parts: another {head[:4].decode()} follows at '
                       f'byte {at}')
    if not _is_chunk(file, at, size, order):
      break
    length, = struct.unpack(f'{order}I', head[4:])
    at += 8 + length + length % 2
  check_rest(file, at, size, samples)


def w64(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects Sony's Wave64: like WAV, with 64-bit sizes and 16-byte names."""
  at = begin + 40
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 24)
    if len(head) < 24:
      break
    # Unlike in WAV, a size includes the header of 24 bytes.
    length, = struct.unpack('<q', head[16:])
    if head[:4] == b'data':
      if length <= 24 and size - at > 48:
        return Sound('w64', patched(file, begin, size, {
            at + 16: struct.pack('<q', size - at)}))
      if length > size - at:
        raise cut_off(size - at - 24, length - 24, 'bytes of samples are there')
      whole, = struct.unpack('<q', read_at(file, begin + 16, 8))
      check_rest(file, max(at + length, begin + whole), size, length)
      return Sound('w64')
    at += max(24, (length + 7) // 8 * 8)  # Chunks begin at multiples of 8.
  raise ValueError('cut off: no chunk of samples in it')


def caf(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects Apple's Core Audio Format."""
  at = begin + 8
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 12)
    if len(head) < 12:
      break
    length, = struct.unpack('>q', head[4:])
    if head[:4] == b'data':
      if length == -1:  # The format allows this: up to the end of the file.
        return Sound('caf')
      if length > size - at - 12:
        raise cut_off(size - at - 12, length, 'bytes of samples are there')
      refuse_second(file, at + 12 + length, size, b'caff\0\1\0\0', 'CAF file')
      return Sound('caf')
    at += 12 + max(length, 0)
  raise ValueError('cut off: no chunk of samples in it')


def au(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects AU, the format of Sun and NeXT."""
  head = read_at(file, begin, 12)
  if len(head) < 12:
    raise cut_off(len(head), 24, 'bytes of its header')
  offset, length = struct.unpack('>II', head[4:])
  first = begin + offset
  have = size - first
  if length == 0xFFFFFFFF:  # Unknown, which libsndfile understands.
    return Sound('au')
  if length == 0 and have > 0:
    # The recorder could not seek back: mark the length as unknown.
    return Sound('au', patched(file, begin, size, {begin + 8: b'\xff' * 4}))
  if length > have:
    raise cut_off(max(have, 0), length, 'bytes of samples are there')
  check_rest(file, first + length, size, length)
  return Sound('au')


def nist(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects NIST SPHERE, whose header is text, one 'name -i value' a line."""
  lines = read_at(file, begin, 2**14).split(b'\n')
  fields = {}
  # The first two lines are the format's name and the length of the header.
  for line in lines[2:200]:
    if line.startswith(b'end_head'):
      break
    words = line.split()
    if len(words) == 3 and words[2].isdigit():
      fields[words[0]] = int(words[2])
  length = b''
  if len(lines) > 1:
    length = lines[1].strip()
  if not length.isdigit() or b'sample_count' not in fields:
    return Sound('nist')
  want = (fields[b'sample_count'] * fields.get(b'channel_count', 1)
          * fields.get(b'sample_n_bytes', 2))
  have = size - begin - int(length)
  coding = next((line for line in lines if line.startswith(b'sample_coding')),
                b'')
  # Compressed by shorten, a whole file has fewer bytes.
  if b'shorten' not in coding and have < want:
    raise cut_off(have, want, 'bytes of samples are there')
  check_rest(file, size - have + want, size, want)
  return Sound('nist')


def voc(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects VOC, the format of Creative's Sound Blaster."""
  offset, = struct.unpack('<H', read_at(file, begin + 20, 2).ljust(2, b'\0'))
  at = begin + max(offset, 26)
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 4)
    if not head or head[0] == 0:  # A block of type 0 ends the file.
      check_rest(file, at + 1, size, at - begin)
      break
    length = int.from_bytes(head[1:].ljust(3, b'\0'), 'little')
    if at + 4 + length > size:
      raise cut_off(size - at - 4, length, 'bytes of a block are there')
    at += 4 + length
  return Sound('voc')


def avr(file: BinaryIO, begin: int, size: int) -> Sound:
  """Inspects AVR, the Audio Visual Research format of the Atari."""
  head = read_at(file, begin, 128)
  if len(head) == 128:
    # The field of channels is 0 for mono and -1 for stereo.
    stereo, bits = struct.unpack('>HH', head[12:16])
    frames, = struct.unpack('>I', head[26:30])
    want = frames * (1 + bool(stereo)) * ((bits + 7) // 8)
    if want > size - begin - 128:
      raise cut_off(size - begin - 128, want, 'bytes of samples are there')
    check_rest(file, begin + 128 + want, size, want)
  return Sound('avr')
