"""Every figure draws what it is given, legibly, and refuses what it cannot."""

import numpy as np
import pandas as pd
import pytest

from audiorank import figures
from audiorank import laws
from audiorank.analysis import claims
from audiorank.figures import style


def _runs(untrained=True):
  """A sweep of three sizes, three hours and two masking rates."""
  rng = np.random.default_rng(0)
  rows = []
  for i, (width, params) in enumerate([(32, 4e4), (64, 2.2e5), (128, 9e5)]):
    if untrained:
      rows.append(dict(run_id=f'u{i}', name=f'en{width}', width=width,
                       params=params, hours=0., mask_ratio=.5, flops=0.,
                       rank=18. + 6 * i, score=.45 + .02 * i, step=0,
                       untrained=True, final=True))
    for hours in (.5, 2., 8.):
      for mask in (.5, .75):
        rank = 12 * (params / 4e4) ** .25 * (hours / .5) ** .2 * np.exp(
            .05 * rng.normal())
        rows.append(dict(run_id=f'r{len(rows)}', name=f'en{width}',
                         width=width, params=params, hours=hours, step=1000,
                         mask_ratio=mask, flops=params * hours, rank=rank,
                         score=.9 - .9 * rank ** -.5 + .01 * rng.normal(),
                         untrained=False, final=True))
  table = pd.DataFrame(rows)
  return table.assign(rank_low=table['rank'] * .97,
                      rank_high=table['rank'] * 1.03)


@pytest.fixture(scope='module')
def runs():
  return _runs()


@pytest.fixture(scope='module')
def made(runs):
  return laws.fit('saturating', runs[~runs['untrained']])


@pytest.fixture(scope='module')
def joint():
  n, d = (axis.ravel() for axis in np.meshgrid(
      np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e11, 8)))
  rng = np.random.default_rng(0)
  loss = (1.8 + 480 * n ** -.35 + 2100 * d ** -.37) * np.exp(
      .002 * rng.normal(size=64))
  return laws.fit('separable', {'N': n, 'D': d, 'loss': loss}, loss='log_ls')


def _legend(ax):
  """The texts of a figure's legends."""
  several = [*ax.figure.legends, ax.get_legend()]
  return [text.get_text() for legend in several if legend is not None
          for text in legend.get_texts()]


def _clear(ax):
  """Draws the figure; no legend may cover a marker's centre or leave it."""
  fig = ax.figure
  fig.draw_without_rendering()
  covers = [*fig.legends, *(each.get_legend() for each in fig.axes)]
  boxes = [cover.get_window_extent() for cover in covers if cover is not None]
  for path in ax.collections:
    if not hasattr(path, 'get_sizes') or not len(path.get_offsets()):
      continue
    at = path.get_offset_transform().transform(path.get_offsets())
    for box in boxes:
      inside = ((at[:, 0] > box.x0) & (at[:, 0] < box.x1) &
                (at[:, 1] > box.y0) & (at[:, 1] < box.y1))
      assert not inside.any()
  whole = fig.bbox
  for box in boxes:
    assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1
    assert box.y0 >= whole.y0 - 1 and box.y1 <= whole.y1 + 1


def _texts(axis):
  axis.axes.figure.draw_without_rendering()
  low, high = sorted(axis.get_view_interval())
  return [tick.get_text() for tick, at in
          zip(axis.get_ticklabels(), axis.get_ticklocs())
          if low <= at <= high]


def test_rank_score(runs, made):
  ax = figures.rank_score(runs, made)
  _clear(ax)
  assert ax.get_xlabel() == 'RankMe (log scale)'
  assert {'mask 0.5', 'mask 0.75', 'untrained',
          'saturating law, 95 % band'} <= set(_legend(ax))
  ticks = _texts(ax.xaxis)
  assert 3 <= len(ticks) <= 9 and all('$' not in text for text in ticks)


def test_the_axis_goes_as_far_as_the_data(runs):
  """Not as far as the band's tail: three near ranks bound no law."""
  few = runs[~runs['untrained']].sort_values('rank')[:8]
  fit = laws.fit('saturating', few)
  ax = figures.rank_score(few, fit)
  low, high = ax.get_ylim()
  span = np.ptp(few['score'])
  assert few['score'].min() - .1 * span <= low
  assert high <= few['score'].max() + .1 * span


