"""Figures of laws of size and data: valleys, frontiers, contours."""

from typing import Any

from matplotlib import colors
import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.figures import style


def isoflop(valleys: pd.DataFrame,
            ax: style.Axes | None = None) -> style.Axes:
  """IsoFLOP valleys with their minima.

  Args:
    valleys: the DataFrame of `laws.scaling.valleys`.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  flops, size, loss = valleys.attrs['columns']
  points = valleys.attrs['points']
  shade = style.shades(valleys['flops'])
  for _, row in valleys.iterrows():
    color = shade.to_rgba(row['flops'])
    here = points[flops] == row['flops']
    n, y = points[size][here], points[loss][here]
    ax.scatter(n, y, color=color, s=16, zorder=3)
    centre, poly = valleys.attrs['curves'][float(row['flops'])]
    # A valley is drawn only where there are runs: a cubic turns elsewhere.
    u = np.linspace(np.log10(n.min()), np.log10(n.max()), 100)
    # The polynomial is of the log loss in log10 of the size.
    ax.plot(10 ** u, np.exp(np.polyval(poly, u - centre)), color=color, lw=1)
    if row['inside']:
      ax.plot(row['size'], row['loss'], marker='*', ms=11, color=color,
              mec=style.INK, mew=.6, zorder=4)
      ax.plot([row['size_low'], row['size_high']], [row['loss']] * 2,
              color=style.INK, lw=1, zorder=3)
  style.log_axis(ax.xaxis, size)
  style.log_axis(ax.yaxis, loss)
  style.bar(ax, shade, f'{style.label(flops)} ({valleys.attrs["compute"]})')
  style.above(ax, [style.marker('*', 'minimum, 95 %', color=style.INK)])
  return ax


def frontier(optimal: pd.DataFrame, what: str = 'size', observed: Any = None,
             ax: style.Axes | None = None) -> style.Axes:
  """The compute-optimal size or amount of data, with its band.

  Args:
    optimal: the DataFrame of `laws.scaling.frontier`.
    what: 'size' or 'data'.
    observed: (flops, values) of points to draw on it, or None.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  part = optimal.dropna(subset=[what])
  if not len(part):
    raise ValueError('nothing to draw: no budget has its optimum near the '
                     'data')
  ax.fill_between(part['flops'], part[f'{what}_low'], part[f'{what}_high'],
                  color=style.PALETTE[0], alpha=.2, lw=0)
  # Dashed throughout, solid over it where runs are near.
  near = (part['distance'] == 0).to_numpy()
  ax.plot(part['flops'], part[what], color=style.PALETTE[0], lw=1.5, ls='--')
  ax.plot(part['flops'], np.where(near, part[what], np.nan), lw=1.8,
          color=style.PALETTE[0])
  text = 'optimum, dashed outside the data'
  if f'{what}_exponent' in optimal.attrs:
    value, low, high = optimal.attrs[f'{what}_exponent']
    text += f'\nexponent {value:.3f} ({low:.3f} to {high:.3f})'
  handles = [style.line(text, style.PALETTE[0])]
  if observed is not None:
    flops, values = observed
    ax.scatter(flops, values, s=26, facecolors='white', edgecolors=style.INK,
               zorder=3)
    handles.append(style.marker('o', 'observed', False, style.INK))
  style.log_axis(ax.xaxis)
  style.log_axis(ax.yaxis)
  ax.set_xlabel(f'training FLOP, {optimal.attrs["compute"]} (log scale)')
  names = {'size': 'compute-optimal size', 'data':
           'compute-optimal amount of data'}
  ax.set_ylabel(f'{names[what]} (log scale)')
  style.above(ax, handles, 1)
  return ax


def contours(fit: laws.Fit, ax: style.Axes | None = None, levels: int = 9,
             frontier: pd.DataFrame | None = None) -> style.Axes:
  """The law over both its inputs, with the runs on it.

  Args:
    fit: a Fit of two inputs.
    ax: Axes to draw in, or None.
    levels: how many lines of equal output.
    frontier: the DataFrame of `laws.scaling.frontier` to draw on it.
  """
  if len(fit.x) != 2:
    raise ValueError(f'{fit.form.name} has one input: use law')
  ax = ax or style.axes()
  n, d = (np.asarray(fit.data[name], float) for name in fit.x)
  # A little beyond the runs, so that none lies on the frame.
  grid = [np.geomspace(v.min() / 1.5, v.max() * 1.5, 80) for v in (n, d)]
  n_M, d_M = np.meshgrid(*grid)
  y_M = fit.predict({fit.x[0]: n_M.ravel(), fit.x[1]: d_M.ravel()})
  y_M = y_M.reshape(n_M.shape)
  y_N = fit.problem.y_N
  # One scale for lines and points, so that a point of another colour than its
  # surroundings is a residual.
  norm = colors.Normalize(min(y_N.min(), y_M.min()),
                          max(y_N.max(), y_M.max()))
  levels_drawn = ax.contour(n_M, d_M, y_M, levels, cmap=style.SIZES,
                            norm=norm, linewidths=1.2)
  ax.clabel(levels_drawn, fontsize=style.LEGEND, fmt=lambda v: f'{v:.3g}',
            colors=style.INK)
  ax.scatter(n, d, c=y_N, cmap=style.SIZES, norm=norm, s=30, zorder=3,
             edgecolors=style.INK, linewidths=.5)
  handles = [style.marker('o', f'runs, coloured by {style.label(fit.y)}')]
  if frontier is not None:
    ax.plot(frontier['size'], frontier['data'], color=style.INK, lw=1.6)
    handles.append(style.line('compute-optimal', style.INK))
  ax.set_xlim(n_M.min(), n_M.max())
  ax.set_ylim(d_M.min(), d_M.max())
  style.log_axis(ax.xaxis, fit.x[0])
  style.log_axis(ax.yaxis, fit.x[1])
  style.above(ax, handles)
  return ax
