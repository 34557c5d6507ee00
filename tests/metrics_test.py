"""Throughput by a clock that the test turns, and trackers, which stop no run.
"""

import importlib.util
import json
import logging
import types

import jax
import pytest

from audiorank import flops
from audiorank import metrics
from audiorank import records
from audiorank import train
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def clock(monkeypatch):
  now = types.SimpleNamespace(at=100.)
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: now.at)
  return now


def test_rates_leave_out_the_first_row_and_what_is_no_training(
    clock, monkeypatch):
  monkeypatch.setattr(flops, 'peak', lambda kind: 1e12)
  timer = metrics.Throughput('a', 8, {'encoder': 1e9, 'total': 5e9}, 2, 10)
  clock.at += 60
  first = timer.row(20)
  assert first['clips_per_second'] is None and first['mfu'] is None
  with timer.pause():
    clock.at += 7
  with timer.data_wait():
    clock.at += .04
  clock.at += 1.96
  row = timer.row(25)
  assert row['clips_per_second'] == pytest.approx(20)
  assert row['tflops'] == pytest.approx(.1)
  assert row['encoder_tflops'] == pytest.approx(.02)
  assert row['mfu'] == pytest.approx(.05)
  assert row['waiting'] == pytest.approx(.04)


def test_waiting_is_warned_of_once(clock, caplog):
  timer = metrics.Throughput('a', 8, {'encoder': 1., 'total': 1.}, 1, 0)
  for step in range(1, 5):
    clock.at += 1.
    with timer.data_wait():
      clock.at += .04 if step < 3 else .2 if step < 4 else 1.5
    timer.row(step)
  messages = [r.getMessage() for r in caplog.records]
  assert messages == [
      'a: waited for input 60 % of the time up to step 4; raise '
      'data.threads, or keep the audio in memory by data.in_memory']


def test_chips_are_known_by_their_names():
  assert flops.peak('NVIDIA H100 80GB HBM3') == 989e12
  assert flops.peak('TPU v5 lite') == 197e12
  assert flops.peak('TPU v5') == 459e12
  assert flops.peak('cpu') is None


def test_peak_memory_is_of_the_process():
  memory = metrics.peak_memory()
  assert memory['host'] > 50e6
  assert memory['device'] is None or jax.default_backend() != 'cpu'


def needs(name):
  return pytest.mark.skipif(importlib.util.find_spec(name) is None,
                            reason=f'{name} is not installed')


def opened(folder, corpus, *names):
  records.open_run(folder, tiny.config(corpus, trackers=names))
  return records.load_config(folder)


def broken(*_, **__):
  raise RuntimeError('the network is gone')


def test_a_tracker_that_fails_in_every_call_stops_nothing(
    corpus, tmp_path, monkeypatch, caplog):
  calls = []
  monkeypatch.setattr(metrics, 'TRACKERS', {
      'unborn': broken,
      'broken': lambda *_: metrics.Tracker(broken, broken, broken),
      'whole': lambda *_: metrics.Tracker(
          lambda step, row: calls.append((step, row)),
          lambda row: calls.append(row), lambda: calls.append('end'))})
  with caplog.at_level(logging.WARNING, 'absl'):
    train.run(tmp_path, opened(tmp_path, corpus, 'unborn', 'broken', 'whole'))
  rows = [json.loads(x) for x in
          (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [s for s, _ in calls[:-2]] == [r['step'] for r in rows]
  assert calls[0][1].keys() >= {'rank'} and calls[-1] == 'end'
  (loss,) = [r['loss'] for r in rows if r['step'] == 6 and 'loss' in r]
  assert calls[-2]['loss'] == loss and 'alarms' not in calls[0][1]
  warnings = [r.message for r in caplog.records
              if r.message.startswith('tracker')]
  assert len(warnings) == 2
  assert all('the network is gone' in text for text in warnings)


def test_a_tracker_that_goes_on_failing_is_dropped(
    tmp_path, monkeypatch, corpus):
  calls = []

  def log(step, row):
    calls.append(step)
    broken()

  monkeypatch.setattr(metrics, 'TRACKERS', {
      'odd': lambda *_: metrics.Tracker(log, broken, broken)})
  config = records.frozen(tiny.config(corpus, trackers=('odd',)))
  multi = metrics.MultiTracker(tmp_path, config, 0)
  for step in range(50):
    multi.log(step, {'loss': 1.})
  assert len(calls) == metrics.FAILURES


def test_an_unknown_tracker_is_refused_by_name(corpus, tmp_path):
  with pytest.raises(ValueError, match="trackers 'wnadb': expected some of"):
    train.run(tmp_path, opened(tmp_path, corpus, 'wnadb'))


def test_trackers_are_no_part_of_a_run_s_identity(corpus):
  assert records.run_id(tiny.config(corpus, trackers=('wandb',))) == (
      records.run_id(tiny.config(corpus)))


def test_only_finite_numbers_are_tracked():
  assert metrics.finite_numbers({'a': 1, 'b': float('nan'), 'c': None, 'd': 'x',
                           'e': []}) == {'a': 1.}


@needs('tensorboardX')
def test_tensorboard_gets_the_curve(corpus, tmp_path):
  train.run(tmp_path, opened(tmp_path, corpus, 'tensorboard'))
  (file,) = (tmp_path / 'tensorboard').glob('events.*')
  data = file.read_bytes()
  assert b'loss' in data and b'summary/rank' in data


@needs('wandb')
def test_wandb_offline_gets_the_curve(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  config = opened(tmp_path, corpus, 'wandb')
  train.run(tmp_path, config)
  (file,) = (tmp_path / 'wandb').glob('offline-run-*/*.wandb')
  data = file.read_bytes()
  assert records.run_id(config).encode() in data and b'grad_norm' in data


@needs('trackio')
def test_trackio_gets_the_curve(corpus, tmp_path, monkeypatch):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
  config = opened(tmp_path, corpus, 'trackio')
  train.run(tmp_path, config)
  files = list((tmp_path / 'trackio').rglob('*.db'))
  assert any(records.run_id(config).encode() in p.read_bytes() for p in files)
