"""What to scale next: gains of a doubling, the best use of a budget, points.

The law is `laws.averaged`, of the score in encoder parameters, hours of audio
and training steps, as far as the sweep varies them. Runs of equal settings are
a group; a law is asked in the group with the most configurations. An axis that
the sweep does not vary by itself is not guessed: it says what is needed.

Compute is FLOPs of training, decoder included. More hours cost no compute at
the same number of steps.

Shapes: N runs, S draws, Q candidates.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import pandas as pd

from audiorank import files
from audiorank import records
from audiorank.analysis import claims
from audiorank.analysis import study
from audiorank.laws import averaged

# Axis: its column. Heads follow the width, warm-up the steps.
AXES = {'size': 'params', 'hours': 'hours_asked', 'steps': 'steps'}
SHAPE = ('width', 'depth', 'heads')
FOLLOWING = (*SHAPE, 'hours_asked', 'steps', 'opt.warmup')
REACH = 8.  # Times the largest value of an axis that a candidate may have.
ALONG = 9  # Candidates along an axis, and half as many of hours.
MOST_POINTS = 8  # Runs that are proposed at once.
DRAWS = 2000
RATED, LAST_ROWS = 8, 20  # Runs, and rows of each, that a rate rests on.
FUTURES = 8  # Outcomes of the points drawn for the width afterwards.


class Gain(NamedTuple):
  """What a doubling along an axis is expected to add to the score.

  axis: 'size', 'hours' or 'steps'.  start, end: of params, hours or steps.
  times: as much compute.  value, low, high: with its 95 % interval; NaN where
  nothing is known.  beyond: end over the largest value tried, 1 inside.
  needed: what is missing, or None.
  """
  axis: str
  start: float
  end: float
  times: float
  value: float
  low: float
  high: float
  beyond: float
  needed: claims.Needed | None


class Point(NamedTuple):
  """A run: done or proposed.

  params, hours, steps: of it.  flops: of its training.  score, low, high:
  expected, with the 95 % interval of its expectation (not of one run).
  row: of the candidates, or -1.
  """
  params: float
  hours: float
  steps: float
  flops: float
  score: float
  low: float
  high: float
  row: int = -1


class Best(NamedTuple):
  """The best single run that a budget buys.

  point: see Point.  params, hours, steps: (low, high), where the optimum lies
  in 95 % of the laws drawn; an axis that is not varied has NaN.  edges: axes
  whose best value is the largest allowed.
  """
  point: Point
  params: tuple[float, float]
  hours: tuple[float, float]
  steps: tuple[float, float]
  edges: tuple[str, ...]


class Scaling(NamedTuple):
  """A law that can be asked what to scale.

  law: see laws.averaged.  group: asked in.  axes: that are varied.  start:
  the configuration with the highest expected score.  rows: runs of the group.
  batch_flops: (constant, per parameter) FLOPs of a step.  hours: of audio that
  there are.
  """
  law: averaged.Averaged
  group: int
  axes: tuple[str, ...]
  start: Point
  rows: pd.DataFrame
  batch_flops: tuple[float, float]
  hours: float


class Rate(NamedTuple):
  """How fast runs were trained: FLOPs a second by our count, decoder
  included, on so many chips (or CPU workers)."""
  flops: float
  chips: int


class Advice(NamedTuple):
  """What to scale next.

  scaling: see Scaling, or None.  gains: a Gain an axis.  budget: FLOPs.
  best: see Best, or None.  lacks: what is missing where there is no law.
  rate: see Rate, or None where it was not measured.  price: of a chip-hour;
  0 for none.
  """
  scaling: Scaling | None
  gains: tuple[Gain, ...]
  budget: float
  best: Best | None
  lacks: claims.Needed | None
  rate: Rate | None = None
  price: float = 0.


def nothing(lacks: claims.Needed) -> Advice:
  """Returns an Advice that only says what is missing."""
  return Advice(None, (), math.nan, None, lacks)


def advise(rows: study.Study, budget: float | None = None,
           hours: float | None = None) -> Advice:
  """Returns the Advice of a study.

  Args:
    rows: the study.
    budget: FLOPs of one run; None for twice those of the best configuration.
    hours: of audio that there are; None for the most that a run knows of.
  """
  # Tables of other versions may lack columns.
  missing = [name for name in ('params', 'flops', 'hours_asked', 'steps',
                               'score') if name not in rows.trained]
  if len(rows.trained) and missing:
    return nothing(claims.Needed('columns', names=tuple(missing)))
  trained = rows.trained
  if len(trained):
    trained = trained.dropna(subset=['params', 'flops', 'hours_asked',
                                     'score'])
  if not len(trained):
    return nothing(claims.Needed('scaling_runs', 4))
  known, needs = scaling(trained, rows.fields, hours or most_hours(rows))
  if known is None:
    return Advice(None, tuple(missing_gain(*item) for item in needs.items()),
                  math.nan, None, first_need(needs))
  gains = tuple(gain(known, axis) if axis in known.axes
                else missing_gain(axis, needs[axis]) for axis in AXES)
  budget = budget or 2 * known.start.flops
  return Advice(known, gains, budget, best(known, budget), None)


def rate(root: files.Path, known: Scaling | None) -> Rate | None:
  """Returns the Rate of a sweep's runs, or None where it was not measured.

  The median of the last rows of metrics.jsonl of the largest runs: small ones
  leave a chip idle, and the first rows have the compilation.

  Args:
    root: the sweep's folder.
    known: see Scaling.
  """
  if known is None:
    return None
  rates, chips = [], 1
  for run_id in known.rows.sort_values('flops')['run_id'].iloc[-RATED:]:
    folder = files.path(root) / str(run_id)
    rows = [row['tflops'] for row in records.metric_rows(folder)
            if row.get('tflops')]
    if not rows:
      continue
    rates.append(1e12 * float(np.median(rows[-LAST_ROWS:])))
    mesh = records.config_tree(folder)['mesh']
    # -1 is all devices of whoever trains it, which no record tells.
    chips = max(1, int(mesh['data']) * int(mesh['fsdp']))
  if not rates:
    return None
  return Rate(float(np.median(rates)), chips)


def hours(result: Advice, flops: float) -> float:
  """Returns the hours that some FLOPs take at the measured rate, or NaN."""
  if result.rate is None:
    return math.nan
  return flops / result.rate.flops / 3600


def first_need(needs: dict[str, claims.Needed]) -> claims.Needed:
  """Returns what to do first: more runs along an axis that is varied."""
  # max takes the first of the highest key: an axis that lacks only runs, if
  # there is one.
  return max(needs.values(), key=lambda one: one.kind == 'scaling_runs')


def missing_gain(axis: str, needed: claims.Needed) -> Gain:
  """Returns the Gain of an axis of which nothing is known."""
  nan = math.nan
  return Gain(axis, nan, nan, nan, nan, nan, nan, nan, needed)


def most_hours(rows: study.Study) -> float:
  """Returns the hours of the corpus, as far as runs know of them."""
  every = study.every(rows)
  known = [every[name].max() for name in ('hours', 'hours_asked')
           if name in every]
  return float(np.nanmax(known))


def settings(trained: pd.DataFrame, fields: tuple[str, ...],
             by_depth: bool = True) -> np.ndarray:
  """Returns a number a run: those with equal settings share it, (N,).

  Args:
    trained: runs.
    fields: in which configurations are compared.
    by_depth: count depth as a setting where sizes still differ by width alone:
      shapes of one size differ in score.
  """
  same = tuple(name for name in fields if name not in FOLLOWING)
  own = study.numbers(trained, same)
  if 'depth' not in trained or not by_depth:
    return own
  deep = study.numbers(trained, (*same, 'depth'))
  x_N1 = trained[['params']].to_numpy(float)
  # Only where size still varies within groups: without that, no law of size
  # could be fitted.
  if averaged.confounded(x_N1, own) or averaged.confounded(x_N1, deep):
    return own
  return deep


def scaling(trained: pd.DataFrame, fields: tuple[str, ...], hours: float
            ) -> tuple[Scaling | None, dict[str, claims.Needed]]:
  """Returns the Scaling of some runs, or None, and what each axis lacks.

  Args:
    trained: runs.
    fields: in which configurations are compared.
    hours: of audio that there are.
  """
  # Runs with other settings share the exponents of the law but not its level:
  # each group of equal settings has its own.
  group_N = settings(trained, fields)
  needs: dict[str, claims.Needed] = {}
  axes = list(AXES)
  # Within a group, as every group has its own level.
  for axis in AXES:
    if trained.groupby(group_N)[AXES[axis]].nunique().max() < 2:
      needs[axis] = claims.Needed('vary', names=(axis,))
      axes.remove(axis)
  if axes:
    x_NA = trained[[AXES[axis] for axis in axes]].to_numpy(float)
    for a in averaged.confounded(x_NA, group_N):
      needs[list(axes)[a]] = claims.Needed('vary_alone', names=(axes[a],))
    axes = [axis for axis in axes if axis not in needs]
  if not axes:
    return None, needs
  try:
    law = averaged.fit({axis: trained[AXES[axis]] for axis in axes},
                       trained['score'], group_N)
  except ValueError:
    # Coefficients, degrees of freedom and levels.
    enough = len(axes) + averaged.LEAST_FREE + len(set(group_N))
    for axis in axes:
      needs[axis] = claims.Needed('scaling_runs', enough)
    return None, needs
  # Advice is about the settings that most configurations have.
  kinds = trained.assign(group=group_N).groupby('group')[
      'configuration'].nunique()
  group = int(kinds.idxmax())
  mine = trained[group_N == group]
  return Scaling(law, group, tuple(axes), start(law, group, axes, mine), mine,
                 step_flops(mine), hours), needs


def step_flops(rows: pd.DataFrame) -> tuple[float, float]:
  """Returns (constant, per parameter) FLOPs of a step, decoder included."""
  each = rows.assign(step=rows['flops'] / rows['steps'].astype(float)
                     ).groupby('params')['step'].mean()
  n_K, c_K = each.index.to_numpy(float), each.to_numpy(float)
  if len(n_K) > 1:
    # Relative errors count: sizes differ by factors.
    slope, constant = np.polyfit(n_K, c_K, 1, w=1 / c_K)
    if slope > 0 and constant >= 0:
      return float(constant), float(slope)
  # Else in proportion to size, by the geometric mean.
  return 0., float(np.exp(np.mean(np.log(c_K / n_K))))


def points_of(axes: Any, table: pd.DataFrame) -> dict[str, np.ndarray]:
  """Returns the columns of a table as inputs of a law."""
  return {axis: table[AXES[axis]].to_numpy(float) for axis in axes}


def start(law: averaged.Averaged, group: int, axes: list[str],
          rows: pd.DataFrame) -> Point:
  """Returns the configuration with the highest expected score."""
  # By the law and not by the highest score measured, which would favour lucky
  # seeds.
  kinds = rows.drop_duplicates('configuration')
  v_SQ = averaged.values(law, points_of(axes, kinds), group, DRAWS)
  best_row = kinds.iloc[int(v_SQ.mean(0).argmax())]
  v_S = v_SQ[:, v_SQ.mean(0).argmax()]
  return Point(float(best_row['params']), float(best_row['hours_asked']),
               float(best_row['steps']), float(best_row['flops']),
               float(v_S.mean()), *averaged.interval(v_S))


def gain(known: Scaling, axis: str) -> Gain:
  """Returns the Gain of an axis, from the start of a Scaling."""
  first = known.start
  origin = {'size': first.params, 'hours': first.hours,
            'steps': first.steps}
  end, times = 2 * origin[axis], 2.
  if axis == 'size':
    constant, per = known.batch_flops
    # Twice the compute at equal steps: solves constant + per N' = 2 (constant
    # + per N) for N'.
    end = (2 * (constant + per * first.params) - constant) / per
  elif axis == 'hours':
    # More audio at the same number of steps costs no compute.
    times = 1.
  moved = {**origin, axis: end}
  inputs = {name: np.array([origin[name], moved[name]])
            for name in known.axes}
  # Both ends from the same draws: what they share cancels in the difference.
  v_S2 = averaged.values(known.law, inputs, known.group, DRAWS)
  gain_S = v_S2[:, 1] - v_S2[:, 0]
  most = float(known.rows[AXES[axis]].max())
  return Gain(axis, origin[axis], end, times, float(gain_S.mean()),
              *averaged.interval(gain_S), max(1., end / most), None)


def candidates(known: Scaling, budget: float,
               sizes: pd.DataFrame | None = None) -> pd.DataFrame:
  """Returns runs that cost at most a budget: params, hours_asked, steps, flops.

  Args:
    known: see Scaling.
    budget: FLOPs.
    sizes: params and step_flops of each size that can be built; None for a
      range of sizes.

  An axis that the sweep does not vary stays as it is at the start.
  """
  rows, first = known.rows, known.start
  if sizes is None:
    sizes = size_range(known)
  # The hours tried are those that exist, and no more than REACH times what the
  # sweep has, as with every other axis.
  hours = np.array([first.hours])
  if 'hours' in known.axes:
    low, high = rows['hours_asked'].min(), max(known.hours, first.hours)
    hours = np.geomspace(low, min(high, REACH * rows['hours_asked'].max()),
                         ALONG // 2)
    # With the hours of the start, which the range may not contain.
    hours = np.unique(np.append(hours, first.hours))
  out = []
  for params, cost in sizes[['params', 'step_flops']].to_numpy(float):
    steps = np.array([first.steps])
    if 'steps' in known.axes:
      most = min(REACH * rows['steps'].max(), budget / cost)
      least = rows['steps'].min()
      if most < least:
        continue
      steps = np.unique(np.floor(np.geomspace(least, most, ALONG)))
    # The slack is for rounding: a run may cost just the budget.
    out += [(params, h, t, t * cost) for h in hours for t in steps
            if t * cost <= budget * (1 + 1e-9)]
  return pd.DataFrame(out, columns=['params', 'hours_asked', 'steps', 'flops'])


def size_range(known: Scaling) -> pd.DataFrame:
  """Returns sizes from the smallest tried to REACH times the largest."""
  n_Q = np.array([known.start.params])
  if 'size' in known.axes:
    low, high = known.rows['params'].min(), known.rows['params'].max()
    n_Q = np.unique(np.append(
        np.geomspace(low, REACH * high, ALONG), known.start.params))
  constant, per = known.batch_flops
  return pd.DataFrame({'params': n_Q, 'step_flops': constant + per * n_Q})


def best(known: Scaling, budget: float,
         table: pd.DataFrame | None = None) -> Best | None:
  """Returns the best run of a budget, None where it buys none.

  Args:
    known: see Scaling.
    budget: FLOPs of the run.
    table: of `candidates`; None for a range of sizes.
  """
  if table is None:
    table = candidates(known, budget)
  if not len(table):
    return None
  v_SQ = averaged.values(known.law, points_of(known.axes, table), known.group,
                         DRAWS // 2)
  # The best in expectation, and for the interval the best in each draw: where
  # the draws disagree, the optimum is uncertain.
  at = int(v_SQ.mean(0).argmax())
  chosen = table.iloc[v_SQ.argmax(1)]
  ends, edges = {}, []
  for axis, column in AXES.items():
    ends[axis] = (math.nan, math.nan)
    if axis in known.axes:
      ends[axis] = averaged.interval(chosen[column].to_numpy(float))
      if table[column].iloc[at] >= table[column].max():
        edges.append(axis)
  return Best(point(table, v_SQ, at), ends['size'], ends['hours'],
              ends['steps'], tuple(edges))


def point(table: pd.DataFrame, v_SQ: np.ndarray, at: int) -> Point:
  """Returns a candidate as a Point."""
  row = table.iloc[at]
  return Point(float(row['params']), float(row['hours_asked']),
               float(row['steps']), float(row['flops']),
               float(v_SQ[:, at].mean()), *averaged.interval(v_SQ[:, at]), at)


def to_gain(known: Scaling, table: pd.DataFrame, budget: float,
            most: int = MOST_POINTS) -> list[Point]:
  """Returns the runs whose best has the highest expected score.

  One run takes the whole budget, several share it evenly: more of them hedge
  against what the law does not know, and each is smaller.

  Args:
    known: see Scaling.
    table: of `candidates`.
    budget: FLOPs of all runs together.
    most: runs at most.
  """
  v_SQ = averaged.values(known.law, points_of(known.axes, table), known.group,
                         DRAWS // 2)
  flops_Q = table['flops'].to_numpy(float)
  chosen: list[int] = []
  highest = -math.inf
  for count in range(1, most + 1):
    # Greedy: each further run is the one that raises the expected maximum most,
    # given those before it.
    can = np.flatnonzero(flops_Q <= budget / count * (1 + 1e-9))
    if not len(can):
      break
    top_S, mine = np.full(len(v_SQ), -np.inf), []
    for _ in range(count):
      mean_Q = np.maximum(top_S[:, None], v_SQ[:, can]).mean(0)
      mine.append(int(can[mean_Q.argmax()]))
      top_S = np.maximum(top_S, v_SQ[:, mine[-1]])
    # A run more must be worth more than the draws' own noise.
    if top_S.mean() > highest + 1e-4:
      highest, chosen = float(top_S.mean()), mine
  # A candidate chosen again did not raise the maximum.
  return [point(table, v_SQ, at) for at in dict.fromkeys(chosen)]


def to_decide(known: Scaling, axis: str, table: pd.DataFrame, budget: float,
              most: int = MOST_POINTS) -> list[Point]:
  """Returns the runs that narrow the interval of an axis's gain most.

  A run may be proposed several times: it is then repeated with other seeds.

  Args:
    known: see Scaling.
    axis: whose gain is to be decided.
    table: of `candidates`.
    budget: FLOPs of all runs together.
    most: runs at most.
  """
  one = gain(known, axis)
  # Two more points, the start and its doubling: from the same draws as the
  # candidates, so that their covariance with the gain is known.
  ends = {name: np.append(table[AXES[name]].to_numpy(float), [
      getattr(known.start, COLUMN[name])] * 2) for name in known.axes}
  ends[axis][-1] = one.end
  v_SQ = averaged.values(known.law, ends, known.group, DRAWS)
  gain_S = v_SQ[:, -1] - v_SQ[:, -2]
  flops_Q = table['flops'].to_numpy(float)
  ways = []
  # By what a run tells, or by what it tells for its price.
  for power in (0., 1.):
    ways.append(_narrowing(v_SQ[:, :-2], gain_S, flops_Q, budget, known.law.sd,
                           power, most))
  chosen = min(ways, key=lambda way: way[1])[0]
  return [point(table, v_SQ, at) for at in chosen]


COLUMN = {'size': 'params', 'hours': 'hours', 'steps': 'steps'}


def _narrowing(v_SQ, gain_S, flops_Q, budget, sd, power, most):
  """Returns candidates chosen one by one, and the variance that is left.

  Each observation moves all draws by its regression on them (Kalman).
  """
  v_SQ, gain_S = v_SQ - v_SQ.mean(0), gain_S - gain_S.mean()
  left, chosen = budget, []
  while len(chosen) < most:
    can = np.flatnonzero(flops_Q <= left)
    if not len(can):
      break
    # How much of the gain's variance one observation of a candidate removes:
    # covariance^2 / (variance + noise^2).
    shared_Q = v_SQ.T @ gain_S / len(gain_S)
    own_Q = np.mean(v_SQ ** 2, 0) + sd ** 2
    tells_Q = shared_Q ** 2 / own_Q / flops_Q ** power
    at = int(can[tells_Q[can].argmax()])
    chosen.append(at)
    left -= flops_Q[at]
    # What is left of each draw once the run is known, in expectation.
    y_S = v_SQ[:, at]
    # Whitaker and Hamill's ensemble square root filter (2002): draws shrink so
    # far that their variance is that of the posterior.
    part = 1 - math.sqrt(sd ** 2 / own_Q[at])
    square = max(float(np.mean(y_S ** 2)), 1e-18)
    gain_S = gain_S - part * y_S * (np.mean(y_S * gain_S) / square)
    v_SQ = v_SQ - part * np.outer(y_S, v_SQ.T @ y_S / len(y_S) / square)
  return chosen, float(np.mean(gain_S ** 2))


def widths_after(known: Scaling, several: list[Point], seed: int = 0
                 ) -> dict[str, tuple[float, float]]:
  """Returns {axis: (width now, expected width)} of the gains' intervals.

  The expectation is over scores of the points drawn from the law itself; the
  law is fitted again to each.

  Args:
    known: see Scaling.
    several: runs that are proposed.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  table = pd.DataFrame([{'params': p.params, 'hours_asked': p.hours,
                         'steps': p.steps} for p in several])
  inputs = points_of(known.axes, table)
  v_SQ = averaged.values(known.law, inputs, known.group, DRAWS, seed)
  now = {axis: width(gain(known, axis)) for axis in known.axes}
  after: dict[str, list[float]] = {axis: [] for axis in known.axes}
  for s in rng.choice(len(v_SQ), FUTURES, replace=False):
    # An outcome: what one law expects, and the noise of a run.
    scores = v_SQ[s] + known.law.sd * rng.standard_normal(len(several))
    later = known._replace(law=averaged.with_points(
        known.law, inputs, scores, known.group))
    for axis in known.axes:
      after[axis].append(width(gain(later, axis)))
  return {axis: (now[axis], float(np.mean(after[axis])))
          for axis in known.axes}


def width(one: Gain) -> float:
  """Returns the width of a gain's interval."""
  return one.high - one.low
