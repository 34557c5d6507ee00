"""Reads one sound out of a parquet file, without reading its row group.

Hugging Face data sets store sound files as bytes in a column of structures
{bytes, path}. pyarrow reads at least a row group, some hundred clips, for every
clip of a random order. So this module reads the format itself.

`sounds` walks the pages of the column once, by their headers, and finds the
page and the row of every value (`Place`). `locate` finds the bytes that are
needed to read one value alone (`Span`). Without compression they are the value
itself. With snappy, which compresses block by block, they are the blocks of
64 KB around it. Otherwise they are its page.

Sources: the Parquet format (parquet.thrift, Encodings.md, of apache/
parquet-format), with headers in Thrift's compact protocol; snappy's
format_description.txt.
"""

from collections.abc import Callable
from collections.abc import Iterator
import io
import struct
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from audiorank import files

# Numbers of the format: encodings of values, and types of pages.
PLAIN, DICTIONARY = (0,), (2, 8)
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
# Limits, so that a damaged file cannot ask for all memory.
LONGEST_HEADER = 2**16
LARGEST_PAGE = 2**31
SPAN = 'span'  # The text of a Span begins with it.
SNAPPY_BLOCK = 2**16
# Our names for snappy's blocks without the length that a snappy stream begins
# with, and for such blocks that are not compressed: snappy found nothing to
# save, as in FLAC or MP3. Each is a tag and its 64 KB.
BLOCKS, PLAIN_BLOCKS = 'SNAPPY_BLOCKS', 'SNAPPY_PLAIN'
TAG = 3  # Bytes: the type of an element and, in two bytes, its length.

File = BinaryIO | io.RawIOBase  # Such as stored.Region.


class Place(NamedTuple):
  """The place of one value: its page and its row."""
  offset: int  # First byte of the page, which begins with its header.
  size: int  # Bytes of the page.
  row: int  # Of the page.
  codec: str  # Compression of the pages.
  levels: int  # 1 where values may be null, 2 in a structure.
  dictionary: int  # First byte of the dictionary's page, or 0,
  dictionary_size: int  # and its bytes.

  def text(self) -> str:
    """Returns all but the offset as text, for a manifest."""
    return (f'{self.size}:{self.row}:{self.codec}:{self.levels}:'
            f'{self.dictionary}:{self.dictionary_size}')


def place(offset: int, text: str) -> Place:
  """Returns the Place of an offset and a `Place.text`."""
  size, row, codec, *rest = text.split(':')
  return Place(offset, int(size), int(row), codec, *map(int, rest))


class Span(NamedTuple):
  """The bytes that are needed to read one value."""
  offset: int  # First byte in the file.
  size: int  # Bytes in the file.
  codec: str  # Their compression.
  raw: int  # Bytes when decompressed.
  begin: int  # First byte of the value among these.
  length: int  # Bytes of the value.

  def text(self) -> str:
    """Returns all but offset and size as text, for a manifest."""
    return f'{SPAN}:{self.codec}:{self.raw}:{self.begin}:{self.length}'


def span(offset: int, size: int, text: str) -> Span:
  """Returns the Span of an offset, a size and a `Span.text`."""
  _, codec, *rest = text.split(':')
  raw, begin, length = map(int, rest)
  return Span(offset, size, codec, raw, begin, length)


class _Page(NamedTuple):
  """A page in memory."""
  offset: int  # First byte of the values in the file.
  packed: bytes  # The values as they are in the file.
  codec: str
  body: memoryview  # The values, decompressed.
  header: dict
  levels: bytes  # What precedes the values in a page of version 2.


