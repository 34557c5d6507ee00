"""Decoder: most of a small model's compute, and not kept.

  python -m launch.sweep --scale=small --root=runs/decoder \
      --config=configs/decoder.py

Question: the decoder is fixed in the paper, and 98 % of the compute of its
smallest model: do RankMe and score change with it, and together?
Cost: paper 4 runs, 6.8e17 FLOPs, 2.4 hours of a TPU v5e at 40 %;
small 4 runs, 5.0e12 FLOPs, some 4 core-minutes a run.
It fails if a decoder that costs a tenth gives a worse score per FLOP.
"""

from configs import scales

SHAPES = {'paper': ((128, 2), (128, 4), (256, 4), (512, 8)),
          'small': ((16, 1), (32, 1), (32, 2), (64, 2)),
          'smoke': ((16, 1), (32, 1))}


def get_config(point='small/width=32,depth=1'):
  """Returns the reference encoder with a decoder."""
  scale, values = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'decoder'
  width = int(values['width'])
  c.model.decoder.update({'width': width, 'depth': int(values['depth']),
                          'heads': max(1, width // 32)})
  return c


def points(scale='small'):
  """Returns a point per decoder."""
  return [scales.point(scale, width=w, depth=d) for w, d in SHAPES[scale]]
