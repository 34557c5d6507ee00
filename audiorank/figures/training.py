"""Figures of training: rank over steps, spectra, early against final."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from audiorank.figures import style

MARKS = {'collapse': 'X', 'dip': 'v', 'spike': '^', 'diverged': 'P'}


def rank_steps(history: pd.DataFrame, ax: style.Axes | None = None,
               marked: pd.DataFrame | None = None) -> style.Axes:
  """RankMe over training for every run, the untrained network at the left.

  Args:
    history: rows of run_id, step, rank and, where known, rank_low,
      rank_high, params.
    ax: Axes to draw in, or None.
    marked: rows of run_id, kind and step, or None: these runs get a mark
      there.
  """
  ax = ax or style.axes()
  style.need(history, 'run_id', 'step', 'rank')
  history = history.dropna(subset=['rank']).sort_values('step')
  positive = history['step'][history['step'] > 0]
  # Step 0 has no place on a logarithmic axis: it stands left of the first.
  start = 1.
  if len(positive):
    start = positive.min() / 2
  runs = [(run, rows) for run, rows in history.groupby('run_id', sort=False)]
  sizes = np.ones(len(runs))
  if 'params' in history:
    sizes = np.array([rows['params'].iloc[0] for _, rows in runs], float)
  has_band = {'rank_low', 'rank_high'} <= set(history.columns)
  for (_, rows), color in zip(runs, style.size_colors(ax, sizes)):
    x = rows['step'].clip(lower=start)
    ax.plot(x, rows['rank'], color=color, lw=1.2, marker='.', ms=4)
    if has_band:
      ax.fill_between(x, rows['rank_low'].astype(float),
                      rows['rank_high'].astype(float), color=color, alpha=.15,
                      lw=0)
    first = rows[rows['step'] == 0]
    ax.scatter(np.full(len(first), start), first['rank'], s=30, zorder=3,
               facecolors='white', edgecolors=[color] * len(first))
  style.log_axis(ax.xaxis, 'step')
  style.around(ax, history['rank'].to_numpy(float))
  ax.set_ylabel(style.label('rank'))
  text = 'a run'
  if has_band:
    text = 'a run, 95 % band'
  handles = [style.line(text, marker='.')]
  if marked is not None:
    handles += _mark(ax, history, marked, start)
  if (history['step'] == 0).any():
    # Halfway between step 0, at `start`, and the first step, at twice that.
    ax.axvline(start * 2 ** .5, color=style.GREY, lw=.8, ls=':')
    handles.append(style.marker('o', 'untrained (step 0)', filled=False))
  style.above(ax, handles)
  return ax


def _mark(ax: style.Axes, history: pd.DataFrame, marked: pd.DataFrame,
          start: float) -> list:
  """Marks runs at a step, one marker a kind; returns the legend entries."""
  handles = []
  for kind, rows in marked.groupby('kind', sort=False):
    shape = MARKS.get(kind, 'X')
    for row in rows.itertuples():
      curve = history[history['run_id'] == row.run_id]
      if len(curve):
        # The curve has points only where RankMe was measured.
        near = curve.loc[(curve['step'] - row.step).abs().idxmin()]
        ax.scatter(max(near['step'], start), near['rank'], marker=shape, s=60,
                   color=style.PALETTE[1], edgecolors='white', zorder=5)
    handles.append(style.marker(shape, str(kind).replace('_', ' '),
                                color=style.PALETTE[1]))
  return handles


def spectra(singular: Mapping[str, np.ndarray],
            ax: style.Axes | None = None) -> style.Axes:
  """Singular values of embeddings, each divided by its sum.

  Args:
    singular: label -> descending singular values.
    ax: Axes to draw in, or None.
  """
  if not singular:
    raise ValueError('nothing to draw: no spectrum was given')
  ax = ax or style.axes()
  # More curves than colours: shades of one scale.
  shade: Any = style.PALETTE
  if len(singular) > len(shade):
    shade = style.SIZES(np.linspace(0, 1, len(singular)))
  for i, (name, s_K) in enumerate(singular.items()):
    s_K = np.asarray(s_K, float)
    # A logarithmic axis has no place for 0.
    s_K = s_K[s_K > 0] / s_K.sum()
    ax.plot(np.arange(1, len(s_K) + 1), s_K, lw=1.3, label=str(name),
            color=shade[i], ls='--' if 'untrained' in str(name) else '-')
  style.log_axis(ax.xaxis)
  style.log_axis(ax.yaxis)
  ax.set_xlabel('component (log scale)')
  ax.set_ylabel('share of the singular values (log scale)')
  # A longer legend would hide the curves.
  if len(singular) <= 12:
    ax.legend(fontsize=style.LEGEND, frameon=False, loc='lower left')
  return ax


def layers(values: Mapping[str, np.ndarray], y: str = 'rank',
           ax: style.Axes | None = None) -> style.Axes:
  """A number of every layer: the median of runs and their range, by size.

  Args:
    values: size -> a number of each run and layer, (N, L), from the first
      layer to the last; NaN where one is not known.
    y: what it is: rank or score.
    ax: Axes to draw in, or None.

  Raises:
    ValueError: no layer is known.
  """
  known = {size: v_NL[:, np.isfinite(v_NL).any(0)]
           for size, v_NL in values.items() if np.isfinite(v_NL).any()}
  if not known:
    raise ValueError(f'{style.NOTHING}no layer was measured')
  ax = ax or style.axes()
  handles, most = [], max(v_NL.shape[1] for v_NL in known.values())
  for i, size in enumerate(style.ordered(known)):
    v_NL = known[size]
    color, shape = style.look(i)
    place_L = np.arange(1, v_NL.shape[1] + 1)
    ax.plot(place_L, np.nanmedian(v_NL, 0), color=color, marker=shape, ms=5,
            lw=1.4, zorder=3)
    ax.fill_between(place_L, np.nanmin(v_NL, 0), np.nanmax(v_NL, 0),
                    color=color, alpha=.12, lw=0)
    handles.append(style.marker(shape, f'{size} ({len(v_NL)})', color=color))
  ax.set_xticks(range(1, most + 1))
  ax.set_xlabel('layer')
  ax.set_ylabel(style.label(y))
  if y == 'rank':
    style.log_axis(ax.yaxis, y)
  style.above(ax, handles)
  return ax


def early_final(table: pd.DataFrame, early: str, final: str = 'score',
                family: str | None = None,
                ax: style.Axes | None = None) -> style.Axes:
  """An early number against the final quality, coloured by family.

  Args:
    table: one row per run.
    early: the column of the early number.
    final: the column of the final quality.
    family: the column of what runs have in common, or None.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  style.need(table, *filter(None, (early, final, family)))
  table = table.dropna(subset=[early, final])
  parts = [('', table)]
  if family:
    parts = [(kind, table[table[family] == kind]) for kind in
             style.ordered(table[family].dropna().unique())]
  handles = []
  for i, (kind, part) in enumerate(parts):
    color, shape = style.look(i)
    ax.scatter(part[early], part[final], color=color, marker=shape, s=36,
               edgecolors='white', linewidths=.5, zorder=3)
    if family:
      handles.append(style.marker(shape, str(kind), color=color))
  # RankMe differs by factors, so its axis is logarithmic.
  if (table[early] > 0).all() and 'rank' in early.lower():
    style.log_axis(ax.xaxis, early)
  else:
    ax.set_xlabel(style.label(early))
  ax.set_ylabel(f'final {style.label(final)}')
  style.above(ax, handles, 4)
  return ax
