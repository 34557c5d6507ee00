"""The rank part of a record: its fields are those of the functions it calls."""

import json

import jax
import numpy as np
import pytest

from audiorank import rankme
from audiorank.rankme import record


def embeddings(n=512, width=32, mean=0., seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -.5
          + mean).astype(np.float32)


def test_a_reading_is_what_its_parts_are():
  z_ND, groups = embeddings(mean=.3), np.arange(512) // 8
  fields = record.rank_fields(z_ND, groups)
  for name, center in (('rank', False), ('rank_center', True)):
    alone = rankme.estimate(z_ND, groups=groups, center=center)
    for part, value in alone._asdict().items():
      assert fields[name][part] == value, part
    s_K = rankme.singular_values(z_ND, center=center)
    assert fields[name]['siblings'] == pytest.approx(
        rankme.metrics(s_K, 512), rel=1e-9)
  assert fields['directions'] == rankme.directions(z_ND)


def test_the_curve_climbs_to_the_whole_sample():
  z_ND = embeddings(n=1024)
  state = rankme.state_of(z_ND, np.arange(1024))
  curve = rankme.curve(state)
  n, values = zip(*curve)
  assert n == (128, 256, 512, 1024)
  assert list(values) == sorted(values)
  assert values[-1] == pytest.approx(rankme.rankme(z_ND), rel=1e-12)


def test_more_clips_than_the_jackknife_needs_stay_off_the_default_device():
  # Everything of a reading is host float64: no device computation is left
  # for a training step to wait for.
  with jax.transfer_guard('disallow'):
    record.rank_fields(embeddings(), np.arange(512))


@pytest.mark.parametrize('n', [2, 3, 9])
def test_a_record_of_few_clips_is_json(n):
  fields = record.rank_fields(embeddings(n), np.arange(n))
  for name in ('rank', 'rank_center'):
    got = fields[name]
    # Of two centred singular values, one of them 0, alpha-ReQ is NaN: null.
    del got['siblings']['alpha_req']
    json.dumps(got, allow_nan=False)
    assert got['low'] <= got['value'] <= got['high'] <= n + 1e-3
    assert got['value_inf'] is None and got['high_inf'] > 32
