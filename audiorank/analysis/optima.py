"""The best value of a setting for each of the other settings.

A learning rate, say: where the validation loss is lowest, with its interval,
and whether that place is the same for all sizes. Runs need not be scored.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import study
from audiorank.laws import optimum

MEASURE = 'valid_loss'
SAME = 1.5  # Times: optima that differ by less count as constant.
LEAST = 3  # Values of a setting that an optimum needs.


class Optima(NamedTuple):
  """The best values of a setting.

  field: the setting, as a column of runs.  measure: what is best there.
  others: the other settings that vary.
  table: a row a combination of these: `size`, `params` and `others`, `best`,
    `low`, `high` (95 %), `runs`, `first` and `last` (the least and the largest
    value tried), `edge` ('first' or 'last' where the best of the tried values
    is that one; else ''), `lacks` ('' or why there is no optimum).
  constant: a claim for each combination of the settings that have several
    sizes: that the optimum is within a factor of SAME from the smallest size
    to the largest.
  """
  field: str
  measure: str
  others: tuple[str, ...]
  table: pd.DataFrame
  constant: tuple[claims.Claim, ...]


def read(runs: pd.DataFrame, field: str = 'lr',
         measure: str = MEASURE) -> Optima:
  """Returns the Optima of a table of runs.

  Args:
    runs: as records writes them. Runs that failed count as diverged; those that
      are not at their last step do not count.
    field: the setting: a column, or a field of the config such as 'opt.lr'.
    measure: a column. The lowest is best where its name has 'loss', else the
      highest.

  Raises:
    ValueError: no such column, values of the setting that are no numbers above
      0, or a measure that is no number.
  """
  rows, fields = study.with_fields(runs)
  names = {path: name for name, path in study.COLUMNS.items() if path}
  column = names.get(field, field)
  if column not in rows:
    raise ValueError(f'{field}: no such column, or all runs have one value: '
                     f'expected one of {", ".join(fields)}')
  if measure not in rows:
    raise ValueError(f'{measure}: no such column: expected a measure, such as '
                     'valid_loss, score or rank')
  # A table without a row is of no type.
  if len(rows) and not pd.api.types.is_numeric_dtype(
      rows[measure].infer_objects()):
    raise ValueError(f'{measure}: expected numbers, found '
                     f'{rows[measure].dropna().iloc[0]}')
  rows = finished(rows, measure)
  values = pd.to_numeric(rows[column], errors='coerce')
  if not (values > 0).all():
    raise ValueError(f'{field}: expected numbers above 0, found '
                     f'{rows[column][~(values > 0)].iloc[0]}')
  rows = rows.assign(**{column: values.astype(float)})
  others = tuple(name for name in fields if name not in (
      column, *advice.SHAPE) and rows[name].nunique(dropna=False) > 1)
  table = of_each(rows, column, measure, (*others, *shape(rows)))
  # A setting that varies only among runs of another question is not named.
  others = tuple(name for name in others
                 if len(table) and table[name].nunique(dropna=False) > 1)
  return Optima(column, measure, others, table, constancy(table, others))


def finished(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
  """Returns trained runs, with a measure of NaN where they failed."""
  rows = rows[~rows['untrained'].astype(bool)]
  if 'training_key' in rows:
    rows = rows.drop_duplicates('training_key')
  failed = np.zeros(len(rows), bool)
  if 'state' in rows:
    failed = (rows['state'] == 'failed').to_numpy()
  ended = ~failed & rows[measure].notna().to_numpy()
  if 'final' in rows:
    ended &= rows['final'].fillna(False).to_numpy(bool)
  measured = rows[measure].astype(float).where(ended)
  return rows.assign(**{measure: measured})[ended | failed]


def shape(rows: pd.DataFrame) -> list[str]:
  """Returns the columns that tell sizes apart."""
  return [name for name in advice.SHAPE if name in rows]


def of_each(rows: pd.DataFrame, column: str, measure: str,
            same: tuple[str, ...]) -> pd.DataFrame:
  """Returns the table of Optima.

  Args:
    rows: runs.
    column: the setting.
    measure: what is best.
    same: columns that are equal within a row of the table.
  """
  sign = -1.
  if 'loss' in measure:
    sign = 1.
  out = []
  parts: list[tuple[Any, pd.DataFrame]] = [((), rows)]
  # A table of others may have no column of a size or another setting.
  if same:
    parts = list(rows.groupby(list(same), dropna=False, sort=True))
  for key, part in parts:
    grid = np.sort(part[column].unique())
    # One value is no choice: runs of another question.
    if len(grid) < 2:
      continue
    row: dict[Any, Any] = dict(zip(same, key)) | {
        'best': math.nan, 'low': 0., 'high': math.inf, 'free': 0,
        'runs': len(part), 'first': grid[0], 'last': grid[-1],
        'edge': edge(part, column, sign * part[measure]), 'lacks': ''}
    for name in ('size', 'params'):
      if name in part:
        row[name] = part[name].iloc[0]
    try:
      blocks = None
      if 'seed' in part:
        blocks = part['seed'].to_numpy()
      fit = optimum.optimum(part[column], sign * part[measure], blocks)
      row |= {name: getattr(fit, name)
              for name in ('best', 'low', 'high', 'runs', 'free')}
    except ValueError as error:
      row['lacks'] = str(error)
    out.append(row)
  return pd.DataFrame(out)


def edge(part: pd.DataFrame, column: str, losses: pd.Series) -> str:
  """Returns at which end of the tried values the lowest mean lies, or ''."""
  means = losses.fillna(math.inf).groupby(part[column]).mean()
  best = means.index.get_loc(means.idxmin())
  if best == 0:
    return 'first'
  if best == len(means) - 1:
    return 'last'
  return ''


def constancy(table: pd.DataFrame, others: tuple[str, ...]
              ) -> tuple[claims.Claim, ...]:
  """Returns the claims that optima are the same at all sizes.

  Args:
    table: of Optima.
    others: its settings without the size.
  """
  if not len(table) or 'params' not in table:
    return ()
  parts: list[tuple[Any, pd.DataFrame]] = [((), table)]
  if others:
    parts = list(table.groupby(list(others), dropna=False))
  out = []
  for key, part in parts:
    if part['params'].nunique() < 2:
      continue
    where = ', '.join(f'{name} {value}' for name, value in zip(others, key))
    out.append(constant(part.sort_values('params'), where))
  return tuple(out)


def constant(part: pd.DataFrame, where: str) -> claims.Claim:
  """Returns the claim that the optima of several sizes are one.

  It holds where the interval of the factor from the smallest size to the
  largest lies within SAME, and fails where it lies outside.

  Args:
    part: rows of a table of Optima, by size.
    where: the other settings, as text.
  """
  counts = int(part['runs'].sum()), len(part), len(part)
  # A vertex beyond the values tried is an extrapolation.
  bounded = part[(part['low'] > 0) & np.isfinite(part['high'])
                 & part['best'].between(part['first'], part['last'])]
  if bounded['params'].nunique() < 2:
    return claims.claim('constant_optimum', family=where, counts=counts,
                        needed=claims.Needed('bounded'))
  counts = int(bounded['runs'].sum()), len(bounded), len(bounded)
  several = [optimum.Optimum(row.best, row.low, row.high, math.nan, row.runs,
                             row.free) for row in bounded.itertuples()]
  fit = optimum.change(bounded['params'], several)
  verdict = claims.INCONCLUSIVE
  if max(fit.high, 1 / fit.low) < SAME:
    verdict = claims.HOLDS
  elif fit.low > SAME or fit.high < 1 / SAME:
    verdict = claims.FAILS
  return claims.claim(
      'constant_optimum', 'times', fit.factor, fit.low, fit.high,
      verdict=verdict, needed=more(fit), family=where, counts=counts,
      exponent=fit.exponent, sizes=fit.sizes,
      smallest=bounded['size'].iloc[0], largest=bounded['size'].iloc[-1])


def more(fit: optimum.Change) -> claims.Needed:
  """Returns how many times as many runs would bring an interval off SAME."""
  margin = abs(abs(math.log(fit.factor)) - math.log(SAME))
  reach = max(math.log(fit.high / fit.factor), math.log(fit.factor / fit.low))
  times = claims.MOST + 1
  if margin > 0:
    times = (reach / margin) ** 2
  # A factor at the limit itself stays undecided.
  if times > claims.MOST:
    return claims.Needed('other_sizes')
  return claims.Needed('runs', max(math.ceil(times), 2))
