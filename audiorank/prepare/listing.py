"""What there is to read: sound files of a folder, in tars and in parquet.

The listing reads names, sizes and the headers of archives; no sound is decoded
for it. What is passed over, though it looks like sound or may hold some, is
noted by name, so that a corpus never loses a part in silence.
"""

import collections
from collections.abc import Iterable
import hashlib
import os
import pathlib
import stat
from typing import NamedTuple

from audiorank.data import parquet
from audiorank.prepare import archives
from audiorank.prepare import sources as sources_lib

# What libsndfile reads, and what it does not: a file that looks like sound but
# cannot be read belongs into the quarantine, not into silence.
SOUND = frozenset("""
    wav wave flac ogg oga opus mp3 mp2 mp1 mpga aif aiff aifc au snd caf w64
    rf64 sph nist voc paf svx ircam avr sd2 xi htk
    m4a mp4 aac wma wv ape webm mka amr ac3 tta spx""".split())
# What may hold sound, but is not looked into.
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
# Of names that say enough: not worth a look at the first bytes.
PLAIN = frozenset("""
    txt csv tsv json jsonl md rst py yaml yml toml xml html htm pdf png jpg
    jpeg gif svg log lab textgrid cue m3u lrc mid midi sha256 md5 srt vtt rttm
    stm ctm trn tex cfg ini sh""".split())
MAGIC = ((0, b'RIFF'), (0, b'RF64'), (0, b'fLaC'), (0, b'OggS'), (0, b'ID3'),
         (0, b'caff'), (0, b'.snd'), (0, b'NIST_1A'), (8, b'AIFF'),
         (8, b'AIFC'), (4, b'ftyp'), (0, b'\xff\xfb'))
MOST_NAMED = 100  # Of what was passed over, in corpus.json.


class Entry(NamedTuple):
  """One file to read, or to refuse when `refused` gives a reason.

  file: as the manifest names it.  path: what to open.
  offset, size: of its bytes there.  inner: of parquet, which value of the page
    that these bytes are; see data/parquet.py.
  """
  file: str
  path: str
  offset: int
  size: int
  source: str
  category: str
  refused: str
  inner: str = ''


class Passed(NamedTuple):
  """What was passed over.

  kinds: {ending: how many}.  suspects: {name: why it may hold sound}, the
  first of them.  count: of all suspects.
  """
  kinds: collections.Counter
  suspects: dict
  count: list

  def add(self, name: str, why: str) -> None:
    """Notes one file; `why` it may hold sound, or ''."""
    base = name.rpartition('/')[2]
    self.kinds[_ending(base) or 'no ending'] += 1
    if why:
      self.count[0] += 1
      if len(self.suspects) < MOST_NAMED:
        self.suspects[printable(name)] = why


class Listing(NamedTuple):
  """entries: sorted by name.  passed: over.  files: what folders hold."""
  entries: list
  passed: Passed


def walk(audio: pathlib.Path, skip: pathlib.Path) -> list:
  """Returns the files of an input as (name, path); of a file, itself.

  Args:
    audio: a folder, searched to any depth, or a file.
    skip: a folder to leave out.
  """
  if not audio.is_dir():
    return [(audio.name, audio)]
  return _walk(audio, skip)


def packed(files: list) -> list[pathlib.Path]:
  """Returns the compressed tars among the files of `walk`."""
  return [path for name, path in files
          if archives.is_packed(name) and _regular(path)]


def scan(audio: pathlib.Path, files: list, max_members: int,
         unpacked: dict, tables: set) -> Listing:
  """Lists the sound of an input.

  Args:
    audio: the folder or file itself, for messages.
    files: of `walk`.
    max_members: the most members a tar may have.
    unpacked: compressed tar -> its plain copy, or why there is none (a str).
    tables: paths of tables that are read as such, no part of the input.

  Raises:
    ValueError: nothing in it that looks like sound; names what may hold some.
  """
  entries, passed = [], Passed(collections.Counter(), {}, [0])
  for name, path in files:
    if path in tables:
      continue
    if path.is_dir():
      entries.append(_refused(name, path, 'unreadable'))
    elif archives.is_tar(name):
      entries += _of_tar(name, path, unpacked.get(path, path), max_members,
                         passed)
    elif name.lower().endswith('.parquet') and _regular(path):
      entries += _of_parquet(name, path, passed)
    elif _is_sound(name):
      entries.append(_entry(name, path))
    elif _is_part(name):
      entries.append(_refused(name, path, 'several parts: part of a split '
                              'archive; join the parts and unpack them'))
    else:
      passed.add(name, _suspicion(name, lambda path=path: _first_bytes(path)))
  if not entries:
    raise ValueError(f'{audio}: no sound files in it '
                     f'({sum(passed.kinds.values())} other files)'
                     f'{_named(passed)}')
  return Listing(sorted(entries), passed)


