"""What all figures share: size, colours, numbers on axes, legends."""

import math
import pathlib

from matplotlib import cm
from matplotlib import colors
from matplotlib import figure
from matplotlib import lines
from matplotlib import ticker
import numpy as np

SIZE = (6., 4.5)
# Okabe and Ito (2008), black and yellow last: they carry thin lines badly.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00',
           '#000000', '#F0E442')
MARKERS = 'os^Dv<>P'
GREY = '#6b6b6b'
LABELS = {
    'rank': 'RankMe', 'score': 'mean downstream score',
    'valid_loss': 'validation loss', 'params': 'encoder parameters',
    'hours': 'hours of audio', 'flops': 'training FLOP', 'step': 'step',
    'mask_ratio': 'masking rate', 'width': 'width', 'depth': 'depth',
    'lr': 'learning rate',
}


def axes(size=SIZE, **keywords):
  """The Axes of a new figure of its own."""
  fig = figure.Figure(figsize=size, layout='constrained')
  return fig.add_subplot(**keywords)


def save(ax, stem, formats=('png', 'pdf'), dpi=150):
  """Writes the figure of an Axes as <stem>.<format>; returns the paths."""
  stem = pathlib.Path(stem)
  stem.parent.mkdir(parents=True, exist_ok=True)
  paths = []
  for kind in formats:
    paths.append(stem.with_name(f'{stem.name}.{kind}'))
    ax.figure.savefig(paths[-1], dpi=dpi)
  return paths


def plain(value, _=None):
  """A number as people write it: 0.5, 200, 10k, 3M, 2G, 1e+19."""
  if value == 0 or not math.isfinite(value):
    return f'{value:g}'
  for power, letter in ((12, 'T'), (9, 'G'), (6, 'M'), (3, 'k')):
    if 10 ** power <= abs(value) < 10 ** (power + 3):
      if power > 3 or abs(value) >= 1e4:
        return f'{value / 10 ** power:.3g}{letter}'
  return f'{value:.4g}' if 1e-4 <= abs(value) < 1e5 else f'{value:.2g}'


def label(name):
  """What an axis says of a column."""
  return LABELS.get(name, str(name).replace('_', ' '))


def log_axis(axis, name=None):
  """Makes an axis logarithmic, with plain numbers and few of them."""
  getattr(axis.axes, f'set_{axis.axis_name}scale')('log')
  low, high = sorted(axis.get_view_interval())
  span = math.log10(max(high, 1e-300) / max(low, 1e-300))
  if span < .45:
    axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
  else:
    subs = ((1., 1.5, 2., 3., 4., 6.) if span < 1.1 else (1., 2., 5.) if
            span < 2.2 else (1., 3.) if span < 3.5 else (1.,))
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=8))
  axis.set_major_formatter(ticker.FuncFormatter(plain))
  axis.set_minor_formatter(ticker.NullFormatter())
  if name is not None:
    axis.set_label_text(f'{label(name)} (log scale)')


def emptiest(ax, x, y, boxes):
  """The box, of (left, bottom, width, height) in axes units, with least in.

  Call it when the limits of the axes are final.

  Returns:
    The box, and how many points lie in it.
  """
  at = ax.transAxes.inverted().transform(ax.transData.transform(
      np.stack([np.asarray(x, float), np.asarray(y, float)], 1)))
  # A margin around the box keeps its title and ticks clear as well.
  inside = lambda box: np.sum(
      (at[:, 0] > box[0] - .08) & (at[:, 0] < box[0] + box[2] + .04) &
      (at[:, 1] > box[1] - .1) & (at[:, 1] < box[1] + box[3] + .09))
  best = min(boxes, key=inside)
  return best, int(inside(best))


def ordered(kinds):
  """Families in the order people count: en32 before en128."""
  return sorted(kinds, key=lambda kind: (len(kind), kind) if isinstance(
      kind, str) else (0, kind))


def above(ax, handles, columns=3):
  """A legend above the axes, clear of the data."""
  if handles:
    ax.legend(handles=handles, loc='lower left', bbox_to_anchor=(0., 1.01),
              ncols=min(columns, len(handles)), frameon=False, fontsize=8,
              borderaxespad=0., handletextpad=.5, columnspacing=1.2)


def marker(shape, text, filled=True, color=GREY):
  """A legend entry of one marker."""
  return lines.Line2D([], [], ls='', marker=shape, color=color, label=text,
                      mfc=color if filled else 'none', ms=6)


def shades(values):
  """The logarithmic viridis scale of some positive values."""
  values = np.asarray(values, float)
  low, high = values.min(), values.max()
  return cm.ScalarMappable(colors.LogNorm(low, high if high > low else
                                          low * 1.01), 'viridis')


def bar(ax, scale, text, values=()):
  """A colour bar with plain numbers at few places."""
  made = ax.figure.colorbar(scale, ax=ax, pad=.015, aspect=30)
  ticks = np.unique(values)
  if not 0 < len(ticks) <= 5:
    ticks = np.geomspace(scale.norm.vmin, scale.norm.vmax, 4)
  made.set_ticks(ticks, labels=[plain(float(f'{t:.2g}')) for t in ticks],
                 minor=False)
  made.ax.minorticks_off()
  made.set_label(text, fontsize=9)


def size_colors(ax, values, name='params'):
  """Colour of each size on a logarithmic viridis scale, with its bar."""
  values = np.asarray(values, float)
  if not len(values) or np.ptp(values) == 0:
    return np.full((len(values), 4), colors.to_rgba(PALETTE[0]))
  scale = shades(values)
  bar(ax, scale, label(name), values)
  return scale.to_rgba(values)


def need(table, *names):
  """Raises ValueError where columns or all rows are missing."""
  missing = [name for name in names if name not in table]
  if missing:
    raise ValueError(f'no column {", ".join(map(repr, missing))} to draw: the '
                     f'table has {", ".join(map(str, table.columns))}')
  if not len(table):
    raise ValueError('nothing to draw: the table has no rows')


