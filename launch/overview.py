"""The cost and the progress of a sweep, as text on the terminal."""

from collections.abc import Mapping
import os
import pathlib
import sys
import time
from typing import Any
from typing import TYPE_CHECKING

import tqdm

from audiorank import config as config_lib
from audiorank import files
from audiorank import progress
from audiorank import records
from audiorank.records import lock as lock_lib
from launch import run_queue

if TYPE_CHECKING:
  import pandas as pd

  from audiorank.report import LivePage

# Training reaches this share of the rate of large matrix products. Measured for
# en32 to en768 on CPU cores it is between 10 and 60 %.
EFFICIENCY = .25
LINES = 15.  # Seconds between lines if standard error is not a terminal.
RESULTS = ('rank', 'rank_low', 'rank_high', 'rank_center', 'score',
           'valid_loss')


class Meter:
  """Shows the progress of a sweep, and each failure when it happens.

  On a terminal it is a bar, otherwise a line now and then; and report.html.

  Args:
    root: the sweep's folder.
    page: title of report.html; None writes none.
  """

  def __init__(self, root: str | os.PathLike[str], page: str | None = None):
    self.root = files.path(root)
    self.title = page
    self.page: LivePage | None = None
    self.began = self.printed = time.monotonic()
    # The share of the work that was done before. Without it the estimate of
    # the time left would be too small after resuming.
    self.first: float | None = None
    self.failed: dict[str, str] = {}  # Runs, and why.
    self.bar = None
    if sys.stderr.isatty():
      # A bar of work and not of runs, which differ in size.
      self.bar = tqdm.tqdm(
          total=1., dynamic_ncols=True, leave=False,
          bar_format='{percentage:3.0f}% {bar} {postfix[0]}', postfix=[''])

  def show(self, board: run_queue.Board) -> None:
    """Shows the board's state; called each time after it is updated."""
    at = board.progress()
    if self.first is None:
      self.first = at.share
    for run_id, state in board.states.items():
      if state == 'failed' and run_id not in self.failed:
        self.failed[run_id] = reason(self.root / run_id)
        tqdm.tqdm.write(f'failed: {self.root / run_id}: '
                        f'{self.failed[run_id]}', file=sys.stderr)
    text = self.text(at)
    if self.title is not None:
      if self.page is None:
        # Not before the workers have started: the import takes a second.
        from audiorank import report
        self.page = report.LivePage(self.root, self.title)
      self.page.show(board.states, text, at.share, self.failed)
    if self.bar is not None:
      self.bar.postfix[0] = text
      # Set, not added: it is the share of all work.
      self.bar.n = at.share
      self.bar.refresh()
    elif time.monotonic() - self.printed > LINES:
      self.printed = time.monotonic()
      print(f'sweep: {text}', file=sys.stderr, flush=True)

  def text(self, at: run_queue.Progress) -> str:
    """Returns runs, steps and the time left as one line."""
    failed = f', {at.failed} failed' * bool(at.failed)
    return (f'{at.done}/{at.runs} runs done{failed}, '
            f'{at.steps_done:,}/{at.steps:,} steps, '
            f'{progress.clock(self.left(at))} left')

  def left(self, at: run_queue.Progress) -> float:
    """Returns the seconds that are left by the rate so far."""
    # Extrapolated from what this command has done so far.
    done = at.share - (self.first or 0.)
    # Nothing is done yet, so there is no estimate.
    if done <= 0:
      return float('inf')
    return (time.monotonic() - self.began) * (1 - at.share) / done

  def close(self) -> None:
    """Removes the bar."""
    if self.bar is not None:
      self.bar.close()


def status(root: str | os.PathLike[str]) -> str:
  """Returns the state of every run of a sweep as text.

  Raises:
    FileNotFoundError: there is no sweep; names the folder.
  """
  import pandas as pd
  folders = records.sweep_folders(files.path(root, '--root'))
  if not folders:
    raise FileNotFoundError(f'{root}: no runs: expected the --root of a sweep')
  rows = files.mapped(status_row, folders, folders[0])
  counts: dict[str, int] = {}
  for row in rows:
    counts[row['state']] = counts.get(row['state'], 0) + 1
  text = pd.DataFrame(rows).to_string(index=False)
  total = ', '.join(f'{n} {state}' for state, n in sorted(counts.items()))
  return f'{text}\n{total}'


