"""What a sweep would cost, how far it is, and failed runs made new."""

import pytest

from audiorank import progress
from audiorank import records
from audiorank.records import lock as lock_lib
from configs import quickstart
from launch import overview
from launch import run_queue

STEPS = quickstart.get_config().train.steps

@pytest.fixture
def sweep(tmp_path):
  """Four runs: done, failed, running and interrupted."""
  running = None
  for point, state in zip(quickstart.points(), (
      'done', 'failed', 'running', 'interrupted')):
    workdir = tmp_path / state
    records.open_run(workdir, quickstart.get_config(point))
    if state in ('done', 'failed'):
      records.write_json(workdir / state.upper(), {'error': 'loss nan'})
    else:
      holder = lock_lib.Lock(workdir)
      holder.report('training', 7, STEPS, force=True)
      if state == 'running':
        running = holder
      else:
        # As a kill leaves it: the text stays, the lock is gone.
        holder._claim._file.close()
  yield tmp_path
  running.release()


def test_status_tells_states_apart(sweep):
  text = overview.status(sweep)
  for state, step in (('done', STEPS), ('failed', 0), ('running', 7),
                      ('interrupted', 7)):
    (line,) = [x for x in text.splitlines() if x.split()[0] == state]
    assert state in line.split()[1:] and f'{step}/{STEPS}' in line
  assert 'loss nan' in text
  assert text.splitlines()[-1] == '1 done, 1 failed, 1 interrupted, 1 running'


def test_status_of_a_failure_without_a_reason(sweep):
  for text in ('{}', '[]', '{"err'):
    (sweep / 'failed' / 'FAILED').write_text(text)
    assert 'says no reason' in overview.status(sweep)


def test_the_meter_shows_runs_steps_and_each_failure_once(sweep, capsys):
  meter = overview.Meter(sweep)
  board = run_queue.Board(sweep)
  meter.began -= 60
  meter.show(board)
  meter.printed -= 2 * overview.LINES
  (sweep / 'running' / 'TRAINED').touch()
  board.look()
  meter.show(board)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == f'failed: {sweep}/failed: loss nan'
  # Two runs have ended, one is trained, one is at step 7.
  steps = f'{3 * STEPS + 7:,}/{4 * STEPS:,}'
  assert lines[1].startswith(f'sweep: 1/4 runs done, 1 failed, {steps} steps, ')
  minutes, seconds = lines[1].split()[-2].split(':')
  # A quarter of the work took a minute; a quarter and a tenth is left.
  assert 45 < 60 * int(minutes) + int(seconds) < 100
  assert len(lines) == 2
  meter.close()


def test_retry_makes_failed_runs_new(sweep):
  assert overview.retry(sweep) == [sweep / 'failed']
  assert records.state(sweep / 'failed') == 'new'
  assert overview.retry(sweep) == []


def test_plan_counts_what_runs_will_count(sweep):
  points = {p: quickstart.get_config(p) for p in quickstart.points()[:2]}
  lines = overview.plan(points, 2).splitlines()
  assert '11,264' in lines[1] and '5.95e+10' in lines[1]
  assert lines[-1].startswith('2 points') and 'computed' not in lines[0]


def test_plan_leaves_out_what_a_longer_run_computes():
  points = {}
  for steps in (500, 1000):
    c = quickstart.get_config('en16-2,h=0.05,mask=0.75')
    c.train.steps, c.opt.schedule = steps, 'wsd'
    c.checkpoint.update({'save_every': 50, 'keep_every': 50})
    points[str(steps)] = c
  lines = overview.plan(points, 2).splitlines()
  # The shorter run begins at 450 of its steps.
  names = lines[0].replace('of the encoder', 'share').split()
  column = names.index('computed')
  assert [line.split()[column] for line in lines[1:3]] == ['50', '1000']
  assert '(70% of ' in lines[-1]


@pytest.mark.parametrize('seconds, text', [
    (123, '2:03'), (3723, '1:02:03'), (86400 * 12, '12 days'),
    (float('inf'), '?'), (float('nan'), '?')])
def test_clock(seconds, text):
  assert progress.clock(seconds) == text


def test_the_table_leaves_blank_what_a_run_lacks():
  import pandas as pd
  runs = pd.DataFrame([
      {'run_id': 'a', 'name': 'one', 'state': 'trained', 'rank': 3.25,
       'rank_low': 3., 'rank_high': 4., 'rank_center': None, 'score': None},
      {'run_id': 'b', 'name': 'two', 'state': 'failed', 'rank': None,
       'rank_low': None, 'rank_high': None, 'rank_center': None,
       'score': None}])
  first, second = overview.table(runs).splitlines()[1:]
  assert first.split() == ['a', 'one', '3.2', '[3.0,', '4.0]', *'–––',
                           'trained']
  assert second.split() == ['b', 'two', *'––––', 'failed']