def _named(passed: Passed) -> str:
  for name, why in passed.suspects.items():
    return f'; {name}: {why}'
  return ''


def with_sources(entries: list, found: dict) -> list:
  """Returns entries with the source and category of a table's rows.

  Args:
    entries: of `scan`.
    found: {file: sources.Row}.
  """
  out = []
  for entry in entries:
    row = found.get(entry.file)
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
    digest.update(repr((entry.file, entry.size, entry.source,
                        entry.refused)).encode())
  return digest.hexdigest()


def shares(entries: list, target: int = 64, smallest: int = 2**20,
           largest: int = 2**28, most: int = 4096) -> list:
  """Cuts a listing into consecutive runs, one per shard.

  Some `target` runs of equal size in bytes, but within [smallest, largest]
  bytes and of at most `most` files; a pure function of the listing.
  """
  total = sum(entry.size for entry in entries)
  limit = min(max(total // target, smallest), largest)
  runs, size = [[]], 0
  for entry in entries:
    if runs[-1] and (size + entry.size > limit or len(runs[-1]) >= most):
      runs.append([])
      size = 0
    runs[-1].append(entry)
    size += entry.size
  return runs


def printable(name: str) -> str:
  return name.encode('utf-8', 'backslashreplace').decode()


def _ending(base: str) -> str:
  return base.rpartition('.')[2].lower() if '.' in base.lstrip('.') else ''


def _is_sound(name: str) -> bool:
  base = name.rsplit('/', 1)[-1]
  return not base.startswith('.') and _ending(base) in SOUND


def _is_part(name: str) -> bool:
  """Whether a file is one of the parts of a split archive."""
  stem, _, last = name.lower().rpartition('.')
  if '.' not in stem:
    return False
  archive = stem.rpartition('.')[2] in ('tar', 'gz', 'tgz', 'zip', '7z', 'rar',
                                        'zst', 'xz', 'bz2')
  digits = last.isdigit() and len(last) >= 2
  letters = len(last) == 2 and last.isalpha() and last[0] in 'abc'
  rar = last == 'rar' and stem.rpartition('.')[2].startswith('part') and (
      stem.rpartition('.')[2][4:].isdigit())
  return (archive and (digits or letters)) or rar


def _is_volume(ending: str) -> bool:
  """Whether an ending is one of a split zip: z01, z02, ..."""
  return len(ending) == 3 and ending[0] in 'zr' and ending[1:].isdigit()


def _suspicion(name: str, first_bytes) -> str:
  """Returns why a file that is passed over may hold sound, or ''."""
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
    return ('begins like sound, but is hidden' if base.startswith('.') else
            'begins like sound, but its name does not say so')
  return ''


def _first_bytes(path: pathlib.Path) -> bytes:
  try:
    if not _regular(path):
      return b''
    with open(path, 'rb') as file:
      return file.read(archives.SNIFFED)
  except OSError:
    return b''


def _regular(path: pathlib.Path) -> bool:
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except OSError:
    return False


def _walk(root: pathlib.Path, skip: pathlib.Path) -> list:
  """Files below root as (name with slashes, path), following links once."""
  visited, pending, files = set(), [root], []
  if skip.exists():
    visited.add(_identity(skip))
  while pending:
    folder = pending.pop()
    try:
      if _identity(folder) in visited:
        continue
      visited.add(_identity(folder))
      names = os.listdir(folder)
    except OSError:
      # Listed as if it were a file, it will be refused by its name.
      names = []
      files.append((f'{folder.relative_to(root).as_posix()}/.', folder))
    for path in (folder / name for name in names):
      if os.path.isdir(path):
        pending.append(path)
      else:
        files.append((path.relative_to(root).as_posix(), path))
  return sorted(files)


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  status = folder.stat()
  return status.st_dev, status.st_ino


def _entry(name: str, path: pathlib.Path) -> Entry:
  refused, size = '', 0
  try:
    status = path.stat()
    size = status.st_size
    if not stat.S_ISREG(status.st_mode):
      refused = 'not a regular file'
    elif not os.access(path, os.R_OK):
      refused = 'unreadable'
  except OSError as error:
    refused = f'unreadable: {error.strerror}'
  label = printable(name)
  return Entry(label, str(path), 0, size, label, _category(label), refused)


def _category(label: str) -> str:
  """Returns the first folder of a name."""
  return label.partition('/')[0] if '/' in label else ''


def _of_tar(name: str, original: pathlib.Path, path: pathlib.Path | str,
            most: int, passed: Passed) -> list[Entry]:
  """The sound files of a tar, and the tar itself where it is damaged.

  Its other files are noted in `passed`.
  """
  if isinstance(path, str):
    return [_refused(name, original, path)]
  if not _regular(path):
    return [_refused(name, path, 'not a regular file')]
  outer, entries = printable(name).rpartition('/')[0], []
  others, places = [], {}
  look = lambda inner: not _is_sound(inner) and (
      _ending(inner.rpartition('/')[2]) not in PLAIN)
  try:
    for member in archives.members(path, most, look):
      if not _is_sound(member.name):
        others.append((f'{name}/{member.name}', _suspicion(
            member.name, lambda member=member: member.head)))
        continue
      label = printable(f'{name}/{member.name}')
      folder = outer or printable(member.name).rpartition('/')[0]
      if label in places:
        # As tar does it when it extracts.
        earlier = entries[places[label]]
        entries[places[label]] = earlier._replace(
            refused='replaced: a later member has the same name')
      places[label] = len(entries)
      entries.append(Entry(label, str(path), member.offset, member.size, label,
                           folder.partition('/')[0], member.refused))
  except (ValueError, OSError) as error:
    refusal = _refused(name, path, f'damaged archive: {error}')
    if f'more than {most} members' in str(error):
      return [refusal]  # A bomb: nothing of it is wanted.
    entries.append(refusal)
  for other in others:
    passed.add(*other)
  return entries


def _of_parquet(name: str, path: pathlib.Path, passed: Passed) -> list[Entry]:
  """The sounds of a parquet file, or the file itself where it is damaged."""
  outer, label = printable(name).rpartition('/')[0], printable(name)
  try:
    rows = list(parquet.sounds(str(path)))
    if not _begins_like_sound(path, rows):
      passed.add(name, HOLDERS['parquet'])
      return []
  except KeyError:
    passed.add(name, HOLDERS['parquet'])
    return []
  except ValueError as error:
    return [_refused(name, path, f'damaged archive: {error}')]
  on_page = collections.Counter(place.offset for _, place in rows)
  times = collections.Counter(inner for inner, _ in rows)
  entries = []
  for number, (inner, place) in enumerate(rows):
    if not inner or times[inner] > 1:
      inner = f'{number:07d}'
    inner = '/'.join(p for p in printable(inner).split('/')
                     if p not in ('', '.', '..'))
    folder = outer or inner.rpartition('/')[0]
    entries.append(Entry(
        f'{label}/{inner}', str(path), place.offset,
        max(1, place.size // on_page[place.offset]), f'{label}/{inner}',
        folder.partition('/')[0], '', place.text()))
  return entries


def _begins_like_sound(path: pathlib.Path, rows: list) -> bool:
  """Whether one of the first values of a column begins like a sound file."""
  page: dict = {}
  with open(path, 'rb') as file:
    for _, place in rows[:16]:
      head = parquet.read(file, place, page)
      if head is not None and _is_magic(head[:archives.SNIFFED]):
        return True
  return False


def _is_magic(head: bytes) -> bool:
  return any(head[at:at + len(magic)] == magic for at, magic in MAGIC) or (
      len(head) > 1 and head[0] == 255 and head[1] >= 0xE0)


def _refused(name: str, path: pathlib.Path, why: str) -> Entry:
  label = printable(name)
  size = path.stat().st_size if path.is_file() else 0
  return Entry(label, str(path), 0, size, label, '', why)