def test_more_kinds_than_markers_are_told_apart(runs):
  looks = [style.look(i) for i in range(72)]
  assert len(set(looks)) == 72
  rng = np.random.default_rng(0)
  table = pd.DataFrame({'size': [f'en{16 * k}-2' for k in range(1, 13)],
                        'early': rng.uniform(5, 20, 12),
                        'score': rng.uniform(.4, .6, 12)})
  ax = figures.early_final(table, 'early', 'score', 'size')
  _clear(ax)
  entries = ax.figure.legends[0].legend_handles
  assert len({(e.get_color(), e.get_marker()) for e in entries}) == 12
  # More rates than markers: no marker stands for two of them.
  many = pd.concat([runs.assign(mask_ratio=.05 * k) for k in range(1, 12)])
  assert not any(text.startswith('mask') for text in _legend(
      figures.rank_score(many)))


def test_rank_score_is_bare_without_a_fit(runs):
  ax = figures.rank_score(runs)
  assert not ax.lines
  # The open markers are the untrained networks, one per size.
  hollow = [path for path in ax.collections
            if hasattr(path, 'get_sizes') and not len(path.get_facecolors())]
  assert [len(path.get_offsets()) for path in hollow] == [3]


def test_extrapolation_is_dashed(runs, made):
  ax = figures.rank_score(runs, made)
  seen = np.asarray(made.data['rank'])
  dashed = [line for line in ax.lines if line.get_linestyle() == '--']
  assert dashed
  for line in dashed:
    x = line.get_xdata()
    assert (x >= seen.max() * .99).all() or (x <= seen.min() * 1.01).all()


@pytest.mark.parametrize('x, y', [('hours', 'score'), ('params', 'rank'),
                                  ('flops', 'score')])
def test_against(runs, x, y):
  ax = figures.against(runs, x, y)
  _clear(ax)
  levels = [line for line in ax.lines if line.get_linestyle() == '--']
  # Three sizes: three levels, or three points where size is the axis.
  drawn = levels
  if x == 'params':
    drawn = ax.collections[-1].get_offsets()
  assert len(drawn) == 3
  assert '(log scale)' in ax.get_xlabel()


def test_draws_into_given_axes(runs, made):
  fig = figures.axes().figure
  ax = fig.axes[0]
  assert figures.rank_score(runs, made, ax=ax) is ax
  assert figures.residuals(made, ax=figures.axes()).figure is not fig


def test_rank_steps(runs):
  rows = [dict(run_id=run, params=params, step=step, rank=value,
               rank_low=value * .95, rank_high=value * 1.05)
          for run, params in (('a', 1e5), ('b', 1e6))
          for step, value in ((0, 20.), (10, 12.), (100, 15.), (1000, 22.))]
  ax = figures.rank_steps(pd.DataFrame(rows))
  _clear(ax)
  assert ax.get_xlim()[0] < 10 and len(ax.lines) == 3
  assert 'untrained (step 0)' in _legend(ax)


def test_layers_show_the_median_run_of_each_size():
  rank_NL = np.arange(12.).reshape(3, 4) + 5
  deeper_NL = np.pad(rank_NL, ((0, 0), (0, 2)), constant_values=30.)
  # A layer that no run of a size has takes no place.
  shallow_NL = np.pad(rank_NL, ((0, 0), (0, 2)), constant_values=np.nan)
  ax = figures.layers({'en32-6': deeper_NL, 'en16-4': shallow_NL})
  lines = [line.get_ydata() for line in ax.lines]
  np.testing.assert_array_equal(lines[0], rank_NL[1])
  np.testing.assert_array_equal(lines[1], deeper_NL[1])
  assert _legend(ax) == ['en16-4 (3)', 'en32-6 (3)']
  assert ax.get_yscale() == 'log' and ax.get_xlabel() == 'layer'
  assert figures.layers({'en16-4': shallow_NL}, 'score').get_yscale() == (
      'linear')
  with pytest.raises(ValueError, match='no layer was measured'):
    figures.layers({'en16-4': np.full((2, 3), np.nan)})


