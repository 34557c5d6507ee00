"""Forecasts: their intervals on tables whose largest runs are known, their
files, what is refused."""

import datetime
import pathlib

import numpy as np
import pandas as pd
import pytest

from audiorank import files
from audiorank.analysis import advice
from audiorank.analysis import forecast
from audiorank.analysis import study
from audiorank.laws import averaged
from audiorank.report import wording
from launch import forecast as command
from launch import next as next_runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
STUDY = ROOT / 'notebooks' / 'results' / 'small_study'
NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def without(rows, lost):
  """The study without some runs."""
  return rows._replace(trained=rows.trained[~lost].reset_index(drop=True),
                       tasks=study.only(rows.tasks, set(
                           rows.trained[~lost]['run_id'])))


def left_out(rows, largest):
  """Forecasts of the largest runs of the grid of sizes and hours from the
  others, and whether each came true."""
  labels = advice.settings(rows.trained, rows.fields)
  group = np.bincount(labels).argmax()
  mine = (labels == group) & (rows.trained['width'] >= largest).to_numpy()
  rest = without(rows, mine)
  known = forecast.measured(rows)
  out = []
  for _, row in rows.trained[mine].drop_duplicates(
      'configuration')[:2].iterrows():
    target = forecast.Target(row['params'], row['hours_asked'], row['steps'],
                             row['flops'])
    for one in forecast.predict(rest, target, labels[~mine], group):
      value = known[one.quantity][0][row['run_id']]
      out.append((one.low <= value <= one.high, one))
  return out


def test_the_largest_runs_of_the_study_lie_in_the_intervals(study_rows):
  several = left_out(study_rows, 96)
  inside = [known for known, _ in several]
  # RankMe, loss, score and eight tasks of each run; they share runs, so that
  # their number says little of the error of the share.
  assert len(several) >= 20 and np.mean(inside) >= .85
  assert {one.scaling for _, one in several} & {'smooth', 'no trend'}
  for _, one in several:
    assert one.low < one.value < one.high


@pytest.mark.slow
def test_forecasts_of_the_study_with_several_sizes_left_out(rows):
  """Each size from 48 on is predicted from the smaller ones alone."""
  inside = [known for largest in (96, 64, 48)
            for known, _ in left_out(rows, largest)]
  assert len(inside) >= 50 and np.mean(inside) >= .9


def held_out(inputs, loss, largest, factor):
  """Whether the interval of a loss holds it, from runs of `factor` less."""
  compute = np.prod(list(inputs.values()), 0)
  known = compute <= compute[largest] / factor
  if known.sum() < 8:
    return None
  law = averaged.fit({k: v[known] for k, v in inputs.items()},
                     np.log(loss[known]), np.zeros(known.sum()))
  v_S = averaged.values(law, {k: v[[largest]] for k, v in inputs.items()},
                        draws=4000, noise=True)[:, 0]
  low, high = np.quantile(v_S, [.025, .975])
  return low <= np.log(loss[largest]) <= high


def public_tables(folder):
  """Yields (inputs, losses, row of a largest run) of published tables."""
  for name in ('vision', 'lang'):
    table = pd.read_csv(folder / f'nsl_benchmark_{name}.csv')
    for _, part in table.groupby(['Domain', 'Task', 'Model']):
      part = part.groupby('Seen Examples', as_index=False)['Loss'].mean()
      yield ({'data': part['Seen Examples'].to_numpy(float)},
             part['Loss'].to_numpy(float), len(part) - 1)
  table = pd.read_csv(folder / 'porian_isoflop_points.csv')
  for _, part in table.groupby('config'):
    for flops in sorted(part['flops'].unique())[-4:]:
      part = part.reset_index(drop=True)
      best = part[part['flops'] == flops]['loss'].idxmin()
      yield ({'size': part['n'].to_numpy(float),
              'data': part['tokens'].to_numpy(float)},
             part['loss'].to_numpy(float), best)
  table = pd.read_csv(folder / 'epoch_chinchilla_svg.csv').nsmallest(
      240, 'loss').sort_values('Training FLOP', ascending=False)
  size = table['Model Size'].to_numpy(float)
  data = table['Training FLOP'].to_numpy(float) / size / 6
  for at in range(0, 60, 3):
    yield {'size': size, 'data': data}, table['loss'].to_numpy(float), at


