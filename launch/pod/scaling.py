"""How cost grows: the table of launch/README.md, from compiled programs.

  python -m launch.pod.scaling

One training step at the smallest, a middle and the largest size on 1 to 1,024
v4 chips: strong scaling holds the batch of 256, weak scaling 16 clips a chip.
'packed' trains as many points of a grid as there are chips, each on a chip of
its own, all with the same batch.
"""

from absl import app

from audiorank import records
from configs import base
from launch.pod import chips
from launch.pod import choice
from launch.pod import plan
from launch.pod import programs
from launch.pod import roofline
from launch.pod import store

SLICES = {1: 'v4:1x1x1', 16: 'v4:2x2x4', 256: 'v4:4x8x8', 1024: 'v4:8x8x16'}
# (chips, batch), and how: strong, weak, or both where they meet.
RUNS = ((1, 16, 'weak'), (16, 256, 'strong, weak'), (256, 256, 'strong'),
        (256, 4096, 'weak'), (1024, 16384, 'weak'))
SIZES = {'en128-12': (1, False), 'en768-12': (1, False),
         'en1536-40': (4, True)}  # fsdp, remat; fsdp from 16 chips on.
PACKED = (16, 64)  # Chips, batch of each point.


def row(size, chip_count, batch, how):
  """Returns one row of the table, compiling its step."""
  config = base.get_config(size)
  config.monitor.batch = max(256, chip_count)
  fsdp, remat = SIZES[size]
  layout = choice.Layout(fsdp if chip_count >= 16 else 1, remat, batch)
  piece = chips.parse(SLICES[chip_count])
  if how == 'packed':
    config.train.batch = batch
    spec = {**programs.spec('step', config, chip_count, 1), 'program': 'pack'}
    answer = store.answers([spec], piece, 'quick')[store.text(spec)]
    got = choice.Tried(layout, answer, None)
    if answer['fits']:
      wire = sum(c['wire'] for c in answer['collectives'].values())
      config.train.batch = batch * chip_count
      got = got._replace(bound=roofline.bound(
          records.frozen(records.plain(config)), piece, wire,
          answer['traffic']))
    clips = batch * chip_count
  else:
    (got,) = choice.tried(config, [layout], piece, 'quick')
    clips = batch
  return line(size, chip_count, clips, how, got)


def line(size, chip_count, clips, how, got):
  """Returns a row as Markdown."""
  a, b = got.answer, got.bound
  mesh = ', '.join([f'fsdp {got.layout.fsdp}'] * (got.layout.fsdp > 1)
                   + ['remat'] * got.layout.remat)
  cells = [size, how, f'{chip_count:,}', f'{clips // chip_count}', mesh or '-']
  if b is None:
    return cells + [f"{plan.gb(a.get('peak') or a['needed'])}: too large"] + (
        [''] * 6)
  moved = sum(c['bytes'] for c in a['collectives'].values())
  return cells + [
      plan.gb(a['peak']), plan.gb(moved), plan.ms(b.matrix), plan.ms(b.hbm),
      plan.ms(b.links), f'{b.mfu:.0%}, {b.by}', f'{clips / b.seconds:,.0f}']


def main(argv):
  del argv
  head = ['size', 'scaling', 'chips', 'clips a chip', 'layout', 'peak GB',
          'collectives GB', 'matrix ms', 'HBM ms', 'links ms', 'MFU at most',
          'clips/s at most']
  for cells in (head, ['---'] * len(head)):
    print(f"| {' | '.join(cells)} |", flush=True)
  for size in SIZES:
    packed = ((*PACKED, 'packed'),) if size == 'en128-12' else ()
    for r in RUNS + packed:
      print(f"| {' | '.join(row(size, *r))} |", flush=True)


if __name__ == '__main__':
  app.run(main)
