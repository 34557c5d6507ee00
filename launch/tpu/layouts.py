"""Chooses the layout of a run on a slice.

A layout is everything that can change without changing the experiment: how
many devices share the kernels (fsdp), and what the backward pass recomputes
(remat). A smaller batch would be another experiment.
"""

from collections.abc import Iterable
import pathlib
import re
from typing import Any
from typing import NamedTuple

from ml_collections import config_dict

from audiorank import model
from audiorank import records
from audiorank import sharding
from launch.tpu import compiler
from launch.tpu import programs
from launch.tpu import slices

FSDP = (4, 16)  # Numbers of devices that share a kernel, besides 1.


class Layout(NamedTuple):
  """The layout of a run on its slice."""
  fsdp: int
  remat: str  # One of model.REMAT.
  batch: int  # Clips of a step, over all chips.

  def __str__(self) -> str:
    return f'fsdp {self.fsdp}, remat {self.remat}, batch {self.batch}'

  def mesh(self, chips: int) -> str:
    """Returns data x fsdp, such as 64x4."""
    return f'{chips // self.fsdp}x{self.fsdp}'

  def flags(self, chips: int) -> list[str]:
    """Returns the flags of the worker for this layout."""
    return [f'--mesh={self.mesh(chips)}', f'--remat={self.remat}']


class Result(NamedTuple):
  """The compiler's answer for a layout."""
  layout: Layout
  answer: dict[str, Any]
  bound: slices.Bound | None  # None if it does not fit.


def own(config: Any) -> Layout:
  """Returns the layout in a config."""
  return Layout(config.mesh.fsdp, model.rematerialisation(config.model, 'tpu'),
                config.train.batch)


def obstacle(config: Any, layout: Layout, chips: int) -> str:
  """Returns why a slice cannot be divided like this, or ''."""
  if chips % layout.fsdp:
    return f'mesh.fsdp {layout.fsdp} does not divide {chips} chips'
  # Batches are divided over all devices, those of fsdp as well.
  return (sharding.indivisible('train.batch', layout.batch, chips, 'chips')
          or sharding.indivisible('monitor.batch', config.monitor.batch, chips,
                                  'chips'))


