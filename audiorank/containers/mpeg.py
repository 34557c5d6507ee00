"""MPEG audio (MP3, MP2, MP1): counts the frames one by one.

The format has no header for the file, only one per frame. Sources: ISO 11172-3
and 13818-3; Xing, LAME and VBRI tags as mpg123 reads them.
"""

import io
import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import cut_off
from audiorank.containers.views import first_byte
from audiorank.containers.views import name
from audiorank.containers.views import read_at
from audiorank.containers.views import Sound
from audiorank.containers.views import View
from audiorank.containers.views import WINDOW

MOST_GARBAGE = 2**24  # Bytes between frames that may be skipped at a time.
# Kilobits per second by the header's index: layers 1 to 3 of MPEG-1, and
# layers 2 and 3 (_LOW) and 1 (_LOW1) of MPEG-2 and 2.5.
_L3 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_L2 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_L1 = tuple(32 * i for i in range(15))
_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_LOW1 = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
DECODER_DELAY = 529  # Samples, of every decoder of layer 3.
_LONGEST = 4096  # Bytes; every frame is shorter.
# Hz by the version in the header: 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5.
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000),
          0: (11025, 12000, 8000)}


class Frame(NamedTuple):
  """The header of a frame."""
  kind: tuple  # (version, layer, index of the rate): the same in a whole file.
  length: int  # Bytes.
  samples: int
  rate: int
  mono: bool


