"""A random share of a published sweep's runs, trained again and compared.

`launch.sweep reproduce` takes the runs from the sweep's table, finds the points
of the config that they are, and trains and scores these like any sweep. Here
are the choice, the search and the comparison.

On the same kind of machine and with the same versions a run gives the same
numbers to the bit. Elsewhere sums are rounded differently, and after some
hundred steps a run differs as one of another seed would: so the differences
are shown in units of the standard deviation between seeds.
"""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from audiorank import files
from audiorank import laws
from audiorank import records
from audiorank.analysis import claims
from audiorank.analysis import study

CLOSE = 1e-5  # Relative difference of runs on the same kind of machine.
# What is compared, and its unit: RankMe and the loss differ by factors.
COLUMNS = {'rank': 'RankMe', 'valid_loss': 'loss', 'score': 'score'}
LOGARITHMIC = ('rank', 'valid_loss')
SAME, NOISE, APART = 'same', 'noise', 'apart'


class Compared(NamedTuple):
  """Runs beside themselves.

  rows: a row a run and quantity: run_id, name, what, shipped, again,
    difference, seeds (the difference over the standard deviation between
    seeds; NaN where no configuration has several).
  verdict: SAME, NOISE or APART.
  limit: of `seeds`, beyond which a difference is no noise.
  """
  rows: pd.DataFrame
  verdict: str
  limit: float


def published(table: files.Path) -> pd.DataFrame:
  """Returns the trained and scored runs of a table, with `configuration`.

  Raises:
    FileNotFoundError, ValueError: no table, or one that is no sweep's.
  """
  runs = laws.table.read(table)
  lacking = sorted({'run_id', 'untrained', *COLUMNS} - set(runs))
  if lacking:
    raise ValueError(f'{table}: no sweep\'s table: no column {lacking[0]!r}')
  none = pd.DataFrame()
  rows = study.read(records.Tables(runs, none, none))
  out = pd.concat([rows.trained, rows.others], ignore_index=True)
  if not len(out):
    raise ValueError(f'{table}: no trained and scored run')
  return out


def choose(runs: pd.DataFrame, share: float, seed: int) -> list[str]:
  """Returns the ids of a random share of runs, of one at least.

  Args:
    runs: of `published`.
    share: above 0, at most 1.
    seed: of the choice.

  Raises:
    ValueError: a share outside of its range.
  """
  if not 0 < share <= 1:
    raise ValueError(f'--share={share:g}: expected a number above 0, at most 1')
  # In an order of their own: the table's may be another one.
  ids = sorted(runs['run_id'])
  n = max(1, round(share * len(ids)))
  rng = np.random.default_rng(seed)
  return sorted(rng.choice(ids, n, replace=False).tolist())


def points(configs: Mapping[str, Any], run_ids: list[str],
           table: files.Path) -> dict[str, Any]:
  """Returns those of some points that are the runs asked for.

  Args:
    configs: {point: config}, resolved: with the checksum of their corpus.
    run_ids: of `choose`.
    table: where they are from, for the message.

  Raises:
    ValueError: some run is no point.
  """
  by_id = {records.run_id(config): (point, config)
           for point, config in configs.items()}
  missing = [run for run in run_ids if run not in by_id]
  if missing:
    raise ValueError(
        f'{table}: {len(missing)} of {len(run_ids)} chosen runs are no points '
        f'of this config, such as {missing[0]}: expected the config, scale, '
        'fields and corpus (--config.data.root) of the sweep')
  return dict(by_id[run] for run in run_ids)


def noise(runs: pd.DataFrame, column: str) -> tuple[float, int]:
  """Returns the standard deviation between seeds and its degrees of freedom;
  NaN and 0 where no configuration has several."""
  value = unit(runs[column], column)
  around = value - value.groupby(runs['configuration']).transform('mean')
  free = int(around.notna().sum() - runs.loc[
      around.notna(), 'configuration'].nunique())
  if not free:
    return math.nan, 0
  return math.sqrt(float((around ** 2).sum()) / free), free


def unit(values: pd.Series, column: str) -> pd.Series:
  """Returns values in the unit that their noise is measured in."""
  if column in LOGARITHMIC:
    return np.log2(values.astype(float))
  return values.astype(float)


def compare(runs: pd.DataFrame, again: pd.DataFrame,
            run_ids: list[str]) -> Compared:
  """Returns runs beside themselves.

  Args:
    runs: of `published`.
    again: the table of runs of the new sweep.
    run_ids: which.
  """
  before, after = (t.set_index('run_id').reindex(run_ids)
                   for t in (runs, again))
  parts, least_free = [], math.inf
  for column, what in COLUMNS.items():
    sd, free = noise(runs, column)
    least_free = min(least_free, free)
    gap = unit(after[column], column) - unit(before[column], column)
    parts.append(pd.DataFrame({
        'run_id': run_ids, 'name': before['name'].to_numpy(), 'what': what,
        'shipped': before[column].to_numpy(float),
        'again': after[column].to_numpy(float),
        'difference': (after[column] - before[column]).to_numpy(float),
        'seeds': gap.to_numpy() / (sd or math.nan)}))
  rows = pd.concat(parts, ignore_index=True)
  # A run that is done twice differs by the noise of both; Bonferroni over all.
  limit = math.nan
  if least_free:
    limit = math.sqrt(2) * float(special.stdtrit(
        least_free, 1 - claims.LEVEL / 2 / len(rows)))
  apart = rows['difference'].abs() / rows['shipped'].abs()
  # Written so that a number that is missing is no agreement.
  verdict = APART
  if (apart <= CLOSE).all():
    verdict = SAME
  elif (rows['seeds'].abs() <= limit).all():
    verdict = NOISE
  return Compared(rows.sort_values(['run_id'], kind='stable'), verdict, limit)


def lines(compared: Compared) -> list[str]:
  """Returns a comparison as lines: one a run, then the verdict."""
  out = []
  for run, rows in compared.rows.groupby('run_id', sort=False):
    parts = [f'{row.what} {row.shipped:.6g} {row.again:.6g} '
             f'({row.difference:+.2g}{in_seeds(row.seeds)})'
             for row in rows.itertuples()]
    out.append(f'{run} {rows["name"].iloc[0]}: {", ".join(parts)}')
  runs = compared.rows['run_id'].nunique()
  last = {
      SAME: f'{runs} runs: all within {CLOSE:g}',
      NOISE: f'{runs} runs: not the same to {CLOSE:g}, but all within the '
             f'noise between seeds ({compared.limit:.1f} standard deviations)',
      APART: f'{runs} runs: they differ by more than {CLOSE:g} and by more '
             'than seeds do'}[compared.verdict]
  if compared.verdict == APART and math.isnan(compared.limit):
    last = (f'{runs} runs: they differ by more than {CLOSE:g}; the table has '
            'no seeds, which would tell whether that is noise')
  return [*out, last]


def in_seeds(value: float) -> str:
  """Returns a difference in units of the noise, '' where that is unknown."""
  if math.isnan(value):
    return ''
  return f', {value:+.2f} sd of seeds'
