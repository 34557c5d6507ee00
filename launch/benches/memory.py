"""What a training step of the paper's size takes of a 16 GB chip's memory.

Compiled for one v5e chip by the TPU compiler, which needs no chip: batch 256,
10 s crops, bfloat16, the state donated. model.remat: the large products kept
(dots), everything recomputed (full), nothing (none).
"""

from collections.abc import Iterator

from launch.benches import timing

CHIP, BATCH = 'v5e:1x1', 256


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  from configs import base
  from launch.tpu import compiler
  from launch.tpu import layouts
  from launch.tpu import slices
  size = timing.sized(quick, 'en128-12', 'en768-12')
  piece = slices.parse(CHIP)
  what = f'memory of a step on {CHIP}, {size}, batch {BATCH}'
  if only not in what:
    return
  if not compiler.available():
    yield timing.absent(what, 'libtpu')
    return
  config = base.get_config(size)
  config.model.dtype, config.monitor.batch = 'bfloat16', BATCH
  peaks, note = {}, []
  for result in layouts.compile_steps(
      config, [layouts.Layout(1, remat, BATCH)
               for remat in ('dots', 'full', 'none')], piece, 'full'):
    remat, answer = result.layout.remat, result.answer
    # What does not fit has no peak, but what the compiler asks for.
    peaks[remat] = answer.get('peak') or answer['needed']
    fits = 'does not fit'
    if result.bound:
      fits = 'fits'
    note.append(f'{remat}: {fits}')
  note = f'of {piece.chip.memory / 1e9:.1f} GB; {", ".join(note)}'
  for remat in ('dots', 'full'):
    yield timing.alone(what, peaks[remat] / 1e9, 'GB', None, note,
                       f'remat {remat}', 'none', peaks['none'] / 1e9)
