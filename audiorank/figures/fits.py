"""Figures of fits: curves with bands, profiles, residuals, draws."""

import math
from typing import Any

from matplotlib import artist
from matplotlib import colors
from matplotlib import figure
from matplotlib import ticker
import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.figures import style
from audiorank.laws import intervals


def curve(ax: style.Axes, fit: laws.Fit, x: str, color: str = style.INK,
          low: float | None = None, high: float | None = None,
          text: str | None = None) -> None:
  """Draws a one-input law: band, solid inside the data, dashed outside."""
  x_N = np.asarray(fit.data[fit.x[0]], float)
  low = min(x_N.min(), low or math.inf)
  high = max(x_N.max(), high or 0.)
  # Even steps in the logarithm, as the axis is.
  x_M = np.geomspace(low, high, 200)
  y, y_low, y_high = fit.predict({x: x_M}, band='mean')
  ax.fill_between(x_M, y_low, y_high, color=color, alpha=.15, lw=0)
  # The slack is for the rounding of geomspace.
  inside = (x_M >= x_N.min() * .999) & (x_M <= x_N.max() * 1.001)
  ax.plot(x_M, np.where(inside, y, np.nan), color=color, lw=1.5, label=text)
  # The ends belong to both lines, so that they meet.
  for side in (x_M <= x_N.min(), x_M >= x_N.max()):
    ax.plot(x_M[side], y[side], color=color, lw=1.5, ls='--')


def residuals(fit: laws.Fit, x: str | None = None, labels: Any = None,
              ax: style.Axes | None = None,
              marked: pd.DataFrame | None = None) -> style.Axes:
  """Residuals of a fit, on the scale of its loss.

  Args:
    fit: a Fit.
    x: name of the input on the axis; None for the fitted value.
    labels: a family per row, coloured; or None.
    ax: Axes to draw in, or None.
    marked: the DataFrame of `laws.failures.outliers`, or None: its rows are
      ringed and named.
  """
  ax = ax or style.axes()
  at = fit.fitted
  if x is not None:
    at = np.asarray(fit.data[x], float)
  names = np.full(len(at), '')
  if labels is not None:
    names = np.asarray(labels)
  kinds = style.ordered(set(names.tolist()))
  for i, kind in enumerate(kinds):
    here = names == kind
    color, shape = style.look(i)
    ax.scatter(at[here], fit.residuals[here], s=28, label=str(kind),
               color=color, marker=shape, edgecolors='white', linewidths=.4)
  if marked is not None and len(marked):
    for _, row in marked.iterrows():
      here = at[row['row']], fit.residuals[row['row']]
      ax.scatter(*here, s=120, facecolors='none', edgecolors=style.INK, lw=1.1,
                 zorder=4)
      # Towards the middle, where there is room for the name.
      shift, side = 8, 'left'
      # The middle of a logarithmic axis is the geometric mean.
      if here[0] > math.sqrt(at.min() * at.max()):
        shift, side = -8, 'right'
      ax.annotate(str(row['label']), here, (shift, 0), va='center', ha=side,
                  textcoords='offset points', fontsize=style.LEGEND)
  ax.axhline(0., color=style.INK, lw=.8)
  # Beyond two standard deviations 1 in 20 lies by chance.
  for k in (-2, 2):
    ax.axhline(k * fit.sd, color=style.GREY, lw=.8, ls='--')
  handles: list[artist.Artist] = [style.line('2 sd', ls='--', lw=.8)]
  if x is not None:
    style.log_axis(ax.xaxis, x)
  else:
    ax.set_xlabel(f'fitted {style.label(fit.y)}')
  kind = {'identity': '', 'log': 'log ', 'logit': 'logit '}
  ax.set_ylabel(f'{kind[fit.problem.loss.link]}residual')
  if labels is not None and len(kinds) <= 12:
    handles = [*ax.get_legend_handles_labels()[0], *handles]
  style.above(ax, handles, 4)
  return ax


