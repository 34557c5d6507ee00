"""What notebooks/README.md says of the shipped experiments, computed anew."""

import json
import pathlib

import numpy as np
import pandas as pd
import pytest

RESULTS = pathlib.Path(__file__).parents[1] / 'notebooks' / 'results'
README = ' '.join((RESULTS.parent / 'README.md').read_text().split())
T_2 = 4.30265  # The .975 quantile of Student's t with 2 degrees of freedom.


def trained(name, field, default):
  """Returns the trained runs of an experiment, with a field of their config."""
  runs = pd.read_parquet(RESULTS / name / 'runs.parquet')
  runs = runs[~runs['untrained']].copy()
  runs[field] = [json.loads(text)['opt'].get(field, default)
                 for text in runs['config']]
  return runs


@pytest.fixture(scope='module')
def durations():
  return trained('durations', 'schedule', 'cosine').set_index('run_id')


def test_branches_cost_what_the_readme_says(durations):
  """36 % of the FLOPs, by the steps at which runs really branched."""
  about = json.loads((RESULTS / 'durations' / 'about.json').read_text())
  spent = {'cosine': 0., 'wsd': 0.}
  for run_id, run in durations.iterrows():
    step = about['branches'].get(run_id, 0)
    assert step % 90 == 0 and step <= .9 * run['steps']
    spent[run['schedule']] += run['flops'] / run['steps'] * (
        run['steps'] - step)
  assert len(about['branches']) == 15
  assert f"{spent['wsd'] / spent['cosine']:.1%}" == '35.7%'
  assert '35.7 % of the FLOPs' in README


@pytest.mark.parametrize('column, scale, text', [
    ('score', lambda x: x, '+.003 [−.019, +.025]'),
    ('rank', np.log2, '−.071 [−.189, +.047]'),
    ('valid_loss', lambda x: x, '−.003 [−.022, +.017]')])
def test_wsd_differs_from_cosine_by_less_than_seeds_do(
    durations, column, scale, text):
  """A mean a seed over six durations, paired; three seeds."""
  runs = durations.assign(y=scale(durations[column].astype(float)))
  means, spread = {}, []
  for (schedule, steps), part in runs.groupby(['schedule', 'steps']):
    assert sorted(part['seed']) == [0, 1, 2]
    means[schedule, steps] = part.sort_values('seed')['y'].to_numpy()
    spread.append(part['y'].var())
  pairs = np.mean([means['wsd', steps] - means['cosine', steps]
                   for steps in (100, 200, 300, 400, 500, 600)], 0)
  half = T_2 * pairs.std(ddof=1) / 3 ** .5
  ends = [pairs.mean(), pairs.mean() - half, pairs.mean() + half]
  shown = [f'{x:+.3f}'.replace('0.', '.').replace('-', '−') for x in ends]
  assert f'{shown[0]} [{shown[1]}, {shown[2]}]' == text
  assert text in README
  assert abs(pairs.mean()) < np.sqrt(np.mean(spread))
