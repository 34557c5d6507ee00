"""Trackers beside metrics.jsonl: what they get, and that none stops a run."""

import importlib.util
import json
import logging

import pytest

from audiorank import records
from audiorank import trackers
from audiorank import train
from tests import tiny

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True, scope='module')
def compiled(tmp_path_factory):
  yield from tiny.compiled_once(tmp_path_factory.mktemp('compiled'))


def needs(name):
  return pytest.mark.skipif(importlib.util.find_spec(name) is None,
                            reason=f'{name} is not installed')


def opened(folder, corpus, track):
  records.open_run(folder, tiny.config(corpus, track=track))
  return records.load_config(folder)


def broken(*_, **__):
  raise RuntimeError('the network is gone')


def test_one_that_fails_in_every_call_stops_nothing(
    corpus, tmp_path, monkeypatch, caplog):
  told = []
  monkeypatch.setattr(trackers, 'KINDS', {
      'unborn': broken,
      'broken': lambda *_: trackers.Tracker(broken, broken, broken),
      'whole': lambda *_: trackers.Tracker(
          lambda step, row: told.append((step, row)),
          lambda row: told.append(row), lambda: told.append('end'))})
  with caplog.at_level(logging.WARNING, 'absl'):
    train.run(tmp_path, opened(tmp_path, corpus, 'unborn,broken,whole'))
  rows = [json.loads(x) for x in
          (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [s for s, _ in told[:-2]] == [r['step'] for r in rows]
  assert told[0][1].keys() >= {'rank'} and told[-1] == 'end'
  (loss,) = [r['loss'] for r in rows if r['step'] == 6 and 'loss' in r]
  assert told[-2]['loss'] == loss and 'alarms' not in told[0][1]
  said = [r.message for r in caplog.records if 'tracker' in r.message]
  assert len(said) == 2 and all('the network is gone' in s for s in said)


def test_one_that_goes_on_failing_is_left_alone(tmp_path, monkeypatch, corpus):
  calls = []

  def log(step, row):
    calls.append(step)
    broken()

  monkeypatch.setattr(trackers, 'KINDS', {
      'odd': lambda *_: trackers.Tracker(log, broken, broken)})
  config = records.frozen(tiny.config(corpus, track='odd'))
  several = trackers.Several(tmp_path, config, 0)
  for step in range(50):
    several.log(step, {'loss': 1.})
  assert len(calls) == trackers.FAILURES


def test_an_unknown_one_is_refused_by_name(corpus, tmp_path):
  with pytest.raises(ValueError, match="track 'wnadb': expected some of"):
    train.run(tmp_path, opened(tmp_path, corpus, 'wnadb'))


def test_they_are_no_part_of_a_run_s_identity(corpus):
  assert records.run_id(tiny.config(corpus, track='wandb')) == (
      records.run_id(tiny.config(corpus)))


def test_what_is_no_finite_number_is_kept_back():
  assert trackers.numbers({'a': 1, 'b': float('nan'), 'c': None, 'd': 'x',
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
