"""What a sweep would cost, how far it is, and failed runs made new."""

import pytest

from audiorank import lease
from audiorank import progress
from audiorank import records
from configs import quickstart
from launch import overview


@pytest.fixture
def sweep(tmp_path):
  """Four runs: done, failed, running and interrupted."""
  held = None
  for point, state in zip(quickstart.points(), (
      'done', 'failed', 'running', 'interrupted')):
    workdir = tmp_path / state
    records.open_run(workdir, quickstart.get_config(point))
    if state in ('done', 'failed'):
      records.write_json(workdir / state.upper(), {'error': 'loss nan'})
    else:
      mine = lease.Lease(workdir)
      mine.tell('training', 7, 2000, force=True)
      if state == 'running':
        held = mine
      else:
        # As a kill leaves it: the text stays, the lock is gone.
        mine.file.close()
  yield tmp_path
  held.release()


def test_status_tells_states_apart(sweep):
  text = overview.status(sweep)
  for state, steps in (('done', '2000/2000'), ('failed', '0/2000'),
                       ('running', '7/2000'), ('interrupted', '7/2000')):
    (line,) = [x for x in text.splitlines() if x.split()[0] == state]
    assert state in line.split()[1:] and steps in line
  assert 'loss nan' in text
  assert text.splitlines()[-1] == '1 done, 1 failed, 1 interrupted, 1 running'


def test_status_of_a_failure_without_a_reason(sweep):
  for text in ('{}', '[]', '{"err'):
    (sweep / 'failed' / 'FAILED').write_text(text)
    assert 'says no reason' in overview.status(sweep)


def test_retry_makes_failed_runs_new(sweep):
  assert overview.retry(sweep) == [sweep / 'failed']
  assert records.state(sweep / 'failed') == 'new'
  assert overview.retry(sweep) == []


def test_plan_counts_what_runs_will_count(sweep):
  points = {p: quickstart.get_config(p) for p in quickstart.points()[:2]}
  lines = overview.plan(points, 2).splitlines()
  assert '11,264' in lines[1] and '1.19e+11' in lines[1]
  assert lines[-1].startswith('2 points')


@pytest.mark.parametrize('seconds, text', [
    (123, '2:03'), (3723, '1:02:03'), (86400 * 12, '12 days'),
    (float('inf'), '?'), (float('nan'), '?')])
def test_clock(seconds, text):
  assert progress.clock(seconds) == text
