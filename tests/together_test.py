"""Runs in one program are the runs one by one; each can go on alone."""

import json

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import records
from audiorank import together
from audiorank import train
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')

POINTS = [{}, {'seed': 3}, {'opt.lr': 3e-3}, {'train.init_scale': .5}]


def opened(folder, corpus):
  out = []
  for k, point in enumerate(POINTS):
    records.open_run(folder / str(k), tiny.config(corpus, **point))
    out.append(records.load_config(folder / str(k)))
  return [folder / str(k) for k in range(len(POINTS))], out


def last(workdir):
  _, params = checkpoint.load(workdir)
  ranks = [(r['step'], r['rank']['value'], r['valid_loss'])
           for r in records.read(workdir, 'monitor')]
  losses = [(r['step'], r['loss']) for r in map(json.loads, (
      workdir / 'metrics.jsonl').read_text().splitlines()) if 'loss' in r]
  return jax.tree.leaves(params), ranks, losses


@pytest.fixture(scope='module')
def separate(corpus, tmp_path_factory):
  """Every run trained by itself."""
  workdirs, configs = opened(tmp_path_factory.mktemp('separate'), corpus)
  for workdir, config in zip(workdirs, configs):
    train.run(workdir, config)
  return [last(w) for w in workdirs]


def close(ours, theirs):
  for a, b in zip(ours[0], theirs[0], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
  np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5)


def test_together_is_one_by_one(corpus, separate, tmp_path):
  """Four runs over the four of eight devices that divide them."""
  workdirs, configs = opened(tmp_path, corpus)
  assert not together.run(workdirs, configs)
  for workdir, alone in zip(workdirs, separate):
    close(last(workdir), alone)
  # They are four runs, not one four times.
  finals = [ranks[-1] for _, ranks, _ in separate]
  assert len(set(finals)) == len(POINTS)


@pytest.mark.slow
def test_stopped_together_and_gone_on_alone(corpus, separate, tmp_path):
  workdirs, configs = opened(tmp_path, corpus)
  with pytest.raises(train.Preempted, match='saved at step 3'):
    together.run(workdirs, configs, stop=lambda step: step == 3)
  train.run(workdirs[1], configs[1])
  close(last(workdirs[1]), separate[1])
  # The rest goes on in smaller company.
  rest = [0, 2, 3]
  assert not together.run([workdirs[k] for k in rest],
                          [configs[k] for k in rest])
  for k in rest:
    close(last(workdirs[k]), separate[k])


@pytest.mark.slow
def test_a_save_that_one_run_is_ahead_is_undone(corpus, separate, tmp_path):
  workdirs, configs = opened(tmp_path, corpus)
  with pytest.raises(train.Preempted, match='saved at step 4'):
    together.run(workdirs, configs, stop=lambda step: step == 4)
  # As if the process had died after the first run's save of step 4.
  for workdir in workdirs[1:]:
    checkpoint.rewind(workdir / 'checkpoints', 2)
  assert not together.run(workdirs, configs)
  for workdir, alone in zip(workdirs, separate):
    close(last(workdir), alone)


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_others_alone(
    corpus, separate, tmp_path):
  workdirs, configs = opened(tmp_path, corpus)
  records.open_run(tmp_path / 'wild', tiny.config(
      corpus, **{'opt.lr': 1e38, 'opt.warmup': 0}))
  wild = records.load_config(tmp_path / 'wild')
  lost = together.run([*workdirs[:2], tmp_path / 'wild'],
                      [*configs[:2], wild])
  assert list(lost) == [tmp_path / 'wild']
  assert 'loss' in str(lost[tmp_path / 'wild'])
  for k in (0, 1):
    close(last(workdirs[k]), separate[k])


def test_other_shapes_and_runs_far_apart_are_refused(corpus, tmp_path):
  workdirs, configs = opened(tmp_path, corpus)
  records.open_run(tmp_path / 'wide', tiny.config(corpus, **{
      'model.width': 64}))
  with pytest.raises(ValueError, match='expected to differ in experiment, se'):
    together.run([workdirs[0], tmp_path / 'wide'],
                 [configs[0], records.load_config(tmp_path / 'wide')])
  train.run(workdirs[0], configs[0])
  with pytest.raises(ValueError, match='0/checkpoints: at step 6, others at '
                                       'the start'):
    together.run(workdirs, configs)
  assert checkpoint.newest(workdirs[0] / 'checkpoints') == 6
