"""Quickstart: size x data x masking rate on the synthetic dataset.

  python -m launch.sweep --config=configs/quickstart.py --root=runs/quickstart

Question: does RankMe go with the score, and do more data, larger models and
the masking rate move both? 12 runs and 3 untrained networks of 1.03 s crops,
two and a half minutes on two CPU cores. It fails if most runs do not beat their
untrained network, or if the report draws a law through runs that do not.

Chosen so that training helps within minutes: widths below the 64 mels, where
random features lose something, and tasks of order, rhythm and mixtures, which a
mean spectrum does not solve. On pitch, which it does, these short runs mostly
score below random features; configs/longer.py has every task.
"""

import itertools

from configs import base

SIZES = ('en16-2', 'en32-2', 'en48-2')
HOURS = (.05, .5)
MASKS = (.5, .75)


def get_config(point='en32-2,h=0.5,mask=0.75'):
  """Returns the config of a point such as 'en32-2,h=0.5,mask=0.75'."""
  name, hours, mask = point.split(',')
  c = base.get_config(name)
  c.experiment = 'quickstart'
  c.model.target_frames = 104
  c.model.decoder.update({'width': 32, 'depth': 1, 'heads': 2})
  c.data.world.update({
      'hours': .6, 'train_clips': 300, 'valid_clips': 100, 'test_clips': 400,
      'tasks': ('scene', 'temporal_order', 'temporal_rhythm')})
  c.data.hours = float(hours.removeprefix('h='))
  c.data.crop_seconds = 1.03
  c.data.in_memory = True
  c.mask.ratio = float(mask.removeprefix('mask='))
  c.train.update({'steps': 1000, 'batch': 16, 'log_every': 100})
  c.opt.update({'lr': 3e-3, 'warmup': 100, 'b2': .95, 'clip': 1.})
  # As long as the tasks' clips, and with the batch of eval: one program embeds
  # both.
  c.monitor.update({'clips': 600, 'crop_seconds': 1.04, 'num_evals': 6,
                    'first_eval': 50, 'batch': 100, 'valid_clips': 96})
  c.checkpoint.update({'save_every': 500, 'keep_every': 100_000})
  c.eval.update({'protocol': 'logistic', 'batch': 100})
  return c


def points():
  """Returns the names of the 12 points."""
  return [f'{size},h={hours:g},mask={mask:g}' for size, hours, mask in
          itertools.product(SIZES, HOURS, MASKS)]
