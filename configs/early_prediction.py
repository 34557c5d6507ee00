"""Early prediction: rank after a fourteenth of training, score at its end.

  python -m launch.sweep --scale=small --root=runs/early_prediction \
      --config=configs/early_prediction.py

Question: over learning rate x width x depth, does RankMe at 50k and 100k of
700k steps (and the same shares at other scales) tell the final score, better
than validation loss and size do?
Cost: paper 15 runs, 1.2e20 FLOPs, 417 hours of a TPU v5e at 40 %;
small 9 runs, 6.9e12 FLOPs, some 4 core-minutes a run.
It fails if early RankMe decides pairs of runs no better than the loss
at the same step.
"""

import itertools

from configs import scales

RATES = (1e-4, 3e-4, 1e-3)
SHAPES = {'paper': ('en128-6', 'en128-12', 'en256-6', 'en256-12', 'en384-12'),
          'small': ('en16-2', 'en32-4', 'en48-4'),
          'smoke': ('en16-1', 'en32-1')}
FACTOR = {'paper': 1., 'small': 10., 'smoke': 10.}


def get_config(point='small/size=en32-4,lr=0.003'):
  """Returns the config of a shape and a learning rate."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, values['size'])
  c.experiment = 'early_prediction'
  c.opt.lr = float(values['lr'])
  if scale == 'paper':
    c.train.steps = 700_000
    c.opt.warmup = 21_000
    c.monitor.eval_every = 50_000
  else:
    c.monitor.eval_every = max(1, c.train.steps // 14)
  return c


def points(scale='small'):
  """Returns every shape at every rate."""
  return [scales.point(scale, size=size, lr=rate * FACTOR[scale])
          for size, rate in itertools.product(SHAPES[scale], RATES)]
