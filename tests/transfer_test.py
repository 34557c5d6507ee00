"""Other objectives through whole runs: resumed, spread, read, embedded."""

import functools
import json

import jax
import numpy as np
import pytest

from audiorank import checkpoint
from audiorank import embed
from audiorank import records
from audiorank import sharding
from audiorank import train
from audiorank import train_state
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True, scope='module')
def compiled(tmp_path_factory):
  yield from tiny.compiled_once(tmp_path_factory.mktemp('compiled'))


def opened(folder, corpus, objective, **changes):
  records.open_run(folder, tiny.config(corpus, **{
      'objective': objective, 'contrastive.hidden': 32,
      'contrastive.width': 16, **changes}))
  return records.load_config(folder)


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(tree))]


def test_a_stopped_run_goes_on_with_its_teacher(corpus, tmp_path):
  """Bit for bit; the teacher is saved, restored and not the student."""
  config = opened(tmp_path / 'a', corpus, 'latent')
  whole, _ = train.run(tmp_path / 'a', config)
  with pytest.raises(train.Preempted, match='saved at step 3'):
    train.run(tmp_path / 'b', opened(tmp_path / 'b', corpus, 'latent'),
              stop=lambda step: step == 3)
  again, _ = train.run(tmp_path / 'b', config)
  for a, b in zip(leaves(whole), leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
  teacher = again.batch_stats['teacher']
  for a, b in zip(leaves(teacher), leaves(again.params['encoder']),
                  strict=True):
    assert a.shape == b.shape and not np.array_equal(a, b)
  ours, theirs = ([(r['step'], r['valid_loss'], r['rank']['value'])
                   for r in records.read(tmp_path / n, 'monitor')]
                  for n in 'ab')
  assert ours == theirs and [r[0] for r in ours] == [0, 2, 6]
  assert np.isfinite(ours).all()
  rows = [json.loads(line) for line in
          (tmp_path / 'a/metrics.jsonl').read_text().splitlines()]
  assert all(0 < r['target_std'] < 2 for r in rows if 'loss' in r)
  # What an embedding reads is the student, whatever became of the teacher.
  found, params = checkpoint.load(tmp_path / 'a')
  wave_NS = np.random.default_rng(0).integers(-9000, 9000, (2, 8000), np.int16)
  z_ND = embed.scene(found, params, wave_NS)
  params['batch_stats']['teacher'] = jax.tree.map(
      np.zeros_like, params['batch_stats']['teacher'])
  np.testing.assert_array_equal(embed.scene(found, params, wave_NS), z_ND)
  about, = records.read(tmp_path / 'a', 'run')
  assert about['flops_per_clip']['teacher'] > 0
  assert sum(about['parameters'].values()) == sum(
      x.size for x in leaves(whole.params))


def three_steps(config, first, data, fsdp):
  on = sharding.mesh(data, fsdp)
  rng = np.random.default_rng(0)
  with jax.set_mesh(on):
    programs, losses = train_state.programs(config, on), []
    state = jax.device_put(first, programs.shardings)
    for _ in range(3):
      wave_BS = rng.integers(-9000, 9000, (8, 8000)).astype(np.int16)
      state, got = programs.step(
          state, sharding.to_global(wave_BS, on),
          train_state.make_hparams(config))
      losses.append(float(got['loss']))
  return state, programs.shardings, losses


def same(path, ours, theirs):
  """Compares two leaves, biases of keys apart.

  Attention does not depend on them: their gradient is rounding alone, which
  Adam scales up to whole steps.
  """
  if [key.key for key in path[-2:]] == ['qkv', 'bias']:
    D = ours.shape[-1] // 3
    ours, theirs = (np.delete(x, np.s_[D:2 * D], axis=-1)
                    for x in (ours, theirs))
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize('objective, data, fsdp', [
    ('contrastive', 8, 1), ('latent', 2, 4),
    pytest.param('contrastive', 2, 4, marks=pytest.mark.slow),
    pytest.param('latent', 8, 1, marks=pytest.mark.slow)])
def test_devices_do_not_change_the_run(
    corpus, tmp_path, objective, data, fsdp):
  config = opened(tmp_path, corpus, objective)
  first = jax.device_get(train_state.init_state(config, sharding.mesh(1, 1)))
  one, _, want = three_steps(config, first, 1, 1)
  many, placed, losses = three_steps(config, first, data, fsdp)
  np.testing.assert_allclose(losses, want, atol=1e-5)
  for part in ('params', 'batch_stats'):
    jax.tree.map_with_path(same, jax.device_get(getattr(many, part)),
                           jax.device_get(getattr(one, part)))
  if objective == 'latent':
    # The teacher lies where the encoder does.
    specs = jax.tree.map(lambda s: s.spec, placed)
    assert specs.batch_stats['teacher'] == specs.params['encoder']
    kernel = many.batch_stats['teacher']['blocks']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size * fsdp == kernel.size


def test_a_contrastive_run_is_read_and_has_no_decoder(corpus, tmp_path):
  config = opened(tmp_path / 'r', corpus, 'contrastive')
  state, _ = train.run(tmp_path / 'r', config)
  assert set(state.params) == {'encoder', 'hidden', 'out'}
  found = records.read(tmp_path / 'r', 'monitor')
  # Of 8 clips: no better than chance is log(15), and never below 0.
  assert all(0 < r['valid_loss'] < 2 * np.log(15) for r in found)
  assert all(r['rank']['value'] > 1 for r in found)
  row = records.collect(tmp_path).runs.iloc[0]
  assert row['objective'] == 'contrastive'
  assert row['params_decoder'] == 33 * 32 + 33 * 16
  assert row['flops_per_clip'] > row['flops_per_clip_encoder'] > 0


@pytest.mark.slow
def test_teachers_of_runs_in_one_program_are_their_own(corpus, tmp_path):
  folders = [tmp_path / name for name in ('a', 'b', 'alone')]
  configs = [opened(f, corpus, 'latent', seed=seed)
             for f, seed in zip(folders, (0, 1, 1))]
  assert not train.fit(folders[:2], configs[:2])
  train.run(folders[2], configs[2])
  mine, its, alone = (checkpoint.load(f)[1] for f in folders)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5),
               its, alone)
  kernel = lambda v: v['batch_stats']['teacher']['patch']['kernel']
  assert not np.allclose(kernel(mine), kernel(its))
