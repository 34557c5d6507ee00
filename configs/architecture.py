"""Architecture: width against depth against heads at equal compute.

  python -m launch.sweep --scale=small --root=runs/architecture \
      --config=configs/architecture.py

Question: at equal FLOPs of the encoder, is RankMe (bounded by the width) still
the score's order, or does it only read the width off?
Cost: paper 6 runs, 3.3e18 FLOPs, 12 hours of a TPU v5e at 40 %;
small 6 runs, 6.3e12 FLOPs, some 4 core-minutes a run.
It fails if RankMe over width orders these encoders better than RankMe.
"""

from configs import scales

# Width^2 x depth is held within a tenth: the encoder's FLOPs nearly so.
SHAPES = {'paper': ((128, 27, 4), (192, 12, 6), (272, 6, 8), (384, 3, 12),
                    (192, 12, 3), (192, 12, 12)),
          'small': ((24, 14, 2), (32, 8, 2), (48, 4, 2), (64, 2, 2),
                    (48, 4, 1), (48, 4, 4)),
          'smoke': ((16, 4, 2), (32, 1, 2))}


def get_config(point='small/width=48,depth=4,heads=2'):
  """Returns the config of a shape."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, f'en{values["width"]}-{values["depth"]}')
  c.experiment = 'architecture'
  c.model.heads = int(values['heads'])
  return c


def points(scale='small'):
  """Returns a point per shape."""
  return [scales.point(scale, width=w, depth=d, heads=h)
          for w, d, h in SHAPES[scale]]