def test_troubled_runs_are_marked(runs, made):
  rows = pd.DataFrame([
      dict(run_id=run, params=1e5, step=step, rank=value)
      for run in 'ab' for step, value in ((0, 20.), (10, 12.), (100, 3.))])
  bad = pd.DataFrame([dict(run_id='b', kind='collapse', step=100)])
  ax = figures.rank_steps(rows, marked=bad)
  _clear(ax)
  assert 'collapse' in _legend(ax)
  far = pd.DataFrame({'row': [3], 'label': ['run three']})
  ax = figures.residuals(made, 'rank', marked=far)
  ax.figure.draw_without_rendering()
  text, = (t for t in ax.texts if t.get_text() == 'run three')
  assert ax.figure.bbox.contains(*text.get_window_extent().p1)
  # None marked: nothing of it in the legend.
  assert 'collapse' not in _legend(figures.rank_steps(
      rows, marked=bad.iloc[:0]))


def test_trained_untrained():
  rng = np.random.default_rng(0)
  rows = [dict(task=task, score=rng.uniform(), untrained=i < 2)
          for task in ('pitch', 'timbre', 'events') for i in range(8)]
  ax = figures.trained_untrained(pd.DataFrame(rows))
  _clear(ax)
  assert {text.get_text() for text in ax.get_yticklabels()} == {
      'pitch', 'timbre', 'events'}


def test_other_figures_draw(runs, made, joint, tmp_path):
  trained = runs[~runs['untrained']].assign(early=lambda t: t['rank'] * .9)
  budgets = np.geomspace(1e15, 1e20, 5)
  front = laws.scaling.frontier(joint, budgets, draws=20)
  held = laws.fit('saturating', trained, weights=np.where(
      trained['rank'] > 35, 0., 1.))
  drawn = {
      'spectra': figures.spectra({'untrained': np.geomspace(1, 1e-4, 32),
                                  'final': np.arange(1, 33) ** -1.}),
      'residuals': figures.residuals(made, labels=trained['name']),
      'residuals_x': figures.residuals(joint, x='N'),
      'profile': figures.profile(made, 'b'),
      'law': figures.law(held),
      'predicted': figures.predicted_actual(held),
      'early': figures.early_final(trained, 'early', 'score', 'mask_ratio'),
      'frontier': figures.frontier(front),
      'contours': figures.contours(joint, frontier=front),
      'pairs': figures.pairs(made.draws(60))[0, 0],
  }
  for ax in drawn.values():
    ax.figure.draw_without_rendering()
  for name in ('law', 'predicted', 'early', 'frontier', 'residuals'):
    _clear(drawn[name])
  assert 'encoder only' in drawn['frontier'].get_xlabel()
  paths = figures.save(drawn['law'], tmp_path / 'deep' / 'law')
  assert [path.suffix for path in paths] == ['.png', '.pdf']
  assert all(path.stat().st_size > 1000 for path in paths)


def test_a_model_is_marked_among_the_runs(runs):
  ax = figures.rank_score(runs, here=(20., .6, 'mine'))
  _clear(ax)
  assert 'mine' in _legend(ax)
  star = [p for p in ax.collections if hasattr(p, 'get_offsets')
          and [20., .6] in p.get_offsets().tolist()]
  assert len(star) == 1


def test_spectrogram_is_upright():
  mel_MT = np.zeros((64, 100))
  mel_MT[3, 20:40] = 90.
  ax = figures.spectrogram(mel_MT)
  drawn, = ax.images
  np.testing.assert_array_equal(drawn.get_array(), mel_MT)
  assert drawn.origin == 'lower' and ax.get_xlim() == (0, 1)
  with pytest.raises(ValueError, match='expected \\(mels, frames'):
    figures.spectrogram(mel_MT[None])


def test_embedding_map_keeps_the_largest_distances():
  rng = np.random.default_rng(0)
  z_ND = .01 * rng.standard_normal((40, 8))
  z_ND[:, 2] += 5 * (np.arange(40) % 2) + 100
  ax = figures.embedding_map(z_ND, np.arange(40) % 2)
  at = [p.get_offsets() for p in ax.collections]
  assert [len(p) for p in at] == [20, 20]
  # Two clusters, 5 apart, on the first axis; all of the variance.
  assert abs(at[0][:, 0].mean() - at[1][:, 0].mean()) == pytest.approx(
      5, abs=.05)
  assert '100%' in ax.get_xlabel()
  with pytest.raises(ValueError, match='one vector'):
    figures.embedding_map(np.ones((4, 3)))
  with pytest.raises(ValueError, match='3 labels for 40'):
    figures.embedding_map(z_ND, 'abc')


