"""The best learning rate at each width, with and without `opt.transfer`.

  python -m launch.sweep --roles=train --pack=21 --root=runs/learning_rate \
      --config=configs/learning_rate.py

Question: is the learning rate with the lowest validation loss the same from
en16-1 to en128-1 when the rates of wider encoders follow by muP, and is it not
when all widths have one rate? 357 runs of 400 steps of 16 crops of .5 s and 36
untrained networks, to be trained and not scored: the loss decides. Runs of a
width train in one program and share the log-mels of their batches, hence
--pack. `launch.report --optimum=opt.lr` gives the best rate of each width with
its interval; notebooks/README.md has the result of the 147 runs of seeds 0 to
2.
It fails if the optimum with transfer moves by more than a factor of 1.5 over
these widths, or if the intervals are wider than that.
"""

import itertools

from configs import quickstart

# At its own width transfer changes nothing, so one of them is enough.
TRANSFERS = {'en16-1': (0, 32), 'en32-1': (32,), 'en64-1': (0, 32),
             'en128-1': (0, 32)}
# From 2.5e-4 to 1.6e-2: a factor of 64.
RATES = tuple(2.5e-4 * 2 ** k for k in range(7))
SEEDS = (0, 1, 2)
# Further seeds at the rates up to 4e-3, through which the optimum is fitted.
MORE_SEEDS = (3, 4, 5, 6, 7, 8)


def get_config(point='en32-1,lr=0.004,transfer=32,seed=0'):
  """Returns the config of a size, a rate, a width of transfer and a seed."""
  name, rate, transfer, seed = point.split(',')
  c = quickstart.get_config(f'{name},h=0.5,mask=0.75')
  c.experiment = 'learning_rate'
  c.seed = int(seed.removeprefix('seed='))
  c.model.target_frames = 52
  c.data.crop_seconds = .5
  c.train.update({'steps': 400, 'batch': 16, 'log_every': 100})
  c.opt.update({'lr': float(rate.removeprefix('lr=')), 'warmup': 40,
                'transfer': int(transfer.removeprefix('transfer='))})
  c.monitor.update({'clips': 64, 'crop_seconds': .5, 'num_evals': 2,
                    'batch': 16, 'valid_clips': 192})
  c.checkpoint.save_every = 400
  return c


def points():
  """Returns the names of the 357 points."""
  grid = [*itertools.product(RATES, SEEDS),
          *itertools.product(RATES[:5], MORE_SEEDS)]
  return [f'{size},lr={rate:g},transfer={transfer},seed={seed}'
          for size in TRANSFERS for rate, seed in grid
          for transfer in TRANSFERS[size]]
