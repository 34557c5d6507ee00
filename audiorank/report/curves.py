"""Each run's curves, as drawings of a few hundred bytes each.

Lines in the page's own colours, so that they are read on light and on dark;
a page of a thousand runs stays a page.
"""

import html
import json
import pathlib

import numpy as np

from audiorank import records
from audiorank.figures import style
from audiorank.report import parts

WIDE, HIGH, LEFT, LOW = 320, 190, 52, 34  # Points of a drawing; its margins.
MOST = 160  # Points of a line.


def runs(root, made):
  """Returns a foldable account of every run: numbers, curves, spectrum."""
  out = []
  for _, row in made.runs.sort_values(
      ['width', 'depth', 'untrained', 'hours', 'mask_ratio']).iterrows():
    read = made.history[made.history['run_id'] == row['run_id']].sort_values(
        'step') if len(made.history) else made.history
    drawn = [d for d in (rank(read), loss(root, row['run_id'], read),
                         spectrum(root, row['run_id'])) if d]
    score = parts.number(row['score'])
    out.append(
        f'<details id="run-{html.escape(row["run_id"])}"><summary>'
        f'{html.escape(str(row["name"]))} <span class="small">'
        f'{html.escape(row["run_id"])}, RankMe {parts.interval(row, "rank")}, '
        f'score {score}</span></summary><div class="charts">'
        f'{"".join(drawn)}</div></details>')
  return out


def rank(read):
  """Returns the drawing of RankMe over the steps, or ''."""
  if not len(read):
    return ''
  lines = [(read['step'], read['rank'], '')]
  if 'rank_low' in read:
    lines += [(read['step'], read[f'rank_{end}'], 'faint')
              for end in ('low', 'high')]
  return chart('RankMe over steps, 95 %', lines, log_x=True)


def loss(root, run_id, read):
  """Returns the drawing of training and held-out loss, or ''."""
  lines, path = [], pathlib.Path(root) / run_id / 'metrics.jsonl'
  if path.is_file():
    rows = [json.loads(line) for line in
            path.read_text(encoding='utf-8').splitlines() if line.strip()]
    rows = [r for r in rows if r.get('loss') is not None]
    lines.append(([r['step'] for r in rows], [r['loss'] for r in rows],
                  'faint'))
  if 'valid_loss' in read:
    lines.append((read['step'], read['valid_loss'], ''))
  return chart('loss over steps: training (faint), held out', lines,
               log_x=True)


def spectrum(root, run_id):
  """Returns the drawing of the last spectrum and the first, or ''."""
  read = [r['rank']['spectrum'] for r in
          records.read(pathlib.Path(root) / run_id, 'monitor')
          if r['rank'].get('spectrum')]
  if not read:
    return ''
  lines = [(*zip(*s), kind) for s, kind in ((read[0], 'faint'),
                                            (read[-1], ''))]
  return chart('share of singular values by component: first reading (faint), '
               'last', lines, log_x=True, log_y=True)


def chart(title, lines, log_x=False, log_y=False):
  """Returns a <figure> of lines as SVG, or '' where no line has two points.

  Args:
    title: what it shows, for people who hear the page too.
    lines: of (x, y, class).
    log_x, log_y: logarithmic axes; 0 stands left of the first positive x.
  """
  kept, zero = [], False
  for x, y, kind in lines:
    x, y = np.asarray(list(x), float), np.asarray(list(y), float)
    if log_x and (x > 0).any() and (x <= 0).any():
      x, zero = np.where(x > 0, x, x[x > 0].min() / 2), True
    good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log_y))
    x, y = x[good], y[good]
    if len(x) > MOST:
      at = np.unique(np.rint(np.linspace(0, len(x) - 1, MOST)).astype(int))
      x, y = x[at], y[at]
    if len(x) > 1:
      kept.append((x, y, kind))
  if not kept:
    return ''
  scale_x, scale_y = (axis(np.concatenate([line[i] for line in kept]), log)
                      for i, log in ((0, log_x), (1, log_y)))
  marks = []
  for value, at in scale_x[1]:
    px = LEFT + at * (WIDE - LEFT - 8)
    side = 'end' if at == 1 else 'middle'
    value = '0' if zero and not at else value
    marks.append(f'<text x="{px:.0f}" y="{HIGH - 12}" text-anchor="{side}">'
                 f'{value}</text>')
  for value, at in scale_y[1]:
    py = HIGH - LOW - at * (HIGH - LOW - 8)
    marks.append(f'<text x="{LEFT - 6}" y="{py + 4:.0f}" text-anchor="end">'
                 f'{value}</text>')
  drawn = ''.join(
      f'<polyline class="{kind}" points="'
      + ' '.join(f'{LEFT + a * (WIDE - LEFT - 8):.1f},'
                 f'{HIGH - LOW - b * (HIGH - LOW - 8):.1f}'
                 for a, b in zip(scale_x[0](x), scale_y[0](y))) + '"/>'
      for x, y, kind in kept)
  text = html.escape(title)
  return (f'<figure><svg viewBox="0 0 {WIDE} {HIGH}" role="img" '
          f'aria-label="{text}"><path d="M{LEFT} 4V{HIGH - LOW}H{WIDE - 4}"/>'
          f'{"".join(marks)}{drawn}</svg><figcaption>{text}</figcaption>'
          '</figure>')


def axis(values, log):
  """Returns (value -> 0..1, [(text, place)]) of an axis."""
  link = np.log10 if log else (lambda v: v)
  low, high = float(link(values.min())), float(link(values.max()))
  if high - low < 1e-12:
    low, high = low - .5, high + .5
  place = lambda v: (link(np.asarray(v, float)) - low) / (high - low)
  ticks = []
  for share in (0., .5, 1.):
    value = low + share * (high - low)
    value = 10 ** value if log else value
    ticks.append((style.plain(float(f'{value:.3g}')), share))
  return place, ticks