def sounds(opener: Callable[[], BinaryIO]) -> Iterator[tuple[str, Place]]:
  """Yields (name or '', Place) of the sound file in every row.

  Args:
    opener: opens the parquet file; called twice, for names and for pages.

  Raises:
    KeyError: it has no column of sound files.
    ValueError: it is damaged, or uses a part of the format that this module
      does not read.
    files.StoreError: it is on a bucket that cannot be reached.
  """
  import pyarrow
  from pyarrow import parquet
  try:
    with opener() as raw, opener() as table, parquet.ParquetFile(
        table) as file:
      about = file.metadata
      column = _column(file)
      levels = file.schema.column(column).max_definition_level
      # A list has several sounds a row: `Place` has room for one.
      if file.schema.column(column).max_repetition_level:
        raise ValueError('a list of sounds per row')
      names = _names(file, column)
      for group in range(about.num_row_groups):
        chunk = about.row_group(group).column(column)
        rows = about.row_group(group).num_rows
        count = 0
        for where in _pages(raw, chunk, levels, rows):
          yield next(names, ''), where
          count += 1
        if count != rows:
          raise ValueError(f'{count} of {rows} rows in row group {group}')
  except files.StoreError:
    raise
  except (pyarrow.ArrowException, OSError, struct.error, IndexError) as error:
    # pyarrow's messages have several lines; some errors have no message.
    first, *_ = [*str(error).splitlines(), type(error).__name__]
    raise ValueError(first) from error


def _column(file: Any) -> int:
  """Returns the number of the leaf column of sound files."""
  leaves = {file.schema.column(i).path: i for i in range(
      len(file.schema)) if file.schema.column(i).physical_type == 'BYTE_ARRAY'}
  # Hugging Face's structure first, then usual names of plain columns; those
  # that begin with 'audio' before all others.
  likely = [p for p in leaves if p.endswith('.bytes')] + [
      p for p in ('audio', 'flac', 'wav', 'mp3', 'ogg', 'opus', 'bytes',
                  'content') if p in leaves]
  likely.sort(key=lambda p: not p.startswith('audio'))
  if not likely:
    raise KeyError('no column of sound files')
  return leaves[likely[0]]


def _names(file: Any, column: int) -> Iterator[str]:
  """Yields the names in the column beside the sounds, if there is one."""
  path = file.schema.column(column).path
  beside = 'path'
  if path.endswith('.bytes'):
    beside = path.removesuffix('.bytes') + '.path'
  if beside not in [file.schema.column(i).path
                    for i in range(len(file.schema))]:
    return
  for batch in file.iter_batches(2**14, columns=[beside]):
    values = batch.column(0)
    if path.endswith('.bytes'):
      values = values.field('path')
    for value in values.to_pylist():
      yield value or ''


def _pages(file: BinaryIO, chunk: Any, levels: int, rows: int
           ) -> Iterator[Place]:
  """Yields the Place of each row of a column chunk.

  Args:
    file: open.
    chunk: pyarrow's description of the chunk.
    levels: see Place.
    rows: of the row group.
  """
  # The dictionary's page comes first, but its offset is optional.
  begin = chunk.data_page_offset
  if chunk.has_dictionary_page and chunk.dictionary_page_offset:
    begin = min(begin, chunk.dictionary_page_offset)
  at, end = begin, begin + chunk.total_compressed_size
  dictionary, done = (0, 0), 0
  if end > file.seek(0, io.SEEK_END):
    raise ValueError('cut off')
  while at < end and done < rows:
    # Fields of a page's header by their numbers in parquet.thrift. 1: type.
    # 3: compressed bytes. 5, 8: the header of a data page of version 1 or 2,
    # whose field 1 is its number of values.
    header, length = _header(file, at)
    size = length + header.get(3, 0)
    if header.get(3, -1) < 0 or at + size > end:
      raise ValueError(f'a page of {size} bytes at byte {at}')
    if header.get(1) == DICTIONARY_PAGE:
      dictionary = at, size
    elif header.get(1) in (DATA_PAGE, DATA_PAGE_V2):
      inner = header.get(5) or header.get(8) or {}
      # A damaged count must not yield more rows than the group has.
      for index in range(min(inner.get(1, 0), rows - done)):
        done += 1
        yield Place(at, size, index, chunk.compression, levels, *dictionary)
    at += size


def read(file: File, where: Place, last: dict) -> bytes | None:
  """Returns the bytes of one value, or None for null.

  Args:
    file: the open parquet file.
    where: a Place from `sounds`.
    last: an empty dictionary at first, in which the last page is kept: the next
      value is often in the same page.

  Raises:
    ValueError: the page was changed, or its encoding is not supported.
  """
  value = _value(file, where, last)
  if value is None:
    return None
  page, begin, length = value
  return bytes(page.body[begin:begin + length])


