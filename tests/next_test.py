"""`launch.sweep next` on the shipped study: sentences, a config, errors."""

import importlib.util
import pathlib

import pandas as pd
import pytest

from audiorank import config as config_lib
from audiorank import records
from audiorank.analysis import advice
from audiorank.analysis import decide
from audiorank.analysis import study
from launch import next as next_runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
STUDY = ROOT / 'notebooks' / 'results' / 'small_study'
NONE = pd.DataFrame()


@pytest.fixture(scope='module')
def result(study_rows):
  return advice.advise(study_rows)


@pytest.fixture(scope='module')
def built(result):
  """The start's config, and the sizes that 1e13 FLOPs can train."""
  known = result.scaling
  origin = next_runs.config_of(STUDY, next_runs.start_row(known))
  return origin, next_runs.sizes(known, origin, 1e13)


def loaded(path):
  spec = importlib.util.spec_from_file_location('next_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_command_prints_gains_and_writes_a_config_that_runs(
    tmp_path, capsys):
  out = tmp_path / 'next.py'
  next_runs.run(str(STUDY), 2e13, out=str(out))
  text = capsys.readouterr().out
  assert 'Doubling the compute by a larger model' in text
  # One length of training: the axis is not guessed.
  assert ('longer training: nothing is known. Needed: runs that differ in '
          'training steps') in text
  module = loaded(out)
  names = module.points()
  assert names and f'{len(names)} run' in text
  configs = [module.get_config(name) for name in names]
  ids = [config_lib.run_id(c) for c in configs]
  assert len(set(ids)) == len(ids)
  total = 0.
  from audiorank import train_state
  for c in configs:
    total += train_state.flops(c)['total'] * c.train.batch * c.train.steps
    assert c.data.sha256 and isinstance(c.data.world.tasks, tuple)
  assert total <= 2e13


def test_a_run_proposed_again_differs_in_its_seed_alone(
    result, study_tables, built):
  known, (origin, sizes) = result.scaling, built
  table = next_runs.with_width(known, result.budget, sizes)
  same = table[(table['params'] == known.start.params)
               & (table['hours_asked'] == known.start.hours)]
  one = known.start._replace(row=same.index[0])
  (name, fields), = next_runs.proposals(known, origin, [one], table).items()
  assert set(fields) == {'seed'} and name.endswith(f'seed={fields["seed"]}')
  assert fields['seed'] not in set(study_tables.runs['seed'])


def test_longer_training_moves_what_is_counted_in_steps(result, built):
  known, origin = result.scaling, built[0]
  longer = known.start._replace(steps=2 * known.start.steps)
  fields = next_runs.changed(origin, longer, origin.model.width, known.hours)
  assert fields['train.steps'] == 8000
  assert fields['opt.warmup'] == 2 * origin.opt.warmup


def test_sizes_have_the_parameters_and_flops_of_the_sweep(result, built):
  known, sizes = result.scaling, built[1].set_index('params')
  each = known.rows.drop_duplicates('params').set_index('params')
  for params, row in each.iterrows():
    assert sizes.loc[params, 'width'] == row['width']
    assert sizes.loc[params, 'step_flops'] == pytest.approx(
        row['flops'] / row['steps'])


def test_further_seeds_narrow_a_slope(study_rows):
  plan = decide.more_seeds(study_rows, 'decoder')
  assert plan.seeds == 1 and len(plan.runs) == 5
  assert plan.flops == pytest.approx(plan.runs['flops'].sum())
  assert 0 < plan.after < plan.now
  assert not set(plan.runs['new_seed']) & set(study_rows.trained['seed'])
  # RankMe does not move with the sounds that are trained on.
  assert decide.more_seeds(study_rows, 'sounds trained on').kind == 'moves'
  poor = decide.more_seeds(study_rows, 'decoder', budget=1e9)
  assert poor.kind == 'budget' and poor.amount == pytest.approx(plan.flops)


def test_what_cannot_be_answered_says_what_is_needed(study_tables):
  def lacking(runs):
    return advice.advise(study.read(records.Tables(runs, NONE, NONE)))

  runs = study_tables.runs
  assert lacking(runs.drop(columns='flops')).lacks.names == ('flops',)
  assert lacking(runs[runs['untrained']]).lacks.kind == 'scaling_runs'
  few = runs[runs['experiment'] == 'masking']
  assert lacking(few).lacks.kind == 'vary'
  grid = runs[(runs['experiment'] == 'model_data_grid')]
  one_axis = grid[(grid['hours_asked'] == .3) | grid['untrained']]
  gains = {one.axis: one for one in lacking(one_axis).gains}
  assert gains['size'].needed is None
  assert gains['hours'].needed.kind == 'vary'
  two = one_axis[one_axis['untrained'] | (one_axis['width'] < 64)]
  assert lacking(two).lacks.kind == 'scaling_runs'


@pytest.mark.parametrize('words, text', [
    ({'budget': 1e3}, 'less than one run: expected at'),
    ({'goal': 'steps'}, 'differ in training steps'),
    ({'goal': 'masking'}, 'Did you mean masking rate'),
    ({'root': '{empty}'}, 'no runs: expected the --root of a sweep')])
def test_bad_input_is_one_line(words, text, tmp_path):
  words = {'root': str(STUDY), 'out': str(tmp_path / 'next.py'), **words}
  words['root'] = words['root'].format(empty=tmp_path)
  with pytest.raises((ValueError, FileNotFoundError), match=text) as error:
    next_runs.run(**words)
  assert '\n' not in str(error.value)


def test_the_word_is_part_of_the_sweep_command(server, tmp_path):
  done = server.run(tmp_path, 'sweep', 'next', f'--root={tmp_path}')
  assert done.returncode == 1
  assert 'no runs: expected the --root' in done.stderr
  assert len(done.stderr.splitlines()) == 1
