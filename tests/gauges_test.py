"""Rates, shares and warnings by a clock that the test turns."""

import types

import jax
import pytest

from audiorank import flops
from audiorank import gauges


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(at=100.)
  monkeypatch.setattr(gauges.time, 'monotonic', lambda: now.at)
  return now


def test_rates_leave_out_the_first_row_and_what_is_no_training(
    clock, monkeypatch):
  monkeypatch.setattr(flops, 'peak', lambda kind: 1e12)
  gauge = gauges.Gauge('a', 8, {'encoder': 1e9, 'total': 5e9}, 2, 10)
  clock.at += 60
  first = gauge.row(20)
  assert first['clips_per_second'] is None and first['mfu'] is None
  with gauge.aside():
    clock.at += 7
  with gauge.waiting():
    clock.at += .04
  clock.at += 1.96
  row = gauge.row(25)
  assert row['clips_per_second'] == pytest.approx(20)
  assert row['tflops'] == pytest.approx(.1)
  assert row['encoder_tflops'] == pytest.approx(.02)
  assert row['mfu'] == pytest.approx(.05)
  assert row['waiting'] == pytest.approx(.04)


def test_waiting_is_warned_of_once(clock, caplog):
  gauge = gauges.Gauge('a', 8, {'encoder': 1., 'total': 1.}, 1, 0)
  for step in range(1, 5):
    clock.at += 1.
    with gauge.waiting():
      clock.at += .04 if step < 3 else .2 if step < 4 else 1.5
    gauge.row(step)
  said = [r.getMessage() for r in caplog.records]
  assert said == ['a: waited for input 60 % of the time up to step 4; raise '
                  'data.threads, or keep the audio in memory by data.resident']


def test_chips_are_known_by_their_names():
  assert flops.peak('NVIDIA H100 80GB HBM3') == 989e12
  assert flops.peak('TPU v5 lite') == 197e12
  assert flops.peak('TPU v5') == 459e12
  assert flops.peak('cpu') is None


def test_memory_is_what_the_process_holds():
  held = gauges.memory()
  assert held['host'] > 50e6
  assert held['device'] is None or jax.default_backend() != 'cpu'
