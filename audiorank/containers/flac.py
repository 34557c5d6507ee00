"""FLAC: its total against the number of its last frame.

Source: RFC 9639.
"""

import re
import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import cut_off
from audiorank.containers.views import MOST_CHUNKS
from audiorank.containers.views import patched
from audiorank.containers.views import read_at
from audiorank.containers.views import refuse_second
from audiorank.containers.views import Sound


def _table(width: int, polynomial: int) -> list:
  """Returns the table of a CRC, most significant bit first."""
  top, mask = 1 << (width - 1), (1 << width) - 1
  table = []
  for value in range(256):
    value <<= width - 8
    for _ in range(8):
      value = ((value << 1) ^ (polynomial if value & top else 0)) & mask
    table.append(value)
  return table


_CRC8, _CRC16 = _table(8, 0x07), _table(16, 0x8005)


def _crc8(data: bytes) -> int:
  crc = 0
  for byte in data:
    crc = _CRC8[crc ^ byte]
  return crc


def _crc16(data: bytes) -> int:
  crc = 0
  for byte in data:
    crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
  return crc


class Frame(NamedTuple):
  """begin: first byte.  sample: number of its first sample.  samples: in it."""
  begin: int
  sample: int
  samples: int


class Info(NamedTuple):
  """What STREAMINFO says.

  begin: of 'fLaC' in the file.  audio: first byte of the first frame.
  block: samples of a frame where all are alike, else 0.
  longest: bytes of the longest frame, or 0 for unknown.
  total: samples, 0 for unknown.
  """
  begin: int
  audio: int
  block: int
  longest: int
  rate: int
  channels: int
  bits: int
  total: int
  header: bytes


def read_info(file: BinaryIO, begin: int) -> Info:
  """Reads the metadata of a FLAC file.

  Raises:
    ValueError: cut off within it, or not FLAC.
  """
  at, info = begin + 4, None
  for _ in range(MOST_CHUNKS):
    head = read_at(file, at, 4)
    length = int.from_bytes(head[1:4], 'big')
    if len(head) < 4:
      raise cut_off(at - begin, at - begin + 4, 'bytes of its header are there')
    if head[0] & 127 == 0:
      info = read_at(file, at + 4, 34)
    at += 4 + length
    if head[0] & 128:
      break
  if info is None or len(info) < 34:
    raise ValueError('undecodable: a FLAC file without STREAMINFO')
  least, most = struct.unpack('>HH', info[:4])
  packed = int.from_bytes(info[10:18], 'big')
  return Info(
      begin, at, most if least == most else 0,
      int.from_bytes(info[7:10], 'big'), packed >> 44, (packed >> 41 & 7) + 1,
      (packed >> 36 & 31) + 1, packed & ((1 << 36) - 1), info)


def flac_header(info: Info, total: int) -> bytes:
  """Returns 'fLaC' and STREAMINFO alone, with a total and without MD5."""
  packed = int.from_bytes(info.header[10:18], 'big') >> 36 << 36 | total
  return (b'fLaC\x80\0\0\x22' + info.header[:10] + packed.to_bytes(8, 'big')
          + bytes(16))


_BLOCKS = {1: 192, **{i: 144 << i for i in range(2, 6)},
           **{i: 1 << i for i in range(8, 16)}}
_FLAC_SYNC = re.compile(rb'\xff[\xf8\xf9]')


def read_frame(data: bytes, at: int, info: Info) -> Frame | None:
  """Returns the frame whose header begins at data[at], or None."""
  head = data[at:at + 16]
  if len(head) < 6 or head[0] != 255 or head[1] not in (0xF8, 0xF9):
    return None
  block, rate, channels = head[2] >> 4, head[2] & 15, head[3] >> 4
  if block == 0 or rate == 15 or channels > 10 or head[3] & 1:
    return None
  if (channels + 1 if channels < 8 else 2) != info.channels:
    return None
  # The number is coded as UTF-8 codes a character, of up to 7 bytes.
  first, place = head[4], 5
  extra = 0 if first < 128 else 8 - (first ^ 255).bit_length() - 1
  if first >= 128 and not 1 <= extra <= 6:
    return None
  number = first if first < 128 else first & (0x3F >> extra)
  for byte in head[5:5 + extra]:
    if byte >> 6 != 2:
      return None
    number = number << 6 | byte & 63
  place += extra
  if block in (6, 7):
    samples = int.from_bytes(head[place:place + block - 5], 'big') + 1
    place += block - 5
  else:
    samples = _BLOCKS[block]
  place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
  if place >= len(head) or _crc8(head[:place]) != head[place]:
    return None
  if head[1] == 0xF8:  # Frames of one length, numbered one by one.
    number *= info.block or samples
  return Frame(at, number, samples)


def _last_frame(file: BinaryIO, info: Info, end: int) -> tuple[
    Frame | None, bool]:
  """Returns the last frame, by its header, and whether it is whole."""
  window = max(2 * info.longest, 2**16)
  begin = max(info.audio, end - window)
  data, torn = read_at(file, begin, end - begin), None
  for match in reversed(list(_FLAC_SYNC.finditer(data))):
    frame = read_frame(data, match.start(), info)
    if frame is None:
      continue
    frame = frame._replace(begin=begin + match.start())
    # The checksum over a frame and its own checksum is 0.
    if _crc16(data[match.start():]) == 0:
      return frame, True
    torn = torn or frame
  return torn, False


def inspect(file: BinaryIO, begin: int, size: int) -> Sound:
  info = read_info(file, begin)
  refuse_second(file, info.audio, size, b'fLaC\0\0\0\x22', 'FLAC file')
  refuse_second(file, info.audio, size, b'fLaC\x80\0\0\x22', 'FLAC file')
  end = _before_tags(file, size)
  last, whole = _last_frame(file, info, end)
  if not whole:
    if info.total == 0 and end - info.audio < 16:
      return Sound('flac')
    if info.total == 0 or last is not None and last.sample >= info.total:
      raise ValueError('cut off: its last frame is not whole, and its header '
                       'gives no length, or a wrong one')
    return Sound('flac', frames=info.total, torn=True)
  total = last.sample + last.samples
  if total == info.total:
    return Sound('flac', frames=info.total)
  if total < info.total:
    raise ValueError(f'cut off: {total / info.rate:.3f} of '
                     f'{info.total / info.rate:.3f} s are there')
  # The total is unknown or too small: the last frame's is the true one.
  packed = int.from_bytes(info.header[10:18], 'big') >> 36 << 36 | total
  return Sound('flac', patched(file, begin, size, {
      # STREAMINFO is the first block; the checksum behind it is no longer its.
      begin + 18: packed.to_bytes(8, 'big') + bytes(16)}), total)


def _before_tags(file: BinaryIO, size: int) -> int:
  """Returns the end of a file without an ID3v1 tag and zeros at its end."""
  if read_at(file, size - 128, 3) == b'TAG' and size > 128:
    size -= 128
  tail = read_at(file, max(0, size - 2**16), min(size, 2**16))
  # A frame may end in some zeros of its own.
  zeros = len(tail) - len(tail.rstrip(b'\0'))
  return size - zeros if zeros > 64 else size
