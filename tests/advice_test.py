"""What to scale next, on simulated studies whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from audiorank import files
from audiorank import records
from audiorank.analysis import advice
from audiorank.analysis import claims
from audiorank.analysis import study
from audiorank.laws import averaged
from audiorank.report import wording
from configs import base

NONE = pd.DataFrame()
MIDDLE = {'params': 6e4, 'hours_asked': .5, 'steps': 4000.}
CONSTANT, PER = 4e7, 1.2e3  # FLOPs of a step: the decoder's, per parameter.


def truth(rng):
  """A score of size, hours and steps: none is of the law's own exponents."""
  kind, bend = rng.integers(4), rng.uniform(-1, 1)
  e, weight = rng.uniform(.15, .8, 3), rng.uniform(.02, .2, 3)

  def score(params, hours_asked, steps):
    x = [np.asarray(v, float) / middle for v, middle in
         zip((params, hours_asked, steps), MIDDLE.values())]
    u = [(1 - v ** -k) / k for v, k in zip(x, e)]
    if kind == 0:  # A sum of power laws.
      return .5 + .5 * sum(w * v for w, v in zip(weight, u))
    if kind == 1:  # More data is worth more, or less, to a larger model.
      return .5 + .3 * sum(w * v for w, v in zip(weight, u)) + (
          .2 * bend * weight[0] * u[0] * u[1])
    if kind == 2:  # Data bound the size: a smooth minimum.
      loss = (x[0] ** (-3 * e[0]) + (
          (1 + bend / 2) * x[1] ** -e[1]) ** 3) ** (1 / 3)
      return .9 - .3 * (loss + .5 * x[2] ** -e[2])
    return 1 / (1 + np.exp(-3 * sum(w * v for w, v in zip(weight, u))))

  return score


def simulated(rng, score):
  """The table of a sweep: a grid, often with holes, and some seeds."""
  sides = [6e4 * 4. ** np.arange(-1, rng.integers(2, 4)),
           .5 * 3. ** np.arange(-1, rng.integers(1, 3)),
           4000 * 2. ** np.arange(-1, rng.integers(1, 3))]
  grid = np.stack(np.meshgrid(*sides), -1).reshape(-1, 3)
  if rng.random() < .5:
    grid = grid[rng.random(len(grid)) < .6]
  repeats = int(rng.integers(0, 6))
  middle = np.repeat([list(MIDDLE.values())], repeats, 0)
  runs = pd.DataFrame(np.vstack([grid, middle]), columns=list(MIDDLE))
  sd = rng.uniform(.004, .015)
  runs['score'] = score(**runs[list(MIDDLE)]) + sd * rng.standard_normal(
      len(runs))
  runs['flops'] = (CONSTANT + PER * runs['params']) * runs['steps']
  runs['width'], runs['hours'] = runs['params'], 30.
  runs['run_id'] = [str(i) for i in range(len(runs))]
  runs['rank'], runs['seed'] = 10., np.arange(len(runs))
  return runs.assign(untrained=False, objective='mae'), sd


def read(runs):
  return study.read(records.Tables(runs, NONE, NONE))


def best_measured(rng, table, score, sd):
  """The true score of the run that looks best of some."""
  true = score(*table[list(MIDDLE)].to_numpy(float).T)
  return true[np.argmax(true + sd * rng.standard_normal(len(true)))]


def even_grid(table, budget):
  """Runs of equal shares of the budget, spread over what these afford."""
  most = next(k for k in (8, 4, 2, 1) if (table['flops'] <= budget / k).any())
  can = table[table['flops'] <= budget / most]
  for name in MIDDLE:
    middle = np.quantile(can[name], [.25, .75], method='nearest')
    can = can[can[name].isin(middle)]
  return can


def judge(seeds):
  """Returns (whether each gain's interval holds the truth, regrets)."""
  covered, regrets = [], []
  for seed in seeds:
    rng = np.random.default_rng(seed)
    score = truth(rng)
    runs, sd = simulated(rng, score)
    result = advice.advise(read(runs))
    if result.scaling is None:
      continue
    known = result.scaling
    origin = {'params': known.start.params, 'hours_asked': known.start.hours,
              'steps': known.start.steps}
    for one in result.gains:
      moved = {**origin, advice.AXES[one.axis]: one.end}
      covered.append(one.low <= score(**moved) - score(**origin) <= one.high)
    budget = known.start.flops * 10 ** rng.uniform(.3, 1.3)
    table = advice.candidates(known, budget)
    every = score(*table[list(MIDDLE)].to_numpy(float).T)
    chosen = [one.row for one in advice.to_gain(known, table, budget)]
    grid = even_grid(table, budget)
    regrets.append(every.max() - np.array([
        best_measured(rng, table.iloc[chosen], score, sd),
        rng.choice(every), best_measured(rng, grid, score, sd)]))
  return np.array(covered), np.array(regrets)


