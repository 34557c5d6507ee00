"""Figures of runs: rank and score over size, data, steps and tasks."""

from collections.abc import Sequence
from typing import Any

from matplotlib import colors
import numpy as np
import pandas as pd

from audiorank import laws
from audiorank.figures import fits
from audiorank.figures import style

# What runs have in common that are joined by a thin line.
SAME = ('params', 'mask_ratio', 'lr', 'hours', 'seed', 'width', 'depth')
SAME_OF_SIZE = ('hours', 'mask_ratio', 'lr', 'seed')
# Baselines of a task that need no network, where they were scored.
BASELINES = {'chance': 'chance', 'log_mel': 'mean log-mel',
             'mfcc': 'mean MFCC'}


def _halves(runs: pd.DataFrame,
            *names: str) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Returns the last rows of trained runs, and untrained networks."""
  style.need(runs, *names)
  whole = runs.dropna(subset=list(names))
  # Tables of others may lack both: then every row is a finished run.
  blank = pd.Series(False, whole.index)
  untrained = whole.get('untrained', blank).astype(bool)
  final = whole.get('final', ~blank).astype(bool)
  return whole[final & ~untrained], whole[untrained]


def rank_score(runs: pd.DataFrame, fit: laws.Fit | None = None,
               ax: style.Axes | None = None,
               here: tuple[float, float, str] | None = None,
               others: Sequence[tuple[float, float, str]] = ()) -> style.Axes:
  """RankMe against score: the law of the paper, or its absence.

  Trained runs filled, coloured by size, marker by masking rate; untrained
  networks open and grey; the fit with its band, dashed outside the data. The
  axes go as far as the data, not as far as the band.

  Args:
    runs: the runs table (rank, score, params, mask_ratio, ...).
    fit: a Fit of score to rank, or None.
    ax: Axes to draw in, or None.
    here: (rank, score, name) of a model to mark among them, or None.
    others: (rank, score, name) of encoders of others, each named.
  """
  ax = ax or style.axes()
  trained, untrained = _halves(runs, 'rank', 'score')
  handles = _scatter(ax, trained, 'rank', 'score', bars=True)
  handles += _hollow(ax, untrained, 'rank', 'score')
  y = [runs['score'].to_numpy(float)]
  if here is not None:
    ax.scatter(*here[:2], marker='*', s=190, color=style.PALETTE[1],
               edgecolors=style.INK, linewidths=.7, zorder=5)
    handles.append(style.marker('*', here[2], color=style.PALETTE[1]))
    y.append(np.array([here[1]]))
  for rank, score, name in others:
    ax.scatter(rank, score, marker='D', s=46, color=style.PALETTE[2],
               edgecolors=style.INK, linewidths=.7, zorder=5)
    ax.annotate(name, (rank, score), (6, 4), textcoords='offset points',
                fontsize=style.LEGEND)
    y.append(np.array([score]))
  if fit is not None:
    x = np.r_[runs['rank'].to_numpy(float), [one[0] for one in others]]
    # A logarithmic axis has no place for 0.
    x = x[np.isfinite(x) & (x > 0)]
    fits.curve(ax, fit, fit.x[0], low=x.min(), high=x.max() * 1.1)
    handles.append(style.line(
        f'{fit.form.name.replace("_", "-")} law, 95 % band', style.INK))
  # The band's tail would stretch the axis until the runs are a line.
  style.around(ax, np.concatenate(y))
  style.log_axis(ax.xaxis, 'rank')
  ax.set_ylabel(style.label('score'))
  style.above(ax, handles)
  return ax


def _scatter(ax: style.Axes, table: pd.DataFrame, x: str, y: str,
             bars: bool = False) -> list[Any]:
  """Draws trained runs, colour by size and marker by masking rate."""
  if not len(table):
    return []
  if 'params' in table and table['params'].notna().all():
    rgba = style.size_colors(ax, table['params'])
  else:
    rgba = np.full((len(table), 4), colors.to_rgba(style.PALETTE[0]))
  masks = table.get('mask_ratio', pd.Series(np.nan, table.index))
  kinds = sorted(masks.dropna().unique())
  if len(kinds) > len(style.MARKERS):
    kinds = []  # More rates than markers: no marker stands for two.
  handles = []
  # NaN: one marker for all.
  for i, mask in enumerate(kinds or [np.nan]):
    here, text = np.full(len(table), True), 'trained'
    if kinds:
      here, text = (masks == mask).to_numpy(), f'mask {mask:g}'
    shape = style.MARKERS[i]
    if bars and {f'{x}_low', f'{x}_high'} <= set(table.columns):
      part = table[here]
      ax.hlines(part[y], part[f'{x}_low'], part[f'{x}_high'], color=rgba[here],
                lw=1, zorder=2)
    ax.scatter(table[x][here], table[y][here], c=rgba[here], marker=shape,
               s=38, zorder=3, edgecolors=style.INK, linewidths=.5)
    handles.append(style.marker(shape, text))
  return handles


def _hollow(ax: style.Axes, table: pd.DataFrame, x: str, y: str) -> list[Any]:
  """Draws untrained networks."""
  if not len(table):
    return []
  ax.scatter(table[x], table[y], facecolors='none', edgecolors=style.GREY,
             s=42, marker='o', zorder=3, linewidths=1.2)
  return [style.marker('o', 'untrained', filled=False)]


def against(runs: pd.DataFrame, x: str = 'hours', y: str = 'score',
            ax: style.Axes | None = None) -> style.Axes:
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
  # The axis is logarithmic.
  trained = trained[trained[x] > 0]
  handles = _scatter(ax, trained, x, y)
  if _join(ax, trained, x, y):
    handles.append(style.line('equal in all else', lw=.7, alpha=.6))
  if len(untrained) and x in ('params', 'width', 'depth'):
    handles += _hollow(ax, untrained, x, y)
  elif len(untrained):
    _levels(ax, trained, untrained, y)
    handles.append(style.line('untrained, by size', ls='--', lw=1))
  style.log_axis(ax.xaxis, x)
  ax.set_ylabel(style.label(y))
  style.above(ax, handles)
  return ax


def _join(ax: style.Axes, trained: pd.DataFrame, x: str, y: str) -> bool:
  """Joins runs that differ in x alone; returns whether there are any."""
  # FLOPs and parameters follow from size and batch, which therefore need not be
  # equal.
  names: tuple[str, ...] = SAME
  if x in ('flops', 'params'):
    names = SAME_OF_SIZE
  same = [name for name in names if name in trained and name != x]
  joined = False
  if not same:
    return joined
  # pandas would leave out groups in which a column has no value.
  for _, part in trained.groupby(same, dropna=False):
    part = part.sort_values(x)
    if part[x].nunique() > 1:
      joined = True
      ax.plot(part[x], part[y], color=style.GREY, lw=.7, alpha=.6, zorder=1)
  return joined


def _levels(ax: style.Axes, trained: pd.DataFrame, untrained: pd.DataFrame,
            y: str) -> None:
  """Draws the level of the untrained networks of each size."""
  if 'params' not in untrained or not untrained['params'].notna().all():
    for level in untrained[y]:
      ax.axhline(level, color=style.GREY, ls='--', lw=1, zorder=1)
    return
  levels = untrained.groupby('params')[y].mean()
  rgba: Any = [style.GREY] * len(levels)
  if len(levels) > 1:
    # The same scale of colours as that of the trained runs.
    scale = style.shades(pd.concat([trained['params'], untrained['params']]))
    rgba = scale.to_rgba(levels.index.to_numpy(float))
  for level, color in zip(levels, rgba):
    ax.axhline(level, color=color, ls='--', lw=1, zorder=1)


def trained_untrained(tasks: pd.DataFrame,
                      ax: style.Axes | None = None) -> style.Axes:
  """Per task: the scores of untrained and of trained networks.

  Chance, a mean log-mel and a mean MFCC stand beside them where known.

  Args:
    tasks: rows of task, score, untrained; and, where known, final.
    ax: Axes to draw in, or None.
  """
  style.need(tasks, 'task', 'score', 'untrained')
  trained, untrained = _halves(tasks, 'task', 'score')
  # From the easiest task for features of no training to the hardest.
  order = list(untrained.groupby('task')['score'].mean().sort_values().index)
  order += [t for t in sorted(trained['task'].unique()) if t not in order]
  ax = ax or style.axes((5., max(2.8, 1.3 + .42 * len(order))))
  halves = ((-.17, trained, style.PALETTE[0], style.PALETTE[0]),
            (.17, untrained, style.GREY, 'none'))
  for shift, part, color, face in halves:
    for i, task in enumerate(order):
      scores = part['score'][part['task'] == task].to_numpy(float)
      if not len(scores):
        continue
      ax.scatter(scores, np.full(len(scores), i - shift), s=18, zorder=3,
                 facecolors=face, edgecolors=color, alpha=.7, linewidths=.9)
      ax.plot([scores.mean()] * 2, [i - shift - .16, i - shift + .16],
              color=color, lw=2.2, zorder=4)
  handles = [style.marker('o', 'trained', color=style.PALETTE[0]),
             style.marker('o', 'untrained', filled=False),
             style.line('mean', lw=2.2)]
  handles += _without_network(ax, tasks, order)
  ax.set_yticks(range(len(order)), [_short(task) for task in order])
  ax.set_ylim(-.6, len(order) - .4)
  ax.set_xlabel('score')
  ax.grid(axis='x', lw=.4, alpha=.5)
  style.above(ax, handles)
  return ax


def _without_network(ax: style.Axes, tasks: pd.DataFrame,
                     order: list[str]) -> list[Any]:
  """Draws the baselines of each task that need no network."""
  handles = []
  shapes = dict(zip(BASELINES, '|xd'))
  for name, text in BASELINES.items():
    if name not in tasks or not tasks[name].notna().any():
      continue
    value = tasks.groupby('task')[name].mean()
    known = [i for i, task in enumerate(order) if np.isfinite(
        value.get(task, np.nan))]
    ax.scatter([value[order[i]] for i in known], known, marker=shapes[name],
               s=44, color=style.PALETTE[1], zorder=5)
    handles.append(style.marker(shapes[name], text, color=style.PALETTE[1]))
  return handles


def _short(task: str) -> str:
  """Returns a task's name without its version and size."""
  return task.split('-')[0].replace('_', ' ')
