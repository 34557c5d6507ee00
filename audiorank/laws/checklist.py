"""What a reader must know of a fit, filled in.

The four heads of "(Mis)Fitting: A Survey of Scaling Laws" (Li et al. 2025,
arXiv 2502.18969): the hypothesis, the training setup, the extraction of the
data, the fit. What the table of points cannot say stays 'not stated' until
`about` says it: most published laws cannot be repeated for want of these.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from audiorank.laws import problem as problem_lib
from audiorank.laws import select
from audiorank.laws import solvers
from audiorank.laws.fit import Fit

UNSTATED = 'not stated'
HEADS = ('hypothesis', 'training', 'data', 'fit')
_LINKS = {'identity': '', 'log': 'the logarithm of ', 'logit': 'the logit of '}
_KINDS = {'ls': 'least squares', 'huber': 'Huber, summed',
          'lad': 'least absolute deviations'}


def fill(fit: Fit, about: Mapping[str, Any] | None = None,
         by: str | None = None) -> pd.DataFrame:
  """Returns the checklist of a fit.

  Args:
    fit: a Fit.
    about: item -> answer, for what only its owner knows; may replace any
      item.
    by: the column of `fit.x` whose largest values are held out to validate;
      None for the first.

  Returns:
    A DataFrame of head, item, answer, in the order of HEADS.

  Raises:
    ValueError: `about` names an item that is none.
  """
  # Items that the table of points cannot answer stay UNSTATED: an empty answer
  # would pass for a complete one.
  known = fit.diagnostics
  items = {
      'hypothesis': {
          'law': f'{fit.form.name}: {fit.form.formula}',
          'variables': f'{fit.y} from {", ".join(fit.x)}',
          'parameters': f'{fit.size}: {", ".join(fit.form.names)}',
          'alternatives compared': UNSTATED},
      'training': {
          'points': _points(fit),
          **{f'range of {name}': _span(fit.data[name]) for name in fit.x},
          'hyperparameters per size': UNSTATED,
          'learning rate schedule': UNSTATED,
          'seeds per configuration': _repeats(fit)},
      'data': {
          f'range of {fit.y}': _range(fit.data[fit.y]),
          'metric': UNSTATED, 'checkpoints used': UNSTATED,
          'how size is counted': UNSTATED,
          'how compute is counted': UNSTATED,
          'points left out': _left_out(fit)},
      'fit': {
          'loss': _loss(fit), 'weights': _weights(fit),
          'optimiser': _optimiser(fit), 'starts': _starts(fit),
          'at a bound': ', '.join(known['at_bound']) or 'none',
          'not identified': ', '.join(
              n for n, good in known['identifiable'].items() if not good)
          or 'none',
          'intervals': 'profile likelihood, 95 %; bands by bootstrap over '
                       f'{known["groups"]} groups',
          'left out in turn': _alone(fit),
          'largest held out': _beyond(fit, by or fit.x[0])}}
  rows = [(head, item, answer) for head in HEADS
          for item, answer in items[head].items()]
  result = pd.DataFrame(rows, columns=['head', 'item', 'answer'])
  # Answers of the owner replace what was computed: they know better.
  for item, answer in (about or {}).items():
    here = result['item'] == item
    if not here.any():
      raise ValueError(f'the checklist has no item {item!r}: one of '
                       f'{", ".join(result["item"])}')
    result.loc[here, 'answer'] = str(answer)
  return result


def words(filled: pd.DataFrame) -> str:
  """Returns a filled checklist as text, one paragraph per heading."""
  lines = []
  wide = max(map(len, filled['item']))
  for head in HEADS:
    lines.append(head)
    part = filled[filled['head'] == head]
    lines += [f'  {item:{wide}}  {answer}' for item, answer in
              zip(part['item'], part['answer'])]
  return '\n'.join(lines)


def _points(fit):
  """Returns the number of rows and of independent ones, as text."""
  text = f'{fit.n}, {fit.units} of them independent'
  if fit.repeats:
    text += f' ({fit.repeats} rows are equal to another one)'
  return text


def _range(values):
  """Returns the range of a column, as text."""
  v = np.asarray(values, float)
  return f'{v.min():.4g} to {v.max():.4g}'


def _span(values):
  """Returns the range of a positive column with its decades, as text."""
  v = np.asarray(values, float)
  return (f'{_range(v)} ({np.log10(v.max() / v.min()):.2f} decades, '
          f'{len(np.unique(v))} values)')


def _repeats(fit):
  """Returns the number of rows per group, as text."""
  used = fit.problem.w_N > 0
  size = np.bincount(fit.group_N[used])
  # `bincount` also counts numbers of groups that have no weight left.
  size = size[size > 0]
  if size.max() == 1:
    return 'one row a group'
  return f'{size.min()} to {size.max()} rows a group'


def _left_out(fit):
  """Returns the number of rows without weight, as text."""
  out = len(fit.problem.y_N) - fit.n
  if not out:
    return 'none'
  return f'{out} of {len(fit.problem.y_N)} (weight 0)'


def _loss(fit):
  """Returns the loss, its scale, and delta relative to the noise, as text."""
  loss = fit.problem.loss
  text = f'{_KINDS[loss.kind]}, on {_LINKS[loss.link]}{fit.y}'
  if loss.kind == 'huber':
    text += (f'; delta {fit.problem.delta:g}, '
             f'{fit.diagnostics["delta_over_sd"]:.2g} residual sd')
  return text + f'; residual sd {fit.sd:.3g}'


def _weights(fit):
  """Returns the range of the weights, as text."""
  w_N = fit.problem.w_N[fit.problem.w_N > 0]
  if np.ptp(w_N) == 0:
    return 'equal'
  return f'from {w_N.min():.3g} to {w_N.max():.3g}'


def _optimiser(fit):
  """Returns how the optimum was computed, and whether it converged."""
  if not fit.converged:
    return 'the search has not converged'
  if not solvers.projected(fit.problem):
    return ('variable projection over a grid, then damped Newton with exact '
            f'Hessian; gradient {fit.diagnostics["gradient"]:.1e}')
  text = 'variable projection: linear coefficients in closed form'
  if fit.form.nonlinear:
    text += f', golden section over {next(iter(fit.form.nonlinear))}'
  return text


def _starts(fit):
  """Returns how many starts were polished, and how many agree."""
  if fit.starts == 1:
    return 'none needed: the search is one-dimensional at most'
  return f'{fit.starts}, {fit.agreeing:.0%} of them end in the optimum'


def _alone(fit):
  """Returns the error on left-out groups, on the scale of the loss."""
  e_N = select.leave_one_out(fit)
  return (f'root mean square error {np.sqrt(np.nanmean(e_N ** 2)):.3g}, in '
          f'the sample {fit.diagnostics["rms"]:.3g}')


def _beyond(fit, name):
  """Returns the error on the largest values of a column, if left out."""
  # Rows of weight 0 were not fitted.
  used = fit.problem.w_N > 0
  data = {key: np.asarray(col)[used] for key, col in fit.data.items()}
  # The name of the loss, looked up from what it consists of.
  loss = {v: k for k, v in problem_lib.LOSSES.items()}[fit.problem.loss]
  out = select.largest(data, name)
  try:
    rmse = select.held_out(fit.form, data, out, loss, fit.group_N[used],
                           fit.x, fit.y, fit.problem.delta)
  except ValueError as error:
    return f'not possible: {error}'
  return (f'root mean square error {rmse:.3g} on {out.sum()} points of '
          f'{name} from {data[name][out].min():.4g}')