@pytest.mark.slow
@pytest.mark.parametrize('factor', [10, 30])
def test_forecasts_of_published_tables_hold(factor, shared):
  inside = [held_out(*one, factor)
            for one in public_tables(shared / 'fixtures' / 'laws')]
  inside = [known for known in inside if known is not None]
  assert len(inside) >= 50
  assert .90 <= np.mean(inside) <= .98


def simulated(rng, kind, n=24):
  """A sweep of sizes and steps, and one quantity that is a `kind` of law."""
  params = np.repeat([1e4, 3e4, 9e4, 27e4], n // 4)
  steps = np.tile([1e3, 2e3, 4e3], n // 3)
  x = np.log(params / 1e4)
  y = {'smooth': .3 + .05 * x, 'flat': .3 + 0 * x,
       'jump': .3 + .05 * x + .4 * (params > 2e5)}[kind]
  y = y + .01 * rng.standard_normal(n)
  return pd.DataFrame({'params': params, 'steps': steps, 'hours_asked': 1.,
                       'flops': params * steps}), y


@pytest.mark.parametrize('kind, verdict', [
    ('smooth', 'smooth'), ('flat', 'no trend'), ('jump', 'breaks')])
def test_a_quantity_that_does_not_scale_smoothly_is_called_so(kind, verdict):
  rng = np.random.default_rng(1)
  table, y = simulated(rng, kind)
  assert forecast.how_it_scales(table, y, ('size', 'steps'),
                                np.zeros(len(y), int), 0) == verdict


@pytest.fixture(scope='module')
def tree(study_rows):
  """A forecast of the study's reference at four times the width."""
  origin = next_runs.config_of(STUDY, study_rows.trained.iloc[0])
  next_runs.set_width(origin, 128, origin.copy_and_resolve_references())
  return command.predicted(str(STUDY), study_rows, origin)


def test_a_forecast_has_its_date_and_a_digest_of_the_rest(tree, study_rows):
  assert tree['sha256'] == forecast.digest(tree)
  assert datetime.datetime.fromisoformat(tree['date']).tzinfo
  assert tree['times_the_compute'] > 1
  names = [one['quantity'] for one in tree['predictions']]
  assert names[:3] == ['RankMe', 'validation loss', 'score']
  assert len(names) == 3 + study_rows.tasks['task'].nunique()
  edited = {**tree, 'date': '2020-01-01T00:00:00+00:00'}
  assert forecast.digest(edited) != tree['sha256']


def test_the_report_scores_a_forecast_by_its_run(tree, study_rows, tmp_path):
  (tmp_path / forecast.FOLDER).mkdir()
  path = tmp_path / forecast.FOLDER / 'one.json'
  # As if the reference had been what was predicted.
  run_id = study_rows.trained['run_id'].iloc[0]
  known = {**tree, 'run_id': run_id}
  files.write_json(path, {**known, 'sha256': forecast.digest(known)})
  table = forecast.compared(forecast.read(tmp_path), study_rows).set_index(
      'quantity')
  assert table['intact'].all() and table['observed'].notna().all()
  assert table.loc['RankMe', 'observed'] == study_rows.trained['rank'].iloc[0]
  words = wording.forecast_verdict(table.reset_index())
  assert words[0].startswith('1 forecast of 11 quantities')
  assert f'{table["inside"].sum()} of these lie' in words[0]
  files.write_json(path, {**known, 'sha256': '0'})
  again = forecast.compared(forecast.read(tmp_path), study_rows)
  assert 'Changed after it was written' in wording.forecast_verdict(again)[1]


def test_forecasts_are_written_once_and_before_the_run(tmp_path, study_rows):
  config = next_runs.config_of(STUDY, study_rows.trained.iloc[0])
  path = command.path_of(tmp_path, config)
  workdir = tmp_path / path.stem
  workdir.mkdir()
  (workdir / 'TRAINED').touch()
  with pytest.raises(ValueError, match='has begun'):
    command.path_of(tmp_path, config)
  path.parent.mkdir()
  path.touch()
  with pytest.raises(ValueError, match='written once'):
    command.path_of(tmp_path, config)


def test_what_cannot_be_predicted_says_why(study_rows):
  origin = next_runs.config_of(STUDY, study_rows.trained.iloc[0])
  longer = origin.copy_and_resolve_references()
  longer.train.steps = 40_000
  with pytest.raises(ValueError, match='differ in training steps alone'):
    command.predicted(str(STUDY), study_rows, longer)
  other = origin.copy_and_resolve_references()
  other.opt.b2 = .5
  with pytest.raises(ValueError, match=r'opt.b2 0.95 there, 0.5 here'):
    command.predicted(str(STUDY), study_rows, other)