def status_row(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns one run's row of `status`."""
  try:
    return whole_row(workdir)
  # A damaged run must not hide the others.
  except (ValueError, OSError, LookupError, TypeError) as error:
    return {'run': workdir.name, 'size': '', 'hours': '', 'mask': '',
            'seed': '', 'steps': '', 'state': 'damaged',
            '': files.one_line(error).removeprefix(f'{workdir}/')[:90]}


def whole_row(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns `status_row` of a run whose config is whole."""
  config = records.config_tree(workdir)
  state, holder = records.state(workdir), lock_lib.read(workdir)
  # The folder says how far a run is, its lock whether anybody works on it.
  if state in ('started', 'trained') and lock_lib.alive(workdir):
    state = 'running'
  elif state == 'started':
    state = 'interrupted'
  steps = config['train']['steps']
  at = holder.get('step', 0)
  if state in ('done', 'trained'):
    at = steps
  note = ''
  if state in ('halved', 'paused'):
    at, note = halted(workdir, state)
  if state == 'failed':
    note = reason(workdir)[:90]
  elif state == 'running' and holder:
    note = f"{holder['doing']} on {holder['host']}, process {holder['pid']}"
  model = config['model']
  steps_text = 'untrained'
  if steps:
    steps_text = f'{at}/{steps}'
  return {
      'run': workdir.name,
      'size': config_lib.size_name(model['width'], model['depth']),
      'hours': f"{config['data']['hours']:g}",
      'mask': f"{config['mask']['ratio']:g}", 'seed': config['seed'],
      'steps': steps_text, 'state': state,
      '': note}


def halted(workdir: pathlib.Path, state: str) -> tuple[int, str]:
  """Returns (step, why) of a run that was stopped early or waits for it."""
  # Written by hand, or removed just now: then nothing is known.
  try:
    about = files.read_json(workdir / state.upper())
    step = int(about['step'])
    if state == 'paused':
      return step, 'waits until the other runs are as far'
    return step, (f"predicted score {about['predicted']:.3f} "
                  f"[{about['low']:.3f}, {about['high']:.3f}] by "
                  f"{about['by']}")
  except (OSError, ValueError, LookupError, TypeError):
    return 0, ''


def reason(workdir: pathlib.Path) -> str:
  """Returns why a run has failed."""
  # FAILED may have been written by hand, so it can contain anything.
  try:
    return str(files.read_json(workdir / 'FAILED')['error'])
  except (OSError, ValueError, KeyError, TypeError):
    return 'FAILED says no reason'


def retry(root: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Lets every failed run be tried again; returns their folders."""
  out = []
  for workdir in records.sweep_folders(files.path(root, '--root')):
    if (workdir / 'FAILED').exists():
      (workdir / 'FAILED').unlink()
      out.append(workdir)
  return out


def machine_rate(seconds: float = .3) -> float:
  """Returns the FLOP/s of large float32 matrix products on one device."""
  import jax
  import jax.numpy as jnp
  x = jnp.ones((1024, 1024))
  product = jax.jit(lambda x: x @ x)
  # Compiled before the clock starts.
  product(x).block_until_ready()
  began, times = time.perf_counter(), 0
  while time.perf_counter() - began < seconds:
    product(x).block_until_ready()
    times += 1
  # A product of two n x n matrices takes 2 n^3 FLOPs.
  return times * 2 * 1024 ** 3 / (time.perf_counter() - began)


def plan(configs: Mapping[str, Any], workers: int) -> str:
  """Returns points, parameters, FLOPs and an estimate of the time, as text.

  Steps that a run need not compute, because a longer run of its family does
  (audiorank/branch.py), are left out of FLOPs and time.

  Args:
    configs: {point: config}.
    workers: number of runs at the same time, which share the machine.
  """
  import jax
  import pandas as pd

  from audiorank import branch
  from audiorank import flops
  from audiorank import train_state
  rows, total, alone, spent = [], 0., 0., 0.
  rate = machine_rate() * EFFICIENCY
  shared = branch.shared_steps(list(configs.values()))
  for (point, config), copied in zip(configs.items(), shared):
    # Shapes only: no parameter is computed for a plan.
    shapes = jax.eval_shape(lambda key, c=config: train_state.init(c, key),
                            jax.random.key(0))
    cost = train_state.flops(config)
    clips = (config.train.steps - copied) * config.train.batch
    total += cost['total'] * clips
    alone += cost['total'] * config.train.steps * config.train.batch
    seconds = clips / rate * (
        cost['total'] + run_queue.FRONT_END * config.data.crop_seconds)
    spent += seconds
    sizes = flops.parameter_counts(shapes.params)
    hours = 'all'
    if config.data.hours:
      hours = f'{config.data.hours:g}'
    rows.append({
        'point': point, **{part: f'{n:,}' for part, n in sizes.items()},
        'hours': hours,
        'steps': config.train.steps, 'computed': config.train.steps - copied,
        'batch': config.train.batch,
        'FLOPs': f"{cost['total'] * clips:.2e}",
        'of the encoder': f"{cost['encoder'] / cost['total']:.0%}",
        'audio seen': f'{clips * config.data.crop_seconds / 3600:.3g} h',
        'time': progress.clock(seconds)})
  table = pd.DataFrame(rows)
  branching = ''
  if any(shared):
    branching = f' ({total / alone:.0%} of {alone:.2e} without branches)'
  else:
    table = table.drop(columns='computed')
  text = table.to_string(index=False)
  return (f'{text}\n{len(configs)} points and their untrained networks, '
          f'{total:.2e} training FLOPs with the decoder{branching}; about '
          f'{progress.clock(spent)} of training on this device '
          f'({jax.devices()[0].device_kind}) at {EFFICIENCY:.0%} of its '
          f'measured {rate / EFFICIENCY / 1e9:.0f} GFLOP/s, '
          f'{workers} at once; RankMe and scores come on top')


def table(runs: 'pd.DataFrame') -> str:
  """Returns the sweep's table as text, with blanks if a run has no result."""
  import pandas as pd

  # If no run has a result, its column is missing.
  runs = runs.reindex(columns=dict.fromkeys([*runs.columns, *RESULTS]))

  def texts(name: str, form: str) -> 'pd.Series':
    column = runs[name].map(form.format, na_action='ignore')
    return column.where(runs[name].notna(), '–')

  rank, low, high = (texts(name, '{:.1f}') for name in RESULTS[:3])
  return pd.DataFrame({
      'run': runs['run_id'], 'what': runs['name'],
      'RankMe': rank.where(rank == '–', rank + ' [' + low + ', ' + high + ']'),
      'centred': texts('rank_center', '{:.1f}'),
      'score': texts('score', '{:.3f}'),
      'valid loss': texts('valid_loss', '{:.3f}'),
      'state': runs['state']}).to_string(index=False)
