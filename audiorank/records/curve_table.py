"""The training curves of a sweep as one table, from every metrics.jsonl."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import json as arrow_json
from pyarrow import parquet

from audiorank import files

NAME = 'curves.parquet'


def parsed(data):
  """Returns the rows of JSON lines as a table."""
  options = arrow_json.ReadOptions(block_size=min(len(data) + 1, 2 ** 31 - 1))
  return arrow_json.read_json(pa.BufferReader(data), read_options=options)


def is_row(line):
  """Returns whether a line is a row of metrics."""
  try:
    return 'step' in json.loads(line)
  except (ValueError, TypeError):
    return False


def whole_lines(workdir):
  """Returns the bytes of a run's rows, without a half-written last one."""
  try:
    data = (workdir / 'metrics.jsonl').read_bytes()
  except FileNotFoundError:
    return b''
  return data[:data.rfind(b'\n') + 1]


def gather(folders):
  """Returns a table: run_id, step and every number of every row.

  Damaged lines are left out.

  Args:
    folders: of the runs.
  """
  pieces = files.mapped(whole_lines, folders, next(iter(folders), ''))
  names = np.array([f.name for f in folders])
  # Arrow reads all files at once, or says that one of them is damaged.
  try:
    table = parsed(b''.join(pieces) or b'{}\n')
  except pa.ArrowInvalid:
    pieces = [b''.join(line + b'\n' for line in data.splitlines()
                       if is_row(line)) for data in pieces]
    table = parsed(b''.join(pieces) or b'{}\n')
  counts = [data.count(b'\n') for data in pieces]
  if not sum(counts):
    return pa.table({'run_id': pa.array([], pa.string()),
                     'step': pa.array([], pa.int64())})
  numbers = [c for c in table.column_names
             if pa.types.is_floating(table[c].type)
             or pa.types.is_integer(table[c].type)]
  columns = {c: table[c].cast(pa.int64() if c == 'step' else pa.float64())
             for c in sorted(numbers)}
  ids = pa.DictionaryArray.from_arrays(
      np.repeat(np.arange(len(names), dtype=np.int32), counts), names)
  return pa.table({'run_id': ids, **columns})


def write(root, folders):
  """Writes <root>/curves.parquet, whole or not at all."""
  with files.replacing(files.path(root) / NAME, sync=False) as part:
    parquet.write_table(gather(folders), part)


def curves(root):
  """Returns the rows of every run's metrics.jsonl that `collect` wrote.

  Raises:
    FileNotFoundError: they are not there.
  """
  path = files.path(root) / NAME
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file: run records.collect first')
  with files.local(path) as copy:
    return pd.read_parquet(copy)
