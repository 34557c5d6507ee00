"""How runs lie on a TPU slice, for the manifests that start them there."""

import re
from typing import NamedTuple


class Layout(NamedTuple):
  """How a run lies on its slice, where its config does not say it."""
  mesh: str  # data x fsdp, such as 64x4.
  remat: bool
  clips: int  # Of a step, on each chip.

  @property
  def flags(self):
    """What the worker is told."""
    return [f'--mesh={self.mesh}', *['--remat'] * self.remat]


def placed(folders, machine, topology, mesh):
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
  from audiorank import records
  from launch.pod import chips as slices
  from launch.pod import choice
  from launch.pod import store
  piece = slices.parse(f'{machine}:{topology}')
  sides = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', mesh)
  if mesh != 'auto' and not (
      sides and int(sides[1]) * int(sides[2]) == piece.chips):
    raise ValueError(f"--mesh={mesh}: expected auto, or two sides with a "
                     f'product of {piece.chips}, such as {piece.chips}x1')
  if mesh == 'auto' and not store.available():
    raise ValueError("--mesh=auto: needs the TPU compiler (pip install "
                     "'audiorank[tpu-plan]')")
  out = {}
  for folder in folders:
    config = records.load_config(folder)
    try:
      if mesh == 'auto':
        best = choice.fastest(config, piece, 'quick').layout
      else:
        best = choice.own(config)._replace(fsdp=int(sides[2]))
        why = choice.why_not(config, best, piece.chips)
        if why:
          raise ValueError(why)
    except ValueError as error:
      raise ValueError(f'{folder}: {error}') from None
    out[folder.name] = Layout(f'{piece.chips // best.fsdp}x{best.fsdp}',
                              best.remat, best.batch // piece.chips)
  return out
