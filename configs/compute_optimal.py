"""Compute-optimal size: isoFLOP valleys of loss and RankMe.

  python -m launch.sweep --scale=small --root=runs/compute_optimal \
      --config=configs/compute_optimal.py

Question: at a fixed number of training FLOPs (encoder and decoder), which size
is best, and how does it grow with the budget?
Cost: paper 18 runs, 8.4e20 FLOPs, 2,961 hours of a TPU v5e at 40 %;
small 18 runs, 8.4e12 FLOPs, some 4 core-minutes a run.
It fails if a valley has its least at the smallest or largest size, or
the exponent's interval holds both 0 and 1.
"""

import itertools

from configs import scales

# FLOPs of a training step on one clip, encoder and decoder, of every size.
# A test compares them with the library's count.
FLOPS = {
    'paper': {'en128-12': 41_953_665_024, 'en256-12': 44_694_061_056,
              'en384-12': 49_189_773_312, 'en512-12': 55_440_801_792,
              'en768-12': 73_208_807_424, 'en1024-12': 97_998_077_952},
    'small': {'en16-4': 8_236_800, 'en24-4': 9_679_488, 'en32-4': 11_601_408,
              'en48-4': 16_882_944, 'en64-4': 24_081_408,
              'en96-4': 44_229_120},
    'smoke': {'en16-1': 7_420_608, 'en32-1': 8_531_328}}
BUDGETS = {'paper': (1e19, 3e19, 1e20), 'small': (1e11, 3e11, 1e12),
           'smoke': (3e9,)}


def get_config(point='small/size=en32-4,flops=3e+11'):
  """Returns the config of a size, trained for as long as its budget lasts."""
  scale, values = scales.read(point)
  size = values['size']
  if size not in FLOPS[scale]:
    raise ValueError(f'point {point!r}: expected a size of '
                     f'{", ".join(FLOPS[scale])}')
  c = scales.recipe(scale, size)
  c.experiment = 'compute_optimal'
  c.train.steps = max(4, round(
      float(values['flops']) / FLOPS[scale][size] / c.train.batch))
  c.opt.warmup = max(1, c.train.steps // 30)
  c.monitor.update({'eval_every': 0, 'first_eval': max(1, c.train.steps // 50)})
  return c


def points(scale='small'):
  """Returns every size at every budget."""
  return [scales.point(scale, size=size, flops=flops)
          for size, flops in itertools.product(FLOPS[scale], BUDGETS[scale])]
