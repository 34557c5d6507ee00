"""Every law recovers what was planted, computed here from its formula."""

import numpy as np
import pytest

from audiorank import laws
from audiorank.laws import forms

PLANTED = {
    'saturating': dict(Q_inf=.9, a=9., b=.8),
    'log_linear': dict(c=.1, d=.12),
    'exponential': dict(Q_inf=.85, a=.5, R_0=90.),
    'sigmoid': dict(Q_low=.2, Q_inf=.9, h=2., R_0=120.),
    'logit_linear': dict(h=.7, R_0=50.),
    'power': dict(A=300., alpha=.3),
    'power_floor': dict(E=1.7, A=300., alpha=.3),
    'broken': dict(E=.1, A=2., c_0=.1, c_1=.4, d=1e6, f=.5),
    'separable': dict(E=1.8, A=480., B=2100., alpha=.35, beta=.37),
    'smooth_min': dict(c_N=1.5, c_D=.3, g=.25, d=.3, k=2.5, rho=.2),
}


def _logistic(r, h, R_0):
  return 1 / (1 + (r / R_0) ** -h)


FORMULA = {
    'saturating': lambda r, Q_inf, a, b: Q_inf - a * r ** -b,
    'log_linear': lambda r, c, d: c + d * np.log(r),
    'exponential': lambda r, Q_inf, a, R_0: Q_inf - a * np.exp(-r / R_0),
    'sigmoid': lambda r, Q_low, Q_inf, h, R_0:
        Q_low + (Q_inf - Q_low) * _logistic(r, h, R_0),
    'logit_linear': _logistic,
    'power': lambda x, A, alpha: A * x ** -alpha,
    'power_floor': lambda x, E, A, alpha: E + A * x ** -alpha,
    'broken': lambda x, E, A, c_0, c_1, d, f:
        E + A * x ** -c_0 * (1 + (x / d) ** (1 / f)) ** (-c_1 * f),
    'separable': lambda n, d, E, A, B, alpha, beta:
        E + A * n ** -alpha + B * d ** -beta,
    'smooth_min': lambda n, data, c_N, c_D, g, d, k, rho:
        ((c_N * n ** g) ** -k + (c_D * data ** d) ** -k) ** (-1 / k),
}


def planted(name):
  """Noise-free points of a law, by column name."""
  form = laws.FORMS[name]
  if form.x == ('rank',):
    cols = [np.geomspace(20, 800, 24)]
  elif form.x == ('x',):
    cols = [np.geomspace(1e4, 1e9, 32)]
  else:
    mesh = np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e7, 1e11, 7))
    cols = [axis.ravel() for axis in mesh]
  y = FORMULA[name](*cols, **PLANTED[name])
  return dict(zip((*form.x, form.y), (*cols, y)))


def test_every_form_is_planted():
  assert set(PLANTED) == set(laws.FORMS) == set(FORMULA)


@pytest.mark.parametrize('name', PLANTED)
def test_recovers_planted(name):
  """1e-6 is the promise; what is measured is better than 1e-10."""
  loss = 'ls' if name in ('saturating', 'log_linear', 'exponential',
                          'power_floor', 'separable_rising') else 'log_ls'
  fit = laws.fit(name, planted(name), loss=loss)
  for key, value in PLANTED[name].items():
    np.testing.assert_allclose(fit.params[key], value, rtol=1e-6)
  assert not fit.diagnostics['at_bound'] and fit.best.converged_S[0]


@pytest.mark.parametrize('loss', ['log_ls', 'logit_ls', 'huber'])
def test_newton_recovers_what_projection_does(loss):
  fit = laws.fit('saturating', planted('saturating'), loss=loss)
  for key, value in PLANTED['saturating'].items():
    np.testing.assert_allclose(fit.params[key], value, rtol=1e-6)


def test_units_do_not_matter():
  """Another unit of the input changes amplitudes by their power, no more."""
  data = planted('power_floor')
  noise = 1 + .01 * np.random.default_rng(0).normal(size=32)
  one = laws.fit('power_floor', {'x': data['x'], 'y': data['y'] * noise})
  two = laws.fit('power_floor', {'x': data['x'] / 1e6, 'y':
                                 data['y'] * noise})
  np.testing.assert_allclose(two.params['alpha'], one.params['alpha'],
                             rtol=1e-6)
  np.testing.assert_allclose(
      two.params['A'], one.params['A'] * 1e6 ** -one.params['alpha'],
      rtol=1e-5)


def test_a_form_of_ones_own():
  """Ten lines: a square-root law with a floor and one scale."""
  form = forms.Form(
      'root', 'y = E + A / sqrt(1 + x / s)', ('x',), 'y',
      {'E': 'free', 'A': 'positive'},
      {'s': forms.NonlinearParam(1e-4, 1e4, tuple(np.geomspace(1e-4, 1e4, 81)),
                        log=True, scale='x')},
      lambda xp, t, x: (xp.ones_like(x), 1 / xp.sqrt(1 + x / t['s'])))
  x = np.geomspace(1, 1e4, 30)
  y = .3 + 2. / np.sqrt(1 + x / 70.)
  for loss in ('ls', 'log_ls'):
    fit = laws.fit(form, {'x': x, 'y': y}, loss=loss)
    np.testing.assert_allclose(
        [fit.params[key] for key in ('E', 'A', 's')], [.3, 2., 70.],
        rtol=1e-6)


def test_no_such_form():
  with pytest.raises(ValueError, match="no law named 'chinchila'.*separable"):
    laws.fit('chinchila', {})
