"""The study: one thing varied at a time, at fixed width, with three seeds.

  python -m launch.sweep --scale=small --root=runs/study \
      --config=configs/study.py --config.data.root=CORPUS \
      --config.eval.tasks=TASKS

Question: does RankMe unify? If it does, a doubling of RankMe is worth as much
score whether the masking rate, the hours, the learning rate, the steps, the
decoder, the crop or the initial scale moved it, as it is where size did. All of
these vary at one width, which therefore explains nothing. What decides, and how
small an effect this design can see, is in notebooks/README.md, written before
the runs.
Every run has the warm-up, constant, decay schedule, so that the runs of fewer
steps start from checkpoints of the longest one (audiorank/branch.py).
Cost: paper 123 runs, 6.9e19 FLOPs; small 126 runs, 8.8e13 FLOPs, some
1.5 core-minutes a run. On one GPU the same points train packed, with a larger
batch: --config.train.batch=128.
It fails if RankMe moves by less than a factor of two at fixed width, or if
most runs score below their untrained networks.
"""

from configs import scales

# What each family varies; the reference has every first value.
MASKS = (.75, .3, .5, .6, .9)
DECODERS = {'paper': ('512x8', '128x2', '256x4', '768x8'),
            'small': ('32x1', '16x1', '64x2', '128x2'),
            'smoke': ('32x1', '16x1')}
HOURS = {'paper': (500, 5, 50, 5000), 'small': (.5, .02, .1, 2, 6),
         'smoke': (.02, .05)}
RATES = {'paper': (3e-4, 3e-5, 1e-4, 1e-3, 3e-3),
         'small': (3e-3, 1e-4, 3e-4, 1e-3, 1e-2), 'smoke': (3e-3, 1e-2)}
STEPS = {'paper': (50_000, 6_250, 12_500, 25_000, 100_000, 200_000),
         'small': (2_000, 500, 1_000, 4_000, 8_000), 'smoke': (8, 16)}
CROPS = {'paper': (10., 1.03, 2.07, 5.03), 'small': (2.07, .55, 1.03),
         'smoke': (2.07, 1.03)}
INITS = (1., .25, 4.)  # Factors on the initial weights.
SIZES = {'paper': ('en128-12', 'en256-12', 'en384-12', 'en768-12'),
         'small': ('en32-4', 'en16-4', 'en48-4', 'en64-4', 'en96-4', 'en128-4'),
         'smoke': ('en16-1', 'en32-1')}
# Those that other things vary at, too.
ENDS = {'paper': ('en256-12', 'en384-12'), 'small': ('en16-4', 'en64-4'),
        'smoke': ('en32-1',)}
CATEGORIES = {'paper': ('speech', 'music', 'environment'),
              'small': ('speech', 'music', 'sfx'), 'smoke': ('speech',)}
OBJECTIVES = ('contrastive', 'latent')
SEEDS = {'paper': (0, 1, 2), 'small': (0, 1, 2), 'smoke': (0,)}
DECAY = .2  # Share of the steps in which the learning rate falls.


def get_config(point='small/mask=0.3,seed=0'):
  """Returns the config of the reference with what a point names changed."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, values.pop('size', ''))
  c.experiment = 'study'
  c.seed = int(values.pop('seed'))
  c.opt.update({'schedule': 'wsd', 'decay': DECAY, 'final_lr_ratio': .01})
  # Every layer, and the rivals of RankMe, at every evaluation.
  c.monitor.update({'layers': ('all',), 'neighbour_clips': 1_000,
                    'lidar_clips': 300, 'samples': ('valid',)})
  c.train.steps = STEPS[scale][0]
  if scale != 'paper':  # There, tasks are the user's own.
    c.monitor.update({'knn_task': 'texture-v1-full', 'num_evals': 6})
  c.eval.every_layer = True
  c.data.valid_fraction = .1  # Enough clips of every category.
  # Where the decays of all durations begin.
  first = min(STEPS[scale])
  c.checkpoint.save_every = round((1 - DECAY) * first)
  c.checkpoint.keep_every = 100_000_000
  if scale == 'smoke':
    c.monitor.update({'neighbour_clips': 80, 'lidar_clips': 80})
    c.data.world.hours = .5
  for name, text in values.items():
    vary(c, scale, name, text)
  if c.train.steps == max(STEPS[scale]):
    c.checkpoint.keep_every = c.checkpoint.save_every
  return c


def vary(c, scale, name, text):
  """Changes one thing of a config in place.

  Args:
    c: the config.
    scale: of configs/scales.py.
    name: what: mask, hours, lr, steps, decoder, crop, init, category,
      objective.
    text: its value.

  Raises:
    ValueError: another name.
  """
  if name == 'mask':
    c.mask.ratio = float(text)
  elif name == 'hours':
    c.data.hours = float(text)
  elif name == 'lr':
    c.opt.lr = float(text)
  elif name == 'steps':
    c.train.steps = int(text)
  elif name == 'decoder':
    width, depth = map(int, text.split('x'))
    c.model.decoder.update({'width': width, 'depth': depth,
                            'heads': max(2, width // 32)})
  elif name == 'crop':
    scales.crop(c, float(text), 8)
  elif name == 'init':
    c.train.init_scale = float(text)
  elif name == 'category':
    c.data.category = (text,)
  elif name == 'objective':
    c.objective = text
    c.latent.decay = .999 if scale == 'paper' else .99
  else:
    raise ValueError(f'point: unknown field {name!r}')


def points(scale='small'):
  """Returns the reference, then family by family; all seeds of each."""
  few = scale == 'smoke'
  families = {
      'mask': MASKS[1:3] if few else MASKS[1:], 'hours': HOURS[scale][1:],
      'lr': RATES[scale][1:], 'steps': STEPS[scale][1:],
      'decoder': DECODERS[scale][1:], 'crop': CROPS[scale][1:],
      'init': INITS[1:2] if few else INITS[1:], 'size': SIZES[scale][1:],
      'category': CATEGORIES[scale]}
  changes = [{}]
  changes += [{name: value} for name, values in families.items()
              for value in values]
  # Little data and much at two other sizes.
  changes += [{'size': size, 'hours': hours} for size in ENDS[scale]
              for hours in (HOURS[scale][1], HOURS[scale][-1])]
  changes += [{'objective': objective, 'size': size}
              for objective in OBJECTIVES
              for size in (SIZES[scale][0], *ENDS[scale])]
  # The longest runs first: others start from their checkpoints. The largest
  # size last: it is forecast from the others.
  changes.sort(key=lambda change: (
      change.get('size') == SIZES[scale][-1], -int(change.get('steps', 0))))
  return list(dict.fromkeys(
      scales.point(scale, **change, seed=seed) for change in changes
      for seed in SEEDS[scale]))
