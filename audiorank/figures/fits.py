"""Figures of fits: curves with bands, profiles, residuals, draws."""

import math

from matplotlib import colors
from matplotlib import figure
from matplotlib import lines
from matplotlib import ticker
import numpy as np

from audiorank.figures import style
from audiorank.laws import intervals


def curve(ax, fit, x, color='black', low=None, high=None, text=None):
  """A one-input law: band, solid inside the data, dashed outside."""
  seen = np.asarray(fit.data[fit.x[0]], float)
  low = min(seen.min(), low or math.inf)
  high = max(seen.max(), high or 0.)
  x_M = np.geomspace(low, high, 200)
  y, y_low, y_high = fit.predict({x: x_M}, band='mean')
  ax.fill_between(x_M, y_low, y_high, color=color, alpha=.15, lw=0)
  inside = (x_M >= seen.min() * .999) & (x_M <= seen.max() * 1.001)
  ax.plot(x_M, np.where(inside, y, np.nan), color=color, lw=1.5, label=text)
  for side in (x_M <= seen.min(), x_M >= seen.max()):
    ax.plot(x_M[side], y[side], color=color, lw=1.5, ls='--')


def residuals(fit, x=None, labels=None, ax=None, marked=None):
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
  at = fit.fitted if x is None else np.asarray(fit.data[x], float)
  names = np.full(len(at), '') if labels is None else np.asarray(labels)
  kinds = style.ordered(set(names.tolist()))
  for i, kind in enumerate(kinds):
    here = names == kind
    ax.scatter(at[here], fit.residuals[here], s=28, label=str(kind),
               color=style.PALETTE[i % len(style.PALETTE)],
               marker=style.MARKERS[i % len(style.MARKERS)], edgecolors='white',
               linewidths=.4)
  if marked is not None and len(marked):
    for _, row in marked.iterrows():
      here = at[row['row']], fit.residuals[row['row']]
      ax.scatter(*here, s=120, facecolors='none', edgecolors='black', lw=1.1,
                 zorder=4)
      # Towards the middle, where there is room for the name.
      left = here[0] > math.sqrt(at.min() * at.max())
      ax.annotate(str(row['label']), here, (-8 if left else 8, 0),
                  textcoords='offset points', fontsize=8, va='center',
                  ha='right' if left else 'left')
  ax.axhline(0., color='black', lw=.8)
  for k in (-2, 2):
    ax.axhline(k * fit.sd, color=style.GREY, lw=.8, ls='--')
  if x is not None:
    style.log_axis(ax.xaxis, x)
  else:
    ax.set_xlabel(f'fitted {style.label(fit.y)}')
  kind = {'identity': '', 'log': 'log ', 'logit': 'logit '}
  ax.set_ylabel(f'{kind[fit.problem.loss.link]}residual (dashed: 2 sd)')
  if labels is not None and len(kinds) <= 12:
    style.above(ax, ax.get_legend_handles_labels()[0])
  return ax


