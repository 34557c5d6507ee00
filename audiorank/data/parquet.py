"""One sound out of a parquet file, without reading its row group.

Hugging Face data sets hold sound files as bytes in a column of structures
{bytes, path}. pyarrow reads a row group at least, some hundred clips, for
every clip of a random order. Here the pages of the column are walked once by
their headers; a clip is then found by its page and its place in it, and one
page, about one clip, is read and decompressed.

Source: the Parquet format (parquet.thrift, Encodings.md, of apache/
parquet-format), with headers in Thrift's compact protocol.
"""

from collections.abc import Iterator
import os
import struct
from typing import BinaryIO
from typing import NamedTuple

PLAIN, DICTIONARY = (0,), (2, 8)
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
LONGEST_HEADER = 2**16
LARGEST_PAGE = 2**31


class Place(NamedTuple):
  """Where one value lies.

  offset, size: of its page in the file, its header included.
  index: its row in the page.
  codec: of the pages.  levels: 1 where values may be null, 2 in a structure.
  dictionary, dictionary_size: of the dictionary's page, or 0.
  """
  offset: int
  size: int
  index: int
  codec: str
  levels: int
  dictionary: int
  dictionary_size: int

  def text(self) -> str:
    """Returns all but the offset as text, for a manifest."""
    return (f'{self.size}:{self.index}:{self.codec}:{self.levels}:'
            f'{self.dictionary}:{self.dictionary_size}')


def place(offset: int, text: str) -> Place:
  """Returns the Place of an offset and `Place.text`."""
  size, index, codec, *rest = text.split(':')
  return Place(offset, int(size), int(index), codec, *map(int, rest))


def sounds(path: str) -> Iterator[tuple[str, Place]]:
  """Yields (name or '', Place) of every row that should hold sound.

  Args:
    path: of a parquet file.

  Raises:
    KeyError: it has no column that would hold sound files.
    ValueError: it is damaged, or written in a way that is not read here.
  """
  import pyarrow
  from pyarrow import parquet
  try:
    with parquet.ParquetFile(path) as file:
      about = file.metadata
      column = _column(file)
      levels = file.schema.column(column).max_definition_level
      if file.schema.column(column).max_repetition_level:
        raise ValueError('a list of sounds a row')
      names = _names(file, column)
      for group in range(about.num_row_groups):
        chunk = about.row_group(group).column(column)
        rows = about.row_group(group).num_rows
        found = 0
        for where in _pages(path, chunk, levels, rows):
          yield next(names, ''), where
          found += 1
        if found != rows:
          raise ValueError(f'{found} of {rows} rows in row group {group}')
  except (pyarrow.ArrowException, OSError, struct.error, IndexError) as error:
    raise ValueError(f'{error}'.splitlines()[0] if str(error) else
                     type(error).__name__) from error


def _column(file) -> int:
  """Returns the leaf column of sound files."""
  leaves = {file.schema.column(i).path: i for i in range(
      len(file.schema)) if file.schema.column(i).physical_type == 'BYTE_ARRAY'}
  likely = [p for p in leaves if p.endswith('.bytes')] + [
      p for p in ('audio', 'flac', 'wav', 'mp3', 'ogg', 'opus', 'bytes',
                  'content') if p in leaves]
  likely.sort(key=lambda p: not p.startswith('audio'))
  if not likely:
    raise KeyError('no column of sound files')
  return leaves[likely[0]]


def _names(file, column: int) -> Iterator[str]:
  """Yields the names beside the sounds, where there are any."""
  path = file.schema.column(column).path
  beside = (path.removesuffix('.bytes') + '.path' if path.endswith('.bytes')
            else 'path')
  if beside not in [file.schema.column(i).path
                    for i in range(len(file.schema))]:
    return
  for batch in file.iter_batches(2**14, columns=[beside]):
    values = batch.column(0)
    if path.endswith('.bytes'):
      values = values.field('path')
    for value in values.to_pylist():
      yield value or ''


def _pages(path: str, chunk, levels: int, rows: int) -> Iterator[Place]:
  """Yields the Place of each row of a column chunk."""
  begin = chunk.data_page_offset
  if chunk.has_dictionary_page and chunk.dictionary_page_offset:
    begin = min(begin, chunk.dictionary_page_offset)
  at, end, dictionary, found = begin, begin + chunk.total_compressed_size, (
      0, 0), 0
  if end > os.path.getsize(path):
    raise ValueError('cut off')
  with open(path, 'rb') as file:
    while at < end and found < rows:
      header, length = _header(file, at)
      size = length + header.get(3, 0)
      if header.get(3, -1) < 0 or at + size > end:
        raise ValueError(f'a page of {size} bytes at byte {at}')
      if header.get(1) == DICTIONARY_PAGE:
        dictionary = at, size
      elif header.get(1) in (DATA_PAGE, DATA_PAGE_V2):
        inner = header.get(5) or header.get(8) or {}
        for index in range(min(inner.get(1, 0), rows - found)):
          found += 1
          yield Place(at, size, index, chunk.compression, levels, *dictionary)
      at += size


def read(file: BinaryIO, where: Place, last: dict) -> bytes | None:
  """Returns the bytes of one value, None where it is null.

  Args:
    file: the parquet file, open.
    where: of `sounds`.
    last: an empty dictionary at first; keeps the last page read.

  Raises:
    ValueError: the page is not what it was, or written in another way.
  """
  if last.get('page') != where.offset:
    values = None
    if where.dictionary:
      if last.get('dictionary') != where.dictionary:
        body, header = _body(file, where.dictionary, where.dictionary_size,
                             where.codec)
        last['values'] = list(_plain(body, header.get(7, {}).get(1, 0)))
        last['dictionary'] = where.dictionary
      values = last['values']
    last['rows'] = _rows(file, where, values)
    last['page'] = where.offset
  rows = last['rows']
  if where.index >= len(rows):
    raise ValueError(f'row {where.index} of a page of {len(rows)}')
  return rows[where.index]


