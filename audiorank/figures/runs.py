"""Figures of runs: rank and score over size, data, steps and tasks."""

import math

from matplotlib import cm
from matplotlib import colors
from matplotlib import lines
import numpy as np
import pandas as pd

from audiorank.figures import fits
from audiorank.figures import style
from audiorank.laws import early as agree


def _halves(runs, *names):
  """The last rows of trained runs and the rows of untrained networks."""
  style.need(runs, *names)
  whole = runs.dropna(subset=list(names))
  blank = pd.Series(False, whole.index)
  untrained = (whole['untrained'] if 'untrained' in whole else blank
               ).astype(bool)
  final = (whole['final'] if 'final' in whole else ~blank).astype(bool)
  return whole[final & ~untrained], whole[untrained]


def rank_score(runs, fit=None, ax=None, inset=True):
  """RankMe against score: the law of the paper, or its absence.

  Trained runs filled, coloured by size, marker by masking rate; untrained
  networks open and grey; the fit with its band, dashed outside the data.

  Args:
    runs: the runs table (rank, score, params, mask_ratio, ...).
    fit: a Fit of score to rank, or None.
    ax: Axes to draw in, or None.
    inset: with a fit that has Q_inf: draw its profile in a corner.
  """
  ax = ax or style.axes()
  trained, untrained = _halves(runs, 'rank', 'score')
  handles = _scatter(ax, trained, 'rank', 'score', bars=True)
  handles += _hollow(ax, untrained, 'rank', 'score')
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
