"""What a reader must be told of a fit, filled in.

The four heads of "(Mis)Fitting: A Survey of Scaling Laws" (Li et al. 2025,
arXiv 2502.18969): the hypothesis, the training setup, the extraction of the
data, the fit. What the table of points cannot say stays 'not stated' until
`about` says it: most published laws cannot be repeated for want of these.
"""

import numpy as np
import pandas as pd

from audiorank.laws import choose
from audiorank.laws import optimum
from audiorank.laws import solve

UNSTATED = 'not stated'
HEADS = ('hypothesis', 'training', 'data', 'fit')
LINKS = {'identity': '', 'log': 'the logarithm of ', 'logit': 'the logit of '}
KINDS = {'ls': 'least squares', 'huber': 'Huber, summed',
         'lad': 'least absolute deviations'}


def fill(fit, about=None, by=None):
  """The checklist of a fit.

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
  known = fit.diagnostics
  items = {
      'hypothesis': {
          'law': f'{fit.form.name}: {fit.form.formula}',
          'variables': f'{fit.y} from {", ".join(fit.x)}',
          'parameters': f'{fit.size}: '
                        f'{", ".join([*fit.form.linear, *fit.form.shape])}',
          'alternatives compared': UNSTATED},
      'training': {
          'points': f'{known["n"]}, {known["groups"]} of them independent',
          **{f'range of {name}': span(fit.data[name]) for name in fit.x},
          'hyperparameters per size': UNSTATED,
          'learning rate schedule': UNSTATED,
          'seeds per configuration': repeats(fit)},
      'data': {
          f'range of {fit.y}': span(fit.data[fit.y], False),
          'metric': UNSTATED, 'checkpoints used': UNSTATED,
          'how size is counted': UNSTATED,
          'how compute is counted': UNSTATED,
          'points left out': left_out(fit)},
      'fit': {
          'loss': loss(fit), 'weights': weights(fit),
          'optimiser': optimiser(fit), 'starts': starts(fit),
          'at a bound': ', '.join(known['at_bound']) or 'none',
          'not identified': ', '.join(
              n for n, good in known['identifiable'].items() if not good)
          or 'none',
          'intervals': 'profile likelihood, 95 %; bands by bootstrap over '
                       f'{known["groups"]} groups',
          'left out in turn': alone(fit),
          'largest held out': beyond(fit, by or fit.x[0])}}
  rows = [(head, item, answer) for head in HEADS
          for item, answer in items[head].items()]
  result = pd.DataFrame(rows, columns=['head', 'item', 'answer'])
  for item, answer in (about or {}).items():
    here = result['item'] == item
    if not here.any():
      raise ValueError(f'the checklist has no item {item!r}: one of '
                       f'{", ".join(result["item"])}')
    result.loc[here, 'answer'] = str(answer)
  return result


def words(filled):
  """A filled checklist as text, a head a paragraph."""
  lines = []
  wide = max(map(len, filled['item']))
  for head in HEADS:
    lines.append(head)
    part = filled[filled['head'] == head]
    lines += [f'  {item:{wide}}  {answer}' for item, answer in
              zip(part['item'], part['answer'])]
  return '\n'.join(lines)


def span(values, logged=True):
  """The range of a column in words, with its decades."""
  v = np.asarray(values, float)
  text = f'{v.min():.4g} to {v.max():.4g}'
  return (f'{text} ({np.log10(v.max() / v.min()):.2f} decades, '
          f'{len(np.unique(v))} values)' if logged else text)


def repeats(fit):
  """How many rows a group has."""
  used = fit.problem.w_N > 0
  size = np.bincount(fit.group_N[used])
  size = size[size > 0]
  if size.max() == 1:
    return 'one row a group'
  return f'{size.min()} to {size.max()} rows a group'


def left_out(fit):
  """How many rows have no weight."""
  out = len(fit.problem.y_N) - fit.n
  return f'{out} of {len(fit.problem.y_N)} (weight 0)' if out else 'none'


def loss(fit):
  """The loss, its scale, and delta against the noise."""
  kind = fit.problem.loss
  text = f'{KINDS[kind.kind]}, on {LINKS[kind.link]}{fit.y}'
  if kind.kind == 'huber':
    text += (f'; delta {fit.problem.delta:g}, '
             f'{fit.diagnostics["delta_over_sd"]:.2g} residual sd')
  return text + f'; residual sd {fit.sd:.3g}'


def weights(fit):
  """The range of the weights."""
  w_N = fit.problem.w_N[fit.problem.w_N > 0]
  return ('equal' if np.ptp(w_N) == 0 else
          f'from {w_N.min():.3g} to {w_N.max():.3g}')


def optimiser(fit):
  """How the optimum was found, and how flat it is there."""
  if optimum.projected(fit.problem):
    return ('variable projection: linear coefficients in closed form'
            + (', golden section over '
               f'{next(iter(fit.form.shape))}' if fit.form.shape else ''))
  return ('variable projection over a grid of shapes, then damped Newton with '
          f'exact Hessian; gradient {fit.diagnostics["gradient"]:.1e}')


def starts(fit):
  """How many starts were polished, and how many agree."""
  if fit.starts == 1:
    return 'none needed: the search is one-dimensional at most'
  return f'{fit.starts}, {fit.agreeing:.0%} of them end in the optimum'


def alone(fit):
  """Error on groups left out, on the scale of the loss."""
  e_N = choose.leave_one_out(fit)
  return (f'root mean square error {np.sqrt(np.nanmean(e_N ** 2)):.3g}, in '
          f'the sample {fit.diagnostics["rms"]:.3g}')


def beyond(fit, name):
  """Error on the largest values of a column, fitted without them."""
  used = fit.problem.w_N > 0
  data = {key: np.asarray(col)[used] for key, col in fit.data.items()}
  kind = {v: k for k, v in solve.LOSSES.items()}[fit.problem.loss]
  out = choose.largest(data, name)
  try:
    error = choose.held_out(fit.form, data, out, kind, fit.group_N[used],
                            fit.x, fit.y, fit.problem.delta)
  except ValueError as error:
    return f'not possible: {error}'
  return (f'root mean square error {error:.3g} on {out.sum()} points of '
          f'{name} from {data[name][out].min():.4g}')
