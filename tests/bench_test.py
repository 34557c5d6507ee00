"""What the benches count without a clock."""

import json
import pathlib
import subprocess
import sys

import pytest

from audiorank import records
from audiorank import synth
from launch import bench
from launch.benches import card
from launch.benches import rankme_mesh
from launch.benches import steps
from launch.benches import sweep
from launch.benches import timing
from launch.benches import train


def test_a_mesh_receives_less_than_gathering_does():
  found = list(rankme_mesh.rows(quick=True, only='bytes'))
  (row,) = found
  # What the sums and the triangle of 128 columns need at the least, twice
  # seven eighths of it, and no more than the full square of it.
  triangle, square = 128 * 129 / 2, 128 ** 2
  least, most = (2 * 7 / 8 * 8 * (128 + n) for n in (triangle, square))
  assert least <= row.ours_value <= most
  assert row.rival_value >= 4_000 * 128 * 4 * 7 / 8


def test_turns_alternate_and_a_ratio_is_the_rivals_time_over_ours():
  calls, now = [], [0.]

  def costs(name, seconds):
    def run():
      calls.append(name)
      now[0] += seconds
    return run
  row = timing.turns('x', costs('a', 1.), costs('b', 3.), 4, lambda: now[0],
                     2., ('a', 'b'), '')
  assert row.ratio == row.low == row.high == pytest.approx(3.)
  assert ''.join(calls) == 'ab' + 'abba' * 2


def test_an_area_that_is_not_one_is_named():
  assert bench.chosen(['rankme']) == ['rankme', 'rankme_mesh']
  with pytest.raises(ValueError, match="area 'speed': expected all, "):
    bench.chosen(['speed'])


def test_the_launcher_ends_where_its_workers_do_nothing(corpus, tmp_path):
  synth.write_tasks(tmp_path, 0, clips_per_task=(12, 6, 6), names=['timbre'],
                    workers=1, progress=False)
  spent = sweep.launcher_seconds(tmp_path, 2, (
      f'--config.data.root={corpus}', f'--config.eval.tasks={tmp_path}/tasks',
      '--config.monitor.clips=16'))
  assert spent > 0
  # Two points and the untrained network of both.
  assert len(records.run_folders(tmp_path / 'root2')) == 3


def test_a_process_that_hangs_or_fails_takes_nothing_with_it():
  python = lambda code: [sys.executable, '-c', code]
  jobs = [timing.Job('good', python(
              'import json; print(1); print(json.dumps({"seconds": 2}))'), 20),
          timing.Job('bad', python('raise ValueError("no card")'), 20),
          timing.Job('hangs', python('import time; time.sleep(60)'), 1.5),
          timing.Job('late', python('print(1)'), 20)]
  results = {job.name: result for job, result in timing.children(
      jobs[:3], 2, 60)}
  assert results['good'] == {'seconds': 2}
  assert results['bad'] == {'error': 'exit code 1: ValueError: no card'}
  assert results['hangs'] == {'error': 'stopped after 2 s'}
  ((_, late),) = timing.children(jobs[3:], 1, 0)
  assert late == {'error': 'left out: no time'}


def test_rows_of_a_card_come_as_both_sides_are_known(monkeypatch):
  order = []

  def children(jobs, workers, seconds):
    for job in jobs:
      asked = json.loads(job.command[-1])
      order.append(job.name)
      case = steps.Case(**{**asked['case'], 'decoder': tuple(
          asked['case']['decoder'])})
      if asked['side'] == 'ours':
        yield job, {'seconds': .05, 'compiling': 20., 'memory': 4.,
                    'device': 'NVIDIA H100 80GB HBM3'}
      elif case.size == 'en768-12':
        yield job, {'error': 'stopped after 120 s'}
      else:
        yield job, {'seconds': .2}

  monkeypatch.setattr(timing, 'children', children)
  rows = list(train.card(train.GPU_CASES, 'B '))
  # The most important first, what takes long last.
  assert order[0].startswith('en128-12, decoder 512-8, B 256, bfloat16, ours')
  assert [name.endswith('compiled') for name in order[-2:]] == [True] * 2
  named = {(row.what, row.rival): row for row in rows}
  assert len(named) == len(rows)
  case = 'en128-12, decoder 512-8, B 256, bfloat16'
  assert named[f'clips per second, {case}',
               'official trainer, autocast'].ratio == pytest.approx(4.)
  # 42.0 GFLOP a clip: 256 clips in .05 s.
  share = named[f'MFU, {case}', ''].ours_value
  assert share == pytest.approx(100 * 256 / .05 * 41.98e9 / 989e12, rel=.01)
  packed = named['clips per second, en64-4, decoder 64-2, B 64, 64 packed, '
                 'bfloat16', 'official trainer, autocast']
  assert packed.ratio == pytest.approx(64 * 4)
  stopped = named['clips per second, en768-12, decoder 512-8, B 256, bfloat16',
                  'official trainer, autocast']
  assert stopped.ratio is None or stopped.ratio != stopped.ratio
  assert 'stopped after 120 s' in stopped.note
  for row in rows:
    assert all(isinstance(cell, str) for cell in bench.cells(row))


def test_packed_runs_say_what_waiting_and_readings_take(tmp_path, monkeypatch):
  """Two runs of 20 steps: rows of .5 s, with .05 s of waiting; readings 1 s."""
  for run in ('a', 'b'):
    (tmp_path / 'packed2' / run / 'records').mkdir(parents=True)
    rows = [{'step': step, 'loss': 1., 'clips_per_second': 320.,
             'waiting': .05} for step in (10, 20)]
    (tmp_path / 'packed2' / run / 'metrics.jsonl').write_text(
        '\n'.join(map(json.dumps, rows)))
    for step in (0, 20):
      (tmp_path / 'packed2' / run / f'records/monitor-{step:08}.json'
       ).write_text(json.dumps({'seconds': .25}))
  sweeps = object.__new__(card.Sweeps)  # Without sounds and processes.
  sweeps.folder, sweeps.shape = tmp_path, {'batch': 8, 'steps': 20}
  monkeypatch.setattr(card.Sweeps, 'start', lambda *_: None)
  monkeypatch.setattr(card.Sweeps, 'wait', lambda *_: '')
  row = card.packed(sweeps, 'two', 2)
  assert row.ours_value == 320
  assert 'waiting for input 10.0% of the steps' in row.note
  assert 'readings 50.0% of the time' in row.note


@pytest.mark.parametrize('name', ['card.sh', 'study.sh'])
def test_a_script_for_a_lent_card_is_a_script(name):
  root = pathlib.Path(bench.__file__).parents[1]
  done = subprocess.run(['bash', '-n', root / 'launch/benches' / name],
                        capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr
