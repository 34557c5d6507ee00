"""Six durations by one trunk with decays (wsd), and by six cosine runs.

  python -m launch.sweep --pack=3 --root=runs/durations \
      --config=configs/durations.py

Question: do runs that branch from one constant-rate trunk, each decaying over
the last tenth of its steps, have the score and the RankMe of cosine runs of the
same lengths, for 36 % of their FLOPs? 36 runs of 100 to 600 steps of three
seeds and 3 untrained networks. Seeds train in one program, hence --pack. It
fails if the schedules differ by more than seeds do.
"""

import itertools

from configs import quickstart

STEPS = (100, 200, 300, 400, 500, 600)
SCHEDULES = ('cosine', 'wsd')
SEEDS = (0, 1, 2)


def get_config(point='wsd,steps=600,seed=0'):
  """Returns the config of a schedule, a duration and a seed."""
  schedule, steps, seed = point.split(',')
  c = quickstart.get_config('en32-2,h=0.1,mask=0.75')
  c.experiment = 'durations'
  c.seed = int(seed.removeprefix('seed='))
  c.data.world.update({
      'hours': .2, 'train_clips': 160, 'valid_clips': 60, 'test_clips': 240,
      'tasks': ('temporal_order', 'temporal_rhythm')})
  c.data.valid_fraction = .2
  c.train.update({'steps': int(steps.removeprefix('steps=')), 'log_every': 50})
  # Both end at a hundredth of the rate.
  c.opt.update({'warmup': 30, 'schedule': schedule, 'decay': .1,
                'final_lr_ratio': .01})
  c.monitor.update({'clips': 256, 'num_evals': 2, 'batch': 64,
                    'valid_clips': 32})
  # Decays begin at 90, 180, ... 450 steps.
  c.checkpoint.update({'save_every': 90, 'keep_every': 90})
  c.eval.batch = c.monitor.batch
  return c


def points():
  """Returns the names of the 36 points."""
  return [f'{schedule},steps={steps},seed={seed}'
          for schedule, steps, seed in itertools.product(
              SCHEDULES, STEPS, SEEDS)]