def locate(file: File, where: Place, last: dict) -> Span:
  """Returns the Span of a value that is not null; arguments as for `read`."""
  value = _value(file, where, last)
  assert value is not None  # As the caller promises.
  page, begin, length = value
  if page.codec == 'UNCOMPRESSED':
    return Span(page.offset + begin, length, page.codec, length, 0, length)
  # Other codecs compress the page as one piece, so all of it is read.
  whole = Span(page.offset, len(page.packed), page.codec, len(page.body), begin,
               length)
  if page.codec != 'SNAPPY':
    return whole
  # The blocks of a page are found once for all its values.
  if last.get('blocks_of') != page.offset:
    last['blocks'], last['blocks_of'] = _snappy_blocks(page), page.offset
  blocks = last['blocks']
  if not blocks:
    return whole
  first, end = begin // SNAPPY_BLOCK, -(-(begin + length) // SNAPPY_BLOCK)
  raw = min(end * SNAPPY_BLOCK, len(page.body)) - first * SNAPPY_BLOCK
  codec = BLOCKS
  if all(_is_plain(page.packed, *pair)
         for pair in zip(blocks[first:end], blocks[first + 1:end + 1])):
    codec = PLAIN_BLOCKS
  return Span(page.offset + blocks[first], blocks[end] - blocks[first], codec,
              raw, begin - first * SNAPPY_BLOCK, length)


def read_span(file: File, where: Span) -> memoryview:
  """Returns the value of a Span, without copying it out of its page.

  Args:
    file: the open parquet file.
    where: the Span.

  Raises:
    ValueError: the file is too short, or the bytes cannot be decompressed.
  """
  file.seek(where.offset)
  data, codec = file.read(where.size), where.codec
  if len(data) < where.size:
    raise ValueError('cut off')
  if codec in (BLOCKS, PLAIN_BLOCKS):
    # Blocks are a valid stream once a length is put before them.
    codec, data = 'SNAPPY', _snappy_length(where.raw) + data
  body = _decompressed(data, where.raw, codec)
  return body[where.begin:where.begin + where.length]


def as_file(value: bytes | memoryview) -> Any:
  """Returns a value as a file, without a copy."""
  if isinstance(value, bytes):
    return io.BytesIO(value)
  import pyarrow
  return pyarrow.BufferReader(pyarrow.py_buffer(value))


# --- Snappy ---


def _snappy_length(length: int) -> bytes:
  """Returns the beginning of a snappy stream of so many raw bytes."""
  out = bytearray()
  # A varint: seven bits a byte, the eighth says that more follow.
  while length > 127:
    out.append(length & 127 | 128)
    length >>= 7
  return bytes([*out, length])


def _snappy_blocks(page: _Page) -> list[int]:
  """Returns the beginnings of a page's blocks in its packed bytes, and the end.

  It is empty if a copy refers to bytes outside its block, so that blocks cannot
  be read alone. No usual writer does that.
  """
  data, (_, at) = page.packed, _varint(page.packed, 0)
  done, blocks = 0, []  # `done` counts raw bytes.
  while at < len(data):
    if done % SNAPPY_BLOCK == 0:
      blocks.append(at)
    # Elements by the lowest bits of a tag. 0: bytes that follow. 1 to 3: a copy
    # of earlier bytes, at a distance of 11, 16 or 32 bits.
    tag, at, back = data[at], at + 1, 0
    if tag & 3 == 0:
      length = (tag >> 2) + 1
      if length > 60:
        extra = length - 60
        length = int.from_bytes(data[at:at + extra], 'little') + 1
        at += extra
      at += length
    elif tag & 3 == 1:
      length, back = (tag >> 2 & 7) + 4, tag >> 5 << 8 | data[at]
      at += 1
    else:
      width = {2: 2, 3: 4}[tag & 3]
      length = (tag >> 2) + 1
      back = int.from_bytes(data[at:at + width], 'little')
      at += width
    inside = done % SNAPPY_BLOCK
    # A copy from outside the block, or an element across its end.
    if back > inside or inside + length > SNAPPY_BLOCK:
      return []
    done += length
  if done != len(page.body):
    return []
  return [*blocks, len(data)]


