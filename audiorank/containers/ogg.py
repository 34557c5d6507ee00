"""Ogg: checks every page of the stream, and the mark of its last page.

Sources: RFC 3533 (Ogg), RFC 7845 (Opus).
"""

from collections.abc import Iterator
import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import cut_off
from audiorank.containers.views import read_at
from audiorank.containers.views import Sound
from audiorank.containers.views import TAIL_BYTES

# First bytes of a stream -> codec.
_OGG = {b'\x01vorbis': 'vorbis', b'OpusHead': 'opus', b'Speex   ': 'speex',
        b'\x7fFLAC': 'flac in ogg'}


class Page(NamedTuple):
  """The header of a page."""
  begin: int  # First byte.
  end: int  # First byte after it.
  flags: int  # 1: continues a packet. 2: first page, 4: last page of a stream.
  granule: int  # Samples up to its end.
  serial: int  # Number of its stream.
  sequence: int  # Number of the page in its stream.


def pages(file: BinaryIO, begin: int, size: int) -> Iterator[Page]:
  """Yields the Pages of a file.

  Args:
    file: open.
    begin: first byte of the first page.
    size: of the file.

  Raises:
    ValueError: a page that is not whole, or bytes that are no page.
  """
  at = begin
  while at < size:
    # A header: 27 bytes, then the sizes of up to 255 segments, a byte each.
    head = read_at(file, at, 27 + 255)
    if head[:4] != b'OggS':
      # Zeros, a short tail, or an ID3v1 tag may follow the last page.
      if not head.strip(b'\0') and not read_at(
          file, at, size - at).strip(b'\0'):
        return
      if size - at < TAIL_BYTES or head[:3] == b'TAG':
        return
      raise ValueError(f'undecodable: no Ogg page at byte {at}')
    if len(head) < 27 or len(head) < 27 + head[26]:
      raise cut_off(size - at, 27 + 255, 'bytes of its last page are there')
    flags, granule, serial, sequence = struct.unpack('<BqII', head[5:22])
    end = at + 27 + head[26] + sum(head[27:27 + head[26]])
    if end > size:
      raise cut_off(size - at, end - at, 'bytes of its last page are there')
    yield Page(at, end, flags, granule, serial, sequence)
    at = end


def inspect(file: BinaryIO, begin: int, size: int) -> Sound:
  """Returns how to decode an Ogg file; see `containers.inspect`.

  Args:
    file: open.
    begin: first byte of the first page.
    size: of the file.

  Raises:
    ValueError: not whole, or of several parts.
  """
  form, serial, last, bodies, next_page = 'ogg', None, None, False, None
  for page in pages(file, begin, size):
    # The first pages of all streams come before any other page. So one that
    # comes later begins another file, which decoders would ignore.
    if page.flags & 2:
      if bodies:
        raise ValueError('several parts: another Ogg stream begins at byte '
                         f'{page.begin}')
      head = read_at(file, page.begin + 28, 8)
      for magic, name in _OGG.items():
        if serial is None and head.startswith(magic):
          form, serial = name, page.serial
    else:
      bodies = True
    if serial is not None and page.serial == serial:
      if next_page not in (None, page.sequence):
        raise ValueError(f'cut off: pages {next_page} to {page.sequence - 1} '
                         'of it are missing')
      last, next_page = page, page.sequence + 1
  if last is not None and not last.flags & 4:
    raise ValueError('cut off: no page of it is marked as the last')
  return Sound(form)