def check(covered, regrets, low, high):
  assert low <= covered.mean() <= high
  own, random, grid = np.median(regrets, 0)
  assert own <= .5 * random and own < grid, (own, random, grid)


def test_gains_cover_the_truth_and_points_beat_chance_and_the_grid():
  covered, regrets = judge(range(6))
  # Gains of a study share its fit, so that 6 studies count, not 18 gains: a
  # coverage of .95 has a standard error of .09.
  check(covered, regrets, .75, 1.)


def test_the_expected_width_is_what_comes_out():
  """Runs chosen to decide an axis narrow it as far as was expected."""
  ratios, narrower = [], []
  for seed in range(5):
    rng = np.random.default_rng(seed)
    score = truth(rng)
    runs, sd = simulated(rng, score)
    known = advice.advise(read(runs)).scaling
    budget = 6 * known.start.flops
    several = advice.to_decide(known, 'hours', advice.candidates(
        known, known.start.flops), budget)
    assert sum(one.flops for one in several) <= budget
    now, expected = advice.widths_after(known, several)['hours']
    inputs = {'size': [p.params for p in several],
              'hours': [p.hours for p in several],
              'steps': [p.steps for p in several]}
    true = score(*(np.array(v) for v in inputs.values()))
    later = known._replace(law=averaged.with_points(
        known.law, inputs, true + sd * rng.standard_normal(len(true)),
        known.group))
    ratios.append(advice.width(advice.gain(later, 'hours')) / expected)
    narrower.append(expected < now)
  # One outcome each: their median is near 1, and the noise of each is large.
  assert .5 < np.median(ratios) < 1.6 and np.mean(narrower) > .5


def test_points_along_an_axis_that_varies_with_another_are_refused():
  x = np.geomspace(1, 100, 8)
  with pytest.raises(ValueError, match='size does not vary by itself'):
    averaged.fit({'size': x, 'steps': x ** 2}, x, np.zeros(8))
  with pytest.raises(ValueError, match='expected at least 4'):
    averaged.fit({'size': x[:3]}, x[:3], np.zeros(3))


def test_a_run_added_is_a_run_fitted():
  """The law with a point more is the law of all runs together."""
  rng = np.random.default_rng(0)
  runs, _ = simulated(rng, truth(rng))
  inputs = {axis: runs[name].to_numpy(float)
            for axis, name in advice.AXES.items()}
  y, group = runs['score'].to_numpy(float), np.zeros(len(runs))
  part = averaged.fit({k: v[:-1] for k, v in inputs.items()}, y[:-1],
                      group[:-1])
  more = averaged.with_points(part, {k: v[-1:] for k, v in inputs.items()},
                              y[-1:])
  whole = averaged.fit(inputs, y, group)
  assert more.data.free == whole.data.free
  assert more.data.error == pytest.approx(whole.data.error)
  assert more.sd == pytest.approx(whole.sd, rel=.05)


@pytest.mark.slow
def test_two_hundred_studies_of_known_truth():
  covered, regrets = judge(range(1000, 1220))
  assert len(regrets) >= 200
  check(covered, regrets, .90, .98)


def test_hours_and_price_follow_the_measured_rate(tmp_path):
  nothing = advice.nothing(claims.Needed('scaling_runs', 4))
  assert wording.cost_text(nothing, 1e15) == ''
  known = nothing._replace(rate=advice.Rate(1e12, 4), price=2.5)
  # 7.2e15 FLOPs at 1e12 a second are two hours, of four chips.
  assert wording.cost_text(known, 7.2e15) == (
      'about 2 h of training on 4 chips at the rate of these runs, 20.00 by '
      '--price')
  rows = pd.DataFrame({'run_id': ['a', 'b'], 'flops': [1., 2.]})
  scaling = advice.Scaling(None, 0, (), None, rows, (0., 1.), 1.)
  assert advice.rate(tmp_path, scaling) is None
  for name, tflops in (('a', 1.), ('b', 3.)):
    c = base.get_config('en32-2')
    c.mesh.update({'data': 2, 'fsdp': 1})
    files.write_json(tmp_path / name / 'config.json', records.plain(c))
    (tmp_path / name / 'metrics.jsonl').write_text(''.join(
        files.json_line({'step': i, 'tflops': None if i == 0 else tflops})
        for i in range(4)))
  assert advice.rate(tmp_path, scaling) == advice.Rate(2e12, 2)


def test_what_explains_more_than_rankme_stands_beside_a_slope_that_holds():
  def one(family, verdict, **explained):
    return claims.claim('slope', 'score', verdict=verdict, family=family,
                        explained=explained)

  first = one('size', claims.HOLDS, RankMe=.64, width=.74)
  assert wording.outdone([first]) == (
      ' (width explains more of it than RankMe does, 74 % against 64 %)')
  assert not wording.outdone([one('size', claims.HOLDS, RankMe=.8, width=.7)])
  both = wording.outdone([one('lr', claims.HOLDS, RankMe=.5), first])
  assert 'where size varies' in both and both.count('%') == 2
