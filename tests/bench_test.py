"""What the benches count without a clock."""

import pytest

from launch import bench
from launch.benches import rankme_mesh
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
