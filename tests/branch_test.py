"""Runs that branch from a trunk: to the bit what they are without it."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest

from audiorank import branch
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import files
from audiorank import records
from audiorank import train
from audiorank import train_state
from audiorank.analysis import early
from configs import base
from launch import run_queue
from tests import tiny

WSD = {'opt.schedule': 'wsd', 'opt.decay': .25, 'checkpoint.save_every': 1,
       'checkpoint.keep_every': 1, 'opt.warmup': 1}


def opened(workdir, config):
  config = config_lib.frozen(config)
  records.open_run(workdir, config)
  return config


def of_steps(corpus, steps, **changes):
  return tiny.config(corpus, **{**WSD, 'train.steps': steps, **changes})


def test_the_rate_is_constant_and_then_falls_in_a_line():
  c = base.get_config('en32-2')
  c.train.steps, c.opt.warmup, c.opt.lr = 100, 10, 1.
  c.opt.update({'schedule': 'wsd', 'decay': .2, 'final_lr_ratio': .1})
  h = train_state.make_hparams(c)
  rate = lambda s: float(train_state.learning_rate(np.float32(s), h))
  assert rate(0) == 0 and rate(5) == .5
  # Equal to the bit: runs of other durations share these steps.
  assert {rate(s) for s in range(10, 81)} == {1.}
  assert rate(90) == pytest.approx(.55) and rate(100) == pytest.approx(.1)


@pytest.mark.parametrize('schedule', ['cosine', 'wsd'])
def test_the_rate_of_early_readings_is_that_of_training(schedule):
  c = base.get_config('en32-2')
  c.train.steps, c.opt.warmup, c.opt.lr = 100, 10, 1.
  c.opt.update({'schedule': schedule, 'decay': .2, 'final_lr_ratio': .1})
  h, opt = train_state.make_hparams(c), c.opt.to_dict()
  for step in (0, 5, 10, 50, 80, 90, 100):
    assert early.rate(opt, 100, step) == pytest.approx(
        float(train_state.learning_rate(np.float32(step), h)), abs=1e-6)


def test_early_readings_are_compared_in_like_states():
  """At half of training a cosine has fallen by half, and wsd not at all."""
  history = pd.DataFrame([
      {'run_id': run, 'step': step, 'steps': 100, 'rank': 5. + k}
      for k, run in enumerate('abc') for step in (10, 50, 100)])
  trained = lambda *schedules: pd.DataFrame({'run_id': list('abc'), 'config': [
      json.dumps({'opt': {'warmup': 5, 'schedule': s}}) for s in schedules]})
  read = lambda runs, share: early.at_rung(runs, history, share, 'rank')
  for share, mixed in ((.1, True), (.5, False)):
    for schedule in ('cosine', 'wsd'):
      values, _ = read(trained(*[schedule] * 3), share)
      assert values.tolist() == [5., 6., 7.]
    both = read(trained('cosine', 'wsd', 'wsd'), share)
    assert (both is not None) == mixed


def test_a_field_at_its_default_leaves_the_run_id_alone():
  c = base.get_config('en32-2')
  tree = config_lib.plain(c)
  del tree['opt']['schedule'], tree['opt']['decay']
  assert config_lib.run_id(c) == config_lib.run_id(tree)
  c.opt.schedule = 'wsd'
  assert config_lib.run_id(c) != config_lib.run_id(tree)


def test_six_durations_take_less_than_45_percent_of_their_flops():
  """Evenly spaced durations, each with its own decay of a tenth."""
  configs = []
  for steps in range(1000, 6001, 1000):
    c = base.get_config('en32-2')
    c.train.steps = steps
    c.opt.update({'schedule': 'wsd', 'decay': .1, 'warmup': 100})
    c.checkpoint.update({'save_every': 100, 'keep_every': 100})
    configs.append(config_lib.frozen(c))
  assert len({branch.family(c) for c in configs}) == 1
  step = train_state.flops(configs[0])['total'] * configs[0].train.batch
  alone = sum(step * c.train.steps for c in configs)
  # The longest, and a tenth of 1,000 to 5,000 steps.
  assert branch.computed_steps(configs) == 6000 + 1500
  assert step * branch.computed_steps(configs) <= .45 * alone


def test_what_differs_before_the_decay_is_another_family(corpus):
  one = branch.family(of_steps(corpus, 8))
  assert one == branch.family(of_steps(corpus, 4, **{'opt.decay': .5}))
  assert one != branch.family(of_steps(corpus, 8, seed=1))
  assert one != branch.family(of_steps(corpus, 8, **{'opt.lr': .01}))
  assert branch.family(tiny.config(corpus)) == ''


@pytest.fixture(scope='module')
def alone(corpus, tmp_path_factory):
  """A short run that is trained from its first step: (folder, final state)."""
  workdir = tmp_path_factory.mktemp('alone') / 'alone'
  state, _ = train.run(workdir, opened(workdir, of_steps(corpus, 4)))
  return workdir, state


@pytest.fixture(scope='module')
def trunk(corpus, tmp_path_factory):
  """The folder of a run of its family that is twice as long."""
  workdir = tmp_path_factory.mktemp('trunk') / 'trunk'
  train.run(workdir, opened(workdir, of_steps(corpus, 8)))
  return workdir


@pytest.mark.filterwarnings('ignore')
def test_a_branch_is_to_the_bit_the_run_from_the_first_step(
    corpus, tmp_path, alone, trunk):
  (alone, whole), root = alone, tmp_path / 'sweep'
  short = config_lib.frozen(of_steps(corpus, 4))
  shutil.copytree(trunk, root / 'trunk')
  opened(root / 'short', of_steps(corpus, 4))
  asked = []
  again, _ = train.run(root / 'short', short,
                       stop=lambda step: bool(asked.append(step)))
  # 3 of its 4 steps are the trunk's.
  assert min(asked) == 3
  assert files.read_json(root / 'short' / branch.FILE) == {
      'run_id': 'trunk', 'step': 3}
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params),
                  strict=True):
    np.testing.assert_array_equal(a, b)
  last = [records.read(w, 'monitor')[-1] for w in (alone, root / 'short')]
  assert last[0]['step'] == last[1]['step'] == 4
  assert last[0]['rank'] == last[1]['rank']
  # What was measured before the branch is there, and nothing after it.
  steps = [r['step'] for r in records.read(root / 'short', 'monitor')]
  assert steps[0] == 0 and steps == sorted(set(steps))
  theirs, _ = checkpoint.load(root / 'short' / 'checkpoints', 3)
  assert theirs.train.steps == 4
  assert checkpoint.verify(root / 'short' / 'checkpoints', 3) == ''


@pytest.mark.filterwarnings('ignore')
def test_a_branch_on_a_bucket_is_that_on_a_disk(corpus, alone, trunk, bucket):
  _, whole = alone
  files.send(trunk, f'{bucket}/runs/trunk')
  files.send(corpus, f'{bucket}/corpus')
  short = files.path(f'{bucket}/runs/short')
  config = opened(short, of_steps(f'{bucket}/corpus', 4, **{
      'checkpoint.save_every': 4}))
  again, _ = train.run(short, config)
  assert files.read_json(short / branch.FILE) == {'run_id': 'trunk', 'step': 3}
  assert checkpoint.steps(short / 'checkpoints') == [3, 4]
  assert checkpoint.verify(short / 'checkpoints', 3) == ''
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(again.params),
                  strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings('ignore')
def test_damaged_states_and_states_in_the_decay_are_passed_over(
    corpus, tmp_path):
  trunk = tmp_path / 'trunk'
  train.run(trunk, opened(trunk, of_steps(corpus, 4)))
  # The trunk's constant phase ends at 3, the longer run's at 6.
  longer = opened(tmp_path / 'longer', of_steps(corpus, 8))
  steps = [step for step, _ in branch.ahead(
      tmp_path / 'longer', longer, branch.family(longer))]
  assert steps == [3, 2, 1]
  damaged = next(p for p in sorted((trunk / 'checkpoints' / '3').rglob('*'))
                 if p.is_file() and p.stat().st_size > 99)
  damaged.write_bytes(b'0' * damaged.stat().st_size)
  assert branch.begin(tmp_path / 'longer', longer) == 2
  # It has a state of its own now.
  assert branch.begin(tmp_path / 'longer', longer) == 0


def test_a_branch_waits_for_its_trunk(corpus, tmp_path, monkeypatch):
  configs = {'short': of_steps(corpus, 4), 'trunk': of_steps(corpus, 8)}
  for name, config in configs.items():
    opened(tmp_path / name, config)
  files.write_json(tmp_path / 'sweep.json', {'runs': {
      name: run_queue.entry(config_lib.frozen(config))._asdict()
      for name, config in configs.items()}})
  board = run_queue.Board(tmp_path)
  assert not board.awaits('short')
  # The trunk comes first, and while it is in progress nothing else.
  first, = run_queue.claim(board, ('train',))
  assert first.workdir.name == 'trunk'
  monkeypatch.setattr(run_queue.time, 'sleep', lambda seconds: None)
  assert board.awaits('short')
  assert run_queue.claim(board, ('train',)) == []
  assert run_queue.await_leases(board, ('train',))
  first.lock.release()
  (tmp_path / 'trunk' / 'TRAINED').touch()
  second, = run_queue.claim(board, ('train',))
  assert second.workdir.name == 'short'
  # Of its 4 steps the trunk has taken 3; a tenth of any work is evaluation.
  long, short = (board.entries[name].work for name in ('trunk', 'short'))
  assert board.progress().share == pytest.approx(
      .9 * long / (long + short * (1 - .9 * 3 / 4)))
  second.lock.release()


def test_branches_train_together_and_not_beside_runs_from_the_first_step(
    corpus, tmp_path):
  """Runs of other schedules share a program, but not the step to begin at."""
  configs = [of_steps(corpus, steps, seed=seed, **{'opt.schedule': schedule})
             for schedule, steps in (('wsd', 8), ('wsd', 4), ('cosine', 4))
             for seed in (0, 1)]
  names = {}
  for config in configs:
    name = records.run_id(config)
    opened(tmp_path / name, config)
    names[name] = config
  files.write_json(tmp_path / 'sweep.json', {'runs': {
      name: run_queue.entry(config_lib.frozen(config))._asdict()
      for name, config in names.items()}})
  board, together = run_queue.Board(tmp_path), []
  while claims := run_queue.claim(board, ('train',), size=lambda config: 8):
    together.append({(c.config.opt.schedule, c.config.train.steps)
                     for c in claims})
    assert len(claims) == 2
    for c in claims:
      (c.workdir / 'TRAINED').touch()
      c.lock.release()
  assert together[0] == {('wsd', 8)}
  assert sorted(map(sorted, together[1:])) == [[('cosine', 4)], [('wsd', 4)]]
