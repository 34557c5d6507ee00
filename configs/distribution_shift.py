"""Distribution shift: trained on one kind of sound, judged on every task.

  python -m launch.sweep --scale=small --root=runs/distribution_shift \
      --config=configs/distribution_shift.py

Question: does the law between RankMe and score hold for encoders that have
heard one category alone, and on which sample: the whole corpus, the category
trained on, another one? The report's table of predictors has a row per sample
('RankMe of speech'), on the same folds. At paper scale the corpus needs files
in the folders speech, music and environment; others are asked for by
--config.monitor.samples and a copy of this file.
Cost: paper 12 runs, 6.5e18 FLOPs, 23 hours of a TPU v5e at 40 %;
small 6 runs, 5.4e12 FLOPs, some 4 core-minutes a run.
It fails if no sample's RankMe predicts the score of runs left out better than
their mean, or if only that of a sample which the run was trained on does.
"""

from configs import scales

ALL = 'all'
CATEGORIES = {'paper': ('speech', 'music', 'environment'),
              'small': ('speech', 'music'), 'smoke': ('speech',)}
RATES = {'paper': (.5, .75, .9), 'small': (.5, .75), 'smoke': (.75,)}


def get_config(point='small/category=speech,mask=0.75'):
  """Returns the config of a category, or of all, and a masking rate."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'distribution_shift'
  if values['category'] != ALL:
    c.data.category = (values['category'],)
  c.mask.ratio = float(values['mask'])
  c.monitor.samples = ('valid', *CATEGORIES[scale])
  # Every category has as many hours to train on, and clips held out.
  if scale == 'small':
    c.data.world.hours = 4.
    c.data.update({'hours': .4, 'valid_fraction': .15})
  if scale == 'smoke':
    c.data.world.hours = .5
  return c


def points(scale='small'):
  """Returns a point per category and rate, the whole corpus first."""
  return [scales.point(scale, category=category, mask=rate)
          for category in (ALL, *CATEGORIES[scale]) for rate in RATES[scale]]
