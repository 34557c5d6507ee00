"""Fits of scaling laws against the recipes and packages of others.

CPU time, in turns, each side in a process of its own; ours is warm where the
rival is. Rivals live in any Python that AUDIORANK_LAWS_PEERS names (this one
otherwise): autograd for the recipe of Besiroglu et al. (arXiv 2404.10102),
simple-scaling-laws (Python 3.12), and revisiting_neural_scaling_laws of
google-research with scikit-learn, a folder that PYTHONPATH must reach.

The points are Besiroglu et al.'s 240 where the reference fixtures are, in
../shared or at AUDIORANK_SHARED; else a planted law of the same size and
noise, and the notes say so.

Shapes: N points, S resamples, P parameters.
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from launch.benches import timing
from launch.benches.peers import laws as peers

PINNED = True
ROOT = pathlib.Path(__file__).resolve().parents[2]
DRAWS = 4000
COLD_GOAL = 6.  # CPU seconds.


def shared() -> pathlib.Path | None:
  """Returns the folder of law fixtures, or None."""
  root = os.environ.get('AUDIORANK_SHARED', ROOT.parent / 'shared')
  path = pathlib.Path(root) / 'fixtures' / 'laws'
  if path.is_dir():
    return path
  return None


def points() -> tuple[dict[str, Any], str]:
  """Returns N, D, loss of 240 runs, and what they are."""
  folder = shared()
  if folder:
    import pandas as pd
    raw = pd.read_csv(folder / 'epoch_chinchilla_svg.csv')
    # Besiroglu et al. leave out the five points of highest loss too.
    raw = raw.sort_values('loss').iloc[:-5]
    # C = 6 N D: six FLOPs a parameter and token (Kaplan et al., 2020).
    n = raw['Model Size'].to_numpy()
    return {'N': n, 'D': raw['Training FLOP'].to_numpy() / (6 * n),
            'loss': raw['loss'].to_numpy()}, 'points of Besiroglu et al.'
  rng = np.random.default_rng(0)
  n = np.exp(rng.uniform(np.log(6e7), np.log(1.6e10), 240))
  d = np.exp(rng.uniform(np.log(1e18), np.log(3e21), 240)) / (6 * n)
  # Near the estimates of Besiroglu et al. Noise of heavy tails, as in their
  # data, is the reason for a Huber loss.
  loss = (1.8 + 480 * n ** -.35 + 2100 * d ** -.37) * np.exp(
      .007 * rng.standard_t(3, 240))
  return {'N': n, 'D': d, 'loss': loss}, '240 planted points'


def curves() -> tuple[list[tuple[str, Any, Any]], str]:
  """Returns learning curves as (name, early, late), and what they are."""
  folder = shared()
  if folder:
    import pandas as pd
    table = pd.concat([pd.read_csv(folder / f'nsl_benchmark_{part}.csv')
                       for part in ('vision', 'lang')])
    listed = pd.read_csv(folder / 'nsl_head_to_head_measured.csv')
    listed = listed[listed['method'] == 'off M4']
    out = []
    for _, row in listed.iterrows():
      part = table[(table['Task'] == row['task']) &
                   (table['Model'] == row['model'])]
      early, late = (
          {'x': half['Seen Examples'].to_numpy(), 'y': half['Loss'].to_numpy()}
          for half in (part[part['Training'] == 1],
                       part[part['Training'] == 0]))
      out.append((f"{row['task']} {row['model']}", early, late))
    return out, 'curves of arXiv 2209.06640'
  rng, out = np.random.default_rng(0), []
  for i in range(12):
    x = np.geomspace(1e5, 1e9, 80)
    # A broken power law, which bends at 1e7.
    y = (.1 + .5 * (x / 1e5) ** -.1 * (1 + (x / 1e7) ** 1.5) ** -.1) * np.exp(
        .01 * rng.normal(size=80))
    out.append((str(i), {'x': x[:60], 'y': y[:60]}, {'x': x[60:], 'y': y[60:]}))
  return out, 'planted curves'


def ask(kind: str, folder: str, **inputs: Any) -> Any:
  """Returns the output of a rival's process, or None if it is not installed."""
  path = pathlib.Path(folder) / f'{kind}.npz'
  np.savez(path, **inputs)
  # Rivals may be installed in an environment of their own.
  python = os.environ.get('AUDIORANK_LAWS_PEERS', sys.executable)
  done = subprocess.run(
      [python, '-W', 'ignore', '-m', 'launch.benches.peers.laws', kind,
       str(path)],
      # One thread on each side, as CPU time is compared.
      cwd=ROOT, capture_output=True, text=True, env={
          **os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'})
  # An import error of our own modules is a fault, not an absent rival.
  missing = re.search(r"No module named '(?!launch|audiorank)", done.stderr)
  if missing:
    return None
  if done.returncode:
    raise ValueError(f'{kind}: {done.stderr.strip().splitlines()[-1]}')
  return json.loads(done.stdout.splitlines()[-1])


def against(what: str, ours: Callable[[], float], rival: Callable[[], float],
            goal: float | None, names: tuple[str, str], note: str,
            repeats: int, unit: str = 'ms', scale: float = 1e3) -> timing.Row:
  """Returns a Row of two functions that return seconds themselves.

  Args:
    what: name of the row.
    ours, rival: the two sides.
    goal: the ratio to reach.
    names: of the two sides.
    note: of the row.
    repeats: number of turns.
    unit: of the times in the row.
    scale: of the unit, in one second.
  """
  pairs = []
  for turn in range(repeats):
    # Each side is the first in every second turn; see timing.turns.
    if turn % 2 == 0:
      mine, theirs = ours(), rival()
    else:
      theirs, mine = rival(), ours()
    pairs.append((mine, theirs))
  ratios = [theirs / mine for mine, theirs in pairs]
  mine, theirs = (statistics.median(side) * scale for side in zip(*pairs))
  return timing.Row(what, *names, mine, theirs, unit,
                    statistics.median(ratios), min(ratios), max(ratios), goal,
                    note)


def rows(quick: bool, only: str) -> Iterator[timing.Row]:
  """Yields the Rows of this area."""
  repeats = timing.sized(quick, 2, 5)
  data, kind = points()
  with tempfile.TemporaryDirectory() as folder:
    for make in (cold, notebook, grid, simple, extrapolation):
      what = make.__doc__.splitlines()[0].rstrip('.')
      if only in what:
        yield make(what, data, kind, folder, quick, repeats)


def cold(what: str, data: Any, kind: str, folder: str, quick: bool,
         repeats: int) -> timing.Row:
  """Import, fit and 4,000 bootstrap fits from a cold process."""
  path = pathlib.Path(folder) / 'cold.npz'
  np.savez(path, **data)
  code = ('import numpy as np\nfrom audiorank import laws\n'
          f'fit = laws.fit("separable", dict(np.load({str(path)!r})), '
          f'"log_huber", delta={peers.DELTA})\nfit.draws({DRAWS})\n')
  spent = []
  for _ in range(repeats):
    # CPU time of children: wall time would include whatever else runs.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append(after.ru_utime + after.ru_stime - before.ru_utime -
                 before.ru_stime)
  return timing.alone(
      what, statistics.median(spent), 'CPU s', 1., f'{kind}; {min(spent):.2f} '
      f'to {max(spent):.2f} over {repeats} processes, no compilation cache',
      rival='the goal', rival_value=COLD_GOAL)


def notebook(what: str, data: Any, kind: str, folder: str, quick: bool,
             repeats: int) -> timing.Row:
  """Bootstrap fit, warm, against BFGS with autograd."""
  from audiorank import laws
  fit = laws.fit('separable', data, 'log_huber', delta=peers.DELTA)
  count, some = timing.sized(quick, (400, 6), (DRAWS, 24))
  draws = lambda seed: fit.draws(count, seed)
  # Compiled before any turn is timed.
  draws(1)
  rng = np.random.default_rng(0)
  groups = len(data['N'])
  # The resamples of seed 0 as `Fit.draws` makes them, for equal inputs.
  times = rng.multinomial(groups, np.full(groups, 1 / groups), count)[:some]
  rows_SN = np.stack([np.repeat(np.arange(groups), t) for t in times])
  # Two resamples, only to see whether the rival is installed.
  first = ask('autograd', folder, rows=rows_SN[:2], **data)
  if first is None:
    return timing.absent(what, 'autograd')
  seeds, excess = iter(range(2, 1000)), []
  mine = fit.draws(count, 0).to_numpy()[:some]
  # In the parameters of Hoffmann et al.: logarithms of the amplitudes.
  # Theirs are in the order A, B, E.
  packed = np.concatenate([np.log(mine[:, [1, 2, 0]]), mine[:, 3:]], 1)
  ours_value = np.array([
      peers.huber(p, *(data[c][r] for c in ('N', 'D', 'loss')), np)
      for p, r in zip(packed, rows_SN)])

  def ours() -> float:
    began = time.process_time()
    draws(next(seeds))
    return (time.process_time() - began) / count

  def rival() -> float:
    answer = ask('autograd', folder, rows=rows_SN, **data)
    excess.extend(np.array(answer['objective']) / ours_value - 1)
    return answer['s']

  row = against(what, ours, rival, 100., ('audiorank', 'autograd BFGS'), '',
                repeats)
  return row._replace(note=(
      f'{kind}; Huber 1e-3, start of Hoffmann et al.; on the same {some} '
      f'resamples its objective ends {min(excess):.0e} to {max(excess):.0e} '
      'above ours, relatively'))


def grid(what: str, data: Any, kind: str, folder: str, quick: bool,
         repeats: int) -> timing.Row:
  """Point fit from scratch, warm, against the notebook's grid of starts."""
  from audiorank import laws
  solve = lambda: laws.fit('separable', data, 'log_huber', delta=peers.DELTA)
  best = solve().objective
  axes = (np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, .5),
          np.arange(0, 2.5, .5), np.arange(0, 2.5, .5))
  # The grid of the notebook of Besiroglu et al.
  starts = np.stack([a.ravel() for a in np.meshgrid(*axes)], 1).astype(float)
  some = np.random.default_rng(0).choice(
      starts, timing.sized(quick, 8, 40), False)
  reached = []

  def ours() -> float:
    began = time.process_time()
    # Several, as one fit is too short for the clock.
    for _ in range(5):
      solve()
    return (time.process_time() - began) / 5

  def rival() -> float:
    answer = ask('grid', folder, starts=some, **data)
    reached.append(np.mean(np.array(answer['objective']) < best * 1.001))
    # The time of one start, for the whole grid.
    return answer['s'] * len(starts)

  row = against(what, ours, rival, None,
                ('audiorank', 'L-BFGS-B, finite differences'), '', repeats,
                's', 1.)
  return row._replace(note=(
      f'{kind}; the time of {len(some)} of its {len(starts)} starts, '
      f'multiplied; {np.mean(reached):.0%} of them come within .1 % of the '
      'optimum'))


