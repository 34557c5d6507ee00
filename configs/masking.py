"""Masking rate: RankMe against score as it changes.

  python -m launch.sweep --scale=small --root=runs/masking \
      --config=configs/masking.py

Question: does RankMe order masking rates as the score does, and does one law
hold through them?
Cost: paper 5 runs, 2.7e18 FLOPs, 9.6 hours of a TPU v5e at 40 %;
small 5 runs, 4.5e12 FLOPs, some 4 core-minutes a run.
It fails if the best rate by RankMe is not among the best two by score.
"""

from configs import scales

RATES = (.3, .5, .65, .75, .9)


def get_config(point='small/mask=0.75'):
  """Returns the config of a masking rate."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'masking'
  c.mask.ratio = float(values['mask'])
  return c


def points(scale='small'):
  """Returns a point per rate."""
  return [scales.point(scale, mask=rate) for rate in RATES]
