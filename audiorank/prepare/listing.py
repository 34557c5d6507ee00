"""What there is to read: the sound files of a folder, and of tars in it.

Nothing is ever extracted. A tar is walked by its headers, and the worker reads
a member's bytes in place; so no name in an archive can lead anywhere. Links,
devices and members whose names point outside are listed as refused.
"""

import csv
import hashlib
import os
import pathlib
import stat
import tarfile
from typing import NamedTuple

# What libsndfile reads, and what it does not: a file that looks like sound but
# cannot be read belongs into the quarantine, not into silence.
SOUND = frozenset("""
    wav wave flac ogg oga opus mp3 mp2 mp1 mpga aif aiff aifc au snd caf w64
    rf64 sph nist voc paf svx ircam avr sd2 xi htk
    m4a mp4 aac wma wv ape webm mka amr ac3 tta spx""".split())
PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
# Headers of a tar are 512 bytes; names longer than this are an attack.
LONGEST_HEADER = 2**20


class Entry(NamedTuple):
  """One file to read, or to refuse when `refused` gives a reason."""
  file: str  # as the manifest names it
  path: str  # what to open
  offset: int  # of the first byte in it
  size: int
  source: str
  category: str
  refused: str


def scan(audio, max_members, skip, unpacked):
  """Lists a folder or a tar.

  Args:
    audio: a folder, searched to any depth, or a tar file.
    max_members: the most members a tar may have.
    skip: a folder to leave out.
    unpacked: compressed tar -> its plain copy, or why there is none (a str).

  Returns:
    (entries sorted by name, number of other files that were passed over).

  Raises:
    FileNotFoundError: no such path.
    ValueError: nothing in it that looks like sound, or a manifest.csv that is
      not one.
  """
  audio = pathlib.Path(audio)
  if not audio.exists():
    raise FileNotFoundError(f'{audio}: no such folder or archive')
  entries, others = [], 0
  if audio.is_dir():
    sources = _sources(audio / 'manifest.csv')
    found = _walk(audio, skip)
  else:
    sources, found = {}, [(audio.name, audio)]
  for name, path in found:
    if _is_tar(name):
      plain = unpacked.get(path, path)
      if isinstance(plain, str):
        entries.append(_refused(name, path, plain))
        continue
      members, passed = _members(name, plain, max_members)
      entries += members
      others += passed
    elif _is_sound(name):
      entries.append(_entry(name, path, sources))
    elif path.is_dir():
      entries.append(_refused(name, path, 'unreadable'))
    else:
      others += 1
  if not entries:
    raise ValueError(f'{audio}: no sound files in it ({others} other files)')
  return sorted(entries), others


def archives(audio, skip):
  """The compressed tars of an input, as (name, path)."""
  audio = pathlib.Path(audio)
  found = _walk(audio, skip) if audio.is_dir() else [(audio.name, audio)]
  return [(n, p) for n, p in found if n.lower().endswith(PACKED)]


def fingerprint(entries):
  """A hash of the names, sizes and sources of a listing."""
  digest = hashlib.sha256()
  for entry in entries:
    digest.update(repr((entry.file, entry.size, entry.source,
                        entry.refused)).encode())
  return digest.hexdigest()


