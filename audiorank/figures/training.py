"""Figures of training: rank over steps, spectra, what early readings tell."""

import math

from matplotlib import cm
from matplotlib import colors
from matplotlib import lines
import numpy as np

from audiorank.figures import style
from audiorank.laws import early as agree


def rank_steps(history, ax=None, marked=None):
  """RankMe over training for every run, the untrained network at the left.

  Args:
    history: rows of run_id, step, rank and, where known, rank_low,
      rank_high, params.
    ax: Axes to draw in, or None.
    marked: the DataFrame of `laws.failures.unstable`, or None: its runs get
      a cross at the step.
  """
  ax = ax or style.axes()
  style.need(history, 'run_id', 'step', 'rank')
  history = history.dropna(subset=['rank']).sort_values('step')
  positive = history['step'][history['step'] > 0]
  start = positive.min() / 2 if len(positive) else 1.
  runs = [(run, rows) for run, rows in history.groupby('run_id', sort=False)]
  sizes = np.array([rows['params'].iloc[0] if 'params' in rows else 1.
                    for _, rows in runs], float)
  rgba = style.size_colors(ax, sizes)
  for (_, rows), color in zip(runs, rgba):
    x = rows['step'].clip(lower=start)
    ax.plot(x, rows['rank'], color=color, lw=1.2, marker='.', ms=4)
    if {'rank_low', 'rank_high'} <= set(rows.columns):
      ax.fill_between(x, rows['rank_low'].astype(float),
                      rows['rank_high'].astype(float), color=color, alpha=.15,
                      lw=0)
    first = rows[rows['step'] == 0]
    ax.scatter(np.full(len(first), start), first['rank'], s=30, zorder=3,
               facecolors='white', edgecolors=[color] * len(first))
  style.log_axis(ax.xaxis, 'step')
  ax.set_ylabel(style.label('rank'))
  handles = [lines.Line2D([], [], color=style.GREY, marker='.',
                          label='trained')]
  if marked is not None and len(marked):
    for _, row in marked.iterrows():
      curve = history[history['run_id'] == row['run_id']]
      if len(curve):
        near = curve.loc[(curve['step'] - row['step']).abs().idxmin()]
        ax.scatter(max(near['step'], start), near['rank'], marker='X', s=70,
                   color=style.PALETTE[1], edgecolors='white', zorder=5)
    handles.append(style.marker('X', ', '.join(
        dict.fromkeys(marked['kind'])), color=style.PALETTE[1]))
  if (history['step'] == 0).any():
    ax.axvline(start * 2 ** .5, color=style.GREY, lw=.8, ls=':')
    handles.append(style.marker(
        'o', 'untrained (step 0, left of the dotted line)', filled=False))
  style.above(ax, handles)
  return ax


def spectra(singular, ax=None):
  """Singular values of embeddings, each divided by its sum.

  Args:
    singular: label -> descending singular values.
    ax: Axes to draw in, or None.
  """
  if not singular:
    raise ValueError('nothing to draw: no spectrum was given')
  ax = ax or style.axes()
  several = len(singular) > len(style.PALETTE)
  shades = cm.ScalarMappable(colors.Normalize(0, max(len(singular) - 1, 1)),
                             'viridis')
  for i, (name, s_K) in enumerate(singular.items()):
    s_K = np.asarray(s_K, float)
    s_K = s_K[s_K > 0] / s_K.sum()
    ax.plot(np.arange(1, len(s_K) + 1), s_K, lw=1.3, label=str(name),
            color=shades.to_rgba(i) if several else style.PALETTE[i],
            ls='--' if 'untrained' in str(name) else '-')
  style.log_axis(ax.xaxis)
  style.log_axis(ax.yaxis)
  ax.set_xlabel('component (log scale)')
  ax.set_ylabel('share of the singular values (log scale)')
  if len(singular) <= 12:
    ax.legend(fontsize=8, frameon=False, loc='lower left')
  return ax


def early_final(table, early, final='score', family=None, ax=None):
  """An early number against the final quality, coloured by family.

  Args:
    table: one row per run.
    early: the column of the early number.
    final: the column of the final quality.
    family: the column of what runs have in common, or None.
    ax: Axes to draw in, or None.
  """
  ax = ax or style.axes()
  style.need(table, early, final, *([family] if family else []))
  table = table.dropna(subset=[early, final])
  kinds = style.ordered(table[family].dropna().unique()) if family else ['']
  handles = []
  for i, kind in enumerate(kinds):
    part = table[table[family] == kind] if family else table
    color = style.PALETTE[i % len(style.PALETTE)]
    shape = style.MARKERS[i % len(style.MARKERS)]
    ax.scatter(part[early], part[final], color=color, marker=shape, s=36,
               edgecolors='white', linewidths=.5, zorder=3)
    if family:
      text = f'{kind:g}' if isinstance(kind, (int, float)) else str(kind)
      handles.append(style.marker(shape, f'{style.label(family)} {text}',
                                  color=color))
  if (table[early] > 0).all() and 'rank' in early.lower():
    style.log_axis(ax.xaxis, early)
  else:
    ax.set_xlabel(style.label(early))
  ax.set_ylabel(f'final {style.label(final)}')
  if len(table) > 2:
    found = agree.agreement(table[early], table[final], table[family] if family
                            else None)
    words = (f'tau {found.tau:.2f} ({found.tau_low:.2f} to '
             f'{found.tau_high:.2f}), n = {found.n}')
    if family and math.isfinite(found.within):
      words += f'\nwithin {style.label(family)}: tau {found.within:.2f}'
    if found.exploratory:
      words += f'\nexploratory: fewer than {agree.ENOUGH} runs'
    # Room of its own above the points.
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + .22 * (high - low))
    ax.text(.02, .98, words, transform=ax.transAxes, va='top', fontsize=8)
  style.above(ax, handles)
  return ax
