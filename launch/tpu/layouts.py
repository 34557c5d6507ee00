"""Layouts that a run could have on a slice, and which of them it gets.

A layout is what may change without changing the experiment: how many devices
share the kernels (fsdp), and what the backward pass recomputes (remat). A
smaller batch is another experiment and is named as one.
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

FSDP = (4, 16)  # Devices that share a kernel, where it is tried.


class Layout(NamedTuple):
  """How a run lies on its slice."""
  fsdp: int
  remat: str  # One of model.REMAT.
  batch: int  # Clips of a step, over all chips.

  def __str__(self):
    return f'fsdp {self.fsdp}, remat {self.remat}, batch {self.batch}'

  def mesh(self, chips: int) -> str:
    """Returns data x fsdp, such as 64x4."""
    return f'{chips // self.fsdp}x{self.fsdp}'

  def flags(self, chips: int) -> list[str]:
    """Returns what the worker is told on its command line."""
    return [f'--mesh={self.mesh(chips)}', f'--remat={self.remat}']


class Result(NamedTuple):
  """What the compiler says of a layout."""
  layout: Layout
  answer: dict[str, Any]
  bound: slices.Bound | None  # None where it does not fit.


def own(config: Any) -> Layout:
  """Returns the layout that a config asks for."""
  return Layout(config.mesh.fsdp, model.rematerialisation(config.model, 'tpu'),
                config.train.batch)


def obstacle(config: Any, layout: Layout, chips: int) -> str:
  """Returns why a layout cannot divide over a slice, or ''."""
  if chips % layout.fsdp:
    return f'mesh.fsdp {layout.fsdp} does not divide {chips} chips'
  return (sharding.indivisible('train.batch', layout.batch, chips, 'chips')
          or sharding.indivisible('monitor.batch', config.monitor.batch, chips,
                                  'chips'))


def with_layout(config: Any, layout: Layout, chips: int
                ) -> config_dict.ConfigDict:
  """Returns a mutable copy of a config in another layout."""
  copy = config_dict.ConfigDict(records.plain(config))
  copy.mesh.update({'data': chips // layout.fsdp, 'fsdp': layout.fsdp})
  copy.model.remat = layout.remat
  copy.train.batch = layout.batch
  return copy


def spec(name: str, config: Any, layout: Layout, chips: int
         ) -> dict[str, Any]:
  """Returns the spec of one program of a config in a layout."""
  return programs.spec(name, with_layout(config, layout, chips),
                       chips // layout.fsdp, layout.fsdp)


def compile_steps(config: Any, layouts: Iterable[Layout], piece: slices.Slice,
                  effort: str) -> list[Result]:
  """Returns the Results of those layouts that divide."""
  layouts = [x for x in dict.fromkeys(layouts)
             if not obstacle(config, x, piece.chips)]
  specs = [spec('step', config, x, piece.chips) for x in layouts]
  answers = compiler.answers(specs, piece, effort)
  return [evaluate(config, layout, piece, answers[compiler.text(s)])
          for layout, s in zip(layouts, specs)]


def evaluate(config: Any, layout: Layout, piece: slices.Slice,
             answer: dict[str, Any]) -> Result:
  """Returns the Result of a compiler's answer."""
  if not answer['fits'] or answer['peak'] > piece.chip.memory:
    return Result(layout, {**answer, 'fits': False}, None)
  wire = sum(c['wire'] for c in answer['collectives'].values())
  return Result(layout, answer, slices.bound(
      with_layout(config, layout, piece.chips), piece, wire,
      answer['traffic']))


def remedies(config: Any, piece: slices.Slice, effort: str) -> list[Result]:
  """Returns what makes a point fit, each compiled.

  Full recomputation and more fsdp, apart and together; where none fits,
  batches halved until one does.
  """
  mine = own(config)
  shares = [f for f in FSDP if f > mine.fsdp and piece.chips % f == 0]
  layouts = [mine._replace(remat='full')]
  for remat in (mine.remat, 'full'):
    layouts += [mine._replace(fsdp=f, remat=remat) for f in shares]
  results = compile_steps(config, layouts, piece, effort)
  batch = mine.batch // 2
  while not any(r.answer['fits'] for r in results) and batch >= piece.chips:
    smallest = Layout(max(shares, default=mine.fsdp), 'full', batch)
    results += compile_steps(config, [smallest], piece, effort)
    batch //= 2
  return results


def fastest(config: Any, piece: slices.Slice, effort: str) -> Result:
  """Returns the Result with the least bound that fits, at the same batch.

  Raises:
    ValueError: none divides or fits; says why.
  """
  mine = own(config)
  reason = obstacle(config, mine._replace(fsdp=1), piece.chips)
  if reason:
    raise ValueError(reason)
  shares = [f for f in (1, *FSDP) if f <= piece.chips]
  for remat in ('dots', 'full'):
    fit = [r for r in compile_steps(
        config, [mine._replace(fsdp=f, remat=remat) for f in shares], piece,
        effort) if r.bound]
    if fit:
      return min(fit, key=lambda r: r.bound.seconds)
  raise ValueError(f'train.batch {mine.batch} does not fit {piece.name} by '
                   'any mesh and with everything recomputed: take a larger '
                   'slice')


def cheapest(config: Any, whole: slices.Slice, effort: str,
             clips: tuple[int, ...] = (16, 32, 64, 128)
             ) -> tuple[slices.Slice, Result] | None:
  """Returns the part of a slice on which a run takes the least chip-hours.

  Runs of a sweep need not share a slice one after the other: each can have a
  part of it. Fewer chips have more clips each and move less beside them; the
  parts tried are those that give a chip about as many as `clips`.

  Returns:
    the part and its Result, or None where nothing fits.
  """
  candidates = []
  for piece in slices.parts_of(whole):
    if config.train.batch // piece.chips not in clips:
      continue
    shares = [f for f in (1, *FSDP) if f <= piece.chips]
    mine = own(config)._replace(remat='dots')
    results = compile_steps(
        config, [mine._replace(fsdp=f) for f in shares], piece, effort)
    candidates += [(piece, r) for r in results if r.bound]
  return min(candidates, default=None,
             key=lambda c: c[0].chips * c[1].bound.seconds)


def placements(folders: list[pathlib.Path], machine: str, topology: str,
               mesh: str) -> dict[str, Layout]:
  """Returns {run: Layout} for the folders of runs; {} where mesh is ''.

  Args:
    folders: of runs.
    machine, topology: of the slice, such as v5e and 4x4.
    mesh: '', 'auto', or data x fsdp.

  Raises:
    ValueError: a mesh that does not divide, or 'auto' and no TPU compiler, or
      a run that fits by no mesh; names the run.
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
      layout = own(config)._replace(fsdp=int(sides[2]))
      reason = obstacle(config, layout, piece.chips)
      if reason:
        raise ValueError(reason)
      layouts[folder.name] = layout
    except ValueError as error:
      raise ValueError(f'{folder}: {error}') from None
  return layouts