def shares(entries, target=64, smallest=2**20, largest=2**28, most=4096):
  """Cuts a listing into consecutive runs, one per shard.

  Some `target` runs of equal size in bytes, but within [smallest, largest]
  bytes and of at most `most` files; a pure function of the listing.
  """
  total = sum(entry.size for entry in entries)
  size = min(max(total // target, smallest), largest)
  runs, held = [[]], 0
  for entry in entries:
    if runs[-1] and (held + entry.size > size or len(runs[-1]) >= most):
      runs.append([])
      held = 0
    runs[-1].append(entry)
    held += entry.size
  return runs


def _is_tar(name):
  return name.lower().endswith(('.tar',) + PACKED)


def _is_sound(name):
  base = name.rsplit('/', 1)[-1]
  return (not base.startswith('.') and
          base.rpartition('.')[2].lower() in SOUND and '.' in base)


def _walk(root, skip):
  """Files below root as (name with slashes, path), following links once."""
  seen, pending, found = set(), [root], []
  if skip is not None and skip.exists():
    seen.add(_identity(skip))
  while pending:
    folder = pending.pop()
    try:
      if _identity(folder) in seen:
        continue
      seen.add(_identity(folder))
      names = os.listdir(folder)
    except OSError:
      # Listed as if it were a file, it will be refused by its name.
      names = []
      found.append((f'{folder.relative_to(root).as_posix()}/.', folder))
    for path in (folder / name for name in names):
      if os.path.isdir(path):
        pending.append(path)
      else:
        found.append((path.relative_to(root).as_posix(), path))
  return sorted(found)


def _identity(folder):
  status = folder.stat()
  return status.st_dev, status.st_ino


def _entry(name, path, sources):
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
  label = _printable(name)
  return Entry(label, str(path), 0, size, sources.get(name, label),
               label.partition('/')[0] if '/' in label else '', refused)


def _members(name, path, max_members):
  """The sound files of a tar, and the tar itself where it is damaged."""
  entries, passed, outer = [], 0, _printable(name).rpartition('/')[0]
  try:
    size = path.stat().st_size
    with open(path, 'rb') as raw, tarfile.open(
        fileobj=_Headers(raw), mode='r:') as tar:
      for count, member in enumerate(tar):
        tar.members = []  # or tarfile keeps every header in memory
        if count >= max_members:
          return [_refused(name, path, f'damaged archive: more than '
                           f'{max_members} members')], 0
        if member.isdir() or not _is_sound(member.name):
          passed += not member.isdir()
          continue
        entries.append(_member(name, path, outer, member, size))
      # At a broken header tarfile stops as if it were the end.
      raw.seek(tar.offset)
      if any(raw.read(512)):
        raise tarfile.ReadError(f'a broken header at byte {tar.offset}')
  except (tarfile.TarError, ValueError, OSError) as error:
    entries.append(_refused(name, path, f'damaged archive: {error}'))
  return entries, passed


def _member(name, path, outer, member, size):
  parts = pathlib.PurePosixPath(member.name).parts
  inner = '/'.join(p for p in parts if p not in ('/', '..'))
  refused = ''
  if not member.isreg() or member.sparse is not None:
    refused = 'not a regular file'
  elif '..' in parts or '/' in parts:
    refused = 'unsafe path'
  elif member.offset_data + member.size > size:
    refused = 'damaged archive: cut off in this member'
  label = _printable(f'{name}/{inner}')
  folder = outer or _printable(inner).rpartition('/')[0]
  return Entry(label, str(path), member.offset_data, member.size, label,
               folder.partition('/')[0], refused)


def _refused(name, path, why):
  label = _printable(name)
  size = path.stat().st_size if path.is_file() else 0
  return Entry(label, str(path), 0, size, label, '', why)


class _Headers:
  """A file that tarfile may seek in, but not read large pieces of."""

  def __init__(self, file):
    self._file = file
    self.seek, self.tell = file.seek, file.tell

  def read(self, size):
    if size > LONGEST_HEADER:
      raise tarfile.ReadError(f'a header of {size} bytes')
    return self._file.read(size)


def _sources(manifest):
  """The recordings that a manifest.csv with columns file and source names.

  A source 'x.ogg + 6' is a piece of the recording x.ogg.
  """
  if not manifest.is_file():
    return {}
  try:
    with manifest.open(newline='', encoding='utf-8') as file:
      rows = csv.DictReader(file)
      if not {'file', 'source'} <= set(rows.fieldnames or ()):
        return {}
      return {row['file']: row['source'].partition(' + ')[0] or row['file']
              for row in rows if row['file'] and row['source']}
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f'{manifest}: unreadable: {error}') from error


def _printable(name):
  return name.encode('utf-8', 'backslashreplace').decode()
