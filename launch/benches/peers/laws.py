"""Rivals of the fits, run in a Python of their own: see launch.benches.laws.

  python -m launch.benches.peers.laws KIND FILE.npz

Needs numpy and the rival alone; prints its CPU seconds as JSON.
"""

import json
import sys
import time
from typing import Any

import numpy as np

# log A, log B, log E, alpha, beta of Hoffmann et al. (2022): the notebook's
# start of every resample.
HOFFMANN = np.array([np.log(406.4), np.log(410.7), np.log(1.69), .34, .28])
DELTA = 1e-3


def predictions(params_P: Any, n: Any, d: Any, xp: Any) -> Any:
  """log loss of the separable law, as the notebook writes it."""
  a, b, e, alpha, beta = (params_P[i] for i in range(5))
  return xp.log(xp.exp(a - alpha * xp.log(n)) + xp.exp(b - beta * xp.log(d))
                + xp.exp(e))


def huber(params_P: Any, n: Any, d: Any, loss: Any, xp: Any) -> Any:
  """Huber's loss of the residuals of log loss, summed."""
  r = xp.log(loss) - predictions(params_P, n, d, xp)
  size = xp.abs(r)
  return xp.sum(xp.where(size <= DELTA, .5 * r ** 2,
                         DELTA * (size - .5 * DELTA)))


def rms(r: Any) -> float:
  """Root mean square."""
  return float(np.sqrt(np.mean(np.square(r))))


def peer(kind: str, path: str) -> None:
  """Runs a rival on the inputs of an .npz file; prints its result as JSON."""
  inputs = np.load(path)
  clock = time.process_time
  if kind == 'autograd':
    import autograd
    import autograd.numpy as anp
    from scipy import optimize
    objective = lambda p, n, d, y: huber(p, n, d, y, anp)
    gradient = autograd.grad(objective)
    solve = lambda row: optimize.minimize(
        objective, HOFFMANN, jac=gradient, method='BFGS',
        args=(inputs['N'][row], inputs['D'][row], inputs['loss'][row]))
    # Once untimed, for the first gradient.
    solve(inputs['rows'][0])
    began = clock()
    fits = [solve(row) for row in inputs['rows']]
    out = {'s': (clock() - began) / len(fits),
           'objective': [float(f.fun) for f in fits]}
  elif kind == 'grid':
    from scipy import optimize
    objective = lambda p: huber(p, inputs['N'], inputs['D'], inputs['loss'], np)
    # Some starts of the grid overflow.
    with np.errstate(all='ignore'):
      began = clock()
      values = [optimize.minimize(objective, start, method='L-BFGS-B').fun
                for start in inputs['starts']]
    out = {'s': (clock() - began) / len(values),
           'objective': [float(f) for f in values]}
  elif kind == 'simple':
    import polars
    import simple_scaling_laws
    frame = polars.DataFrame({
        'training_run_id': np.arange(len(inputs['N'])).astype(str),
        'model_size__n': inputs['N'], 'dataset_size__d': inputs['D'],
        'test_loss__ce': inputs['loss']})
    spent = []
    # A long call less a short one: what a start costs cancels.
    for draws in (1, int(inputs['draws'])):
      began = clock()
      simple_scaling_laws.fit(frame, 'separable-power', n_draws=draws)
      spent.append(clock() - began)
    out = {'s': (spent[1] - spent[0]) / (int(inputs['draws']) - 1)}
  else:
    from revisiting_neural_scaling_laws.methods import m4
    # As the package's README: err_0 = .999, which a loss must not reach.
    top = .999 if inputs['y'].max() < .999 else None
    began = clock()
    fit = m4.Estimator(dict(zip(inputs['x'].tolist(), inputs['y'].tolist())),
                       err_inf=None, err_0=top, update_err_0=True)
    fit.estimate_scaling_params(verbose=False)
    guess = np.array([fit.predict_loss(x) for x in inputs['late_x']])
    out = {'s': clock() - began,
           'error': rms(np.log(guess / inputs['late_y']))}
  print(json.dumps(out))


if __name__ == '__main__':
  peer(*sys.argv[1:3])
