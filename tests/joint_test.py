"""Valleys, data bound, longer or larger in the report: known laws, and what is
missing."""

import numpy as np
import pandas as pd
import pytest

from audiorank import records
from audiorank.analysis import joint
from audiorank.analysis import study
from audiorank.report import wording

CONSTANT, PER = 1e8, 1e3  # FLOPs of a step: the decoder's, per parameter.
NONE = pd.DataFrame()


def table(rows):
  """The Study of runs: (params, hours, steps, loss)."""
  runs = pd.DataFrame(rows, columns=['params', 'hours_asked', 'steps',
                                     'valid_loss'])
  runs = runs.assign(
      flops=(CONSTANT + PER * runs['params']) * runs['steps'],
      run_id=[str(i) for i in range(len(runs))], width=runs['params'],
      rank=9 / runs['valid_loss'], score=1 - runs['valid_loss'],
      seed=0, untrained=False, hours=runs['hours_asked'], objective='mae')
  return study.read(records.Tables(runs, NONE, NONE))


def loss(n, t):
  return .3 + 30 * n ** -.45 + 20 * t ** -.6


@pytest.fixture(scope='module')
def isoflop():
  rng, rows = np.random.default_rng(0), []
  for budget in (1e11, 3e11, 1e12):
    for n in (2e4, 4e4, 6e4, 12e4, 22e4, 48e4):
      steps = budget / (CONSTANT + PER * n)
      rows.append((n, .5, steps, loss(n, steps) + .001 * rng.normal()))
  return joint.read(table(rows))


def test_valleys_find_the_best_size_of_each_budget(isoflop):
  sizes = np.geomspace(2e4, 48e4, 4001)
  for _, row in isoflop.valleys.iterrows():
    curve = loss(sizes, row['flops'] / (CONSTANT + PER * sizes))
    # A cubic over a factor of 24 in size is not the law itself.
    assert row['size'] == pytest.approx(sizes[curve.argmin()], rel=.15)
    assert row['inside'] and row['size_low'] < row['size'] < row['size_high']
  assert isoflop.valleys.attrs['compute'] == 'encoder and decoder'


def test_valleys_of_rankme_stand_beside_those_of_the_loss(isoflop):
  # RankMe is 9 / loss here, so that its best sizes are those of the loss.
  assert isoflop.rank_valleys['size'].to_numpy() == pytest.approx(
      isoflop.valleys['size'].to_numpy(), rel=1e-6)
  words = wording.joint_words(isoflop)
  assert sum('RankMe is largest at' in text for text in words) == 3


def test_longer_or_larger_is_that_of_the_law(isoflop):
  rows = isoflop.choice.set_index('choice')
  assert rows.loc['larger', 'value'] < rows.loc['longer', 'value']
  for name, row in rows.iterrows():
    expected = loss(row['size'], row['data'])
    assert row['value'] == pytest.approx(expected, rel=.03), name
  assert isoflop.choice.attrs['longer_wins'] == 0
  assert set(isoflop.lacks) == {'hours'}
  words = ' '.join(wording.joint_words(isoflop))
  assert words.count('validation loss is least at') == 3
  assert 'longer beats larger in 0 %' in words
  assert 'The size that the audio can feed: not known. Needed: three' in words


def test_a_grid_of_sizes_and_hours_has_contours_and_a_bound():
  rng = np.random.default_rng(0)
  rows = [(n, h, 1000., .3 + 40 * n ** -.6 + .1 * h ** -.5
           + .0005 * rng.normal())
          for n in (1e4, 4e4, 16e4, 64e4) for h in (.1, .5, 2.)]
  known = joint.read(table(rows))
  assert known.hours is not None and known.hours.x == ('params', 'hours_asked')
  assert set(known.lacks) == {'valleys', 'steps'}
  words = ' '.join(wording.joint_words(known))
  assert 'parameters [' in words or 'No size is shown' in words


def test_too_few_runs_say_what_is_missing():
  known = joint.read(table([(1e4, .1, 1000., .5), (2e4, .1, 1000., .4)]))
  assert set(known.lacks) == {'valleys', 'hours', 'steps'}
  assert all(': not known. Needed: ' in text
             for text in wording.joint_words(known))
