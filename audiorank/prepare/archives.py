"""Tars: walked by their headers, and compressed ones laid open first.

Nothing is ever extracted: a tar is walked by its headers, and the worker reads
a member's bytes in place; so no name in an archive can lead anywhere. Links,
devices and members whose names point outside are listed as refused.
"""

import bz2
from collections.abc import Callable
from collections.abc import Iterator
import gzip
import lzma
import os
import pathlib
import tarfile
from typing import BinaryIO
from typing import NamedTuple
import zlib

PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz', '.tar.zst',
          '.tzst')
# Headers of a tar are 512 bytes; names longer than this are an attack.
LONGEST_HEADER = 2**20
SNIFFED = 16  # Bytes that tell a format.
BLOCK = 512
CONTINUED = b'M'  # GNU's type of a member that began in another volume.


class Member(NamedTuple):
  """One file of a tar.

  name: as the tar has it.  offset, size: of its bytes in the tar.
  refused: why it is not to be read, or ''.  head: its first bytes.
  """
  name: str
  offset: int
  size: int
  refused: str
  head: bytes


def is_tar(name: str) -> bool:
  return name.lower().endswith(('.tar', *PACKED))


def is_packed(name: str) -> bool:
  return name.lower().endswith(PACKED)


def members(path: pathlib.Path, most: int,
            sniff: Callable[[str], bool]) -> Iterator[Member]:
  """Yields the files of a plain tar, and of tars joined behind it.

  Args:
    path: of the tar.
    most: members that it may have.
    sniff: whether a member of that name is worth a look at its first bytes.

  Raises:
    ValueError: it is damaged; what came before is good.
    OSError: it cannot be read.
  """
  size, count, begin = path.stat().st_size, 0, 0
  with open(path, 'rb') as raw:
    while begin is not None:
      raw.seek(begin)
      try:
        with tarfile.open(fileobj=_Headers(raw), mode='r:') as tar:
          for member in tar:
            tar.members = []  # Or tarfile keeps every header in memory.
            count += 1
            if count > most:
              raise ValueError(f'more than {most} members')
            if not member.isdir():
              yield _member(raw, member, size, sniff)
          end = tar.offset
      except tarfile.TarError as error:
        raise ValueError(str(error)) from error
      begin = _next_part(raw, end, size)


def _member(raw: BinaryIO, member: tarfile.TarInfo, size: int,
            sniff: Callable[[str], bool]) -> Member:
  parts = pathlib.PurePosixPath(member.name).parts
  refused, head = '', b''
  if member.type == CONTINUED:
    refused = 'several parts: goes on from another volume of the archive'
  elif not member.isreg() or member.sparse is not None:
    refused = 'not a regular file'
  elif '..' in parts or '/' in parts:
    refused = 'unsafe path'
  elif member.offset_data + member.size > size:
    refused = 'damaged archive: cut off in this member'
  elif sniff(member.name):
    raw.seek(member.offset_data)
    head = raw.read(min(SNIFFED, member.size))
  return Member('/'.join(p for p in parts if p not in ('/', '..')),
                member.offset_data, member.size, refused, head)


def _next_part(raw: BinaryIO, end: int, size: int) -> int | None:
  """Returns where another tar begins behind the end mark of one, or None.

  Raises:
    ValueError: there is no end mark, or something else follows it.
  """
  raw.seek(end)
  block = raw.read(BLOCK)
  # At a broken header tarfile stops as if it were the end.
  if any(block):
    raise ValueError(f'a broken header at byte {end}')
  if len(block) < BLOCK:
    raise ValueError('no mark of its end: it may be cut off')
  while data := raw.read(2**20):
    rest = data.lstrip(b'\0')
    if not rest:
      continue
    at = raw.tell() - len(rest)
    at -= (at - end) % BLOCK
    raw.seek(at)
    try:
      tarfile.TarInfo.frombuf(raw.read(BLOCK), 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
      raise ValueError(f'{size - at} bytes that are no tar follow its end mark'
                       ) from None
    return at
  return None


class _Headers:
  """A file that tarfile may seek in, but not read large pieces of."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int) -> bytes:
    if size > LONGEST_HEADER:
      raise tarfile.ReadError(f'a header of {size} bytes')
    return self._file.read(size)


def unpacked_name(index: int) -> str:
  return f'{index:05d}.tar'


def unpack(packed: list[pathlib.Path], folder: pathlib.Path,
           max_gb: float) -> dict[pathlib.Path, pathlib.Path | str]:
  """Decompresses tars to plain ones in a folder of their own.

  Nothing that they hold is followed or trusted, its amount included.

  Args:
    packed: the compressed tars.
    folder: where to.
    max_gb: the most that all may unpack to.

  Returns:
    {compressed tar: its plain copy, or why there is none}.

  Raises:
    OSError: the folder cannot be written.
  """
  folder.mkdir(exist_ok=True)
  plain, left = {}, int(max_gb * 1e9)
  part = folder / 'next.part'
  for index, path in enumerate(packed):
    target = folder / unpacked_name(index)
    plain[path] = target
    if not target.exists():
      try:
        with open(part, 'wb') as sink:
          for data in _decompressed(path):
            if sink.tell() + len(data) > left:
              raise ValueError('damaged archive: compressed archives unpack to '
                               f'more than {max_gb:g} GB')
            sink.write(data)
        part.rename(target)
      except ValueError as error:
        plain[path] = str(error)
        part.unlink()
        continue
    left -= target.stat().st_size
  return plain


def remove_unpacked(count: int, folder: pathlib.Path) -> None:
  """Removes what `unpack` wrote, and the folder if nothing else is in it."""
  for name in [*map(unpacked_name, range(count)), 'next.part']:
    (folder / name).unlink(missing_ok=True)
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()


def _decompressed(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the content of a compressed file; errors of it are ValueErrors."""
  try:
    with _opener(path.suffix.lower())(path) as file:
      while data := file.read(2**20):
        yield data
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
    raise ValueError(f'damaged archive: {error}') from error


def _opener(suffix: str) -> Callable:
  if suffix in ('.zst', '.tzst'):
    import pyarrow
    return lambda path: pyarrow.input_stream(os.fspath(path),
                                             compression='zstd')
  return {'.gz': gzip, '.tgz': gzip, '.bz2': bz2, '.tbz2': bz2, '.xz': lzma,
          '.txz': lzma}[suffix].open
