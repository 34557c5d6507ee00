"""Model size x data: the joint law, and the size that data can feed.

  python -m launch.sweep --scale=small --root=runs/model_data_grid \
      --config=configs/model_data_grid.py

Question: how do loss, RankMe and score fall or rise with parameters and hours,
where does data stop larger models, and does one curve of RankMe hold for all?
Cost: paper 20 runs, 4.6e19 FLOPs, 164 hours of a TPU v5e at 40 %;
small 12 runs, 1.7e13 FLOPs, some 4 core-minutes a run.
It fails if the joint law's error on the largest runs, held out, is no
better than that of the mean.
"""

import itertools

from configs import scales

SIZES = {'paper': ('en128-12', 'en384-12', 'en768-12', 'en1280-32',
                   'en1536-40'),
         'small': ('en16-4', 'en32-4', 'en64-4', 'en96-4'),
         'smoke': ('en16-1', 'en32-1')}
HOURS = {'paper': (50., 500., 5_000., 50_000.), 'small': (.05, .3, 1.8),
         'smoke': (.02, .04)}


def get_config(point='small/size=en32-4,h=0.3'):
  """Returns the config of a size and an amount of data."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, values['size'])
  c.experiment = 'model_data_grid'
  c.data.hours = float(values['h'])
  return c


def points(scale='small'):
  """Returns every size at every amount."""
  return [scales.point(scale, size=size, h=hours)
          for size, hours in itertools.product(SIZES[scale], HOURS[scale])]
