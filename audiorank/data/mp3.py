"""Where the parts of an MP3 begin, so that a crop is decoded alone.

An MP3 has no table of its frames: a decoder that seeks reads all frames before.
And a frame may use bits of up to a dozen earlier ones. So `prepare` writes for
each chunk of a record (see stored.piece) which bytes it needs, from some frames
before it on. These bytes alone are read and decoded.

Source: ISO 11172-3, 2.4.2.7 (main_data_begin: at most 511 bytes, and 255 below
32 kHz).
"""

import io
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers import mpeg

NAME = 'mp3'  # The text of Chunks begins with it.


class Chunk(NamedTuple):
  """The bytes of an MP3 that contain a chunk of a record."""
  skip: int  # Samples that are decoded before the chunk, at the file's rate.
  begin: int  # First byte.
  size: int  # Bytes.


class Chunks(NamedTuple):
  """The chunks of a record."""
  total: int  # Samples of the whole file, at its own rate.
  chunks: list[Chunk]

  def text(self) -> str:
    """Returns all of it as text, for a manifest."""
    numbers = [self.total, *(n for chunk in self.chunks for n in chunk)]
    return ':'.join([NAME, *map(str, numbers)])


def parse(text: str) -> Chunks | None:
  """Returns the Chunks of a `Chunks.text`, or None if it is another text."""
  name, *numbers = text.split(':')
  if name != NAME:
    return None
  total, *rest = map(int, numbers)
  return Chunks(total, [Chunk(*rest[i:i + 3])
                        for i in range(0, len(rest), 3)])


def chunk(table: mpeg.Table, begin: int, end: int, lead: float) -> Chunk:
  """Returns the Chunk of some samples.

  Args:
    table: of the file's frames.
    begin, end: of the samples, at the file's rate.
    lead: seconds to decode before them.
  """
  frames = len(table.begins) - 1
  first = max(0, (begin + table.delay - round(lead * table.rate))
              // table.samples)
  # The last sample's frame, and one more: layer 3 overlaps them.
  last = min(frames, (end + table.delay) // table.samples + 2)
  # A decoder drops its own delay, whatever it is given.
  skip = begin + table.delay - mpeg.DECODER_DELAY - first * table.samples
  return Chunk(skip, table.begins[first],
               table.begins[last] - table.begins[first])


def opened(file: BinaryIO | io.RawIOBase, where: Chunk) -> Any:
  """Returns the frames of a Chunk as a sound file in memory.

  Args:
    file: the whole MP3, open.
    where: the Chunk.

  Raises:
    ValueError: no frame begins there.
  """
  file.seek(where.begin)
  data = file.read(where.size) or b''
  if len(data) < where.size:
    raise ValueError('cut off')
  data = mpeg.playable(data)
  # libsndfile would guess the length from the first frame's bit rate. This
  # number of frames is too large, and reading ends with the bytes.
  return io.BytesIO(mpeg.xing_frame(data[:4], where.size, where.size) + data)
