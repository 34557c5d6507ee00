"""Figures of runs: rank and score over size, data, steps and tasks."""

from matplotlib import colors
from matplotlib import lines
import numpy as np
import pandas as pd

from audiorank.figures import fits
from audiorank.figures import style


def _halves(runs, *names):
  """The last rows of trained runs and the rows of untrained networks."""
  style.need(runs, *names)
  whole = runs.dropna(subset=list(names))
  blank = pd.Series(False, whole.index)
  untrained = (whole['untrained'] if 'untrained' in whole else blank
               ).astype(bool)
  final = (whole['final'] if 'final' in whole else ~blank).astype(bool)
  return whole[final & ~untrained], whole[untrained]


def rank_score(runs, fit=None, ax=None, inset=True, here=None):
  """RankMe against score: the law of the paper, or its absence.

  Trained runs filled, coloured by size, marker by masking rate; untrained
  networks open and grey; the fit with its band, dashed outside the data.

  Args:
    runs: the runs table (rank, score, params, mask_ratio, ...).
    fit: a Fit of score to rank, or None.
    ax: Axes to draw in, or None.
    inset: with a fit that has Q_inf: draw its profile in a corner.
    here: (rank, score, name) of a model to mark among them, or None.
  """
  ax = ax or style.axes()
  trained, untrained = _halves(runs, 'rank', 'score')
  handles = _scatter(ax, trained, 'rank', 'score', bars=True)
  handles += _hollow(ax, untrained, 'rank', 'score')
  if here is not None:
    ax.scatter(*here[:2], marker='*', s=190, color=style.PALETTE[1],
               edgecolors='black', linewidths=.7, zorder=5)
    handles.append(style.marker('*', here[2], color=style.PALETTE[1]))
  if fit is not None:
    x = runs['rank'].to_numpy(float)
    x = x[np.isfinite(x) & (x > 0)]
    fits.curve(ax, fit, fit.x[0], low=x.min(), high=x.max() * 1.25)
    handles.append(lines.Line2D([], [], color='black', label=(
        f'{fit.form.name.replace("_", "-")} law, 95 %')))
  style.log_axis(ax.xaxis, 'rank')
  ax.set_ylabel(style.label('score'))
  style.above(ax, handles)
  if fit is not None and inset and 'Q_inf' in fit.params:
    seen = pd.concat([trained, untrained])
    line = np.geomspace(x.min(), x.max() * 1.25, 60)
    place = lambda: style.emptiest(
        ax, np.concatenate([seen['rank'], line]),
        np.concatenate([seen['score'], fit.predict({fit.x[0]: line})]),
        [(.6, .11, .37, .2), (.09, .11, .37, .2), (.09, .72, .37, .2)])
    box, crowd = place()
    if crowd:
      low, high = ax.get_ylim()
      ax.set_ylim(low - .38 * (high - low), high)
      box, _ = place()
    fits.profile(fit, 'Q_inf', ax.inset_axes(box), small=True)
  return ax


def _scatter(ax, table, x, y, bars=False):
  """Trained runs, colour by size and marker by masking rate."""
  if not len(table):
    return []
  sized = 'params' in table and table['params'].notna().all()
  rgba = (style.size_colors(ax, table['params']) if sized else
          np.full((len(table), 4), colors.to_rgba(style.PALETTE[0])))
  masks = (table['mask_ratio'] if 'mask_ratio' in table else
           pd.Series(np.nan, table.index))
  handles = []
  kinds = sorted(masks.dropna().unique())
  for i, mask in enumerate(kinds or [np.nan]):
    here = (masks == mask).to_numpy() if kinds else np.full(len(table), True)
    shape = style.MARKERS[i % len(style.MARKERS)]
    if bars and {f'{x}_low', f'{x}_high'} <= set(table.columns):
      part = table[here]
      ax.hlines(part[y], part[f'{x}_low'], part[f'{x}_high'], color=rgba[here],
                lw=1, zorder=2)
    ax.scatter(table[x][here], table[y][here], c=rgba[here], marker=shape,
               s=38, zorder=3, edgecolors='white', linewidths=.5)
    handles.append(style.marker(
        shape, f'mask {mask:g}' if kinds else 'trained'))
  return handles


