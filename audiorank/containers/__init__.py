"""Checks whether a sound file is whole, from the headers of its container.

A decoder does not report that it stopped early. libsndfile reads half of a
download, or 5 of the 20 seconds of an MP3 without a frame count, and ends as
if that were all. So `inspect` walks the container itself (chunks, pages or
frames, by their headers). It returns how to decode the whole file, or raises
with the reason why that is impossible:

  cut off        bytes, pages or frames are missing that headers announce
  several parts  another file, or more sound than announced, follows the end
  undecodable    a format that libsndfile cannot read

Some files are whole, but their recorder could not seek back to write the
length into the header. For these libsndfile reads a `View`: the same bytes
with a corrected header.
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

MOST_FRAMES = 2**60  # libsndfile reports more where the length is unknown.

# (offset, first bytes, name): sound that libsndfile cannot read, and files
# that are no sound at all.
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
  """Raises ValueError if the first bytes belong to a format of the tables."""
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
  """Returns how to decode the whole of a sound file.

  Args:
    file: open for reading, seekable; its position afterwards is undefined.

  Raises:
    ValueError: it is not whole, or of a format that cannot be read. The message
      is a reason, a colon and the detail.
  """
  size = file.seek(0, io.SEEK_END)
  # Before zeros are skipped: some of these formats begin with zeros.
  _refuse_foreign(views.read_at(file, 0, 64))
  begin = views.first_byte(file, size)
  first = begin
  # Taggers write ID3 before any format, not only before MP3.
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
    # A format without a length, or no sound: libsndfile decides.
    return Sound('')
  # libsndfile detects formats by the file's first bytes, so it must not see
  # what comes before them.
  if first and sound.file is None:
    sound = sound._replace(file=View(file, [(first, size)], views.name(file)))
  return sound


def check(sound: Sound, decoded: int, expected: int, rate: int) -> None:
  """Compares the number of decoded frames with the announced number.

  Args:
    sound: the result of `inspect`.
    decoded: number of sample frames that were decoded.
    expected: libsndfile's own count of them.
    rate: sample frames per second.

  Raises:
    ValueError: fewer were decoded.
  """
  promised = sound.frames
  if promised is None:
    promised = expected
  if promised > MOST_FRAMES:
    return
  if decoded < promised - sound.slack:
    raise ValueError(f'cut off: {decoded / rate:.3f} of {promised / rate:.3f} '
                     's could be decoded')


def _walker(head: bytes) -> Callable[[BinaryIO, int, int], Sound] | None:
  """Returns the function that inspects a file of these first bytes, or None."""
  if head[:4] in (b'RIFF', b'RIFX', b'RF64', b'BW64') and head[8:12] == b'WAVE':
    return chunks.riff
  if head[:4] == b'FORM' and head[8:12] in (b'AIFF', b'AIFC', b'8SVX',
                                            b'16SV'):
    return chunks.iff
  return {b'fLaC': flac.inspect, b'OggS': ogg.inspect, b'.snd': chunks.au,
          b'riff': chunks.w64, b'caff': chunks.caf, b'NIST': chunks.nist,
          b'Crea': chunks.voc, b'2BIT': chunks.avr}.get(head[:4])