def test_isoflop():
  n = np.geomspace(1e6, 1e8, 8)
  rows = [pd.DataFrame({'flops': c, 'params': n, 'valid_loss':
                        1.7 + 400 * n ** -.35 + 2000 * (c / 6 / n) ** -.37})
          for c in (1e16, 1e17)]
  ax = figures.isoflop(laws.scaling.valleys(pd.concat(rows)))
  _clear(ax)
  stars = [line for line in ax.lines if line.get_marker() == '*']
  assert stars and '(log scale)' in ax.get_xlabel()


def test_palette_is_okabe_ito():
  """No two neighbours collapse for the common deficiencies of vision."""
  # Linear sRGB to what a deuteranope sees, Vienot, Brettel & Mollon 1999.
  deutan = np.array([[.29275, .70725, 0.], [.29275, .70725, 0.],
                     [-.02234, .02234, 1.]])
  rgb = np.array([[int(c[i:i + 2], 16) / 255 for i in (1, 3, 5)]
                  for c in style.PALETTE])
  seen = (rgb ** 2.2) @ deutan.T
  gap = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
  assert gap[~np.eye(len(gap), dtype=bool)].min() > .08


@pytest.mark.parametrize('value, text', [
    (.5, '0.5'), (200, '200'), (12_000, '12k'), (3e6, '3M'), (1e19, '1e+19'),
    (1e-6, '1e-06'), (0, '0')])
def test_plain_numbers(value, text):
  assert style.plain(value) == text


def test_refusals(runs, made, joint):
  with pytest.raises(ValueError, match="no column 'score' to draw"):
    figures.rank_score(runs.drop(columns='score'))
  with pytest.raises(ValueError, match='no rows'):
    figures.against(runs.iloc[:0])
  with pytest.raises(ValueError, match='no spectrum'):
    figures.spectra({})
  with pytest.raises(ValueError, match='2 inputs'):
    figures.law(joint)
  with pytest.raises(ValueError, match='one input'):
    figures.contours(made)


def test_a_limit_that_nothing_bounds_is_drawn_near_the_data():
  """A law that rises by the logarithm: the best Q_inf is beyond all sense."""
  rank = np.geomspace(8, 20, 12)
  wobble = np.random.default_rng(0).normal(0, .003, 12)
  fit = laws.fit('saturating', {'rank': rank,
                                'score': .05 * np.log(rank) ** 2 + wobble})
  assert fit.params['Q_inf'] > 100 and fit.ci('Q_inf')[1] == np.inf
  ax = figures.profile(fit)
  low, high = ax.get_xlim()
  assert high < 3 and low > -3


def _slope(family, value, low, high, verdict, n):
  return claims.claim('slope', 'score per doubling of RankMe', value, low,
                      high, .04, verdict, claims.Needed('range'), family,
                      (n, n, n))


def test_slopes_show_every_family_and_arrows_beyond_the_axis():
  inf = float('inf')
  several = [
      claims.claim('one_slope', '', .04, .02, .1, 1e-5, claims.FAILS,
                   common=.06, names=('size', 'crop')),
      _slope('size', .08, .05, .11, claims.HOLDS, 23),
      _slope('decoder', -.04, -.17, .1, claims.INCONCLUSIVE, 3),
      _slope('masking rate', .3, -inf, inf, claims.INCONCLUSIVE, 5),
      _slope('crop', .04, -9., 9., claims.INCONCLUSIVE, 3),
      claims.claim('within_width', '', -.01, -.04, .02, .6,
                   claims.INCONCLUSIVE, claims.Needed('runs', 4.),
                   counts=(40, 40, 40))]
  ax = figures.slopes(several)
  _clear(ax)
  assert [t.get_text() for t in ax.get_yticklabels()] == [
      'size (23)', 'decoder (3)', 'masking rate (5)', 'crop (3)',
      'all, at equal width (40)']
  assert sum(line.get_marker() in '<>' for line in ax.lines) == 4
  low, high = ax.get_xlim()
  assert -2 < low < -.17 and .11 < high < 2
  assert {'holds', 'inconclusive', 'nothing bounds it',
          'one slope for all, p < .001'} == set(_legend(ax))
  with pytest.raises(ValueError, match='nothing to draw'):
    figures.slopes([several[0]])
