"""Rates that transfer between widths: the rule, and what it is for."""

import functools
from typing import Any

from flax import linen as nn
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


def config(width=32, transfer=32, **changes):
  """Returns a frozen config of a tiny network of some width."""
  c = tiny.shape()
  c.model.update({'width': width, 'heads': width // 32, 'depth': 1})
  c.data.crop_seconds = .31
  c.train.update({'steps': 100, 'batch': 8})
  c.opt.update({'lr': 1e-3, 'warmup': 0, 'transfer': transfer})
  c.lock().update_from_flattened_dict(changes)
  return config_lib.frozen(c)


class Network(nn.Module):
  """An encoder, read out by one layer: less to compile than a decoder."""
  config: Any

  def setup(self):
    self.encoder = model.Encoder(self.config)
    self.project = nn.Dense(16, kernel_init=model.normal_02)

  def __call__(self, patches_BLP):
    """Returns {layer: its output}."""
    z_BLD, layers_NBLD = self.encoder(patches_BLP, layers=True)
    return {'block': layers_NBLD[-1], 'norm': z_BLD,
            'readout': self.project(z_BLD)}


def variables(config, key, L):
  """Returns the variables of a Network, as objectives.Parts has them."""
  return {'batch_stats': {}, **Network(config.model).init(
      key, jnp.zeros((1, L, 256)))}


def change(c, steps=5):
  """Returns {layer: RMS change of its output} by some steps from the start."""
  rng = np.random.default_rng(0)
  patches_BLP = rng.normal(size=(4, 8, 256)).astype(np.float32)
  hparams = train_state.make_hparams(c)

  def loss(params):
    outputs = Network(c.model).apply({'params': params}, patches_BLP)
    return jnp.square(outputs['readout'] - 1).mean(), outputs

  def step(carry, index):
    params, opt_state = carry
    grads, outputs = jax.grad(loss, has_aux=True)(params)
    updates, opt_state = train_state.optimizer(c, hparams, index).update(
        grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), outputs

  @jax.jit
  def run(key):
    first = train_state.init(c, key)
    # The outputs before each step; the last step shows those of the one before.
    _, outputs = jax.lax.scan(step, (first.params, first.opt_state),
                              jnp.arange(steps + 1))
    return jax.tree.map(
        lambda x: jnp.sqrt(jnp.square(x[-1] - x[0]).mean()), outputs)

  # The quickest generator to compile.
  return jax.device_get(run(jax.random.key(0, impl='rbg')))


def growth(transfer, widths):
  """Returns {layer: exponent of its change over the width}."""
  changes = [change(config(width, transfer, objective='network'))
             for width in widths]
  return {layer: np.polyfit(np.log(widths), np.log(
      [c[layer] for c in changes]), 1)[0] for layer in changes[0]}


def test_coordinate_check(monkeypatch):
  """How far a layer moves does not depend on the width; at one rate it does.

  Adam moves every weight by the rate. At one rate a layer's output, the sum
  over as many weights as the encoder is wide, moves by that width to the power
  1; less where the loss is soon reached, and not after the final norm.
  """
  monkeypatch.setitem(objectives.PARTS, 'network', objectives.Parts(variables))
  for layer, exponent in growth(32, WIDTHS).items():
    assert abs(exponent) < .1, layer
  at_one_rate = growth(0, WIDTHS[::3])
  assert at_one_rate['block'] > .3 and at_one_rate['readout'] > .6


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


def first_step(c, params):
  """Returns (updates, Adam's state) of a step with the gradient 2 anywhere."""
  hparams = train_state.make_hparams(c)

  @jax.jit
  def step(params):
    tx = train_state.optimizer(c, hparams, jnp.int32(50))
    grads = jax.tree.map(lambda x: jnp.full(x.shape, 2.), params)
    updates, opt_state = tx.update(grads, tx.init(params), params)
    return updates, train_state.adam_state(opt_state)

  return step(params)


def initial(c):
  """Returns the initial parameters of seed 0."""
  return jax.jit(lambda key: train_state.init(c, key).params)(
      jax.random.key(0))


def test_a_step_is_that_of_the_rule():
  """One step of Adam and decay, by hand: m is 4."""
  c = config(128, **{'opt.weight_decay': .5})
  updates, _ = first_step(c, jax.tree.map(
      lambda x: np.full(x.shape, 3., np.float32), shapes(c)))
  lr = float(train_state.learning_rate(50, train_state.make_hparams(c)))
  # Adam's first step is 1 in every coordinate. Every kind decays by lr / 2.
  for path, rate in ((('encoder', 'patch', 'kernel'), 1.),
                     (('encoder', 'blocks', 'fc1', 'kernel'), 1 / 4),
                     (('encoder', 'blocks', 'fc1', 'bias'), 1.),
                     (('decoder', 'project', 'kernel'), 1 / 4),
                     (('decoder', 'blocks', 'fc1', 'kernel'), 1.)):
    np.testing.assert_allclose(named(updates, *path), -lr * (rate + .5 * 3),
                               rtol=1e-5)


@pytest.mark.parametrize('objective, exponents', [
    ('mae', {('decoder', 'project'): -1., ('encoder', 'blocks', 'fc2'): -.5,
             ('encoder', 'patch'): 0., ('decoder', 'out'): 0.}),
    ('contrastive', {('hidden',): -1.})])
def test_initial_weights_follow_the_width(objective, exponents):
  narrow, wide = (initial(config(width, objective=objective))
                  for width in (32, 128))
  for path, exponent in exponents.items():
    std = [np.std(named(params, *path, 'kernel')) for params in (narrow, wide)]
    # 512 weights at least: their standard deviation errs by 3 %.
    assert np.log(std[1] / std[0]) / np.log(4) == pytest.approx(
        exponent, abs=.1), path


def test_at_its_own_width_nothing_changes():
  """To the bit, in the initial weights and in a step."""
  states = []
  for transfer in (0, 64):
    c = config(64, transfer)
    params = initial(c)
    states.append((params, *first_step(c, params)))
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
