"""The training curves of a sweep as one table, from every metrics.jsonl."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute
from pyarrow import json as arrow_json
from pyarrow import parquet

from audiorank import files
from audiorank.records import run_dir

NAME = 'curves.parquet'
DEEPEST = 1000  # Brackets in a line, which ours are far below.


def parsed(data: bytes) -> pa.Table:
  """Returns the rows of JSON lines as a table."""
  # One block: Arrow takes the types of columns from the first one.
  options = arrow_json.ReadOptions(block_size=min(len(data) + 1, 2 ** 31 - 1))
  return arrow_json.read_json(pa.BufferReader(data), read_options=options)


def whole_lines(workdir: pathlib.Path) -> bytes:
  """Returns the bytes of a run's rows, without a half-written last one."""
  try:
    data = files.read_regular(workdir / 'metrics.jsonl')
  except FileNotFoundError:
    return b''
  return data[:data.rfind(b'\n') + 1]


def parsed_whole(pieces: Sequence[bytes]) -> pa.Table | None:
  """Returns the rows of several files as one table, or None if a line is
  damaged."""
  for data in pieces:
    # Every line is one object: none is empty, and none has two.
    if not (data.count(b'\n') == data.count(b'}\n')
            == (b'\n' + data).count(b'\n{')):
      return None
    # Deep nesting ends the process in Arrow's parser.
    if max(line.count(b'{') + line.count(b'[')
            for line in data.split(b'\n')) > DEEPEST:
      return None
  try:
    # Arrow refuses an empty buffer.
    table = parsed(b''.join(pieces) or b'{}\n')
    names = table.column_names
  except ValueError:  # Of Arrow, or of a name that is not UTF-8.
    return None
  if len(table) != sum(data.count(b'\n') for data in pieces):
    return None
  for name in names:
    column = table[name]
    if name == 'step' and not (pa.types.is_integer(column.type)
                               and not column.null_count):
      return None
    if pa.types.is_null(column.type) or name in run_dir.TEXTS:
      continue
    if not is_number(column.type):
      return None
    largest = compute.max(compute.abs(column)).as_py()
    if compute.any(compute.is_nan(column)).as_py():
      return None
    if largest is not None and not largest < run_dir.LARGEST:
      return None
  return table


def is_number(kind: pa.DataType) -> bool:
  """Returns whether a column is of integers or floats."""
  return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def only_numbers(row: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of metrics without its texts, its numbers as floats."""
  return {name: value if name == 'step' else float(value)
          for name, value in row.items()
          if value is not None and name not in run_dir.TEXTS}


def gather(folders: Sequence[pathlib.Path]) -> pa.Table:
  """Returns a table: run_id, step and every number of every row.

  Damaged lines are left out, with a warning.

  Args:
    folders: of the runs.
  """
  pieces = files.mapped(whole_lines, folders, next(iter(folders), ''))
  names = np.array([f.name for f in folders])
  table = parsed_whole(pieces)
  if table is None:
    pieces = [''.join(files.json_line(only_numbers(row)) for row in
                      run_dir.metric_rows(folder)).encode()
              for folder in folders]
    table = parsed(b''.join(pieces) or b'{}\n')
  counts = [data.count(b'\n') for data in pieces]
  if not sum(counts):
    return pa.table({'run_id': pa.array([], pa.string()),
                     'step': pa.array([], pa.int64())})
  numbers = [c for c in table.column_names if is_number(table[c].type)]
  columns = {c: table[c].cast(pa.int64() if c == 'step' else pa.float64())
             for c in sorted(numbers)}
  # Each name once: ids repeat for thousands of rows.
  ids = pa.DictionaryArray.from_arrays(
      np.repeat(np.arange(len(names), dtype=np.int32), counts), names)
  return pa.table({'run_id': ids, **columns})


def write(root: files.Path, folders: Sequence[pathlib.Path]) -> None:
  """Writes <root>/curves.parquet, whole or not at all."""
  with files.replacing(files.path(root) / NAME, sync=False) as part:
    parquet.write_table(gather(folders), part)


def curves(root: files.Path) -> pd.DataFrame:
  """Returns the rows of every run's metrics.jsonl that `collect` wrote.

  Raises:
    FileNotFoundError: they are not there.
  """
  path = files.path(root) / NAME
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file: run records.collect first')
  with files.local(path) as copy:
    return pd.read_parquet(copy)
