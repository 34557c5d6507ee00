"""Architecture transfer: the same encoders, trained by other objectives.

  python -m launch.sweep --scale=small --root=runs/architecture_transfer \
      --config=configs/architecture_transfer.py

Question: does the law of RankMe and score found with masked autoencoding (mae)
hold with the same parameters when an encoder learns to tell two crops of a
clip from other clips (contrastive) or to predict a teacher's embeddings
(latent), and does either pass the limit Q_inf of the MAE's own curve?
Cost: paper 15 runs, 1.1e19 FLOPs, 39 hours of a TPU v5e at 40 %;
small 9 runs, 1.4e13 FLOPs, some 2 to 4 core-minutes a run.
It fails if the three curves, each fitted to its own rows of runs.parquet
(laws.fit), lie further apart than their intervals: then RankMe tells quality
within one objective alone.
Steps are equal, costs are not: over these sizes contrastive takes 2.3 times
the MAE's FLOPs at small scale and 0.9 times at paper scale, latent 1.6 and 1.3
times. What is read against compute has to use the column flops.
"""

import itertools

from configs import scales

OBJECTIVES = ('mae', 'contrastive', 'latent')
SIZES = {'paper': ('en128-12', 'en256-12', 'en384-12', 'en512-12', 'en768-12'),
         'small': ('en16-4', 'en32-4', 'en64-4'),
         'smoke': ('en16-1', 'en32-1')}
# A teacher that looks back over some 2 % of the steps, as at paper scale.
DECAY = {'paper': .999, 'small': .99, 'smoke': .9}


def get_config(point='small/objective=latent,size=en32-4'):
  """Returns the config of a size under an objective."""
  scale, values = scales.read(point)
  c = scales.recipe(scale, values['size'])
  c.experiment = 'architecture_transfer'
  c.objective = values['objective']
  if c.objective == 'latent':
    c.latent.decay = DECAY[scale]
  return c


def points(scale='small'):
  """Returns every size under every objective."""
  return [scales.point(scale, objective=objective, size=size)
          for objective, size in itertools.product(OBJECTIVES, SIZES[scale])]
