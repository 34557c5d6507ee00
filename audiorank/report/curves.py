"""Each run's curves, as drawings of a few hundred bytes each.

Lines in the page's own colours, so that they are read on light and on dark;
a page of a thousand runs stays a page.
"""

from collections.abc import Callable
import html
import os
from typing import Any

import numpy as np
import pandas as pd

from audiorank import files
from audiorank import records
from audiorank.figures import style
from audiorank.report import numbers
from audiorank.report import tables

WIDE, HIGH, LEFT, LOW = 320, 190, 52, 34  # Points of a drawing; its margins.
MOST = 160  # Points of a line.
Line = tuple[Any, Any, str]  # x, y and the class that its style hangs on.


def runs(root: os.PathLike, sweep: records.Tables) -> list[str]:
  """Returns a foldable account of every run: numbers, curves, spectrum."""
  out = []
  for _, row in tables.ordered(sweep.runs).iterrows():
    history = sweep.history
    if len(history):
      history = history[history['run_id'] == row['run_id']].sort_values('step')
    charts = [chart for chart in (
        rank(history), loss(root, row['run_id'], history),
        spectrum(root, row['run_id'])) if chart]
    out.append(
        f'<details id="run-{html.escape(row["run_id"])}"><summary>'
        f'{html.escape(str(row["name"]))} <span class="small">'
        f'{html.escape(row["run_id"])}, RankMe {tables.rank(row, "rank")}, '
        f'score {numbers.number(row["score"])}</span></summary>'
        f'<div class="charts">{"".join(charts)}</div></details>')
  return out


def rank(history: pd.DataFrame) -> str:
  """Returns the drawing of RankMe over the steps, or ''."""
  if not len(history):
    return ''
  lines = [(history['step'], history['rank'], '')]
  if 'rank_low' in history:
    lines += [(history['step'], history[f'rank_{end}'], 'faint')
              for end in ('low', 'high')]
  return chart('RankMe over steps; faint: its 95 % interval', lines,
               log_x=True)


def loss(root: os.PathLike, run_id: str, history: pd.DataFrame) -> str:
  """Returns the drawing of training and held-out loss, or ''."""
  lines = []
  rows = [row for row in records.metric_rows(files.path(root) / run_id)
          if row.get('loss') is not None]
  if rows:
    lines.append(([row['step'] for row in rows],
                  [row['loss'] for row in rows], 'faint'))
  if 'valid_loss' in history:
    lines.append((history['step'], history['valid_loss'], ''))
  return chart('loss over steps; faint: training, bold: validation', lines,
               log_x=True)


def spectrum(root: os.PathLike, run_id: str) -> str:
  """Returns the drawing of the last spectrum and the first, or ''."""
  # Without those of a collapse, which has no spectrum.
  several = [record['rank']['spectrum'] for record in
             records.read(files.path(root) / run_id, 'monitor')
             if record['rank'].get('spectrum')]
  if not several:
    return ''
  lines: list[Line] = []
  for shares, kind in ((several[0], 'faint'), (several[-1], '')):
    number, share = zip(*shares)
    lines.append((number, share, kind))
  return chart('share of singular values by component; faint: first '
               'evaluation, bold: last', lines, log_x=True, log_y=True)


def chart(title: str, lines: list[Line], log_x: bool = False,
          log_y: bool = False) -> str:
  """Returns a <figure> of lines as SVG, or '' where no line has two points.

  Args:
    title: what it shows, for people who hear the page too.
    lines: of (x, y, class).
    log_x, log_y: logarithmic axes; 0 stands left of the first positive x.
  """
  drawable, has_zero = thinned(lines, log_x, log_y)
  if not drawable:
    return ''
  # One scale for all lines of a drawing.
  scale_x, scale_y = (axis(np.concatenate([line[i] for line in drawable]), log)
                      for i, log in ((0, log_x), (1, log_y)))
  marks = []
  for value, at in scale_x[1]:
    px = LEFT + at * (WIDE - LEFT - 8)
    side = 'middle'
    if at == 1:
      # The last label ends at the axis, so that it stays within the drawing.
      side = 'end'
    if has_zero and not at:
      value = '0'
    marks.append(f'<text x="{px:.0f}" y="{HIGH - 12}" text-anchor="{side}">'
                 f'{value}</text>')
  for value, at in scale_y[1]:
    # SVG counts from the top.
    py = HIGH - LOW - at * (HIGH - LOW - 8)
    marks.append(f'<text x="{LEFT - 6}" y="{py + 4:.0f}" text-anchor="end">'
                 f'{value}</text>')
  polylines = ''.join(
      f'<polyline class="{kind}" points="'
      + ' '.join(f'{LEFT + a * (WIDE - LEFT - 8):.1f},'
                 f'{HIGH - LOW - b * (HIGH - LOW - 8):.1f}'
                 for a, b in zip(scale_x[0](x), scale_y[0](y))) + '"/>'
      for x, y, kind in drawable)
  text = html.escape(title)
  return (f'<figure><svg viewBox="0 0 {WIDE} {HIGH}" role="img" '
          f'aria-label="{text}"><path d="M{LEFT} 4V{HIGH - LOW}H{WIDE - 4}"/>'
          f'{"".join(marks)}{polylines}</svg><figcaption>{text}</figcaption>'
          '</figure>')


def thinned(lines: list[Line], log_x: bool,
            log_y: bool) -> tuple[list[Line], bool]:
  """Returns lines of at most MOST points each, and whether 0 was on a
  logarithmic x axis: it stands left of the first positive x."""
  out, has_zero = [], False
  for x, y, kind in lines:
    x, y = np.asarray(list(x), float), np.asarray(list(y), float)
    if log_x and (x > 0).any() and (x <= 0).any():
      x, has_zero = np.where(x > 0, x, x[x > 0].min() / 2), True
    good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log_y))
    x, y = x[good], y[good]  # Others have no place on the axes.
    if len(x) > MOST:
      # Evenly spaced: a mean would hide jumps of the loss.
      at = np.unique(np.rint(np.linspace(0, len(x) - 1, MOST)).astype(int))
      x, y = x[at], y[at]
    if len(x) > 1:
      out.append((x, y, kind))
  return out, has_zero


def axis(values: np.ndarray, log: bool
         ) -> tuple[Callable[[Any], np.ndarray], list[tuple[str, float]]]:
  """Returns (value -> 0..1, [(text, place)]) of an axis."""
  link, back = (lambda v: v), (lambda v: v)
  if log:
    link, back = np.log10, (lambda v: 10 ** v)
  low, high = float(link(values.min())), float(link(values.max()))
  # A constant line stands in the middle.
  if high - low < 1e-12:
    low, high = low - .5, high + .5
  place = lambda v: (link(np.asarray(v, float)) - low) / (high - low)
  ticks = []
  for share in (0., .5, 1.):
    value = back(low + share * (high - low))
    ticks.append((style.plain(float(f'{value:.3g}')), share))
  return place, ticks
