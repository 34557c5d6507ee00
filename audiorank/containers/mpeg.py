"""MPEG audio (MP3, MP2, MP1): frames counted one by one.

Sources: ISO 11172-3 and 13818-3; Xing, LAME and VBRI tags as mpg123 reads them.
"""

import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import cut_off
from audiorank.containers.views import name
from audiorank.containers.views import read_at
from audiorank.containers.views import Sound
from audiorank.containers.views import View
from audiorank.containers.views import WINDOW

MOST_GARBAGE = 2**24  # Bytes among the frames that are none.
_L3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_L2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_L1 = tuple(32 * i for i in range(15))
_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_LOW1 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
_LONGEST = 4096  # Bytes; no frame is as long.
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000),
          0: (11025, 12000, 8000)}


class Frame(NamedTuple):
  """One frame's header.  kind: what all frames of a file have in common."""
  kind: tuple
  length: int
  samples: int
  rate: int
  mono: bool


def read_frame(head: bytes) -> Frame | None:
  if len(head) < 4 or head[0] != 255 or head[1] < 0xE0:
    return None
  version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
  rate, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
  if version == 1 or layer == 4 or rate in (0, 15) or rate_index == 3:
    return None
  hertz = _RATES[version][rate_index]
  # Kilobits a second: of MPEG-1 by layer, of its successors layer 1 apart.
  tables = (_L1, _L2, _L3) if version == 3 else (_LOW1, _LOW, _LOW)
  kilobits = tables[layer - 1][rate]
  if layer == 1:
    length, samples = (12000 * kilobits // hertz + padding) * 4, 384
  elif layer == 2 or version == 3:
    length, samples = 144000 * kilobits // hertz + padding, 1152
  else:
    length, samples = 72000 * kilobits // hertz + padding, 576
  return Frame((version, layer, rate_index), length, samples, hertz,
               head[3] >> 6 == 3)


class _Window:
  """A file read by offset, some of it held: frames are small and many."""

  def __init__(self, file: BinaryIO, size: int):
    self._file, self.size, self._begin, self._data = file, size, 0, b''

  def get(self, at: int, count: int) -> bytes:
    """Returns `count` bytes from `at`, or fewer at the file's end."""
    inner = at - self._begin
    if inner < 0 or inner + count > len(self._data):
      self._begin, inner = at, 0
      self._data = read_at(self._file, at, max(count, WINDOW))
    return self._data[inner:inner + count]


def begins(file: BinaryIO, begin: int) -> bool:
  """Whether frames of MPEG audio begin here, or a little later."""
  return (read_frame(read_at(file, begin, 4)) is not None or
          _start(file, begin, begin + WINDOW) is not None)


def _start(file: BinaryIO, begin: int, end: int) -> int | None:
  """Returns the first frame that others of its kind follow, or None."""
  data = read_at(file, begin, end - begin + 2**14)
  at = data.find(b'\xff')
  while 0 <= at < end - begin:
    place, kind = at, None
    for count in range(4):
      frame = read_frame(data[place:place + 4])
      if frame is None or kind not in (None, frame.kind):
        break
      place, kind = place + frame.length, frame.kind
      # A file may be of fewer frames than that.
      if count == 3 or place == len(data):
        return begin + at
    at = data.find(b'\xff', at + 1)
  return None


def inspect(file: BinaryIO, begin: int, at: int, size: int) -> Sound:
  """Counts the frames, and gives libsndfile their number in a Xing frame.

  Without one it guesses the length from the first frame's bit rate and stops
  there.

  Args:
    file: open.
    begin: its first byte behind zeros.
    at: its first byte behind tags.
    size: of the file.
  """
  first = None
  for offset in range(at, min(size, at + MOST_GARBAGE), WINDOW):
    first = _start(file, offset, min(size, offset + WINDOW))
    if first is not None:
      break
  if first is None:
    if at > size:
      raise cut_off(size - begin, at - begin, 'bytes of its tag are there')
    return Sound('mp3')
  window = _Window(file, size)
  frame = read_frame(window.get(first, 4))
  promised = _xing(window.get(first, frame.length), frame)
  body = first + (frame.length if promised is not None else 0)
  count, runs, end = _count(window, body, frame.kind)
  form = f'mp{frame.kind[1]}'
  if promised and count < promised:
    raise ValueError(f'cut off: {count} of {promised} frames are there')
  if end > size and not promised:
    raise cut_off(size - runs[-1][1], end - runs[-1][1],
               'bytes of its last frame are there')
  frames, slack = count * frame.samples, 3 * frame.samples
  parts = list(runs)
  if frame.kind[1] == 3 and promised == count:
    if first == at and len(runs) == 1:
      return Sound(form, None, frames, 5 * frame.samples)
    # Its own Xing frame also says what the encoder padded.
    parts, slack = [(first, body), *runs], 5 * frame.samples
  elif frame.kind[1] == 3:
    parts = [_xing_frame(window.get(first, 4), count,
                         sum(end - begin for begin, end in runs)), *runs]
  return Sound(form, View(file, parts, name(file)), frames, slack)


def _side_bytes(frame: Frame) -> int:
  """Returns the bytes of side information between header and Xing tag."""
  stereo, mono = (32, 17) if frame.kind[0] == 3 else (17, 9)
  return mono if frame.mono else stereo


def _xing(data: bytes, frame: Frame) -> int | None:
  """Returns the frame count in a Xing, Info or VBRI frame; 0 without one.

  None where the frame is none of these.
  """
  side = _side_bytes(frame)
  for at in (4 + side, 6 + side):  # Behind a checksum of two bytes or not.
    if data[at:at + 4] in (b'Xing', b'Info'):
      flags, count = struct.unpack('>II', data[at + 4:at + 12].ljust(8, b'\0'))
      return count if flags & 1 else 0
  if data[36:40] == b'VBRI':
    return struct.unpack('>I', data[50:54].ljust(4, b'\0'))[0]
  return None


def _count(window: _Window, at: int, kind: tuple) -> tuple[int, list, int]:
  """Walks the frames from a byte on.

  Returns:
    how many whole ones there are; the (begin, end) that they fill; the end
    that the last one promises, beyond the file's where it is cut.
  """
  count, runs, size = 0, [(at, at)], window.size
  while at + 4 <= size:
    frame = read_frame(window.get(at, 4))
    if frame is None or frame.kind != kind:
      following = _resume(window, at, kind)
      if following is None:
        return count, runs, at
      runs.append((following, following))
      at = following
      continue
    if at + frame.length > size:
      return count, runs, at + frame.length
    at += frame.length
    count += 1
    runs[-1] = runs[-1][0], at
  return count, [run for run in runs if run[1] > run[0]] or runs[:1], at


def _resume(window: _Window, at: int, kind: tuple) -> int | None:
  """Returns the next frame of a kind behind bytes that are none, or None."""
  head = window.get(at, 128)
  tag = id3_length(head)
  if tag:
    at += tag
  elif head[:3] == b'TAG' or head[:8] == b'APETAGEX':
    if head[:3] == b'TAG' and len(head) == 128 and window.size > at + 128:
      at += 128
    elif head[:3] == b'TAG':
      return None
  for _ in range(0, MOST_GARBAGE, WINDOW):
    data = window.get(at, WINDOW + _LONGEST)
    place = data.find(b'\xff', 0, WINDOW)
    while place >= 0:
      frame = read_frame(data[place:place + 4])
      if frame is not None and frame.kind == kind:
        after = place + frame.length
        other = read_frame(data[after:after + 4])
        if at + after == window.size or (other is not None
                                         and other.kind == kind):
          return at + place
      place = data.find(b'\xff', place + 1, WINDOW)
    at += WINDOW
    if at >= window.size:
      return None
  raise ValueError(f'undecodable: more than {MOST_GARBAGE // 2**20} MB among '
                   'its frames are none')


def _xing_frame(head: bytes, count: int, size: int) -> bytes:
  """Returns a Xing frame of the kind of another frame."""
  for index in range(1, 15):
    # Without a checksum, without padding.
    mine = bytes([head[0], head[1] | 1, index << 4 | head[2] & 0x0C,
                  head[3]])
    frame = read_frame(mine)
    if frame.length >= 200:
      break
  data = mine + bytes(_side_bytes(frame)) + b'Xing' + struct.pack(
      '>III', 3, count, min(size + frame.length, 0xFFFFFFFF))
  return data.ljust(frame.length, b'\0')


def id3_length(head: bytes) -> int:
  """Returns the length of the ID3v2 tag that begins here, or 0."""
  if head[:3] != b'ID3' or len(head) < 10 or max(head[6:10]) > 127:
    return 0
  length = 0
  for byte in head[6:10]:
    length = length * 128 + byte
  # A footer of ten bytes may follow.
  return length + (20 if head[5] & 16 else 10)
