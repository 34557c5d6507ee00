"""FLAC: compares the total in the header with the number of the last frame.

Every frame carries its position and a checksum, so only the end of a file need
be read. Source: RFC 9639.
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
  """Returns the table of a CRC, most significant bit first.

  Args:
    width: bits of the checksum.
    polynomial: of the CRC, without its highest term.
  """
  top, mask = 1 << (width - 1), (1 << width) - 1
  table = []
  for value in range(256):
    value <<= width - 8
    for _ in range(8):
      carry = value & top
      value = value << 1 & mask
      if carry:
        value ^= polynomial
    table.append(value)
  return table


_CRC8, _CRC16 = _table(8, 0x07), _table(16, 0x8005)


def _crc8(data: bytes) -> int:
  """Returns the checksum of a frame's header."""
  crc = 0
  for byte in data:
    crc = _CRC8[crc ^ byte]
  return crc


def _crc16(data: bytes) -> int:
  """Returns the checksum of a whole frame."""
  crc = 0
  for byte in data:
    crc = (crc << 8 & 0xFFFF) ^ _CRC16[crc >> 8 ^ byte]
  return crc


class Frame(NamedTuple):
  """The header of a frame."""
  begin: int  # First byte.
  sample: int  # Position of its first sample in the sound.
  samples: int  # Number of samples in it.


class Info(NamedTuple):
  """The block STREAMINFO at the beginning of a file."""
  begin: int  # Position of 'fLaC'.
  audio: int  # First byte of the first frame.
  block: int  # Samples per frame where all have as many, else 0.
  longest: int  # Bytes of the longest frame; 0 for unknown.
  rate: int
  channels: int
  bits: int
  total: int  # Samples; 0 for unknown.
  header: bytes  # The block itself.


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
  block = 0
  if least == most:
    block = most
  # 20 bits of rate, 3 of channels, 5 of bits per sample, 36 of the total.
  packed = int.from_bytes(info[10:18], 'big')
  return Info(
      begin, at, block, int.from_bytes(info[7:10], 'big'),
      rate=packed >> 44, channels=(packed >> 41 & 7) + 1,
      bits=(packed >> 36 & 31) + 1, total=packed & ((1 << 36) - 1), header=info)


def flac_header(info: Info, total: int) -> bytes:
  """Returns 'fLaC' and STREAMINFO alone, with another total and no MD5.

  The MD5 is that of all samples, so a part of a file must not carry it.
  """
  packed = int.from_bytes(info.header[10:18], 'big') >> 36 << 36 | total
  return (b'fLaC\x80\0\0\x22' + info.header[:10] + packed.to_bytes(8, 'big')
          + bytes(16))


# Code of the block size in a frame's header -> samples. Codes 6 and 7: the
# size follows in one or two bytes.
_BLOCKS = {1: 192, **{i: 144 << i for i in range(2, 6)},
           **{i: 1 << i for i in range(8, 16)}}
# The first two bytes of a frame. F8: frames are numbered; F9: samples are.
_FLAC_SYNC = re.compile(rb'\xff[\xf8\xf9]')


def _number(data: bytes) -> tuple[int, int] | None:
  """Returns (a frame's number, the bytes that code it), or None if invalid.

  The code is that of UTF-8, but of up to 7 bytes.
  """
  first = data[0]
  if first < 128:
    return first, 1
  extra = 8 - (first ^ 255).bit_length() - 1  # Leading ones, less one.
  if not 1 <= extra <= 6:
    return None
  number = first & (0x3F >> extra)
  for byte in data[1:1 + extra]:
    if byte >> 6 != 2:
      return None
    number = number << 6 | byte & 63
  return number, 1 + extra


