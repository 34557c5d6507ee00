"""The checklist of a fit says what was done, and what nobody said."""

import pathlib
import re

import numpy as np
import pytest

from audiorank import laws
from audiorank.laws import checklist


def _data(n=20, seed=0):
  rng = np.random.default_rng(seed)
  rank = np.geomspace(20, 400, n)
  return {'rank': rank, 'score': .9 - 4 * rank ** -.8 +
          .01 * rng.normal(size=n)}


def _items(filled):
  return dict(zip(filled['item'], filled['answer']))


def test_says_how_it_was_fitted():
  fit = laws.fit('saturating', _data(), groups=np.arange(20) // 2)
  filled = checklist.fill(fit)
  assert tuple(dict.fromkeys(filled['head'])) == checklist.HEADS
  items = _items(filled)
  assert items['points'] == '20, 10 of them independent'
  assert items['range of rank'] == '20 to 400 (1.30 decades, 20 values)'
  assert items['seeds per configuration'] == '2 to 2 rows a group'
  assert 'closed form' in items['optimiser']
  assert items['metric'] == checklist.UNSTATED
  e_N = laws.leave_one_out(fit)
  assert f'{np.sqrt(np.mean(e_N ** 2)):.3g}' in items['left out in turn']


def test_robust_fit_says_delta_and_starts():
  data = _data()
  weights = np.where(np.arange(20) > 16, 0., 1.)
  fit = laws.fit('saturating', data, 'huber', weights=weights)
  items = _items(checklist.fill(fit))
  assert 'delta 0.001' in items['loss'] and 'residual sd' in items['loss']
  assert 'Newton' in items['optimiser']
  assert re.match(r'16, \d+% of them end in the optimum', items['starts'])
  assert items['points left out'] == '3 of 20 (weight 0)'
  assert items['points'].startswith('17,')


def test_held_out_is_the_largest_rows_without_them():
  data = _data()
  fit = laws.fit('saturating', data)
  out = laws.largest(data, 'rank')
  error = laws.held_out('saturating', data, out)
  text = _items(checklist.fill(fit))['largest held out']
  assert f'{error:.3g} on {out.sum()} points' in text
  few = laws.fit('saturating', _data(4))
  assert 'not possible' in _items(checklist.fill(few))['largest held out']


def test_owner_answers():
  fit = laws.fit('saturating', _data())
  items = _items(checklist.fill(fit, {'metric': 'accuracy'}))
  assert items['metric'] == 'accuracy'
  with pytest.raises(ValueError, match="no item 'metrics': one of law"):
    checklist.fill(fit, {'metrics': 'accuracy'})
  text = checklist.words(checklist.fill(fit))
  assert 'fit\n  loss ' in text and len(text.splitlines()) == 28


def test_examples_of_the_readme_run():
  """Every Python block of the folder's README, on made-up data."""
  path = pathlib.Path(laws.__file__).parent / 'README.md'
  blocks = re.findall(r'```python\n(.*?)```', path.read_text(), re.S)
  assert len(blocks) >= 2
  rng = np.random.default_rng(0)
  rank = np.geomspace(20, 600, 30)
  runs = {'rank': rank, 'score': .9 - 4 * rank ** -.8 +
          .01 * rng.normal(size=30), 'flops': rank ** 2,
          'params': 1e4 * rank * np.exp(.1 * rng.normal(size=30)),
          'width': np.repeat([64., 128., 256.], 10), 'name': np.arange(30),
          'valid_loss': rank ** -.2, 'rank_50k': rank * np.exp(
              .2 * rng.normal(size=30)), 'loss_50k': -rank ** -.1}
  n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e9, 6),
                                               np.geomspace(1e8, 1e11, 6)))
  loss = (1.8 + 480 * n ** -.35 + 2100 * d ** -.37) * np.exp(
      .002 * rng.normal(size=36))
  x = np.geomspace(1, 1e4, 30)
  names = {'np': np, 'R': runs['rank'], 'Q': runs['score'], 'runs': runs,
           'config': np.arange(30), 'x': np.array([50., 100.]),
           'table': {'x': x, 'y': .3 + 2. / np.sqrt(1 + x / 70.)},
           'budgets': np.geomspace(1e17, 1e19, 3),
           'points': {'N': n, 'D': d, 'loss': loss},
           'isoflops': {'flops': np.repeat([1e16, 1e17], 8), 'params':
                        np.tile(np.geomspace(1e6, 1e8, 8), 2), 'valid_loss':
                        2 + .1 * np.tile((np.arange(8) - 3.2) ** 2, 2)}}
  for block in blocks:
    exec(block, names)
  # The form of ten lines finds what was planted.
  own = names['own'].params
  np.testing.assert_allclose([own['E'], own['A'], own['s']], [.3, 2., 70.],
                             rtol=1e-6)
