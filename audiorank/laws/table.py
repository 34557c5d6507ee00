"""Columns of anybody's table, checked, with errors that name the culprit."""

import os
from typing import Any

from absl import logging
import numpy as np
import pandas as pd

from audiorank import files

# Squares of larger numbers, or of smaller than its inverse, leave float64.
LARGE = 1e50


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
  """Returns the table of a .csv or .parquet file.

  Rows that are equal in every column are one row written twice (files joined
  twice, exports with duplicates): they would narrow every interval, so only
  the first of them is kept, and a warning is logged.

  Raises:
    FileNotFoundError, ValueError: no such file, or not a table.
  """
  path = files.path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  try:
    with files.local(path) as copy:
      if path.suffix == '.parquet':
        data = pd.read_parquet(copy)
      else:
        data = pd.read_csv(copy, skipinitialspace=True)
  except Exception as error:  # Each parser has its own.
    raise ValueError(f'{path}: not a table ({files.one_line(error)})'
                     ) from None
  data = data.rename(columns=lambda name: str(name).strip())
  try:
    repeated = data.duplicated()
  except TypeError:  # Columns of lists cannot be compared.
    return data
  if repeated.any():
    logging.warning('%s: %d of %d rows are equal to another one in every '
                    'column: they are left out', path, repeated.sum(),
                    len(data))
  return data[~repeated].reset_index(drop=True)


def raw(data: Any, name: str) -> Any:
  """The column of that name; ValueError naming what there is instead."""
  if name not in data:
    raise ValueError(f'no column {name!r}: the table has '
                     f'{", ".join(map(str, data.keys()))}')
  return data[name]


def numbers(name: str, values: Any) -> np.ndarray:
  """Returns a one-dimensional float64 array of finite numbers.

  Raises:
    ValueError: it is none; names the column and the row.
  """
  array = np.asarray(values)
  # np.asarray(True, float) is 1.0: without this, a column of flags would be
  # fitted as numbers.
  if array.dtype == bool:
    raise ValueError(f'column {name!r} is of true and false: expected numbers')
  try:
    col = np.atleast_1d(np.asarray(array, float))
  except (TypeError, ValueError) as error:
    raise ValueError(_not_numeric(name, values, error)) from None
  if col.ndim != 1:
    raise ValueError(f'column {name!r} has shape {col.shape}: expected one '
                     'number per row')
  if not len(col):
    raise ValueError(f'column {name!r} is empty')
  bad = np.flatnonzero(~np.isfinite(col))
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]} in row {bad[0]}: '
                     'expected finite numbers')
  # Objectives are sums of squares.
  size = np.abs(col)
  bad = np.flatnonzero((size > LARGE) | ((size < 1 / LARGE) & (col != 0)))
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     f'squares of numbers beyond {LARGE:g} or below '
                     f'{1 / LARGE:g} leave float64; take another unit')
  return col


def _not_numeric(name, values, error):
  """The message about a column that is not numeric: its first such row."""
  # numpy's error names no row, so values are tried one by one.
  for i, value in enumerate(np.asarray(values, object).ravel()):
    try:
      float(value)
    except (TypeError, ValueError):
      text = repr(files.one_line(value))
      return f'column {name!r} is not numeric: {text} in row {i}'
  return f'column {name!r} is not numeric: {files.one_line(error)}'


def column(data: Any, name: str) -> np.ndarray:
  """Returns `numbers` of the column of that name."""
  return numbers(name, raw(data, name))


def positive(name: str, col: np.ndarray) -> np.ndarray:
  """Returns the column itself, if every value is above 0; else ValueError."""
  bad = np.flatnonzero(col <= 0)
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     'a law takes its logarithm, so it must be above 0')
  return col


def weights(data: Any, values: Any, n: int) -> np.ndarray:
  """Returns weights of n rows: ones, a named column, or the argument.

  Raises:
    ValueError: another number of them, or a negative one.
  """
  if values is None:
    return np.ones(n)
  if isinstance(values, str):
    w_N = column(data, values)
  else:
    w_N = numbers('weights', values)
  if len(w_N) != n or (w_N < 0).any():
    raise ValueError(f'weights: expected {n} numbers that are not negative, '
                     f'found {len(w_N)} of which {(w_N < 0).sum()} negative')
  return w_N


def in_domain(name: str, col: np.ndarray, link: str) -> None:
  """Raises ValueError where a value has no image on the scale of the loss."""
  if link == 'identity':
    return
  # Exact 0 and 1 have an infinite logit.
  bad = np.flatnonzero((col <= 0) | ((col >= 1) & (link == 'logit')))
  if len(bad):
    expected = 'between 0 and 1'
    if link == 'log':
      expected = 'above 0'
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     f'a loss on its {link} needs values {expected}')
