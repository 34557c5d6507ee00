"""The table of scaling in launch/README.md, from compiled programs.

  python -m launch.tpu.scaling

It has one training step of the smallest, a middle and the largest size on 1 to
1,024 v4 chips, in bfloat16. Strong scaling has a batch of 256, weak scaling 16
clips per chip. 'packed' trains as many points of a grid as there are chips,
each on its own chip and all with the same batch.
"""

from typing import Any

from absl import app

from audiorank import records
from configs import base
from launch.tpu import compiler
from launch.tpu import layouts
from launch.tpu import plan
from launch.tpu import programs
from launch.tpu import slices

SLICES = {1: 'v4:1x1x1', 16: 'v4:2x2x4', 256: 'v4:4x8x8', 1024: 'v4:8x8x16'}
# (chips, batch, scaling: strong, weak, or both if they coincide).
RUNS = ((1, 16, 'weak'), (16, 256, 'strong, weak'), (256, 256, 'strong'),
        (256, 4096, 'weak'), (1024, 16384, 'weak'))
SIZES = {'en128-12': 1, 'en768-12': 1, 'en1536-40': 4}  # fsdp, from 16 chips.
PACKED = (16, 64)  # Chips, batch of each point.
HEAD = ('size', 'scaling', 'chips', 'clips per chip', 'fsdp', 'peak GB',
        'collectives GB', 'matrix ms', 'HBM ms', 'links ms', 'MFU at most',
        'clips/s at most')


def row(size: str, chip_count: int, batch: int, scaling: str) -> list[str]:
  """Compiles a step; returns its row of the table.

  Args:
    size: of the model.
    chip_count: number of chips.
    batch: clips of a step.
    scaling: 'strong', 'weak' or 'packed'.
  """
  config = base.get_config(size)
  config.model.dtype = 'bfloat16'
  # The chips must divide the monitor's batch as well.
  config.monitor.batch = max(256, chip_count)
  fsdp = 1
  if chip_count >= 16:
    fsdp = SIZES[size]
  layout = layouts.Layout(fsdp, 'dots', batch)
  piece = slices.parse(SLICES[chip_count])
  if scaling == 'packed':
    return line(size, chip_count, batch * chip_count, scaling,
                packed(config, layout, piece))
  (result,) = layouts.compile_steps(config, [layout], piece, 'quick')
  return line(size, chip_count, batch, scaling, result)


def packed(config: Any, layout: layouts.Layout, piece: slices.Slice
           ) -> layouts.Result:
  """Returns the Result of one point per chip, all with the same batch."""
  config.train.batch = layout.batch
  spec = {**programs.spec('step', config, piece.chips, 1), 'program': 'pack'}
  answer = compiler.answers([spec], piece, 'quick')[compiler.text(spec)]
  # The bound is that of one batch, divided over the chips.
  config.train.batch = layout.batch * piece.chips
  everything = layout._replace(batch=config.train.batch)
  return layouts.evaluate(records.frozen(records.plain(config)), everything,
                          piece, answer)


def line(size: str, chip_count: int, clips: int, scaling: str,
         result: layouts.Result) -> list[str]:
  """Returns the cells of a row."""
  answer, bound = result.answer, result.bound
  cells = [size, scaling, f'{chip_count:,}', f'{clips // chip_count}',
           str(result.layout.fsdp)]
  if bound is None:
    peak = plan.gb(answer.get('peak') or answer['needed'])
    return [*cells, f'{peak}: too large', *[''] * 6]
  sent = sum(c['bytes'] for c in answer['collectives'].values())
  return [
      *cells, plan.gb(answer['peak']), plan.gb(sent), plan.ms(bound.matrix),
      plan.ms(bound.hbm), plan.ms(bound.links), f'{bound.mfu:.0%}, {bound.by}',
      f'{clips / bound.seconds:,.0f}']


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  for cells in (HEAD, ['---'] * len(HEAD)):
    print(f"| {' | '.join(cells)} |", flush=True)
  for size in SIZES:
    runs = RUNS
    # Runs are packed where one alone does not fill a chip.
    if size == 'en128-12':
      runs += ((*PACKED, 'packed'),)
    for chip_count, batch, scaling in runs:
      cells = row(size, chip_count, batch, scaling)
      print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == '__main__':
  app.run(main)