def profile(fit, name='Q_inf', ax=None, small=False, confidence=.95):
  """How much worse the fit gets as one parameter is held elsewhere.

  Args:
    fit: a Fit.
    name: the parameter.
    ax: Axes to draw in, or None.
    small: for an inset: fewer ticks, smaller letters.
    confidence: of the horizontal line, which cuts the curve at the ends of
      the interval.
  """
  ax = ax or style.axes()
  low, high = fit.ci(name, 'profile', confidence)
  best = fit.params[name]
  if fit.form.linear.get(name) == 'free':
    # A limit that nothing bounds may lie a million ranges away: what can be
    # told is told near the data.
    y_N = np.asarray(fit.data[fit.y], float)
    reach = 3 * np.ptp(y_N)
    if high == math.inf:
      best = min(best, y_N.max() + reach)
    if low == -math.inf:
      best = max(best, y_N.min() - reach)
  finite_high = high if math.isfinite(high) else best + max(
      3 * (best - low) if math.isfinite(low) else 0.,
      np.ptp(np.asarray(fit.data[fit.y], float)))
  finite_low = low if math.isfinite(low) else best - (finite_high - best)
  pad = .25 * (finite_high - finite_low) + 1e-12
  if name == 'Q_inf' or fit.form.linear.get(name) == 'free':
    v = np.linspace(finite_low - pad, finite_high + pad, 97)
  else:
    v = np.linspace(max(finite_low - pad, 1e-6 * best), finite_high + pad, 97)
  limit = intervals.threshold(fit, name, confidence)
  rise = (intervals.profile(fit, name, v) - fit.objective) / (
      limit - fit.objective)
  ax.plot(v, rise, color=style.PALETTE[0], lw=1.4)
  ax.axhline(1., color=style.GREY, lw=.8, ls='--')
  ax.set_ylim(0., 2.2)
  inside = (v >= low) & (v <= high)
  ax.fill_between(v, 0., 2.2, where=inside, color=style.PALETTE[0],
                  alpha=.12, lw=0)
  text = {'Q_inf': r'$Q_\infty$'}.get(name, name)
  words = (f'{text}: {low:.3g} to {high:.3g}' if math.isfinite(low + high)
           else f'{text} unbounded ' + ('above' if high == math.inf else
                                        'below'))
  size = 7 if small else 9
  ax.set_title(f'{words} ({confidence:.0%})', fontsize=size, pad=2)
  ax.set_yticks([0., 1.], ['0', f'{confidence:.0%}'], fontsize=size)
  ax.xaxis.set_major_locator(ticker.MaxNLocator(4 if small else 7))
  ax.tick_params(labelsize=size, length=2 if small else 3.5)
  if small:
    ax.patch.set_alpha(.85)
    ax.margins(x=0)
  else:
    ax.set_xlabel(text)
    ax.set_ylabel('rise of the objective (dashed: interval)')
  return ax


def law(fit, held_out=None, color=None, ax=None):
  """A law of one input with its points and band, held-out points open.

  Args:
    fit: a Fit of one input; rows of weight 0 count as held out.
    held_out: further points, columns by name, or None.
    color: a number per row for a viridis colour, or None.
    ax: Axes to draw in, or None.
  """
  if len(fit.x) != 1:
    raise ValueError(f'{fit.form.name} has {len(fit.x)} inputs: use '
                     'predicted_actual or contours')
  ax = ax or style.axes()
  x = np.asarray(fit.data[fit.x[0]], float)
  y = np.asarray(fit.data[fit.y], float)
  used = fit.problem.w_N > 0
  rgba = (np.full((len(x), 4), colors.to_rgba(style.PALETTE[0])) if
          color is None else style.size_colors(ax, color, 'size'))
  ax.scatter(x[used], y[used], c=rgba[used], s=30, zorder=3,
             edgecolors='white', linewidths=.4)
  out_x, out_y = [x[~used]], [y[~used]]
  if held_out is not None:
    out_x.append(np.asarray(held_out[fit.x[0]], float))
    out_y.append(np.asarray(held_out[fit.y], float))
  out_x, out_y = np.concatenate(out_x), np.concatenate(out_y)
  handles = [style.marker('o', 'fitted', color=style.PALETTE[0])]
  if len(out_x):
    ax.scatter(out_x, out_y, facecolors='none', edgecolors='black', s=34,
               zorder=3)
    handles.append(style.marker('o', 'held out', False, 'black'))
  reach = np.concatenate([x, out_x])
  curve(ax, fit, fit.x[0], low=reach.min(), high=reach.max() * 1.15)
  handles.append(lines.Line2D([], [], color='black', label=(
      f'{fit.form.formula}, 95 % band')))
  style.log_axis(ax.xaxis, fit.x[0])
  if fit.problem.loss.link == 'log':
    style.log_axis(ax.yaxis, fit.y)
  else:
    ax.set_ylabel(style.label(fit.y))
  style.above(ax, handles)
  return ax