def _hollow(ax, table, x, y):
  if not len(table):
    return []
  ax.scatter(table[x], table[y], facecolors='none', edgecolors=style.GREY, s=42,
             marker='o', zorder=3, linewidths=1.2)
  return [style.marker('o', 'untrained', filled=False)]


def against(runs, x='hours', y='score', ax=None):
  """One column against another, the untrained networks beside the runs.

  An untrained network stands, hollow, where it has an x of its own (size,
  width, depth); elsewhere its level is a dashed line in its size's colour.

  Args:
    runs: the runs table.
    x: a positive column: 'hours', 'params', 'flops', ...
    y: any column: 'score', 'rank', 'valid_loss', ...
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  trained, untrained = _halves(runs, y)
  style.need(runs, x)
  trained = trained[trained[x] > 0]
  handles = _scatter(ax, trained, x, y)
  # Runs that differ in x alone are joined.
  same = [name for name in ('name', 'params', 'mask_ratio', 'lr', 'hours',
                            'seed', 'width', 'depth')
          if name in trained and name not in (x, 'name')]
  if x in ('flops', 'params'):
    same = [name for name in same if name in ('hours', 'mask_ratio', 'lr',
                                              'seed')]
  if same:
    for _, line in trained.groupby(same, dropna=False):
      line = line.sort_values(x)
      ax.plot(line[x], line[y], color=style.GREY, lw=.7, alpha=.6, zorder=1)
  if len(untrained) and x in ('params', 'width', 'depth'):
    handles += _hollow(ax, untrained, x, y)
    level = untrained.groupby(x)[y].mean()
    ax.plot(level.index, level, color=style.GREY, ls='--', lw=1, zorder=1)
  elif len(untrained):
    sized = 'params' in untrained and untrained['params'].notna().all()
    levels = untrained.groupby('params')[y].mean() if sized else untrained[y]
    rgba = (style.shades(pd.concat([trained['params'], untrained['params']])
                         ).to_rgba(levels.index.to_numpy(float))
            if sized and len(levels) > 1 else [style.GREY] * len(levels))
    for level, color in zip(levels, rgba):
      ax.axhline(level, color=color, ls='--', lw=1, zorder=1)
    handles.append(lines.Line2D([], [], color=style.GREY, ls='--', lw=1,
                                label='untrained, by size'))
  style.log_axis(ax.xaxis, x)
  ax.set_ylabel(style.label(y))
  style.above(ax, handles)
  return ax


def trained_untrained(tasks, ax=None):
  """Per task: the scores of untrained and of trained networks.

  Args:
    tasks: rows of task, score, untrained; and, where known, final.
    ax: Axes to draw in, or None.
  """
  style.need(tasks, 'task', 'score', 'untrained')
  trained, untrained = _halves(tasks, 'task', 'score')
  order = list(untrained.groupby('task')['score'].mean().sort_values().index)
  order += [t for t in sorted(trained['task'].unique()) if t not in order]
  ax = ax or style.axes((6., max(2.5, 1. + .42 * len(order))))
  for shift, part, color in ((-.17, trained, style.PALETTE[0]),
                             (.17, untrained, style.GREY)):
    for i, task in enumerate(order):
      scores = part['score'][part['task'] == task].to_numpy(float)
      if not len(scores):
        continue
      ax.scatter(scores, np.full(len(scores), i - shift), s=18, zorder=3,
                 facecolors=color if color != style.GREY else 'none',
                 edgecolors=color, alpha=.7, linewidths=.9)
      ax.plot([scores.mean()] * 2, [i - shift - .16, i - shift + .16],
              color=color, lw=2.2, zorder=4)
  ax.set_yticks(range(len(order)), order)
  ax.set_ylim(-.6, len(order) - .4)
  ax.set_xlabel('score (vertical strokes: means)')
  ax.grid(axis='x', lw=.4, alpha=.5)
  style.above(ax, [style.marker('o', 'trained', color=style.PALETTE[0]),
              style.marker('o', 'untrained', filled=False)])
  return ax
