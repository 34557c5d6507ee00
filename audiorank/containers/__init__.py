"""What a sound file promises, so that what was decoded can be compared.

A decoder that stops early does not say so: libsndfile reads half of a
download, or 5 of the 20 seconds of an MP3 without a frame count, and ends as
if that were all. `inspect` therefore walks the container itself (its chunks,
pages or frames, by their headers) and either returns how the file can be
decoded whole, or raises with the reason why it cannot:

  cut off        bytes, pages or frames that the file promises are not there
  several parts  another file, or more sound than it promises, follows its end
  undecodable    something that is known to be no sound for libsndfile

Some files are whole but written by recorders that could not seek back to
their header: they are given a corrected header here, over the bytes as they
are (`View`), which is what libsndfile is then shown.
"""

from collections.abc import Callable
import io
from typing import BinaryIO

from audiorank.containers import chunks
from audiorank.containers import flac
from audiorank.containers import mpeg
from audiorank.containers import ogg
from audiorank.containers import views
from audiorank.containers.views import Sound
from audiorank.containers.views import View

__all__ = ['check', 'inspect', 'Sound', 'View']

MOST_FRAMES = 2**60  # libsndfile counts more where it does not know.

FOREIGN = (
    (4, b'ftyp', 'an MP4 or M4A file'), (0, b'\x1aE\xdf\xa3', 'Matroska, WebM'),
    (0, b'\x30\x26\xb2\x75', 'WMA or ASF'), (0, b'#!AMR', 'AMR'),
    (0, b'MAC ', "Monkey's Audio"), (0, b'wvpk', 'WavPack'),
    (0, b'\x0b\x77', 'AC-3'))
NOT_SOUND = (
    (0, b'<!DOCTYPE', 'a web page'), (0, b'<html', 'a web page'),
    (0, b'<?xml', 'XML, such as the answer of a failed download'),
    (0, b'version https://git-lfs', 'a pointer of git-lfs, not the file'),
    (0, b'PK\x03\x04', 'a zip archive'), (0, b'\x1f\x8b', 'gzip'))


def _refuse_foreign(head: bytes) -> None:
  for at, magic, name in FOREIGN:
    if head[at:at + len(magic)] == magic:
      raise ValueError(f'undecodable: {name}, which libsndfile cannot read; '
                       'convert it, to FLAC for instance')
  for at, magic, name in NOT_SOUND:
    if head[at:at + len(magic)].lower() == magic.lower():
      raise ValueError(f'undecodable: {name}')
  if head[:2] in (b'\xff\xf1', b'\xff\xf9'):
    raise ValueError('undecodable: AAC, which libsndfile cannot read; convert '
                     'it, to FLAC for instance')


def inspect(file: BinaryIO) -> Sound:
  """Returns how to decode a sound file whole.

  Args:
    file: open for reading, seekable; where it stands afterwards is undefined.

  Raises:
    ValueError: it is not whole, or known not to be readable; the message is a
      reason, a colon and the detail.
  """
  size = file.seek(0, io.SEEK_END)
  _refuse_foreign(views.read_at(file, 0, 64))  # Some of them begin with zeros.
  begin = _first_byte(file, size)
  first = begin
  while tag := mpeg.id3_length(views.read_at(file, first, 10)):
    first += tag
  head = views.read_at(file, first, 64)
  walk = _walker(head)
  if walk is not None:
    sound = walk(file, first, size)
  elif first > begin or mpeg.begins(file, begin):
    sound, first = mpeg.inspect(file, begin, first, size), begin
  else:
    _refuse_foreign(head)
    # A format without a promise, or none: libsndfile will tell.
    return Sound('')
  if first and sound.file is None:
    sound = sound._replace(file=View(file, [(first, size)], views.name(file)))
  return sound


def check(sound: Sound, decoded: int, expected: int, rate: int) -> None:
  """Compares what was decoded with what was promised.

  Args:
    sound: of `inspect`.
    decoded: sample frames that came.
    expected: libsndfile's own count of them.
    rate: sample frames per second.

  Raises:
    ValueError: fewer came.
  """
  promised = expected if sound.frames is None else sound.frames
  if promised > MOST_FRAMES:  # libsndfile's word for unknown.
    return
  if decoded < promised - sound.slack:
    raise ValueError(f'cut off: {decoded / rate:.3f} of {promised / rate:.3f} '
                     's could be decoded')


def _walker(head: bytes) -> Callable[[BinaryIO, int, int], Sound] | None:
  """Returns the function for a file of these first bytes, or None."""
  if head[:4] in (b'RIFF', b'RIFX', b'RF64', b'BW64') and head[8:12] == b'WAVE':
    return chunks.riff
  if head[:4] == b'FORM' and head[8:12] in (b'AIFF', b'AIFC', b'8SVX',
                                            b'16SV'):
    return chunks.iff
  return {b'fLaC': flac.inspect, b'OggS': ogg.inspect, b'.snd': chunks.au,
          b'riff': chunks.w64, b'caff': chunks.caf, b'NIST': chunks.nist,
          b'Crea': chunks.voc, b'2BIT': chunks.avr}.get(head[:4])


def _first_byte(file: BinaryIO, size: int) -> int:
  """Returns where the file begins behind zeros."""
  for offset in range(0, size, views.WINDOW):
    data = views.read_at(file, offset, views.WINDOW)
    rest = data.lstrip(b'\0')
    if rest:
      return offset + len(data) - len(rest)
  return 0


