"""The study: every experiment of this folder in one sweep.

  python -m launch.sweep --scale=small --root=runs/small_study \
      --config=configs/small_study.py

  python -m launch.sweep --scale=small --root=runs/small_study \
      --config=configs/small_study.py --config.data.root=CORPUS \
      --config.eval.tasks=TASKS --config.monitor.samples=valid

Question: which claims of the paper hold at this scale, on your corpus and
tasks, when every other predictor of the score is given the same chance?
What several experiments share (the reference point stands in each) is trained
once.
Cost: paper 90 runs, 2.0e20 FLOPs; small 61 runs, 6.6e13 FLOPs, some
2 core-minutes per run, half of it evaluations and scores.
It fails if the noise between seeds is as large as what the experiments
differ by.
"""

import importlib
import json

# What does not change what is trained.
NOT_TRAINED = ('experiment', 'checkpoint', 'eval')
EXPERIMENTS = ('seeds', 'masking', 'model_data_grid', 'architecture',
               'decoder', 'crop_length', 'early_prediction',
               'architecture_transfer', 'distribution_shift')


def module(name):
  """Returns the config file of an experiment."""
  return importlib.import_module(f'configs.{name}')


def get_config(point='seeds:small/seed=0,order=0'):
  """Returns the config of a point '<experiment>:<its point>'."""
  name, _, rest = point.partition(':')
  if name not in EXPERIMENTS:
    raise ValueError(f'point {point!r}: expected one of '
                     f'{", ".join(e + ":..." for e in EXPERIMENTS)}')
  return module(name).get_config(rest)


def points(scale='small'):
  """Returns the points of every experiment in turn, no run twice."""
  every = (f'{name}:{point}' for name in EXPERIMENTS
           for point in module(name).points(scale))
  first = {}
  for point in every:
    tree = get_config(point).to_dict()
    for part in NOT_TRAINED:
      del tree[part]
    first.setdefault(json.dumps(tree, sort_keys=True), point)
  return list(first.values())
