"""Crop length: short crops at an equal amount of audio.

  python -m launch.sweep --scale=small --root=runs/crop_length \
      --config=configs/crop_length.py

Question: does RankMe order crop lengths as the score does, when every run hears
as many seconds of audio?
Cost: paper 4 runs, 2.1e18 FLOPs, 7.3 hours of a TPU v5e at 40 %;
small 3 runs, 2.1e12 FLOPs, some 4 core-minutes a run.
It fails if RankMe and score disagree on whether longer is better.
"""

from configs import scales

SECONDS = {'paper': (1.03, 2.07, 5.03, 10.), 'small': (.55, 1.03, 2.07),
           'smoke': (1.03, 2.07)}


def get_config(point='small/crop=1.03'):
  """Returns the config of a crop: its batch makes up for its length."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'crop_length'
  scales.crop(c, float(values['crop']), 8)
  return c


def points(scale='small'):
  """Returns a point per length."""
  return [scales.point(scale, crop=seconds) for seconds in SECONDS[scale]]
