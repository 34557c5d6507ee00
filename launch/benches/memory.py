"""What a training step of the paper's size takes of a 16 GB chip's memory.

Compiled for one v5e chip by the TPU compiler, which needs no chip: batch 256,
10 s crops, float32, the state donated; kernels' recomputation (`model.remat`)
against none.
"""

from launch.benches import timing

CHIP, BATCH = 'v5e:1x1', 256


def rows(quick, only):
  """Yields the Row of this area."""
  from audiorank import records
  from configs import base
  from launch.pod import chips
  from launch.pod import programs
  from launch.pod import store
  size = 'en128-12' if quick else 'en768-12'
  piece = chips.parse(CHIP)
  there = piece.chip.memory
  what = f'memory of a step on {CHIP}, {size}, batch {BATCH}'
  if only not in what:
    return
  if not store.available():
    yield timing.absent(what, 'libtpu')
    return
  specs = []
  for remat in (True, False):
    c = base.get_config(size)
    c.model.remat, c.train.batch = remat, BATCH
    specs.append(programs.spec('step', records.frozen(c), 1, 1))
  found = store.answers(specs, piece, 'full', workers=1)
  mine, other = (found[store.text(s)] for s in specs)
  taken = lambda got: got['peak'] if got['fits'] else got['needed']
  yield timing.alone(
      what, taken(mine) / 1e9, 'GB', None,
      f'of {there / 1e9:.1f} GB: {"fits" if mine["fits"] else "does not fit"};'
      f' without: {"fits" if other["fits"] else "does not fit"}',
      'with remat', 'without', taken(other) / 1e9)