def _is_plain(packed: bytes, begin: int, end: int) -> bool:
  """Returns whether a block is one element of plain bytes after a TAG."""
  # The type is 'plain bytes whose length, less 1, is in the next two bytes'.
  length = int.from_bytes(packed[begin + 1:begin + TAG], 'little') + 1
  return packed[begin] == 61 << 2 and begin + TAG + length == end


# --- Pages ---


def _value(file: File, where: Place, last: dict) -> tuple[
    _Page, int, int] | None:
  """Returns (page, begin, length) of a value, or None for null.

  Args:
    file, where, last: as for `read`.
  """
  if last.get('page') != where.offset:
    # A dictionary serves all pages of a chunk.
    if where.dictionary and last.get('dictionary') != where.dictionary:
      page = _page(file, where.dictionary, where.dictionary_size, where.codec)
      last['values'] = [(page, *v) for v in _plain(
          page.body, 0, page.header.get(7, {}).get(1, 0))]
      last['dictionary'] = where.dictionary
    page = _page(file, where.offset, where.size, where.codec)
    dictionary = None
    if where.dictionary:
      dictionary = last['values']
    last['rows'] = _rows(page, where.levels, dictionary)
    last['page'] = where.offset
  rows = last['rows']
  if where.row >= len(rows):
    raise ValueError(f'row {where.row} of a page of {len(rows)}')
  return rows[where.row]


def _page(file: File, offset: int, size: int, codec: str) -> _Page:
  """Reads a page."""
  header, length = _header(file, offset)
  file.seek(offset + length)
  data, levels = file.read(size - length), b''
  if len(data) < size - length:
    raise ValueError('cut off')
  raw = header.get(2, 0)
  if header.get(1) == DATA_PAGE_V2:
    about = header.get(8, {})
    # Levels come first. They are not compressed, and so not part of the body.
    plain = about.get(5, 0) + about.get(6, 0)
    levels, data = data[:plain], data[plain:]
    length, raw = length + plain, raw - plain
    if not about.get(7, True):
      codec = 'UNCOMPRESSED'
  return _Page(offset + length, data, codec,
               _decompressed(data, raw, codec), header, levels)


def _decompressed(body: bytes, size: int, codec: str) -> memoryview:
  """Returns the `size` raw bytes of a page."""
  if codec == 'UNCOMPRESSED':
    return memoryview(body)
  if not 0 <= size <= LARGEST_PAGE:
    raise ValueError(f'a page of {size} bytes')
  import pyarrow
  # Parquet's LZ4_RAW and pyarrow's `lz4_raw` are the block format; `lz4` alone
  # is the frame format.
  name = {'LZ4': 'lz4_raw'}.get(codec, codec.lower())
  try:
    # Arrow's memory is used as it is: its buffers count signed bytes.
    return memoryview(pyarrow.Codec(name).decompress(body, size)).cast('B')
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise ValueError(f'a page does not unpack: {error}') from error


def _rows(page: _Page, most: int, dictionary: list | None) -> list:
  """Returns (page, begin, length) of each row of a data page, None for nulls.

  Args:
    page: the page.
    most: the level of a value that is not null.
    dictionary: the values of the dictionary, likewise.
  """
  # The levels of all rows, which say whether a row has a value.
  body, at = page.body, 0
  if page.header.get(1) == DATA_PAGE_V2:
    about = page.header[8]
    count, encoding = about.get(1, 0), about.get(4, 0)
    levels = _hybrid(memoryview(page.levels)[about.get(6, 0):], most, count)
  else:
    about = page.header[5]
    count, encoding = about.get(1, 0), about.get(2, 0)
    levels = [most] * count
    if most:
      length, = struct.unpack('<I', body[:4])
      at = 4 + length
      levels = _hybrid(body[4:at], most, count)
  present = sum(level == most for level in levels)
  # The values: nulls take no space.
  if encoding in PLAIN:
    values = ((page, *value) for value in _plain(body, at, present))
  elif encoding in DICTIONARY and dictionary is not None:
    width = 0
    if present:
      # Indices into the dictionary are preceded by their width in bits.
      width = body[at]
    values = (dictionary[i] for i in _hybrid(
        body[at + 1:], (1 << width) - 1, present))
  else:
    raise ValueError(f'encoding {encoding} of parquet, which is not read here')
  rows: list = [None] * len(levels)
  for i, level in enumerate(levels):
    if level == most:
      rows[i] = next(values)
  return rows


