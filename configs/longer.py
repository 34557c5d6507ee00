"""Longer training: what it does, task by task.

  python -m launch.sweep --config=configs/longer.py --root=runs/longer

Question: after 24 times as many clips as in the quickstart, of all the audio
there is, and on every scene task of the synthetic dataset, which tasks has
training helped and which are still better served by random features? 2 runs
and 2 untrained networks, some 20 minutes on two CPU cores, 6.1e12 training
FLOPs. It fails if the mean score stays below the untrained network's.
"""

from configs import quickstart

SIZES = ('en32-3', 'en64-4')


def get_config(point='en64-4'):
  """Returns the config of a size, trained on every hour of the corpus."""
  c = quickstart.get_config(f'{point},h=0,mask=0.75')
  c.experiment = 'longer'
  c.data.world.update({
      'hours': 4., 'tasks': (
          'event_count', 'pitch', 'scene', 'temporal_order',
          'temporal_rhythm', 'texture', 'timbre')})
  c.train.update({'steps': 12_000, 'batch': 32, 'log_every': 500})
  c.opt.update({'lr': 2e-3, 'warmup': 500})
  c.monitor.update({'num_evals': 10, 'clips': 2_000})
  c.checkpoint.update({'save_every': 5_000, 'keep_every': 5_000})
  return c


def points():
  """Returns the two sizes."""
  return list(SIZES)
