"""What all figures share: size, colours, numbers on axes, legends."""

from collections.abc import Iterable
from collections.abc import Sequence
import math
import os
import pathlib
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import axis as mpl_axis
from matplotlib import cm
from matplotlib import colors
from matplotlib import figure
from matplotlib import layout_engine
from matplotlib import lines
from matplotlib import ticker
import numpy as np
import pandas as pd

from audiorank import files

Axes = mpl_axes.Axes

# A figure as wide as a phone's page: there its letters keep their size.
SIZE = (5., 3.9)
NOTHING = 'nothing to draw: '  # How a figure says that it has no data.
LETTERS = 10  # Points.
LEGEND = 9  # Points of a legend's letters.
INK = 'black'  # On a page it becomes the page's own ink.
# Okabe and Ito (2008), black and yellow last: they carry thin lines badly.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00',
           '#000000', '#F0E442')
# One more than colours, so that 72 kinds look different.
MARKERS = 'os^Dv<>PX'
GREY = '#6b6b6b'
# Sizes from blue to light green: what of viridis shows on white and on black.
SIZES = colors.ListedColormap(
    cm.ScalarMappable(colors.Normalize(0, 1), 'viridis').to_rgba(
        np.linspace(.28, .88, 256)), 'sizes')
LABELS = {
    'rank': 'RankMe', 'score': 'mean downstream score',
    'valid_loss': 'validation loss', 'params': 'encoder parameters',
    'hours': 'hours of audio', 'hours_asked': 'hours of audio',
    'flops': 'training FLOP', 'step': 'step',
    'mask_ratio': 'masking rate', 'width': 'width', 'depth': 'depth',
    'lr': 'learning rate',
}


def axes(size: tuple[float, float] = SIZE, **keywords: Any) -> Axes:
  """Returns the Axes of a new figure of its own."""
  fig = figure.Figure(figsize=size, layout='constrained')
  return fig.add_subplot(**keywords)


def save(ax: Axes, stem: str | os.PathLike[str],
         formats: Sequence[str] = ('png', 'pdf'),
         dpi: int = 150) -> list[pathlib.Path]:
  """Writes the figure of an Axes as <stem>.<format>; returns the paths."""
  stem = files.path(stem)
  paths = []
  for kind in formats:
    paths.append(stem.with_name(f'{stem.name}.{kind}'))
    with files.replacing(paths[-1], sync=False) as part:
      # The whole figure, where `ax` is in a part of one.
      ax.figure.figure.savefig(part, dpi=dpi, format=kind)
  return paths


def plain(value: float, _: Any = None) -> str:
  """Returns a number as people write it: 0.5, 200, 10k, 3M, 2G, 1e+19."""
  if value == 0 or not math.isfinite(value):
    return f'{value:g}'
  size = abs(value)
  for power, letter in ((12, 'T'), (9, 'G'), (6, 'M'), (3, 'k')):
    # From 10k on: people read 1500 faster than 1.5k.
    if max(10 ** power, 1e4) <= size < 10 ** (power + 3):
      return f'{value / 10 ** power:.3g}{letter}'
  if 1e-4 <= size < 1e5:
    return f'{value:.4g}'
  return f'{value:.2g}'


def label(name: str) -> str:
  """Returns what an axis says of a column."""
  return LABELS.get(name, str(name).replace('_', ' '))


def log_axis(axis: mpl_axis.XAxis | mpl_axis.YAxis,
             name: str | None = None) -> None:
  """Makes an axis logarithmic, with plain numbers and few of them."""
  getattr(axis.axes, f'set_{axis.axis_name}scale')('log')
  low, high = sorted(axis.get_view_interval())
  span = math.log10(max(high, 1e-300) / max(low, 1e-300))
  # Less than a factor of 2.8: ticks as on a linear axis.
  if span < .45:
    axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
  else:
    axis.set_major_locator(ticker.LogLocator(subs=_subs(span), numticks=8))
  axis.set_major_formatter(ticker.FuncFormatter(plain))
  axis.set_minor_formatter(ticker.NullFormatter())
  if name is not None:
    axis.set_label_text(f'{label(name)} (log scale)')


