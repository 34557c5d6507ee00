"""A sweep in a minute: size x data on the synthetic dataset.

  python -m launch.sweep --config=configs/minute.py --root=runs/minute

Question: does every arrow work, from sound to report? 4 runs and 2 untrained
networks of 200 steps, one task; about a minute on two CPU cores. It fails if a
run fails. It says nothing of the law: 200 steps do not train a model.
"""

import itertools

from configs import quickstart

SIZES = ('en16-2', 'en32-2')
HOURS = (.02, .1)


def get_config(point='en16-2,h=0.1'):
  """Returns the config of a point such as 'en16-2,h=0.1'."""
  c = quickstart.get_config(f'{point},mask=0.75')
  c.experiment = 'minute'
  c.data.world.update({
      'hours': .15, 'train_clips': 120, 'valid_clips': 40, 'test_clips': 120,
      'tasks': ('temporal_rhythm',)})
  c.data.valid_fraction = .2
  c.train.update({'steps': 200, 'log_every': 20})
  c.opt.warmup = 20
  c.monitor.update({'clips': 256, 'num_evals': 4, 'first_eval': 20, 'batch': 64,
                    'valid_clips': 32})
  c.checkpoint.save_every = 200
  c.eval.batch = c.monitor.batch
  return c


def points():
  """Returns the names of the 4 points."""
  return [f'{size},h={hours:g}' for size, hours in
          itertools.product(SIZES, HOURS)]
