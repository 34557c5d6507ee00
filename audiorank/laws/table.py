"""Columns of anybody's table, checked, with errors that name the culprit."""

import pathlib

import numpy as np
import pandas as pd


def read(path):
  """The table of a .csv or .parquet file.

  Raises:
    FileNotFoundError, ValueError: no such file, or not a table.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  try:
    found = (pd.read_parquet(path) if path.suffix == '.parquet' else
             pd.read_csv(path, skipinitialspace=True))
  except Exception as error:  # Each parser has its own.
    raise ValueError(f'{path}: not a table ({error})') from None
  return found.rename(columns=lambda name: str(name).strip())

LARGE = 1e50


def raw(data, name):
  """The column of that name; ValueError naming what there is instead."""
  if name not in data:
    raise ValueError(f'no column {name!r}: the table has '
                     f'{", ".join(map(str, data.keys()))}')
  return data[name]


def numbers(name, values):
  """A one-dimensional float64 array of finite numbers."""
  found = np.asarray(values)
  if found.dtype == bool:
    raise ValueError(f'column {name!r} is of true and false: expected numbers')
  try:
    col = np.atleast_1d(np.asarray(found, float))
  except (TypeError, ValueError) as error:
    raise ValueError(_culprit(name, values, error)) from None
  if col.ndim != 1:
    raise ValueError(f'column {name!r} has shape {col.shape}: expected one '
                     'number per row')
  if not len(col):
    raise ValueError(f'column {name!r} is empty')
  bad = np.flatnonzero(~np.isfinite(col))
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]} in row {bad[0]}: '
                     'expected finite numbers')
  size = np.abs(col)
  bad = np.flatnonzero((size > LARGE) | ((size < 1 / LARGE) & (col != 0)))
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     f'squares of numbers beyond {LARGE:g} or below '
                     f'{1 / LARGE:g} leave float64; take another unit')
  return col


def _culprit(name, values, error):
  """What is said of a column that is not numeric: the first such row."""
  for i, value in enumerate(np.asarray(values, object).ravel()):
    try:
      float(value)
    except (TypeError, ValueError):
      return f'column {name!r} is not numeric: {str(value)!r} in row {i}'
  return f'column {name!r} is not numeric: {error}'


def column(data, name):
  """`numbers` of the column of that name."""
  return numbers(name, raw(data, name))


def positive(name, col):
  """The column itself, if every value is above 0."""
  bad = np.flatnonzero(col <= 0)
  if len(bad):
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     'a law takes its logarithm, so it must be above 0')
  return col


def weights(data, given, n):
  """Weights of n rows: ones, a column by name, or what was given.

  Raises:
    ValueError: another number of them, or a negative one.
  """
  if given is None:
    return np.ones(n)
  w_N = (column(data, given) if isinstance(given, str) else
         numbers('weights', given))
  if len(w_N) != n or (w_N < 0).any():
    raise ValueError(f'weights: expected {n} numbers that are not negative, '
                     f'found {len(w_N)} of which {(w_N < 0).sum()} negative')
  return w_N


def in_domain(name, col, link):
  """Raises ValueError where a value has no image on the scale of the loss."""
  if link == 'identity':
    return
  bad = np.flatnonzero((col <= 0) | ((col >= 1) & (link == 'logit')))
  if len(bad):
    wanted = 'above 0' if link == 'log' else 'between 0 and 1'
    raise ValueError(f'column {name!r} is {col[bad[0]]:g} in row {bad[0]}: '
                     f'a loss on its {link} needs values {wanted}')
