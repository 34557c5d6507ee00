"""Ogg: every page of the stream, and the mark on its last one.

Sources: RFC 3533 (Ogg), RFC 7845 (Opus).
"""

import struct
from typing import BinaryIO
from typing import NamedTuple

from audiorank.containers.views import cut_off
from audiorank.containers.views import read_at
from audiorank.containers.views import Sound
from audiorank.containers.views import TAIL_BYTES

_OGG = {b'\x01vorbis': 'vorbis', b'OpusHead': 'opus', b'Speex   ': 'speex',
        b'\x7fFLAC': 'flac in ogg'}


class Page(NamedTuple):
  """begin, end: bytes.  flags: 1 goes on, 2 first, 4 last.

  granule: samples up to its end.  serial: of its stream.
  """
  begin: int
  end: int
  flags: int
  granule: int
  serial: int
  sequence: int


def pages(file: BinaryIO, begin: int, size: int):
  """Yields the Pages of a file.

  Raises:
    ValueError: a page that is not whole, or bytes that are none.
  """
  at = begin
  while at < size:
    head = read_at(file, at, 27 + 255)
    if head[:4] != b'OggS':
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
  form, serial, last, bodies, next_page = 'ogg', None, None, False, None
  for page in pages(file, begin, size):
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