def predicted_actual(fit, out=None, ax=None):
  """Predictions against what was observed, with the relative error.

  Args:
    fit: a Fit; rows of weight 0 count as held out and are drawn open.
    out: further held-out rows, columns by name, or None.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  seen, used = fit.problem.y_N, fit.problem.w_N > 0
  groups = [(seen[used], fit.fitted[used], True, 'fitted')]
  late_y, late_f = seen[~used], fit.fitted[~used]
  if out is not None:
    late_y = np.append(late_y, np.asarray(out[fit.y], float))
    late_f = np.append(late_f, fit.predict(out))
  groups.append((late_y, late_f, False, 'held out'))
  handles = []
  for y, f, filled, text in groups:
    if not len(y):
      continue
    color = style.PALETTE[0] if filled else style.PALETTE[1]
    ax.scatter(f, y, s=30, zorder=3, edgecolors=color,
               facecolors=color if filled else 'none')
    error = np.median(np.abs(f / y - 1))
    handles.append(style.marker('o', f'{text}: median error {error:.1%}',
                                filled, color))
  ends = np.array([min(seen.min(), fit.fitted.min()),
                   max(seen.max(), fit.fitted.max())])
  ax.plot(ends, ends, color='black', lw=.8)
  if fit.problem.loss.link == 'log':
    style.log_axis(ax.xaxis, f'predicted {style.label(fit.y)}')
    style.log_axis(ax.yaxis, f'observed {style.label(fit.y)}')
  else:
    ax.set_xlabel(f'predicted {style.label(fit.y)}')
    ax.set_ylabel(f'observed {style.label(fit.y)}')
  style.above(ax, handles)
  return ax


def pairs(draws, names=None):
  """Bootstrap draws against each other, with their correlations.

  Args:
    draws: a DataFrame of parameters, one row per resample.
    names: which of them; None for all.

  Returns:
    An array of Axes, as many rows and columns as there are parameters.
  """
  names = list(draws.columns if names is None else names)
  P = len(names)
  side = max(4.5, 1.5 * P)
  fig = figure.Figure(figsize=(side, side), layout='constrained')
  grid = fig.subplots(P, P, squeeze=False)
  values = draws[names].to_numpy(float)
  kept = np.isfinite(values).all(1)
  # The far tail of an unbounded parameter would flatten all the rest: the
  # nearer quartile sets the window, the histogram's end bars hold the tail.
  low, first, middle, third, high = np.quantile(
      values[kept], [.005, .25, .5, .75, .995], axis=0)
  near = 8 * np.minimum(third - middle, middle - first)
  low, high = np.maximum(low, middle - near), np.minimum(high, middle + near)
  ranks = np.argsort(np.argsort(values[kept], axis=0), axis=0)
  related = np.corrcoef(ranks, rowvar=False).reshape(P, P)
  for i, row in enumerate(grid):
    for j, ax in enumerate(row):
      ax.tick_params(labelsize=7, labelleft=j == 0 and i > 0,
                     labelbottom=i == P - 1)
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(ticker.MaxNLocator(3))
        axis.set_major_formatter(ticker.FuncFormatter(style.plain))
      if j > i:
        ax.axis('off')
        ax.text(.5, .5, f'{related[i, j]:.2f}', ha='center', va='center',
                fontsize=10, transform=ax.transAxes)
        continue
      pad = .05 * (high - low) + 1e-300
      ax.set_xlim(low[j] - pad[j], high[j] + pad[j])
      if i == j:
        ax.hist(np.clip(values[kept, i], low[i], high[i]), bins=30,
                color=style.PALETTE[0])
        ax.set_yticks([])
      else:
        ax.scatter(values[kept, j], values[kept, i], s=2, alpha=.3, lw=0,
                   color=style.PALETTE[0], rasterized=True)
        ax.set_ylim(low[i] - pad[i], high[i] + pad[i])
      if i == P - 1:
        ax.set_xlabel(names[j], fontsize=9)
      if j == 0 and i > 0:
        ax.set_ylabel(names[i], fontsize=9)
  return grid
