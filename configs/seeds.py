"""Seeds: the noise under every other claim.

  python -m launch.sweep --scale=small --root=runs/seeds \
      --config=configs/seeds.py

Question: how far do score and RankMe of one point move with initialisation and
masks (seed), and with the order of clips (order)?
Cost: paper 15 runs, 8.1e18 FLOPs, 28 hours of a TPU v5e at 40 %;
small 9 runs, 6.7e12 FLOPs, some 4 core-minutes a run.
It fails if their spread is as large as the differences that other
experiments report.
"""

from configs import scales

SEEDS = {'paper': 8, 'small': 5, 'smoke': 2}


def get_config(point='small/seed=0,order=0'):
  """Returns the reference recipe under other random numbers."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'seeds'
  c.seed = int(values['seed'])
  c.data.seed = int(values['order'])
  return c


def points(scale='small'):
  """Returns points of other seeds, then of other orders."""
  more = range(1, SEEDS[scale])
  return [scales.point(scale, seed=0, order=0),
          *(scales.point(scale, seed=s, order=0) for s in more),
          *(scales.point(scale, seed=0, order=s) for s in more)]
