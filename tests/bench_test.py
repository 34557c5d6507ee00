"""What the benches count without a clock."""

import pytest

from audiorank import records
from audiorank import synth
from launch import bench
from launch.benches import rankme_mesh
from launch.benches import sweep
from launch.benches import timing


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
