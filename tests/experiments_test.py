"""What notebooks/README.md says of the shipped experiments, computed anew."""

import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from audiorank import records
from audiorank.analysis import law
from audiorank.analysis import study
from audiorank.report import wording

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


def brute_force(runs):
  """Returns (best, low, high) of the logarithm of the rate, degrees of freedom.

  Every vertex of a fine grid is tried, with a column a seed.
  """
  x, y = np.log(runs['lr'].to_numpy()), runs['valid_loss'].to_numpy()
  seeds = np.stack([runs['seed'] == seed for seed in (0, 1, 2)], 1)
  vertices, errors = np.log(np.geomspace(4e-4, 4e-3, 4001)), []
  for vertex in vertices:
    bent = np.column_stack([seeds, (x - vertex) ** 2])
    solution = np.linalg.lstsq(bent, y, rcond=None)[0]
    errors.append(np.square(y - bent @ solution).sum())
  free = len(y) - 5
  limit = min(errors) * (1 + stats.t.ppf(.975, free) ** 2 / free)
  inside = vertices[np.array(errors) <= limit]
  return vertices[np.argmin(errors)], inside[0], inside[-1], free


@pytest.fixture(scope='module')
def rates():
  """Returns {(width, opt.transfer): brute_force} of rates up to .004: two on
  either side of .001, where the mean loss is lowest at every width."""
  runs = trained('learning_rate', 'transfer', 0)
  out = {}
  for key, part in runs.groupby(['width', 'transfer']):
    assert part.groupby('lr')['valid_loss'].mean().idxmin() == .001
    out[key] = brute_force(part[part['lr'] < .005])
  out[32, 0] = out[32, 32]
  return out


def without_zero(text):
  return text.replace('0.', '.').replace('-', '−')


def test_the_best_rates_of_the_readme(rates):
  best_rates = dict(rates)
  rows = re.findall(r'\| (\d+) \| (\.00[^|]*) \| ([^|]*) \|', README)
  for width, *cells in rows:
    for transfer, cell in zip((0, 32), cells):
      if cell != 'the same runs':
        # The grid has steps of .06 %.
        np.testing.assert_allclose(
            [float(x) for x in re.findall(r'\.\d+', cell)],
            np.exp(best_rates.pop((int(width), transfer))[:3]), atol=6e-6)
  # Nothing is left but the same runs once more.
  assert list(best_rates) == [(32, 32)]


@pytest.mark.parametrize('transfer, smallest, text', [
    (32, 32, '.95 times [.74, 1.20]'), (0, 32, '.67 times [.53, .81]'),
    (32, 16, '.78 times [.61, .93]'), (0, 16, '.62 times [.49, .72]')])
def test_the_change_of_the_best_rate_of_the_readme(
    rates, transfer, smallest, text):
  """By a weighted line, with normal errors of half the intervals' widths."""
  widths = [w for w in (16, 32, 64, 128) if w >= smallest]
  best, low, high, free = np.array([rates[w, transfer] for w in widths]).T
  sd = (high - low) / 2 / stats.t.ppf(.975, free)
  # polyfit takes weights of residuals, not of their squares.
  (slope, _), covariance = np.polyfit(np.log(widths), best, 1, w=1 / sd,
                                      cov='unscaled')
  span = np.log(128 / smallest)
  half = stats.t.ppf(.975, free[0]) * np.sqrt(covariance[0, 0]) * span
  told = [float(x) for x in re.findall(r'[\d.]+', text)]
  assert text in README
  assert np.exp(slope * span) == pytest.approx(told[0], abs=.006)
  # The intervals are not symmetric: within a tenth.
  np.testing.assert_allclose(np.exp(slope * span + np.array([-half, half])),
                             told[1:], rtol=.1)


@pytest.mark.parametrize('width, rate, text', [
    (128, .004, '.052 [.001, .103]'), (16, .004, '.006 [−.033, .044]'),
    (128, .001, '.011 [.002, .021]')])
def test_what_transfer_gains_at_one_rate(width, rate, text):
  runs = trained('learning_rate', 'transfer', 0)
  runs = runs[(runs['width'] == width) & np.isclose(runs['lr'], rate)]
  loss = runs.pivot(index='seed', columns='transfer', values='valid_loss')
  gain = (loss[0] - loss[32]).to_numpy()
  half = T_2 * gain.std(ddof=1) / 3 ** .5
  shown = [without_zero(f'{x:.3f}')
           for x in (gain.mean(), gain.mean() - half, gain.mean() + half)]
  assert f'{shown[0]} [{shown[1]}, {shown[2]}]' == text
  assert text in README


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



