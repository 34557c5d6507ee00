"""Shared by all formats: how to decode a file, views of it, and errors."""

import bisect
import io
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

# Recorders that cannot seek back write a size of 0, or of about 2^31 or 2^32.
UNKNOWN = 0x7FFF0000
# A tail without meaning (padding, a stray tag) is ignored up to the larger of
# so many bytes and this share of the samples.
TAIL_BYTES, TAIL_SHARE = 1024, .01
# Bounds the walk through a damaged or malicious file.
MOST_CHUNKS = 100_000
WINDOW = 2**20  # Bytes read at a time.


class Sound(NamedTuple):
  """How to decode a file, and how much sound it must give."""
  form: str  # Name of the format.
  # What libsndfile reads instead of the file itself.
  file: BinaryIO | io.RawIOBase | None = None
  # Sample frames that must be decoded. None where the file does not say: then
  # libsndfile's own count is expected.
  frames: int | None = None
  slack: int = 0  # Frames that may be missing: encoder delay and padding.
  # The last frame is not whole, so an error of the decoder means a cut.
  torn: bool = False


class View(io.RawIOBase):
  """A read-only file, joined from byte strings and parts of another file."""

  def __init__(self, file: BinaryIO, parts: list, name: str):
    """Args:
      file: the other file.
      parts: bytes, or (begin, end) in the other file.
      name: name for messages.
    """
    super().__init__()
    self.name = name
    self._file, self._parts, self._at = file, parts, 0
    self._begins, total = [], 0
    for part in parts:
      self._begins.append(total)
      total += _length(part)
    self._size = total

  # What io.RawIOBase needs, and what soundfile calls.

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = 0) -> int:
    self._at = max(0, (0, self._at, self._size)[whence] + offset)
    return self._at

  def readinto(self, buffer: Any) -> int:
    out, filled = memoryview(buffer).cast('B'), 0
    while filled < len(out) and self._at < self._size:
      index = bisect.bisect_right(self._begins, self._at) - 1
      part, inner = self._parts[index], self._at - self._begins[index]
      count = min(len(out) - filled, _length(part) - inner)
      if isinstance(part, bytes):
        data = part[inner:inner + count]
      else:
        data = read_at(self._file, part[0] + inner, count)
      if not data:
        break
      out[filled:filled + len(data)] = data
      filled += len(data)
      self._at += len(data)
    return filled


def _length(part) -> int:
  """Returns the bytes of a part of a View."""
  if isinstance(part, bytes):
    return len(part)
  begin, end = part
  return end - begin


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
  """Returns `count` bytes from an offset, or fewer at the end of the file."""
  file.seek(offset)
  return file.read(count) or b''


def first_byte(file: BinaryIO, size: int) -> int:
  """Returns the position of the first byte that is not zero."""
  for offset in range(0, size, WINDOW):
    data = read_at(file, offset, WINDOW)
    rest = data.lstrip(b'\0')
    if rest:
      return offset + len(data) - len(rest)
  return 0


def name(file: BinaryIO) -> str:
  """Returns the name of an open file, for messages."""
  return str(getattr(file, 'name', '<file object>'))


def cut_off(have: int, want: int, what: str) -> ValueError:
  """Returns the error for a file of which `have` of `want` are there."""
  return ValueError(f'cut off: {have} of {want} {what}')


def patched(file: BinaryIO, begin: int, size: int, changes: dict) -> View:
  """Returns the file from `begin` to `size`, with some bytes replaced.

  Args:
    file: the other file.
    begin, size: its first byte, and the end.
    changes: {position in the other file: bytes}.
  """
  parts, at = [], begin
  for place, data in sorted(changes.items()):
    parts += [(at, place), data]
    at = place + len(data)
  return View(file, [*parts, (at, size)], name(file))


def check_rest(file: BinaryIO, at: int, size: int, samples: int) -> None:
  """Raises ValueError if much follows a file's end that is not all zeros.

  Args:
    file: open.
    at: the end, by its header.
    size: of the file.
    samples: bytes of the samples.
  """
  rest = size - at
  if rest <= max(TAIL_BYTES, TAIL_SHARE * samples):
    return
  for offset in range(at, size, WINDOW):
    if read_at(file, offset, WINDOW).strip(b'\0'):
      raise ValueError(f'several parts: {rest} bytes follow the end that its '
                       'header gives')


def refuse_second(file: BinaryIO, at: int, size: int, magic: bytes,
                  what: str) -> None:
  """Raises ValueError if another file begins at or after `at`.

  Args:
    file: open.
    at, size: where to search, up to the size of the file.
    magic: first bytes of such a file.
    what: its name, for the message.
  """
  keep = len(magic) - 1  # The bytes may lie across two windows.
  for offset in range(at, size, WINDOW):
    place = read_at(file, offset, WINDOW + keep).find(magic)
    if place >= 0:
      raise ValueError(f'several parts: another {what} begins at byte '
                       f'{offset + place}')
