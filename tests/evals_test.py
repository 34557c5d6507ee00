"""Evaluations of a state: when they are made, and their alarms."""

import warnings

import numpy as np
import pytest

from audiorank import evals
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


def test_evaluations_start_untrained_end_last_and_keep_their_ratio():
  c = config(train_steps=2000, monitor_first_eval=50, monitor_num_evals=7,
             monitor_eval_every=0)
  steps = evals.eval_steps(c)
  assert steps[:2] == [0, 50] and steps[-1] == 2000 and len(steps) == 7
  ratios = np.array(steps[2:]) / np.array(steps[1:-1])
  np.testing.assert_allclose(ratios, ratios[0], rtol=.02)
  c.monitor.eval_every = 900
  assert {900, 1800} <= set(evals.eval_steps(c))
  c.monitor.update({'num_evals': 2, 'eval_every': 0})
  assert evals.eval_steps(c) == [0, 2000]
  c.train.steps = 0
  assert evals.eval_steps(c) == [0]


def test_embeddings_that_are_one_vector_raise_an_alarm():
  z_ND = np.tile(embeddings(n=1), (200, 1))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    fields = record.rank_fields(z_ND, np.arange(200))
  assert fields['rank']['value'] == pytest.approx(1., abs=1e-3)
  assert fields['rank_center']['value'] is None
  assert [a['kind'] for a in evals.alarms(fields, 7)] == ['collapse']
  apart = {**fields, 'rank': {**fields['rank'], 'value': 1.6}}
  assert evals.alarms(apart, 7) == [
      {'kind': 'collapse_centred', 'value': None, 'threshold': None,
       'step': 7}]


def evaluation(rank=20., centred=15., loss=1., n=1000):
  part = lambda v: {'value': v, 'low': v * .98, 'high': v * 1.02}
  return {'n': n, 'width': 32, 'rank': part(rank),
          'rank_center': part(centred), 'valid_loss': loss}


@pytest.mark.parametrize('before, now, kind, value, threshold', [
    ([], evaluation(n=100), 'small_sample', 100, 128),
    ([], evaluation(rank=1.2), 'collapse', 1.2, 1.5),
    ([evaluation(centred=c) for c in (15, 13, 11)], evaluation(centred=9),
     'sinking_centred_rank', 9, 15),
    ([evaluation(loss=.5)], evaluation(loss=.7), 'valid_loss_rise', .7, .5),
    ([], evaluation(loss=float('nan')), 'valid_loss_not_finite', None, None),
    ([evaluation(), evaluation(rank=50)], evaluation(), 'rank_jump', 20, 50)])
def test_alarms_are_numbers(before, now, kind, value, threshold):
  alarm, = evals.alarms(now, 40, before)
  assert alarm == {'kind': kind, 'value': value, 'threshold': threshold,
                   'step': 40}


def test_an_alarm_is_logged_when_it_is_raised_first(caplog):
  alarm = {'kind': 'collapse', 'value': 1.2, 'threshold': 1.5, 'step': 4}
  # Older records hold sentences.
  for before in ([], [{'alarms': []}], [{'alarms': ['collapse: RankMe 1']}]):
    caplog.clear()
    evals.log_new_alarms('a', [alarm], before)
    assert [r.getMessage() for r in caplog.records] == [
        'a, step 4: alarm collapse: value 1.2, threshold 1.5']
  caplog.clear()
  evals.log_new_alarms('a', [alarm], [{'alarms': [alarm]}])
  assert not caplog.records


def test_the_valley_of_early_training_is_no_alarm():
  ranks = [25, 12, 11, 13, 16, 18]
  all_ = [evaluation(rank=r, centred=r, loss=1. - i / 10)
          for i, r in enumerate(ranks)]
  assert not any(evals.alarms(r, i, all_[:i]) for i, r in enumerate(all_))


def test_layers_are_numbers_of_blocks():
  assert evals.layers(config(monitor_layers=(0, 1))) == [0, 1]
  assert evals.layers(config(monitor_layers=('all',))) == [0, 1]
  assert evals.layers(config(monitor_layers=('final',))) == []
  for bad in ((2,), ('x',), (-1,), ('all', 0), ('final', 0)):
    with pytest.raises(ValueError, match='monitor.layers'):
      evals.layers(config(monitor_layers=bad))
