"""The parity table holds, and says so where it does not."""

import numpy as np
import pytest

from audiorank.dasheng import parity


def test_every_row_of_the_reference_holds(shared):
  rows = parity.of_fixture(shared / 'fixtures' / 'dasheng' / 'parity_tiny.npz')
  assert len(rows) > 30
  assert not [name for name, *_, holds in rows if not holds]


def test_a_row_that_is_off_is_marked():
  good = parity.row('a', [1, 2], [1, 2.0001], '1e-3')
  bad = parity.row('b', [1, 2], [1, 2.01], 'relative 1e-3')
  assert good[3] and not bad[3] and bad[1] == pytest.approx(.01 / 2.01)
  lines = parity.show([good, bad]).splitlines()
  assert 'off' not in lines[2] and lines[3].endswith('**off**')
  assert not parity.row('c', [np.nan], [1.], '1e-3')[3]
  with pytest.raises(ValueError, match=r'd: shape \(1,\), the official one'):
    parity.row('d', [1], [1, 2], '0')
