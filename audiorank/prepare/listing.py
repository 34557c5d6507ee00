"""Lists the sound files of a folder, of tars and of parquet files.

Only names, sizes and the headers of archives are read, and no sound is decoded.
Files that are not read although they may contain sound are listed by name, so
that no part of a corpus is missing without a message.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
import functools
import hashlib
import os
import pathlib
import stat
from typing import NamedTuple

from audiorank import files
from audiorank.data import parquet
from audiorank.data import stored
from audiorank.prepare import archives
from audiorank.prepare import sources as sources_lib

# Endings of sound files, those that libsndfile cannot read as well: such files
# are refused with a message instead of being ignored.
SOUND = frozenset("""
    wav wave flac ogg oga opus mp3 mp2 mp1 mpga aif aiff aifc au snd caf w64
    rf64 sph nist voc paf svx ircam avr sd2 xi htk
    m4a mp4 aac wma wv ape webm mka amr ac3 tta spx""".split())
# Endings of files that may contain sound, but are not read.
HOLDERS = {
    **dict.fromkeys('zip 7z rar gz bz2 xz zst lz4 z'.split(),
                    'an archive: unpack it'),
    **dict.fromkeys('parquet arrow feather'.split(),
                    'a table without sound that is read'),
    **dict.fromkeys('h5 hdf5 npz npy mat tfrecord tfrecords array_record '
                    'lmdb mdb pkl pt pth bin raw pcm dat'.split(),
                    'may hold samples, but is no sound file'),
    **dict.fromkeys('mkv avi mov mpg mpeg ts flv wmv m4v 3gp m4b aax'.split(),
                    'a film or audio book: extract its sound')}
# Endings of files that contain no sound. All others are opened, to look at
# their first bytes.
PLAIN = frozenset("""
    txt csv tsv json jsonl md rst py yaml yml toml xml html htm pdf png jpg
    jpeg gif svg log lab textgrid cue m3u lrc mid midi sha256 md5 srt vtt rttm
    stm ctm trn tex cfg ini sh docx xlsx pptx odt ods whl jar""".split())
# (offset, bytes there) of common sound files.
MAGIC = ((0, b'RIFF'), (0, b'RF64'), (0, b'fLaC'), (0, b'OggS'), (0, b'ID3'),
         (0, b'caff'), (0, b'.snd'), (0, b'NIST_1A'), (8, b'AIFF'),
         (8, b'AIFC'), (4, b'ftyp'), (0, b'\xff\xfb'))
# The same of archives and films: tar, zip, gzip, bzip2, xz, zstd, 7z, rar,
# parquet, HDF5, Matroska.
HOLDER_MAGIC = ((257, b'ustar'), (0, b'PK\x03\x04'), (0, b'\x1f\x8b'),
                (0, b'BZh'), (0, b'\xfd7zXZ'), (0, b'\x28\xb5\x2f\xfd'),
                (0, b'7z\xbc\xaf'), (0, b'Rar!'), (0, b'PAR1'),
                (0, b'\x89HDF'), (0, b'\x1aE\xdf\xa3'))
LOOKED_AT = 262  # First bytes of a file, enough for all of these.
MOST_NAMED = 100  # Names of unread files in corpus.json.

Others = list[tuple[str, str]]  # (name, why it may contain sound or '').


class Entry(NamedTuple):
  """One sound file to read or to refuse."""
  file: str  # Its name in the manifest.
  path: str  # The file to open,
  offset: int  # its first byte there,
  size: int  # and its bytes.
  source: str  # Name of the recording.
  category: str
  refused: str  # Why it is refused, or ''.
  inner: str = ''  # In parquet, which value of a page; see data/parquet.py.


class Passed:
  """Counts of the files that are not read.

  kinds: {ending: files}.  suspects: {name: why it may contain sound}, the first
  MOST_NAMED of them.  suspects_count: of all suspects.
  """

  def __init__(self) -> None:
    self.kinds: collections.Counter = collections.Counter()
    self.suspects: dict[str, str] = {}
    self.suspects_count = 0

  def add(self, name: str, why: str) -> None:
    """Counts a file.

    Args:
      name: of the file.
      why: the reason that it may contain sound, or ''.
    """
    base = name.rpartition('/')[2]
    self.kinds[_ending(base) or 'no ending'] += 1
    if why:
      self.suspects_count += 1
      if len(self.suspects) < MOST_NAMED:
        self.suspects[printable(name)] = why


class Listing(NamedTuple):
  """The files of an input."""
  entries: list[Entry]  # Sorted by name.
  passed: Passed


class File(NamedTuple):
  """One file of an input."""
  name: str  # Below the input.
  path: pathlib.Path  # Or a bucket.Path.
  size: int  # Bytes on a bucket, whose listing has them; 0 on a disk.


def walk(audio: pathlib.Path, skip: pathlib.Path) -> list[File]:
  """Returns the files of an input.

  Args:
    audio: a folder, searched to any depth, or a single file.
    skip: a folder to leave out.
  """
  if files.is_on_bucket(audio):
    return _objects(audio, skip)
  if not audio.is_dir():
    return [File(audio.name, audio, 0)]
  return _walk(audio, skip)


def _objects(audio: pathlib.Path, skip: pathlib.Path) -> list[File]:
  """Returns the objects below a gs:// path, or the object of that name."""
  below = files.stats(audio)
  if not below:
    return [File(audio.name, audio, audio.stat().st_size)]
  # With the slash: another folder may begin with the same letters.
  out = f'{os.fspath(skip)}/'
  return [File(name, audio / name, size)
          for name, (size, _) in sorted(below.items())
          if not os.fspath(audio / name).startswith(out)]


