"""Columns of scores: intervals, chance, features, gains over the baseline."""

import json
import math

import numpy as np
import pytest

from audiorank import baselines
from audiorank import encoders
from audiorank import records
from audiorank.hear import intervals
from audiorank.hear import probe
from audiorank.records import score_table
from tests import tiny

SETTINGS = {'protocol': 'logistic', 'grid_points': 8, 'hidden': 1024,
            'max_epochs': 500, 'seed': 42}
CLIPS = 80


def result(hit_N):
  """Returns the result of a task whose test clips are right or wrong."""
  q_B = intervals.draws(CLIPS) @ hit_N / CLIPS
  source = intervals.of_clips(q_B, CLIPS)
  own = intervals.interval(hit_N.mean(), source, True, CLIPS)
  return {'score': float(hit_N.mean()), 'std': None, 'clips': CLIPS,
          'protocol': 'logistic', 'units': CLIPS, **intervals.plain(own),
          'sources': {'clips': {'se': own.se, 'free': own.free}},
          'per_split': [{'score': float(hit_N.mean())}],
          'chance': {'top1_acc': .25}, 'resamples': intervals.encode(q_B)}


def record(name, hit_N, **changes):
  """Returns the record of one task."""
  return {'task': name, 'task_sha256': f'sha of {name}', 'metric': 'top1_acc',
          'embedding_type': 'scene', 'settings': SETTINGS,
          'version': probe.VERSION, 'result': result(hit_N), **changes}


@pytest.fixture
def sweep(tmp_path):
  """A trained run and its untrained baseline, scored on two tasks.

  On 'one' training mends 12 of 80 clips, on 'two' it breaks as many as it
  mends.
  """
  config = tiny.config('corpus', **{'eval.protocol': 'logistic'})
  trained = tmp_path / records.run_id(config)
  untrained = tmp_path / baselines.untrained_id(config)
  records.open_run(trained, config)
  records.open_run(untrained, baselines.untrained(config))
  rng = np.random.default_rng(0)
  before_N = (rng.random(CLIPS) < .5).astype(float)
  after_N = before_N.copy()
  after_N[np.flatnonzero(before_N == 0)[:12]] = 1
  swapped_N = before_N.copy()
  for value in (0, 1):
    swapped_N[np.flatnonzero(before_N == value)[:10]] = 1 - value
  for name, hit_N in (('one', after_N), ('two', swapped_N)):
    records.write(trained, f'hear.{name}', config.train.steps,
                  record(name, hit_N))
    records.write(untrained, f'hear.{name}', 0, record(name, before_N))
    records.write(untrained, f'features.mfcc.{name}', 0,
                  record(name, np.ones(CLIPS)))
  return tmp_path, trained.name, untrained.name


def test_a_row_has_all_that_it_is_compared_with(sweep):
  root, trained, untrained = sweep
  table = records.tables(root).tasks.set_index(['run_id', 'task'])
  row = table.loc[trained, 'one']
  assert row['baseline'] == untrained and row['test_clips'] == CLIPS
  assert row['score_low'] < row['score'] < row['score_high']
  assert (row['chance'], row['mfcc']) == (.25, 1) and math.isnan(row['log_mel'])
  assert row['gain'] == pytest.approx(12 / CLIPS)
  # 12 clips changed one way: sd of a clip's gain sqrt(.15 .85), over root 80.
  assert row['gain_se'] == pytest.approx(math.sqrt(.15 * .85 / CLIPS), rel=.1)
  # Unpaired it would be .079, and the gain would not be told from none.
  assert 0 < row['gain_low'] < .15 < row['gain_high']
  other = table.loc[trained, 'two']
  assert other['gain'] == 0 and other['gain_low'] < 0 < other['gain_high']
  assert table.loc[untrained, 'one']['gain'] == 0


def test_means_over_tasks_have_the_interval_of_independent_ones(sweep):
  root, trained, _ = sweep
  tables = records.tables(root)
  row = tables.runs.set_index('run_id').loc[trained]
  tasks = tables.tasks[tables.tasks['run_id'] == trained]
  assert row['score'] == pytest.approx(tasks['score'].mean())
  assert row['score_se'] == pytest.approx(
      math.hypot(*tasks['score_se']) / 2)
  assert row['gain_se'] == pytest.approx(math.hypot(*tasks['gain_se']) / 2)
  assert row['gain'] == pytest.approx(tasks['gain'].mean())
  assert row['gain_low'] < row['gain'] < row['gain_high']
  assert (row['scored_tasks'], row['test_clips']) == (2, 2 * CLIPS)
  assert json.loads(row['config'])['opt']['lr'] == .001


def test_a_mean_over_other_tasks_is_no_gain(sweep):
  root, trained, untrained = sweep
  records.path(root / untrained, 'hear.two', 0).unlink()
  row = records.tables(root).runs.set_index('run_id').loc[trained]
  assert math.isnan(row['gain']) and math.isnan(row['gain_low'])
  assert row['score_low'] < row['score']


def test_scores_of_older_versions_are_not_mixed_with_newer(sweep):
  root, trained, untrained = sweep
  path = records.path(root / untrained, 'hear.one', 0)
  old = records.read_record(path)
  old.pop('version')
  records.write(root / untrained, 'hear.one', 0, old)
  runs = records.tables(root).runs.set_index('run_id')
  assert runs.loc[untrained, 'scored_tasks'] == 1
  # Where all are old they are shown, without what they do not have.
  for path in root.glob('*/records/hear.*'):
    old = records.read_record(path)
    old.pop('version', None)
    old['result'] = {k: old['result'][k] for k in
                     ('score', 'std', 'protocol', 'per_split')}
    records.write(path.parents[1], old['kind'], old['step'], old)
  runs = records.tables(root).runs.set_index('run_id')
  assert runs.loc[trained, 'scored_tasks'] == 2
  assert runs.loc[trained, 'gain'] == pytest.approx(6 / CLIPS)
  assert math.isnan(runs.loc[trained, 'score_low'])


def test_untrained_networks_that_are_equal_are_one_baseline(sweep):
  """As older versions trained them: one for every decoder."""
  root, trained, untrained = sweep
  config = tiny.config('corpus', **{
      'eval.protocol': 'logistic', 'train.steps': 0,
      'model.decoder.width': 64})
  other = root / records.run_id(config)
  records.open_run(other, config)
  runs = records.tables(root).runs.set_index('run_id')
  assert set(runs['baseline']) == {untrained}


def test_names_of_features_are_those_there_are():
  assert set(score_table.FEATURES) == set(encoders.FEATURES)
