"""Embeddings in files of any size: .npy, .npz, .parquet, .safetensors.

Nothing is read whole: .npy and .safetensors are mapped, .npz and .parquet are
read in order, a chunk at a time. No pickle is ever opened.

Shapes: N clips, D width.
"""

from collections.abc import Callable
import json
import math
import pathlib
from typing import NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

CHUNK = 2 ** 25  # Bytes of a chunk, about.
SAFE_TYPES = {'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
              'BF16': jnp.bfloat16, 'I64': np.int64, 'I32': np.int32}


class Table(NamedTuple):
  """An array of rows that lies in a file."""
  label: str        # what to call it in a message
  shape: tuple      # (N, D)
  dtype: np.dtype
  chunks: Callable  # () -> iterator over consecutive z_ND
  column: Callable  # name -> another array of the file, N long


def open_table(path, name=''):
  """Returns the Table of an array [clips, width] in a file.

  Args:
    path: a .npy, .npz, .parquet or .safetensors file. In parquet an embedding
      is one column of lists, or every floating column is one dimension.
    name: which array (or column of lists); '' where there is only one.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file, a damaged one, no such array, several
      and no name, another shape. Names the file.
  """
  path = pathlib.Path(path)
  readers = {'.npy': _npy, '.npz': _npz, '.parquet': _parquet,
             '.safetensors': _safetensors}
  if path.suffix not in readers:
    raise ValueError(f'{path}: expected a file {", ".join(readers)}')
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  try:
    table = readers[path.suffix](path, name)
  except (EOFError, OSError, KeyError, zipfile.BadZipFile) as error:
    raise ValueError(f'{path}: damaged: {error}') from None
  if len(table.shape) != 2 or not all(table.shape):
    raise ValueError(f'{table.label}: shape {tuple(table.shape)}, expected '
                     '(clips, width)')
  if not jnp.issubdtype(table.dtype, jnp.floating):
    raise ValueError(f'{table.label}: {table.dtype}, expected floating point')
  return table


def rows_of(shape, dtype):
  """Returns how many rows make a chunk."""
  return max(1, CHUNK // max(1, math.prod(shape[1:]) * dtype.itemsize))


def chosen(path, name, arrays):
  """Returns the name of the array meant: `arrays` maps names to dimensions."""
  if name:
    if name not in arrays:
      raise ValueError(f'{path}: no array {name!r}: there are '
                       f'{", ".join(sorted(arrays)) or "none"}')
    return name
  flat = sorted(n for n, dimensions in arrays.items() if dimensions == 2)
  if len(flat) != 1:
    found = ', '.join(flat) or 'none'
    raise ValueError(f'{path}: expected one array (clips, width) or its name '
                     f'(--array), found {found}')
  return flat[0]


def _sliced(array):
  step = rows_of(array.shape, array.dtype)
  for start in range(0, len(array), step):
    yield np.asarray(array[start:start + step])


def _npy(path, name):
  if name:
    raise ValueError(f'{path}: an .npy holds one array, without a name')
  try:
    array = np.load(path, mmap_mode='r', allow_pickle=False)
  except ValueError as error:
    raise ValueError(f'{path}: not an .npy of numbers ({error})') from None
  if not isinstance(array, np.ndarray):
    raise ValueError(f'{path}: an archive, expected an .npy')

  def column(other):
    raise ValueError(f'{path}: an .npy has no array {other!r} beside it')

  return Table(str(path), array.shape, array.dtype, lambda: _sliced(array),
               column)


def _header(file):
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
        headers[member.removesuffix('.npy')] = _header(file)
  name = chosen(path, name, {n: len(h[0]) for n, h in headers.items()})
  shape, fortran, dtype = headers[name]
  label = f'{path}, array {name}'
  if fortran and len(shape) > 1:
    raise ValueError(f'{label}: stored by columns; save '
                     'numpy.ascontiguousarray of it')
  if dtype.hasobject:
    raise ValueError(f'{label}: Python objects, expected numbers')

  def chunks():
    step = rows_of(shape, dtype)
    width = math.prod(shape[1:]) * dtype.itemsize
    with zipfile.ZipFile(path) as archive, archive.open(
        f'{name}.npy') as file:
      _header(file)
      for start in range(0, shape[0], step):
        rows = min(step, shape[0] - start)
        data = file.read(rows * width)
        if len(data) < rows * width:
          raise ValueError(f'{label}: cut short')
        yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])

  def column(other):
    with np.load(path, allow_pickle=False) as arrays:
      return arrays[chosen(path, other, dict.fromkeys(headers, 0))]

  return Table(label, shape, dtype, chunks, column)


def _safetensors(path, name):
  with open(path, 'rb') as file:
    size = int.from_bytes(file.read(8), 'little')
    if not 0 < size <= path.stat().st_size - 8:
      raise ValueError(f'{path}: not a safetensors file')
    try:
      header = json.loads(file.read(size))
    except ValueError:
      raise ValueError(f'{path}: not a safetensors file') from None
  header.pop('__metadata__', None)
  name = chosen(path, name, {n: len(h['shape']) for n, h in header.items()})

  def mapped(key):
    told = header[chosen(path, key, dict.fromkeys(header, 0))]
    if told['dtype'] not in SAFE_TYPES:
      raise ValueError(f"{path}, array {key}: {told['dtype']}, expected "
                       f'{", ".join(SAFE_TYPES)}')
    dtype, shape = np.dtype(SAFE_TYPES[told['dtype']]), tuple(told['shape'])
    start, end = told['data_offsets']
    if (end - start != math.prod(shape) * dtype.itemsize
        or 8 + size + end > path.stat().st_size):
      raise ValueError(f'{path}, array {key}: damaged: {shape} of {dtype} in '
                       f'{end - start} bytes')
    if not end - start:
      return np.zeros(shape, dtype)
    return np.memmap(path, dtype, 'r', 8 + size + start, shape)

  array = mapped(name)
  return Table(f'{path}, array {name}', array.shape, array.dtype,
               lambda: _sliced(array), mapped)


def _parquet(path, name):
  import pyarrow as pa
  import pyarrow.parquet as pq
  try:
    file = pq.ParquetFile(path)
  except pa.ArrowInvalid as error:
    raise ValueError(f'{path}: not a parquet file ({error})') from None
  schema, n = file.schema_arrow, file.metadata.num_rows
  listed = lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)
                         or pa.types.is_fixed_size_list(kind))
  lists = {f.name: 2 for f in schema if listed(f.type)}
  scalars = [f.name for f in schema if pa.types.is_floating(f.type)]
  if lists or name:
    name = chosen(path, name, lists)
    columns, label = [name], f'{path}, column {name}'
    dtype = np.dtype(schema.field(name).type.value_type.to_pandas_dtype())
    first = next(file.iter_batches(1, columns=columns), None)
    width = len(first.column(0)[0]) if first is not None else 0
  else:
    columns, label, width = scalars, str(path), len(scalars)
    if not scalars:
      raise ValueError(f'{path}: no column of lists and none of floats')
    dtype = np.result_type(*(schema.field(c).type.to_pandas_dtype()
                             for c in columns))

  def values(batch):
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

  def chunks():
    step = rows_of((n, width), dtype)
    for batch in file.iter_batches(step, columns=columns):
      yield values(batch)

  def column(other):
    if other not in schema.names:
      raise ValueError(f'{path}: no column {other!r}')
    return file.read(columns=[other]).column(0).to_numpy()

  return Table(label, (n, width), dtype, chunks, column)