def profile(fit: laws.Fit, name: str = 'Q_inf', ax: style.Axes | None = None,
            confidence: float = .95) -> style.Axes:
  """How much worse the fit gets as one parameter is moved elsewhere.

  Args:
    fit: a Fit.
    name: the parameter.
    ax: Axes to draw in, or None.
    confidence: of the horizontal line, which cuts the curve at the ends of
      the interval.
  """
  ax = ax or style.axes()
  low, high = fit.ci(name, 'profile', confidence)
  v = _places(fit, name, low, high)
  limit = intervals.threshold(fit, name, confidence)
  # In units of the threshold: the interval is where the curve is below 1.
  rise = (intervals.profile(fit, name, v) - fit.objective) / (
      limit - fit.objective)
  ax.plot(v, rise, color=style.PALETTE[0], lw=1.4)
  ax.axhline(1., color=style.GREY, lw=.8, ls='--')
  # Far beyond the interval a profile rises without end and would flatten what
  # matters.
  ax.set_ylim(0., 2.2)
  inside = (v >= low) & (v <= high)
  ax.fill_between(v, 0., 2.2, where=inside, color=style.PALETTE[0],
                  alpha=.12, lw=0)
  words = f'{name}: {low:.3g} to {high:.3g}'
  if not math.isfinite(low + high):
    words = f'{name} unbounded below'
    if high == math.inf:
      words = f'{name} unbounded above'
  handles = [style.line(f'threshold, {confidence:.0%}', ls='--', lw=.8),
             style.line(f'profile; {words}', style.PALETTE[0], lw=1.4)]
  ax.set_yticks([0., 1.], ['0', f'{confidence:.0%}'])
  ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
  ax.set_xlabel(name)
  ax.set_ylabel('rise of the objective')
  style.above(ax, handles, 1)
  return ax


def _places(fit: laws.Fit, name: str, low: float, high: float) -> np.ndarray:
  """Returns where a profile is drawn: the interval and a little beyond."""
  best = fit.params[name]
  y_N = np.asarray(fit.data[fit.y], float)
  is_free = fit.form.linear.get(name) == 'free'
  if is_free:
    # A limit that nothing bounds may lie a million ranges away: what can be
    # said is said near the data.
    reach = 3 * np.ptp(y_N)
    if high == math.inf:
      best = min(best, y_N.max() + reach)
    if low == -math.inf:
      best = max(best, y_N.min() - reach)
  # As far again as the side that is bounded, or the range of the data.
  if not math.isfinite(high):
    below = 0.
    if math.isfinite(low):
      below = best - low
    high = best + max(3 * below, np.ptp(y_N))
  if not math.isfinite(low):
    low = best - (high - best)
  pad = .25 * (high - low) + 1e-12
  start = low - pad
  # Any other parameter is positive.
  if name != 'Q_inf' and not is_free:
    start = max(start, 1e-6 * best)
  return np.linspace(start, high + pad, 97)


def law(fit: laws.Fit, held_out: Any = None, color: Any = None,
        ax: style.Axes | None = None) -> style.Axes:
  """A law of one input with its points and band, held-out points open.

  Args:
    fit: a Fit of one input; rows of weight 0 count as held out.
    held_out: further points, columns by name, or None.
    color: a number per row for its colour, or None.
    ax: Axes to draw in, or None.
  """
  if len(fit.x) != 1:
    raise ValueError(f'{fit.form.name} has {len(fit.x)} inputs: use '
                     'predicted_actual or contours')
  ax = ax or style.axes()
  x = np.asarray(fit.data[fit.x[0]], float)
  y = np.asarray(fit.data[fit.y], float)
  used = fit.problem.w_N > 0
  rgba = np.full((len(x), 4), colors.to_rgba(style.PALETTE[0]))
  if color is not None:
    rgba = style.size_colors(ax, color, 'size')
  ax.scatter(x[used], y[used], c=rgba[used], s=30, zorder=3,
             edgecolors='white', linewidths=.4)
  out_x, out_y = x[~used], y[~used]
  if held_out is not None:
    out_x = np.concatenate([out_x, np.asarray(held_out[fit.x[0]], float)])
    out_y = np.concatenate([out_y, np.asarray(held_out[fit.y], float)])
  handles = [style.marker('o', 'fitted', color=style.PALETTE[0])]
  if len(out_x):
    ax.scatter(out_x, out_y, facecolors='none', edgecolors=style.INK, s=34,
               zorder=3)
    handles.append(style.marker('o', 'held out', False, style.INK))
  reach = np.concatenate([x, out_x])
  curve(ax, fit, fit.x[0], low=reach.min(), high=reach.max() * 1.15)
  handles.append(style.line(f'{fit.form.formula}, 95 % band', style.INK))
  style.log_axis(ax.xaxis, fit.x[0])
  if fit.problem.loss.link == 'log':
    style.log_axis(ax.yaxis, fit.y)
  else:
    ax.set_ylabel(style.label(fit.y))
  style.above(ax, handles, 2)
  return ax


