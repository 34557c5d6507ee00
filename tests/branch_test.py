"""Runs that branch from a trunk: to the bit what they are without it."""

import jax
import numpy as np
import pytest

from audiorank import branch
from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import files
from audiorank import records
from audiorank import train
from audiorank import train_state
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


@pytest.mark.filterwarnings('ignore')
def test_a_branch_is_to_the_bit_the_run_from_the_first_step(corpus, tmp_path):
  alone, root = tmp_path / 'alone', tmp_path / 'sweep'
  short = opened(alone, of_steps(corpus, 4))
  whole, _ = train.run(alone, short)
  train.run(root / 'trunk', opened(root / 'trunk', of_steps(corpus, 8)))
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
  assert not run_queue.awaits_trunk(board, 'short')
  # The trunk comes first, and while it is in progress nothing else.
  first, = run_queue.claim(board, ('train',))
  assert first.workdir.name == 'trunk'
  monkeypatch.setattr(run_queue.time, 'sleep', lambda seconds: None)
  assert run_queue.awaits_trunk(board, 'short')
  assert run_queue.claim(board, ('train',)) == []
  assert run_queue.await_leases(board, ('train',))
  first.lock.release()
  (tmp_path / 'trunk' / 'TRAINED').touch()
  second, = run_queue.claim(board, ('train',))
  assert second.workdir.name == 'short'
  second.lock.release()
