"""What a sweep shows, by tables that are made up."""

import numpy as np
import pandas as pd
import pytest

from audiorank import findings
from audiorank import records


def table(scores, untrained=.4, ranks=None):
  """Tables of a made-up sweep of one size."""
  n = len(scores)
  row = {'width': 32, 'depth': 2, 'heads': 1, 'crop_seconds': 1., 'seed': 0,
         'scored_tasks': 3, 'size': 'en32-2', 'lr': 1e-3, 'steps': 9,
         'batch': 8, 'params': 9., 'baseline': 't'}
  ranks = ranks if ranks is not None else np.geomspace(4, 20, n)
  runs = pd.DataFrame([
      {**row, 'run_id': str(i), 'name': f'run {i}', 'untrained': False,
       'score': s, 'rank': r, 'hours': float(i + 1), 'mask_ratio': .5,
       'valid_loss': 1. - s} for i, (s, r) in enumerate(zip(scores, ranks))]
      + [{**row, 'run_id': 't', 'name': 'untrained', 'untrained': True,
          'score': untrained, 'rank': 25., 'hours': 1., 'mask_ratio': .5,
          'valid_loss': 1.}])
  history = pd.DataFrame([
      {**r, 'step': s, 'rank': k} for _, r in runs.iterrows()
      for s, k in ((0, 25.), (5, 3.), (9, r['rank']))])
  return records.Tables(runs, history, pd.DataFrame())


def test_no_law_is_drawn_through_runs_that_do_not_beat_their_twin():
  found = findings.find(table([.3, .35, .39, .4, .41, .42, .43, .44]))
  assert found.fit is None and '4 of 8' in found.reason
  assert any('no law is drawn through them: run 0, run 1' in w
             for w in found.words)


def test_a_run_without_its_twin_enters_no_law_and_no_count():
  tables = table([.41, .42, .43, .44, .45, .46, .47, .48])
  tables.runs.loc[7, 'baseline'] = 'not scored yet'
  found = findings.find(tables)
  assert found.words[0].startswith('7 of 7 trained runs')
  assert found.fit.n == 7
  alone = tables._replace(runs=tables.runs[~tables.runs['untrained']])
  assert 'to be held against' in findings.find(alone).reason


def test_a_run_scored_on_fewer_tasks_is_not_compared():
  tables = table([.41, .42, .43, .44, .45, .46, .47, .9])
  tables.runs.loc[7, 'scored_tasks'] = 1
  found = findings.find(tables)
  assert len(found.runs) == 7 and found.runs['score'].max() < .5
  assert any(w.startswith('1 runs are not scored') for w in found.words)


def test_a_law_that_is_there_is_found_and_a_narrow_range_is_said():
  ranks = np.geomspace(5, 500, 24)
  noise = .002 * np.random.default_rng(0).standard_normal(24)
  found = findings.find(table(.9 - 1.2 * ranks ** -.8 + noise, untrained=.1,
                              ranks=ranks))
  assert found.fit.params['Q_inf'] == pytest.approx(.9, abs=.01)
  assert any(w.startswith('Q_inf = 0.9') for w in found.words)
  narrow = np.geomspace(10, 12, 24)
  found = findings.find(table(.5 + .001 * narrow + noise, untrained=.1,
                              ranks=narrow))
  text = ' '.join(found.words)
  assert 'too narrow' in text
