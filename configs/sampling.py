"""Sampling: which clips RankMe is read on, and how many.

  python -m launch.sweep --scale=small --root=runs/sampling \
      --config=configs/sampling.py

Question: how does RankMe hang on its sample: clips trained on, held out, of
one category, drawn by another seed (sample), fewer of them? Is the gap between
clips trained on and held out a gauge of memorising, wider with fewer hours? Do
samples agree on the order of runs? Every record has RankMe of 1/8, 1/4 and 1/2
of each sample (`curve`) and what endless clips would give (`value_inf`);
samples of other sizes are compared by the latter. At paper scale the corpus
needs the folders speech and music.
Cost: paper 9 runs, 4.9e18 FLOPs, 17 hours of a TPU v5e at 40 %;
small 12 runs, 9.3e12 FLOPs, some 4 core-minutes a run.
It fails if RankMe of clips drawn by other seeds lies outside the intervals
more often than one time in five (95 % are claimed of one seed's; the draws
are of one corpus), or if samples disagree on the order of runs whose intervals
are apart.
"""

from configs import scales

HOURS = {'paper': (50., 500.), 'small': (.1, .5, 1.5), 'smoke': (.02,)}
RATES = {'paper': (.5, .75, .9), 'small': (.5, .75, .9), 'smoke': (.75,)}
CATEGORIES = {'paper': ('speech', 'music'),
              'small': ('speech', 'music', 'texture'), 'smoke': ('speech',)}
SEEDS = {'paper': 4, 'small': 4, 'smoke': 2}


def get_config(point='small/hours=0.5,mask=0.75,sample=0'):
  """Returns the config of hours, a masking rate and a seed of the sample."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'sampling'
  c.data.hours = float(values['hours'])
  c.mask.ratio = float(values['mask'])
  c.monitor.seed = int(values['sample'])
  c.monitor.samples = ('train', 'valid', *CATEGORIES[scale])
  # So that as many clips are held out as RankMe wants.
  if scale == 'small':
    c.data.valid_fraction = .15
  if scale == 'smoke':
    c.data.world.hours = .5
  return c


def points(scale='small'):
  """Returns a point per hours and rate, then other seeds of the sample."""
  hours, rate = HOURS[scale], RATES[scale]
  middle = dict(hours=hours[len(hours) // 2], mask=rate[len(rate) // 2])
  return [*(scales.point(scale, hours=h, mask=r, sample=0)
            for h in hours for r in rate),
          *(scales.point(scale, **middle, sample=s)
            for s in range(1, SEEDS[scale]))]
