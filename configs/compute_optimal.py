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

from audiorank import program
from configs import scales

SIZES = {'paper': ('en128-12', 'en256-12', 'en384-12', 'en512-12', 'en768-12',
                   'en1024-12'),
         'small': ('en16-4', 'en24-4', 'en32-4', 'en48-4', 'en64-4', 'en96-4'),
         'smoke': ('en16-1', 'en32-1')}
BUDGETS = {'paper': (1e19, 3e19, 1e20), 'small': (1e11, 3e11, 1e12),
           'smoke': (3e9,)}


def get_config(point='small/size=en32-4,flops=3e+11'):
  """Returns the config of a size, trained for as long as its budget lasts."""
  scale, said = scales.read(point)
  c = scales.recipe(scale, said['size'])
  c.experiment = 'compute_optimal'
  c.train.steps = max(4, round(
      float(said['flops']) / program.flops(c)['total'] / c.train.batch))
  c.opt.warmup = max(1, c.train.steps // 30)
  c.monitor.update({'every': 0, 'first': max(1, c.train.steps // 50)})
  return c


def points(scale='small'):
  """Returns every size at every budget."""
  return [scales.point(scale, size=size, flops=flops)
          for size, flops in itertools.product(SIZES[scale], BUDGETS[scale])]