def packed(below: list[File]) -> list[pathlib.Path]:
  """Returns the compressed tars among the files of `walk`."""
  return [file.path for file in below
          if archives.is_packed(file.name) and _regular(file.path)]


def scan(audio: pathlib.Path, below: list[File], max_members: int,
         unpacked: dict, tables: set) -> Listing:
  """Lists the sound of an input.

  Args:
    audio: the folder or file, for messages.
    below: from `walk`.
    max_members: the most members that a tar may have.
    unpacked: {compressed tar: its plain copy, or a str why there is none}.
    tables: paths of tables of sources, which are not part of the input.

  Raises:
    ValueError: there is no sound; names a file that may contain some.
    files.StoreError: it is on a bucket that cannot be reached.
  """
  entries: list[Entry] = []
  passed = Passed()
  # On a bucket in parallel, where each look is a request.
  for of_file, others in files.mapped(
      lambda file: _of_file(file, max_members, unpacked),
      [file for file in below if file.path not in tables], audio):
    entries += of_file
    for name, why in others:
      passed.add(name, why)
  if not entries:
    raise ValueError(f'{audio}: no sound files in it '
                     f'({sum(passed.kinds.values())} other files)'
                     f'{_named(passed)}')
  return Listing(sorted(entries), passed)


def _of_file(file: File, max_members: int, unpacked: dict) -> tuple[
    list[Entry], Others]:
  """Returns the sounds of a file, and the names of what is not read.

  Args:
    file: from `walk`.
    max_members, unpacked: as for `scan`.
  """
  name, path, _ = file
  # A folder that cannot be opened; see `_walk`.
  if not files.is_on_bucket(path) and path.is_dir():
    return [_refused(file, 'unreadable')], []
  if archives.is_tar(name):
    return _of_tar(file, unpacked.get(path, path), max_members)
  if name.lower().endswith('.parquet') and _regular(path):
    return _of_parquet(file)
  if _is_sound(name):
    return [_entry(file)], []
  if _is_part(name):
    return [_refused(file, 'several parts: part of a split archive; join the '
                     'parts and unpack them')], []
  return [], [(name, _suspicion(name, functools.partial(_first_bytes, path)))]


