"""Meshes that a point could have on a slice, and which of them it gets.

A `Layout` is what may change without changing the experiment: how many
devices share the kernels (fsdp), and whether activations are recomputed
(remat). A smaller batch is another experiment and is named as one.
"""

from typing import NamedTuple

from ml_collections import config_dict

from audiorank import records
from launch.pod import programs
from launch.pod import roofline
from launch.pod import store

FSDP = (4, 16)  # Devices that share a kernel, where it is tried.


class Layout(NamedTuple):
  fsdp: int
  remat: bool
  batch: int

  def __str__(self):
    return (f'fsdp {self.fsdp}' + (', remat' if self.remat else '')
            + f', batch {self.batch}')


class Tried(NamedTuple):
  layout: Layout
  answer: dict  # Of the compiler.
  bound: roofline.Bound | None  # None where it does not fit.


def own(config):
  """Returns the layout that a config asks for."""
  return Layout(config.mesh.fsdp, config.model.remat, config.train.batch)


def why_not(config, layout, chips):
  """Returns why a layout cannot divide over a slice, or ''."""
  if chips % layout.fsdp:
    return f'mesh.fsdp {layout.fsdp} does not divide {chips} chips'
  for field, batch in (('train.batch', layout.batch),
                       ('monitor.batch', config.monitor.batch)):
    if batch % chips:
      return f'{field} {batch} is not a multiple of {chips} chips'
  return ''


def with_layout(config, layout, chips):
  """Returns a mutable copy of a config in another layout."""
  out = config_dict.ConfigDict(records.plain(config))
  out.mesh.update({'data': chips // layout.fsdp, 'fsdp': layout.fsdp})
  out.model.remat = layout.remat
  out.train.batch = layout.batch
  return out


def spec(name, config, layout, chips):
  """Returns the spec of one program of a config in a layout."""
  return programs.spec(name, with_layout(config, layout, chips),
                       chips // layout.fsdp, layout.fsdp)


def tried(config, layouts, piece, effort):
  """Returns [Tried] of layouts that divide, compiling their steps."""
  layouts = [x for x in layouts if not why_not(config, x, piece.chips)]
  specs = [spec('step', config, x, piece.chips) for x in layouts]
  got = store.answers(specs, piece, effort)
  return [judged(config, x, piece, got[store.text(s)])
          for x, s in zip(layouts, specs)]


def judged(config, layout, piece, answer):
  """Returns the Tried of a compiler's answer."""
  if not answer['fits'] or answer['peak'] > piece.chip.memory:
    return Tried(layout, {**answer, 'fits': False}, None)
  wire = sum(c['wire'] for c in answer['collectives'].values())
  return Tried(layout, answer, roofline.bound(
      with_layout(config, layout, piece.chips), piece, wire,
      answer['traffic']))


def remedies(config, piece, effort):
  """Returns [Tried]: what makes a point fit, each compiled.

  remat and more fsdp apart and together; where none fits, batches halved
  until one does.
  """
  mine = own(config)
  fsdp = [f for f in FSDP if f > mine.fsdp and piece.chips % f == 0]
  out = tried(config, [mine._replace(remat=True),
                       *(mine._replace(fsdp=f) for f in fsdp),
                       *(mine._replace(fsdp=f, remat=True) for f in fsdp)],
              piece, effort)
  batch = mine.batch // 2
  while not any(t.answer['fits'] for t in out) and batch >= piece.chips:
    out += tried(config, [mine._replace(
        fsdp=max(fsdp, default=mine.fsdp), remat=True, batch=batch)],
                 piece, effort)
    batch //= 2
  return out


def fastest(config, piece, effort):
  """Returns the Tried with the least bound that fits, at the same batch.

  Raises:
    ValueError: none divides or fits; says why.
  """
  mine = own(config)
  why = why_not(config, mine._replace(fsdp=1), piece.chips)
  if why:
    raise ValueError(why)
  plain = [mine._replace(fsdp=f, remat=False) for f in (1, *FSDP)
           if f <= piece.chips]
  out = tried(config, plain, piece, effort)
  if not any(t.bound for t in out):
    out = tried(config, [x._replace(remat=True) for x in plain], piece, effort)
  fit = [t for t in out if t.bound]
  if not fit:
    raise ValueError(f'train.batch {mine.batch} does not fit {piece.name} by '
                     'any mesh, with remat or without: take a larger slice')
  return min(fit, key=lambda t: t.bound.seconds)