@pytest.mark.slow  # 25 s of CPU.
def test_the_claims_of_the_study_are_those_of_its_tables(server, tmp_path):
  folder = RESULTS / 'study'
  done = server.run(tmp_path, 'report', f'--table={folder}/runs.parquet',
                    f'--check={folder}/README.md')
  assert done.returncode == 0, done.stdout + done.stderr


def test_the_summaries_of_the_study_have_the_numbers_of_its_claims():
  claims = (RESULTS / 'study' / 'README.md').read_text()
  front = (RESULTS.parents[1] / 'README.md').read_text().replace('-', '−')
  for page in (README, ' '.join(front.split())):
    for number in ('+.109', '[+.079, +.141]', '−.014 [−.030, +.002]',
                   '+.044 [+.033, +.055]'):
      assert number in page and number in claims, number
    for share in ('18 %', '[7, 34]'):
      assert share in page
  assert '18 % [7 %, 34 %]' in claims


@pytest.mark.slow  # 10 s of CPU.
def test_what_else_predicts_knn_at_equal_width():
  tables = records.Tables(*(
      pd.read_parquet(RESULTS / 'study' / f'{name}.parquet')
      for name in ('runs', 'history', 'tasks')))
  rows = study.read(tables)
  trained = rows.trained.assign(score=rows.trained['score_knn'])
  errors = law.predictors(trained, within=True)
  claim = law.of_rivals(rows._replace(trained=trained), errors, within=True)
  of = {rival.name: round(rival.value, 3) for rival in claim.rivals}
  assert not any(rival.decided < 0 for rival in claim.rivals)
  assert of['training steps'] == .012
  dimensions = ('TwoNN dimension', 'maximum-likelihood dimension',
                'MST dimension (IdEst)', 'k-means inertia',
                'Davies-Bouldin index')
  assert {of[name] for name in dimensions} <= {.009, .010, .011}
  assert ('error of .011, the mean score .015, training steps .012, and five '
          'other measures') in README
  assert 'error .011 (of the mean score: .015)' in wording.measured(claim)


def test_the_study_says_how_many_runs_beat_their_untrained_networks():
  runs = pd.read_parquet(RESULTS / 'study' / 'runs.parquet')
  baseline = runs.set_index('run_id')
  runs = runs[~runs['untrained'] & (runs['objective'] == 'mae')]
  counts = {}
  for column in ('score', 'score_knn'):
    better = runs[column] > runs['baseline'].map(baseline[column])
    counts[column] = {
        'en32-4': (better[runs['width'] == 32].sum(),
                   (runs['width'] == 32).sum()),
        'wider': (better[runs['width'] > 32].sum(), (runs['width'] > 32).sum()),
        'all': (better.sum(), len(runs))}
  assert counts['score']['en32-4'] == (75, 81)
  assert counts['score']['wider'] == (3, 18)
  assert counts['score_knn']['all'] == (9, 108)
  assert ('75 of the 81 runs of en32-4 score above their untrained networks, '
          'but only 3 of the 18 runs of en48-4 and above, and by kNN 9 of all '
          '108') in README


def test_the_study_says_which_forecasts_held():
  folder = RESULTS / 'study'
  runs = pd.read_parquet(folder / 'runs.parquet').set_index('run_id')
  tasks = pd.read_parquet(folder / 'tasks.parquet')
  first = tasks.drop_duplicates('task').set_index('task')['metric']
  held = {'whole': [], 'task': []}
  for path in sorted((folder / 'forecasts').glob('*.json')):
    forecast = json.loads(path.read_text())
    run = forecast['run_id']
    for row in forecast['predictions']:
      name = row['quantity']
      task = name.removeprefix('score of ')
      kind, value = 'whole', runs.loc[run].get(
          {'RankMe': 'rank', 'validation loss': 'valid_loss'}.get(name, name))
      if task != name:
        mine = tasks[(tasks['run_id'] == run) & (tasks['task'] == task)
                     & (tasks['metric'] == first[task])]
        kind, value = 'task', mine['score'].iloc[0]
      held[kind].append(row['low'] <= value <= row['high'])
  assert (sum(held['whole']), len(held['whole'])) == (9, 9)
  assert (sum(held['task']), len(held['task'])) == (18, 24)
  assert '(9 of 9), but for only 18 of 24 scores of single tasks' in README
