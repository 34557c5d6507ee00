"""Training: exact resume, devices, calibration, what bad configs get."""

import contextlib
import json

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import config as config_lib
from audiorank import embed
from audiorank import evaluate
from audiorank import records
from audiorank import sampling
from audiorank import sharding
from audiorank import synth
from audiorank import train
from audiorank import train_state
from configs import base
from launch import run_queue
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore::UserWarning:orbax')


def opened(folder, config):
  records.open_run(folder, config)
  return records.load_config(folder)


def leaves(state):
  return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))]


def without_times(record):
  return {k: v for k, v in record.items() if k not in records.TIMES}


@pytest.mark.filterwarnings('ignore')
def test_stopped_and_resumed_is_bitwise_the_straight_run(
    corpus, tasks, tmp_path):
  c = tiny.config(corpus, **{
      'monitor.neighbour_clips': 40, 'monitor.lidar_clips': 12,
      'monitor.lidar_views': 2, 'monitor.knn_task': 'timbre-v1-full',
      'eval.tasks': str(tasks)})
  straight = opened(tmp_path / 'a', c)
  whole, _ = train.run(tmp_path / 'a', straight)
  with pytest.raises(train.Preempted, match='saved at step 3'):
    train.run(tmp_path / 'b', opened(tmp_path / 'b', c),
              stop=lambda step: step == 3)
  again, _ = train.run(tmp_path / 'b', straight)
  for a, b in zip(leaves(whole), leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  ours, theirs = (
      [without_times(r) for r in records.read(tmp_path / n, 'monitor')]
      for n in 'ab')
  assert ours == theirs and [r['step'] for r in ours] == [0, 2, 6]
  # Labels and views are measured at every evaluation.
  for record in ours:
    assert 0 <= record['knn']['score'] <= 1 < record['lidar']['value'] <= 32
    assert record['neighbourhood']['twonn'] > 0
  rows = [[json.loads(line) for line in
           (tmp_path / n / 'metrics.jsonl').read_text().splitlines()]
          for n in 'ab']
  assert [without_times(r) for r in rows[0]] == [
      without_times(r) for r in rows[1]]
  assert [r['step'] for r in rows[0] if 'loss' in r] == [2, 4, 6]
  assert [r['step'] for r in rows[0] if 'rank' in r] == [0, 2, 6]


@pytest.mark.filterwarnings('ignore')
def test_several_steps_of_a_call_are_those_steps(corpus, tmp_path):
  """Readings, saves and rows in between cut the calls short."""
  def change(c):
    c.train.update({'steps': 20, 'log_every': 8})
    c.checkpoint.save_every = 10

  one = tiny.config(corpus)
  change(one)
  several = tiny.config(corpus)
  change(several)
  several.train.steps_per_call = 4
  assert records.run_id(one) == records.run_id(several)
  called = []
  states = [train.run(tmp_path / name, opened(tmp_path / name, c),
                      stop=lambda step: called.append((name, step)))[0]
            for name, c in (('one', one), ('several', several))]
  steps = sorted({step for name, step in called if name == 'several'})
  assert {b - a for a, b in zip(steps, steps[1:])} == {1, 4}
  # The same sums, fused otherwise by the compiler.
  for a, b in zip(*map(leaves, states), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  rows = [[json.loads(line) for line in
           (tmp_path / n / 'metrics.jsonl').read_text().splitlines()]
          for n in ('one', 'several')]
  assert [r['step'] for r in rows[0]] == [r['step'] for r in rows[1]]
  for a, b in zip(*rows):
    if 'loss' in a:
      assert a['loss'] == pytest.approx(b['loss'], rel=1e-5)


@pytest.mark.filterwarnings('ignore')
def test_a_damaged_checkpoint_costs_one_step_back_and_nothing_else(
    corpus, tmp_path):
  config = opened(tmp_path, tiny.config(corpus))
  whole, _ = train.run(tmp_path, config)
  folder = tmp_path / 'checkpoints'
  newest = checkpoint.steps(folder)[-1]
  victim = max((p for p in (folder / str(newest)).rglob('*') if p.is_file()),
               key=lambda p: p.stat().st_size)
  data = bytearray(victim.read_bytes())
  data[len(data) // 2] ^= 1
  victim.write_bytes(data)
  assert 'not what was written' in checkpoint.verify(folder, newest)
  with pytest.raises(ValueError, match='damaged checkpoint'):
    checkpoint.load(tmp_path, newest)
  again, _ = train.run(tmp_path, config)
  for a, b in zip(leaves(whole), leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (tmp_path / 'damaged' / str(newest)).is_dir()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('at', [1, 3])
def test_a_run_whose_folder_is_moved_ends_and_leaves_nothing_behind(
    corpus, tmp_path, at):
  """Between two saves, and beside one."""
  config = opened(tmp_path / 'run', tiny.config(corpus))

  def stop(step):
    if step == at:
      (tmp_path / 'run').rename(tmp_path / 'moved')
    return False

  with pytest.raises(OSError, match='/run: moved or deleted while the run'):
    train.run(tmp_path / 'run', config, stop=stop)
  run_queue.fail(tmp_path / 'run', OSError('moved'))
  # Orbax may have begun a save there.
  left = {path.name for path in (tmp_path / 'run').glob('*')}
  assert left <= {'checkpoints'}
  train.run(tmp_path / 'moved', config)


@pytest.mark.filterwarnings('ignore')
def test_resuming_without_checksums_is_warned_of_and_recorded(
    corpus, tmp_path):
  config = opened(tmp_path, tiny.config(corpus))
  with pytest.raises(train.Preempted):
    train.run(tmp_path, config, stop=lambda step: step == 4)
  checkpoint.checksums(tmp_path / 'checkpoints', 4).unlink()
  polled = []
  for _ in range(2):  # Later starts keep it.
    with pytest.warns(checkpoint.NotVerified) if not polled else (
        contextlib.nullcontext()):
      train.run(tmp_path, config,
                stop=lambda step: bool(polled.append(step)))
    assert records.read(tmp_path, 'run')[0]['unverified'] == [4]
  assert min(polled) == 4
  assert not (tmp_path / 'damaged').exists()


@pytest.mark.filterwarnings('ignore')
def test_a_checkpoint_describes_itself(corpus, tmp_path):
  config = opened(tmp_path, tiny.config(corpus, **{'train.steps': 2,
                                            'opt.warmup': 1}))
  state, _ = train.run(tmp_path, config)
  found, params = checkpoint.load(tmp_path / 'checkpoints')
  assert found == config
  for a, b in zip(jax.tree.leaves(params['params']),
                  jax.tree.leaves(jax.device_get(state.params)), strict=True):
    np.testing.assert_array_equal(a, b)
  z_ND = embed.scene(found, params, np.zeros((2, 8000), np.float32))
  assert z_ND.shape == (2, 32) and np.isfinite(z_ND).all()
  with pytest.raises(FileNotFoundError, match='no step 9; there are'):
    checkpoint.load(tmp_path, 9)
  with pytest.raises(FileNotFoundError, match='no checkpoint'):
    checkpoint.load(tmp_path / 'records')


def trained(config, corpus, on, steps=3):
  programs = train_state.programs(config, on)
  wave_BS = np.random.default_rng(0).integers(
      -8000, 8000, (8, config_lib.crop_samples(.5)), np.int16)
  with jax.set_mesh(on):
    state = train_state.init_state(config, on)
    for _ in range(steps):
      state, got = programs.step(state, sharding.to_global(wave_BS, on),
                                 train_state.make_hparams(config))
  return float(got['loss']), leaves(state.params), programs.shardings


def test_parts_on_eight_devices_do_not_change_the_run(corpus):
  """Other meshes: sharding_test.py."""
  config = records.frozen(tiny.config(corpus))
  one, ours, _ = trained(config, corpus, sharding.mesh(1, 1))
  many, theirs, placed = trained(config, corpus, sharding.mesh(1, 8))
  assert many == pytest.approx(one, abs=1e-5)
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4)
  kernels = [s.spec for s in jax.tree.leaves(placed.params)
             if 'fsdp' in str(s.spec)]
  assert kernels
  moments = train_state.adam_state(placed.opt_state)
  assert jax.tree.map(lambda s: s.spec, moments.mu) == jax.tree.map(
      lambda s: s.spec, placed.params)


def test_loss_falls_on_a_batch_that_can_be_learnt(corpus):
  config = records.frozen(tiny.config(corpus, **{'opt.lr': 3e-3,
                                          'train.steps': 60}))
  first, _, _ = trained(config, corpus, sharding.mesh(1, 1), steps=1)
  last, _, _ = trained(config, corpus, sharding.mesh(1, 1), steps=60)
  assert last < .9 * first


def test_calibration_whitens_the_mel(corpus):
  config = records.frozen(tiny.config(corpus))
  on = sharding.mesh(1, 1)
  wave_NS = sampling.samples(config).monitor.wave_NS
  # Two batches of 256, the second filled up with silence that must not count.
  wave_NS = np.tile(wave_NS, (7, 1))[:300]
  state = train_state.calibrate_batch_norm(
      config, train_state.init_state(config, on), wave_NS)
  from audiorank import audio
  mel_BMT = np.asarray(audio.log_mel(wave_NS.astype(np.float32) / 32768))
  stats = state.batch_stats['encoder']['norm_mel']
  np.testing.assert_allclose(stats['mean'], mel_BMT.mean((0, 2)), atol=1e-3)
  np.testing.assert_allclose(stats['var'], mel_BMT.var((0, 2)), rtol=1e-3)


def test_schedule_warms_up_and_ends_where_it_should():
  c = base.get_config('en32-2')
  c.train.steps, c.opt.warmup, c.opt.lr, c.opt.final_lr_ratio = 100, 10, 1., .1
  h = train_state.make_hparams(c)
  rate = lambda s: float(train_state.learning_rate(np.float32(s), h))
  assert rate(0) == 0 and rate(5) == .5
  assert rate(10) == pytest.approx(1.) and rate(100) == pytest.approx(.1)
  assert all(rate(s) > rate(s + 1) for s in range(10, 100))


@pytest.mark.parametrize('changes, text', [
    ({'train.batch': 7, 'mesh.data': 8}, 'train.batch 7 is not a multiple'),
    ({'mask.ratio': .99}, 'mask.ratio 0.99 keeps 0 of 12'),
    ({'mask.group_size': 5}, 'not a multiple of mask.group_size 5'),
    ({'data.crop_seconds': 2.}, 'gives 26 positions'),
    ({'model.heads': 5}, 'model.width 32 is not a multiple'),
    ({'opt.warmup': 6}, 'opt.warmup 6: expected less'),
    ({'objective': 'nothing'}, "objective 'nothing': expected one of"),
    ({'mesh.data': 99}, 'at most 8 devices'),
    ({'data.sha256': 'abc'}, 'this run was made for abc'),
    ({'data.hours': 5.}, '5 hours asked for'),
])
def test_bad_configs_get_one_clear_line(corpus, tmp_path, changes, text):
  config = tiny.config(corpus, **changes)
  with pytest.raises(ValueError, match=text):
    train.run(tmp_path, opened(tmp_path, config))
  assert not list((tmp_path / 'checkpoints').glob('*'))


@pytest.mark.filterwarnings('ignore')
def test_a_diverging_run_says_where_and_on_what(corpus, tmp_path):
  config = opened(tmp_path, tiny.config(corpus, **{'opt.lr': 1e30,
                                            'opt.warmup': 1}))
  with pytest.raises(train.Diverged, match='loss .* at step .*clips .*wav'):
    train.run(tmp_path, config)
  kept = checkpoint.load(tmp_path)[1]
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept))


@pytest.mark.filterwarnings('ignore')
def test_a_run_is_scored_once_and_again_only_if_the_protocol_moves(
    corpus, tmp_path, monkeypatch):
  synth.write_tasks(tmp_path, 0, clips_per_task=(24, 12, 12),
                    names=['texture', 'sound_events'], workers=1)
  config = opened(tmp_path / 'r', tiny.config(corpus, **{
      'train.steps': 0, 'eval.tasks': str(tmp_path / 'tasks'),
      'eval.protocol': 'logistic'}))
  train.run(tmp_path / 'r', config)
  assert evaluate.run(tmp_path / 'r', config)
  event, record = [r for r in records.read(tmp_path / 'r')
                   if r['kind'].startswith('hear.')]
  assert event['embedding_type'] == 'event' and 'segment_1s_er' in (
      event['result']['scores'])
  # The mean is over scenes alone, as in the paper.
  assert 0 <= record['result']['score'] <= 1
  with monkeypatch.context() as patch:
    patch.setattr(evaluate, 'score', None)
    assert evaluate.run(tmp_path / 'r', config)
  moved = records.frozen(tiny.config(corpus, **{
      'train.steps': 0, 'eval.tasks': str(tmp_path / 'tasks'),
      'eval.protocol': 'logistic', 'eval.seed': 1}))
  records.open_run(tmp_path / 'r', moved)
  assert evaluate.run(tmp_path / 'r', moved)
  row = records.collect(tmp_path).runs.iloc[0]
  assert row['untrained'] and row['score'] == record['result']['score']
  with pytest.raises(ValueError, match="no task 'none' .* texture"):
    evaluate.task_folders(records.frozen(tiny.config(corpus, **{
        'eval.tasks': str(tmp_path / 'tasks'), 'eval.task_names': ('none',)})))
