"""Other modality: RankMe and the law for pictures, through the same code.

  python -m launch.sweep --scale=small --root=runs/other_modality \
      --config=configs/other_modality.py

Question: is the relation of RankMe to score one of masked autoencoders, or of
sound? 1,797 scans of digits (scikit-learn must be installed; 1,000 of them are
trained on) become waves that carry their pixels, and model.frontend = 'pixels'
turns them back into 16 patches: see audiorank/images.py, which writes any
other pictures too. The tasks are which digit, and which way up. Embeddings of
another model and of whatever else need no training:
launch.evaluate --embeddings=FILE.npz.
Cost: paper 6 runs, 3.4e16 FLOPs, 0.12 hours of a TPU v5e at 40 %;
small 9 runs, 2.1e12 FLOPs, some 2 core-minutes a run.
It fails if RankMe does not order the runs as their score does, or if RankMe of
the untrained network stands above that of every run that beats it.
"""

from configs import scales

SIZES = {'paper': ('en128-12', 'en768-12'),
         'small': ('en16-4', 'en32-4', 'en64-4'), 'smoke': ('en16-1',)}
RATES = {'paper': (.5, .75, .9), 'small': (.5, .75, .9), 'smoke': (.5, .75)}
PATCHES, PIXELS = 16, 4  # Of a digit: 8 x 8 in squares of 2 x 2.


def get_config(point='small/size=en32-4,mask=0.75'):
  """Returns the config of a size and a masking rate."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, values['size'])
  c.experiment = 'other_modality'
  # A patch of four pixels has hardly a mean and variance of its own.
  c.objective = 'mae_batch'
  c.model.update({'frontend': 'pixels', 'mels': PIXELS, 'patch_frames': 1,
                  'target_frames': PATCHES})
  c.mask.update({'ratio': float(values['mask']), 'group_size': 1})
  seconds = ((PATCHES - 1) * 160 + PIXELS) / 16_000
  # Pictures are few and short: all of them, one each.
  c.data.update({'crop_seconds': seconds, 'hours': 0.})
  c.monitor.update({'crop_seconds': seconds, 'valid_clips': 32})
  if scale == 'paper':
    c.data.in_memory = True
    c.train.batch = 32
    c.monitor.update({'clips': 900, 'batch': 256})
  if scale == 'small':
    c.monitor.clips = 900
  return c


def points(scale='small'):
  """Returns a point per size and rate."""
  return [scales.point(scale, size=size, mask=rate)
          for size in SIZES[scale] for rate in RATES[scale]]
