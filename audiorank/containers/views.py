"""What all formats need: how to decode a file, views of one, refusals."""

import bisect
import io
from typing import BinaryIO
from typing import NamedTuple

# Sizes that recorders write who cannot seek back: 0, or about 2^31 or 2^32.
UNKNOWN = 0x7FFF0000
# A tail of no meaning (padding, a stray tag) is passed over up to these.
TAIL_BYTES, TAIL_SHARE = 1024, .01
MOST_CHUNKS = 100_000
WINDOW = 2**20  # Bytes read at a time.


class Sound(NamedTuple):
  """How to decode a file, and what has to come.

  form: name of the format.
  file: what libsndfile is to read; None for the file as it is.
  frames: sample frames that must be decoded, or None where the file does not
    say: then libsndfile's own count holds.
  slack: frames that may be missing (encoder delay and padding).
  torn: its last frame is not whole: an error of the decoder means a cut.
  """
  form: str
  file: BinaryIO | None = None
  frames: int | None = None
  slack: int = 0
  torn: bool = False


class View(io.RawIOBase):
  """A read-only file joined of byte strings and parts of another file."""

  def __init__(self, file: BinaryIO, parts: list, name: str):
    """Args:
      file: the other file.
      parts: bytes, or (begin, end) in the other file.
      name: what libsndfile calls it.
    """
    super().__init__()
    self.name = name
    self._file, self._parts, self._at = file, parts, 0
    self._begins, total = [], 0
    for part in parts:
      self._begins.append(total)
      total += _length(part)
    self._size = total

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = 0) -> int:
    self._at = max(0, (0, self._at, self._size)[whence] + offset)
    return self._at

  def readinto(self, buffer) -> int:
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
  return len(part) if isinstance(part, bytes) else part[1] - part[0]


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
  file.seek(offset)
  return file.read(count) or b''


def name(file: BinaryIO) -> str:
  return str(getattr(file, 'name', '<file object>'))


def cut_off(have: int, want: int, what: str) -> ValueError:
  return ValueError(f'cut off: {have} of {want} {what}')


def patched(file: BinaryIO, begin: int, size: int, changes: dict) -> View:
  """Returns the file from `begin`, with other bytes at some places."""
  parts, at = [], begin
  for place, data in sorted(changes.items()):
    parts += [(at, place), data]
    at = place + len(data)
  return View(file, [*parts, (at, size)], name(file))


def check_rest(file: BinaryIO, at: int, size: int, samples: int) -> None:
  """Refuses what follows a file's end, if it is much and not all zeros."""
  rest = size - at
  if rest <= max(TAIL_BYTES, TAIL_SHARE * samples):
    return
  for offset in range(at, size, WINDOW):
    if read_at(file, offset, WINDOW).strip(b'\0'):
      raise ValueError(f'several parts: {rest} bytes follow the end that its '
                       'header gives')


def refuse_second(file: BinaryIO, at: int, size: int, magic: bytes,
                   what: str) -> None:
  keep = len(magic) - 1
  for offset in range(at, size, WINDOW):
    place = read_at(file, offset, WINDOW + keep).find(magic)
    if place >= 0:
      raise ValueError(f'several parts: another {what} begins at byte '
                       f'{offset + place}')