def _body(file: BinaryIO, offset: int, size: int,
          codec: str) -> tuple[memoryview, dict]:
  """Returns a page, decompressed, and its header."""
  header, length = _header(file, offset)
  file.seek(offset + length)
  body = file.read(size - length)
  if len(body) < size - length:
    raise ValueError('cut off')
  if header.get(1) == DATA_PAGE_V2:
    about = header[8]
    plain = about.get(5, 0) + about.get(6, 0)  # Levels are not compressed.
    if about.get(7, True):
      body = body[:plain] + bytes(_decompressed(
          body[plain:], header[2] - plain, codec))
    return memoryview(body), header
  return memoryview(_decompressed(body, header.get(2, 0), codec)), header


def _decompressed(body: bytes, size: int, codec: str) -> bytes:
  if codec == 'UNCOMPRESSED':
    return body
  if not 0 <= size <= LARGEST_PAGE:
    raise ValueError(f'a page of {size} bytes')
  import pyarrow
  name = {'LZ4': 'lz4_raw'}.get(codec, codec.lower())
  try:
    return pyarrow.Codec(name).decompress(body, size, asbytes=True)
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise ValueError(f'a page does not unpack: {error}') from error


def _rows(file: BinaryIO, where: Place, dictionary: list | None) -> list:
  """Returns the values of a data page, None for nulls."""
  body, header = _body(file, where.offset, where.size, where.codec)
  if header.get(1) == DATA_PAGE_V2:
    about, encoding = header[8], header[8].get(4, 0)
    count, at = about.get(1, 0), about.get(6, 0)
    levels = _hybrid(body[at:at + about.get(5, 0)], where.levels, count)
    at += about.get(5, 0)
  else:
    about, encoding = header[5], header[5].get(2, 0)
    count, at, levels = about.get(1, 0), 0, [where.levels] * about.get(1, 0)
    if where.levels:
      length, = struct.unpack('<I', body[:4])
      levels = _hybrid(body[4:4 + length], where.levels, count)
      at = 4 + length
  present = sum(level == where.levels for level in levels)
  if encoding in PLAIN:
    values = _plain(body[at:], present)
  elif encoding in DICTIONARY and dictionary is not None:
    width = body[at] if present else 0
    values = (dictionary[i] for i in _hybrid(
        body[at + 1:], (1 << width) - 1, present))
  else:
    raise ValueError(f'encoding {encoding} of parquet, which is not read here')
  return [next(values) if level == where.levels else None for level in levels]


def _plain(body: memoryview, count: int) -> Iterator[bytes]:
  at = 0
  for _ in range(count):
    length, = struct.unpack_from('<I', body, at)
    if at + 4 + length > len(body):
      raise ValueError('a value beyond its page')
    yield bytes(body[at + 4:at + 4 + length])
    at += 4 + length


def _hybrid(body: memoryview, most: int, count: int) -> list[int]:
  """Returns numbers coded in runs and in packed bits (RLE hybrid)."""
  width, out, at = most.bit_length(), [], 0
  size = (width + 7) // 8
  if not width:
    return [0] * count
  while len(out) < count:
    head, at = _varint(body, at)
    if head & 1:
      length = (head >> 1) * width
      packed = int.from_bytes(body[at:at + length], 'little')
      take = min((head >> 1) * 8, count - len(out))
      out += [packed >> (i * width) & ((1 << width) - 1) for i in range(take)]
      at += length
    else:
      value = int.from_bytes(body[at:at + size], 'little')
      if not head:
        raise ValueError('an empty run')
      out += [value] * min(head >> 1, count - len(out))
      at += size
  return out


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
  value, shift = 0, 0
  while True:
    byte = data[at]
    value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
    if byte < 128:
      return value, at
    if shift > 63:
      raise ValueError('a number of more than 64 bits')


def _header(file: BinaryIO, at: int) -> tuple[dict, int]:
  """Returns a page's header as {field: value}, and its length."""
  file.seek(at)
  data = file.read(LONGEST_HEADER)
  try:
    return _structure(data, 0, 0)
  except IndexError:
    raise ValueError(f'no page at byte {at}') from None


def _structure(data: bytes, at: int, depth: int) -> tuple[dict, int]:
  """Reads a structure of Thrift's compact protocol."""
  fields, field = {}, 0
  if depth > 8:
    raise ValueError('a header nested too deep')
  while True:
    head = data[at]
    at += 1
    if head == 0:
      return fields, at
    if head >> 4:
      field += head >> 4
    else:
      number, at = _varint(data, at)
      field = number >> 1 ^ -(number & 1)
    fields[field], at = _value(data, at, head & 15, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple:
  if kind in (1, 2):
    return kind == 1, at
  if kind == 3:
    return data[at], at + 1
  if kind in (4, 5, 6):
    number, at = _varint(data, at)
    return number >> 1 ^ -(number & 1), at
  if kind == 7:
    return None, at + 8
  if kind == 8:
    length, at = _varint(data, at)
    return data[at:at + length], at + length
  if kind in (9, 10):
    head = data[at]
    count, at = head >> 4, at + 1
    if count == 15:
      count, at = _varint(data, at)
    out = []
    for _ in range(min(count, LONGEST_HEADER)):
      value, at = _value(data, at, head & 15, depth + 1)
      out.append(value)
    return out, at
  if kind == 12:
    return _structure(data, at, depth + 1)
  raise ValueError(f'type {kind} in a header')
