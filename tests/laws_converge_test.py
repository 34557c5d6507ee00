"""The optimiser ends at a minimum, as deep as anybody else's, or says not."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from audiorank import laws
from audiorank.laws import checklist
from audiorank.laws import newton
from audiorank.laws import problem as problem_lib
from audiorank.laws import solvers

STUDY = (pathlib.Path(__file__).parents[1] / 'notebooks' / 'results' /
         'small_study' / 'runs.parquet')


def addition():
  """A sharp break of a learning curve, as that of adding 4-digit numbers.

  Nearly flat, then falling steeply within a factor of 1.3: E, A, c_1 and f
  nearly make up for one another, and the minimum lies in a narrow curved
  valley in which plain Newton steps crawl.
  """
  x = np.array([160., 192, 256, 320, 384, 448, 480, 512, 544, 576, 608, 640,
                672, 736])
  y = .36 + 1.6 * (x / 400) ** -.055 * (1 + (x / 600) ** 17) ** -.36
  return {'x': x, 'y': y * np.exp(.001 * np.sin(np.arange(14.) ** 2))}


def rival(fit, starts, seed=0):
  """The least objective that scipy's trust region ends in from many starts.

  Random nonlinear parameters within their bounds (scales within a factor of
  150 of the data), linear coefficients of the size of y; and from our own
  optimum, which it must not be able to improve.
  """
  problem, form = problem_lib.normalized(fit.problem), fit.form
  low_P, high_P = np.clip(newton.bounds(problem), -1e8, 1e8)
  loss, rng = problem.loss, np.random.default_rng(seed)
  target_N = problem_lib.link(np, loss.link, problem.y_N)

  def residuals(p_P):
    c_SQ, theta_SP = newton.unpack(form, p_P[None])
    with np.errstate(all='ignore'):
      f_N = problem_lib.values(problem, c_SQ, theta_SP)[0]
      r_N = problem_lib.link(np, loss.link, f_N) - target_N
    # Outside the loss's domain: a wall.
    return np.sqrt(problem.w_N) * np.where(
        np.isfinite(r_N), np.clip(r_N, -1e3, 1e3), 1e3)

  options = {}
  if loss.kind == 'huber':
    options = {'loss': 'huber', 'f_scale': problem.delta}
  own = fit.normalized.best
  points = [newton.pack(form, own.c_SQ, own.theta_SP)[0]]
  inner = np.clip([low_P, high_P], -5, 5)
  Q = len(form.linear)
  for _ in range(starts):
    p_P = rng.uniform(*inner)
    p_P[:Q] = rng.uniform(-2, 1, Q)
    points.append(p_P)
  values = []
  for p_P in points:
    done = optimize.least_squares(
        residuals, np.clip(p_P, low_P + 1e-9, high_P - 1e-9), jac='3-point',
        bounds=(low_P, high_P), x_scale='jac', ftol=1e-15, xtol=1e-15,
        gtol=1e-15, max_nfev=300, **options)
    values.append(done.cost)
  best = min(values)
  return best if loss.kind == 'huber' else 2 * best


def check(fit, starts):
  """Converged, and within 1e-9 of the best of many starts by scipy."""
  assert fit.converged and fit.diagnostics['converged']
  assert 'CONVERGED' not in fit.report()
  assert fit.normalized.objective <= rival(fit, starts) * (1 + 1e-9)


@pytest.mark.parametrize('loss', ['log_ls', 'log_huber'])
def test_a_narrow_valley_is_followed_to_its_end(loss):
  check(laws.fit('broken', addition(), loss), starts=2)


def test_the_table_of_4_digit_addition(shared):
  """The objective and error beyond the fitted sizes, both as measured by a
  search of 163,840 starts."""
  table = pd.read_csv(shared / 'fixtures/laws/bnsl_4digit_addition.csv')
  early, late = (table[table['train'] == i] for i in (1, 0))
  fit = laws.fit('broken', early, 'log_ls', x='train_size', y='test_ce')
  np.testing.assert_allclose(fit.objective, 5.0119e-6, rtol=1e-5)
  gap = np.log(fit.predict(late['train_size']) / late['test_ce'])
  np.testing.assert_allclose(np.sqrt(np.mean(gap ** 2)), .011, atol=5e-4)
  check(fit, starts=2)


@pytest.fixture(scope='module')
def study():
  """Rank and score of the trained runs of the shipped study."""
  runs = pd.read_parquet(STUDY)
  runs = runs[~runs['untrained'] & runs['rank'].notna() &
              runs['score'].notna()]
  return {name: runs[name].to_numpy(float)
          for name in ('rank', 'score', 'params', 'hours')}


@pytest.mark.parametrize('form', ['saturating', 'log_linear', 'exponential',
                                  'sigmoid', 'logit_linear'])
def test_the_shipped_study_converges(study, form):
  check(laws.fit(form, study), starts=1)


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['log_ls', 'logit_ls', 'huber'])
@pytest.mark.parametrize('form', ['saturating', 'log_linear', 'exponential',
                                  'sigmoid', 'logit_linear'])
def test_the_shipped_study_converges_by_every_loss(study, form, loss):
  check(laws.fit(form, study, loss), starts=10)


@pytest.mark.slow
@pytest.mark.parametrize('loss', ['log_ls', 'log_huber'])
def test_the_joint_law_of_the_shipped_study_converges(study, loss):
  check(laws.fit('smooth_min', study, loss, x=('params', 'hours'), y='rank'),
        starts=10)


@pytest.mark.slow
def test_92_learning_curves_converge(shared):
  curves = pd.concat([
      pd.read_csv(shared / f'fixtures/laws/nsl_benchmark_{part}.csv')
      for part in ('vision', 'lang')])
  curves = curves[curves['Training'] == 1]
  count = 0
  for _, part in curves.groupby(['Task', 'Model']):
    fit = laws.fit('broken', part, 'log_ls', x='Seen Examples', y='Loss')
    check(fit, starts=3)
    count += 1
  assert count == 92


@pytest.fixture
def few_steps(monkeypatch):
  """A search that is stopped long before its end."""
  newton._compiled.cache_clear()
  monkeypatch.setattr(newton, 'PLAIN_STEPS', 2)
  monkeypatch.setattr(newton, 'VALLEY_STEPS', 2)
  yield
  newton._compiled.cache_clear()


def test_a_search_that_has_not_converged_says_so(few_steps):
  data = addition()
  fit = laws.fit('power_floor', data, 'log_ls')
  assert not fit.converged and not fit.diagnostics['converged']
  assert 'THE SEARCH HAS NOT CONVERGED' in fit.report()
  items = checklist.fill(fit).set_index('item')['answer']
  assert items['optimiser'] == 'the search has not converged'
  table = laws.compare(['power_floor'], data, 'log_ls')
  assert table['problem'][0] == 'the search has not converged'


@pytest.mark.parametrize('loss', ['log_ls', 'log_huber'])
def test_a_vanishing_amplitude_reaches_zero_and_comes_back(loss):
  """A power law without a floor: E at its bound, from which resamples leave.
  """
  rng = np.random.default_rng(4)
  x = np.geomspace(1, 1e4, 24)
  data = {'x': x, 'y': 2 * x ** -.3 * np.exp(.1 * rng.normal(size=24))}
  fit = laws.fit('power_floor', data, loss)
  assert fit.converged and fit.params['E'] < 1e-10
  np.testing.assert_allclose(
      fit.objective, laws.fit('power', data, loss).objective, rtol=1e-9)
  # Resamples start from the bound; from scratch they end in the same place.
  times_SN = rng.multinomial(24, np.full(24, 1 / 24), 6).astype(float)
  optima = solvers.refit(fit.problem, fit.best, times_SN)
  floor_S = solvers.params(fit.problem, optima)['E']
  assert (floor_S < 1e-10).any() and (floor_S > 1e-2).any()
  for s, times_N in enumerate(times_SN):
    again = laws.fit('power_floor', data, loss, weights=times_N)
    np.testing.assert_allclose(optima.value_S[s], again.objective, rtol=1e-9)
