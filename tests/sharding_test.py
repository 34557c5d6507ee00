"""Every placement computes the same, and nothing is left unplaced."""

import functools
import itertools

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from audiorank import records
from audiorank import sharding
from audiorank import train_state
from configs import base

B, S = 8, 7520


@pytest.fixture(scope='module')
def config():
  c = base.get_config('en32-2')
  c.model.target_frames = 4 * 12
  c.model.decoder.update(width=16, depth=1, heads=2)
  c.data.crop_seconds = S / 16_000
  c.train.update(steps=10, batch=B)
  # Scaled by kind of parameter, which must hold on every mesh.
  c.opt.update(warmup=2, lr=1e-3, transfer=16)
  return records.frozen(c)


@pytest.fixture(scope='module')
def first(config):
  """A fresh state, on the host."""
  return jax.device_get(train_state.init_state(config, sharding.mesh(1, 1)))


def three_steps(config, first, data, fsdp):
  """Returns the state after three steps, its placement, and the losses."""
  on = sharding.mesh(data, fsdp)
  rng = np.random.default_rng(0)
  with jax.set_mesh(on):
    programs, losses = train_state.programs(config, on), []
    state = jax.device_put(first, programs.shardings)
    for _ in range(3):
      wave_BS = rng.integers(-9000, 9000, (B, S)).astype(np.int16)
      state, got = programs.step(
          state, sharding.to_global(wave_BS, on),
          train_state.make_hparams(config))
      losses.append(float(got['loss']))
  return state, programs.shardings, losses


@pytest.fixture(scope='module')
def one_device(config, first):
  return three_steps(config, first, 1, 1)


@pytest.mark.parametrize('data,fsdp', [
    (4, 2), (8, 1), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_every_mesh_trains_alike(config, first, one_device, data, fsdp):
  want, _, want_losses = one_device
  state, placed, losses = three_steps(config, first, data, fsdp)
  np.testing.assert_allclose(losses, want_losses, atol=1e-5)
  jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      jax.device_get(state.params), jax.device_get(want.params))
  assert int(state.step) == 3
  # Every leaf is where it was meant to be after the steps too.
  for (path, x), s in zip(jax.tree.leaves_with_path(state),
                          jax.tree.leaves(placed)):
    assert x.sharding.is_equivalent_to(s, x.ndim), path
    assert len(x.sharding.device_set) == data * fsdp, path
  for part in ('encoder', 'decoder'):
    for name in ('qkv', 'proj', 'fc1', 'fc2'):
      kernel = state.params[part]['blocks'][name]['kernel']
      shard = kernel.addressable_shards[0].data
      assert shard.size * fsdp == kernel.size


def test_a_mesh_starts_where_one_device_does(config, first):
  on = sharding.mesh(2, 4)
  with jax.set_mesh(on):
    state = train_state.init_state(config, on)
  # The random bits are the same; their scaling may be fused otherwise.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6),
               jax.device_get(state), first)


def test_moments_lie_where_their_parameters_do(config):
  shapes, placed, *_ = train_state.programs(config, sharding.mesh(4, 2))
  specs = jax.tree.map(lambda s: s.spec, placed)
  adam = train_state.adam_state(specs.opt_state)
  assert adam.mu == specs.params
  assert adam.nu == specs.params
  assert len(jax.tree.leaves(placed)) == len(jax.tree.leaves(shapes))
  blocks = specs.params['encoder']['blocks']
  assert blocks['fc1']['kernel'] == P(None, 'fsdp', None)
  assert blocks['fc2']['kernel'] == P(None, 'fsdp', None)
  assert blocks['fc1']['bias'] == specs.params['encoder']['time'] == P()


def test_what_does_not_divide_is_replicated():
  on = sharding.mesh(1, 8)
  tree = {'blocks': {'kernel': np.zeros((8, 12, 7)), 'scale': np.zeros(8)}}
  assert all(s.spec == P() for s in jax.tree.leaves(sharding.place(tree, on)))


@pytest.mark.parametrize('data,fsdp,size', [
    (-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, 2, (2, 2)), (1, 1, (1, 1))])
def test_meshes(data, fsdp, size):
  on = sharding.mesh(data, fsdp)
  assert tuple(on.shape.values()) == size
  rows = np.arange(16).reshape(8, 2)
  placed = sharding.to_global(rows, on)
  assert placed.addressable_shards[0].data.shape == (8 // on.size, 2)
  np.testing.assert_array_equal(placed, rows)


class Chip:
  """A device of a TPU torus, as far as a mesh looks at it."""
  platform, device_kind, process_index = 'tpu', 'TPU v4', 0
  slice_index, core_on_chip = 0, 0

  def __init__(self, number, coords):
    self.id, self.coords = number, coords


def test_a_torus_without_a_side_to_match_is_cut():
  """A mesh of 256 x 4 on 8x8x16: no sides of the torus make 4."""
  chips = [Chip(n, (x, y, z)) for n, (z, y, x) in enumerate(
      itertools.product(range(16), range(8), range(8)))]
  on = sharding.mesh(256, 4, chips)
  assert on.shape == {'data': 256, 'fsdp': 4}
  assert {d.id for d in on.devices.flat} == set(range(1024))
  # Those that share kernels are neighbours along one side.
  for row in on.devices:
    sides = [{d.coords[i] for d in row} for i in range(3)]
    assert sorted(len(s) for s in sides) == [1, 1, 4]



@pytest.mark.parametrize('data,fsdp', [(9, 1), (-1, 3), (0, 1), (4, 4), (1, 0)])
def test_meshes_that_cannot_be(data, fsdp):
  with pytest.raises(ValueError, match=f'x mesh.fsdp {fsdp}: expected a prod'):
    sharding.mesh(data, fsdp)


def test_batches_must_divide():
  on = sharding.mesh(4, 2)
  sharding.check_batch(16, on)
  for batch in (12, 0):
    with pytest.raises(ValueError, match=f'train.batch {batch} is not a multi'):
      sharding.check_batch(batch, on)
