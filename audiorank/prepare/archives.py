"""Lists the members of tars, and decompresses compressed tars.

Members are never extracted: the worker reads their bytes in place, so that no
name in an archive can write outside a folder. Links, devices and members with
unsafe names are listed as refused.
"""

import bz2
from collections.abc import Callable
from collections.abc import Iterator
import gzip
import lzma
import os
import pathlib
import tarfile
from typing import Any
from typing import BinaryIO
from typing import NamedTuple
import zlib

from audiorank import files
from audiorank.data import stored

PACKED = ('.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz', '.tar.zst',
          '.tzst')
# A header has 512 bytes; a long name adds some. A header that claims more
# than this is damaged or an attack on the memory.
LONGEST_HEADER = 2**20
SNIFFED = 16  # First bytes, enough to recognise a format.
BLOCK = 512  # Bytes; everything in a tar begins at a multiple.
CONTINUED = b'M'  # GNU's type of a member that began in another volume.


class Member(NamedTuple):
  """One file of a tar."""
  name: str
  offset: int  # First byte in the tar.
  size: int  # Bytes.
  refused: str  # Why it must not be read, or ''.
  head: bytes  # First bytes, if they were asked for.


def is_tar(name: str) -> bool:
  """Returns whether a file name is that of a tar, plain or compressed."""
  return name.lower().endswith(('.tar', *PACKED))


def is_packed(name: str) -> bool:
  """Returns whether a file name is that of a compressed tar."""
  return name.lower().endswith(PACKED)


def members(path: pathlib.Path, most: int,
            sniff: Callable[[str], bool]) -> Iterator[Member]:
  """Yields the files of a plain tar, and of tars appended to it with cat.

  Args:
    path: of the tar.
    most: the most members that it may have.
    sniff: takes a member's name; returns whether to read its first bytes.

  Raises:
    ValueError: it is damaged. The members before the damage are valid.
    OSError: it cannot be read.
  """
  count = 0
  begin: int | None = 0
  with stored.open_file(path) as raw:
    size = raw.seek(0, os.SEEK_END)
    while begin is not None:
      raw.seek(begin)
      try:
        headers: Any = _Headers(raw)  # All that tarfile uses of a file.
        tar: Any  # `members` is public, but missing in the types.
        with tarfile.open(fileobj=headers, mode='r:') as tar:
          for member in tar:
            # tarfile keeps every header, a lot of memory for a large tar.
            tar.members = []
            count += 1
            if count > most:
              raise ValueError(f'more than {most} members')
            if not member.isdir():
              yield _member(raw, member, size, sniff)
          end = tar.offset  # Where tarfile stopped.
      except tarfile.TarError as error:
        raise ValueError(str(error)) from error
      begin = _next_part(raw, end, size)


def _member(raw: BinaryIO, member: tarfile.TarInfo, size: int,
            sniff: Callable[[str], bool]) -> Member:
  """Returns a Member, refused if it is no ordinary file within the tar."""
  parts = pathlib.PurePosixPath(member.name).parts
  # The order matters: what is not a file has no bytes to check.
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
    # tarfile reads on from where its own counter says, so the position may
    # move.
    raw.seek(member.offset_data)
    head = raw.read(min(SNIFFED, member.size))
  return Member('/'.join(p for p in parts if p not in ('/', '..')),
                member.offset_data, member.size, refused, head)


def _next_part(raw: BinaryIO, end: int, size: int) -> int | None:
  """Returns the first byte of the next tar in a file, or None.

  Args:
    raw: the file.
    end: where the previous tar ended.
    size: bytes of the file.

  Raises:
    ValueError: there is no end mark, or something else follows it.
  """
  raw.seek(end)
  block = raw.read(BLOCK)
  # tarfile stops at a broken header as if the tar ended there. A real end mark
  # is a block of zeros.
  if any(block):
    raise ValueError(f'a broken header at byte {end}')
  if len(block) < BLOCK:
    raise ValueError('no mark of its end: it may be cut off')
  while data := raw.read(2**20):
    rest = data.lstrip(b'\0')
    if not rest:
      continue  # Padding.
    at = raw.tell() - len(rest)
    at -= (at - end) % BLOCK  # The header's first bytes may be zeros as well.
    raw.seek(at)
    try:
      tarfile.TarInfo.frombuf(raw.read(BLOCK), 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
      raise ValueError(f'{size - at} bytes that are no tar follow its end mark'
                       ) from None
    return at
  return None


class _Headers:
  """A file in which tarfile can seek, but not read large pieces."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int) -> bytes:
    if size > LONGEST_HEADER:
      raise tarfile.ReadError(f'a header of {size} bytes')
    return self._file.read(size)


def unpacked_name(index: int) -> str:
  """Returns the file name of the plain copy of a compressed tar."""
  # A number, because two tars in different folders may have the same name.
  return f'{index:05d}.tar'


def unpack(packed: list[pathlib.Path], folder: pathlib.Path,
           max_gb: float) -> dict[pathlib.Path, pathlib.Path | str]:
  """Decompresses tars into a folder of plain copies.

  Args:
    packed: the compressed tars.
    folder: of the copies.
    max_gb: the most that all of them may unpack to, in GB.

  Returns:
    {compressed tar: its plain copy, or a message why there is none}.

  Raises:
    OSError: the folder cannot be written.
  """
  folder.mkdir(exist_ok=True)
  plain: dict[pathlib.Path, pathlib.Path | str] = {}
  left = int(max_gb * 1e9)
  part = folder / 'next.part'
  for index, path in enumerate(packed):
    target = folder / unpacked_name(index)
    plain[path] = target
    if not target.exists():
      try:
        with open(part, 'wb') as sink:
          for data in _decompressed(path):
            # Counted while writing: the size that an archive claims may be
            # false, and a small file can unpack to more than the disk has.
            if sink.tell() + len(data) > left:
              raise ValueError('damaged archive: compressed archives unpack to '
                               f'more than {max_gb:g} GB')
            sink.write(data)
        # A copy that has its name is complete, so a resumed job keeps it.
        part.rename(target)
      except ValueError as error:
        plain[path] = str(error)
        part.unlink()
        continue
    left -= target.stat().st_size
  return plain


def remove_unpacked(count: int, folder: pathlib.Path) -> None:
  """Removes the copies of `unpack`, and the folder if it is empty then.

  Args:
    count: how many there may be.
    folder: of the copies.
  """
  for name in [*map(unpacked_name, range(count)), 'next.part']:
    (folder / name).unlink(missing_ok=True)
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()


def _decompressed(path: pathlib.Path) -> Iterator[bytes]:
  """Yields the content of a compressed file.

  Raises:
    ValueError: it is damaged or cannot be read.
  """
  try:
    with files.local(path) as copy, _opener(
        path.suffix.lower())(copy) as file:
      while data := file.read(2**20):
        yield data
  except files.StoreError:
    raise
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
    raise ValueError(f'damaged archive: {error}') from error


def _opener(suffix: str) -> Callable:
  """Returns the function that opens compressed files of an ending."""
  if suffix in ('.zst', '.tzst'):
    # Python has no Zstandard before 3.14.
    import pyarrow
    return lambda path: pyarrow.input_stream(os.fspath(path),
                                             compression='zstd')
  return {'.gz': gzip, '.tgz': gzip, '.bz2': bz2, '.tbz2': bz2, '.xz': lzma,
          '.txz': lzma}[suffix].open