def predicted_actual(fit: laws.Fit, out: Any = None,
                     ax: style.Axes | None = None) -> style.Axes:
  """Predictions against what was observed, with the relative error.

  Args:
    fit: a Fit; rows of weight 0 count as held out and are drawn open.
    out: further held-out rows, columns by name, or None.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  y_N, used = fit.problem.y_N, fit.problem.w_N > 0
  groups = [(y_N[used], fit.fitted[used], 'fitted', style.PALETTE[0],
             style.PALETTE[0])]
  late_y, late_f = y_N[~used], fit.fitted[~used]
  if out is not None:
    late_y = np.append(late_y, np.asarray(out[fit.y], float))
    late_f = np.append(late_f, fit.predict(out))
  groups.append((late_y, late_f, 'held out', style.PALETTE[1], 'none'))
  handles = []
  for y, f, text, color, face in groups:
    if not len(y):
      continue
    ax.scatter(f, y, s=30, zorder=3, edgecolors=color, facecolors=face)
    # A median, which one failed run does not move.
    error = np.median(np.abs(f / y - 1))
    handles.append(style.marker('o', f'{text}: median error {error:.1%}',
                                face != 'none', color))
  ends = np.array([min(y_N.min(), fit.fitted.min()),
                   max(y_N.max(), fit.fitted.max())])
  ax.plot(ends, ends, color=style.INK, lw=.8)
  handles.append(style.line('equal', style.INK, lw=.8))
  if fit.problem.loss.link == 'log':
    style.log_axis(ax.xaxis, f'predicted {style.label(fit.y)}')
    style.log_axis(ax.yaxis, f'observed {style.label(fit.y)}')
  else:
    ax.set_xlabel(f'predicted {style.label(fit.y)}')
    ax.set_ylabel(f'observed {style.label(fit.y)}')
  style.above(ax, handles, 2)
  return ax


def pairs(draws: pd.DataFrame, names: Any = None) -> np.ndarray:
  """Bootstrap draws against each other, with their correlations.

  Args:
    draws: a DataFrame of parameters, one row per resample.
    names: which of them; None for all.

  Returns:
    An array of Axes, as many rows and columns as there are parameters.
  """
  if names is None:
    names = draws.columns
  names = list(names)
  P = len(names)
  side = max(4.5, 1.5 * P)
  fig = figure.Figure(figsize=(side, side), layout='constrained')
  grid = fig.subplots(P, P, squeeze=False)
  values = draws[names].to_numpy(float)
  values = values[np.isfinite(values).all(1)]
  # The far tail of an unbounded parameter would flatten all the rest: the
  # nearer quartile sets the window, the histogram's end bars hold the tail.
  low, first, middle, third, high = np.quantile(
      values, [.005, .25, .5, .75, .995], axis=0)
  near = 8 * np.minimum(third - middle, middle - first)
  low, high = np.maximum(low, middle - near), np.minimum(high, middle + near)
  # Rank correlations, because parameters trade off along curves.
  ranks = np.argsort(np.argsort(values, axis=0), axis=0)
  related = np.corrcoef(ranks, rowvar=False).reshape(P, P)
  for i, row in enumerate(grid):
    for j, ax in enumerate(row):
      ax.tick_params(labelsize=style.LEGEND, labelleft=j == 0 and i > 0,
                     labelbottom=i == P - 1)
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(3))
        axis.set_major_formatter(ticker.FuncFormatter(style.plain))
      # Numbers above the diagonal, clouds below, histograms on it.
      if j > i:
        ax.axis('off')
        ax.text(.5, .5, f'{related[i, j]:.2f}', ha='center', va='center',
                fontsize=style.LETTERS, transform=ax.transAxes)
        continue
      # Never 0: a parameter that is constant needs limits that differ.
      pad = .05 * (high - low) + 1e-300
      ax.set_xlim(low[j] - pad[j], high[j] + pad[j])
      if i == j:
        ax.hist(np.clip(values[:, i], low[i], high[i]), bins=30,
                color=style.PALETTE[0])
        ax.set_yticks([])
      else:
        ax.scatter(values[:, j], values[:, i], s=2, alpha=.3, lw=0,
                   color=style.PALETTE[0], rasterized=True)
        ax.set_ylim(low[i] - pad[i], high[i] + pad[i])
      if i == P - 1:
        ax.set_xlabel(names[j], fontsize=style.LETTERS)
      if j == 0 and i > 0:
        ax.set_ylabel(names[i], fontsize=style.LETTERS)
  return grid