def read_frame(head: bytes) -> Frame | None:
  """Returns the frame of a header of 4 bytes, or None if they are no header."""
  if len(head) < 4 or head[0] != 255 or head[1] < 0xE0:
    return None
  version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
  rate, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
  # Reserved values, and the free format (rate 0), which has no length.
  if version == 1 or layer == 4 or rate in (0, 15) or rate_index == 3:
    return None
  hertz = _RATES[version][rate_index]
  if version == 3:
    kilobits = (_L1, _L2, _L3)[layer - 1][rate]
  else:
    kilobits = (_LOW1, _LOW, _LOW)[layer - 1][rate]
  # Samples per frame are fixed. A frame's bytes are samples / 8 * bits per
  # second / Hz, counted in slots of 4 bytes in layer 1 and of 1 elsewhere.
  if layer == 1:
    length, samples = (12000 * kilobits // hertz + padding) * 4, 384
  elif layer == 2 or version == 3:
    length, samples = 144000 * kilobits // hertz + padding, 1152
  else:
    length, samples = 72000 * kilobits // hertz + padding, 576
  return Frame((version, layer, rate_index), length, samples, hertz,
               head[3] >> 6 == 3)


class Table(NamedTuple):
  """The frames of a file, which follow each other without gaps."""
  begins: list[int]  # First byte of each, and the byte after the last.
  samples: int  # Of each frame.
  rate: int
  # Samples that decoders drop at the beginning, because an encoder and a
  # decoder of layer 3 delay the sound.
  delay: int


class _Window:
  """A file with a read-ahead buffer: frames are small and many."""

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
  """Returns whether frames of MPEG audio begin here, or a little later."""
  return (read_frame(read_at(file, begin, 4)) is not None or
          _start(file, begin, begin + WINDOW) is not None)


def _start(file: BinaryIO, begin: int, end: int) -> int | None:
  """Returns the position of the first frame between two bytes, or None.

  Headers of 4 bytes occur by chance. So three more frames of the same kind
  must follow, or the end of the file.
  """
  # Beyond `end`, enough for the frames that follow.
  data = read_at(file, begin, end - begin + 2**14)
  at = data.find(b'\xff')
  while 0 <= at < end - begin:
    place, kind = at, None
    for count in range(4):
      frame = read_frame(data[place:place + 4])
      if frame is None or kind not in (None, frame.kind):
        break
      place, kind = place + frame.length, frame.kind
      # A file may end before the third.
      if count == 3 or place == len(data):
        return begin + at
    at = data.find(b'\xff', at + 1)
  return None


def inspect(file: BinaryIO, begin: int, at: int, size: int) -> Sound:
  """Counts the frames, and tells libsndfile their number in a Xing frame.

  Without one, libsndfile guesses the length from the first frame's bit rate
  and stops there.

  Args:
    file: open.
    begin: its first byte after zeros.
    at: its first byte after tags.
    size: of the file.

  Raises:
    ValueError: fewer frames than announced, or the last one is not whole.
  """
  first = _first_frame(file, at, size)
  if first is None:
    if at > size:
      raise cut_off(size - begin, at - begin, 'bytes of its tag are there')
    return Sound('mp3')  # libsndfile decides.
  window = _Window(file, size)
  frame = read_frame(window.get(first, 4))
  assert frame is not None  # By _start.
  # The announced number of frames, if there is a Xing frame. That one has no
  # sound and is not counted.
  promised = _xing(window.get(first, frame.length), frame)
  body = first
  if promised is not None:
    body += frame.length
  # The number that is there.
  count, runs, end = _count(window, body, frame.kind)
  form = f'mp{frame.kind[1]}'
  if promised and count < promised:
    raise ValueError(f'cut off: {count} of {promised} frames are there')
  if end > size and not promised:
    raise cut_off(size - runs[-1][1], end - runs[-1][1],
                  'bytes of its last frame are there')
  # Decoders drop the encoder's delay and padding: up to 3 frames, and up to 5
  # where a tag says how much there is.
  frames, slack = count * frame.samples, 3 * frame.samples
  parts = list(runs)
  if frame.kind[1] == 3 and promised == count:
    if first == at and len(runs) == 1:
      return Sound(form, None, frames, 5 * frame.samples)
    # The file's own Xing frame also has the encoder's delay and padding.
    parts, slack = [(first, body), *runs], 5 * frame.samples
  elif frame.kind[1] == 3:
    parts = [xing_frame(window.get(first, 4), count,
                        sum(end - begin for begin, end in runs)), *runs]
  return Sound(form, View(file, parts, name(file)), frames, slack)


def table(file: BinaryIO) -> Table | None:
  """Returns the Table of a file of layer 3, or None if it has gaps.

  Args:
    file: open; `inspect` accepts it.
  """
  size = file.seek(0, io.SEEK_END)
  at = begin = first_byte(file, size)
  while tag := id3_length(read_at(file, at, 10)):
    at += tag
  first = _first_frame(file, at, size)
  window = _Window(file, size)
  frame = None
  if first is not None and first >= begin:
    frame = read_frame(window.get(first, 4))
  if first is None or frame is None or frame.kind[1] != 3:
    return None
  head = window.get(first, frame.length)
  at = first
  if _xing(head, frame) is not None:
    at += frame.length
  begins, kind = [at], frame.kind
  while (following := read_frame(window.get(at, 4))) is not None and (
      following.kind == kind and at + following.length <= size):
    at += following.length
    begins.append(at)
  # Decoders continue behind a gap, where their frames have other numbers.
  if at + 4 <= size and _resume(window, at, kind) is not None:
    return None
  return Table(begins, frame.samples, frame.rate, _delay(head, frame))


def playable(data: bytes) -> bytes:
  """Returns frames of layer 3, cut out of a file, that decode without errors.

  The first ones need bytes of frames that are missing. They become silent.

  Args:
    data: whole frames.

  Raises:
    ValueError: no frame begins there.
  """
  out, at, there = bytearray(data), 0, 0
  while at < len(data):
    frame = read_frame(data[at:at + 4])
    if frame is None:
      raise ValueError('unreadable: no frame of MP3 where one was')
    # A checksum of two bytes may come before the side information.
    side, begin = _side_bytes(frame), at + 4 + 2 * (not data[at + 1] & 1)
    # How many bytes of earlier frames it uses: 9 bits in MPEG-1, else 8.
    if frame.kind[0] == 3:
      back = data[begin] << 1 | data[begin + 1] >> 7
    else:
      back = data[begin]
    if back <= there:
      break
    # Side information of zeros: no bits of sound. But it says that the bytes
    # so far are used, or decoders would drop them.
    out[begin:begin + side] = bytes(side)
    if frame.kind[0] == 3:
      used = min(there, 511) << 7
    else:
      used = min(there, 255) << 8
    out[begin:begin + 2] = used.to_bytes(2, 'big')
    at += frame.length
    there += at - begin - side
  return bytes(out)


def _first_frame(file: BinaryIO, at: int, size: int) -> int | None:
  """Returns the position of the first frame from a byte on, or None."""
  for offset in range(at, min(size, at + MOST_GARBAGE), WINDOW):
    first = _start(file, offset, min(size, offset + WINDOW))
    if first is not None:
      return first
  return None


def _delay(data: bytes, frame: Frame) -> int:
  """Returns the samples that mpg123 drops at the beginning of a file.

  Args:
    data: the first frame.
    frame: its header.
  """
  at = 4 + _side_bytes(frame)
  if data[at:at + 4] not in (b'Xing', b'Info'):
    return DECODER_DELAY
  flags, = struct.unpack('>I', data[at + 4:at + 8])
  # Fields that are there only if their flag is set: frames, bytes, a table of
  # contents, quality.
  at += 8 + sum(length for bit, length in enumerate((4, 4, 100, 4))
                if flags >> bit & 1)
  # LAME's tag begins with the encoder's name. The delay is in 12 bits.
  if len(data) < at + 24 or not data[at]:
    return DECODER_DELAY
  return (data[at + 21] << 4 | data[at + 22] >> 4) + DECODER_DELAY


def _side_bytes(frame: Frame) -> int:
  """Returns the bytes of side information between header and Xing tag."""
  if frame.kind[0] == 3:  # MPEG-1.
    stereo, mono = 32, 17
  else:
    stereo, mono = 17, 9
  if frame.mono:
    return mono
  return stereo


def _xing(data: bytes, frame: Frame) -> int | None:
  """Returns the number of frames that a Xing, Info or VBRI frame announces.

  It is 0 where the tag has no number, and None for any other frame.
  """
  side = _side_bytes(frame)
  for at in (4 + side, 6 + side):  # A checksum of two bytes may come before.
    if data[at:at + 4] in (b'Xing', b'Info'):
      flags, count = struct.unpack('>II', data[at + 4:at + 12].ljust(8, b'\0'))
      if flags & 1:
        return count
      return 0
  if data[36:40] == b'VBRI':  # Fraunhofer's tag, at a fixed place.
    return struct.unpack('>I', data[50:54].ljust(4, b'\0'))[0]
  return None


def _count(window: _Window, at: int, kind: tuple) -> tuple[int, list, int]:
  """Walks the frames from a byte on, and skips bytes between them.

  Returns:
    The number of whole frames; [(begin, end)] of the parts of the file that
    they fill; the end of the last frame by its header, which lies beyond the
    end of a file that is cut off.
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
  """Returns the position of the next frame of a kind, or None.

  Args:
    window: of the file.
    at: a byte where no such frame begins: a tag, or garbage.
    kind: see Frame.

  Raises:
    ValueError: no frame within MOST_GARBAGE bytes.
  """
  # Whole tags are skipped first: a picture in one may look like frames.
  head = window.get(at, 128)
  tag = id3_length(head)
  if tag:
    at += tag
  elif head[:3] == b'TAG' or head[:8] == b'APETAGEX':
    if head[:3] == b'TAG' and len(head) == 128 and window.size > at + 128:
      at += 128
    elif head[:3] == b'TAG':  # ID3v1 ends a file.
      return None
  for _ in range(0, MOST_GARBAGE, WINDOW):
    data = window.get(at, WINDOW + _LONGEST)
    place = data.find(b'\xff', 0, WINDOW)
    while place >= 0:
      frame = read_frame(data[place:place + 4])
      if frame is not None and frame.kind == kind:
        # One more frame must follow, or the end of the file.
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


def xing_frame(head: bytes, count: int, size: int) -> bytes:
  """Returns a Xing frame that announces a number of frames.

  Args:
    head: header of a frame of the file, whose kind it gets.
    count: number of frames.
    size: bytes of all frames.
  """
  # The lowest bit rate at which the tag fits into a frame.
  for index in range(1, 15):
    # The same header without a checksum (bit 0) and without padding.
    own_head = bytes([head[0], head[1] | 1, index << 4 | head[2] & 0x0C,
                      head[3]])
    frame = read_frame(own_head)
    if frame is not None and frame.length >= 200:
      break
  assert frame is not None  # Bit rates 1 to 14 are all valid.
  # Flags 3: the number of frames follows, and that of bytes.
  data = own_head + bytes(_side_bytes(frame)) + b'Xing' + struct.pack(
      '>III', 3, count, min(size + frame.length, 0xFFFFFFFF))
  return data.ljust(frame.length, b'\0')


def id3_length(head: bytes) -> int:
  """Returns the length of the ID3v2 tag that begins here, or 0."""
  if head[:3] != b'ID3' or len(head) < 10 or max(head[6:10]) > 127:
    return 0
  length = 0
  for byte in head[6:10]:  # 7 bits each, so that no byte looks like a frame.
    length = length * 128 + byte
  length += 10  # The header.
  if head[5] & 16:
    length += 10  # A footer.
  return length
