"""A law of two inputs with all its resamples, asked at many points at once.

Shape suffixes: S resamples, M points.
"""

import math

import numpy as np

from audiorank.laws import bootstrap
from audiorank.laws import optimum
from audiorank.laws import solve


def pair(fit):
  """Raises ValueError for a law that has not two inputs."""
  if len(fit.x) != 2:
    raise ValueError(f'{fit.form.name} has the input(s) {", ".join(fit.x)}: '
                     'a frontier needs a size and an amount of data')


def resampled(fit, draws, seed):
  """The fit itself, then its resamples, as one Optimum."""
  found = bootstrap.resample(fit, draws, seed)
  return optimum.Optimum(*(np.concatenate([a, b]) for a, b in
                           zip(fit.best, found)))


def values(fit, found, n_SM, d_SM):
  """The law of every set of parameters at points of its own."""
  out = []
  for i in range(len(n_SM)):
    there = fit.problem._replace(cols=[n_SM[i] / fit.problem.centre[0],
                                       d_SM[i] / fit.problem.centre[1]])
    out.append(solve.values(there, found.c_SQ[i:i + 1],
                            found.t_SP[i:i + 1])[0])
  return np.stack(out)


def interval(values_S, confidence):
  """The quantiles of what is finite; NaN where nothing is."""
  tail = (1 - confidence) / 2
  finite = values_S[np.isfinite(values_S)]
  if not len(finite):
    return math.nan, math.nan
  return tuple(np.quantile(finite, [tail, 1 - tail]))


def rises(fit):
  """Whether the output grows with both inputs, across the data."""
  corner = {name: np.quantile(np.asarray(fit.data[name], float), [.1, .9])
            for name in fit.x}
  low, high = fit.predict(corner)
  return bool(high > low)
