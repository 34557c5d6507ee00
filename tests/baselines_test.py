"""The untrained baseline of a run, and which runs are the same training."""

import functools
import json

import jax
import numpy as np
import pytest

from audiorank import baselines
from audiorank import records
from audiorank import train_state
from configs import base
from tests import tiny

# What does not change a network before its first step.
RESET = {'objective': 'latent', 'model.decoder.width': 64,
         'model.decoder.heads': 4, 'mask.ratio': .5, 'mask.group_size': 1,
         'data.seed': 3, 'data.hours': 2., 'data.category': ('speech',),
         'data.crop_seconds': .64, 'train.steps': 50, 'train.batch': 4,
         'opt.lr': 1., 'opt.warmup': 1, 'monitor.num_evals': 5,
         'monitor.valid_clips': 0, 'contrastive.width': 8}
# What does.
OWN = {'seed': 1, 'model.width': 64, 'model.depth': 3, 'model.heads': 2,
       'model.mlp_ratio': 2, 'train.init_scale': 2.,
       'train.calibrate_batch_norm': False,
       'monitor.clips': 40, 'monitor.seed': 1, 'data.sha256': 'x',
       'data.valid_fraction': .3, 'data.subset_seed': 1}


def changed(field, value):
  """Returns the tiny config with one field changed."""
  config = tiny.config('corpus')
  config.update_from_flattened_dict({field: value})
  return config


@pytest.mark.parametrize('field', RESET)
def test_what_only_training_reads_leaves_the_baseline_as_it_is(field):
  assert baselines.untrained_id(changed(field, RESET[field])) == (
      baselines.untrained_id(tiny.config('corpus')))


@pytest.mark.parametrize('field', OWN)
def test_what_changes_an_untrained_network_changes_its_baseline(field):
  assert baselines.untrained_id(changed(field, OWN[field])) != (
      baselines.untrained_id(tiny.config('corpus')))


@functools.cache
def encoder(config):
  """Returns the initial encoder's arrays, of a frozen config."""
  state = jax.jit(functools.partial(train_state.init, config))(
      jax.random.key(config.seed))
  return jax.tree.leaves((state.params['encoder'],
                          state.batch_stats['encoder']))


@pytest.mark.parametrize('changes', [
    {'objective': 'latent', 'model.decoder.width': 32,
     'data.crop_seconds': .64, 'mask.ratio': .5},
    {'objective': 'contrastive', 'contrastive.width': 8}])
def test_the_baseline_is_the_runs_own_encoder_before_training(changes):
  """To the bit: the claim on which one baseline serves several runs."""
  config = tiny.config('corpus', **changes)
  ours = encoder(records.frozen(config))
  theirs = encoder(baselines.untrained(config))
  assert len(ours) == len(theirs) > 10
  for x, y in zip(ours, theirs):
    np.testing.assert_array_equal(x, y)


def test_the_baseline_of_a_baseline_is_itself():
  config = tiny.config('corpus')
  once = baselines.untrained(config)
  assert records.run_id(baselines.untrained(once)) == records.run_id(once)
  assert once.train.steps == 0 and once.eval == records.frozen(config).eval


def test_another_objective_keeps_what_it_may_initialise_with():
  own = changed('objective', 'my_own')
  other = changed('objective', 'my_own')
  other.model.decoder.width = 64
  assert baselines.untrained(own).objective == 'my_own'
  assert baselines.untrained_id(own) != baselines.untrained_id(other)


def test_keys_tell_trainings_from_measurements_and_seeds():
  keys = baselines.columns(tiny.config('corpus'))
  for field, value in {'monitor.num_evals': 5, 'monitor.layers': (0,),
                       'monitor.valid_clips': 0, 'eval.protocol': 'hear',
                       'latent.decay': .5}.items():
    assert baselines.columns(changed(field, value))['training_key'] == (
        keys['training_key']), field
  for field in ('seed', 'data.seed'):
    other = baselines.columns(changed(field, 5))
    assert other['training_key'] != keys['training_key']
    assert other['config_key'] == keys['config_key']
  for field, value in {'model.decoder.heads': 4, 'mask.ratio': .5,
                       'opt.b2': .9, 'monitor.clips': 40}.items():
    assert baselines.columns(changed(field, value))['config_key'] != (
        keys['config_key']), field
  assert json.loads(keys['config'])['model']['decoder']['heads'] == 2


def test_paper_scale_needs_no_other_baseline_for_another_decoder():
  a, b = base.get_config('en128-12'), base.get_config('en128-12')
  b.model.decoder.update({'width': 128, 'depth': 2, 'heads': 4})
  assert baselines.untrained_id(a) == baselines.untrained_id(b)
