"""Steps that are not finite: what is said, what is left out, what is kept."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import objectives
from audiorank import records
from audiorank import sharding
from audiorank import train
from audiorank import train_state
from audiorank import validate
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')
BAD = (3,)  # Steps, counted from 1; rows are written every second step.


@pytest.fixture
def odd(monkeypatch):
  """An objective whose loss and gradient are NaN at the steps of BAD."""
  def objective(config, variables, wave_BS, key, train=True):
    first = jax.random.fold_in(jax.random.key(0), 1)
    bad = [jnp.all(jax.random.key_data(jax.random.fold_in(first, s - 1)) ==
                   jax.random.key_data(key)) for s in BAD]
    loss, aux = objectives.masked_autoencoding(
        config, variables, wave_BS, key, train)
    return loss * jnp.where(jnp.any(jnp.stack(bad)), jnp.nan, 1.), aux

  monkeypatch.setitem(objectives.OBJECTIVES, 'odd', objective)
  monkeypatch.setitem(validate.CHOICES, 'objective',
                      tuple(objectives.OBJECTIVES))


def opened(folder, corpus, **changes):
  records.open_run(folder, tiny.config(
      corpus, **{'objective': 'odd', **changes}))
  return records.load_config(folder)


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tree))]


def same(ours, theirs):
  return all(np.array_equal(a, b) for a, b in
             zip(leaves(ours), leaves(theirs), strict=True))


def test_a_bad_batch_moves_nothing_but_the_step(corpus, odd):
  config = records.frozen(tiny.config(
      corpus, **{'objective': 'odd', 'train.max_skipped_steps': 1}))
  on = sharding.mesh(2, 1)
  wave_BS = sharding.to_global(np.random.default_rng(0).integers(
      -8000, 8000, (8, config_lib.crop_samples(.5)), np.int16), on)
  with jax.set_mesh(on):
    state = train_state.init_state(config, on)
    step = train_state.programs(config, on).step
    for number in range(1, 5):
      before = jax.tree.map(np.array, jax.device_get(state))
      state, got = step(state, wave_BS, train_state.make_hparams(config))
      bad = number in BAD
      assert float(got['skipped']) == bad == bool(np.isnan(got['loss']))
      for part in ('params', 'opt_state', 'batch_stats'):
        # The warm-up's first rate is 0.
        still = bad or part == 'params' and number == 1
        assert same(getattr(before, part), getattr(state, part)) == still, part
      assert int(state.step) == number


@pytest.mark.slow
def test_a_skipped_step_is_recorded_once_whatever_stops_the_run(
    corpus, odd, tmp_path):
  def run(name, *stops):
    config = opened(tmp_path / name, corpus, **{'train.max_skipped_steps': 1})
    for at in stops:
      with pytest.raises(train.Preempted):
        train.run(tmp_path / name, config, stop=lambda step: step == at)
    state, _ = train.run(tmp_path / name, config)
    rows = [json.loads(x) for x in (
        tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    (about,) = records.read(tmp_path / name, 'run')
    return state, [{k: v for k, v in r.items() if k not in records.TIMES}
                   for r in rows], about

  straight, rows, about = run('straight')
  (row,) = [r for r in rows if 'skipped' in r and r['skipped']]
  assert row['step'] == 3 and 'loss nan' in row['why']
  assert len(row['clips']) == 8 and about['skipped'] == [3]
  assert [r['step'] for r in rows if 'loss' in r] == [2, 4, 6]
  again, theirs, resumed = run('stopped', 3)
  assert same(straight, again) and theirs == rows and resumed == about


def test_more_than_allowed_is_a_failure(corpus, odd, tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], 'BAD', (2, 3, 5))
  config = opened(tmp_path, corpus, **{'train.max_skipped_steps': 2})
  with pytest.raises(train.Diverged,
                     match='train.max_skipped_steps 2 are used up') as e:
    train.run(tmp_path, config)
  assert e.value.about['step'] == 5


def test_a_diverged_run_names_the_last_good_step_the_clips_and_the_norm(
    corpus, odd, tmp_path):
  config = opened(tmp_path, corpus)
  diverged = train.fit([tmp_path], [config])
  assert list(diverged) == [tmp_path]
  error = diverged[tmp_path]
  assert 'loss nan at step 3' in str(error)
  assert error.about['step'] == 3 and error.about['last_good_step'] == 2
  assert error.about['grad_norm'] == error.about['loss'] == 'nan'
  clips = error.about['clips']
  assert len(clips) == 8 and all('.wav@' in clip for clip in clips)
  # Nothing that is not finite is saved.
  assert checkpoint.steps(tmp_path / 'checkpoints') == [0, 2]
  params = checkpoint.load(tmp_path)[1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


def test_the_field_off_leaves_the_names_of_runs_as_they_were(corpus):
  config = records.plain(tiny.config(corpus))
  named = records.run_id(config)
  assert records.run_id({**config, 'train': {
      k: v for k, v in config['train'].items() if k != 'skip'}}) == named
  config['train']['max_skipped_steps'] = 1
  assert records.run_id(config) != named