def simple(what: str, data: Any, kind: str, folder: str, quick: bool,
           repeats: int) -> timing.Row:
  """Bootstrap draw, warm, against simple-scaling-laws."""
  from audiorank import laws
  fit = laws.fit('separable', data, 'ls')
  count, theirs = timing.sized(quick, (400, 40), (2000, 300))
  if ask('simple', folder, draws=2, **data) is None:
    return timing.absent(what, 'simple-scaling-laws')
  fit.draws(count, 1)
  seeds = iter(range(2, 1000))

  def ours() -> float:
    began = time.process_time()
    fit.draws(count, next(seeds))
    return (time.process_time() - began) / count

  return against(
      what, ours, lambda: ask('simple', folder, draws=theirs, **data)['s'],
      5., ('audiorank', 'simple-scaling-laws'),
      f'{kind}; least squares on the loss on both sides; ours resamples, '
      'theirs is a wild bootstrap', repeats)


def extrapolation(what: str, data: Any, kind: str, folder: str, quick: bool,
                  repeats: int) -> timing.Row:
  """Fit and extrapolate a learning curve, warm, against the official M4."""
  from audiorank import laws
  every, kind = curves()
  if quick:
    every = every[::8]
  error, cpu = [], []
  for _, early, late in every:
    solve = lambda: laws.fit('broken', early, 'log_ls').predict(late['x'])
    # Once untimed, for the compilation.
    solve()
    began = time.process_time()
    guess = solve()
    spent = time.process_time() - began
    answer = ask('m4', folder, late_x=late['x'], late_y=late['y'], **early)
    if answer is None:
      return timing.absent(what, 'revisiting_neural_scaling_laws')
    error.append((peers.rms(np.log(guess / late['y'])), answer['error']))
    cpu.append((spent, answer['s']))
  mine, theirs = np.mean(cpu, 0)
  ratios = [b / a for a, b in cpu]
  ours_error, its_error = np.mean(error, 0)
  return timing.Row(
      what, 'audiorank', 'M4', mine, theirs, 's', theirs / mine, min(ratios),
      max(ratios), 10., f'mean of {len(every)} {kind}; root mean square log '
      f'error {ours_error:.4f}, of M4 {its_error:.4f}')