def _plain(body: memoryview, at: int, count: int) -> Iterator[tuple[int, int]]:
  """Yields (begin, length) of values that follow each other."""
  for _ in range(count):
    length, = struct.unpack_from('<I', body, at)
    if at + 4 + length > len(body):
      raise ValueError('a value beyond its page')
    yield at + 4, length
    at += 4 + length


def _hybrid(body: memoryview, most: int, count: int) -> list[int]:
  """Returns numbers coded in runs and in packed bits (RLE hybrid).

  Args:
    body: the coded bytes.
    most: the largest number, which gives the width in bits.
    count: how many numbers.
  """
  out: list[int] = []
  width, at = most.bit_length(), 0
  size = (width + 7) // 8
  if not width:
    return [0] * count
  while len(out) < count:
    head, at = _varint(body, at)
    if head & 1:  # Groups of 8 numbers, packed.
      length = (head >> 1) * width
      packed = int.from_bytes(body[at:at + length], 'little')
      take = min((head >> 1) * 8, count - len(out))
      out += [packed >> (i * width) & ((1 << width) - 1) for i in range(take)]
      at += length
    else:  # One number, repeated.
      value = int.from_bytes(body[at:at + size], 'little')
      if not head:
        raise ValueError('an empty run')
      out += [value] * min(head >> 1, count - len(out))
      at += size
  return out


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
  """Returns (a number in groups of 7 bits, the byte after it)."""
  value, shift = 0, 0
  while True:
    byte = data[at]
    value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
    if byte < 128:
      return value, at
    if shift > 63:
      raise ValueError('a number of more than 64 bits')


# --- Headers, in Thrift's compact protocol ---


def _header(file: File, at: int) -> tuple[dict, int]:
  """Returns a page's header as {field: value}, and its length."""
  file.seek(at)
  data = file.read(LONGEST_HEADER)
  try:
    return _structure(data, 0, 0)
  except IndexError:
    raise ValueError(f'no page at byte {at}') from None


def _structure(data: bytes, at: int, depth: int) -> tuple[dict, int]:
  """Reads a structure; returns ({number of field: value}, the byte after it).

  Args:
    data: the bytes.
    at: first byte of the structure.
    depth: how many structures it is in.
  """
  fields: dict[int, Any] = {}
  field = 0
  if depth > 8:
    raise ValueError('a header nested too deep')
  while True:
    head = data[at]
    at += 1
    if head == 0:
      return fields, at
    # The number of a field: the difference to the last one or, if that does not
    # fit into 4 bits, a number in zigzag code (0, -1, 1, -2, ...).
    if head >> 4:
      field += head >> 4
    else:
      number, at = _varint(data, at)
      field = number >> 1 ^ -(number & 1)
    fields[field], at = _field(data, at, head & 15, depth)


def _field(data: bytes, at: int, kind: int, depth: int) -> tuple:
  """Reads a field of a type; returns (its value, the byte after it)."""
  if kind in (1, 2):  # True, False: the type is the value.
    return kind == 1, at
  if kind == 3:  # A byte.
    return data[at], at + 1
  if kind in (4, 5, 6):  # An integer of 16, 32 or 64 bits.
    number, at = _varint(data, at)
    return number >> 1 ^ -(number & 1), at
  if kind == 7:  # A float, which no header here needs.
    return None, at + 8
  if kind == 8:  # Bytes.
    length, at = _varint(data, at)
    return data[at:at + length], at + length
  if kind in (9, 10):  # A list or a set.
    head = data[at]
    count, at = head >> 4, at + 1
    if count == 15:
      count, at = _varint(data, at)
    out = []
    for _ in range(min(count, LONGEST_HEADER)):
      value, at = _field(data, at, head & 15, depth + 1)
      out.append(value)
    return out, at
  if kind == 12:
    return _structure(data, at, depth + 1)
  raise ValueError(f'type {kind} in a header')
