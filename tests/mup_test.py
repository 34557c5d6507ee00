"""Rates that transfer between widths: the rule, and what it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiorank import config as config_lib
from audiorank import model
from audiorank import mup
from audiorank import objectives
from audiorank import train_state
from audiorank import validate
from tests import tiny

WIDTHS = (32, 64, 128, 256)
STEPS = 5


def config(width=32, transfer=32, **changes):
  """Returns a frozen config of a tiny network of some width."""
  c = tiny.shape()
  c.model.update({'width': width, 'heads': width // 32, 'depth': 1})
  c.data.crop_seconds = .31
  c.train.update({'steps': 100, 'batch': 8})
  c.opt.update({'lr': 3e-3, 'warmup': 0, 'transfer': transfer})
  c.lock().update_from_flattened_dict(changes)
  return config_lib.frozen(c)


def rms(x):
  return jnp.sqrt(jnp.square(x).mean())


def activations(c, params, stats, mel_BMT):
  """Returns {layer: its output} of all patches."""
  z_BLD, layers_NBLD = model.encode(
      c.model, {'params': params, 'batch_stats': stats}, mel_BMT, layers=True)
  project = params['decoder']['project']
  return {'block': layers_NBLD[-1], 'norm': z_BLD,
          'project': jnp.dot(z_BLD, project['kernel'],
                             precision=jax.lax.Precision.HIGHEST)}


def change(c):
  """Returns {layer: RMS change of its output} by STEPS steps from the start."""
  rng = np.random.default_rng(0)
  wave_BS = rng.integers(-9000, 9000, (8, 4960)).astype(np.int16)
  step, hparams = train_state.train_step(c), train_state.make_hparams(c)

  @jax.jit
  def both(key, wave_BS):
    first = train_state.scaled_init(c, key, 1.)
    last, _ = jax.lax.scan(
        lambda state, _: (step(state, wave_BS, hparams)[0], None), first,
        length=STEPS)
    mel_BMT = objectives.audio.log_mel(wave_BS / 2. ** 15)
    before, after = (activations(c, state.params, first.batch_stats, mel_BMT)
                     for state in (first, last))
    return jax.tree.map(lambda a, b: rms(b - a), before, after)

  return jax.device_get(both(jax.random.key(0), wave_BS))


def growth(transfer, widths):
  """Returns {layer: exponent of its change over the width}."""
  changes = [change(config(width, transfer)) for width in widths]
  return {layer: np.polyfit(np.log(widths), np.log(
      [c[layer] for c in changes]), 1)[0] for layer in changes[0]}


def test_coordinate_check():
  """No layer's change depends on the width; with one rate, every layer's does.

  At the rates of muP the exponents are near 0 at any number of steps; without
  them the theory has 1 for a change in one layer, from Adam steps of one size
  in as many coordinates as the layer has inputs, less where a norm follows.
  """
  for layer, exponent in growth(32, WIDTHS).items():
    assert abs(exponent) < .15, layer
  for layer, exponent in growth(0, WIDTHS[::3]).items():
    assert exponent > .3, layer


def shapes(c):
  return jax.eval_shape(lambda key: train_state.init(c, key),
                        jax.random.key(0)).params


def named(tree, *names):
  """Returns a leaf by the names on its path."""
  return functools.reduce(lambda node, name: node[name], names, tree)


@pytest.mark.parametrize('objective, kinds', [
    ('mae', {
        'hidden': [('encoder', 'blocks', name, 'kernel')
                   for name in ('qkv', 'proj', 'fc1', 'fc2')],
        'input': [('encoder', 'patch', 'kernel')],
        'readout': [('decoder', 'project', 'kernel')],
        'fixed': [('decoder', 'blocks', 'qkv', 'kernel'),
                  ('decoder', 'out', 'kernel')],
        'vector': [('encoder', 'time'), ('encoder', 'freq'),
                   ('encoder', 'norm', 'scale'), ('decoder', 'mask_token'),
                   ('encoder', 'blocks', 'qkv', 'bias')]}),
    ('contrastive', {'readout': [('hidden', 'kernel')],
                     'fixed': [('out', 'kernel')]}),
    ('latent', {'input': [('decoder', 'out', 'kernel')],
                'readout': [('decoder', 'project', 'kernel')]})])
def test_kinds_are_read_off_the_shapes(objective, kinds):
  c = config(64, objective=objective)
  tree = mup.kinds(c, shapes(c))
  for kind, paths in kinds.items():
    for path in paths:
      assert named(tree, *path) == kind, path


def test_a_step_is_that_of_the_rule():
  """One step of Adam and decay, by hand: m is 4, and gradients are equal."""
  c = config(128, **{'opt.weight_decay': .5})
  params = jax.tree.map(lambda x: np.full(x.shape, 2., np.float32), shapes(c))
  tx = train_state.optimizer(c, train_state.make_hparams(c), jnp.int32(50))
  updates, _ = tx.update(params, tx.init(params), params)
  lr = float(train_state.learning_rate(50, train_state.make_hparams(c)))
  # Adam's first step is 1 in every coordinate. Every kind decays by lr / 2.
  for path, rate in ((('encoder', 'patch', 'kernel'), 1.),
                     (('encoder', 'blocks', 'fc1', 'kernel'), 1 / 4),
                     (('encoder', 'blocks', 'fc1', 'bias'), 1.),
                     (('decoder', 'project', 'kernel'), 1 / 4),
                     (('decoder', 'blocks', 'fc1', 'kernel'), 1.)):
    np.testing.assert_allclose(named(updates, *path), -lr * (rate + .5 * 2),
                               rtol=1e-5)


@pytest.mark.parametrize('objective, path, exponent', [
    ('mae', ('decoder', 'project'), -1.),
    ('mae', ('encoder', 'blocks', 'fc2'), -.5),
    ('mae', ('encoder', 'patch'), 0.), ('mae', ('decoder', 'out'), 0.),
    ('contrastive', ('hidden',), -1.)])
def test_initial_weights_follow_the_width(objective, path, exponent):
  std = [np.std(named(train_state.init(
      config(width, objective=objective), jax.random.key(0)).params,
                      *path, 'kernel')) for width in (32, 128)]
  # 512 weights at least: their standard deviation errs by 3 %.
  assert np.log(std[1] / std[0]) / np.log(4) == pytest.approx(exponent, abs=.1)


def test_at_its_own_width_nothing_changes():
  """To the bit, in the initial weights and in a step."""
  states = []
  for transfer in (0, 64):
    c = config(64, transfer)
    first = train_state.init(c, jax.random.key(0))
    tx = train_state.optimizer(c, train_state.make_hparams(c), jnp.int32(5))
    updates, opt_state = tx.update(first.params, first.opt_state, first.params)
    states.append((first.params, optax.apply_updates(first.params, updates),
                   train_state.adam_state(opt_state)))
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_field_is_checked_and_leaves_run_ids_alone():
  c = tiny.shape()
  tree = config_lib.plain(c)
  del tree['opt']['transfer']
  assert config_lib.run_id(c) == config_lib.run_id(tree)
  c.opt.transfer = 32
  assert config_lib.run_id(c) != config_lib.run_id(tree)
  for value in (-1, 1.5, True):
    with c.ignore_type():
      c.opt.transfer = value
    with pytest.raises(ValueError, match='opt.transfer .* expected a whole '
                       'number of at least 0'):
      validate.values(c)
