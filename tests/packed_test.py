"""Runs packed in one program are the runs alone; each can resume alone."""

import json

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import prepare
from audiorank import records
from audiorank import train
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')

# Three that share their batches, and three that have their own.
POINTS = [{}, {'seed': 3, 'opt.lr': 3e-3}, {'train.init_scale': .5},
          {'data.seed': 1}, {'data.hours': 15 / 3600},
          {'data.category': ('high',), 'opt.warmup': 1}]
SHARED, OWN = (0, 1, 2), (1, 3, 4, 5)
# Of all of them; rates scaled by kind of parameter, alone and packed.
SHARED_FIELDS = {'data.valid_fraction': .3, 'opt.transfer': 16}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A minute of tones and noise in two categories."""
  rng = np.random.default_rng(0)
  clips = []
  for r in range(30):
    kind = ('low', 'high')[r % 2]
    tone_S = 3000 * np.sin(np.arange(32000) * (.02 if r % 2 else .6) * (r + 1))
    clips.append((f'{kind}/{r}.wav', f'recording {r}', kind, (
        tone_S + rng.normal(0, 900, 32000)).astype(np.int16)))
  folder = tmp_path_factory.mktemp('categories') / 'out'
  prepare.write(folder, clips, {'made by': 'a test'})
  return folder


def opened(folder, corpus, points, **changes):
  """Opens the folders of some points; returns them and their configs."""
  workdirs = [folder / str(k) for k in points]
  for k, workdir in zip(points, workdirs):
    records.open_run(workdir, tiny.config(
        corpus, **{**SHARED_FIELDS, **POINTS[k], **changes}))
  return workdirs, [records.load_config(w) for w in workdirs]


def last(workdir):
  """Returns (parameters, ranks and held-out losses, training losses)."""
  _, params = checkpoint.load(workdir)
  ranks = [(r['step'], r['rank']['value'], r['valid_loss'])
           for r in records.read(workdir, 'monitor')]
  losses = [(r['step'], r['loss']) for r in map(json.loads, (
      workdir / 'metrics.jsonl').read_text().splitlines()) if 'loss' in r]
  return jax.tree.leaves(params), ranks, losses


@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory):
  """Every run trained by itself."""
  workdirs, configs = opened(tmp_path_factory.mktemp('alone'), corpus,
                             range(len(POINTS)))
  for workdir, config in zip(workdirs, configs):
    train.run(workdir, config)
  return [last(w) for w in workdirs]


def check_close(workdirs, points, alone):
  """Asserts that packed runs are those alone, up to rounding."""
  for workdir, k in zip(workdirs, points):
    ours, theirs = last(workdir), alone[k]
    for a, b in zip(ours[0], theirs[0], strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)
    np.testing.assert_allclose(ours[2], theirs[2], rtol=1e-5)


@pytest.mark.parametrize('points, call', [(SHARED, 1), (OWN, 2)],
                         ids=['shared batches', 'own batches'])
def test_packed_runs_are_the_runs_alone(corpus, alone, tmp_path, points, call):
  """Three runs on one device, and four on the four that divide eight."""
  workdirs, configs = opened(tmp_path, corpus, points,
                             **{'train.steps_per_call': call})
  polled = []
  assert not train.fit(workdirs, configs,
                       stop=lambda step: bool(polled.append(step)))
  assert set(range(1, 6, 2)) <= set(polled) or call > 1
  check_close(workdirs, points, alone)


def test_runs_alone_are_different_runs(alone):
  finals = {ranks[-1] for _, ranks, _ in alone}
  assert len(finals) == len(POINTS)


def test_stopped_packed_runs_resume_alone_and_in_other_company(
    corpus, alone, tmp_path):
  # Between two saves; two steps a call, as in the test before.
  workdirs, configs = opened(tmp_path, corpus, OWN, **{
      'train.steps_per_call': 2, 'checkpoint.save_every': 6})
  with pytest.raises(train.Preempted, match='saved at step 4'):
    train.fit(workdirs, configs, stop=lambda step: step == 4)
  train.run(workdirs[1], configs[1])
  assert not train.fit(workdirs[2:], configs[2:])
  train.run(workdirs[0], configs[0])
  check_close(workdirs, OWN, alone)


def test_a_save_that_one_run_is_ahead_is_undone(corpus, alone, tmp_path):
  workdirs, configs = opened(tmp_path, corpus, SHARED)
  with pytest.raises(train.Preempted, match='saved at step 4'):
    train.fit(workdirs, configs, stop=lambda step: step == 4)
  # As if the process had died after the first run's save of step 4.
  for workdir in workdirs[1:]:
    checkpoint.rewind(workdir / 'checkpoints', 2)
  assert not train.fit(workdirs, configs)
  check_close(workdirs, SHARED, alone)


def test_a_run_that_diverges_leaves_the_others_alone(corpus, alone, tmp_path):
  workdirs, configs = opened(tmp_path, corpus, SHARED)
  workdirs[0] = tmp_path / 'wild'
  records.open_run(workdirs[0], tiny.config(corpus, **{
      **SHARED_FIELDS, 'opt.lr': 1e38, 'opt.warmup': 0}))
  configs[0] = records.load_config(workdirs[0])
  diverged = train.fit(workdirs, configs)
  assert list(diverged) == workdirs[:1]
  assert 'loss' in str(diverged[workdirs[0]])
  check_close(workdirs[1:], SHARED[1:], alone)


def test_a_run_that_diverged_is_named_by_a_preemption(corpus, tmp_path):
  workdirs, configs = opened(tmp_path, corpus, SHARED)
  workdirs[0] = tmp_path / 'wild'
  records.open_run(workdirs[0], tiny.config(corpus, **{
      **SHARED_FIELDS, 'opt.lr': 1e38, 'opt.warmup': 0}))
  configs[0] = records.load_config(workdirs[0])
  with pytest.raises(train.Preempted) as error:
    train.fit(workdirs, configs, stop=lambda step: step == 5)
  assert list(error.value.diverged) == workdirs[:1]


def test_other_shapes_and_runs_far_apart_are_refused(corpus, tmp_path):
  workdirs, configs = opened(tmp_path, corpus, SHARED)
  records.open_run(tmp_path / 'wide', tiny.config(corpus, **{
      **SHARED_FIELDS, 'model.width': 64}))
  with pytest.raises(ValueError, match='expected to differ in experiment, se'):
    train.fit([workdirs[0], tmp_path / 'wide'],
              [configs[0], records.load_config(tmp_path / 'wide')])
  train.run(workdirs[0], configs[0])
  with pytest.raises(ValueError, match='0/checkpoints: at step 6, others at '
                                       'the start'):
    train.fit(workdirs, configs)
  assert checkpoint.newest(workdirs[0] / 'checkpoints') == 6
