"""Readings of a state: when, what, and what they warn of."""

import warnings

import numpy as np
import pytest

from audiorank import monitor
from audiorank.rankme import record
from configs import base


def config(**fields):
  c = base.get_config('en32-2')
  for name, value in fields.items():
    part, field = name.split('_', 1)
    c[part][field] = value
  return c


def embeddings(n=512, width=32, mean=0., seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -.5
          + mean).astype(np.float32)


def test_readings_start_untrained_end_last_and_keep_their_ratio():
  c = config(train_steps=2000, monitor_first=50, monitor_readings=7,
             monitor_every=0)
  steps = monitor.steps(c)
  assert steps[:2] == [0, 50] and steps[-1] == 2000 and len(steps) == 7
  ratios = np.array(steps[2:]) / np.array(steps[1:-1])
  np.testing.assert_allclose(ratios, ratios[0], rtol=.02)
  c.monitor.every = 900
  assert {900, 1800} <= set(monitor.steps(c))
  c.monitor.update({'readings': 2, 'every': 0})
  assert monitor.steps(c) == [0, 2000]
  c.train.steps = 0
  assert monitor.steps(c) == [0]


def test_embeddings_that_are_one_vector_are_a_reading_with_an_alarm():
  z_ND = np.tile(embeddings(n=1), (200, 1))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    fields = record.rank_fields(z_ND, np.arange(200))
  assert fields['rank']['value'] == pytest.approx(1., abs=1e-3)
  assert fields['rank_center']['value'] is None
  assert any('collapse' in a for a in monitor.alarms(fields))


def reading(rank=20., centred=15., loss=1., n=1000):
  part = lambda v: {'value': v, 'low': v * .98, 'high': v * 1.02}
  return {'n': n, 'width': 32, 'rank': part(rank),
          'rank_center': part(centred), 'valid_loss': loss}


@pytest.mark.parametrize('before, now, word', [
    ([], reading(n=100), 'small sample'),
    ([], reading(rank=1.2), 'collapse'),
    ([reading(centred=c) for c in (15, 13, 11)], reading(centred=9), 'sinks'),
    ([reading(loss=.5)], reading(loss=.7), 'validation loss'),
    ([reading(), reading(rank=50)], reading(), 'between two readings')])
def test_alarms(before, now, word):
  (alarm,) = monitor.alarms(now, before)
  assert word in alarm


def test_the_valley_of_early_training_is_no_alarm():
  ranks = [25, 12, 11, 13, 16, 18]
  seen = [reading(rank=r, centred=r, loss=1. - i / 10)
          for i, r in enumerate(ranks)]
  assert not any(monitor.alarms(r, seen[:i]) for i, r in enumerate(seen))


def test_layers_are_numbers_of_blocks():
  assert monitor.layers(config(monitor_layers='0, 1')) == [0, 1]
  for bad in ('2', 'x', '-1'):
    with pytest.raises(ValueError, match='monitor.layers'):
      monitor.layers(config(monitor_layers=bad))
