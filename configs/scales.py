"""The scales at which every experiment can be run, and their common recipe.

  python -m launch.sweep --scale=smoke --root=runs/smoke \
      --config=configs/masking.py

  paper: the published recipe on thousands of accelerator hours of audio;
    a prepared corpus of your own (--config.data.root).
  small: minutes a run on one CPU core, on the synthetic dataset or a corpus.
  smoke: seconds a run: shows that the experiment works, and nothing else.

A point is '<scale>/<field>=<value>,...'. This file has the recipe at the
reference size and runs as it is.
"""

from configs import base

SCALES = ('paper', 'small', 'smoke')
REFERENCE = {'paper': 'en128-12', 'small': 'en32-4', 'smoke': 'en16-1'}
# Tasks of the synthetic dataset that a mean spectrum does not solve.
TASKS = ('scene', 'temporal_order', 'temporal_rhythm', 'texture')


def read(point):
  """Returns (scale, {field: text}) of a point's name.

  Raises:
    ValueError: no such scale, or a part that is not field=value.
  """
  scale, _, rest = point.partition('/')
  if scale not in SCALES:
    raise ValueError(f'point {point!r}: expected one of '
                     f'{", ".join(s + "/..." for s in SCALES)}')
  parts = [part.partition('=') for part in rest.split(',') if part]
  for name, equals, value in parts:
    if not (name and equals and value):
      raise ValueError(f'point {point!r}: expected field=value between commas')
  return scale, {name: value for name, _, value in parts}


def point(scale, **fields):
  """Returns the name of a point; numbers in their shortest form."""
  text = lambda v: v if isinstance(v, str) else f'{v:g}'
  return f'{scale}/' + ','.join(f'{k}={text(v)}' for k, v in fields.items())


def recipe(scale, size=''):
  """Returns the mutable config of a scale, at its reference size if none."""
  c = base.get_config(size or REFERENCE[scale])
  if scale == 'paper':
    c.model.dtype = 'bfloat16'
    c.data.hours = 500.
    c.train.update({'steps': 50_000, 'batch': 256})
    c.opt.warmup = 1_500
    c.monitor.eval_every = 5_000
    c.checkpoint.update({'save_every': 5_000, 'keep_every': 50_000})
    return c
  c.model.target_frames = 208
  c.model.decoder.update({'width': 32, 'depth': 1, 'heads': 2})
  c.data.world.update({
      'hours': 2., 'train_clips': 300, 'valid_clips': 100, 'test_clips': 400,
      'tasks': TASKS})
  c.data.update({'hours': .5, 'crop_seconds': 2.07, 'in_memory': True,
                 'threads': 1})
  c.train.update({'steps': 4_000, 'batch': 16, 'log_every': 100})
  c.opt.update({'lr': 3e-3, 'warmup': 200, 'b2': .95, 'clip': 1.})
  c.monitor.update({'clips': 1_000, 'crop_seconds': 2.07, 'num_evals': 9,
                    'first_eval': 50, 'batch': 100, 'valid_clips': 96})
  c.checkpoint.update({'save_every': 1_000, 'keep_every': 1_000})
  c.eval.update({'protocol': 'logistic', 'batch': 100})
  if scale == 'smoke':
    c.data.world.update({'hours': .2, 'train_clips': 24, 'valid_clips': 12,
                         'test_clips': 24,
                         'tasks': ('temporal_order', 'texture')})
    c.data.update({'hours': .02, 'valid_fraction': .3})
    c.train.update({'steps': 8, 'log_every': 2})
    c.opt.warmup = 2
    c.monitor.update({'clips': 80, 'num_evals': 4, 'first_eval': 2, 'batch': 40,
                      'valid_clips': 16})
    c.checkpoint.update({'save_every': 4, 'keep_every': 4})
  return c


def crop(c, seconds, multiple):
  """Gives a config another crop, and the batch that hears as much of it.

  Args:
    c: the config of a `recipe`, changed in place.
    seconds: of a crop.
    multiple: of clips that the batch is rounded to.
  """
  heard = c.train.batch * c.data.crop_seconds
  c.data.crop_seconds = seconds
  c.train.batch = multiple * max(1, round(heard / multiple / seconds))
  c.monitor.valid_clips = 2 * c.train.batch


def get_config(point='small/'):
  """Returns the recipe of a scale."""
  scale, values = read(point)
  return recipe(scale, values['size'] if 'size' in values else '')


def points(scale='small'):
  """Returns the one point of a scale."""
  return [f'{scale}/']