def _named(passed: Passed) -> str:
  """Returns the first file that may contain sound, for a message, or ''."""
  for name, why in passed.suspects.items():
    return f'; {name}: {why}'
  return ''


def with_sources(entries: list, rows: dict) -> list:
  """Returns entries with the source and category of a table's rows.

  Args:
    entries: from `scan`.
    rows: {file: sources.Row}.
  """
  out = []
  for entry in entries:
    row = rows.get(entry.file)
    if row is not None:
      entry = entry._replace(
          source=sources_lib.recording(row.source) or entry.source,
          category=row.category or entry.category)
    out.append(entry)
  return out


def fingerprint(entries: Iterable[Entry]) -> str:
  """Returns a hash of the names, sizes and sources of a listing."""
  digest = hashlib.sha256()
  for entry in entries:
    # Sizes but no contents: hashing a whole corpus would take hours.
    # repr keeps fields apart: no two listings give the same text.
    digest.update(repr((entry.file, entry.size, entry.source,
                        entry.refused)).encode())
  return digest.hexdigest()


def shares(entries: list, target: int = 64, smallest: int = 2**20,
           largest: int = 2**28, most: int = 4096) -> list:
  """Divides a listing into consecutive runs, one per shard.

  Args:
    entries: from `scan`.
    target: number of runs, of about equal size in bytes.
    smallest, largest: limits of a run's bytes.
    most: the most files of a run.
  """
  total = sum(entry.size for entry in entries)
  # Small corpora get few shards, large ones many of 256 MB.
  limit = min(max(total // target, smallest), largest)
  runs: list[list] = [[]]
  size = 0
  for entry in entries:
    if runs[-1] and (size + entry.size > limit or len(runs[-1]) >= most):
      runs.append([])
      size = 0
    runs[-1].append(entry)
    size += entry.size
  return runs


def printable(name: str) -> str:
  """Returns a name as valid UTF-8; file systems allow any bytes."""
  # Names that are not UTF-8 arrive with surrogates (PEP 383), which a strict
  # encoder refuses.
  return name.encode('utf-8', 'backslashreplace').decode()


def _ending(base: str) -> str:
  """Returns the ending of a file name in lower case, or ''."""
  if '.' not in base.lstrip('.'):  # A leading full stop hides the file.
    return ''
  return base.rpartition('.')[2].lower()


def _is_sound(name: str) -> bool:
  """Returns whether a name is that of a sound file."""
  # Hidden files are left out: macOS writes ._a.wav beside a.wav.
  base = name.rsplit('/', 1)[-1]
  return not base.startswith('.') and _ending(base) in SOUND


def _is_part(name: str) -> bool:
  """Returns whether a file is a part of a split archive.

  Such as a.tar.00, a.tar.gz.aa, a.zip.001 or a.part1.rar.
  """
  stem, _, last = name.lower().rpartition('.')
  if '.' not in stem:
    return False
  archive = stem.rpartition('.')[2] in ('tar', 'gz', 'tgz', 'zip', '7z', 'rar',
                                        'zst', 'xz', 'bz2')
  # A single digit would rather be a version.
  digits = last.isdigit() and len(last) >= 2
  # As `split` names its parts: aa, ab, ...
  letters = len(last) == 2 and last.isalpha() and last[0] in 'abc'
  rar = last == 'rar' and stem.rpartition('.')[2].startswith('part') and (
      stem.rpartition('.')[2][4:].isdigit())
  return (archive and (digits or letters)) or rar


def _is_volume(ending: str) -> bool:
  """Returns whether an ending is one of a split zip or rar: z01, r00, ..."""
  return len(ending) == 3 and ending[0] in 'zr' and ending[1:].isdigit()


def _suspicion(name: str, first_bytes: Callable[[], bytes]) -> str:
  """Returns why a file that is not read may contain sound, or ''.

  Args:
    name: of the file.
    first_bytes: reads its beginning; called only if the name is not enough.
  """
  base = name.rpartition('/')[2]
  ending = _ending(base)
  if ending in HOLDERS:
    return HOLDERS[ending]
  if _is_volume(ending):
    return 'part of a split archive: join its parts and unpack them'
  if ending in PLAIN:
    return ''
  head = first_bytes()
  if _is_magic(head):
    kind = 'sound'
  elif _has_magic(head, HOLDER_MAGIC):
    kind = 'an archive or film'
  else:
    return ''
  if base.startswith('.'):
    return f'begins like {kind}, but is hidden'
  return f'begins like {kind}, but its name does not say so'


def _first_bytes(path: pathlib.Path) -> bytes:
  """Returns the first bytes of a file, or none if it cannot be read."""
  try:
    if not _regular(path):
      return b''
    if files.is_on_bucket(path):
      return files.read_part(path, 0, LOOKED_AT)
    with open(path, 'rb') as file:
      return file.read(LOOKED_AT)
  # A bucket that does not answer is no file without sound.
  except files.StoreError:
    raise
  except OSError:
    return b''


def _regular(path: pathlib.Path) -> bool:
  """Returns whether a path is a file; opening a pipe would wait forever."""
  if files.is_on_bucket(path):
    return True
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except OSError:
    return False


def _walk(root: pathlib.Path, skip: pathlib.Path) -> list[File]:
  """Returns the files below a folder."""
  # By identity and not by path, because links can lead around in a circle.
  visited, pending = set(), [root]
  out: list[File] = []
  if not files.is_on_bucket(skip) and skip.exists():
    visited.add(_identity(skip))
  while pending:
    folder = pending.pop()
    try:
      if _identity(folder) in visited:
        continue
      visited.add(_identity(folder))
      names = os.listdir(folder)
    except OSError:
      # Listed like a file, so that `scan` refuses it by name.
      names = []
      out.append(File(f'{folder.relative_to(root).as_posix()}/.', folder, 0))
    for path in (folder / name for name in names):
      if os.path.isdir(path):
        pending.append(path)
      else:
        out.append(File(path.relative_to(root).as_posix(), path, 0))
  # Sorted, as file systems list in different orders.
  return sorted(out)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  """Returns the device and inode of a folder, the same for all its links."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def _entry(file: File) -> Entry:
  """Returns the entry of a sound file in a folder."""
  name, path, size = file
  label = printable(name)
  if files.is_on_bucket(path):
    return Entry(label, os.fspath(path), 0, size, label, _category(label), '')
  refused = ''
  try:
    status = path.stat()
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
      refused = 'not a regular file'
    elif not os.access(path, os.R_OK):
      refused = 'unreadable'
  except OSError as error:
    refused = f'unreadable: {error.strerror}'
  return Entry(label, str(path), 0, size, label, _category(label), refused)


def _category(label: str) -> str:
  """Returns the first folder of a name, or ''."""
  first, slash, _ = label.partition('/')
  if not slash:
    return ''
  return first


def _of_tar(file: File, path: pathlib.Path | str, most: int) -> tuple[
    list[Entry], Others]:
  """Returns the sound files of a tar, and the tar itself if it is damaged.

  Args:
    file: the tar.
    path: the tar to read: a plain copy of a compressed one, or a str, the
      reason that there is none.
    most: the most members that it may have.

  Returns:
    entries, and the members that are not read.
  """
  name = file.name
  if isinstance(path, str):
    return [_refused(file, path)], []
  if not _regular(path):
    return [_refused(file, 'not a regular file')], []
  outer = printable(name).rpartition('/')[0]
  entries: list[Entry] = []
  others: Others = []
  places: dict[str, int] = {}  # Label -> its position in entries.
  # Members whose first bytes decide: neither sound by their names nor certain
  # to be none.
  look = lambda inner: not _is_sound(inner) and (
      _ending(inner.rpartition('/')[2]) not in PLAIN)
  try:
    for member in archives.members(path, most, look):
      if not _is_sound(member.name):
        others.append((f'{name}/{member.name}', _suspicion(
            member.name, functools.partial(bytes, member.head))))
        continue
      label = printable(f'{name}/{member.name}')
      # The folder of the tar gives the category, or else the first one in it.
      folder = outer or printable(member.name).rpartition('/')[0]
      if label in places:
        # Extracting the tar would keep the later one.
        earlier = entries[places[label]]
        entries[places[label]] = earlier._replace(
            refused='replaced: a later member has the same name')
      places[label] = len(entries)
      entries.append(Entry(
          label, os.fspath(path), member.offset, member.size, label,
          folder.partition('/')[0], member.refused))
  except files.StoreError:
    raise
  except (ValueError, OSError) as error:
    refusal = _refused(file._replace(path=path), f'damaged archive: {error}')
    if f'more than {most} members' in str(error):
      return [refusal], []  # A bomb: nothing of it is wanted.
    entries.append(refusal)
  return entries, others


def _of_parquet(file: File) -> tuple[list[Entry], Others]:
  """Returns the sounds of a parquet file, or the file itself if damaged.

  Returns:
    entries, and the file's name if it has no sound.
  """
  name, path, _ = file
  outer, label = printable(name).rpartition('/')[0], printable(name)
  try:
    rows = list(parquet.sounds(functools.partial(stored.open_file, path)))
    # Its first values decide.
    if not _begins_like_sound(path, rows):
      return [], [(name, HOLDERS['parquet'])]
  except KeyError:
    return [], [(name, HOLDERS['parquet'])]
  except ValueError as error:
    return [_refused(file, f'damaged archive: {error}')], []
  # Sizes are of pages, which contain several values. Their average is enough
  # for `shares`.
  on_page = collections.Counter(place.offset for _, place in rows)
  times = collections.Counter(inner for inner, _ in rows)
  entries = []
  for number, (inner, place) in enumerate(rows):
    # Rows without a name of their own are called by number.
    if not inner or times[inner] > 1:
      inner = f'{number:07d}'
    # A name in the manifest must not lead out of a folder.
    inner = '/'.join(p for p in printable(inner).split('/')
                     if p not in ('', '.', '..'))
    folder = outer or inner.rpartition('/')[0]
    entries.append(Entry(
        f'{label}/{inner}', os.fspath(path), place.offset,
        max(1, place.size // on_page[place.offset]), f'{label}/{inner}',
        folder.partition('/')[0], '', place.text()))
  return entries, []


def _begins_like_sound(path: pathlib.Path, rows: list) -> bool:
  """Returns whether one of the first values is a sound file."""
  # A column `audio` may also contain tokens or numbers.
  # Shared by the reads below: values of one page follow each other.
  page: dict = {}
  with stored.open_file(path) as file:
    for _, place in rows[:16]:
      head = parquet.read(file, place, page)
      if head is not None and _is_magic(head[:archives.SNIFFED]):
        return True
  return False


def _is_magic(head: bytes) -> bool:
  """Returns whether a file that begins with these bytes is a sound file."""
  # Eleven ones are the beginning of an MPEG frame.
  return _has_magic(head, MAGIC) or (
      len(head) > 1 and head[0] == 255 and head[1] >= 0xE0)


def _has_magic(head: bytes, magics: Iterable[tuple[int, bytes]]) -> bool:
  """Returns whether first bytes are those of one of the formats."""
  return any(head[at:at + len(magic)] == magic for at, magic in magics)


def _refused(file: File, why: str) -> Entry:
  """Returns an entry that refuses a whole file."""
  label = printable(file.name)
  size = file.size
  if not files.is_on_bucket(file.path) and file.path.is_file():
    size = file.path.stat().st_size
  return Entry(label, os.fspath(file.path), 0, size, label, '', why)
