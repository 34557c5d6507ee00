"""A share of a published sweep's runs, trained again: choice and comparison."""

import numpy as np
import pandas as pd
import pytest

from launch import reproduce

SD = .01  # Between seeds, of the score and of the logarithms.


@pytest.fixture
def table(tmp_path):
  """A sweep's table: 20 configurations of 3 seeds, one untrained network."""
  rng = np.random.default_rng(0)
  rows = [{'run_id': f'{k:02}{seed}', 'name': f'run {k}', 'untrained': False,
           'lr': 10. ** -k, 'seed': seed, 'objective': 'mae', 'depth': 1,
           'rank': 8 * 2 ** (k / 10 + SD * rng.normal()),
           'valid_loss': .5 * 2 ** (SD * rng.normal()),
           'score': .5 + SD * rng.normal(), 'scored_tasks': 2}
          for k in range(20) for seed in range(3)]
  rows.append({**rows[0], 'run_id': 'u', 'untrained': True})
  path = tmp_path / 'runs.parquet'
  pd.DataFrame(rows).to_parquet(path)
  return path


def test_a_share_is_chosen_by_its_seed_alone(table):
  runs = reproduce.published(table)
  assert len(runs) == 60 and runs['configuration'].nunique() == 20
  first = reproduce.choose(runs, .1, 0)
  assert len(set(first)) == 6 and 'u' not in first
  assert first == reproduce.choose(runs[::-1], .1, 0)
  assert first != reproduce.choose(runs, .1, 1)
  # One run at least; a share that cannot be is refused.
  assert len(reproduce.choose(runs, .001, 0)) == 1
  with pytest.raises(ValueError, match='--share=1.5: expected'):
    reproduce.choose(runs, 1.5, 0)


def test_runs_are_compared_in_units_of_the_noise_between_seeds(table):
  runs = reproduce.published(table)
  run_ids = reproduce.choose(runs, .1, 0)
  for column in ('score', 'rank'):
    sd, free = reproduce.noise(runs, column)
    assert sd == pytest.approx(SD, rel=.3) and free == 40
  # Rounding, then one seed's noise, then ten times that, in one run.
  for off, verdict, words in (
      (1e-7, reproduce.SAME, 'all within 1e-05'),
      (2 * SD, reproduce.NOISE, 'all within the noise between seeds'),
      (10 * SD, reproduce.APART, 'by more than seeds do')):
    again = runs.copy()
    again.loc[again['run_id'] == run_ids[0], 'score'] += off
    compared = reproduce.compare(runs, again, run_ids)
    assert compared.verdict == verdict
    text = reproduce.lines(compared)
    assert len(text) == 7 and words in text[-1]
    mine = compared.rows.query(f'run_id == "{run_ids[0]}" and what == "score"')
    sd, _ = reproduce.noise(runs, 'score')
    assert mine['seeds'].item() == pytest.approx(off / sd)
  # A number that is missing is no agreement.
  assert reproduce.compare(runs, runs[runs['run_id'] != run_ids[0]],
                           run_ids).verdict == reproduce.APART


def test_without_seeds_only_the_same_numbers_agree(table):
  runs = reproduce.published(table)
  once = runs[runs['seed'] == 0]
  run_ids = reproduce.choose(once, .1, 0)
  assert reproduce.compare(once, once, run_ids).verdict == reproduce.SAME
  other = reproduce.compare(once, once.assign(score=once['score'] + 1e-3),
                            run_ids)
  assert other.verdict == reproduce.APART
  assert 'no seeds' in reproduce.lines(other)[-1]
  assert 'nan' not in ' '.join(reproduce.lines(other))


def test_a_run_that_is_no_point_is_named(table):
  with pytest.raises(ValueError, match='1 of 1 chosen runs are no points'):
    reproduce.points({}, ['000'], table)
  with pytest.raises(ValueError, match="no column 'rank'"):
    path = table.with_name('other.csv')
    path.write_text('run_id,untrained\na,0\n')
    reproduce.published(path)
