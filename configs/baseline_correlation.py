"""Baseline: one run, RankMe and score side by side while it trains.

  python -m launch.sweep --scale=small --root=runs/baseline_correlation \
      --config=configs/baseline_correlation.py

Question: does RankMe go with a proxy task during one training run, as in the
paper's first figure (en128-12, about 500 h, 50k steps, a reading every 5k)?
Scores of the checkpoints that stay: launch.evaluate --step.
Cost: paper 1 run, 5.4e17 FLOPs, 1.9 hours of a TPU v5e at 40 %;
small 1 run, 7.4e11 FLOPs, some 4 core-minutes a run.
It fails if the rank correlation over readings is not positive, or the
score does not rise above the untrained network's.
"""

from configs import scales


def get_config(point='small/'):
  """Returns the reference recipe of a scale."""
  scale, _ = scales.read(point)
  c = scales.recipe(scale)
  c.experiment = 'baseline_correlation'
  c.monitor.eval_every = max(1, c.train.steps // 10)
  return c


def points(scale='small'):
  """Returns the one point."""
  return [scales.point(scale)]