def read_frame(data: bytes, at: int, info: Info) -> Frame | None:
  """Returns the frame whose header begins at data[at], or None.

  Two bytes of sync are common by chance. So every field must be valid, and the
  header's checksum must hold.
  """
  head = data[at:at + 16]
  if len(head) < 6 or head[0] != 255 or head[1] not in (0xF8, 0xF9):
    return None
  block, rate, channels = head[2] >> 4, head[2] & 15, head[3] >> 4
  if block == 0 or rate == 15 or channels > 10 or head[3] & 1:
    return None
  count = channels + 1
  if channels >= 8:  # Left and side, side and right, or mid and side.
    count = 2
  if count != info.channels:
    return None
  coded = _number(head[4:])
  if coded is None:
    return None
  number, length = coded
  place = 4 + length
  if block in (6, 7):
    samples = int.from_bytes(head[place:place + block - 5], 'big') + 1
    place += block - 5
  else:
    samples = _BLOCKS[block]
  place += {12: 1, 13: 2, 14: 2}.get(rate, 0)  # Bytes that code the rate.
  if place >= len(head) or _crc8(head[:place]) != head[place]:
    return None
  if head[1] == 0xF8:  # The number is that of the frame: all are as long.
    number *= info.block or samples
  return Frame(at, number, samples)


def _last_frame(file: BinaryIO, info: Info, end: int) -> tuple[
    Frame | None, bool]:
  """Returns the last frame, by its header, and whether it is whole.

  If it is not, the frame is the last whose header can be read.
  """
  window = max(2 * info.longest, 2**16)
  begin = max(info.audio, end - window)
  data, torn = read_at(file, begin, end - begin), None
  # From the end: data from a frame's first byte to the end of the file have a
  # valid checksum only if it is the last frame, and whole.
  for match in reversed(list(_FLAC_SYNC.finditer(data))):
    frame = read_frame(data, match.start(), info)
    if frame is None:
      continue
    frame = frame._replace(begin=begin + match.start())
    # The CRC of a frame with its own CRC appended is 0.
    if _crc16(data[match.start():]) == 0:
      return frame, True
    torn = torn or frame
  return torn, False


def inspect(file: BinaryIO, begin: int, size: int) -> Sound:
  """Returns how to decode a FLAC file; see `containers.inspect`.

  Args:
    file: open.
    begin: position of 'fLaC'.
    size: of the file.

  Raises:
    ValueError: not whole, or of several parts.
  """
  info = read_info(file, begin)
  # 'fLaC' and the header of a STREAMINFO of 34 bytes, which may be the last
  # block of metadata or not.
  refuse_second(file, info.audio, size, b'fLaC\0\0\0\x22', 'FLAC file')
  refuse_second(file, info.audio, size, b'fLaC\x80\0\0\x22', 'FLAC file')
  end = _before_tags(file, size)
  last, whole = _last_frame(file, info, end)
  if last is None or not whole:
    if info.total == 0 and end - info.audio < 16:  # No frame at all: empty.
      return Sound('flac')
    if info.total == 0 or last is not None and last.sample >= info.total:
      raise ValueError('cut off: its last frame is not whole, and its header '
                       'gives no length, or a wrong one')
    # The decoder may still find all samples, before bytes of no meaning.
    return Sound('flac', frames=info.total, torn=True)
  total = last.sample + last.samples
  if total == info.total:
    return Sound('flac', frames=info.total)
  if total < info.total:
    raise ValueError(f'cut off: {total / info.rate:.3f} of '
                     f'{info.total / info.rate:.3f} s are there')
  # The total is unknown or too small: the last frame gives the true one.
  packed = int.from_bytes(info.header[10:18], 'big') >> 36 << 36 | total
  return Sound('flac', patched(file, begin, size, {
      # STREAMINFO is the first block. Its MD5 is zeroed, which means unknown:
      # it was computed for another total.
      begin + 18: packed.to_bytes(8, 'big') + bytes(16)}), total)


def _before_tags(file: BinaryIO, size: int) -> int:
  """Returns where a file ends, without an ID3v1 tag and zeros at the end."""
  if size > 128 and read_at(file, size - 128, 3) == b'TAG':
    size -= 128
  tail = read_at(file, max(0, size - 2**16), min(size, 2**16))
  zeros = len(tail) - len(tail.rstrip(b'\0'))
  if zeros > 64:  # A frame may itself end in a few zeros.
    return size - zeros
  return size
