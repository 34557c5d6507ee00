"""Embeddings in files of any size, and their rank.

Reads .npy, .npz, .parquet and .safetensors. No file is read whole: .npy and
.safetensors are memory-mapped, .npz and .parquet are read in order, one chunk
at a time. Pickles are never opened.

Shapes: N clips, D width.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple
import zipfile

from absl import logging
import jax.numpy as jnp
import numpy as np

from audiorank import files
from audiorank.rankme import gram
from audiorank.rankme import interval
from audiorank.rankme import record
from audiorank.rankme import streaming

CHUNK = 2 ** 25  # Bytes read at a time, roughly.
# What safetensors calls them; numpy has no bfloat16 of its own, jax does.
SAFE_TYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
              'BF16': jnp.bfloat16, 'I64': np.int64, 'I32': np.int32}


class Table(NamedTuple):
  """An array of rows that lies in a file."""
  label: str  # Its name in messages.
  shape: tuple[int, int]  # (N, D)
  dtype: np.dtype
  chunks: Callable[[], Iterator[np.ndarray]]  # Consecutive z_ND.
  column: Callable[[str], np.ndarray]  # Another array of the file, [N, ...].


def open_table(path: str | os.PathLike[str], name: str = '') -> Table:
  """Returns the Table of an array [clips, width] in a file.

  Args:
    path: a .npy, .npz, .parquet or .safetensors file. In parquet an embedding
      is one column of lists, or a floating column for each dimension, all
      called by one prefix and a number.
    name: which array (or column of lists, or prefix); '' where there is only
      one.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file, a damaged one, no such array, several
      and no name, another shape. Names the file.
  """
  path = files.on_disk(path)
  readers = {'.npy': _npy, '.npz': _npz, '.parquet': _parquet,
             '.safetensors': _safetensors}
  if path.suffix not in readers:
    raise ValueError(f'{path}: expected a file {", ".join(readers)}')
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  with damage_named(path):
    # Readers see only headers here; the rows come later, by chunks.
    table = readers[path.suffix](path, name)
  if len(table.shape) != 2 or not all(table.shape):
    raise ValueError(f'{table.label}: shape {tuple(table.shape)}, expected '
                     '(clips, width)')
  if not jnp.issubdtype(table.dtype, jnp.floating):
    raise ValueError(f'{table.label}: {table.dtype}, expected floating point')

  def chunks() -> Iterator[np.ndarray]:
    with damage_named(path):
      yield from table.chunks()

  def column(other: str) -> np.ndarray:
    with damage_named(path):
      return table.column(other)

  return table._replace(chunks=chunks, column=column)


@contextlib.contextmanager
def damage_named(path: pathlib.Path) -> Iterator[None]:
  """Turns what a reader raises of a damaged file into a ValueError."""
  try:
    yield
  except MemoryError as error:
    raise ValueError(f'{path}: out of memory: {files.one_line(error)}'
                     ) from None
  except Exception as error:  # Of any reader: zip, JSON, arrow, numpy.
    if isinstance(error, ValueError) and str(error).startswith(str(path)):
      raise
    raise ValueError(f'{path}: damaged: {files.one_line(error)}') from None


def rows_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Returns the number of rows in one chunk."""
  return max(1, CHUNK // max(1, math.prod(shape[1:]) * dtype.itemsize))


def check_memory(label: str, n: int, width: int) -> None:
  """Raises ValueError for a shape whose rank needs more memory than there is.

  A header may promise any shape. The kernel would end the process, without a
  word, only when the moments are written.
  """
  # The block of every row, and of every block the Gram matrix, in float64.
  need = 8 * (n + min(n, streaming.BLOCKS) * width ** 2)
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if need > memory:
    raise ValueError(
        f'{label}: shape ({n}, {width}): its rank needs {need / 1e9:,.0f} GB '
        f'of memory, of {memory / 1e9:,.0f} GB here: expected fewer clips or '
        'a smaller width')


def pick(path: pathlib.Path, name: str, arrays: dict[str, int]) -> str:
  """Returns the array to read; `arrays` maps names to numbers of axes."""
  if name:
    if name not in arrays:
      raise ValueError(f'{path}: no array {name!r}: there are '
                       f'{", ".join(sorted(arrays)) or "none"}')
    return name
  # Without a name, exactly one array may look like embeddings.
  flat = sorted(n for n, dimensions in arrays.items() if dimensions == 2)
  if len(flat) != 1:
    names = ', '.join(flat) or 'none'
    raise ValueError(f'{path}: expected one array (clips, width) or its name '
                     f'(--array), found {names}')
  return flat[0]


def _sliced(array):
  step = rows_of(array.shape, array.dtype)
  for start in range(0, len(array), step):
    yield np.asarray(array[start:start + step])


def _npy(path, name):
  if name:
    raise ValueError(f'{path}: an .npy holds one array, without a name')
  try:
    with open(path, 'rb') as file:
      if file.read(2) != b'PK':  # Not an archive, which is named below.
        file.seek(0)
        shape, _, dtype = _header(file)
        size = path.stat().st_size - file.tell()
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
          raise ValueError(f'{shape} of {dtype} in {size} bytes')
    # allow_pickle=False: a pickle runs code of whoever wrote the file.
    array = np.load(path, mmap_mode='r', allow_pickle=False)
  except ValueError as error:
    raise ValueError(f'{path}: not an .npy of numbers '
                     f'({files.one_line(error)})') from None
  if not isinstance(array, np.ndarray):
    raise ValueError(f'{path}: an archive, expected an .npy')

  def column(other: str) -> np.ndarray:
    raise ValueError(f'{path}: an .npy has no array {other!r} beside it')

  return Table(str(path), array.shape, array.dtype, lambda: _sliced(array),
               column)


def _header(file):
  # Of an array in an archive only the header is read: shape and dtype decide
  # what follows.
  version = np.lib.format.read_magic(file)
  read = {(1, 0): np.lib.format.read_array_header_1_0,
          (2, 0): np.lib.format.read_array_header_2_0}
  if version not in read:
    raise ValueError(f'.npy of version {version}')
  return read[version](file)


def _npz(path, name):
  with zipfile.ZipFile(path) as archive:
    headers = {}
    for member in archive.namelist():
      with archive.open(member) as file:
        shape, _, dtype = header = _header(file)
        # `tell` is the end of the header.
        size = archive.getinfo(member).file_size - file.tell()
        if not dtype.hasobject and size != math.prod(shape) * dtype.itemsize:
          raise ValueError(f'{member}: {shape} of {dtype} in {size} bytes')
        headers[member.removesuffix('.npy')] = header
  name = pick(path, name, {n: len(h[0]) for n, h in headers.items()})
  shape, fortran, dtype = headers[name]
  label = f'{path}, array {name}'
  # Rows of an array stored by columns are not contiguous in the stream.
  if fortran and len(shape) > 1:
    raise ValueError(f'{label}: stored by columns; save '
                     'numpy.ascontiguousarray of it')
  if dtype.hasobject:
    raise ValueError(f'{label}: Python objects, expected numbers')

  def chunks() -> Iterator[np.ndarray]:
    step = rows_of(shape, dtype)
    width = math.prod(shape[1:]) * dtype.itemsize
    # An archive cannot be memory-mapped: rows are read in order.
    with zipfile.ZipFile(path) as archive, archive.open(
        f'{name}.npy') as file:
      _header(file)
      for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        data = file.read(rows * width)
        # The header may promise more rows than the member has.
        if len(data) < rows * width:
          raise ValueError(f'{label}: cut short')
        yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])

  def column(other: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
      return arrays[pick(path, other, dict.fromkeys(headers, 0))]

  return Table(label, shape, dtype, chunks, column)


def _safetensors(path, name):
  with open(path, 'rb') as file:
    # The format: eight bytes of length, a header in JSON, then the arrays.
    size = int.from_bytes(file.read(8), 'little')
    if not 0 < size <= path.stat().st_size - 8:
      raise ValueError(f'{path}: not a safetensors file')
    try:
      header = json.loads(file.read(size))
    except (ValueError, RecursionError):
      raise ValueError(f'{path}: not a safetensors file') from None
  header.pop('__metadata__', None)
  name = pick(path, name, {n: len(h['shape']) for n, h in header.items()})
  # The format has no gaps: a changed shape or offset leaves one.
  end = 0
  for first, last in sorted(h['data_offsets'] for h in header.values()):
    if first != end or last < first:
      raise ValueError(f'{path}: damaged: a gap at byte {end} of the data')
    end = last
  if 8 + size + end != path.stat().st_size:
    raise ValueError(f'{path}: damaged: {end} bytes of data, expected '
                     f'{path.stat().st_size - 8 - size}')

  def mapped(key: str) -> np.ndarray:
    entry = header[pick(path, key, dict.fromkeys(header, 0))]
    if entry['dtype'] not in SAFE_TYPES:
      raise ValueError(f"{path}, array {key}: {entry['dtype']}, expected "
                       f'{", ".join(SAFE_TYPES)}')
    dtype, shape = np.dtype(SAFE_TYPES[entry['dtype']]), tuple(entry['shape'])
    start, end = entry['data_offsets']
    # Offsets come from the file: checked before memory is mapped at them.
    if (start < 0 or end - start != math.prod(shape) * dtype.itemsize
        or 8 + size + end > path.stat().st_size):
      raise ValueError(f'{path}, array {key}: damaged: {shape} of {dtype} in '
                       f'{end - start} bytes')
    # mmap refuses a length of 0.
    if not end - start:
      return np.zeros(shape, dtype)
    return np.memmap(path, dtype, 'r', 8 + size + start, shape)

  array = mapped(name)
  return Table(f'{path}, array {name}', array.shape, array.dtype,
               lambda: _sliced(array), mapped)


def numbered(path: pathlib.Path, names: Sequence[str], prefix: str
             ) -> list[str]:
  """Returns the columns that are the dimensions of an embedding.

  They are called by one prefix and a number: d0, d1, ... or 0, 1, ... Any
  other column of floats, such as a time or a score, would change the rank.

  Args:
    path: of the file, for messages.
    names: its columns of floats.
    prefix: of the columns to take; '' where no others may be there.

  Raises:
    ValueError: there are others, or none; names one.
  """
  # 'd12' has the prefix 'd', '12' the prefix ''.
  prefix_of = {n: re.fullmatch(r'(.*?)\d+', n, re.DOTALL) for n in names}
  by_prefix: dict[str, list[str]] = {}
  others = []
  for column, match in prefix_of.items():
    if match is None:
      others.append(column)
    else:
      by_prefix.setdefault(match[1], []).append(column)
  if prefix:
    if prefix not in by_prefix:
      raise ValueError(f'{path}: no array {prefix!r}: neither a column of '
                       f'lists nor {prefix}0, {prefix}1, ...')
    return by_prefix[prefix]
  # Of several the one with most columns is the embedding, most likely.
  ranked = sorted(by_prefix, key=lambda p: -len(by_prefix[p]))
  others += [by_prefix[p][0] for p in ranked[1:]]
  if not ranked or others:
    advice = ''
    if ranked and ranked[0]:
      advice = f'; --array={ranked[0]} takes {by_prefix[ranked[0]][0]}, ...'
    raise ValueError(
        f'{path}: expected one column of lists, or columns of floats called by '
        f'one prefix and a number, found {(others or ["none"])[0]}{advice}')
  return by_prefix[ranked[0]]


def _index_columns(schema):
  """Returns the columns of a parquet file that are an index of pandas."""
  about = (schema.pandas_metadata or {}).get('index_columns', [])
  return {column for column in about if isinstance(column, str)}


def stated_values(group: Any, name: str) -> int:
  """Returns the number of values of a column in a row group's header."""
  columns = (group.column(i) for i in range(group.num_columns))
  return sum(column.num_values for column in columns
             if f'{column.path_in_schema}.'.startswith(f'{name}.'))


def _parquet(path, name):
  import pyarrow as pa
  import pyarrow.parquet as pq
  try:
    file = pq.ParquetFile(path)
  except pa.ArrowInvalid as error:
    raise ValueError(f'{path}: not a parquet file '
                     f'({files.one_line(error)})') from None
  schema, n = file.schema_arrow, file.metadata.num_rows
  groups = [file.metadata.row_group(i)
            for i in range(file.metadata.num_row_groups)]
  if n != sum(group.num_rows for group in groups):
    raise ValueError(f'{path}: damaged: {n} rows, but its row groups have '
                     f'{sum(group.num_rows for group in groups)}')
  listed = lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)
                         or pa.types.is_fixed_size_list(kind))
  lists = {f.name: 2 for f in schema if listed(f.type)}
  index = _index_columns(schema)
  scalars = [f.name for f in schema
             if pa.types.is_floating(f.type) and f.name not in index]
  if lists and (not name or name in lists):
    name = pick(path, name, lists)
    columns, label = [name], f'{path}, column {name}'
    dtype = np.dtype(schema.field(name).type.value_type.to_pandas_dtype())
    # The mean length of its lists, before one of them is read.
    stated = sum(stated_values(group, name) for group in groups)
    check_memory(label, n, stated // max(1, n))
    # The width is in no schema of a variable list: the first row tells.
    first = next(file.iter_batches(1, columns=columns), None)
    width = 0
    if first is not None:
      width = len(first.column(0)[0])
  else:
    columns, label = numbered(path, scalars, name), str(path)
    lists, width = {}, len(columns)
    # Columns of several floating types: the widest.
    dtype = np.result_type(*(schema.field(c).type.to_pandas_dtype()
                             for c in columns))

  def values(batch: Any) -> np.ndarray:
    # A missing value would become NaN, or a 0 that changes the rank.
    if any(column.null_count for column in batch.columns):
      raise ValueError(f'{label}: missing values')
    if not lists:
      return np.stack([c.to_numpy(zero_copy_only=False)
                       for c in batch.columns], axis=1).astype(dtype)
    flat = batch.column(0).flatten()
    lengths = np.asarray(batch.column(0).value_lengths())
    if flat.null_count or (lengths != width).any():
      raise ValueError(f'{label}: lists of other lengths than the first, '
                       f'{width}, or missing values')
    return flat.to_numpy(zero_copy_only=False).reshape(len(batch), width)

  def chunks() -> Iterator[np.ndarray]:
    step = rows_of((n, width), dtype)
    for batch in file.iter_batches(step, columns=columns):
      yield values(batch)

  def column(other: str) -> np.ndarray:
    if other not in schema.names:
      raise ValueError(f'{path}: no column {other!r}')
    return file.read(columns=[other]).column(0).to_numpy()

  return Table(label, (n, width), dtype, chunks, column)


def fingerprint(path: str | os.PathLike[str]) -> str:
  """Returns 12 hex digits of a file's size, beginning and end, or ''."""
  path = files.path(path)
  if not path.is_file():
    return ''
  # Size, first and last MiB: enough to notice another file, and as fast for 100
  # GB as for one.
  size, part = path.stat().st_size, 1 << 20
  first = files.read_part(path, 0, min(part, size))
  last = files.read_part(path, max(0, size - part), size)
  return hashlib.sha256(f'{size}\n'.encode() + first + last).hexdigest()[:12]


def _group_ids(path, table, name):
  """Returns the file's array of recording ids, checked against the table."""
  group_N = table.column(name)
  # Lists or dictionaries as ids cannot be compared.
  if group_N.ndim == 1 and len(group_N) and not np.isscalar(group_N[0]):
    raise ValueError(f'{path}: groups {name}: found '
                     f'{type(group_N[0]).__name__}, expected one id a clip')
  if group_N.shape != (table.shape[0],):
    raise ValueError(f'{path}: groups {name} of shape {group_N.shape}, '
                     f'expected ({table.shape[0]},)')
  return group_N


def _stream_state(table, block_N):
  """Returns the moments of a table by block, read one chunk at a time."""
  n, width = table.shape
  state, start = streaming.init(width, int(block_N.max()) + 1), 0
  buffer_BD = gram.buffer(width)
  for z_ND in table.chunks():
    # Checked while rows pass, because the file is read only once.
    finite_N = np.isfinite(z_ND).all(axis=1)
    if not finite_N.all():
      raise ValueError(f'{table.label}: NaN or infinity in row '
                       f'{start + int(finite_N.argmin())}')
    # Half precision: as float32, like embeddings in memory (`gram.checked`).
    if z_ND.dtype.itemsize < 4:
      z_ND = z_ND.astype(np.float32)
    streaming.add_rows(state, z_ND, block_N[start:start + len(z_ND)],
                       buffer_BD)
    start += len(z_ND)
  if start != n:
    raise ValueError(f'{table.label}: {start} rows, expected {n}')
  streaming.complete(state)
  if not gram.is_finite(state.gram_BDD):
    raise ValueError(f'{table.label}: the squares overflow float64: rescale '
                     'the embeddings')
  return state


def file_rank(path: str | os.PathLike[str], array: str = '',
              groups: str = '') -> record.Fields:
  """Returns the rank fields of embeddings in a file of any size.

  Args:
    path: the file; see `open_table`.
    array: name of the array in it; see `open_table`.
    groups: name of the file's array of recording ids, one a clip. With '' the
      interval leaves out runs of rows.

  Returns:
    n, width, dtype, sources, and the fields of `record.spectrum_fields`.

  Raises:
    FileNotFoundError, ValueError: as `open_table`; fewer than two rows;
      numbers that are not finite.
  """
  with files.local(path) as copy:
    return _local_rank(copy, array, groups)


def _local_rank(path: pathlib.Path, array: str, groups: str) -> record.Fields:
  """Returns `file_rank` of a local file."""
  table = open_table(path, array)
  n, width = table.shape
  if n < 2:
    raise ValueError(f'{table.label}: a rank needs at least 2 clips, found {n}')
  check_memory(table.label, n, width)
  if table.dtype.itemsize < 4:
    logging.warning('%s: the rounding of %s moves RankMe by up to 3 %% '
                    '(float16) or 35 %% (bfloat16) where the spectrum decays '
                    'fast', table.label, table.dtype)
  # Without ids every clip counts as a recording of its own.
  group_N, sources = None, n
  if groups:
    group_N = _group_ids(path, table, groups)
    sources = len(np.unique(group_N))
  state = _stream_state(table, interval.assign_blocks(n, groups=group_N))
  return {'n': n, 'width': width, 'dtype': str(table.dtype),
          'sources': sources, **record.spectrum_fields(state)}