def _subs(decades: float) -> tuple[float, ...]:
  """Returns which multiples of a power of ten get a tick."""
  if decades < 1.1:
    return (1., 1.5, 2., 3., 4., 6.)
  if decades < 2.2:
    return (1., 2., 5.)
  if decades < 3.5:
    return (1., 3.)
  return (1.,)


def around(ax: Axes, values: np.ndarray, margin: float = .08) -> None:
  """Sets the y axis by the data: a band's tail does not stretch it."""
  values = np.asarray(values, float)
  values = values[np.isfinite(values)]
  if not len(values):
    return
  low, high = values.min(), values.max()
  # Equal values get 5 % on either side.
  pad = margin * (high - low) or .05 * max(abs(high), 1e-3)
  ax.set_ylim(low - pad, high + pad)


def ordered(kinds: Iterable[Any]) -> list[Any]:
  """Returns families in the order people count: en32 before en128."""
  # Names by length first; numbers have none.
  return sorted(kinds, key=lambda kind: (isinstance(kind, str) and len(kind),
                                         kind))


def above(ax: Axes, handles: Sequence[Any], columns: int = 3) -> None:
  """Puts a legend above the axes, clear of the data and of the colour bar."""
  if not handles:
    return
  about = dict(handles=handles, ncols=min(columns, len(handles)),
               frameon=False, fontsize=LEGEND, borderaxespad=0.,
               handletextpad=.5, columnspacing=1.2)
  engine = ax.figure.get_layout_engine()
  if isinstance(engine, layout_engine.ConstrainedLayoutEngine):
    # The figure's own legend takes height alone: the axes keep their width.
    ax.figure.legend(loc='outside upper left', **about)
  else:
    ax.legend(loc='lower left', bbox_to_anchor=(0., 1.01), **about)


def look(i: int) -> tuple[str, str]:
  """Returns the colour and the marker of the i-th kind."""
  return PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]


def marker(shape: str, text: str, filled: bool = True,
           color: str = GREY) -> lines.Line2D:
  """Returns a legend entry of one marker."""
  face = 'none'
  if filled:
    face = color
  return lines.Line2D([], [], ls='', marker=shape, color=color, label=text,
                      mfc=face, ms=6)


def line(text: str, color: str = GREY, **keywords: Any) -> lines.Line2D:
  """Returns a legend entry of one line."""
  return lines.Line2D([], [], color=color, label=text, **keywords)


def shades(values: Any) -> cm.ScalarMappable:
  """Returns the logarithmic colour scale of some positive values."""
  values = np.asarray(values, float)
  low, high = values.min(), values.max()
  # A scale of a single value needs some width.
  if high <= low:
    high = low * 1.01
  return cm.ScalarMappable(colors.LogNorm(low, high), SIZES)


def bar(ax: Axes, scale: cm.ScalarMappable, text: str,
        values: Any = ()) -> None:
  """Adds a colour bar with plain numbers at few places."""
  colorbar = ax.figure.colorbar(scale, ax=ax, pad=.015, aspect=30)
  ticks = np.unique(values)
  if not 0 < len(ticks) <= 5:
    ticks = np.geomspace(*scale.get_clim(), 4)
  colorbar.set_ticks(
      ticks.tolist(), labels=[plain(float(f'{t:.2g}')) for t in ticks],
      minor=False)
  colorbar.ax.minorticks_off()
  colorbar.set_label(text, fontsize=LETTERS)


def size_colors(ax: Axes, values: Any, name: str = 'params') -> np.ndarray:
  """Returns the colour of each size on a logarithmic scale, with its bar."""
  values = np.asarray(values, float)
  if not len(values) or np.ptp(values) == 0:
    return np.full((len(values), 4), colors.to_rgba(PALETTE[0]))
  scale = shades(values)
  bar(ax, scale, label(name), values)
  return scale.to_rgba(values)


def need(table: pd.DataFrame, *names: str) -> None:
  """Raises ValueError where columns or all rows are missing."""
  missing = [name for name in names if name not in table]
  if missing:
    raise ValueError(f'no column {", ".join(map(repr, missing))} to draw: the '
                     f'table has {", ".join(map(str, table.columns))}')
  if not len(table):
    raise ValueError(f'{NOTHING}the table has no rows')