def with_layout(config: Any, layout: Layout, chips: int
                ) -> config_dict.ConfigDict:
  """Returns a mutable copy of a config with another layout."""
  copy = config_dict.ConfigDict(records.plain(config))
  copy.mesh.update({'data': chips // layout.fsdp, 'fsdp': layout.fsdp})
  copy.model.remat = layout.remat
  copy.train.batch = layout.batch
  return copy


def spec(name: str, config: Any, layout: Layout, chips: int
         ) -> dict[str, Any]:
  """Returns the spec of one program of a config with a layout."""
  return programs.spec(name, with_layout(config, layout, chips),
                       chips // layout.fsdp, layout.fsdp)


def compile_steps(config: Any, layouts: Iterable[Layout], piece: slices.Slice,
                  effort: str) -> list[Result]:
  """Compiles the step with some layouts; returns their Results.

  Args:
    config: of a run.
    layouts: those that the slice cannot be divided by are left out.
    piece: the slice.
    effort: see compiler.answers.
  """
  # dict.fromkeys drops duplicates and keeps the order.
  layouts = [x for x in dict.fromkeys(layouts)
             if not obstacle(config, x, piece.chips)]
  specs = [spec('step', config, x, piece.chips) for x in layouts]
  answers = compiler.answers(specs, piece, effort)
  return [evaluate(config, layout, piece, answers[compiler.text(s)])
          for layout, s in zip(layouts, specs)]


def evaluate(config: Any, layout: Layout, piece: slices.Slice,
             answer: dict[str, Any]) -> Result:
  """Returns the Result of a compiler's answer."""
  # The compiler's own limit may differ from the memory of the chip.
  if not answer['fits'] or answer['peak'] > piece.chip.memory:
    return Result(layout, {**answer, 'fits': False}, None)
  # All that a chip sends in a step bounds the time of its links.
  wire = sum(c['wire'] for c in answer['collectives'].values())
  return Result(layout, answer, slices.bound(
      with_layout(config, layout, piece.chips), piece, wire,
      answer['traffic']))


def remedies(config: Any, piece: slices.Slice, effort: str) -> list[Result]:
  """Returns the Results of other layouts for a point that does not fit.

  They have full recomputation, more fsdp, or both. If none fits, the batch is
  halved until one does.
  """
  mine = own(config)
  shares = [f for f in FSDP if f > mine.fsdp and piece.chips % f == 0]
  # From the cheapest change to the costliest: recompute, divide, both.
  layouts = [mine._replace(remat='full')]
  for remat in (mine.remat, 'full'):
    layouts += [mine._replace(fsdp=f, remat=remat) for f in shares]
  results = compile_steps(config, layouts, piece, effort)
  batch = mine.batch // 2
  # A smaller batch is another training, hence the last resort.
  while not any(r.answer['fits'] for r in results) and batch >= piece.chips:
    smallest = Layout(max(shares, default=mine.fsdp), 'full', batch)
    results += compile_steps(config, [smallest], piece, effort)
    batch //= 2
  return results


def fastest(config: Any, piece: slices.Slice, effort: str) -> Result:
  """Returns the Result that fits and has the least time, at the same batch.

  Raises:
    ValueError: no layout is possible or fits; says why.
  """
  mine = own(config)
  # The chips must divide the batch in every layout.
  reason = obstacle(config, mine._replace(fsdp=1), piece.chips)
  if reason:
    raise ValueError(reason)
  shares = [f for f in (1, *FSDP) if f <= piece.chips]
  # Full recomputation is slower, so it is tried only if nothing else fits.
  for remat in ('dots', 'full'):
    fit = [r for r in compile_steps(
        config, [mine._replace(fsdp=f, remat=remat) for f in shares], piece,
        effort) if r.bound]
    if fit:
      return min(fit, key=lambda r: r.bound.seconds)
  raise ValueError(f'train.batch {mine.batch} does not fit {piece.name} with '
                   'any mesh, even with full recomputation: expected a larger '
                   'slice')


def cheapest(config: Any, whole: slices.Slice, effort: str,
             clips: tuple[int, ...] = (16, 32, 64, 128)
             ) -> tuple[slices.Slice, Result] | None:
  """Returns the part of a slice on which a run takes the fewest chip-hours.

  Instead of one after the other on the whole slice, the runs of a sweep can
  train at the same time on parts of it. Fewer chips communicate less per clip.

  Args:
    config: of the run.
    whole: the slice.
    effort: see compiler.answers.
    clips: clips per chip to try.

  Returns:
    the part and its Result, or None if nothing fits.
  """
  candidates = []
  for piece in slices.parts_of(whole):
    # Only numbers of clips per chip that are worth compiling.
    if config.train.batch // piece.chips not in clips:
      continue
    shares = [f for f in (1, *FSDP) if f <= piece.chips]
    mine = own(config)._replace(remat='dots')
    results = compile_steps(
        config, [mine._replace(fsdp=f) for f in shares], piece, effort)
    candidates += [(piece, r) for r in results if r.bound]
  # Chip-seconds of a step, as all take the same number of steps.
  return min(candidates, default=None,
             key=lambda c: c[0].chips * c[1].bound.seconds)


def placements(folders: list[pathlib.Path], machine: str, topology: str,
               mesh: str) -> dict[str, Layout]:
  """Returns {run: Layout} for the folders of runs.

  Args:
    folders: of runs.
    machine, topology: of the slice, such as v5e and 4x4.
    mesh: '' for the configs' own, for which the result is {}; 'auto'; or
      data x fsdp.

  Raises:
    ValueError: an impossible mesh, 'auto' without the TPU compiler, or a run
      that does not fit with any mesh; names the run.
  """
  if not mesh:
    return {}
  piece = slices.parse(f'{machine}:{topology}')
  sides = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', mesh)
  if mesh != 'auto' and not (
      sides and int(sides[1]) * int(sides[2]) == piece.chips):
    raise ValueError(f"--mesh={mesh}: expected auto, or two sides with a "
                     f'product of {piece.chips}, such as {piece.chips}x1')
  if mesh == 'auto' and not compiler.available():
    raise ValueError("--mesh=auto: needs the TPU compiler (pip install "
                     "'audiorank[tpu-plan]')")
  layouts = {}
  for folder in folders:
    config = records.load_config(folder)
    try:
      if mesh == 'auto':
        layouts[folder.name] = fastest(config, piece, 'quick').layout
        continue
      # A layout has fsdp alone: data is the rest of the chips.
      layout = own(config)._replace(fsdp=int(sides[2]))
      reason = obstacle(config, layout, piece.chips)
      if reason:
        raise ValueError(reason)
      layouts[folder.name] = layout
    except ValueError as error:
      raise ValueError(f'{folder}: {error}') from None
  return layouts
